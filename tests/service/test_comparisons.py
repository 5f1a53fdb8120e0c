import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from sqlalchemy import insert, text

from einlayers.theta import NAMED
from search.noise import Noise, Sample
from search.racing import Racing
from search.spec import SearchSpec
from search.states import TrialState
from service import comparisons, rankings, repositories, trials
from service.comparisons import Comparison
from service.database import Database
from service.errors import InvalidValue, NotFound
from service.models import Result
from tests.rows import SPEC, TINY, Rows
from tests.service.plain_rows import plain_fidelity, plain_search, plain_trial
from tests.service.queries import query_plan, statements_of

WIDE = replace(SPEC, proxy=replace(TINY, width=256))
"""A search on models so wide that similar thetas are different structures; nobody trains them here."""

LOSSES = {"btt": (1.0, 1.02), "dense": (1.03, 1.05, 1.03), "monarch": (1.05,)}


def _search(rows: Rows, losses: Mapping[str, Sequence[float]] = LOSSES, spec: SearchSpec = WIDE) -> str:
    search_id = rows.search(spec)
    for name, values in losses.items():
        for replicate, loss in enumerate(values):
            rows.completed(search_id, NAMED[name], loss, replicate)
    return search_id


def _noise(rows: Rows, search_id: str) -> Noise | None:
    with rows.database.read() as session:
        return comparisons.noise_of(session, repositories.search_by_id(session, search_id))


def _confidence(rows: Rows, search_id: str) -> float | None:
    with rows.database.read() as session:
        return comparisons.confidence(session, search_id)


def _compare(rows: Rows, search_id: str, one: str, other: str) -> Comparison:
    with rows.database.read() as session:
        return comparisons.compare(session, search_id, one, other)


class TestNoise:
    def test_is_pooled_over_what_was_trained_again(self, rows: Rows) -> None:
        noise = _noise(rows, _search(rows))
        assert noise == Noise.of([Sample.of(LOSSES["dense"]), Sample.of(LOSSES["btt"])])
        # Three degrees of freedom beside four at 0.02.
        logs = [[math.log(loss) for loss in LOSSES[name]] for name in ("btt", "dense")]
        squares = sum((log - sum(own) / len(own)) ** 2 for own in logs for log in own)
        assert noise is not None
        assert noise.sd == pytest.approx(math.sqrt((squares + 4 * 0.02**2) / 7), rel=0.02)

    def test_begins_with_what_is_known_of_the_proxy(self, rows: Rows) -> None:
        search_id = _search(rows, {"btt": (1.0,), "dense": (1.1,)})
        assert _noise(rows, search_id) is None
        with rows.database.write() as session:
            session.add(plain_fidelity("a", WIDE.proxy, 0.125))
        noise = _noise(rows, search_id)
        assert noise is not None
        assert noise.sd == pytest.approx(0.125)
        stated = _noise(rows, _search(rows, LOSSES, replace(WIDE, racing=Racing(sd=0.5))))
        assert stated == Noise.of([Sample.of(LOSSES["dense"]), Sample.of(LOSSES["btt"])], expected_sd=0.5)

    def test_is_plain_where_any_mean_is_not_positive(self, rows: Rows) -> None:
        noise = _noise(rows, _search(rows, {"btt": (0.0,), "dense": (1.0, 2.0)}))
        assert noise is not None
        assert (noise.scale, noise.freedom) == ("plain", 1)
        assert noise.sd == pytest.approx(math.sqrt(0.5))

    def test_forgets_what_is_excluded(self, rows: Rows) -> None:
        search_id = _search(rows, {"btt": (1.0, 1.02), "dense": (1.1,)})
        assert _noise(rows, search_id) is not None
        with rows.database.write() as session:
            trials.exclude(session, f"{search_id}-1", "a mistake")
        assert _noise(rows, search_id) is None
        assert _confidence(rows, search_id) is None


class TestConfidence:
    def test_is_that_of_the_first_against_all_others(self, rows: Rows) -> None:
        search_id = _search(rows)
        noise = _noise(rows, search_id)
        assert noise is not None
        btt, dense, monarch = (Sample.of(values) for values in LOSSES.values())
        assert _confidence(rows, search_id) == pytest.approx(noise.confidence(btt, [dense, monarch]))

    def test_counts_single_seeds_that_look_better_than_the_first(self, rows: Rows) -> None:
        found = {}
        for name, spec in {"asked": replace(WIDE, replicates=2), "not asked": WIDE}.items():
            search_id = _search(rows, {"btt": (1.0, 1.02), "dense": (0.9,)}, spec)
            found[name] = _confidence(rows, search_id)
            with rows.database.read() as session:
                first = rankings.best(session, search_id, 1)[0]
            assert first.trial.family == ("btt" if name == "asked" else "dense")
        assert found["asked"] is not None
        assert found["not asked"] is not None
        assert found["asked"] < 0.1 < 0.9 < found["not asked"]

    def test_of_nothing_is_unknown_and_of_one_structure_is_whole(self, rows: Rows) -> None:
        assert _confidence(rows, rows.search(replace(WIDE, racing=Racing(sd=0.1)))) is None
        assert _confidence(rows, _search(rows, {"btt": (1.0,)})) is None
        assert _confidence(rows, _search(rows, {"btt": (1.0, 1.1)})) == 1.0

    def test_of_no_search_is_not_found(self, rows: Rows) -> None:
        with pytest.raises(NotFound, match="there is no search"):
            _confidence(rows, "eeee")

    def test_counts_all_that_may_lie_beyond_what_is_read(self, database: Database) -> None:
        fill(database, num_structures=3000, num_replicated=150, step=1e-4)
        with database.read() as session:
            assert comparisons.confidence(session, "f") == 0.0


class TestLowest:
    def test_are_those_with_replicates_first_and_all_are_read_off_an_index(self, database: Database) -> None:
        fill(database, num_structures=3000, num_replicated=150)
        with database.write() as session:
            # Postgres chooses by what it knows of the table, and would look itself now or a minute later.
            session.execute(text("ANALYZE results"))
        with database.read() as session, statements_of(database) as statements:
            search = repositories.search_by_id(session, "f")
            found = comparisons.lowest(session, search, 160)
            comparisons.confidence(session, "f")
        assert [sample.num for sample in found.values()] == [2] * 150 + [1] * 10
        assert list(found) == [f"{i:032x}" for i in (*range(2850, 3000), *range(10))]
        asked = [(statement, given) for statement, given in statements if "FROM results" in statement]
        assert len(asked) >= 5
        with database.read() as session:
            for statement, given in asked:
                plan = query_plan(session, database.is_sqlite, statement, given)
                of_several = "num_trials > 1" in statement
                assert ("ix_results_with_replicates" in plan) == of_several, statement
                assert "INDEX" in plan.upper()
                assert not any(way in plan for way in ("B-TREE FOR ORDER BY", "Sort", "Seq Scan"))


def fill(database: Database, *, num_structures: int, num_replicated: int, step: float = 1e-3) -> None:
    """A search of structures whose means rise by steps, of which the last have two trials."""
    with database.write() as session:
        session.add(plain_search("f", replace(SPEC, racing=Racing()), counts={TrialState.COMPLETED: num_structures}))
        session.add(plain_trial("f", 0))
        session.flush()
        first = num_structures - num_replicated
        results = [
            {"search_id": "f", "digest": f"{i:032x}", "trial_id": "f-0", "loss_mean": 1 + i * step, "changed": 0}
            | {"num_trials": 1 + (i >= first), "loss_m2": 1e-4 * (i >= first)}
            for i in range(num_structures)
        ]
        session.execute(insert(Result), results)


class TestCompare:
    def test_tells_which_is_better_and_by_how_much(self, rows: Rows) -> None:
        search_id = _search(rows)
        found = _compare(rows, search_id, f"{search_id}-1", f"{search_id}-3")
        btt, dense = Sample.of(LOSSES["btt"]), Sample.of(LOSSES["dense"])
        assert found.noise is not None
        assert [trial.number for trial in found.trials] == [1, 3]
        assert [sample.num for sample in found.samples] == [2, 3]
        assert found.probability == pytest.approx(found.noise.better(btt, dense))
        assert found.difference is not None
        assert found.difference.value == pytest.approx(math.log(btt.mean / dense.mean))
        turned = _compare(rows, search_id, f"{search_id}-3", f"{search_id}-0")
        assert turned.probability == pytest.approx(1 - (found.probability or 0))

    def test_tells_nothing_where_the_noise_is_unknown(self, rows: Rows) -> None:
        search_id = _search(rows, {"btt": (1.0,), "dense": (1.1,)})
        found = _compare(rows, search_id, f"{search_id}-0", f"{search_id}-1")
        assert (found.probability, found.difference, found.noise) == (None, None, None)

    def test_needs_two_structures_of_the_search_that_have_losses(self, rows: Rows) -> None:
        search_id, other = _search(rows), _search(rows)
        waiting = rows.trial(search_id, NAMED["kronecker"])
        with pytest.raises(NotFound, match="there is no search"):
            _compare(rows, "eeee", f"{search_id}-0", f"{search_id}-2")
        for missing in (f"{search_id}-77", f"{other}-2", waiting):
            with pytest.raises(NotFound, match=missing):
                _compare(rows, search_id, f"{search_id}-0", missing)
        with pytest.raises(InvalidValue) as refused:
            _compare(rows, search_id, f"{search_id}-0", f"{search_id}-1")
        (problem,) = refused.value.problems
        assert (problem.pointer, "another structure" in problem.detail) == ("?b", True)
