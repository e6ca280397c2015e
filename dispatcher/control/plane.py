"""The control plane of one process: its parts, wired.

It is made before the broker is there, so that the HTTP side can say what the process waits for. `start` follows the
control topic. The engine is attached when it is made.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Callable
from typing import Final

from dispatcher.broker.base import Broker, GroupMemory
from dispatcher.control.access import Access
from dispatcher.control.audit import AuditTrail, audit_topic
from dispatcher.control.catalogue import Catalogue
from dispatcher.control.checker import Checker
from dispatcher.control.creation import Creation
from dispatcher.control.endpoint_checks import EndpointChecks, HealthSource
from dispatcher.control.file_memory import FileMemory
from dispatcher.control.groups import StoredMemory
from dispatcher.control.listing import Listing
from dispatcher.control.operational_events import DISABLED, EXHAUSTED, Announcer
from dispatcher.control.portal import PortalSessions
from dispatcher.control.probes import Carrier, Probes
from dispatcher.control.publishing import Publisher
from dispatcher.control.quotas import Quotas
from dispatcher.control.sessions import Sessions, make_signer
from dispatcher.control.store import ControlStore
from dispatcher.control.subscriptions import Subscriptions
from dispatcher.control.tenant_counts import TenantCounts
from dispatcher.control.validation import Validator
from dispatcher.control.views import Views
from dispatcher.core.event.decode import RESERVED, Event
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Subscription
from dispatcher.core.subscription.spec import SpecReader
from dispatcher.registry.registry import Registry
from dispatcher.runtime.replica import replica_name
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Metrics

_LAST_RECORDS: Final = 2.0  # seconds for the end of the audit trail
_REMEDIES: Final = {
    "invalid": "the settings refuse them (the log names each): change the settings back, or the subscriptions",
    "sealed": "no key opens their secrets: put the key back into api.secrets_keys",
}


class ControlPlane:
    """The parts that the HTTP side calls. `app.py` makes it before the broker is there."""

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        registry: Registry,
        guard: Guard,
        transport: Carrier,
        metrics: Metrics,
        *,
        store: ControlStore | None = None,
        on_failure: Callable[[str, BaseException], None] | None = None,
        chance: Callable[[], float] = random.random,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`on_failure` is told when a part of it died. `chance` gives a number in [0, 1), `wall` Unix seconds."""
        api, topic = settings.api, settings.topics.events[0]
        self._tasks = Tasks(on_failure)
        self._registry = registry
        self.store = (
            store
            if store is not None
            else ControlStore(settings, broker, registry, guard, wall=wall, on_failure=on_failure)
        )
        self._file = FileMemory(self.store.files, settings, registry)
        signer = make_signer(settings)
        self.portal = PortalSessions(
            self.store.portal_sessions,
            self.store.portal_images,
            lambda: self.store.loaded,
            signer,
            enabled=settings.portal.enabled,
            wall=wall,
            chance=chance,
        )
        self.access = Access(
            settings, self.store.keys, lambda: self.store.loaded, tokens=self.portal, wall=wall
        )
        self.audit = AuditTrail(audit_topic(settings), broker, wall=wall)
        self._audits = "api" in settings.roles
        self.sessions = Sessions(settings, self.access, signer, wall=wall)
        self.announcer = Announcer(broker.produce, topic, metrics, wall, enabled=api.operational_events)
        probes = Probes(transport, guard, api.origin or socket.getfqdn(), wall)
        self._validator = Validator(self.store, registry, probes, self.announcer, metrics, chance)
        self.catalogue = Catalogue(self.store, api)
        retry = RetryPolicy(settings.retry.schedule, settings.retry.jitter)
        # Without the environment: nobody on the network gets at the daemon's.
        reader = SpecReader(guard, timeout=settings.delivery.timeout, retry=retry, keeps=False)
        checker = Checker(reader, self.catalogue, require_validation=api.require_validation)
        self.views = Views(self.store, registry, self._validator.said)
        self.listing = Listing(self.store, registry, self.views)
        self.quotas = Quotas(
            settings.quotas,
            self.store.quotas,
            self.views.ready,
            TenantCounts(registry),
            self.announcer,
            metrics,
        )
        self.creation = Creation(
            self.store, registry, self._validator, self.announcer, checker, self.views, self.quotas
        )
        self.subscriptions = Subscriptions(
            self.store, registry, self._validator, self.announcer, reader, checker, self.views, self.quotas
        )
        self.checks = EndpointChecks(
            self.views, registry, probes, self._validator, self.catalogue, wall, replica_name()
        )
        self.publisher = Publisher(broker.produce, topic, self.catalogue, api, metrics, wall, self.quotas)
        registry.on_disabled = self._disabled

    async def start(self) -> None:
        """Read the topic to its end and follow it from there; the broker is connected and the topics are there.

        Waits for the broker as long as it takes: who delivers before everything is read drops what it doesn't know.
        """
        await self.store.start()
        await self.store.wait_loaded()
        self._tasks.start(self._file.run(), "memory of the subscriptions file")
        self._tasks.start(self._validator.run(), "validation")
        self._tasks.start(self.announcer.run(), "operational events")
        if self._audits:
            self._tasks.start(self.portal.run(), "portal sessions")
            self.audit.start(self._tasks)

    async def stop(self) -> None:
        """End everything; what waits for the broker ends with Unavailable."""
        self._registry.on_disabled = None
        await self._tasks.stop()
        await self.audit.finish(_LAST_RECORDS)
        await self.store.stop()

    def memory(self, group: str) -> GroupMemory:
        """The memory of a consumer group. Complete once `start` has returned."""
        return StoredMemory(self.store.groups, group, self._tasks)

    def attach(self, source: HealthSource) -> None:
        """The engine is there, and knows how deliveries go."""
        self.checks.source = source

    def problems(self) -> list[str]:
        """Why the control plane can't be asked yet, a sentence each."""
        return [] if self.store.problem is None else [self.store.problem]

    def warnings(self) -> list[str]:
        """Troubles that don't stop the control plane, a sentence each."""
        said = (self.store.warning, self.audit.warning, self._file.warning)
        found = [warning for warning in said if warning is not None]
        return found + [
            f"{count} {'subscription is' if count == 1 else 'subscriptions are'} not delivered to, reason {reason}: {_REMEDIES[reason]};"
            " what matches meanwhile is kept for subscription.pause_keeps"
            for reason, count in sorted(self.store.unusable().items())
        ]

    # What the engine tells.

    def exhausted(
        self, subscription: Subscription, event: Event, reason: str, attempts: int, result: str | None
    ) -> None:
        """A delivery was given up: it is in the dead-letter topic."""
        if event.type.startswith(RESERVED):
            return  # or a broken endpoint that wants these would be told of itself for ever
        self.announcer.announce(
            EXHAUSTED,
            subscription.id,
            subscription.tenant,
            {
                "event_id": event.id,
                "event_type": event.type,
                "event_tenant": event.tenant,
                "reason": reason,
                "attempts": attempts,
                "last_result": result,
            },
        )

    def _disabled(self, subscription: Subscription, reason: str, text: str | None) -> None:
        said = {} if text is None else {"reason_text": text}
        self.announcer.announce(
            DISABLED,
            subscription.id,
            subscription.tenant,
            {"host": subscription.origin.host, "reason": reason, **said},
        )
