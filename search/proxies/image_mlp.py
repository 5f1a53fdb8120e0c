"""The MLP that classifies images, on paper."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from search.checks import Number, Whole
from search.proxies.base import NAMED_BY_KIND
from search.proxies.images import Digits, Images
from search.proxies.mlp import MLPSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageMLP(MLPSettings):
    """A residual MLP that classifies images by all of their pixels (2406.06248, section 5); an example is an image."""

    kind: Literal["image_mlp"] = "image_mlp"
    dense_width: Whole = 24
    depth: Whole = 3
    batch_size: Whole = 256
    train_flops: Number = 1e10
    base_width: Whole = 64
    input_lr_mult: Number = 1.0
    images: Images = field(default_factory=Digits)

    SHIPPED_LR: ClassVar[float] = 4e-3

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    @property
    def num_inputs(self) -> int:
        """The pixels of an image, in all channels."""
        return self.images.size**2 * self.images.channels

    @property
    def num_outputs(self) -> int:
        """A logit for each class."""
        return self.images.num_classes
