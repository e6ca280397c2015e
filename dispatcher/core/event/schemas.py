"""What comparing a payload with a JSON Schema can cost, known before it is done.

The problem: a schema of a kilobyte can ask for more work than there is time. Two references to the next definition, in
each of thirty definitions, are a billion comparisons of one number; and a definition that refers to itself in two
alternatives (an expression, say: `add` or `multiply`, each with a `left`) doubles the work with every level that the
*payload's* author nests it. A validator does as it is told, and nothing ends it half-way, while the loop that delivers
waits.

So the work is counted on the schema's graph: subschemas are its vertices; what applies to the same place of the payload
(`allOf`, `$ref`, `if`...) and what applies to a place below it (`properties`, `items`...) are its edges. `at(d)` is how many
subschemas a place `d` levels deep is compared with, at the most: of several members of `properties` one, since they are
different places; of alternatives all. With a payload's number of places at each depth that bounds its work. Some keywords cost
more than a comparison, by the value at hand: `schema_work.py` says how much.

Rejected: counting expanded references alone, which refuses every tree that refers to itself (harmless: each child is its
own place) or lets the doubling one through; a time limit, since the validator can't be interrupted; refusing
recursion, which some payloads are made of.

Source: JSON Schema 2020-12, core 7.5 and 10 for which keyword applies where.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from dispatcher.core.event.schema_work import Weight, amounts, weight

MAX_SUBSCHEMAS: Final = 10_000
_MANY: Final = 1 << 40  # counts end here

_REFERENCES: Final = ("$ref", "$dynamicRef", "$recursiveRef")
_HERE_ONE: Final = ("not", "if", "then", "else")
_HERE_LIST: Final = ("allOf", "anyOf", "oneOf")
_HERE_MAP: Final = ("dependentSchemas", "dependencies")
_ASIDE: Final = ("$defs", "definitions")


class TooMany(ValueError):
    """More subschemas than anybody writes."""


class _Below:
    """What applies to the members of an object, or to the items of an array; vertices by number."""

    __slots__ = ("always", "named", "other")

    def __init__(self) -> None:
        self.named: list[int] = []  # to one place each
        self.other: list[int] = []  # to those that have no name of their own
        self.always: list[int] = []

    def count(self, level: Sequence[int]) -> int:
        """How many a place below is compared with, at the most, where `level` is what each of them leads to."""
        named = max([level[each] for each in self.named], default=0)
        return max(named, _sum(self.other, level)) + _sum(self.always, level)


class _Vertex:
    """One subschema."""

    __slots__ = ("below", "here", "references", "resource", "schema", "weight")

    def __init__(self, schema: object, resource: int, pattern: str | None) -> None:
        self.schema = schema
        self.weight = weight(schema if isinstance(schema, dict) else {}, pattern)
        self.resource = resource  # the number of what its references begin at
        self.here: list[int] = []
        self.below: Sequence[_Below] = ()
        self.references: list[str] = []


class Cost:
    """The work that a schema asks for. Raises TooMany."""

    def __init__(self, schema: object) -> None:
        self._vertices: list[_Vertex] = []
        self._numbers: dict[int, int] = {}  # by the identity of what they are made of
        self._names: dict[str, int] = {}  # $id and $anchor
        self._collect(schema, 0)
        for vertex in self._vertices:  # grows, where a reference leads to what no keyword does
            vertex.here += [self._resolve(vertex.resource, reference) for reference in vertex.references]
        for vertex in self._vertices:
            vertex.below = [below for below in vertex.below if below.named or below.other or below.always]
        self._order = self._sorted()
        weights = [vertex.weight for vertex in self._vertices]
        self._compared = _Levels(self, [1] * len(weights))
        self._weighing = [
            _Levels(self, [part[kind] for part in weights]) for kind in range(len(Weight._fields))
        ]
        self.weighs = any(any(part) for part in weights)
        """Whether any keyword costs more than its subschema's being there."""

    def at(self, depth: int) -> int:
        """How many subschemas, at the most, a place `depth` levels deep is compared with."""
        return self._compared.at(depth)

    def of(self, payload: object) -> tuple[int, int, int]:
        """Of a payload: its places, the comparisons with a subschema that these take together, and what keywords cost beside them.

        All at the most; the last in comparisons, too.
        """
        count = work = beside = depth = names = 0
        places: list[object] = [payload]
        while places:
            count += len(places)
            work += len(places) * self.at(depth)
            if self.weighs:
                fixed, *factors = [kind.at(depth) for kind in self._weighing]
                beside += len(places) * fixed
                if any(factors):
                    beside += amounts(places, names).cost(*factors)
                names = sum([sum(map(len, place)) for place in places if isinstance(place, dict)])
            places = [inner for place in places for inner in _inside(place)]
            depth += 1
        return count, work, beside

    def level(self, base: Sequence[int], above: Sequence[int] | None) -> list[int]:
        """What each vertex as the root leads to, for places one level deeper than those of `above`; `base` is what each is by itself."""
        level = [0] * len(self._vertices)
        for number in self._order:  # what applies here too has been counted before
            vertex = self._vertices[number]
            count = base[number] if above is None else 0
            if above is not None and vertex.below:
                count = max([below.count(above) for below in vertex.below])
            if vertex.here:
                # 0 for what leads back to where it is counted: a circle at one place ends a validator's work, too.
                count += _sum(vertex.here, level)
            if count:
                level[number] = min(count, _MANY)
        return level

    def _collect(self, schema: object, resource: int) -> int:
        """All subschemas of this one as vertices; its own number."""
        first = len(self._vertices)
        left: list[tuple[object, int, list[int], str | None]] = [(schema, resource, [], None)]
        for found, outer, into, pattern in left:  # grows
            number = len(self._vertices)
            if number >= MAX_SUBSCHEMAS:
                raise TooMany(f"has more than {MAX_SUBSCHEMAS} subschemas")
            into.append(number)
            members: Mapping[str, Any] = found if isinstance(found, dict) else {}
            inner = outer
            if isinstance(name := members.get("$id"), str):
                inner = number
                self._names.setdefault(name.rstrip("#"), number)
            vertex = _Vertex(found, inner, pattern)
            self._vertices.append(vertex)
            self._numbers.setdefault(id(found), number)
            for keyword in ("$anchor", "$dynamicAnchor"):
                if isinstance(name := members.get(keyword), str):
                    self._names.setdefault(f"#{name}", number)
            vertex.references = [
                text for keyword in _REFERENCES if isinstance(text := members.get(keyword), str)
            ]
            if members:
                left += [(each, inner, group, named) for each, group, named in _parts(members, vertex)]
        return first

    def _resolve(self, resource: int, reference: str) -> int:
        """The vertex that a reference leads to; the root where that isn't clear."""
        base, _, fragment = reference.partition("#")
        if base:
            resource = next((at for name, at in self._names.items() if _same(name, base)), 0)
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            return self._names.get(f"#{fragment}", 0)
        for start in dict.fromkeys((resource, 0)):
            found = _pointed(self._vertices[start].schema, fragment)
            if isinstance(found, (dict, bool)):
                number = self._numbers.get(id(found))
                return self._collect(found, start) if number is None else number
        return 0

    def _sorted(self) -> list[int]:
        """Vertices, each after those that apply at the same place because of it; a circle is cut somewhere."""
        order: list[int] = []
        seen = [False] * len(self._vertices)
        for start in range(len(self._vertices)):
            if seen[start]:
                continue
            seen[start] = True
            stack = [(start, iter(self._vertices[start].here))]
            while stack:
                number, rest = stack[-1]
                following = next((each for each in rest if not seen[each]), None)
                if following is None:
                    order.append(number)
                    stack.pop()
                else:
                    seen[following] = True
                    stack.append((following, iter(self._vertices[following].here)))
        return order


class _Levels:
    """What places at each depth are compared with, by one measure."""

    __slots__ = ("_base", "_cost", "_levels")

    def __init__(self, cost: Cost, base: Sequence[int]) -> None:
        self._cost = cost
        self._base = base if any(base) else ()  # nothing leads to anything
        self._levels: list[list[int]] = []

    def at(self, depth: int) -> int:
        if not self._base:
            return 0
        levels = self._levels
        while len(levels) <= depth:
            if len(levels) > 1 and levels[-1] == levels[-2]:
                return levels[-1][0]  # and so for ever
            # In the place of the old ones, not added to them: another thread may be at it, too.
            levels = self._levels = [
                *levels,
                self._cost.level(self._base, levels[-1] if levels else None),
            ]
        return levels[depth][0]


def _parts(schema: Mapping[str, Any], vertex: _Vertex) -> Iterator[tuple[object, list[int], str | None]]:
    """The subschemas right below, each with the list of the vertex that it belongs into, and its pattern if it stands under one."""
    members, items = _Below(), _Below()
    vertex.below = (members, items)
    aside: list[int] = []
    one: tuple[tuple[str, list[int]], ...] = (
        *((keyword, vertex.here) for keyword in _HERE_ONE),
        ("additionalProperties", members.other),
        ("unevaluatedProperties", members.other),
        ("propertyNames", members.always),
        ("items", items.other),
        ("unevaluatedItems", items.other),
        ("contains", items.always),
    )
    several: tuple[tuple[str, list[int]], ...] = (
        *((keyword, vertex.here) for keyword in (*_HERE_LIST, *_HERE_MAP)),
        ("properties", members.named),
        ("patternProperties", members.always),
        ("prefixItems", items.named),
        *((keyword, aside) for keyword in _ASIDE),
    )
    for keyword, group in one:
        if isinstance(found := schema.get(keyword), (dict, bool)):
            yield found, group, None
    for keyword, group in several:
        parts = schema.get(keyword)
        for found in _inside(parts):
            if isinstance(found, (dict, bool)) and keyword != "patternProperties":
                yield found, group, None
        if keyword == "patternProperties" and isinstance(parts, dict):
            for name, found in parts.items():
                if isinstance(found, (dict, bool)):
                    yield found, group, name


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _sum(numbers: Iterable[int], level: Sequence[int]) -> int:
    return sum([level[number] for number in numbers])


def _same(name: str, reference: str) -> bool:
    """Whether a reference means what has this `$id`. Without resolving URIs: of two with one last part, either."""
    return name.rpartition("/")[2] == reference.rpartition("/")[2]


def _pointed(schema: object, pointer: str) -> object:
    """What a JSON pointer (RFC 6901), as a URI's fragment, leads to; None for nothing."""
    found = schema
    for step in unquote(pointer).split("/")[1:]:
        name = step.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict):
            found = found.get(name)
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            return None
    return found
