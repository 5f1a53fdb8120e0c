"""The commands on webhooks: who is told of events, and whether they listen."""

from typing import Annotated

import typer

from einsearch.client import Client
from einsearch.options import ApiKey, Url
from einsearch.words import local_time

webhooks = typer.Typer(help="Have the events of your searches sent to a URL.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="ID", help="The id of a webhook; see: einsearch webhooks list")]


@webhooks.command()
def create(
    receiver: Annotated[str, typer.Argument(metavar="URL", help="Where events are sent, by POST, as JSON.")],
    search_id: Annotated[str | None, typer.Option("--search", help="Of this search; by default all of yours.")] = None,
    kinds: Annotated[list[str] | None, typer.Option("--kind", help="May come more than once.")] = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Have events sent from now on, and print the id of the webhook and the secret that signs them."""
    with Client(url, api_key=api_key) as client:
        made = client.create_webhook(receiver, search_id=search_id, kinds=kinds or ("search.state",))
    print(f"id      {made['id']}\nsecret  {made['secret']}   it is not shown again")


@webhooks.command("list")
def list_webhooks(url: Url = None, api_key: ApiKey = None) -> None:
    """List your webhooks, and where one fails, why."""
    with Client(url, api_key=api_key) as client:
        for webhook in client.webhooks():
            print(f"{webhook['id']}  {webhook['url']}  {','.join(webhook['kinds'])}  {webhook['search_id'] or 'all'}")
            for delivery in client.webhook(webhook["id"])["deliveries"]:
                if delivery["failures"]:
                    when = local_time(delivery["not_before"], "%H:%M:%S")
                    print(f"  search {delivery['search_id']}: {delivery['last_error']}; tried again at {when}")


@webhooks.command("test")
def try_out(webhook_id: WebhookId, url: Url = None, api_key: ApiKey = None) -> None:
    """Send a test now, and say what came of it."""
    with Client(url, api_key=api_key) as client:
        answer = client.test_webhook(webhook_id)
    print(f"status {answer['status']} after {answer['seconds']:.2f} s" if answer["ok"] else answer["error"])
    if not answer["ok"]:
        raise typer.Exit(1)


@webhooks.command()
def delete(webhook_id: WebhookId, url: Url = None, api_key: ApiKey = None) -> None:
    """Send nothing more to a webhook."""
    with Client(url, api_key=api_key) as client:
        client.delete_webhook(webhook_id)
