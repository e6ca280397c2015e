"""The control plane in memory, for tests of what the HTTP side makes of requests and answers.

It keeps the signatures and the rules that the HTTP side depends on; the end-to-end tests put the real one there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dispatcher.api.route import Services
from dispatcher.broker.base import Message
from dispatcher.control.access import Access, Principal
from dispatcher.control.audit import AuditRecord, AuditTrail, read_audit
from dispatcher.control.catalogue import Catalogue, EventTypeView
from dispatcher.control.cluster import ClusterView, FailingPage
from dispatcher.control.creation import Created, Creation
from dispatcher.control.dead_letters import DeadLetters
from dispatcher.control.documents import Silence
from dispatcher.control.endpoint_checks import EndpointChecks, PingResult, SubscriptionHealth
from dispatcher.control.errors import (
    AlreadyExists,
    ControlError,
    FileManaged,
    Invalid,
    NotFound,
    VersionMismatch,
)
from dispatcher.control.explaining import Explanations
from dispatcher.control.history import HistoryOff, HistoryReader
from dispatcher.control.interventions import Interventions
from dispatcher.control.issues import Issues
from dispatcher.control.listing import PAGE, Listing, Page
from dispatcher.control.live import Live
from dispatcher.control.operational_events import Announcer
from dispatcher.control.payloads import Payloads
from dispatcher.control.portal import PortalSessions
from dispatcher.control.publishing import Published, Publisher
from dispatcher.control.quotas import Quotas
from dispatcher.control.secrets import OVERLAP
from dispatcher.control.sessions import Sessions, make_signer
from dispatcher.control.statistics import StatisticsReader
from dispatcher.control.subscriptions import Rotated, Subscriptions
from dispatcher.control.table import Table
from dispatcher.control.tenant_counts import TenantCounts
from dispatcher.control.views import SecretView, View, Views
from dispatcher.core.cluster.record import ReplicaRecord
from dispatcher.core.control.keys import Key
from dispatcher.core.control.portal import PortalImage, PortalSession
from dispatcher.core.control.quotas import Overrides
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.flaws import Flaw
from dispatcher.core.replay.job import ReplayJob, ReplayRequest, ReplaySource
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.interventions import Intervention
from dispatcher.replays.planning import ReplayPlan
from dispatcher.replays.service import Planned, ReplayAsked, ReplayListing, Replays
from dispatcher.settings.groups import QuotaSettings, Settings
from dispatcher.telemetry.metrics import Metrics
from tests.control.memory import MemoryTable
from tests.fakes import FixedRegistry, MemoryBroker

NOW = 1_760_000_000_000
REPLAY = "rpl_0123456789ab"


class MemoryKeys(MemoryTable[Key]):
    """A table of keys."""

    loaded = True


class MemorySubscriptions(Views, Listing, Creation, Subscriptions, EndpointChecks):
    """Subscriptions in a dictionary; `failure` is raised by the next call that would write."""

    def __init__(self) -> None:  # of its own state: nothing of the real one's is there
        self.views: dict[str, View] = {}
        self.failure: Exception | None = None
        self.calls: list[tuple[str, Any]] = []

    def add(self, id: str, tenant: str | None = None, **changes: Any) -> View:  # noqa: A002
        fields: dict[str, Any] = {
            "id": id,
            "document": {"url": f"https://{id}.example/", "event_types": ["*"], "tenant": tenant},
            "secrets": (SecretView("whsec_...abcd", None),),
            "version": 1,
            "managed": "api",
            "status": "active",
            "reason": None,
            "reason_text": None,
            "created_ms": NOW,
            "updated_ms": NOW,
        }
        self.views[id] = View(**{**fields, **changes})
        return self.views[id]

    def _write(self, name: str, argument: Any) -> None:
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        self.calls.append((name, argument))

    async def create(
        self,
        document: Mapping[str, Any],
        *,
        principal: str,
        tenant: str | None,
        idempotency_key: str | None = None,
    ) -> Created:
        id_ = document.get("id", f"sub_{len(self.views)}")
        if id_ in self.views:
            raise AlreadyExists(f"there is a subscription {id_} already")
        self._write("create", (document, principal, tenant, idempotency_key))
        kept = {name: value for name, value in document.items() if name not in ("id", "secrets", "status")}
        view = self.add(id_, document={**kept, "tenant": tenant or document.get("tenant")})
        return Created(view, ("whsec_new",))

    def get(self, id: str, *, tenant: str | None) -> View:  # noqa: A002
        view = self.views.get(id)
        if view is None or tenant not in (None, view.document["tenant"]):
            raise NotFound(f"there is no subscription {id}")
        return view

    def page(
        self,
        *,
        tenant: str | None,
        of_tenant: str | None = None,
        status: str | None = None,
        event_type: str | None = None,
        host: str | None = None,
        cursor: str | None = None,
        limit: int = PAGE,
    ) -> Page:
        self.calls.append(("list", (tenant, of_tenant, status, event_type, host, cursor, limit)))
        if cursor is not None and cursor not in self.views:
            raise Invalid([Flaw(("cursor",), "is not one that this API made")])
        ids = sorted(id_ for id_, view in self.views.items() if tenant in (None, view.document["tenant"]))
        ids = [id_ for id_ in ids if cursor is None or id_ > cursor]
        more = ids[limit - 1] if len(ids) > limit else None
        return Page([self.views[id_] for id_ in ids[:limit]], more)

    def _apply(self, name: str, id_: str, tenant: str | None, if_match: int | None, argument: Any) -> View:
        view = self.get(id_, tenant=tenant)
        if view.managed == "file":
            raise FileManaged(id_)
        if if_match is not None and if_match != view.version:
            raise VersionMismatch(view.version)
        self._write(name, argument)
        return self.add(
            id_,
            document=view.document,
            version=view.version + 1,
            status=argument if name == "set" else view.status,
        )

    async def update(
        self,
        id: str,  # noqa: A002
        patch: Mapping[str, Any],
        *,
        tenant: str | None,
        if_match: int | None = None,
    ) -> View:
        return self._apply("update", id, tenant, if_match, patch)

    async def delete(self, id: str, *, tenant: str | None, if_match: int | None = None) -> None:  # noqa: A002
        self._apply("delete", id, tenant, if_match, None)
        del self.views[id]

    def silence(self, id: str, *, tenant: str | None) -> Silence | None:  # noqa: A002
        return None

    async def pause(
        self,
        id: str,  # noqa: A002
        *,
        tenant: str | None,
        if_match: int | None = None,
        marks: object = (),
    ) -> View:
        return self._apply("set", id, tenant, if_match, "paused")

    async def resume(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        return self._apply("set", id, tenant, if_match, "active")

    async def enable(self, id: str, *, tenant: str | None, if_match: int | None = None) -> View:  # noqa: A002
        return self._apply("set", id, tenant, if_match, "active")

    async def disable(
        self,
        id: str,  # noqa: A002
        text: str,
        *,
        tenant: str | None,
        if_match: int | None = None,
    ) -> View:
        view = self._apply("disable", id, tenant, if_match, text)
        self.views[id] = view._replace(status="disabled", reason="operator", reason_text=text)
        return self.views[id]

    async def test(
        self,
        id: str,  # noqa: A002
        event_type: str,
        *,
        tenant: str | None,
        data: Any = None,
    ) -> PingResult:
        self.get(id, tenant=tenant)
        self._write("test", (event_type, data))
        return PingResult("evt_test", True, 200, None, None, 0.012, "thanks")

    async def rotate(
        self,
        id: str,  # noqa: A002
        *,
        tenant: str | None,
        secret: str | None = None,
        overlap: float = OVERLAP,
        if_match: int | None = None,
    ) -> Rotated:
        view = self._apply("rotate", id, tenant, if_match, (secret, overlap))
        return Rotated(view, secret or "whsec_rotated", NOW + round(overlap * 1000))

    async def ping(self, id: str, *, tenant: str | None) -> PingResult:  # noqa: A002
        self.get(id, tenant=tenant)
        self._write("ping", id)
        return PingResult("evt_ping", True, 200, None, None, 0.012, "thanks")

    async def validate(self, id: str, *, tenant: str | None) -> View:  # noqa: A002
        return self._apply("validate", id, tenant, None, None)

    def health(self, id: str, *, tenant: str | None) -> SubscriptionHealth:  # noqa: A002
        view = self.get(id, tenant=tenant)
        return SubscriptionHealth(
            id, "host-1", view.status, None, 0.5, 0.01, 0.02, "closed", 0, 0, "status 503", NOW, None
        )


class MemoryCatalogue(Catalogue):
    """Event types in a dictionary."""

    def __init__(self) -> None:
        self.views: dict[str, EventTypeView] = {}

    def list(self) -> list[EventTypeView]:
        return [self.views[name] for name in sorted(self.views)]

    def get(self, name: str) -> EventTypeView:
        if name not in self.views:
            raise NotFound(f"there is no event type {name}")
        return self.views[name]

    async def put(
        self,
        name: str,
        document: Mapping[str, Any],
        *,
        if_match: int | None = None,
        only_new: bool = False,
    ) -> tuple[EventTypeView, bool]:
        before = self.views.get(name)
        if only_new and before is not None:
            raise VersionMismatch(before.version)
        view = EventTypeView(EventType.of(name, dict(document)), before.version + 1 if before else 1, NOW)
        self.views[name] = view
        return view, before is None

    async def delete(self, name: str, *, if_match: int | None = None) -> None:
        self.get(name)
        del self.views[name]


class MemoryPublisher(Publisher):
    """Keeps what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[Mapping[str, Any], str | None]] = []
        self.traces: list[dict[str, bytes]] = []
        self.failure: ControlError | None = None

    async def publish(
        self,
        events: Sequence[Mapping[str, Any]],
        *,
        tenant: str | None,
        batch: bool | None = None,
        trace: Sequence[tuple[str, bytes]] = (),
    ) -> list[Published]:
        if self.failure is not None:
            raise self.failure
        self.published += [(event, tenant) for event in events]
        self.traces += [dict(trace) for _ in events]
        return [Published(event.get("id", f"evt_{number}")) for number, event in enumerate(events)]


class MemoryTrail(AuditTrail):
    """Keeps what is noted, as if it had been written and read back."""

    def __init__(self) -> None:
        super().__init__("audit", MemoryBroker())

    def note(
        self, action: str, subject: str, by: Principal, request_id: str, details: dict[str, Any]
    ) -> None:
        record = AuditRecord(NOW, action, subject, by.id, by.name, by.scope, by.tenant, request_id, details)
        read = read_audit(record.to_bytes())
        assert read is not None
        self._records.append(read)


class NoCounts(TenantCounts):
    """Tenants that have nothing yet."""

    def __init__(self) -> None: ...

    def all(self, tenant: str) -> int:
        return 0

    def to(self, tenant: str, origin: Origin) -> int:
        return 0


def memory_quotas(settings: QuotaSettings | None = None) -> Quotas:
    """The real ones, on a table in memory and of tenants that have nothing."""

    async def produce(_messages: Sequence[Message]) -> None: ...

    metrics = Metrics()
    announcer = Announcer(produce, "events", metrics, lambda: 0.0, enabled=False)
    table: Table[Overrides] = MemoryTable()
    return Quotas(settings or QuotaSettings(), table, lambda: None, NoCounts(), announcer, metrics)


class MemoryCluster(ClusterView):
    """One process, in which all is well."""

    def __init__(self) -> None: ...

    def replicas(self) -> Sequence[ReplicaRecord]:
        return [ReplicaRecord(replica="host-1:1", version="1.0.0", started_ms=NOW, at_ms=NOW)]

    async def failing(self, tenant: str | None, **_: Any) -> FailingPage:
        return FailingPage([], 0, cut=False, replicas=["host-1:1"])


class MemoryReplays(Replays):
    """Keeps jobs and runs none."""

    def __init__(self) -> None:
        self.jobs = {
            REPLAY: ReplayJob(REPLAY, ReplayRequest(ReplaySource.EVENTS, NOW), None, NOW, "operator ops")
        }

    async def plan(self, asked: ReplayAsked, *, tenant: str | None) -> Planned:
        request = ReplayRequest(asked.source, NOW, asked.since_ms)
        return Planned(request, ReplayPlan(3, 2, True, {"invoice.paid": 2}, 0, NOW, NOW), None, [])

    async def start(self, asked: ReplayAsked, **more: Any) -> ReplayJob:
        return self.jobs[REPLAY]

    def check_catch_up(self, tenant: str | None) -> None: ...

    async def marks(self) -> tuple[tuple[str, int, int], ...]:
        return ()

    def get(self, id: str, *, tenant: str | None) -> ReplayJob:  # noqa: A002
        if id not in self.jobs:
            raise NotFound(f"there is no replay {id}")
        return self.jobs[id]

    def list(self, **more: Any) -> ReplayListing:
        return ReplayListing([*self.jobs.values()], None)

    async def _change(
        self,
        id: str,  # noqa: A002
        tenant: str | None,
        change: Callable[[ReplayJob], ReplayJob],
    ) -> ReplayJob:
        return self.get(id, tenant=tenant)


class MemoryInterventions(Interventions):
    """There is no history, and there are no dead letters."""

    def __init__(self, subscriptions: MemorySubscriptions) -> None:
        self._subscriptions = subscriptions

    async def retry(self, who: Principal, delivery: str) -> Intervention:
        raise HistoryOff

    cancel = retry

    async def deliver(
        self, who: Principal, event_id: str, subscription_id: str, source: tuple[str, int, int] | None
    ) -> Intervention:
        raise HistoryOff

    async def retry_dead_letter(self, who: Principal, partition: int, offset: int) -> Intervention:
        raise NotFound(f"there is no dead letter {partition}-{offset} (any more)")

    async def purge(self, who: Principal, subscription_id: str) -> Intervention:
        self._subscriptions.get(subscription_id, tenant=who.tenant)
        return Intervention(
            id=f"int_{1:024x}",
            action="purge",
            subscription_id=subscription_id,
            order=NOW,
            at_ms=NOW,
            until_ms=NOW,
            by=f"{who.scope} {who.name}",
        )


class Plane:
    """All of it, and the services that an `ApiServer` takes."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.keys = MemoryKeys()
        self.subscriptions = MemorySubscriptions()
        self.catalogue = MemoryCatalogue()
        self.publisher = MemoryPublisher()
        self.quotas = memory_quotas(None if settings is None else settings.quotas)
        self.now = 0.0
        self.wall = 1_760_000_000.0
        settings = settings or Settings()
        signer = make_signer(settings)
        self.portal = PortalSessions(
            MemoryTable[PortalSession](),
            MemoryTable[PortalImage](),
            lambda: self.keys.loaded,
            signer,
            enabled=settings.portal.enabled,
            wall=lambda: self.wall,
        )
        self.audit = MemoryTrail()
        self.live = Live(None, complete=True)
        self.access = Access(
            settings, self.keys, lambda: self.keys.loaded, tokens=self.portal, monotonic=lambda: self.now
        )
        self.services = Services(
            views=self.subscriptions,
            listing=self.subscriptions,
            creation=self.subscriptions,
            subscriptions=self.subscriptions,
            checks=self.subscriptions,
            catalogue=self.catalogue,
            publisher=self.publisher,
            access=self.access,
            audit=self.audit,
            sessions=Sessions(settings, self.access, signer, wall=lambda: self.wall),
            portal=self.portal,
            live=self.live,
            console=settings.console,
            pages=settings.portal,
            quotas=self.quotas,
            history=(history := HistoryReader(None, None)),
            payloads=Payloads(history, None),  # type: ignore[arg-type] # nothing is asked of it without a history
            explanations=Explanations(history, None, keeps_all=True),  # type: ignore[arg-type] # likewise
            statistics=StatisticsReader(history, lambda: NOW / 1000),
            issues=Issues(history, MemoryTable(), FixedRegistry(), lambda: None, lambda: NOW / 1000, 86400.0),  # type: ignore[arg-type] # has an index
            cluster=MemoryCluster(),
            replays=MemoryReplays(),
            interventions=MemoryInterventions(self.subscriptions),
            dead_letters=DeadLetters(MemoryBroker(), "dispatcher.dead"),
            egress=("192.0.2.7/32",),
        )
