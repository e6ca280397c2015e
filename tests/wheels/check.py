"""What an installed wheel has to do: `python tests/wheels/check.py --compiled` (or `--pure`), by the interpreter that it is installed for.

cibuildwheel runs this as its test command, and `tests/wheels` run it as well. It takes nothing from the checkout but the list of what is
compiled, and needs no package but the wheel's own.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_SHIPPED = ("py.typed", "web/index.html", "api/page/swagger-ui/LICENSE")


def compiled_modules() -> list[str]:
    """Those that `hatch_build.py` names, which needs hatchling to be imported."""
    (listed,) = [
        node.value
        for node in ast.parse((ROOT / "hatch_build.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "MODULES"
    ]
    named: tuple[str, ...] = ast.literal_eval(listed)
    return ["dispatcher." + each.removesuffix(".py").replace("/", ".") for each in named]


def wrong(*, compiled: bool) -> list[str]:
    """What is wrong with the wheel that is installed, a sentence each."""
    found = []
    package = Path(importlib.import_module("dispatcher").__file__ or "").parent
    places = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if package.parent.resolve() not in places:
        return [f"dispatcher is imported from {package}, and not from where wheels are installed"]
    found += [f"{name} is missing" for name in _SHIPPED if not (package / name).exists()]
    suffix = sysconfig.get_config_var("EXT_SUFFIX") if compiled else ".py"
    for name in compiled_modules():
        file = importlib.import_module(name).__file__ or ""
        if not file.endswith(suffix):
            found.append(f"{name} is {file}, and should end with {suffix}")
    environ = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    command = Path(sysconfig.get_path("scripts"), "dispatcher")
    with tempfile.TemporaryDirectory() as folder:
        for arguments, said in (
            (["--version"], importlib.metadata.version("webhook-dispatcher")),
            (["demo"], ""),
        ):
            ran = subprocess.run(
                [command, *arguments],
                cwd=folder,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=300,
            )
            if ran.returncode or said not in ran.stdout:
                found.append(
                    f"dispatcher {' '.join(arguments)} ended with {ran.returncode}:\n{ran.stdout[-4000:]}"
                )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="check.py", description="Check the wheel that is installed.")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--compiled", action="store_true", help="the hot path is compiled")
    kind.add_argument("--pure", action="store_true", help="nothing is")
    problems = wrong(compiled=parser.parse_args().compiled)
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"ok: {len(compiled_modules())} modules, Python {sys.version.split()[0]}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
