"""The cluster view: which processes there are, who is failing now, and how one subscription's deliveries go on all of them.

Made of what each process says of itself (`replicas.py`), and of the history for what waits in retry topics, which no process has in memory.
A tenant sees its own subscriptions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from dispatcher.control.errors import ControlError
from dispatcher.control.history import HistoryReader
from dispatcher.control.replicas import Replicas
from dispatcher.core.cluster.merge import Failing, merged, worst_first
from dispatcher.core.cluster.record import ReplicaRecord, Trouble
from dispatcher.core.subscription.model import Subscription
from dispatcher.history.base import Awaiting
from dispatcher.registry.registry import Registry

MAX_FAILING: Final = 1000
FAILING: Final = 100

_ASKED: Final = 100  # subscriptions of which the history is asked what waits
_DELIVER: Final = "deliver"


class FailingNow(NamedTuple):
    """A subscription in trouble, with what is known of it here."""

    failing: Failing
    subscription: Subscription
    awaiting: Awaiting | None
    """What is to be tried again, as the history has it; None where there is none to ask, or too many are asked about."""


class FailingPage(NamedTuple):
    """Those in trouble, the worst first."""

    items: Sequence[FailingNow]
    total: int
    """How many are known to be, of those that were asked for."""
    cut: bool
    """There may be more: some process has more than it names."""
    replicas: Sequence[str]
    """The processes that deliver, of which this is made."""


class Seen(NamedTuple):
    """What one process says of a subscription."""

    replica: str
    trouble: Trouble | None
    """None: nothing is the matter with it there."""
    cut: bool
    """It has more in trouble than it names, so that nothing may be said of this one for lack of room."""


class ClusterView:
    """Answers for all processes. `tenant` None is an operator, who sees all."""

    def __init__(
        self,
        replicas: Replicas,
        registry: Registry,
        history: HistoryReader,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`clock` gives Unix seconds."""
        self._replicas = replicas
        self._registry = registry
        self._history = history
        self._clock = clock

    def replicas(self) -> Sequence[ReplicaRecord]:
        """Every process that was heard of lately, by name."""
        return self._replicas.all()

    async def failing(
        self,
        tenant: str | None,
        *,
        of_tenant: str | None = None,
        subscription_id: str | None = None,
        host: str | None = None,
        limit: int = FAILING,
    ) -> FailingPage:
        """Who is failing now. `of_tenant` is an operator's filter."""
        records = self._delivering()
        found: list[tuple[Failing, Subscription]] = []
        for failing in worst_first(merged(records)):
            subscription = self._registry.index.get(failing.subscription_id)
            if subscription is None or subscription.tenant != failing.tenant:
                continue  # deleted meanwhile, or another one by now
            if tenant is not None and subscription.tenant != tenant:
                continue
            if of_tenant is not None and subscription.tenant != of_tenant:
                continue
            if subscription_id is not None and subscription.id != subscription_id:
                continue
            if host is not None and subscription.origin.host != host:
                continue
            found.append((failing, subscription))
        shown = found[:limit]
        awaiting = await self._awaiting([failing.subscription_id for failing, _ in shown[:_ASKED]])
        return FailingPage(
            [
                FailingNow(failing, subscription, awaiting.get(failing.subscription_id))
                for failing, subscription in shown
            ],
            len(found),
            any(record.cut for record in records),
            [record.replica for record in records],
        )

    def of_subscription(self, subscription: Subscription) -> Sequence[Seen]:
        """What each of the processes that deliver says of it."""
        return [
            Seen(
                record.replica,
                next(
                    (
                        trouble
                        for trouble in record.troubles
                        if trouble.subscription_id == subscription.id
                        and trouble.tenant == subscription.tenant
                    ),
                    None,
                ),
                record.cut,
            )
            for record in self._delivering()
        ]

    def _delivering(self) -> list[ReplicaRecord]:
        return [record for record in self._replicas.all() if _DELIVER in record.roles]

    async def _awaiting(self, ids: Sequence[str]) -> Mapping[str, Awaiting]:
        if not ids:
            return {}
        try:
            found: Mapping[str, Awaiting] = await self._history.ask(lambda store: store.awaiting(ids))
        except ControlError:
            return {}  # no history, or none just now: the rest is told all the same
        return found
