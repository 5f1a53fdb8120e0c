"""The commands on single trials: add a structure of one's own, leave a result out, take it in again."""

from dataclasses import asdict
from typing import Annotated

import typer

from einlayers.theta import Theta
from einsearch.client import Client
from einsearch.options import ApiKey, SearchId, TrialId, Url

app = typer.Typer()


@app.command()
def enqueue(
    search_id: SearchId,
    theta: Annotated[str, typer.Argument(help="Such as '(0.5|0|0.5|0|0.5|0.5|0)', fractions too, or monarch.")],
    num_experts: Annotated[int | None, typer.Option(min=1, help="Experts, if not as many as the proxy has.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Experts that a token takes, likewise.")] = None,
    attention: Annotated[str | None, typer.Option(help="The structure of attention's layers, if another.")] = None,
    feed_forward: Annotated[str | None, typer.Option(help="That of the feed-forward layers, likewise.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Add a structure of your own to a search, and print the id of its trial."""
    structure = Theta.parse(theta)
    given = {"attention": attention, "feed_forward": feed_forward}
    thetas = {group: asdict(Theta.parse(other)) for group, other in given.items() if other is not None}
    changes = {"num_experts": num_experts, "top_k": top_k, "thetas": thetas or None}
    variant = {name: value for name, value in changes.items() if value is not None}
    with Client(url, api_key=api_key) as client:
        print(client.enqueue(search_id, structure, variant=variant)["id"])


@app.command()
def exclude(
    trial_id: TrialId,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the trial.")],
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Leave a trial out of every answer, and out of what the sampler learns from; it is kept."""
    with Client(url, api_key=api_key) as client:
        print(f"{client.exclude(trial_id, reason)['id']} is left out")


@app.command()
def include(trial_id: TrialId, url: Url = None, api_key: ApiKey = None) -> None:
    """Take a trial that was left out in again."""
    with Client(url, api_key=api_key) as client:
        print(f"{client.include(trial_id)['id']} counts again")
