"""A command's connection to its broker: what goes wrong is one line and an exit code."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import click
import pytest

from dispatcher.broker.base import BrokerUnavailable, TopicSpec
from dispatcher.commands.group import ConfigError
from dispatcher.commands.loop import run
from dispatcher.commands.session import connected, quiet
from dispatcher.settings.groups import Settings
from tests.ports import free_port


def test_the_brokers_errors_inside_the_block_are_the_commands(tmp_path: Path) -> None:
    async def fail(settings: Settings) -> None:
        async with connected(settings):
            raise BrokerUnavailable("it went away")

    with pytest.raises(click.ClickException, match="it went away"):
        run(fail(Settings(broker=f"sqlite:///{tmp_path}/log.db")))


def test_a_broker_that_does_not_answer_is_waited_for_as_long_as_a_person_would() -> None:
    async def ask() -> None:
        async with connected(Settings(broker=f"kafka://127.0.0.1:{free_port()}"), patience=0.01):
            pytest.fail("there is no broker")

    with pytest.raises(click.ClickException, match=r"no broker after 0\.01 s: "):
        run(ask())


def test_what_the_settings_have_wrong_is_told_from_what_failed() -> None:
    async def ask() -> None:
        async with connected(Settings(broker="sqlite:////dev/null/log.db")):
            pytest.fail("there is no such folder")

    with pytest.raises((ConfigError, click.ClickException)) as failed:
        run(ask())
    assert len(failed.value.format_message().splitlines()) == 1


def test_the_connection_is_closed_after_the_block(tmp_path: Path) -> None:
    settings = Settings(broker=f"sqlite:///{tmp_path}/log.db")

    async def twice() -> list[str]:
        for _ in range(2):  # the file has one process at a time
            async with connected(settings) as broker:
                await broker.ensure_topics([TopicSpec("events", 1, None)], create=True)
        async with connected(settings) as broker:
            return [topic.name for topic in await broker.topics("group")]

    assert asyncio.run(twice()) == ["events"]


def test_a_quiet_command_prints_nothing_of_the_libraries(capfd: pytest.CaptureFixture[str]) -> None:
    quiet()
    logging.getLogger("aiokafka").error("refused")
    assert capfd.readouterr() == ("", "")
