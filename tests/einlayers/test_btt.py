# B batch, I inputs (d_in), O outputs (d_out)

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from einlayers.btt import BTTLinear, btt_layer
from einlayers.errors import FieldError
from einlayers.linear import EinsumLinear
from einlayers.scaling import factor_rules
from einlayers.taxonomy import cost
from tests import golden
from tests.einlayers.oracle import TOLERANCE, normal

FLOPS_PER_MAC = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A layer and what it is a case of."""

    d_in: int
    d_out: int
    num_cores: int
    rank: int
    padded: tuple[int, int] = (0, 0)
    bias: bool = True


CASES = {
    "two cores": Case(d_in=12, d_out=12, num_cores=2, rank=1),
    "two cores, wide": Case(d_in=12, d_out=20, num_cores=2, rank=4),
    "two cores, padded": Case(d_in=17, d_out=31, num_cores=2, rank=2, padded=(1, 1)),
    "three cores": Case(d_in=27, d_out=27, num_cores=3, rank=1),
    "three cores, wide": Case(d_in=12, d_out=36, num_cores=3, rank=2),
    "three cores, tall": Case(d_in=36, d_out=8, num_cores=3, rank=4),
    "three cores, padded": Case(d_in=17, d_out=29, num_cores=3, rank=2, padded=(1, 1)),
    "four cores": Case(d_in=16, d_out=16, num_cores=4, rank=1),
    "four cores, wide": Case(d_in=16, d_out=36, num_cores=4, rank=2),
    "four cores, tall, no bias": Case(d_in=24, d_out=16, num_cores=4, rank=4, bias=False),
    "four cores, padded": Case(d_in=15, d_out=23, num_cores=4, rank=2, padded=(1, 1)),
    "single feature": Case(d_in=1, d_out=5, num_cores=3, rank=1),
}


@pytest.fixture(params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    assert isinstance(request.param, Case)
    return request.param


class TestCases:
    def test_are_what_they_are_called(self, case: Case) -> None:
        axes = _layer(case).axes
        assert (axes.inputs - case.d_in, axes.outputs - case.d_out) == case.padded
        assert len(axes.m) == case.num_cores


class TestForward:
    def test_applies_the_matrix_that_plain_loops_make(self, case: Case) -> None:
        layer, x_BI = _layer(case), normal(5, case.d_in)
        W_OI = _loops(layer)
        bias_O = torch.zeros(case.d_out, dtype=torch.float64) if layer.bias is None else layer.bias
        torch.testing.assert_close(layer(x_BI), x_BI @ W_OI.mT + bias_O, atol=TOLERANCE, rtol=TOLERANCE)

    def test_multiplies_out_to_the_same_matrix(self, case: Case) -> None:
        layer = _layer(case)
        torch.testing.assert_close(layer.to_dense(), _loops(layer), atol=TOLERANCE, rtol=TOLERANCE)


class TestGradients:
    def test_are_those_of_plain_loops(self, case: Case) -> None:
        layer, x_BI, upstream_BO = _layer(case), normal(5, case.d_in), normal(5, case.d_out)
        x_BI.requires_grad_()
        layer(x_BI).backward(upstream_BO)
        for core, grad in zip(layer.cores, _loops_backward(layer, upstream_BO.mT @ x_BI.detach()), strict=True):
            torch.testing.assert_close(core.grad, grad, atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(x_BI.grad, upstream_BO @ _loops(layer), atol=TOLERANCE, rtol=TOLERANCE)
        if layer.bias is not None:
            torch.testing.assert_close(layer.bias.grad, upstream_BO.sum(0), atol=TOLERANCE, rtol=TOLERANCE)

    def test_flow_through_the_multiplied_out_matrix(self, case: Case) -> None:
        layer, upstream_OI = _layer(case), normal(case.d_out, case.d_in)
        layer.to_dense().backward(upstream_OI)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        for core, grad in zip(layer.cores, _loops_backward(layer, upstream_OI), strict=True):
            torch.testing.assert_close(core.grad, grad, atol=TOLERANCE, rtol=TOLERANCE)


class TestTwoCores:
    @pytest.mark.parametrize(("d_in", "d_out", "rank"), [(64, 64, 1), (48, 120, 3), (120, 48, 2), (131, 149, 4)])
    def test_are_the_two_factor_layer(self, d_in: int, d_out: int, rank: int) -> None:
        chain, einsum = BTTLinear(d_in, d_out, num_cores=2, rank=rank), EinsumLinear.btt(d_in, d_out, rank=rank)
        chain, einsum = chain.double(), einsum.double()
        first, second = chain.cores
        with torch.no_grad():
            # A is (phi, delta, rho, gamma, alpha) = (n_1, 1, r, m_2, m_1), B (phi, epsilon, rho, gamma, beta).
            first.copy_(einsum.A[:, 0].permute(2, 3, 0, 1)[None, :, None])
            second.copy_(einsum.B[..., 0].permute(0, 2, 3, 1)[:, None, ..., None])
        x_BI = normal(7, d_in)
        torch.testing.assert_close(chain(x_BI), einsum(x_BI), atol=TOLERANCE, rtol=TOLERANCE)
        torch.testing.assert_close(chain.to_dense(), einsum.to_dense(), atol=TOLERANCE, rtol=TOLERANCE)

    @pytest.mark.parametrize(("d_in", "d_out", "rank"), [(64, 64, 1), (48, 120, 3), (131, 149, 4)])
    def test_have_the_cost_and_the_rules_of_the_two_factor_layer(self, d_in: int, d_out: int, rank: int) -> None:
        chain, einsum = BTTLinear(d_in, d_out, num_cores=2, rank=rank), EinsumLinear.btt(d_in, d_out, rank=rank)
        rules = factor_rules(einsum.dims)
        assert chain.cost == cost(einsum.dims)
        assert chain.lr_rules() == {"core_1": rules.A, "core_2": rules.B}

    def test_land_in_the_two_factor_layer_by_default(self) -> None:
        layer = btt_layer(48, 120, rank=3, bias=False, zero_init=True)
        assert isinstance(layer, EinsumLinear)
        assert layer.dims == EinsumLinear.btt(48, 120, rank=3).dims
        assert (layer.bias, layer.zero_init) == (None, True)

    def test_are_not_what_more_cores_land_in(self) -> None:
        layer = btt_layer(48, 120, num_cores=4, rank=3, bias=False, zero_init=True)
        assert isinstance(layer, BTTLinear)
        assert (len(layer.cores), layer.axes.rank, layer.bias, layer.zero_init) == (4, 3, None, True)


class TestCost:
    @pytest.mark.parametrize(("d_in", "d_out"), [(64, 64), (60, 96), (131, 149)])
    def test_is_what_torch_counts(self, d_in: int, d_out: int) -> None:
        for num_cores, rank in itertools.product((2, 3, 4), (1, 3)):
            layer = BTTLinear(d_in, d_out, num_cores=num_cores, rank=rank, bias=False)
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                layer(torch.zeros(6, d_in))
            assert counter.get_total_flops() / FLOPS_PER_MAC / 6 == layer.cost.macs, layer

    @pytest.mark.parametrize("row", golden.chains(), ids=lambda row: f"{row.num_cores} cores of rank {row.rank}")
    def test_is_that_of_the_papers_at_a_large_width(self, row: golden.Chain) -> None:
        layer = BTTLinear(row.d, row.d, num_cores=row.num_cores, rank=row.rank, device="meta")
        assert (layer.cost.params, layer.cost.macs) == (row.params, row.macs)
        assert sum(core.numel() for core in layer.cores) == row.params

    def test_has_the_parameters_that_are_there(self, case: Case) -> None:
        layer = _layer(case)
        assert sum(core.numel() for core in layer.cores) == layer.cost.params

    @pytest.mark.parametrize("num_cores", [2, 3, 4])
    @pytest.mark.parametrize(("d_in", "d_out"), [(24, 24), (36, 48), (31, 29), (17, 64)])
    def test_bounds_the_rank_and_random_weights_reach_the_bound(self, d_in: int, d_out: int, num_cores: int) -> None:
        torch.manual_seed(0)
        for rank in (1, 2):
            layer = BTTLinear(d_in, d_out, num_cores=num_cores, rank=rank, dtype=torch.float64)
            assert torch.linalg.matrix_rank(layer.to_dense()).item() == layer.rank_bound


class TestInitialisation:
    @pytest.mark.parametrize("rank", [1, 4])
    def test_draws_every_core_at_the_scale_of_mup(self, rank: int) -> None:
        torch.manual_seed(0)
        layer = BTTLinear(4096, 1000, num_cores=3, rank=rank)
        for name, rule in layer.lr_rules().items():
            core = layer.get_parameter(name)
            _, _, q, m, n, r = core.shape
            assert (rule.fan_in, rule.fan_out) == (q * m, n * r)
            assert rule.init_std == pytest.approx(math.sqrt(min(q * m, n * r)) / (q * m))
            assert core.std().item() == pytest.approx(rule.init_std, rel=0.05)

    def test_divides_the_learning_rate_of_the_dense_layer_among_the_cores(self) -> None:
        rules = BTTLinear(512, 4096, num_cores=3, rank=2).lr_rules()
        assert [(rule.fan_in, rule.fan_out) for rule in rules.values()] == [(8, 32), (16, 32), (16, 16)]
        assert [rule.adam_lr_mult for rule in rules.values()] == pytest.approx([64 / 3, 32 / 3, 32 / 3])
        assert [rule.sgd_lr_mult for rule in rules.values()] == pytest.approx(
            [2048 / 8 / 8 / 3, 4096 / 16 / 8 / 3, 4096 / 16 / 8 / 3]
        )

    def test_tells_which_axes_of_a_core_are_matrices(self) -> None:
        layer = BTTLinear(64, 96, num_cores=3, rank=2)
        for name, rule in layer.lr_rules().items():
            sizes = [
                math.prod(layer.get_parameter(name).shape[axis] for axis in axes) for axes in layer.matrix_views()[name]
            ]
            assert sizes == [
                layer.get_parameter(name).numel() // (rule.fan_in * rule.fan_out),
                rule.fan_out,
                rule.fan_in,
            ]

    def test_keeps_the_size_of_features_at_every_width(self) -> None:
        torch.manual_seed(0)
        for d in (64, 512, 1000):
            assert BTTLinear(d, d)(torch.randn(256, d)).std().item() == pytest.approx(1, rel=0.3), d


class TestModule:
    def test_prints_its_widths_and_its_chain(self) -> None:
        printed = "BTTLinear(64, 27, cores 4->3 4->3 4->3, rank=2, bias=False, zero_init=True)"
        assert repr(BTTLinear(64, 27, rank=2, bias=False, zero_init=True)) == printed

    @pytest.mark.parametrize(
        ("changed", "field"),
        [({"d_in": 0}, "d_in"), ({"d_out": True}, "d_out"), ({"num_cores": 1}, "num_cores"), ({"rank": -1}, "rank")],
    )
    def test_refuses_a_bad_argument_and_names_it(self, changed: dict[str, object], field: str) -> None:
        arguments: dict[str, object] = {"d_in": 8, "d_out": 8, "num_cores": 3, "rank": 1, **changed}
        for make in (BTTLinear, btt_layer):
            with pytest.raises(FieldError, match=f"^{field}: expected a whole number from"):
                make(**arguments)  # type: ignore[arg-type]  # the point of the test


def _layer(case: Case) -> BTTLinear:
    torch.manual_seed(0)
    layer = BTTLinear(case.d_in, case.d_out, num_cores=case.num_cores, rank=case.rank, bias=case.bias).double()
    if layer.bias is not None:
        torch.nn.init.normal_(layer.bias)
    return layer


def _loops(layer: BTTLinear) -> Tensor:
    """W[(n_1..n_K), (m_K..m_1)], one entry at a time; what the axes do not hold is zero."""
    cores = [core.tolist() for core in layer.cores]
    W = [[0.0] * layer.d_in for _ in range(layer.d_out)]
    for o, i, terms in _terms(layer):
        for indices in terms:
            W[o][i] += math.prod(_entry(core, index) for core, index in zip(cores, indices, strict=True))
    return torch.tensor(W, dtype=torch.float64)


def _loops_backward(layer: BTTLinear, grad_OI: Tensor) -> list[Tensor]:
    """The gradient of every core, from that of the matrix, by the product rule for one entry at a time."""
    cores, grad = [core.tolist() for core in layer.cores], grad_OI.tolist()
    grads = [torch.zeros_like(core).tolist() for core in layer.cores]
    for o, i, terms in _terms(layer):
        for indices in terms:
            entries = [_entry(core, index) for core, index in zip(cores, indices, strict=True)]
            for k, (p, s, q, m, n, r) in enumerate(indices):
                grads[k][p][s][q][m][n][r] += grad[o][i] * math.prod(entries[:k] + entries[k + 1 :])
    return [torch.tensor(g, dtype=torch.float64) for g in grads]


Index = tuple[int, int, int, int, int, int]


def _terms(layer: BTTLinear) -> Iterator[tuple[int, int, list[list[Index]]]]:
    """Every entry of the matrix, and for each choice of inner ranks where its product finds one number in every core."""
    axes = layer.axes
    num_cores = len(axes.m)
    for o, ns in _features(axes.n, layer.d_out):
        for i, ms_reversed in _features(axes.m[::-1], layer.d_in):
            ms, terms = ms_reversed[::-1], []
            for inner in itertools.product(range(axes.rank), repeat=num_cores - 1):
                ranks = (0, *inner, 0)
                terms.append(
                    [
                        (
                            _flat(ns[:k], axes.n[:k]),
                            _flat(ms[k + 1 :][::-1], axes.m[k + 1 :][::-1]),
                            ranks[k],
                            ms[k],
                            ns[k],
                            ranks[k + 1],
                        )
                        for k in range(num_cores)
                    ]
                )
            yield o, i, terms


def _features(sizes: tuple[int, ...], width: int) -> list[tuple[int, tuple[int, ...]]]:
    """The first ``width`` features of flattened axes, the last one fastest."""
    return list(enumerate(itertools.product(*map(range, sizes))))[:width]


def _flat(indices: tuple[int, ...], sizes: tuple[int, ...]) -> int:
    flat = 0
    for index, size in zip(indices, sizes, strict=True):
        flat = flat * size + index
    return flat


def _entry(core: list[list[list[list[list[list[float]]]]]], index: Index) -> float:
    p, s, q, m, n, r = index
    return core[p][s][q][m][n][r]
