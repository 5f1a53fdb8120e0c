"""A small text for proxies to train on."""

from pathlib import Path


def make_corpora(folder: Path) -> Path:
    """Make ``folder``, with ``corpus.txt`` in it, if it is not there."""
    folder.mkdir(exist_ok=True)
    lines = (f"{number} times {number} is {number * number}.\n" for number in range(400))
    (folder / "corpus.txt").write_text("".join(lines), encoding="ascii")
    return folder
