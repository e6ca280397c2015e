from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from dispatcher.core.text.yaml_document import DocumentError, DocumentProblem, parse, stream

SCALARS = st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e9, 1e9) | st.text()
DATA = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def problems(content: Any) -> Any:
    with pytest.raises(DocumentError) as caught:
        parse(content)
    return caught.value.problems


@given(DATA)
def test_what_a_yaml_library_writes_is_read_back(data: Any) -> None:
    assert parse(yaml.safe_dump(data).encode()).data == data


@given(st.binary(max_size=200) | st.text("{}[]:,-&*!|>'\"%@`#?~<\n ab1", max_size=60).map(str.encode))
def test_no_bytes_make_anything_but_data_or_a_document_error(content: Any) -> None:
    with contextlib.suppress(DocumentError):
        parse(content)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("true", True), ("False", False), ("2026-01-31", "2026-01-31"), ("1:30", "1:30"),
        ("0x1f", 31), ("0o17", 15), ("017", 17), ("1e3", 1000.0), (".5", 0.5), ("1_000", "1_000"), ("~", None), ("", None),
        ("'5'", "5"), ("15s", "15s"), ("-", None), ("1-2", "1-2"), ("+7", 7),
    ],
)  # fmt: skip
def test_scalars_follow_yaml_1_2(text: Any, value: Any) -> None:
    if text == "-":
        assert parse(b"a: -x").data == {"a": "-x"}
    else:
        assert parse(f"a: {text}".encode()).data == {"a": value}


def test_every_part_knows_its_line() -> None:
    lines = parse(b"# head\na:\n  b: [1,\n     2]\n  c:\n    - x\n    - y: 1\n      z: 2\n").lines
    assert [lines.find(path) for path in [("a",), ("a", "b"), ("a", "b", 1), ("a", "c", 1, "z")]] == [
        2,
        3,
        4,
        8,
    ]
    assert lines.find(("a", "nothing", 7)) == 2


def test_anchors_and_merge_keys_work_and_own_keys_win() -> None:
    document = parse(b"x: &x {p: 1, q: 2}\ny: &y\n  r: 3\na: {<<: *x, p: 9}\nb:\n  <<: [*x, *y]\nc: *x\n")
    assert document.data["a"] == {"p": 9, "q": 2}
    assert document.data["b"] == {"p": 1, "q": 2, "r": 3}
    assert document.data["c"] == {"p": 1, "q": 2}
    assert document.lines.find(("b", "r")) == 3


@pytest.mark.parametrize(
    ("content", "line", "said"),
    [
        (b"a: 1\nb: 2\na: 3", 3, "a: this key stands twice here"),
        (b"a:\n  b: 1\n  b: 2", 3, "b: this key stands twice here"),
        (b"a: 1\nb: }", 2, "not valid YAML"),
        (b"a: 1\n\tb: 2", 2, "not valid YAML"),
        (b"x: 1\n\xff", 2, "not UTF-8"),
        (b"x: 1\ny: \x01", 2, "control characters"),
        (b"a: *b", 1, "*b refers to an anchor"),
        (b"a: &a [*a]", 1, "*a refers to an anchor"),
        (b"a: !!python/object:os.system x", 1, "tags are not supported"),
        (b"{[a]: b}", 1, "as a key"),
        (b"a: 1\n---\nb: 2", 2, "one document"),
        (b"[" * 200 + b"]" * 200, 1, "nested too deeply"),
        (b"a: {<<: 3}", 1, "<<"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(content: Any, line: Any, said: Any) -> None:
    found = problems(content)
    assert found[0].line == line
    assert said in found[0].message


def test_every_duplicate_key_is_listed() -> None:
    assert problems(b"a: {x: 1, x: 2}\na: 1\n") == (
        DocumentProblem(1, "x: this key stands twice here"),
        DocumentProblem(2, "a: this key stands twice here"),
    )


def test_aliases_that_multiply_without_end_are_refused() -> None:
    content = b"l0: &l0 [x, x]\n" + b"".join(
        f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]\n".encode() for n in range(1, 30)
    )
    assert "aliases" in problems(content)[0].message


def test_a_stream_gives_the_entries_of_the_list_one_by_one() -> None:
    breaths = []
    content = b"x-a: 1\nlist:\n" + b"".join(b"- id: %d\n" % n for n in range(500))
    parts = list(stream(content, "list", lambda: breaths.append(1)))
    assert parts[0].path == ("x-a",)
    assert [part.path for part in parts[1:]] == [("list", n) for n in range(500)]
    assert parts[500].value == {"id": 499}
    assert parts[500].lines.find(("id",)) == 502
    assert len(breaths) > 3


def test_a_stream_tells_of_an_empty_list() -> None:
    assert [(part.path, part.value) for part in stream(b"list: []\n", "list")] == [(("list",), [])]


@pytest.mark.parametrize("content", [b"", b"# nothing\n", b"---\n", b"~"])
def test_an_empty_document_is_none(content: Any) -> None:
    assert parse(content).data is None
