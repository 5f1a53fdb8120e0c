import math

import numpy as np
import pytest
from hypothesis import given

from einlayers.dims import Dims, resolve
from einlayers.errors import FieldError
from einlayers.scaling import FactorRule, branch_scale, dense_init_std, factor_rules
from einlayers.theta import NAMED
from tests import golden, strategies

EXACT = 1e-12


class TestAdam:
    def test_has_the_golden_fans_scales_and_multipliers(self) -> None:
        for row in golden.layers():
            rules = factor_rules(resolve(golden.thetas()[row.name], row.d_in, row.d_out, "round"))
            for rule, fact in ((rules.A, row.A), (rules.B, row.B)):
                assert (rule.fan_in, rule.fan_out) == (fact.fan_in, fact.fan_out), row
                assert rule.init_std**2 == pytest.approx(fact.init_var, rel=EXACT), row
                assert rule.adam_lr_mult == pytest.approx(fact.lr_mult, rel=EXACT), row

    @pytest.mark.parametrize("d", [256, 1024, 4096])
    @pytest.mark.parametrize("rank", [1, 4])
    def test_multiplies_the_rate_of_a_block_tensor_train_as_its_paper_says(self, d: int, rank: int) -> None:
        root = math.isqrt(d)
        rules = factor_rules(Dims.of((root, 1, root, 1, root, root, rank), d, d))
        assert rules.A.adam_lr_mult == pytest.approx(root / 2, rel=EXACT)
        assert rules.B.adam_lr_mult == pytest.approx(root / (2 * rank), rel=EXACT)

    def test_multiplies_the_rate_of_low_rank_by_a_half_and_by_what_the_rank_saves(self) -> None:
        rules = factor_rules(resolve(NAMED["low-rank"], 256, 256))
        assert (rules.A.adam_lr_mult, rules.B.adam_lr_mult) == (0.5, 256 / (2 * 16))


class TestSgd:
    @given(dims=strategies.full_dims())
    def test_divides_the_ratio_of_fans_by_the_dense_one_and_between_the_factors(self, dims: Dims) -> None:
        rules = factor_rules(dims)
        between = dims.phi * dims.delta * dims.rho * dims.gamma * dims.beta
        for rule, all_outputs in ((rules.A, between), (rules.B, dims.outputs)):
            expected = (all_outputs / rule.fan_in) / (dims.d_out / dims.d_in) / 2
            assert rule.sgd_lr_mult == pytest.approx(expected, rel=EXACT)


class TestInitialScale:
    @pytest.mark.parametrize(("d_in", "d_out"), [(256, 256), (256, 1024), (1024, 256)])
    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "monarch", "btt"])
    def test_gives_every_factor_the_spectral_norm_that_mup_asks_for(self, name: str, d_in: int, d_out: int) -> None:
        rules = factor_rules(resolve(NAMED[name], d_in, d_out))
        for rule in (rules.A, rules.B):
            # A Gaussian matrix has norm std * (sqrt(fan_in) + sqrt(fan_out)): once to twice the spectral condition's.
            assert 0.8 < _norm(rule) / math.sqrt(rule.fan_out / rule.fan_in) < 2.2

    @pytest.mark.parametrize(("fan_in", "fan_out", "std"), [(64, 64, 1 / 8), (64, 256, 1 / 8), (256, 64, 1 / 32)])
    def test_narrows_with_the_smaller_fan(self, fan_in: int, fan_out: int, std: float) -> None:
        assert dense_init_std(fan_in, fan_out) == std


class TestDepth:
    @pytest.mark.parametrize(("depth", "base_depth", "scale"), [(3, 3, 1), (12, 3, 1 / 2), (2, 8, 2)])
    def test_scales_branches_so_that_their_squares_sum_as_in_the_base(
        self, depth: int, base_depth: int, scale: float
    ) -> None:
        assert branch_scale(depth, base_depth) == pytest.approx(scale, rel=EXACT)
        assert depth * branch_scale(depth, base_depth) ** 2 == pytest.approx(base_depth, rel=EXACT)

    @pytest.mark.parametrize(
        ("depth", "base_depth", "name"), [(0, 3, "depth"), (3, -1, "base_depth"), (2.5, 3, "depth")]
    )
    def test_is_a_positive_whole_number(self, depth: int, base_depth: int, name: str) -> None:
        with pytest.raises(FieldError, match=f"^{name}: expected a whole number from 1"):
            branch_scale(depth, base_depth)


def _norm(rule: FactorRule) -> float:
    matrix = np.random.default_rng(0).standard_normal((rule.fan_out, rule.fan_in)) * rule.init_std
    return float(np.linalg.norm(matrix, 2))
