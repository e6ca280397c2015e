"""The HTTP side: health, readiness and metrics (the API of subscribers and operators joins them here).

aiohttp serves it. Nothing here is on the delivery path; a scrape costs the loop one collection
of plain integers, some milliseconds.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

import orjson
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from dispatcher.__about__ import __version__

Problems = Callable[[], Sequence[str]]

_SERVER = f"dispatcher/{__version__}"


class CannotListen(Exception):
    """The address can't be bound; the message says why."""


class ApiServer:
    """Serves until stopped. `problems` says why the process isn't ready; empty means it is."""

    def __init__(self, host: str, port: int, metrics: CollectorRegistry, problems: Problems) -> None:
        self._host = host
        self._port = port
        self._metrics = metrics
        self._problems = problems
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Bind and serve; returns the port (the one the system chose, for port 0)."""
        app = web.Application(middlewares=[_problem_documents])
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", self._scrape)
        app.on_response_prepare.append(_name_server)
        self._runner = web.AppRunner(
            app, access_log=None, handle_signals=False, logger=logging.getLogger("dispatcher.api")
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        try:
            await site.start()
        except OSError as error:
            await self.stop()
            hint = "; another process listens there" if error.errno == errno.EADDRINUSE else ""
            raise CannotListen(
                f"can't listen on {self._host}:{self._port}: {error.strerror or error}{hint} "
                "(settings http.host and http.port)"
            ) from error
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        """Stop listening; answers under way are finished."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _healthz(self, _request: web.Request) -> web.Response:
        """The loop turns: that this answers at all is the answer."""
        return _json({"status": "ok"})

    async def _readyz(self, _request: web.Request) -> web.Response:
        problems = list(self._problems())
        if problems:
            return _json({"status": "unready", "problems": problems}, status=503)
        return _json({"status": "ready"})

    async def _scrape(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics), headers={"Content-Type": content_type})


def _json(document: object, status: int = 200, content_type: str = "application/json") -> web.Response:
    return web.Response(body=orjson.dumps(document), status=status, content_type=content_type)


async def _name_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers["Server"] = _SERVER


@web.middleware
async def _problem_documents(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Errors as RFC 9457 problem documents."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        document = {"type": "about:blank", "title": error.reason, "status": error.status}
        response = _json(document, error.status, "application/problem+json")
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
