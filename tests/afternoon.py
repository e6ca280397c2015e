"""The afternoon in which somebody tries the dispatcher, played for real: `python -m tests.afternoon [--write docs/afternoon.md]`.

A fresh virtual environment from the built wheel, a real Kafka, PostgreSQL and Prometheus with our rules; webhooks that a receiver verifies, an alert
that fires and resolves, a rolling upgrade from an older revision's wheel under load (`--base`, the commit before this one), three workers and back. Takes some
minutes; needs what the tests of Kafka and PostgreSQL need, prometheus, promtool and curl. Ends with 1 where anything is not as the page says.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from dispatcher.broker.base import Message
from dispatcher.commands.session import quiet
from tests.commands.console import environment
from tests.e2e.daemon import envelope, publish
from tests.kafka.server import Cluster
from tests.ports import free_port
from tests.postgres import server as postgresql
from tests.transcript import Ran, Shell, Transcript

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "afternoon.md"
RULES = ROOT / "config" / "prometheus"
WITHIN = 120.0
LONGEST = 300.0  # seconds for one command: an installation on a busy machine
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

INTRODUCTION = """\
# An afternoon

From nothing to a service that is watched, upgraded and scaled, on one machine. A script (`python -m tests.afternoon`) plays it for real and checks each
step; this page is one such run. What it shows of ports and folders is what an installation would have. Before it begins there are Kafka at `127.0.0.1:9092`,
PostgreSQL at `127.0.0.1:5432` with the password of its user `dispatcher` in `DISPATCHER_HISTORY__PASSWORD`, and Debian's package `prometheus`.
"""


class Failed(Exception):
    """Something is not as the page says."""


class Step(NamedTuple):
    """A command, and what must be so when it has run."""

    command: str
    says: str = ""
    """What its output has, as a regular expression."""
    until: bool = False
    """It is run again until it says so."""
    before: str | None = None
    """What the script does first (`Afternoon.<name>`)."""


class Part(NamedTuple):
    heading: str
    text: str
    steps: list[Step]
    after: str = ""


CONFIG = """\
cat > dispatcher.yaml <<END
broker: kafka://127.0.0.1:9092
topics: {partitions: 6}
history: {store: "postgresql://dispatcher@127.0.0.1:5432/postgres"}
network: {allow: [127.0.0.0/8], https_only: false}    # the receiver below is on this machine
END"""
SCRAPE = """\
cat > prometheus.yml <<END
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [rules/*.yaml]
scrape_configs:
  - job_name: dispatcher
    static_configs: [{targets: ["127.0.0.1:8080", "127.0.0.1:8081"]}]
END"""
READY = r'"status": ?"ready"'
PARTITIONS = 48  # six of each topic that a group reads: events, five tiers, parked, replays
EVERY_ONE_ONCE = Step(
    "awk '$4 ~ /^evt_/ {print $4}' receiver.log | sort | uniq -c | awk '{print $1}' | sort | uniq -c",
    r"\A *{published} 1\n\Z",
    before="stop_publishing",
)
"""Of how many events there are how many requests."""


def started(name: str, port: int, log: str, *, command: str = "dispatcher", options: str = "") -> Step:
    return Step(f"{command} run --http-port {port}{options} > {log}.log 2>&1 & {name}=$!")


def stopped(name: str) -> Step:
    return Step(f"kill ${name}; wait ${name}; echo $?", r"\A0\n\Z")


def ready(port: int) -> Step:
    return Step(f"curl -s http://127.0.0.1:{port}/readyz", READY, until=True)


def shares(url: str, processes: int) -> Step:
    """Every process has as many partitions as the others, and there is no other one."""
    row = rf"\S+:\d+ +\S+ +deliver\S*(?:, \S+)* +\S+ +\S+ ago +yes +{PARTITIONS // processes} [^\n]*\n"
    return Step(f"dispatcher cluster{url}", rf"\Areplica [^\n]*\n(?:{row}){{{processes}}}\Z", until=True)


PARTS = [
    Part(
        "Install",
        "A virtual environment, and the wheel.",
        [
            Step("python3 -m venv venv"),
            Step('venv/bin/pip install --quiet "$(ls new/*.whl)[postgres]"', r"\A\Z"),
            Step("export PATH=$PWD/venv/bin:$PATH"),
            Step("dispatcher --version", r"^dispatcher, version \d"),
        ],
    ),
    Part(
        "Settings",
        "One file, a key for the API, and a look at whether everything is there.",
        [
            Step(CONFIG),
            Step(
                "export DISPATCHER_CONFIG=$PWD/dispatcher.yaml DISPATCHER_API__KEYS=$(openssl rand -hex 32)"
            ),
            Step("export DISPATCHER_API_KEY=$DISPATCHER_API__KEYS"),
            Step("dispatcher check-config --quiet --connect", r"^ok: settings"),
        ],
    ),
    Part(
        "A webhook",
        "The dispatcher, a receiver that verifies what it gets, a subscription, and an event.",
        [
            started("ONE", 8080, "one"),
            ready(8080),
            Step(f"dispatcher listen --port 9000 --secret {SECRET} > receiver.log 2>&1 &"),
            Step(
                "dispatcher subscriptions add http://127.0.0.1:9000/ 'invoice.*' --id sub_billing --tenant acme \\\n"
                f"  --secret {SECRET}",
                r"^status +active$",
            ),
            Step("dispatcher publish invoice.paid --tenant acme --id inv_1 --data '{\"amount\": 42}'"),
            Step("grep inv_1 receiver.log", r"  200  valid    inv_1  ", until=True),
            Step("dispatcher events explain inv_1", r"^- It was delivered to sub_billing at ", until=True),
        ],
    ),
    Part(
        "Watched",
        "Prometheus with the rules of `config/prometheus`, which are in `rules/` here. Alarms that wait for two minutes there wait for 15 seconds in this run.",
        [
            Step("promtool check rules rules/*.yaml", r"SUCCESS: \d+ rules found", before="copy_rules"),
            Step(SCRAPE),
            Step(
                "prometheus --config.file=prometheus.yml --storage.tsdb.path=prometheus \\\n"
                "  --web.listen-address=127.0.0.1:9090 > prometheus.log 2>&1 &"
            ),
            Step(
                "promtool query instant http://127.0.0.1:9090 'dispatcher_ready'",
                r"^dispatcher_ready\{[^\n]*\} => 1 @",
                until=True,
            ),
        ],
    ),
    Part(
        "An alarm fires, and resolves",
        "Kafka is killed.",
        [
            Step(
                "curl -s http://127.0.0.1:8080/readyz",
                r'(?s)"status": ?"unready".*connection refused',
                until=True,
                before="kill_kafka",
            ),
            Step(
                "promtool query instant http://127.0.0.1:9090 'ALERTS{alertstate=\"firing\"}'",
                r'alertname="DispatcherNotReady"',
                until=True,
            ),
        ],
        "Its description says to ask `/readyz`, which names the broker. Kafka is started again.",
    ),
    Part(
        "",
        "",
        [
            Step("curl -s http://127.0.0.1:8080/readyz", READY, until=True, before="start_kafka"),
            Step(
                "promtool query instant http://127.0.0.1:9090 'ALERTS{alertname=\"DispatcherNotReady\"}'",
                r"\A\s*\Z",
                until=True,
            ),
        ],
    ),
    Part(
        "A rolling upgrade",
        "Two replicas of an older version, built from an older commit, take the place of the one that runs.",
        [
            Step("python3 -m venv older"),
            Step('older/bin/pip install --quiet "$(ls before/*.whl)[postgres]"', r"\A\Z"),
            stopped("ONE"),
            started("ONE", 8080, "one", command="older/bin/dispatcher"),
            started("TWO", 8081, "two", command="older/bin/dispatcher"),
            ready(8080),
            ready(8081),
            shares("", 2),
        ],
        "Events are published all the time from now on. One replica after the other is replaced by the new version.",
    ),
    Part(
        "",
        "",
        [
            Step("kill $TWO; wait $TWO; echo $?", r"\A0\n\Z", before="start_publishing"),
            started("TWO", 8081, "two"),
            ready(8081),
            shares("", 2),
            stopped("ONE"),
            started("ONE", 8080, "one"),
            ready(8080),
            shares("", 2),
        ],
        "No more is published. How many events came once, twice...?",
    ),
    Part("", "", [EVERY_ONE_ONCE], "{published} events, each of them once."),
    Part(
        "Three workers, and back",
        "More cores: one replica becomes three processes, and the other one goes. Events are published all the time.",
        [
            Step("kill $TWO; wait $TWO; echo $?", r"\A0\n\Z", before="start_publishing"),
            started("TWO", 8081, "two", options=" --workers 3"),
            ready(8081),
            Step(
                "curl -s http://127.0.0.1:8081/metrics | grep '^dispatcher_worker_up'",
                r'worker="1"\} 1\n.*worker="2"\} 1\n.*worker="3"\} 1\n',
                until=True,
            ),
            stopped("ONE"),
            shares(" --url http://127.0.0.1:8081", 3),
            started("ONE", 8080, "one"),
            ready(8080),
            stopped("TWO"),
            shares("", 1),
            EVERY_ONE_ONCE,
        ],
        "Again every event came once.",
    ),
    Part(
        "In the evening",
        "",
        [
            Step("dispatcher failing", r"\Anobody is failing\n\Z"),
            Step("dispatcher deliveries list --state failed", r"\Athere are none like that in this time"),
            stopped("ONE"),
        ],
    ),
]


class Afternoon:
    """The services, the shell and the transcript."""

    def __init__(self, folder: Path, kafka: Cluster, ports: dict[int, int], shell: Shell) -> None:
        """`ports`: those of the page, and which they are here."""
        self._folder = folder
        self._kafka = kafka
        self._ports = ports
        self._shell = shell
        self._load: asyncio.Task[None] | None = None
        self._over = False
        self._published = 0
        self.transcript = Transcript()

    async def play(self) -> None:
        """All parts. Raises Failed at the first thing that is not as the page says."""
        for part in PARTS:
            if part.heading:
                self.transcript.say(f"## {part.heading}")
            if part.text:
                self.transcript.say(part.text)
            for step in part.steps:
                await self._step(step)
            if part.after:
                self.transcript.say(self._filled(part.after))

    async def _step(self, step: Step) -> None:
        if step.before is not None:
            action: Callable[[], Awaitable[None]] = getattr(self, step.before)
            await action()
        print(f"$ {step.command}", flush=True)
        says = self._filled(step.says)
        deadline = time.monotonic() + WITHIN
        while True:
            try:
                ran = await self._shell.run(self._real(step.command), within=LONGEST)
            except TimeoutError as error:
                raise Failed(f"{step.command}\nhas not ended within {LONGEST:g} s") from error
            shown = Ran(step.command, self._cleaned(ran.output), ran.code)
            if re.search(says, shown.output, re.MULTILINE):
                break
            if not step.until or time.monotonic() > deadline:
                raise Failed(f"{step.command}\nexited {ran.code} and said\n{shown.output}\nwithout {says!r}")
            await asyncio.sleep(0.5)
        print(shown.output, flush=True)
        self.transcript.add(shown)

    def _filled(self, text: str) -> str:
        return text.replace("{published}", str(self._published))

    def _real(self, command: str) -> str:
        """With the ports that are free here."""
        for port, real in self._ports.items():
            command = re.sub(rf"(?<=[ :]){port}\b", str(real), command)
        return command

    def _cleaned(self, output: str) -> str:
        """With the ports and folders of an installation."""
        for port, real in self._ports.items():
            output = re.sub(rf"\b{real}\b", str(port), output)
        output = output.replace(str(self._folder), "/srv/dispatcher")
        return re.sub(r" +$", "", output, flags=re.MULTILINE)

    # What happens around the commands.

    async def copy_rules(self) -> None:
        (self._folder / "rules").mkdir()
        for rule in RULES.glob("*.yaml"):
            text = rule.read_text().replace("for: 2m", "for: 15s").replace("interval: 30s", "interval: 1s")
            (self._folder / "rules" / rule.name).write_text(text)

    async def kill_kafka(self) -> None:
        self._kafka.nodes[0].kill()

    async def start_kafka(self) -> None:
        self._kafka.nodes[0].start()

    async def start_publishing(self) -> None:
        self._over = False
        self._load = asyncio.ensure_future(self._publish())  # noqa: TID251 - ended by `stop_publishing`

    async def stop_publishing(self) -> None:
        """Return when the receiver has everything."""
        assert self._load is not None
        self._over = True
        await self._load
        received = self._folder / "receiver.log"
        async with asyncio.timeout(WITHIN):
            while len(set(re.findall(r"evt_\d{8}", received.read_text()))) < self._published:
                await asyncio.sleep(0.2)

    async def _publish(self) -> None:
        while not self._over:
            made = [envelope(self._published + number, "invoice.paid", tenant="acme") for number in range(20)]
            records = [Message("events", event, id_.encode()) for id_, event in made]
            await publish(f"kafka://{self._kafka.bootstrap}", records)
            self._published += len(made)
            await asyncio.sleep(0.2)


def build(revision: str | None, into: Path) -> None:
    """The wheel of a revision, or of what is here, in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="afternoon-") as folder:
        source = ROOT
        if revision is not None:
            source = Path(folder)
            archive = subprocess.run(
                ["git", "archive", revision], cwd=ROOT, capture_output=True, check=True
            ).stdout
            with tarfile.open(fileobj=io.BytesIO(archive)) as files:
                files.extractall(source, filter="data")
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(into), str(source)], check=True)


async def afternoon(base: str) -> str:
    """The page."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="afternoon-")))
        build(None, folder / "new")
        build(base, folder / "before")
        kafka = stack.enter_context(Cluster())
        postgres = stack.enter_context(postgresql.Server(["fsync=off"]))
        password = urlsplit(postgres.url).password or ""
        # Not the environment of this project: the afternoon begins without it.
        path = f"{sys.base_prefix}/bin:{os.environ['PATH'].replace(str(Path(sys.executable).parent), '')}"
        ports = {port: free_port() for port in (8080, 8081, 9000, 9090)}
        ports |= {9092: kafka.nodes[0].port, 5432: postgres.port}
        variables = {
            "PATH": path.replace("::", ":"),
            "DISPATCHER_HISTORY__PASSWORD": password,
            "PIP_NO_COMPILE": "1",  # what is imported is compiled then
            "DISPATCHER_API_URL": f"http://127.0.0.1:{ports[8080]}",  # where it is by default
        }
        async with AsyncExitStack() as running:
            shell = await running.enter_async_context(Shell(folder, environment(variables)))
            played = Afternoon(folder, kafka, ports, shell)
            try:
                await played.play()
            except (Failed, TimeoutError) as error:
                logs = "\n".join(
                    f"{log.name}:\n{log.read_text()[-3000:]}" for log in sorted(folder.glob("*.log"))
                )
                raise Failed(f"{error}\n{logs}") from error
            return f"{INTRODUCTION}\n{played.transcript.markdown()}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Play the afternoon of docs/afternoon.md for real.")
    parser.add_argument(
        "--base", default="HEAD~1", help="Revision whose wheel is upgraded from [default: %(default)s]."
    )
    parser.add_argument("--write", type=Path, help="Write the page there.")
    arguments = parser.parse_args()
    missing = [name for name in ("prometheus", "promtool", "curl", "openssl") if shutil.which(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that what was started is stopped
    quiet()
    try:
        page = asyncio.run(afternoon(arguments.base))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    if arguments.write is not None:
        arguments.write.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
