"""What a caller does with a subscription beside changing its document: pause, enable, disable, rotate, ping, test, health."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field

from dispatcher.api.models import (
    Duration,
    ReplyModel,
    RequestModel,
    Time,
    TypeName,
)
from dispatcher.api.problems import Kind, Problem
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer, etag
from dispatcher.api.subscriptions import (
    CHANGED,
    SHOWN,
    DeliveryHealth,
    SubscriptionReply,
    health_reply,
    shown,
    subscription_fields,
    subscription_reply,
    view_of,
)
from dispatcher.control.endpoint_checks import PingResult
from dispatcher.control.secrets import OVERLAP
from dispatcher.control.views import View
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import format_duration, parse_duration


class SubscriptionDisable(RequestModel):
    """Why an operator disables it."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"reason": "floods its endpoint: ticket 4711, until Monday"}}
    )

    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            description="For its owner, who sees it: what is wrong, and whom to ask.",
        ),
    ]


class SubscriptionResume(RequestModel):
    """How to go on; all of it may be left out."""

    model_config = ConfigDict(json_schema_extra={"example": {"catch_up": True}})

    catch_up: Annotated[
        bool,
        Field(
            description="Also send what matched meanwhile, from the event topics, as a replay: as far back as they go. A tenant's key needs the "
            "capability `resend` for it."
        ),
    ] = False


class SubscriptionResumed(SubscriptionReply):
    """The subscription as it is now, and the replay that catches up."""

    model_config = ConfigDict(title="SubscriptionResumed")

    replay: Annotated[
        str | None,
        Field(description="Its id (`GET /v1/replays/{id}`); null where nothing is caught up."),
    ] = None


class SubscriptionTest(RequestModel):
    """Which event to send."""

    model_config = ConfigDict(json_schema_extra={"example": {"event_type": "invoice.paid"}})

    event_type: Annotated[TypeName, Field(description="One of the catalogue.")]
    data: Annotated[
        Any, Field(description="Its payload. Left out, or null, it is the example of the catalogue.")
    ] = None


class SecretRotate(RequestModel):
    """How to rotate; all of it may be left out."""

    model_config = ConfigDict(json_schema_extra={"example": {"overlap": "24h"}})

    secret: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    overlap: Annotated[
        Duration | None,
        Field(
            description=f"How long the old secret goes on signing; {format_duration(OVERLAP)} unless given."
        ),
    ] = None


class SecretRotated(ReplyModel):
    """The new secret in full, for the only time."""

    subscription: SubscriptionReply
    secret: Annotated[str, Field(description="Keep it: it is not shown again.")]
    old_expires_at: Annotated[Time, Field(description="When the old ones stop signing.")]


class Ping(ReplyModel):
    """The outcome of a ping or a test event."""

    event_id: str
    delivered: Annotated[bool, Field(description="Whether the answer was a 2xx.")]
    status: Annotated[int | None, Field(description="Of the answer.")]
    reason: Annotated[str | None, Field(description="Why there was no answer.")]
    detail: str | None
    duration: Annotated[float, Field(description="Seconds.")]
    body: Annotated[str, Field(description="The first KiB of the answer.")]


def ping_reply(result: PingResult) -> Ping:
    """The outcome of a ping or a test event."""
    return Ping(
        event_id=result.event_id,
        delivered=result.delivered,
        status=result.status,
        reason=result.reason,
        detail=result.detail,
        duration=round(result.duration, 6),
        body=result.body,
    )


async def pause_subscription(call: Call) -> Reply:
    view = view_of(call)
    view = await call.services.subscriptions.pause(
        view.id,
        tenant=call.tenant,
        if_match=call.if_match_version(view.version),
        marks=await call.services.replays.marks(),
    )
    call.audit("subscription.pause", view.id)
    return shown(view)


async def resume_subscription(call: Call) -> Reply:
    return await _switch(call, "resume", call.services.subscriptions.resume)


async def enable_subscription(call: Call) -> Reply:
    return await _switch(call, "enable", call.services.subscriptions.enable)


async def disable_subscription(call: Call) -> Reply:
    request: SubscriptionDisable = call.model
    view = view_of(call)
    view = await call.services.subscriptions.disable(
        view.id, request.reason, tenant=call.tenant, if_match=call.if_match_version(view.version)
    )
    call.audit("subscription.disable", view.id, reason_text=request.reason)
    return shown(view)


async def _switch(call: Call, action: str, operation: Callable[..., Awaitable[View]]) -> Reply:
    request: SubscriptionResume = call.model or SubscriptionResume()
    view = view_of(call)
    silence = None
    if request.catch_up:
        if "resend" not in call.caller.capabilities:
            raise Problem(
                Kind.FORBIDDEN,
                "catch_up takes a key with the capability resend: ask an operator for another key",
            )
        silence = call.services.subscriptions.silence(view.id, tenant=call.tenant)
        call.services.replays.check_catch_up(call.tenant)
    view = await operation(view.id, tenant=call.tenant, if_match=call.if_match_version(view.version))
    call.audit(f"subscription.{action}", view.id, catch_up=request.catch_up)
    if silence is None or view.status != "active":
        return Reply(resumed_reply(view, None), headers=etag(view.version))
    job = await call.services.replays.catch_up(
        view.id,
        silence.since_ms,
        silence.marks,
        tenant=call.tenant,
        name=f"{call.caller.scope} {call.caller.name}",
    )
    call.audit("replay.start", job.id, source=job.request.source.value, subscription=view.id)
    return Reply(
        resumed_reply(view, job.id), headers={**etag(view.version), "Location": f"/v1/replays/{job.id}"}
    )


def resumed_reply(view: View, replay: str | None) -> SubscriptionResumed:
    """The subscription, and the replay that catches up."""
    return SubscriptionResumed(**subscription_fields(view), replay=replay)


_RESUMED: Final = RouteAnswer(
    "The subscription as it is now, and the replay that catches up.",
    SubscriptionResumed,
    ("ETag", "Location"),
)


async def rotate_secret(call: Call) -> Reply:
    view = view_of(call)
    request: SecretRotate = call.model or SecretRotate()
    overlap = OVERLAP if request.overlap is None else parse_duration(request.overlap)
    rotated = await call.services.subscriptions.rotate(
        view.id,
        tenant=call.tenant,
        secret=request.secret,
        overlap=overlap,
        if_match=call.if_match_version(view.version),
    )
    call.audit("subscription.rotate", rotated.view.id, overlap=overlap)
    return Reply(
        SecretRotated(
            subscription=subscription_reply(rotated.view),
            secret=rotated.secret,
            old_expires_at=rfc3339(rotated.old_expires_ms) or "",
        ),
        headers=etag(rotated.view.version),
    )


async def ping_subscription(call: Call) -> Reply:
    result = await call.services.checks.ping(call.path["id"], tenant=call.tenant)
    call.audit("subscription.ping", call.path["id"], delivered=result.delivered)
    return Reply(ping_reply(result))


async def test_subscription(call: Call) -> Reply:
    request: SubscriptionTest = call.model
    result = await call.services.checks.test(
        call.path["id"], request.event_type, tenant=call.tenant, data=request.data
    )
    call.audit(
        "subscription.test", call.path["id"], event_type=request.event_type, delivered=result.delivered
    )
    return Reply(ping_reply(result))


async def validate_subscription(call: Call) -> Reply:
    view = await call.services.checks.validate(call.path["id"], tenant=call.tenant)
    call.audit("subscription.validate", view.id)
    return shown(view)


async def get_health(call: Call) -> Reply:
    return Reply(health_reply(call.services.checks.health(call.path["id"], tenant=call.tenant)))


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/subscriptions/{id}/pause",
        "pauseSubscription",
        "subscriptions",
        "Deliver nothing for now",
        Audience.TENANT,
        "write",
        {200: SHOWN},
        pause_subscription,
        description="What it is owed is kept for `subscription.pause_keeps`, and delivered when it is resumed. Events that match "
        "during the pause are dropped; resuming with `catch_up` sends them from their topics.",
        problems=CHANGED,
        if_match=True,
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/resume",
        "resumeSubscription",
        "subscriptions",
        "End a pause",
        Audience.TENANT,
        "write",
        {200: _RESUMED},
        resume_subscription,
        description="With `catch_up`, what matched during the pause is sent, too. Some of what was sent just before the pause may be sent again.",
        body=Body(SubscriptionResume, required=False),
        problems=(*CHANGED, Kind.OVERLOADED),
        if_match=True,
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/enable",
        "enableSubscription",
        "subscriptions",
        "Deliver again to one that was given up",
        Audience.TENANT,
        "write",
        {200: _RESUMED},
        enable_subscription,
        description="For one that is `disabled`, one of the subscriptions file too. One that an operator has disabled "
        "(reason `operator`) only an operator enables. With `catch_up`, what matched since it was disabled is sent, too; what it was owed "
        "then is in the dead letters, and a replay of these sends it.",
        body=Body(SubscriptionResume, required=False),
        problems=(*CHANGED, Kind.OVERLOADED),
        if_match=True,
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/disable",
        "disableSubscription",
        "subscriptions",
        "Stop deliveries to it, and say why",
        Audience.OPERATOR,
        None,
        {200: SHOWN},
        disable_subscription,
        description="The operator's brake, for one of the subscriptions file too. Nothing more is sent until an operator enables it. "
        "What it is owed goes to the dead letters, each delivery when its next attempt is due; what matches "
        "meanwhile is dropped. The subscription, and the event `dispatcher.subscription.disabled`, show the reason.",
        body=Body(SubscriptionDisable),
        problems=CHANGED,
        if_match=True,
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/secret/rotate",
        "rotateSecret",
        "subscriptions",
        "Change the secret",
        Audience.TENANT,
        "secrets",
        {200: RouteAnswer("The new secret in full, for the only time.", SecretRotated, ("ETag",))},
        rotate_secret,
        description="Requests are signed with the new and the old secret until the overlap is over; then the old one "
        "ends by itself.",
        body=Body(SecretRotate, required=False),
        problems=CHANGED,
        if_match=True,
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/ping",
        "pingSubscription",
        "subscriptions",
        "Send a ping and say what came of it",
        Audience.TENANT,
        "write",
        {200: RouteAnswer("What the endpoint said, or why it didn't.", Ping)},
        ping_subscription,
        description="A real event, signed and guarded as every delivery, whatever the subscription's status. It is "
        "tried once.",
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE, Kind.OVERLOADED),
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/test",
        "testSubscription",
        "subscriptions",
        "Send an event of a type of the catalogue and say what came of it",
        Audience.TENANT,
        "write",
        {200: RouteAnswer("What the endpoint said, or why it didn't.", Ping)},
        test_subscription,
        description="Signed, shaped and guarded as every delivery of such an event, whatever the subscription's status and "
        "whether or not it wants the type. It is tried once, and its id begins with `evt_test_`.",
        body=Body(SubscriptionTest),
        problems=(Kind.NOT_FOUND, Kind.WRONG_STATE, Kind.OVERLOADED),
    ),
    Route(
        "POST",
        "/v1/subscriptions/{id}/validate",
        "validateSubscription",
        "subscriptions",
        "Ask the endpoint again whether it wants these events",
        Audience.TENANT,
        "write",
        {200: SHOWN},
        validate_subscription,
        problems=(Kind.NOT_FOUND, Kind.FILE_MANAGED, Kind.WRONG_STATE, Kind.OVERLOADED),
    ),
    Route(
        "GET",
        "/v1/subscriptions/{id}/health",
        "getSubscriptionHealth",
        "subscriptions",
        "How deliveries to it go",
        Audience.TENANT,
        "read",
        {
            200: RouteAnswer(
                "Of all replicas together, as far as each has something to say of it.", DeliveryHealth
            )
        },
        get_health,
        problems=(Kind.NOT_FOUND,),
    ),
)
