"""Issues of subscriptions: the history's undelivered deliveries by subscription and cause, and the marks that people put on them.

Rules:

1. An issue counts exactly the deliveries that `GET /v1/deliveries` lists with its subscription and its cause. It is there while there are any.
2. A tenant sees the issues of its own subscriptions. Of a subscription that is deleted nobody sees any: there is nothing to mend.
3. Marks are bounded in number. Those that have ended are deleted when another one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from dispatcher.control.access import Principal
from dispatcher.control.errors import Invalid, NotFound, Overloaded, Unavailable, VersionMismatch
from dispatcher.control.history import Answered, HistoryReader
from dispatcher.control.table import Table
from dispatcher.core.control.issues import IssueMark, IssueState, issue_id, read_issue_id, state_of
from dispatcher.core.flaws import Flaw
from dispatcher.core.subscription.model import Subscription
from dispatcher.history.base import Undelivered, UndeliveredGroup, UndeliveredQuery
from dispatcher.registry.registry import Registry

MAX_ISSUES: Final = 200
ISSUES: Final = 50
MAX_MARKS: Final = 10_000
MAX_MARKS_OF_TENANT: Final = 500
LONGEST_MS: Final = 366 * 86_400_000
"""For how long an issue may be ignored."""

_TRIES: Final = 5
_SWEPT: Final = 50  # ended marks that are deleted with one write
_ANY_TIME: Final = 2**53


class Issue(NamedTuple):
    """An issue as it stands. Times in Unix ms."""

    id: str
    subscription: Subscription
    group: UndeliveredGroup
    state: IssueState
    success_ms: int | None
    """When the subscription acknowledged something last, where that is after the issue's last failure or its mark."""
    mark: IssueMark | None
    """The mark in force."""


class IssuePage(NamedTuple):
    """Issues: those to look at first, and of these those of most deliveries."""

    issues: Sequence[Issue]
    at_least: bool
    """There may be more deliveries of each, and more issues: only the newest deliveries were looked at."""
    cut: bool
    """There are more issues than were looked at."""


class Issues:
    """Finds issues and marks them. `tenant` None is an operator, who sees all."""

    def __init__(
        self,
        history: HistoryReader,
        marks: Table[IssueMark],
        registry: Registry,
        ready: Callable[[], None],
        clock: Callable[[], float],
        kept: float,
    ) -> None:
        """`ready` raises Unavailable while marks and subscriptions aren't read; `clock` gives Unix seconds, `kept` how long rows are kept."""
        self._history = history
        self._marks = marks
        self._registry = registry
        self._ready = ready
        self._clock = clock
        self._kept_ms = round(kept * 1000)

    async def page(
        self,
        tenant: str | None,
        query: UndeliveredQuery,
        *,
        state: IssueState | None = None,
        limit: int = ISSUES,
    ) -> Answered[IssuePage]:
        """The issues of a time; at most the `MAX_ISSUES` of most deliveries are looked at. `query.tenant` is an operator's filter."""
        self._ready()
        if tenant is not None and query.tenant not in (None, tenant):
            return await self._history.answered(
                IssuePage([], at_least=False, cut=False), query.since_ms, query.until_ms
            )
        found = await self._undelivered(query._replace(tenant=tenant or query.tenant))
        seen = [
            (group, subscription)
            for group in found.groups
            if (subscription := self._seen(tenant, group.subscription_id)) is not None
        ]
        issues = await self._issues(seen[:MAX_ISSUES])
        order = list(IssueState)
        # Stable: of one state those of most deliveries stay first.
        wanted = sorted(
            (each for each in issues if state in (None, each.state)), key=lambda each: order.index(each.state)
        )
        page = IssuePage(wanted[:limit], found.at_least, len(seen) > MAX_ISSUES or len(wanted) > limit)
        return await self._history.answered(page, query.since_ms, query.until_ms)

    async def acknowledge(self, who: Principal, id: str) -> Issue:  # noqa: A002 - the field's name
        """Somebody knows of it. Raises NotFound, Unavailable."""
        return await self._mark(who, id, None)

    async def ignore(self, who: Principal, id: str, until_ms: int) -> Issue:  # noqa: A002 - the field's name
        """It is not worth a look until then. Raises Invalid, NotFound, Unavailable."""
        now = self._now_ms()
        if not now < until_ms <= now + LONGEST_MS:
            raise Invalid([Flaw(("until",), "must be later than now, and within a year")])
        return await self._mark(who, id, until_ms)

    async def reopen(self, who: Principal, id: str) -> Issue:  # noqa: A002 - the field's name
        """Take back what was said about it. Raises NotFound, Unavailable."""
        group, subscription = await self._one(who.tenant, id)
        await self._write(id, None)
        (issue,) = await self._issues([(group, subscription)])
        return issue

    # Finding.

    async def _undelivered(self, query: UndeliveredQuery) -> Undelivered:
        found: Undelivered = await self._history.ask(lambda store: store.undelivered(query))
        return found

    def _seen(self, tenant: str | None, subscription_id: str) -> Subscription | None:
        subscription = self._registry.index.get(subscription_id)
        return subscription if subscription is not None and tenant in (None, subscription.tenant) else None

    async def _issues(self, seen: Sequence[tuple[UndeliveredGroup, Subscription]]) -> list[Issue]:
        marks = [self._mark_of(issue_id(group.subscription_id, group.cause)) for group, _ in seen]
        times = [group.last_ms for group, _ in seen] + [mark.at_ms for mark in marks if mark is not None]
        successes: dict[str, int] = {}
        if times:
            ids, since = sorted({group.subscription_id for group, _ in seen}), min(times)
            successes = await self._history.ask(lambda store: store.last_successes(ids, since))
        now = self._now_ms()
        issues = []
        for (group, subscription), mark in zip(seen, marks, strict=True):
            success = successes.get(group.subscription_id)
            state = state_of(group.last_ms, group.pending, success, mark, now)
            said = state is IssueState.ACKNOWLEDGED or state is IssueState.IGNORED
            issues.append(
                Issue(
                    issue_id(group.subscription_id, group.cause),
                    subscription,
                    group,
                    state,
                    success,
                    mark if said else None,
                )
            )
        return issues

    async def _one(self, tenant: str | None, id_: str) -> tuple[UndeliveredGroup, Subscription]:
        """The issue of that id. Raises NotFound."""
        self._ready()
        parts = read_issue_id(id_)
        subscription = None if parts is None else self._seen(tenant, parts[0])
        if parts is not None and subscription is not None:
            query = UndeliveredQuery(0, _ANY_TIME, tenant, subscription.id)
            for group in (await self._undelivered(query)).groups:
                if group.cause == parts[1]:
                    return group, subscription
        raise NotFound(f"there is no issue {id_[:130]}: it may be over")

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)

    # Marks.

    def _mark_of(self, id_: str) -> IssueMark | None:
        row = self._marks.get(id_)
        return None if row is None or row.value.ended(self._now_ms(), self._kept_ms) else row.value

    async def _mark(self, who: Principal, id_: str, until_ms: int | None) -> Issue:
        group, subscription = await self._one(who.tenant, id_)
        mark = IssueMark(
            "acknowledged" if until_ms is None else "ignored",
            self._now_ms(),
            until_ms,
            subscription.tenant,
            who.name,
            who.scope,
        )
        if self._marks.get(id_) is None:
            await self._make_room(subscription.tenant)
        await self._write(id_, mark)
        (issue,) = await self._issues([(group, subscription)])
        return issue

    async def _write(self, id_: str, mark: IssueMark | None) -> None:
        """Put the mark in the place of what is there; the last one that says something is right."""
        for _ in range(_TRIES):
            row = self._marks.get(id_)
            try:
                if mark is not None:
                    await self._marks.put(id_, mark, base=0 if row is None else row.version)
                elif row is not None:
                    await self._marks.delete(id_, base=row.version)
            except VersionMismatch:
                continue
            return
        raise Unavailable("the issue is marked by others all the time: send it again", 1.0)

    async def _make_room(self, tenant: str | None) -> None:
        """Delete marks that have ended. Raises Overloaded where there is no room for another one."""
        now = self._now_ms()
        rows = [row for name in self._marks.names() if (row := self._marks.get(name)) is not None]
        ended = [
            row.name
            for row in rows
            if row.value.ended(now, self._kept_ms) or self._seen(None, row.name.partition(":")[0]) is None
        ]
        for name in ended[:_SWEPT]:
            await self._write(name, None)
        gone = set(ended)
        left = [row.value for row in rows if row.name not in gone]
        own = sum(mark.tenant == tenant for mark in left)
        if len(left) >= MAX_MARKS or (tenant is not None and own >= MAX_MARKS_OF_TENANT):
            raise Overloaded(
                f"{MAX_MARKS} issues are marked, or {MAX_MARKS_OF_TENANT} of this tenant: reopen some", 60.0
            )
