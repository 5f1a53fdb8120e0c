"""The commands on studies: measure a proxy, and read what was found."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from einlayers.theta import Theta
from einsearch.answers import Study, StudyKind
from einsearch.client import Client
from einsearch.options import ApiKey, Url, read_json
from einsearch.show import make_console
from einsearch.words import local_time

studies = typer.Typer(help="Measure a proxy: how far its ranking can be trusted.", no_args_is_help=True)

KINDS: tuple[StudyKind, ...] = ("baseline", "calibration", "fidelity_study", "scaling_study", "transfer_check")


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise typer.BadParameter(f"expected one of {', '.join(KINDS)}, got {kind!r}")
    return kind


Kind = Annotated[str, typer.Argument(metavar="KIND", callback=_known, help=f"One of {', '.join(KINDS)}.")]


@studies.command()
def submit(
    file: Annotated[str, typer.Argument(help="A study as JSON, with its kind; - reads standard input.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Begin a study, and print its kind and its id."""
    spec = read_json(file)
    _known(str(spec.get("kind")))
    with Client(url, api_key=api_key) as client:
        study = client.submit_study(spec)
    print(study["kind"], study["id"])


@studies.command("list")
def list_studies(kind: Kind, url: Url = None, api_key: ApiKey = None) -> None:
    """List the studies of a kind, newest first."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("id", "name", "state", "created"):
        table.add_column(heading, no_wrap=True)
    with Client(url, api_key=api_key) as client:
        for study in client.studies(kind):  # type: ignore[arg-type]  # checked by its callback
            table.add_row(study["id"], study["name"], study["state"].lower(), local_time(study["created_at"]))
    make_console().print(table)


@studies.command()
def show(
    kind: Kind,
    study_id: Annotated[str, typer.Argument(metavar="ID", help="The id of a study.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Show what a study has found."""
    with Client(url, api_key=api_key) as client:
        study = client.study(kind, study_id)  # type: ignore[arg-type]  # checked by its callback
    if as_json:
        print(json.dumps(study, indent=2))
    else:
        show_study(make_console(), study)


def show_study(console: Console, study: Study) -> None:
    """A study: what it found, or the searches that it waits for."""
    console.print(f"{study['name']} ({study['id']}): {study['state'].lower()}")
    if study["reason"]:
        console.print(study["reason"])
    if study["finding"] is None:
        for role, search_id in study["searches"].items():
            console.print(f"  {role}: search {search_id}")
    else:
        _SHOWN[study["kind"]](console, study["finding"])


def _show_baseline(console: Console, finding: Mapping[str, Any]) -> None:
    rows = [
        (f"{point['train_flops']:.3g}", point["width"], f"{_mean(point['losses']):.4f}", _yes(point["bracketed"]))
        for point in finding["points"]
    ]
    _table(console, ("training FLOPs", "best width", "loss", "bracketed"), rows)


def _show_calibration(console: Console, finding: Mapping[str, Any]) -> None:
    rows = [
        (f"{point['base_lr']:.3g}", point["warmup_steps"], _loss(point["loss"]), point["base_lr"] == finding["base_lr"])
        for point in finding["sweep"]
    ]
    _table(console, ("learning rate", "warm-up", "loss", ""), [(*row[:3], "best" if row[3] else "") for row in rows])
    if not finding["bracketed"]:
        console.print("The best rate is the lowest or the highest that was tried: calibrate again around it.")


def _show_fidelity(console: Console, finding: Mapping[str, Any]) -> None:
    between, against = finding["between_seeds"], finding["against_reference"]
    rows = [
        ("between seeds", _interval(between["spearman"]), _interval(between["kendall"])),
        ("lowest of two seeds", f"{between['lowest_spearman']:.2f}", ""),
        *[(f"between means of {k}", f"{value:.2f}", "") for k, value in finding["between_means"].items()],
        ("a quarter of the compute", *map(_interval, finding["between_budgets"].values())),
        *(
            [("between widths", *map(_interval, finding["between_widths"].values()))]
            if finding["between_widths"]
            else []
        ),
        ("with the reference", *map(_interval, against.values())),
    ]
    _table(console, ("order", "Spearman", "Kendall"), rows)
    seconds = f"{finding['cpu_seconds']:.1f} CPU-seconds a trial (at most {finding['highest_cpu_seconds']:.1f})"
    verdict = "truthful" if finding["truthful"] else "NOT truthful: do not trust its ranking"
    console.print(f"{verdict}; {seconds}; sd of the log of the loss between seeds {finding['sd']:.3f}")


def _show_scaling(console: Console, finding: Mapping[str, Any]) -> None:
    rows = []
    for each in finding["structures"]:
        last, multiplier = each["frontier"][-1], each["multipliers"][-1]
        beyond = " extrapolated" if multiplier["extrapolated"] else ""
        rows.append(
            (
                str(Theta(**each["theta"])),
                last["width"],
                f"{last['lr_mult']:g}",
                f"{_mean(last['losses']):.4f}",
                f"{_interval(multiplier)}{beyond}",
                _interval(each["power_law"]["exponent"]),
                _yes(each["bracketed"]),
            )
        )
    headings = ("theta", "width", "rate x", "loss", "multiplier", "exponent of compute", "bracketed")
    _table(console, headings, rows)
    if not finding["lr_tuned"]:
        console.print("At the transferred learning rate alone: no multiplier to be published.")


def _show_transfer(console: Console, finding: Mapping[str, Any]) -> None:
    rows = [
        (str(Theta(**each["theta"])), sweep["width"], f"{sweep['best_lr_mult']:g}", _loss(sweep["regret"]), said)
        for each in finding["structures"]
        for sweep, said in zip(
            each["sweeps"], ["transfers" if each["transfers"] else "does NOT transfer", *[""] * 32], strict=False
        )
    ]
    _table(console, ("theta", "width", "best rate x", "given away", "learning rate"), rows)


_SHOWN: Mapping[StudyKind, Callable[[Console, Mapping[str, Any]], None]] = {
    "baseline": _show_baseline,
    "calibration": _show_calibration,
    "fidelity_study": _show_fidelity,
    "scaling_study": _show_scaling,
    "transfer_check": _show_transfer,
}


def _table(console: Console, headings: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def _interval(estimate: Mapping[str, Any]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _mean(losses: list[float]) -> float:
    return sum(losses) / len(losses)


def _loss(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
