"""muP by hand, parameter by parameter, and by its effect: features move as far at every width."""

# B batch, T tokens, D width

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers import optim
from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM
from search.proxies.regression import Regression
from workers.models.gpt import GPT
from workers.models.layers import Layers
from workers.models.linears import linear_factory
from workers.proxies.registry import proxy_for
from workers.transfer import param_groups

BASE_LR = 5e-3

WIDTHS = (32, 64, 128, 256)
NUM_STEPS = 8
FLAT, STEEP = 1.6, 2.0
"""The largest change of features over the smallest, over all widths: measured 1.09 to 1.33 with muP, 2.2 to 50 without."""

Groups = list[dict[str, object]]


def gpt_of(name: str, width: int) -> GPT:
    layers = Layers(linear=linear_factory(NAMED[name]))
    return GPT(vocabulary=96, context=16, width=width, depth=2, num_heads=4, layers=layers)


def mup(model: nn.Module, base_lr: float = BASE_LR) -> Groups:
    return param_groups(model, CharLM(context=16, depth=2, base_lr=base_lr))


def rates(model: nn.Module, groups: Groups) -> dict[str, float]:
    """The learning rate of every parameter, by its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}  # type: ignore[misc, attr-defined]  # Adam's own format


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates of one width: of both factors (for dense: of the one matrix) of each kind of layer, and of the head."""

    attention: tuple[float, ...]
    up: tuple[float, ...]
    down: tuple[float, ...]
    head: float


# By hand from SCIENCE 1.11: base_lr * base_width / width, for a factor times (d_in / fan_in) / 2. For example btt at width
# 16: d_in = 64 for the layer down, whose axes are alpha 8, gamma 8, rho 2 and whose fans are 8 and 8 * 2.
BY_HAND = {
    ("dense", 16): Rates(attention=(0.01,), up=(0.01,), down=(0.01,), head=0.01),
    ("dense", 64): Rates(attention=(0.0025,), up=(0.0025,), down=(0.0025,), head=0.0025),
    ("monarch", 16): Rates(attention=(0.02, 0.02), up=(0.02, 0.02), down=(0.04, 0.04), head=0.01),
    ("monarch", 64): Rates(attention=(0.01, 0.01), up=(0.01, 0.01), down=(0.02, 0.02), head=0.0025),
    ("btt", 16): Rates(attention=(0.02, 0.01), up=(0.02, 0.01), down=(0.04, 0.02), head=0.01),
    ("btt", 256): Rates(
        attention=(0.005, 0.00125), up=(0.005, 0.00125), down=(0.01, 0.0025), head=0.000625
    ),
    ("low-rank", 16): Rates(attention=(0.005, 0.02), up=(0.005, 0.02), down=(0.005, 0.08), head=0.01),
    ("low-rank", 64): Rates(attention=(0.00125, 0.01), up=(0.00125, 0.01), down=(0.00125, 0.04), head=0.0025),
    ("kronecker", 16): Rates(attention=(0.02, 0.02), up=(0.02, 0.02), down=(0.04, 0.04), head=0.01),
}  # fmt: skip


class TestRates:
    @pytest.mark.parametrize(("name", "width"), BY_HAND)
    def test_are_those_computed_by_hand(self, name: str, width: int) -> None:
        model, expected = gpt_of(name, width), BY_HAND[name, width]
        factors = ("weight",) if name == "dense" else ("A", "B")
        by_hand = {"head.weight": expected.head}
        for block in ("blocks.0", "blocks.1"):
            layers = {"feed_forward.up": expected.up, "feed_forward.down": expected.down}
            layers |= {f"attention.{which}": expected.attention for which in ("query", "key", "value", "output")}
            for layer, lrs in layers.items():
                by_hand |= {f"{block}.{layer}.{factor}": lr for factor, lr in zip(factors, lrs, strict=True)}
        found = rates(model, mup(model))
        assert {key: found[key] for key in by_hand} == pytest.approx(by_hand, rel=1e-12)
        # Embeddings and gains, the rest of the parameters, keep one rate at every width.
        assert {lr for key, lr in found.items() if key not in by_hand} == {4 * BASE_LR}
        assert all("embedding" in key or "norm" in key for key in found.keys() - by_hand.keys())

    def test_do_not_depend_on_the_width_of_a_structured_layer_but_on_its_fans(self) -> None:
        small, large = (rates(model, mup(model)) for model in (gpt_of("low-rank", 100), gpt_of("low-rank", 108)))
        # Both have rank 10: the factor that widens from 10 has one rate, the other one goes with the width.
        query = "blocks.0.attention.query"
        assert small[f"{query}.B"] == pytest.approx(large[f"{query}.B"])
        assert small[f"{query}.A"] == pytest.approx(1.08 * large[f"{query}.A"])

    def test_go_with_the_tuned_rate(self) -> None:
        model = gpt_of("btt", 64)
        once, twice = rates(model, mup(model)), rates(model, mup(model, 2 * BASE_LR))
        assert twice == pytest.approx({key: 2 * lr for key, lr in once.items()})

    def test_of_what_reads_the_inputs_and_of_biases_are_one_at_every_width(self) -> None:
        for width in (16, 100):
            settings = Regression(base_lr=BASE_LR)
            model = proxy_for(settings).build(NAMED["btt"], width)
            found = rates(model, param_groups(model, settings))
            assert [found[key] for key in ("input.weight", "input.bias", "norm.weight")] == [BASE_LR] * 3
            assert found["head.weight"] == pytest.approx(BASE_LR * settings.base_width / width)


class TestGroups:
    @pytest.mark.parametrize("name", NAMED)
    def test_hold_every_parameter_exactly_once(self, name: str) -> None:
        model = gpt_of(name, 64)
        grouped = [id(parameter) for group in mup(model) for parameter in group["params"]]  # type: ignore[attr-defined]  # Adam's own format
        assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    @pytest.mark.parametrize("name", NAMED)
    def test_are_one_for_each_rate(self, name: str) -> None:
        groups = mup(gpt_of(name, 64))
        assert len({group["lr"] for group in groups}) == len(groups)
        assert all(group["params"] for group in groups)


class TestCoordinates:
    """How far a few steps of Adam move the features that the last LayerNorm is given (2203.03466, the coordinate check)."""

    @pytest.mark.parametrize("name", NAMED)
    def test_move_as_far_at_every_width(self, name: str) -> None:
        assert spread(name, mup) < FLAT

    @pytest.mark.parametrize("name", ["dense", "monarch"])
    def test_move_farther_in_wider_models_where_all_parameters_have_one_rate(self, name: str) -> None:
        assert spread(name, lambda model: [{"params": list(model.parameters()), "lr": BASE_LR}]) > STEEP

    @pytest.mark.parametrize("name", ["dense", "monarch"])
    def test_move_farther_in_wider_models_where_rates_ignore_the_width(self, name: str) -> None:
        assert spread(name, lambda model: optim.param_groups(model, BASE_LR)) > STEEP


def spread(name: str, groups_of: Callable[[nn.Module], Groups]) -> float:
    changes = [sum(change(name, width, groups_of, seed) for seed in (0, 1)) for width in WIDTHS]
    return max(changes) / min(changes)


def change(name: str, width: int, groups_of: Callable[[nn.Module], Groups], seed: int) -> float:
    """The rms change of the features, over ``NUM_STEPS`` steps on one batch."""
    torch.manual_seed(seed)
    model = gpt_of(name, width)
    tokens_BT = torch.randint(96, (8, 17), generator=torch.Generator().manual_seed(seed))
    features: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    optimiser = torch.optim.Adam(groups_of(model), betas=(0.9, 0.95))
    for _ in range(NUM_STEPS):
        optimiser.zero_grad()
        loss = F.cross_entropy(model(tokens_BT[:, :-1]).flatten(0, 1), tokens_BT[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
    model(tokens_BT[:, :-1])
    return (features[-1] - features[0]).square().mean().sqrt().item()
