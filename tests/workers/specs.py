"""Small trials on the text of ``tests.corpora``, the smallest of which take a few milliseconds."""

from dataclasses import replace
from typing import Any

from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM, FileCorpus
from search.trial import TrialSpec

MICRO = CharLM(
    dense_width=8,
    num_heads=2,
    depth=1,
    context=16,
    batch_size=4,
    train_flops=2e7,
    base_lr=5e-3,
    corpus=FileCorpus(path="corpus.txt"),
)

SMALL = replace(MICRO, dense_width=32, context=32, batch_size=8)
"""Large enough for a trial to last: 1e9 FLOPs take it most of a second."""

ENDLESS = 1e18
"""Training FLOPs of a trial that ends only by being stopped."""


def micro_trial(name: str = "monarch", *, seed: int = 0, **settings: Any) -> TrialSpec:
    """A trial of a known design on ``MICRO``, with other settings of the proxy where given."""
    proxy = replace(MICRO, **settings)
    return TrialSpec(theta=NAMED[name], proxy=proxy, width=proxy.width_for(NAMED[name]), seed=seed)
