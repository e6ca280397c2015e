"""Subscriptions over the API: their models, and making, listing, showing, changing and deleting them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from dispatcher.api.models import (
    Duration,
    EventTypes,
    Headers,
    HostFilter,
    Jitter,
    MaxInFlight,
    QueryModel,
    RateLimit,
    ReplyModel,
    RequestModel,
    Schedule,
    Secrets,
    Signatures,
    SubscriptionId,
    Tenant,
    TenantFilter,
    Time,
    TypeName,
    Url,
    duration_of,
    whole_number,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import MERGE_PATCH, Audience, Body, Call, Reply, Route, RouteAnswer, etag
from dispatcher.control.endpoint_checks import SubscriptionHealth
from dispatcher.control.listing import MAX_PAGE, PAGE
from dispatcher.control.views import View
from dispatcher.core.text.times import rfc3339


class RetryRequest(RequestModel):
    """Its own retry policy; what is left out comes from the settings."""

    schedule: Schedule | None = None
    jitter: Annotated[Jitter, Field(description="The share of each wait by which it may vary.")] | None = None


class SubscriptionCreate(RequestModel):
    """A new subscription. What is left out, or null, has its default."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"url": "https://hooks.acme.example/webhooks", "event_types": ["invoice.*"]}
        }
    )

    id: SubscriptionId | None = None
    tenant: (
        Annotated[
            Tenant,
            Field(
                description="Whose events it gets: none for events without a tenant, `*` for all. A tenant's key makes "
                "its own only."
            ),
        ]
        | None
    ) = None
    url: Url
    event_types: EventTypes
    secrets: Secrets | None = None
    signatures: Signatures | None = None
    headers: Headers | None = None
    payload: Literal["full", "thin"] | None = None
    status: Literal["active", "paused"] | None = None
    validated: Annotated[
        bool | None,
        Field(
            alias="validate",
            description="Deliver nothing until the endpoint has shown that it wants these events.",
        ),
    ] = None
    redirects: Literal["never", "same-origin"] | None = None
    timeout: Duration | None = None
    max_in_flight: MaxInFlight | None = None
    rate_limit: RateLimit | None = None
    retry: RetryRequest | None = None


class SubscriptionPatch(RequestModel):
    """Changes, as a JSON merge patch (RFC 7396): what is left out stays, what is null gets its default again."""

    model_config = ConfigDict(json_schema_extra={"example": {"event_types": ["invoice.paid", "billing.*"]}})

    tenant: Tenant | None = None
    url: Url = ""
    event_types: EventTypes = Field(default_factory=list)
    signatures: Signatures | None = None
    headers: dict[str, Annotated[str, Field(max_length=8192)] | None] | None = None
    payload: Literal["full", "thin"] | None = None
    validated: Annotated[bool | None, Field(alias="validate")] = None
    redirects: Literal["never", "same-origin"] | None = None
    timeout: Duration | None = None
    max_in_flight: MaxInFlight | None = None
    rate_limit: RateLimit | None = None
    retry: RetryRequest | None = None


class MaskedSecret(ReplyModel):
    """A live secret, but for its last characters."""

    masked: Annotated[str, Field(examples=["whsec_...LaSw"])]
    expires_at: Annotated[Time | None, Field(description="When it stops signing.")]
    public_key: Annotated[
        str | None,
        Field(
            description="Of an ed25519 secret (`whsk_`): what receivers verify `v1a` signatures with, `whpk_...`."
        ),
    ]


class RetryPolicyReply(ReplyModel):
    """Its own retry policy."""

    model_config = ConfigDict(title="RetryPolicy")

    schedule: list[str] | None = None
    jitter: float | None = None


class ReplicaSaysReply(ReplyModel):
    """A replica that delivers, and whether it says anything of the subscription."""

    model_config = ConfigDict(title="HealthOfReplica")

    replica: str
    in_trouble: Annotated[
        bool | None,
        Field(
            description="false: nothing is the matter there, and its figures are not known here. null: so many are in trouble there that it"
            " may not name this one."
        ),
    ]


class DeliveryHealth(ReplyModel):
    """How deliveries to it go: in the replica that answers, and in each other one where it is in trouble."""

    replica: Annotated[
        str,
        Field(description="Which replica answers: host name and process id.", examples=["dispatcher-0:1"]),
    ]
    replicas: Annotated[
        list[ReplicaSaysReply],
        Field(description="Those that deliver and were heard of in the last 35 seconds."),
    ]
    instance: Annotated[str, Field(deprecated=True, description="The host name alone: read `replica`.")]
    success_rate: Annotated[float | None, Field(description="Of the recent attempts.")]
    latency_mean: Annotated[float | None, Field(description="Seconds.")]
    latency_p95: Annotated[float | None, Field(description="Seconds.")]
    breaker: str | None
    queued: int
    in_flight: int
    last_failure: str | None
    last_failure_at: Time | None
    failing_since: Annotated[Time | None, Field(description="Since when nothing has been acknowledged.")]


class SubscriptionReply(ReplyModel):
    """A subscription. Where a field with a default is null, the settings' value is in force."""

    model_config = ConfigDict(title="Subscription")

    id: str
    managed: Annotated[
        Literal["api", "file"], Field(description="Where it is changed: here, or in the subscriptions file.")
    ]
    version: Annotated[int, Field(description="Counts the changes; also the ETag.")]
    status: Annotated[
        Literal["active", "paused", "pending", "disabled"],
        Field(description="pending: waiting for its validation. disabled: given up, see the reason."),
    ]
    reason: Annotated[
        str | None,
        Field(
            description="Why it is pending or disabled: `gone` (it answered 410), `failing`, `operator`, `invalid`, `sealed`, "
            "or what its endpoint said when it was asked."
        ),
    ]
    reason_text: Annotated[str | None, Field(description="What the operator wrote who disabled it.")]
    tenant: str | None
    url: str
    event_types: list[str]
    secrets: list[MaskedSecret]
    signatures: list[str]
    headers: dict[str, str]
    payload: str
    validated: Annotated[bool, Field(alias="validate")]
    redirects: str
    client_certificate: Annotated[
        dict[str, str | None] | None,
        Field(description="Files on the dispatcher's disk; set in its file only."),
    ]
    timeout: str | None
    max_in_flight: int
    rate_limit: str | None
    retry: RetryPolicyReply | None
    created_at: Time | None
    updated_at: Time | None


class SubscriptionDetail(SubscriptionReply):
    """A subscription, and how deliveries to it go."""

    model_config = ConfigDict(title="SubscriptionDetail")

    health: DeliveryHealth


class SubscriptionCreated(ReplyModel):
    """A new subscription, and its secrets in full, for the only time."""

    subscription: SubscriptionReply
    secrets: Annotated[list[str], Field(description="Keep them: they are not shown again.")]


class SubscriptionPage(ReplyModel):
    """A part of a listing, in the order of the ids."""

    subscriptions: list[SubscriptionReply]
    next_cursor: Annotated[str | None, Field(description="For the next page; null on the last one.")]


class SubscriptionQuery(QueryModel):
    """Which subscriptions, and how many."""

    tenant: TenantFilter | None = None
    status: Literal["active", "paused", "pending", "disabled"] | None = None
    event_type: Annotated[TypeName, Field(description="That want events of this type.")] | None = None
    host: HostFilter | None = None
    cursor: (
        Annotated[str, Field(min_length=1, max_length=512, description="`next_cursor` of the page before.")]
        | None
    ) = None
    limit: Annotated[int, Field(ge=1, le=MAX_PAGE), BeforeValidator(whole_number)] = PAGE


# --- from what the control plane gives ------------------------------------------------------------------------------
def subscription_reply(view: View) -> SubscriptionReply:
    """A subscription as it is shown."""
    return SubscriptionReply(**subscription_fields(view))


def detail_reply(view: View, health: SubscriptionHealth) -> SubscriptionDetail:
    """One with its health."""
    return SubscriptionDetail(**subscription_fields(view), health=health_reply(health))


def page_reply(views: Iterable[View], next_cursor: str | None) -> SubscriptionPage:
    """A page of them, checked in one go: one by one takes half as long again."""
    return SubscriptionPage.model_validate(
        {"subscriptions": [subscription_fields(view) for view in views], "next_cursor": next_cursor}
    )


def subscription_fields(view: View) -> dict[str, Any]:
    given = {name: value for name, value in view.document.items() if value is not None}
    retry = given.get("retry")
    certificate = given.get("client_certificate")
    return {
        "id": view.id,
        "managed": view.managed,
        "version": view.version,
        "status": view.status,
        "reason": view.reason,
        "reason_text": view.reason_text,
        "tenant": given.get("tenant"),
        "url": given["url"],
        "event_types": list(given["event_types"]),
        "secrets": [
            {
                "masked": secret.masked,
                "expires_at": rfc3339(secret.expires_ms),
                "public_key": secret.public_key,
            }
            for secret in view.secrets
        ],
        "signatures": list(given.get("signatures", ("v1",))),
        "headers": dict(given.get("headers", {})),
        "payload": given.get("payload", "full"),
        "validated": given.get("validate", False),
        "redirects": given.get("redirects", "never"),
        "client_certificate": None if certificate is None else dict(certificate),
        "timeout": duration_of(given.get("timeout")),
        "max_in_flight": given.get("max_in_flight", 16),
        "rate_limit": _rate_of(given.get("rate_limit")),
        "retry": None if retry is None else _retry(retry),
        "created_at": rfc3339(view.created_ms),
        "updated_at": rfc3339(view.updated_ms),
    }


def _rate_of(rate: Any) -> Any:
    return rate if rate is None or isinstance(rate, str) else f"{rate:g}/s"


def _retry(retry: dict[str, Any]) -> RetryPolicyReply:
    schedule = retry.get("schedule")
    return RetryPolicyReply(
        schedule=None if schedule is None else [duration_of(wait) for wait in schedule],
        jitter=retry.get("jitter"),
    )


def health_reply(health: SubscriptionHealth) -> DeliveryHealth:
    """The health of a subscription's deliveries."""
    return DeliveryHealth(
        replica=health.replica,
        replicas=[
            ReplicaSaysReply(replica=each.replica, in_trouble=each.in_trouble) for each in health.replicas
        ],
        instance=health.replica.rpartition(":")[0],
        success_rate=_rounded(health.success_rate),
        latency_mean=_rounded(health.latency_mean),
        latency_p95=_rounded(health.latency_p95),
        breaker=health.breaker,
        queued=health.queued,
        in_flight=health.in_flight,
        last_failure=health.last_failure,
        last_failure_at=rfc3339(health.last_failure_ms),
        failing_since=rfc3339(health.failing_since_ms),
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


# --- subscriptions
async def create_subscription(call: Call) -> Reply:
    document = {name: value for name, value in call.body.items() if value is not None}
    created = await call.services.creation.create(
        document, principal=call.caller.id, tenant=call.tenant, idempotency_key=call.idempotency_key
    )
    if not created.replayed:
        call.audit("subscription.create", created.view.id, fields=sorted(document))
    return Reply(
        SubscriptionCreated(subscription=subscription_reply(created.view), secrets=list(created.secrets)),
        201,
        {**etag(created.view.version), "Location": f"/v1/subscriptions/{created.view.id}"},
    )


async def list_subscriptions(call: Call) -> Reply:
    query: SubscriptionQuery = call.query
    found = call.services.listing.page(
        tenant=call.tenant,
        of_tenant=query.tenant,
        status=query.status,
        event_type=query.event_type,
        host=query.host,
        cursor=query.cursor,
        limit=query.limit,
    )
    return Reply(page_reply(found.items, found.next_cursor))


def view_of(call: Call) -> View:
    return call.services.views.get(call.path["id"], tenant=call.tenant)


def shown(view: View) -> Reply:
    return Reply(subscription_reply(view), headers=etag(view.version))


async def get_subscription(call: Call) -> Reply:
    view = view_of(call)
    health = call.services.checks.health(view.id, tenant=call.tenant)
    return Reply(detail_reply(view, health), headers=etag(view.version))


async def update_subscription(call: Call) -> Reply:
    if_match = call.if_match_version(view_of(call).version)
    view = await call.services.subscriptions.update(
        call.path["id"], call.body, tenant=call.tenant, if_match=if_match
    )
    call.audit("subscription.update", view.id, fields=sorted(call.body))
    return shown(view)


async def delete_subscription(call: Call) -> Reply:
    view = view_of(call)
    await call.services.subscriptions.delete(
        view.id, tenant=call.tenant, if_match=call.if_match_version(view.version)
    )
    call.audit("subscription.delete", view.id)
    return Reply(status=204)


CHANGED: Final = (Kind.NOT_FOUND, Kind.FILE_MANAGED, Kind.WRONG_STATE, Kind.VERSION_MISMATCH)
SHOWN: Final = RouteAnswer("The subscription as it is now.", SubscriptionReply, ("ETag",))

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/subscriptions",
        "createSubscription",
        "subscriptions",
        "Register a webhook",
        Audience.TENANT,
        "write",
        {201: RouteAnswer("It is in force.", SubscriptionCreated, ("ETag", "Location"))},
        create_subscription,
        description="Answers once the broker has acknowledged it and this replica delivers to it; other replicas follow "
        "within a second. The answer shows the secrets in full, for the only time. With an `Idempotency-Key`, the "
        "same request sent again within 24 hours makes no second one.",
        body=Body(SubscriptionCreate),
        problems=(Kind.ALREADY_EXISTS, Kind.QUOTA_EXCEEDED),
        idempotent=True,
    ),
    Route(
        "GET",
        "/v1/subscriptions",
        "listSubscriptions",
        "subscriptions",
        "List subscriptions",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("A page of them, in the order of their ids.", SubscriptionPage)},
        list_subscriptions,
        description="Those of the subscriptions file too. For the next page send `next_cursor` as `cursor`; pages "
        "stay consistent while others write: none that was there all the time is missed or comes twice.",
        query=SubscriptionQuery,
    ),
    Route(
        "GET",
        "/v1/subscriptions/{id}",
        "getSubscription",
        "subscriptions",
        "Show a subscription",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("The subscription, with its health.", SubscriptionDetail, ("ETag",))},
        get_subscription,
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "PATCH",
        "/v1/subscriptions/{id}",
        "updateSubscription",
        "subscriptions",
        "Change a subscription",
        Audience.TENANT,
        "write",
        {200: SHOWN},
        update_subscription,
        description="A JSON merge patch. Secrets are rotated and the status has operations of its own, so neither is a "
        "field here.",
        body=Body(SubscriptionPatch, (MERGE_PATCH, "application/json")),
        problems=(*CHANGED, Kind.QUOTA_EXCEEDED),
        if_match=True,
    ),
    Route(
        "DELETE",
        "/v1/subscriptions/{id}",
        "deleteSubscription",
        "subscriptions",
        "Delete a subscription",
        Audience.TENANT,
        "write",
        {204: RouteAnswer("It is gone.")},
        delete_subscription,
        description="What it is still owed is dropped, and counted.",
        problems=CHANGED,
        if_match=True,
    ),
)
