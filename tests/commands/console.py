"""The installed command, run as a user runs it: a process of its own, judged by output and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

COMMAND = Path(sys.executable).with_name("dispatcher")


def environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This environment without the settings it may hold."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}


def end(process: subprocess.Popen[Any]) -> None:
    """SIGTERM, and SIGKILL where that is not heard."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(60)


def start(*arguments: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(variables),
    )


def dispatcher(
    *arguments: str, cwd: Path, stdin: str = "", **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=cwd,
        env=environment(variables),
    )
