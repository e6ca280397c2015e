"""Which tests a compiled package is held to, and how they run where there is no package beside them.

mypyc trusts annotations, and takes some objects for others: what it makes of a module can differ from the module.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

# `tests/delivery` and `telemetry/test_tracing.py` give the engine stand-ins, which compiled code refuses by their type: those of the daemon are in their place.
SELECTED: Final[Mapping[str, Sequence[str]]] = {
    "core": ("core",),
    "transport": [f"transport/test_{name}.py" for name in ("client", "zoo", "tls", "proxy", "connection")],
    "history": ("history",),
    "telemetry": ("telemetry/test_span_wire.py",),
    "daemon": ("e2e/test_delivery.py", "e2e/test_tracing.py"),
}

_NOT_COMPILED: Final = "core/subscription/test_spec.py"
"""Of a module that isn't compiled; it looks at the slots of one that is."""


def project_in(folder: Path) -> Path:
    """A copy of the project without the package."""
    copy = folder / "project"
    copy.mkdir()
    for name in ("tests", "docs", "config"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "target"))
    for name in ("pyproject.toml", "hatch_build.py"):
        shutil.copy(ROOT / name, copy)
    return copy


def pytest_arguments(project: Path, selected: Sequence[str]) -> list[str]:
    """How these tests of the copied project are run."""
    return [
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.wheels.replacing"),
        *("-m", "not kafka and not postgres", "--rootdir", str(project), "-k", "not not_parsed_again"),
        *("--ignore", str(project / "tests" / _NOT_COMPILED)),
        *(str(project / "tests" / each) for each in selected),
    ]
