"""The growth of a search's front, against volumes that are worked out by hand."""

import math
from datetime import timedelta
from typing import Any, get_args

import pytest

from search.analysis.hypervolume import MAX_FRONT
from search.states import TrialState
from service.errors import InvalidValue, NotFound
from service.hypervolumes import MAX_POINTS, CostMetric, Hypervolumes, over_time
from service.listings import METRICS
from tests.rows import Rows
from tests.service.plain_rows import NOON, plain_search, plain_trial

E = math.e


def searched(rows: Rows, *trials: dict[str, Any]) -> str:
    """A search whose trials ended one after the other, a minute apart, the last proposed one first."""
    with rows.database.write() as session:
        session.add(plain_search("a"))
        session.flush()
        for place, values in enumerate(trials):
            ended = {"finish_order": place, "finished_at": NOON + timedelta(minutes=place), "train_flops": 10.0}
            session.add(plain_trial("a", len(trials) - 1 - place, **ended, **values))
    return "a"


def at(loss: float, macs: int, **values: Any) -> dict[str, Any]:
    return {"loss": loss, "macs": macs, **values}


def grown(rows: Rows, metrics: str = "loss,macs", reference: str | None = None) -> Hypervolumes:
    with rows.database.read() as session:
        return over_time(session, "a", metrics, reference)


def volumes(found: Hypervolumes) -> list[tuple[int, float]]:
    """To nine digits, the numbers of trials and the volumes that they made."""
    return [(point.number, round(point.hypervolume, 9)) for point in found.points]


def rounded(*expected: tuple[int, float]) -> list[tuple[int, float]]:
    return [(number, round(volume, 9)) for number, volume in expected]


class TestGrowth:
    def test_is_the_area_of_logarithms_after_each_trial_that_made_it_larger(self, rows: Rows) -> None:
        # Of loss and MACs, by how many factors of e they are below e**2 and 2**40.
        unit = f"{E**2!r},{float(2**40)!r}"
        log2 = math.log(2)
        searched(
            rows,
            at(E, 2**38),  # a box of 1 by 2 log 2
            at(E, 2**39),  # dominated
            at(1.0, 2**39),  # adds 1 by log 2
            at(E**3, 1),  # beyond the reference
            at(1.0, 2**38),  # adds 1 by log 2
            at(2.0, 2**39),  # dominated, and the last
        )
        found = grown(rows, reference=unit)
        assert found.reference == {"loss": E**2, "macs": 2.0**40}
        assert volumes(found) == rounded((5, 2 * log2), (3, 3 * log2), (1, 4 * log2), (0, 4 * log2))
        assert [point.finished_at for point in found.points] == [NOON + timedelta(minutes=m) for m in (0, 2, 4, 5)]
        assert [point.train_flops for point in found.points] == [10.0, 30.0, 50.0, 60.0]

    def test_is_measured_from_beyond_the_worst_where_no_reference_is_given(self, rows: Rows) -> None:
        searched(rows, at(2.0, 100), at(1.0, 400))
        found = grown(rows)
        assert found.reference is not None
        assert (found.reference["loss"], found.reference["macs"]) == pytest.approx((2.2, 440))
        margin = math.log(1.1)
        first = margin * math.log(4.4)
        assert volumes(found) == rounded((1, first), (0, first + math.log(2) * margin))

    def test_takes_the_metrics_in_any_order(self, rows: Rows) -> None:
        searched(rows, at(2.0, 100, params=7), at(1.0, 400, params=9), at(1.5, 90, params=8))
        found, other = grown(rows, "loss,macs,params"), grown(rows, "params, loss, macs")
        assert volumes(found) == volumes(other)
        assert found.reference == other.reference

    def test_counts_measured_metrics_where_there_are_any(self, rows: Rows) -> None:
        measured = {"latency": 0.25, "peak_memory": 1000}
        searched(rows, at(2.0, 1), at(2.0, 1, **measured), at(3.0, 1, latency=0.5, peak_memory=4000))
        found = grown(rows, "loss,latency,peak_memory", "3,0.5,4000")
        volume = math.log(1.5) * math.log(2) * math.log(4)
        assert volumes(found) == rounded((1, volume), (0, volume))

    @pytest.mark.parametrize(
        "uncounted",
        [
            at(0.1, 1, excluded_at=NOON),
            at(0.1, 1, state=TrialState.FAILED),
            {"loss": None, "macs": 1, "state": TrialState.PRUNED, "expected_loss": 0.1},
            at(0.0, 1),
            at(-1.0, 1),
        ],
        ids=["excluded", "failed", "pruned", "of no loss at all", "negative"],
    )
    def test_counts_the_compute_of_what_dominates_nothing(self, uncounted: dict[str, Any], rows: Rows) -> None:
        searched(rows, uncounted, at(1.0, 50))
        (point,) = grown(rows, reference=f"{E},{50 * E!r}").points
        assert (point.number, point.train_flops) == (0, 20.0)
        assert point.hypervolume == pytest.approx(1.0)

    def test_leaves_out_what_has_not_ended(self, rows: Rows) -> None:
        searched(rows, at(1.0, 50))
        with rows.database.write() as session:
            session.add(plain_trial("a", 7, state=TrialState.RUNNING, loss=None))
        assert [point.number for point in grown(rows).points] == [0]

    def test_of_no_trials_has_no_reference(self, rows: Rows) -> None:
        searched(rows)
        assert grown(rows) == Hypervolumes(reference=None, points=[])
        assert grown(rows, reference="1,2") == Hypervolumes(reference={"loss": 1.0, "macs": 2.0}, points=[])

    def test_of_a_search_that_is_not_there_is_not_found(self, rows: Rows) -> None:
        with pytest.raises(NotFound):
            grown(rows)


# How many trials there are is no matter of the database.
@pytest.mark.parametrize("server", ["sqlite"], indirect=True)
class TestSize:
    def test_of_an_answer_is_bounded_and_its_ends_are_kept(self, rows: Rows) -> None:
        steps = MAX_POINTS + 500
        searched(rows, *(at(1.0 + place, steps - place) for place in range(steps)))
        found = grown(rows).points
        assert len(found) == MAX_POINTS
        assert (found[0].number, found[-1].number) == (steps - 1, 0)
        heights = [point.hypervolume for point in found]
        assert heights == sorted(set(heights))

    def test_of_a_front_of_three_metrics_is_bounded_too(self, rows: Rows) -> None:
        searched(rows, *(at(1.0 + place, 1000 - place, params=1 + place) for place in range(MAX_FRONT + 1)))
        assert len(grown(rows).points) == MAX_FRONT + 1
        with pytest.raises(InvalidValue) as caught:
            grown(rows, "loss,macs,params")
        (problem,) = caught.value.problems
        assert problem.pointer == "?metrics"
        assert "two, or metrics whose front has no more than 500 trials, got 'loss,macs,params'" in problem.detail


class TestParameters:
    @pytest.mark.parametrize(
        "metrics",
        ["", "loss", "loss,loss", "loss,psi", "loss,macs:min", "loss,macs,", "loss,params,macs,latency,seconds"],
    )
    def test_that_are_no_metrics_are_refused(self, metrics: str, rows: Rows) -> None:
        with pytest.raises(InvalidValue) as caught:
            grown(rows, metrics)
        (problem,) = caught.value.problems
        assert problem.pointer == "?metrics"
        assert "two to four different ones of loss, params, macs, latency, peak_memory, seconds" in problem.detail

    @pytest.mark.parametrize("reference", ["", "1", "1,2,3", "1,x", "0,1", "-1,1", "nan,1", "inf,1", "1;2"])
    def test_that_are_no_reference_are_refused(self, reference: str, rows: Rows) -> None:
        with pytest.raises(InvalidValue) as caught:
            grown(rows, reference=reference)
        (problem,) = caught.value.problems
        assert problem.pointer == "?reference"
        assert "positive numbers by commas, one each for loss, macs" in problem.detail

    def test_name_metrics_that_lists_know(self) -> None:
        assert set(get_args(CostMetric)) < set(METRICS)
