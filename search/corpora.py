"""Where files that a user names may lie: one rule, asked at submission and again by the worker that opens them."""

from pathlib import Path

from einlayers.errors import FieldError
from search.proxies.char_lm import FileCorpus
from search.proxies.images import ImageFiles

IMAGE_BYTES = 3 * 32 * 32
"""The pixels of an image in the binary version of CIFAR."""


def locate(corpus: FileCorpus, allowed: Path | None) -> Path:
    """The file of ``corpus``, below the ``allowed`` directory once every link is followed.

    Raises:
        FieldError: there is no allowed directory, or the path leaves it, or it is not a file there. The message does not
            tell which of the last two it is, so that nobody can ask for the existence of files elsewhere.
    """
    path = _find(corpus.path, allowed)
    if path is None:
        raise FieldError("path", expected="a text file below the directory that the operator allows", got=corpus.path)
    return path


def locate_images(images: ImageFiles, allowed: Path | None) -> list[Path]:
    """The files of ``images``, each of which is whole as far as its size tells.

    Raises:
        FieldError: see ``locate``; or a file does not hold a whole number of images, at least one.
    """
    found = []
    for name in images.file_names:
        path = _find(f"{images.path}/{name}", allowed)
        if path is None:
            expected = f"a directory with {', '.join(images.file_names)} below the one that the operator allows"
            raise FieldError("path", expected=expected, got=images.path)
        if images.label_bytes is not None:
            image = images.label_bytes + IMAGE_BYTES
            size = path.stat().st_size
            if size == 0 or size % image:
                expected = f"{name} to hold images of {image} bytes each"
                raise FieldError("path", expected=expected, got=f"{images.path} with {size} bytes of them")
        found.append(path)
    return found


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
