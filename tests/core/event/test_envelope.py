"""What msgspec makes of the routing fields: `decode.py` stands on these."""

from __future__ import annotations

import pytest

from dispatcher.core.event.envelope import (
    MISSING,
    NotAnObject,
    NotJson,
    decode_cloud_event,
    decode_envelope,
)


def test_the_routing_fields_are_read_and_everything_else_is_passed_over() -> None:
    found = decode_envelope(
        b'{"data": {"deep": [1, 2]}, "type": "a", "id": "i", "tenant": "t", "created": 1.5}'
    )
    assert (found.type, found.id, found.tenant, found.created, found.timestamp) == ("a", "i", "t", 1.5, None)


def test_a_type_that_is_absent_is_told_from_one_that_is_null() -> None:
    assert decode_envelope(b"{}").type is MISSING
    assert decode_envelope(b'{"type": null}').type is None


def test_a_field_of_the_wrong_kind_is_handed_on_and_not_refused() -> None:
    assert decode_envelope(b'{"type": [1], "id": 5}').type == [1]
    assert decode_cloud_event(b'{"specversion": 1, "time": {}}').time == {}


@pytest.mark.parametrize("text", [b"", b"{", b'{"a": 1}}', b"{'a': 1}", b'{"data": [1,]}', b'"\xff"'])
def test_what_is_no_json_is_refused_also_where_nothing_is_read_of_it(text: bytes) -> None:
    with pytest.raises(NotJson):
        decode_envelope(text)


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"a"'])
def test_json_that_is_no_object_is_refused_by_another_error(text: bytes) -> None:
    for decode in (decode_envelope, decode_cloud_event):
        with pytest.raises(NotAnObject):
            decode(text)
