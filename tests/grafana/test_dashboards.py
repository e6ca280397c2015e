"""The dashboards name what is there. `test_queries.py` asks a real Prometheus every one of their queries."""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest

from dispatcher.telemetry.metrics import Metrics
from tests.grafana.dashboards import BOARDS, panels, queries
from tests.prometheus.test_rules import rules

each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS.keys())


def exposed() -> set[str]:
    registry = CollectorRegistry()
    Metrics(registry)
    ProcessCollector(registry=registry)
    return set(re.findall(r"^# TYPE (\w+)", generate_latest(registry).decode(), re.MULTILINE))


def test_the_boards_are_there() -> None:
    assert set(BOARDS) == {"overview", "endpoints", "retries", "runtime"}
    assert len({board["uid"] for board in BOARDS.values()}) == len(BOARDS)
    assert len(queries()) > 50


def test_the_metrics_that_queries_name_exist() -> None:
    shown = exposed()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for query in queries():
        expression = re.sub(r'"[^"]*"', "", query.expression)
        named = set(re.findall(r"(?<![:\w])(?:dispatcher|process)_\w+", expression))
        assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= shown, query
        assert set(re.findall(r"\bjob\w*:[\w:]+", expression)) <= recorded, query


def test_every_metric_of_ours_is_on_a_board() -> None:
    asked = " ".join(query.expression for query in queries())
    ours = {name for name in exposed() if name.startswith("dispatcher_")}
    assert {name for name in ours if not re.search(rf"\b{name}(?:_bucket)?\b", asked)} == set()


def test_every_query_is_about_the_replicas_that_were_chosen() -> None:
    for query in queries():
        for selector in re.findall(r"(?<![:\w])(?:dispatcher|process)_\w+(\{[^}]*\})?", query.expression):
            assert 'job=~"$job",instance=~"$instance"' in selector, query


@each_board
def test_a_panel_says_what_it_shows_in_a_unit(board: dict[str, Any]) -> None:
    for panel in panels(board):
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in panels(board)}) == len(list(panels(board)))


@each_board
def test_no_panel_lies_on_another(board: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    for place in places:
        assert place["x"] + place["w"] <= 24
    for one, two in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= two["x"]
            or two["x"] + two["w"] <= one["x"]
            or one["y"] + one["h"] <= two["y"]
            or two["y"] + two["h"] <= one["y"]
        )
        assert apart, (one, two)


@each_board
def test_variables_that_are_used_are_defined(board: dict[str, Any]) -> None:
    defined = {variable["name"] for variable in board["templating"]["list"]}
    used = {
        name
        for panel in panels(board)
        for target in panel["targets"]
        for name in re.findall(r"\$\{?(\w+)", target["expr"] + target["datasource"]["uid"])
        if not name.startswith("__")
    }
    assert used <= defined
