"""What ``make fidelity`` measures: the studies behind ``docs/fidelity.md``, with fresh seeds, teachers and structures."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from einlayers.theta import NAMED, Theta
from search.studies.structures import REFERENCE_SET

SEED = 2033
TASK: Mapping[str, Any] = {"kind": "regression", "teacher_seed": SEED, "outputs": 4, "batch_size": 512}
"""A teacher that nothing was tuned on."""

STANDARD = {**TASK, "dense_width": 27, "train_flops": 8e10}
SCREENING = {**TASK, "dense_width": 20, "train_flops": 2.5e10}
MIDDLE = {**TASK, "dense_width": 25, "train_flops": 6e10}
LARGE = {**TASK, "dense_width": 39, "train_flops": 3.2e11}
"""What the order at the standard compute is compared with: four times as much."""

ONE_WIDTH = 76
"""The width of the negative controls: nearly three times dense's, as 64 was when dense was 22 wide."""

TEXT = {"kind": "char_lm", "dense_width": 32, "train_flops": 4e11}
"""What regressions are compared with: the character GPT, at a compute at which its own order holds (ADR 21)."""

AGAINST_TEXT = {"reference": TEXT, "reference_replicates": 1, "reference_neighbours": True}
"""Of three widths each, as heads leave a small GPT few that suit a structure (ADR 23)."""

RANDOM = {"count": 24, "seed": SEED}


def _fidelity(name: str, proxy: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    return {"kind": "fidelity_study", "name": name, "proxy": dict(proxy), "seed": SEED, **settings}


def _tuned(name: str, **settings: Any) -> dict[str, Any]:
    fixed = {"size_factors": [1.0], "compute_factors": [1.0], "lr_mults": [0.5, 1.0, 2.0]}
    return {"kind": "scaling_study", "name": name, "proxy": dict(STANDARD), "seed": SEED + 10, **fixed, **settings}


STUDIES: tuple[Mapping[str, Any], ...] = (
    _fidelity("screening", SCREENING, replicates=6),
    _fidelity("standard", STANDARD, replicates=4, reference=LARGE),
    _fidelity("random", MIDDLE, replicates=3, structures=RANDOM, reference_replicates=1, neighbours=False),
    _fidelity(
        "control: equal steps",
        {**STANDARD, "width": ONE_WIDTH},
        replicates=4,
        reference=LARGE,
        neighbours=False,
        scoring="equal_steps",
    ),
    _fidelity(
        "control: fixed width", {**STANDARD, "width": ONE_WIDTH}, replicates=4, reference=LARGE, neighbours=False
    ),
    _fidelity(
        "control: equal steps, random structures",
        {**MIDDLE, "width": ONE_WIDTH},
        replicates=3,
        structures=RANDOM,
        reference_replicates=1,
        neighbours=False,
        scoring="equal_steps",
    ),
    _fidelity("standard against text", STANDARD, replicates=4, **AGAINST_TEXT),
    _fidelity("random against text", MIDDLE, replicates=3, structures=RANDOM, neighbours=False, **AGAINST_TEXT),
    _tuned("dense or BTT", structures=[asdict(NAMED["monarch"]), asdict(NAMED["btt"])], replicates=8),
    _tuned("the papers' order", structures=[asdict(theta) for theta in REFERENCE_SET], replicates=4),
)
"""In the order in which they are begun."""

_GROUPS = (REFERENCE_SET[1], REFERENCE_SET[3], REFERENCE_SET[5])
"""One of each group of the taxonomy."""

_SMALL = {"train_flops": 2e7, "teacher_width": 8, "batch_size": 64, "base_lr": 5e-3}


def slice_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A regression study so small that it shows that all of it works, and says nothing about the proxy."""
    fewer: dict[str, Any] = {"replicates": 2}
    if spec["kind"] == "fidelity_study":
        fewer |= {"structures": RANDOM | {"count": 4}, "reference": None, "reference_replicates": 1}
    else:
        fewer |= {"structures": [each for each in spec["structures"] if Theta(**each) in _GROUPS]}
    return {**spec, **fewer, "proxy": {**spec["proxy"], **_SMALL}}
