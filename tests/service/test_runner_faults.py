from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from einlayers.theta import NAMED
from search.sampling import Tpe
from search.spec import Resources
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome
from service import leases, repositories, trials
from service.database import Database
from service.leases import LeaseLost
from service.models import Reason
from service.runner import Runner
from service.trials import MAX_LOST_ATTEMPTS
from tests.rows import contents
from tests.service.pools import CutOff, LocalPools, SlowPools
from tests.service.running import (
    COMPLETED,
    attempt_states,
    cut,
    ending,
    next_runner,
    results,
    run,
    search_of,
    spec_of,
    states,
    submit,
    trials_of,
    turn_to_the_end,
)
from workers.pool import Assignment, Event, Finished, LocalPool
from workers.workspace import Workspace


class TestRestart:
    def test_with_other_slots_runs_what_was_lost_again(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(4, concurrency=2), corpora_dir)
        cut(database, CutOff(workspace, 2))
        assert states(database, search_id) == ["RUNNING"] * 2
        next_runner(database, LocalPools(workspace, 0)).turn(0)
        for trial in trials_of(database, search_id):
            assert trial.state is TrialState.PROPOSED
            assert attempt_states(trial) == [AttemptState.LOST]
            assert trial.attempts[0].reason == "its slot does not know of it"
        run(database, LocalPools(workspace, 2))
        assert ending(database, search_id) == COMPLETED
        lost, again = [AttemptState.LOST, AttemptState.ENDED], [AttemptState.ENDED]
        assert [attempt_states(trial) for trial in trials_of(database, search_id)] == [lost, lost, again, again]

    def test_with_the_same_slots_takes_over_what_they_run(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(4, concurrency=2), corpora_dir)
        pool = CutOff(workspace, 2)
        cut(database, pool)
        pool.power = True
        run(database, pool)
        assert ending(database, search_id) == COMPLETED
        assert [attempt_states(trial) for trial in trials_of(database, search_id)] == [[AttemptState.ENDED]] * 4

    def test_changes_no_result(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        spec = spec_of(5, sampler=Tpe(startup_trials=2))
        calm = submit(database, spec, corpora_dir)
        run(database, LocalPool(workspace))
        restless = submit(database, spec, corpora_dir)
        for _ in range(5):
            cut(database, CutOff(workspace, 1))
            next_runner(database, LocalPool(workspace)).turn(0)
        run(database, LocalPool(workspace))
        assert ending(database, restless) == COMPLETED
        assert [(trial.theta, trial.seed, trial.loss) for trial in trials_of(database, restless)] == [
            (trial.theta, trial.seed, trial.loss) for trial in trials_of(database, calm)
        ]
        assert all(len(trial.attempts) == 2 for trial in trials_of(database, restless))

    def test_makes_what_the_old_slots_still_tell_worthless(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(2, concurrency=2), corpora_dir)
        old = CutOff(workspace, 2)
        cut(database, old)
        run(database, LocalPools(workspace, 2))
        assert ending(database, search_id) == COMPLETED
        before = results(database)
        old.power = True
        runner = next_runner(database, old)
        while old.assignments():
            runner.turn(0)
        assert results(database) == before

    def test_stops_what_slots_run_that_nobody_wants(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        submit(database, spec_of(1), corpora_dir)
        old = CutOff(workspace, 1)
        cut(database, old)
        run(database, LocalPool(workspace))
        old.power = True
        before = contents(database)["trials"]
        next_runner(database, old).turn(0)
        assert old.assignments() == {}
        assert contents(database)["trials"] == before

    def test_gives_a_trial_up_that_loses_every_slot(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(1), corpora_dir)
        for _ in range(MAX_LOST_ATTEMPTS):
            cut(database, CutOff(workspace, 1))
        run(database, LocalPool(workspace))
        (trial,) = trials_of(database, search_id)
        assert trial.state is TrialState.FAILED
        assert str(trial.reason).startswith(f"lost its slot {MAX_LOST_ATTEMPTS} times")
        assert attempt_states(trial) == [AttemptState.LOST] * MAX_LOST_ATTEMPTS
        assert ending(database, search_id) == (SearchState.FAILED, Reason.ALL_TRIALS_FAILED)


class TestLostSlot:
    def test_has_its_trial_run_again_on_another(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = next_runner(database, pool)
        runner.turn(0)
        assert states(database, search_id) == ["RUNNING", "COMPLETED"]
        pool.lose("slot 0")
        turn_to_the_end(runner)
        first, *others = trials_of(database, search_id)
        assert (first.state, attempt_states(first)) == (TrialState.COMPLETED, [AttemptState.LOST, AttemptState.ENDED])
        assert first.attempts[0].reason == "slot 0 is gone"
        assert [attempt_states(trial) for trial in others] == [[AttemptState.ENDED]] * 2
        assert ending(database, search_id) == COMPLETED

    def test_costs_no_trial_of_the_budget(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(3, concurrency=2), corpora_dir)
        pool = LocalPools(workspace, 2)
        runner = next_runner(database, pool)
        for _ in range(MAX_LOST_ATTEMPTS - 1):
            runner.turn(0)
            pool.lose("slot 0")
        turn_to_the_end(runner)
        assert states(database, search_id) == ["COMPLETED"] * 3
        assert len(trials_of(database, search_id)[0].attempts) > 2


class TestSeveralRunners:
    def test_share_the_searches(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        ids = [submit(database, spec_of(2), corpora_dir) for _ in range(4)]
        first = next_runner(database, LocalPools(workspace, 1))
        with database.write() as session:
            second = Runner(database, LocalPools(workspace, 1), leases.enrol(session, 60).id, 60)
        first.turn(0)
        second.turn(0)
        holders = [search_of(database, search_id).runner_id for search_id in ids]
        assert sorted(map(str, holders)) == sorted([first.id, first.id, second.id, second.id])
        while first.turn(0) or second.turn(0):
            pass
        assert [ending(database, search_id) for search_id in ids] == [COMPLETED] * 4
        assert [states(database, search_id) for search_id in ids] == [["COMPLETED"] * 2] * 4

    def test_take_over_from_one_that_sleeps_and_it_does_no_harm_when_it_wakes(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3, concurrency=2), corpora_dir)
        asleep = next_runner(database, LocalPools(workspace, 2))
        asleep.turn(0)
        assert states(database, search_id) == ["RUNNING", "COMPLETED"]
        run(database, LocalPools(workspace, 2))
        assert ending(database, search_id) == COMPLETED
        before = results(database)
        for _ in range(3):
            asleep.turn(0)
        after = contents(database)
        assert [after[table] for table in ("searches", "trials", "events", "results")] == [
            before[table] for table in ("searches", "trials", "events", "results")
        ]

    def test_take_a_trial_back_that_another_one_had_adopted(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(1), corpora_dir)
        slots = SlowPools(workspace, 1)
        slots.works = False
        first = next_runner(database, slots)
        first.turn(0)
        others = slots.for_another_runner()
        others.works = False
        second = next_runner(database, others)
        second.turn(0)
        assert trials_of(database, search_id)[0].attempts[0].runner_id == second.id
        with database.write() as session:
            leases.leave(session, second.id)
            leases.renew(session, first.id, 60, first.stats)
        slots.works = True
        turn_to_the_end(first)
        (trial,) = trials_of(database, search_id)
        assert (trial.state, attempt_states(trial)) == (TrialState.COMPLETED, [AttemptState.ENDED])

    def test_find_out_in_the_middle_of_a_turn_that_their_lease_is_gone(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3), corpora_dir)

        class FallsAsleep(LocalPool):
            """A slot whose runner sleeps through its lease between finding it and starting a trial on it."""

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                with database.write() as session:
                    search = repositories.search_by_id(session, search_id, lock=True)
                    search.runner_id, search.epoch = leases.enrol(session, 60).id, search.epoch + 1
                return super().reserve(resources, wanted=wanted)

        runner = next_runner(database, FallsAsleep(workspace))
        with pytest.raises(LeaseLost):
            runner.turn(0)
        assert trials_of(database, search_id) == []
        assert not runner.turn(0)


class TestMemory:
    def test_that_ran_out_gets_the_trial_a_device_of_its_own(
        self, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(1), corpora_dir)
        asked: list[Resources] = []

        class Small(LocalPool):
            """A slot with too little memory for a trial that has not got the device to itself."""

            def alone(self, resources: Resources) -> Resources:
                return replace(resources, gpus=1.0)

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                asked.append(resources)
                return super().reserve(resources, wanted=wanted)

            def wait(self, timeout: float) -> Sequence[Event]:
                if asked[-1].gpus:
                    return super().wait(timeout)
                keys, self._assignment = list(self.assignments()), None
                return [Finished(key=key, outcome=Outcome.out_of_memory("too big")) for key in keys]

        run(database, Small(workspace))
        (trial,) = trials_of(database, search_id)
        assert attempt_states(trial) == [AttemptState.OUT_OF_MEMORY, AttemptState.ENDED]
        assert (trial.state, trial.alone) == (TrialState.COMPLETED, True)

    @pytest.mark.parametrize(("names", "alone"), [(("kronecker", "btt", "monarch"), 1), (("btt",), 0)])
    def test_that_one_trial_needs_is_not_given_to_the_others(
        self, names: tuple[str, ...], alone: int, database: Database, workspace: Workspace, corpora_dir: Path
    ) -> None:
        search_id = submit(database, spec_of(3, concurrency=3), corpora_dir)
        with database.write() as session:
            waiting = [trials.enqueue(session, search_id, NAMED[name]) for name in names]
            waiting[alone].alone, waiting[alone].search.num_retries = True, 1
        submitted: list[tuple[str, float]] = []

        class Sorted(LocalPools):
            """Slots of any shape that note with which resources a trial was started."""

            def alone(self, resources: Resources) -> Resources:
                return replace(resources, gpus=1.0)

            def reserve(self, resources: Resources, *, wanted: int) -> Sequence[str]:
                self.gpus = resources.gpus
                return super().reserve(resources, wanted=wanted)

            def submit(self, slot: str, assignment: Assignment) -> None:
                submitted.append((assignment.key, self.gpus))
                super().submit(slot, assignment)

        run(database, Sorted(workspace, 3))
        assert submitted == [(f"{search_id}-{number}-1", float(number == alone)) for number in range(3)]


class TestDatabaseThatIsAway:
    def test_loses_nothing_that_was_heard(self, database: Database, workspace: Workspace, corpora_dir: Path) -> None:
        search_id = submit(database, spec_of(2), corpora_dir)

        class Broken(Database):
            """A database that cannot be written while ``away``."""

            away = False

            @contextmanager
            def write(self) -> Iterator[Session]:
                if self.away:
                    raise OperationalError("COMMIT", {}, Exception("database or disk is full"))
                with super().write() as session:
                    yield session

        flaky = Broken(database.engine.url.render_as_string(hide_password=False))

        class GoesAway(LocalPool):
            """A slot whose end is heard just as the database goes away."""

            def wait(self, timeout: float) -> Sequence[Event]:
                events = super().wait(timeout)
                flaky.away = flaky.away or bool(events and not told)
                told.extend(events)
                return events

        told: list[Event] = []
        with database.write() as session:
            runner = Runner(flaky, GoesAway(workspace), leases.enrol(session, 60).id, 60)
        for _ in range(3):
            with pytest.raises(OperationalError):
                runner.turn(0)
        flaky.away = False
        turn_to_the_end(runner)
        flaky.close()
        assert [attempt_states(trial) for trial in trials_of(database, search_id)] == [[AttemptState.ENDED]] * 2
