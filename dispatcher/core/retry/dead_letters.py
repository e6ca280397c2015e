"""Reading the dead-letter topic: deliveries that were given up, and records that could not be read as an event.

`core/retry/records.py` says which headers a dead letter has. Others may write to the topic, so nothing of a record is believed: what goes onto the wire is
checked as it was when the event was first read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dispatcher.core.event.decode import EventRecord
from dispatcher.core.retry.records import InvalidRetryRecord, RetryRecord, read_delivery

_CAP: Final = 1024


class InvalidDeadLetter(ValueError):
    """The record is no delivery that was given up. The message is for people."""


def read_dead_letter(record: EventRecord) -> RetryRecord:
    """The delivery that was given up; raises InvalidDeadLetter, whatever the bytes. Where its body is `omitted`, that is at its source, or lost."""
    headers = dict(record.headers)
    if headers.get("delivery_id") is None:
        raise InvalidDeadLetter(
            f"it is no delivery but a record that could not be read as an event ({header(headers, 'reason')}):"
            " publish the event again, as it should be"
        )
    attempt = headers.get("attempt")
    try:
        delivery = read_delivery(
            record.value or b"", headers, int(attempt) if attempt is not None and attempt.isdigit() else 0, 0
        )
    except (InvalidRetryRecord, ValueError) as error:
        raise InvalidDeadLetter(f"it can't be read as a delivery: {error}") from error
    if header(headers, "reason") in ("body_expired", "body_unreadable"):
        delivery.omitted = True
    return delivery


def header(headers: Mapping[str, bytes | None], name: str, cap: int = _CAP) -> str | None:
    """A header's text, cut to so many characters; None where there is none."""
    value = headers.get(name)
    return None if value is None else value.decode(errors="replace")[:cap]
