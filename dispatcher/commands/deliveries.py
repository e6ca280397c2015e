"""`dispatcher deliveries`: which deliveries there were, and each with its attempts, by way of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
import orjson

from dispatcher.commands.client import Api, api_options, part, print_json, shown
from dispatcher.commands.group import Commands
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
from dispatcher.core.retry.records import FIRST_GENERATION
from dispatcher.core.text.times import rfc3339


@click.group(cls=Commands, short_help="Look up deliveries and their attempts; send them again, or end them.")
def deliveries() -> None:
    """Look up deliveries in the history, send them again, or end them, through the API of a running dispatcher.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@deliveries.command("list")
@click.option("--tenant", help="Of this tenant.")
@click.option("--subscription", help="To this subscription.")
@click.option("--event", help="Of events of this id.")
@click.option("--event-type", help="A type, or the beginning of one before *.")
@click.option(
    "--state",
    type=click.Choice(["pending", "retrying", "dropped", "dead", "delivered", "failed"]),
    help="failed: retrying, dead or dropped.",
)
@click.option("--status", metavar="STATUS", help="The last answer's, or its class: 503, 4xx.")
@click.option("--reason", help="Why it ended, or why the last attempt had no answer.")
@click.option("--cause", help="Why it isn't delivered, as issues name it: 503, timeout, breaker.")
@click.option("--host", help="With this host in the URL.")
@click.option(
    "--since", callback=a_time, metavar="TIME", help="Begun then or later; 2h: two hours ago [default: 24h]."
)
@click.option("--until", callback=a_time, metavar="TIME", help="Begun before that.")
@click.option("--limit", default=LIMIT, show_default=True, type=click.IntRange(1), help="At most so many.")
@FOLLOW
@api_options
def list_(api: Api, *, as_json: bool, limit: int, follow: bool, **filters: str | None) -> None:
    """List deliveries, the newest first.

    With --follow those that come from now on (or --since), and again when their state changes within five minutes; with --json as NDJSON.
    """
    if follow:
        follow_list(
            api,
            "/v1/deliveries",
            "deliveries",
            filters,
            lambda each: (each["id"], each["state"], each["generation"], each["attempts"]),
            orjson.dumps if as_json else _line,
        )
        return
    answer = listed(api, "/v1/deliveries", "deliveries", limit, filters)
    if as_json:
        print_json(answer)
        return
    if answer["deliveries"]:
        print_deliveries(answer["deliveries"])
    else:
        tell_there_are_none(api, filters)
    tell_there_is_more(answer, limit)
    tell_what_is_missing(answer)


def _line(each: Mapping[str, Any]) -> str:
    answer = _answer(each)
    return shown(
        f"{each['last_attempt_at']}  {each['id']}  {_state(each)}  {'-' if answer is None else answer}  attempt {each['attempts']}"
        f"  {each['subscription_id']}  {each['tenant'] or '-'}  {each['event_type']}  {each['event_id']}"
    )


def print_deliveries(found: Iterable[Mapping[str, Any]]) -> None:
    """A table of them."""
    columns = [
        "begun",
        "id",
        "state",
        "last answer",
        "attempts",
        "subscription",
        "tenant",
        "event type",
        "event",
    ]
    print_rows(
        columns,
        (
            (
                each["created_at"],
                each["id"],
                _state(each),
                _answer(each),
                each["attempts"],
                each["subscription_id"],
                each["tenant"],
                each["event_type"],
                each["event_id"],
            )
            for each in found
        ),
        folded={*columns} - {"id"},  # which is what `show` wants: it is never cut
    )


def _state(each: Mapping[str, Any]) -> str:
    state = str(each["state"])
    return f"{state} ({each['reason']})" if each["reason"] else state


def _answer(attempt: Mapping[str, Any]) -> Any:
    """The status, or why there is none. Attempts leave out what does not apply."""
    status = attempt.get("status")
    return attempt.get("failure") if status is None else status


@deliveries.command()
@click.argument("id_", metavar="ID")
@api_options
def show(api: Api, id_: str, *, as_json: bool) -> None:
    """Show a delivery with its attempts, the oldest first."""
    answer = api.get(f"/v1/deliveries/{part(id_)}")
    if as_json:
        print_json(answer)
        return
    _print(answer["delivery"], answer["dead_letter"])
    if answer["attempts"]:
        click.echo()
        _print_attempts(answer["attempts"])
    tell_what_is_missing(answer)


@deliveries.command()
@click.argument("id_", metavar="ID")
@wait_option
@api_options
def retry(api: Api, id_: str, *, wait: float | None, as_json: bool) -> None:
    """Send a delivery again now, whatever its state. A retry of it that was pending is not made."""
    say_commanded(api, api.call("POST", f"/v1/deliveries/{part(id_)}/retry").json, wait, as_json=as_json)


@deliveries.command()
@click.argument("id_", metavar="ID")
@wait_option
@api_options
def cancel(api: Api, id_: str, *, wait: float | None, as_json: bool) -> None:
    """End a delivery that is pending or retrying. An attempt that is under way may still arrive."""
    say_commanded(api, api.call("POST", f"/v1/deliveries/{part(id_)}/cancel").json, wait, as_json=as_json)


def _print(found: Mapping[str, Any], dead_letter: Mapping[str, Any] | None) -> None:
    fields: dict[str, Any] = {
        "id": found["id"],
        "state": _state(found),
        "subscription": found["subscription_id"],
        "tenant": found["tenant"],
        "event": found["event_id"],
        "event type": found["event_type"],
        "source": place(found["source"]),
        "host": found["host"],
        "begun": found["created_at"],
        "attempts": found["attempts"],
        "last attempt": found["last_attempt_at"],
        "last answer": _answer(found),
        "next attempt": found["next_attempt_at"],
        "generation": found["generation"] if found["generation"] > 1 else None,
        "dead letter": None
        if dead_letter is None
        else f"partition {dead_letter['partition']} offset {dead_letter['offset']} ({dead_letter['reason']})",
    }
    optional = ("next attempt", "generation", "dead letter")
    print_fields({name: value for name, value in fields.items() if name not in optional or value is not None})


def _print_attempts(attempts: Sequence[Mapping[str, Any]]) -> None:
    """Attempts are counted anew in each generation, which stands beside them where there are several."""
    generations = [each.get("generation", FIRST_GENERATION) for each in attempts]
    again = any(generation != FIRST_GENERATION for generation in generations)
    print_rows(
        (
            *(("generation",) if again else ()),
            *("attempt", "time", "decision", "answer", "took", "next", "replica", "triggered by", "said"),
        ),
        (
            (
                *((generation,) if again else ()),
                each["attempt"],
                rfc3339(each["time_ms"]),
                each["decision"] + (f" ({each['reason']})" if each.get("reason") else ""),
                _answer(each),
                None if each.get("total_ms") is None else f"{each['total_ms']} ms",
                rfc3339(each.get("due_ms")),
                each.get("replica"),
                each.get("triggered_by"),
                _said(each),
            )
            for generation, each in zip(generations, attempts, strict=True)
        ),
        folded=("time", "decision", "answer", "took", "next", "replica", "triggered by", "said"),
    )


def _said(attempt: Mapping[str, Any]) -> str | None:
    """What the endpoint answered, on one line; or what is known where it did not."""
    said = attempt.get("response") or attempt.get("detail")
    return None if said is None else " ".join(said.split())
