"""The import contracts of pyproject.toml, broken on purpose: each must notice what it is there for."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("api", "einlayers", "einsearch", "migrations", "search", "service", "workers")


def lint(tree: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_hold(tree: Path) -> None:
    result = lint(tree)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("search/space.py", "import workers.pool", "Imports point downward"),
        ("workers/pool.py", "import service.models", "Imports point downward"),
        ("einsearch/cli.py", "import service.settings", "The command line talks HTTP and mathematics, nothing else"),
        ("einlayers/theta.py", "import pydantic", "The mathematics stands alone"),
        ("einlayers/dims.py", "import torch", "The values of the mathematics need the standard library only"),
        ("workers/slot.py", "import sqlalchemy", "Workers compute: no database, no samplers"),
        ("workers/evaluate.py", "import search.samplers.base", "Workers compute: no database, no samplers"),
        ("service/searches.py", "import workers.evaluate", "The API is small: it never reaches torch, Ray or Optuna"),
        ("api/health.py", "import ray", "The API is small: it never reaches torch, Ray or Optuna"),
        ("service/repositories.py", "import optuna", "The API is small: it never reaches torch, Ray or Optuna"),
        ("migrations/env.py", "import service.runner", "Migrations know the tables and nothing else"),
    ],
)
def test_a_broken_contract_is_named(tree: Path, file: str, line: str, contract: str) -> None:
    path = tree / file
    path.write_text(f"{path.read_text()}\n\ndef _late() -> None:\n    {line}\n")
    result = lint(tree)
    assert result.returncode == 1, result.stdout
    assert f"{contract} BROKEN" in result.stdout
