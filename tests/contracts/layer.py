"""What every layer that stands in for ``nn.Linear`` keeps: subclass, and give one fixture."""

# B batch, I inputs (d_in), O outputs (d_out)

import copy
import io
import math
from typing import Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from einlayers.errors import FieldError
from tests.einlayers.oracle import TOLERANCE, normal

D_IN, D_OUT = 150, 131
"""Not equal, padded by most structures, and too large for the smallest layers' short cut."""

HALF_PRECISION = 0.03
"""How far bfloat16 may lead an output from float32, as a share of its norm."""


class Make(Protocol):
    """Makes the layer under test, from ``D_IN`` to ``D_OUT`` features."""

    def __call__(
        self,
        *,
        bias: bool = True,
        zero_init: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> nn.Module: ...


class LayerContract:
    """Batches of any shape, torch's ways of moving, saving and tracing modules, muP rules, bad input."""

    is_one_graph = True
    """Whether a compiler can trace it without a break."""

    @pytest.fixture
    def make(self) -> Make:
        raise NotImplementedError

    def test_keeps_every_leading_axis(self, make: Make) -> None:
        layer, x_BBI = make().double(), normal(2, 3, D_IN)
        y_BBO = layer(x_BBI)
        assert y_BBO.shape == (2, 3, D_OUT)
        torch.testing.assert_close(y_BBO.flatten(0, 1), layer(x_BBI.flatten(0, 1)), atol=TOLERANCE, rtol=TOLERANCE)

    def test_takes_a_batch_of_none(self, make: Make) -> None:
        assert make()(torch.zeros(0, D_IN)).shape == (0, D_OUT)
        assert make()(torch.zeros(2, 0, D_IN)).shape == (2, 0, D_OUT)

    def test_takes_inputs_of_any_strides(self, make: Make) -> None:
        layer, x_IB = make().double(), normal(D_IN, 4)
        torch.testing.assert_close(layer(x_IB.mT), layer(x_IB.mT.contiguous()), atol=TOLERANCE, rtol=TOLERANCE)

    def test_gives_every_parameter_a_gradient(self, make: Make) -> None:
        layer, x_BI = make(), torch.randn(7, D_IN, requires_grad=True)
        backward(layer(x_BI), x_BI.new_ones(7, D_OUT))
        assert x_BI.grad is not None
        assert all(parameter.grad is not None for parameter in layer.parameters())

    def test_saves_and_loads(self, make: Make) -> None:
        layer, twin, x_BI = make(), make(), torch.randn(3, D_IN)
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        twin.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(twin(x_BI), layer(x_BI))

    def test_copies_deeply(self, make: Make) -> None:
        layer, x_BI = make(), torch.randn(3, D_IN)
        before = layer(x_BI)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x_BI), before)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.zero_()
        assert torch.equal(layer(x_BI), before)

    def test_is_the_same_for_the_same_seed(self, make: Make) -> None:
        states = []
        for _ in range(2):
            torch.manual_seed(3)
            states.append(list(make().parameters()))
        assert all(map(torch.equal, *states))

    def test_is_made_without_memory_on_the_meta_device(self, make: Make) -> None:
        layer = make(device="meta")
        assert {parameter.device.type for parameter in layer.parameters()} == {"meta"}
        assert {name: p.shape for name, p in layer.named_parameters()} == {
            name: p.shape for name, p in make().named_parameters()
        }

    def test_is_made_of_the_type_that_is_asked_for(self, make: Make) -> None:
        layer = make(dtype=torch.float64)
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}

    @pytest.mark.parametrize("bias", [False, True])
    def test_computes_in_the_type_of_autocast(self, make: Make, bias: bool) -> None:
        layer, x_BI = make(bias=bias), torch.randn(40, D_IN, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            y_BO = layer(x_BI)
        assert y_BO.dtype == torch.bfloat16
        backward(y_BO, torch.ones_like(y_BO))
        assert x_BI.grad is not None
        assert x_BI.grad.dtype == torch.float32
        exact_BO = layer(x_BI)
        assert (y_BO - exact_BO).norm() < HALF_PRECISION * exact_BO.norm()

    # Torch's own: between two graphs it looks at the gradients of inputs that are no leaves, and warns of it.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
    def test_is_traced_to_the_same_values_and_gradients(self, make: Make) -> None:
        layer, x_BI = make().double(), normal(9, D_IN).requires_grad_()
        torch.compiler.reset()
        traced = torch.compile(layer, backend="aot_eager", fullgraph=self.is_one_graph)
        inputs = (x_BI, *layer.parameters())
        y_BO = layer(x_BI)
        torch.testing.assert_close(traced(x_BI), y_BO, atol=TOLERANCE, rtol=TOLERANCE)
        expected = torch.autograd.grad(y_BO.square().sum(), inputs, allow_unused=True)
        found = torch.autograd.grad(traced(x_BI).square().sum(), inputs, allow_unused=True)
        torch.testing.assert_close(found, expected)

    def test_starts_without_an_offset(self, make: Make) -> None:
        assert torch.equal(make()(torch.zeros(2, D_IN)), torch.zeros(2, D_OUT))
        with_bias = {name for name, _ in make().named_parameters()}
        assert with_bias - {name for name, _ in make(bias=False).named_parameters()} == {"bias"}

    def test_can_start_as_the_zero_map_that_still_learns(self, make: Make) -> None:
        layer = make(zero_init=True)
        y_BO = layer(torch.randn(4, D_IN))
        assert torch.equal(y_BO, torch.zeros(4, D_OUT))
        backward(y_BO, torch.randn(4, D_OUT))
        gradients = {name: p.grad for name, p in layer.named_parameters() if name != "bias" and p.grad is not None}
        assert max(gradient.abs().max().item() for gradient in gradients.values()) > 0

    def test_has_a_rule_and_a_view_for_every_factor(self, make: Make) -> None:
        layer: Any = make()
        rules, views = layer.lr_rules(), layer.matrix_views()
        assert rules.keys() == views.keys() <= {name for name, _ in layer.named_parameters(recurse=False)}
        for name, rule in rules.items():
            factor = layer.get_parameter(name)
            batch, rows, columns = (math.prod(factor.shape[axis] for axis in axes) for axes in views[name])
            assert (columns, rows) == (rule.fan_in, rule.fan_out)
            assert batch * rows * columns == factor.numel()
            assert factor.std().item() == pytest.approx(rule.init_std, rel=0.2)

    def test_counts_the_parameters_that_are_there(self, make: Make) -> None:
        layer: Any = make(bias=False)
        assert layer.cost.params == sum(layer.get_parameter(name).numel() for name in layer.lr_rules())
        assert (layer.d_in, layer.d_out) == (D_IN, D_OUT)

    @pytest.mark.parametrize("shape", [(3, D_IN - 1), (3, D_IN + 1), (), (D_IN, 3)])
    def test_refuses_an_input_of_another_width(self, make: Make, shape: tuple[int, ...]) -> None:
        with pytest.raises(FieldError, match=rf"^input: expected {D_IN} features on the last axis, got \("):
            make()(torch.zeros(shape))


def backward(y: Tensor, upstream: Tensor) -> None:
    """``y.backward(upstream)``, which torch leaves unannotated."""
    torch.autograd.backward(y, upstream)
