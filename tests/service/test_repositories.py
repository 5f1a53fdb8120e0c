import base64
import json
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest
from sqlalchemy.orm import Session

from einlayers.theta import NAMED, Theta
from search.proposals import PastTrial
from search.states import SearchState, TrialState
from search.trial import Outcome
from service import repositories, trials
from service.database import Database
from service.errors import BadPageToken, NotFound
from service.models import Search, Trial
from service.repositories import METRICS, Metric, Page, PageRequest
from tests.rows import SPEC, TINY, Rows, point

Listing = Callable[[Session, PageRequest], Page[Any]]

WIDE = replace(SPEC, proxy=replace(TINY, width=256))
"""A search on models so wide that similar thetas are different structures; nobody trains them here."""

THETAS = [*NAMED.values(), *(Theta.normalise((a, 1, 2, 1, a, 1, r / 8)) for a in (2, 3, 4) for r in range(3))]
"""Fifteen structures."""

SIZES = pytest.mark.parametrize("size", [1, 2, 3, 5, 14, 15, 16, 500])


def _pages(
    database: Database, listing: Listing, size: int, between: Callable[[], object] = lambda: None
) -> list[list[str]]:
    """The ids on every page, with something happening between one and the next."""
    pages: list[list[str]] = []
    token = None
    while True:
        with database.read() as session:
            page = listing(session, PageRequest(size=size, token=token))
        pages.append([row.id for row in page.items])
        if page.next_token is None:
            return pages
        token = page.next_token
        between()


def _flat(pages: Sequence[Sequence[str]]) -> list[str]:
    return [identifier for page in pages for identifier in page]


def _structures(order_by: Metric = "loss", descending: bool = False, **filters: Any) -> Listing:
    bounds = {"at_least": {}, "at_most": {}, **filters}
    return lambda session, page: repositories.structures(
        session, page, order_by=order_by, descending=descending, **bounds
    )


def _trials_of(search_id: str, state: TrialState | None = None) -> Listing:
    return lambda session, page: repositories.trials(session, search_id, page, state)


def _token(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _trials(database: Database, search_id: str) -> list[Trial]:
    with database.read() as session:
        return list(repositories.trials(session, search_id, PageRequest(size=500)).items)


class TestPagesOfSearches:
    @SIZES
    def test_hold_every_search_once_newest_first(self, size: int, rows: Rows) -> None:
        expected = [rows.search(WIDE) for _ in range(15)][::-1]
        pages = _pages(rows.database, repositories.searches, size)
        assert _flat(pages) == expected
        assert [len(page) for page in pages[:-1]] == [size] * (len(pages) - 1)
        assert pages[-1]

    def test_of_the_same_instant_go_by_id(self, database: Database) -> None:
        time = datetime(2026, 1, 1, 12, tzinfo=UTC)
        with database.write() as session:
            session.add_all(
                Search(id=f"{number:x}", name="test", spec=SPEC, proxy_kind="char_lm", created_at=time)
                for number in range(10)
            )
        for size in (1, 3, 10):
            assert _flat(_pages(database, repositories.searches, size)) == list("9876543210")

    def test_stay_right_while_searches_arrive(self, rows: Rows) -> None:
        expected = [rows.search(WIDE) for _ in range(6)][::-1]
        assert _flat(_pages(rows.database, repositories.searches, 2, rows.search)) == expected

    def test_of_no_search_are_one_empty_page(self, database: Database) -> None:
        assert _pages(database, repositories.searches, 5) == [[]]


class TestPagesOfTrials:
    @SIZES
    def test_hold_every_trial_of_the_search_once_by_number(self, size: int, rows: Rows) -> None:
        search_id, other = rows.search(WIDE), rows.search(WIDE)
        rows.trial(other, NAMED["btt"])
        expected = rows.all_proposed(search_id, THETAS)
        assert _flat(_pages(rows.database, _trials_of(search_id), size)) == expected

    def test_hold_those_of_a_state_alone(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        completed = rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS[:5]])
        proposed = rows.all_proposed(search_id, THETAS[5:9])
        for state, expected in ((TrialState.COMPLETED, completed), (TrialState.PROPOSED, proposed)):
            assert _flat(_pages(rows.database, _trials_of(search_id, state), 2)) == expected
        assert _pages(rows.database, _trials_of(search_id, TrialState.PRUNED), 2) == [[]]

    def test_show_trials_that_arrive_meanwhile_once(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        late = iter(THETAS[4:])
        expected = [rows.trial(search_id, theta) for theta in THETAS[:4]]
        pages = _pages(
            rows.database, _trials_of(search_id), 2, lambda: expected.append(rows.trial(search_id, next(late)))
        )
        assert _flat(pages) == expected


class TestPagesOfStructures:
    @pytest.mark.parametrize("descending", [False, True], ids=["ascending", "descending"])
    @pytest.mark.parametrize("metric", METRICS)
    def test_are_in_the_order_of_any_metric(self, metric: Metric, descending: bool, rows: Rows) -> None:
        first, second = rows.search(WIDE), rows.search(WIDE)
        losses = [(theta, 1 + (number * 7 % 5) / 8) for number, theta in enumerate(THETAS)]
        rows.all_completed(first, losses[::2])
        rows.all_completed(second, losses[1::2])
        everything = _trials(rows.database, first) + _trials(rows.database, second)
        ordered = sorted(everything, key=lambda trial: (getattr(trial, metric), trial.id), reverse=descending)
        assert len({getattr(trial, metric) for trial in everything}) > 3
        for size in (1, 4, 500):
            pages = _pages(rows.database, _structures(metric, descending), size)
            assert _flat(pages) == [trial.id for trial in ordered]

    @pytest.mark.parametrize("metric", METRICS)
    def test_keep_bounds_on_any_metric(self, metric: Metric, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1 + number / 8) for number, theta in enumerate(THETAS)])
        values = sorted({getattr(trial, metric) for trial in _trials(rows.database, search_id)})
        low, high = values[1], values[-2]
        expected = {trial.id for trial in _trials(rows.database, search_id) if low <= getattr(trial, metric) <= high}
        found = _flat(_pages(rows.database, _structures(at_least={metric: low}, at_most={metric: high}), 4))
        assert set(found) == expected
        assert 0 < len(found) < len(THETAS)

    def test_keep_all_filters_at_once(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1 + number / 8) for number, theta in enumerate(THETAS)])
        listing = _structures(
            "macs", family="btt", proxy_kind="char_lm", at_least={"loss": 1.0}, at_most={"nu": 1.0, "omega": 0.0}
        )
        (found,) = _flat(_pages(rows.database, listing, 4))
        (expected,) = (trial.id for trial in _trials(rows.database, search_id) if trial.theta == NAMED["btt"])
        assert found == expected

    def test_of_another_proxy_are_none(self, rows: Rows) -> None:
        rows.completed(rows.search(WIDE), NAMED["btt"], 1.0)
        assert _pages(rows.database, _structures(proxy_kind="images"), 4) == [[]]

    def test_hold_completed_trials_alone(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.trial(search_id, THETAS[0])
        rows.attempt(rows.trial(search_id, THETAS[1]))
        rows.outcome(rows.attempt(rows.trial(search_id, THETAS[2])), Outcome.infeasible("it diverged"))
        rows.outcome(rows.attempt(rows.trial(search_id, THETAS[3])), Outcome.failed("a traceback"))
        completed = rows.completed(search_id, THETAS[4], 1.0)
        assert _pages(rows.database, _structures("omega"), 4) == [[completed]]

    def test_stay_right_while_structures_arrive(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        expected = rows.all_completed(search_id, [(theta, 2.0 + number) for number, theta in enumerate(THETAS[:6])])
        late = [(THETAS[6], 1.0), (THETAS[7], 100.0)]
        arrived: list[str] = []

        def arrive() -> None:
            if late:
                arrived.append(rows.completed(search_id, *late.pop(0)))

        pages = _pages(rows.database, _structures(), 2, arrive)
        # What came in before the place that was reached is missing; what came in behind it is there; nothing is twice.
        assert _flat(pages) == [*expected, arrived[1]]


LISTINGS: dict[str, Listing] = {
    "searches": repositories.searches,
    "trials": _trials_of("ffff"),
    "structures by loss": _structures("loss"),
    "structures by params": _structures("params"),
}

WRONG: tuple[object, ...] = (
    None,
    1,
    "x",
    {},
    [],
    ["x"],
    [None],
    [True],
    [1.5],
    [[1]],
    [2**31],
    [2**63],
    [10**400],
    [None, None],
    [1, 1],
    [1.0, 1],
    [1.0, None],
    [True, "x"],
    [float("nan"), "x"],
    [10**400, "x"],
    [1.0, "\0"],
    [1.0, "\ud800"],
    [1, "\0"],
    ["x", "x"],
    [{}, "x"],
    [1.0, "x", "x"],
    ["2026-01-01", "x"],
    ["2026-01-01T00:00:00", "x"],
    ["2026-01-01T00:00:00+00:00", 1],
    ["2026-01-01T00:00:00+00:00", "\0"],
    ["2026-01-01T00:00:00+00:00", "\ud800"],
    ["2026-01-01T00:00:00+00:00"],
    ["0001-01-01T00:00:00+23:59", "x"],
    ["9999-12-31T23:59:59-23:59", "x"],
    ["2026-13-01T00:00:00+00:00", "x"],
)
"""What no token holds."""

BAD_TOKENS = {
    "empty": "",
    "no base64": "!",
    "no base64 of anything": "x",
    "not ASCII": "é",
    "no UTF-8": base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
    "no JSON": base64.urlsafe_b64encode(b"[1").decode(),
    "nested too deep": base64.urlsafe_b64encode(b"[" * 700).decode(),
    "too many digits": base64.urlsafe_b64encode(b"[" + b"1" * 5000 + b"]").decode(),
    **{json.dumps(value)[:60]: _token(value) for value in WRONG},
}

STRANGE: tuple[object, ...] = (
    *(None, True, 0, -1, 1.5, 2**31, 2**63 - 1, 2**63, -(2**63), 10**400, float("nan"), float("inf"), [], {}, [1]),
    *("", "x", "\0", "\ud800", "x" * 1000, "2026-01-01", "2026-01-01T00:00:00", "2026-13-01T00:00:00+00:00"),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+00:00"),
)
"""What somebody might put into a token."""


class TestPageToken:
    @pytest.mark.parametrize("token", BAD_TOKENS.values(), ids=BAD_TOKENS)
    @pytest.mark.parametrize("listing", LISTINGS)
    def test_of_no_list_is_refused(self, listing: str, token: str, shared: Rows) -> None:
        with pytest.raises(BadPageToken), shared.database.read() as session:
            LISTINGS[listing](session, PageRequest(size=2, token=token))

    @pytest.mark.parametrize("asked", LISTINGS)
    @pytest.mark.parametrize("given", LISTINGS)
    def test_of_another_list_is_refused(self, given: str, asked: str, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS[:3]])
        listings = {**LISTINGS, "trials": _trials_of(search_id)}
        with rows.database.read() as session:
            token = listings[given](session, PageRequest(size=1)).next_token
            assert token is not None
            if given == asked:
                assert len(listings[asked](session, PageRequest(size=1, token=token)).items) == 1
            else:
                with pytest.raises(BadPageToken):
                    listings[asked](session, PageRequest(size=1, token=token))

    @pytest.mark.parametrize("listing", LISTINGS)
    def test_that_was_changed_is_refused_or_served(self, listing: str, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS[:3]])
        listings = {**LISTINGS, "trials": _trials_of(search_id)}
        with rows.database.read() as session:
            token = listings[listing](session, PageRequest(size=1)).next_token
            assert token is not None
            parts = json.loads(base64.urlsafe_b64decode(token + "=="))
            for place, value in product(range(len(parts)), STRANGE):
                changed = _token([*parts[:place], value, *parts[place + 1 :]])
                with suppress(BadPageToken):
                    assert len(listings[listing](session, PageRequest(size=2, token=changed)).items) <= 2

    def test_of_another_order_is_refused(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS[:3]])
        with rows.database.read() as session:
            token = _structures("loss")(session, PageRequest(size=1)).next_token
            for listing in (_structures("omega"), _structures("loss", descending=True)):
                with pytest.raises(BadPageToken):
                    listing(session, PageRequest(size=1, token=token))


class TestBest:
    def _best(self, rows: Rows, search_id: str, limit: int = 10) -> list[repositories.RankedStructure]:
        with rows.database.read() as session:
            return repositories.best(session, search_id, limit)

    def test_ranks_structures_by_their_mean_loss(self, rows: Rows) -> None:
        search_id = rows.search(replace(WIDE, replicates=3))
        losses = {"dense": (2.0, 1.0, 1.5), "btt": (1.25, 1.25, 1.0), "monarch": (0.5, 9.0, 1.0)}
        for name, values in losses.items():
            for replicate, loss in enumerate(values):
                rows.completed(search_id, NAMED[name], loss, replicate)
        best = self._best(rows, search_id)
        assert [ranked.trial.family for ranked in best] == ["btt", "dense", "monarch"]
        for ranked in best:
            values = losses[ranked.trial.family]
            assert ranked.loss == pytest.approx(statistics.mean(values), rel=1e-15)
            assert ranked.loss_sd == pytest.approx(statistics.stdev(values), rel=1e-15)
            assert [trial.loss for trial in ranked.replicates] == list(values)
            assert len({trial.seed for trial in ranked.replicates}) == 3

    def test_of_a_single_replicate_has_no_spread(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(search_id, NAMED["btt"], 1.0)
        (ranked,) = self._best(rows, search_id)
        assert (ranked.loss, ranked.loss_sd, len(ranked.replicates)) == (1.0, None, 1)

    def test_leaves_out_replicates_without_a_loss(self, rows: Rows) -> None:
        search_id = rows.search(replace(WIDE, replicates=3))
        rows.completed(search_id, NAMED["btt"], 1.0, 0)
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"], 1)), Outcome.infeasible("it diverged"))
        rows.completed(search_id, NAMED["btt"], 2.0, 2)
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["dense"])), Outcome.infeasible("it diverged"))
        (ranked,) = self._best(rows, search_id)
        assert ranked.loss == 1.5
        assert [trial.replicate for trial in ranked.replicates] == [0, 2]

    def test_of_equal_losses_is_the_earlier(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        expected = rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS])
        assert [ranked.trial.id for ranked in self._best(rows, search_id, 500)] == expected

    def test_is_no_longer_than_asked_for(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 100.0 - number) for number, theta in enumerate(THETAS)])
        assert [ranked.loss for ranked in self._best(rows, search_id, 3)] == [86.0, 87.0, 88.0]

    def test_knows_its_own_search_alone(self, rows: Rows) -> None:
        search_id, other = rows.search(WIDE), rows.search(WIDE)
        rows.completed(other, NAMED["btt"], 1.0)
        assert self._best(rows, search_id) == []


class TestMeasurements:
    def test_are_those_of_the_latest_attempt_by_step(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        first = rows.attempt(trial_id)
        with rows.database.write() as session:
            for step in (1, 2, 4):
                trials.record_progress(session, first, point(step, loss=9.0))
            trials.record_loss(session, first, "the node is gone")
        second = rows.attempt(trial_id)
        assert self._curve(rows, trial_id) == []
        with rows.database.write() as session:
            for step in (2, 1):
                trials.record_progress(session, second, point(step, loss=3.0))
        assert self._curve(rows, trial_id) == [(1, 3.0), (2, 3.0)]

    def test_of_a_tenth_attempt_are_not_taken_for_older(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        for number in range(1, 12):
            attempt_id = rows.attempt(trial_id)
            with rows.database.write() as session:
                trials.record_progress(session, attempt_id, point(1, loss=number))
                attempt = repositories.attempt_by_id(session, attempt_id)
                assert attempt is not None
                attempt.state = attempt.state.to(type(attempt.state).LOST)
                attempt.trial.state = attempt.trial.state.to(TrialState.PROPOSED)
        assert self._curve(rows, trial_id) == [(1, 11.0)]

    @staticmethod
    def _curve(rows: Rows, trial_id: str) -> list[tuple[int, float]]:
        with rows.database.read() as session:
            return [(measured.step, measured.loss) for measured in repositories.measurements(session, trial_id)]


class TestHistory:
    def test_lists_all_trials_of_the_search_by_number(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(rows.search(WIDE), NAMED["btt"], 9.0)
        rows.completed(search_id, NAMED["btt"], 1.0)
        rows.trial(search_id, NAMED["dense"])
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["monarch"])), Outcome.infeasible("it diverged"))
        digests = [trial.digest for trial in _trials(rows.database, search_id)]
        with rows.database.read() as session:
            assert repositories.history(session, search_id) == [
                PastTrial(theta=NAMED["btt"], digest=digests[0], state=TrialState.COMPLETED, loss=1.0),
                PastTrial(theta=NAMED["dense"], digest=digests[1], state=TrialState.PROPOSED, loss=None),
                PastTrial(theta=NAMED["monarch"], digest=digests[2], state=TrialState.INFEASIBLE, loss=None),
            ]


class TestTrials:
    def test_that_wait_are_taken_by_number(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        first, second = rows.attempt(rows.trial(search_id, THETAS[0])), rows.trial(search_id, THETAS[1])
        assert self._next(rows, search_id) == second
        with rows.database.write() as session:
            trials.record_loss(session, first, "the node is gone")
        assert self._next(rows, search_id) == f"{search_id}-0"
        rows.attempt(f"{search_id}-0")
        rows.attempt(second)
        assert self._next(rows, search_id) is None

    @staticmethod
    def _next(rows: Rows, search_id: str) -> str | None:
        with rows.database.read() as session:
            trial = repositories.next_proposed(session, search_id)
            return trial.id if trial else None

    def test_are_counted_by_state(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(rows.search(WIDE), NAMED["btt"], 9.0)
        assert self._counts(rows, search_id) == (0, 0, 0, 0)
        rows.completed(search_id, THETAS[0], 1.0)
        rows.outcome(rows.attempt(rows.trial(search_id, THETAS[1])), Outcome.cancelled())
        rows.attempt(rows.trial(search_id, THETAS[2]))
        rows.trial(search_id, THETAS[3])
        assert self._counts(rows, search_id) == (4, 2, 1, 2)

    @staticmethod
    def _counts(rows: Rows, search_id: str) -> tuple[int, int, int, int]:
        with rows.database.read() as session:
            return (
                repositories.num_trials(session, search_id),
                repositories.num_finished(session, search_id),
                repositories.num_trials(session, search_id, TrialState.COMPLETED),
                repositories.num_trials(session, search_id, TrialState.RUNNING, TrialState.PROPOSED),
            )

    def test_that_are_not_there_are_not_found(self, rows: Rows) -> None:
        rows.trial(rows.search(WIDE), NAMED["btt"])
        with pytest.raises(NotFound, match="there is no trial 'ffff-0'"), rows.database.read() as session:
            repositories.trial_by_id(session, "ffff-0")

    def test_come_with_their_search_and_their_attempts_in_order(self, rows: Rows) -> None:
        trial_id = rows.trial(rows.search(WIDE), NAMED["btt"])
        for _ in range(3):
            attempt_id = rows.attempt(trial_id)
            with rows.database.write() as session:
                trials.record_loss(session, attempt_id, "the node is gone")
        with rows.database.read() as session:
            trial = repositories.trial_by_id(session, trial_id)
        assert trial.search.spec == WIDE
        assert [attempt.number for attempt in trial.attempts] == [1, 2, 3]


class TestRunningAttempts:
    def test_are_those_of_one_search_or_of_all(self, rows: Rows) -> None:
        first, second = rows.search(WIDE), rows.search(WIDE)
        rows.completed(first, THETAS[0], 1.0)
        expected = {search_id: rows.attempt(rows.trial(search_id, THETAS[1])) for search_id in (first, second)}
        with rows.database.read() as session:
            for search_id, attempt_id in expected.items():
                (attempt,) = repositories.running_attempts(session, search_id)
                assert (attempt.id, attempt.trial.search_id) == (attempt_id, search_id)
            assert {attempt.id for attempt in repositories.running_attempts(session)} == set(expected.values())


class TestSearches:
    def test_in_some_states_come_oldest_first(self, rows: Rows) -> None:
        made = [rows.search(WIDE, state) for state in SearchState for _ in range(2)]
        with rows.database.read() as session:
            found = repositories.searches_in(session, [SearchState.RUNNING, SearchState.QUEUED])
            assert [search.id for search in found] == made[:4]

    def test_that_are_not_there_are_not_found(self, database: Database) -> None:
        with pytest.raises(NotFound, match="there is no search 'ffff'"), database.read() as session:
            repositories.search_by_id(session, "ffff")
