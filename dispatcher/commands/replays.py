"""`dispatcher replays`: send many again, as jobs, by way of the API."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, Final, TypeVar

import click

from dispatcher.commands.client import Api, api_options, part, print_json
from dispatcher.commands.group import Commands
from dispatcher.commands.history_pages import LIMIT, a_time, listed
from dispatcher.commands.tables import print_fields, print_rows
from dispatcher.core.text.units import format_duration

F = TypeVar("F", bound=Callable[..., Any])

_OVER: Final = ("done", "cancelled", "failed")
_LOOK: Final = 1.0  # seconds between two looks with --wait and --follow


@click.group(cls=Commands, short_help="Send many deliveries again.")
def replays() -> None:
    """Send many deliveries again: dead letters, events of a time, or what the history knows.

    Ask first what it would come to (plan), then begin it (start). DISPATCHER_API_URL says where the API is,
    DISPATCHER_API_KEY holds the key.
    """


def _filters(command: F) -> F:
    """What is to be sent; the command gets `request`."""

    @click.argument("source", type=click.Choice(["dead-letters", "events", "deliveries"]))
    @click.option("--subscription", help="To this subscription.")
    @click.option("--tenant", help="Events of this tenant.")
    @click.option(
        "--since", callback=a_time, metavar="TIME", help="Of this time or later; 2h: two hours ago."
    )
    @click.option("--until", callback=a_time, metavar="TIME", help="Before that time [default: now].")
    @click.option(
        "--event-type", "event_types", multiple=True, help="A type or a pattern: invoice.*; may be repeated."
    )
    @click.option(
        "--state",
        "states",
        multiple=True,
        type=click.Choice(["dead", "dropped", "delivered"]),
        help="Of deliveries: in this state; may be repeated [default: dead and dropped].",
    )
    @click.option(
        "--status",
        "status_codes",
        multiple=True,
        metavar="STATUS",
        help="The last answer's, or its class: 503, 5xx; may be repeated.",
    )
    @click.option("--reason", "reasons", multiple=True, help="Why it ended; may be repeated.")
    @click.option("--rate", help="At most so many: 200/s, 1000/h.")
    @wraps(command)
    def wrapped(
        *args: Any,
        source: str,
        subscription: str | None,
        tenant: str | None,
        since: str | None,
        until: str | None,
        event_types: tuple[str, ...],
        states: tuple[str, ...],
        status_codes: tuple[str, ...],
        reasons: tuple[str, ...],
        rate: str | None,
        **kwargs: Any,
    ) -> Any:
        asked: dict[str, Any] = {
            "subscription": subscription,
            "tenant": tenant,
            "since": since,
            "until": until,
            "event_types": list(event_types),
            "states": list(states),
            "status_codes": list(status_codes),
            "reasons": list(reasons),
            "rate": rate,
        }
        request = {name: value for name, value in asked.items() if value not in (None, [])}
        return command(*args, request={"source": source.replace("-", "_"), **request}, **kwargs)

    return wrapped  # type: ignore[return-value] # wraps() forgets that the command is called with other options


@replays.command()
@_filters
@api_options
def plan(api: Api, request: dict[str, Any], *, as_json: bool) -> None:
    """Say what a replay would send. Nothing is sent."""
    answer = api.call("POST", "/v1/replays", {**request, "dry_run": True}).json
    if as_json:
        print_json(answer)
        return
    found = answer["plan"]
    print_fields(
        {
            "deliveries": found["deliveries"] if found["exact"] else f"about {found['deliveries']}",
            "looked through": found["records"],
            "since": found["since"],
            "until": found["until"],
            "first": found["first_at"],
            "last": found["last_at"],
            "takes": None if found["seconds"] is None else format_duration(round(found["seconds"])),
        }
    )
    if found["by_type"]:
        click.echo()
        print_rows(("event type", "deliveries"), found["by_type"].items(), folded="event type")
    for warning in found["warnings"]:
        click.echo(warning, err=True)


@replays.command()
@_filters
@click.option("--wait", is_flag=True, help="Wait until it is over; exit 1 unless everything is sent.")
@api_options
def start(api: Api, request: dict[str, Any], *, wait: bool, as_json: bool) -> None:
    """Begin a replay. It runs in the background."""
    answer = api.call("POST", "/v1/replays", request).json
    if wait:
        answer = _wait(api, answer["replay"]["id"], as_json=as_json)
    _print(answer, as_json=as_json)
    if wait:
        _judge(answer["replay"])


@replays.command("list")
@click.option("--state", type=click.Choice(["planned", "running", "paused", *_OVER]), help="In this state.")
@click.option("--subscription", help="To this subscription.")
@click.option("--limit", default=LIMIT, show_default=True, type=click.IntRange(1), help="At most so many.")
@api_options
def list_(api: Api, *, as_json: bool, limit: int, **filters: str | None) -> None:
    """List replays, the newest first."""
    answer = listed(api, "/v1/replays", "replays", limit, filters)
    if as_json:
        print_json(answer)
        return
    if not answer["replays"]:
        click.echo("there are none like that; they are kept for 7 days after they are over", err=True)
        return
    _print_rows(answer["replays"])
    if answer["next_cursor"] is not None:
        click.echo(f"there are more: --limit {limit * 10}", err=True)


@replays.command()
@click.argument("id_", metavar="ID")
@click.option("--follow", is_flag=True, help="Show each change until it is over.")
@click.option("--wait", is_flag=True, help="Wait until it is over; exit 1 unless everything is sent.")
@api_options
def show(api: Api, id_: str, *, follow: bool, wait: bool, as_json: bool) -> None:
    """Show a replay with its progress."""
    awaited = follow or wait
    answer = _wait(api, id_, as_json=as_json, tell=follow) if awaited else api.get(_path(id_))
    _print(answer, as_json=as_json)
    if wait:
        _judge(answer["replay"])


@replays.command()
@click.argument("id_", metavar="ID")
@api_options
def pause(api: Api, id_: str, *, as_json: bool) -> None:
    """Send nothing more for now. What is under way still ends, and is counted."""
    _print(api.call("POST", f"{_path(id_)}/pause").json, as_json=as_json)


@replays.command()
@click.argument("id_", metavar="ID")
@api_options
def resume(api: Api, id_: str, *, as_json: bool) -> None:
    """Go on with a paused replay."""
    _print(api.call("POST", f"{_path(id_)}/resume").json, as_json=as_json)


@replays.command()
@click.argument("id_", metavar="ID")
@api_options
def cancel(api: Api, id_: str, *, as_json: bool) -> None:
    """End a replay: nothing more of it is sent."""
    _print(api.call("POST", f"{_path(id_)}/cancel").json, as_json=as_json)


def _path(id_: str) -> str:
    return f"/v1/replays/{part(id_)}"


def _wait(api: Api, id_: str, *, as_json: bool, tell: bool = True) -> Any:
    """Ask again and again until the replay is over; tells of its progress on standard error."""
    told = None
    while True:
        answer = api.get(_path(id_))
        replay = answer["replay"]
        progress = _progress(replay)
        if tell and not as_json and progress != told:
            click.echo(f"{replay['state']}: {progress}", err=True)
            told = progress
        if replay["state"] in _OVER:
            return answer
        time.sleep(_LOOK)


def _judge(replay: Mapping[str, Any]) -> None:
    if replay["state"] != "done":
        raise click.ClickException(
            f"the replay is {replay['state']}: {replay['detail'] or 'not everything was sent'}"
        )


def _progress(replay: Mapping[str, Any]) -> str:
    progress, estimate = replay["progress"], replay["estimate"]
    share = "" if progress["fraction"] is None else f" ({progress['fraction']:.0%} read)"
    left = estimate["seconds_left"]
    rest = "" if left is None else f", about {format_duration(max(1, round(left)))} left"
    return f"{progress['sent']} of {progress['written']} sent{share}{rest}"


def _print(answer: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    replay = answer["replay"]
    estimate, progress = replay["estimate"], replay["progress"]
    skipped = ", ".join(f"{count} {why}" for why, count in progress["skipped"].items() if count)
    fields = {
        "id": replay["id"],
        "state": replay["state"],
        "detail": replay["detail"],
        "source": replay["source"],
        "subscription": replay["subscription"],
        "tenant": replay["tenant"],
        "since": replay["since"],
        "until": replay["until"],
        "event types": replay["event_types"],
        "states": replay["states"],
        "status codes": replay["status_codes"],
        "reasons": replay["reasons"],
        "rate": replay["rate"],
        "progress": _progress(replay),
        "skipped": skipped,
        "a second": estimate["per_second"],
        "begun": f"{replay['created_at']} by {replay['created_by']}",
        "ended": replay["ended_at"],
        "runs on": replay["runner"],
    }
    always = ("id", "state", "source", "progress", "begun")
    print_fields(
        {name: value for name, value in fields.items() if name in always or value not in (None, [], "")}
    )


def _print_rows(found: Iterable[Mapping[str, Any]]) -> None:
    columns = ("begun", "id", "state", "source", "subscription", "tenant", "progress", "by")
    print_rows(
        columns,
        (
            (
                each["created_at"],
                each["id"],
                each["state"],
                each["source"],
                each["subscription"],
                each["tenant"],
                _progress(each),
                each["created_by"],
            )
            for each in found
        ),
        folded={*columns} - {"id"},
    )
