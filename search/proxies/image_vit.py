"""The vision transformer on paper: patches of an image, attention among all of them, one class."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from einlayers.errors import FieldError
from search.checks import Number, Whole, check_whole
from search.proxies.base import NAMED_BY_KIND
from search.proxies.images import Digits, Images
from search.proxies.shapes import ModelCost
from search.proxies.transformer import MAX_POSITIONS, AttentionSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageViT(AttentionSettings):
    """A vision transformer that classifies images (2406.06248, section 5); an example is an image of several patches."""

    kind: Literal["image_vit"] = "image_vit"
    dense_width: Whole = 24
    depth: Whole = 3
    num_heads: Whole = 4
    patch_size: Whole = 2
    batch_size: Whole = 16
    train_flops: Number = 1e11
    base_width: Whole = 32
    input_lr_mult: Number = 4.0
    images: Images = field(default_factory=Digits)

    SHIPPED_LR: ClassVar[float] = 8e-3

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    def __post_init__(self) -> None:
        AttentionSettings.__post_init__(self)
        check_whole("patch_size", self.patch_size, 1, self.images.size)
        if self.images.size % self.patch_size:
            raise FieldError("patch_size", expected=f"a divisor of {self.images.size}", got=self.patch_size)
        if self.passes_per_example > MAX_POSITIONS:
            expected = f"at most {MAX_POSITIONS} patches of an image"
            raise FieldError("patch_size", expected=expected, got=f"{self.passes_per_example} of {self.patch_size}")

    @property
    def examples_per_step(self) -> int:
        """Images: a batch."""
        return self.batch_size

    @property
    def passes_per_example(self) -> int:
        """The patches of an image."""
        return (self.images.size // self.patch_size) ** 2

    @property
    def patch_inputs(self) -> int:
        """The numbers in a patch."""
        return self.patch_size**2 * self.images.channels

    def fixed_cost(self, width: int) -> ModelCost:
        """The layers that read the patches, with a bias, and make the logits, positions, and what the blocks have beside
        their replaceable layers."""
        patches, classes = self.passes_per_example, self.images.num_classes
        blocks = self.blocks_cost(width, patches)
        return ModelCost(
            params=(self.patch_inputs + 1 + patches + classes) * width + blocks.params,
            macs=patches * (self.patch_inputs * width + blocks.macs) + classes * width,
        )
