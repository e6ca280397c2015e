"""The documentation names things that are there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from dispatcher.cli import main
from dispatcher.core.request.results import Reason
from dispatcher.settings.load import names
from dispatcher.telemetry.metrics import _COUNTERS, _GAUGES, _HISTOGRAMS, _VALUES, Metrics
from tests.mutants import names_in

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], key=str)


def slug(heading: str) -> str:
    """A heading's anchor, as the forges make it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            assert anchor in map(slug, re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)), target


def texts() -> dict[str, str]:
    """Every file of the project that people read or write, by path. Results of benchmarks name what they were measured with."""
    found = {}
    for folder in ("", "benchmarks", "config", "dispatcher", "docs", "tests"):
        paths = (ROOT / folder).rglob("*") if folder else ROOT.iterdir()
        for path in paths:
            kept = not {"target", "page", "__pycache__"}.intersection(path.parts) and path.is_file()
            if kept and path.suffix in {
                ".md",
                ".py",
                ".yaml",
                ".yml",
                ".toml",
                ".ini",
                ".sh",
                ".service",
                "",
            }:
                found[str(path.relative_to(ROOT))] = path.read_text(errors="replace")
    return found


def test_every_document_that_a_file_names_is_in_the_tree() -> None:
    there = {path.relative_to(ROOT) for path in ROOT.rglob("*.md") if ".venv" not in path.parts}
    ends = {"/".join(path.parts[-number:]) for path in there for number in range(1, len(path.parts) + 1)}
    missing = {
        (path, name)
        for path, text in texts().items()
        for name in re.findall(
            r"(?<![\w/.*-])(?:\.\./)*((?:[\w-]+/)*[\w-]+\.md)\b", re.sub(r"https?://\S+", "", text)
        )
        if name not in ends
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for file, name in re.findall(r"`(?:tests/)?([\w/]*test_\w+\.py)(?:::(\w+))?`", page.read_text()):
        path = ROOT / "tests" / file
        assert path.exists(), file
        if name:
            assert name in names_in(path), f"{file}::{name}"


def test_the_files_and_folders_that_the_architecture_page_names_are_there() -> None:
    named = re.findall(r"`((?:[\w]+/)+|(?:[\w]+/)*[\w]+\.py)`", (ROOT / "docs/architecture.md").read_text())
    missing = {
        name for name in named if not any((root / name).exists() for root in (ROOT, ROOT / "dispatcher"))
    }
    assert missing == set()
    folders = {path.name for path in (ROOT / "dispatcher").iterdir() if (path / "__init__.py").exists()}
    assert {
        folder for folder in folders if f"`{folder}/`" not in (ROOT / "docs/architecture.md").read_text()
    } == set()


def test_every_direct_dependency_has_its_reason_and_no_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {*project["project"]["dependencies"]}
    wanted |= {entry for extra in project["project"]["optional-dependencies"].values() for entry in extra}
    for group in project["dependency-groups"].values():
        wanted |= {entry for entry in group if isinstance(entry, str)}  # some are in two groups
    listed = re.findall(
        r"^\| (?!package )([a-z].*?) \|", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    assert sorted(name for row in listed for name in row.split(", ")) == sorted(
        re.split(r"[><=~! \[]", entry)[0] for entry in wanted
    )


def known_metrics() -> set[str]:
    return {
        sample
        for family in Metrics(CollectorRegistry()).collect()
        for sample in (family.name, f"{family.name}_total")
    }


AUDITED = {"subscription.create"}  # what the audit calls an action, and no setting


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_metrics_that_a_page_names_exist(page: Path) -> None:
    named = set(re.findall(r"\bdispatcher_[a-z_]+[a-z](?![a-z_*/])", page.read_text()))
    parts = {f"{name}_{part}" for name in known_metrics() for part in ("bucket", "count", "sum")}
    assert named - known_metrics() - parts == set()


def test_the_page_of_metrics_has_every_metric_with_its_labels() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    told = dict(re.findall(r"^\| `dispatcher_(\w+)` \| (.*?) \|", text, re.MULTILINE))
    labels = {name: ", ".join(labels) for name, (labels, _) in {**_COUNTERS, **_GAUGES}.items()}
    labels |= dict.fromkeys(_HISTOGRAMS, "(histogram)") | {"build_info": "version, python"}
    assert told == labels


def test_the_page_of_metrics_has_every_word_that_a_label_can_be() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    words = {*map(str, Reason)}
    for counter in ("deliveries_total", "deliveries_parked_total"):
        words |= {word for labels in _VALUES[counter] for word in labels}
    assert {word for word in words if f"`{word}`" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_and_commands_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    groups = {name.partition(".")[0] for name in names() if "." in name}
    written = re.findall(rf"`((?:{'|'.join(groups)})\.[a-z_]+)[`:]", text)
    written = [name for name in written if not name.endswith(".py") and name not in AUDITED]
    assert set(written) - set(names()) == set()
    variables = set(re.findall(r"\bDISPATCHER_[A-Z_]+", text)) - {
        "DISPATCHER_TEST_COLLECTOR",
        "DISPATCHER_TEST_EXPLORE",
        "DISPATCHER_TEST_HELM",
        "DISPATCHER_TEST_IMAGE",
        "DISPATCHER_TEST_KAFKA",
        "DISPATCHER_TEST_LONG",
        "DISPATCHER_TEST_SCREENSHOTS",
        "DISPATCHER_TEST_TRANSCRIPTS",
        "DISPATCHER_TEST_UPGRADE",
        "DISPATCHER_TEST_WHEELS",
        "DISPATCHER_CONFIG",
        "DISPATCHER_API_URL",
        "DISPATCHER_API_KEY",
    }
    assert variables - {"DISPATCHER_" + name.upper().replace(".", "__") for name in names()} == set()
    commands = set(re.findall(r"(?:^|`| )dispatcher ([a-z]+(?:-[a-z]+)?)(?= -|`| --|$)", text, re.MULTILINE))
    assert {command for command in commands if f"`dispatcher {command}" in text} - set(main.commands) == set()
