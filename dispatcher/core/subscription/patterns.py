"""Event-type patterns: which types a pattern wants, and the patterns of one tenant as a group that is searched at once.

A group is a flat tuple of ids and their patterns while it is small: scanning it costs less than keeping a trie. A larger group
is a trie over the dotted segments, so that a search costs what matches, not what is there.

A node of a trie that an index can reach is never written. `regrouped` copies the nodes on the path that it changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from dispatcher.core.event.decode import MAX_TYPE, RESERVED, valid_type

SCANNED: Final = 64  # patterns of a group up to which scanning them is cheaper than keeping a trie


def check_pattern(pattern: str) -> None:
    """Raise ValueError unless it is an event type in which whole segments may be `*`.

    What only a slip of the pen makes of a pattern is refused, though a type may be so: empty segments, spaces around it. `*`
    stands for such segments too.
    """
    if not pattern or len(pattern) > MAX_TYPE:
        raise ValueError(f"must have 1 to {MAX_TYPE} characters")
    for segment in pattern.split("."):
        if segment == "*":
            continue
        if not segment:
            raise ValueError("must not have an empty part between, before or after dots")
        if "*" in segment:
            raise ValueError(
                "has a * that is only a part of a segment: it stands for whole ones, as in billing.*"
            )
    if not valid_type(pattern):
        raise ValueError(f"must have no control characters, and at most {MAX_TYPE} bytes in UTF-8")
    if pattern != pattern.strip():
        raise ValueError("must have no space around it")


def matches(pattern: str, type: str) -> bool:  # noqa: A002 - the field's name
    """Whether a pattern wants an event type.

    `*` as the last segment stands for one or more, so `*` alone for all; anywhere else for exactly one. Reserved types
    are for patterns that name them: `dispatcher.*`, `dispatcher.subscription.disabled`.
    """
    if type.startswith(RESERVED) and not pattern.startswith(RESERVED):
        return False
    if "*" not in pattern:
        return pattern == type
    if pattern.endswith("*"):
        head = pattern[:-1]
        if "*" not in head:
            return type.startswith(head)  # what follows may be an empty segment
        wanted = head[:-1].split(".")
        given = type.split(".")
        if len(given) <= len(wanted):
            return False
    else:
        wanted = pattern.split(".")
        given = type.split(".")
        if len(given) != len(wanted):
            return False
    return all(want in ("*", have) for want, have in zip(wanted, given, strict=False))


# The same few lists of patterns stand in most tenants.
@lru_cache(maxsize=1 << 14)
def _wants(patterns: tuple[str, ...], type: str) -> bool:  # noqa: A002 - the field's name
    return any(matches(pattern, type) for pattern in patterns)


class PatternNode:
    """A place in the trie: the patterns that end here, and those that go on."""

    __slots__ = ("children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, PatternNode] = {}  # by segment; `*` for exactly one
        self.here: dict[str, None] = {}  # ids whose pattern ends here
        self.rest: dict[str, None] = {}  # ids whose pattern goes on with a last `*`

    def copy(self) -> PatternNode:
        node = PatternNode()
        node.children = self.children.copy()
        node.here = self.here.copy()
        node.rest = self.rest.copy()
        return node

    def __bool__(self) -> bool:
        return bool(self.children or self.here or self.rest)


def _add(root: PatternNode, pattern: str, id: str) -> None:  # noqa: A002 - the field's name
    """Into a trie that nobody else sees yet."""
    *path, last = pattern.split(".")
    node = root
    for segment in path:
        child = node.children.get(segment)
        if child is None:
            child = node.children[segment] = PatternNode()
        node = child
    if last == "*":
        node.rest[id] = None
        return
    child = node.children.get(last)
    if child is None:
        child = node.children[last] = PatternNode()
    child.here[id] = None


def _changed(node: PatternNode, segments: Sequence[str], id: str, *, present: bool) -> PatternNode:  # noqa: A002
    """A copy of the trie in which the pattern of these segments leads to the id, or doesn't; the rest is shared."""
    node = node.copy()
    if not segments or (len(segments) == 1 and segments[0] == "*"):
        ids = node.rest if segments else node.here
        if present:
            ids[id] = None
        else:
            ids.pop(id, None)
        return node
    segment = segments[0]
    child = _changed(node.children.get(segment) or PatternNode(), segments[1:], id, present=present)
    if child:
        node.children[segment] = child
    else:
        node.children.pop(segment, None)
    return node


def _walk(root: PatternNode, type: str) -> dict[str, None]:  # noqa: A002 - the field's name
    """Ids of the patterns in the trie that want the type."""
    found: dict[str, None] = {}
    nodes = [root]
    segments = type.split(".")
    if type.startswith(RESERVED):  # only for patterns that name it
        named = root.children.get(segments.pop(0))
        if named is None:
            return found
        nodes = [named]
    for segment in segments:
        following = []
        for node in nodes:
            if node.rest:
                found.update(node.rest)
            children = node.children
            if children:
                if (child := children.get(segment)) is not None:
                    following.append(child)
                if (child := children.get("*")) is not None and segment != "*":
                    following.append(child)
        if not following:
            return found
        nodes = following
    for node in nodes:
        if node.here:
            found.update(node.here)
    return found


def _trie(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> PatternNode:
    root = PatternNode()
    for id_, patterns in pairs:
        for pattern in patterns:
            _add(root, pattern, id_)
    return root


# Small: ids and their patterns in turns. Flat, because a tuple for each pair would be 56 bytes; and with the
# patterns, because these are shared and near, where each subscription is a way to distant memory.
_Small = tuple[Any, ...]
Group = _Small | PatternNode
"""The patterns of one tenant, and the ids that they lead to. False when there are none."""


def _pairs(group: Iterable[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids with their patterns."""
    turns = iter(group)
    return zip(turns, turns, strict=True)


def group_of(flat: Sequence[Any], patterns: int) -> Group:
    """The group of ids and their patterns in turns, of which there are so many altogether."""
    return tuple(flat) if patterns <= SCANNED else _trie(_pairs(flat))


def wanting(group: Group, type: str) -> Iterable[str]:  # noqa: A002 - the field's name
    """The ids of the group whose patterns want the type, each once."""
    if isinstance(group, PatternNode):
        return _walk(group, type)
    return [id_ for id_, patterns in _pairs(group) if _wants(patterns, type)]


def regrouped(group: Group, id: str, patterns: tuple[str, ...], *, present: bool) -> Group:  # noqa: A002
    """The group in which these patterns lead to the id, or don't; it shares with `group` what stays."""
    if isinstance(group, PatternNode):
        for pattern in patterns:
            group = _changed(group, pattern.split("."), id, present=present)
        return group
    pairs = [pair for pair in _pairs(group) if pair[0] != id]
    if present:
        pairs.append((id, patterns))
    if sum(len(each) for _, each in pairs) > SCANNED:
        return _trie(pairs)
    return tuple(part for pair in pairs for part in pair)


def listed(group: Group) -> Sequence[str] | None:
    """The ids, in no order; None for a trie, which doesn't keep them in a row."""
    return None if isinstance(group, PatternNode) else group[::2]


def ids_in(group: Group) -> Iterable[str]:
    """The ids of a group of any size, each once, in no order."""
    if not isinstance(group, PatternNode):
        return group[::2]
    found: dict[str, None] = {}
    nodes = [group]
    while nodes:
        node = nodes.pop()
        found.update(node.here)
        found.update(node.rest)
        nodes += node.children.values()
    return found
