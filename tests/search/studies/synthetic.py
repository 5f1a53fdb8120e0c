"""Runs that no machine has made: their losses follow a law that is known, with the noise of a seed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from einlayers.taxonomy import taxonomy
from einlayers.theta import Theta
from search.plan import Plan, Run
from search.proxies.registry import ProxySpec
from search.proxies.shapes import ModelCost
from search.studies.base import Measured, StudySettings
from search.trial import Coordinates, Report

LossOf = Callable[[Theta, ModelCost, float, float], float]
"""The loss of a structure in a model of this cost, after so many training FLOPs, at a multiple of its learning rate."""

IRREDUCIBLE, PARAMS_EXPONENT, DATA_EXPONENT = 0.02, 0.5, 0.5
_PARAMS_SCALE, _DATA_SCALE = 2.0, 18.4
COMPUTE_EXPONENT = PARAMS_EXPONENT * DATA_EXPONENT / (PARAMS_EXPONENT + DATA_EXPONENT)
"""The exponent of compute that the two exponents of size make (2203.15556, eq. 4)."""


def worth(theta: Theta) -> float:
    """The compute multiplier of a structure, by its group."""
    group = taxonomy(theta)
    return 1.0 if theta.is_dense else 0.9 - 0.5 * group.omega - 0.4 * (1 - group.psi)


def sized(theta: Theta, cost: ModelCost, compute: float, lr_mult: float) -> float:
    """A law of both sizes, by which a model of the default width is best at 1e11, whatever its structure."""
    useful, params, examples = math.sqrt(worth(theta)), cost.params, compute / (6 * cost.macs)
    of_params = _PARAMS_SCALE * float((useful * params) ** -PARAMS_EXPONENT)
    return IRREDUCIBLE + of_params + _DATA_SCALE * float((useful * examples) ** -DATA_EXPONENT)


@dataclass(frozen=True)
class World:
    """A law, and how much the log of the loss differs between runs, and between the points of one run."""

    loss_of: LossOf
    run_sd: float = 0.0
    point_sd: float = 0.0

    def measure(self, study: StudySettings, seed: int = 0) -> Mapping[str, Sequence[Measured]]:
        """What becomes of the parts of a study."""
        draw = np.random.default_rng(seed)
        found = {}
        for role, search in study.searches().items():
            assert isinstance(search.sampler, Plan)
            found[role] = [self._measure(run, search.proxy, draw) for run in search.sampler.runs]
        return found

    def _measure(self, run: Run, proxy: ProxySpec, draw: np.random.Generator) -> Measured:
        proxy = run.on(proxy)
        width = proxy.width_for(run.theta)
        cost = proxy.cost(run.theta, width)
        mult = run.lr_mult if run.lr_mult is not None else run.base_lr or 1.0
        offset = draw.normal(0, self.run_sd)
        curve = []
        for step in range(1, 10):
            compute = proxy.train_flops * 2 ** ((step - 9) / 2)
            loss = self.loss_of(run.theta, cost, compute, mult) * math.exp(offset + draw.normal(0, self.point_sd))
            examples = round(compute / (6 * cost.macs))
            curve.append(Report(step=step, examples=examples, train_flops=compute, loss=loss))
        return Measured(
            run=run,
            width=width,
            params=cost.params,
            macs=cost.macs,
            train_flops=proxy.train_flops,
            base_lr=mult,
            loss=curve[-1].loss,
            curve=curve if math.isfinite(curve[-1].loss) else [],
            cpu_seconds=width / 20,
            coordinates={"up": Coordinates(features=1.0, updates=0.1)},
        )
