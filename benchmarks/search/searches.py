"""Whole searches: what contestants find, trial after trial, and what early stopping costs and saves."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean

from benchmarks.search.contestants import CONTESTANTS, PROXY, Contestant
from benchmarks.search.objectives import SHARES, Curve, Objective
from einlayers.theta import Theta
from search.proposals import PastTrial
from search.pruning import Climber, Verdict, is_rung, judge
from search.states import TrialState
from search.stopping import Extrapolation, Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving
from search.structure import structure_of

PRUNERS: Mapping[str, PrunerSpec] = {
    pruner.kind: pruner for pruner in (NoPruner(), Extrapolation(), SuccessiveHalving(), Hyperband(), MedianRule())
}
"""As a search has them that says no more than their kind."""

OTHER_DRAWS = "none, from another seed of the sampler"
"""What is not early stopping, to compare it with: a search of other proposals, on the same losses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Searched:
    """A search from its beginning to its end: the regret after every trial, its compute in whole trainings, and what looked
    best in the end."""

    regrets: tuple[float, ...]
    compute: float
    best: Theta


def search(name: str, objective: Objective, pruner: str, seed: int, num_trials: int) -> Searched:
    """One search of ``num_trials`` of a contestant, with a pruner or ``OTHER_DRAWS``."""
    if pruner == OTHER_DRAWS:
        return searched(CONTESTANTS[name](seed + 1000, num_trials), objective, seed, num_trials)
    return searched(CONTESTANTS[name](seed, num_trials), objective, seed, num_trials, PRUNERS[pruner])


def searched(
    contestant: Contestant, objective: Objective, seed: int, num_trials: int, pruner: PrunerSpec | None = None
) -> Searched:
    """One search of ``num_trials``, one after the other. What has nothing more to propose keeps its last regret."""
    rungs = _Rungs(pruner or NoPruner())
    history, tried, losses = list[PastTrial](), set[Theta](), dict[Theta, list[float]]()
    regrets, compute = list[float](), 0.0

    def rank(theta: Theta) -> tuple[bool, float]:
        return len(losses[theta]) < contestant.seeds_wanted, fmean(losses[theta])

    while len(regrets) < num_trials:
        asked = contestant.ask(history)
        if asked is None:
            regrets += regrets[-1:] * (num_trials - len(regrets))
            break
        is_again = contestant.seeds_wanted > 1 and asked in losses
        theta = asked if is_again else objective.place(asked, tried)
        tried.add(theta)
        curve = objective.curve(theta, seed, len(losses.get(theta, ())))
        digest = structure_of(theta, PROXY).digest
        share, verdict = rungs.climb(len(history), digest, curve)
        compute += share
        if verdict is None:
            losses.setdefault(theta, []).append(math.log(curve[-1]))
            history.append(PastTrial(theta=theta, digest=digest, state=TrialState.COMPLETED, loss=curve[-1]))
        else:
            loss = verdict.expected_loss
            history.append(PastTrial(theta=theta, digest=digest, state=TrialState.PRUNED, loss=loss))
        regrets.append(objective.truth(min(losses, key=rank)) - objective.lowest)
    return Searched(regrets=tuple(regrets), compute=compute, best=min(losses, key=rank))


class _Rungs:
    """Where trials are on their curves, as the service keeps it."""

    def __init__(self, pruner: PrunerSpec) -> None:
        self._pruner = pruner
        self._climbers: dict[float, list[Climber]] = {share: [] for share in SHARES}

    def climb(self, number: int, digest: str, curve: Curve) -> tuple[float, Verdict | None]:
        """How far a trial comes, and why no further."""
        climbed, share, verdict = list[tuple[float, Climber]](), 1.0, None
        earlier = None
        for share, loss in zip(SHARES[-len(curve) :], curve, strict=True):
            climber = Climber(number=number, digest=digest, loss=loss, earlier_loss=earlier)
            climbed.append((share, climber))
            if is_rung(self._pruner, number, share):
                verdict = judge(self._pruner, climber, self._climbers[share], point=share, replicates=1)
            if verdict:
                break
            earlier = loss
        final_loss = None if verdict else curve[-1]
        for passed, each in climbed:
            self._climbers[passed].append(replace(each, final_loss=final_loss))
        return share, verdict
