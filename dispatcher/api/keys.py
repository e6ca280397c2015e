"""API keys over the API."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from dispatcher.api.models import (
    ReplyModel,
    RequestModel,
    Tenant,
    Time,
)
from dispatcher.api.problems import Kind
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.core.control.keys import CAPABILITIES, Capability, Key
from dispatcher.core.text.times import rfc3339


class KeyCreate(RequestModel):
    """A new key."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"name": "acme's back end", "scope": "tenant", "tenant": "acme"}}
    )

    name: Annotated[
        str, Field(min_length=1, max_length=128, description="Who has it: it stands in the audit log.")
    ]
    scope: Annotated[
        Literal["operator", "tenant"],
        Field(description="operator: of all tenants. tenant: only its tenant's subscriptions and events."),
    ]
    tenant: Annotated[Tenant, Field(description="Of which tenant; for the scope `tenant` only.")] | None = (
        None
    )
    capabilities: (
        Annotated[
            list[Capability],
            Field(
                min_length=1,
                max_length=len(CAPABILITIES),
                description="What it may do. Left out, a tenant's key may all but `publish`, and an operator's everything; an operator's with `read` "
                "alone sees everything and changes nothing. publish: publish events. read: see. "
                "write: change subscriptions and ask their endpoints. secrets: rotate secrets. resend: have deliveries "
                "sent again.",
            ),
        ]
        | None
    ) = None


class KeyReply(ReplyModel):
    """A key, without its secret."""

    model_config = ConfigDict(title="Key")

    id: str
    name: str
    scope: Literal["operator", "tenant"]
    tenant: str | None
    capabilities: Annotated[list[Capability], Field(description="What it may do.")]
    created_at: Time
    created_by: str


class KeyCreated(ReplyModel):
    """A new key, in full for the only time."""

    key: KeyReply
    secret: Annotated[
        str, Field(description="Send it as `Authorization: Bearer ...`. It is not shown again.")
    ]


class KeyList(ReplyModel):
    """Keys that the API made; those of the settings are not listed."""

    keys: list[KeyReply]


def _key(key: Key) -> KeyReply:
    return KeyReply(
        id=key.id,
        name=key.name,
        scope=key.scope,
        tenant=key.tenant,
        capabilities=[name for name in CAPABILITIES if name in key.capabilities],
        created_at=rfc3339(key.created_ms) or "",
        created_by=key.created_by,
    )


async def create_key(call: Call) -> Reply:
    request: KeyCreate = call.model
    key, secret = await call.services.access.create(
        request.name,
        request.scope,
        request.tenant,
        by=call.caller,
        capabilities=request.capabilities,
    )
    call.audit(
        "key.create",
        key.id,
        key_name=key.name,
        key_scope=key.scope,
        key_tenant=key.tenant,
        key_capabilities=sorted(key.capabilities),
    )
    return Reply(KeyCreated(key=_key(key), secret=secret), 201, {"Location": f"/v1/keys/{key.id}"})


async def list_keys(call: Call) -> Reply:
    return Reply(KeyList(keys=[_key(key) for key in call.services.access.list()]))


async def revoke_key(call: Call) -> Reply:
    key = await call.services.access.revoke(call.path["id"])
    call.audit("key.revoke", key.id, key_name=key.name, key_scope=key.scope, key_tenant=key.tenant)
    return Reply(status=204)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/keys",
        "createKey",
        "keys",
        "Make a key",
        Audience.OPERATOR,
        None,
        {201: RouteAnswer("The key in full, for the only time.", KeyCreated, ("Location",))},
        create_key,
        description="The first operator's key closes an API that was open because there was none.",
        body=Body(KeyCreate),
    ),
    Route(
        "GET",
        "/v1/keys",
        "listKeys",
        "keys",
        "List the keys",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("Those that the API made, without their secrets.", KeyList)},
        list_keys,
    ),
    Route(
        "DELETE",
        "/v1/keys/{id}",
        "revokeKey",
        "keys",
        "Revoke a key",
        Audience.OPERATOR,
        None,
        {204: RouteAnswer("The key is revoked, on all replicas within a second.")},
        revoke_key,
        problems=(Kind.NOT_FOUND, Kind.VERSION_MISMATCH),
    ),
)
