"""The settings in force: file < environment < flags, and where each value came from.

`load` is the one way in for the daemon. It merges the three sources, remembering where each
value came from, validates all of it, and raises one `SettingsError` that lists *every* mistake
with its place. It reads the environment it is given and nothing else; nobody reads it again.

pydantic-settings was rejected: it reads `os.environ` by itself, passes over unknown
nested variables in silence, and forgets which source a value came from, which is what a
message must say.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args

import yaml
from pydantic import SecretStr, ValidationError

from dispatcher.core.text import yaml_document as document
from dispatcher.core.text.redact import without_credentials
from dispatcher.core.text.units import WRITTEN, Duration, Size, format_duration, format_size
from dispatcher.core.text.yaml_document import Document, DocumentError, did_you_mean, explain
from dispatcher.settings.groups import Settings, SettingsGroup

PREFIX: Final = "DISPATCHER_"
_NESTING: Final = "__"

# Not settings: the file's own name, what the commands that call the API take, and what the test suite takes.
_NOT_SETTINGS: Final = re.compile(r"DISPATCHER_(?:CONFIG|API_URL|API_KEY|TEST_.*)")

# Kubernetes puts these into every pod of a namespace that has a Service called `dispatcher` or `dispatcher-...`.
_SERVICE_LINK: Final = re.compile(
    r"DISPATCHER_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_MOST_GUESSES: Final = 3
_SERVICE_PORT: Final = re.compile(r"DISPATCHER_(?:[A-Z0-9]+_)*PORT")
_SERVICE_PORT_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")


class Mistake(NamedTuple):
    """One thing that is wrong with the settings, and where it was written."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class Flag(NamedTuple):
    """A value from the command line, and the option that it was given by: `--http-port`, `--set`."""

    option: str
    value: Any


class SettingsError(ValueError):
    """The settings can't be used; `mistakes` are all of them."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


_Name = tuple[str, ...]


class Effective(NamedTuple):
    """One setting as it is in force."""

    name: str  # dotted
    value: str  # as it would be written in the file; secrets masked
    source: str  # "default", "config/dispatcher.yaml:12", "environment DISPATCHER_...", "--http-port"


@cache
def _fields() -> Mapping[_Name, Any]:
    """Every setting's path and its annotation, in the order of the file."""
    fields: dict[_Name, Any] = {}
    for name, info in Settings.model_fields.items():
        group = _group(name)
        if group is None:
            fields[(name,)] = info
        else:
            fields.update({(name, inner): value for inner, value in group.model_fields.items()})
    return fields


def _group(name: str) -> type[SettingsGroup] | None:
    info = Settings.model_fields.get(name)
    kind = info.annotation if info is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, SettingsGroup) else None


_ADDRESSES: Final = {
    ("broker",),
    ("network", "proxy"),
    ("tracing", "endpoint"),
}  # people write passwords into them


@cache
def _secret(name: _Name) -> bool:
    """A value of this setting must not be shown. Of an unknown one nothing is shown either."""
    info = _fields().get(name)
    return info is None or _mentions(SecretStr, info.annotation)


def _mentions(kind: Any, annotation: Any) -> bool:
    return annotation is kind or any(_mentions(kind, part) for part in get_args(annotation))


def _is(kind: Any, name: _Name) -> bool:
    """Whether the setting is written as a `Duration` or a `Size`, alone or in a list."""
    marker = get_args(kind)[1]
    info = _fields()[name]
    return any(part is marker for part in info.metadata) or _mentions_marker(marker, info.annotation)


def _mentions_marker(marker: Any, annotation: Any) -> bool:
    return any(part is marker or _mentions_marker(marker, part) for part in get_args(annotation))


def names() -> tuple[str, ...]:
    """Every setting, dotted, in the order of the file."""
    return tuple(".".join(name) for name in _fields())


def load(file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """The settings in force, or a `SettingsError` with everything that is wrong.

    `overrides` are the flags that were given, by dotted name (`{"http.port": Flag("--http-port", 9000)}`).
    A value without its flag is named after the setting; one of None was not given.
    """
    mistakes: list[Mistake] = []
    values: dict[_Name, Any] = {}
    sources: dict[_Name, str] = {}
    where: dict[_Name, tuple[Document, str]] = {}
    if file is not None:
        _from_file(file, values, sources, where, mistakes)
    _from_environment(environ, values, sources, where, mistakes)
    _from_flags(overrides, values, sources, where, mistakes)

    def place(name: _Name, rest: Sequence[str | int] = ()) -> str:
        """Where the value came from; into lists as deep as the file's lines go."""
        if name in where:
            read, path = where[name]
            return f"{path}:{read.lines.find((*name, *rest))}"
        return sources.get(name, "settings")

    wrong: set[_Name] = set()
    try:
        settings = Settings.model_validate(_nested(values), context=WRITTEN)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            location = error["loc"]
            name = _name_of(location)
            inside = [step for step in location[len(name) :] if isinstance(step, int)]
            subject = ".".join(name) + "".join(f"[{index}]" for index in inside)
            said = explain(error, secret=_secret(name) or name in _ADDRESSES)
            mistake = Mistake(place(name, inside), f"{subject}: {said}")
            if mistake not in mistakes:
                mistakes.append(mistake)
            wrong.add(name)
        # What remains is valid: its checks between fields still run, so that one start lists all mistakes.
        right = {name: value for name, value in values.items() if name not in wrong}
        settings = Settings.model_validate(_nested(right), context=WRITTEN)
    for fields, message in _between_fields(settings):
        if wrong.isdisjoint(fields):
            told = next((name for name in fields if name in sources), fields[0])
            mistakes.append(Mistake(place(told), f"{'.'.join(fields[0])}: {message}"))
    if mistakes:
        raise SettingsError(mistakes)
    settings._sources.update({name: place(name) for name in sources})
    return settings


def _between_fields(settings: Settings) -> Iterator[tuple[tuple[_Name, ...], str]]:
    for fields, message in settings.between_fields():
        yield tuple(tuple(field.split(".")) for field in fields), message
    for name in Settings.model_fields:
        group = getattr(settings, name)
        if isinstance(group, SettingsGroup):
            for fields, message in group.between_fields():
                yield tuple((name, field) for field in fields), message


def _name_of(location: Sequence[str | int]) -> _Name:
    """The setting that an error's location is in; pydantic adds union and tuple members to it."""
    head = tuple(str(step) for step in location[:2])
    return head if head in _fields() else head[:1]


def _nested(values: Mapping[_Name, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if len(name) == 1:
            nested[name[0]] = value
        else:
            nested.setdefault(name[0], {})[name[1]] = value
    return nested


def _from_file(
    file: Path,
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    try:
        read = document.parse(file.read_bytes())
    except OSError as error:
        mistakes.append(Mistake(str(file), f"can't be read: {error.strerror or error}"))
        return
    except DocumentError as error:
        mistakes.extend(
            Mistake(f"{file}:{line}" if line else str(file), said) for line, said in error.problems
        )
        return
    if read.data is None:
        return
    if not isinstance(read.data, dict):
        mistakes.append(
            Mistake(f"{file}:{read.lines.find(())}", "must be a mapping of settings: `name: value`")
        )
        return

    def take(name: _Name, value: Any) -> None:
        values[name] = value
        where[name] = (read, str(file))
        sources[name] = str(file)

    for key, value in read.data.items():
        at = f"{file}:{read.lines.find((key,))}"
        if (key,) in _fields():
            take((key,), value)
        elif not isinstance(key, str) or _group(key) is None:
            mistakes.append(Mistake(at, _unknown((str(key),))))
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                if (key, inner) in _fields():
                    take((key, inner), inner_value)
                else:
                    line = read.lines.find((key, str(inner)))
                    mistakes.append(Mistake(f"{file}:{line}", _unknown((key, str(inner)))))
        elif value is not None:  # a group of which everything is commented out
            mistakes.append(Mistake(at, f"{key}: must be a mapping of settings, one a line, indented"))


def _unknown(name: _Name) -> str:
    """What to say of a setting that doesn't exist: perhaps a typing error, perhaps the wrong group."""
    dotted = ".".join(name)
    known = names()
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == name[-1]]
    close = get_close_matches(dotted, known, n=1, cutoff=0.6)
    if len(name) == 1 and not same:
        close = get_close_matches(dotted, Settings.model_fields, n=1, cutoff=0.6) or close
    guess = same if len(same) == 1 or (len(name) == 1 and 0 < len(same) <= _MOST_GUESSES) else close
    return f"{without_credentials(dotted)}: there is no such setting" + (
        f" (did you mean {' or '.join(guess)}?)" if guess else ""
    )


def _variable(name: _Name) -> str:
    return PREFIX + _NESTING.join(name).upper()


@cache
def _variables() -> Mapping[str, _Name]:
    return {_variable(name): name for name in _fields()}


def _from_environment(
    environ: Mapping[str, str],
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        value = environ[variable]
        name = _variables().get(variable)
        if name is None:
            if not _is_service_link(variable, value):
                mistakes.append(Mistake(f"environment {variable}", _unknown_variable(variable)))
        elif value:  # an empty one is not set, as in `X: ${X:-}` of a compose file
            values[name] = value
            sources[name] = f"environment {variable}"
            where.pop(name, None)


def _is_service_link(variable: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_PORT_VALUE.match(value))


def _unknown_variable(variable: str) -> str:
    group = variable.removeprefix(PREFIX).lower()
    kind = _group(group)
    if kind is not None:
        return f"names a group of settings; set {_variable((group, next(iter(kind.model_fields))))} and so on"
    return f"there is no such setting{did_you_mean(variable.upper(), _variables())}"


def _from_flags(
    overrides: Mapping[str, Any],
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    for dotted, given in overrides.items():
        if given is None:
            continue
        name = tuple(dotted.split("."))
        option, value = given if isinstance(given, Flag) else (_flag(name), given)
        if name not in _fields():
            kind = _group(dotted)
            known = None if kind is None else f"{dotted}.{next(iter(kind.model_fields))}"
            said = f"{dotted}: names a group of settings; set {known} and so on" if known else _unknown(name)
            mistakes.append(Mistake(option, said))
            continue
        values[name] = value
        sources[name] = option
        where.pop(name, None)


def _flag(name: _Name) -> str:
    return "--" + "-".join(name).replace("_", "-")


def describe(settings: Settings) -> list[Effective]:
    """Every setting in force and where it came from, in the order of the file; secrets are masked."""
    described = []
    for name in _fields():
        value: Any = settings
        for part in name:
            value = getattr(value, part)
        source = settings._sources.get(name, "default")
        described.append(Effective(".".join(name), _written(name, value), source))
    return described


def _written(name: _Name, value: Any) -> str:
    """As the file would have it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(_written(name, item) for item in value)}]"
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, bool):
        return str(value).lower()
    if name == ("network", "ports"):
        return str(value)
    if isinstance(value, (int, float)):
        if _is(Duration, name):
            return format_duration(value)
        return format_size(int(value)) if _is(Size, name) else f"{value:g}" if value < 1 else str(value)
    # In a list, so that it is quoted where a list would need it.
    return yaml.safe_dump([str(value)], default_flow_style=True, width=10_000, allow_unicode=True)[1:-2]
