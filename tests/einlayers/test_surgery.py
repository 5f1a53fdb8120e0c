# B batch, T tokens, D width

import pytest
import torch
from torch import Tensor, nn

from einlayers.btt import BTTLinear
from einlayers.dims import Dims, resolve
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.projection import project
from einlayers.replacements import Replacements
from einlayers.surgery import densify, param_groups, replace_linears
from einlayers.taxonomy import cost
from einlayers.theta import NAMED, Theta

FULL = Theta.parse("(1|0|0|0|1|0|1)")
"""Low rank at full rank: holds every matrix, and is not the dense structure."""

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
"""Between the same function computed in two orders."""


class Block(nn.Module):
    """Linear layers under an attribute, in a list, in a sequence and in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(16, 32)
        self.parts = nn.ModuleList([nn.Sequential(nn.GELU(), nn.Linear(32, 24, bias=False))])
        self.named = nn.ModuleDict({"down": nn.Linear(24, 16)})

    def forward(self, x_BD: Tensor) -> Tensor:
        out_BD: Tensor = self.named["down"](self.parts[0](self.up(x_BD)))
        return x_BD + out_BD


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), Block(), nn.Linear(16, 3))


def kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    return {
        name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear | EinsumLinear)
    }


def structured(model: nn.Module, name: str = "0") -> EinsumLinear:
    layer = model.get_submodule(name)
    assert isinstance(layer, EinsumLinear)
    return layer


def rows(report: Replacements) -> list[str]:
    return [row.name for row in report.replaced]


class TestConversion:
    def test_replaces_every_linear_layer_wherever_it_is(self) -> None:
        model = network()
        names = list(kinds(model))
        report = replace_linears(model, "monarch")
        assert rows(report) == names == list(kinds(model))
        assert len(names) == 7
        assert set(kinds(model).values()) == {EinsumLinear}
        assert model(torch.randn(5, 16)).shape == (5, 3)

    def test_keeps_the_order_of_modules(self) -> None:
        model = network()
        before = [name for name, _ in model.named_modules()]
        replace_linears(model, "btt")
        assert [name for name, _ in model.named_modules()] == before

    def test_builds_the_structure_that_is_asked_for(self) -> None:
        for structure in ("btt", NAMED["btt"], resolve(NAMED["btt"], 16, 32)):
            model = nn.Sequential(nn.Linear(16, 32, bias=False))
            replace_linears(model, structure)
            expected = EinsumLinear(16, 32, "btt", bias=False)
            assert repr(model[0]) == repr(expected) or isinstance(structure, Dims)
            assert model[0].dims == expected.dims

    def test_asks_a_function_for_the_structure_of_each_layer(self) -> None:
        model = network()

        def structure(name: str, linear: nn.Linear) -> Theta | str | Dims | None:
            if name.endswith("up"):
                return resolve(NAMED["btt"], linear.in_features, linear.out_features)
            chosen: dict[str, Theta | str] = {
                "0.named.down": "monarch",
                "1.named.down": NAMED["low-rank"],
                "2": "dense",
            }
            return chosen.get(name)

        report = replace_linears(model, structure)
        assert rows(report) == ["0.up", "0.named.down", "1.up", "1.named.down"]
        assert structured(model, "1.named.down").theta == NAMED["low-rank"]
        assert {kept.name: kept.reason for kept in report.kept} == {
            "0.parts.0.1": "no structure was chosen for it",
            "1.parts.0.1": "no structure was chosen for it",
            "2": "its structure is dense",
        }

    def test_keeps_a_layer_whose_axes_would_be_dense(self) -> None:
        model, small = nn.Sequential(nn.Linear(16, 17), nn.Linear(2**14, 16)), Theta.of((0.05, 0.95, 0, 0, 1, 0, 0))
        report = replace_linears(model, small)
        assert rows(report) == ["1"]
        assert {kept.name: kept.reason for kept in report.kept} == {"0": "its structure is dense"}

    def test_passes_options_on(self) -> None:
        model = nn.Sequential(nn.Linear(16, 17))
        replace_linears(model, "btt", policy="round", zero_init=True, weight_norm=True, recompute=True)
        expected = EinsumLinear(16, 17, "btt", policy="round", zero_init=True, weight_norm=True, recompute=True)
        assert repr(model[0]) == repr(expected)
        assert model[0].dims == expected.dims

    def test_draws_what_a_layer_of_its_own_would_draw_and_zeroes_the_bias(self) -> None:
        model = nn.Sequential(nn.Linear(16, 32))
        torch.manual_seed(5)
        replace_linears(model, "btt")
        torch.manual_seed(5)
        expected = EinsumLinear(16, 32, "btt")
        torch.testing.assert_close(model[0].state_dict(), expected.state_dict(), atol=0, rtol=0)

    @pytest.mark.parametrize("init", ["fresh", "project"])
    def test_carries_over_dtype_mode_and_what_is_frozen(self, init: str) -> None:
        linear = nn.Linear(16, 32, dtype=torch.float64).eval()
        linear.weight.requires_grad_(False)
        model = nn.Sequential(linear)
        replace_linears(model, "btt", init=init)  # type: ignore[arg-type]
        layer = model[0]
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
        assert not layer.training
        assert {name for name, parameter in layer.named_parameters() if parameter.requires_grad} == {"bias"}

    def test_works_without_memory(self) -> None:
        model = network().to("meta")
        replace_linears(model, "btt")
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        with pytest.raises(FieldError, match=r"^init: expected fresh for a model on the meta device"):
            replace_linears(nn.Sequential(nn.Linear(8, 8, device="meta")), "btt", init="project")


class TestPatterns:
    def test_choose_by_dotted_names(self) -> None:
        assert rows(replace_linears(network(), "btt", include="*.up")) == ["0.up", "1.up"]
        assert rows(replace_linears(network(), "btt", include=("0.*", "2"), exclude="*.down")) == [
            "0.up", "0.parts.0.1", "2"
        ]  # fmt: skip

    def test_that_match_nothing_are_answered_with_names(self) -> None:
        names = r"0\.up, 0\.parts\.0\.1, 0\.named\.down, 1\.up, 1\.parts\.0\.1"
        with pytest.raises(
            FieldError, match=rf"^include: expected a pattern of layers of the model \({names}\), got 'h\.\*'"
        ):
            replace_linears(network(), "btt", include="h.*")
        with pytest.raises(FieldError, match=r"none, it holds no nn.Linear"):
            replace_linears(nn.Sequential(nn.ReLU()), "btt")
        with pytest.raises(FieldError, match=r"none, it holds no nn.Linear"):
            replace_linears(nn.Linear(4, 4), "btt")

    def test_leave_narrow_layers_on_request(self) -> None:
        report = replace_linears(network(), "btt", min_features=16)
        assert [(kept.name, kept.reason) for kept in report.kept] == [("2", "it has fewer than 16 features")]


class TestProjection:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_at_full_rank_keeps_the_function(self, dtype: torch.dtype) -> None:
        model, x_BD = network().to(dtype), torch.randn(5, 16, dtype=dtype)
        before = model(x_BD)
        report = replace_linears(model, FULL, init="project")
        assert set(kinds(model).values()) == {EinsumLinear}
        torch.testing.assert_close(model(x_BD), before, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        assert max(row.error for row in report.replaced if row.error is not None) < TOLERANCE[dtype]

    def test_takes_the_nearest_matrix_and_the_same_bias(self) -> None:
        model = nn.Sequential(nn.Linear(16, 32))
        weight, bias = (parameter.detach().clone() for parameter in model.parameters())
        (row,) = replace_linears(model, "btt", init="project").replaced
        nearest = project(weight, "btt").layer().to_dense()
        layer = structured(model)
        torch.testing.assert_close(layer.to_dense(), nearest)
        assert layer.bias is not None
        assert torch.equal(layer.bias, bias)
        assert row.error == pytest.approx((torch.dist(weight, nearest) / weight.norm()).item(), rel=1e-5)

    def test_of_zero_is_a_zero_map_that_learns(self) -> None:
        linear = nn.Linear(16, 32)
        nn.init.zeros_(linear.weight)
        model = nn.Sequential(linear)
        (row,) = replace_linears(model, "btt", init="project").replaced
        y_BO = model(torch.randn(4, 16))
        assert torch.equal(y_BO, linear.bias.expand(4, 32))
        assert row.error == 0
        y_BO.square().sum().backward()
        gradient = structured(model).B.grad
        assert gradient is not None
        assert gradient.abs().max() > 0

    def test_passes_on_how_to_compute(self) -> None:
        model = nn.Sequential(nn.Linear(16, 17))
        replace_linears(model, "btt", init="project", recompute=True, policy="round")
        assert structured(model).recompute
        assert structured(model).dims == resolve(NAMED["btt"], 16, 17, "round")

    @pytest.mark.parametrize("option", ["zero_init", "weight_norm"])
    def test_refuses_what_would_change_the_weights(self, option: str) -> None:
        with pytest.raises(FieldError, match=f"^init: expected fresh with {option}"):
            replace_linears(network(), "btt", init="project", **{option: True})  # type: ignore[arg-type]


class TestSharing:
    def test_of_one_layer_under_two_names_makes_one_new_layer(self) -> None:
        shared = nn.Linear(16, 16)
        model = nn.ModuleDict({"first": shared, "second": nn.Sequential(shared, nn.ReLU())})
        report = replace_linears(model, "btt")
        assert rows(report) == ["first"]
        assert structured(model, "first") is structured(model, "second.0")
        assert rows(densify(model)) == ["first"]
        assert type(model["first"]) is nn.Linear
        assert model.get_submodule("second.0") is model.get_submodule("first")

    def test_of_a_layer_is_kept_where_any_of_its_names_is_excluded(self) -> None:
        shared = nn.Linear(16, 16)
        model = nn.ModuleDict({"first": shared, "second": shared, "third": nn.Linear(16, 16)})
        assert rows(replace_linears(model, "btt", exclude="second")) == ["third"]

    def test_of_one_block_under_two_names_replaces_its_layer_once(self) -> None:
        block = Block()
        model = nn.Sequential(block, block)
        assert rows(replace_linears(model, "btt", include="*.up")) == ["0.up"]
        assert model[0] is model[1]
        assert structured(model, "1.up") is structured(model, "0.up")

    def test_of_a_weight_keeps_the_layer(self) -> None:
        model = nn.ModuleDict({"embedding": nn.Embedding(96, 16), "up": nn.Linear(16, 16), "head": nn.Linear(16, 96)})
        model["head"].weight = model["embedding"].weight
        report = replace_linears(model, "btt")
        assert rows(report) == ["up"]
        assert [(kept.name, kept.reason) for kept in report.kept] == [
            ("head", "it shares a parameter with another module (Embedding)")
        ]
        assert model["head"].weight is model["embedding"].weight


class TestObstacles:
    """Layers that are more than a matrix and a bias are left, and the report says why."""

    def test_a_transformer_keeps_what_its_attention_reads(self) -> None:
        model = _transformer()
        report = replace_linears(model, FULL, init="project")
        assert rows(report) == [f"layers.{layer}.{name}" for layer in (0, 1) for name in ("linear1", "linear2")]
        reason = "its weight is read directly by nn.MultiheadAttention"
        assert [(kept.name, kept.reason) for kept in report.kept] == [
            (f"layers.{layer}.self_attn.out_proj", reason) for layer in (0, 1)
        ]

    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    @pytest.mark.parametrize("mode", ["training", "inference"])
    def test_a_transformer_computes_the_same_in_and_out(self, mode: str) -> None:
        model = _transformer().train(mode == "training")
        x_BTD = torch.randn(3, 5, 16)
        padding_BT = torch.arange(5) >= torch.tensor([[5], [3], [4]])
        with torch.set_grad_enabled(mode == "training"):
            expected = model(x_BTD), model(x_BTD, src_key_padding_mask=padding_BT)[~padding_BT]
            for is_back in (False, True):
                densify(model) if is_back else replace_linears(model, FULL, init="project")
                torch.testing.assert_close(model(x_BTD), expected[0], atol=1e-5, rtol=1e-5)
                found = model(x_BTD, src_key_padding_mask=padding_BT)[~padding_BT]
                torch.testing.assert_close(found, expected[1], atol=1e-5, rtol=1e-5)

    def test_hooks_would_be_lost(self) -> None:
        hooked = nn.Linear(16, 16)
        hooked.register_forward_hook(lambda *_: None)
        assert _reason(hooked) == "it has hooks, which would be lost"

    def test_parametrisations_would_be_lost(self) -> None:
        linear = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        assert _reason(linear) == "ParametrizedLinear has a forward of its own" or "more than a weight" in _reason(
            linear
        )

    def test_a_subclass_may_do_something_else(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        class Plain(nn.Linear):
            pass

        assert _reason(Scaled(16, 16)) == "Scaled has a forward of its own"
        assert rows(replace_linears(nn.Sequential(Plain(16, 16)), "btt")) == ["0"]

    def test_buffers_would_be_lost(self) -> None:
        linear = nn.Linear(16, 16)
        linear.register_buffer("mask", torch.ones(16, 16))
        assert _reason(linear) == "it holds more than a weight and a bias: mask"

    def test_a_lazy_layer_has_no_widths(self) -> None:
        assert _reason(nn.LazyLinear(16)) == "it has no widths yet; run the model once"

    def test_are_an_error_where_nothing_else_matches(self) -> None:
        with pytest.raises(
            FieldError, match=r"^include: expected a layer that can be replaced, got 'layers.0.self_attn"
        ):
            replace_linears(_transformer(), "btt", include="*.out_proj")


class TestFailure:
    def test_leaves_the_model_as_it_was(self) -> None:
        model = network()
        before, parts = list(kinds(model).items()), [id(module) for module in model.modules()]

        def structure(name: str, linear: nn.Linear) -> str:
            return "no such" if name == "2" else "btt"

        with pytest.raises(FieldError, match=r"^theta: expected seven exponents"):
            replace_linears(model, structure)
        assert list(kinds(model).items()) == before
        assert [id(module) for module in model.modules()] == parts

    def test_tells_a_bad_structure(self) -> None:
        with pytest.raises(FieldError, match=r"^structure: expected a theta, its name, axes, or a function .* got 3$"):
            replace_linears(network(), 3)  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(FieldError, match=r"^structure: expected axes for 0.up, 16 -> 32, got '8 -> 8'"):
            replace_linears(network(), resolve(NAMED["btt"], 8, 8))

    def test_tells_bad_arguments(self) -> None:
        with pytest.raises(FieldError, match=r"^init: expected one of fresh, project, got 'copy'"):
            replace_linears(network(), "btt", init="copy")  # type: ignore[arg-type]  # the point of the test
        with pytest.raises(FieldError, match=r"^min_features: expected a whole number"):
            replace_linears(network(), "btt", min_features=0)
        with pytest.raises(FieldError, match=r"^policy: expected one of"):
            replace_linears(network(), "btt", policy="opt")  # type: ignore[arg-type]  # the point of the test


class TestReport:
    def test_has_the_numbers_of_the_layers(self) -> None:
        model = network()
        report = replace_linears(model, "monarch", init="project")
        for row in report.replaced:
            layer = model.get_submodule(row.name)
            assert isinstance(layer, EinsumLinear)
            biases = 0 if layer.bias is None else row.d_out
            assert (row.d_in, row.d_out, row.dims) == (layer.dims.d_in, layer.dims.d_out, layer.dims)
            assert row.params_before == row.d_in * row.d_out + biases
            assert row.params_after == cost(layer.dims).params + biases
            assert (row.macs_before, row.macs_after) == (row.d_in * row.d_out, cost(layer.dims).macs)
        assert report.params_after == sum(parameter.numel() for parameter in model.parameters())
        assert report.macs_before == 2 * (16 * 32 + 32 * 24 + 24 * 16) + 16 * 3

    def test_has_no_error_for_fresh_layers(self) -> None:
        assert {row.error for row in replace_linears(network(), "btt").replaced} == {None}

    def test_prints_as_a_table(self) -> None:
        model = nn.Sequential(nn.Linear(16, 64), nn.Linear(64, 2))
        printed = str(replace_linears(model, "monarch", min_features=4)).splitlines()
        assert printed == [
            "layer  widths    a, b, g | d, e, f | r  parameters          MACs                error",
            "0      16 -> 64  4, 1, 4 | 1, 8, 8 | 1  1,088 -> 448 (41%)  1,024 -> 384 (38%)  -",
            "total                                   1,088 -> 448 (41%)  1,024 -> 384 (38%)",
            "kept 1: it has fewer than 4 features",
        ]


class TestDensify:
    @pytest.mark.parametrize("dtype", TOLERANCE)
    def test_keeps_the_function_of_a_model(self, dtype: torch.dtype) -> None:
        model, x_BD = network().to(dtype), torch.randn(5, 16, dtype=dtype)
        replace_linears(model, "btt", weight_norm=True)
        model.append(BTTLinear(3, 30, num_cores=3, dtype=dtype))
        before, names = model(x_BD), [*kinds(model), "3"]
        report = densify(model)
        assert rows(report) == names
        assert set(kinds(model).values()) == {nn.Linear}
        torch.testing.assert_close(model(x_BD), before, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])

    @pytest.mark.parametrize("policy", ["exact", "round"])
    def test_keeps_the_function_of_a_padded_layer(self, policy: str) -> None:
        layer = EinsumLinear(17, 31, "monarch", policy=policy, dtype=torch.float64)  # type: ignore[arg-type]
        assert layer.bias is not None
        nn.init.normal_(layer.bias)
        linear, x_BD = densify(layer), torch.randn(5, 17, dtype=torch.float64)
        assert type(linear) is nn.Linear
        assert (linear.in_features, linear.out_features) == (17, 31)
        torch.testing.assert_close(linear(x_BD), layer(x_BD), atol=1e-10, rtol=1e-10)

    def test_makes_parameters_of_its_own(self) -> None:
        layer = EinsumLinear(16, 16, "btt").eval()
        layer.A.requires_grad_(False)
        linear = densify(layer)
        assert linear.weight.is_leaf
        assert linear.weight.requires_grad
        assert not linear.training
        linear.bias.data.fill_(7)
        assert layer.bias is not None
        assert layer.bias.abs().max() == 0
        layer.B.requires_grad_(False)
        assert not densify(layer).weight.requires_grad

    def test_draws_no_random_numbers(self) -> None:
        layer = EinsumLinear(16, 16, "btt")
        state = torch.get_rng_state()
        densify(layer)
        assert torch.equal(torch.get_rng_state(), state)

    def test_goes_by_patterns_and_keeps_hooked_layers(self) -> None:
        model = nn.Sequential(*(EinsumLinear(16, 16, "btt") for _ in range(3)))
        model[1].register_forward_hook(lambda *_: None)
        report = densify(model, exclude="2")
        assert rows(report) == ["0"]
        assert [kept.name for kept in report.kept] == ["1"]
        with pytest.raises(FieldError, match=r"^include: expected a layer that can be replaced"):
            densify(model, include="1")

    def test_needs_something_structured(self) -> None:
        with pytest.raises(
            FieldError, match=r"^include: expected a pattern of layers of the model \(none, it holds no"
        ):
            densify(network())

    def test_reports_the_way_back(self) -> None:
        model = network()
        there, back = replace_linears(model, "monarch"), densify(model)
        assert (back.params_before, back.params_after) == (there.params_after, there.params_before)
        assert (back.macs_before, back.macs_after) == (there.macs_after, there.macs_before)
        assert [row.dims for row in back.replaced] == [row.dims for row in there.replaced]


class TestTraining:
    def test_of_a_converted_model_has_the_rates_of_its_base(self) -> None:
        base, model = network(), network()
        replace_linears(model, "monarch", include="*.up")
        groups = param_groups(model, 0.01, base=base)
        rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        assert rates[id(structured(model, "0.up").A)] == pytest.approx(0.01 * 16 / 4 / 2)
        assert rates[id(model[2].weight)] == 0.01


def _transformer() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return nn.TransformerEncoder(layer, 2)


def _reason(linear: nn.Linear) -> str:
    model = nn.Sequential(nn.Linear(16, 16), linear)
    report = replace_linears(model, "btt")
    assert rows(report) == ["0"]
    assert model[1] is linear
    (kept,) = report.kept
    return kept.reason
