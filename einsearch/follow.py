"""The progress of searches while they run: a bar for each on a terminal, a line for every step elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from einsearch.answers import FINAL_STATES, Search
from einsearch.client import Client
from einsearch.words import duration, loss_of, state_of, trials_of

POLL_SECONDS = 0.5


def follow(client: Client, search_ids: Sequence[str], console: Console) -> list[Search]:
    """Show a bar for each search until all have ended; the searches as they are then."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[done]}", markup=False),
        TextColumn("best loss {task.fields[best]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
    )
    # Where there is no terminal to redraw a bar on, such as in CI, a new line tells of every step.
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = [progress.add_task("", total=1.0, done="", best="-", left="") for _ in search_ids]
        told: list[object] = []
        while True:
            found = [client.search(search_id) for search_id in search_ids]
            for bar, search in zip(bars, found, strict=True):
                _update(progress, bar, search)
            if not console.is_terminal and (steps := [_step(search) for search in found]) != told:
                console.print(progress.get_renderable())
                told = steps
            if all(search["state"] in FINAL_STATES for search in found):
                return found
            time.sleep(POLL_SECONDS)


def _step(search: Search) -> object:
    """What changes when something has happened; time alone does not count."""
    done = search["progress"]
    return search["state"], search["reason"], search["waiting_for"], done["counts"], done["best_loss"]


def _update(progress: Progress, bar: TaskID, search: Search) -> None:
    progress.update(
        bar,
        description=search["name"],
        completed=_share(search),
        done=trials_of(search),
        best=loss_of(search["progress"]["best_loss"]),
        left=search["waiting_for"]
        or (_time_left(search) if search["state"] == "RUNNING" else state_of(search).lower()),
    )


def _share(search: Search) -> float:
    """How much of its budget a search has used: of the limit that is nearest. One that has ended is done."""
    if search["state"] in FINAL_STATES:
        return 1.0
    done, max_seconds = search["progress"], search["spec"]["budget"].get("max_seconds")
    of_trials = done["finished"] / done["max_trials"] if done["max_trials"] else 0.0
    of_time = done["seconds"] / max_seconds if max_seconds else 0.0
    return min(1.0, max(of_trials, of_time))


def _time_left(search: Search) -> str:
    done, max_seconds = search["progress"], search["spec"]["budget"].get("max_seconds")
    left = [] if max_seconds is None else [max_seconds - done["seconds"]]
    if done["max_trials"] is not None and done["finished"]:
        left.append(done["seconds"] / done["finished"] * (done["max_trials"] - done["finished"]))
    return f"{duration(min(left))} left" if left else "time left: not known yet"
