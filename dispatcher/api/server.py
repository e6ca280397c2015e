"""The HTTP side: health, readiness and metrics without a key, and the API under `/v1`.

aiohttp serves it. Nothing here is on the delivery path; a scrape costs the loop one collection of plain integers,
some milliseconds.

The cost of a client is bounded: connections, requests and slow senders by `admission.py` and `limits.py`, the loop's time by `loop_budget.py`, a connection that sends
nothing by `_IDLE`, a body's size by `frame.py`, the head's by `protocol.py`. Bodies are never decompressed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder, generate_latest

from dispatcher.__about__ import __version__
from dispatcher.api.admission import GUARD, REFUSALS, REQUEST_ID, Admission
from dispatcher.api.docs import Docs
from dispatcher.api.frame import Frame, Handler, json_response, problem_documents, take_turn
from dispatcher.api.limits import ApiLimits, ConnectionLimit, RequestLimit, TrustedProxies, connections_within
from dispatcher.api.loop_budget import BUDGET, METER, CallerKind, LoopBudget
from dispatcher.api.pages import Pages
from dispatcher.api.problems import Kind, Problem, retry_after
from dispatcher.api.protocol import protocols
from dispatcher.api.route import Audience, Services
from dispatcher.api.table import ROUTES
from dispatcher.control.errors import Unavailable

log = structlog.get_logger(__name__)

Problems = Callable[[], Sequence[str]]

_SERVER = f"dispatcher/{__version__}"
_BACKLOG: Final = 128
_LATELY: Final = 10.0  # seconds for which metrics are shown again while the loop has no time for new ones
_ENCODINGS: Final = 8  # of which metrics are kept
_IDLE: Final = 75.0  # seconds; longer than the idle timeout of common reverse proxies


class _NotTheirs(logging.Filter):
    """Leaves out what any stranger's garbage or broken connection would fill the log with, a traceback each."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        return not isinstance(error, (HttpProcessingError, ConnectionError))


_NOT_THEIRS: Final = _NotTheirs()


def _guard(limits: ApiLimits) -> Admission:
    clock = asyncio.get_running_loop().time
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    total = connections_within(limits.max_connections, descriptors)
    if total < limits.max_connections:
        log.warning(
            "the API takes fewer connections than http.max_connections: deliveries need the file descriptors; raise the limit (ulimit -n)",
            connections=total,
            max_connections=limits.max_connections,
            descriptors=descriptors,
        )
    return Admission(
        ConnectionLimit(total, limits.max_connections_per_address),
        RequestLimit(limits.requests_per_address, clock),
        RequestLimit(limits.requests_per_key, clock),
        TrustedProxies(limits.trusted_proxies),
    )


class CannotListen(Exception):
    """The address can't be bound; the message says why."""


class Others(Protocol):
    """Other processes that this one answers for (`dispatcher/workers`)."""

    async def metrics(self, own: str) -> str:
        """The metrics of all, in the text format, with `own` among them."""

    async def warnings(self) -> list[str]:
        """What isn't as it should be with them."""


class ApiServer:
    """Serves until stopped. `problems` says why the process isn't ready; empty means it is. `warnings` change nothing."""

    def __init__(
        self,
        host: str,
        port: int,
        metrics: CollectorRegistry,
        problems: Problems,
        services: Services | None = None,
        *,
        warnings: Problems = tuple,
        events_limit: int = 4 << 20,
        limits: ApiLimits | None = None,
        budget: LoopBudget | None = None,
        listener: socket.socket | None = None,
        others: Others | None = None,
    ) -> None:
        """Without `services` there is no API, only health and metrics. `events_limit` in bytes.

        `budget`: of the loop's time; without it requests take what they need. `listener`: a socket that listens already, in the place of `host` and `port`.
        """
        self._limits = ApiLimits() if limits is None else limits
        self._budget = LoopBudget(1.0, bool) if budget is None else budget
        self._scraped: dict[str, tuple[float, bytes]] = {}  # by content type: when, and what
        self._guard: Admission | None = None
        self._listening: asyncio.Server | None = None
        self._listener = listener
        self._others = others
        self._warnings = warnings
        self._host = host
        self._port = port
        self._metrics = metrics
        self._problems = problems
        self._services = services
        self._events_limit = events_limit
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port (the one the system chose, for port 0)."""
        app = web.Application(middlewares=[problem_documents])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        if self._services is not None:
            _add_api(app, Frame(self._services, events_limit=self._events_limit), self._services)
        app.on_response_prepare.append(_complete)
        logger = logging.getLogger("dispatcher.api")
        logger.addFilter(_NOT_THEIRS)
        self._guard = guard = _guard(self._limits)
        app[GUARD] = guard
        app[BUDGET] = self._budget
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
        )
        await self._runner.setup()
        server = self._runner.server
        assert server is not None  # noqa: S101 - `setup` has made it
        try:
            loop = asyncio.get_running_loop()
            options = {
                "access_log": None,
                "logger": logger,
                "keepalive_timeout": _IDLE,
                "auto_decompress": False,
            }
            protocol = guard.protocol(protocols(server, guard, _SERVER, **options))
            if self._listener is not None:
                self._listening = await loop.create_server(protocol, sock=self._listener, backlog=_BACKLOG)
            else:
                self._listening = await loop.create_server(protocol, self._host, self._port, backlog=_BACKLOG)
        except OSError as error:
            await self.stop()
            hint = "; another process listens there" if error.errno == errno.EADDRINUSE else ""
            raise CannotListen(
                f"can't listen on {self._host}:{self._port}: {error.strerror or error}{hint} "
                "(settings http.host and http.port)"
            ) from error
        port: int = self._listening.sockets[0].getsockname()[1]
        return port

    @property
    def refused(self) -> Mapping[str, int]:
        """How often callers were refused, by bound."""
        return dict.fromkeys(REFUSALS, 0) if self._guard is None else self._guard.refused

    async def stop(self) -> None:
        """Stop listening; answers under way are finished, and streams are ended."""
        if self._services is not None:
            self._services.live.close()
        if self._listening is not None:
            self._listening.close()
            self._listening = None
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        if self._guard is not None:
            self._guard.close()
        self._budget.close()

    async def _healthz(self, _request: web.Request) -> web.Response:
        """The loop turns: that this answers at all is the answer."""
        return json_response({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        problems = list(self._problems())
        warnings = list(self._warnings())
        if self._others is not None:
            warnings += await self._others.warnings()
        # Absent where there are none.
        more = {"warnings": warnings} if warnings else {}
        if problems:
            return json_response({"status": "unready", "problems": problems, **more}, status=503)
        return json_response({"status": "ready", **more})

    async def _scrape(self, request: web.Request) -> web.Response:
        """The metrics; while deliveries are behind and the API has had its share, those of a moment ago."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        if self._others is not None:
            encode, content_type = generate_latest, CONTENT_TYPE_PLAIN_0_0_4
        meter = request[METER]
        body = self._scraped_lately(content_type) if meter.short else None
        if body is None:
            await meter.turn(CallerKind.METRICS, "")
            body = self._scraped_lately(content_type) if meter.short else None
        if body is None:
            body = encode(self._metrics)
            if self._others is not None:
                body = (await self._others.metrics(body.decode())).encode()
            if len(self._scraped) >= _ENCODINGS:
                self._scraped.clear()
            self._scraped[content_type] = (asyncio.get_running_loop().time(), body)
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _scraped_lately(self, content_type: str) -> bytes | None:
        at, body = self._scraped.get(content_type, (-_LATELY, b""))
        return body if asyncio.get_running_loop().time() - at < _LATELY else None


def _add_api(app: web.Application, frame: Frame, services: Services) -> None:
    for route in ROUTES:
        # Braces too, in the name of an event type or a tenant.
        path = route.path.replace("{name}", "{name:[^/]+}").replace("{tenant}", "{tenant:[^/]+}")
        if route.tag == "portal":
            path = path.replace("{id}", "{id:[0-9a-f]+}")  # or `renew` would be one
        if route.method == "GET":
            app.router.add_get(path, frame.serve(route))
        else:
            app.router.add_route(route.method, path, frame.serve(route))
    docs = Docs()
    shown = {"/docs": docs.page, "/docs/{name}": docs.asset, "/openapi.json": docs.document}
    pages = Pages(services.portal, services.pages.frame_ancestors)
    if services.console.enabled:
        shown |= {
            "/console/assets/{name}": pages.asset,
            "/console": pages.console,
            "/console/{rest:.*}": pages.console,
        }
    if services.pages.enabled:
        shown |= {
            "/portal/assets/{name}": pages.asset,
            "/portal/images/{name}": pages.image,
            "/portal": pages.portal,
            "/portal/{rest:.*}": pages.portal,
        }
    home = "console" if services.console.enabled else "docs"
    app.router.add_get("/", _public(frame, lambda request: _home(request, home)))
    for path, show in shown.items():
        app.router.add_get(path, _public(frame, show))


def _home(request: web.Request, home: str) -> web.Response:
    """People are led to the console, programs to what describes the API."""
    to_people = "text/html" in request.headers.get("Accept", "")
    return web.Response(status=302, headers={"Location": home if to_people else "docs", "Vary": "Accept"})


def _public(frame: Frame, show: Callable[[web.Request], web.Response]) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        frame.callers.admit(Audience.PUBLIC, request)
        await take_turn(request, None)
        try:
            return show(request)
        except Unavailable as error:
            raise Problem(Kind.UNAVAILABLE, str(error), headers=retry_after(error.retry_after)) from error

    return handle


async def _complete(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = _SERVER
    if REQUEST_ID in request:
        response.headers["X-Request-Id"] = request[REQUEST_ID]
