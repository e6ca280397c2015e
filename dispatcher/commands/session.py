"""A broker connection for the length of one command, with its errors as one line and an exit code."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import click
import structlog

from dispatcher.broker.base import Broker, BrokerError
from dispatcher.broker.open import open_broker
from dispatcher.commands.group import ConfigError
from dispatcher.settings.groups import Settings

PATIENCE: Final = 10.0
"""Seconds to wait for a broker that doesn't answer: the daemon waits for ever, a person doesn't."""


def quiet() -> None:
    """Keep the libraries' log lines out of what the command prints: its one error line says it."""
    logging.getLogger().setLevel(logging.CRITICAL)
    logging.getLogger().addHandler(logging.NullHandler())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


@asynccontextmanager
async def connected(settings: Settings, patience: float = PATIENCE) -> AsyncIterator[Broker]:
    """The settings' broker, connected. Its errors, inside the block too, become click's."""
    try:
        broker = open_broker(settings.broker, settings.kafka, settings.sqlite)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    try:
        try:
            async with asyncio.timeout(patience):
                await broker.connect()
        except TimeoutError as error:
            problem = broker.problem or "no answer"
            raise click.ClickException(f"no broker after {patience:g} s: {problem}") from error
        yield broker
    except BrokerError as error:
        raise click.ClickException(str(error)) from error
    finally:
        await broker.close()
