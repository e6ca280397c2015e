"""A run on the embedded broker: one process, killed again and again, now and then on a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from dispatcher.broker.base import Broker, TopicPartition, TopicSpec
from dispatcher.broker.open import open_broker
from dispatcher.settings.groups import KafkaSettings
from tests.torture.endpoints import Endpoints
from tests.torture.replica import HEARD_WITHIN
from tests.torture.report import Report
from tests.torture.run import PARTITIONS, Run, read_all
from tests.torture.schedule import Fault, Kind
from tests.torture.store import HistoryServer
from tests.torture.traits import Act, Trait

_ROOM = 12 << 20  # of the small disk
_WITH_TRAITS = 96 << 20  # where much more is owed


class EmbeddedRun(Run):
    """SQLite serves one process: the events are written between two lives of the daemon."""

    def __init__(
        self,
        report: Report,
        endpoints: Endpoints,
        folder: Path,
        disk: Path | None,
        mutant: str | None,
        store: HistoryServer | None = None,
    ) -> None:
        super().__init__(report, endpoints, folder, mutant, store)
        self.disk = disk
        place = (disk or folder) / self.name
        self.url = f"sqlite:///{place}.db"
        self.one = self.replica(0, self.url)
        self.replicas = [self.one]

    async def __call__(self) -> None:
        playing = self.tasks.start(self.endpoints.play(self.schedule.phases), "play")
        self.doing.append(self.tasks.start(self.crash_store(), "crash the store"))
        faults = self.schedule.faults
        left = [self.schedule.events]
        bursts = self.schedule.bursts // len(faults)
        turns = list(self.schedule.turns)
        through = 0.0  # of the schedule's time
        try:
            for number, fault in enumerate(faults):
                share = left[0] // (len(faults) - number)
                left[0] -= share
                await self._write(share, bursts)
                started = self.clock()
                await self.one.start()
                if number == 0 and Trait.PAUSE in self.traits:
                    await self.pauses.make_by_api()
                if fault.at >= 1.0:  # else somewhere while it starts
                    await self.until(lambda: self.endpoints.last_request > started, 60.0)  # noqa: B023 - awaited here
                while turns and turns[0].at < through + fault.at:
                    turn = turns.pop(0)
                    doing = (
                        self.stall(turn.lasts)
                        if turn.act is Act.STALL
                        else self.pauses.play(turn.number, turn.lasts)
                    )
                    self.doing.append(self.tasks.start(doing, str(turn)))
                through += fault.at
                await asyncio.sleep(fault.at)
                await self._inflict(fault)
                await self._look()
            self.stage("faults")
            playing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await playing
            await self.one.start()
            await asyncio.gather(*self.doing)
            self.endpoints.heal()
            self.pauses.forgive()
            await self.settled(self.replicas)
            self.stage("settle")
            if Trait.HISTORY in self.traits:
                await self.audit.send_again()
                self.stage("send again")
            await self.one.terminate()
            await self._look()
            self.stage("stop")
            await self.nothing_left(self.one)
            self.stage("nothing left")
            broker = await self._open()
            try:
                records = await read_all(broker, self.own_topics)
            finally:
                await broker.close()
            self.judge(records)
            self.stage("judge")
            if Trait.HISTORY in self.traits:
                await self.audit(records)
                self.stage("history")
        finally:
            self.one.up = False
            await self.one.daemon.kill()
            await self.tasks.stop()

    async def _open(self) -> Broker:
        broker = open_broker(self.url, KafkaSettings())
        await broker.connect()
        return broker

    async def _write(self, count: int, bursts: int) -> None:
        broker = await self._open()
        try:
            await broker.ensure_topics([TopicSpec(self.topic, PARTITIONS)], create=True)
            await broker.produce([*self.messages(count), *self.messages(bursts, bursts=True)])
        finally:
            await broker.close()

    async def ends(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        broker = await self._open()
        try:
            return {
                TopicPartition(info.name, each.partition): each.latest
                for info in await broker.topics()
                if info.name in topics
                for each in info.partitions
            }
        finally:
            await broker.close()

    async def _look(self) -> None:
        broker = await self._open()
        try:
            for info in await broker.topics(self.name):
                if info.name == self.topic:
                    self.committed = {
                        TopicPartition(info.name, each.partition): each.committed or 0
                        for each in info.partitions
                    }
        finally:
            await broker.close()

    async def _inflict(self, fault: Fault) -> None:
        if fault.kind is Kind.FULL:
            if self.disk is None:
                self.report.notes.append("no small disk here (it takes root): not filled")
            else:
                begin = self.clock()
                with _filled(self.disk):
                    await asyncio.sleep(fault.lasts)
                    self.one.check()
                # Room again: it has to go on by itself, and then its end is as good as any.
                await asyncio.sleep(1.0)
                self.one.trouble("full", begin, self.clock() + HEARD_WITHIN)
        if fault.kind is Kind.TERM:
            await self.one.terminate()
        else:
            await self.one.kill()


@contextlib.contextmanager
def _filled(disk: Path) -> Iterator[None]:
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while file.write(b"\0" * size):
                    pass
    try:
        yield
    finally:
        ballast.unlink()


@contextlib.contextmanager
def small_disk(folder: Path, *, larger: bool = False) -> Iterator[Path | None]:
    """A tmpfs of its own, where that is allowed; else None."""
    disk = folder / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_WITH_TRAITS if larger else _ROOM}", "none", str(disk)]
    if (
        os.geteuid() != 0
        or shutil.which("mount") is None
        or subprocess.run(command, capture_output=True, check=False).returncode != 0
    ):
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
