"""Bodies with events: `data` stays the bytes that came, whatever they are, as long as they mean one thing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.api.event_body import parse_events
from dispatcher.api.payload import MAX_DEPTH
from dispatcher.api.problems import Kind, Problem
from dispatcher.core.event.raw_json import RawJson, reading

AS_THEY_ARE = [
    b"1.10",
    b"1E2",
    b"0.123000000000000005123",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-" + b"9" * 5000,
    b"1e400",
    b'{"b" : 1,\t"a":\n[ ]}',
    rb'"\u0041\/\u00e9"',
    '"\u00e9\U0001f600"'.encode(),
    rb'"\ud83d"',
    rb'{"\ude00": ["\ud83d\ud83d\ude00", "\\ud83d"]}',
    b"null",
    b"[" * (MAX_DEPTH - 3) + b"]" * (MAX_DEPTH - 3),
    rb'{"a\u003a": ":", "b": "::"}',
]


@pytest.mark.parametrize("raw", AS_THEY_ARE)
def test_the_data_is_passed_on_as_the_bytes_that_came(raw: bytes) -> None:
    event = b'{"type": "a", "data": ' + raw + b' , "id": "e"}'
    expected = {"type": "a", "data": raw, "id": "e"}
    for body, lines, read in (
        (event, 0, expected),
        (b" [" + event + b" , " + event + b"]\n", 0, [expected, expected]),
        (event.replace(b"\n", b"") + b"\n", 5, [{**expected, "data": raw.replace(b"\n", b"")}]),
    ):
        found = parse_events(body, lines)
        assert found == read
        for one in found if isinstance(found, list) else [found]:
            assert type(one["data"]) is RawJson


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b"", None, "no body"),
        (b" \n", None, "no body"),
        (b'{"type": "a"', None, "not JSON"),
        (b'{"type": "a", "data": NaN}', None, "not JSON"),
        (b'{"type": "a", "data": 1,}', None, "not JSON"),
        (b'{"type": "a", "data": "\xff"}', None, "not UTF-8"),
        (b'\x0b{"type": "a"}', None, "not JSON"),
        (b'\xef\xbb\xbf{"type": "a"}', None, "byte order mark"),
        (rb'{"type": "a", "data": "\ud83d}', None, "not JSON"),
        (rb'{"type": "\ud83d"}', "type", "not JSON"),
        (b'{"type": "a", "type": "b"}', "type", "twice"),
        (rb'{"type": "a", "data": "\ud83d", "type": "b"}', "type", "twice"),
        (b'{"type": "a", "data": {"c": 1, "d": {"c": 1, "c": 2}}}', "data.c", "twice"),
        (rb'{"type": "a", "data": {"c": "\u003a", "\u0063": "x"}}', "data.c", "twice"),
        (rb'{"type": "a", "data": {"c": "\ud83d", "c": 1}}', "data.c", "twice"),
        (b'[{"type": "a"}, {"type": "a", "data": [{"c": 1, "c": 2}]}]', "[1].data.c", "twice"),
        (b'{"type": "a", "created": 18446744073709551616}', "created", "64 bits"),
        (b'{"type": "a", "data": ' + b"[" * 70 + b"]" * 70 + b"}", "data", "deeper"),
        (rb'{"type": "a", "data": ["\ud83d", ' + b"[" * 900 + b"]" * 900 + b"]}", None, "deeper"),
        (b'{"type": "a", "data": ' + b"[" * 100_000, None, "JSON"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(body: bytes, field: str | None, said: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_events(body)
    assert caught.value.kind is Kind.MALFORMED
    assert said in caught.value.detail
    if field is not None:
        assert [flaw.field for flaw in caught.value.errors] == [field]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"5", ""),
        (rb'"\ud83d"', ""),
        (b'[{"type": "a"}, 5]', "[1]"),
        (rb'[{"type": "a", "data": "\ud83d"}, "x"]', "[1]"),
        (b'{"type": [' + b"1," * 20_000 + b"1]}", "type"),
    ],
)
def test_what_is_no_event_is_named(body: bytes, field: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_events(body)
    assert caught.value.kind is Kind.INVALID
    assert [flaw.field for flaw in caught.value.errors] == [field]


def test_millions_of_values_become_no_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they aren't wanted: that is what a refused array of a million integers took half a second for."""

    def asked(*_: object, **__: object) -> Any:
        raise AssertionError("a value was made of data")

    numbers = b"[" + b"1," * 1_000_000 + b"1]"
    monkeypatch.setattr("json.loads", asked)
    with pytest.raises(Problem) as caught:
        parse_events(numbers)
    assert [flaw.field for flaw in caught.value.errors] == ["[0]"]
    read = parse_events(b'{"type": "a", "data": ' + numbers + b"}")
    assert isinstance(read, dict)
    assert read["data"] == numbers


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(JSON, st.booleans())
def test_any_json_is_taken_as_it_is_and_read_as_it_was_written(value: object, ascii_only: bool) -> None:
    raw = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return
    found = parse_events(b'{"type":"a","data":' + raw + b"}")
    assert isinstance(found, dict)
    assert found["data"] == raw
    if "\\ud" not in raw.decode():
        assert json.dumps(reading(raw)) == json.dumps(value)


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", ":", "\\u003a"]), st.sampled_from(['":"', "1", '{"a":1}'])),
        max_size=5,
    )
)
def test_names_that_stand_twice_are_found_whatever_colons_there_are(members: list[tuple[str, str]]) -> None:
    raw = "{" + ",".join(f'"{name}":{value}' for name, value in members) + "}"
    names = [json.loads(f'"{name}"') for name, _ in members]
    body = b'{"type":"a","data":' + raw.encode() + b"}"
    if len(set(names)) == len(names):
        assert parse_events(body) == {"type": "a", "data": raw.encode()}
    else:
        with pytest.raises(Problem, match="twice"):
            parse_events(body)


def test_what_a_schema_sees() -> None:
    assert reading(b"[1.10, 1E2, 18446744073709551616]") == [1.1, 100.0, 18446744073709551616]
    assert reading(rb'["\ud83d", "\ud83d\ude00"]') == ["\ufffd", "\U0001f600"]
    largest = 1.7976931348623157e308
    assert reading(b"[1e400, -1e400, " + b"9" * 5000 + b"]") == [largest, -largest, largest]
