"""Workspaces: one whose text is a file of the user's, and one with the standard library, which takes a second to prepare."""

from pathlib import Path

import pytest

from workers.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, corpora_dir: Path) -> Workspace:
    """Nothing prepared yet; ``corpus.txt`` may be read."""
    return Workspace(cache_dir=tmp_path / "cache", corpora_dir=corpora_dir)


@pytest.fixture(scope="session")
def library_workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A cache for the standard library, shared by all tests; none of them writes elsewhere."""
    return Workspace(cache_dir=tmp_path_factory.mktemp("library"))
