"""`dispatcher failing` and `dispatcher cluster`: who is failing now, and the processes of the installation, by way of the API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import click

from dispatcher.commands.client import Api, api_options, print_json, shown
from dispatcher.commands.history_pages import tell_who_is_unknown
from dispatcher.commands.tables import print_rows

LIMIT: Final = 100

_SILENT: Final = 15.0  # seconds: a process says something every ten
_WAITS: Final = re.compile(
    r"\.retry\.[^.]+$|\.replay$"
)  # topics in which records wait for their time, or their endpoint


@click.command(short_help="Show who is failing now.")
@click.option("--tenant", help="Of this tenant.")
@click.option("--subscription", help="This one only.")
@click.option("--host", help="With this host in the URL.")
@click.option(
    "--limit",
    default=LIMIT,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="At most so many, the worst.",
)
@api_options
def failing(api: Api, *, as_json: bool, limit: int, **filters: str | None) -> None:
    """Show the subscriptions that are failing now, those that fail for longest first, of all replicas together.

    What waits goes soon (queued, under way, or held in memory for a near retry), is parked until the endpoint takes something, or is to be
    retried at its time, as the history has it. DISPATCHER_API_URL says where the API is, DISPATCHER_API_KEY holds the key.
    """
    answer = api.get("/v1/failing", limit=limit, **filters)
    if as_json:
        print_json(answer)
        return
    if answer["failing"]:
        print_rows(
            (
                "subscription",
                "tenant",
                "host",
                "failing since",
                "last result",
                "success",
                "breaker",
                "waiting",
                "oldest",
                "next attempt",
            ),
            (
                (
                    each["subscription_id"],
                    each["tenant"],
                    each["host"],
                    each["failing_since"],
                    each["last_result"] or each["reason"],
                    None if each["success_rate"] is None else f"{each['success_rate']:.0%}",
                    each["breaker"],
                    _waiting(each["waiting"]),
                    each["oldest_waiting_since"],
                    each["next_attempt_at"],
                )
                for each in answer["failing"]
            ),
            folded=("tenant", "host", "failing since", "last result", "waiting", "oldest", "next attempt"),
        )
    else:
        click.echo("nobody is failing", err=True)
        tell_who_is_unknown(api, filters)
    if answer["cut"]:
        click.echo("there are more, which are not shown: --limit, or --tenant", err=True)
    if not answer["replicas"]:
        click.echo(
            "no process that delivers has said anything within 35 seconds: `dispatcher cluster`", err=True
        )


def _waiting(waiting: Mapping[str, Any]) -> str:
    """How much waits where, with a plus where there is more than was counted."""
    soon = waiting["queued"] + waiting["in_flight"] + waiting["held"]
    parked = f"{waiting['parked']}{'+' if waiting['parked_at_least'] else ''}"
    retrying = waiting["retrying"]
    known = "?" if retrying is None else f"{retrying}{'+' if waiting['retrying_at_least'] else ''}"
    return f"{soon} soon, {parked} parked, {known} retrying"


@click.command(short_help="Show the processes of this installation.")
@api_options
def cluster(api: Api, *, as_json: bool) -> None:
    """Show the processes that were heard of within 35 seconds, each as it says of itself. Takes an operator's key.

    lag is of the event topics: what waits in retry topics waits for its time. `dispatcher topics --behind` names the partitions.
    """
    answer = api.get("/v1/cluster")
    if as_json:
        print_json(answer)
        return
    replicas = answer["replicas"]
    heard = _heard(replicas)
    print_rows(
        (
            "replica",
            "version",
            "roles",
            "started",
            "heard",
            "ready",
            "partitions",
            "lag",
            "under way",
            "parked",
            "breakers",
            "in trouble",
            "history",
        ),
        (
            (
                each["replica"],
                each["version"],
                each["roles"],
                each["started_at"],
                None if heard[each["replica"]] is None else f"{heard[each['replica']]:.0f}s ago",
                each["ready"],
                sum(map(len, each["partitions"].values())),
                sum(lag for topic, lag in each["lag"].items() if not _WAITS.search(topic)),
                each["in_flight"],
                sum(each["parked"].values()),
                sum(each["breakers_open"].values()),
                each["subscriptions_in_trouble"],
                _history(each["history"]),
            )
            for each in replicas
        ),
        folded=("roles", "started", "history"),
    )
    for each in replicas:
        silent = heard[each["replica"]]
        if silent is not None and silent > _SILENT:
            click.echo(
                shown(
                    f"{each['replica']}: nothing was heard of it for {silent:.0f} seconds: it hangs, or can't reach the broker."
                    f" Its row says how it was then. It reads {_reads(each['partitions'])}"
                ),
                err=True,
            )
        for sentence in (*each["problems"], *each["warnings"]):
            click.echo(shown(f"{each['replica']}: {sentence}"), err=True)


def _reads(partitions: Mapping[str, Sequence[int]]) -> str:
    """The partitions of event topics."""
    found = [
        f"{topic} {', '.join(map(str, numbers))}"
        for topic, numbers in partitions.items()
        if numbers and not _WAITS.search(topic)
    ]
    return "; ".join(found) or "no events"


def _heard(replicas: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """How many seconds ago each was heard of, before the last of them: the one that answers is among them. By the clocks of the processes."""
    times = {
        each["replica"]: None
        if each["reported_at"] is None
        else datetime.fromisoformat(each["reported_at"]).timestamp()
        for each in replicas
    }
    latest = max((time for time in times.values() if time is not None), default=0.0)
    return {name: None if time is None else latest - time for name, time in times.items()}


def _history(history: Mapping[str, Any] | None) -> str | None:
    if history is None:
        return None
    return (
        f"as of {history['as_of']}, {history['behind_records']} behind" if history["as_of"] else "nothing yet"
    )
