"""Health, readiness, metrics and errors over real HTTP."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from dispatcher.api.server import ApiServer, CannotListen
from dispatcher.telemetry.metrics import Metrics


@asynccontextmanager
async def serving(problems: list[str]) -> AsyncIterator[aiohttp.ClientSession]:
    server = ApiServer("127.0.0.1", 0, Metrics().registry, lambda: problems)
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await server.stop()


async def test_warnings_are_shown_and_change_nothing() -> None:
    problems: list[str] = []
    server = ApiServer(
        "127.0.0.1", 0, Metrics().registry, lambda: problems, warnings=lambda: ["look at this"]
    )
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.get("/readyz") as response:
            assert response.status == 200
            assert await response.json() == {"status": "ready", "warnings": ["look at this"]}
        problems.append("no broker")
        async with session.get("/readyz") as response:
            assert response.status == 503
            assert (await response.json())["warnings"] == ["look at this"]
    await server.stop()


async def test_ready_is_503_with_the_reasons_as_long_as_there_are_any() -> None:
    problems = ["connecting to the broker"]
    async with serving(problems) as session:
        async with session.get("/readyz") as response:
            assert response.status == 503
            assert await response.json() == {"status": "unready", "problems": ["connecting to the broker"]}
        async with session.get("/healthz") as response:
            assert response.status == 200
        problems.clear()
        async with session.get("/readyz") as response:
            assert response.status == 200
            assert await response.json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
async def test_metrics_come_in_the_format_that_was_asked_for(accept: str, content_type: str) -> None:
    async with serving([]) as session, session.get("/metrics", headers={"Accept": accept}) as response:
        assert response.status == 200
        assert response.content_type == content_type
        assert "dispatcher_build_info{" in await response.text()


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("POST", "/metrics", 405)])
async def test_errors_are_problem_documents(method: str, path: str, status: int) -> None:
    async with serving([]) as session, session.request(method, path) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        document = await response.json(content_type=None)
        assert document["status"] == status
        assert document["title"]
        if status == 405:
            assert "GET" in response.headers["Allow"]


async def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = ApiServer("127.0.0.1", port, CollectorRegistry(), list)
        with pytest.raises(CannotListen, match=rf"127\.0\.0\.1:{port}.*another process.*http\.port"):
            await server.start()
