"""The operators of torch: what tracers ask of them, derivatives of every order, and what is computed without kernels."""

import pytest
import torch
from torch import Tensor

from einlayers.fused import launch
from einlayers.fused.ops import two_factor, two_factor_gradients
from einlayers.fused.sizes import Sizes
from tests.einlayers.fused.layers import SIZES, assert_near, exact, exact_gradients, layer

TOO_LARGE = Sizes(gamma=2, i=4096, phi=2, rho=1, o=4096)
SMALL = SIZES["nothing a power of two"]


def leaves(dtype: torch.dtype = torch.float32, *, num_tokens: int = 5) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in layer(SMALL, num_tokens, dtype)]


class TestOperators:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_keep_the_contract_of_torch(self, dtype: torch.dtype) -> None:
        x_TI, P, Q, dy_TO = leaves(dtype)
        torch.library.opcheck(two_factor, (x_TI, P, Q))
        torch.library.opcheck(two_factor_gradients, (x_TI, P, Q, dy_TO, True, True))

    @pytest.mark.parametrize(("for_P", "for_Q"), [(True, False), (False, True), (False, False)])
    def test_keep_it_for_one_gradient(self, for_P: bool, for_Q: bool) -> None:
        torch.library.opcheck(two_factor_gradients, (*leaves(), for_P, for_Q))
        dP, dQ = two_factor_gradients(*layer(SMALL, 5), for_P, for_Q)
        assert (dP.numel() > 0, dQ.numel() > 0) == (for_P, for_Q)

    def test_have_the_gradients_of_plain_einsums(self) -> None:
        x_TI, P, Q, dy_TO = leaves(num_tokens=40)
        found = torch.autograd.grad(two_factor(x_TI, P, Q), (x_TI, P, Q), dy_TO)
        for gradient, expected in zip(found, exact_gradients(x_TI, P, Q, dy_TO), strict=True):
            assert_near(gradient, expected, torch.float32)

    def test_have_the_second_derivatives_of_plain_einsums(self) -> None:
        found = second_derivatives(two_factor, leaves())
        expected = second_derivatives(exact, [tensor.detach().double().requires_grad_() for tensor in leaves()])
        for gradient, other in zip(found, expected, strict=True):
            assert_near(gradient, other, torch.float32)

    @pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
    def test_compute_only_the_gradients_that_are_asked_for(
        self, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        launched: list[str] = []
        for name in ("two_factor_into", "gradients_into"):
            original = getattr(launch, name)

            def spy(*arguments: object, name: str = name, original: object = original) -> None:
                launched.append(name)
                original(*arguments)  # type: ignore[operator]

            monkeypatch.setattr(launch, name, spy)
        x_TI, P, Q, dy_TO = layer(SIZES["rank 4"], 5)
        tensors = [x_TI, P, Q]
        for n in wanted:
            tensors[n].requires_grad_()
        two_factor(*tensors).backward(dy_TO)
        assert [tensor.grad is not None for tensor in tensors] == [n in wanted for n in range(3)]
        for_x, for_weights = 0 in wanted, not {1, 2}.isdisjoint(wanted)
        assert launched == ["two_factor_into"] * (1 + for_x) + ["gradients_into"] * for_weights
        for tensor, expected in zip(tensors, exact_gradients(x_TI, P, Q, dy_TO), strict=True):
            if tensor.grad is not None:
                assert_near(tensor.grad, expected, torch.float32)


class TestWithoutKernels:
    """float64 is a type that no kernel serves: the operators are then torch's own products."""

    def test_gives_the_same(self) -> None:
        x_TI, P, Q, _ = leaves(torch.float64)
        torch.testing.assert_close(two_factor(x_TI, P, Q), exact(x_TI, P, Q))

    def test_has_the_derivatives_of_any_order(self) -> None:
        x_TI, P, Q, dy_TO = leaves(torch.float64, num_tokens=2)
        assert torch.autograd.gradcheck(two_factor, (x_TI, P, Q))
        assert torch.autograd.gradgradcheck(two_factor, (x_TI, P, Q), dy_TO)

    @pytest.mark.parametrize(("for_P", "for_Q"), [(True, True), (True, False), (False, True)])
    def test_has_the_derivatives_of_the_gradients(self, for_P: bool, for_Q: bool) -> None:
        def gradients(*arguments: Tensor) -> tuple[Tensor, ...]:
            return tuple(found for found in two_factor_gradients(*arguments, for_P, for_Q) if found.numel())

        assert torch.autograd.gradcheck(gradients, leaves(torch.float64, num_tokens=2))

    def test_keeps_the_contract_of_torch(self) -> None:
        x_TI, P, Q, dy_TO = leaves(torch.float64)
        torch.library.opcheck(two_factor, (x_TI, P, Q))
        torch.library.opcheck(two_factor_gradients, (x_TI, P, Q, dy_TO, True, True))


class TestSizesThatFitOnNoChip:
    def test_are_computed_by_torch(self) -> None:
        x_TI, P, Q, dy_TO = (tensor.requires_grad_() for tensor in layer(TOO_LARGE, 3))
        y_TO = two_factor(x_TI, P, Q)
        assert_near(y_TO, exact(x_TI.double(), P.double(), Q.double()), torch.float32)
        found = torch.autograd.grad(y_TO, (x_TI, P, Q), dy_TO)
        for gradient, expected in zip(found, exact_gradients(x_TI, P, Q, dy_TO), strict=True):
            assert_near(gradient, expected, torch.float32)


def second_derivatives(apply: object, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Of a sum of squares of the gradients, with respect to all that they are made of."""
    x_TI, P, Q, dy_TO = tensors
    y_TO = apply(x_TI, P, Q)  # type: ignore[operator]
    gradients = torch.autograd.grad(y_TO, (x_TI, P, Q), dy_TO, create_graph=True)
    total = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
    return torch.autograd.grad(total, (x_TI, P, Q, dy_TO))


class TestShapes:
    """Of operators that somebody calls by hand; a kernel would read beyond the end of what does not fit."""

    X, P, Q, DY = torch.zeros(5, 12), torch.zeros(3, 2, 2, 4), torch.zeros(2, 3, 2, 6), torch.zeros(5, 12)

    @pytest.mark.parametrize(
        "x_TI", [torch.zeros(5, 11), torch.zeros(5, 24), torch.zeros(12)], ids=["few", "many", "flat"]
    )
    def test_of_x_are_refused_where_they_do_not_fit(self, x_TI: Tensor) -> None:
        with pytest.raises(ValueError, match=r"expected x .*, got "):
            two_factor(x_TI, self.P, self.Q)

    @pytest.mark.parametrize("shape", [(3, 3, 2, 6), (2, 2, 2, 6), (2, 3, 1, 6)], ids=["phi", "gamma", "rho"])
    def test_of_factors_are_refused_where_they_do_not_fit(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"expected x of 12 features and Q \(2, 3, 2, o\)"):
            two_factor(self.X, self.P, torch.zeros(shape))

    @pytest.mark.parametrize("shape", [(5, 11), (4, 12)], ids=["features", "tokens"])
    def test_of_dy_are_refused_where_they_do_not_fit(self, shape: tuple[int, int]) -> None:
        with pytest.raises(ValueError, match=r"expected (x of|as many tokens)"):
            two_factor_gradients(self.X, self.P, self.Q, torch.zeros(shape), True, True)
