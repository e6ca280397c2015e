"""Operational events: what happens to subscriptions, published like any other event, so that a webhook can want them.

They are written to the first events topic, and reach whoever subscribed to `dispatcher.*`. Nothing waits for an
operational event, and nothing depends on one: the log and the metrics say the same. So they are best effort, with two
bounds: a rate (a broken endpoint with ten thousand deliveries to give up must not fill the topic with notices), and
a queue while the broker is away.

No loop can come of them: the end of an operational event's own delivery is not announced.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import structlog
from orjson import JSONEncodeError, dumps

from dispatcher.broker.base import BrokerError, Message
from dispatcher.core.subscription.model import EVERY_TENANT, Subscription
from dispatcher.runtime.backoff import Backoff
from dispatcher.telemetry.metrics import Metrics

log = structlog.get_logger(__name__)

CREATED: Final = "dispatcher.subscription.created"
DELETED: Final = "dispatcher.subscription.deleted"
DISABLED: Final = "dispatcher.subscription.disabled"
VALIDATED: Final = "dispatcher.subscription.validated"
EXHAUSTED: Final = "dispatcher.delivery.exhausted"
AT_QUOTA: Final = "dispatcher.tenant.at_quota"

TYPES: Final = (CREATED, DELETED, DISABLED, VALIDATED, EXHAUSTED, AT_QUOTA)

_RATE: Final = 50.0  # a second
_BURST: Final = 500.0
_QUEUED: Final = 1000
_BATCH: Final = 100
_TOLD: Final = 60.0  # seconds between two log lines about those left out


class Announcer:
    """Publishes operational events. `announce` may be called from anywhere on the loop; it never waits."""

    def __init__(
        self,
        produce: Callable[[Sequence[Message]], Awaitable[None]],
        topic: str,
        metrics: Metrics,
        wall: Callable[[], float],
        *,
        enabled: bool,
    ) -> None:
        """`wall` gives Unix seconds."""
        self._produce = produce
        self._topic = topic
        self._metrics = metrics
        self._wall = wall
        self._enabled = enabled
        self._queue: deque[Message] = deque()
        self._some = asyncio.Event()
        self._tokens = _BURST
        self._clock = asyncio.get_running_loop().time
        self._since = self._clock()
        self._told = -_TOLD

    def announce(self, type: str, subscription_id: str, tenant: str | None, data: dict[str, Any]) -> None:  # noqa: A002 - the field's name
        """Publish it soon, unless there are too many."""
        self._announce(type, subscription_id, tenant, {"subscription_id": subscription_id, **data})

    def announce_tenant(self, type: str, tenant: str, data: dict[str, Any]) -> None:  # noqa: A002 - the field's name
        """Likewise, of what happens to a tenant."""
        self._announce(type, tenant, tenant, data)

    def _announce(self, type: str, key: str, tenant: str | None, data: dict[str, Any]) -> None:  # noqa: A002 - the field's name
        if not self._enabled:
            return
        now = self._clock()
        self._tokens = min(_BURST, self._tokens + max(0.0, now - self._since) * _RATE)
        self._since = now
        if self._tokens < 1 or len(self._queue) >= _QUEUED:
            self._metrics.announcements["dropped"] += 1
            if now - self._told >= _TOLD:
                self._told = now
                log.warning("too many operational events: some are left out", type=type)
            return
        self._tokens -= 1
        event_id = f"evt_{token_hex(12)}"
        document: dict[str, Any] = {"id": event_id, "type": type, "created": round(self._wall(), 3)}
        if tenant is not None and tenant != EVERY_TENANT:
            document["tenant"] = tenant
        document["data"] = data
        try:
            value = dumps(document)
        except JSONEncodeError:
            # The outbox calls this: a notice must not end what delivers.
            log.exception("an operational event could not be written", type=type)
            return
        self._queue.append(Message(self._topic, value, key.encode()))
        self._some.set()

    def announce_subscription(self, type: str, subscription: Subscription) -> None:  # noqa: A002 - the field's name
        """Publish soon what happened to a subscription, with what it is."""
        self.announce(
            type,
            subscription.id,
            subscription.tenant,
            {
                "host": subscription.origin.host,
                "event_types": list(subscription.event_types),
                "status": subscription.status.value,
            },
        )

    async def run(self) -> None:
        """Write until cancelled."""
        backoff = Backoff()
        while True:
            await self._some.wait()
            self._some.clear()
            while self._queue:
                batch = [self._queue[number] for number in range(min(_BATCH, len(self._queue)))]
                try:
                    await self._produce(batch)
                except BrokerError as error:
                    log.warning("operational events could not be written, trying again", error=str(error))
                    await asyncio.sleep(backoff.failed())
                    continue
                backoff.succeeded()
                self._metrics.announcements["published"] += len(batch)
                for _ in batch:
                    self._queue.popleft()
