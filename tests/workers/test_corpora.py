import hashlib
import multiprocessing
import os
import string
import sysconfig
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from einlayers.errors import FieldError
from search.proxies.char_lm import CHAR_VOCABULARY, Corpus, FileCorpus, StdlibCorpus
from workers.corpora import TokenSplit, load_tokens, require_length
from workers.workspace import Workspace

NUM_MODULES = 120
TOGETHER_WITHIN = 60.0
"""Seconds that two threads or processes wait for each other; they need none of them."""

PRINTABLE = string.ascii_letters + string.digits + string.punctuation + " "


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "corpora").mkdir()
    return Workspace(cache_dir=tmp_path / "cache", corpora_dir=tmp_path / "corpora")


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The standard library of a machine that has a small one."""
    root = tmp_path / "library"
    root.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", {"stdlib": str(root)}.__getitem__)
    return root


class TestVocabulary:
    def test_is_the_papers_96_characters(self, workspace: Workspace) -> None:
        assert len(PRINTABLE) == 95
        text = "".join(sorted(PRINTABLE)) + "\n"
        split = load_file(workspace, text.encode() * 20)
        assert set(split.train.tolist()) == set(range(96))
        assert [CHAR_VOCABULARY[token] for token in split.train[:96]] == list(text)

    @pytest.mark.parametrize("other", [b"\t", b"\x7f", b"\0", b"\x0c", "é".encode(), b"\xff"])
    def test_has_no_other_character(self, workspace: Workspace, other: bytes) -> None:
        split = load_file(workspace, (b"kept\n" + b"dropped " + other + b"\n") * 20)
        assert decode(split.train) + decode(split.held_out) == "kept\n" * 20


class TestStandardLibrary:
    def test_is_read_whole_but_for_files_with_another_character(self, library_workspace: Workspace) -> None:
        split = load_tokens(StdlibCorpus(), library_workspace)
        read = read_standard_library()
        assert min(read.num_kept, read.num_dropped) > 50
        for tokens, text in ((split.train, read.train), (split.held_out, read.held_out)):
            assert np.bincount(tokens, minlength=96).tolist() == [text.count(c) for c in CHAR_VOCABULARY]
        assert 0.02 < len(split.held_out) / len(split.train) < 0.1

    def test_drops_a_file_with_another_character_whole(self, workspace: Workspace, library: Path) -> None:
        (library / "kept.py").write_text("kept = 1\n")
        (library / "tabs.py").write_text("first = 1\nif first:\n\tsecond = 2\n")
        (library / "accents.py").write_text("first = 1\n# déjà vu\n", encoding="utf-8")
        split = load_tokens(StdlibCorpus(), workspace)
        assert sorted([decode(split.train), decode(split.held_out)]) == ["", "kept = 1\n"]

    def test_leaves_out_what_is_installed_and_what_is_no_source(self, workspace: Workspace, library: Path) -> None:
        for name in ("site-packages/a.py", "dist-packages/a.py", "__pycache__/a.py", "package/site-packages/a.py"):
            (library / name).parent.mkdir(parents=True)
            (library / name).write_text("installed\n")
        (library / "data.txt").write_text("no source\n")
        (library / "package" / "kept.py").write_text("kept\n")
        split = load_tokens(StdlibCorpus(), workspace)
        assert decode(split.train) + decode(split.held_out) == "kept\n"

    def test_holds_files_out_by_a_hash_of_their_names(self, workspace: Workspace, library: Path) -> None:
        write_modules(library, range(NUM_MODULES))
        train, held_out = modules(load_tokens(StdlibCorpus(), workspace))
        assert train.isdisjoint(held_out)
        assert train | held_out == {module_name(number) for number in range(NUM_MODULES)}
        assert held_out == {name for name in train | held_out if hash_of(name) % 20 == 0}
        assert held_out

    def test_holds_a_file_out_whatever_other_files_there_are(self, workspace: Workspace, library: Path) -> None:
        write_modules(library, range(NUM_MODULES))
        train, held_out = modules(load_tokens(StdlibCorpus(), workspace))
        for number in range(0, NUM_MODULES, 2):
            (library / module_name(number)).unlink()
        fewer_train, fewer_held_out = modules(load_tokens(StdlibCorpus(), workspace))
        assert len(fewer_train | fewer_held_out) == NUM_MODULES // 2
        assert fewer_train < train
        assert fewer_held_out < held_out


class TestFileOfTheUser:
    def test_loses_single_lines_with_another_character(self, workspace: Workspace) -> None:
        text = "".join(f"line {number}\n" if number % 3 else f"líne {number}\n" for number in range(100))
        split = load_file(workspace, text.encode())
        kept = [f"line {number}\n" for number in range(100) if number % 3]
        assert decode(split.train) + decode(split.held_out) == "".join(kept)

    def test_may_end_its_lines_as_windows_does(self, workspace: Workspace) -> None:
        split = load_file(workspace, b"one\r\ntwo\r\n" * 20)
        assert decode(split.train) + decode(split.held_out) == "one\ntwo\n" * 20

    def test_keeps_a_last_line_without_an_end(self, workspace: Workspace) -> None:
        split = load_file(workspace, b"one\n" * 30 + b"last")
        assert decode(split.train) + decode(split.held_out) == "one\n" * 30 + "last"

    @pytest.mark.parametrize("length", [0, 1, 19, 20, 21, 400, 1019])
    def test_is_held_out_by_its_last_twentieth(self, workspace: Workspace, length: int) -> None:
        text = "".join(CHAR_VOCABULARY[1 + i % 95] for i in range(length))
        split = load_file(workspace, text.encode())
        assert len(split.held_out) == length // 20
        assert decode(split.train) == text[: length - length // 20]
        assert decode(split.held_out) == text[length - length // 20 :]

    @pytest.mark.parametrize("path", ["../outside.txt", "link", "nothing.txt"])
    def test_lies_where_it_may_or_is_refused(self, workspace: Workspace, path: str) -> None:
        assert workspace.corpora_dir
        outside = workspace.corpora_dir.parent / "outside.txt"
        outside.write_text("secret\n" * 100)
        (workspace.corpora_dir / "link").symlink_to(outside)
        for refused in (path, str(outside)):
            with pytest.raises(FieldError, match=r"^path: expected a text file below"):
                load_tokens(FileCorpus(path=refused), workspace)
        assert not workspace.cache_dir.exists()

    def test_is_refused_where_the_operator_allows_none(self, tmp_path: Path) -> None:
        with pytest.raises(FieldError, match=r"^path: expected no file"):
            load_tokens(FileCorpus(path="corpus.txt"), Workspace(cache_dir=tmp_path))


class TestCache:
    def test_is_mapped_into_memory_read_only(self, workspace: Workspace) -> None:
        for tokens in (split := load_file(workspace, b"text\n" * 100)).train, split.held_out:
            assert isinstance(tokens, np.memmap)
            assert tokens.dtype == np.uint8
            assert not tokens.flags.writeable

    def test_is_used_again(self, workspace: Workspace) -> None:
        first = load_file(workspace, b"text\n" * 100)
        prepared = {path: path.stat().st_ino for path in files(workspace)}
        again = load_tokens(FileCorpus(path="corpus.txt"), workspace)
        assert {path: path.stat().st_ino for path in files(workspace)} == prepared
        assert (decode(again.train), decode(again.held_out)) == (decode(first.train), decode(first.held_out))

    def test_is_made_anew_for_a_file_that_was_changed(self, workspace: Workspace) -> None:
        load_file(workspace, b"first\n" * 100)
        assert decode(load_file(workspace, b"other\n" * 100, mtime=1).train).startswith("other\n")
        assert decode(load_file(workspace, b"third\n" * 100, mtime=2).train).startswith("third\n")
        assert len(caches(workspace)) == 3

    def test_is_made_anew_for_another_library(self, workspace: Workspace, library: Path) -> None:
        (library / "kept.py").write_text("a\n")
        load_tokens(StdlibCorpus(), workspace)
        (library / "kept.py").write_text("longer\n")
        split = load_tokens(StdlibCorpus(), workspace)
        assert decode(split.train) + decode(split.held_out) == "longer\n"

    def test_tells_files_of_the_same_content_apart(self, workspace: Workspace) -> None:
        load_file(workspace, b"text\n" * 100, mtime=1)
        load_file(workspace, b"text\n" * 100, name="other.txt", mtime=1)
        assert len(caches(workspace)) == 2

    def test_may_be_read_by_other_users_of_the_machine(self, workspace: Workspace) -> None:
        load_file(workspace, b"text\n" * 100)
        (cache,) = caches(workspace)
        assert cache.stat().st_mode & 0o777 == 0o755

    def test_is_not_left_half_made(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        def save_one_of_two(path: Path, array: npt.NDArray[np.uint8], save: Any = np.save) -> None:
            if path.stem == "held_out":
                raise OSError(28, "No space left on device")
            save(path, array)

        with monkeypatch.context() as full:
            full.setattr(np, "save", save_one_of_two)
            with pytest.raises(OSError, match="No space left on device"):
                load_file(workspace, b"text\n" * 100)
        assert entries(workspace) == []
        assert decode(load_file(workspace, b"text\n" * 100).train) == "text\n" * 95

    def test_is_one_for_threads_that_prepare_it_at_once(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together = threading.Barrier(2)

        def save_together(path: Path, array: npt.NDArray[np.uint8], save: Any = np.save) -> None:
            # Nobody writes before both have found no cache.
            together.wait(TOGETHER_WITHIN)
            save(path, array)

        corpus = write(workspace, b"text\n" * 100)
        monkeypatch.setattr(np, "save", save_together)
        with ThreadPoolExecutor(2) as threads:
            splits = list(threads.map(lambda _: load_tokens(corpus, workspace), range(2)))
        assert {(decode(split.train), decode(split.held_out)) for split in splits} == {("text\n" * 95, "text\n" * 5)}
        assert entries(workspace) == caches(workspace)
        assert len(caches(workspace)) == 1

    def test_is_one_for_processes_that_prepare_it_at_once(self, workspace: Workspace) -> None:
        corpus = write(workspace, b"text\n" * 100_000)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            2, mp_context=context, initializer=remember_barrier, initargs=(context.Barrier(2),)
        ) as processes:
            loaded = list(processes.map(load_together, [corpus] * 2, [workspace] * 2))
        assert loaded == [("text\n" * 95_000, "text\n" * 5_000)] * 2
        assert entries(workspace) == caches(workspace)
        assert len(caches(workspace)) == 1


class TestRequireLength:
    def test_is_content_with_one_sequence_and_its_successor(self) -> None:
        require_length(split_of(65, 65), context=64)

    @pytest.mark.parametrize(
        ("train", "held_out", "message"),
        [
            (64, 65, "corpus: expected at least 65 training characters, got 64"),
            (65, 64, "corpus: expected at least 65 held-out characters, got 64"),
            (0, 0, "corpus: expected at least 65 training characters, got 0"),
        ],
    )
    def test_refuses_a_part_that_is_shorter(self, train: int, held_out: int, message: str) -> None:
        with pytest.raises(FieldError) as caught:
            require_length(split_of(train, held_out), context=64)
        assert str(caught.value) == message


_barrier: Barrier | None = None


def remember_barrier(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def load_together(corpus: Corpus, workspace: Workspace) -> tuple[str, str]:
    assert _barrier
    _barrier.wait(TOGETHER_WITHIN)
    split = load_tokens(corpus, workspace)
    return decode(split.train), decode(split.held_out)


def write(workspace: Workspace, text: bytes, *, name: str = "corpus.txt", mtime: int | None = None) -> FileCorpus:
    assert workspace.corpora_dir
    path = workspace.corpora_dir / name
    path.write_bytes(text)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return FileCorpus(path=name)


def load_file(workspace: Workspace, text: bytes, *, name: str = "corpus.txt", mtime: int | None = None) -> TokenSplit:
    return load_tokens(write(workspace, text, name=name, mtime=mtime), workspace)


def decode(tokens: npt.NDArray[np.uint8]) -> str:
    return "".join(CHAR_VOCABULARY[token] for token in tokens.tolist())


def split_of(train: int, held_out: int) -> TokenSplit:
    return TokenSplit(np.zeros(train, np.uint8), np.zeros(held_out, np.uint8))


def entries(workspace: Workspace) -> list[Path]:
    return sorted((workspace.cache_dir / "corpora").iterdir())


def caches(workspace: Workspace) -> list[Path]:
    """The caches that another process would take for whole."""
    return [entry for entry in entries(workspace) if not entry.name.startswith(".")]


def files(workspace: Workspace) -> list[Path]:
    return [path for cache in caches(workspace) for path in cache.iterdir()]


def module_name(number: int) -> str:
    return f"package/module_{number}.py" if number % 2 else f"module_{number}.py"


def write_modules(library: Path, numbers: range) -> None:
    (library / "package").mkdir()
    for number in numbers:
        (library / module_name(number)).write_text(module_name(number))


def modules(split: TokenSplit) -> tuple[set[str], set[str]]:
    """The names of the modules on both sides: the text of each is its name."""
    return set(decode(split.train).split("\n")), set(decode(split.held_out).split("\n"))


def hash_of(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:2], 16)


@dataclass(frozen=True, kw_only=True)
class Library:
    """The text of both parts, and how many files are in either or in none."""

    train: str
    held_out: str
    num_kept: int
    num_dropped: int


def read_standard_library() -> Library:
    """By plain searching and joining, in any order of the files."""
    root = Path(os.__file__).parent
    train, held_out, num_dropped = list[str](), list[str](), 0
    for path in root.rglob("*.py"):
        name = path.relative_to(root).as_posix()
        if {"site-packages", "dist-packages", "__pycache__"} & set(name.split("/")[:-1]):
            continue
        content = path.read_bytes()
        if set(content) <= set(CHAR_VOCABULARY.encode()):
            (train if hash_of(name) % 20 else held_out).append(content.decode("ascii"))
        else:
            num_dropped += 1
    return Library(
        train="\n".join(train),
        held_out="\n".join(held_out),
        num_kept=len(train) + len(held_out),
        num_dropped=num_dropped,
    )
