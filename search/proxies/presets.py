"""Settings of proxies by name: a body may say ``"proxy": "screening"``. What they are is told at ``GET /v1/presets``."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from search.proxies.base import ProxySettings
from search.proxies.char_lm import CharLM, HubCorpus
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import Cifar5m, Cifar10, HubImages
from search.proxies.next_pixel import NextPixel
from search.proxies.regression import Regression

PresetName = Literal[
    "screening",
    "standard",
    "quick/char_lm",
    "quick/image_mlp",
    "quick/image_vit",
    "quick/next_pixel",
    "quick/regression",
    "papers/mlp",
    "papers/cifar-mlp",
    "papers/cifar-vit",
    "papers/cifar5m",
    "papers/gpt-small-vocab",
    "papers/imagenet-vit-s32",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Settings with a name, and what they are for."""

    name: PresetName
    about: str
    proxy: ProxySettings


_NEEDS_A_GPU = "It needs a GPU."
_FILES = "It needs the data set's files in a directory of that name below EINSEARCH_CORPORA_DIR."
_HUB = "It needs workers with einsearch[huggingface], who fetch {} from Hugging Face."
_CONSTANT = "The rate is constant where the papers' falls, so that every point of the curve counts."


def _quick(proxy: ProxySettings) -> Preset:
    about = "Seconds on one CPU, on data that needs no download: to see that things work, not to tell structures apart."
    return Preset(name=f"quick/{proxy.kind}", about=about, proxy=proxy)  # type: ignore[arg-type]  # one of the names


_ALL = (
    Preset(
        name="screening",
        about="A few CPU-seconds a trial: many structures, coarsely. Measured on another teacher: docs/fidelity.md.",
        proxy=Regression(outputs=4, dense_width=20, batch_size=512, train_flops=2.5e10, base_lr=8e-3),
    ),
    Preset(
        name="standard",
        about="About ten CPU-seconds a trial, for structures that are close. Measured on another teacher: docs/fidelity.md.",
        proxy=Regression(outputs=4, dense_width=27, batch_size=512, train_flops=8e10, base_lr=8e-3),
    ),
    _quick(CharLM(dense_width=16, train_flops=1e10)),
    _quick(ImageMLP(dense_width=16, train_flops=2e9)),
    _quick(ImageViT(dense_width=16, train_flops=1e10)),
    _quick(NextPixel(dense_width=16, train_flops=1e10)),
    _quick(Regression(dense_width=12, train_flops=5e9)),
    Preset(
        name="papers/mlp",
        about=f"The regression of 2410.02117, section 5: a million steps. {_NEEDS_A_GPU} {_CONSTANT}",
        proxy=Regression(
            dense_width=512,
            base_width=64,
            batch_size=4096,
            train_flops=1.5e17,
            base_lr=1e-3,
            teacher_width=1024,
            teacher_depth=6,
        ),
    ),
    Preset(
        name="papers/cifar-mlp",
        about=f"The MLP on CIFAR-10 of 2406.06248, section 5: 500 epochs. {_NEEDS_A_GPU} {_FILES} {_CONSTANT}",
        proxy=ImageMLP(
            dense_width=512,
            base_width=64,
            batch_size=1024,
            train_flops=1.2e15,
            base_lr=3e-3,
            input_lr_mult=0.1,
            images=Cifar10(path="cifar-10-batches-bin"),
        ),
    ),
    Preset(
        name="papers/cifar-vit",
        about=f"The ViT on CIFAR-10 of 2406.06248, section 5: 200 epochs. {_NEEDS_A_GPU} {_FILES} {_CONSTANT}",
        proxy=ImageViT(
            dense_width=256,
            base_width=64,
            batch_size=256,
            train_flops=2.4e15,
            base_lr=1e-3,
            patch_size=8,
            input_lr_mult=1.0,
            images=Cifar10(path="cifar-10-batches-bin"),
        ),
    ),
    Preset(
        name="papers/cifar5m",
        about=f"Next pixels of CIFAR-5M, 2410.02117, section 5: two epochs. {_NEEDS_A_GPU} {_FILES} {_CONSTANT}",
        proxy=NextPixel(
            dense_width=512,
            base_width=512,
            depth=3,
            num_heads=8,
            batch_size=64,
            base_lr=3e-3,
            train_flops=1.4e17,
            input_lr_mult=1.0,
            images=Cifar5m(path="cifar5m", size=8),
        ),
    ),
    Preset(
        name="papers/gpt-small-vocab",
        about=(
            "The GPT on the characters of OpenWebText of 2410.02117, section 5: 100,000 steps. "
            f"{_NEEDS_A_GPU} {_HUB.format('Skylion007/openwebtext')} {_CONSTANT} "
            "There are 12 heads at every width, where the papers' have 64 numbers each."
        ),
        proxy=CharLM(
            dense_width=768,
            base_width=768,
            depth=6,
            num_heads=12,
            context=128,
            batch_size=512,
            train_flops=1.7e18,
            base_lr=3e-3,
            input_lr_mult=1.0,
            warmup_steps=2000,
            corpus=HubCorpus(name="Skylion007/openwebtext"),
        ),
    ),
    Preset(
        name="papers/imagenet-vit-s32",
        about=(
            "The ViT-S/32 on ImageNet of 2406.06248, section 5: 300 epochs. "
            f"{_NEEDS_A_GPU} {_HUB.format('ILSVRC/imagenet-1k')} Its owner must have let you in, and the workers have your "
            "HF_TOKEN; prepared it takes 200 GB. Images are shifted by a pixel at most, where the papers' are augmented "
            f"and mixed. {_CONSTANT}"
        ),
        proxy=ImageViT(
            dense_width=384,
            base_width=384,
            depth=12,
            num_heads=6,
            patch_size=32,
            batch_size=3072,
            train_flops=2.6e18,
            base_lr=2e-3,
            input_lr_mult=1.0,
            images=HubImages(name="ILSVRC/imagenet-1k", size=224, num_classes=1000),
        ),
    ),
)

PRESETS: Mapping[PresetName, Preset] = MappingProxyType({preset.name: preset for preset in _ALL})
