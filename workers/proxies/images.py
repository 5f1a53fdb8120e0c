"""The task of the proxies that classify images: randomly shifted images to train on, all held-out ones to score with."""

# B batch, R rows, S columns, C channels

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from search.proxies.images import Images
from workers.images import ImageSet, load_images
from workers.task import Batch, Task, mean_loss
from workers.workspace import Workspace

_SHIFT = 1
"""By how many pixels an image is shifted at most, in each direction, every time it is trained on."""

_AT_ONCE = 2**25
"""How many numbers of held-out images a model is given at once; more than that are not kept on its device either."""


def classification(images: Images, batch_size: int, seed: int, workspace: Workspace, device: torch.device) -> Task:
    """Batches of images ``(B, R, S, C)`` and their classes ``(B,)``, the mean cross entropy, in nats per image."""
    train, held_out = load_images(images, workspace)
    scored = _scored(held_out, images, device)
    generator = np.random.default_rng(seed)
    return Task(
        batches=_random_batches(train, images, batch_size, generator, device),
        generator=generator,
        loss=class_loss,
        held_out_loss=lambda model: mean_loss(class_loss, model, scored),
        uninformed_loss=math.log(images.num_classes),
    )


def _scored(held_out: ImageSet, images: Images, device: torch.device) -> Iterable[Batch]:
    num_batches = math.ceil(held_out.levels_NRSC.size / _AT_ONCE)
    if num_batches == 1:
        return [_batch(held_out.levels_NRSC, held_out.classes_N, images, device)]
    return _HeldOut(held_out, images, num_batches, device)


@dataclass(frozen=True, slots=True)
class _HeldOut:
    """Batches that are made anew every time that they are asked for."""

    held_out: ImageSet
    images: Images
    num_batches: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        for which in np.array_split(np.arange(len(self.held_out)), self.num_batches):
            part = self.held_out.levels_NRSC[which], self.held_out.classes_N[which]
            yield _batch(*part, self.images, self.device)


def class_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean cross entropy of a batch."""
    images_BRSC, classes_B = batch
    return F.cross_entropy(model(images_BRSC), classes_B)


def _random_batches(
    train: ImageSet, images: Images, batch_size: int, generator: np.random.Generator, device: torch.device
) -> Iterator[Batch]:
    margin = ((0, 0), (_SHIFT, _SHIFT), (_SHIFT, _SHIFT), (0, 0))
    size, which = np.arange(images.size), np.arange(batch_size)
    while True:
        chosen = generator.integers(0, len(train), size=batch_size)
        down, right = generator.integers(0, 2 * _SHIFT + 1, size=(2, batch_size, 1))
        padded_BRSC = np.pad(train.levels_NRSC[chosen], margin)
        shifted = padded_BRSC[which[:, None, None], (down + size)[:, :, None], (right + size)[:, None, :]]
        yield _batch(shifted, train.classes_N[chosen], images, device)


def _batch(
    levels_BRSC: npt.NDArray[np.uint8], classes_B: npt.NDArray[np.unsignedinteger], images: Images, device: torch.device
) -> Batch:
    """Levels become numbers from -1 to 1."""
    scaled_BRSC = levels_BRSC.astype(np.float32) * (2 / (images.levels - 1)) - 1
    return torch.from_numpy(scaled_BRSC).to(device), torch.from_numpy(classes_B.astype(np.int64)).to(device)
