"""How long a whole proposal takes after so many trials."""

import random
import statistics
import time
from collections.abc import Iterator, Sequence

from benchmarks.search.contestants import PROXY
from benchmarks.search.objectives import LANDSCAPES
from search.proposals import PastTrial, propose
from search.samplers.registry import make_sampler
from search.sampling import CmaEs, Gp, Qmc, Random, Tpe
from search.space import SUBSPACES
from search.spec import Budget, SearchSpec
from search.states import TrialState

_ROUNDS = 7


def asks(sizes: Sequence[int]) -> Iterator[tuple[str, float]]:
    """For every sampler and size of the history, the median seconds of a proposal."""
    for size in sizes:
        history = _history(size)
        for sampler in (Gp(), Tpe(), CmaEs(), Qmc(), Random()):
            spec = SearchSpec(name="asks", budget=Budget(max_trials=1), proxy=PROXY, sampler=sampler)
            # What follows from a theta is kept: the first proposal places the whole history, the others the last trial.
            _timed(spec, history)
            taken = [_timed(spec, history[: size - number]) for number in range(_ROUNDS)]
            yield f"`{sampler.kind}`, {size:,}", statistics.median(taken)


def _timed(spec: SearchSpec, history: Sequence[PastTrial]) -> float:
    begun = time.perf_counter()
    propose(spec, history, lambda: make_sampler(spec.sampler, spec.cube))
    return time.perf_counter() - begun


def _history(size: int) -> list[PastTrial]:
    draw, full, landscape = random.Random(0), SUBSPACES["full"], LANDSCAPES[-1]
    thetas = [full.to_theta(tuple(draw.random() for _ in range(full.num_coordinates))) for _ in range(size)]
    return [
        PastTrial(theta=theta, digest=str(i), state=TrialState.COMPLETED, loss=landscape.curve(theta, 0, 0)[-1])
        for i, theta in enumerate(thetas)
    ]
