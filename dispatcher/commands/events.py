"""`dispatcher events`: which events were published, and what became of each, by way of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
import orjson

from dispatcher.commands.client import Api, api_options, part, print_json, shown
from dispatcher.commands.deliveries import print_deliveries
from dispatcher.commands.group import Commands, ConfigError
from dispatcher.commands.history_pages import (
    FOLLOW,
    LIMIT,
    a_time,
    follow as follow_list,
    listed,
    place,
    tell_there_are_none,
    tell_there_is_more,
    tell_what_is_missing,
)
from dispatcher.commands.interventions import say_commanded, wait_option
from dispatcher.commands.tables import print_fields, print_rows


@click.group(cls=Commands, short_help="Look up events that were published; deliver one to a subscription.")
def events() -> None:
    """Look up events in the history, and deliver one to a subscription, through the API of a running dispatcher.

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
@FOLLOW
@api_options
def list_(
    api: Api, *, as_json: bool, limit: int, type_: str | None, follow: bool, **filters: str | None
) -> None:
    """List events that were published, the newest first.

    With --follow those that come from now on (or --since), the oldest first; with --json as NDJSON.
    """
    if follow:
        follow_list(
            api,
            "/v1/events",
            "events",
            {"type": type_, **filters},
            lambda each: tuple(each["source"].values()),
            orjson.dumps if as_json else _line,
        )
        return
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
        tell_there_are_none(api, filters)
    tell_there_is_more(answer, limit)
    tell_what_is_missing(answer)


def _line(each: Mapping[str, Any]) -> str:
    return shown(
        f"{each['published_at']}  {each['type']}  {each['tenant'] or '-'}  {each['size']}  {place(each['source'])}  {each['id']}"
    )


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


@events.command()
@click.argument("id_", metavar="ID")
@click.option(
    "--source",
    metavar="TOPIC-PARTITION-OFFSET",
    help="Which one, where an id was used twice [default: the newest].",
)
@api_options
def payload(api: Api, id_: str, *, as_json: bool, source: str | None) -> None:  # noqa: ARG001 - the bytes are what they are
    """Write an event's body to standard output, as it was published.

    Exits 1 where no event of that id is known, or retention has taken its record.
    """
    click.echo(api.read(f"/v1/events/{part(id_)}/payload", source=source), nl=False)


@events.command()
@click.argument("id_", metavar="ID")
@click.option("--subscription", help="For this subscription only.")
@api_options
def explain(api: Api, id_: str, *, as_json: bool, subscription: str | None) -> None:
    """Say in a sentence for each subscription why an event was delivered to it, or not."""
    answer = api.get(f"/v1/events/{part(id_)}/explain", subscription=subscription)
    if as_json:
        print_json(answer)
        return
    for number, each in enumerate(answer["events"]):
        if number:
            click.echo()
        click.echo(
            shown(f"{each['id']}, {each['type']}, published {each['published_at']}, {place(each['source'])}:")
        )
        for explanation in each["explanations"]:
            click.echo(shown(f"- {explanation['sentence']}"))
        if not each["explanations"]:
            click.echo("- There is no subscription that it might have been for.")
        if each["cut"]:
            click.echo("there are more subscriptions: --subscription ID asks about one", err=True)
    tell_what_is_missing(answer)


@events.command()
@click.argument("id_", metavar="EVENT")
@click.argument("subscription")
@click.option(
    "--source",
    metavar="TOPIC-PARTITION-OFFSET",
    help="Which event, where several have this id; `show` says where each stands.",
)
@wait_option
@api_options
def deliver(
    api: Api, id_: str, subscription: str, *, source: str | None, wait: float | None, as_json: bool
) -> None:
    """Deliver an event to a subscription, also to one that it did not match or that was made later."""
    wanted: dict[str, Any] = {"subscription": subscription}
    if source is not None:
        topic, _, rest = source.rpartition("-")
        topic, _, partition = topic.rpartition("-")
        if not (topic and partition.isdecimal() and rest.isdecimal()):
            raise ConfigError(f"--source {source!r} is no TOPIC-PARTITION-OFFSET: events-3-42 is one")
        wanted["source"] = {"topic": topic, "partition": int(partition), "offset": int(rest)}
    commanded = api.call("POST", f"/v1/events/{part(id_)}/deliveries", wanted).json
    say_commanded(api, commanded, wait, as_json=as_json)


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
