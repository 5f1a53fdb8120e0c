"""The command line: the service itself here, what is asked of it in ``searching`` and its neighbours."""

import signal
import sys
import threading
from importlib.metadata import version
from typing import Annotated

import typer

from einlayers.errors import FieldError
from einlayers.theta import Theta
from einsearch import access, hooks, searching, studying, trials
from einsearch.answers import FINAL_STATES
from einsearch.children import CannotStart
from einsearch.client import Client, Refused, Unreachable
from einsearch.embedded import Embedded, Options
from einsearch.follow import follow
from einsearch.options import DEFAULT_HOME, ApiKey, Home, Url, read_json
from einsearch.show import make_console, show_best, show_description

_STOPPING = (signal.SIGINT, signal.SIGTERM)

app = typer.Typer(
    help="Search the space of einsum structures for better linear layers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Slots = Annotated[int | None, typer.Option(min=1, help="How many trials run at once; by default one per CPU.")]
Gpus = Annotated[int | None, typer.Option(min=0, help="How many GPUs Ray may use; by default those that it finds.")]
Runners = Annotated[int, typer.Option(min=1, max=64, help="How many runners share the work.")]
Host = Annotated[
    str, typer.Option(envvar="EINSEARCH_HOST", help="The address to listen on; beyond this machine only with API keys.")
]


def main() -> None:
    """Run the command line; every expected failure is a message and a status, not a traceback."""
    try:
        app()
    except (Refused, Unreachable, CannotStart) as error:
        hint = "\nGive a key as --api-key or in EINSEARCH_API_KEY" if _wants_key(error) else ""
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
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="EINSEARCH_PORT", min=0, max=65535, help="0 takes a free one.")] = 8000,
    slots: Slots = None,
    gpus: Gpus = None,
    runners: Runners = 1,
) -> None:
    """Start API, runners and a local Ray; Ctrl-C stops them, and starting again goes on where they stopped."""
    options = Options(home=home, host=host, port=port, slots=slots, gpus=gpus, runners=runners)
    # Until it is up, a signal ends the start and what has been started; afterwards there is an order to stop in.
    _interrupt_on_signals()
    try:
        with Embedded(options, say=_say) as service:
            stop = _stop_on_signals()
            _introduce(service)
            stop.wait()
            _say("stopping")
    except KeyboardInterrupt:
        _say("stopped before it was up")
        raise typer.Exit(130) from None
    _say("stopped; unfinished searches go on when it is started again")


@app.command()
def demo(
    file: Annotated[str, typer.Argument(help="A search as JSON, such as examples/first_search.json.")],
    home: Home = DEFAULT_HOME,
    slots: Slots = None,
) -> None:
    """Start the service, run a search to its end, show the best structures, stop."""
    spec = read_json(file)
    console = make_console()
    _interrupt_on_signals()
    try:
        with Embedded(Options(home=home, port=0, slots=slots), say=_say) as service, Client(service.url) as client:
            _introduce(service)
            submitted = client.submit(spec)["id"]
            # A paused search of an earlier day would never end.
            going_on = [s["id"] for s in client.searches() if s["state"] not in {*FINAL_STATES, "PAUSED"}]
            for search in follow(client, list(reversed(going_on)), console):
                show_best(console, search, client.ranking(search["id"]))
            failed = not client.best(submitted)
            _say(f"the results stay in the {service.database.split()[0]} {service.database.split()[-1]}")
    except KeyboardInterrupt:
        _say(f"stopped; the search goes on with: einsearch up --home {home}")
        raise typer.Exit(130) from None
    if failed:
        raise typer.Exit(1)


@app.command()
def describe(
    theta: Annotated[str, typer.Argument(help="Such as '(0.5|0|0.5|0|0.5|0.5|0)', fractions too, or monarch.")],
    d_in: Annotated[int, typer.Option("--d-in", help="Input features.")],
    d_out: Annotated[int, typer.Option("--d-out", help="Output features.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what a structure is at these widths: axes, cost, rank, taxonomy, muP rules."""
    structure = Theta.parse(theta)
    with Client(url, api_key=api_key) as client:
        show_description(make_console(), client.describe(structure, d_in, d_out))


def _wants_key(error: Exception) -> bool:
    return isinstance(error, Refused) and error.problem["status"] == 401


def _introduce(service: Embedded) -> None:
    _say(f"API docs       {service.url}/docs")
    _say(f"Ray dashboard  {service.dashboard_url}   it asks for a token: cat {service.token_file}")
    _say(service.database)


def _say(message: str) -> None:
    print(message, flush=True)


def _interrupt_on_signals() -> None:
    """Raise ``KeyboardInterrupt``; also where a script that started us in the background has SIGINT ignored."""
    for number in _STOPPING:
        signal.signal(number, signal.default_int_handler)


def _stop_on_signals() -> threading.Event:
    stop = threading.Event()
    for number in _STOPPING:
        signal.signal(number, lambda *_: stop.set())
    return stop


app.add_typer(searching.app)
app.add_typer(trials.app)
app.add_typer(access.keys, name="keys")
app.add_typer(hooks.webhooks, name="webhooks")
app.add_typer(studying.studies, name="studies")
