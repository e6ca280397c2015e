"""What `--workers` refuses. `tests/e2e/test_workers.py` runs them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.commands.console import dispatcher
from tests.ports import HOST

KAFKA = ("--broker", "kafka://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--workers", "2"), "--workers needs Kafka: the embedded broker serves a single process"),
        (("--workers", "2", *KAFKA, "--roles", "api"), "roles must contain deliver"),
        (("--workers", "0"), "'--workers': 0 is not in the range"),
        (("--worker", "1:2"), "'--worker': is for the workers that --workers starts"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    ended = dispatcher("run", *arguments, cwd=tmp_path)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        ended = dispatcher("run", "--workers", "2", *KAFKA, "--http-port", port, cwd=tmp_path)
    assert ended.returncode == 2
    assert f"can't listen on 127.0.0.1:{port}: Address already in use (settings http.host" in ended.stderr
