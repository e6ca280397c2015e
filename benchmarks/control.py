"""The control plane at a hundred thousand subscriptions: from the start to ready, memory, and whether the loop turns.

The topic is filled with records as the API writes them (secrets sealed), then the real daemon is started on it.
While it loads, `/healthz` is asked again and again: how long an answer takes is how long the loop was held up.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.end_to_end import Daemon, kafka
from benchmarks.harness import SECRET, CannotRun, Nginx, Sampler, Section, Table, Usage, mib, require
from dispatcher.app import topic_specs
from dispatcher.broker.base import Message
from dispatcher.broker.open import open_broker
from dispatcher.control.store import Store, Stored, StoredSecret, subscriptions_topic
from dispatcher.core.changes import Change, to_headers
from dispatcher.core.netguard import Guard
from dispatcher.registry import Registry
from dispatcher.settings import KafkaSettings, Settings, TopicsSettings

COUNT: Final = 100_000
_WANTED: Final = 20.0  # seconds from the start to ready
_WITHIN: Final = 120.0
_KEY: Final = base64.b64encode(bytes(range(32))).decode()
_EVENTS: Final = "bench-control"
_HOSTS: Final = 2000
_TENANTS: Final = 10_000


def run(command: str, *, quick: bool) -> Section:
    """Start to ready, on both brokers."""
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
            asyncio.run(_fill(broker, count))
            found.append((empty, _start(broker, endpoint, folder, "many.")))
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
    section.add(
        f"{count:,} subscriptions of {_TENANTS:,} tenants, secrets sealed, in a topic that was not compacted."
    )
    return section


def _settings(prefix: str) -> dict[str, Any]:
    return {
        "topics": {"events": [_EVENTS], "prefix": prefix},
        "api": {"secrets_keys": [_KEY], "operational_events": False},
    }


def _start(broker: str, endpoint: Nginx, folder: Path, prefix: str) -> dict[str, float]:
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
    if child.returncode != 0:
        raise CannotRun(f"the daemon ended with {child.returncode}:\n{daemon.log.read_text()[-4000:]}")
    return {"ready": ready, "stall": stall, "rss": float(usage.peak), "cpu": cpu}


async def _fill(broker: str, count: int) -> None:
    settings = Settings.model_validate(
        {"topics": TopicsSettings(events=(_EVENTS,), prefix="many."), "api": {"secrets_keys": [_KEY]}}
    )
    port = open_broker(broker, KafkaSettings())
    await port.connect()
    try:
        await port.ensure_topics(topic_specs(settings), create=True)
        store = Store(settings, port, Registry(settings, Guard(), {}), Guard())
        messages = _messages(store, settings, count)
        while batch := list(itertools.islice(messages, 2000)):
            await port.produce(batch)
    finally:
        await port.close()


def _messages(store: Store, settings: Settings, count: int) -> Iterator[Message]:
    for number in range(count):
        id_ = f"sub_{number:08d}"
        document = {
            "tenant": f"tenant-{number % _TENANTS}",
            "url": f"https://hooks-{number % _HOSTS}.example.com/customers/{number}",
            "event_types": ["billing.*", "invoice.paid", f"kind.{number % 50}"],
            "status": "active",
        }
        now = 1_700_000_000_000
        raw = store._raw(Stored(id_, 0, document, (StoredSecret(SECRET),), now, now))
        headers = to_headers(Change(0, 1, f"{number:018x}".encode()))
        yield Message(
            subscriptions_topic(settings),
            raw,
            id_.encode(),
            [("kind", b"subscription"), *headers],
            partition=0,
        )
