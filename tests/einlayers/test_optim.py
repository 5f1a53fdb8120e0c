"""Rates of whole models: by hand for small ones, and equal to those that the trials of the search are trained with."""

import math

import pytest
import torch
from torch import Tensor, nn

from einlayers.attention import LinearFactory
from einlayers.btt import BTTLinear
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.muon import Group, matrices
from einlayers.optim import param_groups
from einlayers.scaling import View
from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM
from workers import transfer
from workers.models.gpt import GPT
from workers.models.layers import Layers
from workers.models.linears import dense_linear, linear_factory

LR = 0.01
EXACT = 1e-12


class Block(nn.Module):
    """A residual block with the usual parts."""

    def __init__(self, width: int, linear: type[nn.Linear] | LinearFactory = nn.Linear) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(linear(width, 4 * width), nn.GELU(), linear(4 * width, width))

    def forward(self, x_BD: Tensor) -> Tensor:
        update_BD: Tensor = self.mlp(self.norm(x_BD))
        return x_BD + update_BD


class Net(nn.Module):
    """An embedding, blocks, a head."""

    def __init__(self, width: int, depth: int, linear: type[nn.Linear] | LinearFactory = nn.Linear) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, width)
        self.blocks = nn.ModuleList(Block(width, linear) for _ in range(depth))
        self.head = nn.Linear(width, 10)


def monarch(d_in: int, d_out: int, *, zero_init: bool = False) -> EinsumLinear:
    return EinsumLinear(d_in, d_out, "monarch", weight_norm=True, zero_init=zero_init)


def settings(model: nn.Module, groups: list[Group], key: str = "lr") -> dict[str, float]:
    """The rate (or another entry of its group) of every parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group[key] for group in groups for parameter in group["params"]}


def meta(width: int, depth: int) -> Net:
    with torch.device("meta"):
        return Net(width, depth)


class TestAdam:
    def test_divides_the_rates_of_dense_matrices_by_how_much_wider_they_are(self) -> None:
        model = Net(32, 1)
        found = settings(model, param_groups(model, LR, base=meta(8, 1), input_lr_mult=3))
        matrices = {"blocks.0.mlp.0.weight", "blocks.0.mlp.2.weight", "head.weight"}
        by_hand = {name: LR / 4 if name in matrices else 3 * LR for name in found}
        assert found == pytest.approx(by_hand, rel=EXACT)

    def test_multiplies_those_of_factors_by_their_rule(self) -> None:
        model = Net(64, 1, monarch)
        found = settings(model, param_groups(model, LR, base=meta(16, 1), input_lr_mult=3))
        # 64 = 8 x 8: fans of A and B are 8, so d_in / fan_in / 2 = 4; of 256 -> 64: alpha = gamma = 16, hence 8.
        for key in ("A", "B"):
            assert found[f"blocks.0.mlp.0.{key}"] == pytest.approx(LR / 4 * 4, rel=EXACT)
            assert found[f"blocks.0.mlp.2.{key}"] == pytest.approx(LR / 4 * 8, rel=EXACT)
            assert found[f"blocks.0.mlp.0.gain_{key}"] == found["blocks.0.mlp.0.bias"] == 3 * LR

    def test_takes_the_model_as_its_own_base(self) -> None:
        model = nn.Sequential(nn.Linear(8, 64), EinsumLinear(64, 64, "monarch", bias=False))
        found = settings(model, param_groups(model, LR))
        assert found == pytest.approx({"0.weight": LR, "0.bias": LR, "1.A": 4 * LR, "1.B": 4 * LR}, rel=EXACT)

    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize("width", [16, 64, 96])
    def test_has_the_rates_of_the_trials(self, name: str, width: int) -> None:
        def gpt(width: int, depth: int, linear: LinearFactory) -> GPT:
            layers = Layers(linear=linear)
            return GPT(vocabulary=96, context=16, width=width, depth=depth, num_heads=4, layers=layers)

        with torch.device("meta"):
            base = gpt(32, 2, dense_linear)
        model = gpt(width, 3, linear_factory(NAMED[name]))
        ours = param_groups(model, LR, base=base, optimizer="adam", input_lr_mult=CharLM().input_lr_mult)
        theirs = transfer.param_groups(model, CharLM(context=16, depth=3, base_lr=LR))
        assert settings(model, ours) == pytest.approx(settings(model, theirs), rel=EXACT)
        assert settings(model, ours, "weight_decay").keys() == dict(model.named_parameters()).keys()

    def test_knows_the_matrices_of_attention_and_of_convolutions(self) -> None:
        def model(width: int) -> nn.ModuleDict:
            return nn.ModuleDict(
                {"attention": nn.MultiheadAttention(width, 2), "convolution": nn.Conv2d(width, 2 * width, 3)}
            )

        wide = model(24)
        found = settings(wide, param_groups(wide, LR, base=model(8)))
        assert {name for name, lr in found.items() if lr == pytest.approx(LR / 3)} == {
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "convolution.weight",
        }
        assert {lr for name, lr in found.items() if "bias" in name} == {LR}


class TestSgd:
    def test_goes_with_fans_and_lengths(self) -> None:
        model = Net(32, 1)
        found = settings(model, param_groups(model, LR, base=meta(8, 1), optimizer="sgd", input_lr_mult=3))
        by_hand = {
            "embedding.weight": 12 * LR,
            "blocks.0.norm.weight": 12 * LR,
            "blocks.0.norm.bias": 12 * LR,
            "blocks.0.mlp.0.weight": LR,
            "blocks.0.mlp.0.bias": 12 * LR,
            "blocks.0.mlp.2.weight": LR,
            "blocks.0.mlp.2.bias": 12 * LR,
            "head.weight": LR / 4,
            "head.bias": 3 * LR,
        }
        assert found == pytest.approx(by_hand, rel=EXACT)

    def test_multiplies_those_of_factors_by_their_rule(self) -> None:
        model = Net(64, 1, monarch)
        found = settings(model, param_groups(model, LR, base=meta(16, 1), optimizer="sgd"))
        # 64 -> 256, monarch: A has fan_in 8 and 128 outputs, B 8 and 256, so (128 / 8) / (256 / 64) / 2 and twice that.
        assert found["blocks.0.mlp.0.A"] == pytest.approx(2 * LR, rel=EXACT)
        assert found["blocks.0.mlp.0.B"] == pytest.approx(4 * LR, rel=EXACT)
        # 256 -> 64: A has fan_in 16 and 128 outputs, B 16 and 64.
        assert found["blocks.0.mlp.2.A"] == pytest.approx(16 * LR, rel=EXACT)
        assert found["blocks.0.mlp.2.B"] == pytest.approx(8 * LR, rel=EXACT)
        # Biases, which the base may lack, go with the width; scalar gains with nothing.
        assert found["blocks.0.mlp.0.bias"] == pytest.approx(4 * LR, rel=EXACT)
        assert found["blocks.0.mlp.0.gain_A"] == LR

    def test_knows_the_length_of_a_bias_that_the_base_lacks(self) -> None:
        model = nn.Sequential(EinsumLinear(16, 64, "monarch"))
        found = settings(
            model, param_groups(model, LR, base=nn.Sequential(nn.Linear(4, 16, bias=False)), optimizer="sgd")
        )
        assert found["0.bias"] == 4 * LR


class TestMuon:
    def test_has_one_rate_per_number_of_factors_at_every_width(self) -> None:
        for width in (16, 64):
            model = Net(width, 1, monarch)
            groups = param_groups(model, LR, base=meta(8, 1), optimizer="muon", input_lr_mult=0.1)
            rates, views = settings(model, groups), settings(model, groups, "view")
            assert rates["head.weight"] == LR
            assert rates["blocks.0.mlp.0.A"] == rates["blocks.0.mlp.0.B"] == LR / 2
            vectors = {
                name for name in rates if "bias" in name or "norm" in name or "gain" in name or "embedding" in name
            }
            assert {name for name, view in views.items() if view is None} == vectors
            assert {rates[name] for name in vectors} == {0.1 * LR}

    def test_takes_a_kernel_as_columns(self) -> None:
        model = nn.Sequential(nn.Conv2d(4, 8, 3, bias=False))
        (group,) = param_groups(model, LR, optimizer="muon")
        assert group["view"] == ((), (0,), (1, 2, 3))

    def test_takes_the_views_that_a_layer_declares(self) -> None:
        class Declared(EinsumLinear):
            def matrix_views(self) -> dict[str, View]:
                return {"A": ((0, 3), (1, 2), (4,)), "B": ((0,), (1,), (2, 3, 4))}

        model = nn.Sequential(Declared(16, 16, "btt", bias=False))
        views = settings(model, param_groups(model, LR, optimizer="muon"), "view")
        assert views["0.A"] == ((0, 3), (1, 2), (4,))  # type: ignore[comparison-overlap]  # not a number for this entry

    def test_knows_every_core_of_a_longer_chain(self) -> None:
        layer = BTTLinear(24, 60, num_cores=3, rank=2, bias=False)
        groups = param_groups(layer, LR, optimizer="muon")
        assert settings(layer, groups) == pytest.approx({f"core_{i}": LR / 3 for i in (1, 2, 3)}, rel=EXACT)
        for name, rule in layer.lr_rules().items():
            assert matrices(layer.get_parameter(name), layer.matrix_views()[name]).shape[1:] == (
                rule.fan_out,
                rule.fan_in,
            )

    def test_refuses_factors_whose_matrices_are_not_known(self) -> None:
        class Unknown(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.d_in = self.d_out = 4
                self.core = nn.Parameter(torch.zeros(2, 2))

            def lr_rules(self) -> dict[str, object]:
                return {"core": EinsumLinear(4, 4, "monarch").rules.A}

        model = nn.Sequential(Unknown())
        assert settings(model, param_groups(model, LR)) == {"0.core": pytest.approx(LR)}
        with pytest.raises(FieldError, match=r"^0: expected a layer whose matrix_views"):
            param_groups(model, LR, optimizer="muon")


class TestWeightDecay:
    @pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
    def test_takes_the_same_share_of_every_matrix_and_none_of_vectors(self, optimizer: str) -> None:
        model = Net(64, 2, monarch)
        groups = param_groups(model, LR, base=meta(8, 1), optimizer=optimizer, weight_decay=0.1)  # type: ignore[arg-type]
        shares = {name: group["lr"] * group["weight_decay"] for group in groups for name in _names(model, group)}
        matrices = {name for name in shares if name.endswith((".A", ".B", "head.weight"))}
        by_hand = {name: LR * 0.1 if name in matrices else 0.0 for name in shares}
        assert shares == pytest.approx(by_hand, rel=EXACT)

    def test_is_what_adamw_takes(self) -> None:
        model = Net(64, 1, monarch)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        torch.optim.AdamW(param_groups(model, LR, base=meta(8, 1), weight_decay=0.1)).step()
        torch.testing.assert_close(model.head.weight.detach(), before["head.weight"] * (1 - LR * 0.1))
        assert torch.equal(model.embedding.weight, before["embedding.weight"])

    def test_is_refused_for_adam_which_has_none_apart_from_the_gradient(self) -> None:
        with pytest.raises(FieldError, match=r"^weight_decay: expected 0, as the decay of adam"):
            param_groups(nn.Linear(2, 2), LR, optimizer="adam", weight_decay=0.1)


class TestDepthRule:
    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    def test_multiplies_rates_inside_the_blocks_by_the_scale_of_branches(self, optimizer: str) -> None:
        model = Net(16, 8, monarch)
        plain, scaled = (
            settings(model, param_groups(model, LR, base=meta(8, 2), optimizer=optimizer, depth_rule=rule))  # type: ignore[arg-type]
            for rule in (False, True)
        )
        by_hand = {name: lr * math.sqrt(2 / 8) if name.startswith("blocks") else lr for name, lr in plain.items()}
        assert scaled == pytest.approx(by_hand, rel=EXACT)

    def test_leaves_the_rates_of_sgd(self) -> None:
        model = Net(16, 8)
        plain, scaled = (
            param_groups(model, LR, base=meta(8, 2), optimizer="sgd", depth_rule=rule) for rule in (False, True)
        )
        assert settings(model, scaled) == settings(model, plain)

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_moves_the_output_as_far_at_every_depth(self, optimizer: str) -> None:
        """The oracle of both rules: linear residual blocks of scale sqrt(1/L), one step, the change of the output."""

        def make(depth: int) -> nn.ModuleList:
            return nn.ModuleList(nn.ModuleDict({"up": nn.Linear(64, 64, bias=False)}) for _ in range(depth))

        moved = {}
        for depth in (2, 8, 32):
            torch.manual_seed(0)
            x_BD = torch.randn(1, 64)
            model = make(depth)
            groups = param_groups(model, 1e-3, base=make(2), optimizer=optimizer, depth_rule=True)  # type: ignore[arg-type]
            step = torch.optim.SGD(groups) if optimizer == "sgd" else torch.optim.AdamW(groups)
            before_BD = _residual(model, x_BD)
            before_BD.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            step.step()
            moved[depth] = (_residual(model, x_BD) - before_BD).abs().mean().item()
        # Four times as deep, a rate that is wrong by a power 1/2 of the depth would be 2 and 4 times off.
        assert max(moved.values()) < 1.4 * min(moved.values()), moved

    def test_counts_blocks_inside_a_sequential_but_not_its_steps(self) -> None:
        def model(depth: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(8, 8), *(Block(8) for _ in range(depth)), nn.Linear(8, 8))

        deep, base = model(8), model(2)
        found = settings(deep, param_groups(deep, LR, base=base, depth_rule=True))
        outside = {"0.weight", "0.bias", "9.weight", "9.bias"}
        by_hand = {name: LR if name in outside else LR / 2 for name in found}
        assert found == pytest.approx(by_hand, rel=EXACT)

    def test_needs_a_base_to_compare_with(self) -> None:
        with pytest.raises(FieldError, match=r"^depth_rule: expected a base model whose depth is known"):
            param_groups(Net(8, 2), LR, depth_rule=True)


class TestGroups:
    @pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd", "muon"])
    def test_hold_every_parameter_exactly_once(self, optimizer: str) -> None:
        model = Net(16, 2, monarch)
        model.head.weight = model.embedding.weight
        model.blocks.append(model.blocks[0])
        groups = param_groups(model, LR, base=meta(8, 1), optimizer=optimizer)  # type: ignore[arg-type]
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    def test_are_one_for_each_rate_and_decay(self) -> None:
        groups = param_groups(Net(16, 3), LR, base=meta(8, 1), weight_decay=0.1)
        assert len(groups) == len({(group["lr"], group["weight_decay"]) for group in groups}) == 2
        torch.optim.AdamW(groups)

    def test_give_a_tied_parameter_the_rate_that_is_safe_in_all_its_uses(self) -> None:
        model, base = Net(32, 1), Net(8, 1)
        model.head.weight = model.embedding.weight
        assert settings(model, param_groups(model, LR, base=base))["embedding.weight"] == LR / 4
        groups = param_groups(model, LR, base=base, optimizer="muon")
        assert settings(model, groups, "view")["embedding.weight"] is None

    def test_take_a_single_layer_as_a_model(self) -> None:
        layer = EinsumLinear(64, 64, "monarch", bias=False)
        assert set(settings(layer, param_groups(layer, LR, base=nn.Linear(32, 32, bias=False))).values()) == {2 * LR}


class TestCounterparts:
    def test_are_found_for_blocks_that_the_base_does_not_have(self) -> None:
        model = Net(32, 5)
        found = settings(model, param_groups(model, LR, base=meta(8, 2)))
        assert {found[f"blocks.{block}.mlp.{layer}.weight"] for block in range(5) for layer in (0, 2)} == {LR / 4}

    def test_may_be_different_at_different_indices_that_the_model_has_too(self) -> None:
        base = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
        model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
        found = settings(model, param_groups(model, LR, base=base))
        assert (found["0.weight"], found["2.weight"]) == (LR, LR / 4)

    def test_have_to_be_alike_where_the_index_cannot_tell(self) -> None:
        base = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 2)])
        model = nn.ModuleList([nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)])
        with pytest.raises(FieldError, match=r"^base: expected one shape for all modules like '2', got \['0', '1'\]"):
            param_groups(model, LR, base=base)

    def test_have_to_be_there(self) -> None:
        model = nn.ModuleDict({"up": nn.Linear(8, 8)})
        with pytest.raises(FieldError, match=r"^base: expected a model with a module like 'up', got 'down'"):
            param_groups(model, LR, base=nn.ModuleDict({"down": nn.Linear(8, 8)}))

    def test_are_not_needed_for_the_parts_that_only_structured_layers_have(self) -> None:
        class Gated(EinsumLinear):
            def __init__(self, d_in: int, d_out: int) -> None:
                super().__init__(d_in, d_out, "btt", bias=False)
                self.gate = nn.Linear(d_in, 2, bias=False)

        model, base = nn.ModuleDict({"up": Gated(64, 64)}), nn.ModuleDict({"up": nn.Linear(16, 16)})
        assert settings(model, param_groups(model, LR, base=base))["up.gate.weight"] == LR / 4
        assert settings(model, param_groups(model, LR, base=base, optimizer="sgd"))["up.gate.weight"] == LR / 4


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("optimizer", "lion", "one of adamw, adam, sgd, muon, got 'lion'"),
            ("base_lr", 0.0, "a positive finite number, got 0.0"),
            ("base_lr", math.nan, "a positive finite number, got nan"),
            ("input_lr_mult", -1, "a positive finite number, got -1"),
            ("weight_decay", -0.1, "a finite number from 0, got -0.1"),
        ],
    )
    def test_say_what_was_expected(self, name: str, value: object, expected: str) -> None:
        arguments: dict[str, object] = {"base_lr": LR, name: value}
        with pytest.raises(FieldError, match=f"^{name}: expected {expected}$"):
            param_groups(nn.Linear(2, 2), **arguments)  # type: ignore[arg-type]  # the point of the test

    def test_name_a_parameter_that_may_be_a_matrix_of_an_unknown_kind(self) -> None:
        with pytest.raises(
            FieldError, match=r"^0: expected at most one axis of weight that widens, as Bilinear is not"
        ):
            param_groups(nn.Sequential(nn.Bilinear(8, 8, 8)), LR, base=nn.Sequential(nn.Bilinear(4, 4, 4)))


def _names(model: nn.Module, group: Group) -> list[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return [name for name, parameter in model.named_parameters() if id(parameter) in ids]


def _residual(model: nn.ModuleList, x_BD: Tensor) -> Tensor:
    for block in model:
        x_BD = x_BD + block.get_submodule("up")(x_BD) / math.sqrt(len(model))
    return x_BD
