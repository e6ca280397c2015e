"""Pending subscriptions: their endpoints are asked whether they want the events, until one has agreed.

The replica that made a subscription asks at once. Every replica also looks for other pending subscriptions: those of
the file, and those whose replica has ended. It begins with each after a random wait, so that usually one replica asks
and the others see the answer. It does no harm when two ask.

An endpoint that doesn't agree is asked a few times more, with growing pauses: it may not be deployed yet. Then it is
left alone until somebody calls `validate`, or its URL changes. Its last answer is kept, to be shown.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex, token_urlsafe
from typing import Final

import structlog

from dispatcher.control.errors import ControlError, VersionMismatch
from dispatcher.control.operational_events import VALIDATED, Announcer
from dispatcher.control.probes import Busy, Probes
from dispatcher.control.store import ControlStore
from dispatcher.core.request.handshake import Allowed, Refused
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.registry.registry import Registry
from dispatcher.runtime.tasks import Tasks
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

PAUSES: Final = (30.0, 300.0, 1800.0, 7200.0)
"""Seconds between the automatic tries; the last one ends them."""

_LOOK: Final = 1.0  # seconds between two looks at what is pending
_FIRST: Final = (3.0, 15.0)  # seconds, of which chance takes one, until others' are asked
_AT_A_TIME: Final = 8
_PER_TENANT: Final = 4  # so that one whose endpoints are silent leaves room for the others
_SLICE: Final = 5000  # subscriptions looked at between two turns of the loop
_TRIES: Final = 3  # to write the allowed rate into a subscription that changes meanwhile


@dataclass(slots=True)
class _Pending:
    url: str
    due: float
    tries: int = 0
    running: bool = False
    said: str | None = None


class Validator:
    """Asks the endpoints of pending subscriptions whether they want their events."""

    def __init__(
        self,
        store: ControlStore,
        registry: Registry,
        probes: Probes,
        announcer: Announcer,
        metrics: Metrics,
        chance: Callable[[], float],
    ) -> None:
        """`chance` gives a number in [0, 1)."""
        self._store = store
        self._registry = registry
        self._probes = probes
        self._announcer = announcer
        self._metrics = metrics
        self._chance = chance
        self._clock = asyncio.get_running_loop().time
        self._tasks = Tasks()
        self._pending: dict[str, _Pending] = {}
        self._seen: object = None  # the index that was looked through last
        self._soon = asyncio.Event()

    def said(self, id: str) -> str | None:  # noqa: A002 - the field's name
        """The last answer of its endpoint, if this replica has asked."""
        known = self._pending.get(id)
        return None if known is None else known.said

    def submit(self, subscription: Subscription) -> None:
        """Ask now, in the background."""
        self._pending[subscription.id] = _Pending(subscription.url, self._clock())
        self._soon.set()

    async def ask(self, subscription: Subscription) -> Allowed | Refused:
        """Ask now, and keep what came of it. Raises Busy, and ControlError when it can't be kept."""
        rate = subscription.rate_limit
        verdict = await self._probes.validate(
            subscription,
            f"evt_{token_hex(12)}",
            token_urlsafe(32),
            None if rate is None else max(1, int(rate * 60)),
        )
        if isinstance(verdict, Allowed):
            verdict = await self._keep_to(subscription, verdict)
        self._metrics.validations["passed" if isinstance(verdict, Allowed) else "refused"] += 1
        if isinstance(verdict, Refused):
            known = self._pending.get(subscription.id)
            if known is not None:
                known.said = verdict.detail
            log.warning(
                "the endpoint did not pass its validation",
                subscription_id=subscription.id,
                host=subscription.origin.host,
                detail=verdict.detail,
            )
            return verdict
        current = self._registry.index.get(subscription.id)
        # What was asked is what is confirmed: not a URL that has come in its place meanwhile.
        if current is not None and current.status is Status.PENDING and current.url == subscription.url:
            await self._store.set_validated(subscription.id)
            self._announcer.announce(
                VALIDATED, subscription.id, subscription.tenant, {"host": subscription.origin.host}
            )
            log.info("subscription validated", subscription_id=subscription.id)
        return verdict

    async def _keep_to(self, subscription: Subscription, allowed: Allowed) -> Allowed | Refused:
        """Take over the rate that the endpoint allows, where that is less than what it would get."""
        if allowed.rate is None or (
            subscription.rate_limit is not None and subscription.rate_limit * 60 <= allowed.rate
        ):
            return allowed
        if self._registry.in_file(subscription.id):
            return Refused(
                f"the endpoint allows {allowed.rate} requests a minute: write `rate_limit: {allowed.rate}/m` (or less) "
                "into its entry in the subscriptions file"
            )
        for _ in range(_TRIES):
            stored = self._store.get(subscription.id)
            current = self._registry.index.get(subscription.id)
            if stored is None or current is None or current.url != subscription.url:
                return allowed  # deleted, or moved: what the old endpoint allows is no limit of the new one
            document = {**stored.document, "rate_limit": f"{allowed.rate}/m"}
            try:
                await self._store.put(
                    subscription.id,
                    document,
                    stored.secrets,
                    base=stored.version,
                    idempotency=stored.idempotency,
                )
            except VersionMismatch:
                continue
            log.info(
                "rate limited as the endpoint asks",
                subscription_id=subscription.id,
                rate_limit=f"{allowed.rate}/m",
            )
            return allowed
        return Refused("the subscription changes all the time: its allowed rate could not be kept")

    # In the background.

    async def run(self) -> None:
        """Look after pending subscriptions until cancelled."""
        try:
            while True:
                self._soon.clear()
                if self._store.loaded:
                    await self._look()
                    self._start_due()
                try:
                    async with asyncio.timeout(_LOOK):
                        await self._soon.wait()
                except TimeoutError:
                    pass
        finally:
            await self._tasks.stop()

    async def _look(self) -> None:
        """Find the pending subscriptions, and forget the others."""
        index = self._registry.index
        if index is self._seen:
            return
        self._seen = index
        if not self._registry.counts()[Status.PENDING.value]:
            self._forget(set())
            return
        found: set[str] = set()
        for number, subscription in enumerate(index):
            if subscription.status is Status.PENDING:
                found.add(subscription.id)
                known = self._pending.get(subscription.id)
                if known is None or known.url != subscription.url:
                    low, high = _FIRST
                    due = self._clock() + low + (high - low) * self._chance()
                    self._pending[subscription.id] = _Pending(subscription.url, due)
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
        self._forget(found)

    def _forget(self, but: set[str]) -> None:
        current = self._registry.index
        for id_ in [id_ for id_, one in self._pending.items() if id_ not in but and not one.running]:
            subscription = current.get(id_)
            if subscription is None or subscription.status is not Status.PENDING:
                del self._pending[id_]

    def _start_due(self) -> None:
        now = self._clock()
        due = sorted(
            (one.due, id_) for id_, one in self._pending.items() if one.due <= now and not one.running
        )
        running = Counter(self._tenant_of(id_) for id_, one in self._pending.items() if one.running)
        for _, id_ in due:
            if len(self._tasks) >= _AT_A_TIME:
                break
            tenant = self._tenant_of(id_)
            if tenant is not None and running[tenant] >= _PER_TENANT:
                continue
            running[tenant] += 1
            self._pending[id_].running = True
            self._tasks.start(self._try(id_, self._pending[id_]), "validate")

    def _tenant_of(self, id: str) -> str | None:  # noqa: A002 - the field's name
        subscription = self._registry.index.get(id)
        return None if subscription is None else subscription.tenant

    async def _try(self, id: str, one: _Pending) -> None:  # noqa: A002 - the field's name
        try:
            subscription = self._registry.index.get(id)
            if subscription is None or subscription.status is not Status.PENDING:
                return
            await self.ask(subscription)
        except (ControlError, Busy) as error:
            one.said = str(error)
        finally:
            one.running = False
            if one.tries < len(PAUSES):
                one.due = self._clock() + PAUSES[one.tries] * (0.8 + 0.4 * self._chance())
                one.tries += 1
            else:
                one.due = float("inf")
            self._soon.set()
