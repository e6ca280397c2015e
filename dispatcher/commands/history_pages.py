"""Answers from the history, as `dispatcher events` and `dispatcher deliveries` ask for them and show them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import click

from dispatcher.commands.client import Api, shown
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import parse_duration

LIMIT: Final = 50
"""How many a list shows that doesn't say."""

_PAGE: Final = 200
_LATE: Final = 60.0  # seconds behind that are worth a line


def a_time(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A time in RFC 3339; a duration is that long ago."""
    if value is None:
        return None
    try:
        ago = parse_duration(value)
    except ValueError:
        pass
    else:
        return rfc3339(max(0.0, time.time() - ago) * 1000)
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise click.BadParameter(
            "must be a time in RFC 3339 with its zone, such as 2026-01-31T12:00:00Z, or a duration: 2h is two hours ago",
            context,
            parameter,
        )
    return value


def listed(api: Api, path: str, name: str, limit: int, filters: Mapping[str, object]) -> dict[str, Any]:
    """At most `limit` of what a list has, page by page, in one answer of the form that the API gives.

    A page may be empty and yet have one that follows.
    """
    whole: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        size = min(_PAGE, limit - len(found))
        page = api.get(path, limit=size, cursor=cursor, **filters)
        whole = whole or page  # the first page is as of the earliest time
        found += page[name]
        cursor = page["next_cursor"]
        if cursor is None or len(found) >= limit:
            return {**whole, name: found, "next_cursor": cursor}


def tell_what_is_missing(answer: Mapping[str, Any]) -> None:
    """On standard error: what the history doesn't know, so that nobody takes its silence for a no."""
    as_of = answer["as_of"]
    if as_of is None:
        click.echo("the history has read nothing yet: it has only begun", err=True)
    elif time.time() - datetime.fromisoformat(as_of).timestamp() > _LATE:
        click.echo(f"as of {shown(as_of)}: the history is behind, and what came later is not in it", err=True)
    for gap in answer["gaps"]:
        since, until = gap["since"] or "the beginning", gap["until"] or "now"
        click.echo(
            shown(
                f"the history has a gap from {since} to {until}: up to {gap['records']} records of"
                f" {gap['topic']}-{gap['partition']} ({gap['reason']})"
            ),
            err=True,
        )


def tell_there_is_more(answer: Mapping[str, Any], limit: int) -> None:
    """On standard error."""
    if answer["next_cursor"] is not None:
        click.echo(f"there are more: --limit {limit * 10}, or --until with an earlier time", err=True)


def place(source: Mapping[str, Any]) -> str:
    """Where an event stands."""
    return f"{source['topic']}-{source['partition']} offset {source['offset']}"
