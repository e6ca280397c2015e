"""Every command in the docs is run by a test, or its page says why it isn't; and none names an option that isn't there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from itertools import pairwise

import click
import pytest
import yaml

from dispatcher.cli import main
from tests.docs_commands import blocks
from tests.docs_commands.blocks import (
    ROOT,
    RUN_ELSEWHERE,
    Block,
    blocks_of,
    notes_in,
    pages,
    shell_blocks,
    words,
)
from tests.mutants import names_in

PAGES = pages()


@pytest.mark.parametrize("page", PAGES)
def test_each_fence_says_what_it_shows(page: str) -> None:
    """What is no block of commands has a language: otherwise it would be run."""
    text = (ROOT / page).read_text()
    found = list(blocks_of(page, text))
    assert {block.language for block in found} <= blocks.SHELL | blocks.OTHERS
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(found)
    for block in found:
        if block.language in blocks.SHELL:
            checked = subprocess.run(
                ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
            )
            assert checked.returncode == 0, f"{block.name}: {checked.stderr}"


@pytest.mark.parametrize("page", PAGES)
def test_a_block_that_is_not_run_says_why_and_whoever_runs_it_elsewhere_reads_the_page(page: str) -> None:
    text = (ROOT / page).read_text()
    found = shell_blocks(page)
    assert sum(len(block.notes) for block in found) == notes_in(text), (
        "a note stands above no block of commands"
    )
    for block in found:
        called = {blocks.first_word(command) for command in block.commands}
        assert set(block.notes) - {""} <= called, f"{block.name}: a note names a command that isn't there"
        if block.elsewhere is not None:
            assert not block.notes, f"{block.name} is run elsewhere, and its note says that it isn't"
            file, _, name = block.elsewhere.partition("::")
            path = ROOT / "tests" / file
            assert name in names_in(path), block.elsewhere
            assert page.rpartition("/")[2] in path.read_text(), f"{block.elsewhere} does not read {page}"


def test_what_is_said_to_run_elsewhere_is_on_its_page() -> None:
    there = {(page, block.commands[0]) for page in PAGES for block in shell_blocks(page)}
    assert set(RUN_ELSEWHERE) - there == set()


TEXT = """\
```
one --option   # with a comment
# a comment alone
two \\
  --further 'a
b' && three
cat > file <<END
four
END
```

<!-- not run: it needs the moon -->
```sh
five
```

1. In a list:

   <!-- not run (six): it comes with Kafka -->
   ```
   six
   VARIABLE=1 seven
   ```

```text
|
```
"""


def test_blocks_commands_and_notes_are_read() -> None:
    one, two, three, drawing = blocks_of("page", TEXT)
    assert (one.name, drawing.name) == ("page:1", "page:25")
    assert [command.partition("\n")[0] for command in one.commands] == [
        "one --option   # with a comment",
        "two \\",
        "cat > file <<END",
    ]
    assert [list(block.notes.items()) for block in (one, two, three)] == [
        [],
        [("", "it needs the moon")],
        [("six", "it comes with Kafka")],
    ]
    assert [block.run for block in (two, three)] == [[], ["VARIABLE=1 seven"]]
    assert one.run == one.commands
    assert notes_in(TEXT) == 2


def test_a_command_without_an_end_is_found() -> None:
    with pytest.raises(ValueError, match="no end"):
        _ = Block("page", 1, "", "one 'two\n", {}).commands


def told(word: str) -> list[str]:
    """Every command of all pages that calls this, also those that aren't run."""
    found = [command for page in PAGES for block in shell_blocks(page) for command in block.commands]
    return [command for command in found if blocks.first_word(command) == word]


def test_the_values_that_helm_is_given_are_the_charts() -> None:
    values = yaml.safe_load((ROOT / "config/helm/dispatcher/values.yaml").read_text())
    commands = told("helm")
    assert len(commands) > 1
    for command in commands:
        given = words(command)
        assert (ROOT / given[3] / "Chart.yaml").exists()
        for option, value in pairwise(given):
            if option == "--set":
                at = values
                for name in value.partition("=")[0].split("."):
                    assert name in at, f"{value} of `{command}`"
                    at = at[name]


def test_the_files_and_services_that_compose_is_given_are_there() -> None:
    commands = told("docker")
    composed = [words(command) for command in commands if "compose" in command]
    assert len(composed) > 2
    for given in composed:
        services = yaml.safe_load((ROOT / given[3]).read_text())["services"]
        verb, *rest = given[4:]
        if verb in {"exec", "logs"}:
            assert rest[0] in services


def unknown(command: str) -> str | None:
    """What a command line of ours names that isn't there: a command or an option."""
    _, *rest = words(command)
    at: click.Command = main
    for word in rest:
        if word.startswith("-") and len(word) > 1:
            option = word.partition("=")[0]
            known = {name for each in at.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
            if option not in known:
                return f"{command}: there is no option {option}"
        elif isinstance(at, click.Group):
            alternatives = [at.commands.get(each) for each in word.split("|")]
            if None in alternatives:
                return f"{command}: there is no command {word}"
            at = alternatives[0] or at
    return None


def called(text: str) -> Iterator[str]:
    """Command lines of ours in a page: in its blocks, and between backquotes."""
    for block in blocks_of("", text):
        if block.language in blocks.SHELL:
            for command in block.commands:
                line = command.replace("\\\n", " ").rpartition("exec dispatcher ")[
                    2
                ]  # compose names the service
                if blocks.first_word(line) == "dispatcher":
                    yield re.split(r"[|&;<>]", line[line.index("dispatcher ") :])[0]
    prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`(dispatcher [a-z][^`\n]*)`", prose)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_and_options_that_a_page_names_exist(page: str) -> None:
    wrong = [unknown(command) for command in called((ROOT / page).read_text())]
    assert [each for each in wrong if each] == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("dispatcher topics --sampel x", "no option --sampel"),
        ("dispatcher topic", "no command topic"),
        ("dispatcher replays begin", "no command begin"),
        ("dispatcher run --roles deliver", None),
    ],
)
def test_a_command_or_option_that_is_not_there_is_found(command: str, said: str | None) -> None:
    found = unknown(command)
    assert found is None if said is None else said in str(found)
