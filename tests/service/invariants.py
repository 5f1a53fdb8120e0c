"""What holds of a search at any time, whatever has happened: its rows agree with each other."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from math import isclose

from sqlalchemy import select
from sqlalchemy.orm import Session

from search.states import AttemptState, SearchState, TrialState
from service import repositories
from service.database import Database
from service.models import Attempt, Event, Result, Search, Trial, WarmStart

_ABOUT_TRIALS = ("trial.state", "trial.excluded", "trial.included")


def check(database: Database, search_id: str) -> None:
    """Every number that is kept is the one that a count of the rows gives; nothing is there twice, or missing."""
    with database.read() as session:
        search = repositories.search_by_id(session, search_id)
        trials = session.scalars(select(Trial).where(Trial.search_id == search_id).order_by(Trial.number)).all()
        events = session.scalars(select(Event).where(Event.search_id == search_id).order_by(Event.number)).all()
        _check_search(search, trials)
        _check_events(search, trials, events)
        _check_results(session, search, trials)
        _check_attempts(session, search, trials)
        _check_reused(session, search, [trial for trial in trials if trial.reused_from is not None])


def _check_search(search: Search, trials: Sequence[Trial]) -> None:
    assert [trial.number for trial in trials] == list(range(len(trials)))
    for digest in {trial.digest for trial in trials}:
        replicates = [trial.replicate for trial in trials if trial.digest == digest]
        assert replicates == list(range(len(replicates)))
    for state in TrialState:
        assert search.counts.get(state, 0) == sum(trial.state is state for trial in trials), state
    assert search.counts.get(TrialState.RUNNING, 0) <= search.spec.concurrency
    assert isclose(search.train_flops, sum(trial.train_flops for trial in trials))
    reused = [trial for trial in trials if trial.reused_from is not None]
    assert search.num_reused == len(reused)
    most = search.spec.budget.num_trials(search.spec.proxy.train_flops)
    assert most is None or len(trials) - len(reused) <= most
    assert search.best_loss == min((loss for loss in map(_loss, trials) if loss is not None), default=None)
    ended = [trial for trial in trials if trial.state.is_final]
    assert sorted(trial.finish_order for trial in ended if trial.finish_order is not None) == list(range(len(ended)))
    assert all(trial.finish_order is None for trial in trials if trial not in ended)
    assert search.seconds_before >= 0
    assert (search.finished_at is not None) == search.state.is_final
    if search.state.is_final:
        assert len(ended) == len(trials)
        assert search.reason is not None
        assert search.runner_id is None


def _check_events(search: Search, trials: Sequence[Trial], events: Sequence[Event]) -> None:
    assert [event.number for event in events] == list(range(1, search.last_event + 1))
    states = [event.data["state"] for event in events if event.kind == "search.state"]
    assert states[-1] == search.state
    assert all(SearchState(new) in SearchState(old).successors() for old, new in pairwise(states))
    told: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.kind in _ABOUT_TRIALS and event.trial_id is not None:
            told[event.trial_id].append(event)
    for trial in trials:
        assert trial.changed == told[trial.id][-1].number
        last = [event.data for event in told[trial.id] if event.kind == "trial.state"][-1]
        assert (last["state"], last["number"], last["loss"]) == (trial.state, trial.number, trial.loss)
        verdicts = [event.kind for event in told[trial.id] if event.kind != "trial.state"]
        assert (trial.excluded_at is not None) == (verdicts[-1:] == ["trial.excluded"])
    assert told.keys() == {trial.id for trial in trials}


def _check_results(session: Session, search: Search, trials: Sequence[Trial]) -> None:
    losses: dict[str, dict[str, float]] = defaultdict(dict)
    for trial in trials:
        if (loss := _loss(trial)) is not None:
            losses[trial.digest][trial.id] = loss
    results = session.scalars(select(Result).where(Result.search_id == search.id)).all()
    assert {result.digest for result in results} == losses.keys()
    for result in results:
        of_trials = losses[result.digest]
        mean = sum(of_trials.values()) / len(of_trials)
        assert (result.num_trials, result.trial_id) == (len(of_trials), next(iter(of_trials)))
        assert isclose(result.loss_mean, mean, rel_tol=1e-9)
        squares = sum((loss - mean) ** 2 for loss in of_trials.values())
        assert isclose(result.loss_m2, squares, rel_tol=1e-6, abs_tol=1e-12)
        assert result.changed <= search.last_event


def _check_attempts(session: Session, search: Search, trials: Sequence[Trial]) -> None:
    query = select(Attempt).join(Attempt.trial).where(Trial.search_id == search.id).order_by(Attempt.number)
    attempts: dict[str, list[Attempt]] = defaultdict(list)
    for attempt in session.scalars(query):
        attempts[attempt.trial_id].append(attempt)
    for trial in trials:
        own = attempts[trial.id]
        assert [attempt.number for attempt in own] == list(range(1, len(own) + 1))
        running = [attempt for attempt in own if attempt.state is AttemptState.RUNNING]
        assert len(running) == (trial.state is TrialState.RUNNING), trial.id
        assert running in ([], own[-1:])
        num_ended = sum(attempt.state is AttemptState.ENDED for attempt in own)
        if trial.reused_from is not None:
            assert own == []
        else:
            assert num_ended == 1 if trial.state is TrialState.COMPLETED else num_ended <= trial.state.is_final
        assert all((attempt.finished_at is None) == (attempt in running) for attempt in own)


def _check_reused(session: Session, search: Search, reused: Sequence[Trial]) -> None:
    """What was taken over is the whole result of one training in a search that was there before, and each was once."""
    assert len({trial.reused_from for trial in reused}) == len(reused)
    starts = session.scalars(select(WarmStart).where(WarmStart.search_id == search.id)).all()
    for trial in reused:
        origin = repositories.trial_by_id(session, str(trial.reused_from))
        assert origin.reused_from is None
        assert (trial.train_flops, trial.state.is_final) == (0, True)
        assert (trial.digest, trial.seed, trial.base_lr, trial.width) == (
            origin.digest,
            origin.seed,
            origin.base_lr,
            origin.width,
        )
        assert (trial.state, trial.loss, trial.seconds) == (origin.state, origin.loss, origin.seconds)
        assert (trial.latency, trial.peak_memory) == (origin.latency, origin.peak_memory)
        holders = [
            session.scalars(
                select(Trial).where(Trial.search_id == start.source_id, Trial.finish_order < start.num_finished)
            ).all()
            for start in starts
        ]
        assert any(trial.reused_from in (held.id, held.reused_from) for each in holders for held in each)


def _loss(trial: Trial) -> float | None:
    """The loss of a trial that counts."""
    counts = trial.state is TrialState.COMPLETED and trial.excluded_at is None
    assert (trial.loss is not None) == (trial.state is TrialState.COMPLETED)
    return trial.loss if counts else None
