"""Many fits at once, against SciPy's one by one."""

import numpy as np
import pytest
from scipy.optimize import least_squares

from search.analysis.robust_fits import Values, fit_robustly

X_P = np.linspace(0, 3, 12)
DELTA = 0.05


def decay(parameters_BK: Values) -> tuple[Values, Values]:
    """``a exp(-b x) + c``, with b by its logarithm."""
    a, log_b, c = (each[:, None] for each in parameters_BK.T)
    fallen = np.exp(-np.exp(log_b) * X_P)
    slopes = [fallen, -a * fallen * np.exp(log_b) * X_P, np.ones_like(fallen)]
    return a * fallen + c, np.stack(slopes, axis=-1)


@pytest.fixture(scope="module")
def y_bp() -> Values:
    """With noise, and in every row a point that went wrong."""
    draw = np.random.default_rng(0)
    truth_BK = np.column_stack([draw.uniform(1, 3, 20), draw.uniform(-1, 1, 20), draw.uniform(-1, 1, 20)])
    values_BP = decay(truth_BK)[0] + 0.02 * draw.standard_normal((20, 12))
    values_BP[np.arange(20), draw.integers(12, size=20)] += 1.0
    return values_BP


class TestFit:
    def test_comes_to_the_loss_that_scipy_finds(self, y_bp: Values) -> None:
        starts_BK = np.tile([1.0, 0.0, 0.0], (20, 1))
        found_BK, losses = fit_robustly(decay, y_bp, starts_BK, delta=DELTA, bound=60.0)
        for y_P, found_K, loss in zip(y_bp, found_BK, losses, strict=True):

            def left(parameters_K: Values, y_P: Values = y_P) -> Values:
                return np.asarray(decay(parameters_K[None])[0][0] - y_P)

            known = least_squares(left, starts_BK[0], loss="huber", f_scale=DELTA, xtol=1e-12, ftol=1e-12)
            assert loss == pytest.approx(known.cost, rel=1e-6)
            assert found_K == pytest.approx(known.x, rel=1e-3, abs=1e-3)

    def test_of_each_is_its_own(self, y_bp: Values) -> None:
        starts_BK = np.random.default_rng(1).uniform(0, 1, (20, 3))
        together, losses = fit_robustly(decay, y_bp, starts_BK, delta=DELTA, bound=60.0)
        for i in range(20):
            alone, loss = fit_robustly(decay, y_bp[i : i + 1], starts_BK[i : i + 1], delta=DELTA, bound=60.0)
            assert alone[0] == pytest.approx(together[i], rel=1e-9)
            assert loss[0] == pytest.approx(losses[i], rel=1e-9)

    def test_of_exact_points_is_exact(self) -> None:
        truth_BK = np.array([[2.0, 0.5, -1.0]])
        found_BK, losses = fit_robustly(decay, decay(truth_BK)[0], np.array([[1.0, 0, 0]]), delta=DELTA, bound=60.0)
        assert found_BK[0] == pytest.approx(truth_BK[0], abs=1e-7)
        assert losses[0] < 1e-15

    def test_begins_where_it_is_told_and_leaves_that_alone(self, y_bp: Values) -> None:
        starts_BK = np.tile([1.0, 0.0, 0.0], (20, 1))
        fit_robustly(decay, y_bp, starts_BK, delta=DELTA, bound=60.0)
        assert (starts_BK == [1.0, 0.0, 0.0]).all()

    def test_stays_within_the_bound(self) -> None:
        # A straight line: the slower the decay and the larger its scale, the better.
        found_BK, _ = fit_robustly(decay, 5 - X_P[None], np.array([[1.0, 0, 0]]), delta=DELTA, bound=4.0)
        assert np.abs(found_BK).max() <= 4.0

    def test_takes_no_step_to_what_no_float_holds(self) -> None:
        found_BK, losses = fit_robustly(
            decay, np.full((1, 12), 3.0), np.array([[1.0, 300.0, 0]]), delta=DELTA, bound=1e3
        )
        assert np.isfinite(found_BK).all()
        assert losses[0] < 1.0
