"""Presets: names for settings of proxies."""

from dataclasses import replace
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from einlayers.theta import NAMED
from search.proxies.char_lm import CharLM, HubCorpus
from search.proxies.identity import is_shipped
from search.proxies.image_vit import ImageViT
from search.proxies.images import HubImages
from search.proxies.presets import PRESETS, PresetName
from search.proxies.registry import ProxySpec
from search.spec import SearchSpec

PROXIES: TypeAdapter[ProxySpec] = TypeAdapter(ProxySpec)
EACH = pytest.mark.parametrize("name", PRESETS)


class TestPresets:
    def test_are_those_that_have_a_name(self) -> None:
        assert set(PRESETS) == set(get_args(PresetName))
        assert all(preset.name == name for name, preset in PRESETS.items())

    @EACH
    def test_stand_for_their_settings(self, name: PresetName) -> None:
        assert PROXIES.validate_python(name) == PRESETS[name].proxy
        spec = TypeAdapter(SearchSpec).validate_python({"name": "x", "budget": {"max_trials": 1}, "proxy": name})
        assert spec.proxy == PRESETS[name].proxy

    @EACH
    def test_need_no_calibration(self, name: PresetName) -> None:
        proxy = PRESETS[name].proxy
        assert proxy.base_lr is not None or is_shipped(proxy)  # type: ignore[arg-type]  # it is one of the union

    @EACH
    def test_train_every_known_design(self, name: PresetName) -> None:
        proxy = PRESETS[name].proxy
        for theta in NAMED.values():
            assert proxy.num_steps(proxy.cost(theta, proxy.width_for(theta)).macs) >= 100

    @pytest.mark.parametrize(
        ("name", "num_examples", "times"),
        [
            ("papers/mlp", 4096, 1e6),
            ("papers/cifar-mlp", 50_000, 500),
            ("papers/cifar-vit", 50_000, 200),
            ("papers/cifar5m", 5_990_000 * 192, 2),
            ("papers/gpt-small-vocab", 512 * 128, 1e5),
            ("papers/imagenet-vit-s32", 1_281_167, 300),
        ],
    )
    def test_of_the_papers_train_dense_for_as_long_as_they_say(
        self, name: PresetName, num_examples: int, times: float
    ) -> None:
        """So many times on so many examples: those of a step or, in epochs, all that there are."""
        proxy = PRESETS[name].proxy
        macs = proxy.cost(NAMED["dense"], proxy.dense_width).macs
        # Their FLOPs have two digits.
        assert proxy.num_steps(macs) * proxy.examples_per_step == pytest.approx(num_examples * times, rel=0.05)

    @EACH
    def test_of_the_papers_say_what_they_need(self, name: PresetName) -> None:
        preset = PRESETS[name]
        assert ("GPU" in preset.about) == name.startswith("papers/")
        match preset.proxy:
            case CharLM(corpus=HubCorpus(name=data)) | ImageViT(images=HubImages(name=data)):
                assert f"fetch {data} from Hugging Face" in preset.about

    @pytest.mark.parametrize("name", ["", "Screening", "papers/gpt-5", "../x"])
    def test_of_no_such_name_are_refused_with_the_names(self, name: str) -> None:
        with pytest.raises(ValidationError, match="expected settings, or the name of some: screening, standard"):
            PROXIES.validate_python(name)

    def test_are_only_a_beginning(self) -> None:
        proxy = PROXIES.validate_python("screening")
        assert replace(proxy, train_flops=1e9) != proxy
