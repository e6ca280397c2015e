"""Every line in one shape, whoever wrote it."""

from __future__ import annotations

import json
import logging
from typing import Any

import orjson
import pytest
import structlog

from dispatcher.settings.groups import LogSettings
from dispatcher.telemetry.logs import configure


def test_our_lines_and_the_libraries_are_json_objects_with_the_same_keys(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(LogSettings(format="json"))
    structlog.get_logger("dispatcher.delivery.engine").warning(
        "attempt failed", attempt=3, result="status 500"
    )
    logging.getLogger("aiokafka.conn").error("connection to %s lost", "broker-1")
    ours, theirs = (orjson.loads(line) for line in capsys.readouterr().err.splitlines())
    assert ours["message"] == "attempt failed"
    assert (ours["attempt"], ours["result"], ours["level"]) == (3, "status 500", "warning")
    assert theirs["message"] == "connection to broker-1 lost"
    assert ours.keys() - {"attempt", "result"} == theirs.keys() == {"message", "level", "logger", "timestamp"}


def test_an_exception_is_part_of_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))

    def fail() -> None:
        raise ValueError("with\nlines")

    try:
        fail()
    except ValueError:
        structlog.get_logger("x").exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    assert "with\\nlines" in line
    assert orjson.loads(line)["exception"]


@pytest.mark.parametrize("shape", ["json", "console"])
def test_a_traceback_shows_no_locals(capsys: pytest.CaptureFixture[str], shape: Any) -> None:
    configure(LogSettings(format=shape))

    def fail() -> None:
        password = "hush" + "hush"
        raise ValueError(f"wrong password of {len(password)} characters")

    try:
        fail()
    except ValueError:
        structlog.get_logger("x").exception("it failed")
        logging.getLogger("library").exception("there too")
    written = capsys.readouterr().err
    assert written.count("wrong password of 8 characters") >= 2
    assert "hushhush" not in written


def test_what_is_below_the_level_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json", level="warning"))
    structlog.get_logger("x").info("too low")
    assert capsys.readouterr().err == ""


def test_values_that_json_does_not_know_are_written_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="json"))
    structlog.get_logger("x").info("odd", value=b"\xff", more={1: object})
    assert orjson.loads(capsys.readouterr().err)["value"] == "b'\\xff'"
    structlog.get_logger("x").info("odd", text="lone \ud800", number=2**80)
    assert json.loads(capsys.readouterr().err)["number"] == 2**80


def test_for_people_lines_are_plain(capsys: pytest.CaptureFixture[str]) -> None:
    configure(LogSettings(format="console"))
    structlog.get_logger("x").info("hello there", attempt=1)
    line = capsys.readouterr().err
    assert "hello there" in line
    assert "attempt=1" in line
    assert "{" not in line
