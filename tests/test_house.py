"""The rules of the house bite: each is shown a file that breaks it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def ruff(path: str, source: str) -> str:
    """What ruff says about `source`, were it at `path`."""
    command = [
        str(BIN / "ruff"),
        "check",
        "--no-cache",
        "--output-format=concise",
        "--stdin-filename",
        path,
        "-",
    ]
    ended = subprocess.run(
        command, input=source, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    return ended.stdout


@pytest.mark.parametrize(
    "source",
    [
        "import time\n\nNOW = time.time()\n",
        "from time import monotonic\n\nNOW = monotonic()\n",
        "import random\n\nCHANCE = random.random()\n",
        "from random import random\n\nCHANCE = random()\n",
        "from datetime import UTC, datetime\n\nNOW = datetime.now(UTC)\n",
        "import secrets\n\nKEY = secrets.token_bytes(8)\n",
        "import os\n\nKEY = os.urandom(8)\n",
        "import asyncio\n\nLOOP = asyncio.new_event_loop()\n",
    ],
)
def test_the_core_has_no_clock_no_chance_and_no_loop(source: str) -> None:
    assert "TID251" in ruff("dispatcher/core/somewhere.py", source)
    assert "TID251" not in ruff("dispatcher/somewhere.py", source)


@pytest.mark.parametrize("path", ["dispatcher/core/somewhere.py", "dispatcher/somewhere.py"])
def test_a_task_needs_an_owner_everywhere(path: str) -> None:
    source = "import asyncio\n\n\nasync def start() -> None:\n    asyncio.create_task(start())\n"
    assert "TID251 `asyncio.create_task` is banned" in ruff(path, source)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/retry/policy.py", "import asyncio", "The core is pure"),
        ("core/retry/policy.py", "from dispatcher.telemetry.metrics import Metrics", "Imports go one way"),
        ("registry/registry.py", "from dispatcher.transport.client import Transport", "Imports go one way"),
        ("settings/groups.py", "from dispatcher.app import App", "Imports go one way"),
        ("delivery/engine.py", "import aiohttp", "aiohttp serves the API"),
        ("delivery/engine.py", "import aiokafka", "Only the adapter speaks Kafka"),
        ("stray.py", "", "Imports go one way"),
    ],
)
def test_an_import_against_the_layers_is_found_even_for_types_only(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    for file in sorted((ROOT / "dispatcher").rglob("*.py")):
        copy = tmp_path / "dispatcher" / file.relative_to(ROOT / "dispatcher")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = tmp_path / "dispatcher" / module
    before = broken.read_text() if broken.exists() else ""
    broken.write_text(
        f"{before}\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {line or 'pass'}\n"
    )
    ended = subprocess.run(
        [str(BIN / "lint-imports"), "--config", str(ROOT / ".importlinter"), "--no-cache", "--no-logo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    broken_contracts = [row for row in ended.stdout.splitlines() if row.endswith(" BROKEN")]
    assert [row for row in broken_contracts if row.startswith(contract)], ended.stdout
