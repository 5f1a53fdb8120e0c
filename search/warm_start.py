"""Which searches another one may start from: those whose losses are, as numbers, what its own would be."""

from einlayers.errors import FieldError, shorten
from search.plan import Plan
from search.proxies.identity import differences
from search.proxies.registry import ProxySpec
from search.spec import SearchSpec


def check_source(spec: SearchSpec, source_id: str, source: SearchSpec) -> None:
    """Go on only if every trial of ``source`` is trained as ``spec`` would train it, on the same proxy, in all that it says;
    and measured, where that is asked for.

    Raises:
        FieldError: it is not; in what they differ.
    """
    _check_proxy(spec.proxy, source_id, source.proxy)
    if spec.measures_steps and not source.measures_steps:
        expected = "searches that measure latency and peak_memory, as this one minimises one of them"
        raise FieldError("warm_start", expected=expected, got=source_id)
    if isinstance(source.sampler, Plan):
        for number, run in enumerate(source.sampler.runs):
            if (proxy := run.on(source.proxy)) != source.proxy:
                _check_proxy(spec.proxy, f"{source_id}, run {number} of its plan", proxy)


def _check_proxy(proxy: ProxySpec, name: str, its_proxy: ProxySpec) -> None:
    unlike = differences(proxy, its_proxy)
    if "kind" in unlike:
        unlike = {"kind": unlike["kind"]}
    if unlike:
        settings = ", ".join(f"{key} is {_shown(its)}, here {_shown(own)}" for key, (own, its) in unlike.items())
        raise FieldError("warm_start", expected=f"searches on exactly this proxy; there {settings}", got=name)


def _shown(value: object) -> str:
    return shorten(ascii(value), 60)
