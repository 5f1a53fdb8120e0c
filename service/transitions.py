"""How searches, trials and attempts change their state: the one place, so that times, reasons, counts and events agree.

The caller holds the lock of the search's row.
"""

from sqlalchemy.orm import Session

from search.states import AttemptState, IllegalTransition, SearchState, TrialState
from service import events
from service.clock import now
from service.errors import WrongState
from service.models import Attempt, Reason, Search, Trial


def move_search(session: Session, search: Search, state: SearchState, reason: Reason | None = None) -> None:
    """Enter a state.

    Raises:
        WrongState: the present state does not lead to it; nothing has changed.
    """
    try:
        search.to(state, now(session), reason)
    except IllegalTransition as error:
        raise WrongState(f"search {search.id}: {error}") from error
    events.emit(session, search, "search.state", {"state": state, "reason": reason})


def move_trial(session: Session, search: Search, trial: Trial, state: TrialState, reason: str | None = None) -> None:
    """Enter a state; the last one takes the next place in the order of ends.

    Raises:
        IllegalTransition: the present state does not lead to it; nothing has changed.
    """
    old, trial.state = trial.state, trial.state.to(state)
    trial.reason, trial.state_since = reason, now(session)
    if state.is_final:
        trial.finish_order = search.num_finished
        trial.finished_at = trial.state_since
    count(search, old, -1)
    count(search, state, 1)
    announce(session, search, trial)


def announce(session: Session, search: Search, trial: Trial) -> None:
    """Tell of the state that a trial is in now."""
    data = {"number": trial.number, "state": trial.state, "reason": _short(trial.reason), "loss": trial.loss}
    trial.changed = events.emit(session, search, "trial.state", data, trial_id=trial.id)


def count(search: Search, state: TrialState, change: int) -> None:
    """Count one trial more, or less, in a state."""
    search.counts = {**search.counts, state: search.counts.get(state, 0) + change}


def end_attempt(session: Session, attempt: Attempt, state: AttemptState, reason: str | None) -> None:
    """End an attempt in one way or another.

    Raises:
        IllegalTransition: it has ended already.
    """
    attempt.state = attempt.state.to(state)
    attempt.reason = reason
    attempt.finished_at = now(session)


def _short(reason: str | None) -> str | None:
    """The last line of a reason: of a traceback, the one that says what went wrong; the trial keeps all of it."""
    return reason and reason.strip().splitlines()[-1][:500]
