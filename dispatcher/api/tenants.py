"""Tenants over the API: their quotas."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from dispatcher.api.models import Duration, ReplyModel, RequestModel, Size, Time
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer, etag
from dispatcher.control.errors import Invalid, NotFound
from dispatcher.control.quotas import QuotasView
from dispatcher.core.control.quotas import QUOTAS, QuotaName, written
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import format_duration, parse_duration, parse_size

_Count = Annotated[int, Field(ge=0, le=10_000_000)]
_Rate = Annotated[int, Field(ge=1, le=10_000_000)]

_DESCRIPTIONS: Final[dict[QuotaName, str]] = {
    "subscriptions": "Subscriptions of the tenant.",
    "subscriptions_per_origin": "Of them, those to one origin (scheme, host and port).",
    "creations_per_minute": "Subscriptions that it may make a minute, in each replica.",
    "events_per_second": "Events that it may publish a second, in each replica.",
    "bytes_per_second": "Bytes of their data, likewise.",
    "replays": "Replays that are not over.",
    "queries": "Requests to the history at a time, in each replica.",
    "streams": "Streams at a time, in each replica.",
    "max_timeout": "The longest `timeout` of a subscription.",
    "max_in_flight": "The largest `max_in_flight` of a subscription.",
    "max_schedule": "The most waits in `retry.schedule`.",
    "max_headers": "The most entries of `headers`.",
    "max_patterns": "The most entries of `event_types`.",
}
_TIMEOUTS: Final = (0.01, 600.0)  # seconds
_SIZES: Final = (1 << 10, 1 << 40)


def _field(name: QuotaName) -> Any:
    return Field(description=_DESCRIPTIONS[name])


class QuotasPut(RequestModel):
    """What a tenant has instead of the settings' quotas. What is left out, or null, it has as all others."""

    model_config = ConfigDict(json_schema_extra={"example": {"subscriptions": 5000, "max_timeout": "2m"}})

    subscriptions: Annotated[_Count, _field("subscriptions")] | None = None
    subscriptions_per_origin: Annotated[_Count, _field("subscriptions_per_origin")] | None = None
    creations_per_minute: Annotated[_Rate, _field("creations_per_minute")] | None = None
    events_per_second: Annotated[_Rate, _field("events_per_second")] | None = None
    bytes_per_second: Annotated[Size, _field("bytes_per_second")] | None = None
    replays: Annotated[int, Field(ge=0, le=10_000), _field("replays")] | None = None
    queries: Annotated[int, Field(ge=1, le=10_000), _field("queries")] | None = None
    streams: Annotated[int, Field(ge=1, le=10_000), _field("streams")] | None = None
    max_timeout: Annotated[Duration, _field("max_timeout")] | None = None
    max_in_flight: Annotated[int, Field(ge=1, le=10_000), _field("max_in_flight")] | None = None
    max_schedule: Annotated[int, Field(ge=0, le=100), _field("max_schedule")] | None = None
    max_headers: Annotated[int, Field(ge=0, le=1000), _field("max_headers")] | None = None
    max_patterns: Annotated[int, Field(ge=1, le=256), _field("max_patterns")] | None = None


class QuotaValues(ReplyModel):
    """Every quota."""

    subscriptions: Annotated[int, _field("subscriptions")]
    subscriptions_per_origin: Annotated[int, _field("subscriptions_per_origin")]
    creations_per_minute: Annotated[int, _field("creations_per_minute")]
    events_per_second: Annotated[int, _field("events_per_second")]
    bytes_per_second: Annotated[str, _field("bytes_per_second")]
    replays: Annotated[int, _field("replays")]
    queries: Annotated[int, _field("queries")]
    streams: Annotated[int, _field("streams")]
    max_timeout: Annotated[str, _field("max_timeout")]
    max_in_flight: Annotated[int, _field("max_in_flight")]
    max_schedule: Annotated[int, _field("max_schedule")]
    max_headers: Annotated[int, _field("max_headers")]
    max_patterns: Annotated[int, _field("max_patterns")]


class QuotasUsed(ReplyModel):
    """What the tenant has of them."""

    subscriptions: int


class TenantQuotasReply(ReplyModel):
    """The quotas of a tenant."""

    model_config = ConfigDict(title="TenantQuotas")

    tenant: str
    quotas: Annotated[QuotaValues, Field(description="Those in force.")]
    own: Annotated[list[str], Field(description="The names of those that an operator has given this tenant.")]
    used: QuotasUsed
    version: Annotated[
        int, Field(description="Counts the changes; also the ETag. 0: it has none of its own.")
    ]
    updated_at: Time | None


def _reply(view: QuotasView) -> Reply:
    values = {name: _shown(name, getattr(view.quotas, name)) for name in QUOTAS}
    return Reply(
        TenantQuotasReply(
            tenant=view.tenant,
            quotas=QuotaValues.model_validate(values),
            own=[name for name in QUOTAS if name in view.overrides],
            used=QuotasUsed(subscriptions=view.used),
            version=view.version,
            updated_at=rfc3339(view.updated_ms),
        ),
        headers=etag(view.version),
    )


def _shown(name: QuotaName, value: float) -> int | str:
    return written(name, value) if name in ("max_timeout", "bytes_per_second") else int(value)


async def get_quotas(call: Call) -> Reply:
    tenant = call.path["tenant"]
    if call.tenant not in (None, tenant):
        raise NotFound("there is nothing here but your own tenant's quotas")
    return _reply(call.services.quotas.view(tenant))


async def put_quotas(call: Call) -> Reply:
    tenant, quotas = call.path["tenant"], call.services.quotas
    if_match = call.if_match_version(quotas.view(tenant).version)
    view = await quotas.put(tenant, _overrides(call.model), if_match=if_match)
    call.audit("quotas.put", tenant, fields=sorted(view.overrides))
    return _reply(view)


def _overrides(request: QuotasPut) -> dict[QuotaName, float]:
    found: dict[QuotaName, float] = {}
    flaws = []
    for name in QUOTAS:
        value = getattr(request, name)
        if value is None:
            continue
        if name == "max_timeout":
            value = parse_duration(value)
            if not _TIMEOUTS[0] <= value <= _TIMEOUTS[1]:
                flaws.append(Flaw((name,), f"must be 10ms to {format_duration(_TIMEOUTS[1])}"))
        elif name == "bytes_per_second":
            value = parse_size(value)
            if not _SIZES[0] <= value <= _SIZES[1]:
                flaws.append(Flaw((name,), "must be 1KiB to 1TiB"))
        found[name] = value
    if flaws:
        raise Invalid(flaws)
    return found


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/tenants/{tenant}/quotas",
        "getQuotas",
        "tenants",
        "Show the quotas of a tenant",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("The quotas in force, and what is used.", TenantQuotasReply, ("ETag",))},
        get_quotas,
        description="A tenant's key sees its own tenant's only. A tenant that nobody has heard of has the quotas of the settings.",
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "PUT",
        "/v1/tenants/{tenant}/quotas",
        "putQuotas",
        "tenants",
        "Give a tenant quotas of its own",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("The quotas in force from now on.", TenantQuotasReply, ("ETag",))},
        put_quotas,
        description="Replaces all that the tenant had of its own; `{}` gives it those of the settings again. What binds subscriptions "
        "(`max_*`) binds what the tenant makes and changes from now on: every subscription that is there stays as it is.",
        body=Body(QuotasPut),
        problems=(Kind.VERSION_MISMATCH,),
        if_match=True,
    ),
)
