"""Text as memory-mapped token arrays: prepared once per machine, shared by every process on it.

Tokens are indices into the papers' 96-character vocabulary. As in the papers, documents with any other character are
dropped: whole files of the standard library, single lines of a user's file.
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
from search.proxies.char_lm import CHAR_VOCABULARY, Corpus, FileCorpus
from workers.cache import prepared
from workers.workspace import Workspace

HELD_OUT_SHARE = 20
"""One in this many files (of the standard library) or the last such part (of a single file) is held out."""

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
        FieldError: a file of the user's own is not where it may be.
    """
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
            digest = hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()
            parts["held_out" if digest[0] % HELD_OUT_SHARE == 0 else "train"].append(tokens)
    newline = bytes([CHAR_VOCABULARY.index("\n")])
    return {name: newline.join(part) for name, part in parts.items()}


def _split_lines(path: Path) -> dict[str, bytes]:
    lines = (line.translate(_TO_TOKENS) for line in path.read_bytes().replace(b"\r\n", b"\n").splitlines(keepends=True))
    tokens = b"".join(line for line in lines if _UNKNOWN not in line)
    border = len(tokens) - len(tokens) // HELD_OUT_SHARE
    return {"train": tokens[:border], "held_out": tokens[border:]}


def _cache_dir(workspace: Workspace, name: str, fingerprint: Iterable[str]) -> Path:
    digest = hashlib.sha256("\n".join(fingerprint).encode()).hexdigest()[:16]
    return workspace.cache_dir / "corpora" / f"{name}-{digest}"


def _cached(folder: Path, prepare: Callable[[], dict[str, bytes]]) -> TokenSplit:
    arrays = prepared(folder, lambda: {n: np.frombuffer(tokens, dtype=np.uint8) for n, tokens in prepare().items()})
    return TokenSplit(arrays["train"], arrays["held_out"])


def require_length(split: TokenSplit, context: int) -> None:
    """Check that both parts hold at least one sequence and its successor token.

    Raises:
        FieldError: one of them is shorter.
    """
    for name, tokens in (("training", split.train), ("held-out", split.held_out)):
        if len(tokens) < context + 1:
            raise FieldError("corpus", expected=f"at least {context + 1} {name} characters", got=len(tokens))
