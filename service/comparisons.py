"""How sure the answers of a search are: the noise between its seeds, and what follows from it for its structures.

All of it is read off ``Result``, of its best structures only, so that it costs the same in a search of any size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import ColumnElement, literal_column, select
from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from search.noise import Noise, Sample
from search.states import TrialState
from search.studies.estimates import Estimate
from service import evidence, repositories
from service.errors import InvalidValue, NotFound
from service.models import Result, Search, Trial

_NUM_READ = 100
"""How many of the best structures are looked at, one by one, for the noise and for rivals of the first."""

# Written out, because a planner that is not shown the number does not see that the index of these rows would do.
_SEVERAL = Result.num_trials > literal_column("1")
_SINGLE = Result.num_trials <= literal_column("1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two structures of a search by trials of theirs, and how the second is to be judged against the first.

    ``probability`` that the first is better, and the ``difference`` of their mean losses, the first less the second, on the
    scale of ``noise``; all None where nothing is known of the noise between seeds.
    """

    trials: tuple[Trial, Trial]
    samples: tuple[Sample, Sample]
    noise: Noise | None

    @property
    def probability(self) -> float | None:
        """That the first is better."""
        return None if self.noise is None else self.noise.better(*self.samples)

    @property
    def difference(self) -> Estimate | None:
        """With its 95% interval."""
        return None if self.noise is None else self.noise.difference(*self.samples)


def lowest(session: Session, search: Search, limit: int) -> Mapping[str, Sample]:
    """The best structures of a search by their digests, in order: those of a single seed last, where more are wanted."""
    if search.spec.seeds_wanted == 1:
        return _lowest(session, search, limit)
    found = _lowest(session, search, limit, _SEVERAL)
    return found | (_lowest(session, search, limit - len(found), _SINGLE) if len(found) < limit else {})


def noise_of(session: Session, search: Search) -> Noise | None:
    """The noise between the seeds of a search; None where no structure has a second one and no study of the proxy, nor
    whoever asked for a race, says what to expect."""
    stated = search.spec.racing and search.spec.racing.sd
    # The lowest mean says whether all are positive; its structure may have one seed or several.
    samples = _lowest(session, search, 1) | _lowest(session, search, _NUM_READ, _SEVERAL)
    return Noise.of(samples.values(), expected_sd=stated or evidence.sd_of(session, search.spec.proxy))


def confidence(session: Session, search_id: str) -> float | None:
    """The probability that the first of the best structures of a search is the best of all; None where there is none, or
    nothing is known of the noise.

    Raises:
        NotFound: there is no such search.
    """
    search = repositories.search_by_id(session, search_id)
    noise = noise_of(session, search)
    first = next(iter(lowest(session, search, 1).items()), None)
    if noise is None or first is None:
        return None
    digest, sample = first
    nearest = _lowest(session, search, _NUM_READ)
    others = [other for name, other in nearest.items() if name != digest]
    seen = sum(other.num for other in others) + sample.num
    return noise.confidence(sample, others, num_more=max(0, search.counts.get(TrialState.COMPLETED, 0) - seen))


def compare(session: Session, search_id: str, one: str, other: str) -> Comparison:
    """The structures of two trials of a search, with all of their trials that count.

    Raises:
        NotFound: there is no such search, it has no such trial, or no trial of one of the structures has completed and is
            not excluded.
        InvalidValue: both trials are of one structure.
    """
    search = repositories.search_by_id(session, search_id)
    trials = _trial_of(session, search_id, one), _trial_of(session, search_id, other)
    if trials[0].digest == trials[1].digest:
        expected = f"a trial of another structure than trial {trials[0].id}"
        raise InvalidValue("?b", FieldError("the trials", expected=expected, got=other))
    samples = _sample_of(session, trials[0]), _sample_of(session, trials[1])
    return Comparison(trials=trials, samples=samples, noise=noise_of(session, search))


def _lowest(session: Session, search: Search, limit: int, *conditions: ColumnElement[bool]) -> dict[str, Sample]:
    query = select(Result).where(Result.search_id == search.id, *conditions)
    results = session.scalars(query.order_by(Result.loss_mean, Result.digest).limit(limit))
    return {result.digest: _as_sample(result) for result in results}


def _trial_of(session: Session, search_id: str, trial_id: str) -> Trial:
    trial = repositories.trial_by_id(session, trial_id)
    if trial.search_id != search_id:
        raise NotFound(f"trial of search {search_id}", trial_id)
    return trial


def _sample_of(session: Session, trial: Trial) -> Sample:
    result = session.get(Result, (trial.search_id, trial.digest))
    if result is None:
        raise NotFound("loss that counts of the structure of trial", trial.id)
    return _as_sample(result)


def _as_sample(result: Result) -> Sample:
    return Sample(num=result.num_trials, mean=result.loss_mean, squares=result.loss_m2)
