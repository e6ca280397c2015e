"""Twenty honest tenants beside attackers that a seed draws: is all of theirs delivered, and how much of it in time?

`python -m tests.torture.hostile --seeds 1-10` runs each seed twice, each time with a fresh daemon for as many seconds: the honest tenants alone,
then among the attackers. What counts:

1. Whatever an honest tenant was told is published (202) arrives at its endpoint, and at no other tenant's.
2. The daemon does not end, logs no traceback, and ends well after SIGTERM.
3. The *share* is how many deliveries the honest tenants get in the window among the attackers, by how many they get alone. They have published
   for a while before the window begins. The share says something about the machine too, so it is reported, and held to nothing in the tests.

Honest tenants publish through the API with keys of their own, each at a steady rate: what is refused or not answered they publish again, later.
Their endpoints are quick and in a thread of its own; attackers run in a process of lower priority (`attackers.py`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import orjson

from dispatcher.settings.groups import DeliverySettings
from tests.commands.console import environment
from tests.e2e.daemon import Daemon
from tests.e2e.hostile import Caller, QuickEndpoint
from tests.ports import free_port
from tests.torture.attackers import COSTLY, COSTLY_SCHEMA, Target, chosen
from tests.torture.schedule import seeds_of

TENANTS: Final = 20
HOSTILE: Final = 4
ORIGINS: Final = 5  # which the honest tenants share
SHARED: Final = 2  # of those, the ones that attackers use too
DESCRIPTORS: Final = 1024
WANTED: Final = 0.9  # of the share
_KEY: Final = "operators-key-" + "o" * 32
_LEAD: Final = 2.0  # seconds for which they publish before the window begins
_TICK: Final = 0.25  # seconds between two batches of a tenant
_BATCH: Final = 100
_COMPLETE_WITHIN: Final = 120.0
_AT_IT_WITHIN: Final = 120.0  # the attackers, and by which they end
_STOPS_WITHIN: Final = 90.0
_ROOT: Final = Path(__file__).parents[2]


class HonestEndpoints(QuickEndpoint):
    """A few origins, each with a path for each tenant. What comes for /hang is never answered."""

    def __init__(self) -> None:
        super().__init__([f"127.200.{number}.1" for number in range(ORIGINS)], free_port())
        self.arrived: Counter[tuple[str, str]] = Counter()
        """Of each tenant's path and event, how often it came."""
        self.first: dict[tuple[str, str], float] = {}
        """When it came first, by the monotonic clock."""
        self.origins = [f"http://{host}:{self.port}" for host in self._hosts]

    def take(self, path: bytes, id_: bytes) -> bool:
        if path == b"/hang":
            return False
        key = (path[1:].decode(), id_.decode())
        self.arrived[key] += 1
        self.first.setdefault(key, time.monotonic())
        return True


@dataclass
class Window:
    """What came of one window."""

    wanted: int = 0
    """Events whose turn is in it."""
    arrived: int = 0
    """Deliveries of honest tenants in it."""
    owed: int = 0
    """What they were told is published, by the end of all."""
    missing: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """Answers but 202 that they got, status and why; 0 where they got none."""
    latest: float = 0.0
    """Seconds from its turn to its delivery of the event that took longest."""
    median: float = 0.0
    attacks: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


@dataclass
class HostileReport:
    """What came of a seed."""

    seed: int
    alone: Window | None
    among: Window

    HEAD = (
        "| seed | attacks | wanted | alone | among | share | missing | twice | median s | latest s | findings |\n"
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )

    @property
    def share(self) -> float | None:
        if self.alone is None or not self.alone.arrived:
            return None
        return self.among.arrived / self.alone.arrived

    @property
    def findings(self) -> list[str]:
        return [*(() if self.alone is None else self.alone.findings), *self.among.findings]

    def __str__(self) -> str:
        names = ", ".join(name for name, _ in chosen(self.seed))
        alone = "-" if self.alone is None else str(self.alone.arrived)
        share = "-" if self.share is None else f"{self.share:.3f}"
        return (
            f"| {self.seed} | {names} | {self.among.wanted} | {alone} | {self.among.arrived} | {share} | {self.among.missing}"
            f" | {self.among.duplicates} | {self.among.median:.2f} | {self.among.latest:.2f} | {len(self.findings)} |"
        )


class HonestTenant:
    """An honest one: publishes at its rate, and again what it was not told is published."""

    def __init__(self, name: str, port: int, key: str, window: Window) -> None:
        self.name = name
        self.owed: set[str] = set()
        self.turns: dict[str, float] = {}
        """When the turn of each event was."""
        self.again: set[str] = set()
        """What was published again because there was no answer: it may come twice."""
        self._caller = Caller(port, key)
        self._window = window

    async def publish(self, rate: float, seconds: float) -> None:
        begin = time.monotonic()
        due: list[str] = []
        count = round(rate * seconds)
        while len(self.turns) < count or due:
            now = time.monotonic()
            while len(self.turns) < count and begin + len(self.turns) / rate <= now:
                event = f"{self.name}_{len(self.turns)}"
                self.turns[event] = begin + len(self.turns) / rate
                due.append(event)
            if (batch := due[:_BATCH]) and await self._send(batch):
                del due[: len(batch)]
                continue
            await asyncio.sleep(_TICK)
        self._caller.close()

    async def _send(self, batch: list[str]) -> bool:
        body = orjson.dumps(
            [{"type": "honest.event", "id": event, "data": {"pad": "x" * 200}} for event in batch]
        )
        try:
            async with asyncio.timeout(30.0):
                status, answer = await self._caller("POST", "/v1/events", body)
        except (OSError, TimeoutError):
            status, answer = 0, b""
            self._caller.close()
        if status == 202:
            self.owed.update(batch)
            return True
        why = orjson.loads(answer).get("detail", "") if answer.startswith(b"{") else ""
        self._window.refused[f"{status} {why[:60]}".rstrip()] += 1
        if status == 0:
            self.again.update(batch)
        elif status not in {429, 503}:
            self._window.findings.append(f"{self.name} was refused: {status} {answer[:200]!r}")
        return False


async def window(seed: int, folder: Path, *, hostile: bool, seconds: float, rate: float) -> Window:
    """A fresh daemon, the honest tenants at `rate` events a second each for so long, and what came of it."""
    found = Window(wanted=TENANTS * round(rate * seconds))
    with HonestEndpoints() as endpoints:
        daemon = _daemon(folder, endpoints)
        await daemon.start()
        try:
            keys = await _keys(daemon)
            tenants = [
                HonestTenant(name, daemon.port, keys[name], found) for name in map(_honest, range(TENANTS))
            ]
            async with contextlib.AsyncExitStack() as stack:
                if hostile:
                    target = Target(
                        seed,
                        daemon.port,
                        [keys[f"hostile-{number}"] for number in range(HOSTILE)],
                        endpoints.origins[:SHARED],
                        str(daemon.subscriptions_file),
                    )
                    await stack.enter_async_context(_attackers(target, found))
                begin = time.monotonic()
                loop = asyncio.get_running_loop()
                publishing = [loop.create_task(each.publish(rate, _LEAD + seconds)) for each in tenants]
                await asyncio.sleep(_LEAD + seconds)
                first = dict(endpoints.first)
                found.arrived = sum(_LEAD <= at - begin < _LEAD + seconds for at in first.values())
                # What is left over they publish among the attackers, too.
                await asyncio.wait_for(asyncio.gather(*publishing), _COMPLETE_WITHIN)
            await _complete(daemon, endpoints, tenants, found)
            judge(daemon, endpoints, tenants, found)
            daemon.signal(signal.SIGTERM)
            try:
                if code := await daemon.ended(_STOPS_WITHIN):
                    found.findings.append(f"exit code {code} after SIGTERM")
            except TimeoutError:
                found.findings.append(f"it did not end within {_STOPS_WITHIN:.0f} s of SIGTERM")
        finally:
            await daemon.kill()
    return found


def _honest(number: int) -> str:
    return f"honest-{number}"


def _daemon(folder: Path, endpoints: HonestEndpoints) -> Daemon:
    """With a deployment's own settings, but for addresses of this machine."""
    own = DeliverySettings()
    daemon = Daemon(
        folder,
        f"sqlite:///{folder}/log.db",
        [
            {
                "id": f"sub-{number}",
                "tenant": _honest(number),
                "url": f"{endpoints.origins[number % ORIGINS]}/{_honest(number)}",
                "event_types": ["honest.*"],
            }
            for number in range(TENANTS)
        ],
        api={"publish_validation": "warn", "event_types": "open"},
        delivery={"breaker_threshold": own.breaker_threshold, "max_queue_wait": f"{own.max_queue_wait:g}s"},
    )
    daemon.command = ["sh", "-c", f'ulimit -n {DESCRIPTORS} && exec "$@"', "sh", *daemon.command]
    daemon.environ["DISPATCHER_API__KEYS"] = _KEY
    return daemon


async def _keys(daemon: Daemon) -> dict[str, str]:
    """One of each tenant, and the type whose schema is costly."""
    operator = Caller(daemon.port, _KEY)
    keys: dict[str, str] = {}
    for tenant in [*map(_honest, range(TENANTS)), *(f"hostile-{number}" for number in range(HOSTILE))]:
        wanted = {
            "name": tenant,
            "scope": "tenant",
            "tenant": tenant,
            "capabilities": ["publish", "read", "write"],
        }
        status, body = await operator("POST", "/v1/keys", orjson.dumps(wanted))
        assert status == 201, body
        keys[tenant] = orjson.loads(body)["secret"]
    status, body = await operator("PUT", f"/v1/event-types/{COSTLY}", orjson.dumps(COSTLY_SCHEMA))
    assert status in {200, 201}, body
    operator.close()
    return keys


@contextlib.asynccontextmanager
async def _attackers(target: Target, found: Window) -> Any:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.torture.attackers"),
        cwd=_ROOT,
        env=environment({}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(target) + b"\n")
    await process.stdin.drain()
    assert process.stdout is not None
    try:
        async with asyncio.timeout(_AT_IT_WITHIN):
            await process.stdout.readline()
        yield
        process.stdin.close()
        async with asyncio.timeout(_AT_IT_WITHIN):
            said, _ = await process.communicate()
        if process.returncode:
            found.findings.append(f"the attackers failed: {process.returncode}")
        else:
            found.attacks = orjson.loads(said)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _complete(
    daemon: Daemon, endpoints: HonestEndpoints, tenants: list[HonestTenant], found: Window
) -> None:
    """Wait until all that is owed has come, while the attackers' endpoints are still what they are."""
    deadline = time.monotonic() + _COMPLETE_WITHIN
    while any((each.name, event) not in endpoints.arrived for each in tenants for event in each.owed):
        if not daemon.running or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.1)


def judge(daemon: Daemon, endpoints: HonestEndpoints, tenants: list[HonestTenant], found: Window) -> None:
    """What of it isn't as it must be."""
    arrived, first = dict(endpoints.arrived), dict(endpoints.first)
    owed = {(each.name, event) for each in tenants for event in each.owed}
    again = {(each.name, event) for each in tenants for event in each.again}
    missing = sorted(owed - arrived.keys())
    found.owed, found.missing = len(owed), len(missing)
    found.duplicates = sum(count - 1 for key, count in arrived.items() if key not in again)
    late = sorted(
        first[each.name, event] - turn
        for each in tenants
        for event, turn in each.turns.items()
        if (each.name, event) in first
    )
    if late:
        found.median, found.latest = late[len(late) // 2], late[-1]
    if missing:
        found.findings.append(f"{len(missing)} of {len(owed)} were never delivered, such as {missing[:3]}")
    if strange := sorted(
        key for key in arrived if not any(key[0] == each.name and key[1] in each.turns for each in tenants)
    ):
        found.findings.append(f"{len(strange)} came where they don't belong, such as {strange[:3]}")
    if not daemon.running:
        found.findings.append("the daemon ended:\n" + daemon.log()[-2000:])
    for line in daemon.log().splitlines():
        if "Traceback" in line:
            found.findings.append(f"traceback in {daemon.output}:\n    {line[:3000]}")
            break


async def seed_among_attackers(
    seed: int, folder: Path, *, seconds: float, rate: float, alone: bool = True
) -> HostileReport:
    """Both windows of a seed, in turns."""
    windows = []
    for hostile in (False, True) if alone else (True,):
        own = folder / f"seed-{seed}-{'among' if hostile else 'alone'}"
        own.mkdir()
        windows.append(await window(seed, own, hostile=hostile, seconds=seconds, rate=rate))
    return HostileReport(seed, windows[0] if alone else None, windows[-1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.hostile", description=__doc__)
    parser.add_argument("--seeds", type=seeds_of, default=seeds_of("1-5"), help="such as 1-20 or 3,7,11-13")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each window")
    parser.add_argument("--rate", type=float, default=10.0, help="events a second of each honest tenant")
    arguments = parser.parse_args()
    # Ctrl-C, also from a shell that starts it in the background, and SIGTERM: leave no daemon behind.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    folder = Path(tempfile.mkdtemp(prefix="dispatcher-hostile-"))
    reports = []
    for seed in arguments.seeds:
        report = asyncio.run(
            seed_among_attackers(seed, folder, seconds=arguments.seconds, rate=arguments.rate)
        )
        reports.append(report)
        print(report, flush=True)
        print(
            f"  attackers' answers: {report.among.attacks}; honest ones refused: {dict(report.among.refused)}"
        )
        for finding in report.findings:
            print(f"  FINDING seed {seed}: {finding}", flush=True)
    print(f"\n{HostileReport.HEAD}")
    for report in reports:
        print(report)
    findings = sum(len(report.findings) for report in reports)
    below = [report.seed for report in reports if report.share is not None and report.share < WANTED]
    print(
        f"\n{len(reports)} seeds, {sum(report.among.missing for report in reports)} missing, {findings} findings;"
        f" share below {WANTED}: {below or 'none'}; logs in {folder}"
    )
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
