"""YAML as data that remembers its lines, and what is wrong with it in words for people.

Used for the settings and the subscriptions: both must say *where* each mistake is, all of them
at once. The C parser composes nodes that know their lines; data is built from them, and lines
are looked up only when there is something to say, so a file without mistakes pays nothing.

Scalars follow YAML 1.2's core schema: `true` and `false` are the only booleans, so that a
tenant called `no` or `on` stays what it is, and nothing turns into a date or a base-60 number.
A key that stands twice in a mapping is an error; PyYAML would silently keep the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final, NamedTuple

import yaml
from pydantic_core import ErrorDetails

Path = tuple[str | int, ...]

try:
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # pragma: no cover - PyYAML built without libyaml: slower, the same result
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]


class Problem(NamedTuple):
    """One mistake. `line` is counted from 1; 0 when there is none to name."""

    line: int
    message: str


class DocumentError(ValueError):
    """Not a document at all; `problems` has one entry or more."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"line {line}: {message}" for line, message in problems))
        self.problems = tuple(problems)


class _Loader(_BaseLoader):
    """The safe loader with YAML 1.2's scalars, which refuses duplicate keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's way

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[Problem] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    self.duplicates.append(Problem(_line(key), f"{key.value}: this key stands twice here"))
                seen.add(key.value)
        result: dict[Any, Any] = super().construct_mapping(node, deep)
        return result


for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]{1,18}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]{1,3})?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}",
        re.compile(rf"^(?:{_pattern})$"),
        ["" if c == "\0" else c for c in _first],
    )


def _construct_int(_: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, 8) if text.startswith("0o") else int(text, 16) if text.startswith("0x") else int(text)


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


class Document:
    """Data, and the line of each part of it."""

    __slots__ = ("_root", "data")

    def __init__(self, data: Any, root: yaml.Node | None) -> None:
        self.data = data
        self._root = root

    def line(self, path: Iterable[str | int]) -> int:
        """Where the path stands, or as much of it as there is; 0 for an empty document."""
        node = self._root
        if node is None:
            return 0
        line = _line(node)
        for step in path:
            if isinstance(node, yaml.MappingNode):
                # The last one counts: own keys stand behind those that `<<` merged in.
                pairs = [pair for pair in node.value if pair[0].value == str(step)]
                if not pairs:
                    break
                key, node = pairs[-1]
                line = _line(key)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = _line(node)
            else:
                break
        return line


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def parse(content: bytes) -> Document:
    """Read one YAML document. Raises `DocumentError`; its messages quote no content but keys."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DocumentError([Problem(line, "is not UTF-8 text")]) from error
    try:
        loader = _Loader(text)
        try:
            root = loader.get_single_node()
            data = None if root is None else loader.construct_document(root)
            duplicates = loader.duplicates
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        raise DocumentError([Problem(mark.line + 1 if mark else 0, f"is not valid YAML: {said}")]) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise DocumentError([Problem(line, f"is not valid YAML: {error.reason}")]) from error
    except yaml.YAMLError as error:
        raise DocumentError([Problem(0, "is not valid YAML")]) from error
    except RecursionError as error:
        raise DocumentError([Problem(0, "is nested too deeply")]) from error
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        # An explicit tag whose text doesn't fit it (`!!float x`, `!!bool x`): PyYAML raises what comes.
        raise DocumentError(
            [Problem(0, "has a value that doesn't fit its explicit tag (`!!...`)")]
        ) from error
    if duplicates:
        raise DocumentError(duplicates)
    return Document(data, root)


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
    shown = value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return f"{said}, not {shown[:77] + '...' if len(shown) > 80 else shown!r}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing when no known name is near."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
