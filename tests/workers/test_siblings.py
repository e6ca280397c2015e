from __future__ import annotations

import pytest
from aiohttp import web

from dispatcher.commands.receiver import DeadPort
from dispatcher.workers.siblings import Siblings
from tests.e2e.daemon import Endpoint


async def _answers(request: web.Request) -> web.StreamResponse:
    if request.path == "/metrics":
        return web.Response(text="# TYPE a gauge\na 2\n")
    return web.json_response({"status": "unready", "problems": ["no broker"], "warnings": ["w"]}, status=503)


async def test_the_others_are_asked_and_one_that_is_away_is_said_to_be() -> None:
    dead = DeadPort()
    async with Endpoint(_answers) as well:
        siblings = Siblings([well.port, dead.port])
        text = await siblings.metrics("# TYPE a gauge\na 1\n")
        assert 'a{worker="1"} 1\na{worker="2"} 2\n' in text
        assert 'dispatcher_worker_up{worker="3"} 0\n' in text
        assert await siblings.warnings() == [
            "worker 2: no broker",
            "worker 2: w",
            "worker 3 does not answer: it is being started, or hangs",
        ]
    dead.close()


async def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    async with Endpoint(_answers) as well:
        assert 'dispatcher_worker_up{worker="2"} 1\n' in await Siblings([well.port]).metrics("")
