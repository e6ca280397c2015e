"""Compiles the hot path to C with mypyc, for a wheel that is asked to: `DISPATCHER_COMPILE=1 pip wheel .`

The daemon's own Python is what most of a delivery's time goes to after the kernel. mypyc compiles annotated
modules as they are; the wheel then has an extension module beside each of them, which Python prefers, and the
source stays where tracebacks look for it. Without a compiler, in an editable install and in any build that isn't
asked to, the same sources run as they are: slower, and the same in every other way (`tests/image/test_compiled.py`: the demo, and the
tests of the transport; `make wheels`: those of the core too, by each Python).

Only modules on the way of a delivery are compiled. What describes itself at run time to pydantic, msgspec, click or
aiohttp is not: it doesn't gain from it. Nor is a class below one that isn't compiled itself (`asyncio.Protocol`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = (
    "delivery/attempt_log.py",
    "broker/kafka/wire/bulk.py",
    "broker/partitioning.py",
    "core/attempt/encode.py",
    "core/attempt/tracing.py",
    "core/commit/commands.py",
    "core/commit/note.py",
    "core/event/decode.py",
    "core/event/moment.py",
    "core/text/times.py",
    "core/endpoint/fairness.py",
    "core/endpoint/lane.py",
    "core/endpoint/limiter.py",
    "core/endpoint/share.py",
    "core/endpoint/throughput.py",
    "core/endpoint/turns.py",
    "core/retry/records.py",
    "core/retry/generations.py",
    "core/commit/offsets.py",
    "core/commit/parked.py",
    "core/commit/replayed.py",
    "core/commit/reservation.py",
    "core/retry/policy.py",
    "core/request/build.py",
    "core/request/redirects.py",
    "core/request/results.py",
    "core/request/signing.py",
    "core/subscription/index.py",
    "core/subscription/model.py",
    "core/subscription/patterns.py",
    "core/retry/tiers.py",
    "core/endpoint/health.py",
    "core/retry/wheel.py",
    "delivery/consuming.py",
    "delivery/delivery.py",
    "delivery/endpoints.py",
    "delivery/engine.py",
    "delivery/holding.py",
    "delivery/lanes.py",
    "delivery/memory.py",
    "delivery/outcome.py",
    "delivery/parking.py",
    "delivery/returning.py",
    "delivery/sending.py",
    "delivery/settlement.py",
    "history/bounds.py",
    "history/merge.py",
    "history/sqlite/files.py",
    "history/writing.py",
    "telemetry/metrics.py",
    "telemetry/span_wire.py",
    "telemetry/tracing.py",
    "transport/client.py",
    "transport/connection.py",
    "transport/heads.py",
    "transport/pool.py",
    "transport/proxy.py",
    "transport/response.py",
    "transport/secure.py",
)

_SETUP = """\
from mypyc.build import mypycify
from setuptools import setup
setup(name="compiled", packages=[], ext_modules=mypycify({arguments!r}, opt_level="3", group_name="dispatcher"))
"""


class CompileHook(BuildHookInterface[Any]):
    """Called by hatchling for each wheel."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What an isolated build needs to compile: the compiler, and the packages that it has to see."""
        if not _asked():
            return []
        groups: dict[str, list[str]] = self.metadata.config["dependency-groups"]
        return [*groups["compile"], *self.metadata.core.dependencies]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the extension modules put into the wheel."""
        if version == "editable" or not _asked():
            return
        self._folder = tempfile.mkdtemp(prefix="dispatcher-compile-")
        for built in compile_into(Path(self.root), Path(self._folder)):
            build_data["force_include"][str(built)] = str(built.relative_to(Path(self._folder, "lib")))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """The wheel is written."""
        if folder := getattr(self, "_folder", None):
            shutil.rmtree(folder, ignore_errors=True)


def _asked() -> bool:
    return os.environ.get("DISPATCHER_COMPILE", "") not in ("", "0")


def compile_into(root: Path, folder: Path) -> list[Path]:
    """Build in `folder`; return the extension modules, below `folder/lib` as they are below the site's directory."""
    source = folder / "source"
    shutil.copytree(root / "dispatcher", source / "dispatcher", ignore=shutil.ignore_patterns("__pycache__"))
    # The project's own configuration is for checking, with plugins that have nothing to do here. A package without
    # types is let pass; one that isn't installed is an error: mypyc would make other code of what imports it. But for the one module that
    # imports OpenTelemetry's packages, which are an extra: nothing compiled asks it for anything.
    settings = source / "mypy.ini"
    settings.write_text(
        "[mypy]\ndisable_error_code = import-untyped\n[mypy-dispatcher.telemetry.otlp]\nfollow_imports = skip\n"
    )
    arguments = [f"--config-file={settings}", *(f"dispatcher/{module}" for module in MODULES)]
    (source / "setup.py").write_text(_SETUP.format(arguments=arguments))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(folder / "lib")]
    ran = subprocess.run(  # noqa: S603 - our own interpreter and file
        [*command, "--build-temp", str(folder / "temp")],
        cwd=source,
        env={**os.environ, "CFLAGS": f"{os.environ.get('CFLAGS', '')} -g0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        said = (ran.stdout + ran.stderr).strip()[-4000:]
        raise RuntimeError(
            f"the hot path could not be compiled (DISPATCHER_COMPILE=0 leaves it as it is):\n{said}"
        )
    return sorted((folder / "lib").rglob(f"*{sysconfig.get_config_var('EXT_SUFFIX')}"))
