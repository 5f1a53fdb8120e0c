"""Where files that a user names may lie, and what must be in them: one rule, asked at submission and by the worker."""

import zipfile
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from einlayers.errors import FieldError
from search.proxies.char_lm import CHAR_VOCABULARY, FileCorpus
from search.proxies.images import ImageFiles

IMAGE_BYTES = 3 * 32 * 32
"""The pixels of an image in the binary version of CIFAR."""

READ_AT_MOST = 2**24
"""How many bytes of a text are looked at before it is accepted; as a rule the first line or two suffice."""

_KNOWN = CHAR_VOCABULARY.encode()


def locate(corpus: FileCorpus, allowed: Path | None) -> Path:
    """The file of ``corpus``, below the ``allowed`` directory once every link is followed.

    Raises:
        FieldError: there is no allowed directory, or the path leaves it, or it is not a file there. The message does not
            tell which of the last two it is, so that nobody can ask for the existence of files elsewhere. Or the file is
            there, and may not be read.
    """
    path = _find(corpus.path, allowed)
    if path is None:
        raise FieldError("path", expected="a text file below the directory that the operator allows", got=corpus.path)
    _require_readable(path, corpus.path)
    return path


def require_text(corpus: FileCorpus, context: int, allowed: Path | None) -> None:
    """Go on only if the text is long enough for sequences of ``context`` characters, also where it begins.

    Raises:
        FieldError: see ``locate``; or too little is left of the file, once lines with other characters are dropped.
    """
    path = locate(corpus, allowed)
    size = path.stat().st_size
    # A twentieth is held out, and each part must hold at least one sequence and its successor.
    if size < (needed := 20 * (context + 1)):
        raise FieldError("path", expected=f"a file of at least {needed} bytes for this context", got=f"{size} bytes")
    with path.open("rb") as file:
        found = 0
        for found in accumulate(_kept(file)):
            if found >= needed:
                return
    where = f" in its first {READ_AT_MOST // 2**20} MiB" if size > READ_AT_MOST else ""
    expected = f"at least {needed} characters{where} in lines of printable ASCII only; other lines are dropped"
    raise FieldError("path", expected=expected, got=f"{found} characters")


def _kept(file: BinaryIO) -> Iterator[int]:
    """The lengths of the lines that are kept; what is longer than a mebibyte counts as several."""
    left = READ_AT_MOST
    while left > 0 and (line := file.readline(2**20)):
        left -= len(line)
        parts = line.replace(b"\r\n", b"\n").splitlines(keepends=True)
        yield sum(len(part) for part in parts if not part.translate(None, _KNOWN))


def locate_images(images: ImageFiles, allowed: Path | None) -> list[Path]:
    """The files of ``images``, each of which is whole as far as its size tells or, of an archive, its directory.

    Raises:
        FieldError: see ``locate``; or a file does not hold a whole number of images, at least one, or is no archive of the
            arrays X and Y.
    """
    found = []
    for name in images.file_names:
        path = _find(f"{images.path}/{name}", allowed)
        if path is None:
            expected = f"a directory with {', '.join(images.file_names)} below the one that the operator allows"
            raise FieldError("path", expected=expected, got=images.path)
        _require_readable(path, f"{images.path}/{name}")
        if images.label_bytes is None:
            _require_archive(path, f"{images.path}/{name}")
        else:
            image = images.label_bytes + IMAGE_BYTES
            size = path.stat().st_size
            if size == 0 or size % image:
                expected = f"{name} to hold images of {image} bytes each"
                raise FieldError("path", expected=expected, got=f"{images.path} with {size} bytes of them")
        found.append(path)
    return found


def _require_archive(path: Path, shown: str) -> None:
    """The directory of an archive stands at its end, which one that was cut off lacks."""
    expected = f"{path.name} to be an archive of the arrays X and Y"
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise FieldError("path", expected=expected, got=f"{shown}: {error}") from error
    if not {"X.npy", "Y.npy"} <= set(names):
        raise FieldError("path", expected=expected, got=f"{shown}: one of {', '.join(names[:5]) or 'nothing'}")


def _require_readable(path: Path, shown: str) -> None:
    # Opened, because the bits of its mode are not all that decides.
    try:
        path.open("rb").close()
    except OSError as error:
        raise FieldError("path", expected="a file that this service may read", got=shown) from error


def _find(path: str, allowed: Path | None) -> Path | None:
    if allowed is None:
        raise FieldError(
            "path", expected="no file: this service allows none (EINSEARCH_CORPORA_DIR is not set)", got=path
        )
    if not path.isprintable():
        raise FieldError("path", expected="a printable path", got=path)
    root = allowed.resolve()
    try:
        found = (root / path).resolve()
        return found if found.is_relative_to(root) and found.is_file() else None
    except (OSError, RuntimeError):  # a name too long for the file system, or a loop of links
        return None
