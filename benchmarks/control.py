"""The control plane at a hundred thousand subscriptions: from the start to ready, memory, whether the loop turns, pages.

The topic is filled with records as the API writes them (secrets sealed), then the real daemon is started on it.
While it loads, `/healthz` is asked again and again: how long an answer takes is how long the loop was held up.
Pages are listed over HTTP, of one tenant that has all of them: the most that a filter can have to look through.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import orjson

from benchmarks.end_to_end import Daemon, kafka
from benchmarks.harness import SECRET, CannotRun, Nginx, Sampler, Section, Table, Usage, median, mib, require
from dispatcher.broker.base import Message
from dispatcher.broker.open import open_broker
from dispatcher.control.documents import Documents, Stored, StoredSecret
from dispatcher.control.store import subscriptions_topic
from dispatcher.core.control.ledger import Change, to_headers
from dispatcher.core.control.sealing import Sealer, read_key
from dispatcher.settings.groups import KafkaSettings, Settings, TopicsSettings
from dispatcher.topics.specs import topic_specs

COUNT: Final = 100_000
_WANTED: Final = 20.0  # seconds from the start to ready
_WITHIN: Final = 120.0
_KEY: Final = base64.b64encode(bytes(range(32))).decode()
_EVENTS: Final = "bench-control"
_HOSTS: Final = 2000
_TENANTS: Final = 10_000
_PAGE_WANTED: Final = 0.050  # seconds
_PAGES: Final = 200  # of each kind
_LISTED: Final[tuple[tuple[str, dict[str, object]], ...]] = (
    ("page of 50", {"limit": 50}),
    ("page of 200", {"limit": 200}),
    ("of an event type that one in 50 wants", {"limit": 200, "event_type": "kind.7"}),
    ("of a host that one in 2,000 has", {"limit": 200, "host": "hooks-7.example.com"}),
    ("of a status that none has", {"limit": 200, "status": "disabled"}),
)


def run(command: str, *, quick: bool) -> Section:
    """Start to ready, on both brokers; pages of one tenant's, on the embedded one."""
    require("taskset")
    count = COUNT // 50 if quick else COUNT
    section = Section("Control plane", command)
    table = Table(("", "embedded broker", "Kafka", "wanted"))
    with tempfile.TemporaryDirectory(prefix="bench-") as name, kafka() as cluster, Nginx() as endpoint:
        found = []
        for number, broker in enumerate((f"sqlite:///{name}/log.db", cluster)):
            folder = Path(name, f"daemon-{number}")
            folder.mkdir()
            empty = _start(broker, endpoint, folder, "none.")
            asyncio.run(_fill(broker, count, "many.", _TENANTS))
            found.append((empty, _start(broker, endpoint, folder, "many.")))
        folder = Path(name, "daemon-pages")
        folder.mkdir()
        broker = f"sqlite:///{name}/pages.db"
        asyncio.run(_fill(broker, count, "one.", 1))
        pages: dict[str, list[float]] = {}
        _start(broker, endpoint, folder, "one.", lambda port: pages.update(_list(port)))
    (_, embedded), (_, real) = found
    slowest = max(embedded["ready"], real["ready"])
    wanted = f"< {_WANTED:g} s {'✓' if slowest < _WANTED else '✗ missed'}"
    table.add("start to ready", f"{embedded['ready']:.1f} s", f"{real['ready']:.1f} s", wanted)
    table.add("CPU time of it", *(f"{many['cpu']:.1f} s" for _, many in found), "")
    table.add(
        "of that, the same without subscriptions", *(f"{empty['ready']:.1f} s" for empty, _ in found), ""
    )
    table.add(
        "longest answer of /healthz meanwhile", *(f"{many['stall'] * 1000:,.0f} ms" for _, many in found), ""
    )
    table.add("peak RSS", *(mib(many["rss"]) for _, many in found), "")
    table.add("RSS without subscriptions", *(mib(empty["rss"]) for empty, _ in found), "")
    table.add(
        "memory of a subscription",
        *(f"{(many['rss'] - empty['rss']) / count / 1024:.1f} KiB" for empty, many in found),
        "",
    )
    section.add(table)
    listed = Table(("pages of one tenant that has all of them", "median", "p99", "wanted"))
    for label, _ in _LISTED:
        times = sorted(pages[label])
        p99 = times[int(len(times) * 0.99)]
        good = f"< {_PAGE_WANTED * 1000:g} ms {'✓' if p99 < _PAGE_WANTED else '✗ missed'}"
        listed.add(label, f"{median(times) * 1000:.1f} ms", f"{p99 * 1000:.1f} ms", good)
    section.add(listed)
    section.add(
        f"{count:,} subscriptions of {_TENANTS:,} tenants, secrets sealed, in a topic that was not compacted. "
        f"{_PAGES} pages of each kind one after the other over HTTP, one connection, their cursors followed; embedded broker."
    )
    return section


def _settings(prefix: str) -> dict[str, Any]:
    return {
        "topics": {"events": [_EVENTS], "prefix": prefix},
        "api": {"secrets_keys": [_KEY], "operational_events": False},
    }


def _start(
    broker: str, endpoint: Nginx, folder: Path, prefix: str, then: Callable[[int], object] | None = None
) -> dict[str, float]:
    """How it started; `then` is called with the port when it is ready."""
    daemon = Daemon(broker, endpoint, folder, subscriptions=(), **_settings(prefix))
    began = time.monotonic()
    stall = 0.0
    with daemon.started() as child, Sampler(child.pid) as usage:
        answered = False
        while not daemon._is_ready():
            if child.poll() is not None or time.monotonic() - began > _WITHIN:
                raise CannotRun(
                    f"the daemon was not ready within {_WITHIN:g} s:\n{daemon.log.read_text()[-4000:]}"
                )
            asked = time.monotonic()
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{daemon._port}/healthz", timeout=30).close()
                if answered:
                    stall = max(stall, time.monotonic() - asked)
                answered = True
        ready = time.monotonic() - began
        cpu = Usage.of(child.pid).cpu
        time.sleep(1.0)
        if then is not None:
            then(daemon._port)
    if child.returncode != 0:
        raise CannotRun(f"the daemon ended with {child.returncode}:\n{daemon.log.read_text()[-4000:]}")
    return {"ready": ready, "stall": stall, "rss": float(usage.peak), "cpu": cpu}


def _list(port: int) -> dict[str, list[float]]:
    """Seconds of each page, of each kind."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    found: dict[str, list[float]] = {}
    for label, query in _LISTED:
        times = found[label] = []
        cursor: dict[str, object] = {}
        while len(times) < _PAGES:
            began = time.perf_counter()
            connection.request(
                "GET", "/v1/subscriptions?" + urlencode({"tenant": "tenant-0", **query, **cursor})
            )
            response = connection.getresponse()
            page = response.read()
            times.append(time.perf_counter() - began)
            if response.status != 200:
                raise CannotRun(f"a page was answered with {response.status}: {page[:1000].decode()}")
            following = orjson.loads(page)["next_cursor"]
            cursor = {} if following is None else {"cursor": following}
    connection.close()
    return found


async def _fill(broker: str, count: int, prefix: str, tenants: int) -> None:
    settings = Settings.model_validate(
        {"topics": TopicsSettings(events=(_EVENTS,), prefix=prefix), "api": {"secrets_keys": [_KEY]}}
    )
    port = open_broker(broker, KafkaSettings())
    await port.connect()
    try:
        await port.ensure_topics(topic_specs(settings), create=True)
        messages = _messages(settings, count, tenants)
        while batch := list(itertools.islice(messages, 2000)):
            await port.produce(batch)
    finally:
        await port.close()


def _messages(settings: Settings, count: int, tenants: int) -> Iterator[Message]:
    documents = Documents(Sealer([read_key(_KEY)], os.urandom))
    for number in range(count):
        id_ = f"sub_{number:08d}"
        document = {
            "tenant": f"tenant-{number % tenants}",
            "url": f"https://hooks-{number % _HOSTS}.example.com/customers/{number}",
            "event_types": ["billing.*", "invoice.paid", f"kind.{number % 50}"],
            "status": "active",
        }
        now = 1_700_000_000_000
        raw = documents.write(Stored(id_, 0, document, (StoredSecret(SECRET),), now, now))
        headers = to_headers(Change(0, 1, f"{number:018x}".encode()))
        yield Message(
            subscriptions_topic(settings),
            raw,
            id_.encode(),
            [("kind", b"subscription"), *headers],
            partition=0,
        )
