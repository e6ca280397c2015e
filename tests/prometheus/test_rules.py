"""The rules of config/prometheus: Prometheus' own checker and its unit tests, and what they name exists."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from dispatcher.telemetry.metrics import Metrics
from tests.test_docs import slug

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "config" / "prometheus").glob("*.yaml"))
TESTS = Path(__file__).with_name("alerts_test.yaml")


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail("no promtool (Debian: prometheus)", pytrace=False)
        pytest.skip("NOT TESTED: the rules of Prometheus; promtool is missing (Debian: prometheus)")
    return found


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for file in RULES
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def run(*command: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def exposed() -> str:
    """What a process shows before anything has happened."""
    registry = CollectorRegistry()
    Metrics(registry)
    ProcessCollector(registry=registry)
    return generate_latest(registry).decode()


def test_promtool_finds_the_rules_right(promtool: str) -> None:
    checked = run(promtool, "check", "rules", "--lint-fatal", *map(str, RULES))
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_fires_for_what_it_is_for(promtool: str) -> None:
    tested = run(promtool, "test", "rules", str(TESTS))
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_the_unit_tests_notice_a_wrong_rule(promtool: str, tmp_path: Path) -> None:
    """Retry topics in the lag, and a burst that is passed over: both have to be found."""
    for rule in RULES:
        shutil.copy(rule, tmp_path)
    unit = tmp_path / TESTS.name
    unit.write_text(TESTS.read_text().replace("../../config/prometheus/", ""))
    recording, alerting = tmp_path / "recording.yaml", tmp_path / "alerts.yaml"
    for file, right, wrong in (
        (recording, '{topic!~".*retry\\\\.[0-9]+(ms|s|m|h|d)"}', ""),
        (
            alerting,
            "increase(dispatcher_dead_letters_total[1h])) > 0",
            "rate(dispatcher_dead_letters_total[1h])) > 1",
        ),
    ):
        text = file.read_text()
        assert right in text
        file.write_text(text.replace(right, wrong))
        assert run(promtool, "test", "rules", str(unit)).returncode != 0
        file.write_text(text)
    assert run(promtool, "test", "rules", str(unit)).returncode == 0


def test_promtool_has_nothing_to_say_of_the_metrics(promtool: str) -> None:
    checked = run(promtool, "check", "metrics", text=exposed())
    # The collector of process_* and its names are the Prometheus client's.
    said = [line for line in checked.stderr.splitlines() if not line.startswith("process_")]
    assert said == []


def test_the_metrics_that_the_rules_name_exist() -> None:
    shown = set(re.findall(r"^# TYPE (\w+)", exposed(), re.MULTILINE))
    shown |= {f"{name}_{part}" for name in shown for part in ("bucket", "count", "sum")}
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        expression = re.sub(r'"[^"]*"', "", rule["expr"])
        named = set(re.findall(r"(?<![:\w])dispatcher_\w+", expression))
        assert named <= shown, rule
        assert set(re.findall(r"\bjob\w*:[\w:]+", expression)) <= recorded, rule


def test_every_alert_leads_to_a_section_of_the_operations_page_and_is_tested() -> None:
    headings = set(
        map(slug, re.findall(r"^#+ (.*)$", (ROOT / "docs/operations.md").read_text(), re.MULTILINE))
    )
    tested = set(re.findall(r"\bDispatcher\w+", TESTS.read_text()))
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in headings, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        if "Budget" not in rule["alert"]:
            assert rule["alert"] in tested
    assert {"DispatcherSuccessBudgetFast", "DispatcherLatenessBudgetSteady"} <= tested
