"""A transport on uvloop, against the zoo."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from tests.zoo.harness import Harness
from tests.zoo.server import Zoo, authority


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Sockets behave as they do in production."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def ca_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


@pytest.fixture
async def zoo() -> AsyncIterator[Zoo]:
    async with Zoo() as zoo:
        yield zoo


@pytest.fixture
async def make(ca_file: str) -> AsyncIterator[Callable[..., Harness]]:
    """Makes harnesses, and closes them."""
    made: list[Harness] = []

    def make(**settings: object) -> Harness:
        harness = Harness(ca_file=ca_file, **settings)  # type: ignore[arg-type]
        made.append(harness)
        return harness

    yield make
    for harness in made:
        await harness.close()
