"""The command line."""

import json
import signal
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from einlayers.errors import FieldError
from einlayers.theta import Theta
from einsearch.client import DEFAULT_URL, Client, Refused, Unreachable
from einsearch.embedded import CannotStart, Embedded, Options
from einsearch.show import FINAL_STATES, follow, make_console, show_best, show_description, show_searches

app = typer.Typer(
    help="Search the space of einsum structures for better linear layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Url = Annotated[str, typer.Option("--url", envvar="EINSEARCH_URL", help="The service to talk to.")]
SearchId = Annotated[str, typer.Argument(metavar="ID", help="The id of a search; see: einsearch searches")]
Home = Annotated[Path, typer.Option(envvar="EINSEARCH_HOME", help="Where database, token, caches and logs are kept.")]
Slots = Annotated[int | None, typer.Option(min=1, help="How many trials run at once; by default one per CPU.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="How many GPUs Ray may use; by default those that it finds.")]
DEFAULT_HOME = Path(".einsearch")


def main() -> None:
    """Run the command line; every expected failure is a message and a status, not a traceback."""
    try:
        app()
    except (Refused, Unreachable, CannotStart) as error:
        hint = "\nStart one with: einsearch up" if isinstance(error, Unreachable) else ""
        print(f"einsearch: {error}{hint}", file=sys.stderr)
        sys.exit(1)
    except FieldError as error:
        print(f"einsearch: {error}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """Search the space of einsum structures for better linear layers."""
    if show_version:
        print(version("einsearch"))
        raise typer.Exit


@app.command()
def up(
    home: Home = DEFAULT_HOME,
    host: Annotated[str, typer.Option(envvar="EINSEARCH_HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="EINSEARCH_PORT", min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Slots = None,
    gpus: Gpus = None,
) -> None:
    """Start API, runner and a local Ray; Ctrl-C stops them, and starting again goes on where they stopped."""
    stop = _stop_on_signals()
    options = Options(home=home, host=host, port=port, slots=slots, gpus=gpus)
    if host not in ("127.0.0.1", "::1", "localhost"):
        _say(f"warning: whoever reaches {host} can use this service; it does not ask who they are yet")
    with Embedded(options, say=_say) as service:
        _introduce(service)
        stop.wait()
        _say("stopping")
    _say("stopped; unfinished searches go on when it is started again")


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A search as JSON; - reads standard input.")], url: Url = DEFAULT_URL
) -> None:
    """Submit a search and print its id."""
    with Client(url) as client:
        search = client.submit(_read_json(file))
    print(search["id"])


@app.command()
def watch(
    search_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="By default all unfinished.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the progress of searches until they end."""
    console = make_console()
    with Client(url) as client:
        ids = search_ids or [s["id"] for s in client.searches() if s["state"] not in FINAL_STATES]
        if not ids:
            console.print("There is no unfinished search.")
            return
        try:
            follow(client, ids, console)
        except KeyboardInterrupt:
            console.print("The searches go on; watch them again with: einsearch watch")
            raise typer.Exit(130) from None


@app.command()
def best(
    search_id: SearchId,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many structures at most.")] = 10,
    url: Url = DEFAULT_URL,
) -> None:
    """Show the best structures of a search."""
    with Client(url) as client:
        show_best(make_console(), client.search(search_id), client.best(search_id, limit=limit))


@app.command()
def searches(url: Url = DEFAULT_URL) -> None:
    """List the searches, newest first."""
    with Client(url) as client:
        show_searches(make_console(), list(client.searches()))


@app.command()
def pause(search_id: SearchId, url: Url = DEFAULT_URL) -> None:
    """Start no more trials of a search; those that run, run to their end."""
    with Client(url) as client:
        print(client.pause(search_id)["state"])


@app.command()
def resume(search_id: SearchId, url: Url = DEFAULT_URL) -> None:
    """Go on with a paused search."""
    with Client(url) as client:
        print(client.resume(search_id)["state"])


@app.command()
def cancel(search_id: SearchId, url: Url = DEFAULT_URL) -> None:
    """Stop the running trials of a search and end it."""
    with Client(url) as client:
        print(client.cancel(search_id)["state"])


@app.command()
def describe(
    theta: Annotated[str, typer.Argument(help="Such as '(0.5|0|0.5|0|0.5|0.5|0)', fractions too, or monarch.")],
    d_in: Annotated[int, typer.Option("--d-in", help="Input features.")],
    d_out: Annotated[int, typer.Option("--d-out", help="Output features.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a structure is at these widths: axes, cost, rank, taxonomy, muP rules."""
    structure = Theta.parse(theta)
    with Client(url) as client:
        show_description(make_console(), client.describe(structure, d_in, d_out))


@app.command()
def demo(
    file: Annotated[str, typer.Argument(help="A search as JSON, such as examples/first_search.json.")],
    home: Home = DEFAULT_HOME,
    slots: Slots = None,
) -> None:
    """Start the service, run a search to its end, show the best structures, stop."""
    spec = _read_json(file)
    console = make_console()
    try:
        with Embedded(Options(home=home, port=0, slots=slots), say=_say) as service, Client(service.url) as client:
            _introduce(service)
            client.submit(spec)
            unfinished = [s["id"] for s in client.searches() if s["state"] not in FINAL_STATES]
            for search in follow(client, list(reversed(unfinished)), console):
                show_best(console, search, client.best(search["id"]))
            failed = not client.best(search["id"])
            _say(f"the results stay in the {service.database.split()[0]} {service.database.split()[-1]}")
    except KeyboardInterrupt:
        _say(f"stopped; the search goes on with: einsearch up --home {home}")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


def _introduce(service: Embedded) -> None:
    _say(f"API docs       {service.url}/docs")
    _say(f"Ray dashboard  {service.dashboard_url}   it asks for a token: cat {service.token_file}")
    _say(service.database)


def _say(message: str) -> None:
    print(message, flush=True)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _read_json(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
        document = json.loads(text)
    except OSError as error:
        raise typer.BadParameter(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise typer.BadParameter(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise typer.BadParameter(f"{file} holds no JSON object but {type(document).__name__}")
    return document
