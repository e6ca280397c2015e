"""What only the embedded broker has: its file, its lock, its disk, its retention."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dispatcher.broker.base import (
    BrokerRefused,
    BrokerUnavailable,
    Message,
    TopicSpec,
)
from dispatcher.broker.sqlite.broker import SqliteBroker
from tests.broker.backends import Member
from tests.broker.sqlite.conftest import Opened
from tests.broker.sqlite.offsets import earliest_and_latest

# The file.


async def test_the_directory_is_made(opened: Opened, tmp_path: Path) -> None:
    await opened(tmp_path / "not" / "there" / "log.db")
    assert (tmp_path / "not" / "there" / "log.db").exists()


async def test_what_was_acknowledged_survives_kill_9_and_so_does_the_lock_not(
    opened: Opened, tmp_path: Path
) -> None:
    """A process appends, prints what was acknowledged, and is killed in the middle of it."""
    script = f"""
        import asyncio
        from pathlib import Path
        from dispatcher.broker.base import Message, Position, TopicPartition, TopicSpec
        from dispatcher.broker.sqlite.broker import SqliteBroker

        class Listener:
            async def on_assigned(self, partitions): pass
            async def on_revoked(self, partitions): pass
            def on_jump(self, jump): pass

        async def main():
            broker = SqliteBroker(Path({str(tmp_path / "log.db")!r}))
            await broker.connect()
            await broker.ensure_topics([TopicSpec("t", 1)], create=True)
            consumer = broker.consumer(["t"], "g", Listener())
            await consumer.start()
            for n in range(1_000_000):
                await broker.produce([Message("t", b"%d" % n + b"." * 500)] * 3)
                await consumer.commit({{TopicPartition("t", 0): Position(n, "at %d" % n)}})
                print("acknowledged", n, flush=True)

        asyncio.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    last = -1
    for line in process.stdout:  # goes on until the pipe is empty
        if line.startswith("acknowledged ") and line.endswith("\n"):
            last = int(line.split()[1])
            if last == 200:
                process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert last >= 200

    broker = await opened()
    member = Member(broker, ["t"], "other")
    await member.consumer.start()
    await member.poll_for(3 * (last + 1))
    await member.poll()
    read = [int((value or b"").rstrip(b".")) for value in member.values]
    assert read == sorted(read)
    assert all(read.count(n) == 3 for n in (0, last, len(read) // 3 - 1)), (
        "a call is written whole or not at all"
    )
    assert [record.offset for record in member.all] == list(range(len(read)))
    (found,) = await broker.topics("g")
    assert found.partitions[0].committed is not None
    assert found.partitions[0].committed >= last


async def test_before_connect_and_after_close_calls_say_so(tmp_path: Path) -> None:
    broker = SqliteBroker(tmp_path / "log.db")
    assert broker.problem is not None
    with pytest.raises(BrokerUnavailable):
        await broker.ensure_topics([TopicSpec("t")], create=True)
    await broker.connect()
    await broker.connect()
    await broker.ensure_topics([TopicSpec("t")], create=True)
    await broker.close()
    closed = broker.problem
    assert closed == "closed"
    with pytest.raises(BrokerUnavailable):
        await broker.produce([Message("t", b"v")])


async def test_defaults_for_topics_come_from_the_settings(opened: Opened) -> None:
    broker = await opened(partitions=2, retention=3600.0)
    await broker.ensure_topics([TopicSpec("t"), TopicSpec("u", 7, config={"retention.ms": "5"})], create=True)
    t, u = await broker.topics()
    assert (len(t.partitions), t.config["retention.ms"]) == (2, "3600000")
    assert (len(u.partitions), u.config["retention.ms"]) == (7, "5")


async def test_a_config_that_is_no_number_is_refused(opened: Opened) -> None:
    broker = await opened()
    with pytest.raises(BrokerRefused, match=r"retention\.ms must be a number"):
        await broker.ensure_topics([TopicSpec("t", config={"retention.ms": "a week"})], create=True)


# A full disk.


# Group commit.


# Retention and compaction.


# Groups.


async def test_close_stops_members_and_waits_for_writes(opened: Opened, tmp_path: Path) -> None:
    broker = await opened()
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    member = Member(broker, ["t"], "g")
    await member.consumer.start()
    write = asyncio.get_running_loop().create_task(broker.produce([Message("t", b"v")]))
    await asyncio.sleep(0)
    await broker.close()
    await write
    assert await member.consumer.poll(1.0, 10) == ()
    broker = await opened()
    assert await earliest_and_latest(broker, "t") == (0, 1)
