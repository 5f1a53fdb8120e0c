"""Layers with the kernels switched on give what they give without them, whatever looks on."""

# T tokens, I inputs, O outputs

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from einlayers.contraction import choose, contract
from einlayers.dims import Dims
from einlayers.fused.switch import use_fused_kernels
from einlayers.linear import EinsumLinear
from einlayers.moe import EinsumMoE
from einlayers.theta import NAMED
from tests.einlayers.fused.layers import DEVICE
from tests.einlayers.test_contraction import saved

assert_close = partial(torch.testing.assert_close, atol=2e-5, rtol=2e-5)


@pytest.fixture(autouse=True)
def _on() -> Iterator[None]:
    with use_fused_kernels():
        yield


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch.compiler.reset()


@pytest.fixture(params=["A first", "B first"])
def layer(request: pytest.FixtureRequest) -> EinsumLinear:
    """Padded on both sides, with its blocks on A or on B."""
    torch.manual_seed(0)
    dims = Dims.of((8, 1, 5, 1, 16, 9, 2), 37, 140)
    return EinsumLinear.from_dims(dims if request.param == "A first" else dims.swapped(), device=DEVICE)


def tokens(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def formulation(layer: EinsumLinear, x_TI: Tensor) -> str:
    return choose(x_TI.new_empty(x_TI.shape[:-1].numel(), layer.dims.inputs), layer.A, layer.B, layer.order)


def gradients(layer: nn.Module, x: Tensor, applied: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, ...]:
    x = x.detach().requires_grad_()
    return torch.autograd.grad((layer if applied is None else applied)(x).square().sum(), (x, *layer.parameters()))


class TestLayers:
    @pytest.mark.parametrize("shape", [(3, 7, 37), (37,), (0, 37)])
    def test_are_the_same_with_the_kernels(self, layer: EinsumLinear, shape: tuple[int, ...]) -> None:
        x = tokens(*shape)
        assert formulation(layer, x) == "fused"
        y, found = layer(x), gradients(layer, x)
        with use_fused_kernels(False):
            assert formulation(layer, x) != "fused"
            assert_close(y, layer(x))
            assert_close(found, gradients(layer, x))

    def test_save_their_input_and_the_factors_alone(self) -> None:
        dims = Dims.of((8, 1, 5, 1, 16, 9, 2), 40, 144)
        layer, x_TI = EinsumLinear.from_dims(dims, bias=False, device=DEVICE), tokens(50, 40)
        numbers = saved(lambda: contract(x_TI, layer.A, layer.B, order=layer.order))
        assert numbers == layer.A.numel() + layer.B.numel() + x_TI.numel()

    def test_may_be_mixtures(self) -> None:
        torch.manual_seed(0)
        mixture = EinsumMoE.from_dims(Dims.of((8, 1, 6, 1, 8, 6, 1), 48, 48), num_experts=6, device=DEVICE)
        x_TI = tokens(4, 48)  # so few that some experts have no token
        y_TO, found = mixture(x_TI), gradients(mixture, x_TI)
        with use_fused_kernels(False):
            assert_close(y_TO, mixture(x_TI))
            assert_close(found, gradients(mixture, x_TI))

    def test_may_be_recomputed_or_capped(self) -> None:
        torch.manual_seed(0)
        layer = EinsumLinear.btt(64, 64, rank=2, recompute=True, weight_norm=True, device=DEVICE)
        x_TI = tokens(9, 64)
        assert formulation(layer, x_TI) == "fused"
        found = gradients(layer, x_TI)
        with use_fused_kernels(False):
            assert_close(found, gradients(layer, x_TI))


class TestTracers:
    def test_compile_a_layer_whole(self, layer: EinsumLinear) -> None:
        x = tokens(4, 5, 37)
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        assert_close(compiled(x), layer(x))
        assert_close(gradients(layer, x, compiled), gradients(layer, x))

    def test_notice_the_switch(self, layer: EinsumLinear) -> None:
        graphs: list[str] = []

        def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
            graphs.append(graph.code)
            return graph.forward

        x = tokens(4, 37)
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        compiled(x)
        with use_fused_kernels(False):
            compiled(x)
        assert ["two_factor" in graph for graph in graphs] == [True, False]

    def test_export_a_layer_for_any_number_of_tokens(self, layer: EinsumLinear) -> None:
        program = torch.export.export(layer, (tokens(4, 37),), dynamic_shapes=({0: torch.export.Dim("T")},))
        assert "einlayers.two_factor" in program.graph_module.code
        x = tokens(9, 37)
        assert_close(program.module()(x), layer(x))

    def test_see_plain_torch_under_a_transform(self, layer: EinsumLinear) -> None:
        x = tokens(4, 5, 37)
        assert_close(torch.func.vmap(layer)(x), layer(x))


class TestAutocast:
    @pytest.mark.parametrize("is_compiled", [False, True])
    def test_computes_in_its_type(self, layer: EinsumLinear, is_compiled: bool) -> None:
        x = tokens(9, 37)
        applied: Callable[[Tensor], Tensor] = (
            torch.compile(layer, backend="aot_eager", fullgraph=True) if is_compiled else layer
        )
        with torch.autocast(DEVICE, torch.bfloat16):
            assert formulation(layer, x) == "fused"
            y = applied(x)
            found = gradients(layer, x, applied)
        assert y.dtype == torch.bfloat16
        assert ((y - layer(x)).norm() / layer(x).norm()).item() < 1e-2
        for gradient, exact in zip(found, gradients(layer, x), strict=True):
            assert gradient.dtype == torch.float32
            assert ((gradient - exact).norm() / exact.norm()).item() < 2e-2  # a product of two roundings


class TestWhatIsNotServed:
    @pytest.mark.parametrize("name", ["dense", "low-rank", "kronecker", "tensor-train"])
    def test_is_computed_as_ever(self, name: str) -> None:
        torch.manual_seed(0)
        layer, x_TI = EinsumLinear(36, 36, NAMED[name], device=DEVICE), tokens(7, 36)
        y_TO, choice = layer(x_TI), formulation(layer, x_TI)
        with use_fused_kernels(False):
            assert choice == formulation(layer, x_TI)
            assert torch.equal(y_TO, layer(x_TI))

    def test_takes_types_that_have_no_kernel(self, layer: EinsumLinear) -> None:
        assert formulation(layer.double(), tokens(7, 37).double()) != "fused"

    def test_leaves_the_refusal_of_several_types_to_torch(self, layer: EinsumLinear) -> None:
        with pytest.raises(RuntimeError, match="dtype"):
            layer(tokens(7, 37).half())

    def test_is_a_layer_on_another_device(self, layer: EinsumLinear) -> None:
        assert layer.to("meta")(torch.empty(7, 37, device="meta")).shape == (7, 140)
