"""The character language model proxy: next-character loss on real text (2410.02117, section 5)."""

# B batch, T tokens, V vocabulary

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.theta import Theta
from search.proxies.char_lm import CHAR_VOCABULARY, CharLM
from workers.corpora import load_tokens, require_length
from workers.models.gpt import GPT
from workers.models.layers import layers_of
from workers.proxies.base import Proxy
from workers.task import Batch, Task, mean_loss
from workers.workspace import Workspace

EVALUATION_TOKENS = 16_384
"""How many held-out tokens score a model: the same ones, evenly spread, for every trial."""


class CharLMProxy(Proxy[CharLM]):
    """Trains a GPT on random windows of the training text; evaluates it on fixed windows of the held-out text."""

    def build(self, theta: Theta, width: int) -> nn.Module:
        """A GPT; see ``Proxy.build``."""
        return GPT(
            vocabulary=len(CHAR_VOCABULARY),
            context=self.settings.context,
            width=width,
            depth=self.settings.depth,
            num_heads=self.settings.num_heads,
            layers=layers_of(self.settings, theta),
        )

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Windows of the corpus; see ``Proxy.task``."""
        context = self.settings.context
        split = load_tokens(self.settings.corpus, workspace)
        require_length(split, context)
        held_out = list(_held_out_batches(split.held_out, context, device))
        generator = np.random.default_rng(seed)
        return Task(
            batches=_random_batches(split.train, self.settings, generator, device),
            generator=generator,
            loss=next_token_loss,
            held_out_loss=lambda model: mean_loss(next_token_loss, model, held_out),
            uninformed_loss=math.log(len(CHAR_VOCABULARY)),
        )


def next_token_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross entropy, in nats per token, of a batch ``(inputs_BT, targets_BT)``."""
    inputs_BT, targets_BT = batch
    return F.cross_entropy(model(inputs_BT).flatten(0, 1), targets_BT.flatten())


def _random_batches(
    tokens: npt.NDArray[np.uint8], settings: CharLM, generator: np.random.Generator, device: torch.device
) -> Iterator[Batch]:
    while True:
        starts = generator.integers(0, len(tokens) - settings.context, size=settings.batch_size)
        yield _windows(tokens, starts, settings.context, device)


def _held_out_batches(tokens: npt.NDArray[np.uint8], context: int, device: torch.device) -> Iterator[Batch]:
    num_windows = max(1, EVALUATION_TOKENS // context)
    starts = np.linspace(0, len(tokens) - context - 1, num_windows).astype(np.int64)
    per_batch = max(1, 4096 // context)
    for first in range(0, num_windows, per_batch):
        yield _windows(tokens, starts[first : first + per_batch], context, device)


def _windows(tokens: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], context: int, device: torch.device) -> Batch:
    window_BT = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    batch = torch.from_numpy(window_BT).to(device)
    return batch[:, :-1], batch[:, 1:]
