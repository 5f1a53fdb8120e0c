# T tokens, E experts, K choices of each token, I inputs (d_in), O outputs (d_out), H hidden features

import copy
import io
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from einlayers.errors import FieldError
from einlayers.experts import Experts
from einlayers.linear import EinsumLinear
from einlayers.moe import DenseMoE, EinsumMoE, FeedForwardMoE, LinearMoE, LowRankMoE, MixtureCost
from einlayers.optim import param_groups
from einlayers.routing import auxiliary_loss
from einlayers.scaling import FactorRule, dense_init_std, factor_rules
from einlayers.surgery import replace_linears
from einlayers.theta import NAMED, Theta
from tests import golden

TOLERANCE = 1e-10
"""Between float64 arithmetic in our order and in that of the oracle."""

FLOPS_PER_MAC = 2

GENERAL = Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25))

MIXTURES: dict[str, Callable[[], LinearMoE]] = {
    "monarch": lambda: EinsumMoE(16, 16, "monarch", num_experts=4),
    "every axis": lambda: EinsumMoE(24, 60, GENERAL, num_experts=4, top_k=3),
    "B first": lambda: EinsumMoE(24, 60, GENERAL.swapped(), num_experts=3),
    "padded": lambda: EinsumMoE(17, 31, "monarch", num_experts=4, top_k=1),
    "truncated": lambda: EinsumMoE(100, 90, "(0.33|0|0.67|0|0.67|0.33|0.2)", policy="round", num_experts=3),
    "large": lambda: EinsumMoE(144, 120, "btt", num_experts=3, bias=False),
    "low rank": lambda: LowRankMoE(20, 30, num_experts=5),
    "dense": lambda: DenseMoE(12, 10, num_experts=6),
    "dense, no bias": lambda: DenseMoE(12, 10, num_experts=6, top_k=1, bias=False),
    "all chosen": lambda: EinsumMoE(16, 16, "monarch", num_experts=3, top_k=3),
    "one expert": lambda: EinsumMoE(16, 16, "monarch", num_experts=1, top_k=1),
    "mostly idle": lambda: EinsumMoE(16, 16, "btt", num_experts=40, top_k=1),
}


@pytest.fixture(params=list(MIXTURES.values()), ids=list(MIXTURES))
def mixture(request: pytest.FixtureRequest) -> LinearMoE:
    torch.manual_seed(0)
    layer = request.param().double()
    assert isinstance(layer, LinearMoE)
    nn.init.normal_(layer.gate.weight)
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


class TestForward:
    def test_is_the_weighted_sum_over_the_chosen_experts(self, mixture: LinearMoE) -> None:
        x_TI = _normal(11, mixture.d_in)
        torch.testing.assert_close(mixture(x_TI), _oracle(mixture, x_TI), atol=TOLERANCE, rtol=TOLERANCE)

    def test_is_one_einsum_whose_rank_axis_is_gated(self) -> None:
        torch.manual_seed(0)
        layer, x_TI = EinsumMoE(16, 25, "btt", num_experts=4, bias=False).double(), _normal(9, 16)
        nn.init.normal_(layer.gate.weight)
        dims, routing = layer.dims, layer.gate.route(x_TI)
        gate_TE = torch.zeros(9, 4, dtype=torch.float64).scatter(1, routing.experts, routing.weights)
        # The rank axis of the one einsum is (expert, rho).
        A, B = (stack.permute(1, 2, 0, 3, 4, 5).flatten(2, 3) for stack in (layer.A, layer.B))
        x_Tgba = x_TI.view(9, dims.gamma, dims.beta, dims.alpha)
        z_Tfdrgb = torch.einsum("tgba,fdrga->tfdrgb", x_Tgba, A)
        gate_Tr = gate_TE.repeat_interleave(dims.rho, dim=1)
        y_Tfed = torch.einsum("tfdrgb,tr,fergb->tfed", z_Tfdrgb, gate_Tr, B)
        torch.testing.assert_close(layer(x_TI), y_Tfed.flatten(1)[:, :25], atol=TOLERANCE, rtol=TOLERANCE)

    def test_is_the_expert_itself_where_there_is_one(self) -> None:
        layer = EinsumMoE(16, 24, "btt", num_experts=1, top_k=1, bias=False)
        linear = EinsumLinear(16, 24, "btt", bias=False)
        linear.load_state_dict({"A": layer.A[0], "B": layer.B[0]})
        x_TI = torch.randn(5, 16)
        torch.testing.assert_close(layer(x_TI), linear(x_TI))

    # The tracer looks at .grad of what it meets between two graphs, and hides the warning by other means than a filter.


class TestGradients:
    def test_are_those_of_the_weighted_sum(self, mixture: LinearMoE) -> None:
        x_TI, upstream_TO = _normal(11, mixture.d_in).requires_grad_(), _normal(11, mixture.d_out)
        inputs = {"x": x_TI, **dict(mixture.named_parameters())}
        found = torch.autograd.grad(mixture(x_TI), list(inputs.values()), upstream_TO)
        expected = torch.autograd.grad(_oracle(mixture, x_TI), list(inputs.values()), upstream_TO)
        for name, gradient, by_hand in zip(inputs, found, expected, strict=True):
            torch.testing.assert_close(gradient, by_hand, atol=TOLERANCE, rtol=TOLERANCE, msg=name)

    def test_are_zero_for_experts_that_nobody_chose(self) -> None:
        layer = EinsumMoE(16, 16, "monarch", num_experts=4, top_k=1)
        layer(torch.randn(2, 16)).sum().backward()
        assert layer.A.grad is not None
        assert [gradient.abs().max() > 0 for gradient in layer.A.grad] == [True, True, False, False]

    def test_reach_a_zero_gate_through_the_weights(self) -> None:
        torch.manual_seed(0)
        layer = EinsumMoE(16, 16, "monarch", num_experts=4)
        layer(torch.randn(8, 16)).square().sum().backward()
        assert layer.gate.weight.grad is not None
        assert layer.gate.weight.grad.abs().max() > 0


class TestCost:
    @pytest.mark.parametrize("row", golden.mixtures(), ids=lambda row: f"{row.num_experts} experts, {row.d} features")
    def test_is_that_of_the_reference_table(self, row: golden.Mixture) -> None:
        layer = EinsumMoE(row.d, row.d, "monarch", num_experts=row.num_experts, top_k=row.top_k, device="meta")
        assert layer.dims.axes == (row.m, 1, row.m, 1, row.m, row.m, 1)
        assert layer.cost == MixtureCost(
            params=row.params, gate_params=row.gate_params, macs=row.macs, gate_macs=row.gate_macs
        )

    @pytest.mark.parametrize("row", golden.mixtures(), ids=lambda row: f"{row.num_experts} experts, {row.d} features")
    def test_of_choosing_all_experts_is_that_of_the_reference_table(self, row: golden.Mixture) -> None:
        layer = EinsumMoE(row.d, row.d, "monarch", num_experts=row.num_experts, top_k=row.num_experts, device="meta")
        assert layer.cost.macs == row.macs_of_all_experts == row.overhead_of_all_experts * row.macs

    @pytest.mark.parametrize("row", golden.mixtures(), ids=lambda row: f"{row.num_experts} experts, {row.d} features")
    def test_of_imbalance_is_that_of_the_reference_table_at_first(self, row: golden.Mixture) -> None:
        layer = EinsumMoE(row.d, row.d, "monarch", num_experts=row.num_experts, top_k=row.top_k, dtype=torch.float64)
        layer(_normal(32, row.d))
        assert auxiliary_loss(layer).item() == pytest.approx(row.aux_loss, abs=1e-9)

    def test_has_the_parameters_that_are_there(self, mixture: LinearMoE) -> None:
        assert mixture.cost.params == sum(stack.numel() for stack in mixture.stacks)
        assert mixture.cost.gate_params == mixture.gate.weight.numel()

    @pytest.mark.parametrize(("num_experts", "top_k"), [(4, 1), (8, 2), (16, 4), (4, 4)])
    def test_is_what_torch_counts_so_only_chosen_experts_are_computed(self, num_experts: int, top_k: int) -> None:
        mixtures: list[LinearMoE | FeedForwardMoE] = [
            EinsumMoE(576, 576, "monarch", num_experts=num_experts, top_k=top_k),
            LowRankMoE(150, 131, num_experts=num_experts, top_k=top_k),
            DenseMoE(40, 30, num_experts=num_experts, top_k=top_k),
            FeedForwardMoE(40, 80, num_experts=num_experts, top_k=top_k),
            FeedForwardMoE(576, 1152, theta="btt", num_experts=num_experts, top_k=top_k),
        ]
        for layer in mixtures:
            nn.init.normal_(layer.gate.weight)
            # Few inputs, for which no structure is multiplied out, which is faster and more multiplications.
            num_tokens = 12
            x_TI = torch.randn(num_tokens, layer.gate.in_features)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                layer(x_TI)
            macs = counter.get_total_flops() / FLOPS_PER_MAC / num_tokens
            assert macs == layer.cost.macs + layer.cost.gate_macs

    def test_of_a_backward_pass_is_for_chosen_experts_too(self) -> None:
        counts = []
        for top_k in (1, 4):
            layer = DenseMoE(40, 30, num_experts=4, top_k=top_k)
            layer.gate.requires_grad_(False)
            x_TI = torch.randn(64, 40, requires_grad=True)
            with FlopCounterMode(display=False) as counter:
                layer(x_TI).sum().backward()
            of_gate = 2 * 64 * FLOPS_PER_MAC * layer.cost.gate_macs  # logits, and the gradient of x through them
            counts.append(counter.get_total_flops() - of_gate)
        assert counts[1] == 4 * counts[0]


class TestFeedForward:
    @pytest.mark.parametrize("theta", [None, "monarch"])
    def test_is_the_weighted_sum_over_the_chosen_experts(self, theta: str | None) -> None:
        torch.manual_seed(0)
        layer, x_TI = FeedForwardMoE(12, 20, theta=theta, num_experts=4).double(), _normal(9, 12).requires_grad_()
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        inputs = [x_TI, *layer.parameters()]
        expected = _feed_forward_oracle(layer, x_TI)
        torch.testing.assert_close(layer(x_TI), expected, atol=TOLERANCE, rtol=TOLERANCE)
        found = torch.autograd.grad(layer(x_TI).square().sum(), inputs)
        for gradient, by_hand in zip(found, torch.autograd.grad(expected.square().sum(), inputs), strict=True):
            torch.testing.assert_close(gradient, by_hand, atol=1e-8, rtol=TOLERANCE)

    def test_has_plain_matrices_for_axes_that_are_dense_at_these_widths(self) -> None:
        layer = FeedForwardMoE(12, 20, theta=Theta.of((0.05, 0.95, 0, 0, 0.98, 0.02, 0)), bias=False)
        assert sorted(layer.state_dict()) == ["down.weight", "gate.weight", "up.weight"]

    def test_keeps_every_leading_axis(self) -> None:
        layer = FeedForwardMoE(12, 20, bias=False)
        assert layer(torch.randn(2, 3, 12)).shape == (2, 3, 12)
        assert sorted(layer.state_dict()) == ["down.weight", "gate.weight", "up.weight"]

    def test_can_start_as_the_zero_map(self) -> None:
        y_TI = FeedForwardMoE(12, 20, zero_init=True)(torch.randn(3, 12))
        assert torch.equal(y_TI, torch.zeros(3, 12))

    def test_costs_what_its_halves_cost(self) -> None:
        cost = FeedForwardMoE(12, 20, num_experts=4, top_k=3).cost
        assert cost == MixtureCost(params=4 * 480, gate_params=48, macs=3 * 480, gate_macs=48)


class TestInitialisation:
    def test_draws_every_expert_at_the_scale_of_one(self) -> None:
        torch.manual_seed(0)
        layer = EinsumMoE(1024, 256, "monarch", num_experts=8)
        rules = factor_rules(layer.dims)
        assert layer.A.std(dim=(1, 2, 3, 4, 5)).tolist() == pytest.approx([rules.A.init_std] * 8, rel=0.1)
        assert layer.B.std(dim=(1, 2, 3, 4, 5)).tolist() == pytest.approx([rules.B.init_std] * 8, rel=0.1)

    def test_draws_dense_experts_at_theirs(self) -> None:
        torch.manual_seed(0)
        assert DenseMoE(200, 100).weight.std().item() == pytest.approx(dense_init_std(200, 100), rel=0.05)

    @pytest.mark.parametrize("name", ["monarch", "low rank", "dense"])
    def test_can_start_as_the_zero_map_that_still_learns(self, name: str) -> None:
        mixtures: dict[str, LinearMoE] = {
            "monarch": EinsumMoE(16, 24, "monarch", zero_init=True),
            "low rank": LowRankMoE(16, 24, zero_init=True),
            "dense": DenseMoE(16, 24, zero_init=True),
        }
        layer = mixtures[name]
        y_TO = layer(torch.randn(8, 16))
        assert torch.equal(y_TO, torch.zeros(8, 24))
        y_TO.backward(torch.randn(8, 24))
        last = layer.stacks[-1].grad
        assert last is not None
        assert last.abs().max() > 0

    def test_gives_low_rank_experts_their_share_of_the_full_rank(self) -> None:
        assert LowRankMoE(64, 48, num_experts=8).dims.rho == 6
        assert LowRankMoE(4, 4, num_experts=8).dims.rho == 1
        assert LowRankMoE(64, 48, rank=10).dims.rho == 10


class TestTraining:
    def test_moves_the_gate_and_lowers_the_loss(self) -> None:
        torch.manual_seed(0)
        layer, x_TI, target_TO = EinsumMoE(16, 16, "monarch", num_experts=4), torch.randn(64, 16), torch.randn(64, 16)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        losses = []
        for _ in range(30):
            error = (layer(x_TI) - target_TO).square().mean()
            optimizer.zero_grad()
            (error + 0.01 * auxiliary_loss(layer)).backward()
            optimizer.step()
            losses.append(error.item())
        assert losses[-1] < 0.7 * losses[0]
        assert layer.gate.weight.abs().max() > 0

    def test_has_the_rates_of_one_expert(self) -> None:
        layer = EinsumMoE(64, 16, "monarch")
        rules = factor_rules(layer.dims)
        assert layer.lr_rules() == {"A": rules.A, "B": rules.B}
        dense = FactorRule(fan_in=64, fan_out=16, init_std=dense_init_std(64, 16), adam_lr_mult=1.0, sgd_lr_mult=1.0)
        assert DenseMoE(64, 16).lr_rules() == {"weight": dense}

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
    def test_puts_every_parameter_in_a_group_against_a_small_dense_model(self, optimizer: str) -> None:
        model = nn.ModuleDict({"mixer": EinsumMoE(64, 32, "monarch"), "other": DenseMoE(64, 32)})
        base = nn.ModuleDict({"mixer": nn.Linear(8, 4), "other": nn.Linear(8, 4)})
        groups = param_groups(model, 0.1, base=base, optimizer=optimizer)  # type: ignore[arg-type]  # a literal
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        assert set(rates) == {id(parameter) for parameter in model.parameters()}
        if optimizer == "adamw":
            gate = model.get_parameter("mixer.gate.weight")
            assert rates[id(gate)] == pytest.approx(0.1 / 8)

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
    def test_takes_the_rates_of_a_feed_forward_mixture_from_a_smaller_one(self, optimizer: str) -> None:
        model, base = FeedForwardMoE(64, 128, theta="monarch"), FeedForwardMoE(16, 32, device="meta")
        groups = param_groups(model, 0.1, base=base, optimizer=optimizer)  # type: ignore[arg-type]  # a literal
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        assert set(rates) == {id(parameter) for parameter in model.parameters()}
        if optimizer == "adamw":
            assert rates[id(model.gate.weight)] == pytest.approx(0.1 / 4)
            up_A = model.up.get_parameter("A")
            assert rates[id(up_A)] == pytest.approx(0.1 / 4 * model.up.lr_rules()["A"].adam_lr_mult)

    def test_has_matrices_with_the_fans_of_its_rules(self) -> None:
        for layer in (EinsumMoE(24, 60, GENERAL, num_experts=3), DenseMoE(24, 60, num_experts=3)):
            for name, rule in layer.lr_rules().items():
                shape, (batch, rows, columns) = layer.get_parameter(name).shape, layer.matrix_views()[name]
                assert sorted((*batch, *rows, *columns)) == list(range(len(shape)))
                assert torch.Size([shape[axis] for axis in rows]).numel() == rule.fan_out
                assert torch.Size([shape[axis] for axis in columns]).numel() == rule.fan_in


class TestModule:
    def test_saves_and_loads(self) -> None:
        layer, twin = (EinsumMoE(20, 30, "btt") for _ in range(2))
        nn.init.normal_(layer.gate.weight)
        assert sorted(layer.state_dict()) == ["A", "B", "bias", "gate.weight"]
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        twin.load_state_dict(torch.load(file, weights_only=True))
        x_TI = torch.randn(5, 20)
        assert torch.equal(twin(x_TI), layer(x_TI))

    def test_can_be_copied_after_a_forward_pass(self, mixture: LinearMoE) -> None:
        x_TI = _normal(5, mixture.d_in)
        y_TO = mixture(x_TI)
        assert torch.equal(copy.deepcopy(mixture)(x_TI), y_TO)

    def test_can_be_made_without_memory_and_filled_later(self) -> None:
        layer = EinsumMoE(20, 30, "btt", device="meta")
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        layer.to_empty(device="cpu")
        layer.reset_parameters()
        layer.gate.reset_parameters()
        assert layer(torch.randn(5, 20)).isfinite().all()

    def test_can_be_made_from_axes(self) -> None:
        dims = EinsumLinear.monarch(16, 24, num_blocks=2).dims
        layer = EinsumMoE.from_dims(dims, num_experts=3, bias=False)
        assert layer.dims == dims
        assert layer.A.shape == (3, dims.phi, dims.delta, dims.rho, dims.gamma, dims.alpha)
        assert layer.B.shape == (3, dims.phi, dims.epsilon, dims.rho, dims.gamma, dims.beta)

    def test_keeps_its_gate_when_linear_layers_are_replaced(self) -> None:
        model = nn.ModuleDict({"mixture": EinsumMoE(16, 16, "monarch"), "linear": nn.Linear(16, 16)})
        report = replace_linears(model, NAMED["monarch"])
        assert [row.name for row in report.replaced] == ["linear"]
        assert [row.name for row in report.kept] == ["mixture.gate"]

    def test_prints_its_sizes(self) -> None:
        printed = repr(EinsumMoE(16, 16, "monarch", num_experts=3, bias=False))
        assert "16, 16, num_experts=3, bias=False, axes=(4, 1, 4, 1, 4, 4, 1)" in printed
        assert "(gate): Router(16, 3, top_k=2)" in printed

    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"top_k": 9}, "top_k"),
            ({"top_k": 0}, "top_k"),
            ({"num_experts": 0}, "num_experts"),
            ({"num_experts": 2.5}, "num_experts"),
            ({"d_in": 0}, "d_in"),
            ({"d_out": -1}, "d_out"),
        ],
    )
    def test_refuses_sizes_that_are_none_and_names_them(self, options: dict[str, object], field: str) -> None:
        arguments: dict[str, object] = {"d_in": 16, "d_out": 16, **options}
        makers: list[Callable[..., nn.Module]] = [EinsumMoE, LowRankMoE, DenseMoE]
        for make in makers:
            with pytest.raises(FieldError, match=f"^{field}: expected a whole number"):
                make(**arguments, **({"theta": "monarch"} if make is EinsumMoE else {}))

    @pytest.mark.parametrize("layer", [DenseMoE(8, 6), EinsumMoE(8, 6, "btt"), FeedForwardMoE(8, 16)])
    def test_refuses_an_input_of_another_width(self, layer: nn.Module) -> None:
        with pytest.raises(FieldError, match=r"^input: expected 8 features on the last axis, got \(3, 9\)"):
            layer(torch.zeros(3, 9))

    def test_refuses_an_unknown_theta(self) -> None:
        with pytest.raises(FieldError, match=r"^theta: expected seven exponents"):
            EinsumMoE(16, 16, "butterfly")
        with pytest.raises(FieldError, match=r"^theta: expected seven exponents"):
            FeedForwardMoE(16, 32, theta="butterfly")


@dataclass(frozen=True, slots=True)
class _Gate:
    """Which experts each token takes, by torch's own top-k; the tests' logits are never equal."""

    experts_TK: Tensor
    weights_TK: Tensor

    @classmethod
    def of(cls, layer: LinearMoE | FeedForwardMoE, x_TI: Tensor) -> "_Gate":
        values_TK, experts_TK = torch.topk(x_TI @ layer.gate.weight.mT, layer.gate.top_k)
        return cls(experts_TK, values_TK.softmax(1))


def _oracle(layer: LinearMoE, x_TI: Tensor) -> Tensor:
    """Every token by itself: its experts' matrices, multiplied out, one after the other."""
    gate, matrices_EOI = _Gate.of(layer, x_TI), _matrices(layer)
    rows = []
    for x_I, experts_K, weights_K in zip(x_TI, gate.experts_TK, gate.weights_TK, strict=True):
        y_O = sum(weight * (matrices_EOI[expert] @ x_I) for expert, weight in zip(experts_K, weights_K, strict=True))
        assert isinstance(y_O, Tensor)
        rows.append(y_O if layer.bias is None else y_O + layer.bias)
    return torch.stack(rows)


def _feed_forward_oracle(layer: FeedForwardMoE, x_TI: Tensor) -> Tensor:
    gate, up_EHI, down_EIH = _Gate.of(layer, x_TI), _matrices(layer.up), _matrices(layer.down)
    assert layer.up.bias is not None
    assert layer.down.bias is not None
    y_TI = []
    for x_I, experts_K, weights_K in zip(x_TI, gate.experts_TK, gate.weights_TK, strict=True):
        y_I = torch.zeros_like(x_I)
        for e, weight in zip(experts_K.tolist(), weights_K, strict=True):
            z_H = nn.functional.gelu(up_EHI[e] @ x_I + layer.up.bias[e])
            y_I = y_I + weight * (down_EIH[e] @ z_H + layer.down.bias[e])
        y_TI.append(y_I)
    return torch.stack(y_TI)


def _matrices(layer: Experts) -> Tensor:
    """``(E, d_out, d_in)``, with zeros for the features that the axes do not hold."""
    parameters = dict(layer.named_parameters(recurse=False))
    if "weight" in parameters:
        return parameters["weight"]
    W_Efedgba = torch.einsum("nfdrga,nfergb->nfedgba", parameters["A"], parameters["B"])
    W_EOI = W_Efedgba.flatten(4).flatten(1, 3)
    padded_EOI = W_EOI.new_zeros(len(W_EOI), 200, 200)
    padded_EOI[:, : W_EOI.shape[1], : W_EOI.shape[2]] = W_EOI
    return padded_EOI[:, : layer.d_out, : layer.d_in]


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
