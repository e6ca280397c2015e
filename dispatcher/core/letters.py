"""What travels through the dispatcher's own topics: dead letters now, deliveries on their way to a retry.

A record's value is the event's bytes, unchanged. Its headers say whose delivery it is, how far
it got, and where it came from, so that it can be read by a person, sent again, or carried on by
another replica:

=====================  ====================================================================
`delivery_id`          stable for one event and one subscription: also after a redelivery
`subscription_id`
`attempt`              attempts made so far
`first_attempt_ms`     Unix milliseconds; absent before the first one
`due_ms`               when the next attempt is due; absent in dead letters
`reason`               why it is here: `exhausted`, `gone`, or why a record could not be read
`last_result`          the last attempt: `status 503`, `timeout: ...`
`topic` `partition`    the origin: where the event was read
`offset`
`event_id`             of the event, where it could be read
`event_type` `tenant`
`head`                 the event's own request header lines, ready for the wire
`omitted`              the value was larger than this topic takes; it is still at the origin
`original.<name>`      of an unreadable record: its headers
=====================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from dispatcher.core.events import Event
from dispatcher.core.results import Failure, Response, Result

Headers = list[tuple[str, bytes]]

_DETAIL_CAP = 512


def delivery_id(topic: str, partition: int, offset: int, subscription_id: str) -> str:
    """`dlv_` and 24 hex digits: the same for the same origin and subscription, today and after a restart."""
    origin = f"{topic}\0{partition}\0{offset}\0{subscription_id}".encode()
    return "dlv_" + blake2b(origin, digest_size=12).hexdigest()


def describe(result: Result) -> str:
    """One line about a result, for people."""
    match result:
        case Response(status=status, location=location):
            # Without its query: that of a signed URL is a secret.
            if location and 300 <= status < 400:
                return f"status {status} to {location.partition('?')[0][:_DETAIL_CAP]}"
            return f"status {status}"
        case Failure(reason=reason, detail=detail):
            return f"{reason}: {detail[:_DETAIL_CAP]}" if detail else str(reason)


def delivery_headers(
    event: Event,
    subscription_id: str,
    *,
    topic: str,
    partition: int,
    offset: int,
    attempt: int,
    first_attempt_ms: int | None,
    last_result: Result | None,
    reason: str,
) -> Headers:
    """The headers of one delivery's record."""
    headers: Headers = [
        ("delivery_id", delivery_id(topic, partition, offset, subscription_id).encode()),
        ("subscription_id", subscription_id.encode()),
        ("attempt", b"%d" % attempt),
    ]
    if first_attempt_ms is not None:
        headers.append(("first_attempt_ms", b"%d" % first_attempt_ms))
    headers.append(("reason", reason.encode()))
    if last_result is not None:
        headers.append(("last_result", describe(last_result).encode(errors="replace")))
    headers += _origin(topic, partition, offset)
    headers.append(("event_id", event.id.encode()))
    headers.append(("event_type", event.type.encode()))
    if event.tenant is not None:
        headers.append(("tenant", event.tenant.encode(errors="replace")))
    headers.append(("head", event.head))
    return headers


def unreadable_headers(
    original: Sequence[tuple[str, bytes | None]],
    *,
    topic: str,
    partition: int,
    offset: int,
    reason: str,
    detail: str,
) -> Headers:
    """The headers of the dead letter for a record that could not be read as an event."""
    return [
        ("reason", reason.encode()),
        ("detail", detail[:_DETAIL_CAP].encode(errors="replace")),
        *_origin(topic, partition, offset),
        *((f"original.{name}", value or b"") for name, value in original),
    ]


def _origin(topic: str, partition: int, offset: int) -> Headers:
    return [
        ("topic", topic.encode()),
        ("partition", b"%d" % partition),
        ("offset", b"%d" % offset),
    ]
