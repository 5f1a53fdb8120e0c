"""Laws fitted to losses that follow one, whose constants are known."""

import math

import numpy as np
import pytest

from einlayers.errors import FieldError
from search.analysis.power_laws import fit_power_law, fit_power_laws, fit_size_law
from search.studies.laws import PowerLaw, Range, SizeLaw
from tests import golden

COMPUTE = [1e9 * 2**k for k in range(8)]
SIZES = [(params, data) for params in (1e4, 3e4, 1e5, 3e5) for data in (1e6, 1e7, 1e8)]


def power_law(irreducible: float, scale: float, exponent: float) -> PowerLaw:
    return PowerLaw(irreducible=irreducible, scale=scale, exponent=exponent, compute=Range(low=1e9, high=1.28e11))


class TestPowerLaw:
    @pytest.mark.parametrize("fact", golden.compute_multipliers())
    def test_tells_the_compute_for_a_loss(self, fact: golden.ComputeMultiplier) -> None:
        dense, structured = (power_law(0.0, *constants) for constants in (fact.dense, fact.structured))
        assert dense.compute_for(fact.loss) == pytest.approx(fact.dense_compute, rel=1e-9)
        assert structured.compute_for(fact.loss) == pytest.approx(fact.structured_compute, rel=1e-9)
        assert dense.compute_for(fact.loss) / structured.compute_for(fact.loss) == pytest.approx(
            fact.multiplier, rel=1e-9
        )

    def test_knows_losses_that_no_compute_is_enough_for(self) -> None:
        law = power_law(0.5, 10.0, 0.2)
        assert law.compute_for(0.5) == math.inf
        assert law.compute_for(law.loss(3e10)) == pytest.approx(3e10, rel=1e-9)

    def test_knows_where_the_runs_were(self) -> None:
        law = fit_power_law(COMPUTE, [power_law(0.1, 10.0, 0.2).loss(c) for c in COMPUTE])
        assert [law.compute.holds(c) for c in (COMPUTE[0], COMPUTE[-1], 9e8, 1.3e11)] == [True, True, False, False]


class TestFitPowerLaw:
    @pytest.mark.parametrize("constants", [(0.02, 30.0, 0.28), (1.7, 400.0, 0.3), (0.5, 3.0, 0.05), (0.01, 1e4, 0.7)])
    def test_recovers_the_constants_of_losses_without_noise(self, constants: tuple[float, float, float]) -> None:
        law = fit_power_law(COMPUTE, [power_law(*constants).loss(c) for c in COMPUTE])
        assert (law.irreducible, law.scale, law.exponent) == pytest.approx(constants, rel=1e-3)

    def test_finds_the_same_law_from_near_it(self) -> None:
        noise = np.exp(0.01 * np.random.default_rng(0).standard_normal(len(COMPUTE)))
        losses = [power_law(0.02, 30.0, 0.28).loss(c) * e for c, e in zip(COMPUTE, noise.tolist(), strict=True)]
        law = fit_power_law(COMPUTE, losses)
        (again,) = fit_power_laws(COMPUTE, [losses], near=law)
        assert (again.irreducible, again.scale, again.exponent) == pytest.approx(
            (law.irreducible, law.scale, law.exponent), rel=1e-3
        )

    def test_is_hardly_moved_by_a_run_that_went_wrong(self) -> None:
        losses = [power_law(0.02, 30.0, 0.28).loss(c) for c in COMPUTE]
        losses[3] *= 1.5
        assert fit_power_law(COMPUTE, losses).loss(3e10) == pytest.approx(
            power_law(0.02, 30.0, 0.28).loss(3e10), rel=0.01
        )

    @pytest.mark.parametrize(
        ("compute", "losses"),
        [
            ([1e9] * 3, [1.0] * 3),
            ([1e9] * 4, [1.0] * 3),
            ([0.0, 1, 2, 3], [1.0] * 4),
            ([1.0, 2, 3, 4], [1, math.nan, 1, 1]),
        ],
    )
    def test_refuses_points_that_it_cannot_use(self, compute: list[float], losses: list[float]) -> None:
        with pytest.raises(FieldError, match=r"^points: expected"):
            fit_power_law(compute, losses)


class TestSizeLaw:
    @pytest.mark.parametrize("fact", golden.compute_optima())
    def test_tells_the_best_size_and_its_loss(self, fact: golden.ComputeOptimum) -> None:
        anywhere = Range(low=1.0, high=1e30)
        law = SizeLaw(
            irreducible=fact.irreducible,
            params_scale=fact.params_scale,
            params_exponent=fact.params_exponent,
            data_scale=fact.data_scale,
            data_exponent=fact.data_exponent,
            params=anywhere,
            data=anywhere,
        )
        assert law.best_params(fact.compute) == pytest.approx(fact.params, rel=1e-9)
        assert law.loss(fact.params, fact.data) == pytest.approx(fact.loss, rel=1e-9)

    @pytest.mark.parametrize("constants", [(1.7, 400.0, 0.34, 410.0, 0.28), (0.02, 5.0, 0.5, 60.0, 0.4)])
    def test_recovers_the_constants_of_losses_without_noise(self, constants: tuple[float, ...]) -> None:
        irreducible, params_scale, params_exponent, data_scale, data_exponent = constants
        losses = [
            irreducible + params_scale * params**-params_exponent + data_scale * data**-data_exponent
            for params, data in SIZES
        ]
        law = fit_size_law([params for params, _ in SIZES], [data for _, data in SIZES], losses)
        found = (law.irreducible, law.params_scale, law.params_exponent, law.data_scale, law.data_exponent)
        assert found == pytest.approx(constants, rel=0.02)
        assert (law.params, law.data) == (Range(low=1e4, high=3e5), Range(low=1e6, high=1e8))
