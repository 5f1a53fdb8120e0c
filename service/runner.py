"""The runner: asks for proposals, gives trials to slots, records what comes of them.

It keeps nothing that matters: the database knows which attempt runs where before a slot hears of it, and the slots know
what they run. Killed at any instant and started again, it puts both together and goes on.
"""

import logging
import signal
import threading
import time

from sqlalchemy.orm import Session

from search.proposals import Proposal, propose
from search.samplers.registry import make_sampler
from search.states import SearchState, TrialState
from search.trial import TrialSpec
from service import repositories, searches, trials
from service.database import Database
from service.exclusive import only_runner
from service.models import Search, StopReason, Trial
from service.parent import stop_with_parent
from service.repositories import Progress as SearchProgress
from service.settings import Settings
from workers.pool import Assignment, Event, Finished, Lost, Pool, Progress
from workers.workspace import Workspace

IDLE_SECONDS = 0.2
"""How long a turn waits for news from the slots; a new search or a cancellation is seen after at most this."""

LATE_CALL_SECONDS = 0.5
"""How long a call to a slot may take to arrive after the runner that sent it was killed; it takes milliseconds."""

_ACTIVE = (SearchState.QUEUED, SearchState.RUNNING, SearchState.STOPPING)

logger = logging.getLogger(__name__)


class Runner:
    """Carries the searches of one database out on one pool, turn by turn."""

    def __init__(self, database: Database, pool: Pool) -> None:
        self._database = database
        self._pool = pool
        self._recover()

    def run(self, stop: threading.Event) -> None:
        """Take turns until told to stop."""
        while not stop.is_set():
            self.turn(IDLE_SECONDS)

    def turn(self, timeout: float) -> bool:
        """Stop what is to stop, start what can start, record what happened; whether any search is active."""
        with self._database.read() as session:
            active = repositories.searches_in(session, _ACTIVE)
        for search in active:
            if search.state is SearchState.STOPPING:
                self._wind_down(search.id)
        self._fill_slots([search.id for search in active if search.state is not SearchState.STOPPING])
        for event in self._pool.wait(timeout):
            self._record(event)
        return bool(active)

    def _recover(self) -> None:
        """Bring database and slots to one account of what runs."""
        with self._database.read() as session:
            known = {attempt.id for attempt in repositories.running_attempts(session)}
        held = self._pool.assignments()
        if known - held.keys():
            # An earlier runner may have been killed while its last call was on the way to a slot.
            time.sleep(LATE_CALL_SECONDS)
            held = self._pool.assignments()
        with self._database.write() as session:
            for attempt_id in known - held.keys():
                trials.record_loss(session, attempt_id, "no slot knew of it when the runner started")
        for key in held.keys() - known:
            self._pool.stop(key)
        if known:
            logger.info(
                "took over %d running attempts, %d were lost", len(known & held.keys()), len(known - held.keys())
            )

    def _fill_slots(self, search_ids: list[str]) -> None:
        """Give every search one slot in turn, for as long as anything can be started."""
        while search_ids:
            search_ids = [search_id for search_id in search_ids if self._start_next(search_id)]

    def _start_next(self, search_id: str) -> bool:
        """Start the next trial of a search, if it wants one and there is a slot."""
        with self._database.read() as session:
            search = repositories.search_by_id(session, search_id)
            progress = repositories.progress_of(session, [search])[search_id]
        wanted = _num_wanted(search, progress)
        if wanted <= 0:
            if progress.alive == 0:
                self._conclude(search_id)
            return False
        slot = self._pool.reserve(search.spec.resources, wanted=wanted)
        if slot is None:
            self._explain_waiting(search, self._pool.missing(search.spec.resources))
            return False
        with self._database.read() as session:
            past = repositories.history(session, search_id)
        waiting = any(trial.state is TrialState.PROPOSED for trial in past)
        # Outside of any transaction: a sampler may take its time, and nobody else should have to wait for it.
        proposal = None if waiting else propose(search.spec, past, lambda: make_sampler(search.spec.sampler))
        assignment = self._commit_start(search_id, slot, proposal)
        if assignment is not None:
            self._pool.submit(slot, assignment)
        return assignment is not None

    def _commit_start(self, search_id: str, slot: str, proposal: Proposal | None) -> Assignment | None:
        """Write the start of the waiting trial, or of the proposed one, down; None where there is neither any more."""
        with self._database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            if search.state not in (SearchState.QUEUED, SearchState.RUNNING):
                return None
            if search.state is SearchState.QUEUED:
                search.to(SearchState.RUNNING)
            search.waiting_for = None
            trial = repositories.next_proposed(session, search_id)
            if trial is None and proposal is None:
                search.reason = StopReason.SPACE_EXHAUSTED
                return None
            if trial is None and proposal is not None:
                trial = trials.add(session, search, proposal)
            assert trial is not None
            attempt = trials.start(session, trial, slot)
            return _assignment(attempt.id, trial, search)

    def _conclude(self, search_id: str) -> None:
        with self._database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            if search.state is SearchState.RUNNING:
                _end_search(session, search)

    def _wind_down(self, search_id: str) -> None:
        """Stop what runs of a search, drop what waits, and end it once nothing is left."""
        with self._database.write() as session:
            search = repositories.search_by_id(session, search_id, lock=True)
            for trial in repositories.trials_in(session, search.id, TrialState.PROPOSED):
                trials.end(session, trial, TrialState.CANCELLED, "the search was cancelled")
            running = repositories.running_attempts(session, search.id)
            if not running:
                _end_search(session, search)
        for attempt in running:
            self._pool.stop(attempt.id)

    def _explain_waiting(self, search: Search, reason: str | None) -> None:
        if search.waiting_for != reason:
            with self._database.write() as session:
                repositories.search_by_id(session, search.id, lock=True).waiting_for = reason

    def _record(self, event: Event) -> None:
        with self._database.write() as session:
            match event:
                case Progress(key=key, report=report):
                    trials.record_progress(session, key, report)
                case Finished(key=key, outcome=outcome):
                    trials.record_outcome(session, key, outcome)
                case Lost(key=key, reason=reason):
                    trials.record_loss(session, key, reason)


def _num_wanted(search: Search, progress: SearchProgress) -> int:
    """How many more trials of a search may start now, within its concurrency and its budget."""
    running, waiting = progress.counts.get(TrialState.RUNNING, 0), progress.counts.get(TrialState.PROPOSED, 0)
    # A running search has a reason to stop once nothing new is left to propose.
    unproposed = 0 if search.reason else progress.max_trials - progress.alive - progress.finished
    return min(search.spec.concurrency - running, waiting + unproposed)


def _end_search(session: Session, search: Search) -> None:
    searches.conclude(session, search)
    logger.info("search %s ended: %s, %s", search.id, search.state, search.reason)


def _assignment(attempt_id: str, trial: Trial, search: Search) -> Assignment:
    return Assignment(
        key=attempt_id,
        label=f"{search.name} trial {trial.number} {trial.family}{trial.theta}",
        spec=TrialSpec(theta=trial.theta, proxy=search.spec.proxy, width=trial.width, seed=trial.seed),
    )


def main() -> None:
    """Run the runner of this machine's settings until it is told to stop."""
    settings = Settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop_with_parent()
    database = Database(settings.database)
    workspace = Workspace(cache_dir=settings.home.absolute(), corpora_dir=settings.corpora_dir)
    with only_runner(database, settings.database):
        # Ray takes a second to import; nobody who only wants the runner's code should have to wait for it.
        from workers.ray_pool import RayPool

        pool = RayPool(workspace, address=settings.ray_address, namespace=settings.ray_namespace)
        logger.info("running the searches of %s on Ray at %s", settings.shown_database, settings.ray_address)
        try:
            Runner(database, pool).run(stop)
        finally:
            pool.close()
            database.close()


if __name__ == "__main__":
    main()
