import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from einlayers.theta import NAMED, Theta
from search.noise import Noise, Sample
from search.racing import Racing
from search.states import TrialState
from search.trial import Outcome
from service import rankings, trials
from service.database import Database
from service.errors import BadPageToken, InvalidValue, NotFound
from service.listings import METRICS
from service.models import ParetoFront, Result, Search, Trial
from service.paging import PageRequest
from service.rankings import RankedStructure, goals_of
from tests.rows import SPEC, TINY, Rows
from tests.service.plain_rows import NOON, plain_search, plain_trial

WIDE = replace(SPEC, proxy=replace(TINY, width=256), replicates=3)
"""A search on models so wide that similar thetas are different structures; nobody trains them here."""

WHOLE = PageRequest(size=500)

THETAS = [*NAMED.values(), *(Theta.normalise((a, 1, 2, 1, a, 1, r / 8)) for a in (2, 3, 4) for r in range(3))]
"""Fifteen structures."""


def _best(rows: Rows, search_id: str, limit: int = 10) -> list[RankedStructure]:
    with rows.database.read() as session:
        return rankings.best(session, search_id, limit)


def _families(rows: Rows, search_id: str, limit: int = 10) -> list[str]:
    return [ranked.trial.family for ranked in _best(rows, search_id, limit)]


def _results(database: Database, search_id: str) -> list[Result]:
    with database.read() as session:
        return list(session.scalars(select(Result).where(Result.search_id == search_id)))


class TestBest:
    def test_ranks_structures_by_their_mean_loss(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        losses = {"dense": (2.0, 1.0, 1.5), "btt": (1.25, 1.25, 1.0), "monarch": (0.5, 9.0, 1.0)}
        for name, values in losses.items():
            for replicate, loss in enumerate(values):
                rows.completed(search_id, NAMED[name], loss, replicate)
        best = _best(rows, search_id)
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
        (ranked,) = _best(rows, search_id)
        assert (ranked.loss, ranked.loss_sd, len(ranked.replicates)) == (1.0, None, 1)

    def test_leaves_out_replicates_without_a_loss(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(search_id, NAMED["btt"], 1.0, 0)
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["btt"], 1)), Outcome.infeasible("it diverged"))
        rows.completed(search_id, NAMED["btt"], 2.0, 2)
        rows.outcome(rows.attempt(rows.trial(search_id, NAMED["dense"])), Outcome.infeasible("it diverged"))
        (ranked,) = _best(rows, search_id)
        assert ranked.loss == 1.5
        assert [trial.replicate for trial in ranked.replicates] == [0, 2]

    def test_of_equal_losses_is_in_the_order_of_the_digests(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 1.0) for theta in THETAS])
        digests = [ranked.trial.digest for ranked in _best(rows, search_id, 500)]
        assert digests == sorted(digests)
        assert [ranked.trial.digest for ranked in _best(rows, search_id, 4)] == digests[:4]

    def test_is_no_longer_than_asked_for(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(theta, 100.0 - number) for number, theta in enumerate(THETAS)])
        assert [ranked.loss for ranked in _best(rows, search_id, 3)] == [86.0, 87.0, 88.0]

    def test_knows_its_own_search_alone(self, rows: Rows) -> None:
        search_id, other = rows.search(WIDE), rows.search(WIDE)
        rows.completed(other, NAMED["btt"], 1.0)
        assert _best(rows, search_id) == []

    def test_forgets_what_is_excluded_until_it_is_included_again(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        first = rows.completed(search_id, NAMED["btt"], 1.0, 0)
        second = rows.completed(search_id, NAMED["btt"], 2.0, 1)
        rows.completed(search_id, NAMED["dense"], 1.25)
        steps: list[tuple[Callable[[Session], object], list[float]]] = [
            (lambda session: trials.exclude(session, first, "a broken disk"), [1.25, 2.0]),
            (lambda session: trials.exclude(session, second, "a broken disk"), [1.25]),
            (lambda session: trials.include(session, first), [1.0, 1.25]),
            (lambda session: trials.include(session, second), [1.5, 1.25]),
        ]
        for step, expected in steps:
            with rows.database.write() as session:
                step(session)
            assert [ranked.loss for ranked in _best(rows, search_id)] == expected

    @pytest.mark.parametrize(
        "asked", [{"replicates": 3}, {"replicates": 1, "racing": Racing(max_replicates=3)}], ids=str
    )
    def test_never_rests_on_a_single_seed_where_more_were_asked_for(self, asked: dict[str, Any], rows: Rows) -> None:
        search_id = rows.search(replace(WIDE, **asked))
        rows.completed(search_id, NAMED["kronecker"], 0.5)
        assert _families(rows, search_id) == ["kronecker"]
        for name, losses in {"btt": (1.0, 1.5), "dense": (1.0, 1.0, 1.0), "monarch": (0.75,)}.items():
            for replicate, loss in enumerate(losses):
                rows.completed(search_id, NAMED[name], loss, replicate)
        assert _families(rows, search_id) == ["dense", "btt", "kronecker", "monarch"]
        for limit in (1, 2, 3):
            assert _families(rows, search_id, limit) == ["dense", "btt", "kronecker", "monarch"][:limit]
        rows.completed(search_id, NAMED["kronecker"], 1.0, 1)
        assert _families(rows, search_id) == ["kronecker", "dense", "btt", "monarch"]

    def test_of_single_seeds_is_by_the_loss_where_no_more_were_asked_for(self, rows: Rows) -> None:
        search_id = rows.search(replace(WIDE, replicates=1))
        rows.completed(search_id, NAMED["btt"], 1.0)
        rows.completed(search_id, NAMED["dense"], 1.5)
        rows.completed(search_id, NAMED["dense"], 1.5, 1)
        assert _families(rows, search_id) == ["btt", "dense"]

    def test_says_how_probable_each_place_is(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        losses = {"btt": (1.0, 1.02), "dense": (1.03, 1.05, 1.03), "monarch": (1.05,)}
        for name, values in losses.items():
            for replicate, loss in enumerate(values):
                rows.completed(search_id, NAMED[name], loss, replicate)
        noise = Noise.of([Sample.of(values) for values in losses.values()])
        assert noise is not None
        btt, dense, monarch = (Sample.of(values) for values in losses.values())
        expected = [noise.better(btt, dense), noise.better(dense, monarch), None]
        assert [ranked.better_than_next for ranked in _best(rows, search_id)] == pytest.approx(expected)
        # What comes after the last that is shown counts all the same.
        assert [ranked.better_than_next for ranked in _best(rows, search_id, 2)] == pytest.approx(expected[:2])

    def test_says_nothing_of_places_where_the_noise_is_unknown(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.all_completed(search_id, [(NAMED["btt"], 1.0), (NAMED["dense"], 2.0)])
        assert [ranked.better_than_next for ranked in _best(rows, search_id)] == [None, None]


class TestResults:
    @settings(max_examples=20)
    @given(losses=st.lists(st.floats(0.1, 10), min_size=1, max_size=6))
    def test_are_the_mean_and_the_squares_around_it(self, losses: list[float], shared: Rows) -> None:
        history = History.on(shared.database)
        for loss in losses:
            history.complete(0, loss)
        (result,) = _results(shared.database, "f")
        assert result.num_trials == len(losses)
        assert result.loss_mean == pytest.approx(statistics.mean(losses), rel=1e-14)
        expected = statistics.pvariance(losses) * len(losses)
        assert result.loss_m2 == pytest.approx(expected, rel=1e-9, abs=1e-13)

    def test_name_the_first_trial_and_the_event_that_changed_them(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        early = rows.attempt(rows.trial(search_id, NAMED["btt"], 0))
        late = rows.completed(search_id, NAMED["btt"], 2.0, 1)
        (result,) = _results(rows.database, search_id)
        assert (result.trial_id, result.num_trials) == (late, 1)
        rows.outcome(early, Outcome.completed(loss=1.0))
        (result,) = _results(rows.database, search_id)
        with rows.database.read() as session:
            trial = session.get_one(Trial, f"{search_id}-0")
        assert (result.trial_id, result.num_trials, result.changed) == (trial.id, 2, trial.changed)


Values = tuple[float, float, float]
"""Omega, psi and macs of a structure."""

# Few values, so that structures tie in each of them; and multiples of 12, whose means over four are exact.
_LOSSES = st.integers(1, 4).map(lambda number: 12.0 * number)
_STRUCTURES = st.tuples(*[st.integers(0, 3).map(float)] * 3)


@dataclass
class History:
    """What happens to one search: trials complete, are excluded and included again. It knows the fronts by definition."""

    database: Database
    structures: Sequence[Values] = ((0.0, 0.0, 0.0),)
    made: list[Trial] = field(default_factory=list)

    @classmethod
    def on(cls, database: Database, structures: Sequence[Values] = ((0.0, 0.0, 0.0),)) -> "History":
        """The search ``f`` without any trials."""
        with database.write() as session:
            for table in (ParetoFront, Result, Trial, Search):
                session.execute(delete(table))
            session.add(plain_search("f"))
        return cls(database, structures)

    def complete(self, structure: int, loss: float, seconds: float | None = 1.0) -> None:
        """One more trial of a structure."""
        structure %= len(self.structures)
        omega, psi, macs = self.structures[structure]
        number = len(self.made)
        # Numbers fall, so that a later trial becomes the first of its structure.
        trial = plain_trial("f", 10_000 - number, replicate=number, digest=f"{structure:032x}", loss=loss)
        trial.omega, trial.psi, trial.macs, trial.seconds = omega, psi, int(macs), seconds
        with self._change() as (session, search):
            trial.changed = search.last_event
            session.add(trial)
            session.flush()
            rankings.add_completed(session, search, [trial])
        self.made.append(trial)

    def toggle(self, place: int) -> int:
        """Exclude one of the trials, or include it again; how many there are."""
        if not self.made:
            return 0
        trial = self.made[place % len(self.made)]
        trial.excluded_at = NOON if trial.excluded_at is None else None
        with self._change() as (session, search):
            session.merge(trial)
            session.flush()
            rankings.rebuild(session, search, trial.digest)
        return len(self.made)

    def front(self, metrics: str) -> list[str]:
        """The digests of the front, in order, as the definition has it."""
        counted: dict[str, list[Trial]] = defaultdict(list)
        for trial in self.made[::-1]:
            if trial.excluded_at is None:
                counted[trial.digest].append(trial)
        points = {}
        for digest, replicates in counted.items():
            point = []
            for goal in goals_of(metrics):
                losses = [Fraction(trial.loss or 0) for trial in replicates]
                own = getattr(replicates[0], goal.metric)
                value = sum(losses) / len(losses) if goal.metric == "loss" else own
                point.append(value if value is None or goal.direction == "min" else -value)
            if None not in point:
                points[digest] = tuple(point)
        beaten = {
            digest
            for digest, point in points.items()
            for other in points.values()
            if other != point and all(a <= b for a, b in zip(other, point, strict=True))
        }
        return sorted(points.keys() - beaten, key=lambda digest: (points[digest], digest))

    @contextmanager
    def _change(self) -> Iterator[tuple[Session, Search]]:
        with self.database.write() as session:
            search = session.get_one(Search, "f")
            search.last_event += 1
            yield session, search


Step = Callable[[History], object]

_STEPS: st.SearchStrategy[Step] = st.one_of(
    st.builds(lambda structure, loss: lambda history: history.complete(structure, loss), st.integers(0, 9), _LOSSES),
    st.builds(lambda structure, loss: lambda history: history.complete(structure, loss), st.integers(0, 9), _LOSSES),
    st.builds(lambda place: lambda history: history.toggle(place), st.integers(0, 40)),
)
_METRICS = st.sampled_from(
    ["loss,macs", "macs,loss", "omega,psi,loss", "psi:min,omega:max", "loss:max,macs,psi,omega", "seconds,loss"]
)


def _digests(database: Database, metrics: str) -> list[str]:
    return [ranked.trial.digest for ranked in _front(database, "f", metrics)]


def _front(database: Database, search_id: str, metrics: str) -> Sequence[RankedStructure]:
    return rankings.pareto(database, search_id, metrics, WHOLE).items


class Interrupted(Database):
    """A database to which something happens just before the next transaction that writes."""

    before_writing: Callable[[], object] | None = None

    @contextmanager
    def write(self) -> Iterator[Session]:
        """See ``Database``."""
        happening, self.before_writing = self.before_writing, None
        if happening is not None:
            happening()
        with super().write() as session:
            yield session


class TestPareto:
    @settings(max_examples=30)
    @given(
        structures=st.lists(_STRUCTURES, min_size=2, max_size=6),
        phases=st.lists(st.tuples(st.lists(_STEPS, min_size=1, max_size=3), _METRICS), max_size=10),
    )
    def test_is_the_front_by_definition_whatever_has_happened_since_it_was_kept(
        self, structures: list[Values], phases: list[tuple[list[Step], str]], shared: Rows
    ) -> None:
        history = History.on(shared.database, structures)
        for steps, metrics in phases:
            for step in steps:
                step(history)
            for asked in (metrics, "loss,macs"):
                assert _digests(shared.database, asked) == history.front(asked)

    def test_shows_mean_losses_and_replicates(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 7)])
        for structure, loss in ((0, 24.0), (0, 48.0), (1, 12.0)):
            history.complete(structure, loss)
        cheap, good = _front(shared.database, "f", "macs,loss")
        assert (cheap.loss, len(cheap.replicates), cheap.trial.macs) == (36.0, 2, 5)
        assert (good.loss, len(good.replicates), good.trial.search.id) == (12.0, 1, "f")

    def test_keeps_equal_structures_side_by_side(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 5), (0, 0, 6)])
        for structure in (1, 0, 2):
            history.complete(structure, 12.0)
        assert _digests(shared.database, "loss,macs") == [f"{0:032x}", f"{1:032x}"]

    def test_leaves_out_what_has_no_value(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 6)])
        history.complete(0, 12.0, seconds=None)
        history.complete(1, 24.0, seconds=3.0)
        assert _digests(shared.database, "seconds,loss") == [f"{1:032x}"]

    def test_finds_what_comes_to_light_when_its_better_is_excluded(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 6), (0, 0, 7)])
        for structure, loss in ((0, 12.0), (1, 24.0), (2, 36.0)):
            history.complete(structure, loss)
        assert _digests(shared.database, "loss,macs") == [f"{0:032x}"]
        history.toggle(0)
        assert _digests(shared.database, "loss,macs") == [f"{1:032x}"]
        history.toggle(0)
        assert _digests(shared.database, "loss,macs") == [f"{0:032x}"]

    def test_finds_what_comes_to_light_when_a_replicate_makes_its_better_worse(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 6)])
        for structure, loss in ((0, 12.0), (1, 24.0)):
            history.complete(structure, loss)
        assert _digests(shared.database, "loss,macs") == [f"{0:032x}"]
        history.complete(0, 48.0)
        assert _digests(shared.database, "loss,macs") == [f"{1:032x}", f"{0:032x}"]

    def test_is_not_kept_over_what_happened_while_it_was_computed(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 6)])
        for structure, loss in ((0, 12.0), (1, 24.0)):
            history.complete(structure, loss)
        interrupted = Interrupted(shared.database.engine.url.render_as_string(hide_password=False))
        # An exclusion, and an answer that knows of it, come between the computation and the writing of its outcome.
        interrupted.before_writing = lambda: [history.toggle(0), _front(shared.database, "f", "loss,macs")]
        assert [ranked.loss for ranked in _front(interrupted, "f", "loss,macs")] == [12.0]
        assert _digests(shared.database, "loss,macs") == [f"{1:032x}"]
        # And the same without that answer.
        history.toggle(0)
        interrupted.before_writing = lambda: history.toggle(0)
        assert [ranked.loss for ranked in _front(interrupted, "f", "loss,macs")] == [12.0]
        assert _digests(shared.database, "loss,macs") == [f"{1:032x}"]
        interrupted.close()

    def test_is_kept_so_that_the_next_answer_reads_next_to_nothing(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 5), (0, 0, 6)])
        history.complete(0, 12.0)
        history.complete(1, 24.0)
        _digests(shared.database, "loss,macs")
        kept = self._kept(shared.database)
        assert [(front.metrics, front.seen, front.digests) for front in kept] == [
            ("loss:min,macs:min", 2, [f"{0:032x}"])
        ]
        _digests(shared.database, "macs:min, loss")
        assert [front.seen for front in self._kept(shared.database)] == [2]

    @pytest.mark.parametrize("metrics", ["loss,macs", "psi,loss,omega"])
    def test_is_read_page_by_page(self, shared: Rows, metrics: str) -> None:
        history = History.on(shared.database, [(n, 0.05 * (n // 2), 20 - n) for n in range(12)])
        for structure in range(12):
            history.complete(structure, 1.0 + structure // 2)
        whole = _front(shared.database, "f", metrics)
        assert len(whole) >= 6
        pages: list[Sequence[RankedStructure]] = []
        token = None
        while not pages or token:
            page = rankings.pareto(shared.database, "f", metrics, PageRequest(size=4, token=token))
            pages.append(page.items)
            token = page.next_token
        assert [len(page) for page in pages[:-1]] == [4] * (len(pages) - 1)
        read = [ranked for page in pages for ranked in page]
        assert [ranked.trial.digest for ranked in read] == [ranked.trial.digest for ranked in whole]
        assert [ranked.rank for ranked in read] == list(range(1, len(whole) + 1))

    def test_goes_on_after_what_was_seen_whatever_came_since(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 30), (0, 0, 20), (0, 0, 10), (0, 0, 25)])
        for structure, loss in ((0, 1.0), (1, 2.0), (2, 3.0)):
            history.complete(structure, loss)
        first = rankings.pareto(shared.database, "f", "loss,macs", PageRequest(size=2))
        history.complete(3, 1.5)
        history.toggle(1)
        rest = rankings.pareto(shared.database, "f", "loss,macs", PageRequest(size=2, token=first.next_token))
        assert [ranked.loss for ranked in rest.items] == [3.0]
        assert rest.next_token is None

    def test_ends_where_nothing_is_left_of_it(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 30), (0, 0, 20)])
        for structure in range(2):
            history.complete(structure, 1.0 + structure)
        first = rankings.pareto(shared.database, "f", "loss,macs", PageRequest(size=1))
        for place in range(2):
            history.toggle(place)
        rest = rankings.pareto(shared.database, "f", "loss,macs", PageRequest(size=1, token=first.next_token))
        assert (list(rest.items), rest.next_token) == ([], None)

    def test_takes_no_token_of_another_list(self, shared: Rows) -> None:
        history = History.on(shared.database, [(0, 0, 30), (0, 0, 20), (0, 0, 10)])
        for structure in range(3):
            history.complete(structure, 1.0 + structure)
        token = rankings.pareto(shared.database, "f", "loss,macs", PageRequest(size=1)).next_token
        for metrics, other in (
            ("macs,loss", token),
            ("loss,macs:max", token),
            ("loss,macs", "x"),
            ("loss,macs", "W10"),
        ):
            with pytest.raises(BadPageToken):
                rankings.pareto(shared.database, "f", metrics, PageRequest(size=1, token=other))

    def test_of_a_search_without_results_is_empty(self, shared: Rows) -> None:
        History.on(shared.database)
        assert _digests(shared.database, "loss,macs") == _digests(shared.database, "loss,macs") == []

    def test_of_no_search_is_not_found(self, shared: Rows) -> None:
        with pytest.raises(NotFound):
            _front(shared.database, "eeee", "loss,macs")

    @staticmethod
    def _kept(database: Database) -> list[ParetoFront]:
        with database.read() as session:
            return list(session.scalars(select(ParetoFront)))


class TestGoals:
    def test_maximise_psi_and_minimise_the_rest_where_nothing_is_said(self) -> None:
        for one, other in permutations(METRICS, 2):
            directions = [goal.direction for goal in goals_of(f"{one},{other}")]
            assert directions == ["max" if metric == "psi" else "min" for metric in (one, other)]

    def test_are_turned_round_by_name(self) -> None:
        assert [str(goal) for goal in goals_of("psi:min, loss:max,nu:min,omega")] == [
            *("psi:min", "loss:max", "nu:min", "omega:min")
        ]

    @pytest.mark.parametrize(
        "metrics",
        [
            *("", "loss", "loss,", "loss,loss", "loss:min,loss:max", "loss,width", "loss,macs:up", "Loss,macs"),
            *("loss,macs,psi,nu,omega", "loss;macs", "loss,macs:", "loss,macs:min:max", "loss,\0", ",", "loss,,macs"),
        ],
    )
    def test_of_anything_else_are_refused(self, metrics: str) -> None:
        with pytest.raises(InvalidValue) as caught:
            goals_of(metrics)
        (problem,) = caught.value.problems
        assert problem.pointer == "?metrics"
        assert "two to four different ones of loss, omega, psi" in problem.detail


class TestAnswers:
    def test_follow_the_use_cases(self, rows: Rows) -> None:
        search_id = rows.search(WIDE)
        rows.completed(search_id, NAMED["dense"], 1.0)
        good = rows.completed(search_id, NAMED["btt"], 0.5)

        def families() -> list[str]:
            return [ranked.trial.family for ranked in _front(rows.database, search_id, "loss,params")]

        assert families() == ["btt"]
        with rows.database.write() as session:
            trials.exclude(session, good, "trained on the wrong text")
        assert families() == ["dense"]
        with rows.database.write() as session:
            trials.include(session, good)
        assert families() == ["btt"]
        rows.completed(search_id, NAMED["btt"], 3.0, 1)
        assert families() == ["dense", "btt"]
        with rows.database.read() as session:
            assert session.get_one(Trial, good).state is TrialState.COMPLETED
