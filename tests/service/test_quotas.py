import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from sqlalchemy import text, update

from search.spec import Budget, SearchSpec
from search.states import SearchState
from service import quotas, searches
from service.clock import now
from service.database import Database
from service.errors import Forbidden, NotFound, TooMany
from service.keys import Caller, Limits, Scope
from service.models import Search
from service.settings import Settings
from tests.rows import SPEC, Rows
from tests.waiting import wait_for

TRIAL = SPEC.proxy.train_flops
UNLIMITED = Settings()
ADMIN = Caller(owner="admin", scopes=frozenset({Scope.ADMIN}), limits=Limits(max_train_flops_per_day=10 * TRIAL))


def ann(
    *, active: int | None = None, trials: float | None = None, flops: float | None = None, owner: str = "ann"
) -> Caller:
    """A caller whose key allows so many unfinished searches, and FLOPs for so many trials in a day."""
    limits = Limits(max_active_searches=active, max_train_flops_per_day=flops if trials is None else trials * TRIAL)
    return Caller(owner=owner, scopes=frozenset({Scope.SUBMIT}), limits=limits)


def spec(trials: int | None = None, *, seconds: float | None = None, flops: float | None = None) -> SearchSpec:
    return replace(SPEC, budget=Budget(max_trials=trials, max_seconds=seconds, max_train_flops=flops))


@dataclass(frozen=True, slots=True)
class Desk:
    """Asks for searches, and writes those that are there."""

    rows: Rows

    def has(
        self,
        wanted: SearchSpec = SPEC,
        state: SearchState = SearchState.RUNNING,
        *,
        hours_ago: float = 0.0,
        reserved: float = 0.0,
        owner: str = "ann",
    ) -> str:
        """A search that was submitted some time ago, with FLOPs for so many trials reserved."""
        search_id = self.rows.search(wanted, state, ann(owner=owner))
        with self.rows.database.write() as session:
            created_at = now(session) - timedelta(hours=hours_ago)
            changed = {"created_at": created_at, "train_flops": reserved * TRIAL}
            session.execute(update(Search).where(Search.id == search_id).values(**changed))
        return search_id

    def asks(self, caller: Caller, wanted: SearchSpec = SPEC, settings: Settings = UNLIMITED) -> None:
        """Ask for a search."""
        with self.rows.database.write() as session:
            quotas.check_submit(session, caller, settings, wanted)

    def asks_to_extend(self, caller: Caller, search_id: str, budget: Budget, settings: Settings = UNLIMITED) -> None:
        """Ask for another budget."""
        with self.rows.database.write() as session:
            quotas.check_extension(session, caller, settings, search_id, budget)

    def is_refused(self, caller: Caller, wanted: SearchSpec = SPEC, settings: Settings = UNLIMITED) -> TooMany:
        """Ask for a search, in vain."""
        with pytest.raises(TooMany) as refusal:
            self.asks(caller, wanted, settings)
        return refusal.value


@pytest.fixture
def desk(rows: Rows) -> Desk:
    return Desk(rows)


class TestActiveSearches:
    @pytest.mark.parametrize("state", [state for state in SearchState if not state.is_final])
    def test_are_those_that_have_not_ended(self, desk: Desk, state: SearchState) -> None:
        desk.has(state=state)
        desk.asks(ann(active=2))
        refusal = desk.is_refused(ann(active=1))
        assert str(refusal).startswith("ann may have 1 unfinished searches and has 1; wait for one to end")
        assert refusal.retry_after == 60

    @pytest.mark.parametrize("state", [state for state in SearchState if state.is_final])
    def test_are_not_those_that_have(self, desk: Desk, state: SearchState) -> None:
        desk.has(state=state)
        desk.asks(ann(active=1))

    def test_are_not_those_of_others(self, desk: Desk) -> None:
        desk.has(owner="bob")
        desk.asks(ann(active=1))

    def test_count_however_old_they_are(self, desk: Desk) -> None:
        desk.has(hours_ago=1000)
        desk.is_refused(ann(active=1))

    def test_are_limited_by_the_settings_where_the_key_says_nothing(self, desk: Desk) -> None:
        desk.has()
        desk.is_refused(ann(), settings=Settings(max_active_searches=1))
        desk.asks(ann(active=2), settings=Settings(max_active_searches=1))
        desk.is_refused(ann(active=1), settings=Settings(max_active_searches=2))

    def test_are_not_limited_where_nobody_says_anything(self, desk: Desk) -> None:
        for _ in range(3):
            desk.has()
        desk.asks(ann())


class TestTrainFlops:
    def test_count_as_soon_as_they_are_granted(self, desk: Desk) -> None:
        desk.has(spec(6), SearchState.QUEUED)
        desk.asks(ann(trials=10), spec(4))
        refusal = desk.is_refused(ann(trials=10), spec(5))
        assert "may use 1e+07 training FLOPs in 24 hours, and has been granted 6e+06 of them" in str(refusal)
        assert "this asks for 5e+06 more; ask for less, or later" in str(refusal)

    def test_are_those_that_the_smallest_budget_pays_for(self, desk: Desk) -> None:
        desk.has(spec(50, flops=6.5 * TRIAL))
        desk.asks(ann(trials=10), spec(4))
        desk.is_refused(ann(trials=10), spec(5))

    def test_of_others_do_not_count(self, desk: Desk) -> None:
        desk.has(spec(10), owner="bob")
        desk.asks(ann(trials=10), spec(10))

    def test_of_yesterday_do_not_count(self, desk: Desk) -> None:
        desk.has(spec(10), hours_ago=24)
        desk.asks(ann(trials=10), spec(10))

    def test_of_a_search_that_only_time_limits_are_those_reserved_so_far(self, desk: Desk) -> None:
        desk.has(spec(seconds=60), reserved=6)
        desk.asks(ann(trials=10), spec(4))
        desk.is_refused(ann(trials=10), spec(5))

    def test_of_a_search_that_has_ended_are_those_that_it_reserved(self, desk: Desk) -> None:
        desk.has(spec(10), SearchState.CANCELLED, reserved=2)
        desk.asks(ann(trials=10), spec(8))
        desk.is_refused(ann(trials=10), spec(9))

    def test_that_are_used_up_leave_none_for_a_search_that_only_time_limits(self, desk: Desk) -> None:
        desk.asks(ann(trials=10), spec(seconds=60))
        desk.has(spec(9))
        desk.asks(ann(trials=10), spec(seconds=60))
        desk.has(spec(1))
        desk.is_refused(ann(trials=10), spec(seconds=60))

    def test_of_six_sixths_are_the_whole(self, desk: Desk) -> None:
        share = 1_000_000.2  # six of these, added up in floating point, are more than six times one
        assert sum([share] * 6) > 6 * share
        sixth = replace(SPEC, proxy=replace(SPEC.proxy, train_flops=share), budget=Budget(max_trials=1))
        for _ in range(5):
            desk.has(sixth)
        desk.asks(ann(flops=6 * share), sixth)

    def test_are_limited_by_the_settings_where_the_key_says_nothing(self, desk: Desk) -> None:
        settings = Settings(max_train_flops_per_day=10 * TRIAL)
        desk.asks(ann(), spec(10), settings)
        desk.is_refused(ann(), spec(11), settings)
        desk.asks(ann(trials=11), spec(11), settings)

    def test_beyond_the_whole_quota_are_not_worth_waiting_for(self, desk: Desk) -> None:
        refusal = desk.is_refused(ann(trials=10), spec(11))
        assert "no waiting helps: ask for less" in str(refusal)
        assert refusal.retry_after == 24 * 3600


class TestRetryAfter:
    @pytest.mark.parametrize(("trials", "hours"), [(3, 4), (4, 4), (5, 14), (7, 14), (8, 23), (10, 23)])
    def test_is_when_enough_of_the_window_has_passed(self, desk: Desk, trials: int, hours: int) -> None:
        desk.has(spec(4), hours_ago=20)
        desk.has(spec(3), hours_ago=10)
        desk.has(spec(3), hours_ago=1)
        told = desk.is_refused(ann(trials=10), spec(trials)).retry_after
        # The rows were written a moment before the question.
        assert hours * 3600 - 600 < told <= hours * 3600

    def test_is_at_least_a_second(self, desk: Desk) -> None:
        search_id = desk.has(spec(10))
        with desk.rows.database.write() as session:
            soon = now(session) - quotas.WINDOW + timedelta(microseconds=1000)
            session.execute(update(Search).where(Search.id == search_id).values(created_at=soon))
            with pytest.raises(TooMany) as refusal:
                quotas.check_submit(session, ann(trials=10), UNLIMITED, spec(1))
        assert refusal.value.retry_after == 1
        assert refusal.value.headers == {"Retry-After": "1"}


class TestExtension:
    def test_asks_for_the_new_budget_in_place_of_the_old(self, desk: Desk) -> None:
        desk.has(spec(2))
        search_id = desk.has(spec(5))
        desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=8))
        with pytest.raises(TooMany, match="granted 2e\\+06 of them; this asks for 9e\\+06 more"):
            desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=9))

    def test_of_an_older_search_asks_for_what_it_gains(self, desk: Desk) -> None:
        desk.has(spec(2))
        search_id = desk.has(spec(50), hours_ago=30)
        desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=58))
        with pytest.raises(TooMany, match="this asks for 9e\\+06 more"):
            desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=59))

    def test_of_an_older_search_that_only_time_limited_asks_for_what_is_not_reserved_yet(self, desk: Desk) -> None:
        search_id = desk.has(spec(seconds=60), hours_ago=30, reserved=50)
        desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=60))
        with pytest.raises(TooMany, match=r"this asks for 1\.1e\+07 more"):
            desk.asks_to_extend(ann(trials=10), search_id, Budget(max_trials=61))

    @pytest.mark.parametrize("max_trials", [4, 5])
    def test_that_grants_no_more_is_always_allowed(self, desk: Desk, max_trials: int) -> None:
        search_id = desk.has(spec(5))
        desk.asks_to_extend(ann(trials=1), search_id, Budget(max_trials=max_trials))

    def test_to_a_budget_of_time_alone_needs_something_to_be_left(self, desk: Desk) -> None:
        search_id = desk.has(spec(5), reserved=3)
        desk.asks_to_extend(ann(trials=10), search_id, Budget(max_seconds=60))
        desk.has(spec(10))
        with pytest.raises(TooMany):
            desk.asks_to_extend(ann(trials=10), search_id, Budget(max_seconds=60))

    def test_counts_with_the_owner_of_the_search_whoever_asks(self, desk: Desk) -> None:
        search_id = desk.has(spec(5))
        desk.has(spec(10), owner="admin")
        desk.asks_to_extend(ADMIN, search_id, Budget(max_trials=10))
        with pytest.raises(TooMany, match="ann may use"):
            desk.asks_to_extend(ADMIN, search_id, Budget(max_trials=11))

    def test_of_a_search_of_somebody_else_is_refused_whatever_is_left(self, desk: Desk) -> None:
        search_id = desk.has(spec(5), owner="bob")
        with pytest.raises(Forbidden):
            desk.asks_to_extend(ann(trials=1), search_id, Budget(max_trials=50))

    def test_of_no_search_is_refused(self, desk: Desk) -> None:
        with pytest.raises(NotFound):
            desk.asks_to_extend(ann(trials=1), "0123456789ab", Budget(max_trials=50))

    def test_starts_no_search_more(self, desk: Desk) -> None:
        search_id = desk.has(spec(5))
        desk.asks_to_extend(ann(active=1), search_id, Budget(max_trials=10))

    def test_is_not_limited_where_nobody_says_anything(self, desk: Desk) -> None:
        desk.asks_to_extend(ann(), desk.has(spec(5)), Budget(max_trials=100_000))


def _all_at_once(number: int, call: Callable[[], None]) -> list[bool]:
    """Whether each of so many calls, made in threads of their own, was let pass."""
    passed: list[bool] = []
    start = threading.Barrier(number)

    def run() -> None:
        start.wait()
        try:
            call()
            passed.append(True)
        except TooMany:
            passed.append(False)

    threads = [threading.Thread(target=run) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return passed


class TestConcurrentSubmits:
    @pytest.mark.parametrize("caller", [ann(active=3), ann(trials=3 * 10)])
    def test_get_exactly_what_is_allowed(self, database_url: str, rows: Rows, caller: Caller) -> None:
        other = Database(database_url)  # as another API process has it

        def submit() -> None:
            with other.write() as session:
                quotas.check_submit(session, caller, UNLIMITED, SPEC)
                searches.submit(session, SPEC, None, caller)

        assert sorted(_all_at_once(8, submit)) == [False] * 5 + [True] * 3
        other.close()


@pytest.fixture
def postgres(database: Database) -> Database:
    if database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    return database


class TestLock:
    def test_holds_off_the_same_owner_alone(self, postgres: Database) -> None:
        def ask(owner: str) -> None:
            with postgres.write() as session:
                quotas.check_submit(session, ann(active=1, owner=owner), UNLIMITED, SPEC)

        same, other = (threading.Thread(target=ask, args=[owner], daemon=True) for owner in ("ann", "bob"))
        with postgres.write() as session:
            quotas.check_submit(session, ann(active=1), UNLIMITED, SPEC)
            same.start()
            other.start()
            wait_for(lambda: not other.is_alive(), what="the submit of another owner")
            waiting = text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
            wait_for(lambda: session.scalar(waiting) == 1, what="the submit of the same owner to wait")
        same.join()

    def test_is_not_taken_where_nothing_is_limited(self, postgres: Database) -> None:
        with postgres.write() as session:
            quotas.check_submit(session, ann(), UNLIMITED, SPEC)
            assert session.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")) == 0
