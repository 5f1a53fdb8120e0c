"""Any proxy: the union of all of them, told apart by ``kind``."""

from typing import Annotated

from pydantic import BeforeValidator, Discriminator, Tag

from einlayers.errors import FieldError
from search.proxies.char_lm import CharLM
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.next_pixel import NextPixel
from search.proxies.presets import PRESETS, PresetName
from search.proxies.regression import Regression

_KINDS = ("char_lm", "image_mlp", "image_vit", "next_pixel", "regression")


def _kind(proxy: object) -> str | None:
    """The character language model where nothing is said, as when it was the only one."""
    kind = proxy.get("kind", "char_lm") if isinstance(proxy, dict) else getattr(proxy, "kind", None)
    return kind if isinstance(kind, str) else None


def _named(proxy: object) -> object:
    """The settings of a preset, where a name was given."""
    if not isinstance(proxy, str):
        return proxy
    if proxy not in PRESETS:
        raise FieldError("the proxy", expected=f"settings, or the name of some: {', '.join(PRESETS)}", got=proxy)
    return PRESETS[proxy].proxy  # type: ignore[index]  # it is one of the names


_Settings = Annotated[
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

ProxySpec = Annotated[_Settings, BeforeValidator(_named, json_schema_input_type=_Settings | PresetName)]
"""The settings of a proxy; in JSON also the name of a preset."""
