"""The image's health check asks the daemon where its own configuration says it is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.api.server import ApiServer
from dispatcher.commands.health import url
from dispatcher.settings.groups import HttpSettings
from tests.commands.console import environment


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "http://127.0.0.1:81/readyz"),
        ("0.0.0.0", "http://127.0.0.1:81/readyz"),
        ("::", "http://[::1]:81/readyz"),
        ("10.1.2.3", "http://10.1.2.3:81/readyz"),
    ],
)
def test_it_asks_where_the_daemon_listens(host: str, asked: str) -> None:
    assert url(HttpSettings(host=host, port=81)) == asked


async def test_its_exit_code_is_the_readiness(tmp_path: Path) -> None:

    problems: list[str] = []
    server = ApiServer("127.0.0.1", 0, CollectorRegistry(), lambda: problems)
    port = await server.start()
    (tmp_path / "settings.yaml").write_text(f"http: {{port: {port}}}\n")

    def ask() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dispatcher.commands.health"],
            env=environment({"DISPATCHER_CONFIG": str(tmp_path / "settings.yaml")}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert (await asyncio.to_thread(ask)).returncode == 0
    problems.append("no partitions yet")
    ended = await asyncio.to_thread(ask)
    assert ended.returncode == 1
    assert "no partitions yet" in ended.stderr
    await server.stop()
    ended = await asyncio.to_thread(ask)
    assert ended.returncode == 1
    assert str(port) in ended.stderr
