"""The catalogue of event types: what producers publish, with its JSON Schema.

The catalogue is documentation first: a subscriber reads here what there is. Two settings make it more:
`api.event_types: catalogued` refuses patterns that match nothing in it (usually a typing error), and
`api.publish_validation` compares events that are published over HTTP with the schemas.

jsonschema-rs compiles the schemas. Rejected: the pure Python library. It takes hundreds of milliseconds for a payload
of a megabyte, on the loop that delivers, and a pattern such as `^(a+)+$` keeps Python's regular expressions busy
for as long as the payload's author likes. In jsonschema-rs patterns run in linear time; a schema with a pattern that
can't (look-around) is refused.

No schema is ever fetched: `$ref` may lead into its own document only. The work that a schema can cause is known
before a payload is compared with it (`core/event/schemas.py`). A schema that multiplies work by itself is refused. A
payload that makes a schema multiply it counts as different from the schema.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import jsonschema_rs
import structlog
from orjson import JSONEncodeError, dumps

from dispatcher.control.errors import Invalid, NotFound, TooLarge, Unavailable, VersionMismatch
from dispatcher.control.operational_events import TYPES
from dispatcher.control.store import ControlStore
from dispatcher.control.table import Row
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.event.decode import MAX_TYPE, RESERVED, valid_type
from dispatcher.core.event.raw_json import RawJson, reading
from dispatcher.core.event.schemas import Cost
from dispatcher.core.flaws import Flaw
from dispatcher.settings.groups import ApiSettings

log = structlog.get_logger(__name__)

MAX_TYPES: Final = 10_000
MAX_SCHEMA: Final = 256 * 1024  # bytes, written as JSON; the example too
_MAX_DESCRIPTION: Final = 10_000
_MAX_FLAWS: Final = 20
_FIELDS: Final = ("description", "schema", "example", "deprecated")
_DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"
_BUILT_IN: Final = (*TYPES, "ping")
_TRIES: Final = 5
_MAX_PATTERN: Final = 1 << 20  # bytes that a compiled pattern may take
_SHALLOW: Final = range(4)  # levels of a payload's nesting for which the schema itself has to answer...
_DEEP: Final = range(4, 65)  # ...and those beyond, as deep as the API takes any
_MAX_COMPARED: Final = 10_000  # subschemas with which a place there may be compared
_MAX_WORK: Final = 50_000  # comparisons that any payload may take; large ones take more...
_MOST_WORK: Final = 1_000_000  # ...but not more than these, 0.3 s...
_EASY: Final = 8  # ...unless it is only so many for a place
# Comparisons up to which it is said what differs: that costs 10 us each, whether told or not.
_EXPLAINED: Final = 20_000


@dataclass(frozen=True, slots=True)
class EventTypeView:
    """An entry of the catalogue, with its version (the ETag)."""

    type: EventType
    version: int
    updated_ms: int


class Catalogue:
    """The event types that are known."""

    _written: tuple[builtins.list[tuple[str, int, int]], bytes] | None = None

    def __init__(self, store: ControlStore, settings: ApiSettings) -> None:
        self._store = store
        self._only_known = settings.event_types == "catalogued"
        # By name, of which version; None where there is no schema, or none that can be used.
        self._compiled: dict[str, tuple[int, _Schema | None]] = {}

    def list(self) -> Sequence[EventTypeView]:
        """All of them, by name."""
        self.check_ready()
        table = self._store.event_types
        return [_view(row) for name in table.names() if (row := table.get(name)) is not None]

    def written(self, write: Callable[[Sequence[EventTypeView]], bytes]) -> bytes:
        """All of them as `write` writes them, which is called only where any has changed since: anybody may ask."""
        views = self.list()
        state = [(view.type.name, view.version, view.updated_ms) for view in views]
        if self._written is None or self._written[0] != state:
            self._written = state, write(views)
        return self._written[1]

    def get(self, name: str) -> EventTypeView:
        """One by its name."""
        self.check_ready()
        row = self._store.event_types.get(name)
        if row is None:
            raise NotFound(f"there is no event type {name[:256]}")
        return _view(row)

    async def put(
        self,
        name: str,
        document: Mapping[str, Any],
        *,
        if_match: int | None = None,
        only_new: bool = False,
    ) -> tuple[EventTypeView, bool]:
        """Add it or, unless `only_new`, replace it; True with it when it is new."""
        self.check_ready()
        wanted = _read(name, document)
        table = self._store.event_types
        for _ in range(_TRIES):
            row = table.get(name)
            if if_match is not None and (row is None or row.version != if_match):
                raise VersionMismatch(None if row is None else row.version)
            if only_new and row is not None:
                raise VersionMismatch(row.version)
            if row is None and len(table) >= MAX_TYPES:
                raise TooLarge(f"the catalogue is full: {MAX_TYPES} event types")
            if row is not None and row.value == wanted:
                return _view(row), False
            try:
                written = await table.put(name, wanted, base=0 if row is None else row.version)
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            return _view(written), row is None
        raise Unavailable(f"{name} is changed by others all the time: send it again", 1.0)

    async def delete(self, name: str, *, if_match: int | None = None) -> None:
        """Forget it. Subscriptions and events of the type stay as they are."""
        for _ in range(_TRIES):
            version = self.get(name).version
            if if_match is not None and version != if_match:
                raise VersionMismatch(version)
            try:
                await self._store.event_types.delete(name, base=version)
            except VersionMismatch:
                if if_match is not None:
                    raise
                continue
            self._compiled.pop(name, None)
            return
        raise Unavailable(f"{name} is changed by others all the time: send it again", 1.0)

    def check_patterns(self, patterns: Sequence[str]) -> Sequence[Flaw]:
        """Flaws of a subscription's patterns, where the setting wants them to match known types."""
        if not self._only_known:
            return []
        known = "\n".join((*_BUILT_IN, *self._store.event_types.names()))
        wrong = (
            Flaw(
                ("event_types", number),
                f"matches no event type of the catalogue (GET /v1/event-types): {pattern[:256]}",
            )
            for number, pattern in enumerate(patterns)
            if not _any_line_matches(pattern, known)
        )
        return list(islice(wrong, _MAX_FLAWS))

    def validate_payload(self, type: str, data: Any) -> Sequence[Flaw]:  # noqa: A002 - the field's name
        """Where a payload differs from its type's schema; nothing for a type without one."""
        schema = self._schema(type)
        if schema is None:
            return []
        return schema.differences(reading(data) if isinstance(data, RawJson) else data, "data")

    def _schema(self, name: str) -> _Schema | None:
        row = self._store.event_types.get(name)
        if row is None:
            self._compiled.pop(name, None)
            return None
        known = self._compiled.get(name)
        if known is None or known[0] != row.version:
            schema = None
            if row.value.schema is not None:
                try:
                    schema = _Schema(row.value.schema)
                except ValueError as error:
                    # Another release took it; a schema must not stop what is published.
                    log.warning(
                        "the schema of an event type can't be used", type=name, error=str(error)[:500]
                    )
            known = self._compiled[name] = (row.version, schema)
        return known[1]

    def check_ready(self) -> None:
        """Raise Unavailable until everything is read."""
        if not self._store.loaded:
            raise Unavailable("the catalogue is still being read: " + (self._store.problem or "wait"))


def _any_line_matches(pattern: str, names: str) -> bool:
    """Whether a pattern (`core.subscriptions.matches`) fits any of the names, one a line.

    One search in C: name by name 256 patterns and 2,000 names took 1.5 s.
    """
    if pattern == "*":
        return True
    *front, last = pattern.split(".")
    steps = [r"[^.\n]*" if step == "*" else re.escape(step) for step in front]
    steps.append(r"[^\n]*" if last == "*" else re.escape(last))
    named = "" if pattern.startswith(RESERVED) else f"(?!{re.escape(RESERVED)})"
    return re.search(f"^{named}" + r"\.".join(steps) + "$", names, re.MULTILINE) is not None


def _view(row: Row[EventType]) -> EventTypeView:
    return EventTypeView(row.value, row.version, row.updated_ms)


def _read(name: str, document: Mapping[str, Any]) -> EventType:
    """The entry that a document describes; raises Invalid with all that is wrong."""
    flaws = [Flaw((field,), "there is no such field") for field in document if field not in _FIELDS]
    if not valid_type(name):
        flaws.append(Flaw(("name",), f"must be 1 to {MAX_TYPE} bytes in UTF-8, without control characters"))
    elif name.startswith(RESERVED):
        flaws.append(Flaw(("name",), f"must not begin with {RESERVED}: those are the dispatcher's own"))
    description = document.get("description")
    if description is None:
        description = ""
    if not isinstance(description, str) or len(description) > _MAX_DESCRIPTION:
        flaws.append(Flaw(("description",), f"must be a text of at most {_MAX_DESCRIPTION} characters"))
    deprecated = document.get("deprecated")
    if deprecated is None:
        deprecated = False
    if not isinstance(deprecated, bool):
        flaws.append(Flaw(("deprecated",), "must be true or false"))
    schema, example = document.get("schema"), document.get("example")
    flaws.extend(_check_schema(schema, example, has_example="example" in document))
    if flaws:
        raise Invalid(flaws)
    return EventType(name, description, schema, example, deprecated)


def _check_schema(schema: Any, example: Any, *, has_example: bool) -> Iterator[Flaw]:
    for name, value in (("schema", schema), ("example", example)):
        try:
            if len(dumps(value)) > MAX_SCHEMA:
                yield Flaw((name,), f"must not be larger than {MAX_SCHEMA} bytes")
                return
        except JSONEncodeError:
            yield Flaw((name,), "is nested too deeply, or not JSON")
            return
    if schema is None:
        return
    if not isinstance(schema, (dict, bool)):
        yield Flaw(("schema",), "must be a JSON Schema: an object, true or false")
        return
    if isinstance(schema, dict) and schema.get("$schema", _DRAFT) != _DRAFT:
        yield Flaw(("schema", "$schema"), f"must be {_DRAFT}, or left out")
        return
    try:
        compiled = _Schema(schema)
    except ValueError as error:
        yield Flaw(("schema",), f"can't be used: {str(error).splitlines()[0][:500]}")
        return
    if has_example and example is not None:
        yield from compiled.differences(example, "example")


class _Schema:
    """A schema that is compiled, and of which it is known what it costs. Raises ValueError for one that can't be used."""

    def __init__(self, schema: dict[str, Any] | bool) -> None:
        # First: what is compiled may be walked through, too.
        self._cost = Cost(schema)
        self._shallow = max(self._cost.at(depth) for depth in _SHALLOW)
        if self._shallow > _MAX_COMPARED:
            raise ValueError(
                f"a single value may have to be compared with more than {_MAX_COMPARED} subschemas, because definitions "
                "that refer to others more than once multiply: refer to each once, or write the schema flatter"
            )
        # Most are of neither kind, and cost nothing more.
        self._counts = (
            self._shallow > _EASY
            or self._cost.weighs
            or any(self._cost.at(depth) > self._shallow for depth in _DEEP)
        )
        self._validator = _compile(schema)

    def differences(self, value: Any, field: str) -> builtins.list[Flaw]:
        """Where the value differs from it; `field` is what the value is called."""
        work = None
        if self._counts:
            places, work, beside = self._cost.of(value)
            easy = places * min(self._shallow, _EASY)
            most = max(_MAX_WORK, easy, min(places * self._shallow, _MOST_WORK))
            if work > most or beside > _MOST_WORK:
                said = (
                    "would take too long to compare with its schema: it is large for a schema of that size, or nested"
                    " deeply where something refers to itself more than once, and each level multiplies"
                )
                return [Flaw((field,), said)]
            work += beside
        if self._validator.is_valid(value):
            return []
        if (work or self._cost.of(value)[1]) > _EXPLAINED:
            return [Flaw((field,), "differs from its schema, and is too large to say where")]
        errors = islice(self._validator.iter_errors(value), _MAX_FLAWS)
        return [Flaw((field, *error.instance_path), error.message[:500]) for error in errors]


def _nothing_fetched(_uri: str) -> Any:
    raise ValueError("a $ref may only lead into its own document (#/$defs/...)")


def _compile(schema: dict[str, Any] | bool) -> jsonschema_rs.Validator:
    """Raises ValueError for what is no schema."""
    return jsonschema_rs.Draft202012Validator(
        schema,
        retriever=_nothing_fetched,
        mask="the value",
        pattern_options=jsonschema_rs.RegexOptions(size_limit=_MAX_PATTERN),
    )
