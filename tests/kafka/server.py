"""A real Apache Kafka on loopback, for tests and benchmarks: KRaft, one or several nodes, no Docker.

Maven fetches the jars of pom.xml once into target/dependency. Each node is a Java process in its own
session with a directory of its own under the system's temporary directory; both are gone after
`stop()`, also when the Python process ends without calling it (atexit). By hand::

    python -m tests.kafka.server [--nodes N]      prints host:port and stays until Ctrl-C

In code::

    with Cluster(nodes=3) as cluster:
        cluster.bootstrap          # "127.0.0.1:12345,..."
        cluster.nodes[1].kill()    # -9
        cluster.nodes[1].start()   # same port, same data
"""

from __future__ import annotations

import argparse
import atexit
import base64
import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import HOST, free_port

HERE = Path(__file__).resolve().parent
JARS = HERE / "target" / "dependency"
START_TIMEOUT = 90.0
STOP_TIMEOUT = 20.0


class Unavailable(Exception):
    """Kafka can't be started here; the message says what is missing."""


def missing() -> str | None:
    """What is missing to start a broker; None when all is there."""
    if shutil.which("java") is None:
        return "no Java on the path"
    if not JARS.is_dir() and shutil.which("mvn") is None:
        return "no Maven on the path to fetch Kafka with"
    return None


def fetch() -> None:
    """Have the jars; one process at a time fetches them."""
    if (problem := missing()) is not None:
        raise Unavailable(problem)
    target = HERE / "target"
    target.mkdir(exist_ok=True)
    stamp = target / "fetched"
    pom = HERE / "pom.xml"
    with (target / "fetch.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.stat().st_mtime >= pom.stat().st_mtime:
            return
        if shutil.which("mvn") is None:
            raise Unavailable("no Maven on the path to fetch Kafka with")
        shutil.rmtree(JARS, ignore_errors=True)
        command = [
            "mvn",
            "-q",
            "-B",
            "-f",
            str(pom),
            "dependency:copy-dependencies",
            "-DincludeScope=runtime",
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode != 0:
            raise Unavailable(f"Maven could not fetch Kafka: {(done.stdout + done.stderr).strip()[-2000:]}")
        stamp.touch()


class Node:
    """One process, a broker and usually a controller too. Stopped and started again it keeps its ports and its data."""

    def __init__(self, cluster: Cluster, number: int) -> None:
        self.number = number
        self.port = free_port()
        self.controller_port = free_port()
        self.directory = cluster.directory / f"node{number}"
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def format(self) -> None:
        self.directory.mkdir(parents=True)
        config = self.directory / "server.properties"
        config.write_text("".join(f"{name}={value}\n" for name, value in self._properties().items()))
        command = ["format", "-t", self._cluster.id, "-c", str(config), *self._cluster.format_arguments]
        done = subprocess.run(
            [*self._java(heap="64m"), "kafka.tools.StorageTool", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=START_TIMEOUT,
        )
        if done.returncode != 0:
            raise Unavailable(
                f"kafka.tools.StorageTool failed: {(done.stdout + done.stderr).strip()[-2000:]}"
            )

    def _properties(self) -> dict[str, object]:
        cluster = self._cluster
        copies = min(3, len(cluster.nodes))
        quorum = cluster.nodes[: cluster.controllers]
        voters = ",".join(f"{node.number}@{HOST}:{node.controller_port}" for node in quorum)
        protocol = cluster.protocol
        clients = f"{protocol}://{HOST}:{self.port}"
        controls = f"CONTROLLER://{HOST}:{self.controller_port}"
        return {
            "process.roles": "broker,controller" if self in quorum else "broker",
            "node.id": self.number,
            "controller.quorum.voters": voters,
            "listeners": f"{clients},{controls}" if self in quorum else clients,
            "advertised.listeners": clients,
            "inter.broker.listener.name": protocol,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{protocol}:{protocol}",
            "log.dirs": self.directory / "data",
            "num.partitions": 4,
            "default.replication.factor": copies,
            "min.insync.replicas": max(1, copies - 1),
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": copies,
            "transaction.state.log.num.partitions": 2,
            "transaction.state.log.replication.factor": copies,
            "transaction.state.log.min.isr": max(1, copies - 1),
            "share.coordinator.state.topic.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": copies,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "group.min.session.timeout.ms": 1000,
            "log.retention.check.interval.ms": 1000,
            "log.retention.ms": -1,  # a topic that is to lose its old records says so
            "log.cleaner.backoff.ms": 500,
            "log.cleaner.dedupe.buffer.size": 8 << 20,
            "log.index.size.max.bytes": 1 << 20,
            "num.network.threads": 2,
            "num.io.threads": 4,
            "auto.create.topics.enable": "false",
            "controlled.shutdown.enable": "true" if copies > 1 else "false",
            **cluster.properties,
        }

    def _java(self, heap: str) -> list[str]:
        return [
            "java",
            f"-Xmx{heap}",
            *self._cluster.jvm,
            f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
            "-cp",
            f"{JARS}/*",
        ]

    def start(self, *, wait: bool = True) -> None:
        if self._process is not None:
            raise RuntimeError(f"node {self.number} is running")
        with (self.directory / "server.log").open("ab") as output:
            self._process = subprocess.Popen(
                [*self._java(self._cluster.heap), "kafka.Kafka", str(self.directory / "server.properties")],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                start_new_session=True,  # Ctrl-C is ours to handle
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when it answers."""
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise Unavailable(f"node {self.number} ended at once: {self.log()[-2000:]}")
            with contextlib.suppress(OSError), socket.create_connection((HOST, self.port), timeout=1):
                return
            time.sleep(0.05)
        raise Unavailable(f"node {self.number} did not start: {self.log()[-2000:]}")

    def log(self) -> str:
        path = self.directory / "server.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> None:
        """Let it shut down in order; kill it if it doesn't."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As kill -9 and a power cut do, minus the lost page cache."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Cluster:
    """Nodes that form one cluster. A context manager; `start` and `stop` by hand work too."""

    def __init__(
        self,
        nodes: int = 1,
        *,
        controllers: int | None = None,
        properties: Mapping[str, object] | None = None,
        protocol: str = "PLAINTEXT",
        format_arguments: Sequence[str] = (),
        heap: str = "384m",
        jvm: Sequence[str] = (
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            "-Xshare:auto",
        ),
    ) -> None:
        """`properties` go into every server.properties; `jvm` is made for quick starts, not for throughput.

        The first `controllers` nodes are the quorum (all of them unless given): most of those must run, or no leader
        moves and no replica is ever found out of sync.
        """
        # One that begins with a dash would be taken for an option, one time in 64: the first bit is never set.
        number = uuid.uuid4().bytes
        self.id = base64.urlsafe_b64encode(bytes([number[0] & 0x7F]) + number[1:]).decode().rstrip("=")
        self.properties = dict(properties or {})
        self.protocol = protocol
        self.format_arguments = list(format_arguments)
        self.heap = heap
        self.jvm = list(jvm)
        self.directory = Path()
        self.nodes: list[Node] = []
        self.controllers = nodes if controllers is None else controllers
        self._count = nodes

    @property
    def bootstrap(self) -> str:
        return ",".join(node.address for node in self.nodes)

    def start(self) -> None:
        fetch()
        self.directory = Path(tempfile.mkdtemp(prefix="dispatcher-kafka-"))
        atexit.register(self.stop)
        try:
            for number in range(1, self._count + 1):
                self.nodes.append(Node(self, number))
            for node in self.nodes:
                node.format()
            for node in self.nodes:
                node.start(wait=False)
            for node in self.nodes:
                node.wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        atexit.unregister(self.stop)
        for node in self.nodes:
            node.kill()
        if self.directory != Path():
            shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description="Start Apache Kafka on loopback and stay until Ctrl-C.")
    parser.add_argument("--nodes", type=int, default=1)
    arguments = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda *_: sys.exit(0))
    try:
        with Cluster(arguments.nodes) as cluster:
            print(cluster.bootstrap, flush=True)
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except Unavailable as error:
        print(f"Kafka can't be started: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main())
