from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select
from sqlalchemy.orm import Session

from einlayers.theta import NAMED, Theta
from search.proposals import proposal_of
from search.spec import Budget
from search.states import AttemptState, SearchState, TrialState
from search.structure import structure_of
from search.trial import Outcome, Report
from service import leases, rankings, repositories, searches, trials
from service.database import Database
from service.errors import BudgetExhausted, InvalidValue, WrongState
from service.leases import Lease, LeaseLost
from service.models import Attempt, PauseMode, Reason, RunnerStats, Search, Trial
from service.paging import PageRequest
from service.rankings import RankedStructure
from service.transitions import move_search, move_trial
from service.trials import MAX_LOST_ATTEMPTS
from tests.databases import Databases, Server
from tests.fuzzing import everything, run_machine
from tests.rows import SPEC, point
from tests.service import invariants
from tests.service.model import OPEN, AttemptModel, SearchModel, TrialModel

Call = Callable[[Session], object]
Run = tuple[TrialModel, AttemptModel]

DAY = 86_400.0
LONG = 10_000.0
"""Seconds that no test takes, and that pass at once where a test says so."""

_budgets = st.builds(
    Budget,
    max_trials=st.integers(1, 8),
    max_train_flops=st.sampled_from([None, None, 2.5e6, 4e6]),
    max_seconds=st.sampled_from([None, None, LONG, 3 * LONG]),
    max_failures=st.integers(1, 4),
)
_thetas = st.sampled_from([NAMED[name] for name in ("dense", "btt", "monarch", "low-rank")])
_losses = st.sampled_from([1.0, 2.0, 1.5]) | st.floats(0.1, 9.0)
_curves = st.lists(st.integers(1, 3), unique=True, max_size=2).map(lambda steps: tuple(point(s) for s in sorted(steps)))
_outcomes = st.one_of(
    st.builds(Outcome.completed, loss=_losses, curve=_curves),
    st.builds(Outcome.completed, loss=_losses, curve=_curves),
    st.sampled_from(
        [
            Outcome.infeasible("diverged"),
            Outcome.failed("Traceback\nZeroDivisionError: here"),
            Outcome.out_of_memory("tried to allocate 80 GiB"),
            Outcome.checkpointed(curve=(point(1),)),
            Outcome.cancelled(),
        ]
    ),
)
_several = st.lists(_outcomes, min_size=1, max_size=5)
_metrics = st.sampled_from(["loss,macs", "loss,macs", "psi,loss", "params:max,loss"])
_news = st.one_of(st.builds(point, step=st.integers(1, 3), loss=_losses), _outcomes, st.just("the node is gone"))
_some = st.integers(0, 99)
"""Which of several; there may be none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """How a search begins; so many trials have to end before somebody thinks of a cancellation."""

    budget: Budget
    concurrency: int
    is_claimed: bool
    outcomes: list[Outcome]
    patience: int


_starts = st.builds(
    Start,
    budget=_budgets,
    concurrency=st.integers(1, 3),
    is_claimed=st.sampled_from([True, True, True, True, False]),
    outcomes=_several,
    patience=st.integers(0, 8),
)


class SearchMachine(RuleBasedStateMachine):
    """One search, two runners, and whatever may happen to it; beside it a model that says what should have happened."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._database = self._stack.enter_context(closing(Database(self._stack.enter_context(server.migrated()))))
        with self._database.write() as session:
            self._runners = [leases.enrol(session, DAY).id for _ in range(2)]
        self._leases: list[Lease] = []

    def teardown(self) -> None:
        self._stack.close()

    # What users do.

    @initialize(start=_starts)
    def submit(self, start: Start) -> None:
        spec = replace(SPEC, budget=start.budget, concurrency=start.concurrency)
        with self._database.write() as session:
            search_id = searches.submit(session, spec, None).search.id
        self._model = SearchModel(
            id=search_id, budget=spec.budget, flops=spec.proxy.train_flops, concurrency=spec.concurrency
        )
        self._patience = start.patience
        self._leases.clear()
        if start.is_claimed:
            self.claim(0)
            self.train(start.outcomes, NAMED["dense"], -1, "loss,macs")

    @precondition(lambda self: self._model.state.is_final)
    @rule(start=_starts)
    def submit_the_next_one(self, start: Start) -> None:
        self.submit(start)

    @precondition(lambda self: self._model.state in (SearchState.QUEUED, SearchState.RUNNING))
    @rule(mode=st.sampled_from(PauseMode))
    def pause(self, mode: PauseMode) -> None:
        self._do(partial(searches.pause, search_id=self._model.id, mode=mode))
        self._model.move(SearchState.PAUSED, Reason.USER)
        self._model.pause_mode = mode
        self._ask_for_what_the_state_forbids()

    @precondition(lambda self: self._model.state is SearchState.PAUSED)
    @rule()
    def resume(self) -> None:
        self._do(partial(searches.resume, search_id=self._model.id))
        self._model.move(SearchState.RUNNING)
        self._ask_for_what_the_state_forbids()

    @precondition(lambda self: self._model.state in OPEN and self._model.num_finished >= self._patience)
    @rule()
    def cancel(self) -> None:
        self._do(partial(searches.cancel, search_id=self._model.id))
        self._model.move(SearchState.STOPPING, Reason.USER)
        self._ask_for_what_the_state_forbids()

    @precondition(lambda self: self._model.state in OPEN)
    @rule(budget=_budgets)
    def extend(self, budget: Budget) -> None:
        extension = partial(searches.extend, search_id=self._model.id, budget=budget)
        if self._model.covers(budget):
            self._do(extension)
            self._model.budget = budget
        else:
            self._refused(InvalidValue, extension)

    @precondition(lambda self: self._model.state in OPEN)
    @rule(theta=_thetas)
    def enqueue(self, theta: Theta) -> None:
        addition = partial(trials.enqueue, search_id=self._model.id, theta=theta)
        if self._model.num_unproposed:
            self._do(addition)
            self._add(theta)
        else:
            self._refused(BudgetExhausted, addition)

    def _ask_for_what_the_state_forbids(self) -> None:
        state, search_id = self._model.state, self._model.id
        if state not in (SearchState.QUEUED, SearchState.RUNNING):
            self._refused(WrongState, partial(searches.pause, search_id=search_id))
        if state is not SearchState.PAUSED:
            self._refused(WrongState, partial(searches.resume, search_id=search_id))
        if state not in OPEN:
            self._refused(WrongState, partial(searches.cancel, search_id=search_id))
            self._refused(WrongState, partial(searches.extend, search_id=search_id, budget=Budget(max_trials=99)))
            self._refused(WrongState, partial(trials.enqueue, search_id=search_id, theta=NAMED["dense"]))

    @precondition(lambda self: self._model.trials)
    @rule(which=_some, metrics=_metrics)
    def reconsider(self, which: int, metrics: str) -> None:
        """Exclude a trial that ended, or include it again."""
        trial = self._model.trials[which % len(self._model.trials)]
        exclusion = partial(trials.exclude, trial_id=trial.id, reason="a mistake")
        inclusion = partial(trials.include, trial_id=trial.id)
        if trial.is_excluded or not trial.state.is_final:
            self._refused(WrongState, exclusion)
        if not trial.is_excluded:
            self._refused(WrongState, inclusion)
        if trial.state.is_final:
            self._do(inclusion if trial.is_excluded else exclusion)
            trial.is_excluded = not trial.is_excluded
            self._ask_for_the_best(metrics)

    def _ask_for_the_best(self, metrics: str) -> None:
        """The front is kept from one time to the next, and is the one that is found anew."""
        front = rankings.pareto(self._database, self._model.id, metrics, PageRequest(size=500)).items
        with self._database.read() as session:
            best = rankings.best(session, self._model.id, 500)
        assert {s.trial.digest: [trial.loss for trial in s.replicates] for s in best} == self._model.losses
        assert [structure.loss for structure in best] == sorted(structure.loss for structure in best)
        assert {structure.trial.digest for structure in front} == _undominated(best, metrics)

    # What runners do, with the lease that they hold or with one that they have lost.

    @precondition(lambda self: self._model.runner_id is None)
    @rule(which=st.integers(0, 1))
    def claim(self, which: int) -> None:
        self._claim(which, is_other_asleep=False)

    def _claim(self, which: int, *, is_other_asleep: bool) -> None:
        """A runner takes what is free; what the other one holds is, once that has been silent for too long."""
        model, runner_id, other_id = self._model, self._runners[which], self._runners[1 - which]
        resting = model.state is SearchState.PAUSED and model.runner_id is not None
        is_free = model.runner_id is None or (model.runner_id == other_id and is_other_asleep)
        with self._database.write() as session:
            leases.renew(session, other_id, DAY, RunnerStats())
            if is_other_asleep:
                leases.leave(session, other_id)
        with self._database.write() as session:
            leases.renew(session, runner_id, DAY, RunnerStats())
            claimed = leases.claim(session, runner_id)
        assert len(claimed) == (is_free and (model.state in leases.ACTIVE or resting))
        if claimed:
            model.runner_id, model.epoch = runner_id, model.epoch + 1
            assert claimed == [Lease(search_id=model.id, runner_id=runner_id, epoch=model.epoch)]
            self._leases += claimed

    @precondition(lambda self: self._model.runner_id)
    @rule(news=_news, theta=_thetas, does_adopt=st.booleans())
    def be_replaced(self, news: Report | Outcome | str, theta: Theta, does_adopt: bool) -> None:
        """A runner sleeps through its lease, and goes on as if it had not; its successor goes on as well."""
        successor = 1 - self._runners.index(str(self._model.runner_id))
        self._claim(successor, is_other_asleep=False)
        self._claim(successor, is_other_asleep=True)
        old, new = self._leases[-2:]
        for call in (partial(_start, theta=theta), _end, _rest, _look_at_the_clock):
            self._done_by(old, call)
        for run in self._running():
            self._tell(run, old, news)
            self._adopt(run, new if does_adopt else old)
        for run in self._running()[:1]:
            self._tell(run, new, news)

    @precondition(lambda self: self._leases and self._model.can_start)
    @rule(which=_some, theta=_thetas)
    def start(self, which: int, theta: Theta) -> None:
        if not self._done_by(self._lease(which), partial(_start, theta=theta)):
            return
        if self._model.next_proposed() is None:
            self._add(theta)
        trial = self._model.next_proposed()
        assert trial is not None
        self._model.start(trial, f"{trial.id}-{len(trial.attempts) + 1}")

    @precondition(lambda self: any(trial.attempts for trial in self._model.trials))
    @rule(which=_some, lease=_some, news=_news)
    def hear(self, which: int, lease: int, news: Report | Outcome | str) -> None:
        """Of any attempt, under any lease."""
        self._tell(self._attempt(which), self._lease(lease), news)

    @precondition(lambda self: self._model.runner_id and (self._model.can_start or self._model.num_running))
    @rule(outcomes=_several, theta=_thetas, which=st.sampled_from([-1, 0]), metrics=_metrics)
    def train(self, outcomes: list[Outcome], theta: Theta, which: int, metrics: str) -> None:
        """Nothing special happens: of the trials that run, the first one ends, or the last one."""
        for outcome in outcomes:
            while self._model.can_start:
                self.start(0, theta)
            if self._model.num_running:
                self.hear(which, 0, outcome)
        self._ask_for_the_best(metrics)

    @precondition(lambda self: self._model.runner_id and self._model.num_running)
    @rule(times=st.integers(2, MAX_LOST_ATTEMPTS))
    def lose_slot_after_slot(self, times: int) -> None:
        for _ in range(times):
            if self._model.num_running:
                self.hear(0, 0, "the node is gone")
            if self._model.can_start:
                self.start(0, NAMED["dense"])

    @precondition(lambda self: self._leases and self._model.can_end)
    @rule(which=_some)
    def end_as_nothing_is_left(self, which: int) -> None:
        if self._done_by(self._lease(which), _end):
            self._model.conclude()
            self._ask_for_what_the_state_forbids()

    @precondition(lambda self: self._leases and self._model.state is SearchState.PAUSED and not self._model.num_running)
    @rule(which=_some)
    def rest(self, which: int) -> None:
        if self._done_by(self._lease(which), _rest):
            self._model.runner_id = None

    @precondition(lambda self: self._model.state is SearchState.STOPPING)
    @rule()
    def wind_down(self) -> None:
        """What runs is stopped, and the search ends."""
        if self._model.runner_id is None:
            self.claim(0)
        while self._model.num_running:
            self.hear(0, 0, Outcome.cancelled())
        self.end_as_nothing_is_left(0)

    @precondition(lambda self: self._model.runner_id and self._model.budget.max_seconds)
    @rule(times=st.integers(1, 2))
    def let_time_pass(self, times: int) -> None:
        back = timedelta(seconds=times * LONG * 0.6)
        with self._database.write() as session:
            repositories.search_by_id(session, self._model.id, lock=True).state_since -= back
        if self._model.state is SearchState.RUNNING:
            self._model.seconds += back.total_seconds()
        self._do(partial(_look_at_the_clock, lease=self._lease(0)))
        if self._model.is_out_of_time:
            self._model.move(SearchState.STOPPING, Reason.BUDGET_SECONDS)

    # What holds after every step.

    @invariant()
    def agrees_with_itself(self) -> None:
        invariants.check(self._database, self._model.id)

    @invariant()
    def agrees_with_the_model(self) -> None:
        model = self._model
        with self._database.read() as session:
            search = repositories.search_by_id(session, model.id)
            rows = session.scalars(select(Trial).where(Trial.search_id == model.id).order_by(Trial.number)).all()
            attempts = session.scalars(select(Attempt).where(Attempt.trial_id.in_([row.id for row in rows]))).all()
            seconds = searches.detail(session, model.id).seconds
        assert _row(search) == _row(model)
        assert model.seconds <= seconds < model.seconds + LONG / 10
        assert [_trial_row(row) for row in rows] == [_trial_row(trial) for trial in model.trials]
        assert {a.id: (a.state, a.runner_id, a.epoch, a.late is not None) for a in attempts} == {
            a.id: (a.state, a.runner_id, a.epoch, a.is_late) for _, a in model.attempts()
        }

    def _add(self, theta: Theta) -> None:
        model = self._model
        structure = structure_of(theta, SPEC.proxy)
        model.trials.append(TrialModel(id=f"{model.id}-{len(model.trials)}", digest=structure.digest))

    def _holds(self, lease: Lease) -> bool:
        return (lease.runner_id, lease.epoch) == (self._model.runner_id, self._model.epoch)

    def _lease(self, which: int) -> Lease:
        """Mostly the last one; it may be lost too."""
        return self._leases[-1] if which < 75 else self._leases[which % len(self._leases)]

    def _attempt(self, which: int) -> Run:
        """Mostly one that runs."""
        running = self._running()
        among = running if running and which < 75 else list(self._model.attempts())
        return among[which % len(among)]

    def _running(self) -> list[Run]:
        return [run for run in self._model.attempts() if run[1].state is AttemptState.RUNNING]

    def _tell(self, run: Run, lease: Lease, news: Report | Outcome | str) -> None:
        """What counts, counts once, however often it is told; the rest changes nothing."""
        trial, attempt = run
        is_holder = self._holds(lease)
        counts, was_late = is_holder and attempt.state is AttemptState.RUNNING, attempt.is_late
        telling: Call
        match news:
            case Report():
                self._hear(counts, partial(trials.record_progress, lease=lease, attempt_id=attempt.id, report=news))
                return
            case Outcome():
                self._model.hear(trial, attempt, news, is_holder=is_holder)
                telling = partial(trials.record_outcomes, lease=lease, outcomes={attempt.id: news})
            case str():
                self._model.lose(trial, attempt, is_holder=is_holder)
                telling = partial(trials.record_loss, lease=lease, attempt_id=attempt.id, reason=news)
        self._hear(counts or attempt.is_late != was_late, telling)
        self._hear(False, telling)

    def _adopt(self, run: Run, lease: Lease) -> None:
        _, attempt = run
        done = self._done_by(lease, partial(trials.take_over, attempt_id=attempt.id))
        if done and attempt.state is AttemptState.RUNNING:
            attempt.runner_id, attempt.epoch = lease.runner_id, lease.epoch

    def _done_by(self, lease: Lease, call: Callable[..., object]) -> bool:
        """Whether a runner could do it: who has lost the lease can not."""
        if not self._holds(lease):
            self._refused(LeaseLost, partial(call, lease=lease))
            return False
        self._do(partial(call, lease=lease))
        return True

    def _do(self, call: Call) -> None:
        with self._database.write() as session:
            call(session)

    def _refused(self, refusal: type[Exception], call: Call) -> None:
        """It is refused, and then nothing has changed."""
        before = everything(self._database)
        with pytest.raises(refusal), self._database.write() as session:
            call(session)
        assert everything(self._database) == before

    def _hear(self, counts: bool, call: Call) -> None:
        """Tell the service something; it changes nothing, unless it counts."""
        before = everything(self._database)
        self._do(call)
        assert (everything(self._database) != before) == counts


def _start(session: Session, lease: Lease, theta: Theta) -> None:
    search = leases.held(session, lease)
    if search.state is SearchState.QUEUED:
        move_search(session, search, SearchState.RUNNING)
    waiting = repositories.next_proposed(session, search.id, 1)
    if not waiting:
        history = [past for _, past in repositories.history(session, search.id)]
        proposal = proposal_of(structure_of(theta, search.spec.proxy), search.spec, history)
        waiting = [trials.add(session, search, proposal)]
    trials.start(session, search, waiting[0], "slot")


def _end(session: Session, lease: Lease) -> None:
    search = leases.held(session, lease)
    for trial in repositories.trials_in(session, search.id, TrialState.PROPOSED):
        move_trial(session, search, trial, TrialState.CANCELLED, "the search was stopped")
    searches.conclude(session, search)


def _rest(session: Session, lease: Lease) -> None:
    leases.release(leases.held(session, lease))


def _look_at_the_clock(session: Session, lease: Lease) -> None:
    searches.stop_if_out_of_time(session, leases.held(session, lease))


def _row(search: Search | SearchModel) -> tuple[object, ...]:
    kept = (search.state, search.reason, search.pause_mode, search.runner_id, search.epoch, search.num_retries)
    return (*kept, search.best_loss, search.num_unproposed, search.num_finished)


def _trial_row(trial: Trial | TrialModel) -> tuple[object, ...]:
    is_alone = trial.is_alone if isinstance(trial, TrialModel) else trial.alone
    is_excluded = trial.is_excluded if isinstance(trial, TrialModel) else trial.excluded_at is not None
    return trial.id, trial.digest, trial.state, trial.loss, trial.finish_order, is_alone, is_excluded


def _undominated(structures: Sequence[RankedStructure], metrics: str) -> set[str]:
    points = {structure.trial.digest: _point(structure, metrics) for structure in structures}
    return {
        digest
        for digest, point in points.items()
        if not any(
            other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points.values()
        )
    }


def _point(structure: RankedStructure, metrics: str) -> tuple[float, ...]:
    goals = rankings.goals_of(metrics)
    values = [structure.loss if goal.metric == "loss" else getattr(structure.trial, goal.metric) for goal in goals]
    return tuple(value if goal.direction == "min" else -value for goal, value in zip(goals, values, strict=True))


class TestSearch:
    def test_follows_its_rules_whatever_happens(self, databases: Databases) -> None:
        server = databases.of("sqlite")
        run_machine(lambda: SearchMachine(server), num_runs=27, num_steps=40)
