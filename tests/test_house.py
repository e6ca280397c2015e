"""The rules of the house bite: each is shown a file that breaks it."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def ruff(path: str, source: str) -> str:
    """What ruff says about `source`, were it at `path`."""
    command = [
        str(BIN / "ruff"),
        "check",
        "--no-cache",
        "--output-format=concise",
        "--stdin-filename",
        path,
        "-",
    ]
    ended = subprocess.run(
        command, input=source, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    return ended.stdout


@pytest.mark.parametrize(
    "source",
    [
        "import time\n\nNOW = time.time()\n",
        "from time import monotonic\n\nNOW = monotonic()\n",
        "import random\n\nCHANCE = random.random()\n",
        "from random import random\n\nCHANCE = random()\n",
        "from datetime import UTC, datetime\n\nNOW = datetime.now(UTC)\n",
        "import secrets\n\nKEY = secrets.token_bytes(8)\n",
        "import os\n\nKEY = os.urandom(8)\n",
        "import asyncio\n\nLOOP = asyncio.new_event_loop()\n",
    ],
)
def test_the_core_has_no_clock_no_chance_and_no_loop(source: str) -> None:
    assert "TID251" in ruff("dispatcher/core/somewhere.py", source)
    assert "TID251" not in ruff("dispatcher/somewhere.py", source)


@pytest.mark.parametrize("path", ["dispatcher/core/somewhere.py", "dispatcher/somewhere.py"])
def test_a_task_needs_an_owner_everywhere(path: str) -> None:
    source = "import asyncio\n\n\nasync def start() -> None:\n    asyncio.create_task(start())\n"
    assert "TID251 `asyncio.create_task` is banned" in ruff(path, source)


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("core/retry/policy.py", "import asyncio", "The core is pure"),
        ("core/retry/policy.py", "from dispatcher.telemetry.metrics import Metrics", "Imports go one way"),
        ("registry/registry.py", "from dispatcher.transport.client import Transport", "Imports go one way"),
        ("settings/groups.py", "from dispatcher.app import App", "Imports go one way"),
        ("delivery/engine.py", "import aiohttp", "aiohttp serves the API"),
        ("delivery/engine.py", "import aiokafka", "Only the adapter speaks Kafka"),
        ("telemetry/tracing.py", "from opentelemetry import trace", "Only the exporter's module knows"),
        ("stray.py", "", "Imports go one way"),
        ("registry/file.py", "from dispatcher.registry.registry import Registry", "No imports in circles"),
        (
            "broker/kafka/wire/unpack.py",
            "from dispatcher.broker.kafka.wire.bulk import FetchAnswer",
            "No imports in circles",
        ),
        (
            "broker/kafka/client.py",
            "from dispatcher.broker.kafka.broker import KafkaBroker",
            "No imports in circles",
        ),
        (
            "broker/sqlite/file.py",
            "from dispatcher.broker.kafka.client import mapped",
            "Neither broker adapter knows",
        ),
        ("api/keys.py", "from dispatcher.api.frame import Frame", "Inside the API"),
        ("control/log.py", "from dispatcher.control.store import ControlStore", "Inside the control plane"),
    ],
)
def test_an_import_against_the_layers_is_found_even_for_types_only(
    tmp_path: Path, module: str, line: str, contract: str
) -> None:
    for file in sorted((ROOT / "dispatcher").rglob("*.py")):
        copy = tmp_path / "dispatcher" / file.relative_to(ROOT / "dispatcher")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    broken = tmp_path / "dispatcher" / module
    before = broken.read_text() if broken.exists() else ""
    broken.write_text(
        f"{before}\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    {line or 'pass'}\n"
    )
    ended = subprocess.run(
        [str(BIN / "lint-imports"), "--config", str(ROOT / ".importlinter"), "--no-cache", "--no-logo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    broken_contracts = [row for row in ended.stdout.splitlines() if " BROKEN" in row]
    assert [row for row in broken_contracts if row.startswith(contract)], ended.stdout


def classes(package: Path) -> Iterator[tuple[Path, ast.ClassDef, str]]:
    """Every class of the package, with its file, and the line above it."""
    for file in sorted(package.rglob("*.py")):
        source = file.read_text()
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                yield file, node, lines[first - 2]


def names_that_stand_twice(package: Path) -> set[str]:
    found = Counter(node.name for _, node, _ in classes(package))
    return {name for name, count in found.items() if count > 1}


def files_that_are_too_long(package: Path) -> set[str]:
    return {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if len(file.read_text().splitlines()) > 600
    }


def classes_that_are_too_long(package: Path) -> set[str]:
    """Those of more than 300 lines, unless a comment above says why: `# Long: ...`."""
    return {
        node.name
        for _, node, above in classes(package)
        if (node.end_lineno or 0) - node.lineno >= 300 and not above.strip().startswith("# Long: ")
    }


def test_a_class_name_means_one_thing_in_the_package() -> None:
    assert names_that_stand_twice(ROOT / "dispatcher") == set()


def test_no_file_is_longer_than_600_lines() -> None:
    assert files_that_are_too_long(ROOT / "dispatcher") == set()


def test_no_class_is_longer_than_300_lines_without_a_reason() -> None:
    assert classes_that_are_too_long(ROOT / "dispatcher") == set()


def test_a_second_class_of_a_name_a_long_file_and_a_long_class_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Route: ...\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "two.py").write_text("def make():\n    class Route: ...\n")
    (tmp_path / "folder" / "three.py").write_text("class Long:\n" + "    x = 1\n" * 600)
    (tmp_path / "folder" / "four.py").write_text(
        "# Long: a table.\n@decorated\nclass Explained:\n" + "    x = 1\n" * 300
    )
    assert names_that_stand_twice(tmp_path) == {"Route"}
    assert files_that_are_too_long(tmp_path) == {"folder/three.py"}
    assert classes_that_are_too_long(tmp_path) == {"Long"}


# Who writes which state of the data path: docs/architecture.md, and the head of each room.
_ONE_WRITER = {
    "gate": "sending.py",
    "full": "settlement.py",
    "in_flight": "settlement.py",
    "bytes": "settlement.py",
    "watched": "lanes.py",
    "route": "lanes.py",
    "short": "memory.py",
    "health": "endpoints.py",
}


def writers(folder: Path, names: Collection[str]) -> set[tuple[str, str]]:
    """Which of these attributes are assigned to in which file of the folder."""
    return {
        (target.attr, file.name)
        for file in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign)
        for each in (node.targets if isinstance(node, ast.Assign) else [node.target])
        for target in ast.walk(each)
        if isinstance(target, ast.Attribute) and target.attr in names and isinstance(target.ctx, ast.Store)
    }


def reaches_into_others(folder: Path) -> set[tuple[str, str]]:
    """Private attributes that are asked of anything but `self`, by file."""
    return {
        (file.name, node.attr)
        for file in sorted(folder.glob("*.py"))
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and node.attr not in {"_replace", "_asdict", "_fields"}
        and not (isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"})
    }


def test_each_state_of_the_data_path_is_written_in_one_room() -> None:
    found = writers(ROOT / "dispatcher/delivery", _ONE_WRITER.keys())
    assert found == set(_ONE_WRITER.items())


def test_no_room_of_the_data_path_reaches_into_anothers_private_state() -> None:
    assert reaches_into_others(ROOT / "dispatcher/delivery") == set()


def test_a_second_writer_and_a_look_into_anothers_state_are_found(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("def close(self):\n    self.gate = False\n    self._gate = 1\n")
    (tmp_path / "two.py").write_text("def close(other):\n    other.gate, x = False, other._held\n")
    assert writers(tmp_path, {"gate"}) == {("gate", "one.py"), ("gate", "two.py")}
    assert reaches_into_others(tmp_path) == {("two.py", "_held")}


# Modules without tests of their own name, and why.
_WITHOUT_NAMESAKE = {
    **dict.fromkeys(("cli.py", "commands/run.py"), "run as a process: tests/commands and tests/e2e start it"),
    "core/request/results.py": "types without logic",
    "telemetry/spans.py": "types without logic",
    "transport/base.py": "a protocol",
    "transport/limits.py": "numbers; tests/transport/test_zoo.py meets each of them",
    **dict.fromkeys(
        ("api/deliveries.py", "api/history_events.py", "api/history_models.py", "control/history.py"),
        "tests/api/test_authorization.py and tests/api/test_schema.py ask them over HTTP",
    ),
    **dict.fromkeys(
        (
            "history/base.py",
            "history/merge.py",
            "history/questions.py",
            "history/writing.py",
            "history/sqlite/day_file.py",
            "history/sqlite/files.py",
            "history/postgres/migrations.py",
            "history/postgres/store.py",
            "history/postgres/sums.py",
            "history/postgres/writer.py",
        ),
        "tests/history/conformance runs them, on both stores",
    ),
    **dict.fromkeys(
        ("history/following.py", "history/sharing.py"), "tests/history/test_indexer.py runs them"
    ),
    "control/interventions.py": "tests/api/test_interventions.py commands over HTTP",
    "history/rebuilding.py": "tests/commands/test_history.py runs it",
}


def modules_without_namesake(package: Path, tests: Path) -> set[str]:
    """Modules of the package, by path, that have no test file of their name in their folder of the tests."""
    modules = {file.relative_to(package) for file in package.rglob("*.py") if not file.name.startswith("__")}
    return {
        str(module) for module in modules if not (tests / module.with_name(f"test_{module.name}")).exists()
    }


def test_every_module_has_its_test_file_or_a_reason_for_none() -> None:
    without = modules_without_namesake(ROOT / "dispatcher", ROOT / "tests")
    assert without - _WITHOUT_NAMESAKE.keys() == set(), "make tests/<folder>/test_<module>.py"
    assert {module for module in _WITHOUT_NAMESAKE if not (ROOT / "dispatcher" / module).exists()} == set()


def test_a_module_without_its_test_file_is_found(tmp_path: Path) -> None:
    for file in (
        "package/folder/one.py",
        "package/two.py",
        "package/__init__.py",
        "tests/folder/test_one.py",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("")
    assert modules_without_namesake(tmp_path / "package", tmp_path / "tests") == {"two.py"}
