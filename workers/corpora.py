"""Text as memory-mapped token arrays: prepared once per machine, shared by every process on it.

Tokens are indices into the papers' 96-character vocabulary. As in the papers, documents with any other character are
dropped: whole files of the standard library, single lines of a user's file, whole texts of a data set of Hugging Face.
"""

import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from einlayers.errors import FieldError
from search.corpora import locate
from search.proxies.char_lm import CHAR_VOCABULARY, Corpus, FileCorpus, HubCorpus
from workers.cache import Arrays, GrowingArray, prepared, prepared_by_one, save
from workers.hugging_face import fingerprint, stream
from workers.workspace import Workspace

HELD_OUT_SHARE = 20
"""One in this many files (of the standard library) or texts (of a data set) or the last such part (of a single file) is
held out."""

_GIVE_UP = 100_000
"""After so many texts of a data set without a single one to keep, there will be none."""

_NEWLINE = bytes([CHAR_VOCABULARY.index("\n")])
_UNKNOWN = 0xFF
_TO_TOKENS = bytes(CHAR_VOCABULARY.find(chr(byte)) & 0xFF for byte in range(256))  # find gives -1, hence 0xFF


@dataclass(frozen=True, slots=True)
class TokenSplit:
    """Training and held-out tokens, each a 1-d array of vocabulary indices."""

    train: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.uint8]


def load_tokens(corpus: Corpus, workspace: Workspace) -> TokenSplit:
    """The tokens of ``corpus``, prepared on first use.

    Raises:
        FieldError: a file of the user's own is not where it may be, or a data set of Hugging Face not what it should be.
    """
    if isinstance(corpus, HubCorpus):
        cache = _cache_dir(workspace, corpus.kind, fingerprint(corpus, workspace))
        return _split_of(prepared_by_one(cache, lambda folder: _write_documents(corpus, workspace, folder)))
    if isinstance(corpus, FileCorpus):
        path = locate(corpus, workspace.corpora_dir)
        stat = path.stat()
        cache = _cache_dir(workspace, "file", [f"{path} {stat.st_size} {stat.st_mtime_ns}"])
        return _cached(cache, lambda: _split_lines(path))
    root = Path(sysconfig.get_path("stdlib"))
    files = list(_stdlib_files(root))
    listing = [f"{path.relative_to(root)} {path.stat().st_size}" for path in files]
    cache = _cache_dir(workspace, f"stdlib-{sys.version_info.major}.{sys.version_info.minor}", listing)
    return _cached(cache, lambda: _split_files(root, files))


def _stdlib_files(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - {"site-packages", "dist-packages", "__pycache__"})
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _split_files(root: Path, files: Iterable[Path]) -> dict[str, bytes]:
    parts: dict[str, list[bytes]] = {"train": [], "held_out": []}
    for path in files:
        tokens = path.read_bytes().translate(_TO_TOKENS)
        if _UNKNOWN not in tokens:
            # By a hash of the name, so that the split does not depend on which other files there are.
            name = path.relative_to(root).as_posix().encode()
            parts["held_out" if _is_held_out(name) else "train"].append(tokens)
    return {name: _NEWLINE.join(part) for name, part in parts.items()}


def _is_held_out(what: bytes) -> bool:
    return hashlib.sha256(what).digest()[0] % HELD_OUT_SHARE == 0


def _split_lines(path: Path) -> dict[str, bytes]:
    lines = (line.translate(_TO_TOKENS) for line in path.read_bytes().replace(b"\r\n", b"\n").splitlines(keepends=True))
    tokens = b"".join(line for line in lines if _UNKNOWN not in line)
    border = len(tokens) - len(tokens) // HELD_OUT_SHARE
    return {"train": tokens[:border], "held_out": tokens[border:]}


def _write_documents(corpus: HubCorpus, workspace: Workspace, folder: Path) -> None:
    most = corpus.max_characters or sys.maxsize
    with (
        GrowingArray(folder / "train.npy", np.uint8) as train,
        GrowingArray(folder / "held_out.npy", np.uint8) as held_out,
    ):
        for tokens in _documents(corpus, workspace):
            # By a hash of the text, so that copies of one are all on the same side.
            part = held_out if _is_held_out(tokens) else train
            joined = _NEWLINE + tokens if len(part) else tokens
            part.append(np.frombuffer(joined[: most - len(train) - len(held_out)], dtype=np.uint8))
            if len(train) + len(held_out) == most:
                break


def _documents(corpus: HubCorpus, workspace: Workspace) -> Iterator[bytes]:
    """The tokens of the texts that have no other character; there is one at least."""
    num_kept = num_read = 0
    for num_read, (text,) in enumerate(stream(corpus, "split", ("field",), workspace), start=1):
        if not isinstance(text, str | None):
            raise FieldError("field", expected="a field of texts", got=f"{corpus.field} of {type(text).__name__}")
        # What is no ASCII becomes several bytes, none of which is a character that is known.
        tokens = (text or "").encode(errors="surrogatepass").translate(_TO_TOKENS)
        if tokens and _UNKNOWN not in tokens:
            num_kept += 1
            yield tokens
        if num_read == _GIVE_UP and not num_kept:
            break
    if not num_kept:
        expected = "texts of newlines and printable ASCII only; one with any other character is dropped"
        raise FieldError("field", expected=expected, got=f"none in the first {num_read} of {corpus.field}")


def _cache_dir(workspace: Workspace, name: str, fingerprint: Iterable[str]) -> Path:
    digest = hashlib.sha256("\n".join(fingerprint).encode()).hexdigest()[:16]
    return workspace.cache_dir / "corpora" / f"{name}-{digest}"


def _cached(folder: Path, prepare: Callable[[], dict[str, bytes]]) -> TokenSplit:
    def write(draft: Path) -> None:
        save(draft, {name: np.frombuffer(tokens, dtype=np.uint8) for name, tokens in prepare().items()})

    return _split_of(prepared(folder, write))


def _split_of(arrays: Arrays) -> TokenSplit:
    return TokenSplit(arrays["train"], arrays["held_out"])


def require_length(split: TokenSplit, context: int) -> None:
    """Check that both parts hold at least one sequence and its successor token.

    Raises:
        FieldError: one of them is shorter.
    """
    for name, tokens in (("training", split.train), ("held-out", split.held_out)):
        if len(tokens) < context + 1:
            raise FieldError("corpus", expected=f"at least {context + 1} {name} characters", got=len(tokens))
