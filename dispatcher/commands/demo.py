"""`dispatcher demo`: the whole program at work on this machine, and an account of every event.

The demo runs the real dispatcher (`app.App`, from a settings file and a subscriptions file) against real servers on
loopback. The demo itself works out which deliveries each endpoint is owed, from the events that it publishes. The
endpoints say which deliveries arrived, and the dead-letter topic says which were given up. The dispatcher's own
counters only tell when to stop waiting.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import os
import secrets
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import orjson
import yaml
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from dispatcher.api.server import CannotListen
from dispatcher.app import App
from dispatcher.broker.base import BrokerError, Message, TopicPartition
from dispatcher.commands.demo_tour import DemoTour
from dispatcher.commands.group import ConfigError
from dispatcher.commands.loop import run
from dispatcher.commands.options import load_settings, settings_options
from dispatcher.commands.receiver import (
    Arrival,
    Behaviour,
    DeadPort,
    Receiver,
    ReceiverAnswer,
    SignatureVerdict,
    healthy,
    secret_key,
)
from dispatcher.commands.session import connected
from dispatcher.registry.file import SubscriptionsError
from dispatcher.runtime.tasks import Tasks
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.logs import configure

_HOST: Final = "127.0.0.1"
_TYPES: Final = ("order.created", "order.shipped", "invoice.paid", "user.signed_up")
_TENANTS: Final = ("acme", "globex")
_BATCH: Final = 50
_READY: Final = 60.0  # seconds for the broker and the group to be there
_STALLED: Final = 20.0  # seconds without any progress, after which what is missing counts as missing
_LIMIT: Final = 45.0  # seconds for all of it, and some milliseconds more for each event
_PER_EVENT: Final = 0.005
_TURN: Final = 0.1


@dataclass(frozen=True, slots=True)
class DemoEvent:
    """One event of the demo. Everything about it follows from its number."""

    number: int

    @property
    def id(self) -> str:
        return f"evt_{self.number:06d}"

    @property
    def tenant(self) -> str:
        return _TENANTS[self.number % 2]

    @property
    def type(self) -> str:
        return _TYPES[self.number // 2 % 4]

    @property
    def body(self) -> bytes:
        return orjson.dumps(
            {
                "id": self.id,
                "type": self.type,
                "tenant": self.tenant,
                "data": {"number": self.number, "note": "Grüße, señor \N{WAVING HAND SIGN}"},
            }
        )

    def message(self, topic: str) -> Message:
        """Return its record: routed by headers, or by the JSON alone, in turn."""
        headers: list[tuple[str, bytes]] = []
        if self.number % 3:
            headers = [
                ("id", self.id.encode()),
                ("type", self.type.encode()),
                ("tenant", self.tenant.encode()),
            ]
        return Message(topic, self.body, key=self.id.encode(), headers=headers)


@dataclass(slots=True)
class Endpoint:
    """One subscription of the demo: what it is owed, and what became of it."""

    id: str
    about: str
    tenant: str
    event_types: Sequence[str]
    wants: Callable[[DemoEvent], bool]
    behaviour: Behaviour | None  # None: nobody listens
    options: dict[str, Any] = field(default_factory=dict)
    secret: str = field(default_factory=lambda: "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
    port: int = 0

    owed: set[str] = field(default_factory=set)
    latencies: dict[str, float] = field(default_factory=dict)  # of the first acknowledgement, in seconds
    attempts: int = 0
    duplicates: int = 0
    bad_signatures: int = 0
    altered: int = 0
    dead: set[str] = field(default_factory=set)

    def arrived(self, arrival: Arrival, published_at: Callable[[str], float]) -> None:
        """Note a request that the endpoint got."""
        self.attempts += 1
        if arrival.verdict is not SignatureVerdict.VALID:
            self.bad_signatures += 1
            return
        if arrival.id not in self.owed or arrival.body != DemoEvent(int(arrival.id[4:])).body:
            self.altered += 1
            return
        status = arrival.answer.status
        if status is None or not 200 <= status < 300:
            return
        if arrival.id in self.latencies:
            self.duplicates += 1
        else:
            self.latencies[arrival.id] = arrival.at - published_at(arrival.id)

    def subscription(self) -> dict[str, Any]:
        """Return its entry in the subscriptions file."""
        return {
            "id": self.id,
            "tenant": self.tenant,
            "url": f"http://{_HOST}:{self.port}/webhooks/{self.id}",
            "event_types": list(self.event_types),
            "secrets": [self.secret],
            **self.options,
        }


def flaky(event_id: str, number: int) -> ReceiverAnswer:
    """Fail the first tries of every fourth event, each in its way: an error, a reset, silence."""
    match int(event_id.rpartition("_")[2]) // 2 % 20:
        case 0 | 7 if number <= 2:
            return ReceiverAnswer(500)
        case 1 | 6 if number <= 2:
            return ReceiverAnswer(None)
        case 2 if number <= 1:
            return ReceiverAnswer(None, delay=5.0)
        case _:
            return ReceiverAnswer()


def endpoints() -> list[Endpoint]:
    """Return the demo's cast."""
    return [
        Endpoint("orders", "answers at once", "acme", ["order.*"], _orders_of_acme, healthy),
        Endpoint("audit", "answers at once, wants every event", "*", ["*"], lambda _event: True, healthy),
        Endpoint(
            "flaky",
            "fails the first tries of every fourth event: 500, reset, silence",
            "globex",
            ["*"],
            lambda event: event.tenant == "globex",
            flaky,
            {"timeout": "1s", "retry": {"schedule": ["200ms", "500ms", "1s", "1s", "2s"], "jitter": 0.1}},
        ),
        Endpoint(
            "dead",
            "refuses every connection: after 3 attempts to the dead-letter topic",
            "acme",
            ["invoice.paid"],
            lambda event: event.tenant == "acme" and event.type == "invoice.paid",
            None,
            {"retry": {"schedule": ["200ms", "500ms"], "jitter": 0.1}},
        ),
    ]


def _orders_of_acme(event: DemoEvent) -> bool:
    return event.tenant == "acme" and event.type in {"order.created", "order.shipped"}


@click.command(short_help="Show it at work, and check every delivery.")
@click.option(
    "--events",
    default=2000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many to publish.",
)
@click.option(
    "--keep-running",
    is_flag=True,
    help="Go on afterwards, with live traffic and a console to look around in, until Ctrl-C.",
)
@settings_options
def demo(events: int, keep_running: bool, config: Path | None, overrides: dict[str, Any]) -> None:
    """Deliver events to local endpoints, one of them flaky, one dead, and account for every one.

    Runs on an embedded broker in a temporary directory, or on --broker (DISPATCHER_BROKER) with topics of
    its own. Exits 0 only if everything that was owed arrived. With --keep-running the dispatcher then serves its
    console at http://127.0.0.1:8080/console (or at a free port), over what the demo has made.
    """
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as directory:
        cast = endpoints()
        settings = demo_settings(config, overrides, Path(directory))
        configure(settings.log)
        # What keeps it from Kafka is told in the demo's own sentences.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
        raise SystemExit(run(Demo(settings, cast, events, console, keep_running=keep_running).run()))


def demo_settings(config: Path | None, overrides: dict[str, Any], directory: Path) -> Settings:
    """Return settings that disturb nothing: everything the demo makes has names or places of its own."""
    name = f"dispatcher-demo-{secrets.token_hex(3)}"
    broker = overrides.get("broker") or os.environ.get("DISPATCHER_BROKER") or f"sqlite:///{directory}/log.db"
    own = {
        "broker": broker,
        "group": name,
        "topics.events": [f"{name}.events"],
        "topics.prefix": f"{name}.",
        "topics.create": True,
        "subscriptions_file": directory / "subscriptions.yaml",
        "http.host": _HOST,
        "http.port": 0,
        "network.allow": ["127.0.0.0/8"],
        "network.https_only": False,
        # What is announced of the dead endpoint would be owed to those who want everything.
        "api.operational_events": False,
        # Its endpoints fail on purpose, and nobody wants to watch them being left alone for minutes.
        "delivery.breaker_threshold": 0.0,
        "delivery.max_queue_wait": "1h",
        "shutdown.drain": "5s",
        "log.level": "error",
    }
    return load_settings(config, {**own, **overrides})


class Demo:
    """One run: publish, deliver, wait, and settle the account."""

    def __init__(
        self,
        settings: Settings,
        cast: Sequence[Endpoint],
        events: int,
        console: Console,
        patience: float = _STALLED,
        *,
        keep_running: bool = False,
    ) -> None:
        """`patience` is for how many seconds nothing may move."""
        self._keep_running = keep_running
        self._over = asyncio.Event()
        self._settings = settings
        self._cast = cast
        self._events = [DemoEvent(number) for number in range(events)]
        self._console = console
        self._patience = patience
        self._topic = settings.topics.events[0]
        self._published: dict[str, float] = {}
        self._interrupted = False
        self._started = 0.0

    async def run(self) -> int:
        """Return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._interrupt)
        async with self._receivers():
            self._introduce()
            app = App(self._settings, os.environ)
            tasks = Tasks()
            try:
                await app.start()
                await self._ready(app)
                self._started = time.monotonic()
                publishing = tasks.start(self._publish(app), "publish")
                await self._watch(app, publishing)
                took = time.monotonic() - self._started
            except (BrokerError, CannotListen, SubscriptionsError) as error:
                raise click.ClickException(str(error)) from error
            finally:
                await tasks.stop()
                await app.stop()
            if self._interrupted:
                return 130
            if app.failure is not None:
                raise click.ClickException(f"the dispatcher stopped by itself: {app.failure}")
            uncommitted = await self._read_back()
            self._console.print(self._table())
            code = self._judge(uncommitted, took)
            if self._keep_running:
                await self._tour()
        return code

    async def _tour(self) -> None:
        first = len(self._events)
        tour = DemoTour(
            self._settings,
            self._console,
            lambda number: DemoEvent(number).message(self._topic),
            first,
            self._over,
        )
        try:
            await tour.run()
        except (BrokerError, CannotListen, SubscriptionsError) as error:
            raise click.ClickException(str(error)) from error

    def _interrupt(self) -> None:
        self._over.set()
        if not self._interrupted:
            self._interrupted = True
            self._console.print("Interrupted: ending what is under way.")

    @asynccontextmanager
    async def _receivers(self) -> AsyncIterator[None]:
        """Every endpoint's port is open (or surely closed), and the subscriptions file names it."""
        receivers: list[Receiver] = []
        dead: list[DeadPort] = []
        try:
            for endpoint in self._cast:
                endpoint.owed = {event.id for event in self._events if endpoint.wants(event)}
                if endpoint.behaviour is None:
                    dead.append(port := DeadPort(_HOST))
                    endpoint.port = port.port
                    continue
                on_arrival = partial(endpoint.arrived, published_at=self._published.__getitem__)
                receiver = Receiver(secret_key(endpoint.secret), on_arrival, endpoint.behaviour)
                receivers.append(receiver)
                endpoint.port = await receiver.start(_HOST)
            document = {"subscriptions": [endpoint.subscription() for endpoint in self._cast]}
            file = self._settings.subscriptions_file
            if file is None:
                raise ConfigError("the demo needs a subscriptions file of its own")
            file.write_text(yaml.safe_dump(document))
            yield
        finally:
            for receiver in receivers:
                await receiver.stop()
            for port in dead:
                port.close()

    async def _ready(self, app: App) -> None:
        deadline = time.monotonic() + _READY
        while problems := app.problems():
            if app.failure is not None or self._interrupted:
                return
            if time.monotonic() > deadline:
                raise click.ClickException(f"not ready after {_READY:g} s: {'; '.join(problems)}")
            await asyncio.sleep(_TURN)

    async def _publish(self, app: App) -> None:
        """About 1,000 events a second, more when there are many, so that there is something to watch."""
        pause = _BATCH / max(1000.0, len(self._events) / 10)
        for start in range(0, len(self._events), _BATCH):
            batch = self._events[start : start + _BATCH]
            now = time.time()
            self._published.update((event.id, now) for event in batch)
            await app.broker.produce([event.message(self._topic) for event in batch])
            await asyncio.sleep(pause)

    async def _watch(self, app: App, publishing: asyncio.Task[None]) -> None:
        """Show progress until everything is settled, nothing moves any more, or somebody interrupts."""
        owed = sum(len(endpoint.owed) for endpoint in self._cast)
        progress, moved = -1, time.monotonic()
        limit = moved + _LIMIT + _PER_EVENT * len(self._events)
        show = self._live(owed) if self._console.is_terminal else self._lines(owed)
        next(show)
        try:
            while not self._interrupted and app.failure is None:
                delivered = sum(len(endpoint.latencies) for endpoint in self._cast)
                done = delivered + sum(app.metrics.dead_letters.values())
                now = time.monotonic()
                if len(self._published) + done > progress:
                    progress, moved = len(self._published) + done, now
                if publishing.done():
                    publishing.result()  # raises what kept it from publishing
                settled = publishing.done() and done >= owed
                over = settled or now - moved > self._patience or now > limit
                show.send((done, over))
                if over:
                    return
                await asyncio.sleep(_TURN)
        finally:
            show.close()

    def _live(self, owed: int) -> Generator[None, tuple[int, bool], None]:
        """Keep the table on the screen up to date."""
        with Live(self._table(), console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                done, _ = yield
                live.update(self._table(self._progress(done, owed)), refresh=True)

    def _lines(self, owed: int) -> Generator[None, tuple[int, bool], None]:
        """Print a line a second, where there is no screen to draw on."""
        last = 0.0
        while True:
            done, over = yield
            now = time.monotonic()
            if over or now - last >= 1:
                last = now
                self._console.print(self._progress(done, owed))

    def _progress(self, done: int, owed: int) -> str:
        return f"published {len(self._published)} of {len(self._events)} events, settled {done} of {owed} deliveries"

    def _introduce(self) -> None:
        kind = "the embedded broker" if self._settings.embedded else self._settings.broker
        self._console.print(
            f"{len(self._events)} events through {kind} to {len(self._cast)} endpoints:", soft_wrap=True
        )
        for endpoint in self._cast:
            self._console.print(f"  {endpoint.id:<7} {endpoint.about}", soft_wrap=True)

    def _table(self, caption: str | None = None) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
        table.add_column("endpoint", no_wrap=True)
        for name in (
            "owed",
            "delivered",
            "attempts",
            "twice",
            "dead\nletters",
            "badly\nsigned",
            "p50",
            "p99",
        ):
            table.add_column(name, justify="right", no_wrap=True)
        for endpoint in self._cast:
            latencies = sorted(endpoint.latencies.values())
            table.add_row(
                endpoint.id,
                str(len(endpoint.owed)),
                str(len(latencies)),
                str(endpoint.attempts),
                str(endpoint.duplicates),
                str(len(endpoint.dead)),
                str(endpoint.bad_signatures),
                _duration(percentile(latencies, 0.50)),
                _duration(percentile(latencies, 0.99)),
            )
        return table

    async def _read_back(self) -> int:
        """Take the dead letters from their topic; return how many events the group has not committed."""
        by_id = {endpoint.id: endpoint for endpoint in self._cast}
        uncommitted = 0
        async with connected(self._settings) as broker:
            for topic in await broker.topics(self._settings.group):
                if topic.name == self._topic:
                    uncommitted = sum(
                        partition.latest - (partition.committed or 0) for partition in topic.partitions
                    )
                if topic.name != f"{self._settings.topics.prefix}dead":
                    continue
                for partition in topic.partitions:
                    where = TopicPartition(topic.name, partition.partition)
                    for offset in range(partition.earliest, partition.latest):
                        record = await broker.read(where, offset)
                        if record is not None:
                            headers = {name: (value or b"").decode() for name, value in record.headers}
                            endpoint = by_id[headers["subscription_id"]]
                            endpoint.dead.add(headers["event_id"])
                            if endpoint.behaviour is None:
                                endpoint.attempts += int(headers["attempt"])
        return uncommitted

    def _judge(self, uncommitted: int, took: float) -> int:
        """Say whether everything that was owed arrived; return the exit code."""
        wrong = [sentence for endpoint in self._cast for sentence in complaints(endpoint)]
        if len(self._published) < len(self._events):
            wrong.append(f"only {len(self._published)} of {len(self._events)} events could be published")
        if uncommitted:
            wrong.append(
                f"{uncommitted} events were not committed, although nothing is owed for them any more"
            )
        if wrong:
            for sentence in wrong:
                self._console.print(f"Wrong: {sentence}.", style="bold red", soft_wrap=True)
            return 1
        delivered = sum(len(endpoint.latencies) for endpoint in self._cast)
        dead = sum(len(endpoint.dead) for endpoint in self._cast)
        self._console.print(
            f"Everything owed arrived: {delivered} deliveries, every signature valid, and {dead} for the dead "
            f"endpoint in the dead-letter topic, in {took:.1f} s.",
            style="green",
            soft_wrap=True,
        )
        if not self._keep_running:
            self._console.print(
                "To look around in it: `make demo ARGS=--keep-running` (`dispatcher demo --keep-running`).",
                soft_wrap=True,
            )
        if not self._settings.embedded:
            self._console.print(
                f"The topics {self._settings.topics.prefix}* can be deleted now.", soft_wrap=True
            )
        return 0


def complaints(endpoint: Endpoint) -> list[str]:
    """Return what is wrong with an endpoint's account, a sentence each."""
    found = []
    if endpoint.behaviour is None:
        if missing := endpoint.owed - endpoint.dead:
            found.append(
                f"{len(missing)} of the {len(endpoint.owed)} events owed to {endpoint.id} are not in the dead-letter "
                f"topic ({_some(missing)})"
            )
        if endpoint.latencies:
            found.append(f"{endpoint.id} refuses every connection, and yet deliveries arrived")
    elif missing := endpoint.owed - endpoint.latencies.keys():
        given_up = len(missing & endpoint.dead)
        found.append(
            f"{endpoint.id} did not get {len(missing)} of the {len(endpoint.owed)} events it is owed "
            f"({_some(missing)}); {given_up} of them are in the dead-letter topic"
        )
    if endpoint.bad_signatures:
        found.append(
            f"{endpoint.bad_signatures} requests to {endpoint.id} had a signature that does not verify"
        )
    if endpoint.altered:
        found.append(
            f"{endpoint.altered} requests to {endpoint.id} were not what was published, or not for it"
        )
    return found


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that `share` of them do not exceed (nearest rank); None of nothing."""
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _some(ids: Iterable[str]) -> str:
    first = sorted(ids)
    return ", ".join(first[:3]) + (", ..." if len(first) > 3 else "")
