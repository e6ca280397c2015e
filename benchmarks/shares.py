"""Shares of a core: processes that the kernel's CPU controller keeps from taking more than so much of one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.harness import CannotRun, wait_for

PERIOD: Final = 10_000
"""Microseconds within which the controller gives out the shares."""

_CGROUP: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class CoreShare:
    """A group of the controller; all that is in it has the share together."""

    folder: Path

    @property
    def prefix(self) -> Sequence[str]:
        """What to put before a command so that it runs in the group from its start."""
        return ["sh", "-c", f'echo $$ > {self.folder}/cgroup.procs && exec "$@"', "sh"]

    def admit(self, pid: int) -> None:
        """Put a process that runs into the group, with all of its threads."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def throttled(self) -> float:
        """In which part of the periods it was held back: about 1 where the share is what it is held to by."""
        said = dict(line.split() for line in (self.folder / "cpu.stat").read_text().splitlines())
        return int(said["nr_throttled"]) / max(int(said["nr_periods"]), 1)


@contextlib.contextmanager
def core_share(share: float) -> Iterator[CoreShare]:
    """So much of a core, until all that is in it has ended. Raises CannotRun."""
    new = _CGROUP / "cgroup.controllers"  # of version 2
    name = f"bench-{os.getpid()}-{time.monotonic_ns()}"
    made = CoreShare((_CGROUP if new.exists() else _CGROUP / "cpu") / name)
    quota = str(int(share * PERIOD))
    try:
        made.folder.mkdir()
        if new.exists():
            (made.folder / "cpu.max").write_text(f"{quota} {PERIOD}")
        else:
            (made.folder / "cpu.cfs_period_us").write_text(str(PERIOD))
            (made.folder / "cpu.cfs_quota_us").write_text(quota)
    except OSError as error:
        raise CannotRun(
            f"a share of a core can't be given out: {error} (it takes root and the CPU controller)"
        ) from error
    try:
        yield made
    finally:
        procs = made.folder / "cgroup.procs"
        wait_for(lambda: not procs.read_text().strip(), 30.0, "what has a share of a core has ended")
        made.folder.rmdir()
