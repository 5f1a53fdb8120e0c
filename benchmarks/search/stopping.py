"""What early stopping costs and saves: whole searches on the recorded table, with and without it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.search.contestants import PROXY, Contestant
from benchmarks.search.objectives import SHARES, Table
from einlayers.theta import Theta
from search.proposals import PastTrial
from search.pruning import Climber, is_rung, judge
from search.states import TrialState
from search.stopping import Hyperband, MedianRule, NoPruner, PrunerSpec, SuccessiveHalving
from search.structure import structure_of

PRUNERS: Mapping[str, PrunerSpec] = {
    "none": NoPruner(),
    "successive-halving": SuccessiveHalving(),
    "hyperband": Hyperband(),
    "median": MedianRule(),
}
"""As a search has them that says no more than their kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped:
    """A search with early stopping: its compute in whole trainings, the regret at its end, and the best that it found."""

    compute: float
    regret: float
    best: Theta


def stopped_race(contestant: Contestant, table: Table, seed: int, num_trials: int, pruner: PrunerSpec) -> Stopped:
    """One search of ``num_trials``, one after the other."""
    history = list[PastTrial]()
    climbers: dict[float, list[Climber]] = {share: [] for share in SHARES}
    compute, completed = 0.0, dict[Theta, float]()
    for number in range(num_trials):
        asked = contestant.ask(history)
        if asked is None:
            break
        theta = table.place(asked, {past.theta for past in history})
        digest, curve = structure_of(theta, PROXY).digest, table.curve(theta, seed, 0)
        verdict = None
        for share, loss in zip(SHARES, curve, strict=True):
            climber = Climber(number=number, digest=digest, loss=loss)
            if is_rung(pruner, number, share):
                verdict = judge(pruner, climber, climbers[share], point=share, replicates=1)
            if verdict:
                break
        compute += share
        final_loss = None if verdict else curve[-1]
        for passed, loss in zip(SHARES[: SHARES.index(share) + 1], curve, strict=False):
            climbers[passed].append(Climber(number=number, digest=digest, loss=loss, final_loss=final_loss))
        if verdict:
            state, seen = TrialState.PRUNED, math.log(verdict.expected_loss)
        else:
            state, seen = TrialState.COMPLETED, math.log(curve[-1])
            completed[theta] = seen
        history.append(PastTrial(theta=theta, digest=digest, state=state, loss=seen))
    best = min(completed, key=completed.__getitem__)
    return Stopped(compute=compute, regret=table.truth(best) - table.lowest, best=best)
