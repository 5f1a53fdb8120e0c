"""How often the intervals of scaling studies hold the truth: on synthetic runs, whose constants are known.

A hundred studies of dense and of one structure, five widths, two budgets, four seeds; 1.5% noise between runs, 0.3% between
the points of a run. What was found is kept in a file, draw by draw, so that an interrupted measurement goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.fidelity.studies import SEED
from einlayers.theta import NAMED
from search.analysis import scaling
from search.proxies.regression import Regression
from search.studies.estimates import Estimate
from search.studies.scaling import ScalingStudy
from tests.search.studies.synthetic import (
    COMPUTE_EXPONENT,
    DATA_EXPONENT,
    IRREDUCIBLE,
    PARAMS_EXPONENT,
    World,
    sized,
    worth,
)

NUM_DRAWS = 100

_STRUCTURE = NAMED["monarch"]
_STUDY = ScalingStudy(
    name="coverage",
    proxy=replace(Regression(train_flops=1e11, base_lr=5e-3), dense_width=24),
    structures=(_STRUCTURE,),
    replicates=4,
)
_WORLD = World(sized, run_sd=0.015, point_sd=0.003)

Hits = Mapping[str, bool]
"""For each constant, whether its interval held the truth."""


def coverage(kept: Path) -> Mapping[str, int]:
    """For each constant, how many of ``NUM_DRAWS`` intervals held the truth; ``kept``: what is known already."""
    draws: dict[str, Hits] = json.loads(kept.read_text()) if kept.exists() else {}
    for draw in range(NUM_DRAWS):
        if str(draw) not in draws:
            draws[str(draw)] = _hits(draw)
            kept.write_text(json.dumps(draws))
    found = list(draws.values())[:NUM_DRAWS]
    return {name: sum(hits[name] for hits in found) for name in found[0]}


def _hits(draw: int) -> Hits:
    _, structure = scaling.analyse(_STUDY, _WORLD.measure(_STUDY, 1000 * SEED + draw)).structures
    law = structure.size_law
    assert law is not None, "five widths are enough for it"
    multiplier = structure.multipliers[-1]
    estimates = {
        "exponent of N": (law.params_exponent, PARAMS_EXPONENT),
        "exponent of D": (law.data_exponent, DATA_EXPONENT),
        "irreducible loss": (law.irreducible, IRREDUCIBLE),
        "exponent of C": (structure.power_law.exponent, COMPUTE_EXPONENT),
        "multiplier": (Estimate(value=multiplier.value, low=multiplier.low, high=multiplier.high), worth(_STRUCTURE)),
    }
    return {name: estimate.low <= truth <= estimate.high for name, (estimate, truth) in estimates.items()}
