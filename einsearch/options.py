"""What the commands have in common: their options, and the files that they read."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from einsearch.client import DEFAULT_URL

DEFAULT_HOME = Path(".einsearch")

Url = Annotated[
    str | None, typer.Option("--url", envvar="EINSEARCH_URL", help=f"The service to talk to; by default {DEFAULT_URL}.")
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key", envvar="EINSEARCH_API_KEY", help="Your key, if the service wants one.")
]
SearchId = Annotated[str, typer.Argument(metavar="ID", help="The id of a search; see: einsearch searches")]
TrialId = Annotated[str, typer.Argument(metavar="TRIAL", help="The id of a trial, such as 5f0c2ab91d3e-7.")]
Home = Annotated[Path, typer.Option(envvar="EINSEARCH_HOME", help="Where database, token, caches and logs are kept.")]


def read_json(file: str) -> dict[str, Any]:
    """The object in a file, or in the standard input for ``-``.

    Raises:
        typer.BadParameter: it cannot be read, or holds something else.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        document = json.loads(text)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{file} holds no JSON object but {type(document).__name__}")
    return document
