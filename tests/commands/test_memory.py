"""What the process asks of glibc before it runs."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of a fetch's size come and go, as in the daemon: 27 MiB, which glibc by itself would give back every time.
SCRIPT = """
import resource
from dispatcher.commands import run

if {kept}:
    run._keep_freed_memory()
faults = []
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [b"x" * (9 << 20) for _ in range(3)]
    del blocks
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has no mallopt")
def test_memory_of_fetches_is_not_asked_for_again_and_again() -> None:
    def faults(*, kept: bool) -> int:
        command = [sys.executable, "-c", SCRIPT.format(kept=kept)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout)

    by_itself = faults(kept=False)
    assert by_itself > 1000  # else this shows nothing
    assert faults(kept=True) < by_itself / 10
