"""Fixtures that several suites share: a real Kafka, librdkafka's mock of one, a real PostgreSQL, and names nobody else uses.

A real Kafka is started once per run, and only if a test asks for it. `DISPATCHER_TEST_KAFKA=host:port` uses one
that runs already. Without Java or Maven those tests are skipped, and the end of the run says so; with
`CI=true` that is a failure. Likewise PostgreSQL, and `DISPATCHER_TEST_POSTGRES=postgresql://user:password@host/database`.
"""

from __future__ import annotations

import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.kafka import mock
from tests.kafka.server import Cluster, Unavailable
from tests.postgres import server as postgresql

# The same examples each time, so that a run says something about the change that was made, and without a deadline: how long
# an example takes says something about the machine. DISPATCHER_TEST_EXPLORE=1 looks for new ones.
settings.register_profile(
    "dispatcher", derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile("explore" if os.environ.get("DISPATCHER_TEST_EXPLORE") else "dispatcher")

_absent = pytest.StashKey[dict[str, str]]()


def _without(request: pytest.FixtureRequest, what: str, why: str) -> NoReturn:
    request.config.stash.setdefault(_absent, {})[what] = why
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"no {what}: {why}", pytrace=False)
    pytest.skip(f"no {what}: {why}")


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[str]:
    """`host:port` of a real Apache Kafka."""
    if given := os.environ.get("DISPATCHER_TEST_KAFKA"):
        yield given
        return
    cluster = Cluster()
    try:
        cluster.start()
    except Unavailable as error:
        _without(request, "real Apache Kafka", str(error))
    try:
        yield cluster.bootstrap
    finally:
        cluster.stop()


@pytest.fixture
def kafka_cluster(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cluster]]:
    """Starts clusters of this test's own: to be killed and started again."""
    clusters: list[Cluster] = []

    def start(*args: object, **options: object) -> Cluster:
        cluster = Cluster(*args, **options)  # type: ignore[arg-type] # passed on
        clusters.append(cluster)
        try:
            cluster.start()
        except Unavailable as error:
            _without(request, "real Apache Kafka", str(error))
        return cluster

    yield start
    for cluster in clusters:
        cluster.stop()


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a database in a real PostgreSQL. Tests make schemas of their own in it."""
    if given := os.environ.get("DISPATCHER_TEST_POSTGRES"):
        yield given
        return
    server = postgresql.Server(["fsync=off"])
    try:
        server.start()
    except postgresql.Unavailable as error:
        _without(request, "real PostgreSQL", str(error))
    try:
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def mock_kafka(request: pytest.FixtureRequest) -> Iterator[mock.MockCluster]:
    """librdkafka's mock cluster: the real wire format, groups of one member, no admin requests."""
    cluster = mock.MockCluster()
    try:
        cluster.start()
    except mock.Unavailable as error:
        _without(request, "librdkafka", str(error))
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Commands and benchmarks configure the whole process. A test must not choose what the next one's logs show."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


_numbers = itertools.count(1)


@pytest.fixture
def unique() -> Callable[[str], str]:
    """Makes names that no other test, run or process uses."""
    return lambda prefix: f"{prefix}-{uuid.uuid4().hex[:8]}-{next(_numbers)}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {"kafka", "kafka_cluster"}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("kafka")
        if "postgres" in getattr(item, "fixturenames", ()):
            item.add_marker("postgres")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for what, why in terminalreporter.config.stash.get(_absent, {}).items():
        skipped = [
            report.nodeid
            for report in terminalreporter.stats.get("skipped", [])
            if what in str(report.longrepr)
        ]
        terminalreporter.section(f"NOT TESTED: no {what}", red=True, bold=True)
        terminalreporter.line(f"{why}. {len(skipped)} tests were skipped:")
        for nodeid in skipped:
            terminalreporter.line(f"  {nodeid}")


_IN_MEMORY: Final = ("delivery", "control", "replays")
"""Folders whose tests on virtual time have nothing outside: no socket, and no thread but the executor's, which looptime waits for."""


def pytest_itemcollected(item: pytest.Item) -> None:
    """Don't wait where there is nothing to wait for.

    Before virtual time moves, looptime turns the loop 42 times, in case that something comes from outside. That would be nine tenths
    of the time of tests in which nothing can.
    """
    folder = item.path.relative_to(Path(__file__).parent).parts[0]
    if (folder in _IN_MEMORY or folder.endswith(".py")) and item.get_closest_marker("looptime") is not None:
        item.add_marker(pytest.mark.looptime(noop_cycles=1))
