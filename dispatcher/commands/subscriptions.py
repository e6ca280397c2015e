"""`dispatcher subscriptions`: subscriptions, by way of the API."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.text import Text

from dispatcher.commands.client import Api, api_options, interactive, part, print_json, shown
from dispatcher.commands.group import Commands, ConfigError
from dispatcher.commands.tables import print_fields, print_rows
from dispatcher.core.text import yaml_document as document
from dispatcher.core.text.redact import name_of
from dispatcher.core.text.yaml_document import DocumentError

_PAGE: Final = 200
_BRIEF: Final = 48  # characters of a status in a column
# What has a default, and so can be given it again.
_UNSET: Final = (
    "tenant",
    "signatures",
    "headers",
    "payload",
    "validate",
    "redirects",
    "timeout",
    "max_in_flight",
    "rate_limit",
    "retry",
)

_fields: Final = (
    click.option("--tenant", help='Whose events it gets; "*" for all [default: events without a tenant].'),
    click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Sent with each request."),
    click.option("--payload", type=click.Choice(["full", "thin"]), help="The event, or only what names it."),
    click.option(
        "--signature",
        "signatures",
        multiple=True,
        type=click.Choice(["v1", "v1a", "github"]),
        help="How requests are signed.",
    ),
    click.option(
        "--validate/--no-validate",
        "validate",
        default=None,
        help="Wait until the endpoint has shown that it wants these events.",
    ),
    click.option("--redirects", type=click.Choice(["never", "same-origin"]), help="Which to follow."),
    click.option("--timeout", metavar="DURATION", help="Of one attempt, all of it: 5s."),
    click.option("--max-in-flight", type=int, help="Deliveries to it at a time."),
    click.option("--rate-limit", metavar="RATE", help="At most so many attempts: 100/s."),
    click.option(
        "--retry-after",
        "schedule",
        multiple=True,
        metavar="DURATION",
        help="A wait before the next attempt; once for each.",
    ),
)


def _with_fields(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_fields):
        command = option(command)
    return command


@click.group(cls=Commands, short_help="List, add and change subscriptions.")
def subscriptions() -> None:
    """List, add and change subscriptions, through the API of a running dispatcher.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@subscriptions.command("list")
@click.option("--tenant", help="Of this tenant.")
@click.option("--status", type=click.Choice(["active", "paused", "pending", "disabled"]))
@click.option("--event-type", help="That want events of this type.")
@click.option("--host", help="With this host in the URL.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1), help="At most so many.")
@api_options
def list_(api: Api, *, as_json: bool, limit: int, **filters: str | None) -> None:
    """List subscriptions, in the order of their ids."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        size = min(_PAGE, limit - len(found))
        page = api.get("/v1/subscriptions", limit=size, cursor=cursor, **filters)
        found += page["subscriptions"]
        if (cursor := page["next_cursor"]) is None:
            break
    if as_json:
        print_json(found)
    elif found:
        print_rows(
            ("id", "tenant", "status", "event types", "url"),
            ((each["id"], each["tenant"], _brief(each), each["event_types"], each["url"]) for each in found),
            folded="url",
        )
    else:
        click.echo("there are none" + (" like that" if any(filters.values()) else ""), err=True)
    if cursor is not None:
        click.echo(f"there are more: --limit {limit * 10}", err=True)


def _brief(each: Mapping[str, Any]) -> str:
    """For a column: the reason may be what an endpoint has said, and `show` tells all of it."""
    status = _status(each)
    return status if len(status) <= _BRIEF else f"{status[: _BRIEF - 3]}..."


def _status(each: Mapping[str, Any]) -> str:
    why = ": ".join(filter(None, (each["reason"], each.get("reason_text"))))
    return shown(str(each["status"]) + (f" ({why})" if why else ""))


@subscriptions.command()
@click.argument("id_", metavar="ID")
@api_options
def show(api: Api, id_: str, *, as_json: bool) -> None:
    """Show a subscription, and how deliveries to it go."""
    found = api.get(f"/v1/subscriptions/{part(id_)}")
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: Mapping[str, Any]) -> None:
    retry = found["retry"] or {}
    fields: dict[str, Any] = {
        "id": found["id"],
        "status": found["status"],
        "reason": ": ".join(filter(None, (found["reason"], found["reason_text"]))),
        "url": found["url"],
        "event types": found["event_types"],
        "tenant": found["tenant"],
        "secrets": [_secret(each) for each in found["secrets"]],
        "signatures": found["signatures"],
        "headers": [f"{name}: {value}" for name, value in found["headers"].items()],
        "payload": found["payload"],
        "redirects": found["redirects"],
        "timeout": found["timeout"],
        "max in flight": found["max_in_flight"],
        "rate limit": found["rate_limit"],
        "retry after": retry.get("schedule"),
        "managed by": found["managed"],
        "version": found["version"],
        "changed": found["updated_at"],
    }
    optional = ("reason", "timeout", "rate limit", "retry after", "headers")
    fields = {name: value for name, value in fields.items() if name not in optional or value}
    if (health := found.get("health")) is not None:
        fields |= {
            "": Text(""),
            "success rate": _share(health["success_rate"]),
            "latency": _latency(health),
            "breaker": health["breaker"],
            "queued": health["queued"],
            "in flight": health["in_flight"],
            "last failure": _failure(health),
            "failing since": health["failing_since"],
            "as seen by": health["replica"],
        }
    print_fields(fields)


def _secret(each: Mapping[str, Any]) -> str:
    public = f" (public key {each['public_key']})" if each.get("public_key") else ""
    return str(each["masked"]) + public + (f" until {each['expires_at']}" if each["expires_at"] else "")


def _share(share: float | None) -> str | None:
    return None if share is None else f"{share:.1%}"


def _latency(health: Mapping[str, Any]) -> str | None:
    if health["latency_mean"] is None:
        return None
    slow = health["latency_p95"]
    return f"{health['latency_mean'] * 1000:.0f} ms" + ("" if slow is None else f", p95 {slow * 1000:.0f} ms")


def _failure(health: Mapping[str, Any]) -> str | None:
    if health["last_failure"] is None:
        return None
    return f"{health['last_failure']} at {health['last_failure_at']}"


@subscriptions.command()
@click.argument("url", required=False)
@click.argument("event_types", metavar="[EVENT_TYPE]...", nargs=-1)
@click.option("--id", "id_", help="[default: one is made]")
@click.option(
    "--secret", "secrets", multiple=True, help="To sign with [default: one is made, and shown once]."
)
@click.option("--paused", is_flag=True, help="Deliver nothing until it is resumed.")
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help="Its fields as YAML or JSON; - for stdin."
)
@_with_fields
@api_options
def add(
    api: Api,
    url: str | None,
    event_types: tuple[str, ...],
    *,
    id_: str | None,
    secrets: tuple[str, ...],
    paused: bool,
    file: Path | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Add a subscription: where to, and which events.

    dispatcher subscriptions add https://hooks.acme.example/webhooks "invoice.*"
    """
    wanted = {} if file is None else _read(file)
    wanted |= _given(fields)
    wanted |= {"url": url} if url else {}
    wanted |= {"event_types": list(event_types)} if event_types else {}
    wanted |= {"id": id_} if id_ else {}
    wanted |= {"secrets": list(secrets)} if secrets else {}
    wanted |= {"status": "paused"} if paused else {}
    if not wanted.get("url") or not wanted.get("event_types"):
        raise ConfigError("say where to and which events: dispatcher subscriptions add URL EVENT_TYPE...")
    made = api.call("POST", "/v1/subscriptions", wanted).json
    if as_json:
        print_json(made)
        return
    _print(made["subscription"])
    _once("secret", made["secrets"][0] if made["secrets"] and not wanted.get("secrets") else None)


def _once(what: str, secret: str | None) -> None:
    if secret is not None:
        click.echo(f"\nThe {what}, shown only now:\n{shown(secret)}")


def _read(file: Path) -> dict[str, Any]:
    try:
        text = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise ConfigError(f"can't read {file}: {error.strerror or error}") from error
    try:
        read = document.parse(text).data
    except DocumentError as error:
        line, said = error.problems[0]
        raise ConfigError(f"{file}{f':{line}' if line else ''}: {said}") from error
    if not isinstance(read, dict):
        raise ConfigError(
            f"{file} must hold the fields of one subscription: `url: ...`, `event_types: [...]`"
        )
    return read


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in fields.items() if value is not None and value != ()}
    if "headers" in given:
        given["headers"] = dict(map(_header, given["headers"]))
    if "signatures" in given:
        given["signatures"] = list(given["signatures"])
    if "schedule" in given:
        given["retry"] = {"schedule": list(given.pop("schedule"))}
    return given


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise click.BadParameter(f"{name_of(text)} is not NAME=VALUE", param_hint="--header")
    return name, value


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.option("--to", "url", metavar="URL", help="Where to deliver from now on.")
@click.option("--event-type", "event_types", multiple=True, help="Which events from now on; once for each.")
@click.option("--unset", multiple=True, type=click.Choice(_UNSET), help="Give this field its default again.")
@click.option("--unset-header", multiple=True, metavar="NAME", help="Send this header no more.")
@click.option("--version", type=int, help="Only if it still has this version.")
@_with_fields
@api_options
def update(
    api: Api,
    id_: str,
    *,
    url: str | None,
    event_types: tuple[str, ...],
    unset: tuple[str, ...],
    unset_header: tuple[str, ...],
    version: int | None,
    as_json: bool,
    **fields: Any,
) -> None:
    """Change a subscription; what isn't named stays as it is."""
    patch: dict[str, Any] = _given(fields)
    patch |= {"url": url} if url else {}
    patch |= {"event_types": list(event_types)} if event_types else {}
    if unset_header:
        patch["headers"] = {**patch.get("headers", {}), **dict.fromkeys(unset_header)}
    if both := [name for name in unset if name in patch]:
        raise ConfigError(f"{both[0]} is both set and unset")
    patch |= dict.fromkeys(unset)
    if not patch:
        raise ConfigError("nothing to change was named (see dispatcher subscriptions update --help)")
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    changed = api.call("PATCH", f"/v1/subscriptions/{part(id_)}", patch, headers=headers).json
    if as_json:
        print_json(changed)
    else:
        _print(changed)


def _verb(name: str, said: str, help_: str) -> None:
    @subscriptions.command(name, help=help_)
    @click.argument("id_", metavar="ID")
    @api_options
    def verb(api: Api, id_: str, *, as_json: bool) -> None:
        changed = api.call("POST", f"/v1/subscriptions/{part(id_)}/{name}").json
        if as_json:
            print_json(changed)
        else:
            click.echo(f"{id_} is {said.format(status=_status(changed))}")


_verb(
    "pause",
    "{status}",
    "Deliver nothing for now. What it is owed is kept; what matches meanwhile is dropped.",
)


def _again(name: str, help_: str) -> None:
    @subscriptions.command(name, help=help_)
    @click.argument("id_", metavar="ID")
    @click.option("--catch-up", is_flag=True, help="Also send what matched meanwhile, as a replay.")
    @api_options
    def again(api: Api, id_: str, *, catch_up: bool, as_json: bool) -> None:
        body = {"catch_up": True} if catch_up else None
        changed = api.call("POST", f"/v1/subscriptions/{part(id_)}/{name}", body).json
        if as_json:
            print_json(changed)
            return
        click.echo(f"{id_} is {_status(changed)}")
        if changed["replay"] is not None:
            click.echo(f"what matched meanwhile is sent: dispatcher replays show {changed['replay']}")
        elif catch_up:
            click.echo("there is nothing to catch up", err=True)


_again("resume", "End a pause.")
_again("enable", "Deliver again to one that was given up (disabled).")


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.option("--reason", required=True, help="Why; its owner sees it.")
@api_options
def disable(api: Api, id_: str, *, reason: str, as_json: bool) -> None:
    """Stop deliveries to a subscription until an operator enables it; what it is owed goes to the dead letters."""
    changed = api.call("POST", f"/v1/subscriptions/{part(id_)}/disable", {"reason": reason}).json
    if as_json:
        print_json(changed)
    else:
        click.echo(f"{id_} is {_status(changed)}")


_verb("validate", "{status}", "Ask the endpoint again whether it wants these events.")


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@api_options
def delete(api: Api, id_: str, *, yes: bool, as_json: bool) -> None:
    """Delete a subscription. What it is still owed is dropped."""
    if not yes and interactive():
        found = api.get(f"/v1/subscriptions/{part(id_)}")
        click.confirm(f"Delete {id_} ({shown(found['url'])})?", abort=True)
    api.call("DELETE", f"/v1/subscriptions/{part(id_)}")
    if not as_json:
        click.echo(f"{id_} is deleted")


@subscriptions.command()
@click.argument("id_", metavar="ID")
@api_options
def ping(api: Api, id_: str, *, as_json: bool) -> None:
    """Send a signed ping event, and say what came of it. Exits 1 unless it was acknowledged."""
    _outcome(api.call("POST", f"/v1/subscriptions/{part(id_)}/ping").json, as_json=as_json)


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.argument("event_type")
@click.option("--data", metavar="JSON", help="The payload [default: the example of the catalogue].")
@api_options
def test(api: Api, id_: str, event_type: str, *, data: str | None, as_json: bool) -> None:
    """Send an event of a type of the catalogue, and say what came of it. Exits 1 unless it was acknowledged."""
    wanted: dict[str, Any] = {"event_type": event_type}
    if data is not None:
        try:
            wanted["data"] = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"--data is not JSON: {error}") from error
    _outcome(api.call("POST", f"/v1/subscriptions/{part(id_)}/test", wanted).json, as_json=as_json)


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.option("--yes", is_flag=True, help="Don't ask.")
@api_options
def purge(api: Api, id_: str, *, yes: bool, as_json: bool) -> None:
    """End all that a subscription is owed now: it is dropped, reason purged, and not sent. What is published later is delivered."""
    if not yes and interactive():
        found = api.get(f"/v1/subscriptions/{part(id_)}")
        click.confirm(f"End all that {id_} ({shown(found['url'])}) is owed now?", abort=True)
    purged = api.call("POST", f"/v1/subscriptions/{part(id_)}/purge").json
    if as_json:
        print_json(purged)
        return
    click.echo(
        f"purged {shown(purged['subscription_id'])} ({shown(purged['id'])}): nothing that it is owed until now is sent any more, but attempts that are under way"
    )
    click.echo(
        f"see what ends: dispatcher deliveries list --subscription {shown(purged['subscription_id'])} --reason purged"
    )


def _outcome(result: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(result)
    else:
        print_fields(
            {
                "delivered": Text("yes", style="green") if result["delivered"] else Text("no", style="red"),
                "status" if result["status"] is not None else "reason": result["status"] or result["reason"],
                **({"detail": result["detail"]} if result["detail"] else {}),
                "took": f"{result['duration'] * 1000:.0f} ms",
                "event": result["event_id"],
                **({"answer": result["body"]} if result["body"] else {}),
            }
        )
    if not result["delivered"]:
        sys.exit(1)


@subscriptions.command()
@click.argument("id_", metavar="ID")
@click.option("--secret", help="The new one [default: one is made, and shown once].")
@click.option("--overlap", metavar="DURATION", help="How long the old one goes on signing [default: 24h].")
@api_options
def rotate(api: Api, id_: str, *, secret: str | None, overlap: str | None, as_json: bool) -> None:
    """Sign with a new secret; the old one goes on signing beside it for a while, and then ends by itself."""
    wanted = {name: value for name, value in (("secret", secret), ("overlap", overlap)) if value is not None}
    rotated = api.call("POST", f"/v1/subscriptions/{part(id_)}/secret/rotate", wanted or None).json
    if as_json:
        print_json(rotated)
        return
    click.echo(f"the old secret signs until {shown(rotated['old_expires_at'])}")
    public = next((each.get("public_key") for each in rotated["subscription"]["secrets"]), None)
    if public:
        click.echo(f"its public key, for receivers: {shown(public)}")
    _once("new secret", rotated["secret"] if secret is None else None)
