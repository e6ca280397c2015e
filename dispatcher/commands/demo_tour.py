"""`dispatcher demo --keep-running`: the demo goes on, with a console to look around in.

The dispatcher starts again over what the demo has left, at an address that a browser can open. Events go on coming, a few a second;
the flaky endpoint goes on failing and the dead one goes on refusing. So there is something of everything to be seen: deliveries that
succeed, that are tried again and that are given up.
"""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import aiohttp
from rich.console import Console

from dispatcher.app import App
from dispatcher.broker.base import BrokerError, Message
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import ConsoleSettings, Settings

_PORT: Final = 8080
_TURN: Final = 1.0  # seconds between two batches of events
_RATE: Final = 4.0  # events a second, on average
_WAVE: Final = 120.0  # seconds from one peak of the traffic to the next
_CATALOGUE: Final = {
    "order.created": "A customer has placed an order.",
    "order.shipped": "An order has left the warehouse.",
    "invoice.paid": "An invoice was paid in full.",
    "user.signed_up": "Somebody has made an account.",
}


class DemoTour:
    """Keeps the dispatcher running until `over` is set."""

    def __init__(
        self,
        settings: Settings,
        console: Console,
        messages: Callable[[int], Message],
        first: int,
        over: asyncio.Event,
    ) -> None:
        """`messages` makes the event of a number, and `first` is the first number that is free."""
        http = settings.http.model_copy(update={"port": settings.http.port or free_port(settings.http.host)})
        self._settings = settings.model_copy(
            update={"http": http, "console": ConsoleSettings(name="demo", color="#0b6e4f")}
        )
        self._console = console
        self._messages = messages
        self._number = first
        self._over = over

    async def run(self) -> None:
        """Serve and publish."""
        app = App(self._settings, os.environ)
        tasks = Tasks()
        try:
            await app.start()
            # What is waited for is asked, and doesn't tell.
            while app.problems() and app.failure is None and not self._over.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            await self._describe(app.http_port)
            tasks.start(self._publish(app), "traffic")
            self._console.print(
                f"\nLook around: http://{self._settings.http.host}:{app.http_port}/console\n"
                "Events go on coming. Ctrl-C ends the demo and deletes what it has made.",
                soft_wrap=True,
            )
            ended = tasks.start(app.wait(), "dispatcher")
            interrupted = tasks.start(self._over.wait(), "interruption")
            await asyncio.wait([ended, interrupted], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await tasks.stop()
            await app.stop()

    async def _describe(self, port: int) -> None:
        """Put the demo's event types into the catalogue."""
        base = f"http://{self._settings.http.host}:{port}"
        async with aiohttp.ClientSession() as session:
            for name, description in _CATALOGUE.items():
                example = {"number": 1, "note": description}
                body = {"description": description, "example": example}
                async with session.put(f"{base}/v1/event-types/{name}", json=body):
                    pass

    async def _publish(self, app: App) -> None:
        while True:
            count = events_of(time.time(), self._number)
            try:
                await app.broker.produce(self._next(count))
            except BrokerError as error:
                self._console.print(f"Events can't be published: {error}", style="red", soft_wrap=True)
            await asyncio.sleep(_TURN)

    def _next(self, count: int) -> Sequence[Message]:
        numbers = range(self._number, self._number + count)
        self._number = numbers.stop
        return [self._messages(number) for number in numbers]


def events_of(now: float, number: int) -> int:
    """How many events this turn has: more in waves, and never the same twice in a row for long."""
    wave = 1 + 0.6 * math.sin(2 * math.pi * now / _WAVE)
    return max(1, round(_RATE * _TURN * wave + number % 3 - 1))


def free_port(host: str) -> int:
    """The usual port where nothing listens there, else 0: any."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        try:
            probe.bind((host, _PORT))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            return 0
    return _PORT
