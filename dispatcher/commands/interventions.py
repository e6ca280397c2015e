"""What the commands that send, or end, deliveries have in common: they say what was asked for and, with `--wait`, what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, TypeVar

import click

from dispatcher.commands.client import Api, ApiRefused, part, print_json, shown
from dispatcher.commands.tables import print_fields

F = TypeVar("F", bound=Callable[..., Any])

_LOOK: Final = 0.3  # seconds between two looks
_WAITED: Final = 60.0
_ENDED: Final = ("delivered", "dead", "dropped")


def wait_option(command: F) -> F:
    """Add `--wait` and `--timeout`; the command gets `wait`: seconds, None for not at all."""

    @click.option(
        "--wait",
        "waits",
        is_flag=True,
        help="Wait for what comes of it. Exits 1 where that is not what was wanted.",
    )
    @click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=_WAITED,
        show_default=True,
        metavar="SECONDS",
        help="How long --wait waits.",
    )
    @wraps(command)
    def wrapped(*args: Any, waits: bool, timeout: float, **kwargs: Any) -> Any:
        return command(*args, wait=timeout if waits else None, **kwargs)

    return wrapped  # type: ignore[return-value] # wraps() forgets that the command is called with fewer options


def say_commanded(api: Api, command: Mapping[str, Any], wait: float | None, *, as_json: bool) -> None:
    """What was commanded about a delivery; and, where that is waited for, what came of it. Ends the command with 1 where it failed."""
    if wait is None:
        if as_json:
            print_json(command)
            return
        _print(command)
        click.echo(f"look what comes of it: dispatcher deliveries show {shown(command['delivery_id'])}")
        return
    if not as_json:
        _print(command)
    found = _followed(api, command, wait)
    if as_json:
        print_json({"command": command, "delivery": found})
    cancels = command["action"] == "cancel"
    if found is None:
        raise click.ClickException(
            f"nothing has come of it within {wait:g} s, as far as the history knows: dispatcher deliveries show {command['delivery_id']}"
        )
    said, wanted = _outcome(found, cancels=cancels)
    if not as_json:
        click.echo(said)
    if not wanted:
        raise click.exceptions.Exit(1)


def _print(command: Mapping[str, Any]) -> None:
    print_fields(
        {
            "asked for": command["action"],
            "intervention": command["id"],
            "delivery": command["delivery_id"],
            "generation": command["generation"],
            "subscription": command["subscription_id"],
            "event": command["event_id"],
            "event type": command["event_type"],
            "by": command["requested_by"],
        }
    )


def _followed(api: Api, command: Mapping[str, Any], wait: float) -> Any:
    """The delivery, as soon as the history knows what came of the command; None where that takes too long."""
    deadline = time.monotonic() + wait
    while True:
        try:
            found = api.get(f"/v1/deliveries/{part(command['delivery_id'])}")
        except ApiRefused as error:
            if not error.not_found:  # a delivery that has never been before is not known at once
                raise
        else:
            if _is_over(found, command):
                return found
        if time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK)


def _is_over(found: Mapping[str, Any], command: Mapping[str, Any]) -> bool:
    delivery = found["delivery"]
    if command["action"] == "cancel":
        return delivery["state"] in _ENDED
    return bool(delivery["generation"] >= command["generation"])


def _outcome(found: Mapping[str, Any], *, cancels: bool) -> tuple[str, bool]:
    """What came of it in a sentence, and whether that was wanted."""
    delivery = found["delivery"]
    state = delivery["state"]
    answer = delivery["failure"] if delivery["status"] is None else f"status {delivery['status']}"
    match state:
        case "delivered":
            return (
                f"delivered: it was under way already ({answer})" if cancels else f"delivered: {answer}"
            ), not cancels
        case "dropped":
            return f"dropped: {delivery['reason']}", cancels
        case "dead":
            return f"dead: {delivery['reason']} ({answer})", False
        case "retrying":
            return f"the attempt failed ({answer}); the next one is at {delivery['next_attempt_at']}", False
        case _:
            return (
                f"it waits for its endpoint ({delivery['reason']}), and is sent as soon as that takes something",
                False,
            )
