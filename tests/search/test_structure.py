import pytest
from hypothesis import example, given, settings

from einlayers.taxonomy import classify, taxonomy
from einlayers.theta import NAMED, Theta
from search.proxies.char_lm import CharLM
from search.proxies.shapes import ModelCost
from search.structure import layer_dims, structure_of
from tests import golden, strategies

TINY = CharLM(dense_width=8, num_heads=1, depth=1, context=8, batch_size=1, train_flops=1e6)


class TestStructure:
    @pytest.mark.parametrize("name", NAMED)
    def test_holds_all_that_is_known_before_training(self, name: str) -> None:
        proxy, theta = CharLM(), NAMED[name]
        structure = structure_of(theta, proxy)
        assert structure.theta.exponents == theta.exponents
        assert structure.family == classify(theta) == name
        assert structure.taxonomy == taxonomy(theta)
        assert structure.width == proxy.width_for(theta)
        assert structure.cost == proxy.cost(theta, structure.width)
        assert structure.padding == proxy.padding(theta, structure.width)

    @given(theta=strategies.thetas())
    @settings(max_examples=40)
    @example(theta=Theta.normalise((1, 1, 0, 1, 3, 3, 0.25)))
    @example(theta=Theta.normalise((1, 4, 4, 2, 6, 5, 0.125)))
    def test_is_one_for_a_theta_and_its_swap(self, theta: Theta) -> None:
        here, there = structure_of(theta, TINY), structure_of(theta.swapped(), TINY)
        assert (here.digest, here.width, here.cost) == (there.digest, there.width, there.cost)
        assert (here.family, here.taxonomy) == (there.family, there.taxonomy)


class TestDigest:
    def test_is_the_same_for_every_spelling_of_dense(self) -> None:
        spellings = [(0, 0, 1, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0, 0), (0, 1, 0, 0, 1, 0, 0.5), (0.5, 0, 0.5, 1, 0, 0, 0)]
        assert len({structure_of(Theta.of(exponents), CharLM()).digest for exponents in spellings}) == 1

    def test_is_that_of_dense_where_the_small_axes_come_to_one(self) -> None:
        small, proxy = Theta.of((0.05, 0.95, 0, 0, 0.98, 0.02, 0)), CharLM(dense_width=32)
        structure, dense = structure_of(small, proxy), structure_of(NAMED["dense"], proxy)
        assert not small.is_dense
        assert (structure.digest, structure.width, structure.cost) == (dense.digest, dense.width, dense.cost)
        assert (
            structure_of(small, CharLM(dense_width=1024)).digest
            != structure_of(NAMED["dense"], CharLM(dense_width=1024)).digest
        )

    def test_is_the_same_where_the_integer_axes_are(self) -> None:
        near = Theta.of((0.501, 0, 0.499, 0, 0.501, 0.499, 0.25))
        assert near != NAMED["btt"]
        assert structure_of(near, CharLM()).digest == structure_of(NAMED["btt"], CharLM()).digest

    def test_tells_the_known_designs_apart(self) -> None:
        assert len({structure_of(theta, CharLM()).digest for theta in NAMED.values()}) == len(NAMED)

    def test_tells_two_widths_apart(self) -> None:
        assert len({structure_of(NAMED["btt"], CharLM(width=width)).digest for width in (32, 36, 64)}) == 3

    def test_never_joins_structures_of_different_cost(self) -> None:
        costs: dict[str, set[ModelCost]] = {}
        for theta in [*golden.thetas().values(), *_lattice()]:
            structure = structure_of(theta.canonical(), TINY)
            costs.setdefault(structure.digest, set()).add(structure.cost)
        assert len(costs) > 50
        assert {digest: cost for digest, cost in costs.items() if len(cost) > 1} == {}

    def test_is_the_one_that_databases_hold_already(self) -> None:
        proxy = CharLM(dense_width=32, num_heads=4, depth=2, context=64)
        assert structure_of(NAMED["btt"], proxy).digest == "9492874caa241eae4554b915604b624e"
        assert structure_of(NAMED["dense"], proxy).digest == "681cdedefa67668f08657c751bbb5873"


class TestLayerDims:
    def test_has_the_axes_of_every_kind_of_layer(self) -> None:
        dims = layer_dims(NAMED["monarch"], CharLM(), 64)
        assert list(dims) == ["attention", "up", "down"]
        assert dims["attention"].axes == (8, 1, 8, 1, 8, 8, 1)
        assert [(layer.d_in, layer.d_out) for layer in dims.values()] == [(64, 64), (64, 256), (256, 64)]


def _lattice() -> list[Theta]:
    groups = [(a, b, 4 - a - b) for a in range(5) for b in range(5 - a)]
    return [Theta.normalise((*inputs, *outputs, 0.25)) for inputs in groups for outputs in groups]
