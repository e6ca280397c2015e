"""The page of `dispatcher listen --inspect`: the console's application over what a local receiver got.

It serves the application from the package and a small API, read-only, whose answers have the shapes of the dispatcher's own: so the
pages that show deliveries show these. Nothing of it changes anything.

Web pages of others must not read it through the reader's browser. A browser gives them no answer of another origin, and a name
that somebody points at this machine (DNS rebinding) is refused: `Host` must be an IP address, `localhost`, or the name that the
server was told to listen on.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

from aiohttp import web
from pydantic import Field, ValidationError

from dispatcher.__about__ import __version__
from dispatcher.api.deliveries import DeliveryFilters
from dispatcher.api.history_models import DeliveryReply, SourceReply, known
from dispatcher.api.models import ReplyModel
from dispatcher.api.pages import PageFiles
from dispatcher.api.problems import MEDIA_TYPE, Kind, Problem, invalid
from dispatcher.api.sessions import PrincipalReply, SessionReply
from dispatcher.commands.inspection import Inspection, KeptRequest, sayable, signature_facts
from dispatcher.commands.receiver import listening_socket
from dispatcher.control.live import message
from dispatcher.core.flaws import Flaw
from dispatcher.core.subscription.patterns import matches
from dispatcher.core.text.times import rfc3339

NAME: Final = "inspect"
TOPIC: Final = "requests"
"""The topic of a request's source; the offset is its serial."""

_OCTETS: Final = "application/octet-stream"
_HEARTBEAT: Final = 5.0  # seconds of silence
_PAUSE: Final = 1.0  # seconds between two messages of a stream
_TOLD: Final = 20  # deliveries of one message
_SOURCE: Final = re.compile(rf"{TOPIC}-0-([0-9]{{1,15}})")
_MEDIA: Final = re.compile(r"[!-~ \t]{1,256}")
_CAREFUL: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ReceivedSignature(ReplyModel):
    """Whether a request's signature verifies, and what there is to say why not."""

    verdict: Literal["valid", "missing", "stale", "wrong"]
    missing: list[str]
    off_seconds: int | None
    schemes: list[str]
    expected: str | None


class ReceivedRequest(ReplyModel):
    """A request, as the receiver got it."""

    serial: int
    method: str
    url: str
    size: Annotated[int, Field(description="Bytes of the body.")]
    content_type: str | None
    answer: Annotated[
        Literal["answered", "waiting", "reset", "left"],
        Field(description="`waiting`: not answered yet; `left`: the sender didn't wait for its answer."),
    ]
    signature: ReceivedSignature


class ReceivedDelivery(DeliveryReply):
    """A delivery, with its newest request."""

    received: ReceivedRequest


class InspectionServer:
    """The page and its API, on a port of their own."""

    def __init__(
        self,
        inspection: Inspection,
        key: bytes,
        receiver_url: str,
        clock: Callable[[], float] = time.time,
        pages: PageFiles | None = None,
    ) -> None:
        """`receiver_url` is the receiver's root, with a slash at its end; `key` verifies."""
        self._inspection = inspection
        self._key = key
        self._receiver = receiver_url.rstrip("/")
        self._clock = clock
        self._pages = PageFiles() if pages is None else pages
        self._runner: web.AppRunner | None = None
        self._name = ""

    async def start(self, host: str, port: int = 0) -> int:
        """Listen; return the port. Raises OSError when it can't be had."""
        self._name = host.lower()
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._root)
        app.router.add_get(f"/{NAME}/assets/{{name}}", self._asset)
        app.router.add_get(f"/{NAME}", self._page)
        app.router.add_get(f"/{NAME}/{{rest:.*}}", self._page)
        app.router.add_get("/v1/session", self._session)
        app.router.add_get("/v1/deliveries", self._list)
        app.router.add_get("/v1/deliveries/{id}", self._show)
        app.router.add_get("/v1/events/{id}/payload", self._payload)
        app.router.add_get("/v1/stream", self._stream)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        self._runner = runner
        listener = listening_socket(host, port)
        await web.SockSite(runner, listener).start()
        return int(listener.getsockname()[1])

    async def stop(self) -> None:
        """Stop listening, and end what is being followed."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @web.middleware
    async def _guard(self, request: web.Request, handler: Callable[[web.Request], Any]) -> web.StreamResponse:
        if not host_allowed(request.headers.get("Host", ""), self._name):
            return _problem(
                Problem(Kind.FOREIGN_ORIGIN, "open this page by localhost or by the address that was printed")
            )
        try:
            response: web.StreamResponse = await handler(request)
        except Problem as problem:
            return _problem(problem)
        except web.HTTPMethodNotAllowed:
            return _problem(Problem(Kind.METHOD_NOT_ALLOWED, "what was received can be looked at only"))
        except web.HTTPNotFound:
            return _problem(Problem(Kind.NOT_FOUND, "there is no such address"))
        return response

    async def _root(self, _request: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"{NAME}/")

    async def _page(self, request: web.Request) -> web.StreamResponse:
        return self._pages.page(request, NAME)

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        return self._pages.asset(request)

    async def _session(self, _request: web.Request) -> web.StreamResponse:
        return _reply(
            SessionReply(
                version=__version__,
                replica=NAME,
                environment=None,
                history=True,
                principal=PrincipalReply(
                    id=NAME,
                    name=NAME,
                    scope="tenant",
                    tenant=None,
                    capabilities=["read"],
                    read_only=True,
                    by="open",
                ),
                expires_at=None,
                csrf=None,
                portal=None,
            ).model_dump(mode="json")
        )

    async def _list(self, request: web.Request) -> web.StreamResponse:
        query = _filters(request)
        before = _cursor(query.cursor)
        shown: list[ReceivedDelivery] = []
        more = None
        for kept in self._inspection.newest():
            if before is not None and kept.arrival.serial >= before:
                continue
            delivery = self._delivery(kept)
            if not _wanted(query, kept, delivery):
                continue
            if len(shown) == query.limit:
                more = str(shown[-1].received.serial)
                break
            shown.append(delivery)
        return _reply(
            {
                "deliveries": [each.model_dump(mode="json") for each in shown],
                "next_cursor": more,
                **self._known(),
            }
        )

    async def _show(self, request: web.Request) -> web.StreamResponse:
        requests = self._inspection.delivery(request.match_info["id"])
        if not requests:
            raise Problem(Kind.NOT_FOUND, "no such delivery is kept: the last requests are, as many as fit")
        return _reply(
            {
                "delivery": self._delivery(requests[-1]).model_dump(mode="json"),
                "attempts": [self._attempt(kept) for kept in requests],
                "dead_letter": None,
                **self._known(),
            }
        )

    async def _payload(self, request: web.Request) -> web.StreamResponse:
        found = _SOURCE.fullmatch(request.query.get("source", ""))
        if found is None:
            raise invalid([Flaw(("source",), f"must be {TOPIC}-0-<number>")])
        kept = self._inspection.request(int(found[1]))
        if kept is None or event_id(kept) != request.match_info["id"]:
            raise Problem(Kind.GONE, "no such request is kept: the last requests are, as many as fit")
        media = kept.arrival.headers.get("content-type", "")
        # Somebody else wrote it, and a browser that is led here must not run it.
        headers = {
            **_CAREFUL,
            "Content-Disposition": "attachment",
            "Content-Type": media if _MEDIA.fullmatch(media) else _OCTETS,
        }
        return web.Response(body=kept.arrival.body, headers=headers)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={**_CAREFUL, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        changed = asyncio.Event()
        told = next((kept.arrival.serial for kept in self._inspection.since(0)), 0)
        self._inspection.changed.add(changed)
        try:
            await response.write(message("hello", {"replica": NAME}))
            while True:
                try:
                    async with asyncio.timeout(_HEARTBEAT):
                        await changed.wait()
                except TimeoutError:
                    await response.write(message("heartbeat", {}))
                    continue
                changed.clear()
                rows = list(self._inspection.since(told))
                if rows:
                    told = rows[0].arrival.serial
                    shown = [self._told(kept) for kept in rows[:_TOLD]]
                    await response.write(
                        message("deliveries", {"deliveries": shown, "more": len(rows) - len(shown)})
                    )
                await asyncio.sleep(_PAUSE)
        except ConnectionError:
            return response  # the reader has left
        finally:
            self._inspection.changed.discard(changed)

    def _known(self) -> Mapping[str, Any]:
        return known(round(self._clock() * 1000), ())

    def _delivery(self, kept: KeptRequest) -> ReceivedDelivery:
        arrival = kept.arrival
        first = self._inspection.delivery(kept.delivery)[0].arrival
        received = self._received(kept)
        answered = received.answer == "answered"
        state: Literal["pending", "delivered", "retrying"] = "retrying"
        if received.answer == "waiting":
            state = "pending"
        elif answered and _acknowledges(arrival.answer.status):
            state = "delivered"
        return ReceivedDelivery(
            id=kept.delivery,
            event_id=event_id(kept),
            event_type=sayable(arrival.headers.get("webhook-event-type", "")),
            tenant=None,
            subscription_id="",
            state=state,
            reason=None if received.signature.verdict == "valid" else received.signature.verdict,
            generation=1,
            created_at=rfc3339(first.at * 1000),
            attempts=arrival.number,
            last_attempt_at=rfc3339(arrival.at * 1000),
            status=arrival.answer.status if answered else None,
            failure=None if answered or received.answer == "waiting" else received.answer,
            duration_ms=round(arrival.answer.delay * 1000),
            next_attempt_at=None,
            host=sayable(arrival.headers.get("host", "")) or None,
            source=SourceReply(topic=TOPIC, partition=0, offset=arrival.serial),
            received=received,
        )

    def _received(self, kept: KeptRequest) -> ReceivedRequest:
        arrival = kept.arrival
        answer: Literal["answered", "waiting", "reset", "left"] = "answered"
        if kept.left:
            answer = "left"
        elif self._clock() < arrival.at + arrival.answer.delay:
            answer = "waiting"
        elif arrival.answer.status is None:
            answer = "reset"
        return ReceivedRequest(
            serial=arrival.serial,
            method=arrival.method,
            url=self._receiver + sayable(arrival.target),
            size=len(arrival.body),
            content_type=sayable(arrival.headers["content-type"])
            if "content-type" in arrival.headers
            else None,
            answer=answer,
            signature=ReceivedSignature.model_validate(asdict(signature_facts(self._key, arrival))),
        )

    def _attempt(self, kept: KeptRequest) -> dict[str, Any]:
        arrival = kept.arrival
        delivery = self._delivery(kept)
        attempt = {
            "attempt": arrival.number,
            "time_ms": round(arrival.at * 1000),
            "decision": "delivered" if delivery.state == "delivered" else "retry",
            "total_ms": delivery.duration_ms,
            "host": delivery.host or "",
            "path": sayable(arrival.target),
            "request_headers": [[sayable(name), sayable(value)] for name, value in arrival.headers.items()],
            "received": delivery.received.model_dump(mode="json"),
        }
        if delivery.status is not None:
            attempt["status"] = delivery.status
        if arrival.remote is not None:
            attempt["remote_address"] = arrival.remote
        return attempt

    def _told(self, kept: KeptRequest) -> dict[str, Any]:
        row = self._delivery(kept)
        return {
            "id": row.id,
            "subscription": row.subscription_id,
            "tenant": row.tenant,
            "event_id": row.event_id,
            "event_type": row.event_type,
            "state": row.state,
            "status": row.status,
            "reason": row.reason,
            "failure": row.failure,
            "attempt": row.attempts,
            "host": row.host,
            "duration_ms": row.duration_ms,
            "at": row.last_attempt_at,
        }


def event_id(kept: KeptRequest) -> str:
    """Return the `webhook-id` of a request, or a name for one that has none."""
    return sayable(kept.arrival.id) or f"request-{kept.arrival.serial}"


def host_allowed(header: str, name: str) -> bool:
    """Say whether `Host` names this machine in a way that nobody else can point here."""
    host = header.strip().lower()
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if host in ("localhost", name):
        return host != ""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _acknowledges(status: int | None) -> bool:
    return status is not None and 200 <= status < 300


def _filters(request: web.Request) -> DeliveryFilters:
    try:
        return DeliveryFilters.model_validate(dict(request.query))
    except ValidationError as error:
        raise invalid([Flaw(tuple(each["loc"]), each["msg"]) for each in error.errors()[:20]]) from None


def _cursor(text: str | None) -> int | None:
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise invalid([Flaw(("cursor",), "is no cursor of this list")])
    return int(text[:18])


def _wanted(query: DeliveryFilters, kept: KeptRequest, row: ReceivedDelivery) -> bool:
    at = kept.arrival.at * 1000
    wanted: Sequence[bool] = (
        query.state in (None, row.state) or (query.state == "failed" and row.state == "retrying"),
        query.reason in (None, row.received.signature.verdict),
        query.event in (None, row.event_id),
        query.event_type is None or matches(query.event_type, row.event_type),
        query.status is None or _has_status(query.status, row.status),
        query.since is None or at >= query.since,
        query.until is None or at < query.until,
        query.host in (None, row.host),
        # Nothing is known of a sender's subscriptions, tenants and causes.
        query.subscription is None and query.tenant is None and query.cause is None,
    )
    return all(wanted)


def _has_status(asked: str, status: int | None) -> bool:
    text = "" if status is None else str(status)
    return text[:1] == asked[:1] if asked.endswith("xx") else text == asked


def _reply(document: Mapping[str, Any]) -> web.Response:
    return web.json_response(document, headers=_CAREFUL)


def _problem(problem: Problem) -> web.Response:
    return web.json_response(
        problem.document("-"), status=problem.kind.status, content_type=MEDIA_TYPE, headers=_CAREFUL
    )
