"""The commands on searches: submit, follow, ask for the answer, steer, take home."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from einsearch.answers import FINAL_STATES, ExportFormat
from einsearch.client import Client
from einsearch.follow import follow
from einsearch.options import ApiKey, SearchId, Url, read_json
from einsearch.show import event_line, make_console, show_best, show_comparison, show_pareto, show_searches

app = typer.Typer()

_FORMATS: dict[str, ExportFormat] = {".csv": "csv", ".jsonl": "jsonl", ".parquet": "parquet"}


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="A search as JSON; - reads standard input.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Submit a search and print its id."""
    with Client(url, api_key=api_key) as client:
        search = client.submit(read_json(file))
    print(search["id"])


@app.command()
def searches(
    owner: Annotated[str | None, typer.Option(help="Only those of this owner.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List the searches, newest first."""
    with Client(url, api_key=api_key) as client:
        show_searches(make_console(), list(client.searches(owner=owner)), owner)


@app.command()
def watch(
    search_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="By default all unfinished.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the progress of searches until they end."""
    console = make_console()
    with Client(url, api_key=api_key) as client:
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
def events(
    search_id: SearchId,
    after: Annotated[int, typer.Option(min=0, help="Only what came after the event of this number.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print each event as JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print what happens in a search, a line per event, from its beginning to its end."""
    last = after
    with Client(url, api_key=api_key) as client:
        try:
            for event in client.events(search_id, after=after):
                print(json.dumps(event) if as_json else event_line(event), flush=True)
                last = event["number"]
        except KeyboardInterrupt:
            print(f"Go on from here with: einsearch events {search_id} --after {last}", file=sys.stderr)
            raise typer.Exit(130) from None


@app.command()
def best(
    search_id: SearchId,
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many structures at most.")] = 10,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the best structures of a search."""
    with Client(url, api_key=api_key) as client:
        show_best(make_console(), client.search(search_id), client.ranking(search_id, limit=limit))


@app.command()
def compare(
    search_id: SearchId,
    a: Annotated[str, typer.Argument(help="A trial of one structure.")],
    b: Annotated[str, typer.Argument(help="A trial of another one.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show how probable it is that one structure of a search is better than another."""
    with Client(url, api_key=api_key) as client:
        show_comparison(make_console(), client.compare(search_id, a, b))


@app.command()
def pareto(
    search_id: SearchId,
    metrics: Annotated[
        str,
        typer.Option(
            help="Two to four of loss, omega, psi, nu, params, macs, latency, peak_memory, seconds; :max or :min may "
            "follow one."
        ),
    ] = "loss,macs",
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show the structures of a search that no other one beats in all of some metrics."""
    names = [name.strip() for name in metrics.split(",")]
    with Client(url, api_key=api_key) as client:
        show_pareto(make_console(), client.search(search_id), client.pareto(search_id, names), names)


@app.command()
def export(
    search_id: SearchId,
    format: Annotated[
        ExportFormat | None, typer.Option(help="By default what the name of the file says, or else csv.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="By default standard output.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Write all trials of a search as CSV, as a JSON object per line, or as Parquet."""
    wanted = format or (_FORMATS.get(output.suffix.lower()) if output else None) or "csv"
    with Client(url, api_key=api_key) as client:
        if output is not None:
            _export_to_file(client, search_id, wanted, output)
        elif wanted == "parquet" and sys.stdout.isatty():
            raise typer.BadParameter("Parquet is not for a terminal; name a file with -o")
        else:
            client.export(search_id, wanted, sys.stdout.buffer)


@app.command()
def extend(
    search_id: SearchId,
    max_trials: Annotated[int | None, typer.Option(min=1, help="Trials in all.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=1, help="Seconds in all, pauses not counted.")] = None,
    max_train_flops: Annotated[float | None, typer.Option(min=1, help="Training FLOPs in all.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Change limits of a search that has not ended; those that are not given stay."""
    given = {"max_trials": max_trials, "max_seconds": max_seconds, "max_train_flops": max_train_flops}
    changes = {name: limit for name, limit in given.items() if limit is not None}
    if not changes:
        raise typer.BadParameter("expected --max-trials, --max-seconds or --max-train-flops, got none of them")
    with Client(url, api_key=api_key) as client:
        budget = client.search(search_id)["spec"]["budget"] | changes
        extended = client.extend(search_id, budget)["spec"]["budget"]
    print(", ".join(f"{name} {limit:.12g}" for name, limit in extended.items() if limit is not None))


@app.command()
def pause(
    search_id: SearchId,
    checkpoint: Annotated[
        bool, typer.Option("--checkpoint", help="Stop what runs too; it goes on from a checkpoint after a resume.")
    ] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Start no more trials of a search; those that run, run to their end."""
    with Client(url, api_key=api_key) as client:
        print(client.pause(search_id, "checkpoint" if checkpoint else "drain")["state"])


@app.command()
def resume(search_id: SearchId, url: Url = None, api_key: ApiKey = None) -> None:
    """Go on with a paused search."""
    with Client(url, api_key=api_key) as client:
        print(client.resume(search_id)["state"])


@app.command()
def cancel(search_id: SearchId, url: Url = None, api_key: ApiKey = None) -> None:
    """Stop the running trials of a search and end it."""
    with Client(url, api_key=api_key) as client:
        print(client.cancel(search_id)["state"])


def _export_to_file(client: Client, search_id: str, format: ExportFormat, output: Path) -> None:
    """All of it or nothing: a file of that name is never one half of an export."""
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("wb") as file:
            size = client.export(search_id, format, file)
        part.replace(output)
    except OSError as error:
        raise typer.BadParameter(f"cannot write {output}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)
    print(f"{output}: {size:,} bytes of {format}", file=sys.stderr)
