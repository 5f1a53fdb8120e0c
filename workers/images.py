"""Images as arrays, in two parts: to train on, and to score with."""

# N images, R rows, S columns, C channels

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.proxies.images import Images

HELD_OUT_DIGITS = 397
"""How many of the 1,797 digits are held out."""


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images ``(N, R, S, C)`` by the level of each pixel, and their classes ``(N,)``."""

    levels_NRSC: npt.NDArray[np.uint8]
    classes_N: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.classes_N)


def load_images(images: Images) -> tuple[ImageSet, ImageSet]:
    """The images to train on, and those held out."""
    # Here and not above: it takes a second to import, and most proxies need none of it.
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types

    digits = load_digits()
    whole = ImageSet(digits.images[..., None].astype(np.uint8), digits.target.astype(np.uint8))
    # Neighbours in the file were written by one hand: a shuffled split has all hands in both parts, always the same.
    order = np.random.default_rng(0).permutation(len(whole))
    held_out, train = order[:HELD_OUT_DIGITS], order[HELD_OUT_DIGITS:]
    return _part(whole, train), _part(whole, held_out)


def _part(images: ImageSet, which: npt.NDArray[np.int64]) -> ImageSet:
    return ImageSet(images.levels_NRSC[which], images.classes_N[which])
