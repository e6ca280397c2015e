"""The embedded broker's file holds secrets, and belongs to one process under whatever name."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.broker.base import BrokerRefused, Message, TopicSpec
from dispatcher.broker.sqlite.broker import SqliteBroker

Opened = Callable[[Path], Any]


@pytest.fixture(autouse=True)
def everybody_may_read() -> Iterator[None]:
    """The most generous mask: what is closed then was closed on purpose."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
async def opened() -> AsyncIterator[Opened]:
    brokers: list[SqliteBroker] = []

    async def connect(path: Path) -> SqliteBroker:
        broker = SqliteBroker(path)
        brokers.append(broker)
        await broker.connect()
        return broker

    yield connect
    for broker in brokers:
        await broker.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_only_the_owner_gets_at_the_file_and_what_lies_beside_it(
    opened: Opened, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "log.db"
    broker = await opened(path)
    await broker.ensure_topics([TopicSpec("t", 1)], create=True)
    await broker.produce([Message("t", b"whsec_")])
    assert mode(path.parent) == 0o700
    assert {file.name: mode(file) for file in path.parent.iterdir()} == dict.fromkeys(
        ("log.db", "log.db-wal", "log.db-shm", "log.db.lock"), 0o600
    )


async def test_a_file_that_others_could_read_is_closed_to_them(opened: Opened, tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    await (await opened(path)).close()
    path.chmod(0o644)
    await opened(path)
    assert mode(path) == 0o600


async def test_the_rights_of_a_folder_that_was_there_are_left_alone(opened: Opened, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o775)
    await opened(shared / "log.db")
    assert mode(shared) == 0o775


@pytest.mark.parametrize("link", ["file", "folder", "file before the file is there"])
async def test_a_symbolic_link_is_no_way_around_the_lock(opened: Opened, tmp_path: Path, link: str) -> None:
    real = tmp_path / "real" / "log.db"
    other = tmp_path / "other" / "events.db"
    if link == "folder":
        other = tmp_path / "other" / "log.db"
        other.parent.symlink_to(real.parent)
    else:
        other.parent.mkdir()
        other.symlink_to(real)
    if link == "file before the file is there":
        real, other = other, real
    await opened(real)
    with pytest.raises(BrokerRefused, match=f"in use by process {os.getpid()}"):
        await opened(other)


async def test_links_in_a_ring_are_refused(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "log.db").symlink_to(tmp_path / "log.db")
    with pytest.raises(BrokerRefused, match="can't be used"):
        await opened(tmp_path / "log.db")
