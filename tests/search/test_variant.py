"""Variants of a proxy's model: what they change, what it costs, and when two are one."""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter, ValidationError

from einlayers.errors import FieldError
from einlayers.theta import NAMED, Theta
from search.proxies.char_lm import CharLM
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression
from search.proxies.shapes import GroupThetas, Mixture
from search.structure import layer_dims, structure_of
from search.variant import Variant

SPARSE = CharLM(dense_width=32, mixture=Mixture(num_experts=8, top_k=2, balance=0.5))
VARIANTS = TypeAdapter(Variant)


class TestNumbers:
    @pytest.mark.parametrize(
        ("variant", "numbers"),
        [
            (Variant(num_experts=4, top_k=1), (4, 1)),
            (Variant(num_experts=16), (16, 2)),
            (Variant(top_k=8), (8, 8)),
            (Variant(num_experts=1, top_k=1), (1, 1)),
        ],
    )
    def test_take_the_place_of_the_proxys_own(self, variant: Variant, numbers: tuple[int, int]) -> None:
        own = SPARSE.mixture
        assert own is not None
        assert variant.on(SPARSE) == replace(SPARSE, mixture=replace(own, num_experts=numbers[0], top_k=numbers[1]))

    def test_need_a_mixture(self) -> None:
        with pytest.raises(FieldError, match=r"^top_k: expected none where the proxy has no mixture, got 1$"):
            Variant(top_k=1).on(Regression())

    def test_take_no_more_experts_than_there_are(self) -> None:
        with pytest.raises(FieldError, match=r"^top_k: expected a whole number from 1 to 8, got 9"):
            Variant(top_k=9).on(SPARSE)
        with pytest.raises(FieldError, match=r"^top_k: expected a whole number from 1 to 1, got 2"):
            Variant(num_experts=1).on(SPARSE)

    @pytest.mark.parametrize("wrong", [{}, {"top_k": 0}, {"num_experts": 1025}, {"top_k": True}, {"num_experts": 1.0}])
    def test_are_whole_numbers_of_which_one_is_given(self, wrong: dict[str, int]) -> None:
        with pytest.raises(FieldError):
            Variant(**wrong)  # type: ignore[arg-type]  # the point of the test

    def test_are_json_and_words(self) -> None:
        variant = VARIANTS.validate_python({"num_experts": 4})
        assert (variant, str(variant)) == (Variant(num_experts=4), "num_experts=4")
        assert VARIANTS.validate_json(VARIANTS.dump_json(variant)) == variant
        assert str(Variant(num_experts=4, top_k=2)) == "num_experts=4 top_k=2"
        for wrong in ({"experts": 4}, {"num_experts": "4"}, 3):
            with pytest.raises(ValidationError):
                VARIANTS.validate_python(wrong)


class TestGroups:
    DENSE_ATTENTION = Variant(thetas=GroupThetas(attention=NAMED["dense"]))

    def test_have_thetas_that_the_proxy_has_not(self) -> None:
        assert self.DENSE_ATTENTION.on(SPARSE) == replace(SPARSE, thetas=GroupThetas(attention=NAMED["dense"]))
        fixed = replace(SPARSE, thetas=GroupThetas(attention=NAMED["btt"]))
        assert self.DENSE_ATTENTION.on(fixed) == self.DENSE_ATTENTION.on(SPARSE)

    def test_come_with_numbers_of_experts(self) -> None:
        both = replace(self.DENSE_ATTENTION, num_experts=4)
        assert both.on(SPARSE) == Variant(num_experts=4).on(self.DENSE_ATTENTION.on(SPARSE))
        assert str(both) == "num_experts=4 attention=(0|0|1|0|0|1|0)"

    @pytest.mark.parametrize(
        "proxy",
        [Regression(), CharLM(head_aligned_rank=1), CharLM(thetas=GroupThetas(feed_forward=NAMED["btt"]))],
        ids=["an mlp", "aligned", "the last one"],
    )
    def test_are_refused_where_there_is_no_other(self, proxy: ProxySpec) -> None:
        with pytest.raises(FieldError, match=r"^thetas: expected structures of some, but not all"):
            self.DENSE_ATTENTION.on(proxy)

    def test_have_the_axes_of_their_own_layers(self) -> None:
        dims = layer_dims(NAMED["monarch"], Variant(thetas=GroupThetas(attention=NAMED["low-rank"])).on(CharLM()), 64)
        assert dims["attention"].axes == (64, 1, 1, 1, 64, 1, 8)
        assert dims["up"] == layer_dims(NAMED["monarch"], CharLM(), 64)["up"]

    def test_are_json(self) -> None:
        variant = VARIANTS.validate_json(VARIANTS.dump_json(self.DENSE_ATTENTION))
        assert variant == self.DENSE_ATTENTION
        assert variant.group_thetas["attention"].exponents == NAMED["dense"].exponents


class TestStructure:
    @pytest.mark.parametrize("numbers", [(1, 1), (4, 1), (8, 8), (32, 2)])
    @pytest.mark.parametrize("name", NAMED)
    def test_has_the_width_that_costs_what_dense_costs(self, name: str, numbers: tuple[int, int]) -> None:
        variant = Variant(num_experts=numbers[0], top_k=numbers[1])
        structure = structure_of(NAMED[name], SPARSE, variant)
        mixed, target = variant.on(SPARSE), CharLM(dense_width=32).cost(NAMED["dense"], 32).macs
        gaps = {width: abs(mixed.cost(NAMED[name], width).macs - target) for width in range(4, 257, 4)}
        assert structure.width == min(gaps, key=lambda width: (gaps[width], width))
        assert structure.cost == mixed.cost(NAMED[name], structure.width)
        assert structure.cost.macs == pytest.approx(target, rel=0.25)
        assert structure.variant == variant

    def test_is_more_experts_for_the_same_compute_but_for_the_gates(self) -> None:
        one, many = (structure_of(NAMED["btt"], replace(SPARSE, width=32), Variant(num_experts=n)).cost for n in (2, 4))
        # A gate has a row for each expert, and reads what its layer reads: four of attention and "up" 32, "down" 128.
        gates = SPARSE.depth * 2 * (4 * 32 + 32 + 128)
        assert many.macs - one.macs == gates
        assert many.params - one.params > gates


class TestDigest:
    def test_tells_numbers_of_experts_apart(self) -> None:
        fixed = replace(SPARSE, width=32)
        variants = [Variant(num_experts=n, top_k=k) for n in (2, 4, 12) for k in (1, 2)]
        digests = {structure_of(NAMED["btt"], fixed, variant).digest for variant in variants}
        assert len(digests | {structure_of(NAMED["btt"], fixed).digest}) == len(variants) + 1

    def test_tells_structures_of_groups_apart(self) -> None:
        fixed = CharLM(width=32)
        variants = [Variant(thetas=GroupThetas(attention=theta)) for theta in NAMED.values()]
        variants += [Variant(thetas=GroupThetas(feed_forward=theta)) for theta in NAMED.values()]
        digests = {structure_of(NAMED["btt"], fixed, variant).digest for variant in variants}
        # That of a BTT everywhere is there twice.
        assert len(digests) == 2 * len(NAMED) - 1
        assert structure_of(NAMED["btt"], fixed).digest in digests

    def test_is_of_models_and_not_of_how_they_are_said(self) -> None:
        btt, low_rank = NAMED["btt"], NAMED["low-rank"]
        one = structure_of(btt, CharLM(), Variant(thetas=GroupThetas(attention=low_rank.swapped())))
        other = structure_of(low_rank, CharLM(), Variant(thetas=GroupThetas(feed_forward=btt.swapped())))
        assert (one.digest, one.width, one.cost) == (other.digest, other.width, other.cost)
        assert (one.family, other.family) == ("btt", "low-rank")

    def test_sees_dense_however_it_is_spelt_in_any_group(self) -> None:
        spellings = [Theta.of(e) for e in ((0, 0, 1, 0, 0, 1, 0), (1, 0, 0, 1, 0, 0, 0), (0.5, 0, 0.5, 1, 0, 0, 0))]
        mixed = {
            structure_of(NAMED["btt"], CharLM(), Variant(thetas=GroupThetas(attention=theta))).digest
            for theta in spellings
        }
        dense = {
            structure_of(theta, CharLM(), Variant(thetas=GroupThetas(attention=other))).digest
            for theta in spellings
            for other in spellings
        }
        assert (len(mixed), dense) == (1, {structure_of(NAMED["dense"], CharLM()).digest})

    def test_knows_the_proxys_own_model_however_it_is_said(self) -> None:
        usual = structure_of(NAMED["btt"], SPARSE)
        for variant in (Variant(num_experts=8, top_k=2), Variant(top_k=2), Variant(num_experts=8)):
            assert structure_of(NAMED["btt"], SPARSE, variant).digest == usual.digest

    def test_is_what_it_was_before_there_were_variants(self) -> None:
        proxy = CharLM(dense_width=32, num_heads=4, depth=2, context=64, mixture=Mixture())
        plain = replace(proxy, width=structure_of(NAMED["btt"], proxy).width, mixture=None)
        assert structure_of(NAMED["btt"], proxy).digest == structure_of(NAMED["btt"], plain).digest
