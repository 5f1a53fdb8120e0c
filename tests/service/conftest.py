"""What the tests of the runner work with."""

from pathlib import Path

import pytest

from workers.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, corpora_dir: Path) -> Workspace:
    return Workspace(cache_dir=tmp_path / "cache", corpora_dir=corpora_dir)


@pytest.fixture
def broken(tmp_path: Path, corpora_dir: Path) -> Workspace:
    """The workspace of a machine where every trial fails: its cache cannot be written."""
    (tmp_path / "file").touch()
    return Workspace(cache_dir=tmp_path / "file", corpora_dir=corpora_dir)
