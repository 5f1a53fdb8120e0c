"""Data sets of Hugging Face: small real ones on disk, read by the library itself; nothing here reaches a network."""

import hashlib
import os
import sys
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from einlayers.errors import FieldError
from einlayers.theta import NAMED
from search.proxies.char_lm import CHAR_VOCABULARY, CharLM, HubCorpus
from search.proxies.image_mlp import ImageMLP
from search.proxies.image_vit import ImageViT
from search.proxies.images import HubImages
from search.proxies.next_pixel import NextPixel
from search.proxies.registry import ProxySpec
from search.trial import OutcomeKind, TrialSpec
from tests.hub import png, write_images, write_lines, write_rows
from workers.corpora import TokenSplit, load_tokens
from workers.evaluate import evaluate
from workers.images import _decoded, load_images
from workers.workspace import Workspace

TEXT, IMAGES = "someone/texts", "someone/images-1k"
DOCUMENTS = [f"Document {number}\nsays {number * number}." for number in range(300)]
CLASSES = 1000


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "hub").mkdir()
    return Workspace(cache_dir=tmp_path / "cache", hub_dir=tmp_path / "hub")


@pytest.fixture
def hub_dir(workspace: Workspace) -> Path:
    assert workspace.hub_dir
    return workspace.hub_dir


def documents(split: TokenSplit) -> tuple[str, str]:
    train, held_out = ("".join(CHAR_VOCABULARY[t] for t in tokens) for tokens in (split.train, split.held_out))
    return train, held_out


def is_held_out(text: str) -> bool:
    tokens = bytes(CHAR_VOCABULARY.index(character) for character in text)
    return hashlib.sha256(tokens).digest()[0] % 20 == 0


class TestCorpus:
    def test_is_the_documents_of_a_split_joined_by_newlines_some_held_out(
        self, workspace: Workspace, hub_dir: Path
    ) -> None:
        write_lines(hub_dir, TEXT, ({"text": text, "id": 1} for text in DOCUMENTS))
        write_lines(hub_dir, TEXT, [{"text": "of the test", "id": 1}], split="test")
        train, held_out = documents(load_tokens(HubCorpus(name=TEXT), workspace))
        assert train == "\n".join(text for text in DOCUMENTS if not is_held_out(text))
        assert held_out == "\n".join(text for text in DOCUMENTS if is_held_out(text))
        assert 5 < sum(map(is_held_out, DOCUMENTS)) < 30

    def test_loses_whole_documents_with_another_character(self, workspace: Workspace, hub_dir: Path) -> None:
        others = ["tab\there", "déjà vu", "\x7f", "line\r\n", "文", ""]
        write_lines(hub_dir, TEXT, ({"text": text} for text in [*DOCUMENTS, *others, None]))
        train, held_out = documents(load_tokens(HubCorpus(name=TEXT), workspace))
        assert len(train) + len(held_out) == sum(map(len, DOCUMENTS)) + len(DOCUMENTS) - 2

    @pytest.mark.parametrize("most", [1, 100, 2000])
    def test_ends_after_so_many_characters(self, workspace: Workspace, hub_dir: Path, most: int) -> None:
        write_lines(hub_dir, TEXT, ({"text": text} for text in DOCUMENTS))
        whole = documents(load_tokens(HubCorpus(name=TEXT), workspace))
        parts = documents(load_tokens(HubCorpus(name=TEXT, max_characters=most), workspace))
        assert sum(map(len, parts)) == most
        assert all(one.startswith(part) for one, part in zip(whole, parts, strict=True))

    def test_may_be_of_any_field_split_and_configuration(self, workspace: Workspace, hub_dir: Path) -> None:
        write_rows(hub_dir, TEXT, {"body": ["one"] * 3}, split="english/validation")
        card = (
            "configs:\n- config_name: en.small\n  data_files:\n  - {split: validation, path: data/english/*.parquet}\n"
        )
        (hub_dir / TEXT / "README.md").write_text(f"---\n{card}---\n")
        corpus = HubCorpus(name=TEXT, config="en.small", split="validation", field="body")
        assert "".join(documents(load_tokens(corpus, workspace))) == "one\none\none"

    def test_is_prepared_once_mapped_and_made_anew_for_other_files(self, workspace: Workspace, hub_dir: Path) -> None:
        path = write_lines(hub_dir, TEXT, ({"text": text} for text in DOCUMENTS))
        first = load_tokens(HubCorpus(name=TEXT), workspace)
        assert isinstance(first.train, np.memmap)
        assert not first.train.flags.writeable
        made = {file: file.stat().st_ino for file in workspace.cache_dir.rglob("*.npy")}
        load_tokens(HubCorpus(name=TEXT), workspace)
        assert {file: file.stat().st_ino for file in workspace.cache_dir.rglob("*.npy")} == made
        write_lines(hub_dir, TEXT, [{"text": "another"}])
        os.utime(path, (1, 1))
        assert "another" in "".join(documents(load_tokens(HubCorpus(name=TEXT), workspace)))

    def test_clears_away_what_a_process_left_that_was_killed(self, workspace: Workspace, hub_dir: Path) -> None:
        write_lines(hub_dir, TEXT, ({"text": text} for text in DOCUMENTS))
        load_tokens(HubCorpus(name=TEXT), workspace)
        (cache,) = (folder for folder in (workspace.cache_dir / "corpora").iterdir() if folder.is_dir())
        cache.rename(left_over := cache.with_name(f".{cache.name}-killed"))
        load_tokens(HubCorpus(name=TEXT), workspace)
        assert cache.exists()
        assert not left_over.exists()

    def test_trains(self, workspace: Workspace, hub_dir: Path) -> None:
        write_lines(hub_dir, TEXT, ({"text": text} for text in DOCUMENTS))
        proxy = CharLM(corpus=HubCorpus(name=TEXT), dense_width=8, context=16, train_flops=1e7, base_lr=1e-3)
        outcome = evaluate(TrialSpec(theta=NAMED["btt"], proxy=proxy, width=8, seed=0), workspace)
        assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason


class TestBadCorpora:
    @pytest.mark.parametrize(
        ("changes", "rows", "message"),
        [
            ({"split": "test"}, DOCUMENTS, r"^split: expected one of the splits train, got 'test'"),
            ({"split": "all"}, DOCUMENTS, r"^split: expected one of the splits train, got 'all'"),
            ({"field": "body"}, DOCUMENTS, r"^field: expected one of the fields text, got 'body'"),
            ({"config": "fr"}, DOCUMENTS, r"^config: expected a configuration of someone/texts: .*default.*, got 'fr'"),
            ({}, [1, 2], r"^field: expected a field of texts, got 'text of int'"),
            (
                {},
                ["é", "\t"],
                r"^field: expected texts of newlines and printable ASCII only.* got 'none in the first 2 ",
            ),
            ({}, [None], r"^field: .* got 'none in the first 1 of text'"),
        ],
    )
    def test_are_refused(
        self,
        workspace: Workspace,
        hub_dir: Path,
        changes: Mapping[str, str],
        rows: list[object],
        message: str,
    ) -> None:
        write_lines(hub_dir, TEXT, ({"text": text} for text in rows))
        with pytest.raises(FieldError, match=message):
            load_tokens(HubCorpus(name=TEXT, **changes), workspace)  # type: ignore[arg-type]  # all of them are strings
        assert not list(workspace.cache_dir.rglob("*.npy"))

    def test_are_those_without_files_or_with_a_program(self, workspace: Workspace, hub_dir: Path) -> None:
        (hub_dir / TEXT).mkdir(parents=True)
        with pytest.raises(FieldError, match=r"^name: expected a data set with files.*doesn't contain any data files"):
            load_tokens(HubCorpus(name=TEXT), workspace)
        write_lines(hub_dir, TEXT, ({"text": text} for text in DOCUMENTS))
        (hub_dir / TEXT / "texts.py").write_text("raise SystemExit('this was run')\n")
        with pytest.raises(
            FieldError, match=r"^name: expected a data set that is rows in files of its own, and no program"
        ):
            load_tokens(HubCorpus(name=TEXT), workspace)

    def test_are_those_that_name_files_elsewhere(self, workspace: Workspace, hub_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.txt").write_text("secret\n" * 100)
        for path in (tmp_path / "secret.txt", "../../../secret.txt"):
            (hub_dir / TEXT).mkdir(parents=True, exist_ok=True)
            (hub_dir / TEXT / "README.md").write_text(f"---\nconfigs:\n- {{config_name: a, data_files: {path}}}\n---\n")
            with pytest.raises(FieldError, match=r"^name: expected a data set whose files are its own, got"):
                load_tokens(HubCorpus(name=TEXT), workspace)

    def test_are_those_that_another_loader_would_read(self, workspace: Workspace, hub_dir: Path) -> None:
        (hub_dir / TEXT).mkdir(parents=True)
        (hub_dir / TEXT / "train.xml").write_text("<text/>")
        with pytest.raises(FieldError, match=r"^name: expected a data set that is read by one of the loaders"):
            load_tokens(HubCorpus(name=TEXT), workspace)

    def test_that_are_too_short_are_a_result(self, workspace: Workspace, hub_dir: Path) -> None:
        write_lines(hub_dir, TEXT, [{"text": "short"}])
        proxy = CharLM(corpus=HubCorpus(name=TEXT), dense_width=8, train_flops=1e7, base_lr=1e-3)
        outcome = evaluate(TrialSpec(theta=NAMED["dense"], proxy=proxy, width=8, seed=0), workspace)
        assert outcome.kind is OutcomeKind.INFEASIBLE
        assert outcome.reason
        assert outcome.reason.startswith("corpus: expected at least 65 ")

    def test_need_the_library(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(FieldError, match=r"pip install 'einsearch\[huggingface\]'"):
            load_tokens(HubCorpus(name=TEXT), workspace)


class TestHub:
    def test_is_asked_where_nothing_was_fetched_and_its_silence_is_a_fault(self, workspace: Workspace) -> None:
        # HF_HUB_OFFLINE is set for all tests: to the library this is a network that does not answer.
        proxy = CharLM(corpus=HubCorpus(name=TEXT), dense_width=8, train_flops=1e7, base_lr=1e-3)
        for place in (workspace, Workspace(cache_dir=workspace.cache_dir)):
            with pytest.raises(ConnectionError, match=f"Couldn't reach '{TEXT}' on the Hub"):
                evaluate(TrialSpec(theta=NAMED["dense"], proxy=proxy, width=8, seed=0), place)

    def test_is_not_the_working_directory(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        here = workspace.cache_dir.parent / "here"
        write_lines(here, TEXT, ({"text": text} for text in DOCUMENTS))
        monkeypatch.chdir(here)
        with pytest.raises(ConnectionError):
            load_tokens(HubCorpus(name=TEXT), workspace)


def drawn(number: int, rows: int, columns: int) -> list[np.ndarray]:
    draw = np.random.default_rng(number)
    return [draw.integers(0, 256, (rows, columns, 3), dtype=np.uint8) for _ in range(number)]


def hub_images(size: int = 32, num_classes: int = CLASSES) -> HubImages:
    return HubImages(name=IMAGES, size=size, num_classes=num_classes)


class TestImages:
    @pytest.fixture
    def known(self, hub_dir: Path) -> list[np.ndarray]:
        images = drawn(12, 32, 32)
        labels = [0, 255, 256, 999, *range(8)]
        write_images(hub_dir, IMAGES, map(png, images[:8]), labels[:8])
        write_images(hub_dir, IMAGES, map(png, images[8:]), labels[8:], split="validation")
        return images

    def test_are_those_of_both_splits_with_classes_beyond_a_byte(
        self, workspace: Workspace, known: list[np.ndarray]
    ) -> None:
        train, held_out = load_images(hub_images(), workspace)
        assert np.array_equal(train.levels_NRSC, known[:8])
        assert np.array_equal(held_out.levels_NRSC, known[8:])
        assert train.classes_N.tolist() == [0, 255, 256, 999, 0, 1, 2, 3]
        assert held_out.classes_N.tolist() == [4, 5, 6, 7]
        assert isinstance(train.levels_NRSC, np.memmap)

    def test_are_scaled_by_their_shorter_side_and_cut_in_the_middle(self, workspace: Workspace, hub_dir: Path) -> None:
        wide = np.zeros((16, 48, 3), np.uint8)
        wide[:, 16:24], wide[:, 24:32] = 100, 200
        for split in ("train", "validation"):
            write_images(hub_dir, IMAGES, [png(wide), png(wide.transpose(1, 0, 2))], [0, 1], split=split)
        train, _ = load_images(hub_images(size=8), workspace)
        for image_RSC in (train.levels_NRSC[0], train.levels_NRSC[1].transpose(1, 0, 2)):
            # The outermost columns and the middle ones are blended with their neighbours.
            assert (image_RSC[:, 1:3] == 100).all()
            assert (image_RSC[:, 5:7] == 200).all()

    def test_may_be_grey_transparent_or_turned(self, workspace: Workspace, hub_dir: Path) -> None:
        grey, clear = np.full((4, 4), 7, np.uint8), np.full((4, 4, 4), 7, np.uint8)
        left = np.zeros((4, 4, 3), np.uint8)
        left[:, :2] = 9
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned right by a quarter
        for split in ("train", "validation"):
            images = [png(grey), png(clear), png(left, exif=exif)]
            write_images(hub_dir, IMAGES, images, [0, 1, 2], split=split)
        train, _ = load_images(hub_images(size=4), workspace)
        assert (train.levels_NRSC[:2] == 7).all()
        assert (train.levels_NRSC[2, :2] == 9).all()
        assert (train.levels_NRSC[2, 2:] == 0).all()

    def test_may_be_files_in_folders_of_their_classes(self, workspace: Workspace, hub_dir: Path) -> None:
        for split in ("train", "validation"):
            for label in ("ape", "bee"):
                folder = hub_dir / IMAGES / split / label
                folder.mkdir(parents=True)
                (folder / "one.png").write_bytes(png(np.full((4, 4), len(split), np.uint8)))
        train, held_out = load_images(hub_images(size=4), workspace)
        assert train.classes_N.tolist() == held_out.classes_N.tolist() == [0, 1]
        assert (train.levels_NRSC == len("train")).all()

    @pytest.mark.parametrize(
        "proxy",
        [
            ImageMLP(images=hub_images(16), batch_size=4, dense_width=8, train_flops=1e7, base_lr=1e-3),
            ImageViT(images=hub_images(48), patch_size=16, batch_size=4, dense_width=8, train_flops=1e7, base_lr=1e-3),
            NextPixel(images=hub_images(4), batch_size=4, dense_width=8, train_flops=1e7, base_lr=1e-3),
        ],
        ids=["image_mlp", "image_vit", "next_pixel"],
    )
    def test_serve_every_proxy(self, workspace: Workspace, known: list[np.ndarray], proxy: ProxySpec) -> None:
        spec = TrialSpec(theta=NAMED["btt"], proxy=proxy, width=proxy.width_for(NAMED["btt"]), seed=0)
        outcome = evaluate(spec, workspace)
        assert outcome.kind is OutcomeKind.COMPLETED, outcome.reason


class TestBadImages:
    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            ([b"no image"], [0], r"^image_field: expected images that Pillow can read"),
            ([png(np.zeros((64, 64, 3), np.uint8))[:-30]], [0], r"^image_field: expected images that Pillow can read"),
            ([None], [0], r"^image_field: expected a field of images, got 'image of NoneType'"),
            (
                [png(np.zeros((4, 4), np.uint8))],
                [10],
                r"^label_field: expected a field of classes from 0 to 9, got '10 in",
            ),
            ([png(np.zeros((4, 4), np.uint8))], [-1], r"^label_field: expected a field of classes"),
            ([png(np.zeros((4, 4), np.uint8))], ["ape"], r"^label_field: expected a field of classes"),
        ],
    )
    def test_are_refused(
        self, workspace: Workspace, hub_dir: Path, images: list[bytes], labels: list[object], message: str
    ) -> None:
        for split in ("train", "validation"):
            write_images(hub_dir, IMAGES, images, labels, split=split)
        with pytest.raises(FieldError, match=message):
            load_images(hub_images(num_classes=10), workspace)
        assert not list(workspace.cache_dir.rglob("*.npy"))

    def test_are_those_of_an_empty_split(self, workspace: Workspace, hub_dir: Path) -> None:
        write_images(hub_dir, IMAGES, [png(np.zeros((4, 4), np.uint8))], [0], split="validation")
        write_images(hub_dir, IMAGES, [], list[int]())
        with pytest.raises(FieldError, match=r"^train_split: expected images, got 'none in train'"):
            load_images(hub_images(), workspace)

    def test_are_those_of_one_split_or_of_another_field(self, workspace: Workspace, hub_dir: Path) -> None:
        write_images(hub_dir, IMAGES, [png(np.zeros((4, 4), np.uint8))], [0])
        with pytest.raises(FieldError, match=r"^held_out_split: expected one of the splits train, got 'validation'"):
            load_images(hub_images(), workspace)
        write_images(hub_dir, IMAGES, [png(np.zeros((4, 4), np.uint8))], [0], split="validation")
        for field in ("image_field", "label_field"):
            images = HubImages(name=IMAGES, size=4, num_classes=2, **{field: "fine"})  # type: ignore[arg-type]  # a name
            with pytest.raises(FieldError, match=f"^{field}: expected one of the fields image, label, got 'fine'"):
                load_images(images, workspace)

    def test_are_those_that_lie_elsewhere(self, workspace: Workspace, hub_dir: Path, tmp_path: Path) -> None:
        (tmp_path / "secret.png").write_bytes(png(np.zeros((4, 4), np.uint8)))
        inside = hub_dir / IMAGES / "data" / ".." / ".." / ".." / ".." / "secret.png"
        for path in (str(tmp_path / "secret.png"), str(inside), f"file://{tmp_path}/secret.png::{hub_dir / IMAGES}/x"):
            for split in ("train", "validation"):
                cells = [{"bytes": None, "path": path}]
                write_rows(hub_dir, IMAGES, {"image": cells, "label": [0]}, split=split)
            with pytest.raises(FieldError, match=r"^name: expected a data set whose files are its own"):
                load_images(hub_images(), workspace)


def test_a_jpeg_that_is_scaled_while_it_is_read_is_the_same_image() -> None:
    rows, columns = np.mgrid[0:512, 0:768]
    smooth = np.stack([rows // 2, columns // 3, (rows + columns) // 5], axis=-1).astype(np.uint8)
    file = BytesIO()
    Image.fromarray(smooth).save(file, format="JPEG", quality=95)
    found = _decoded(file.getvalue(), hub_images(64)).astype(float)
    expected = smooth[:, 128:640].reshape(64, 8, 64, 8, 3).mean(axis=(1, 3))
    assert np.abs(found - expected).max() < 4
