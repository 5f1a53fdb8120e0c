# B batch, I inputs (d_in), O outputs (d_out)

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from einlayers.dims import Dims, Policy, resolve
from einlayers.errors import FieldError
from einlayers.families import btt_dims, low_rank_dims, monarch_dims
from einlayers.linear import EinsumLinear
from einlayers.scaling import factor_rules
from einlayers.taxonomy import Order, cost
from einlayers.theta import NAMED, Theta
from tests.einlayers import oracle
from tests.einlayers.oracle import TOLERANCE, normal

FLOPS_PER_MAC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer and what it is a case of."""

    theta: Theta
    d_in: int
    d_out: int
    order: Order
    policy: Policy = "exact"
    missing_in: int = 0
    missing_out: int = 0
    bias: bool = True


GENERAL = Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25))
THIRDS = Theta.parse("(0.33|0|0.67|0|0.67|0.33|0.2)")

CASES = {
    "square": Case(theta=NAMED["btt"], d_in=16, d_out=16, order="A_first"),
    "wide": Case(theta=GENERAL, d_in=24, d_out=60, order="A_first"),
    "tall": Case(theta=NAMED["tensor-train"], d_in=60, d_out=24, order="B_first"),
    "padded": Case(theta=NAMED["monarch"], d_in=17, d_out=31, order="A_first", missing_in=-1, missing_out=-1),
    "truncated": Case(
        theta=THIRDS, d_in=100, d_out=90, order="A_first", policy="round", missing_in=-10, missing_out=10
    ),
    "single feature": Case(theta=NAMED["low-rank"], d_in=1, d_out=5, order="A_first"),
    "large": Case(theta=NAMED["btt"], d_in=144, d_out=120, order="A_first"),
    "large, low rank": Case(theta=NAMED["low-rank"], d_in=150, d_out=131, order="A_first"),
    "large, every axis": Case(theta=GENERAL, d_in=132, d_out=140, order="A_first"),
    "large, B first": Case(theta=GENERAL.swapped(), d_in=132, d_out=140, order="B_first"),
    "large, padded": Case(theta=NAMED["monarch"], d_in=131, d_out=149, order="A_first", missing_in=-1, missing_out=-1),
    "large, padded, B first": Case(
        theta=NAMED["monarch"].swapped(),
        d_in=131,
        d_out=149,
        order="B_first",
        missing_in=-1,
        missing_out=-1,
    ),
    "large, truncated": Case(
        theta=THIRDS, d_in=256, d_out=80, order="A_first", policy="round", missing_in=10, missing_out=4
    ),
    "large, no bias": Case(theta=NAMED["tensor-train"], d_in=144, d_out=144, order="A_first", bias=False),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestCases:
    def test_are_what_they_are_called(self, case: Case) -> None:
        layer = _layer(case)
        assert layer.order == case.order
        assert (case.d_in - layer.dims.inputs, case.d_out - layer.dims.outputs) == (case.missing_in, case.missing_out)


class TestForward:
    def test_applies_the_matrix_that_plain_loops_make(self, case: Case) -> None:
        layer, x_BI = _layer(case), normal(5, case.d_in)
        W_OI = _matrix(layer)
        bias_O = torch.zeros(case.d_out, dtype=torch.float64) if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x_BI), x_BI @ W_OI.mT + bias_O, atol=TOLERANCE, rtol=TOLERANCE)

    def test_multiplies_out_to_the_same_matrix(self, case: Case) -> None:
        layer = _layer(case)
        torch.testing.assert_close(layer.to_dense(), _matrix(layer), atol=TOLERANCE, rtol=TOLERANCE)


class TestGradients:
    def test_are_those_of_plain_loops(self, case: Case) -> None:
        layer, x_BI, upstream_BO = _layer(case), normal(5, case.d_in), normal(5, case.d_out)
        x_BI.requires_grad_()
        layer(x_BI).backward(upstream_BO)
        W_OI = _matrix(layer)
        grad_A, grad_B = _gradients(layer, upstream_BO.mT @ x_BI.detach())
        torch.testing.assert_close(layer.A.grad, grad_A, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(layer.B.grad, grad_B, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(x_BI.grad, upstream_BO @ W_OI, atol=TOLERANCE, rtol=TOLERANCE)
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias.grad, upstream_BO.sum(0), atol=TOLERANCE, rtol=TOLERANCE)

    def test_flow_through_the_multiplied_out_matrix(self, case: Case) -> None:
        layer, upstream_OI = _layer(case), normal(case.d_out, case.d_in)
        layer.to_dense().backward(upstream_OI)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        grad_A, grad_B = _gradients(layer, upstream_OI)
        torch.testing.assert_close(layer.A.grad, grad_A, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(layer.B.grad, grad_B, atol=TOLERANCE, rtol=TOLERANCE)


class TestCost:
    def test_is_what_torch_counts(self) -> None:
        for name in ("low-rank", "kronecker", "tensor-train", "monarch", "btt"):
            for theta in (NAMED[name], NAMED[name].swapped()):
                for d_in, d_out in ((576, 576), (590, 613), (313, 1200)):
                    layer = EinsumLinear(d_in, d_out, theta, bias=False)
                    # Few inputs, for which no structure is multiplied out, which is faster and more multiplications.
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


class TestModule:
    def test_is_made_without_memory_on_the_meta_device(self) -> None:
        layer = EinsumLinear(2**18, 2**18, "btt", device="meta")
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        assert layer(torch.empty(3, 2**18, device="meta")).shape == (3, 2**18)

    def test_exports_with_a_batch_of_any_size(self) -> None:
        layer = EinsumLinear(150, 140, "btt")
        batch = torch.export.Dim("batch", min=2, max=4096)
        program = torch.export.export(layer, (torch.randn(8, 150),), dynamic_shapes=({0: batch},))
        x_BI = torch.randn(33, 150)
        torch.testing.assert_close(program.module()(x_BI), layer(x_BI))

    def test_has_gradients_of_gradients_and_of_samples(self) -> None:
        layer, x_BI = EinsumLinear(18, 20, "btt", bias=False).double(), normal(4, 18)
        parameters: dict[str, Tensor] = dict(layer.named_parameters())

        def loss(values: dict[str, Tensor], x_I: Tensor) -> Tensor:
            y_O: Tensor = torch.func.functional_call(layer, values, (x_I,))
            return y_O.square().sum()

        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x_BI)
        for n in range(4):
            one = torch.autograd.grad(layer(x_BI[n]).square().sum(), list(parameters.values()))
            torch.testing.assert_close([grad[n] for grad in per_sample.values()], list(one))

    def test_prints_its_widths_and_its_structure(self) -> None:
        printed = "EinsumLinear(20, 30, (0.5|0|0.5|0|0.5|0.5|0.25), bias=False)"
        assert repr(EinsumLinear(20, 30, NAMED["btt"], bias=False)) == printed

    @pytest.mark.parametrize("name", ["d_in", "d_out"])
    @pytest.mark.parametrize("width", [0, -3, 2.5, True])
    def test_refuses_a_width_that_is_none_and_names_it(self, name: str, width: object) -> None:
        widths: dict[str, object] = {"d_in": 8, "d_out": 8, name: width}
        with pytest.raises(FieldError, match=f"^{name}: expected a whole number"):
            EinsumLinear(**widths, theta=NAMED["btt"])  # type: ignore[arg-type]  # the point of the test

    def test_prints_its_options(self) -> None:
        layer = EinsumLinear(20, 30, "btt", weight_norm=True, recompute=True, zero_init=True)
        assert repr(layer).endswith("bias=True, zero_init=True, weight_norm=True, recompute=True)")

    def test_knows_its_widths_its_cost_and_its_rank(self) -> None:
        layer = EinsumLinear(64, 48, "btt")
        assert (layer.d_in, layer.d_out) == (64, 48)
        assert layer.cost == cost(layer.dims)
        assert layer.rank_bound == torch.linalg.matrix_rank(layer.double().to_dense()).item()

    def test_refuses_a_theta_that_it_does_not_know_and_lists_the_names(self) -> None:
        with pytest.raises(
            FieldError, match=r"^theta: expected seven exponents .* or one of dense, low-rank, .* got 'bt'"
        ):
            EinsumLinear(8, 8, "bt")

    def test_refuses_an_unknown_policy(self) -> None:
        with pytest.raises(FieldError, match=r"^policy: expected one of"):
            EinsumLinear(8, 8, NAMED["btt"], policy="opt")  # type: ignore[arg-type]  # the point of the test


class TestWeightNorm:
    """The papers' M <- gain M / max(1, rms(M) / std), for each factor."""

    def test_changes_nothing_while_the_factors_are_small(self) -> None:
        layer = EinsumLinear(64, 64, "btt", weight_norm=True).double()
        with torch.no_grad():
            layer.A.mul_(0.5)
            layer.B.mul_(0.5)
        torch.testing.assert_close(layer.to_dense(), _matrix(layer), atol=TOLERANCE, rtol=TOLERANCE)

    def test_caps_the_rms_of_each_factor_at_its_initial_scale(self) -> None:
        layer = EinsumLinear(64, 64, "btt", weight_norm=True).double()
        with torch.no_grad():
            layer.A.mul_(7)
        A, B = layer.factors()
        assert rms(A) == pytest.approx(layer.rules.A.init_std, rel=TOLERANCE)
        assert rms(B) <= layer.rules.B.init_std * (1 + TOLERANCE)
        torch.testing.assert_close(A, layer.A * (layer.rules.A.init_std / rms(layer.A)), atol=TOLERANCE, rtol=TOLERANCE)

    def test_scales_each_factor_by_its_gain(self) -> None:
        layer = EinsumLinear(64, 64, "btt", weight_norm=True).double()
        before = layer.to_dense()
        assert layer.gain_A is not None
        assert layer.gain_B is not None
        with torch.no_grad():
            layer.gain_A.fill_(3)
            layer.gain_B.fill_(0.5)
        torch.testing.assert_close(layer.to_dense(), 1.5 * before, atol=TOLERANCE, rtol=TOLERANCE)

    def test_learns_through_the_cap(self) -> None:
        layer = EinsumLinear(9, 8, "btt", weight_norm=True).double()
        with torch.no_grad():
            layer.A.mul_(7)
        names, values = zip(*layer.named_parameters(), strict=True)

        def apply(*parameters: Tensor) -> Tensor:
            y_BO: Tensor = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (normal(3, 9),))
            return y_BO

        assert sorted(names) == ["A", "B", "bias", "gain_A", "gain_B"]
        assert torch.autograd.gradcheck(apply, values)

    def test_applies_what_it_multiplies_out(self) -> None:
        layer, x_BI = EinsumLinear(150, 140, "btt", weight_norm=True, bias=False).double(), normal(5, 150)
        with torch.no_grad():
            layer.B.mul_(7)
        torch.testing.assert_close(layer(x_BI), x_BI @ layer.to_dense().mT, atol=TOLERANCE, rtol=TOLERANCE)


class TestConstructors:
    @pytest.mark.parametrize(
        ("layer", "dims"),
        [
            (EinsumLinear(64, 96, "btt"), resolve(NAMED["btt"], 64, 96)),
            (EinsumLinear(64, 96, "(1/2|0|1/2|0|1/2|1/2|0)"), resolve(NAMED["monarch"], 64, 96)),
            (EinsumLinear.monarch(64, 96, num_blocks=4), monarch_dims(64, 96, 4)),
            (EinsumLinear.btt(64, 96, rank=3), btt_dims(64, 96, 3)),
            (EinsumLinear.low_rank(64, 96, rank=5), low_rank_dims(64, 96, 5)),
            (EinsumLinear.from_dims(Dims.of((2, 3, 4, 2, 2, 2, 3), 23, 7)), Dims.of((2, 3, 4, 2, 2, 2, 3), 23, 7)),
        ],
        ids=["name", "text", "monarch", "btt", "low rank", "axes"],
    )
    def test_make_layers_of_the_axes_that_they_stand_for(self, layer: EinsumLinear, dims: Dims) -> None:
        assert layer.dims == dims
        assert layer(torch.randn(2, dims.d_in)).shape == (2, dims.d_out)

    def test_land_in_the_same_layer_where_they_mean_the_same(self) -> None:
        assert EinsumLinear.btt(256, 256, rank=1).dims == EinsumLinear(256, 256, "monarch").dims
        assert EinsumLinear.btt(256, 256, rank=4).dims == EinsumLinear(256, 256, "btt").dims
        assert EinsumLinear.monarch(256, 256, num_blocks=16).dims == EinsumLinear(256, 256, "monarch").dims

    def test_pass_every_option_on(self) -> None:
        options: dict[str, Any] = {"bias": False, "zero_init": True, "weight_norm": True, "recompute": True}
        for layer in (
            EinsumLinear(16, 16, "btt", **options),
            EinsumLinear.btt(16, 16, rank=2, **options),
            EinsumLinear.monarch(16, 16, num_blocks=2, **options),
            EinsumLinear.low_rank(16, 16, rank=2, **options),
        ):
            assert layer.bias is None
            assert layer.zero_init
            assert layer.weight_norm
            assert layer.recompute

    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "monarch", "btt"])
    def test_know_the_theta_that_axes_stand_for(self, name: str) -> None:
        dims = resolve(NAMED[name], 4096, 4096)
        assert EinsumLinear.from_dims(dims).theta.exponents == pytest.approx(NAMED[name].exponents, abs=0.05)


class TestInModels:
    def test_replaces_a_dense_layer_in_a_model(self) -> None:
        model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), EinsumLinear(32, 16, "monarch"))
        model(torch.randn(3, 4, 16)).sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def rms(tensor: Tensor) -> float:
    """The root of the mean square."""
    return tensor.square().mean().sqrt().item()


def _layer(case: Case) -> EinsumLinear:
    torch.manual_seed(0)
    layer = EinsumLinear(case.d_in, case.d_out, case.theta, bias=case.bias, policy=case.policy).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def _matrix(layer: EinsumLinear) -> Tensor:
    return oracle.matrix(layer.A, layer.B, layer.dims)


def _gradients(layer: EinsumLinear, grad_OI: Tensor) -> tuple[Tensor, Tensor]:
    return oracle.gradients(layer.A, layer.B, layer.dims, grad_OI)
