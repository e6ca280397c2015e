"""`dispatcher issues`: what keeps deliveries from arriving, by subscription and cause, by way of the API."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import click

from dispatcher.commands.client import Api, api_options, part, print_json, shown
from dispatcher.commands.group import Commands
from dispatcher.commands.history_pages import LIMIT, a_time, tell_there_are_none, tell_what_is_missing
from dispatcher.commands.tables import print_rows
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import parse_duration


def _a_duration(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


@click.group(cls=Commands, short_help="List what keeps deliveries from arriving, and mark what is known.")
def issues() -> None:
    """List what keeps deliveries from arriving, by subscription and cause, and mark what is known, through the API of a running dispatcher.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@issues.command("list")
@click.option("--tenant", help="Of this tenant.")
@click.option("--subscription", help="To this subscription.")
@click.option(
    "--state",
    type=click.Choice(["open", "acknowledged", "ignored", "resolved"]),
    help="resolved: the endpoint has acknowledged something since.",
)
@click.option(
    "--since",
    callback=a_time,
    metavar="TIME",
    help="Of deliveries that began then or later; 2h: two hours ago [default: 24h].",
)
@click.option("--until", callback=a_time, metavar="TIME", help="Of deliveries that began before that.")
@click.option(
    "--limit", default=LIMIT, show_default=True, type=click.IntRange(1, 200), help="At most so many."
)
@api_options
def list_(api: Api, *, as_json: bool, limit: int, **filters: str | None) -> None:
    """List issues: those that are open first, and of these those of most deliveries.

    `dispatcher deliveries list --subscription SUBSCRIPTION --cause CAUSE` lists the deliveries of one.
    """
    answer = api.get("/v1/issues", limit=limit, **filters)
    if as_json:
        print_json(answer)
        return
    if answer["issues"]:
        print_rows(
            (
                "id",
                "state",
                "deliveries",
                "waiting",
                "retrying",
                "dead",
                "tenant",
                "host",
                "last failure",
                "last success",
                "marked",
            ),
            (
                (
                    each["id"],
                    each["state"],
                    f"{each['deliveries']}+" if answer["at_least"] else each["deliveries"],
                    each["pending"],
                    each["retrying"],
                    each["dead"],
                    each["tenant"],
                    each["host"],
                    each["last_failure_at"],
                    each["last_success_at"],
                    _mark(each["mark"]),
                )
                for each in answer["issues"]
            ),
            folded=("tenant", "host", "last failure", "last success", "marked"),
        )
    else:
        tell_there_are_none(api, filters)
    if answer["at_least"]:
        click.echo(
            "there may be more of each: the newest 100000 that aren't delivered were looked at", err=True
        )
    if answer["cut"]:
        click.echo(
            "there are more issues: --subscription or --tenant narrows them, --limit shows up to 200",
            err=True,
        )
    tell_what_is_missing(answer)


def _mark(mark: Mapping[str, Any] | None) -> str | None:
    if mark is None:
        return None
    until = "" if mark["until"] is None else f" until {mark['until']}"
    return f"{mark['kind']} by {mark['by']}{until}"


@issues.command()
@click.argument("id_", metavar="ID")
@api_options
def acknowledge(api: Api, id_: str, *, as_json: bool) -> None:
    """Say that somebody knows of it. It holds until the next success. ID is as `list` shows it: sub_billing:503."""
    _say(api.call("POST", f"/v1/issues/{part(id_)}/acknowledge").json, as_json=as_json)


@issues.command()
@click.argument("id_", metavar="ID")
@click.option(
    "--for",
    "length",
    required=True,
    callback=_a_duration,
    metavar="DURATION",
    help="For how long: 2h, 7d; a year at the most.",
)
@api_options
def ignore(api: Api, id_: str, *, length: float, as_json: bool) -> None:
    """Ignore it for a time, through successes too. ID is as `list` shows it."""
    until = rfc3339((time.time() + length) * 1000)
    _say(api.call("POST", f"/v1/issues/{part(id_)}/ignore", {"until": until}).json, as_json=as_json)


@issues.command()
@click.argument("id_", metavar="ID")
@api_options
def reopen(api: Api, id_: str, *, as_json: bool) -> None:
    """Take back what was said about it. ID is as `list` shows it."""
    _say(api.call("POST", f"/v1/issues/{part(id_)}/reopen").json, as_json=as_json)


def _say(issue: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(issue)
        return
    until = (
        "" if issue["mark"] is None or issue["mark"]["until"] is None else f" until {issue['mark']['until']}"
    )
    click.echo(shown(f"{issue['id']} is {issue['state']}{until}: {issue['deliveries']} deliveries"))
