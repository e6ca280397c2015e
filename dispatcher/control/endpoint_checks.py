"""What asking an endpoint tells: pings, test events and validations, and how deliveries to it go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from secrets import token_hex
from typing import Any, Protocol

from orjson import dumps

from dispatcher.broker.base import StoredRecord
from dispatcher.control.catalogue import Catalogue
from dispatcher.control.cluster import ClusterView
from dispatcher.control.errors import (
    Invalid,
    NotFound,
    Overloaded,
    WrongState,
)
from dispatcher.control.probes import Busy, Probes
from dispatcher.control.validation import Validator
from dispatcher.control.views import View, Views
from dispatcher.core.cluster.merge import together
from dispatcher.core.cluster.record import Trouble
from dispatcher.core.event.decode import JSON_HEAD, Event, decode
from dispatcher.core.flaws import Flaw
from dispatcher.core.request.handshake import Refused
from dispatcher.core.request.results import Failure, Response
from dispatcher.core.subscription.model import EVERY_TENANT, Status, Subscription
from dispatcher.registry.registry import Registry


@dataclass(frozen=True, slots=True)
class PingResult:
    """The outcome of a ping or a test event: `status` of the answer, or `reason` why there was none."""

    event_id: str
    delivered: bool  # a 2xx
    status: int | None
    reason: str | None
    detail: str | None
    duration: float  # seconds
    body: str  # the first KiB of the answer, undecodable bytes replaced


@dataclass(frozen=True, slots=True)
class ReplicaSays:
    """What a process contributes to the health of a subscription."""

    replica: str
    in_trouble: bool | None
    """False: it says nothing of it, since nothing is the matter there, and its figures aren't known. None: it names only the worst."""


@dataclass(frozen=True, slots=True)
class SubscriptionHealth:
    """Figures of one subscription's deliveries: of the process that is asked, `replica`, and of each where it is in trouble."""

    id: str
    replica: str  # host name and process id
    status: str
    reason: str | None
    success_rate: float | None  # of the recent attempts; None before the first
    latency_mean: float | None  # seconds
    latency_p95: float | None
    breaker: str | None  # closed, open, half-open
    queued: int
    in_flight: int
    last_failure: str | None
    last_failure_ms: int | None
    failing_since_ms: int | None
    replicas: tuple[ReplicaSays, ...] = ()
    """The processes that this is made of."""


class DeliveryFigures(Protocol):
    """How deliveries to one subscription go, in one process. Times in seconds."""

    @property
    def success_rate(self) -> float | None: ...
    @property
    def latency_mean(self) -> float | None: ...
    @property
    def latency_p95(self) -> float | None: ...
    @property
    def breaker(self) -> str | None: ...
    @property
    def attempts(self) -> int:
        """How many the rate is of."""

    @property
    def queued(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def last_failure(self) -> str | None: ...
    @property
    def last_failure_at(self) -> float | None:
        """Unix seconds."""

    @property
    def failing_since(self) -> float | None:
        """Unix seconds; None where the last attempt did not fail."""


class HealthSource(Protocol):
    """The source of delivery figures: the engine."""

    def health(self, subscription_id: str) -> DeliveryFigures:
        """As this process sees it; of one that it knows nothing of, nothing."""


class EndpointChecks:
    """Asks endpoints. `tenant` None is an operator, who sees all; a tenant sees its own, and else NotFound."""

    def __init__(
        self,
        views: Views,
        registry: Registry,
        probes: Probes,
        validator: Validator,
        catalogue: Catalogue,
        wall: Callable[[], float],
        replica: str,
    ) -> None:
        """`wall` gives Unix seconds; `replica` names this process."""
        self._views = views
        self._registry = registry
        self._probes = probes
        self._validator = validator
        self._catalogue = catalogue
        self._wall = wall
        self._replica = replica
        self.source: HealthSource | None = None
        """Set when the engine is there."""
        self.cluster: ClusterView | None = None
        """Set when there is one: what the other processes say."""

    async def ping(self, id: str, *, tenant: str | None) -> PingResult:  # noqa: A002 - the field's name
        """Send a real signed `ping` event and wait for what comes of it; whatever the status."""
        subscription = self._views.usable(id, tenant)
        now = self._wall()
        event_id = f"evt_ping_{token_hex(12)}"
        document: dict[str, Any] = {"id": event_id, "type": "ping", "created": round(now, 3)}
        whose = None if subscription.tenant == EVERY_TENANT else subscription.tenant
        if whose is not None:
            document["tenant"] = whose
        document["data"] = {"subscription_id": id}
        event = Event(event_id, "ping", whose, dumps(document), int(now * 1000), JSON_HEAD, now)
        return await self._send(subscription, event)

    async def test(
        self,
        id: str,  # noqa: A002 - the field's name
        event_type: str,
        *,
        tenant: str | None,
        data: Any = None,
    ) -> PingResult:
        """Send an event of a type of the catalogue, once, and wait for what comes of it; whatever the status.

        Its payload is `data`, or else the example of the type.
        """
        subscription = self._views.usable(id, tenant)
        try:
            known = self._catalogue.get(event_type).type
        except NotFound:
            flaw = Flaw(("event_type",), "is not in the catalogue (GET /v1/event-types)")
            raise Invalid([flaw]) from None
        if data is None:
            data = known.example
        if data is None:
            flaw = Flaw(("data",), f"is required: the catalogue has no example of {event_type[:256]}")
            raise Invalid([flaw])
        if flaws := self._catalogue.validate_payload(event_type, data):
            raise Invalid(flaws)
        now = self._wall()
        document: dict[str, Any] = {
            "id": f"evt_test_{token_hex(12)}",
            "type": event_type,
            "created": round(now, 3),
        }
        if subscription.tenant not in (None, EVERY_TENANT):
            document["tenant"] = subscription.tenant
        document["data"] = data
        # Read as a consumer reads what is published, so that the endpoint gets what it will get then.
        event = decode(StoredRecord(0, int(now * 1000), None, dumps(document)), "", 0)
        return await self._send(subscription, event)

    async def _send(self, subscription: Subscription, event: Event) -> PingResult:
        try:
            result, duration = await self._probes.ping(subscription, event)
        except Busy as error:
            raise Overloaded(f"{error}: wait for them") from error
        if isinstance(result, Failure):
            return PingResult(event.id, False, None, result.reason.value, result.detail or None, duration, "")
        body = result.body.decode("utf-8", "replace")
        return PingResult(event.id, _is_2xx(result), result.status, None, None, duration, body)

    async def validate(self, id: str, *, tenant: str | None) -> View:  # noqa: A002 - the field's name
        """Ask the endpoint again whether it wants these events. WrongState says why it hasn't passed."""
        subscription = self._views.usable(id, tenant)
        if subscription.status is Status.DISABLED:
            raise WrongState(f"{id} is disabled ({subscription.reason}): enable it first")
        try:
            verdict = await self._validator.ask(subscription)
        except Busy as error:
            raise Overloaded(f"{error}: wait for them") from error
        if isinstance(verdict, Refused):
            raise WrongState(f"the endpoint did not pass: {verdict.detail}")
        return self._views.get(id, tenant=tenant)

    def health(self, id: str, *, tenant: str | None) -> SubscriptionHealth:  # noqa: A002 - the field's name
        """How its deliveries go: in this process, and in each other one where it is in trouble."""
        view = self._views.get(id, tenant=tenant)
        subscription = self._registry.index.get(id)
        seen = (
            () if self.cluster is None or subscription is None else self.cluster.of_subscription(subscription)
        )
        parts = [
            (each.replica, each.trouble)
            for each in seen
            # Of itself this process knows more than its record says.
            if each.trouble is not None and (self.source is None or each.replica != self._replica)
        ]
        own = None if self.source is None else self.source.health(id)
        if own is not None and own.breaker is not None:
            parts.append((self._replica, _as_trouble(id, own)))
        found = together(parts)
        noted = self._registry.failing(id)
        since = [trouble.since_ms for _, trouble in parts if trouble.since_ms is not None]
        if noted is not None:
            since.append(round(noted * 1000))
        return SubscriptionHealth(
            id=id,
            replica=self._replica,
            status=view.status,
            reason=view.reason,
            success_rate=None if found is None or not found.attempts else found.succeeded / found.attempts,
            latency_mean=None if found is None else _seconds(found.latency_mean_ms),
            latency_p95=None if found is None else _seconds(found.latency_p95_ms),
            breaker=None if found is None else found.breaker,
            queued=0 if found is None else found.queued,
            in_flight=0 if found is None else found.in_flight,
            last_failure=None if found is None else found.last_result,
            last_failure_ms=None if found is None else found.last_ms,
            failing_since_ms=min(since, default=None),
            replicas=tuple(
                ReplicaSays(
                    each.replica, None if each.trouble is None and each.cut else each.trouble is not None
                )
                for each in seen
            ),
        )


def _as_trouble(id_: str, own: DeliveryFigures) -> Trouble:
    """What this process knows of it, as the others say it."""
    at, since = own.last_failure_at, own.failing_since
    return Trouble(
        subscription_id=id_,
        since_ms=None if since is None else round(since * 1000),
        attempts=own.attempts,
        succeeded=round((own.success_rate or 0.0) * own.attempts),
        latency_mean_ms=None if own.latency_mean is None else own.latency_mean * 1000,
        latency_p95_ms=None if own.latency_p95 is None else own.latency_p95 * 1000,
        breaker=own.breaker or "closed",
        queued=own.queued,
        in_flight=own.in_flight,
        last_result=own.last_failure,
        last_ms=None if at is None else round(at * 1000),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _is_2xx(result: Response) -> bool:
    return 200 <= result.status < 300
