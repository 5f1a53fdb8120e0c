"""Where a corpus that a user names may lie: one rule, asked at submission and again by the worker that opens the file."""

from pathlib import Path

from einlayers.errors import FieldError
from search.proxies.char_lm import FileCorpus


def locate(corpus: FileCorpus, allowed: Path | None) -> Path:
    """The file of ``corpus``, below the ``allowed`` directory once every link is followed.

    Raises:
        FieldError: there is no allowed directory, or the path leaves it, or it is not a file there. The message does not
            tell which of the last two it is, so that nobody can ask for the existence of files elsewhere.
    """
    if allowed is None:
        raise FieldError(
            "path", expected="no file: this service allows none (EINSEARCH_CORPORA_DIR is not set)", got=corpus.path
        )
    if not corpus.path.isprintable():
        raise FieldError("path", expected="a printable path", got=corpus.path)
    root = allowed.resolve()
    try:
        path = (root / corpus.path).resolve()
        found = path.is_relative_to(root) and path.is_file()
    except (OSError, RuntimeError):  # a name too long for the file system, or a loop of links
        found = False
    if not found:
        raise FieldError("path", expected="a text file below the directory that the operator allows", got=corpus.path)
    return path
