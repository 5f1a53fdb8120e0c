"""Settings of proxies by name: a body may say ``"proxy": "screening"``. What they are is told at ``GET /v1/presets``."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from search.proxies.base import ProxySettings
from search.proxies.char_lm import CharLM
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.next_pixel import NextPixel
from search.proxies.regression import Regression

PresetName = Literal[
    "screening",
    "standard",
    "quick/char_lm",
    "quick/image_mlp",
    "quick/image_vit",
    "quick/next_pixel",
    "quick/regression",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings with a name, and what they are for."""

    name: PresetName
    about: str
    proxy: ProxySettings


def _quick(proxy: ProxySettings) -> Preset:
    about = "Seconds on one CPU, on data that needs no download: to see that things work, not to tell structures apart."
    return Preset(name=f"quick/{proxy.kind}", about=about, proxy=proxy)  # type: ignore[arg-type]  # one of the names


_ALL = (
    Preset(
        name="screening",
        about="A few CPU-seconds a trial: many structures, coarsely. Measured in docs/fidelity.md.",
        proxy=Regression(dense_width=16, batch_size=512, train_flops=2e10, base_lr=5e-3),
    ),
    Preset(
        name="standard",
        about="About ten CPU-seconds a trial: the order of structures that are close. Measured in docs/fidelity.md.",
        proxy=Regression(dense_width=22, batch_size=512, train_flops=7e10, base_lr=5e-3),
    ),
    _quick(CharLM(dense_width=16, train_flops=1e10)),
    _quick(ImageMLP(dense_width=16, train_flops=2e9)),
    _quick(ImageViT(dense_width=16, train_flops=1e10)),
    _quick(NextPixel(dense_width=16, train_flops=1e10)),
    _quick(Regression(dense_width=12, train_flops=5e9)),
)

PRESETS: Mapping[PresetName, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
