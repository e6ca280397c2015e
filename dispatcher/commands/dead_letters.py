"""`dispatcher dead-letters`: what was given up, straight from its topic, by way of the API."""

from __future__ import annotations

import click

from dispatcher.commands.client import Api, api_options, part, print_json
from dispatcher.commands.group import Commands
from dispatcher.commands.history_pages import LIMIT, listed, place
from dispatcher.commands.interventions import say_commanded, wait_option
from dispatcher.commands.tables import print_rows


@click.group("dead-letters", cls=Commands, short_help="List what was given up, and send it again.")
def dead_letters() -> None:
    """List what was given up, and send it again, through the API of a running dispatcher. Needs no history, and an operator's key.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@dead_letters.command("list")
@click.option("--partition", type=click.IntRange(0), help="Of this partition.")
@click.option("--limit", default=LIMIT, show_default=True, type=click.IntRange(1), help="At most so many.")
@api_options
def list_(api: Api, *, partition: int | None, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first. What is not retryable was no event: publish that again as it should be."""
    answer = listed(api, "/v1/dead-letters", "dead_letters", limit, {"partition": partition})
    if as_json:
        print_json(answer)
        return
    if answer["dead_letters"]:
        print_rows(
            (
                "written",
                "id",
                "reason",
                "retryable",
                "attempts",
                "subscription",
                "tenant",
                "event type",
                "event",
                "source",
                "said",
            ),
            (
                (
                    each["written_at"],
                    each["id"],
                    each["reason"],
                    each["retryable"],
                    each["attempts"],
                    each["subscription_id"],
                    each["tenant"],
                    each["event_type"],
                    each["event_id"],
                    None if each["source"] is None else place(each["source"]),
                    each["last_result"] or each["detail"],
                )
                for each in answer["dead_letters"]
            ),
            folded=("written", "reason", "subscription", "tenant", "event type", "event", "source", "said"),
        )
    else:
        click.echo("there are no dead letters", err=True)
    if answer["next_cursor"] is not None:
        click.echo(f"there are more: --limit {limit * 10}", err=True)


@dead_letters.command()
@click.argument("id_", metavar="ID")
@wait_option
@api_options
def retry(api: Api, id_: str, *, wait: float | None, as_json: bool) -> None:
    """Send the delivery of a dead letter again now. ID is its partition and offset, as `list` shows it: 0-42."""
    say_commanded(api, api.call("POST", f"/v1/dead-letters/{part(id_)}/retry").json, wait, as_json=as_json)
