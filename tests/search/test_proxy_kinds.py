"""What all proxies keep on paper, whatever their kind."""

from collections.abc import Sequence
from dataclasses import fields, replace

import pytest
from pydantic import TypeAdapter, ValidationError

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.proxies.base import ProxySettings
from search.proxies.char_lm import CharLM
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.next_pixel import NextPixel
from search.proxies.registry import ProxySpec
from search.proxies.regression import Regression

PROXIES: TypeAdapter[ProxySettings] = TypeAdapter(ProxySpec)
ALL = (CharLM(), ImageMLP(), ImageViT(), NextPixel(), Regression())
KINDS = pytest.mark.parametrize("proxy", ALL, ids=[proxy.kind for proxy in ALL])


@KINDS
class TestAnyProxy:
    def test_is_its_own_json(self, proxy: ProxySettings) -> None:
        assert PROXIES.validate_json(PROXIES.dump_json(proxy)) == proxy
        assert PROXIES.validate_python({"kind": proxy.kind}) == proxy

    def test_knows_no_other_settings(self, proxy: ProxySettings) -> None:
        with pytest.raises(ValidationError, match="Unexpected keyword argument"):
            PROXIES.validate_python({"kind": proxy.kind, "widht": 24})

    @pytest.mark.parametrize("field", ["dense_width", "depth", "batch_size", "train_flops", "base_lr"])
    @pytest.mark.parametrize("value", [0, -1, True, "3", 1e30])
    def test_refuses_what_is_no_number_in_range(self, proxy: ProxySettings, field: str, value: object) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected a .*number from"):
            replace(proxy, **{field: value})  # type: ignore[arg-type]  # the point of the test

    def test_refuses_whole_settings_that_are_none(self, proxy: ProxySettings) -> None:
        for field in fields(proxy):
            if type(getattr(proxy, field.name)) is int:
                with pytest.raises(FieldError, match=f"^{field.name}: expected"):
                    replace(proxy, **{field.name: 1.5})  # type: ignore[arg-type]  # the point of the test

    def test_gives_dense_its_width_and_the_others_one_of_the_same_cost(self, proxy: ProxySettings) -> None:
        assert proxy.width_for(NAMED["dense"]) == proxy.dense_width
        target = proxy.cost(NAMED["dense"], proxy.dense_width).macs
        widths = list(range(proxy.width_step, 512, proxy.width_step))
        for theta in NAMED.values():
            best = min(widths, key=lambda width: (abs(proxy.cost(theta, width).macs - target), width))
            assert proxy.width_for(theta) == best

    def test_gives_way_to_a_width_that_is_asked_for(self, proxy: ProxySettings) -> None:
        assert {replace(proxy, width=20).width_for(theta) for theta in NAMED.values()} == {20}

    def test_spends_its_compute_to_half_a_step(self, proxy: ProxySettings) -> None:
        macs = proxy.cost(NAMED["dense"], proxy.dense_width).macs
        per_step = 6 * macs * proxy.examples_per_step
        assert abs(proxy.num_steps(macs) * per_step - proxy.train_flops) <= per_step / 2


class TestProxySpec:
    def test_is_told_apart_by_its_kind(self) -> None:
        assert len({proxy.kind for proxy in ALL}) == len(ALL)
        kinds: Sequence[object] = ("crystal_ball", 3, None, [])
        for kind in kinds:
            with pytest.raises(ValidationError, match="whose kind is one of char_lm, image_mlp"):
                PROXIES.validate_python({"kind": kind})

    def test_is_the_character_model_where_nothing_is_said(self) -> None:
        assert PROXIES.validate_python({"depth": 3}) == CharLM(depth=3)


class TestImageViT:
    def test_cuts_images_into_whole_patches(self) -> None:
        assert (ImageViT(patch_size=4).passes_per_example, ImageViT(patch_size=4).patch_inputs) == (4, 16)
        with pytest.raises(FieldError, match=r"^patch_size: expected a divisor of 8, got 3"):
            ImageViT(patch_size=3)
