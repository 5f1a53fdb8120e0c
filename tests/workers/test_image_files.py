"""Images in files of the user's own: the binary versions of CIFAR-10 and CIFAR-100, and the archives of CIFAR-5M."""

# N images, R rows, S columns, C channels

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.corpora import locate_images
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import Cifar5m, Cifar10, Cifar100
from search.proxies.next_pixel import NextPixel
from search.trial import OutcomeKind, TrialSpec
from workers.evaluate import evaluate
from workers.images import load_images
from workers.workspace import Workspace

Bytes = npt.NDArray[np.uint8]
Files = Mapping[str, list[tuple[Bytes, Bytes]]]

CIFAR10, CIFAR100, CIFAR5M = Cifar10(path="ten"), Cifar100(path="hundred"), Cifar5m(path="many", parts=2)
ALL = (CIFAR10, CIFAR100, CIFAR5M)
EACH = pytest.mark.parametrize("images", ALL, ids=[images.kind for images in ALL])


def drawn(seed: int, number: int, num_classes: int) -> tuple[Bytes, Bytes]:
    """Images ``(N, 32, 32, 3)`` and classes."""
    draw = np.random.default_rng(seed)
    levels_NRSC = draw.integers(0, 256, (number, 32, 32, 3), dtype=np.uint8)
    return levels_NRSC, draw.integers(0, num_classes, number, dtype=np.uint8)


def records(levels_NRSC: Bytes, *classes: Bytes) -> bytes:
    """As the binary version has them: classes, then the pixels colour by colour."""
    pixels = levels_NRSC.transpose(0, 3, 1, 2).reshape(len(levels_NRSC), -1)
    return np.concatenate([*(each[:, None] for each in classes), pixels], axis=1).tobytes()


@pytest.fixture(scope="module")
def files() -> Files:
    """What is in each file, by the kind of the images."""
    return {
        "cifar10": [drawn(seed, 4, 10) for seed in range(6)],
        "cifar100": [drawn(10, 20, 100), drawn(11, 5, 100)],
        "cifar5m": [drawn(20, 6_000, 10), drawn(21, 6_000, 10)],
    }


@pytest.fixture(scope="module")
def workspace(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    root = tmp_path_factory.mktemp("data")
    for images in ALL:
        (root / images.path).mkdir()
        for name, (levels_NRSC, classes_N) in zip(images.file_names, files[images.kind], strict=True):
            if images.label_bytes is None:
                np.savez(root / images.path / name, X=levels_NRSC, Y=classes_N)
            else:
                coarse = [classes_N // 5] if images.label_bytes == 2 else []
                (root / images.path / name).write_bytes(records(levels_NRSC, *coarse, classes_N))
    return Workspace(cache_dir=root / "cache", corpora_dir=root)


class TestLoad:
    @EACH
    def test_gives_the_images_of_all_files_and_holds_the_last_ones_out(
        self, workspace: Workspace, files: Files, images: Cifar10 | Cifar100 | Cifar5m
    ) -> None:
        train, held_out = load_images(images, workspace)
        levels_NRSC, classes_N = (np.concatenate(each) for each in zip(*files[images.kind], strict=True))
        assert len(held_out) == {"cifar10": 4, "cifar100": 5, "cifar5m": 10_000}[images.kind]
        assert np.array_equal(np.concatenate([train.levels_NRSC, held_out.levels_NRSC]), levels_NRSC)
        assert np.array_equal(np.concatenate([train.classes_N, held_out.classes_N]), classes_N)

    def test_averages_pixels_to_smaller_images(self, workspace: Workspace) -> None:
        whole, _ = load_images(CIFAR10, workspace)
        small, _ = load_images(Cifar10(path="ten", size=8), workspace)
        assert small.levels_NRSC.shape == (20, 8, 8, 3)
        expected = whole.levels_NRSC[3, 4:8, 28:32, 1].astype(float).mean()
        assert abs(small.levels_NRSC[3, 1, 7, 1] - expected) <= 0.5

    @pytest.mark.parametrize(
        "proxy",
        [
            ImageMLP(images=Cifar10(path="ten", size=8), batch_size=8, dense_width=8, train_flops=1e7, base_lr=1e-3),
            ImageViT(images=CIFAR100, patch_size=16, batch_size=4, dense_width=8, train_flops=1e7, base_lr=1e-3),
            NextPixel(images=Cifar10(path="ten", size=4), batch_size=4, dense_width=8, train_flops=1e7, base_lr=1e-3),
        ],
        ids=["image_mlp", "image_vit", "next_pixel"],
    )
    def test_serves_every_proxy_on_images(self, workspace: Workspace, proxy: ImageMLP | ImageViT | NextPixel) -> None:
        spec = TrialSpec(theta=NAMED["btt"], proxy=proxy, width=proxy.width_for(NAMED["btt"]), seed=0)
        outcome = evaluate(spec, workspace)
        assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason


class TestRefusals:
    def test_name_the_files_that_are_missing(self, workspace: Workspace) -> None:
        with pytest.raises(FieldError, match=r"path: expected a directory with train.bin, test.bin below"):
            locate_images(Cifar100(path="ten"), workspace.corpora_dir)

    @pytest.mark.parametrize("path", ["../ten", "/etc", "ten/../../x", "a\n", "\0"])
    def test_of_what_lies_elsewhere_say_nothing_about_it(self, workspace: Workspace, path: str) -> None:
        with pytest.raises(FieldError, match=r"path: expected a (directory with|printable path)"):
            locate_images(Cifar10(path=path), workspace.corpora_dir)

    def test_come_where_no_files_are_allowed(self) -> None:
        with pytest.raises(FieldError, match="EINSEARCH_CORPORA_DIR is not set"):
            locate_images(CIFAR10, None)

    @pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * 3074], ids=["empty", "short", "long"])
    def test_of_files_that_are_cut_off_come_before_training(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "ten").mkdir()
        for name in CIFAR10.file_names:
            (tmp_path / "ten" / name).write_bytes(content)
        with pytest.raises(FieldError, match=r"expected data_batch_1\.bin to hold images of 3073 bytes each"):
            locate_images(CIFAR10, tmp_path)

    def test_of_classes_that_there_are_not_are_a_result(self, tmp_path: Path) -> None:
        (tmp_path / "ten").mkdir()
        for name in CIFAR10.file_names:
            (tmp_path / "ten" / name).write_bytes(b"\x0a" * 3073)
        spec = TrialSpec(theta=NAMED["dense"], proxy=ImageMLP(images=CIFAR10, base_lr=1e-3), width=8, seed=0)
        outcome = evaluate(spec, Workspace(cache_dir=tmp_path / "cache", corpora_dir=tmp_path))
        assert outcome.kind is OutcomeKind.INFEASIBLE
        assert outcome.reason == "images: expected classes from 0 to 9 in data_batch_1.bin, got 10"

    @pytest.mark.parametrize("what", ["no archive", "a pickle", "another shape"])
    def test_of_archives_that_are_none(self, tmp_path: Path, what: str) -> None:
        (tmp_path / "many").mkdir()
        path = tmp_path / "many" / "cifar5m_part0.npz"
        if what == "no archive":
            path.write_bytes(b"PK not really")
        elif what == "a pickle":
            np.savez(path, X=np.array([{"run": "me"}], dtype=object), Y=np.zeros(1))
        else:
            np.savez(path, X=np.zeros((3, 32, 32, 3), np.float32), Y=np.zeros(3))
        with pytest.raises(FieldError, match=r"(images|path): expected .*X"):
            load_images(Cifar5m(path="many", parts=1), Workspace(cache_dir=tmp_path / "cache", corpora_dir=tmp_path))

    @pytest.mark.parametrize("size", [0, 3, 33, 64])
    def test_of_sizes_that_do_not_divide_the_images(self, size: int) -> None:
        with pytest.raises(FieldError, match="size: expected"):
            Cifar10(path="ten", size=size)
