from __future__ import annotations

import asyncio
import socket
import threading

import click
from aiohttp import web
from click.testing import CliRunner

from dispatcher.cli import main
from dispatcher.control.errors import Unavailable
from tests.commands.calling import Api, one_line


def test_where_no_api_is_one_line_says_so(api: Api) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"http://127.0.0.1:{probe.getsockname()[1]}"
    one_line(api("subscriptions", "list", DISPATCHER_API_URL=free), free, "--url or DISPATCHER_API_URL")
    one_line(api("subscriptions", "list", DISPATCHER_API_KEY=None), "wants a key", "DISPATCHER_API_KEY")
    api.plane.subscriptions.failure = Unavailable("the broker is away: connection refused")
    one_line(api("subscriptions", "add", "https://a.example/", "a"), "the broker is away")


def test_a_key_follows_no_redirect_and_another_server_is_recognized() -> None:
    asked: list[str | None] = []

    async def elsewhere(request: web.Request) -> web.Response:
        asked.append(request.headers.get("Authorization"))
        raise web.HTTPFound("/v1/elsewhere")

    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop: asyncio.Event = asyncio.Event()
    port = 0

    async def serve() -> None:
        nonlocal port
        app = web.Application()
        app.router.add_get("/{path:.*}", elsewhere)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(60)
    url = f"http://127.0.0.1:{port}"
    ended = CliRunner().invoke(main, ["keys", "list", "--url", url, "--key", "hush"], prog_name="dispatcher")
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    loop.close()
    one_line(ended, "answered 302", "no API of a dispatcher")
    assert asked == ["Bearer hush"]


def test_every_command_of_the_api_has_help_and_takes_json() -> None:
    for name in ("subscriptions", "event-types", "keys"):
        group = main.commands[name]
        assert isinstance(group, click.Group)
        for command in group.commands.values():
            assert command.help
            options = {option for parameter in command.params for option in parameter.opts}
            assert {"--url", "--key", "--json"} <= options
