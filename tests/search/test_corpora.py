import os
from pathlib import Path

import pytest

from einlayers.errors import FieldError
from search.corpora import locate
from search.proxies.char_lm import FileCorpus

REFUSED = [
    pytest.param("../outside.txt", id="a parent"),
    pytest.param("folder/../../outside.txt", id="a parent by a detour"),
    pytest.param("../corpora-private/secret.txt", id="a sibling with the same beginning"),
    pytest.param("link-to-file", id="a link to a file outside"),
    pytest.param("link-to-folder/outside.txt", id="a link to a folder outside"),
    pytest.param("loop", id="a link to itself"),
    pytest.param("folder", id="a folder"),
    pytest.param("", id="the directory itself"),
    pytest.param("pipe", id="a pipe"),
    pytest.param("nothing.txt", id="nothing"),
    pytest.param("corpus.txt/more", id="below a file"),
    pytest.param("a" * 5000, id="a name too long for the file system"),
    pytest.param("a\n.txt", id="a line break"),
    pytest.param("corpus.txt\0", id="a NUL"),
    pytest.param("\ud800", id="half a surrogate pair"),
]


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    """An allowed directory with every kind of thing in it and around it."""
    root = tmp_path / "corpora"
    for folder in (root / "folder", tmp_path / "corpora-private"):
        folder.mkdir(parents=True)
    texts = ("outside.txt", "corpora-private/secret.txt", "corpora/corpus.txt", "corpora/folder/inner.txt")
    for text in texts:
        (tmp_path / text).write_text("text\n")
    for link, target in {
        "link-to-file": tmp_path / "outside.txt",
        "link-to-folder": tmp_path,
        "link-inside": root / "folder" / "inner.txt",
        "loop": root / "loop",
    }.items():
        (root / link).symlink_to(target)
    os.mkfifo(root / "pipe")
    return root


class TestLocate:
    @pytest.mark.parametrize(
        ("path", "file"),
        [
            ("corpus.txt", "corpus.txt"),
            ("folder/inner.txt", "folder/inner.txt"),
            ("folder/../corpus.txt", "corpus.txt"),
            ("link-inside", "folder/inner.txt"),
        ],
    )
    def test_finds_a_file_below_the_allowed_directory(self, allowed: Path, path: str, file: str) -> None:
        assert locate(FileCorpus(path=path), allowed) == allowed.resolve() / file

    def test_takes_an_absolute_path_that_stays_below(self, allowed: Path) -> None:
        assert locate(FileCorpus(path=str(allowed / "corpus.txt")), allowed) == allowed.resolve() / "corpus.txt"

    def test_follows_a_link_to_the_allowed_directory(self, allowed: Path, tmp_path: Path) -> None:
        (tmp_path / "mounted").symlink_to(allowed)
        assert locate(FileCorpus(path="corpus.txt"), tmp_path / "mounted") == allowed.resolve() / "corpus.txt"

    @pytest.mark.parametrize("path", REFUSED)
    def test_refuses_everything_else_and_names_the_field(self, allowed: Path, path: str) -> None:
        with pytest.raises(FieldError, match=r"^path: expected ") as caught:
            locate(FileCorpus(path=path), allowed)
        assert (caught.value.field, caught.value.got) == ("path", path)

    def test_refuses_an_absolute_path_elsewhere(self, allowed: Path, tmp_path: Path) -> None:
        with pytest.raises(FieldError, match=r"^path: expected a text file below"):
            locate(FileCorpus(path=str(tmp_path / "outside.txt")), allowed)

    def test_does_not_tell_whether_a_file_elsewhere_exists(self, allowed: Path) -> None:
        expected = set()
        for path in ("../outside.txt", "../nothing.txt", "nothing.txt", "link-to-file", "a" * 5000):
            with pytest.raises(FieldError) as caught:
                locate(FileCorpus(path=path), allowed)
            expected.add(caught.value.expected)
        assert len(expected) == 1

    def test_refuses_every_file_where_none_is_allowed(self, allowed: Path) -> None:
        with pytest.raises(FieldError, match=r"^path: expected no file: .*EINSEARCH_CORPORA_DIR"):
            locate(FileCorpus(path=str(allowed / "corpus.txt")), None)

    def test_refuses_every_file_of_a_directory_that_is_gone(self, tmp_path: Path) -> None:
        with pytest.raises(FieldError, match=r"^path: expected a text file below"):
            locate(FileCorpus(path="corpus.txt"), tmp_path / "gone")
