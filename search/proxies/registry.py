"""Any proxy: the union of all of them, told apart by ``kind``."""

from typing import Annotated

from pydantic import Discriminator, Tag

from search.proxies.char_lm import CharLM
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.next_pixel import NextPixel
from search.proxies.regression import Regression

_KINDS = ("char_lm", "image_mlp", "image_vit", "next_pixel", "regression")


def _kind(proxy: object) -> str | None:
    """The character language model where nothing is said, as when it was the only one."""
    kind = proxy.get("kind", "char_lm") if isinstance(proxy, dict) else getattr(proxy, "kind", None)
    return kind if isinstance(kind, str) else None


ProxySpec = Annotated[
    Annotated[CharLM, Tag("char_lm")]
    | Annotated[ImageMLP, Tag("image_mlp")]
    | Annotated[ImageViT, Tag("image_vit")]
    | Annotated[NextPixel, Tag("next_pixel")]
    | Annotated[Regression, Tag("regression")],
    Discriminator(
        _kind,
        custom_error_type="proxy_kind",
        custom_error_message=f"expected a proxy whose kind is one of {', '.join(_KINDS)}",
    ),
]
