"""Use cases of trials: add, start, hear of their progress and their end.

Every write of an attempt is fenced: it counts only while that attempt is the one that runs. What comes late, from a slot
that was given up or from a runner that was replaced, changes nothing.
"""

import logging
from collections.abc import Iterable

from sqlalchemy.orm import Session

from search.proposals import Proposal
from search.states import AttemptState, TrialState
from search.trial import Outcome, OutcomeKind, Report
from service import repositories
from service.models import Attempt, Measurement, Search, Trial, now

MAX_LOST_ATTEMPTS = 5
"""How often a trial may lose its slot before it is taken to be the trial that kills it."""

_ENDS = {
    OutcomeKind.COMPLETED: TrialState.COMPLETED,
    OutcomeKind.INFEASIBLE: TrialState.INFEASIBLE,
    OutcomeKind.FAILED: TrialState.FAILED,
    OutcomeKind.CANCELLED: TrialState.CANCELLED,
}

logger = logging.getLogger(__name__)


def add(session: Session, search: Search, proposal: Proposal) -> Trial:
    """Write a proposal down as a trial."""
    structure = proposal.structure
    trial = Trial(
        id=f"{search.id}-{proposal.number}",
        search_id=search.id,
        number=proposal.number,
        replicate=proposal.replicate,
        theta=structure.theta,
        family=structure.family,
        width=structure.width,
        digest=structure.digest,
        omega=structure.taxonomy.omega,
        psi=structure.taxonomy.psi,
        nu=structure.taxonomy.nu,
        params=structure.cost.params,
        macs=structure.cost.macs,
        train_flops=search.spec.proxy.train_flops,
        seed=proposal.seed,
        history_size=proposal.history_size,
        state=TrialState.PROPOSED,
    )
    session.add(trial)
    session.flush()
    return trial


def start(session: Session, trial: Trial, slot: str) -> Attempt:
    """Write down, before it is told to anybody, that ``slot`` runs the trial now."""
    number = repositories.num_attempts(session, trial.id) + 1
    trial.state = trial.state.to(TrialState.RUNNING)
    attempt = Attempt(
        id=f"{trial.id}-{number}", trial_id=trial.id, number=number, slot=slot, state=AttemptState.RUNNING
    )
    session.add(attempt)
    session.flush()
    return attempt


def record_progress(session: Session, attempt_id: str, report: Report) -> None:
    """Add a point to the learning curve."""
    if _running(session, attempt_id):
        _measure(session, attempt_id, [report])


def record_outcome(session: Session, attempt_id: str, outcome: Outcome) -> None:
    """End the attempt and its trial, with the whole learning curve."""
    attempt = _running(session, attempt_id)
    if attempt is None:
        return
    _measure(session, attempt_id, outcome.curve)
    cancelled = outcome.kind is OutcomeKind.CANCELLED
    _end_attempt(attempt, AttemptState.CANCELLED if cancelled else AttemptState.ENDED, outcome.reason)
    attempt.seconds = outcome.seconds
    attempt.trial.loss = outcome.loss
    end(session, attempt.trial, _ENDS[outcome.kind], outcome.reason)


def record_loss(session: Session, attempt_id: str, reason: str) -> None:
    """Give the attempt up for lost; its trial waits for another slot, unless it has lost too many."""
    attempt = _running(session, attempt_id)
    if attempt is None:
        return
    _end_attempt(attempt, AttemptState.LOST, reason)
    if attempt.number < MAX_LOST_ATTEMPTS:
        attempt.trial.state = attempt.trial.state.to(TrialState.PROPOSED)
    else:
        end(session, attempt.trial, TrialState.FAILED, f"lost its slot {attempt.number} times, the last time: {reason}")


def end(session: Session, trial: Trial, state: TrialState, reason: str | None) -> None:
    """Enter a final state, and take the next place in the order of ends."""
    order = repositories.num_finished(session, trial.search_id)
    trial.state = trial.state.to(state)
    trial.reason = reason
    trial.finish_order = order
    trial.finished_at = now()
    session.flush()


def _running(session: Session, attempt_id: str) -> Attempt | None:
    attempt = repositories.attempt_by_id(session, attempt_id)
    if attempt is None or attempt.state is not AttemptState.RUNNING:
        logger.info("ignored what came late from attempt %s", attempt_id)
        return None
    return attempt


def _end_attempt(attempt: Attempt, state: AttemptState, reason: str | None) -> None:
    attempt.state = attempt.state.to(state)
    attempt.reason = reason
    attempt.finished_at = now()


def _measure(session: Session, attempt_id: str, reports: Iterable[Report]) -> None:
    known = repositories.steps_measured(session, attempt_id)
    session.add_all(
        Measurement(
            attempt_id=attempt_id,
            step=report.step,
            tokens=report.tokens,
            train_flops=report.train_flops,
            loss=report.loss,
        )
        for report in reports
        if report.step not in known
    )
