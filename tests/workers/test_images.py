"""The proxies on images: which images are trained on, as what, and what a vision transformer sees of them."""

# B batch, T tokens, R rows, S columns, C channels

import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits  # type: ignore[import-untyped]  # it ships no types
from torch import nn

from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import Digits
from search.proxies.next_pixel import NextPixel
from search.proxies.registry import ProxySpec
from tests.contracts.proxy import ProxyContract
from workers.images import HELD_OUT_DIGITS, ImageSet, load_images
from workers.models.gpt import Block
from workers.models.layers import Layers
from workers.models.vit import ViT
from workers.proxies.registry import proxy_for
from workers.workspace import Workspace

CPU = torch.device("cpu")
NOWHERE = Workspace(cache_dir=Path("/nowhere"))
"""What a data set needs that comes with a library."""

TOLERANCE = 1e-10


class TestNextPixel(ProxyContract):
    @pytest.fixture
    def settings(self) -> NextPixel:
        return NextPixel(batch_size=4, train_flops=1e8)


class TestImageMLP(ProxyContract):
    @pytest.fixture
    def settings(self) -> ImageMLP:
        return ImageMLP(batch_size=32, depth=2, train_flops=1e8)


class TestImageViT(ProxyContract):
    @pytest.fixture
    def settings(self) -> ImageViT:
        return ImageViT(batch_size=32, depth=1, patch_size=4, train_flops=1e8)


@pytest.fixture(scope="module")
def parts() -> tuple[ImageSet, ImageSet]:
    return load_images(Digits(), NOWHERE)


class TestDigits:
    def test_are_those_of_scikit_learn_each_in_one_part(self, parts: tuple[ImageSet, ImageSet]) -> None:
        images, classes = load_digits(return_X_y=True)
        original = sorted((*image, label) for image, label in zip(images.tolist(), classes.tolist(), strict=True))
        found = [
            (*levels_RSC.flatten().tolist(), int(label))
            for part in parts
            for levels_RSC, label in zip(part.levels_NRSC, part.classes_N, strict=True)
        ]
        assert sorted(found) == original
        assert [len(part) for part in parts] == [len(original) - HELD_OUT_DIGITS, HELD_OUT_DIGITS]
        assert parts[0].levels_NRSC.shape[1:] == (Digits.size, Digits.size, Digits.channels)
        assert (parts[0].levels_NRSC.min(), parts[0].levels_NRSC.max()) == (0, Digits.levels - 1)

    def test_have_all_classes_in_both_parts(self, parts: tuple[ImageSet, ImageSet]) -> None:
        for part in parts:
            shares = np.bincount(part.classes_N, minlength=Digits.num_classes) / len(part)
            assert shares.min() > 0.06

    def test_are_split_the_same_way_every_time(self, parts: tuple[ImageSet, ImageSet]) -> None:
        assert np.array_equal(load_images(Digits(), NOWHERE)[1].levels_NRSC, parts[1].levels_NRSC)


class TestSequences:
    def test_are_images_row_by_row_after_a_token_of_their_own(
        self, workspace: Workspace, parts: tuple[ImageSet, ImageSet]
    ) -> None:
        known = {tuple(levels_RSC.flatten().tolist()) for levels_RSC in parts[0].levels_NRSC}
        for inputs_BT, targets_BT in islice(proxy_for(NextPixel()).task(0, workspace, CPU).batches, 5):
            assert inputs_BT[:, 0].tolist() == [Digits.levels] * len(inputs_BT)
            assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])
            assert {tuple(row) for row in targets_BT.tolist()} <= known

    def test_are_scored_on_every_held_out_pixel_alike(
        self, workspace: Workspace, parts: tuple[ImageSet, ImageSet]
    ) -> None:
        class Frequencies(nn.Module):
            """Knows how often each level is to be expected, and nothing else."""

            def forward(self, inputs_BT: torch.Tensor) -> torch.Tensor:
                return logits.expand(*inputs_BT.shape, -1)

        logits = torch.randn(Digits.levels + 1, generator=torch.Generator().manual_seed(0))
        counts = np.bincount(parts[1].levels_NRSC.flatten(), minlength=Digits.levels + 1)
        surprise = -torch.log_softmax(logits.double(), 0).numpy()
        expected = (counts * surprise).sum() / counts.sum()
        loss = proxy_for(NextPixel()).task(0, workspace, CPU).held_out_loss(Frequencies())
        assert loss == pytest.approx(expected, rel=1e-5)


class TestClassification:
    @pytest.mark.parametrize("settings", [ImageMLP(), ImageViT()], ids=["mlp", "vit"])
    def test_trains_on_images_shifted_by_a_pixel_at_most(
        self, workspace: Workspace, parts: tuple[ImageSet, ImageSet], settings: ProxySpec
    ) -> None:
        padded_NRSC = np.pad(parts[0].levels_NRSC, ((0, 0), (1, 1), (1, 1), (0, 0)))
        known: dict[tuple[int, ...], set[tuple[int, int, int]]] = {}
        for down in range(3):
            for right in range(3):
                for image_RSC, label in zip(padded_NRSC, parts[0].classes_N, strict=True):
                    pixels = tuple(image_RSC[down : down + 8, right : right + 8].flatten().tolist())
                    known.setdefault(pixels, set()).add((down, right, int(label)))
        drawn = list(islice(proxy_for(settings).task(0, workspace, CPU).batches, 10))
        images_BRSC, classes_B = (torch.cat(tensors) for tensors in zip(*drawn, strict=True))
        levels_BRSC = ((images_BRSC + 1) * 8).round().long()
        torch.testing.assert_close(levels_BRSC / 8 - 1, images_BRSC)
        shifts = set()
        for image_RSC, label in zip(levels_BRSC, classes_B.tolist(), strict=True):
            found = known[tuple(image_RSC.flatten().tolist())]
            assert label in {of for _, _, of in found}
            shifts |= {(down, right) for down, right, _ in found}
        assert len(shifts) == 9

    @pytest.mark.parametrize("settings", [ImageMLP(), ImageViT()], ids=["mlp", "vit"])
    def test_scores_the_held_out_images_as_they_are(
        self, workspace: Workspace, parts: tuple[ImageSet, ImageSet], settings: ProxySpec
    ) -> None:
        heard = []

        class Listener(nn.Module):
            """Knows nothing, and remembers what it was asked about."""

            def forward(self, images_BRSC: torch.Tensor) -> torch.Tensor:
                heard.append(images_BRSC)
                return torch.zeros(len(images_BRSC), 10)

        task = proxy_for(settings).task(0, workspace, CPU)
        assert task.held_out_loss(Listener()) == pytest.approx(math.log(10), rel=1e-6)
        levels_NRSC = ((torch.cat(heard) + 1) * 8).round().numpy()
        assert np.array_equal(levels_NRSC, parts[1].levels_NRSC)


class TestViT:
    def test_reads_patches_adds_positions_and_averages(self) -> None:
        model = _vit(size=4, channels=2, patch_size=2)
        images_BRSC = torch.randn(3, 4, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        patches = [images_BRSC[:, r : r + 2, s : s + 2] for r in (0, 2) for s in (0, 2)]
        # Within a patch: channel by channel, each row by row.
        features = [model.input(patch.permute(0, 3, 1, 2).flatten(1)) for patch in patches]
        x_BTD = torch.stack(features, dim=1) + model.position
        for block in model.blocks:
            x_BTD = block(x_BTD)
        expected_BO = model.head(model.norm(x_BTD).mean(dim=1))
        torch.testing.assert_close(model(images_BRSC), expected_BO, atol=TOLERANCE, rtol=TOLERANCE)

    def test_looks_everywhere_from_everywhere(self) -> None:
        block = Block(12, 3, Layers(), causal=False).double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
        x_BTD = torch.randn(1, 4, 12, dtype=torch.float64)
        changed_BTD = x_BTD.clone()
        changed_BTD[:, 3] *= -1  # which no norm hides
        assert (block(changed_BTD) - block(x_BTD)).abs().amax(-1).min() > 1e-6

    def test_knows_where_a_patch_stands(self) -> None:
        model = _vit(size=4, channels=1, patch_size=2)
        images_BRSC = torch.randn(1, 4, 4, 1, dtype=torch.float64)
        assert not torch.allclose(model(images_BRSC), model(images_BRSC.roll(2, dims=2)))


def _vit(*, size: int, channels: int, patch_size: int) -> ViT:
    torch.manual_seed(0)
    model = ViT(
        size=size,
        channels=channels,
        classes=5,
        patch_size=patch_size,
        width=12,
        depth=2,
        num_heads=3,
        layers=Layers(),
    ).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model
