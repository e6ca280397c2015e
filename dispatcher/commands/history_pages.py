"""Answers from the history, as `dispatcher events` and `dispatcher deliveries` ask for them and show them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

import click

from dispatcher.commands.client import Api, ApiRefused, part, shown
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import parse_duration

LIMIT: Final = 50
"""How many a list shows that doesn't say."""

FOLLOW: Final = click.option(
    "--follow", is_flag=True, help="Go on with what comes, one a line, until Ctrl-C."
)

_POLL: Final = 2.0  # seconds between two looks at what has come
_OVERLAP: Final = (
    300.0  # seconds: a delivery is listed by when it began, and known when its first attempt has ended
)
_FOLLOWED: Final = 10_000  # of one look, at the most
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


def follow(
    api: Api,
    path: str,
    name: str,
    filters: Mapping[str, object],
    key: Callable[[Mapping[str, Any]], tuple[Any, ...]],
    line: Callable[[Mapping[str, Any]], str | bytes],
) -> None:
    """Print what is listed and has not been printed yet, the oldest first, until somebody interrupts.

    What has the same `key` as something printed is not printed again. `line` is how each is printed; bytes go as they are. Without `since`, only what comes from now on.
    """
    since = str(filters.get("since") or rfc3339(time.time() * 1000))
    begin = since
    printed: dict[tuple[Any, ...], None] = {}
    behind = False
    try:
        while True:
            answer = listed(api, path, name, _FOLLOWED, {**filters, "since": since})
            known = [key(each) for each in answer[name]]
            for each in reversed(answer[name]):
                if key(each) not in printed:
                    click.echo(line(each))
            printed = dict.fromkeys(known)
            if _is_late(answer["as_of"]) and not behind:
                tell_what_is_missing({**answer, "gaps": []})
            behind = _is_late(answer["as_of"])
            if answer["as_of"] is not None:
                reached = datetime.fromisoformat(answer["as_of"]).timestamp() - _OVERLAP
                later = rfc3339(reached * 1000) or begin
                since = max(begin, later, key=datetime.fromisoformat)
            time.sleep(_POLL)
    except KeyboardInterrupt:
        return


def _is_late(as_of: str | None) -> bool:
    return as_of is not None and time.time() - datetime.fromisoformat(as_of).timestamp() > _LATE


def tell_what_is_missing(answer: Mapping[str, Any]) -> None:
    """On standard error: what the history doesn't know, so that nobody takes its silence for a no."""
    as_of = answer["as_of"]
    if as_of is None:
        click.echo("the history has read nothing yet: it has only begun", err=True)
    elif _is_late(as_of):
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


def tell_there_are_none(api: Api, filters: Mapping[str, object]) -> None:
    """On standard error, and which subscription of the filters there is none of: one that is misspelt has nothing either."""
    click.echo("there are none like that in this time (--since, --until)", err=True)
    tell_who_is_unknown(api, filters)


def tell_who_is_unknown(api: Api, filters: Mapping[str, object]) -> None:
    """On standard error, where nothing was found: the subscription of the filters, if it isn't there."""
    asked = filters.get("subscription")
    if not isinstance(asked, str):
        return
    try:
        api.get(f"/v1/subscriptions/{part(asked)}")
    except ApiRefused as refused:
        if refused.not_found:
            click.echo(
                shown(f"there is no subscription {asked}, or no longer: dispatcher subscriptions list"),
                err=True,
            )


def place(source: Mapping[str, Any]) -> str:
    """Where an event stands."""
    return f"{source['topic']}-{source['partition']} offset {source['offset']}"
