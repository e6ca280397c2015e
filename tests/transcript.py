"""A terminal session, kept: a real bash runs commands one after the other, and what they print can be shown as a page.

The commands of a page (`commands_of`) are what stands in its blocks without a language. `$ ` before a line, in a block of the language `console`,
is a command of a transcript, and what follows is its output.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, Self

_LIMIT = 1 << 22
_STOPS = 10.0  # seconds
_END = "```\n"


class Ran(NamedTuple):
    """A command, what it printed (standard output and error, as a terminal shows them), and its exit code."""

    command: str
    output: str
    code: int


class Shell:
    """A bash whose variables and background jobs last until it is closed. A context manager."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._folder = folder
        self._environ = environ
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *("bash", "--noprofile", "--norc"),
            cwd=self._folder,
            env=self._environ,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LIMIT,
            start_new_session=True,  # so that its jobs end with it
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                async with asyncio.timeout(_STOPS):
                    await self._process.wait()
            except (ProcessLookupError, TimeoutError):
                continue

    async def run(self, command: str, within: float = 90.0) -> Ran:
        """Wait for its end. A command in the background (`&`) goes on beside what comes next; give it a file to write to."""
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        mark = uuid.uuid4().hex
        process.stdin.write(f"{{ {command}\n}} </dev/null\nprintf '%s %s\\n' {mark} $?\n".encode())
        async with asyncio.timeout(within):
            before = await process.stdout.readuntil(mark.encode())
            code = await process.stdout.readline()
        return Ran(command, before.decode(errors="replace").removesuffix(mark), int(code))


class Transcript:
    """What was said and run, in order."""

    def __init__(self) -> None:
        self._parts: list[str | Ran] = []

    def say(self, text: str) -> None:
        """Prose, in Markdown."""
        self._parts.append(text)

    def add(self, ran: Ran) -> None:
        self._parts.append(ran)

    def markdown(self) -> str:
        """All of it; commands that follow each other share a block."""
        written: list[str] = []
        for number, part in enumerate(self._parts):
            if isinstance(part, str):
                written.append(f"{part.strip()}\n")
                continue
            continued = number > 0 and isinstance(self._parts[number - 1], Ran)
            shown = f"$ {_continued(part.command)}\n{_trimmed(part.output)}"
            block = written.pop().removesuffix(_END) if continued else "```console\n"
            written.append(f"{block}{shown}{_END}")
        return "\n".join(written)


def _continued(command: str) -> str:
    """With `> ` before what follows its first line, as a terminal has it."""
    return command.replace("\n", "\n> ")


def _trimmed(output: str) -> str:
    """Without blanks at the ends of lines, and empty lines around it."""
    lines = "\n".join(line.rstrip() for line in output.splitlines()).strip("\n")
    return f"{lines}\n" if lines else ""


def commands_in(block: str) -> list[str]:
    """The commands of a block: a line each, with the lines that a backslash or a here-document joins to it."""
    found: list[str] = []
    lines = iter(block.splitlines())
    for first in lines:
        if not first.strip() or first.lstrip().startswith("#"):
            continue
        command = first
        while command.endswith("\\"):
            command += "\n" + next(lines)
        if here := re.search(r"<<-?\s*'?(\w+)'?", command):
            for line in lines:
                command += "\n" + line
                if line == here[1]:
                    break
        found.append(command)
    return found


def blocks_of(text: str) -> list[str]:
    """What stands in blocks without a language."""
    return re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[str]:
    """All commands of a part of a page."""
    return [command for block in blocks_of(text) for command in commands_in(block)]


def run_in(page: str) -> list[str]:
    """The commands that a transcript shows."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for line in (line for block in blocks for line in block.splitlines()):
        if line.startswith("$ "):
            found.append(line.removeprefix("$ "))
        elif line.startswith("> ") and found:
            found[-1] += "\n" + line.removeprefix("> ")
    return found


def table(output: str) -> list[dict[str, str]]:
    """The rows of a table as the commands print it into a pipe, by the names of its columns."""
    head, *rest = output.splitlines()
    starts = [0, *(match.end() for match in re.finditer(r" {2,}", head.rstrip()))]
    ends = [*starts[1:], None]
    names = [head[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    return [
        {name: line[start:end].strip() for name, start, end in zip(names, starts, ends, strict=True)}
        for line in rest
        if line.strip()
    ]


def fields(output: str) -> dict[str, str]:
    """Names and values as the commands print them, one a line."""
    found = (re.split(r" {2,}", line.strip(), maxsplit=1) for line in output.splitlines())
    return {pair[0]: pair[1] for pair in found if len(pair) == 2}


def exported(commands: Iterable[str]) -> list[str]:
    """The names of the variables that they set for the commands that follow."""
    return [
        name
        for command in commands
        if command.startswith("export ")
        for name in re.findall(r"\b([A-Z_]+)=", command.partition("#")[0])
    ]
