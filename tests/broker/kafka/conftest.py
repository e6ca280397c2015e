from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.broker.backends import OnKafka, OnMock
from tests.broker.kafka.api_keys import FETCH, OFFSET_COMMIT, PRODUCE
from tests.broker.kafka.secured import Secured
from tests.kafka.mock import MockCluster
from tests.kafka.server import Unavailable


@pytest.fixture
async def on_kafka(kafka: str, unique: Callable[[str], str]) -> AsyncIterator[OnKafka]:
    backend = OnKafka(unique, kafka)
    yield backend
    await backend.close_all()


@pytest.fixture
async def on_mock(mock_kafka: MockCluster, unique: Callable[[str], str]) -> AsyncIterator[OnMock]:
    backend = OnMock(unique, mock_kafka)
    yield backend
    for api_key in (PRODUCE, FETCH, OFFSET_COMMIT):
        mock_kafka.clear(api_key)
    await backend.close_all()


@pytest.fixture(scope="session")
def secured(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    # Asked for here so that a machine without Java skips, and CI fails, in one place.
    request.getfixturevalue("kafka")
    made = Secured(tmp_path_factory.mktemp("secured"))
    try:
        made.cluster.start()
    except Unavailable as error:
        pytest.skip(f"no real Apache Kafka: {error}")
    yield made
    made.cluster.stop()
