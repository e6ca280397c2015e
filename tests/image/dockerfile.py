"""Runs the steps of our Dockerfile without a container engine: each stage in a directory of its own.

A step sees what the image would have at that point and nothing else: the base's Python without any package, a few
tools of the base, and what the steps before it have made. Absolute paths of the Dockerfile lie below one directory, the
same for each stage, as they are the same in the image: a virtual environment that is copied stays valid.

Rules:

1. A step gets the environment that the Dockerfile gives it, and how this machine reaches the package index (`_INDEX`).
2. `apt-get install` installs nothing: it makes this machine's own commands visible for the stage (`_PACKAGES`). A package that
   isn't listed there fails.
3. An instruction that this module doesn't know fails, instead of being passed over.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

_TOOLS: Final = (
    "sh",
    "env",
    "mkdir",
    "rm",
    "cp",
    "mv",
    "ln",
    "cat",
    "chmod",
    "uname",
    "ls",
    "dirname",
    "basename",
)
_FOLDERS: Final = ("etc", "opt", "usr", "var/lib")
_PACKAGES: Final[Mapping[str, tuple[str, ...]]] = {
    "gcc": ("*gcc", "cc", "as", "ld", "ar", "ranlib", "nm", "strip", "objdump"),
    "libc6-dev": (),  # headers: they lie where the compiler finds them by itself
}
_INDEX: Final = re.compile(
    r"PIP_(?!NO_CACHE_DIR|DISABLE).*|SSL_CERT_.*|REQUESTS_CA_BUNDLE|(?i:https?_proxy|no_proxy)|HOME"
)
_PATH: Final = re.compile(r"(?<![\w./$}-])/(?=[a-z])")
_OWN_STEPS: Final = ("FROM", "ARG", "ENV", "WORKDIR", "RUN", "COPY")
_CONFIGURATION: Final = ("USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD")


@dataclass
class Stage:
    """One `FROM` and what follows it, as (instruction, what stands behind it)."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def said(self, instruction: str) -> str:
        """The one instruction of this name."""
        (found,) = [rest for name, rest in self.steps if name == instruction]
        return found


def parse(text: str) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for instruction, rest in _instructions(text):
        if instruction not in _OWN_STEPS + _CONFIGURATION:
            raise ValueError(f"the test knows no {instruction}")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stages.append(Stage(name or str(len(stages)), base))
        elif stages:
            stages[-1].steps.append((instruction, rest))
        else:
            name, _, value = rest.partition("=")
            arguments[name] = value
    return arguments, stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = (line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#"))
    for line in lines:
        whole = line
        while whole.endswith("\\"):
            whole = f"{whole[:-1].rstrip()} {next(lines).strip()}"
        instruction, _, rest = whole.strip().partition(" ")
        yield instruction.upper(), rest.strip()


def context(root: Path, target: Path) -> None:
    """Copy what `.dockerignore` leaves of the build context. It knows `*`, `!name` and `**/name`, which is what ours has."""
    kept: list[str] = []
    never: list[str] = []
    for line in (root / ".dockerignore").read_text().splitlines():
        match line.strip():
            case "" | "*":
                continue
            case named if named.startswith("!"):
                kept.append(named[1:])
            case named if named.startswith("**/"):
                never.append(named[3:])
            case named if not named.startswith("#"):
                raise ValueError(f".dockerignore: the test knows no {named}")
    target.mkdir()
    for name in kept:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns(*never))
        else:
            shutil.copy(source, target / name)


class Built:
    """What came out: the last stage's files at `root`, and how it would be run."""

    def __init__(self, root: Path, stage: Stage, environ: Mapping[str, str], folder: Path) -> None:
        self.root = root
        self.stage = stage
        self.environ = dict(environ)
        self.folder = folder  # the stages' working directory, outside of any image

    @property
    def user(self) -> tuple[int, int]:
        """Numeric user and group: Kubernetes' `runAsNonRoot` can't judge a name."""
        user, _, group = self.stage.said("USER").partition(":")
        return int(user), int(group)

    @property
    def workdir(self) -> Path:
        return self.inside(self.stage.said("WORKDIR"))

    @property
    def command(self) -> list[str]:
        """ENTRYPOINT and CMD."""
        return [*json.loads(self.stage.said("ENTRYPOINT")), *json.loads(self.stage.said("CMD"))]

    @property
    def healthcheck(self) -> list[str]:
        found: list[str] = json.loads(self.stage.said("HEALTHCHECK").partition("CMD ")[2])
        return found

    def inside(self, path: str) -> Path:
        """Where the image's `path` is on this machine."""
        return self.root / path.lstrip("/")


class Build:
    """Runs the stages one after another in `folder`."""

    def __init__(self, project: Path, folder: Path) -> None:
        self._root = folder / "root"
        self._folder = folder
        self._context = folder / "context"
        context(project, self._context)
        self._arguments, self.stages = parse((project / "Dockerfile").read_text())

    def run(self) -> Built:
        """Every stage; CalledProcessError for a step that fails, with what it said."""
        environ: dict[str, str] = {}
        for stage in self.stages:
            environ = self._stage(stage)
            if stage is not self.stages[-1]:
                self._root.rename(self._folder / stage.name)
        return Built(self._root, self.stages[-1], environ, self._folder)

    def _stage(self, stage: Stage) -> dict[str, str]:
        if _filled(stage.base, self._arguments) not in {
            _filled(s.base, self._arguments) for s in self.stages[:1]
        }:
            raise ValueError("the stages have different bases: the virtual environment would not fit")
        tools = self._folder / f"tools-{stage.name}"
        tools.mkdir()
        _base(tools)
        for name in _FOLDERS:
            (self._root / name).mkdir(parents=True)
        environ = {"PATH": str(tools), "LANG": "C.UTF-8"}
        arguments: dict[str, str] = {}
        workdir = self._root
        for instruction, rest in stage.steps:
            match instruction:
                case "ARG":
                    name, _, value = rest.partition("=")
                    arguments[name] = value or self._arguments.get(name, "")
                case "ENV":
                    for name, value in re.findall(r"(\w+)=(\S+)", rest):
                        environ[name] = _filled(self._here(value), environ)
                case "WORKDIR":
                    workdir = self._root / rest.lstrip("/")
                    workdir.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(rest, workdir)
                case "RUN":
                    index = {name: value for name, value in os.environ.items() if _INDEX.fullmatch(name)}
                    given = {**index, **environ, **arguments}
                    given.pop(
                        "PIP_NO_CACHE_DIR", None
                    )  # about the image's size; here it would fetch all of it each time
                    ran = subprocess.run(
                        ["sh", "-ec", self._here(rest)],
                        cwd=workdir,
                        env=given,
                        stdin=subprocess.DEVNULL,
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    if ran.returncode:
                        raise StepFailed(stage.name, rest, ran.stdout + ran.stderr)
        return environ

    def _here(self, text: str) -> str:
        """The Dockerfile's absolute paths as this machine's."""
        return _PATH.sub(f"{self._root}/", text)

    def _copy(self, rest: str, workdir: Path) -> None:
        *sources, target = rest.split()
        origin = self._context
        if sources[0].startswith("--from="):
            origin = self._folder / sources.pop(0).removeprefix("--from=")
        to = self._root / target.lstrip("/") if target.startswith("/") else workdir / target
        for source in sources:
            found = origin / source.lstrip("/")
            if found.is_dir():
                shutil.copytree(found, to, symlinks=True, dirs_exist_ok=True)
            elif target.endswith("/") or to.is_dir():
                shutil.copy(found, to)
            else:
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(found, to)


class StepFailed(Exception):
    """A RUN of the Dockerfile ended with an error."""

    def __init__(self, stage: str, step: str, said: str) -> None:
        super().__init__(f"stage {stage}: RUN {step}\n{said[-6000:]}")


def _filled(text: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\$\{?(\w+)\}?", lambda found: values.get(found[1], ""), text)


def interpreter() -> Path:
    """The Python below any virtual environment."""
    return Path(sys._base_executable).resolve()  # type: ignore[attr-defined] # says what venv itself asks for


def _base(tools: Path) -> None:
    """The commands that the base image has."""
    _script(
        tools / "python", f'exec {interpreter()} "$@"'
    )  # by its own name, which a virtual environment remembers
    for name in _TOOLS:
        found = shutil.which(name, path=os.defpath)
        assert found is not None, name
        (tools / name).symlink_to(found)
    chown = shutil.which("chown", path=os.defpath)
    _script(tools / "chown", f'exec {chown} "$@"' if os.geteuid() == 0 else "exit 0")
    for package, patterns in _PACKAGES.items():
        commands = [path for folder in os.defpath.split(":") for path in _matching(Path(folder), patterns)]
        links = "\n".join(f'ln -sf {path} "{tools}/{path.name}"' for path in commands)
        _script(tools / f".apt-{package}", links or ":")
    _script(
        tools / "apt-get",
        f"""\
case "$1" in update) exit 0;; install) shift;; *) exit 100;; esac
for each in "$@"; do
  case "$each" in
    -*) ;;
    *) [ -f "{tools}/.apt-$each" ] || {{ echo "the test knows no package $each" >&2; exit 100; }}; . "{tools}/.apt-$each";;
  esac
done""",
    )


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    if folder.is_dir():
        yield from (path for path in folder.iterdir() if any(fnmatch(path.name, each) for each in patterns))


def _script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
