# B batch, I inputs (d_in), O outputs (d_out)

import io
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from einlayers.dims import Policy
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.scaling import factor_rules
from einlayers.taxonomy import Order, cost
from einlayers.theta import NAMED, Theta

TOLERANCE = 1e-10
"""Between float64 arithmetic in our order and in the order of plain loops."""

FLOPS_PER_MAC = 2

SMALL, LARGE = "multiplied out", "factor by factor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer and what it is a case of."""

    theta: Theta
    d_in: int
    d_out: int
    order: Order
    size: str
    policy: Policy = "exact"
    missing_in: int = 0
    missing_out: int = 0
    bias: bool = True


GENERAL = Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25))
THIRDS = Theta.parse("(0.33|0|0.67|0|0.67|0.33|0.2)")

CASES = {
    "square": Case(theta=NAMED["btt"], d_in=16, d_out=16, order="A_first", size=SMALL),
    "wide": Case(theta=GENERAL, d_in=24, d_out=60, order="A_first", size=SMALL),
    "tall": Case(theta=NAMED["tensor-train"], d_in=60, d_out=24, order="B_first", size=SMALL),
    "padded": Case(
        theta=NAMED["monarch"], d_in=17, d_out=31, order="A_first", size=SMALL, missing_in=-1, missing_out=-1
    ),
    "truncated": Case(
        theta=THIRDS, d_in=100, d_out=90, order="A_first", size=SMALL, policy="round", missing_in=-10, missing_out=10
    ),
    "single feature": Case(theta=NAMED["low-rank"], d_in=1, d_out=5, order="A_first", size=SMALL),
    "large": Case(theta=NAMED["btt"], d_in=144, d_out=120, order="A_first", size=LARGE),
    "large, low rank": Case(theta=NAMED["low-rank"], d_in=150, d_out=131, order="A_first", size=LARGE),
    "large, every axis": Case(theta=GENERAL, d_in=132, d_out=140, order="A_first", size=LARGE),
    "large, B first": Case(theta=GENERAL.swapped(), d_in=132, d_out=140, order="B_first", size=LARGE),
    "large, padded": Case(
        theta=NAMED["monarch"], d_in=131, d_out=149, order="A_first", size=LARGE, missing_in=-1, missing_out=-1
    ),
    "large, padded, B first": Case(
        theta=NAMED["monarch"].swapped(),
        d_in=131,
        d_out=149,
        order="B_first",
        size=LARGE,
        missing_in=-1,
        missing_out=-1,
    ),
    "large, truncated": Case(
        theta=THIRDS, d_in=256, d_out=80, order="A_first", size=LARGE, policy="round", missing_in=10, missing_out=4
    ),
    "large, no bias": Case(theta=NAMED["tensor-train"], d_in=144, d_out=144, order="A_first", size=LARGE, bias=False),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestCases:
    def test_are_what_they_are_called(self, case: Case) -> None:
        layer = _layer(case)
        assert layer.order == case.order
        assert (case.size == LARGE) is (case.d_in * case.d_out > 128 * 128)
        assert (case.d_in - layer.dims.inputs, case.d_out - layer.dims.outputs) == (case.missing_in, case.missing_out)


class TestForward:
    def test_applies_the_matrix_that_plain_loops_make(self, case: Case) -> None:
        layer, x_BI = _layer(case), _inputs(5, case.d_in)
        W_OI = _loops(layer)
        bias_O = torch.zeros(case.d_out, dtype=torch.float64) if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x_BI), x_BI @ W_OI.mT + bias_O, atol=TOLERANCE, rtol=TOLERANCE)

    def test_keeps_every_leading_axis(self, case: Case) -> None:
        layer, x_BBI = _layer(case), _inputs(2, 3, case.d_in)
        y_BBO = layer(x_BBI)
        assert y_BBO.shape == (2, 3, case.d_out)
        torch.testing.assert_close(y_BBO[1, 2], layer(x_BBI[1, 2]), atol=TOLERANCE, rtol=TOLERANCE)

    def test_takes_an_empty_batch(self, case: Case) -> None:
        assert _layer(case)(_inputs(0, case.d_in)).shape == (0, case.d_out)

    def test_multiplies_out_to_the_same_matrix(self, case: Case) -> None:
        layer = _layer(case)
        torch.testing.assert_close(layer.to_dense(), _loops(layer), atol=TOLERANCE, rtol=TOLERANCE)


class TestGradients:
    def test_are_those_of_plain_loops(self, case: Case) -> None:
        layer, x_BI, upstream_BO = _layer(case), _inputs(5, case.d_in), _inputs(5, case.d_out)
        x_BI.requires_grad_()
        layer(x_BI).backward(upstream_BO)
        W_OI = _loops(layer)
        grad_A, grad_B = _loops_backward(layer, upstream_BO.mT @ x_BI.detach())
        torch.testing.assert_close(layer.A.grad, grad_A, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(layer.B.grad, grad_B, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(x_BI.grad, upstream_BO @ W_OI, atol=TOLERANCE, rtol=TOLERANCE)
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias.grad, upstream_BO.sum(0), atol=TOLERANCE, rtol=TOLERANCE)

    def test_flow_through_the_multiplied_out_matrix(self, case: Case) -> None:
        layer, upstream_OI = _layer(case), _inputs(case.d_out, case.d_in)
        layer.to_dense().backward(upstream_OI)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        grad_A, grad_B = _loops_backward(layer, upstream_OI)
        torch.testing.assert_close(layer.A.grad, grad_A, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(layer.B.grad, grad_B, atol=TOLERANCE, rtol=TOLERANCE)


class TestCost:
    def test_is_what_torch_counts(self) -> None:
        for name in ("low-rank", "kronecker", "tensor-train", "monarch", "btt"):
            for theta in (NAMED[name], NAMED[name].swapped()):
                for d_in, d_out in ((144, 144), (150, 131), (131, 600)):
                    layer = EinsumLinear(d_in, d_out, theta, bias=False)
                    with torch.no_grad(), FlopCounterMode(display=False) as counter:
                        layer(torch.zeros(6, d_in))
                    macs = counter.get_total_flops() / FLOPS_PER_MAC / 6
                    assert macs == cost(layer.dims).macs, (name, layer.dims)

    def test_has_the_parameters_that_are_there(self, case: Case) -> None:
        layer = _layer(case)
        num_factors = sum(factor.numel() for name, factor in layer.named_parameters() if name != "bias")
        assert num_factors == cost(layer.dims).params


class TestInitialisation:
    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "monarch", "btt"])
    def test_draws_both_factors_at_the_scale_of_mup(self, name: str) -> None:
        torch.manual_seed(0)
        layer = EinsumLinear(4096, 1024, NAMED[name])
        rules = factor_rules(layer.dims)
        assert layer.A.std().item() == pytest.approx(rules.A.init_std, rel=0.1)
        assert layer.B.std().item() == pytest.approx(rules.B.init_std, rel=0.1)

    @pytest.mark.parametrize("name", ["kronecker", "monarch"])
    def test_keeps_the_size_of_features_at_every_width(self, name: str) -> None:
        torch.manual_seed(0)
        for d in (64, 256, 1024):
            y_BO = EinsumLinear(d, d, NAMED[name])(torch.randn(256, d))
            assert y_BO.std().item() == pytest.approx(1, rel=0.25), d

    def test_is_the_same_for_the_same_seed(self) -> None:
        torch.manual_seed(3)
        first = EinsumLinear(20, 30, NAMED["btt"]).to_dense()
        torch.manual_seed(3)
        assert torch.equal(EinsumLinear(20, 30, NAMED["btt"]).to_dense(), first)

    def test_starts_without_an_offset(self) -> None:
        bias_O = EinsumLinear(20, 30, NAMED["btt"]).bias
        assert bias_O is not None
        assert torch.equal(bias_O, torch.zeros(30))
        assert EinsumLinear(20, 30, NAMED["btt"], bias=False).bias is None

    @pytest.mark.parametrize(("d_in", "d_out"), [(20, 30), (144, 150)], ids=[SMALL, LARGE])
    def test_can_start_as_the_zero_map_that_still_learns(self, d_in: int, d_out: int) -> None:
        layer = EinsumLinear(d_in, d_out, NAMED["btt"], zero_init=True)
        y_BO = layer(torch.randn(4, d_in))
        assert torch.equal(y_BO, torch.zeros(4, d_out))
        y_BO.backward(torch.randn(4, d_out))
        assert layer.B.grad is not None
        assert layer.B.grad.abs().max() > 0


class TestModule:
    def test_saves_and_loads(self) -> None:
        layer, copy = EinsumLinear(20, 30, NAMED["btt"]), EinsumLinear(20, 30, NAMED["btt"])
        assert sorted(layer.state_dict()) == ["A", "B", "bias"]
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        copy.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(copy.to_dense(), layer.to_dense())

    def test_prints_its_widths_and_its_structure(self) -> None:
        printed = "EinsumLinear(20, 30, (0.5|0|0.5|0|0.5|0.5|0.25), bias=False)"
        assert repr(EinsumLinear(20, 30, NAMED["btt"], bias=False)) == printed

    @pytest.mark.parametrize("name", ["d_in", "d_out"])
    @pytest.mark.parametrize("width", [0, -3, 2.5, True])
    def test_refuses_a_width_that_is_none_and_names_it(self, name: str, width: object) -> None:
        widths: dict[str, object] = {"d_in": 8, "d_out": 8, name: width}
        with pytest.raises(FieldError, match=f"^{name}: expected a whole number"):
            EinsumLinear(**widths, theta=NAMED["btt"])  # type: ignore[arg-type]  # the point of the test

    def test_refuses_an_unknown_policy(self) -> None:
        with pytest.raises(FieldError, match=r"^policy: expected one of"):
            EinsumLinear(8, 8, NAMED["btt"], policy="opt")  # type: ignore[arg-type]  # the point of the test


def _layer(case: Case) -> EinsumLinear:
    torch.manual_seed(0)
    layer = EinsumLinear(case.d_in, case.d_out, case.theta, bias=case.bias, policy=case.policy).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def _inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def _loops(layer: EinsumLinear) -> Tensor:
    """W[(phi,eps,delta),(gamma,beta,alpha)] = sum over rho, one entry at a time; what the axes do not hold is zero."""
    A, B = layer.A.tolist(), layer.B.tolist()
    W = [[0.0] * layer.dims.d_in for _ in range(layer.dims.d_out)]
    for o, (f, e, d) in _features(layer.dims.phi, layer.dims.epsilon, layer.dims.delta, layer.dims.d_out):
        for i, (g, b, a) in _features(layer.dims.gamma, layer.dims.beta, layer.dims.alpha, layer.dims.d_in):
            for r in range(layer.dims.rho):
                W[o][i] += A[f][d][r][g][a] * B[f][e][r][g][b]
    return torch.tensor(W, dtype=torch.float64)


def _loops_backward(layer: EinsumLinear, grad_OI: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of both factors, from that of the matrix, by the product rule for one entry at a time."""
    A, B, grad = layer.A.tolist(), layer.B.tolist(), grad_OI.tolist()
    grad_A, grad_B = torch.zeros_like(layer.A).tolist(), torch.zeros_like(layer.B).tolist()
    for o, (f, e, d) in _features(layer.dims.phi, layer.dims.epsilon, layer.dims.delta, layer.dims.d_out):
        for i, (g, b, a) in _features(layer.dims.gamma, layer.dims.beta, layer.dims.alpha, layer.dims.d_in):
            for r in range(layer.dims.rho):
                grad_A[f][d][r][g][a] += grad[o][i] * B[f][e][r][g][b]
                grad_B[f][e][r][g][b] += grad[o][i] * A[f][d][r][g][a]
    return torch.tensor(grad_A, dtype=torch.float64), torch.tensor(grad_B, dtype=torch.float64)


def _features(slow: int, middle: int, fast: int, width: int) -> list[tuple[int, tuple[int, int, int]]]:
    """The first ``width`` features of three flattened axes, the last one fastest."""
    indices = [(s, m, f) for s in range(slow) for m in range(middle) for f in range(fast)]
    return list(enumerate(indices[:width]))
