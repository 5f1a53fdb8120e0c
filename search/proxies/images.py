"""Images on paper: which data sets there are, and what their images look like."""

from dataclasses import dataclass
from typing import ClassVar, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """The 1,797 handwritten digits that come with scikit-learn: 8 x 8 pixels of 17 grey levels, ten classes."""

    kind: Literal["digits"] = "digits"

    SIZE: ClassVar[int] = 8
    CHANNELS: ClassVar[int] = 1
    LEVELS: ClassVar[int] = 17
    NUM_CLASSES: ClassVar[int] = 10

    __pydantic_config__: ClassVar = {"extra": "forbid"}


Images = Digits
"""Any set of images; becomes a union, told apart by ``kind``, with the second member."""
