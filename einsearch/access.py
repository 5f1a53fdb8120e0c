"""The commands on API keys. They run ``python -m service.keys`` on the database of a home: nobody makes keys over HTTP."""

import os
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from einsearch.options import DEFAULT_HOME, Home

keys = typer.Typer(help="Who may use the service from other machines.", no_args_is_help=True)


class Scope(StrEnum):
    """What a key is good for."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"


@keys.command()
def create(
    owner: Annotated[str, typer.Option(help="Whose searches are submitted with the key.")],
    scope: Annotated[
        Scope, typer.Option(help="To look; to submit searches too; to do everything, to everybody's.")
    ] = Scope.SUBMIT,
    max_active_searches: Annotated[int | None, typer.Option(min=1, help="Unfinished searches at a time.")] = None,
    max_train_flops_per_day: Annotated[float | None, typer.Option(min=1, help="Over 24 hours, such as 1e18.")] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="How many are answered.")] = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Create a key and print it: it cannot be shown again."""
    limits = {
        "--max-active-searches": max_active_searches,
        "--max-train-flops-per-day": max_train_flops_per_day,
        "--requests-per-minute": requests_per_minute,
    }
    given = [f"{name}={limit}" for name, limit in limits.items() if limit is not None]
    _prepare(home)
    _run(home, "create", f"--owner={owner}", f"--scope={scope}", *given)


@keys.command("list")
def list_keys(home: Home = DEFAULT_HOME) -> None:
    """List the keys, without their secrets."""
    _prepare(home)
    _run(home, "list")


@keys.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="The part between es_ and the next _; see list.")],
    home: Home = DEFAULT_HOME,
) -> None:
    """Refuse a key from now on."""
    _prepare(home)
    _run(home, "revoke", "--", key_id)


def _prepare(home: Path) -> None:
    """The tables, as ``up`` makes them too: the first key is wanted before the first start."""
    command = [sys.executable, "-m", "service.migrate", "upgrade"]
    done = subprocess.run(command, env=_environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip(), file=sys.stderr)
        raise typer.Exit(done.returncode)


def _run(home: Path, *arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "service.keys", *arguments], env=_environment(home), check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)


def _environment(home: Path) -> dict[str, str]:
    return {**os.environ, "EINSEARCH_HOME": str(home.absolute())}
