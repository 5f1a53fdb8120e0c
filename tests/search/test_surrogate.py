"""The Gaussian process, held against scikit-learn's, against integrals, and against differences."""

import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import approx_fprime
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor  # type: ignore[import-untyped]  # it ships no types
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel  # type: ignore[import-untyped]

from search.surrogate import Surrogate, Values, improbability, log_gain


def _tried(number: int, num_features: int = 3) -> tuple[Values, Values]:
    """Points, and a bowl over them that the last feature has no part in."""
    features = np.random.default_rng(0).random((number, num_features))
    return features, ((features[:, :-1] - 0.4) ** 2).sum(axis=1)


def _integral(z: float) -> float:
    """The expected excess of a standard normal variable over -z."""
    return float(quad(lambda x: (x + z) * norm.pdf(x), -z, max(-z, 0) + 12, epsabs=0)[0])


@pytest.fixture(scope="module")
def model() -> Surrogate:
    return Surrogate.fit(*_tried(25))


class TestSurrogate:
    def test_says_what_the_process_of_scikit_learn_says(self, model: Surrogate) -> None:
        features, values = _tried(25)
        others = np.random.default_rng(1).random((40, 3))
        kernel = ConstantKernel(math.exp(model.logs[-2])) * Matern(np.exp(model.logs[:-2]), nu=2.5)
        noise = WhiteKernel(math.exp(model.logs[-1]) + 1e-6)
        theirs = GaussianProcessRegressor(kernel + noise, optimizer=None, alpha=0.0)
        theirs.fit(features, (values - values.mean()) / values.std())
        mean, sd = theirs.predict(others, return_std=True)
        ours = model.predict(others)
        assert ours[0] == pytest.approx(values.mean() + values.std() * mean, rel=1e-6, abs=1e-9)
        # Theirs counts the noise of another measurement.
        without = np.sqrt(sd**2 - noise.noise_level)
        assert ours[1] == pytest.approx(values.std() * without, rel=1e-4, abs=1e-7)

    def test_passes_near_what_was_measured_and_knows_little_of_what_is_far(self, model: Surrogate) -> None:
        features, values = _tried(25)
        mean, sd = model.predict(features)
        assert np.abs(mean - values).max() < 0.1 * values.std()
        assert sd.max() < 0.2 * values.std() < model.predict(np.full((1, 3), 5.0))[1][0]
        assert model.lowest == pytest.approx(mean.min(), rel=1e-6, abs=1e-9)

    def test_finds_out_which_features_matter(self) -> None:
        one, other, none = Surrogate.fit(*_tried(60)).logs[:3]
        assert none > max(one, other) + 1

    def test_finds_out_how_noisy_values_are(self) -> None:
        features, values = _tried(120)
        noisy = values + np.random.default_rng(2).normal(0, 0.5 * values.std(), len(values))
        sds = [
            model.scale * math.exp(model.logs[-1] / 2)
            for model in (Surrogate.fit(features, v) for v in (values, noisy))
        ]
        assert sds[0] < 0.1 * values.std()
        assert 0.3 * values.std() < sds[1] < 0.7 * values.std()

    @pytest.mark.parametrize("number", [1, 2, 10])
    def test_is_flat_where_all_values_are_equal(self, number: int) -> None:
        features, _ = _tried(number)
        mean, sd = Surrogate.fit(features, np.full(number, 3.0)).predict(features + 0.1)
        assert mean == pytest.approx(np.full(number, 3.0))
        assert np.isfinite(sd).all()

    def test_takes_the_same_design_many_times(self) -> None:
        features = np.full((30, 2), 0.5)
        mean, _ = Surrogate.fit(features, np.array([1.0, 2.0] * 15)).predict(features[:1])
        assert mean[0] == pytest.approx(1.5, abs=0.01)

    def test_is_surer_where_it_is_told_what_it_expects_and_expects_the_same(self, model: Surrogate) -> None:
        there, elsewhere = np.array([[0.9, 0.1, 0.9]]), np.random.default_rng(3).random((20, 3))
        told = model.with_expected(there)
        assert told.predict(there)[1][0] < 0.5 * model.predict(there)[1][0]
        assert told.predict(elsewhere)[0] == pytest.approx(model.predict(elsewhere)[0], abs=1e-6)
        assert (told.predict(elsewhere)[1] <= model.predict(elsewhere)[1] + 1e-9).all()


class TestLogImprovement:
    def test_is_the_logarithm_of_the_integral(self, model: Surrogate) -> None:
        others = np.random.default_rng(4).random((20, 3))
        for mean, sd, found in zip(*model.predict(others), model.log_improvement(others), strict=True):
            expected = _integral((model.lowest - mean) / sd) * sd
            if expected > 1e-8:
                assert found == pytest.approx(math.log(expected), abs=1e-3)


class TestLogGain:
    @pytest.mark.parametrize("z", [-8.0, -3.0, -0.5, 0.0, 0.5, 3.0, 40.0])
    def test_is_the_logarithm_of_the_integral(self, z: float) -> None:
        assert log_gain(np.array([z]))[0] == pytest.approx(math.log(_integral(z)), abs=1e-6)

    @pytest.mark.parametrize("z", [-50.0, -9e3, -2e4, -1e8])
    def test_is_the_first_term_of_the_series_far_below(self, z: float) -> None:
        expected = -(z**2) / 2 - math.log(2 * math.pi) / 2 - 2 * math.log(-z)
        assert log_gain(np.array([z]))[0] == pytest.approx(expected, abs=4 / z**2 + 1e-7 + 1e-15 * z**2)

    def test_grows(self) -> None:
        gains = log_gain(np.array([*-np.geomspace(1e6, 1e-6, 200), *np.geomspace(1e-6, 1e6, 200)]))
        assert (np.diff(gains) > 0).all()


def _improbability(logs: Values, squares: Values, values: Values) -> float:
    return improbability(logs, squares, values)[0]


@pytest.mark.parametrize("number", [1, 8, 30])
def test_the_gradient_of_the_improbability_is_that_of_its_differences(number: int) -> None:
    features, values = _tried(number)
    squares = (features[:, None] - features[None]) ** 2
    values = (values - values.mean()) / max(values.std(), 1e-12)
    for logs in np.random.default_rng(5).normal(-1, 0.7, (5, 5)):
        differences = approx_fprime(logs, _improbability, 1e-6, squares, values)
        assert improbability(logs, squares, values)[1] == pytest.approx(differences, rel=1e-3, abs=1e-3)
