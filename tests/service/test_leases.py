import threading
from contextlib import closing

import pytest
from sqlalchemy import update

from search.states import SearchState
from service import leases, repositories
from service.clock import now
from service.database import Database
from service.leases import Lease, LeaseLost
from service.models import Runner, RunnerStats
from tests.rows import Rows


def _enrol(database: Database) -> str:
    with database.write() as session:
        return leases.enrol(session, 60).id


def _expire(database: Database, runner_id: str) -> None:
    with database.write() as session:
        session.execute(update(Runner).where(Runner.id == runner_id).values(expires_at=now(session)))


def _claim(database: Database, runner_id: str) -> list[Lease]:
    with database.write() as session:
        return leases.claim(session, runner_id)


class TestClaim:
    def test_takes_what_nobody_holds(self, rows: Rows) -> None:
        search_id = rows.search(state=SearchState.QUEUED)
        runner = _enrol(rows.database)
        assert _claim(rows.database, runner) == [Lease(search_id=search_id, runner_id=runner, epoch=1)]
        assert _claim(rows.database, runner) == []

    @pytest.mark.parametrize("state", [SearchState.PAUSED, *(state for state in SearchState if state.is_final)])
    def test_leaves_alone_what_wants_no_runner(self, state: SearchState, rows: Rows) -> None:
        rows.search(state=state)
        with rows.database.read() as session:
            assert not leases.any_free(session)
        assert _claim(rows.database, _enrol(rows.database)) == []

    def test_leaves_to_a_runner_that_lives_what_it_holds(self, rows: Rows) -> None:
        rows.search()
        first, second = _enrol(rows.database), _enrol(rows.database)
        assert len(_claim(rows.database, first)) == 1
        with rows.database.read() as session:
            assert not leases.any_free(session)
        assert _claim(rows.database, second) == []

    def test_takes_over_from_a_runner_whose_time_is_over_and_raises_the_epoch(self, rows: Rows) -> None:
        search_id = rows.search()
        first, second = _enrol(rows.database), _enrol(rows.database)
        (old,) = _claim(rows.database, first)
        _expire(rows.database, first)
        assert _claim(rows.database, second) == [Lease(search_id=search_id, runner_id=second, epoch=old.epoch + 1)]

    def test_takes_a_paused_search_over_whose_runner_died_before_its_trials_came_to_rest(self, rows: Rows) -> None:
        search_id = rows.search()
        first, second = _enrol(rows.database), _enrol(rows.database)
        _claim(rows.database, first)
        with rows.database.write() as session:
            repositories.search_by_id(session, search_id, lock=True).to(SearchState.PAUSED, now(session))
        _expire(rows.database, first)
        assert [lease.search_id for lease in _claim(rows.database, second)] == [search_id]

    def test_takes_a_fair_share_and_gives_back_what_is_more(self, rows: Rows) -> None:
        for _ in range(4):
            rows.search(state=SearchState.QUEUED)
        first = _enrol(rows.database)
        assert len(_claim(rows.database, first)) == 4
        second = _enrol(rows.database)
        assert _claim(rows.database, second) == []
        assert _claim(rows.database, first) == []
        assert len(_claim(rows.database, second)) == 2

    def test_by_many_at_once_gives_every_search_to_one(self, rows: Rows) -> None:
        for _ in range(12):
            rows.search(state=SearchState.QUEUED)
        runners = [_enrol(rows.database) for _ in range(4)]
        together = threading.Barrier(4)
        claimed: list[Lease] = []

        def claim(runner: str) -> None:
            with closing(Database(rows.database.engine.url.render_as_string(hide_password=False))) as database:
                together.wait()
                for _ in range(3):
                    claimed.extend(_claim(database, runner))

        threads = [threading.Thread(target=claim, args=(runner,)) for runner in runners]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({lease.search_id for lease in claimed}) == len(claimed) == 12
        assert {lease.epoch for lease in claimed} == {1}


class TestHeld:
    def test_gives_the_search_to_its_runner(self, rows: Rows) -> None:
        lease = rows.lease(rows.search())
        with rows.database.write() as session:
            assert leases.held(session, lease).id == lease.search_id

    @pytest.mark.parametrize("change", ["runner", "epoch", "nobody"])
    def test_refuses_whoever_held_it_before(self, change: str, rows: Rows) -> None:
        lease = rows.lease(rows.search())
        with rows.database.write() as session:
            search = repositories.search_by_id(session, lease.search_id, lock=True)
            if change == "epoch":
                search.epoch += 1
            else:
                search.runner_id = "another" if change == "runner" else None
        with pytest.raises(LeaseLost, match="does not hold search"), rows.database.write() as session:
            leases.held(session, lease)


class TestLife:
    def test_is_renewed_by_every_beat(self, database: Database) -> None:
        runner = _enrol(database)
        _expire(database, runner)
        with database.read() as session:
            assert leases.alive(session) == []
        with database.write() as session:
            leases.renew(session, runner, 60, RunnerStats(slots=3))
        with database.read() as session:
            (alive,) = leases.alive(session)
        assert (alive.id, alive.stats.slots) == (runner, 3)

    def test_of_a_runner_that_was_forgotten_begins_again(self, database: Database) -> None:
        with database.write() as session:
            leases.renew(session, "abc", 60, RunnerStats())
        with database.read() as session:
            assert [runner.id for runner in leases.alive(session)] == ["abc"]

    def test_ends_at_once_with_a_runner_that_leaves(self, rows: Rows) -> None:
        rows.search()
        runner = _enrol(rows.database)
        _claim(rows.database, runner)
        with rows.database.write() as session:
            leases.leave(session, runner)
        with rows.database.read() as session:
            assert leases.alive(session) == []
            assert leases.any_free(session)
