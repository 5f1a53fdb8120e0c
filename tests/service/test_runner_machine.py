from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from einlayers.theta import NAMED
from search.proxies.char_lm import FileCorpus
from search.sampling import Random
from search.spec import Budget, SearchSpec, Space
from search.states import AttemptState, TrialState
from search.trial import TrialSpec
from service import leases, listings, repositories, searches, trials
from service.clock import now
from service.database import Database
from service.errors import ServiceError
from service.leases import LeaseLost
from service.listings import EVERYTHING
from service.models import Attempt, PauseMode, Reason, Search, Trial
from service.models import Runner as RunnerRow
from service.paging import PageRequest
from service.runner import Runner
from tests.corpora import make_corpora
from tests.databases import Databases, Server
from tests.fuzzing import run_machine
from tests.rows import TINY
from tests.service import invariants
from tests.service.pools import PowerCut, SlowPools
from workers.pool import run_assignment
from workers.workspace import Workspace

PROXY = replace(TINY, corpus=FileCorpus(path="corpus.txt"))
SEEDED = Space(seeds=("btt", "dense"))
NUM_SLOTS = 3
DAY = 86_400.0

Wish = Callable[..., object]
"""What a user may ask for, of a search."""


@dataclass(slots=True)
class Trouble:
    """What comes between at the transaction after so many others: before it, within it, or after its commit.

    ``error``: the database is away; ``death``: so is the runner. ``rival``: the other runner takes what it can get, and a
    turn. Anything else is a wish of a user's, which is fulfilled just before.
    """

    what: Literal["error", "death", "rival"] | Wish
    moment: Literal["before", "within", "after"]
    countdown: int


class TroubledDatabase(Database):
    """A database to which a runner's way is long; ``interrupt`` is asked to do what is neither an error nor a death."""

    trouble: Trouble | None = None
    interrupt: Callable[[object], None]
    num_unsure = 0
    """How often it was not told that its transaction was committed."""

    @contextmanager
    def read(self) -> Iterator[Session]:
        """See ``Database.read``."""
        self._meet("before")
        with super().read() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """See ``Database.write``."""
        if self.trouble is not None:
            self.trouble.countdown -= 1
        self._meet("before")
        with super().write() as session:
            yield session
            self._meet("within")
        self._meet("after")

    def _meet(self, moment: str) -> None:
        trouble = self.trouble
        if trouble is None or trouble.countdown >= 0:
            return
        if trouble.what in ("error", "death"):
            if trouble.moment == moment:
                self.trouble = None
                self.num_unsure += moment == "after"
                raise _ERRORS[trouble.what]
        elif moment == "before":
            self.trouble = None
            self.interrupt(trouble.what)


_ERRORS = {"error": OperationalError("SELECT 1", {}, Exception("the connection is lost")), "death": PowerCut()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """Which runner takes it, whether its slots work meanwhile, and what will come between, in this turn or later."""

    which: int
    works: bool
    trouble: Trouble | None


class Machinist:
    """Runs a runner, with its own pool on the slots of all and its own way to the database; it may be replaced."""

    def __init__(self, url: str, slots: SlowPools, interrupt: Callable[[object], None]) -> None:
        self.database = TroubledDatabase(url)
        self.database.interrupt = interrupt
        self._slots = slots
        self.num_deaths = 0
        self._begin()

    def _begin(self) -> None:
        self.pool = self._slots.for_another_runner()
        with self.database.write() as session:
            runner_id = leases.enrol(session, DAY).id
        self.runner = Runner(self.database, self.pool, runner_id, DAY)

    def die(self) -> None:
        """Be gone without a word, and let another one begin; the lease of the old one holds on."""
        self.database.trouble = None
        self.num_deaths += 1
        self._begin()

    def sleep(self) -> None:
        """Let the lease be over, though its runner may well go on."""
        with Database.write(self.database) as session:
            leases.leave(session, self.runner.id)

    def wake(self) -> None:
        """Have the runner say that it is alive, and look after what runs."""
        self.runner._next_beat = 0.0

    def turn(self, *, works: bool = True) -> bool:
        """A turn as ``Runner.run`` takes it; whether it came to its end."""
        self.pool.works = works
        try:
            self.runner.turn(0)
        except LeaseLost:
            return False
        except OperationalError:
            self.wake()
            return False
        except PowerCut:
            self.die()
            return False
        return True


_specs = st.builds(
    SearchSpec,
    name=st.just("test"),
    budget=st.builds(Budget, max_trials=st.integers(1, 8), max_train_flops=st.sampled_from([None, 3e6])),
    proxy=st.sampled_from([PROXY, PROXY, PROXY, replace(PROXY, base_lr=1000.0)]),
    space=st.sampled_from([Space(), SEEDED]),
    sampler=st.builds(Random, seed=st.integers(0, 3)),
    replicates=st.integers(1, 2),
    concurrency=st.integers(1, 3),
)
_WISHES: Sequence[Wish] = (
    *(partial(searches.pause, mode=mode) for mode in PauseMode),
    *(searches.resume, searches.resume, searches.resume),
    *(partial(searches.extend, budget=Budget(max_trials=most)) for most in (2, 5, 8)),
    *(partial(trials.enqueue, theta=NAMED[name]) for name in ("dense", "btt", "btt")),
)
_troubles = st.builds(
    Trouble,
    what=st.sampled_from([*["error"] * 8, *["death"] * 4, *["rival"] * 4, *_WISHES]),
    moment=st.sampled_from(["before", "within", "after"]),
    countdown=st.integers(0, 4),
)
_turns = st.lists(
    st.builds(
        Turn, which=st.integers(0, 1), works=st.sampled_from([False, False, True]), trouble=st.none() | _troubles
    ),
    min_size=1,
    max_size=4,
)
_accidents = st.sampled_from(
    ["dies", "dies", "dies and is missed at once", "sleeps", "sleeps", "wakes", "loses a slot"]
)


class RunnerMachine(RuleBasedStateMachine):
    """Two runners on three slots and one database, users, and every kind of trouble; in the end all is as it should be."""

    def __init__(self, server: Server, workspace: Workspace, losses: dict[object, float | None]) -> None:
        super().__init__()
        self._stack = ExitStack()
        url = self._stack.enter_context(server.migrated())
        self._database = self._stack.enter_context(closing(Database(url)))
        self._workspace, self._losses = workspace, losses
        self._slots = SlowPools(workspace, NUM_SLOTS)
        self._crew = [Machinist(url, self._slots, partial(self._interrupt, number)) for number in range(2)]
        for machinist in self._crew:
            self._stack.enter_context(closing(machinist.database))
        self._ids: list[str] = []
        self._checked: dict[str, int] = {}
        self._is_peaceful = True

    @initialize(spec=_specs)
    def submit(self, spec: SearchSpec) -> None:
        with self._database.write() as session:
            self._ids.append(searches.submit(session, spec, self._workspace.corpora_dir).search.id)

    @precondition(lambda self: len(self._ids) < 3)
    @rule(spec=_specs, is_warm=st.sampled_from([True, True, False]), turns=_turns)
    def submit_another_one(self, spec: SearchSpec, is_warm: bool, turns: list[Turn]) -> None:
        """It may start from those before it."""
        self.submit(self._warmed(spec) if is_warm else spec)
        self.go_on(turns)

    def _warmed(self, spec: SearchSpec) -> SearchSpec:
        """The same, on the proxy of the last one, from what has been found by then."""
        self.go_on([Turn(which=number % 2, works=True, trouble=None) for number in range(4)])
        proxy = self._search(self._ids[-1]).spec.proxy
        alike = [search_id for search_id in self._ids if self._search(search_id).spec.proxy == proxy]
        return replace(spec, proxy=proxy, space=SEEDED, warm_start=tuple(alike))

    @rule(turns=_turns)
    def go_on(self, turns: list[Turn]) -> None:
        for turn in turns:
            machinist = self._crew[turn.which]
            machinist.database.trouble = machinist.database.trouble or (turn.trouble and replace(turn.trouble))
            machinist.turn(works=turn.works)

    @rule(which=st.integers(0, 5), what=_accidents, turns=_turns)
    def have_an_accident(self, which: int, what: str, turns: list[Turn]) -> None:
        machinist = self._crew[which % 2]
        match what:
            case "dies":
                machinist.die()
            case "dies and is missed at once":
                machinist.sleep()
                machinist.die()
            case "sleeps":
                machinist.sleep()
            case "wakes":
                machinist.wake()
            case "loses a slot":
                self._is_peaceful = False
                self._slots.lose(f"slot {which % NUM_SLOTS}")
        self.go_on(turns)

    @rule(which=st.integers(0, 3), wish=st.sampled_from(_WISHES), turns=_turns)
    def have_a_wish(self, which: int, wish: Wish, turns: list[Turn]) -> None:
        self._ask(partial(wish, search_id=self._ids[which % len(self._ids)]))
        self.go_on(turns)

    @rule(number=st.integers(0, 9), turns=_turns)
    def have_a_regret(self, number: int, turns: list[Turn]) -> None:
        """Exclude a trial, or cancel the whole search."""
        search_id = self._ids[number % len(self._ids)]
        self._ask(partial(trials.exclude, trial_id=f"{search_id}-{number // 2}", reason="a mistake"))
        if number == 9:
            self._ask(partial(searches.cancel, search_id=search_id))
        self.go_on(turns)

    @invariant()
    def agrees_with_itself(self) -> None:
        for search_id in self._ids:
            last_event = self._search(search_id).last_event
            if last_event != self._checked.get(search_id):
                invariants.check(self._database, search_id)
            self._checked[search_id] = last_event

    def teardown(self) -> None:
        with self._stack:
            if self._ids:
                self._turn_to_the_end()
                for search_id in self._ids:
                    self._check_end(search_id)
                self._check_losses()

    def _interrupt(self, number: int, what: object) -> None:
        """What comes between a runner and its transaction."""
        if callable(what):
            self._ask(partial(what, search_id=self._ids[-1]))
            return
        rival, trouble = self._crew[1 - number], self._crew[1 - number].database.trouble
        self._crew[number].sleep()
        rival.database.trouble = None
        rival.turn()
        rival.database.trouble = trouble

    def _turn_to_the_end(self) -> None:
        """No trouble any more: those who live take turns until nothing is left."""
        for machinist in self._crew:
            machinist.database.trouble = None
            machinist.wake()
        alive = {machinist.runner.id for machinist in self._crew}
        with self._database.write() as session:
            session.execute(update(RunnerRow).where(RunnerRow.id.not_in(alive)).values(expires_at=now(session)))
        for search_id in self._ids:
            self._ask(partial(searches.resume, search_id=search_id))
        for _ in range(100):
            for machinist in self._crew:
                machinist.turn()
            if all(self._search(search_id).state.is_final for search_id in self._ids):
                return
        raise AssertionError(f"it does not end: {[self._search(search_id).state for search_id in self._ids]}")

    def _check_losses(self) -> None:
        """Nothing is run twice but for a reason: no error of the database is one, unless it hid that a trial had started."""
        for machinist in self._crew:
            machinist.wake()
            machinist.turn()
            assert not machinist.pool.assignments()
        if self._is_peaceful and not any(machinist.num_deaths for machinist in self._crew):
            num_unsure = sum(machinist.database.num_unsure for machinist in self._crew)
            with self._database.read() as session:
                query = select(func.count()).where(Attempt.state == AttemptState.LOST)
                assert session.scalars(query).one() <= num_unsure * NUM_SLOTS

    def _check_end(self, search_id: str) -> None:
        invariants.check(self._database, search_id)
        with self._database.read() as session:
            search = repositories.search_by_id(session, search_id)
            found = listings.trials(session, search_id, PageRequest(size=500), EVERYTHING).items
        if search.reason in (Reason.BUDGET_TRIALS, Reason.BUDGET_TRAIN_FLOPS):
            num_trained = sum(trial.reused_from is None for trial in found)
            assert num_trained == search.spec.budget.num_trials(search.spec.proxy.train_flops)
            assert {trial.state for trial in found} <= {TrialState.COMPLETED, TrialState.INFEASIBLE}
        else:
            assert search.reason is Reason.USER, search.reason
        for trial in found:
            if trial.state is TrialState.COMPLETED and (len(trial.attempts) > 1 or trial.reused_from):
                assert trial.loss == self._loss_of(search, trial)

    def _loss_of(self, search: Search, trial: Trial) -> float | None:
        """The loss of a run that nothing disturbs."""
        spec = TrialSpec(theta=trial.theta, proxy=search.spec.proxy, width=trial.width, seed=trial.seed)
        key = (trial.theta.exponents, spec.proxy, trial.width, trial.seed)
        if key not in self._losses:
            self._losses[key] = run_assignment(spec, replace(self._workspace, checkpoints_dir=None)).loss
        return self._losses[key]

    def _search(self, search_id: str) -> Search:
        with self._database.read() as session:
            return repositories.search_by_id(session, search_id)

    def _ask(self, call: Callable[[Session], object]) -> None:
        """What is refused is refused."""
        try:
            with self._database.write() as session:
                call(session)
        except ServiceError:
            return


class TestRunners:
    def test_lose_and_double_nothing_whatever_happens(self, databases: Databases, tmp_path: Path) -> None:
        corpora_dir = make_corpora(tmp_path / "corpora")
        workspace = Workspace(
            cache_dir=tmp_path / "cache", corpora_dir=corpora_dir, checkpoints_dir=tmp_path / "checkpoints"
        )
        server, losses = databases.of("sqlite"), dict[object, float | None]()
        run_machine(lambda: RunnerMachine(server, workspace, losses), num_runs=18, num_steps=30)
