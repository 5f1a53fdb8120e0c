"""Which proxies are the same: in all that they do, or in the task for which a learning rate is calibrated."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

from search.proxies.registry import ProxySpec

_CARRIED = frozenset({"dense_width", "width", "train_flops", "base_lr", "warmup_steps", "data_seed"})
"""What may differ between a calibration and a trial: muP carries the rate over widths, and it is the same for every budget
at a constant rate; the rest of them is what a calibration finds."""


_LATER: Mapping[str, object] = {
    "base_depth": None,
    "data_seed": None,
    "head_aligned_rank": None,
    "mixture": None,
    "outputs": 1,
    "thetas": None,
}
"""Options that there were not from the beginning, each with the value of a proxy that does not ask for it: such a proxy is
what it was before, so that what was measured then still counts."""


def digest(proxy: ProxySpec) -> str:
    """The same for two proxies if and only if all of their settings are."""
    return fingerprint(_settings(proxy))


def task_digest(proxy: ProxySpec) -> str:
    """The same for two proxies that differ at most in size, budget and learning rate: one calibration serves both, and
    the losses of both are losses of one kind."""
    return fingerprint({name: value for name, value in _settings(proxy).items() if name not in _CARRIED})


def differences(one: ProxySpec, other: ProxySpec) -> Mapping[str, tuple[object, object]]:
    """The settings in which two proxies differ, by their names, with what each has; none if and only if their losses can be
    compared as numbers."""
    first, second = asdict(one), asdict(other)
    values = {name: (first.get(name), second.get(name)) for name in {**first, **second}}
    return {name: (mine, its) for name, (mine, its) in values.items() if mine != its}


def is_shipped(proxy: ProxySpec) -> bool:
    """Whether its rate is tuned on the model of the default settings, for which a calibrated one comes along."""
    return task_digest(proxy.tuned_on) == task_digest(type(proxy)())


def _settings(proxy: ProxySpec) -> dict[str, object]:
    settings = asdict(proxy)
    return {name: value for name, value in settings.items() if name not in _LATER or value != _LATER[name]}


def fingerprint(settings: Mapping[str, object]) -> str:
    """The same for equal settings, of a proxy or of anything else that is JSON, and 32 characters long."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
