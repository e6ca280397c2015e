"""JSON that could mean two things is refused, with the place."""

from __future__ import annotations

import pytest

from dispatcher.api.event_body import parse_events
from dispatcher.api.payload import MAX_BRACKETS, MAX_DEPTH, ndjson_lines, parse_json
from dispatcher.api.problems import Kind, Problem


def test_plain_json_is_read() -> None:
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa4", null, true]}') == {"a": [1, 2.5, "ä", None, True]}
    assert parse_json(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse_json(b'{"a": 9223372036854775807}') == {"a": 2**63 - 1}


@pytest.mark.parametrize(
    ("body", "field", "said"),
    [
        (b"", None, "no body"),
        (b" \n", None, "no body"),
        (b"{", None, "not JSON"),
        (b'{"a": NaN}', None, "not JSON"),
        (b"{'a': 1}", None, "not JSON"),
        (b'{"a": 1,}', None, "not JSON"),
        (b'"\xff"', None, "byte 1"),
        (b'\xef\xbb\xbf{"a": 1}', None, "not JSON"),
        ('{"a": 1}'.encode("utf-16"), None, "UTF-8"),
        (rb'{"a": "\ud800"}', None, "not JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "c", "twice"),
        (b'{"a": 1, "\\u0061": 2}', "a", "twice"),
        (b'{"a": [0, 18446744073709551616]}', "a[1]", "64 bits"),
        (b'{"a": ' + b"9" * 5000 + b"}", None, "not JSON"),
        (b'{"a": 1e999}', None, "not JSON"),
        (b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2), "", "deeper"),
        (b"[" * 100_000, None, "not JSON"),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "", "deeper"),
        (b"[" * 1020 + b"]" * 1020, None, ""),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(body: bytes, field: str | None, said: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    assert caught.value.kind is Kind.MALFORMED
    assert said in caught.value.detail
    if field is not None:
        assert [flaw.field for flaw in caught.value.errors] == [field]


def test_many_duplicates_cost_no_quadratic_time() -> None:
    body = b"{" + b",".join(b'"k%d":0' % (number // 2) for number in range(40_000)) + b"}"
    with pytest.raises(Problem) as caught:
        parse_json(body)
    assert len(caught.value.errors) == 20


def test_empty_lines_do_not_count_and_too_many_are_refused() -> None:
    assert ndjson_lines(b'{"a": 1}\r\n\n{"a": 2}\n', 2) == [b'{"a": 1}\r', b'{"a": 2}']
    with pytest.raises(Problem, match="3 lines; 1 to 2"):
        ndjson_lines(b"1\n2\n3", 2)


def test_what_would_be_huge_once_it_is_parsed_is_refused_before() -> None:
    body = b"[" + b"[]," * MAX_BRACKETS + b"1]"
    for parse in (parse_json, lambda body: ndjson_lines(b"1\n" + body, 5)):
        with pytest.raises(Problem) as caught:
            parse(body)
        assert caught.value.kind is Kind.TOO_LARGE
    assert parse_json(body.replace(b"[]", b"1", MAX_BRACKETS))


def test_millions_of_empty_lines_are_not_looked_at_one_by_one() -> None:
    assert ndjson_lines(b"\n" * 4_000_000, 5) == []
    with pytest.raises(Problem):
        parse_events(b"\n" * 4_000_000 + b'{"type": "a"}\n{"type": "b"}', 5)
