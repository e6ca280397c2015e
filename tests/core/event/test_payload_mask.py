"""Fields that are hidden by their paths."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.event.payload_mask import MASK, PayloadMask, read_path


def masked(body: Any, *paths: str) -> Any:
    found = PayloadMask(paths).applied(body if isinstance(body, bytes) else json.dumps(body).encode())
    return None if found is None else json.loads(found)


def test_what_a_path_leads_to_is_hidden_whatever_it_is() -> None:
    for value in ("4111", 7, None, {"a": 1}, [1, 2], True):
        assert masked({"data": {"card": value, "b": 1}}, "/data/card") == {"data": {"card": MASK, "b": 1}}


def test_a_star_stands_for_every_member_and_every_item() -> None:
    body = {"data": {"items": [{"iban": "a", "n": 1}, {"n": 2}, 3], "people": {"x": {"iban": "b"}}}}
    assert masked(body, "/data/*/*/iban") == {
        "data": {"items": [{"iban": MASK, "n": 1}, {"n": 2}, 3], "people": {"x": {"iban": MASK}}}
    }
    assert masked([1, [2, 3]], "/1/*") == [1, [MASK, MASK]]
    assert masked({"a": 1}, "/*") == {"a": MASK}


def test_a_body_without_the_fields_is_shown_as_it_is() -> None:
    assert masked({"data": {"b": 1}}, "/data/card", "/other", "/data/b/c") is None
    assert masked(7, "/a") is None
    assert masked({"a": 1}) is None
    assert PayloadMask(["/a"]).applied(b"") is None
    assert not PayloadMask([])


def test_what_is_beside_a_hidden_field_keeps_its_bytes() -> None:
    body = b'{"n": 1.10, "big": 123456789012345678901234567890, "x": {"s": "\\u00e4", "k":  1E2 }, "card": "4111"}'
    assert PayloadMask(["/card"]).applied(body) == (
        b'{"n":1.10,"big":123456789012345678901234567890,"x":{"s": "\\u00e4", "k":  1E2 },"card":"***"}'
    )


def test_names_with_slashes_tildes_and_escapes_are_found() -> None:
    assert read_path("/a~1b/c~0d/") == ("a/b", "c~d", "")
    assert masked({"a/b": {"c~d": 1}}, "/a~1b/c~0d") == {"a/b": {"c~d": MASK}}
    assert masked(b'{"c\\u0061rd": "4111"}', "/card") == {"card": MASK}


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": {"card": "4111"}, "a": 1}',
        b'{"a": {"card": "4111"}, "a": 1, "\\u003a\\u003a": 0}',
        b'{"a": {"card": "4111"}, "a": 1, "::": 0}',
        b'{"a": {"card": "4111"}, "a": {"card": "4111", "card": "4111"}}',
    ],
)
def test_a_name_that_stands_twice_shows_nothing(body: bytes) -> None:
    shown = PayloadMask(["/a/card"]).applied(body)
    assert shown is not None
    assert b"4111" not in shown


def test_what_is_no_json_is_hidden_as_a_whole_and_a_lone_surrogate_is_json() -> None:
    for body in (b"card=4111", b'{"card": "4111"', b"\xff\xfe", b"[" * 100_000):
        assert masked(body, "/card") == MASK
    assert masked(b'{"card": "4111", "x": "\\ud83d"}', "/card") == {"card": MASK, "x": "\uffff"}
    assert masked(b'\xef\xbb\xbf{"card": 1}', "/card") == {"card": MASK}


@pytest.mark.parametrize(
    ("path", "said"),
    [("card", "must be a path"), ("", "must be a path"), ("/a~2", "~"), ("/a" * 33, "segments")],
)
def test_a_path_that_is_none_is_refused(path: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PayloadMask([path])


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from("abc:"), inner, max_size=4),
    max_leaves=20,
)


def _naive(value: Any, path: tuple[str, ...]) -> Any:
    if not path:
        return MASK
    first, *rest = path
    if isinstance(value, dict):
        return {
            name: _naive(inner, tuple(rest)) if first in ("*", name) else inner
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [
            _naive(inner, tuple(rest)) if first in ("*", str(number)) else inner
            for number, inner in enumerate(value)
        ]
    return value


@given(_json, st.lists(st.sampled_from(["a", "b", "*", "0", ":"]), min_size=1, max_size=3))
def test_it_hides_what_a_walk_through_the_values_hides(value: Any, path: list[str]) -> None:
    shown = masked(value, "/" + "/".join(path))
    assert (value if shown is None else shown) == _naive(value, tuple(path))
