"""What the command line shows: progress bars, tables, a structure on paper."""

import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from einlayers.theta import AXES, Theta
from einsearch.client import Client, Ranked, Search

POLL_SECONDS = 0.5
FINAL_STATES = frozenset({"COMPLETED", "CANCELLED", "FAILED"})


def make_console() -> Console:
    """A console that is wide enough for the tables where it is no terminal, such as in a pipe or in CI."""
    console = Console()
    return console if console.is_terminal else Console(width=150)


def follow(client: Client, search_ids: Sequence[str], console: Console) -> list[Search]:
    """Show a bar for each search until all have ended; the searches as they are then."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("best loss {task.fields[best]}"),
        TextColumn("{task.fields[left]}"),
    )
    # Where there is no terminal to redraw a bar on, such as in CI, a new line tells of every step.
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {search_id: progress.add_task("", total=None, best="-", left="") for search_id in search_ids}
        told: list[Search] = []
        while True:
            found = [client.search(search_id) for search_id in search_ids]
            for search in found:
                _update(progress, bars[search["id"]], search)
            if not console.is_terminal and [s["progress"] for s in found] != [s["progress"] for s in told]:
                console.print(progress.get_renderable())
                told = found
            if all(search["state"] in FINAL_STATES for search in found):
                return found
            time.sleep(POLL_SECONDS)


def show_best(console: Console, search: Search, ranked: Sequence[Ranked]) -> None:
    """The best structures of a search as a table."""
    if not ranked:
        console.print(f"{search['name']}: no structure has been trained to the end yet.")
        return
    table = Table(
        title=f"Best structures of {search['name']} ({search['id']})", box=box.SIMPLE_HEAD, title_justify="left"
    )
    for heading, justify in _BEST_COLUMNS:
        table.add_column(heading, justify=justify, no_wrap=heading not in ("theta", "seed"), overflow="fold")  # type: ignore[arg-type]  # rich's literal
    for item in ranked:
        table.add_row(*_best_row(item))
    console.print(table)
    console.print(
        "theta is (alpha|beta|gamma|delta|epsilon|phi|rho); MACs per token, forward; loss in nats per token, held out."
    )


def show_searches(console: Console, searches: Sequence[Search]) -> None:
    """The searches as a table."""
    if not searches:
        console.print("There is no search yet. Submit one: einsearch submit examples/first_search.json")
        return
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("id", "name", "state", "trials", "best loss", "created"):
        table.add_column(heading, no_wrap=True)
    for search in searches:
        progress = search["progress"]
        table.add_row(
            search["id"],
            search["name"],
            _state(search),
            f"{progress['finished']}/{progress['max_trials']}",
            _loss(progress["best_loss"]),
            _time(search["created_at"]).astimezone().strftime("%Y-%m-%d %H:%M"),
        )
    console.print(table)


def show_description(console: Console, description: dict[str, Any]) -> None:
    """A structure on paper."""
    dims, cost, rules = description["dims"], description["cost"], description["rules"]
    taxonomy = description["taxonomy"]
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    padding = f"inputs {description['padding_in']:.2%}, outputs {description['padding_out']:.2%}"
    rows = {
        "family": description["family"],
        "theta": str(Theta(**description["theta"])),
        "taxonomy": f"omega {taxonomy['omega']:.4g}, psi {taxonomy['psi']:.4g}, nu {taxonomy['nu']:.4g}",
        "layer": f"{dims['d_in']} -> {dims['d_out']}",
        "dims": ", ".join(f"{axis} {dims[axis]}" for axis in AXES),
        "padding": padding,
        "rank": f"{description['rank']} of {min(dims['d_in'], dims['d_out'])}",
        "params": f"{cost['params']:,} ({cost['params'] / description['dense_params']:.2%} of dense)",
        "MACs": f"{cost['macs']:,} per row ({cost['order']})",
        "einsum": description["einsum"],
    }
    if cost["order"] != "dense":
        for factor in ("A", "B"):
            rule = rules[factor]
            rows[f"muP {factor}"] = (
                f"init std {rule['init_std']:.4g}, Adam lr x{rule['adam_lr_mult']:.4g}, SGD lr x{rule['sgd_lr_mult']:.4g}"
            )
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table, soft_wrap=True)


_BEST_COLUMNS = (
    ("#", "right"),
    ("family", "left"),
    ("theta", "left"),
    ("omega", "right"),
    ("psi", "right"),
    ("nu", "right"),
    ("width", "right"),
    ("params", "right"),
    ("MACs", "right"),
    ("loss", "right"),
    ("seed", "right"),
)


def _best_row(item: Ranked) -> list[str]:
    trial = item["trial"]
    spread = "" if item["loss_sd"] is None else f" ± {item['loss_sd']:.4f}"
    return [
        str(item["rank"]),
        trial["family"],
        str(Theta(**trial["theta"])),
        *(f"{value:.3f}" for value in (trial["omega"], trial["psi"], trial["nu"])),
        str(trial["width"]),
        f"{trial['params']:,}",
        f"{trial['macs']:,}",
        f"{item['loss']:.4f}{spread}",
        ", ".join(str(replicate["seed"]) for replicate in item["replicates"]),
    ]


def _update(progress: Progress, bar: TaskID, search: Search) -> None:
    done = search["progress"]
    progress.update(
        bar,
        description=search["name"],
        total=done["max_trials"],
        completed=done["finished"],
        best=_loss(done["best_loss"]),
        left=search["waiting_for"] or (_time_left(search) if search["state"] == "RUNNING" else _state(search).lower()),
    )


def _time_left(search: Search) -> str:
    done = search["progress"]
    if not search["started_at"] or not done["finished"]:
        return "time left: not known yet"
    elapsed = (datetime.now(UTC) - _time(search["started_at"])).total_seconds()
    seconds = int(max(0.0, elapsed / done["finished"] * (done["max_trials"] - done["finished"])))
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"


def _state(search: Search) -> str:
    return f"{search['state']} ({search['reason']})" if search["reason"] else search["state"]


def _loss(loss: float | None) -> str:
    return "-" if loss is None else f"{loss:.4f}"


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
