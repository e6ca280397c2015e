"""The fenced blocks of README and docs, and who runs each block of commands.

A fence without a language, or with `sh`, is a block of commands. Whatever else is shown has its language: `text` for drawings. Each block of commands

1. is run by `test_commands.py` as it stands on its page, unless
2. another test reads it from the page and runs it: it is listed in `RUN_ELSEWHERE`, or
3. the page says that it isn't run, and why, right above its fence: `<!-- not run: it needs a container engine -->`. Where that holds for one
   command of the block only, the command's first word is named: `<!-- not run (kafka-topics.sh): it comes with Kafka -->`.

A block that is none of these is run by `test_commands.py`, and fails there if it can't be.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]

_NIGHT: Final = "e2e/test_night.py::test_the_commands_of_the_runbook_answer_the_call"

RUN_ELSEWHERE: Final[Mapping[tuple[str, str], str]] = {
    (
        "README.md",
        "make image",
    ): "image/test_image.py::test_the_container_of_the_readme_is_ready_and_answers_whoever_has_the_key",
    (
        "docs/receivers.md",
        "id=evt_19lV",
    ): "e2e/test_verify_by_id.py::test_the_commands_verify_what_was_delivered_and_nothing_else",
    **{
        ("docs/operations.md", first): _NIGHT
        for first in (
            "export TENANT=acme                          # the customer",
            "dispatcher failing",
            "dispatcher subscriptions show $SUBSCRIPTION",
            "dispatcher failing --subscription $SUBSCRIPTION",
            "dispatcher events explain $EVENT --subscription $SUBSCRIPTION",
            "dispatcher subscriptions pause $SUBSCRIPTION",
            "dispatcher subscriptions resume $SUBSCRIPTION --catch-up",
            "dispatcher deliveries retry $DELIVERY --wait",
            "dispatcher topics --behind",
            "dispatcher cluster",
        )
    },
}
"""By page and first command: the test that takes the block from its page."""

SHELL: Final = frozenset({"", "sh"})
OTHERS: Final = frozenset({"text", "console", "json", "yaml", "python", "sql"})

_FENCE: Final = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_NOTES: Final = re.compile(r"(?:^ *<!-- [^\n]* -->\n+)+\Z", re.MULTILINE)
_NOTE: Final = re.compile(
    r"^ *<!-- not run(?: \((?P<word>[\w.-]+)\))?: (?P<reason>[^\n]+?) -->$", re.MULTILINE
)
_HERE: Final = re.compile(r"<<-?(\w+)")
_GOES_ON: Final = re.compile(r"(?:\\|&&|\|\|?)\Z")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str
    notes: Mapping[str, str]
    """Why it isn't run, by the first word of the commands that aren't; "" stands for all of them."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Each with the lines that belong to it, and without comments of whole lines."""
        return list(_commands(self.text))

    @property
    def run(self) -> list[str]:
        """The commands that are run."""
        if "" in self.notes:
            return []
        return [each for each in self.commands if first_word(each) not in self.notes]

    @property
    def elsewhere(self) -> str | None:
        """The test that runs it, as `RUN_ELSEWHERE` says."""
        return RUN_ELSEWHERE.get((self.page, self.commands[0]))


def pages() -> list[str]:
    """README, and what else there is to read."""
    return sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Every fenced block of a page's text."""
    for found in _FENCE.finditer(text):
        before = _NOTES.search(text, 0, found.start())
        notes = {each["word"] or "": each["reason"] for each in _NOTE.finditer(before[0] if before else "")}
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found["language"], textwrap.dedent(found["text"]), notes)


def shell_blocks(page: str) -> list[Block]:
    """The blocks of commands of a page."""
    found = blocks_of(page, (ROOT / page).read_text())
    return [block for block in found if block.language in SHELL]


def notes_in(text: str) -> int:
    """How many notes there are, wherever they stand."""
    return len(_NOTE.findall(text))


def words(command: str) -> list[str]:
    """The command's words, its comments left out."""
    return shlex.split(command, comments=True)


def first_word(command: str) -> str:
    """What is called, behind assignments."""
    return next((word for word in words(command) if not re.match(r"\w+=", word)), "")


def _commands(text: str) -> Iterator[str]:
    pending = ""
    for line in text.splitlines():
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        pending += f"{line}\n"
        if _complete(pending):
            yield pending.rstrip()
            pending = ""
    if pending:
        raise ValueError(f"a command has no end: {pending}")


def _complete(text: str) -> bool:
    if (here := _HERE.search(text)) is not None:
        return text.rstrip().split("\n")[-1].strip() == here[1]
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False  # inside of quotes
    return _GOES_ON.search(text.rstrip()) is None
