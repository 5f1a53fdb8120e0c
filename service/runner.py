"""The runner: claims searches, asks for proposals, gives trials to slots, records what comes of them.

It keeps nothing that matters: the database knows which attempt runs where before a slot hears of it, and the slots know
what they run. Killed at any instant, by whatever, it is replaced by any other runner, which claims its searches once its
lease is over, adopts the slots that still run, and goes on. Nothing that it does needs a clean end.
"""

import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session

from search.convergence import has_converged
from search.proposals import Proposal, propose
from search.samplers.registry import make_sampler
from search.spec import Resources
from search.states import SearchState, TrialState
from search.trial import TrialSpec
from service import leases, logs, repositories, searches, trials
from service.analyst import Analyst
from service.clock import now
from service.database import Database
from service.history import History
from service.idempotency import forget_old
from service.leases import Lease, LeaseLost
from service.models import PauseMode, Reason, RunnerStats, Search, Trial
from service.parent import stop_with_parent
from service.settings import Settings
from service.shares import fair_share
from service.transitions import move_search, move_trial
from service.webhooks import WebhookSender
from workers.pool import Assignment, Event, Finished, Lost, Pool, PoolGone, Progress
from workers.workspace import Workspace

IDLE_SECONDS = 0.2
"""How long a turn waits for news from the slots; a new search or a cancellation is seen after at most this."""

LEASE_SECONDS = 6.0
"""How long a runner may be silent before others take over what it holds."""

_PROPOSE_SECONDS = 0.05
"""For how long slots may idle while the sampler thinks of further trials to start together with the first."""

_BEATS_PER_LEASE = 5
_LONGEST_PAUSE = 5.0
"""Seconds between two tries to reach a database that does not answer, at most."""

_NO_ANSWER = (OperationalError, InterfaceError)
"""What a database raises that is away, full, or busy for too long."""

logger = logging.getLogger(__name__)


class Runner:
    """Carries searches of one database out on one pool, turn by turn, beside any number of other runners."""

    def __init__(self, database: Database, pool: Pool, runner_id: str, lease_seconds: float = LEASE_SECONDS) -> None:
        self.id = runner_id
        self.stats = RunnerStats()
        self._database = database
        self._pool = pool
        self._lease_seconds = lease_seconds
        self._next_beat = 0.0
        self._leases: dict[str, Lease] = {}
        self._searches: dict[str, Search] = {}
        self._histories: dict[str, History] = {}
        self._last_starts: dict[str, float] = {}
        self._unrecorded: list[Event] = []
        self._waits_for: Resources | None = None

    def run(self, stop: threading.Event) -> None:
        """Take turns until told to stop; a database that does not answer is waited for."""
        pause = 0.0
        while not stop.wait(pause):
            try:
                self.turn(IDLE_SECONDS)
                pause = 0.0
            except LeaseLost as lost:
                logger.warning("%s", lost)
            except _NO_ANSWER as error:
                pause = min(_LONGEST_PAUSE, 2 * pause or 0.25)
                logger.warning("the database does not answer, next try in %.2g s: %s", pause, error.orig)
                self._next_beat = 0.0
        self._leave()

    def turn(self, timeout: float) -> bool:
        """Stop what is to stop, start what can start, record what happened; whether this runner holds any search."""
        if time.monotonic() >= self._next_beat:
            self._beat()
            self._next_beat = time.monotonic() + self._lease_seconds / _BEATS_PER_LEASE
        if self._look():
            self._claim()
        for search in list(self._searches.values()):
            self._steer(search)
        self._fill_slots()
        self._unrecorded += self._pool.wait(0 if self._unrecorded else timeout)
        self._record_all()
        return bool(self._leases)

    def _beat(self) -> None:
        """Renew the lease, share the slots of the cluster with other runners, look after what runs."""
        stats = self._current_stats()  # before the transaction: it may ask the cluster, which may take its time
        with self._database.write() as session:
            self.stats = stats.found_ray("ok", now(session))
            leases.renew(session, self.id, self._lease_seconds, self.stats)
            alive = leases.alive(session)
            forget_old(session)
        self._pool.keep_at_most(fair_share(self.id, alive))
        self._pool.reclaim([runner.id for runner in alive])
        self._look()
        self._reconcile()

    def _look(self) -> bool:
        """Read the searches that this runner holds, not those that it has lost by now; whether any is free to claim."""
        with self._database.read() as session:
            held = repositories.searches_of(session, self.id)
            free = leases.any_free(session)
        self._searches = {search.id: search for search in held}
        self._leases = {search.id: Lease.of(search) for search in held}
        for search_id in self._histories.keys() - self._searches.keys():
            del self._histories[search_id]
        for search_id in self._last_starts.keys() - self._searches.keys():
            del self._last_starts[search_id]
        return free

    def _claim(self) -> None:
        with self._database.write() as session:
            claimed = leases.claim(session, self.id)
        if claimed:
            logger.info("runner %s claimed searches %s", self.id, ", ".join(lease.search_id for lease in claimed))
            self._look()
            self._reconcile()

    def _reconcile(self) -> None:
        """Adopt what an earlier runner started, give up what no slot knows of, let go of what others have taken over."""
        with self._database.read() as session:
            running = {a.id: a for a in repositories.running_attempts(session, self._leases)}
        heard = {event.key for event in self._unrecorded}
        for attempt in running.values():
            lease = self._leases[attempt.trial.search_id]
            ours = attempt.epoch == lease.epoch
            # Where it is not, somebody else may have had the slot since, also one that this runner never let go of.
            if attempt.id in heard or (ours and attempt.id in self._pool.assignments()):
                continue
            adopted = not ours and self._pool.adopt(attempt.slot, attempt.id)
            with self._database.write() as session:
                if adopted:
                    trials.take_over(session, lease, attempt.id)
                else:
                    trials.record_loss(session, lease, attempt.id, "its slot does not know of it")
            if adopted and attempt.is_to_be_pruned:
                self._pool.stop(attempt.id)
            logger.info("%s attempt %s", "took over" if adopted else "lost", attempt.id)
        for key in self._pool.assignments().keys() - running.keys() - heard:
            if _search_id(key) in self._leases:
                self._pool.stop(key)
            else:
                self._pool.abandon(key)
        if running:
            self._look()  # what was lost waits to run again

    def _steer(self, search: Search) -> None:
        """Do what the state of a search asks for."""
        if search.state is SearchState.RUNNING and search.spec.budget.max_seconds is not None:
            with self._database.write() as session:
                search = leases.held(session, self._leases[search.id])
                searches.stop_if_out_of_time(session, search)
            self._searches[search.id] = search
        if search.state is SearchState.STOPPING:
            self._wind_down(search)
        elif search.state is SearchState.PAUSED:
            self._rest(search)

    def _wind_down(self, search: Search) -> None:
        """Stop what runs of a search, drop what waits, and end it once nothing is left."""
        with self._database.write() as session:
            search = leases.held(session, self._leases[search.id])
            for trial in repositories.trials_in(session, search.id, TrialState.PROPOSED):
                move_trial(session, search, trial, TrialState.CANCELLED, "the search was stopped")
            running = repositories.running_attempts(session, [search.id])
            if not running:
                self._conclude(session, search)
        for attempt in running:
            self._pool.stop(attempt.id)

    def _rest(self, search: Search) -> None:
        """Have a paused search's trials come to rest, then give it back until somebody resumes it."""
        if search.pause_mode is PauseMode.CHECKPOINT:
            for key in self._pool.assignments():
                if _search_id(key) == search.id:
                    self._pool.checkpoint(key)
        if not search.counts.get(TrialState.RUNNING):
            with self._database.write() as session:
                search = leases.held(session, self._leases[search.id])
                if search.state is SearchState.PAUSED and not search.counts.get(TrialState.RUNNING):
                    leases.release(search)

    def _fill_slots(self) -> None:
        """Give slots to the search that has the fewest, of several to that whose last start is longest ago, for as long as
        anything can be started."""
        self._waits_for = None
        wanting = [s for s in self._searches if self._searches[s].state in (SearchState.QUEUED, SearchState.RUNNING)]
        while wanting:
            first, *others = sorted((self._searches[search_id] for search_id in wanting), key=self._place_in_line)
            ahead = _num_running(others[0]) - _num_running(first) if others else sys.maxsize
            if not self._start_next(first, at_most=max(1, ahead)):
                wanting.remove(first.id)

    def _place_in_line(self, search: Search) -> tuple[int, float]:
        return _num_running(search), self._last_starts.get(search.id, 0.0)

    def _start_next(self, search: Search, at_most: int) -> bool:
        """Start the next trials of a search, as far as it wants any and there are slots; whether anything came of it."""
        wanted = _num_wanted(search)
        if wanted <= 0:
            if search.num_alive == 0:
                self._end_if_done(search)
            return False
        resources = self._resources_of_next(search)
        if resources != search.spec.resources:
            wanted = 1  # for the trial that has to be alone; what is started after it needs no such slot
        slots = self._pool.reserve(resources, wanted=wanted)[:at_most]
        if not slots:
            self._waits_for = resources
            self._explain_waiting(search, self._pool.missing(resources))
            return False
        proposals = self._propose(search, len(slots) - search.counts.get(TrialState.PROPOSED, 0))
        starts = self._commit_starts(search, slots, proposals)
        for slot, assignment in starts.items():
            self._pool.submit(slot, assignment)
        self._last_starts[search.id] = time.monotonic()
        # Where results were taken over instead, a slot is left for what comes after them; of many, after the next beat.
        took_over = self._searches[search.id].num_reused > search.num_reused
        return bool(starts) or (took_over and time.monotonic() < self._next_beat)

    def _resources_of_next(self, search: Search) -> Resources:
        if search.num_retries and search.counts.get(TrialState.PROPOSED):
            with self._database.read() as session:
                waiting = repositories.next_proposed(session, search.id, 1)
            if any(trial.alone for trial in waiting):
                return self._pool.alone(search.spec.resources)
        return search.spec.resources

    def _propose(self, search: Search, number: int) -> list[Proposal | None]:
        """What to try next, until ``number`` are to be trained or it takes too long; None last, where nothing is left."""
        proposals: list[Proposal | None] = []
        if number <= 0:
            return proposals
        history = self._histories.setdefault(search.id, History())
        history.refresh(self._database, search)
        past, inherited, num_to_train = list(history.trials), history.inherited, 0
        if has_converged(search.spec, past, inherited):
            self._propose_no_more(search, Reason.CONVERGED)
            return proposals
        # Outside of any transaction: a sampler may take its time, and nobody else should have to wait for it.
        began = ended = time.perf_counter()
        while num_to_train < number and ended - began < _PROPOSE_SECONDS:
            started = ended
            proposal = propose(
                search.spec, past, lambda: make_sampler(search.spec.sampler, search.spec.cube), inherited
            )
            proposals.append(proposal)
            ended = time.perf_counter()
            self.stats = replace(self.stats, ask=self.stats.ask.observe(ended - started))
            if proposal is None:
                break
            past.append(proposal.pending)
            num_to_train += proposal.reused is None
        return proposals

    def _commit_starts(
        self, search: Search, slots: Sequence[str], proposals: Sequence[Proposal | None]
    ) -> dict[str, Assignment]:
        """Write the starts of what waits, and then of what is proposed, down; the assignments by slot."""
        with self._database.write() as session:
            search = leases.held(session, self._leases[search.id])
            self._searches[search.id], before = search, search.last_event
            if search.state not in (SearchState.QUEUED, SearchState.RUNNING):
                return {}
            if search.state is SearchState.QUEUED:
                move_search(session, search, SearchState.RUNNING)
            search.waiting_for = None
            if proposals and len(self._histories[search.id].trials) != search.num_trials:
                proposals = []  # somebody has added a trial meanwhile: the next turn knows of it
            if None in proposals:
                search.reason = Reason.SPACE_EXHAUSTED
            waiting = _waiting(session, search, len(slots))
            added = [trials.add(session, search, proposal) for proposal in proposals if proposal]
            to_train = [trial for trial in added if trial.reused_from is None]
            started = dict(zip(slots, [*waiting, *to_train], strict=False))
            attempts = {slot: trials.start(session, search, trial, slot) for slot, trial in started.items()}
            assignments = {slot: _assignment(attempts[slot].id, trial, search) for slot, trial in started.items()}
        if added:
            pending = [proposal.pending for proposal in proposals if proposal]
            self._histories[search.id].add(pending, after=before, upto=search.last_event)
        return assignments

    def _end_if_done(self, search: Search) -> None:
        with self._database.write() as session:
            search = leases.held(session, self._leases[search.id])
            if search.state is SearchState.RUNNING and _num_wanted(search) <= 0 and search.num_alive == 0:
                self._conclude(session, search)

    def _conclude(self, session: Session, search: Search) -> None:
        searches.conclude(session, search)
        logger.info("search %s ended: %s, %s", search.id, search.state, search.reason)

    def _propose_no_more(self, search: Search, reason: Reason) -> None:
        with self._database.write() as session:
            leases.held(session, self._leases[search.id]).reason = reason

    def _explain_waiting(self, search: Search, reason: str | None) -> None:
        if search.waiting_for != reason:
            with self._database.write() as session:
                leases.held(session, self._leases[search.id]).waiting_for = reason

    def _record_all(self) -> None:
        """Record what was heard, search by search; what could not be written is kept for the next turn."""
        while self._unrecorded:
            search_id = _search_id(self._unrecorded[0].key)
            batch = [event for event in self._unrecorded if _search_id(event.key) == search_id]
            started = time.perf_counter()
            self._record(search_id, batch)
            self.stats = replace(self.stats, record=self.stats.record.observe(time.perf_counter() - started))
            self._unrecorded = [event for event in self._unrecorded if _search_id(event.key) != search_id]

    def _record(self, search_id: str, batch: list[Event]) -> None:
        # What comes from a search that is somebody else's by now is recorded too: as late, if at all.
        lease = self._leases.get(search_id) or Lease(search_id=search_id, runner_id=self.id, epoch=-1)
        with logs.about(search_id=search_id), self._database.write() as session:
            repositories.search_by_id(session, search_id, lock=True)
            # Read together; by their ids, below, they are then found without asking the database again.
            attempts = repositories.attempts(session, [event.key for event in batch])
            logger.debug("recording %d events of %d attempts", len(batch), len(attempts))
            outcomes, hopeless = {}, []
            for event in batch:
                match event:
                    case Progress(key=key, report=report):
                        if trials.record_progress(session, lease, key, report):
                            hopeless.append(key)
                    case Finished(key=key, outcome=outcome):
                        outcomes[key] = outcome
                    case Lost(key=key, reason=reason):
                        trials.record_loss(session, lease, key, reason)
            trials.record_outcomes(session, lease, outcomes)
        for key in hopeless:
            self._pool.stop(key)

    def _current_stats(self) -> RunnerStats:
        return replace(
            self.stats,
            slots=self._pool.num_slots,
            busy=len(self._pool.assignments()),
            waiting=self._waits_for is not None,
            room=0 if self._waits_for is None else self._pool.room(self._waits_for),
        )

    def _leave(self) -> None:
        """Let others take over at once; the slots work on meanwhile."""
        with suppress(*_NO_ANSWER), self._database.write() as session:
            leases.leave(session, self.id)


def _num_running(search: Search) -> int:
    return search.counts.get(TrialState.RUNNING, 0)


def _waiting(session: Session, search: Search, number: int) -> Sequence[Trial]:
    """The next trials that wait to run; one that has to be alone on its device starts alone."""
    if not search.counts.get(TrialState.PROPOSED):
        return []
    waiting = repositories.next_proposed(session, search.id, number)
    num_together = next((i for i, trial in enumerate(waiting) if trial.alone), len(waiting))
    return waiting[: max(1, num_together)]


def _num_wanted(search: Search) -> int:
    """How many more trials of a search may start now, within its concurrency and its budget."""
    waiting = search.counts.get(TrialState.PROPOSED, 0)
    # A running search has a reason once nothing new is left to propose.
    unproposed = 0 if search.reason else search.num_unproposed
    return min(search.spec.concurrency - _num_running(search), waiting + unproposed)


def _search_id(key: str) -> str:
    """The search that an attempt belongs to: ids are built downwards."""
    return key.split("-", 1)[0]


def _assignment(attempt_id: str, trial: Trial, search: Search) -> Assignment:
    return Assignment(
        key=attempt_id,
        label=f"{search.name} trial {trial.number} {trial.family}{trial.theta} {trial.variant or ''}".rstrip(),
        spec=TrialSpec(
            theta=trial.theta,
            proxy=trial.proxy_in(search),
            width=trial.width,
            seed=trial.seed,
            measured=search.spec.measures_steps,
        ),
    )


def main() -> int:
    """Run a runner with this machine's settings until it is told to stop; the status to exit with."""
    settings = Settings()
    logs.configure(settings)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop_with_parent()
    database = Database(settings.database)
    with database.write() as session:
        runner_id = leases.enrol(session, settings.lease_seconds, "connecting").id
    sender = WebhookSender(database, allow_private=settings.webhooks_to_private_addresses)
    sender.start()
    analyst = Analyst(database, settings.corpora_dir)
    analyst.start()
    try:
        pool = _connect(settings, runner_id)
        Runner(database, pool, runner_id, settings.lease_seconds).run(stop)
        pool.close()
    except PoolGone as gone:
        logger.error("%s; the next runner goes on", gone)
        return 1
    finally:
        analyst.stop()
        sender.stop()
        database.close()
    return 0


def workspace_of(settings: Settings) -> Workspace:
    """The directories of the workers, which may run elsewhere: none is relative to where this runner was started."""
    return Workspace(
        cache_dir=settings.home.absolute(),
        corpora_dir=settings.corpora_dir and settings.corpora_dir.absolute(),
        checkpoints_dir=settings.checkpoints.absolute(),
        hub_dir=settings.hub_dir and settings.hub_dir.absolute(),
    )


def _connect(settings: Settings, runner_id: str) -> Pool:
    # Ray takes a second to import; nobody who only wants the runner's code should have to wait for it.
    from workers.ray_pool import RayPool

    pool = RayPool(
        workspace_of(settings), address=settings.ray_address, namespace=settings.ray_namespace, owner=runner_id
    )
    logger.info("runner %s: the searches of %s on Ray at %s", runner_id, settings.shown_database, settings.ray_address)
    return pool


if __name__ == "__main__":
    sys.exit(main())
