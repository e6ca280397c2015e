"""The systemd unit: what it starts is there, and what it may do is little."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dispatcher.cli import main
from dispatcher.runtime.service_manager import _STATUS_INTERVAL
from dispatcher.settings.groups import Settings
from tests.commands.console import COMMAND, environment

UNIT = Path(__file__).parents[2] / "config" / "systemd" / "webhook-dispatcher.service"
EXPOSURE = 15  # tenths; "OK" ends at 40
_PR_SET_MDWE = 65


def values(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail("no systemd-analyze (Debian: systemd)", pytrace=False)
        pytest.skip("NOT TESTED: the systemd unit; systemd-analyze is missing (Debian: systemd)")
    return found


def exposed(analyze: str, unit: Path) -> subprocess.CompletedProcess[str]:
    command = [analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE}", str(unit)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_unit_is_right(analyze: str, tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/dispatcher/bin/dispatcher", str(COMMAND)))
    checked = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True, check=False)
    assert (checked.returncode, unit.name in checked.stderr) == (0, False), checked.stderr


def test_the_service_may_do_little(analyze: str) -> None:
    checked = exposed(analyze, UNIT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("taken_out", ["RestrictNamespaces=yes", "CapabilityBoundingSet="])
def test_the_gate_notices_what_is_taken_out(analyze: str, tmp_path: Path, taken_out: str) -> None:
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace(f"\n{taken_out}\n", "\n"))
    assert exposed(analyze, unit).returncode != 0


def test_it_starts_a_command_of_ours_and_leaves_it_the_time_to_drain() -> None:
    assert values("Type") == ["notify"]
    assert float(values("WatchdogSec")[0]) >= 5 * _STATUS_INTERVAL
    (start,) = values("ExecStart")
    program, command = start.split()
    assert program.endswith("/bin/dispatcher")
    assert command in main.commands
    assert int(values("TimeoutStopSec")[0]) >= Settings().shutdown.drain + 5
    assert values("RestartPreventExitStatus") == ["2"]
    (state,) = values("StateDirectory")
    assert values("WorkingDirectory") == [f"/var/lib/{state}"]


def test_the_dispatcher_needs_no_memory_that_is_both_written_and_run(tmp_path: Path) -> None:
    """`MemoryDenyWriteExecute=yes`: the kernel's own form of it, which a process hands on to what it starts."""
    refused = ctypes.CDLL(None, use_errno=True)
    supported = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import ctypes, sys; sys.exit(-ctypes.CDLL(None).prctl({_PR_SET_MDWE}, 1, 0, 0, 0))",
        ],
        check=False,
    )
    if supported.returncode:
        pytest.skip("NOT TESTED: MemoryDenyWriteExecute; the kernel has no PR_SET_MDWE")
    done = subprocess.run(
        [str(COMMAND), "demo"],
        cwd=tmp_path,
        env=environment({}),
        preexec_fn=lambda: refused.prctl(_PR_SET_MDWE, 1, 0, 0, 0),
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
