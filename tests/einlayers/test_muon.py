# N batch of matrices, P outputs (fan_out), Q inputs (fan_in) of one matrix

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.muon import Muon, from_matrices, matrices, orthogonalise
from einlayers.optim import param_groups
from einlayers.theta import NAMED, Theta
from workers.models.gpt import GPT
from workers.models.layers import Layers
from workers.models.linears import linear_factory
from workers.proxies.char_lm import next_token_loss

EVERY_AXIS = Theta.of((0.5, 0.25, 0.25, 0.25, 0.5, 0.25, 0.25))

FLAT = 1.6
"""The largest change of features over the smallest, over all widths; measured 1.20 and 1.27."""

SINGULAR_VALUES = (0.86, 1.14)
"""Where the five steps end, for singular values from 1e-3 of the Frobenius norm; measured 0.876 to 1.124 on a fine grid."""

INITIAL_LOSS = 0.23

SHAPES = [(1, 9), (9, 1), (16, 16), (12, 40), (40, 12)]


class TestViews:
    """The matrices of a factor, against those that the formula of the layer has for one value of the shared axis."""

    def test_of_A_are_one_for_each_gamma(self) -> None:
        layer = _layer()
        A, batch_NPQ = layer.A, matrices(layer.A, layer.matrix_views()["A"])
        phi, delta, rho, gamma, alpha = A.shape
        assert batch_NPQ.shape == (gamma, phi * delta * rho, alpha)
        for g in range(gamma):
            assert torch.equal(batch_NPQ[g], A[:, :, :, g].reshape(-1, alpha))

    def test_of_B_are_one_for_each_phi(self) -> None:
        layer = _layer()
        B, batch_NPQ = layer.B, matrices(layer.B, layer.matrix_views()["B"])
        phi, epsilon, rho, gamma, beta = B.shape
        assert batch_NPQ.shape == (phi, epsilon, rho * gamma * beta)
        for f in range(phi):
            assert torch.equal(batch_NPQ[f], B[f].reshape(epsilon, -1))

    def test_have_the_fans_of_the_rules_of_mup(self) -> None:
        layer = _layer()
        for name, rule in (("A", layer.rules.A), ("B", layer.rules.B)):
            shape = matrices(layer.get_parameter(name), layer.matrix_views()[name]).shape
            assert shape[1:] == (rule.fan_out, rule.fan_in)

    def test_go_back_to_the_parameter(self) -> None:
        layer = _layer()
        for name, view in layer.matrix_views().items():
            factor = layer.get_parameter(name)
            assert torch.equal(from_matrices(matrices(factor, view), view, factor.shape), factor)


class TestOrthogonalise:
    @pytest.mark.parametrize(("fan_out", "fan_in"), SHAPES)
    def test_keeps_singular_vectors_and_makes_all_singular_values_about_one(self, fan_out: int, fan_in: int) -> None:
        U, V = _orthogonal(fan_out, fan_in)
        sigma = torch.logspace(0, -2, U.shape[-1], dtype=torch.float64)
        found = orthogonalise(U @ torch.diag(sigma) @ V.mT)
        values = U.mT @ found @ V
        assert values.diagonal().min() > SINGULAR_VALUES[0]
        assert values.diagonal().max() < SINGULAR_VALUES[1]
        torch.testing.assert_close(values, torch.diag(values.diagonal()), atol=1e-10, rtol=0)
        torch.testing.assert_close(found, U @ values @ V.mT, atol=1e-10, rtol=0)

    def test_treats_each_matrix_of_a_batch_alone(self) -> None:
        batch_NPQ = torch.randn(3, 8, 6, dtype=torch.float64) * torch.tensor([1e-6, 1.0, 1e6])[:, None, None]
        for matrix, found in zip(batch_NPQ, orthogonalise(batch_NPQ), strict=True):
            torch.testing.assert_close(orthogonalise(matrix[None])[0], found)

    def test_leaves_zero_alone(self) -> None:
        assert torch.equal(orthogonalise(torch.zeros(2, 4, 4)), torch.zeros(2, 4, 4))

    def test_is_as_good_for_half_precision(self) -> None:
        sigma = torch.linalg.svdvals(orthogonalise(torch.randn(8, 32).bfloat16()).float())
        assert sigma.min() > SINGULAR_VALUES[0] - 0.02
        assert sigma.max() < SINGULAR_VALUES[1] + 0.02


class TestStep:
    def test_moves_every_matrix_by_the_spectral_condition(self) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 60, bias=False), _layer())
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimiser = Muon(param_groups(model, 0.1, optimizer="muon"))
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimiser.step()
        views = {id(parameter): group["view"] for group in optimiser.param_groups for parameter in group["params"]}
        for name, parameter in model.named_parameters():
            moved_NPQ = matrices(parameter.detach() - before[name], views[id(parameter)])
            lr = 0.1 if name == "0.weight" else 0.1 / 2
            size = torch.linalg.svdvals(moved_NPQ) / (lr * math.sqrt(moved_NPQ.shape[1] / moved_NPQ.shape[2]))
            assert size.min() > SINGULAR_VALUES[0], name
            assert size.max() < SINGULAR_VALUES[1], name

    def test_averages_gradients_and_looks_ahead(self) -> None:
        weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        optimiser = Muon([{"params": [weight], "view": ((), (0,), (1,))}], lr=1.0, momentum=0.9)
        sign = orthogonalise(torch.ones(1, 1, 1, dtype=torch.float64)).item()
        positions = [0.0]
        # Momentum 0.1 then 0.08 then -0.048; the look-ahead directions 0.19, 0.062 and -0.163 decide by their sign.
        for gradient, direction in ((1.0, 1), (-0.1, 1), (-1.2, -1)):
            weight.grad = torch.full_like(weight, gradient)
            optimiser.step()
            positions.append(positions[-1] - direction * sign)
            assert weight.item() == pytest.approx(positions[-1])

    def test_is_that_of_adamw_where_there_is_no_view(self) -> None:
        ours, theirs = (nn.Parameter(torch.linspace(-1, 1, 7, dtype=torch.float64)) for _ in range(2))
        settings = {"lr": 0.03, "betas": (0.8, 0.97), "eps": 1e-6, "weight_decay": 0.2}
        optimisers = (Muon([{"params": [ours], "view": None}], **settings), torch.optim.AdamW([theirs], **settings))  # type: ignore[arg-type]
        for step in range(5):
            for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
                parameter.grad = torch.sin(parameter.detach() * (step + 1))
                optimiser.step()
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)

    def test_decays_weights_apart_from_the_gradient(self) -> None:
        weight = nn.Parameter(torch.ones(2, 2))
        weight.grad = torch.zeros(2, 2)
        Muon([{"params": [weight], "view": ((), (0,), (1,))}], lr=0.1, weight_decay=0.5).step()
        torch.testing.assert_close(weight.detach(), torch.full((2, 2), 0.95))

    def test_leaves_parameters_without_a_gradient(self) -> None:
        weight = nn.Parameter(torch.ones(2, 2))
        assert Muon([{"params": [weight], "view": None}], weight_decay=0.5).step(lambda: 3.0) == 3.0
        assert torch.equal(weight, torch.ones(2, 2))

    @pytest.mark.parametrize(("name", "value"), [("lr", -1), ("momentum", 1.0), ("weight_decay", math.nan)])
    def test_refuses_settings_out_of_range(self, name: str, value: float) -> None:
        with pytest.raises(FieldError, match=f"^{name}: expected a number from 0"):
            Muon([{"params": [nn.Parameter(torch.ones(1))], "view": None}], **{name: value})  # type: ignore[arg-type]

    def test_refuses_parameters_that_do_not_say_what_is_a_matrix(self) -> None:
        with pytest.raises(FieldError, match=r"^params: expected groups with a view, as param_groups\(.* makes them"):
            Muon(nn.Linear(4, 4).parameters())


class TestTraining:
    def test_of_a_structured_network_ends_lower_than_with_adam_both_at_their_best_rate(self) -> None:
        muon = [_fit(_muon, lr) for lr in (0.05, 0.1, 0.2)]
        adam = [_fit(_adamw, lr) for lr in (0.01, 0.02, 0.03)]
        assert min(muon) < min(adam) < 0.1 * INITIAL_LOSS

    def test_goes_on_from_a_saved_state_as_if_never_stopped(self) -> None:
        model, optimiser = _mlp_and_muon()
        _train(model, optimiser, 5)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict()}, file)
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        copy, resumed = _mlp_and_muon()
        copy.load_state_dict(saved["model"])
        resumed.load_state_dict(saved["optimiser"])
        assert _train(copy, resumed, 5) == _train(model, optimiser, 5)


class TestCoordinates:
    @pytest.mark.parametrize("name", ["monarch", "btt"])
    def test_move_as_far_at_every_width(self, name: str) -> None:
        changes = [sum(_change_of_features(name, width, seed) for seed in (0, 1)) for width in (32, 64, 128)]
        assert max(changes) < FLAT * min(changes)


def _change_of_features(name: str, width: int, seed: int) -> float:
    """The rms change that eight steps on one batch make to what the last LayerNorm of the trials' GPT is given."""
    torch.manual_seed(seed)
    layers = Layers(linear=linear_factory(NAMED[name]))
    model = GPT(vocabulary=96, context=16, width=width, depth=2, num_heads=4, layers=layers)
    tokens_BT = torch.randint(96, (8, 17), generator=torch.Generator().manual_seed(seed))
    features: list[Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0].detach()))
    optimiser = Muon(param_groups(model, 0.02, optimizer="muon", input_lr_mult=0.1))
    for _ in range(8):
        optimiser.zero_grad()
        loss = next_token_loss(model, (tokens_BT[:, :-1], tokens_BT[:, 1:]))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        optimiser.step()
    model(tokens_BT[:, :-1])
    return (features[-1] - features[0]).square().mean().sqrt().item()


def _layer() -> EinsumLinear:
    layer = EinsumLinear(60, 48, EVERY_AXIS, bias=False)
    assert min(layer.dims.axes) > 1
    return layer


def _orthogonal(fan_out: int, fan_in: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(fan_out)
    rank = min(fan_out, fan_in)
    U, V = (
        torch.linalg.qr(torch.randn(size, rank, generator=generator, dtype=torch.float64))[0]
        for size in (fan_out, fan_in)
    )
    return U, V


def _mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64),
        nn.GELU(),
        EinsumLinear(64, 64, "btt"),
        nn.GELU(),
        EinsumLinear(64, 64, "monarch"),
        nn.Linear(64, 4),
    )


def _mlp_and_muon() -> tuple[nn.Module, Muon]:
    model = _mlp()
    return model, Muon(param_groups(model, 0.05, optimizer="muon", weight_decay=0.01))


def _muon(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return Muon(param_groups(model, lr, optimizer="muon", input_lr_mult=0.1))


def _adamw(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(param_groups(model, lr), betas=(0.9, 0.95))


def _fit(optimiser_of: Callable[[nn.Module, float], torch.optim.Optimizer], lr: float) -> float:
    """The mean loss of the last 5 of 150 steps at a rate that falls to zero."""
    model = _mlp()
    optimiser = optimiser_of(model, lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / 150)
    return sum(_train(model, optimiser, 150, schedule.step)[-5:]) / 5


def _train(
    model: nn.Module, optimiser: torch.optim.Optimizer, num_steps: int, after_step: Callable[[], None] = lambda: None
) -> list[float]:
    generator = torch.Generator().manual_seed(1)
    target_IO = torch.randn(8, 4, generator=generator) / 2
    losses = []
    for _ in range(num_steps):
        x_BI = torch.randn(256, 8, generator=generator)
        y_BO = torch.tanh(x_BI @ target_IO) * torch.cos(x_BI[:, :4])
        optimiser.zero_grad()
        loss = (model(x_BI) - y_BO).square().mean()
        loss.backward()
        optimiser.step()
        after_step()
        losses.append(loss.item())
    return losses
