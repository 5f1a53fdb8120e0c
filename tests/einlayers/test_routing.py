# T tokens, E experts, K choices of each token, I inputs, O outputs

import copy
import pickle
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from einlayers.errors import FieldError
from einlayers.routing import Router, auxiliary_loss, mix, route
from tests import golden

TOLERANCE = 1e-9
"""Between float64 and the printed digits of the examples."""

EXAMPLE = golden.routing_example()
EXAMPLE_TE = torch.tensor(EXAMPLE.logits, dtype=torch.float64)


class TestChoice:
    def test_is_that_of_the_example(self) -> None:
        routing, weights_TK = route(EXAMPLE_TE, EXAMPLE.top_k), torch.tensor(EXAMPLE.weights, dtype=torch.float64)
        assert torch.equal(routing.experts, torch.tensor(EXAMPLE.experts))
        torch.testing.assert_close(routing.weights, weights_TK, atol=TOLERANCE, rtol=0)

    @pytest.mark.parametrize("top_k", [1, 2, 5, 8])
    def test_is_the_largest_logits_where_none_are_equal(self, top_k: int) -> None:
        logits_TE = _normal(50, 8)
        values_TK, experts_TK = torch.topk(logits_TE, top_k)
        routing = route(logits_TE, top_k)
        assert torch.equal(routing.experts, experts_TK)
        torch.testing.assert_close(routing.weights, values_TK.softmax(1))

    def test_takes_larger_logits_before_equal_ones(self) -> None:
        logits_TE = torch.tensor([[0.0, 0, 5, 0], [1, 0, 0, 1], [0, -1, 0, -1]]).repeat(20, 1)
        for logits_E, experts_K in zip(logits_TE, route(logits_TE, 2).experts, strict=True):
            assert logits_E[experts_K].tolist() == sorted(logits_E.tolist(), reverse=True)[:2]
            assert len(set(experts_K.tolist())) == 2

    @pytest.mark.parametrize("num_tokens", [1, 7, 8, 61, 640])
    @pytest.mark.parametrize(("num_experts", "top_k"), [(8, 2), (8, 3), (5, 2), (16, 1), (4, 4), (1, 1)])
    def test_spreads_the_tokens_evenly_where_all_logits_are_equal(
        self, num_tokens: int, num_experts: int, top_k: int
    ) -> None:
        routing = route(torch.zeros(num_tokens, num_experts), top_k)
        assert routing.counts.sum() == num_tokens * top_k
        assert routing.counts.max() - routing.counts.min() <= 1
        assert all(len(set(experts)) == top_k for experts in routing.experts.tolist())

    def test_takes_both_zeros_as_equal(self) -> None:
        signed_TE = torch.tensor([[0.0, -0.0, 0.0, -0.0]]).repeat(8, 1)
        assert torch.equal(route(signed_TE, 1).experts, route(torch.zeros(8, 4), 1).experts)

    def test_is_the_same_for_the_same_logits(self) -> None:
        logits_TE = _normal(40, 6).round()
        assert torch.equal(route(logits_TE, 2).experts, route(logits_TE.clone(), 2).experts)

    @pytest.mark.parametrize("top_k", [0, 5, 1.5, True])
    def test_refuses_more_choices_than_experts(self, top_k: object) -> None:
        with pytest.raises(FieldError, match=r"^top_k: expected a whole number from 1 to 4"):
            route(torch.zeros(3, 4), top_k)  # type: ignore[arg-type]  # the point of the test


class TestLosses:
    def test_are_those_of_the_example(self) -> None:
        routing = route(EXAMPLE_TE, EXAMPLE.top_k)
        assert routing.switch_loss.item() == pytest.approx(EXAMPLE.switch_loss, abs=TOLERANCE)
        assert routing.z_loss.item() == pytest.approx(EXAMPLE.z_loss, abs=TOLERANCE)
        assert routing.aux_loss.item() == pytest.approx(EXAMPLE.aux_loss, abs=TOLERANCE)

    @pytest.mark.parametrize("row", golden.mixtures(), ids=lambda row: f"{row.num_experts} experts, {row.d} features")
    def test_are_known_where_the_gate_is_zero(self, row: golden.Mixture) -> None:
        router = Router(row.d, row.num_experts, top_k=row.top_k, dtype=torch.float64)
        routing = router.route(_normal(64, row.d))
        assert routing.switch_loss.item() == pytest.approx(row.switch_loss, abs=TOLERANCE)
        assert routing.z_loss.item() == pytest.approx(row.z_loss, abs=TOLERANCE)
        assert routing.aux_loss.item() == pytest.approx(row.aux_loss, abs=TOLERANCE)

    def test_push_towards_balance(self) -> None:
        logits_TE = torch.tensor([[1.0, 0.5, 0.2, 0.1]], dtype=torch.float64).repeat(10, 1).requires_grad_()
        (gradient_TE,) = torch.autograd.grad(route(logits_TE, 1).switch_loss, logits_TE)
        assert gradient_TE[0, 0] > 0
        assert (gradient_TE[0, 1:] < 0).all()

    def test_are_zero_of_no_tokens(self) -> None:
        assert route(torch.zeros(0, 4), 2).aux_loss.item() == 0


class TestRouter:
    def test_starts_at_zero_and_has_no_bias(self) -> None:
        router = Router(6, 4)
        assert sorted(router.state_dict()) == ["weight"]
        assert torch.equal(router.weight, torch.zeros(4, 6))

    def test_chooses_by_logits_that_are_linear_in_the_token(self) -> None:
        router, x_TI = _router(), _normal(9, 6)
        logits_TE = x_TI @ router.weight.mT
        torch.testing.assert_close(router(x_TI), logits_TE)
        assert torch.equal(router.route(x_TI).experts, torch.topk(logits_TE, 2).indices)

    def test_computes_in_the_type_of_its_weight_under_autocast(self) -> None:
        router, x_TI = _router().float(), _normal(9, 6).float()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            routing = router.route(x_TI)
        assert routing.logits.dtype == routing.weights.dtype == torch.float32
        torch.testing.assert_close(routing.logits, router(x_TI))

    def test_chooses_in_float32_where_its_weight_is_smaller(self) -> None:
        routing = _router().bfloat16().route(_normal(9, 6).bfloat16())
        assert routing.weights.dtype == torch.float32

    def test_prints_its_sizes(self) -> None:
        assert repr(Router(6, 4, top_k=3)) == "Router(6, 4, top_k=3)"

    @pytest.mark.parametrize(
        ("sizes", "field"),
        [((0, 4, 2), "d_in"), ((6, 0, 1), "num_experts"), ((6, 4, 5), "top_k"), ((6, 4, 0), "top_k")],
    )
    def test_refuses_sizes_that_are_none_and_names_them(self, sizes: tuple[int, int, int], field: str) -> None:
        d_in, num_experts, top_k = sizes
        with pytest.raises(FieldError, match=f"^{field}: expected a whole number"):
            Router(d_in, num_experts, top_k=top_k)


class TestAuxiliaryLoss:
    def test_is_the_mean_over_the_routers_that_ran(self) -> None:
        model, x_TI = nn.ModuleList([_router(seed) for seed in (1, 2, 3)]), _normal(9, 6)
        losses = [_as_router(model[i]).route(x_TI).aux_loss for i in (0, 2)]
        torch.testing.assert_close(auxiliary_loss(model), torch.stack(losses).mean())

    def test_trains_the_gate(self) -> None:
        router = _router()
        router.route(_normal(9, 6))
        (gradient,) = torch.autograd.grad(auxiliary_loss(router), router.weight)
        assert gradient.abs().max() > 0

    def test_is_taken_once(self) -> None:
        router = _router()
        router.route(_normal(9, 6))
        auxiliary_loss(router)
        with pytest.raises(
            FieldError, match=r"^model: expected .* whose loss was not taken before, got 'Router with 1"
        ):
            auxiliary_loss(router)

    def test_is_that_of_the_last_pass(self) -> None:
        router, x_TI = _router(), _normal(9, 6)
        router.route(_normal(5, 6))
        last = router.route(x_TI).aux_loss
        torch.testing.assert_close(auxiliary_loss(router), last)

    def test_is_discarded_by_a_pass_in_evaluation_mode(self) -> None:
        router, x_TI = _router(), _normal(9, 6)
        router.route(x_TI)
        router.eval().route(x_TI)
        with pytest.raises(FieldError, match=r"^model: expected a model with routers"):
            auxiliary_loss(router)

    def test_is_refused_for_a_model_without_routers(self) -> None:
        with pytest.raises(FieldError, match=r"got 'Linear with 0 routers'$"):
            auxiliary_loss(nn.Linear(2, 2))

    def test_is_not_in_the_way_of_copies(self) -> None:
        router = _router()
        router.route(_normal(9, 6))
        for twin in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
            assert twin.aux_loss is None
            assert torch.equal(twin.weight, router.weight)
        assert router.aux_loss is not None


class TestMix:
    def test_sums_the_weighted_outputs_of_the_chosen_experts(self) -> None:
        maps_EOI, x_TI = _normal(4, 5, 6), _normal(9, 6)
        routing = route(_normal(9, 4), 2)
        y_TO = mix(x_TI, routing, lambda rows: [x_NI @ W.mT for x_NI, W in zip(rows, maps_EOI, strict=True)])
        chosen_TKOI = maps_EOI[routing.experts]
        torch.testing.assert_close(y_TO, torch.einsum("tk,tkoi,ti->to", routing.weights, chosen_TKOI, x_TI))

    def test_gives_each_expert_its_own_rows_and_no_others(self) -> None:
        routing = route(EXAMPLE_TE, EXAMPLE.top_k)
        seen: list[list[float]] = []

        def experts(rows: Sequence[Tensor]) -> Sequence[Tensor]:
            seen.extend(x_NI.flatten().tolist() for x_NI in rows)
            return rows

        mix(torch.tensor([[10.0], [11.0], [12.0]]), routing, experts)
        assert seen == [[10, 12], [10, 11], [11, 12], []]

    def test_can_be_differentiated_twice(self) -> None:
        logits_TE, maps_EOI = _normal(5, 3), _normal(3, 2, 4)

        def mixed(x_TI: Tensor, logits_TE: Tensor) -> Tensor:
            routing = route(logits_TE, 2)
            return mix(x_TI, routing, lambda rows: [(x @ W.mT) ** 2 for x, W in zip(rows, maps_EOI, strict=True)])

        inputs = (_normal(5, 4).requires_grad_(), logits_TE.requires_grad_())
        assert torch.autograd.gradcheck(mixed, inputs)
        assert torch.autograd.gradgradcheck(mixed, inputs)


def _router(seed: int = 0) -> Router:
    router = Router(6, 4).double()
    nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(seed))
    return router


def _as_router(module: nn.Module) -> Router:
    assert isinstance(module, Router)
    return module


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
