"""`dispatcher events`: which events were published, and what became of each, by way of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dispatcher.commands.client import Api, api_options, part, print_json
from dispatcher.commands.deliveries import print_deliveries
from dispatcher.commands.group import Commands
from dispatcher.commands.history_pages import (
    LIMIT,
    a_time,
    listed,
    place,
    tell_there_is_more,
    tell_what_is_missing,
)
from dispatcher.commands.tables import print_fields, print_rows


@click.group(cls=Commands, short_help="Look up events that were published.")
def events() -> None:
    """Look up events in the history, through the API of a running dispatcher.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@events.command("list")
@click.option("--tenant", help="Of this tenant.")
@click.option("--type", "type_", help="A type, or the beginning of one before *.")
@click.option(
    "--since",
    callback=a_time,
    metavar="TIME",
    help="Published then or later; 2h: two hours ago [default: 24h].",
)
@click.option("--until", callback=a_time, metavar="TIME", help="Published before that.")
@click.option("--limit", default=LIMIT, show_default=True, type=click.IntRange(1), help="At most so many.")
@api_options
def list_(api: Api, *, as_json: bool, limit: int, type_: str | None, **filters: str | None) -> None:
    """List events that were published, the newest first."""
    answer = listed(api, "/v1/events", "events", limit, {"type": type_, **filters})
    if as_json:
        print_json(answer)
        return
    if answer["events"]:
        print_rows(
            ("published", "type", "tenant", "size", "source", "id"),
            (
                (
                    each["published_at"],
                    each["type"],
                    each["tenant"],
                    each["size"],
                    place(each["source"]),
                    each["id"],
                )
                for each in answer["events"]
            ),
            folded=("published", "type", "tenant", "source", "id"),
        )
    else:
        click.echo("there are none like that in this time (--since, --until)", err=True)
    tell_there_is_more(answer, limit)
    tell_what_is_missing(answer)


@events.command()
@click.argument("id_", metavar="ID")
@api_options
def show(api: Api, id_: str, *, as_json: bool) -> None:
    """Show the events of an id, with the SHA-256 of their bodies and their deliveries.

    Exits 1 where no event of that id is known.
    """
    answer = api.get(f"/v1/events/{part(id_)}")
    if as_json:
        print_json(answer)
        return
    for number, each in enumerate(answer["events"]):
        if number:
            click.echo()
        _print(each)
    tell_what_is_missing(answer)


def _print(found: Mapping[str, Any]) -> None:
    print_fields(
        {
            "id": found["id"],
            "type": found["type"],
            "tenant": found["tenant"],
            "published": found["published_at"],
            "SHA-256": found["sha256"],
            "size": found["size"],
            "source": place(found["source"]),
            "deliveries": len(found["deliveries"]),
        }
    )
    if found["deliveries"]:
        click.echo()
        print_deliveries(found["deliveries"])
