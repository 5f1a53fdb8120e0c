"""What the command line shows: tables, a structure on paper, a line for an event."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from einlayers.theta import AXES, Theta
from einsearch.answers import Best, Comparison, Event, Ranked, Search
from einsearch.words import (
    fidelity_of,
    local_time,
    loss_of,
    probability_of,
    state_of,
    trials_of,
    units_of,
    variant_of,
)


def make_console() -> Console:
    """A console that is wide enough for the tables where it is no terminal, such as in a pipe or in CI."""
    # Names are anybody's: what looks like markup in one is to be seen, not obeyed.
    console = Console(markup=False, emoji=False)
    return console if console.is_terminal else Console(markup=False, emoji=False, width=150)


def show_best(console: Console, search: Search, best: Best) -> None:
    """The best structures of a search as a table, and how sure that is."""
    ranked = best["items"]
    _show_ranked(console, search, ranked, f"Best structures of {_named(search)}")
    if (confidence := best.get("confidence")) is not None:
        console.print(f"#1 is the best with a probability {probability_of(confidence)}{_than_next(ranked)}.")


def show_comparison(console: Console, comparison: Comparison) -> None:
    """How two structures compare."""
    a, b = comparison["a"], comparison["b"]
    for one in (a, b):
        console.print(f"{one['trial_id']}: loss {one['loss']:.4f}, the mean of {one['num_trials']}")
    probability, difference = comparison["probability"], comparison["difference"]
    if probability is None or difference is None:
        console.print(
            "Nothing is known of the noise between seeds: give one of them a second trial with einsearch enqueue."
        )
        return
    what = "The log of its loss" if comparison["scale"] == "log" else "Its loss"
    console.print(f"{a['trial_id']} is better than {b['trial_id']} with a probability {probability_of(probability)}.")
    console.print("{} differs by {value:+.4f} [{low:+.4f}, {high:+.4f}].".format(what, **difference))


def _than_next(ranked: Sequence[Ranked]) -> str:
    better = ranked[0]["better_than_next"]
    return "" if better is None else f", and better than #2 with one {probability_of(better)}"


def show_pareto(console: Console, search: Search, ranked: Sequence[Ranked], metrics: Sequence[str]) -> None:
    """The structures of a search that no other beats in all of some metrics, as a table."""
    title = f"Structures of {_named(search)} that no other beats in all of {', '.join(metrics)}"
    _show_ranked(console, search, ranked, title)


def _named(search: Search) -> str:
    return f"{search['name']} ({search['id']})"


def _show_ranked(console: Console, search: Search, ranked: Sequence[Ranked], title: str) -> None:
    if not ranked:
        console.print(f"{search['name']}: no structure has been trained to the end yet.")
        return
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left")
    rows = [_best_row(item) for item in ranked]
    columns = [column for column in _BEST_COLUMNS if any(row[column[0]] for row in rows)]
    for heading, justify in columns:
        table.add_column(heading, justify=justify, no_wrap=heading not in ("theta", "variant", "seed"), overflow="fold")
    for row in rows:
        table.add_row(*(row[heading] for heading, _ in columns))
    console.print(table)
    example, loss = units_of(search)
    if any(item["multiplier"] for item in ranked):
        console.print("worth: how many times its compute dense needs for that loss, with its 95% interval.")
    if any(item["trial"].get("variant") for item in ranked):
        console.print("variant: what a trial changes of the model of the search's proxy.")
    if failing := [f"#{item['rank']}" for item in ranked if item["trial"]["transfers"] is False]:
        console.print(f"the learning rate does not transfer to {', '.join(failing)}: a tuned one may do better.")
    console.print(
        f"theta is (alpha|beta|gamma|delta|epsilon|phi|rho); MACs per {example}, forward; loss in {loss}, held out."
    )
    console.print(f"fidelity of the proxy: {fidelity_of(search)}.")


def show_searches(console: Console, searches: Sequence[Search], owner: str | None = None) -> None:
    """The searches, of everybody or of one owner, as a table."""
    if not searches and owner is not None:
        console.print(f"There is no search of {owner}. See all of them with: einsearch searches")
        return
    if not searches:
        console.print("There is no search yet. Submit one: einsearch submit examples/first_search.json")
        return
    # Where everybody is one, nobody needs to be told apart.
    with_owners = len({search["owner"] for search in searches}) > 1
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("id", "name", *(["owner"] if with_owners else []), "state", "trials", "best loss", "created"):
        table.add_column(heading, no_wrap=True)
    for search in searches:
        table.add_row(
            search["id"],
            search["name"],
            *([search["owner"]] if with_owners else []),
            state_of(search),
            trials_of(search),
            loss_of(search["progress"]["best_loss"]),
            local_time(search["created_at"]),
        )
    console.print(table)


def event_line(event: Event) -> str:
    """An event in one line: its number, when, what, of which trial, and the rest."""
    data = {name: value for name, value in event["data"].items() if value is not None and name != "number"}
    rest = " ".join(f"{name}={_flat(value)}" for name, value in data.items())
    when = local_time(event["at"], "%Y-%m-%d %H:%M:%S")
    return f"{event['number']:>6}  {when}  {event['kind']:<14}  {event['trial_id'] or '-':<16}  {rest}".rstrip()


def _flat(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ",".join(f"{name}:{_flat(inner)}" for name, inner in value.items() if inner is not None)
    return " ".join(str(value).split())


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


_BEST_COLUMNS: Sequence[tuple[str, Literal["left", "right"]]] = (
    ("#", "right"),
    ("family", "left"),
    ("theta", "left"),
    ("variant", "left"),
    ("omega", "right"),
    ("psi", "right"),
    ("nu", "right"),
    ("width", "right"),
    ("params", "right"),
    ("MACs", "right"),
    ("latency", "right"),
    ("peak memory", "right"),
    ("loss", "right"),
    ("worth", "right"),
    ("seed", "right"),
)


def _worth(multiplier: Mapping[str, Any] | None) -> str:
    return "" if multiplier is None else "{value:.2f} [{low:.2f}, {high:.2f}]".format_map(multiplier)


def _best_row(item: Ranked) -> Mapping[str, str]:
    """The cells by their headings; empty where there is nothing to say."""
    trial = item["trial"]
    spread = "" if item["loss_sd"] is None else f" ± {item['loss_sd']:.4f}"
    # Which older services do not answer.
    latency, peak_memory = trial.get("latency"), trial.get("peak_memory")
    return {
        "#": str(item["rank"]),
        "family": trial["family"],
        "theta": str(Theta(**trial["theta"])),
        "variant": variant_of(trial.get("variant")),
        "omega": f"{trial['omega']:.3f}",
        "psi": f"{trial['psi']:.3f}",
        "nu": f"{trial['nu']:.3f}",
        "width": str(trial["width"]),
        "params": f"{trial['params']:,}",
        "MACs": f"{trial['macs']:,}",
        "latency": "" if latency is None else f"{1000 * latency:,.2f} ms",
        "peak memory": "" if peak_memory is None else f"{peak_memory / 2**20:,.1f} MiB",
        "loss": f"{item['loss']:.4f}{spread}",
        "worth": _worth(item["multiplier"]),
        "seed": ", ".join(str(replicate["seed"]) for replicate in item["replicates"]),
    }
