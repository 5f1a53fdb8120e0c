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
from workers.models.layers import layers_of
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
            layers=layers_of(self.settings, theta),
        )

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Images as sequences; see ``Proxy.task``."""
        train, held_out = load_images(self.settings.images, workspace)
        parts = np.array_split(held_out.levels_NRSC, math.ceil(len(held_out) / _IMAGES_AT_ONCE))
        scored = [self._batch(part_NRSC, device) for part_NRSC in parts]
        generator = np.random.default_rng(seed)
        return Task(
            batches=self._random_batches(train, generator, device),
            generator=generator,
            loss=next_token_loss,
            held_out_loss=lambda model: mean_loss(next_token_loss, model, scored),
            uninformed_loss=math.log(self.settings.vocabulary_size),
        )

    def _random_batches(self, train: ImageSet, generator: np.random.Generator, device: torch.device) -> Iterator[Batch]:
        while True:
            chosen = generator.integers(0, len(train), size=self.settings.batch_size)
            yield self._batch(train.levels_NRSC[chosen], device)

    def _batch(self, levels_BRSC: npt.NDArray[np.uint8], device: torch.device) -> Batch:
        """The pixels of each image, row by row, after the token that stands before all of them; and each one's next."""
        pixels_BT = levels_BRSC.reshape(len(levels_BRSC), -1).astype(np.int64)
        tokens_BT = np.pad(pixels_BT, ((0, 0), (1, 0)), constant_values=self.settings.images.levels)
        on_device_BT = torch.from_numpy(tokens_BT).to(device)
        return on_device_BT[:, :-1], on_device_BT[:, 1:]
