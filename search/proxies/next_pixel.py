"""The next-pixel model on paper: a small GPT that reads images pixel by pixel."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from search.checks import Number, Whole
from search.proxies.base import NAMED_BY_KIND
from search.proxies.images import Digits, Images
from search.proxies.transformer import MAX_POSITIONS, TransformerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class NextPixel(TransformerSettings):
    """A small GPT on the pixels of images, row by row (2410.02117, section 5). See ``TransformerSettings``."""

    kind: Literal["next_pixel"] = "next_pixel"
    dense_width: Whole = 24
    depth: Whole = 2
    num_heads: Whole = 4
    batch_size: Whole = 8
    train_flops: Number = 1e11
    base_width: Whole = 32
    input_lr_mult: Number = 4.0
    images: Images = field(default_factory=Digits)

    SHIPPED_LR: ClassVar[float] = 5e-3

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    def __post_init__(self) -> None:
        TransformerSettings.__post_init__(self)
        if self.num_positions > MAX_POSITIONS:
            expected = f"images of at most {MAX_POSITIONS} pixels, every colour counted"
            raise FieldError("images", expected=expected, got=self.num_positions)

    @property
    def vocabulary_size(self) -> int:
        """The levels of a pixel, and the token before the first one."""
        return self.images.levels + 1

    @property
    def num_positions(self) -> int:
        """The pixels of an image."""
        return self.images.size**2 * self.images.channels
