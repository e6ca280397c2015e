"""What each route does: from a request that is read and checked to an operation of the control plane, and back."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from dispatcher.api import models
from dispatcher.api.problems import Kind, Problem
from dispatcher.api.routes import Call, Reply
from dispatcher.control.catalogue import EventTypeView
from dispatcher.control.errors import NotFound
from dispatcher.control.subscriptions import OVERLAP, View
from dispatcher.core.control.keys import Key
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.units import parse_duration

_VERSION: Final = re.compile(r"[0-9]{1,18}")
_TAG: Final = re.compile(r'"([0-9]{1,18})"')
_TAGS: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"(?:[ \t]*,[ \t]*(?:W/)?"[\x21\x23-\x7e]*")*')
_MAX_OVERLAP: Final = 30 * 24 * 3600.0


def _etag(version: int) -> Mapping[str, str]:
    return {"ETag": f'"{version}"'}


def _if_match(call: Call, current: int | None) -> int | None:
    """The version that the caller wants to change; `current` is the one in force."""
    given = "*" if call.if_match is None else call.if_match.strip()
    if given == "*":
        return None
    if _VERSION.fullmatch(given):
        given = f'"{given}"'  # the version as documents show it: what else could be meant?
    if not _TAGS.fullmatch(given):
        flaw = Flaw(("If-Match",), 'must be an ETag as it was sent: "3"')
        raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
    # A weak tag matches nothing here (RFC 9110, 13.1.1), nor does one that we never made.
    versions = [int(tag) for tag in _TAG.findall(re.sub(r'W/"[^"]*"', "", given))]
    if current in versions:
        return current
    raise Problem(
        Kind.VERSION_MISMATCH,
        f"If-Match is {given}, and the version in force is {current}: read it again and repeat the change",
    )


# --- subscriptions


async def create_subscription(call: Call) -> Reply:
    document = {name: value for name, value in call.body.items() if value is not None}
    created = await call.services.subscriptions.create(
        document, principal=call.caller.id, tenant=call.tenant, idempotency_key=call.idempotency_key
    )
    if not created.replayed:
        call.audit("subscription.create", created.view.id, fields=sorted(document))
    return Reply(
        models.SubscriptionCreated(
            subscription=models.subscription(created.view), secrets=list(created.secrets)
        ),
        201,
        {**_etag(created.view.version), "Location": f"/v1/subscriptions/{created.view.id}"},
    )


async def list_subscriptions(call: Call) -> Reply:
    query: models.SubscriptionQuery = call.query
    found = call.services.subscriptions.list(
        tenant=call.tenant,
        of_tenant=query.tenant,
        status=query.status,
        event_type=query.event_type,
        host=query.host,
        cursor=query.cursor,
        limit=query.limit,
    )
    return Reply(models.page(found.items, found.next_cursor))


def _view(call: Call) -> View:
    return call.services.subscriptions.get(call.path["id"], tenant=call.tenant)


def _shown(view: View) -> Reply:
    return Reply(models.subscription(view), headers=_etag(view.version))


async def get_subscription(call: Call) -> Reply:
    view = _view(call)
    health = call.services.subscriptions.health(view.id, tenant=call.tenant)
    return Reply(models.detail(view, health), headers=_etag(view.version))


async def update_subscription(call: Call) -> Reply:
    if_match = _if_match(call, _view(call).version)
    view = await call.services.subscriptions.update(
        call.path["id"], call.body, tenant=call.tenant, if_match=if_match
    )
    call.audit("subscription.update", view.id, fields=sorted(call.body))
    return _shown(view)


async def delete_subscription(call: Call) -> Reply:
    view = _view(call)
    await call.services.subscriptions.delete(
        view.id, tenant=call.tenant, if_match=_if_match(call, view.version)
    )
    call.audit("subscription.delete", view.id)
    return Reply(status=204)


async def pause_subscription(call: Call) -> Reply:
    return await _switch(call, "pause", call.services.subscriptions.pause)


async def resume_subscription(call: Call) -> Reply:
    return await _switch(call, "resume", call.services.subscriptions.resume)


async def enable_subscription(call: Call) -> Reply:
    return await _switch(call, "enable", call.services.subscriptions.enable)


async def _switch(call: Call, action: str, operation: Callable[..., Awaitable[View]]) -> Reply:
    view = _view(call)
    view = await operation(view.id, tenant=call.tenant, if_match=_if_match(call, view.version))
    call.audit(f"subscription.{action}", view.id)
    return _shown(view)


async def rotate_secret(call: Call) -> Reply:
    view = _view(call)
    request: models.SecretRotate = call.model or models.SecretRotate()
    overlap = OVERLAP if request.overlap is None else parse_duration(request.overlap)
    if overlap > _MAX_OVERLAP:
        raise _wrong("overlap", "must be at most 30d")
    rotated = await call.services.subscriptions.rotate(
        view.id,
        tenant=call.tenant,
        secret=request.secret,
        overlap=overlap,
        if_match=_if_match(call, view.version),
    )
    call.audit("subscription.rotate", rotated.view.id, overlap=overlap)
    return Reply(
        models.SecretRotated(
            subscription=models.subscription(rotated.view),
            secret=rotated.secret,
            old_expires_at=models.time_of(rotated.old_expires_ms) or "",
        ),
        headers=_etag(rotated.view.version),
    )


async def ping_subscription(call: Call) -> Reply:
    result = await call.services.subscriptions.ping(call.path["id"], tenant=call.tenant)
    call.audit("subscription.ping", call.path["id"], delivered=result.delivered)
    return Reply(models.ping(result))


async def validate_subscription(call: Call) -> Reply:
    view = await call.services.subscriptions.validate(call.path["id"], tenant=call.tenant)
    call.audit("subscription.validate", view.id)
    return _shown(view)


async def get_health(call: Call) -> Reply:
    return Reply(
        models.delivery_health(call.services.subscriptions.health(call.path["id"], tenant=call.tenant))
    )


# --- event types


async def list_event_types(call: Call) -> Reply:
    return Reply(call.services.catalogue.written(_event_types))


def _event_types(views: Sequence[EventTypeView]) -> bytes:
    listed = models.EventTypeList(event_types=[models.event_type(view) for view in views])
    return listed.model_dump_json(by_alias=True).encode()


async def get_event_type(call: Call) -> Reply:
    view = call.services.catalogue.get(call.path["name"])
    return Reply(models.event_type(view), headers=_etag(view.version))


async def put_event_type(call: Call) -> Reply:
    name, catalogue = call.path["name"], call.services.catalogue
    if_match = None
    if call.if_match is not None:
        try:
            current = catalogue.get(name).version
        except NotFound:
            raise Problem(
                Kind.VERSION_MISMATCH, f"If-Match is {call.if_match}, and there is no {name}"
            ) from None
        if_match = _if_match(call, current)
    view, new = await catalogue.put(name, _given(call.body), if_match=if_match, only_new=call.only_new)
    call.audit("event-type.put", name, new=new, fields=sorted(call.body))
    return Reply(models.event_type(view), 201 if new else 200, _etag(view.version))


async def delete_event_type(call: Call) -> Reply:
    name, catalogue = call.path["name"], call.services.catalogue
    await catalogue.delete(name, if_match=_if_match(call, catalogue.get(name).version))
    call.audit("event-type.delete", name)
    return Reply(status=204)


def _given(document: Mapping[str, Any]) -> dict[str, Any]:
    # An example may be null.
    return {name: value for name, value in document.items() if value is not None or name == "example"}


# --- events


async def publish_events(call: Call) -> Reply:
    batch = isinstance(call.body, list)
    events = call.body if batch else [call.body]
    published = await call.services.publisher.publish(events, tenant=call.tenant, batch=batch)
    return Reply(models.published(published), 202)


# --- keys


def _key(key: Key) -> models.Key:
    return models.Key(
        id=key.id,
        name=key.name,
        scope=key.scope,
        tenant=key.tenant,
        created_at=models.time_of(key.created_ms) or "",
        created_by=key.created_by,
    )


async def create_key(call: Call) -> Reply:
    request: models.KeyCreate = call.model
    key, secret = await call.services.access.create(
        request.name, request.scope, request.tenant, by=call.caller
    )
    call.audit("key.create", key.id, key_name=key.name, key_scope=key.scope, key_tenant=key.tenant)
    return Reply(models.KeyCreated(key=_key(key), secret=secret), 201, {"Location": f"/v1/keys/{key.id}"})


async def list_keys(call: Call) -> Reply:
    return Reply(models.KeyList(keys=[_key(key) for key in call.services.access.list()]))


async def revoke_key(call: Call) -> Reply:
    key = await call.services.access.revoke(call.path["id"])
    call.audit("key.revoke", key.id, key_name=key.name, key_scope=key.scope, key_tenant=key.tenant)
    return Reply(status=204)


# --- egress


async def get_egress(call: Call) -> Reply:
    return Reply(models.Egress(addresses=list(call.services.egress)))


def _wrong(field: str, message: str) -> Problem:
    flaw = Flaw((field,), message)
    return Problem(Kind.INVALID, str(flaw), errors=[flaw])
