"""From the settings of a proxy to the proxy: one line per kind."""

from collections.abc import Mapping

from search.proxies import CharLM, ProxySpec
from workers.proxies.base import Proxy
from workers.proxies.char_lm import CharLMProxy

_PROXIES: Mapping[type, Proxy] = {CharLM: CharLMProxy()}


def proxy_for(spec: ProxySpec) -> Proxy:
    """The proxy that trains ``spec``."""
    return _PROXIES[type(spec)]
