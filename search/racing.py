"""Racing: of structures that were tried once, those that may be the best are trained from further seeds, and no others.

A structure is a contender for as long as it cannot be told, by the trials that there are, that it is no better than the one
with the lowest mean (as in F-Race, Birattari et al., GECCO 2002, with the posterior of ``search.noise`` for a test). The
decision is a function of what has been tried, as everything about a proposal.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from search.checks import Number, Whole, check_number, check_whole
from search.noise import EXPECTED_SD, Noise, Sample

_SHARE = 0.25
"""What replicates may take of the trials so far, as long as there is time for new structures: more would leave too few."""

_SHARE_IN_THE_END = 0.5
"""What they may take of all trials: the last ones are theirs, as many as the contenders are still to be given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Racing:
    """Further seeds for the contenders: up to ``max_replicates`` trials each, for as long as it cannot be ruled out with
    this ``confidence`` that it is the best.

    ``sd``: of the log of the loss between seeds, as far as that is known beforehand; left open, it is what the fidelity
    study of the proxy says when the search is submitted, if there is one.
    """

    max_replicates: Whole = 3
    confidence: Number = 0.8
    sd: Number | None = None

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    def __post_init__(self) -> None:
        check_whole("max_replicates", self.max_replicates, 2, 100)
        check_number("confidence", self.confidence, 0.5, 0.999)
        if self.sd is not None:
            check_number("sd", self.sd, 1e-6, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A structure as a race sees it: how many trials of it there are, the losses among them that count, and whether it still
    waits for one."""

    digest: str
    num_trials: int
    losses: tuple[float, ...] = ()
    is_pending: bool = False


def contenders(racing: Racing, entrants: Sequence[Entrant]) -> Sequence[Entrant]:
    """Those that may be the best and can have further trials: with the fewest first, and of these the best by its mean."""
    tried = [(entrant, Sample.of(entrant.losses)) for entrant in entrants if entrant.losses]
    if not tried:
        return []
    first, lowest = min(tried, key=lambda each: (each[1].mean, each[0].digest))
    # Where nothing is known of the noise, it is a second trial of the first that begins to tell.
    expected_sd = EXPECTED_SD if racing.sd is None else racing.sd
    noise = Noise.of([sample for _, sample in tried], expected_sd=expected_sd)
    quantile = 0.0 if noise is None else noise.quantile(racing.confidence)
    found = [
        (entrant, sample)
        for entrant, sample in tried
        if entrant.num_trials < racing.max_replicates
        and (entrant is first or (noise and noise.excess(sample, lowest) <= quantile * noise.error(sample, lowest)))
    ]
    found.sort(key=lambda each: (each[0].num_trials, each[1].mean, each[0].digest))
    return [entrant for entrant, _ in found]


def next_replicate(
    racing: Racing, entrants: Sequence[Entrant], *, replicates: int, num_left: int | None
) -> Entrant | None:
    """Which structure is to be trained once more, rather than a new one for the first time.

    ``replicates``: how many trials every structure gets, whatever comes of it; ``num_left``: how many more the budget pays
    for, None where only time limits them. The last ones go to contenders, so that the best does not rest on a single seed.
    """
    if num_left == 1 and all(entrant.num_trials == 1 for entrant in entrants):
        return last_replicate(racing, entrants)
    racers = contenders(racing, entrants)
    if not racers:
        return None
    num_trials = sum(entrant.num_trials for entrant in entrants)
    num_given = sum(max(0, entrant.num_trials - replicates) for entrant in entrants)
    if num_given + 1 <= _SHARE * (num_trials + 1):
        return racers[0]
    if num_left is None:
        return None
    num_owed = sum(racing.max_replicates - racer.num_trials for racer in racers)
    at_most = _SHARE_IN_THE_END * (num_trials + num_left) - num_given
    return racers[0] if num_left <= min(num_owed, at_most) else None


def last_replicate(racing: Racing, entrants: Sequence[Entrant]) -> Entrant | None:
    """Which structure is to be trained once more where nothing new is left to try: a contender, or one that is still on its
    first trial and may become one."""
    beginners = (entrant for entrant in entrants if entrant.is_pending and entrant.num_trials == 1)
    return next(iter(contenders(racing, entrants)), None) or next(beginners, None)
