from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from typing import Any, get_args

import pytest

from einlayers.theta import NAMED
from search.states import AttemptState, SearchState, TrialState
from search.trial import Outcome
from service import listings, trials
from service.database import Database
from service.errors import BadPageToken
from service.listings import EVERYTHING, METRICS, Filters, Metric
from service.models import METRIC_COLUMNS, Origin, Trial
from service.paging import PageRequest
from tests.rows import SPEC, TINY, Rows
from tests.service.pages import Listing, flat, pages_of
from tests.service.plain_rows import NOON, plain_search, plain_trial
from tests.service.queries import query_plan, statements_of

SIZES = pytest.mark.parametrize("size", [1, 2, 3, 5, 14, 15, 16, 500])
DIRECTIONS = pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])


def _trials_of(search_id: str, filters: Filters = EVERYTHING, **order: Any) -> Listing:
    return lambda session, page: listings.trials(session, search_id, page, filters, **order)


def _structures(filters: Filters = EVERYTHING, **order: Any) -> Listing:
    return lambda session, page: listings.structures(session, page, filters, **order)


def _searches(**filters: Any) -> Listing:
    return lambda session, page: listings.searches(session, page, **filters)


def _values(number: int) -> dict[str, Any]:
    """Metrics of a trial: in every one another order, with equals in each; some trials have neither loss nor
    seconds, some neither latency nor peak memory."""
    unfinished = number % 5 == 4
    return {
        "loss": None if unfinished else 1 + number * 7 % 6 / 8,
        "seconds": None if unfinished else 1.0 + number * 5 % 6,
        "state": TrialState.RUNNING if unfinished else TrialState.COMPLETED,
        "omega": number * 3 % 7 / 8,
        "psi": number * 4 % 5 / 8,
        "nu": number * 2 % 9 / 8,
        "params": 1000 * (number * 11 % 8),
        "macs": 2**40 + number * 13 % 7,
        "latency": None if number % 7 == 6 else number * 5 % 11 / 8,
        "peak_memory": None if number % 7 == 6 else 2**40 + number * 3 % 5,
        "family": ("btt", "monarch", "dense")[number % 3],
        "origin": Origin.USER if number % 4 == 3 else Origin.SEARCH,
        "excluded_at": NOON if number % 6 == 5 else None,
    }


@pytest.fixture(scope="module")
def everything(shared: Rows) -> list[Trial]:
    """Forty trials of two searches on two kinds of proxies, for all tests that only look."""
    made = [
        plain_trial("ab"[number % 2], number // 2, digest=f"{number:032x}", **_values(number)) for number in range(40)
    ]
    with shared.database.write() as session:
        session.add_all([plain_search("a"), plain_search("b", proxy_kind="images")])
        session.flush()
        session.add_all(made)
    return made


KEPT: dict[str, tuple[Filters, Callable[[Trial], bool]]] = {
    "state": (replace(EVERYTHING, state=TrialState.RUNNING), lambda trial: trial.state is TrialState.RUNNING),
    "family": (replace(EVERYTHING, family="btt"), lambda trial: trial.family == "btt"),
    "origin": (replace(EVERYTHING, origin=Origin.USER), lambda trial: trial.origin is Origin.USER),
    "proxy_kind": (replace(EVERYTHING, proxy_kind="images"), lambda trial: trial.search_id == "b"),
    "no proxy": (replace(EVERYTHING, proxy_kind="speech"), lambda trial: False),
    "not excluded": (Filters(), lambda trial: trial.excluded_at is None),
    "bounds": (
        replace(EVERYTHING, at_least={"omega": 0.25, "macs": 2**40 + 2}, at_most={"omega": 0.75, "loss": 1.5}),
        lambda trial: (
            0.25 <= trial.omega <= 0.75 and trial.macs >= 2**40 + 2 and trial.loss is not None and trial.loss <= 1.5
        ),
    ),
    "all at once": (
        Filters(state=TrialState.COMPLETED, family="dense", origin=Origin.SEARCH, at_most={"nu": 1.0}),
        lambda trial: (
            (trial.state, trial.family, trial.origin) == (TrialState.COMPLETED, "dense", Origin.SEARCH)
            and trial.nu <= 1.0
            and trial.excluded_at is None
        ),
    ),
}
"""Filters, and which trials they let through."""

FILTERS = pytest.mark.parametrize(("filters", "keeps"), KEPT.values(), ids=KEPT)


class TestMetrics:
    def test_are_named_alike_everywhere(self) -> None:
        assert tuple(METRICS) == get_args(Metric) == METRIC_COLUMNS


class TestPagesOfSearches:
    @SIZES
    def test_hold_every_search_once_newest_first(self, size: int, rows: Rows) -> None:
        expected = [rows.search() for _ in range(15)][::-1]
        assert flat(pages_of(rows.database, _searches(), size)) == expected

    def test_of_the_same_instant_go_by_id(self, database: Database) -> None:
        with database.write() as session:
            session.add_all(plain_search(f"{number:x}") for number in range(10))
        for size in (1, 3, 10):
            assert flat(pages_of(database, _searches(), size)) == list("9876543210")

    def test_stay_right_while_searches_arrive(self, rows: Rows) -> None:
        expected = [rows.search() for _ in range(6)][::-1]
        assert flat(pages_of(rows.database, _searches(), 2, rows.search)) == expected

    def test_hold_those_of_an_owner_or_in_some_states(self, database: Database) -> None:
        made = [
            plain_search(
                f"{number:x}", owner=("ada", "bob")[number % 2], state=state, created_at=NOON + timedelta(number)
            )
            for number, state in enumerate([*SearchState, *SearchState])
        ]
        with database.write() as session:
            session.add_all(made)
        newest_first = made[::-1]
        ended = {SearchState.COMPLETED, SearchState.FAILED}
        for filters, expected in (
            ({"owner": "ada"}, [search.id for search in newest_first if search.owner == "ada"]),
            ({"states": ended}, [search.id for search in newest_first if search.state in ended]),
            ({"owner": "bob", "states": ended}, [s.id for s in newest_first if s.owner == "bob" and s.state in ended]),
            ({"owner": "eve"}, []),
            ({"states": []}, []),
        ):
            assert flat(pages_of(database, _searches(**filters), 2)) == expected


class TestPagesOfTrials:
    @SIZES
    @DIRECTIONS
    def test_hold_every_trial_of_the_search_once_by_number(
        self, size: int, descending: bool, everything: Sequence[Trial], shared: Rows
    ) -> None:
        expected = [trial.id for trial in everything if trial.search_id == "a"]
        found = flat(pages_of(shared.database, _trials_of("a", descending=descending), size))
        assert found == (expected[::-1] if descending else expected)

    @DIRECTIONS
    @pytest.mark.parametrize("metric", METRICS)
    def test_are_in_the_order_of_any_metric_of_those_that_have_it(
        self, metric: Metric, descending: bool, everything: Sequence[Trial], shared: Rows
    ) -> None:
        having = [trial for trial in everything if trial.search_id == "b" and getattr(trial, metric) is not None]
        having.sort(key=lambda trial: (getattr(trial, metric), trial.number), reverse=descending)
        assert any(getattr(one, metric) == getattr(other, metric) for one, other in pairwise(having))
        for size in (3, 500):
            found = flat(pages_of(shared.database, _trials_of("b", order_by=metric, descending=descending), size))
            assert found == [trial.id for trial in having]

    @FILTERS
    @pytest.mark.parametrize("order_by", [None, "psi"])
    def test_hold_those_that_the_filters_keep(
        self,
        order_by: Metric | None,
        filters: Filters,
        keeps: Callable[[Trial], bool],
        everything: Sequence[Trial],
        shared: Rows,
    ) -> None:
        expected = {trial.id for trial in everything if trial.search_id == "b" and keeps(trial)}
        found = flat(pages_of(shared.database, _trials_of("b", filters, order_by=order_by), 3))
        assert len(found) == len(expected)
        assert set(found) == expected

    @pytest.mark.parametrize("metric", METRICS)
    def test_keep_bounds_on_any_metric(self, metric: Metric, everything: Sequence[Trial], shared: Rows) -> None:
        own = {trial.id: getattr(trial, metric) for trial in everything if trial.search_id == "a"}
        low, high = sorted({value for value in own.values() if value is not None})[1:3]
        filters = replace(EVERYTHING, at_least={metric: low}, at_most={metric: high})
        expected = [identifier for identifier, value in own.items() if value is not None and low <= value <= high]
        assert 0 < len(expected) < len(own)
        assert flat(pages_of(shared.database, _trials_of("a", filters), 3)) == expected

    def test_show_trials_that_arrive_meanwhile_once(self, database: Database) -> None:
        with database.write() as session:
            session.add_all([plain_search("a"), *(plain_trial("a", number) for number in range(4))])
        late = iter(range(4, 6))

        def arrive() -> None:
            for number in late:
                with database.write() as session:
                    session.add(plain_trial("a", number))
                return

        pages = pages_of(database, _trials_of("a"), 2, arrive)
        assert flat(pages) == [f"a-{number}" for number in range(6)]

    def test_come_with_their_search_and_their_attempts_in_order(self, rows: Rows) -> None:
        search_id = rows.search()
        rows.completed(search_id, NAMED["dense"], 1.0)
        trial_id = rows.trial(search_id, NAMED["btt"])
        for _ in range(3):
            attempt_id = rows.attempt(trial_id)
            with rows.database.write() as session:
                trials.record_loss(session, rows.lease(search_id), attempt_id, "the node is gone")
        with rows.database.read() as session:
            first, second = listings.trials(session, search_id, PageRequest(size=2)).items
        assert [trial.search.spec for trial in (first, second)] == [SPEC, SPEC]
        assert [attempt.state for attempt in first.attempts] == [AttemptState.ENDED]
        assert [attempt.number for attempt in second.attempts] == [1, 2, 3]

    def test_take_as_many_queries_for_many_rows_as_for_few(self, everything: Sequence[Trial], shared: Rows) -> None:
        counts = set()
        for size in (1, 20):
            with statements_of(shared.database) as statements, shared.database.read() as session:
                assert len(_trials_of("a")(session, PageRequest(size=size)).items) == size
            counts.add(len(statements))
        assert counts == {3}


class TestPagesOfStructures:
    @DIRECTIONS
    @pytest.mark.parametrize("metric", METRICS)
    def test_are_completed_trials_of_all_searches_in_the_order_of_any_metric(
        self, metric: Metric, descending: bool, everything: Sequence[Trial], shared: Rows
    ) -> None:
        completed = [trial for trial in everything if trial.state is TrialState.COMPLETED]
        completed = [trial for trial in completed if getattr(trial, metric) is not None]
        completed.sort(key=lambda trial: (getattr(trial, metric), trial.id), reverse=descending)
        for size in (3, 500):
            found = flat(pages_of(shared.database, _structures(order_by=metric, descending=descending), size))
            assert found == [trial.id for trial in completed]

    @FILTERS
    def test_hold_those_that_the_filters_keep(
        self,
        filters: Filters,
        keeps: Callable[[Trial], bool],
        everything: Sequence[Trial],
        shared: Rows,
    ) -> None:
        completed = [trial for trial in everything if trial.state is TrialState.COMPLETED]
        found = flat(pages_of(shared.database, _structures(filters), 3))
        assert len(found) == len(set(found))
        assert set(found) == {trial.id for trial in completed if keeps(trial)}

    def test_hold_completed_trials_alone(self, rows: Rows) -> None:
        search_id = rows.search(replace(SPEC, proxy=replace(TINY, width=256)))
        names = iter(NAMED)
        rows.trial(search_id, NAMED[next(names)])
        rows.attempt(rows.trial(search_id, NAMED[next(names)]))
        for outcome in (Outcome.infeasible("it diverged"), Outcome.failed("a traceback"), Outcome.cancelled()):
            rows.outcome(rows.attempt(rows.trial(search_id, NAMED[next(names)])), outcome)
        completed = rows.completed(search_id, NAMED[next(names)], 1.0)
        assert pages_of(rows.database, _structures(order_by="omega"), 4) == [[completed]]

    def test_stay_right_while_structures_arrive(self, database: Database) -> None:
        with database.write() as session:
            session.add_all([plain_search("a"), *(plain_trial("a", number, loss=2.0 + number) for number in range(6))])
        late = iter([plain_trial("a", 6, loss=1.0), plain_trial("a", 7, loss=100.0)])

        def arrive() -> None:
            for trial in late:
                with database.write() as session:
                    session.add(trial)
                return

        pages = pages_of(database, _structures(), 2, arrive)
        # What came in before the place that was reached is missing; what came in behind it is there; nothing is twice.
        assert flat(pages) == [f"a-{number}" for number in (0, 1, 2, 3, 4, 5, 7)]


class TestTokens:
    @pytest.mark.parametrize(
        "other",
        [
            _trials_of("b"),
            _trials_of("a", replace(EVERYTHING, family="btt")),
            _trials_of("a", replace(EVERYTHING, at_most={"loss": 2.0})),
            _trials_of("a", Filters()),
            _trials_of("a", order_by="loss"),
            _trials_of("a", descending=True),
            _structures(),
            _searches(),
        ],
        ids=["search", "family", "bound", "excluded", "order", "direction", "list", "searches"],
    )
    def test_are_good_for_the_same_list_alone(self, other: Listing, everything: Sequence[Trial], shared: Rows) -> None:
        with shared.database.read() as session:
            token = _trials_of("a")(session, PageRequest(size=1)).next_token
            assert token is not None
            with pytest.raises(BadPageToken):
                other(session, PageRequest(size=1, token=token))

    def test_tell_the_value_of_one_bound_from_another(self, everything: Sequence[Trial], shared: Rows) -> None:
        one, other = (_structures(replace(EVERYTHING, at_most={"omega": bound})) for bound in (0.5, 0.625))
        with shared.database.read() as session:
            token = one(session, PageRequest(size=1)).next_token
            with pytest.raises(BadPageToken):
                other(session, PageRequest(size=1, token=token))


INDEXED: dict[str, Listing] = {
    "searches": _searches(),
    "searches of an owner": _searches(owner="local"),
    "trials": _trials_of("a"),
    "trials in a state": _trials_of("a", Filters(state=TrialState.RUNNING)),
    "trials within bounds": _trials_of("a", Filters(at_most={"omega": 1.0, "nu": 1.0}), order_by="loss"),
    **{f"trials by {metric}": _trials_of("a", Filters(), order_by=metric) for metric in METRICS},
    **{f"structures by {metric}": _structures(Filters(), order_by=metric) for metric in METRICS},
    "structures of a family": _structures(Filters(family="btt", at_most={"omega": 1.0})),
    "structures of a proxy": _structures(Filters(proxy_kind="char_lm")),
    "structures, worst first": _structures(Filters(at_most={"omega": 1.0}), descending=True),
}


class TestQueries:
    @pytest.mark.parametrize("page_number", [1, 2])
    @pytest.mark.parametrize("listing", INDEXED.values(), ids=INDEXED)
    def test_read_a_page_off_an_index_in_its_order(
        self, listing: Listing, page_number: int, everything: Sequence[Trial], shared: Rows
    ) -> None:
        request = PageRequest(size=1)
        with shared.database.read() as session:
            for _ in range(page_number - 1):
                request = PageRequest(size=1, token=listing(session, request).next_token)
                assert request.token is not None
            with statements_of(shared.database) as statements:
                listing(session, request)
            plan = query_plan(session, shared.database.is_sqlite, *statements[0])
        assert "INDEX" in plan.upper()
        # To sort the few rows that are equal in the first column of the order is no harm.
        assert "B-TREE FOR ORDER BY" not in plan
        assert "Sort" not in plan
        assert "Seq Scan" not in plan
