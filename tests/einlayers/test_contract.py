"""The contract of layers, kept by each of them."""

from functools import partial

import pytest

from einlayers.btt import BTTLinear
from einlayers.linear import EinsumLinear
from einlayers.moe import DenseMoE, EinsumMoE, LowRankMoE
from tests.contracts.layer import D_IN, D_OUT, LayerContract, Make


class TestEinsumLinear(LayerContract):
    @pytest.fixture(
        params=["low-rank", "kronecker", "tensor-train", "monarch", "btt", "(1/2|1/4|1/4|1/4|1/2|1/4|1/4)", "swapped"]
    )
    def make(self, request: pytest.FixtureRequest) -> Make:
        theta = "(1/4|1/2|1/4|1/2|1/4|1/4|1/4)" if request.param == "swapped" else request.param
        return partial(EinsumLinear, D_IN, D_OUT, theta)


class TestRecomputing(LayerContract):
    @pytest.fixture(params=["low-rank", "btt"])
    def make(self, request: pytest.FixtureRequest) -> Make:
        return partial(EinsumLinear, D_IN, D_OUT, request.param, recompute=True)


class TestWeightNormalised(LayerContract):
    @pytest.fixture
    def make(self) -> Make:
        return partial(EinsumLinear, D_IN, D_OUT, "btt", weight_norm=True)


class TestPapersRounding(LayerContract):
    @pytest.fixture
    def make(self) -> Make:
        return partial(EinsumLinear, D_IN, D_OUT, "(0.33|0|0.67|0|0.67|0.33|0.2)", policy="round")


class TestBTTLinear(LayerContract):
    @pytest.fixture(params=[2, 3, 4])
    def make(self, request: pytest.FixtureRequest) -> Make:
        return partial(BTTLinear, D_IN, D_OUT, num_cores=request.param, rank=2)


class TestMixtures(LayerContract):
    # Tokens are sorted by expert, which reads the counts.
    is_one_graph = False

    @pytest.fixture(params=["einsum", "low rank", "dense"])
    def make(self, request: pytest.FixtureRequest) -> Make:
        makers: dict[str, Make] = {
            "einsum": partial(EinsumMoE, D_IN, D_OUT, "monarch", num_experts=3),
            "low rank": partial(LowRankMoE, D_IN, D_OUT, num_experts=3),
            "dense": partial(DenseMoE, D_IN, D_OUT, num_experts=3),
        }
        return makers[request.param]
