"""The way of every request to the API, from the bytes that came to the bytes that go.

The checks come in this order, and the first that fails answers: where the request comes from, who asks and whether they may
(`callers.py`), its address, its query, its body. Then the handler runs. So a caller without a key learns nothing else, a body is
read only for a caller whom it may serve, and nothing is changed before all of the request is known to be right in form.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from itertools import islice
from typing import Any, Final

import orjson
import structlog
from aiohttp import HttpVersion10, HttpVersion11, web
from pydantic import BaseModel, ValidationError

from dispatcher.api import problems
from dispatcher.api.admission import CALLER, GUARD, REQUEST_ID
from dispatcher.api.callers import Callers, refused
from dispatcher.api.event_body import parse_events
from dispatcher.api.export import exported, wanted
from dispatcher.api.limits import BODY
from dispatcher.api.loop_budget import BUDGET, METER, CallerKind, Meter
from dispatcher.api.payload import parse_json, read_body
from dispatcher.api.problems import Kind, Problem, retry_after
from dispatcher.api.route import BODY_LIMIT, NDJSON, Call, Reply, Route, Services
from dispatcher.api.site import refuse_other_sites, site_of
from dispatcher.api.subscriptions import SubscriptionPatch, SubscriptionReply
from dispatcher.control import errors
from dispatcher.control.access import Principal, TooManyWrongKeys, Unauthenticated, counted_as
from dispatcher.control.audit import AuditTrail
from dispatcher.control.history import HistoryOff
from dispatcher.core.endpoint.fairness import FACTOR
from dispatcher.core.event.decode import valid_traceparent, valid_tracestate
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.yaml_document import did_you_mean, explain

log = structlog.get_logger(__name__)

BODIES: Final = 64 << 20
"""Bytes of events that may be on their way from callers to the broker, in all requests together."""
_OF_TENANTS: Final = BODIES * 3 // 4  # the rest is for operators
_OF_ONE: Final = BODIES // 4  # of one tenant
_LARGE: Final = 64 << 10  # bytes of JSON
_SLICE: Final = 50  # events that are checked at a stretch: about 1 ms
_MAX_FLAWS: Final = 100  # that are told; explaining hundreds of thousands would take minutes
STREAM_TIMEOUT: Final = 30.0
HANDLER_TIMEOUT: Final = 90.0
"""Seconds; the operations have bounds of their own, this is for one that forgets."""

_HEALTH: Final = ("/healthz", "/readyz")  # asked by whatever would restart this process if it got no answer
_VERSIONS: Final = (HttpVersion10, HttpVersion11)
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TRACESTATE: Final = 512  # bytes that are passed on (W3C Trace Context 1, 3.3.1.5)
_IDEMPOTENCY_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")

# What each part of an address looks like.
PARAMETERS: Final = {
    ("subscriptions", "id"): r"^[A-Za-z0-9_-]{1,64}$",
    ("keys", "id"): r"^[a-z0-9]{8,32}$",
    ("portal", "id"): r"^([0-9a-f]{16}|[0-9a-f]{32})$",
    ("events", "id"): r"^[^\u0000-\u001f\u007f-\u009f]{1,1024}$",
    ("deliveries", "id"): r"^dlv_[0-9a-f]{24}$",
    ("issues", "id"): r"^[A-Za-z0-9_-]{1,64}:[^\u0000-\u001f\u007f-\u009f]{1,64}$",
    ("tenants", "tenant"): r"^[^\u0000-\u001f\u007f-\u009f]{1,1024}$",
    ("replays", "id"): r"^rpl_[0-9a-f]{12,60}$",
    ("dead letters", "id"): r"^[0-9]{1,9}-[0-9]{1,15}$",
    ("event types", "name"): r"^[^\u0000-\u001f\u007f-\u009f]{1,1024}$",
}

_FORMS: Final[Mapping[str, str]] = {
    "deliveries": "a delivery's is dlv_ and 24 hexadecimal digits; those of an event are listed under GET /v1/deliveries?event=",
    "replays": "a replay's is rpl_ and hexadecimal digits",
    "dead letters": "a dead letter's is its partition and offset, as 0-17",
    "issues": "an issue's is its subscription and cause, as sub_billing:503",
}

# Fields that are changed otherwise.
_ELSEWHERE: Final[Mapping[tuple[type[BaseModel], str | int], str]] = {
    (SubscriptionPatch, "status"): "is changed by POST .../pause, .../resume and .../enable",
    (SubscriptionPatch, "secrets"): "are changed by rotating them: POST .../secret/rotate",
    (SubscriptionPatch, "id"): "can't be changed: make a new subscription",
}

# Fields whose values no message quotes.
_CREDENTIALS: Final = frozenset({"secrets", "secret", "headers", "url", "key", "data"})

_KINDS: Final[Mapping[type[errors.ControlError], Kind]] = {
    errors.NotFound: Kind.NOT_FOUND,
    errors.Gone: Kind.GONE,
    errors.AlreadyExists: Kind.ALREADY_EXISTS,
    errors.FileManaged: Kind.FILE_MANAGED,
    errors.WrongState: Kind.WRONG_STATE,
    HistoryOff: Kind.HISTORY_OFF,
    errors.VersionMismatch: Kind.VERSION_MISMATCH,
    errors.TooLarge: Kind.TOO_LARGE,
    errors.Overloaded: Kind.OVERLOADED,
    errors.Unavailable: Kind.UNAVAILABLE,
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def json_response(
    document: object, status: int = 200, content_type: str = "application/json"
) -> web.Response:
    """A document as an answer."""
    return web.Response(body=orjson.dumps(document), status=status, content_type=content_type)


def answer(problem: Problem, request_id: str) -> web.Response:
    """A problem as an answer."""
    response = json_response(problem.document(request_id), problem.kind.status, problems.MEDIA_TYPE)
    response.headers.update(problem.headers)
    response.headers["Cache-Control"] = "no-store"  # a cache may keep a 404 by itself
    if problem.kind in (Kind.TOO_LARGE, Kind.TOO_SLOW) or "Connection" in problem.headers:
        response.force_close()  # the rest of the body is not worth reading
    return response


def new_request_id() -> str:
    """Of a request that brings none that can be used."""
    return f"req_{secrets.token_urlsafe(12)}"


def bug() -> Problem:
    """What a caller is told of an error that nobody foresaw."""
    said = "a bug of the dispatcher, not of your request; its log says more under this request_id"
    return Problem(Kind.INTERNAL, said)


def tag(request: web.Request) -> None:
    """Give the request its id: the caller's, where that is harmless in a log, or a new one."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _REQUEST_ID.fullmatch(given) else new_request_id()
    request[CALLER] = request.app[GUARD].caller(request)


@web.middleware
async def problem_documents(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever goes wrong is answered with a problem document."""
    tag(request)
    guard = request.app[GUARD]
    guard.began(request)
    try:
        _check_version(request)
        if request.path in _HEALTH:
            return await handler(request)
        guard.count_request(request[CALLER])
        request[METER] = meter = Meter(request.app[BUDGET], counted_as(request[CALLER]))
        return await meter.drive(handler(request))
    except Problem as problem:
        return answer(problem, request[REQUEST_ID])
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return of_http(error, request)
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        # The one place where a bug is caught: the caller gets an answer, and the log where it happened.
        log.exception("a request failed", method=request.method, request_id=request[REQUEST_ID])
        return answer(bug(), request[REQUEST_ID])
    finally:
        guard.ended(request)


def _check_version(request: web.Request) -> None:
    """Aiohttp takes any that is a number, and answers as if it were its own."""
    if request.version not in _VERSIONS:
        said = "this version of HTTP is not spoken here: send HTTP/1.1"
        raise Problem(Kind.MALFORMED, said, headers={"Connection": "close"})


def of_http(error: web.HTTPException, request: web.Request) -> web.StreamResponse:
    """An error of aiohttp's as an answer."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = {"Allow": ", ".join(sorted({*error.allowed_methods, "OPTIONS"}))}
        if request.method == "OPTIONS":
            return web.Response(status=204, headers=allow)
        said = f"{request.method} is not possible here; {allow['Allow']} are"
        return answer(Problem(Kind.METHOD_NOT_ALLOWED, said, headers=allow), request[REQUEST_ID])
    if error.status == 404:
        return answer(
            Problem(Kind.NOT_FOUND, "there is no such address; /openapi.json lists all"), request[REQUEST_ID]
        )
    if error.status == 417:
        return answer(
            Problem(Kind.MALFORMED, "Expect may say 100-continue and nothing else"), request[REQUEST_ID]
        )
    kind = Kind.TOO_LARGE if error.status == 413 else Kind.MALFORMED if error.status < 500 else Kind.INTERNAL
    return answer(Problem(kind, error.reason), request[REQUEST_ID])


class Frame:
    """Turns the table's routes into aiohttp's handlers."""

    def __init__(self, services: Services, *, events_limit: int) -> None:
        """`events_limit` is how many bytes a request with events may have."""
        self.callers = Callers(services.access, services.sessions)
        self._services = services
        self._events_limit = events_limit
        self._large = asyncio.Semaphore(1)  # for whoever parses a large body
        self._bodies = 0  # bytes of all requests with events that are under way
        self._of_tenants: Counter[str] = Counter()  # of them, those of each tenant's key

    def serve(self, route: Route) -> Handler:
        """The handler of one route."""

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await self._serve(route, request)
            except (Unauthenticated, TooManyWrongKeys) as error:
                raise refused(error, request, shown=True) from error
            except (errors.ControlError, TimeoutError) as error:
                raise _problem(error) from error

        return handle

    async def _serve(self, route: Route, request: web.Request) -> web.StreamResponse:
        admitted = self.callers.admit(route.allowed, request, route.needs)
        principal = None if admitted is None else admitted.principal
        if route.from_page:
            refuse_other_sites(request, request.app[GUARD].proxies)
        await take_turn(request, principal)
        path = _path(route, request)
        query = _query(route, request)
        tenant = None if principal is None else principal.tenant
        # An export is under way until its last line is sent.
        with self._services.quotas.admitted(tenant, route.quota):
            with self._room(route, principal) as take:
                body, model = await self._body(route, request, take)
                call = Call(
                    services=self._services,
                    admitted=admitted,
                    path=path,
                    query=query,
                    body=body,
                    model=model,
                    if_match=request.headers.get("If-Match") if route.if_match else None,
                    only_new=_only_new(request) if route.only_new else False,
                    idempotency_key=_idempotency_key(request) if route.idempotent else None,
                    trace=_trace(request) if route.traced else (),
                    audit=_auditor(request, principal, self._services.audit),
                    site_of=lambda: site_of(request, request.app[GUARD].proxies),
                    source=request[CALLER],
                    still_admitted=partial(self._still_admitted, route, request),
                )
                try:
                    media = wanted(route, request.headers.getall("Accept", []))
                    async with asyncio.timeout(HANDLER_TIMEOUT):
                        if media is None:
                            reply = await route.handler(call)
                        else:
                            reply = await exported(route, call, media, request[METER])
                except (errors.Unavailable, TimeoutError):
                    # It may have taken effect all the same, and no other line would tell.
                    if route.method != "GET" and route.tag != "events":
                        subject = next(iter(path.values()), "")
                        call.audit(route.operation, subject, outcome="unknown")
                    raise
            return _response(reply) if reply.stream is None else await _streamed(reply, reply.stream, request)

    def _still_admitted(self, route: Route, request: web.Request) -> bool:
        """Whether the caller would be let in now, with what it came with."""
        try:
            return self.callers.admit(route.allowed, request, route.needs) is not None
        except (Problem, errors.ControlError):
            return False

    @contextmanager
    def _room(self, route: Route, principal: Principal | None) -> Iterator[Callable[[int], None]]:
        """A function that reserves room for bytes of a body with events, until the request ends. It raises Problem when no room is left.

        A tenant has a quarter of the room, tenants together have three quarters; the rest is for operators. Beside others a tenant has at most
        `FACTOR` times what is left of that, so that the next one finds room. A request that is alone in what it shares may be larger.
        """
        tenant = None
        if principal is not None and principal.scope != "operator":
            tenant = principal.tenant or principal.id
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if route.body is None or not route.body.many:
                return
            of_tenants = self._of_tenants
            left = _OF_TENANTS - of_tenants.total() - size
            if (self._bodies > taken and self._bodies + size > BODIES) or (
                tenant is not None
                and (
                    (of_tenants[tenant] > taken and of_tenants[tenant] + size > _OF_ONE)
                    or (of_tenants.total() > taken and of_tenants[tenant] + size > FACTOR * left)
                )
            ):
                raise Problem(
                    Kind.OVERLOADED,
                    "too many bytes of events are under way: send it again soon",
                    headers={**retry_after(1.0), "Connection": "close"},
                )
            taken += size
            self._bodies += size
            if tenant is not None:
                of_tenants[tenant] += size

        try:
            yield take
        finally:
            self._bodies -= taken
            if tenant is not None and taken:
                self._of_tenants[tenant] -= taken
                if not self._of_tenants[tenant]:
                    del self._of_tenants[tenant]

    async def _body(self, route: Route, request: web.Request, take: Callable[[int], None]) -> tuple[Any, Any]:
        wanted = route.body
        limit = BODY_LIMIT if wanted is None or not wanted.many else self._events_limit
        body = await read_body(request, limit, BODY, take)
        if wanted is None:
            if body.strip() not in (b"", b"{}"):
                raise Problem(Kind.MALFORMED, "there is a body, and this takes none: leave it out")
            return None, None
        if not body and not wanted.required:
            return None, None
        _check_type(request, wanted.types)
        lines = wanted.many if request.content_type == NDJSON else 0
        parse = partial(_parsed_events, body, lines) if wanted.many else partial(parse_json, body)
        if len(body) > _LARGE:
            # Beside the loop, and one after the other: each holds the interpreter's lock while it is at it.
            async with self._large:
                parsed = await request[METER].beside(parse)
        else:
            parsed = parse()
        if wanted.many and isinstance(parsed, list):
            if not 0 < len(parsed) <= wanted.many:
                flaw = Flaw((), f"the list has {len(parsed)} events; 1 to {wanted.many} are taken at once")
                raise problems.invalid([flaw])
            flaws: list[Flaw] = []
            for number, one in enumerate(parsed):
                if number % _SLICE == _SLICE - 1:
                    await asyncio.sleep(0)
                flaws += _flaws(wanted.model, one, (number,))
                if len(flaws) >= _MAX_FLAWS:
                    break
            if flaws:
                raise problems.invalid(flaws[:_MAX_FLAWS])
            return parsed, None
        return parsed, _checked(wanted.model, parsed)


async def take_turn(request: web.Request, principal: Principal | None) -> None:
    """Wait until the loop has time for this caller; at once while deliveries have all that they need. Raises Problem."""
    meter = request[METER]
    if principal is None:
        await meter.turn(CallerKind.NOBODY, counted_as(request[CALLER]))
    elif principal.tenant is None:
        await meter.turn(CallerKind.OPERATOR, f"{principal.id} {principal.name}")
    else:
        await meter.turn(CallerKind.TENANT, principal.tenant)


def _parsed_events(body: bytes, lines: int) -> Any:
    """The events of a body; with `lines` NDJSON of at most so many. Raises Problem."""
    found = parse_events(body, lines)
    if lines and not found:
        raise Problem(Kind.MALFORMED, "there is no line with an event")
    return found


def _problem(error: Exception) -> Problem:
    match error:
        case errors.Invalid():
            return problems.invalid(error.flaws)
        case errors.TooLarge():
            return Problem(Kind.TOO_LARGE, str(error), errors=error.flaws)
        case errors.QuotaExceeded():
            wait = error.retry_after
            headers = None if wait is None else retry_after(wait)
            return Problem(Kind.QUOTA_EXCEEDED, str(error), headers=headers, quota=error.quota)
        case errors.Overloaded() | errors.Unavailable():
            return Problem(_KINDS[type(error)], str(error), headers=retry_after(error.retry_after))
        case errors.ControlError():
            kind = next((kind for known, kind in _KINDS.items() if isinstance(error, known)), Kind.INTERNAL)
            return Problem(kind, str(error))
        case _:
            said = "it took too long, and may still take effect: look before you repeat it"
            return Problem(Kind.UNAVAILABLE, said, headers=retry_after(5))


def _path(route: Route, request: web.Request) -> Mapping[str, str]:
    for name, value in request.match_info.items():
        if not re.fullmatch(PARAMETERS[route.tag, name], value):
            if route.method == "PUT":
                raise problems.invalid(
                    [Flaw((name,), "must be 1 to 1024 characters, none of them a control character")]
                )
            form = _FORMS.get(route.tag)
            said = f"nothing can have this {name}" + ("" if form is None else f": {form}")
            raise Problem(Kind.NOT_FOUND, said)
    return dict(request.match_info)


def _query(route: Route, request: web.Request) -> Any:
    known = () if route.query is None else tuple(route.query.model_fields)
    flaws = []
    for name in dict.fromkeys(request.query):
        if name not in known:
            flaws.append(Flaw((name,), f"there is no such parameter{did_you_mean(name, known)}"))
            if len(flaws) == _MAX_FLAWS:
                break
        elif len(request.query.getall(name)) > 1:
            flaws.append(Flaw((name,), "is given twice"))
    if flaws:
        raise problems.invalid(flaws)
    return None if route.query is None else _checked(route.query, dict(request.query))


def _check_type(request: web.Request, types: tuple[str, ...]) -> None:
    if request.content_type not in types:
        raise Problem(
            Kind.UNSUPPORTED_MEDIA_TYPE,
            f"send the body with Content-Type {' or '.join(types)}",
            headers={"Accept": ", ".join(types)},
        )
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii"):
        raise Problem(Kind.UNSUPPORTED_MEDIA_TYPE, "send the body in UTF-8")


def _checked(model: type[BaseModel], value: Any) -> BaseModel:
    try:
        return model.model_validate(_trimmed(model, value))
    except ValidationError as invalid:
        raise problems.invalid(_told(invalid, model, ())) from None


def _flaws(model: type[BaseModel], value: Any, place: tuple[int, ...]) -> list[Flaw]:
    try:
        model.model_validate(_trimmed(model, value))
    except ValidationError as invalid:
        return _told(invalid, model, place)
    return []


def _trimmed(model: type[BaseModel], value: Any) -> Any:
    """Without most of the members that the model doesn't have, where there are very many: some are enough to refuse it."""
    if not isinstance(value, dict) or len(value) <= _MAX_FLAWS:
        return value
    known = {info.alias or name for name, info in model.model_fields.items()}
    unknown = islice((name for name in value if name not in known), _MAX_FLAWS)
    return {name: value[name] for name in (*known.intersection(value), *unknown)}


def _told(invalid: ValidationError, model: type[BaseModel], place: tuple[int, ...]) -> list[Flaw]:
    aliases = {name: info.alias for name, info in model.model_fields.items() if info.alias}
    known = [info.alias or name for name, info in model.model_fields.items()]
    flaws: dict[Flaw, None] = {}
    for error in invalid.errors(include_url=False)[:_MAX_FLAWS]:
        # Unions and dictionaries put steps of their own into the place.
        steps = [aliases.get(str(step), step) for step in error["loc"] if not _internal(step)]
        path = (*place, *steps)
        if error["input"] is None and error["type"] != "missing":
            said = "must not be null"
        elif error["type"] == "extra_forbidden" and len(steps) == 1 and (model, steps[0]) in _ELSEWHERE:
            said = _ELSEWHERE[model, steps[0]]
        elif error["type"] == "extra_forbidden":
            read_only = steps[-1] in SubscriptionReply.model_fields and len(steps) == 1
            said = (
                "can't be set here: leave it out"
                if read_only
                else f"there is no such field{did_you_mean(str(steps[-1]), known)}"
            )
        elif error["type"] == "model_type":
            said = "must be an object"
        elif error["type"] == "string_pattern_mismatch":
            said = "doesn't have the form that it must have"
        else:
            said = explain(error, secret=not steps or steps[0] in _CREDENTIALS)
        flaws[Flaw(path, said)] = None
    return list(flaws)


def _internal(step: str | int) -> bool:
    return isinstance(step, str) and (step == "[key]" or step.startswith("function-"))


def _only_new(request: web.Request) -> bool:
    """Whether `If-None-Match: *` says that nothing may be there yet. It has no other meaning here."""
    given = request.headers.get("If-None-Match")
    if given not in (None, "*"):
        flaw = Flaw(("If-None-Match",), "must be * (only if it is new), or left out")
        raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
    return given is not None


def _trace(request: web.Request) -> Sequence[tuple[str, bytes]]:
    """`traceparent` and `tracestate`, where they are as Trace Context has them: otherwise they are passed over (W3C Trace Context 1, 4.3)."""
    parent = request.headers.get("traceparent", "").encode(errors="replace")
    if not valid_traceparent(parent):
        return ()
    # Several lines are one list.
    state = ",".join(request.headers.getall("tracestate", [])).encode(errors="replace")
    if not 0 < len(state) <= _TRACESTATE or not valid_tracestate(state):
        return (("traceparent", parent),)
    return (("traceparent", parent), ("tracestate", state))


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not _IDEMPOTENCY_KEY.fullmatch(key):
        flaw = Flaw(("Idempotency-Key",), "must be 1 to 255 visible ASCII characters")
        raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
    return key


def _auditor(request: web.Request, principal: Principal | None, trail: AuditTrail) -> Callable[..., None]:
    """Writes the audit log and the audit trail: a line and a record for each change, with caller and subject, never with a value."""

    def audit(action: str, subject: str, *, by: Principal | None = principal, **more: object) -> None:
        """`by` is the caller, where only the handler has found out who that is."""
        log.info(
            "audit",
            action=action,
            subject=subject,
            principal=None if by is None else by.id,
            principal_name=None if by is None else by.name,
            scope=None if by is None else by.scope,
            tenant=None if by is None else by.tenant,
            remote=request[CALLER],
            request_id=request[REQUEST_ID],
            **more,
        )
        if by is not None:
            trail.note(action, subject, by, request[REQUEST_ID], dict(more))

    return audit


async def _streamed(
    reply: Reply, stream: AsyncGenerator[bytes, None], request: web.Request
) -> web.StreamResponse:
    """Send what the handler goes on saying. A reader that takes nothing for `STREAM_TIMEOUT` seconds is cut off."""
    response = web.StreamResponse(status=reply.status, headers=dict(reply.headers))
    response.content_type = reply.content_type
    response.headers["Cache-Control"] = "no-store"
    async with aclosing(stream) as chunks:
        await response.prepare(request)
        if request.method != "HEAD":
            try:
                async for chunk in chunks:
                    async with asyncio.timeout(STREAM_TIMEOUT):
                        await response.write(chunk)
            except ConnectionError:
                return response  # the reader has gone
            except Exception as error:
                if not isinstance(error, TimeoutError):
                    log.exception("a stream failed", request_id=request[REQUEST_ID])
                if request.transport is not None:
                    request.transport.abort()
                return response
    await response.write_eof()
    return response


def _response(reply: Reply) -> web.Response:
    if reply.body is None:
        response = web.Response(status=reply.status)
    else:
        body = reply.body
        if not isinstance(body, bytes):
            body = body.model_dump_json(by_alias=True).encode()
        response = web.Response(body=body, status=reply.status)
        response.headers["Content-Type"] = reply.content_type
    response.headers.update(reply.headers)
    response.headers["Cache-Control"] = "no-store"
    return response
