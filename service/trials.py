"""Use cases of trials: add, start, hear of their progress and their end, exclude.

Every write of an attempt is fenced: it counts only while that attempt runs, and only for the runner that holds its lease.
What comes later, from a slot that was given up, is kept as late and harms nothing.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from sqlalchemy import inspect
from sqlalchemy.orm import Session

from einlayers.errors import FieldError
from einlayers.theta import Theta
from search.plan import Plan
from search.proposals import Inherited, Proposal, training_seed
from search.states import AttemptState, SearchState, TrialState
from search.structure import structure_of
from search.trial import Outcome, OutcomeKind, Report
from search.variant import Variant
from service import events, leases, rankings, repositories, rungs, warm_starts
from service.clock import now
from service.errors import BudgetExhausted, InvalidValue, WrongState
from service.keys import LOCAL, Caller
from service.leases import Lease
from service.models import Attempt, Measurement, Origin, Reason, Search, Trial
from service.transitions import announce, end_attempt, move_search, move_trial

MAX_LOST_ATTEMPTS = 8
"""How often a trial may lose its slot before it is taken to be the trial that kills it."""

_ENDS = {
    OutcomeKind.COMPLETED: TrialState.COMPLETED,
    OutcomeKind.INFEASIBLE: TrialState.INFEASIBLE,
    OutcomeKind.FAILED: TrialState.FAILED,
    OutcomeKind.CANCELLED: TrialState.CANCELLED,
}
"""The outcomes that end a trial. The others end an attempt, and the trial waits for the next one."""

_MEASURED = ("loss", "latency", "peak_memory", "seconds", "cpu_seconds", "coordinates")
"""What a training tells, and a trial that takes its result over tells too."""

_OPEN = (SearchState.QUEUED, SearchState.RUNNING, SearchState.PAUSED)

logger = logging.getLogger(__name__)


def add(session: Session, search: Search, proposal: Proposal, origin: Origin = Origin.SEARCH) -> Trial:
    """Write a proposal down as a trial, and reserve its part of the budget; the caller holds the lock of the search.

    One whose result is reused has ended at once.
    """
    structure = proposal.structure
    trial = Trial(
        id=f"{search.id}-{proposal.number}",
        search_id=search.id,
        number=proposal.number,
        replicate=proposal.replicate,
        origin=origin,
        theta=structure.theta,
        variant=structure.variant,
        family=structure.family,
        width=structure.width,
        digest=proposal.digest,
        omega=structure.taxonomy.omega,
        psi=structure.taxonomy.psi,
        nu=structure.taxonomy.nu,
        params=structure.cost.params,
        macs=structure.cost.macs,
        train_flops=proposal.train_flops,
        base_lr=_rate(proposal),
        seed=proposal.seed,
        history_size=proposal.history_size,
        reused_from=proposal.reused.trial_id if proposal.reused else None,
        state=TrialState.PROPOSED,
        alone=False,
        state_since=now(session),
        created_at=now(session),
    )
    search.counts = {**search.counts, TrialState.PROPOSED: search.counts.get(TrialState.PROPOSED, 0) + 1}
    search.train_flops += trial.train_flops
    announce(session, search, trial)
    session.add(trial)
    if proposal.reused is not None:
        _take_result(session, search, trial, proposal.reused)
    return trial


def _take_result(session: Session, search: Search, trial: Trial, reused: Inherited) -> None:
    source = session.get(Trial, reused.trial_id)
    assert source is not None, "what was inherited was trained"
    for name in _MEASURED:
        setattr(trial, name, getattr(source, name))
    search.num_reused += 1
    end(session, search, trial, source.state, source.reason)
    if trial.state is TrialState.COMPLETED:
        session.flush()
        rankings.add_completed(session, search, [trial])


def _rate(proposal: Proposal) -> float:
    assert proposal.proxy.base_lr is not None, "a search proposes nothing before its proxy is calibrated"
    return proposal.proxy.base_lr


def enqueue(
    session: Session, search_id: str, theta: Theta, caller: Caller = LOCAL, *, variant: Variant | None = None
) -> Trial:
    """Add a structure of the user's own to a search; where the search has it already, one more replicate of it. What its
    warm start has trained is taken over, and takes nothing of the budget.

    Raises:
        InvalidValue: the proxy has no such variant.
        NotFound, Forbidden: there is no such search, or it is somebody else's.
        WrongState: the search is ending or has ended, or trains a plan.
        BudgetExhausted: every trial that the budget pays for is there.
    """
    search = repositories.search_by_id(session, search_id, lock=True)
    caller.require_owner(search)
    if search.state not in _OPEN:
        raise WrongState(f"search {search.id} is {search.state}; it takes no more trials")
    if isinstance(search.spec.sampler, Plan):
        raise WrongState(f"search {search.id} trains what its plan lists; it takes no other trials")
    if search.awaits_calibration:
        raise WrongState(f"search {search.id} waits for the calibration {search.calibration_id}; add trials after it")
    try:
        structure = structure_of(theta, search.spec.proxy, variant)
    except FieldError as error:
        raise InvalidValue("/variant", error) from error
    reused = warm_starts.to_reuse(session, search, structure.digest)
    if reused is None and search.num_unproposed == 0:
        raise BudgetExhausted(search.id)
    proposal = Proposal(
        number=search.num_trials,
        replicate=repositories.num_replicates(session, search.id, structure.digest),
        structure=structure,
        proxy=structure.on(search.spec.proxy),
        digest=structure.digest,
        seed=reused.seed if reused else training_seed(search.spec, search.num_trials),
        history_size=search.num_finished,
        reused=reused,
    )
    trial = add(session, search, proposal, Origin.USER)
    session.flush()
    return repositories.trial_by_id(session, trial.id)


def start(session: Session, search: Search, trial: Trial, slot: str) -> Attempt:
    """Write down, before it is told to anybody, that ``slot`` runs the trial now, under the lease of the search."""
    assert search.runner_id is not None, "only a runner starts trials"
    is_new = inspect(trial).pending
    number = 1 if is_new else repositories.num_attempts(session, trial.id) + 1
    move_trial(session, search, trial, TrialState.RUNNING)
    attempt = Attempt(
        id=f"{trial.id}-{number}",
        trial_id=trial.id,
        trial=trial,
        number=number,
        slot=slot,
        runner_id=search.runner_id,
        epoch=search.epoch,
        state=AttemptState.RUNNING,
        started_at=now(session),
    )
    session.add(attempt)
    return attempt


def take_over(session: Session, lease: Lease, attempt_id: str) -> None:
    """Put a running attempt under this lease, because its slot has been adopted.

    Raises:
        LeaseLost: another runner holds the search by now.
    """
    leases.held(session, lease)
    attempt = repositories.attempt_by_id(session, attempt_id)
    if attempt is not None and attempt.state is AttemptState.RUNNING:
        attempt.runner_id, attempt.epoch = lease.runner_id, lease.epoch


def record_progress(session: Session, lease: Lease, attempt_id: str, report: Report) -> bool:
    """Add a point to the learning curve; whether the trial is not worth going on, and its attempt is to be stopped."""
    search = repositories.search_by_id(session, lease.search_id, lock=True)
    attempt = repositories.attempt_by_id(session, attempt_id)
    if attempt is None or not _may_write(search, lease, attempt):
        return False
    _measure(session, attempt, [report])
    data = {"attempt": attempt.number, **asdict(report)}
    events.emit(session, search, "trial.progress", data, trial_id=attempt.trial_id)
    if not attempt.is_to_be_pruned and (verdict := rungs.verdict(session, search, attempt, report)):
        attempt.reason, attempt.trial.expected_loss = verdict.reason, verdict.expected_loss
    return attempt.is_to_be_pruned


def record_outcomes(session: Session, lease: Lease, outcomes: Mapping[str, Outcome]) -> None:
    """End attempts with their whole learning curves; and their trials, unless the outcome is one to try again after."""
    search = repositories.search_by_id(session, lease.search_id, lock=True)
    ended = []
    for attempt_id, outcome in outcomes.items():
        attempt = repositories.attempt_by_id(session, attempt_id)
        if attempt is not None and _may_write(search, lease, attempt):
            _record_end(session, search, attempt, outcome)
            ended.append(attempt.trial)
        else:
            _keep_late(session, attempt, outcome)
    rankings.add_completed(session, search, [trial for trial in ended if trial.state is TrialState.COMPLETED])


def _record_end(session: Session, search: Search, attempt: Attempt, outcome: Outcome) -> None:
    _measure(session, attempt, outcome.curve)
    attempt.seconds, attempt.resumed_step = outcome.seconds, outcome.resumed_step
    trial = attempt.trial
    if outcome.kind is OutcomeKind.CHECKPOINTED:
        end_attempt(session, attempt, AttemptState.CHECKPOINTED, outcome.reason)
        move_trial(session, search, trial, TrialState.PROPOSED, outcome.reason)
    elif outcome.kind is OutcomeKind.OUT_OF_MEMORY:
        end_attempt(session, attempt, AttemptState.OUT_OF_MEMORY, outcome.reason)
        _retry_alone(session, search, trial, outcome.reason)
    elif outcome.kind is OutcomeKind.CANCELLED and attempt.is_to_be_pruned:
        _record_pruned(session, search, attempt, outcome)
    else:
        cancelled = outcome.kind is OutcomeKind.CANCELLED
        trial.expected_loss = None
        end_attempt(session, attempt, AttemptState.CANCELLED if cancelled else AttemptState.ENDED, outcome.reason)
        trial.loss, trial.seconds, trial.cpu_seconds = outcome.loss, outcome.seconds, outcome.cpu_seconds
        trial.coordinates = dict(outcome.coordinates)
        end(session, search, trial, _ENDS[outcome.kind], outcome.reason)


def _record_pruned(session: Session, search: Search, attempt: Attempt, outcome: Outcome) -> None:
    trial, reason = attempt.trial, attempt.reason
    end_attempt(session, attempt, AttemptState.ENDED, reason)
    trial.seconds, trial.cpu_seconds = outcome.seconds, outcome.cpu_seconds
    trial.coordinates = dict(outcome.coordinates)
    # What was reserved and not used pays for other trials. One that had to be ended by force does not say what it used.
    used = max((report.train_flops for report in outcome.curve), default=trial.train_flops)
    search.train_flops += used - trial.train_flops
    trial.train_flops = used
    end(session, search, trial, TrialState.PRUNED, reason)


def record_loss(session: Session, lease: Lease, attempt_id: str, reason: str) -> None:
    """Give the attempt up for lost; its trial waits for another slot, unless it has lost too many."""
    search = repositories.search_by_id(session, lease.search_id, lock=True)
    attempt = repositories.attempt_by_id(session, attempt_id)
    if attempt is None or not _may_write(search, lease, attempt):
        return
    end_attempt(session, attempt, AttemptState.LOST, reason)
    session.flush()
    num_lost = repositories.num_attempts(session, attempt.trial_id, AttemptState.LOST)
    if num_lost < MAX_LOST_ATTEMPTS:
        search.num_retries += 1
        move_trial(session, search, attempt.trial, TrialState.PROPOSED, f"lost its slot: {reason}")
    else:
        text = f"lost its slot {num_lost} times, the last time: {reason}"
        end(session, search, attempt.trial, TrialState.FAILED, text)


def end(session: Session, search: Search, trial: Trial, state: TrialState, reason: str | None) -> None:
    """Enter a final state; what follows for the search follows at once, but for its rankings."""
    move_trial(session, search, trial, state, reason)
    if state is TrialState.COMPLETED:
        assert trial.loss is not None
        search.best_loss = min(trial.loss, search.best_loss if search.best_loss is not None else trial.loss)
    failures = search.counts.get(TrialState.FAILED, 0)
    if failures >= search.spec.budget.max_failures and search.state in (SearchState.RUNNING, SearchState.PAUSED):
        move_search(session, search, SearchState.STOPPING, Reason.TOO_MANY_FAILURES)
    elif search.state is SearchState.RUNNING and search.reason is None and _has_converged(session, search):
        search.reason = Reason.CONVERGED  # nothing more is proposed; what runs and waits runs to its end


def _has_converged(session: Session, search: Search) -> bool:
    convergence = search.spec.convergence
    if convergence is None or convergence.patience is None or search.best_loss is None:
        return False
    session.flush()
    num_before = repositories.begin_of_last(session, search.id, convergence.patience)
    if num_before is None:
        return False
    before = repositories.lowest_loss(session, search.id, among_first=num_before)
    return before is not None and before - search.best_loss <= convergence.min_improvement * abs(before)


def exclude(session: Session, trial_id: str, reason: str, caller: Caller = LOCAL) -> Trial:
    """Leave a trial out of every answer and out of what the sampler sees, without forgetting it.

    Raises:
        NotFound, Forbidden: there is no such trial, or its search is somebody else's.
        WrongState: it has not ended, or is excluded already.
    """
    trial = _lock_ended(session, trial_id, caller)
    if trial.excluded_at is not None:
        raise WrongState(f"trial {trial.id} is excluded already: {trial.excluded_reason}")
    trial.excluded_at, trial.excluded_reason = now(session), reason
    _reconsider(session, trial, "trial.excluded", reason)
    return trial


def include(session: Session, trial_id: str, caller: Caller = LOCAL) -> Trial:
    """Undo an exclusion.

    Raises:
        NotFound, Forbidden: there is no such trial, or its search is somebody else's.
        WrongState: it is not excluded.
    """
    trial = _lock_ended(session, trial_id, caller)
    if trial.excluded_at is None:
        raise WrongState(f"trial {trial.id} is not excluded")
    trial.excluded_at = trial.excluded_reason = None
    _reconsider(session, trial, "trial.included", None)
    return trial


def _retry_alone(session: Session, search: Search, trial: Trial, reason: str | None) -> None:
    if trial.alone:
        text = f"does not fit into memory, not even alone on its device: {reason}"
        end(session, search, trial, TrialState.INFEASIBLE, text)
        return
    trial.alone = True
    search.num_retries += 1
    move_trial(session, search, trial, TrialState.PROPOSED, f"ran out of memory, runs again alone: {reason}")


def _may_write(search: Search, lease: Lease, attempt: Attempt) -> bool:
    if leases.holds(search, lease) and attempt.state is AttemptState.RUNNING:
        return True
    logger.info("ignored what came late from attempt %s", attempt.id)
    return False


def _keep_late(session: Session, attempt: Attempt | None, outcome: Outcome) -> None:
    """Keep the outcome of an attempt that was given up; one that still runs will tell its present runner."""
    if attempt is not None and attempt.state is AttemptState.LOST and attempt.late is None:
        attempt.late, attempt.late_at = outcome, now(session)


def _lock_ended(session: Session, trial_id: str, caller: Caller) -> Trial:
    search = repositories.search_by_id(session, repositories.trial_by_id(session, trial_id).search_id, lock=True)
    caller.require_owner(search)
    trial = repositories.trial_by_id(session, trial_id)
    session.refresh(trial)
    if not trial.state.is_final:
        raise WrongState(f"trial {trial.id} is {trial.state}; only a trial that has ended can be excluded or included")
    return trial


def _reconsider(session: Session, trial: Trial, kind: events.Kind, reason: str | None) -> None:
    """Bring what follows from the trials of a search in line with an exclusion, or with its end."""
    search = trial.search
    data = {"number": trial.number, "reason": reason}
    trial.changed = events.emit(session, search, kind, data, trial_id=trial.id)
    session.flush()
    rankings.rebuild(session, search, trial.digest)
    search.best_loss = repositories.lowest_loss(session, search.id)


def _measure(session: Session, attempt: Attempt, reports: Sequence[Report]) -> None:
    """Keep what an attempt reports: points of its curve, and what a step costs, which all of them say."""
    if not reports:
        return
    if cost := reports[-1].step_cost:
        attempt.trial.latency, attempt.trial.peak_memory = cost.latency, cost.peak_memory
    known = repositories.steps_measured(session, attempt.id)
    session.add_all(
        Measurement(
            attempt_id=attempt.id,
            step=report.step,
            examples=report.examples,
            train_flops=report.train_flops,
            loss=report.loss,
        )
        for report in reports
        if report.step not in known
    )
