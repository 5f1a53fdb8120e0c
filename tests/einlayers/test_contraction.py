"""Every formulation against plain loops in float64, and the policy that chooses among them."""

# T tokens, I inputs, O outputs; a b g d e f r: the sizes of alpha beta gamma delta epsilon phi rho

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from einlayers import contraction
from einlayers.contraction import choose, contract, multiply_out, two_einsums, zero_copy
from einlayers.dims import Dims, resolve
from einlayers.families import btt_dims, monarch_dims
from einlayers.rank import Axes
from einlayers.taxonomy import Order, cost
from einlayers.theta import NAMED, Theta
from tests.einlayers import oracle
from tests.einlayers.oracle import TOLERANCE, normal

Apply = Callable[[Tensor, Tensor, Tensor, Order], Tensor]

FORMULATIONS: dict[str, Apply] = {
    "zero_copy": zero_copy,
    "zero_copy, recomputed": lambda x, A, B, order: zero_copy(x, A, B, order, recompute=True),
    "two_einsums": two_einsums,
    "multiply_out": multiply_out,
    "chosen": lambda x, A, B, order: contract(x, A, B, order=order),
    "chosen, recomputed": lambda x, A, B, order: contract(x, A, B, order=order, recompute=True),
}

AXES: dict[str, Axes] = {
    "block tensor-train": (3, 1, 4, 1, 2, 5, 1),
    "block tensor-train of rank 2": (3, 1, 4, 1, 2, 5, 2),
    "low rank": (6, 1, 1, 1, 5, 1, 3),
    "low rank, swapped": (1, 6, 1, 5, 1, 1, 3),
    "kronecker": (3, 4, 1, 5, 2, 1, 1),
    "tensor-train": (3, 4, 1, 5, 2, 1, 2),
    "every axis": (2, 3, 2, 3, 2, 3, 2),
    "every axis, other sizes": (3, 2, 4, 2, 5, 2, 3),
    "one feature": (1, 1, 1, 1, 1, 1, 1),
    "dense": (1, 1, 4, 1, 1, 5, 1),
}


@pytest.fixture(params=list(AXES.values()), ids=list(AXES))
def dims(request: pytest.FixtureRequest) -> Dims:
    alpha, beta, gamma, delta, epsilon, phi, _ = request.param
    return Dims.of(request.param, alpha * beta * gamma, delta * epsilon * phi)


@pytest.fixture(params=list(FORMULATIONS.values()), ids=list(FORMULATIONS))
def apply(request: pytest.FixtureRequest) -> Apply:
    formulation: Apply = request.param
    return formulation


@pytest.fixture(params=["A_first", "B_first"])
def order(request: pytest.FixtureRequest) -> Order:
    which: Order = request.param
    return which


class TestFormulations:
    def test_apply_the_matrix_of_plain_loops(self, dims: Dims, order: Order, apply: Apply) -> None:
        A, B, x_TI = factors(dims)
        expected = x_TI @ oracle.matrix(A, B, dims).mT
        torch.testing.assert_close(apply(x_TI, A, B, order), expected, atol=TOLERANCE, rtol=TOLERANCE)

    def test_have_the_gradients_of_plain_loops(self, dims: Dims, order: Order, apply: Apply) -> None:
        A, B, x_TI = factors(dims)
        upstream_TO = normal(len(x_TI), dims.outputs)
        found = torch.autograd.grad(apply(x_TI, A, B, order), (x_TI, A, B), upstream_TO)
        grad_A, grad_B = oracle.gradients(A, B, dims, upstream_TO.mT @ x_TI)
        expected = (upstream_TO @ oracle.matrix(A, B, dims), grad_A, grad_B)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)

    def test_can_be_differentiated_twice(self, order: Order, apply: Apply) -> None:
        A, B, x_TI = factors(whole(AXES["every axis"]))
        assert torch.autograd.gradgradcheck(lambda x, A, B: apply(x, A, B, order), (x_TI[:2], A, B))

    def test_take_inputs_and_gradients_of_any_strides(self, order: Order, apply: Apply) -> None:
        A, B, x_TI = factors(whole(AXES["every axis"]))
        strided_TI = torch.stack([x_TI, x_TI], dim=-1)[..., 0]
        assert not strided_TI.is_contiguous()
        torch.testing.assert_close(apply(strided_TI, A, B, order), apply(x_TI, A, B, order))
        (expanded,) = torch.autograd.grad(apply(x_TI, A, B, order).sum(), x_TI)
        (contiguous,) = torch.autograd.grad(apply(x_TI, A, B, order), x_TI, torch.ones(len(x_TI), 18).double())
        torch.testing.assert_close(expanded, contiguous)

    @pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
    def test_compute_only_the_gradients_that_are_asked_for(self, wanted: tuple[int, ...], apply: Apply) -> None:
        dims = whole(AXES["every axis"])
        everything = factors(dims)
        A, B, x_TI = (t.detach().requires_grad_(n in wanted) for n, t in enumerate(everything))
        apply(x_TI, A, B, "A_first").sum().backward()  # type: ignore[no-untyped-call]
        all_gradients = torch.autograd.grad(apply(everything[2], *everything[:2], "A_first").sum(), everything)
        for n, tensor in enumerate((A, B, x_TI)):
            assert (tensor.grad is not None) is (n in wanted)
            if tensor.grad is not None:
                torch.testing.assert_close(tensor.grad, all_gradients[n])


class TestChunks:
    """``zero_copy`` works on a few hundred tokens at a time; here on so few that a small batch has several chunks."""

    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(contraction, "_LEAST_TOKENS", 3)
        monkeypatch.setattr(contraction, "_IN_CACHE", 1)

    @pytest.mark.parametrize("num_tokens", [1, 3, 4, 7, 9, 10])
    @pytest.mark.parametrize("recompute", [False, True])
    def test_make_no_difference(self, num_tokens: int, recompute: bool, order: Order) -> None:
        dims = whole(AXES["every axis, other sizes"])
        A, B, _ = factors(dims)
        x_TI, upstream_TO = normal(num_tokens, dims.inputs).requires_grad_(), normal(num_tokens, dims.outputs)
        y_TO, expected_TO = zero_copy(x_TI, A, B, order, recompute), two_einsums(x_TI, A, B, order)
        torch.testing.assert_close(y_TO, expected_TO, atol=TOLERANCE, rtol=TOLERANCE)
        found = torch.autograd.grad(y_TO, (x_TI, A, B), upstream_TO)
        expected = torch.autograd.grad(expected_TO, (x_TI, A, B), upstream_TO)
        torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize("recompute", [False, True])
    def test_leave_what_was_saved_for_a_second_backward(self, recompute: bool) -> None:
        A, B, x_TI = factors(whole(AXES["every axis"]))
        y_TO = zero_copy(x_TI, A, B, "A_first", recompute)
        first = torch.autograd.grad(y_TO.sum(), (x_TI, A, B), retain_graph=True)
        assert all(map(torch.equal, first, torch.autograd.grad(y_TO.sum(), (x_TI, A, B))))


class TestMemory:
    @pytest.mark.parametrize("order", ["A_first", "B_first"])
    def test_recomputing_saves_the_input_and_the_factors_alone(self, order: Order) -> None:
        dims = btt_dims(64, 64, 4)
        A, B, x_TI = factors(dims, num_tokens=50)
        assert saved(lambda: zero_copy(x_TI, A, B, order, recompute=True)) == A.numel() + B.numel() + x_TI.numel()

    @pytest.mark.parametrize("name", ["low-rank", "kronecker", "tensor-train", "btt"])
    @pytest.mark.parametrize("width", [48, 512])
    def test_recomputing_does_so_in_every_formulation(self, name: str, width: int) -> None:
        dims = resolve(NAMED[name], width, width)
        A, B, x_TI = factors(dims, num_tokens=60)
        order = cost(dims).order
        numbers = saved(lambda: contract(x_TI, A, B, order=order, recompute=True))
        assert numbers == A.numel() + B.numel() + x_TI.numel()

    def test_otherwise_saves_the_intermediate_once(self) -> None:
        dims = btt_dims(64, 64, 4)
        A, B, x_TI = factors(dims, num_tokens=50)
        intermediate = 50 * cost(dims).intermediate
        weights = 2 * (A.numel() + B.numel())
        assert saved(lambda: zero_copy(x_TI, A, B, "A_first")) == weights + x_TI.numel() + intermediate


class TestChoice:
    def test_multiplies_small_layers_out_and_keeps_large_ones_in_factors(self) -> None:
        assert chosen(btt_dims(32, 32, 4), 1024) == "multiply_out"
        assert chosen(btt_dims(1024, 1024, 4), 1024) == "zero_copy"

    def test_does_not_form_a_large_matrix_for_a_few_tokens(self) -> None:
        general = Theta.parse("(1/2|1/4|1/4|1/4|1/2|1/4|1/4)")
        for width in (512, 1024, 4096):
            assert chosen(btt_dims(width, width, 4), 1) == "zero_copy"
            assert chosen(resolve(general, width, width), 1) == "two_einsums"

    def test_never_forms_the_matrix_where_the_factors_cost_a_tenth(self) -> None:
        for tokens in (1, 256, 4096):
            for width in (512, 1024, 4096):
                dims = btt_dims(width, width, 1)
                assert cost(dims).macs < width**2 / 10
                assert chosen(dims, tokens) == "zero_copy"

    @pytest.mark.parametrize("name", ["low-rank", "kronecker"])
    def test_leaves_large_products_to_torch(self, name: str) -> None:
        assert chosen(resolve(NAMED[name], 1024, 1024), 512) == "two_einsums"

    def test_is_the_same_for_a_theta_and_its_swap_where_no_output_is_permuted(self) -> None:
        theta = Theta.parse("(1/2|0|1/2|0|1/2|1/2|1/4)")
        for width in (64, 256, 1024):
            dims, swapped = resolve(theta, width, width), resolve(theta.swapped(), width, width)
            assert chosen(dims, 512) == chosen(swapped, 512)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_takes_plain_torch_for_types_that_were_not_measured(self, dtype: torch.dtype) -> None:
        A, B, x_TI = (t.to(dtype) for t in factors(monarch_dims(256, 256, 4)))
        assert choose(x_TI, A, B, "A_first") == "two_einsums"

    def test_takes_plain_torch_where_a_transform_looks_on(self) -> None:
        A, B, x_TI = factors(monarch_dims(256, 256, 4))
        seen = []

        def apply(x_I: Tensor) -> Tensor:
            seen.append(choose(x_I[None], A, B, "A_first"))
            return contract(x_I, A, B, order="A_first")

        y_TO = torch.func.vmap(apply)(x_TI)
        assert seen == ["two_einsums"]
        torch.testing.assert_close(y_TO, contract(x_TI, A, B, order="A_first"))

    def test_takes_plain_torch_under_autocast(self) -> None:
        A, B, x_TI = (t.float() for t in factors(monarch_dims(256, 256, 4)))
        with torch.autocast("cpu", torch.bfloat16):
            assert choose(x_TI, A, B, "A_first") == "two_einsums"
            assert contract(x_TI, A, B, order="A_first").dtype == torch.bfloat16


def whole(axes: Axes) -> Dims:
    """Dims that neither pad nor drop a feature."""
    alpha, beta, gamma, delta, epsilon, phi, _ = axes
    return Dims.of(axes, alpha * beta * gamma, delta * epsilon * phi)


def factors(dims: Dims, num_tokens: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and a batch of inputs, all of which want gradients."""
    A, B = normal(*dims.shape_A), normal(*dims.shape_B)
    x_TI = normal(num_tokens, dims.inputs)
    return A.requires_grad_(), B.requires_grad_(), x_TI.requires_grad_()


def chosen(dims: Dims, num_tokens: int) -> str:
    x_TI, A, B = torch.empty(num_tokens, dims.inputs), torch.empty(dims.shape_A), torch.empty(dims.shape_B)
    return choose(x_TI, A, B, cost(dims).order)


def saved(forward: Callable[[], Tensor]) -> int:
    """How many numbers autograd keeps for backward, each tensor counted once."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())
