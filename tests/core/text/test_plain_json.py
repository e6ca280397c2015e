from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from dispatcher.core.text.plain_json import NotPlain, plain_json
from dispatcher.core.text.yaml_document import DocumentError, parse
from tests.core.nesting import NESTED

TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def typed(value: Any) -> Any:
    """Told apart where `==` doesn't: 1, 1.0 and True."""
    if isinstance(value, dict):
        return {key: typed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [typed(inner) for inner in value]
    return type(value), value


@given(st.dictionaries(TEXT, VALUES, max_size=4), st.sampled_from([None, 0, 2, "\t"]), st.booleans())
def test_what_is_read_means_the_same_in_yaml(value: Any, indent: Any, ascii_only: bool) -> None:
    content = json.dumps(value, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    try:
        found = plain_json(content)
    except NotPlain:
        return
    assert typed(found) == typed(parse(content).data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"subscriptions: []",
        b"[]",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 2}}',
        b'{"<<": {"a": 1}}',
        b'{"a": 1234567890123456789}',
        b'{"a": NaN}',
        b'{"a": "\\u00e9"}',
        '{"a": "é"}'.encode(),
        b'{"a": 1} {"b": 2}',
        b'{"a":' * NESTED,
        b'{"a":' * NESTED + b"1" + b"}" * NESTED,
        b"{a: 1}",
        b'{"a": 1,}',
    ],
)
def test_what_may_mean_something_else_or_is_no_json_is_left_to_the_yaml_reader(content: bytes) -> None:
    with pytest.raises(NotPlain):
        plain_json(content)


def test_usual_json_is_read() -> None:
    content = b'\n{"list": [{"id": "a", "n": 3, "x": -1.5e3, "t": true, "z": null, "s": "a\\n\\"b\\""}]}\n'
    assert plain_json(content) == json.loads(content)
    assert parse(content).data == json.loads(content)


def test_a_mistake_in_the_yaml_reader_is_no_answer_here() -> None:
    deep = b'{"a":' * 100 + b"1" + b"}" * 100
    with pytest.raises(DocumentError):
        parse(deep)
    assert plain_json(deep)["a"], "whoever reads a subscription refuses what is nested so"
