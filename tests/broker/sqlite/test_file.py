from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from dispatcher.broker.base import (
    BrokerRefused,
)
from dispatcher.broker.sqlite.file import pack_headers, unpack_headers
from tests.broker.backends import WITHIN
from tests.broker.sqlite.conftest import Opened


@given(st.lists(st.tuples(st.text(), st.none() | st.binary())))
def test_headers_come_back_as_they_were(headers: list[tuple[str, bytes | None]]) -> None:
    assert unpack_headers(pack_headers(headers)) == headers


async def test_a_second_process_is_told_who_has_the_file(opened: Opened, tmp_path: Path) -> None:
    await opened()
    script = f"""
        import asyncio
        from pathlib import Path
        from dispatcher.broker.base import BrokerRefused
        from dispatcher.broker.sqlite.broker import SqliteBroker

        async def main():
            try:
                await SqliteBroker(Path({str(tmp_path / "log.db")!r})).connect()
            except BrokerRefused as error:
                print(error)

        asyncio.run(main())
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", textwrap.dedent(script), stdout=asyncio.subprocess.PIPE
    )
    said = (await asyncio.wait_for(process.communicate(), WITHIN))[0].decode()
    assert f"log.db is in use by process {os.getpid()}" in said
    assert process.returncode == 0


async def test_the_lock_goes_with_close(opened: Opened) -> None:
    broker = await opened()
    with pytest.raises(BrokerRefused, match="in use by process"):
        await opened()
    await broker.close()
    await opened()


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
async def test_a_file_that_is_no_database_is_refused(opened: Opened, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(BrokerRefused, match=r"log\.db"):
        await opened()


async def test_somebody_elses_database_is_refused_and_left_alone(opened: Opened, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "log.db") as db:
        db.execute("CREATE TABLE topics (id INTEGER)")
    db.close()
    with pytest.raises(BrokerRefused, match="not one of this program's"):
        await opened()


async def test_a_newer_files_version_is_refused(opened: Opened, tmp_path: Path) -> None:
    await (await opened()).close()
    db = sqlite3.connect(tmp_path / "log.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(BrokerRefused, match="newer version"):
        await opened()


@pytest.mark.parametrize("where", ["directory", "parent is a file"])
async def test_a_path_that_can_not_be_a_file_is_refused(opened: Opened, tmp_path: Path, where: str) -> None:
    if where == "directory":
        path = tmp_path / "log.db"
        path.mkdir()
    else:
        (tmp_path / "file").touch()
        path = tmp_path / "file" / "log.db"
    with pytest.raises(BrokerRefused, match=str(path)):
        await opened(path)
