"""YAML as data that remembers its lines, with its mistakes in words for people.

Settings and subscriptions use it: both must say *where* each mistake is, all of them at once. libyaml's events become
data here, beside a tree of line numbers, entry by entry: a file of 100,000 subscriptions takes 7 s and the memory of
one entry. PyYAML's own composer and constructor build the whole tree of nodes first: 19 s and 800 MB for the same
file. A caller that has other work to let through is called back every few hundred events.

Scalars follow YAML 1.2's core schema: `true` and `false` are the only booleans. So a tenant called `no` or `on` stays
text, and nothing turns into a date or a base-60 number. A key that stands twice in a mapping is an error; PyYAML would
silently keep the last. Tags are refused; anchors, aliases and merge keys (`<<`) work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

import yaml
from pydantic_core import ErrorDetails
from yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from dispatcher.core.text.redact import without_credentials

try:
    from yaml import CSafeLoader as _Parser
except ImportError:  # pragma: no cover - PyYAML built without libyaml: slower, the same result
    from yaml import SafeLoader as _Parser  # type: ignore[assignment]

_MAX_DEPTH: Final = 64
_BREATH: Final = 256  # events between two calls of `breathe`


class DocumentProblem(NamedTuple):
    """One mistake. `line` is counted from 1; 0 when there is none to name."""

    line: int
    message: str


class DocumentError(ValueError):
    """Not a document at all; `problems` has one entry or more."""

    def __init__(self, problems: Sequence[DocumentProblem]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in problems))
        self.problems = tuple(problems)


class Lines:
    """Where a value stands, and where its parts do."""

    __slots__ = ("line", "parts")

    def __init__(self, line: int, parts: Mapping[Any, Lines] | Sequence[Lines] | None = None) -> None:
        self.line = line
        self.parts = parts

    def find(self, path: Iterable[str | int]) -> int:
        """The line of the path's end, or of as much of the path as there is."""
        at = self
        for step in path:
            parts = at.parts
            if isinstance(parts, Mapping):
                inner = parts.get(step)
                if inner is None:
                    break
                at = inner
            elif isinstance(parts, Sequence) and isinstance(step, int) and 0 <= step < len(parts):
                at = parts[step]
            else:
                break
        return at.line


class Part(NamedTuple):
    """A top-level entry of a document, or one entry of the list that `stream` was asked for."""

    path: tuple[str | int, ...]
    value: Any
    lines: Lines


class Document(NamedTuple):
    """A whole document. An empty one has None as its data."""

    data: Any
    lines: Lines


_INT = re.compile(r"[-+]?[0-9]{1,18}")
_RADIX = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?")
_CONSTANTS: Final = {
    "": None, "~": None, "null": None, "Null": None, "NULL": None,
    "true": True, "True": True, "TRUE": True,
    "false": False, "False": False, "FALSE": False,
}  # fmt: skip
_NUMERIC: Final = frozenset("-+.0123456789")


def _scalar(text: str) -> Any:
    """What an unquoted scalar means."""
    if not text or text[0] in _NUMERIC:
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text):
            return float(text)
        if _RADIX.fullmatch(text):
            return int(text[2:], 8 if text[1] == "o" else 16)
    return _CONSTANTS.get(text, text)


class _Builder:
    """Data out of events."""

    def __init__(self, text: str, breathe: Callable[[], None] | None) -> None:
        self._next: Callable[[], Any] = _Parser(text).get_event
        self._breathe = breathe
        self._count = 0
        self._copied = 0
        self._anchors: dict[str, tuple[Any, Lines, int]] = {}
        self._names: dict[Hashable, Hashable] = {}  # keys repeat in every entry
        self.problems: list[DocumentProblem] = []

    def event(self) -> Any:
        self._count += 1
        if self._count % _BREATH == 0 and self._breathe is not None:
            self._breathe()
        return self._next()

    def value(self, event: Any, depth: int = 0) -> tuple[Any, Lines]:
        """What begins with this event."""
        line: int = event.start_mark.line + 1
        if type(event) is AliasEvent:
            return self._alias(event.anchor, line)
        if event.tag not in {None, "!"}:
            self.problems.append(DocumentProblem(line, f"has the tag {event.tag}: tags are not supported"))
        if depth > _MAX_DEPTH:
            raise DocumentError([DocumentProblem(line, "is nested too deeply")])
        before = self._count + self._copied
        data: Any
        if type(event) is ScalarEvent:
            data = _scalar(event.value) if event.implicit[0] else event.value
            lines = Lines(line)
        elif type(event) is SequenceStartEvent:
            data = []
            parts = []
            while type(inner := self.event()) is not SequenceEndEvent:
                item, where = self.value(inner, depth + 1)
                data.append(item)
                parts.append(where)
            lines = Lines(line, parts)
        else:
            data, lines = self._mapping(line, depth)
        if event.anchor is not None:
            self._anchors[event.anchor] = (data, lines, self._count + self._copied - before + 1)
        return data, lines

    def _alias(self, anchor: str | None, line: int) -> tuple[Any, Lines]:
        found = self._anchors.get(anchor or "")
        if found is None:
            raise DocumentError(
                [DocumentProblem(line, f"*{anchor} refers to an anchor that doesn't stand before it")]
            )
        data, lines, size = found
        # Aliases of aliases can describe more than fits into any memory, once somebody walks through it.
        self._copied += size
        if self._copied > 1000 * (self._count + 1000):
            raise DocumentError([DocumentProblem(line, "uses aliases to grow beyond measure")])
        return data, Lines(line, lines.parts)

    def key(self, event: Any, depth: int) -> tuple[Any, Lines]:
        """A mapping's key; `<<` as `_MERGE`."""
        if type(event) is ScalarEvent and event.value == "<<" and event.implicit[0]:
            return _MERGE, _at(event)
        key, lines = self.value(event, depth + 1)
        if isinstance(key, (dict, list)):
            raise DocumentError([DocumentProblem(lines.line, "has a list or a mapping as a key")])
        return self._names.setdefault(key, key) if isinstance(key, str) else key, lines

    def _mapping(self, line: int, depth: int) -> tuple[dict[Any, Any], Lines]:
        data: dict[Any, Any] = {}
        parts: dict[Any, Lines] = {}
        merged: list[tuple[Any, Lines]] = []
        while type(event := self.event()) is not MappingEndEvent:
            key, where = self.key(event, depth)
            item, inner = self.value(self.event(), depth + 1)
            if key is _MERGE:
                merged.append((item, inner))
                continue
            if key in data:
                self.twice(key, where.line)
            data[key] = item
            parts[key] = Lines(where.line, inner.parts)
        for item, inner in merged:
            self._merge(data, parts, item, inner)
        return data, Lines(line, parts)

    def twice(self, key: Any, line: int) -> None:
        self.problems.append(DocumentProblem(line, f"{key}: this key stands twice here"))

    def _merge(self, data: dict[Any, Any], parts: dict[Any, Lines], item: Any, lines: Lines) -> None:
        """`<<: *anchor` or `<<: [*one, *other]`: what the mapping doesn't have itself."""
        sources = list(zip(item, lines.parts, strict=True)) if isinstance(item, list) and lines.parts else []
        for source, where in sources or [(item, lines)]:
            if not isinstance(source, dict) or not isinstance(where.parts, Mapping):
                self.problems.append(DocumentProblem(lines.line, "<< must be given a mapping"))
                return
            for key, value in source.items():
                if key not in data:
                    data[key] = value
                    parts[key] = where.parts[key]


def _at(event: Any) -> Lines:
    return Lines(event.start_mark.line + 1)


class _Merge:
    """The type of `<<` as a key."""


_MERGE: Final = _Merge()


def _text(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError([DocumentProblem(line, "is not UTF-8 text")]) from error


def stream(
    content: bytes, key: str | None = None, breathe: Callable[[], None] | None = None
) -> Iterator[Part]:
    """The parts of one YAML document, one after the other, without keeping them.

    A part is a top-level entry, with the path `(name,)`; the list called `key` comes in single entries,
    `(key, 0)`, `(key, 1)`..., or as a part like others if it is empty. Anything but a mapping at the top is one part with an empty path.
    Raises `DocumentError`, possibly after the last part; its messages quote no content but keys.
    """
    return _document(content, breathe, lambda builder: _parts(builder, key))


def parse(content: bytes) -> Document:
    """Read one YAML document. Raises `DocumentError`; its messages quote no content but keys."""
    found = Document(None, Lines(0))
    for part in _document(content, None, _whole):
        found = Document(part.value, part.lines)
    return found


def _document(
    content: bytes, breathe: Callable[[], None] | None, parts: Callable[[_Builder], Iterator[Part]]
) -> Iterator[Part]:
    """The parts of a document that `parts` makes, between checks of what stands around them; errors mapped."""
    text = _text(content)
    try:
        builder = _Builder(text, breathe)
        builder.event()  # the stream's start
        if type(builder.event()) is not StreamEndEvent:  # else empty; now the document's start
            yield from parts(builder)
            if (
                type(builder.event()) is not DocumentEndEvent
                or type(event := builder.event()) is not StreamEndEvent
            ):
                raise DocumentError(
                    [DocumentProblem(event.start_mark.line + 1, "must be one document: `---` begins another")]
                )
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError(
            [DocumentProblem(mark.line + 1 if mark else 0, f"is not valid YAML: {said}")]
        ) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError([DocumentProblem(line, f"is not valid YAML: {error.reason}")]) from error
    except yaml.YAMLError as error:
        raise DocumentError([DocumentProblem(0, "is not valid YAML")]) from error
    if builder.problems:
        raise DocumentError(builder.problems)


def _whole(builder: _Builder) -> Iterator[Part]:
    data, lines = builder.value(builder.event())
    yield Part((), data, lines)


def _parts(builder: _Builder, key: str | None) -> Iterator[Part]:
    top = builder.event()
    if type(top) is not MappingStartEvent:
        data, lines = builder.value(top)
        yield Part((), data, lines)
        return
    seen: set[Any] = set()
    while type(event := builder.event()) is not MappingEndEvent:
        name, where = builder.key(event, 0)
        if name is _MERGE:
            raise DocumentError([DocumentProblem(where.line, "<< can't be used at the top")])
        if name in seen:
            builder.twice(name, where.line)
        seen.add(name)
        inner = builder.event()
        if name != key or type(inner) is not SequenceStartEvent:
            data, lines = builder.value(inner, 1)
            yield Part((name,), data, Lines(where.line, lines.parts))
            continue
        number = 0
        while type(event := builder.event()) is not SequenceEndEvent:
            data, lines = builder.value(event, 1)
            yield Part((name, number), data, lines)
            number += 1
        if not number:
            yield Part((name,), [], where)


_WORDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text: put it in quotes",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a mapping of names to values",
    "model_attributes_type": "must be a mapping of names to values",
    "path_type": "must be a path",
    "invalid_key": "is not a name: put it in quotes",
    "recursion_loop": "contains itself",
}


def explain(error: ErrorDetails, *, secret: bool = False) -> str:
    """A validation error as the end of a sentence whose subject is the field; of a secret, not its value."""
    kind = error["type"]
    context = error.get("ctx", {})
    if kind in {"value_error", "assertion_error"}:
        said = str(context["error"])
    elif kind in {"literal_error", "enum"}:
        said = f"must be {context['expected']}"
    elif kind in _WORDS:
        said = _WORDS[kind]
    else:
        said = re.sub(
            r"^(Input|Value|String|List|Tuple|Number) should (be|have|match)", r"must \2", error["msg"]
        )
    value = error["input"]
    if (
        secret
        or kind == "missing"
        or not said.startswith("must")
        or isinstance(value, (dict, list, tuple, set))
    ):
        return said
    if value is None:
        return f"{said} (it is empty)"
    shown = (
        without_credentials(value)
        if isinstance(value, str)
        else str(value).lower()
        if isinstance(value, bool)
        else str(value)
    )
    return f"{said}, not {shown[:77] + '...' if len(shown) > 80 else shown!r}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing when no known name is near."""
    if len(name) > 64:
        return ""  # nobody's typing error, and comparing takes long
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
