"""From the settings of a proxy to the proxy: one line per kind."""

from collections.abc import Mapping
from typing import Any

from search.proxies.char_lm import CharLM
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.next_pixel import NextPixel
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from workers.proxies.base import Proxy
from workers.proxies.char_lm import CharLMProxy
from workers.proxies.image_mlp import ImageMLPProxy
from workers.proxies.image_vit import ImageViTProxy
from workers.proxies.next_pixel import NextPixelProxy
from workers.proxies.regression import RegressionProxy

_PROXIES: Mapping[type, type[Proxy[Any]]] = {
    CharLM: CharLMProxy,
    ImageMLP: ImageMLPProxy,
    ImageViT: ImageViTProxy,
    NextPixel: NextPixelProxy,
    Regression: RegressionProxy,
}


def proxy_for(settings: ProxySpec) -> Proxy[Any]:
    """The proxy that trains with these settings."""
    return _PROXIES[type(settings)](settings)
