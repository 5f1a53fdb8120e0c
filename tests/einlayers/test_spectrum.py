import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.spectrum import Spectrum, spectrum
from einlayers.taxonomy import rank_bound
from einlayers.theta import NAMED
from tests import golden

TOLERANCE = 1e-12

TWO_OF_THREE = Spectrum(singular_values=(4.0, 3.0, 0.0))


class TestRank:
    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "monarch", "btt"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_of_a_layer_is_its_bound(self, name: str, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        for d_in, d_out in ((64, 96), (100, 48)):
            layer = EinsumLinear(d_in, d_out, NAMED[name], dtype=dtype)
            assert spectrum(layer).rank() == rank_bound(layer.dims)

    def test_of_padded_layers_is_the_measured_one(self) -> None:
        torch.manual_seed(0)
        facts = [fact for fact in golden.layer_ranks() if max(fact.d_in, fact.d_out) <= 256]
        assert facts
        for fact in facts:
            layer = EinsumLinear(
                fact.d_in, fact.d_out, golden.thetas()[fact.name], policy="round", bias=False, dtype=torch.float64
            )
            assert layer.dims.axes == fact.axes
            assert spectrum(layer).rank() == fact.rank, fact

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
    def test_does_not_count_what_rounding_to_the_dtype_adds(self, dtype: torch.dtype) -> None:
        weight_OI = (_random(60, 3) @ _random(3, 40)).to(dtype)
        assert spectrum(weight_OI).rank() == 3
        assert spectrum(weight_OI).rank(0) == 40

    def test_counts_what_exceeds_a_share_of_the_largest(self) -> None:
        values = Spectrum(singular_values=(8.0, 4.0, 2.0, 1.0, 0.0))
        assert [values.rank(share) for share in (0, 0.124, 0.125, 0.3, 0.5, 1)] == [4, 4, 3, 2, 1, 0]

    def test_is_numpys_in_double_precision(self) -> None:
        for weight_OI in (_random(5, 9), _random(9, 4) @ _random(4, 7), torch.ones(6, 6).double()):
            assert spectrum(weight_OI).rank() == np.linalg.matrix_rank(weight_OI.numpy())


class TestSingularValues:
    def test_are_those_of_numpy_from_the_largest_on(self) -> None:
        weight_OI = _random(7, 12)
        expected = np.linalg.svd(weight_OI.numpy(), compute_uv=False)
        assert spectrum(weight_OI).singular_values == pytest.approx(expected, rel=TOLERANCE)

    def test_are_those_of_a_complex_weight_too(self) -> None:
        weight_OI = torch.complex(_random(6, 5), _random(6, 5).flip(0))
        expected = np.linalg.svd(weight_OI.numpy(), compute_uv=False)
        assert spectrum(weight_OI).singular_values == pytest.approx(expected, rel=TOLERANCE)

    def test_of_a_linear_layer_are_those_of_its_weight(self) -> None:
        layer = nn.Linear(6, 4)
        assert spectrum(layer) == spectrum(layer.weight) == spectrum(layer.weight.detach())

    def test_of_a_structured_layer_are_those_of_its_matrix(self) -> None:
        layer = EinsumLinear(6, 4, "btt", dtype=torch.float64)
        assert spectrum(layer) == spectrum(layer.to_dense())


class TestStableRank:
    def test_is_the_ratio_of_squared_norms(self) -> None:
        weight_OI = _random(7, 12).numpy()
        expected = np.linalg.norm(weight_OI) ** 2 / np.linalg.norm(weight_OI, 2) ** 2
        assert spectrum(torch.from_numpy(weight_OI)).stable_rank == pytest.approx(expected, rel=TOLERANCE)
        assert TWO_OF_THREE.stable_rank == 25 / 16

    def test_lies_between_one_and_the_rank(self) -> None:
        for rank in (1, 2, 5):
            values = spectrum(_random(9, rank) @ _random(rank, 8))
            assert 1 <= values.stable_rank <= rank + TOLERANCE


class TestEffectiveRank:
    def test_is_the_exponential_of_the_entropy_of_the_shares(self) -> None:
        expected = math.exp(-4 / 7 * math.log(4 / 7) - 3 / 7 * math.log(3 / 7))
        assert TWO_OF_THREE.effective_rank == pytest.approx(expected, rel=TOLERANCE)

    def test_of_equal_singular_values_is_their_number(self) -> None:
        assert spectrum(torch.eye(6)).effective_rank == pytest.approx(6)
        assert spectrum(torch.eye(6)).stable_rank == pytest.approx(6)

    def test_does_not_change_with_the_scale(self) -> None:
        weight_OI = _random(6, 7)
        for scale in (1e-200, 1e200):
            scaled, plain = spectrum(weight_OI * scale), spectrum(weight_OI)
            assert scaled.effective_rank == pytest.approx(plain.effective_rank, rel=TOLERANCE)
            assert scaled.stable_rank == pytest.approx(plain.stable_rank, rel=TOLERANCE)
            assert scaled.energy(2) == pytest.approx(plain.energy(2), rel=TOLERANCE)


class TestEnergy:
    def test_is_the_share_of_squares_in_the_largest_values(self) -> None:
        assert [TWO_OF_THREE.energy(k) for k in (0, 1, 2, 3, 99)] == [0, 16 / 25, 1, 1, 1]

    def test_is_what_the_truncated_decomposition_keeps(self) -> None:
        weight_OI = _random(6, 9).numpy()
        U, sigma, V = np.linalg.svd(weight_OI, full_matrices=False)
        kept = np.linalg.norm((U[:, :2] * sigma[:2]) @ V[:2]) ** 2 / np.linalg.norm(weight_OI) ** 2
        assert spectrum(torch.from_numpy(weight_OI)).energy(2) == pytest.approx(kept, rel=TOLERANCE)

    def test_asks_for_the_smallest_rank_that_keeps_it(self) -> None:
        assert [TWO_OF_THREE.rank_for(share) for share in (0, 0.1, 16 / 25, 0.65, 1)] == [0, 1, 1, 2, 2]

    def test_of_a_rank_is_enough_for_that_rank(self) -> None:
        values = spectrum(_random(8, 8))
        assert [values.rank_for(values.energy(k)) for k in range(9)] == list(range(9))


class TestZeroMatrix:
    def test_has_no_rank_and_loses_nothing(self) -> None:
        values = spectrum(torch.zeros(3, 4))
        assert (values.rank(), values.stable_rank, values.effective_rank) == (0, 0, 0)
        assert (values.energy(0), values.rank_for(1)) == (1, 0)


class TestErrors:
    @pytest.mark.parametrize("values", [(), (1.0, 2.0), (1.0, -1.0), (math.inf, 1.0), (math.nan,)])
    def test_refuses_values_that_are_no_spectrum(self, values: tuple[float, ...]) -> None:
        with pytest.raises(FieldError, match=r"^singular_values: expected"):
            Spectrum(singular_values=values)

    @pytest.mark.parametrize("share", [-0.1, math.nan, math.inf, "1", True])
    def test_refuses_a_share_that_is_none(self, share: object) -> None:
        with pytest.raises(FieldError, match=r"^tolerance: expected"):
            TWO_OF_THREE.rank(share)  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(FieldError, match=r"^noise: expected"):
            Spectrum(singular_values=(1.0,), noise=share)  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(FieldError, match=r"^energy: expected"):
            TWO_OF_THREE.rank_for(share)  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize("k", [-1, 1.5, True])
    def test_refuses_a_rank_that_is_none(self, k: object) -> None:
        with pytest.raises(FieldError, match=r"^k: expected a rank"):
            TWO_OF_THREE.energy(k)  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize("layer", [nn.ReLU(), 3, None], ids=str)
    def test_refuses_what_has_no_weight(self, layer: object) -> None:
        with pytest.raises(FieldError, match=r"^layer: expected a tensor"):
            spectrum(layer)  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize(
        "weight",
        [torch.ones(3), torch.ones(2, 2, 2), torch.ones(0, 3), torch.ones(2, 2).long(), torch.full((2, 2), math.nan)],
        ids=["vector", "cube", "empty", "integers", "NaN"],
    )
    def test_refuses_what_is_no_finite_matrix(self, weight: Tensor) -> None:
        with pytest.raises(FieldError, match=r"^weight: expected"):
            spectrum(weight)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
