"""Names of data sets of Hugging Face: what is one, and what could be something else."""

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from einlayers.errors import FieldError
from search.proxies.char_lm import Corpus, HubCorpus
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import HubImages, Images
from search.proxies.next_pixel import NextPixel

CORPUS = HubCorpus(name="Skylion007/openwebtext")
IMAGES = HubImages(name="ILSVRC/imagenet-1k", size=224, num_classes=1000)

NO_NAMES = [
    "",
    "openwebtext",
    "text",
    "/",
    "a/",
    "/b",
    "a/b/c",
    "./b",
    "a/.",
    "../b",
    "a/..",
    "..",
    "a/b..c",
    "a/.b",
    "-a/b",
    "a/b-",
    "~/b",
    "a\\b",
    "a b/c",
    "a/b\n",
    "a/b\0",
    "/etc/passwd",
    "hf://datasets/a/b",
    "https://example.org",
    "s3://a",
    "C:/b",
    "buckets/b",
    "a/b.py",
    "a/b.git",
    "a/b@main",
    "a/b?x=y",
    "é/b",
    "a" * 97 + "/b",
    5,
    None,
]
NO_PARTS = [
    "",
    ".",
    "..",
    "a/b",
    "a..b",
    ".a",
    "a.",
    "train[:10]",
    "train+test",
    "a b",
    "a\n",
    "$(a)",
    "*",
    "a" * 97,
    5,
]


class TestName:
    @pytest.mark.parametrize("name", ["Skylion007/openwebtext", "ILSVRC/imagenet-1k", "a/b", "A_b-c.d/e.f-2_g", "0/1"])
    def test_has_an_owner(self, name: str) -> None:
        assert replace(CORPUS, name=name).name == replace(IMAGES, name=name).name == name

    @pytest.mark.parametrize("name", NO_NAMES)
    def test_is_nothing_else(self, name: str) -> None:
        for data in (CORPUS, IMAGES):
            with pytest.raises(FieldError, match=r"^name: expected a data set of Hugging Face as OWNER/NAME, got"):
                replace(data, name=name)


class TestParts:
    @pytest.mark.parametrize("part", ["train", "20231101.en", "sample-10BT", "train_512", "en.small"])
    def test_are_plain_names(self, part: str) -> None:
        assert replace(CORPUS, config=part, split=part, field=part).split == part
        assert replace(IMAGES, config=part, train_split=part, image_field=part, label_field=part).label_field == part

    @pytest.mark.parametrize("part", NO_PARTS)
    def test_are_nothing_else(self, part: str) -> None:
        for name in ("config", "split", "field"):
            with pytest.raises(FieldError, match=f"^{name}: expected at most 96 letters, digits and underscores"):
                replace(CORPUS, **{name: part})  # type: ignore[arg-type]  # the point of the test
        for name in ("config", "train_split", "held_out_split", "image_field", "label_field"):
            with pytest.raises(FieldError, match=f"^{name}: expected at most 96 letters, digits and underscores"):
                replace(IMAGES, **{name: part})  # type: ignore[arg-type]  # the point of the test


class TestData:
    def test_is_its_own_json(self) -> None:
        corpora: TypeAdapter[Corpus] = TypeAdapter(Corpus)
        images: TypeAdapter[Images] = TypeAdapter(Images)
        assert corpora.validate_json(corpora.dump_json(CORPUS)) == CORPUS
        assert images.validate_json(images.dump_json(IMAGES)) == IMAGES

    def test_holds_out_another_split(self) -> None:
        with pytest.raises(FieldError, match=r"^held_out_split: expected another split than train_split, got 'train'"):
            replace(IMAGES, held_out_split="train")

    @pytest.mark.parametrize(
        ("field", "value"), [("size", 0), ("size", 1025), ("num_classes", 1), ("num_classes", 65_537), ("size", True)]
    )
    def test_has_numbers_in_range(self, field: str, value: int) -> None:
        with pytest.raises(FieldError, match=f"^{field}: expected a whole number from"):
            replace(IMAGES, **{field: value})  # type: ignore[arg-type]  # the point of the test

    @pytest.mark.parametrize("most", [0, -1, 10**14, 1.5])
    def test_has_a_bound_in_range(self, most: int) -> None:
        with pytest.raises(FieldError, match=r"^max_characters: expected a whole number from 1"):
            replace(CORPUS, max_characters=most)


class TestProxies:
    def test_know_the_shape_of_the_images(self) -> None:
        vit = ImageViT(images=IMAGES, patch_size=32)
        assert (vit.passes_per_example, vit.patch_inputs) == (49, 3072)
        mlp = ImageMLP(images=IMAGES)
        assert (mlp.num_inputs, mlp.num_outputs) == (150_528, 1000)

    def test_cut_them_into_whole_patches(self) -> None:
        with pytest.raises(FieldError, match=r"^patch_size: expected a divisor of 224, got 30"):
            ImageViT(images=IMAGES, patch_size=30)

    def test_do_not_attend_to_more_than_fits(self) -> None:
        with pytest.raises(FieldError, match=r"^patch_size: expected at most 4096 patches of an image"):
            ImageViT(images=IMAGES, patch_size=2)
        with pytest.raises(FieldError, match=r"^images: expected images of at most 4096 pixels, every colour counted"):
            NextPixel(images=IMAGES)
        assert NextPixel(images=replace(IMAGES, size=36)).num_positions == 3888
