"""Events that are read again."""

from __future__ import annotations

import pytest

from dispatcher.broker.base import StoredRecord
from dispatcher.core.retry.records import BODY_EXPIRED
from dispatcher.core.retry.sources import EventLost, ExpectedEvent, read_again

VALUE = b'{"id": "evt_1", "type": "a.b", "tenant": "acme"}'
EXPECTED = ExpectedEvent("evt_1", "a.b", "acme")


def at(offset: int, value: bytes | None) -> StoredRecord:
    return StoredRecord(offset, 5, None, value, ())


def test_the_event_that_was_noted_is_read_again() -> None:
    event = read_again(at(7, VALUE), "events", 0, EXPECTED)
    assert (event.id, event.body) == ("evt_1", VALUE)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (None, "deleted"),
        (at(7, None), "another record"),
        (at(7, b"no JSON"), "another record"),
        (at(7, VALUE.replace(b"evt_1", b"evt_2")), "made anew"),
        (at(7, VALUE.replace(b"a.b", b"a.c")), "made anew"),
        (at(7, VALUE.replace(b"acme", b"globex")), "made anew"),
    ],
)
def test_what_stands_there_otherwise_is_not_the_event(record: StoredRecord | None, said: str) -> None:
    with pytest.raises(EventLost, match=said) as caught:
        read_again(record, "events", 0, EXPECTED)
    assert caught.value.reason == BODY_EXPIRED
