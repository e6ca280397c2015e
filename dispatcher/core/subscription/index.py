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
   at any time. A `Subscription` never changes but for `request`, `route`, `usage` and `health`, made at the first delivery.
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
from itertools import count, islice
from typing import Any, Final, TypeVar

from dispatcher.core.subscription.model import EVERY_TENANT, Subscription
from dispatcher.core.subscription.patterns import Group, group_of, ids_in, listed, regrouped, wanting

K = TypeVar("K")
V = TypeVar("V")

_SHARD: Final = 512  # entries of a dictionary that are copied together
_SPREAD: Final = 4 * _SHARD  # entries of one of them beyond which all are spread over more
_ANSWERS: Final = 1 << 18  # answers kept, over all tenants
_ANSWERS_OF_ONE: Final = 1 << 14  # answers kept of one tenant, and of all unknown ones together
_serials: Final = count(1)


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
        self._groups: list[dict[str | None, Group]] = [{} for _ in range(_shards(len(members)))]
        mask = len(self._groups) - 1
        for tenant, ids in members.items():
            self._groups[hash(tenant) & mask][tenant] = group_of(ids, patterns[tenant])
        # Looked up for every answer, so it stands apart.
        self._everywhere: Group = self._groups[hash(EVERY_TENANT) & mask].get(EVERY_TENANT, ())
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

    def _find(self, group: Group | None, type: str) -> _Answer:  # noqa: A002 - the field's name
        found: list[Subscription] = []
        by_id = self._by_id
        mask = len(by_id) - 1
        for ids in (group, self._everywhere):
            if ids:
                found.extend([by_id[hash(id_) & mask][id_] for id_ in wanting(ids, type)])
        return tuple(found)

    def get(self, id: str) -> Subscription | None:  # noqa: A002 - the field's name
        """The subscription of this id."""
        return self._by_id[hash(id) & (len(self._by_id) - 1)].get(id)

    def ids_of(self, tenant: str | None) -> Sequence[str] | None:
        """The ids of one tenant's, in no order; None where there are so many that they aren't kept in a row."""
        return listed(self._groups[hash(tenant) & (len(self._groups) - 1)].get(tenant, ()))

    def of_tenant(self, tenant: str) -> list[Subscription]:
        """All subscriptions of one tenant, in no order; takes as long as it has many."""
        group = self._groups[hash(tenant) & (len(self._groups) - 1)].get(tenant, ())
        return [each for id_ in ids_in(group) if (each := self.get(id_)) is not None]

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
        group = regrouped(shard.get(tenant, ()), id_, subscription.event_types, present=present)
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
