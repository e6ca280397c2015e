"""Subscriptions as the hot path uses them, and the index that finds those an event is for.

The problem: a million subscriptions over a hundred thousand tenants, asked tens of thousands of
times a second, changed one at a time while that goes on. So three layers:

- **The answers.** A dictionary from tenant and type to a ready tuple: two look-ups. Filled as
  events come, so it is as large as what is really published, and bounded, because types come
  from outside.
- **The patterns.** Filling an answer looks at one tenant's patterns (and those for every
  tenant) only. A tenant of the usual size is scanned; a large one has a trie over the dotted
  segments, so that its cost is that of the matches, not of the patterns. Both hold ids.
- **The subscriptions** by id. Since patterns lead to ids, what changes most, a status, touches
  no pattern.

An index is immutable; `replaced` and `without` return a new one that shares nearly all of the
old. The dictionaries are cut into shards of some hundred entries, and only the shard that changes
is copied: some ten microseconds for one among a million, where copying whole dictionaries takes
tens of milliseconds and a fresh build seconds. A persistent hash trie (HAMT) would do the same
with slower look-ups and far more Python.

Rules:

1. After its construction nothing in an index changes but the answers, which can be derived anew
   at any time. A `Subscription` never changes but for `request`, `route` and `vitals`, made at the first delivery.
2. A successor takes the answers over, without those its change affects; its predecessor starts
   over with none. So answers are never shared, and one change doesn't make every tenant cold.
3. A group (one tenant's patterns) is a flat tuple while it is small, else a trie. Nodes reachable
   from an index are never written: a successor copies those on the path it changes.
4. Only the loop's thread asks for matches; building may happen in any thread.

Measured by benchmarks/bench_match.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from itertools import count, islice
from typing import Any, Final, NamedTuple, TypeVar

from dispatcher.core.event.decode import MAX_TYPE, RESERVED, valid_type
from dispatcher.core.request.build import Template, template
from dispatcher.core.request.netguard import Origin, Target
from dispatcher.core.request.signing import make_signers
from dispatcher.core.retry.policy import RetryPolicy

EVERY_TENANT: Final = "*"

K = TypeVar("K")
V = TypeVar("V")

_SCANNED: Final = 64  # patterns of a group up to which scanning them is cheaper than keeping a trie
_SHARD: Final = 512  # entries of a dictionary that are copied together
_SPREAD: Final = 4 * _SHARD  # entries of one of them beyond which all are spread over more
_ANSWERS: Final = 1 << 18  # answers kept, over all tenants
_ANSWERS_OF_ONE: Final = 1 << 14  # answers kept of one tenant, and of all unknown ones together
_serials: Final = count(1)


class Status(StrEnum):
    """Whether a subscription is delivered to."""

    ACTIVE = "active"
    PAUSED = "paused"  # its owner wants nothing for now: what matches is dropped
    PENDING = "pending"  # not validated yet
    DISABLED = "disabled"  # the dispatcher or an operator gave up on it


class ClientCertificate(NamedTuple):
    """What the dispatcher proves itself with to one subscriber (mTLS): PEM files; one file may hold both."""

    cert_file: str
    key_file: str | None = None


class Subscription:
    """Who wants which events, and how to deliver them. Made by `core/subscription/spec.py`; treated as immutable.

    Plain slots, and parts that are equal are shared between subscriptions: there may be a million.
    """

    __slots__ = (
        "certificate",
        "event_types",
        "follow_redirects",
        "headers",
        "id",
        "max_in_flight",
        "origin",
        "rate_limit",
        "reason",
        "request",
        "retry",
        "route",
        "secrets",
        "signatures",
        "status",
        "target",
        "tenant",
        "thin",
        "timeout",
        "vitals",
    )

    request: Template
    """The constant parts of every request to it, made at first use."""
    route: object
    """Whoever delivers to it keeps here how it gets there. Nothing else looks at it."""
    vitals: object
    """Likewise, how that has gone (`vitals.py`), once anything was delivered."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        origin: Origin,
        target: str,
        event_types: tuple[str, ...],
        secrets: tuple[str, ...],
        signatures: tuple[str, ...],
        headers: tuple[tuple[str, str], ...],
        thin: bool,
        timeout: float,
        max_in_flight: int,
        retry: RetryPolicy,
        status: Status,
        follow_redirects: bool = False,
        certificate: ClientCertificate | None = None,
        reason: str | None = None,
        rate_limit: float | None = None,
    ) -> None:
        """`target` is the URL's path and query as sent, `timeout` in seconds, `reason` why it is disabled.

        `rate_limit` is in deliveries a second.
        """
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self.route = None
        self.vitals = None
        self.id = id
        self.status = status
        self.max_in_flight = max_in_flight
        self.rate_limit = rate_limit
        self.timeout = timeout
        self.certificate = certificate
        self.tenant = tenant
        self.origin = origin
        self.target = target
        self.event_types = event_types
        self.secrets = secrets
        self.signatures = signatures
        self.headers = headers
        self.thin = thin
        self.retry = retry
        self.follow_redirects = follow_redirects
        self.reason = reason

    def __getattr__(self, name: str) -> Template:
        # Called only while the slot is empty, so a filled one costs the hot path nothing.
        if name != "request":
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        signers = make_signers(self.secrets, self.signatures)
        target = Target(self.origin, self.target, self.origin.host_header)
        self.request = made = template(target, self.headers, signers, thin=self.thin)
        return made

    def __repr__(self) -> str:
        return f"<Subscription {self.id} {self.status} tenant={self.tenant!r} {self.origin}>"

    @property
    def url(self) -> str:
        """In its canonical spelling."""
        return f"{self.origin}{self.target}"

    def with_status(self, status: Status, reason: str | None = None) -> Subscription:
        """The same, but for its status."""
        return Subscription(
            id=self.id,
            tenant=self.tenant,
            origin=self.origin,
            target=self.target,
            event_types=self.event_types,
            secrets=self.secrets,
            signatures=self.signatures,
            headers=self.headers,
            thin=self.thin,
            timeout=self.timeout,
            max_in_flight=self.max_in_flight,
            retry=self.retry,
            status=status,
            follow_redirects=self.follow_redirects,
            certificate=self.certificate,
            reason=reason,
            rate_limit=self.rate_limit,
        )


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


# The same few lists of patterns stand in most tenants: 0.15 us instead of some microseconds for each subscription.
@lru_cache(maxsize=1 << 14)
def _wants(patterns: tuple[str, ...], type: str) -> bool:  # noqa: A002 - the field's name
    return any(matches(pattern, type) for pattern in patterns)


class _Node:
    """A place in the trie: the patterns that end here, and those that go on."""

    __slots__ = ("children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}  # by segment; `*` for exactly one
        self.here: dict[str, None] = {}  # ids whose pattern ends here
        self.rest: dict[str, None] = {}  # ids whose pattern goes on with a last `*`

    def copy(self) -> _Node:
        node = _Node()
        node.children = self.children.copy()
        node.here = self.here.copy()
        node.rest = self.rest.copy()
        return node

    def __bool__(self) -> bool:
        return bool(self.children or self.here or self.rest)


def _add(root: _Node, pattern: str, id: str) -> None:  # noqa: A002 - the field's name
    """Into a trie that nobody else sees yet."""
    *path, last = pattern.split(".")
    node = root
    for segment in path:
        child = node.children.get(segment)
        if child is None:
            child = node.children[segment] = _Node()
        node = child
    if last == "*":
        node.rest[id] = None
        return
    child = node.children.get(last)
    if child is None:
        child = node.children[last] = _Node()
    child.here[id] = None


def _changed(node: _Node, segments: Sequence[str], id: str, *, present: bool) -> _Node:  # noqa: A002
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
    child = _changed(node.children.get(segment) or _Node(), segments[1:], id, present=present)
    if child:
        node.children[segment] = child
    else:
        node.children.pop(segment, None)
    return node


def _walk(root: _Node, type: str) -> dict[str, None]:  # noqa: A002 - the field's name
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


def _trie(pairs: Iterable[tuple[str, tuple[str, ...]]]) -> _Node:
    root = _Node()
    for id_, patterns in pairs:
        for pattern in patterns:
            _add(root, pattern, id_)
    return root


# Small: ids and their patterns in turns. Flat, because a tuple for each pair would be 56 bytes; and with the
# patterns, because these are shared and near, where each subscription is a way to distant memory.
_Small = tuple[Any, ...]
_Group = _Small | _Node


def _pairs(group: Iterable[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Ids with their patterns."""
    turns = iter(group)
    return zip(turns, turns, strict=True)


_Answer = tuple[Subscription, ...]


class _Answers:
    """Who wants the events of one tenant, for the types that were asked for.

    Most tenants are asked for one type, and where there are a hundred thousand tenants each way to distant memory
    counts: a dictionary for it would be four more.
    """

    __slots__ = ("_answer", "_more", "_one", "_type")

    def __init__(self, type: str, answer: _Answer) -> None:  # noqa: A002 - the field's name
        self._type = sys.intern(type)  # one text for all tenants
        # Likewise, most answers are one subscription: a new tuple of it is in the cache, one that was kept is not.
        self._one: Subscription | None = answer[0] if len(answer) == 1 else None
        self._answer: _Answer = () if len(answer) == 1 else answer
        self._more: dict[str, _Answer] | None = None

    def get(self, type: str) -> _Answer | None:  # noqa: A002 - the field's name
        if self._type == type:
            one = self._one
            return self._answer if one is None else (one,)
        more = self._more
        return None if more is None else more.get(type)

    def add(self, type: str, answer: _Answer) -> None:  # noqa: A002 - the field's name
        """`get` has found none."""
        if self._more is None:
            self._more = {}
        self._more[type] = answer

    def __len__(self) -> int:
        return 1 if self._more is None else 1 + len(self._more)


class Index:
    """A snapshot of all subscriptions. Immutable, but for the answers it remembers."""

    __slots__ = ("_answers", "_by_id", "_everywhere", "_groups", "_kept", "_length", "_strangers", "serial")

    def __init__(self, subscriptions: Iterable[Subscription] = ()) -> None:
        """Ids are unique; of two with the same the later one counts."""
        self.serial = next(_serials)
        """Its own among all indexes of the process: who remembers it need not keep the index."""
        unique = {subscription.id: subscription for subscription in subscriptions}
        self._length = len(unique)
        self._by_id: list[dict[str, Subscription]] = [{} for _ in range(_shards(self._length))]
        mask = len(self._by_id) - 1
        members: dict[str | None, list[Any]] = {}
        patterns: dict[str | None, int] = {}
        for id_, subscription in unique.items():
            self._by_id[hash(id_) & mask][id_] = subscription
            tenant = subscription.tenant
            ids = members.get(tenant)
            if ids is None:
                members[tenant] = [id_, subscription.event_types]
                patterns[tenant] = len(subscription.event_types)
            else:
                ids += (id_, subscription.event_types)
                patterns[tenant] += len(subscription.event_types)
        self._groups: list[dict[str | None, _Group]] = [{} for _ in range(_shards(len(members)))]
        mask = len(self._groups) - 1
        for tenant, ids in members.items():
            group = tuple(ids) if patterns[tenant] <= _SCANNED else _trie(_pairs(ids))
            self._groups[hash(tenant) & mask][tenant] = group
        # Looked up for every answer, so it stands apart.
        self._everywhere: _Group = self._groups[hash(EVERY_TENANT) & mask].get(EVERY_TENANT, ())
        self._forget()

    def _forget(self) -> None:
        self._answers: dict[str | None, _Answers] = {}
        self._strangers: dict[str, _Answer] = {}  # answers for tenants without subscriptions: all the same
        self._kept = 0

    def match(self, tenant: str | None, type: str) -> tuple[Subscription, ...]:  # noqa: A002 - the field's name
        """Every subscription, whatever its status, that wants this event, each once; in no promised order.

        A subscription without a tenant gets events without a tenant only; one with the tenant `*` gets
        every event, also those without a tenant.
        """
        answers = self._answers.get(tenant)
        if answers is not None:
            answer = answers.get(type)
            if answer is not None:
                return answer
        return self._answer(tenant, type)

    def owed(
        self, tenant: str | None, matched: Sequence[Subscription], owed: bool, ids: Sequence[str]
    ) -> tuple[Subscription, ...]:
        """Who is still owed an event of this tenant's, of which a former process has delivered a part.

        Either exactly `ids` were `owed` it: those that are still there get it, as a retry would, whatever matches by now. Or
        `ids` have been served, and whoever else is among the `matched` is owed it.
        """
        if not owed:
            served = frozenset(ids)
            return tuple([each for each in matched if each.id not in served])
        found = [each for id_ in ids if (each := self.get(id_)) is not None]
        return tuple([each for each in found if each.tenant in (tenant, EVERY_TENANT)])

    def _answer(self, tenant: str | None, type: str) -> _Answer:  # noqa: A002 - the field's name
        group = self._groups[hash(tenant) & (len(self._groups) - 1)].get(tenant)
        if group is None or tenant == EVERY_TENANT:
            answer = self._strangers.get(type)
            if answer is None:
                answer = self._find(None, type)
                if len(self._strangers) >= _ANSWERS_OF_ONE:
                    self._strangers.clear()
                self._strangers[type] = answer
            return answer
        answer = self._find(group, type)
        answers = self._answers.get(tenant)
        if answers is None:
            self._answers[tenant] = _Answers(type, answer)
        elif len(answers) >= _ANSWERS_OF_ONE:
            self._kept -= len(answers)
            self._answers[tenant] = _Answers(type, answer)
        else:
            answers.add(type, answer)
        self._kept += 1
        if self._kept > _ANSWERS:
            self._make_room()
        return answer

    def _make_room(self) -> None:
        # The oldest sixteenth at a time: finding the oldest of a dictionary passes over the gaps of those gone before.
        for tenant in list(islice(self._answers, len(self._answers) // 16 + 1)):
            self._kept -= len(self._answers.pop(tenant))

    def _find(self, group: _Group | None, type: str) -> _Answer:  # noqa: A002 - the field's name
        found: list[Subscription] = []
        by_id = self._by_id
        mask = len(by_id) - 1
        for ids in (group, self._everywhere):
            if not ids:
                continue
            if isinstance(ids, _Node):
                found.extend([by_id[hash(id_) & mask][id_] for id_ in _walk(ids, type)])
                continue
            for id_, patterns in _pairs(ids):
                if _wants(patterns, type):
                    found.append(by_id[hash(id_) & mask][id_])
        return tuple(found)

    def get(self, id: str) -> Subscription | None:  # noqa: A002 - the field's name
        """The subscription of this id."""
        return self._by_id[hash(id) & (len(self._by_id) - 1)].get(id)

    def ids_of(self, tenant: str) -> Sequence[str] | None:
        """The ids of one tenant's, in no order; None where there are so many that they aren't kept in a row."""
        group = self._groups[hash(tenant) & (len(self._groups) - 1)].get(tenant, ())
        return None if isinstance(group, _Node) else group[::2]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Subscription]:
        for shard in self._by_id:
            yield from shard.values()

    def pieces(self) -> list[object]:
        """What it is made of. Who drops the index and then these one by one frees a large one without a stall."""
        return [*self._by_id, *self._groups, *self._answers.values()]

    def replaced(self, subscription: Subscription) -> Index:
        """An index with this one instead of the one with its id, or added if there is none."""
        old = self.get(subscription.id)
        index = self._successor(subscription.id, subscription)
        if old is None:
            index._length += 1
        elif old.tenant == subscription.tenant and old.event_types == subscription.event_types:
            index._stale(old.tenant)
            return index
        else:
            index._regroup(old, present=False)
        index._regroup(subscription, present=True)
        return index

    def without(self, id: str) -> Index:  # noqa: A002 - the field's name
        """An index without the subscription of this id; the same one if there is none."""
        old = self.get(id)
        if old is None:
            return self
        index = self._successor(id, None)
        index._length -= 1
        index._regroup(old, present=False)
        return index

    def _successor(self, id: str, subscription: Subscription | None) -> Index:  # noqa: A002 - the field's name
        index = Index.__new__(Index)
        index.serial = next(_serials)
        index._length = self._length
        index._everywhere = self._everywhere
        index._groups = self._groups
        index._by_id = self._by_id.copy()
        place = hash(id) & (len(index._by_id) - 1)
        shard = index._by_id[place] = index._by_id[place].copy()
        if subscription is None:
            del shard[id]
        else:
            shard[id] = subscription
            if len(shard) > _SPREAD:
                index._by_id = _spread(index._by_id)
        index._answers, index._strangers, index._kept = self._answers, self._strangers, self._kept
        self._forget()
        return index

    def _stale(self, tenant: str | None) -> None:
        if tenant == EVERY_TENANT:
            self._forget()
        else:
            answers = self._answers.pop(tenant, None)
            if answers is not None:
                self._kept -= len(answers)

    def _regroup(self, subscription: Subscription, *, present: bool) -> None:
        """Bring the tenant's group to what `subscription` being there, or not, means."""
        tenant, id_ = subscription.tenant, subscription.id
        self._stale(tenant)
        self._groups = self._groups.copy()
        place = hash(tenant) & (len(self._groups) - 1)
        shard = self._groups[place] = self._groups[place].copy()
        group = shard.get(tenant, ())
        if isinstance(group, _Node):
            for pattern in subscription.event_types:
                group = _changed(group, pattern.split("."), id_, present=present)
        else:
            pairs = [pair for pair in _pairs(group) if pair[0] != id_]
            if present:
                pairs.append((id_, subscription.event_types))
            if sum(len(patterns) for _, patterns in pairs) > _SCANNED:
                group = _trie(pairs)
            else:
                group = tuple(part for pair in pairs for part in pair)
        if group:
            shard[tenant] = group
            if len(shard) > _SPREAD:
                self._groups = _spread(self._groups)
        else:
            del shard[tenant]
        if tenant == EVERY_TENANT:
            self._everywhere = group


def _spread(shards: list[dict[K, V]]) -> list[dict[K, V]]:
    """As many shards as the entries have come to need: an index that grew one by one from nothing had one."""
    spread: list[dict[K, V]] = [{} for _ in range(_shards(sum(map(len, shards))))]
    mask = len(spread) - 1
    for shard in shards:
        for key, value in shard.items():
            spread[hash(key) & mask][key] = value
    return spread


def _shards(entries: int) -> int:
    """A power of two, so that a mask of the hash finds the shard."""
    return 1 << max(entries // _SHARD, 1).bit_length() if entries > _SHARD else 1
