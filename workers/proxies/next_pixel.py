"""The next-pixel proxy: the level of each pixel from those before it (2410.02117, section 5)."""

# B batch, T tokens

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from einlayers.theta import Theta
from search.proxies.next_pixel import NextPixel
from workers.images import ImageSet, load_images
from workers.models.gpt import GPT
from workers.models.linears import linear_factory
from workers.proxies.base import Proxy
from workers.proxies.char_lm import next_token_loss
from workers.task import Batch, Task, mean_loss
from workers.workspace import Workspace

_IMAGES_AT_ONCE = 64


class NextPixelProxy(Proxy[NextPixel]):
    """Trains a GPT on random images; evaluates it on all that are held out."""

    def build(self, theta: Theta, width: int) -> nn.Module:
        """A GPT; see ``Proxy.build``."""
        return GPT(
            vocabulary=self.settings.vocabulary_size,
            context=self.settings.num_positions,
            width=width,
            depth=self.settings.depth,
            num_heads=self.settings.num_heads,
            linear=linear_factory(theta),
        )

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Images as sequences; see ``Proxy.task``."""
        train_NT, held_out_NT = (_sequences(part, self.settings) for part in load_images(self.settings.images))
        num_parts = math.ceil(len(held_out_NT) / _IMAGES_AT_ONCE)
        held_out = [_batch(part_NT, device) for part_NT in np.array_split(held_out_NT, num_parts)]
        generator = np.random.default_rng(seed)
        return Task(
            batches=_random_batches(train_NT, self.settings.batch_size, generator, device),
            generator=generator,
            loss=next_token_loss,
            held_out_loss=lambda model: mean_loss(next_token_loss, model, held_out),
            uninformed_loss=math.log(self.settings.vocabulary_size),
        )


def _sequences(images: ImageSet, settings: NextPixel) -> npt.NDArray[np.int64]:
    """The pixels of each image, row by row, after the token that stands before all of them: ``(N, T + 1)``."""
    pixels_NT = images.levels_NRSC.reshape(len(images), -1).astype(np.int64)
    return np.pad(pixels_NT, ((0, 0), (1, 0)), constant_values=settings.images.LEVELS)


def _random_batches(
    sequences_NT: npt.NDArray[np.int64], batch_size: int, generator: np.random.Generator, device: torch.device
) -> Iterator[Batch]:
    while True:
        yield _batch(sequences_NT[generator.integers(0, len(sequences_NT), size=batch_size)], device)


def _batch(sequences_BT: npt.NDArray[np.int64], device: torch.device) -> Batch:
    tokens_BT = torch.from_numpy(sequences_BT).to(device)
    return tokens_BT[:, :-1], tokens_BT[:, 1:]
