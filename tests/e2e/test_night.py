"""The eight questions of a night call (docs/operations.md), asked of three replicas on a real Kafka: the page's own commands, in a shell.

`DISPATCHER_TEST_TRANSCRIPTS=docs` writes docs/night.md anew; by itself then, since the topics have their default names.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from dispatcher.broker.base import Message
from dispatcher.broker.open import open_broker
from dispatcher.core.text.times import rfc3339
from dispatcher.settings.groups import KafkaSettings
from tests.commands.console import environment
from tests.e2e.daemon import Daemon, Endpoint, envelope, eventually
from tests.transcript import Ran, Shell, Transcript, blocks_of, commands_in, exported, fields, run_in, table

ROOT = Path(__file__).parents[2]
RUNBOOK = ROOT / "docs" / "operations.md"
PLAYED = ROOT / "docs" / "night.md"
WRITTEN = os.environ.get("DISPATCHER_TEST_TRANSCRIPTS")

HEADING = "Eight questions of a night call"
KEY = "an-operators-key-of-the-night"
PARTITIONS = 4
WITHIN = 90.0
TROUBLE = "the database is in recovery mode"
NIGHT = datetime(2026, 1, 31, 3, 0, tzinfo=UTC)
"""When the call comes, on the page."""

INTRODUCTION = """\
# A night, played

The [eight questions](operations.md#eight-questions-of-a-night-call) of the runbook, asked of three replicas on Kafka while a customer's endpoint fails.
A test (`tests/e2e/test_night.py`) plays it with the commands of the runbook, and compares what they print with what is so. What takes hours in a night
takes a minute here. This page is one such run; its times are moved to a night and its ports are others, and nothing else is changed.
"""


class Question(NamedTuple):
    heading: str
    commands: list[str]


def section() -> str:
    return RUNBOOK.read_text().split(f"\n## {HEADING}\n", 1)[1].split("\n## ", 1)[0]


def questions() -> list[Question]:
    """Those of the page, by the order of their numbers."""
    _, *parts = re.split(r"^### ", section(), flags=re.MULTILINE)
    return [
        Question(part.splitlines()[0], [each for block in blocks_of(part) for each in commands_in(block)])
        for part in parts
    ]


def preparations() -> list[str]:
    """What the page says to run before anything else: the environment, and what the call is about."""
    first = blocks_of(RUNBOOK.read_text())[0]
    return [*commands_in(first), *commands_in(blocks_of(section().split("\n### ", 1)[0])[0])]


def test_there_are_eight_and_the_played_night_shows_their_commands() -> None:
    """A command that is changed in the runbook is played anew: DISPATCHER_TEST_TRANSCRIPTS=docs."""
    asked = questions()
    assert [int(question.heading.split(".")[0]) for question in asked] == list(range(1, 9))
    played = PLAYED.read_text()
    assert re.findall(r"^## (\d.*)$", played, re.MULTILINE) == [question.heading for question in asked]
    shown = [each for each in run_in(played) if not each.startswith("export ")]
    wanted = [each for question in asked for each in question.commands]
    assert shown == [each for each in [*preparations(), *wanted] if not each.startswith("export ")]


class Billing:
    """The customer's endpoint, and whether it is well."""

    def __init__(self) -> None:
        self.well = True
        self.acknowledged: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        if not self.well:
            return web.Response(status=503, text=TROUBLE)
        self.acknowledged.add(request.headers["webhook-id"])
        return web.Response()


class Night:
    """Three replicas, their endpoints, and a shell beside them."""

    def __init__(
        self, replicas: list[Daemon], topic: str, billing: Billing, well: Endpoint, shell: Shell
    ) -> None:
        self.replicas = replicas
        self.topic = topic
        self.billing = billing
        self.well = well
        self.called = 0.0  # Unix seconds
        self._transcript = Transcript()
        self.asked = {question.heading.split(".")[0]: question for question in questions()}
        self.variables: dict[str, str] = {}
        self.ran: list[str] = []
        self._shell = shell
        self._number = 0

    async def api(self, method: str, path: str, body: Any = None) -> Any:
        url = f"http://127.0.0.1:{self.replicas[0].port}{path}"
        headers = {"Authorization": f"Bearer {KEY}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, url, json=body) as response,
        ):
            assert response.status < 300, await response.text()
            return await response.json()

    async def publish(self, each: int, **more: Any) -> list[str]:
        """So many events of the customer in each partition; their ids."""
        made = []
        for number in range(each * PARTITIONS):
            self._number += 1
            id_, event = envelope(self._number, "invoice.paid", tenant="acme", **more)
            made.append((id_, Message(self.topic, event, id_.encode(), partition=number % PARTITIONS)))
        broker = open_broker(self.replicas[0].broker, KafkaSettings())
        await broker.connect()
        try:
            await broker.produce([message for _, message in made])
        finally:
            await broker.close()
        return [id_ for id_, _ in made]

    async def run(self, command: str) -> Ran:
        """With the values that this night has for what the page leaves to its reader."""
        for name in exported([command]):
            command = re.sub(rf"{name}=\S+\s*", f"{name}={self.variables[name]} ", command)
            command = command.partition(" #")[0].rstrip()
        return await self._shell.run(command)

    async def ask(self, number: int, command: int, until: Callable[[Ran], bool] = lambda _: True) -> Ran:
        """Run a command of a question, again until it prints what is waited for, and keep it with that."""
        question = self.asked[str(number)]
        if command == 0:
            self.say(f"## {question.heading}")
        deadline = time.monotonic() + WITHIN
        while not until(ran := await self.run(question.commands[command])):
            assert time.monotonic() < deadline, ran
        self.keep(question.commands[command], ran)
        return ran

    def say(self, text: str) -> None:
        self._transcript.say(text)

    def keep(self, command: str, ran: Ran, *, shown: bool = True) -> None:
        self.ran.append(command)
        if shown:
            self._transcript.add(ran)

    def page(self) -> str:
        """The transcript, at the time that the page has; with the ports that an installation has."""
        later = NIGHT - datetime.fromtimestamp(self.called, UTC)

        def moved(found: re.Match[str]) -> str:
            return rfc3339((datetime.fromisoformat(found[0]) + later).timestamp() * 1000) or found[0]

        text = f"{INTRODUCTION}\n{self._transcript.markdown()}"
        text = re.sub(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moved, text)
        return re.sub(r"http://127\.0\.0\.1:\d+/", "http://127.0.0.1:9000/", text)

    async def deliveries(self, query: str, count: int) -> list[dict[str, Any]]:
        """Those of the customer's subscription that the history has, once there are so many."""
        async with asyncio.timeout(WITHIN):
            while True:
                path = f"/v1/deliveries?subscription=sub_billing&limit=200&{query}"
                found: list[dict[str, Any]] = (await self.api("GET", path))["deliveries"]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.1)

    async def failing(self) -> dict[str, Any] | None:
        """What the cluster view says of the customer's subscription."""
        found = (await self.api("GET", "/v1/failing?subscription=sub_billing"))["failing"]
        return found[0] if found else None


@pytest.fixture
async def night(
    tmp_path: Path, request: pytest.FixtureRequest, unique: Callable[[str], str]
) -> AsyncIterator[Night]:
    kafka = request.getfixturevalue("kafka")
    topic, prefix, group = (
        ("events", "dispatcher.", "dispatcher")
        if WRITTEN
        else (unique("events"), f"{unique('own')}.", unique("group"))
    )
    replicas = []
    for number in range(3):
        folder = tmp_path / f"replica-{number}"
        folder.mkdir()
        daemon = Daemon(
            folder,
            f"kafka://{kafka}",
            [],
            group=group,
            topics={"events": [topic], "prefix": prefix, "partitions": PARTITIONS},
            # Long enough for all questions about a process that hangs to be asked before the others take its partitions over.
            kafka={
                "member_name": f"dispatcher-{number}",
                "session_timeout": "3m",
                "rebalance_timeout": "3m",
            },
            api={"keys": [KEY]},
            delivery={"breaker_threshold": 0.8, "max_queue_wait": "5s"},
        )
        replicas.append(daemon)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    billing = Billing()
    try:
        for daemon in replicas:
            await daemon.start(ready=False)
        for daemon in replicas:
            await daemon.ready()
        async with (
            Endpoint(billing.answer) as theirs,
            Endpoint() as well,
            Shell(tmp_path, environment({"PATH": path})) as shell,
        ):
            made = Night(replicas, topic, billing, well, shell)
            await _subscribe(made, theirs, well)
            yield made
    finally:
        for daemon in replicas:
            await daemon.kill()


async def _subscribe(night: Night, theirs: Endpoint, well: Endpoint) -> None:
    """The customer has two endpoints, another one has a third; each replica reads some of the partitions."""
    for id_, tenant, url in (
        ("sub_audit", "acme", f"{well.url}/audit"),
        ("sub_billing", "acme", f"{theirs.url}/billing"),
        ("sub_orders", "globex", f"{well.url}/orders"),
    ):
        document = {"id": id_, "tenant": tenant, "url": url, "event_types": ["invoice.*"]}
        # Given up after the second attempt: a schedule of days has no room in a test.
        await night.api("POST", "/v1/subscriptions", {**document, "retry": {"schedule": ["1s"], "jitter": 0}})
    async with asyncio.timeout(WITHIN):
        for daemon in night.replicas:
            while await daemon.metric("subscriptions", 'status="active"') < 3:
                await asyncio.sleep(0.05)
        while True:
            replicas = (await night.api("GET", "/v1/cluster"))["replicas"]
            shares = [len(each["partitions"].get(night.topic, ())) for each in replicas]
            if len(shares) == 3 and min(shares) and sum(shares) == PARTITIONS:
                return
            await asyncio.sleep(0.2)


def after(time_: str, earliest: float) -> bool:
    """Whether a time is from then on, and not in the future."""
    return earliest - 1 <= datetime.fromisoformat(time_).timestamp() <= time.time() + 1


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_the_commands_of_the_runbook_answer_the_call(night: Night, tmp_path: Path) -> None:
    lost, waiting, began = await _the_endpoint_fails(night)
    await _the_call_is_taken_down(night, lost[0], began)
    await _who_and_since_when(night, began)
    await _what_waits(night, len(waiting))
    await _why(night, lost[0])
    await _a_rest(night, waiting)
    await _once_more(night, {*lost, *waiting})
    await _where_the_lag_is(night)
    await _whether_to_believe_it(night)
    assert night.ran == [*preparations(), *(each for question in questions() for each in question.commands)]
    page = night.page()
    (tmp_path / PLAYED.name).write_text(page)
    if WRITTEN:
        (Path(WRITTEN) / PLAYED.name).write_text(page)


async def _the_endpoint_fails(night: Night) -> tuple[list[str], list[str], float]:
    """The ids of what is given up, and of what waits; and when it began."""
    await night.publish(1)
    await night.deliveries("state=delivered", PARTITIONS)
    night.billing.well = False
    began = time.time()
    lost = await night.publish(1)
    await night.deliveries("state=dead", len(lost))
    waiting = await night.publish(15)  # enough for the breaker of each replica
    async with asyncio.timeout(WITHIN):
        while True:
            found = await night.failing()
            if found is not None and found["breaker"] == "open":
                held = found["waiting"]["queued"] + found["waiting"]["held"]
                if not held and found["waiting"]["parked"] >= len(waiting) // 2:
                    return lost, waiting, began
            await asyncio.sleep(0.2)


async def _the_call_is_taken_down(night: Night, event: str, began: float) -> None:
    answering = night.replicas[0]
    night.called = time.time()
    night.variables = {
        "DISPATCHER_CONFIG": str(answering.settings_file),
        "DISPATCHER_API_URL": f"http://127.0.0.1:{answering.port}",
        "DISPATCHER_API_KEY": KEY,
        "TENANT": "acme",
        "SUBSCRIPTION": "sub_billing",
        "EVENT": event,
        "SINCE": rfc3339(began * 1000) or "",
        "UNTIL": rfc3339((night.called + 1) * 1000) or "",
    }
    assert sorted(exported(preparations())) == sorted(night.variables)
    night.say('acme calls: "We get nothing any more, and where is our invoice?"')
    for command in preparations():
        ran = await night.run(command)
        assert ran.code == 0, ran
        night.keep(command, ran, shown="DISPATCHER_" not in command)
        if command.startswith("dispatcher "):
            assert [row["id"] for row in table(ran.output)] == ["sub_audit", "sub_billing"]


async def _who_and_since_when(night: Night, began: float) -> None:
    failing = await night.ask(1, 0)
    (row,) = table(failing.output)
    assert (row["subscription"], row["tenant"], row["host"]) == ("sub_billing", "acme", "127.0.0.1")
    assert (row["last result"], row["breaker"]) == ("status 503", "open")
    assert after(row["failing since"], began)
    night.say("One endpoint fails, and nobody else's.")

    shown = fields((await night.ask(2, 0)).output)
    assert after(shown["failing since"], began)
    assert re.fullmatch(r"status 503 at \S+", shown["last failure"])
    failed = await night.ask(2, 1)
    rows = [row for row in table(failed.output) if row["id"].startswith("dlv_")]
    assert 4 <= len(rows) <= 5
    assert {(row["subscription"], row["last answer"]) for row in rows} == {("sub_billing", "503")}
    assert all(after(row["begun"], began) for row in rows)


async def _what_waits(night: Night, count: int) -> None:
    (row,) = table((await night.ask(3, 0)).output)
    told = re.fullmatch(r"(\d+) soon, (\d+) parked, (\d+) retrying", row["waiting"])
    assert told is not None, row
    soon, parked, _ = map(int, told.groups())
    given_up = len(await night.deliveries("state=dead", 1))
    assert count - given_up - soon <= parked <= count
    pending = await night.ask(3, 1)
    rows = [row for row in table(pending.output) if row["id"].startswith("dlv_")]
    assert {row["state"] for row in rows} == {"pending (breaker)"}
    assert len(rows) == 5
    assert "there are more" in pending.output
    assert (await night.ask(3, 2)).code == 0
    night.say(
        "Everything waits for the endpoint: its breaker is open, and one delivery at a time tries whether it is well again."
    )


async def _why(night: Night, event: str) -> None:
    explained = (await night.ask(4, 0)).output
    assert explained.startswith(f"{event}, invoice.paid, published ")
    assert re.search(
        r"^- The delivery to sub_billing was given up at \S+, because every attempt of its schedule had failed;"
        r" the last attempt ended with status 503\.$",
        explained,
        re.MULTILINE,
    )
    rows = {row["subscription"]: row for row in table((await night.ask(4, 1)).output)}
    assert {id_: (row["state"], row["last answer"]) for id_, row in rows.items()} == {
        "sub_audit": ("delivered", "200"),
        "sub_billing": ("dead (exhausted)", "503"),
    }
    night.variables["DELIVERY"] = rows["sub_billing"]["id"]
    await night.ask(4, 2)
    delivery, _, attempts = (await night.ask(4, 3)).output.partition("\n\n")
    assert fields(delivery)["state"] == "dead (exhausted)"
    assert [(row["answer"], row["said"]) for row in table(attempts)] == [("503", TROUBLE)] * 2
    night.say("It was sent twice, and their endpoint said why it did not take it: they can be told.")


async def _a_rest(night: Night, waiting: list[str]) -> None:
    paused = await night.ask(5, 0)
    assert paused.output == "sub_billing is paused\n"
    async with asyncio.timeout(WITHIN):
        for daemon in night.replicas:
            while not await daemon.metric("subscriptions", 'status="paused"'):
                await asyncio.sleep(0.05)
    night.billing.well = True
    before = set(night.billing.acknowledged)
    during = await night.publish(1)
    await night.well.received(set(during), WITHIN)
    assert night.billing.acknowledged == before, "something was sent during the pause"
    night.say(f"{len(during)} more invoices are published, and acme mends its endpoint.")

    resumed = await night.ask(5, 1)
    assert resumed.output.startswith("sub_billing is active\n")
    assert re.search(r"dispatcher replays show rpl_\w+$", resumed.output.strip())
    # A breaker that has been open for minutes lets the next attempt through after minutes.
    async with asyncio.timeout(400):
        while True:
            dead = {each["event_id"] for each in await night.deliveries("state=dead", 1)}
            if {*waiting, *during} <= night.billing.acknowledged | dead and await night.failing() is None:
                break
            await asyncio.sleep(0.2)
    assert set(during) <= night.billing.acknowledged
    over = await night.ask(5, 2)
    assert over.output == "nobody is failing\n"


async def _once_more(night: Night, owed: set[str]) -> None:
    retried = await night.ask(6, 0)
    assert (retried.code, retried.output.splitlines()[-1]) == (0, "delivered: status 200"), retried
    assert night.variables["EVENT"] in night.billing.acknowledged
    left = owed - night.billing.acknowledged
    assert left
    planned = fields((await night.ask(6, 1)).output)
    assert planned["deliveries"] == str(len(left))
    started = await night.ask(6, 2)
    assert started.code == 0, started
    assert fields(started.output)["state"] == "done"
    assert fields(started.output)["progress"].startswith(f"{len(left)} of {len(left)} sent")
    await eventually(lambda: owed <= night.billing.acknowledged, WITHIN)
    night.say("acme has everything.")


async def _where_the_lag_is(night: Night) -> None:
    hung = night.replicas[2]
    name = f"{socket.gethostname()}:{hung.pid}"
    (theirs,) = [
        each["partitions"][night.topic]
        for each in (await night.api("GET", "/v1/cluster"))["replicas"]
        if each["replica"] == name
    ]
    hung.signal(signal.SIGSTOP)
    try:
        ids = await night.publish(5)
        others = {id_ for number, id_ in enumerate(ids) if number % PARTITIONS not in theirs}
        await night.well.received(others, WITHIN)

        def only_theirs(ran: Ran) -> bool:
            rows = [line.split() for line in ran.output.splitlines() if line.strip().startswith(night.topic)]
            return {int(row[1]): row[-1] for row in rows} == dict.fromkeys(theirs, "5")

        await night.ask(7, 0, until=only_theirs)
        silent = await night.ask(7, 1, until=lambda ran: f"{name}: nothing was heard of it" in ran.output)
        assert f"It reads {night.topic} {', '.join(map(str, theirs))}" in silent.output
        rows = {row["replica"]: row for row in table(silent.output)}
        assert {f"{socket.gethostname()}:{each.pid}" for each in night.replicas} <= rows.keys()
        assert int(rows[name]["heard"].partition("s")[0]) >= 15
    finally:
        hung.signal(signal.SIGCONT)
    await night.well.received(set(ids), WITHIN)
    night.say(
        "One of the three processes hangs, and what it reads waits. (The test had stopped it by SIGSTOP, and lets it go on now.)"
    )


async def _whether_to_believe_it(night: Night) -> None:
    now = time.time()

    def caught_up(ran: Ran) -> bool:
        told = [re.fullmatch(r"as of (\S+), 0 behind", row["history"]) for row in table(ran.output)]
        return len(told) == 3 and all(each is not None and after(each[1], now) for each in told)

    await night.ask(8, 0, until=caught_up)
    ready = await night.ask(8, 1)
    assert re.search(r'"status": ?"ready"', ready.output), ready
    behind = await night.ask(8, 2)
    (seconds,) = re.findall(r"^dispatcher_history_behind_seconds (\S+)$", behind.output, re.MULTILINE)
    assert float(seconds) < 60
    night.say(
        "Each process has indexed everything, as of some seconds ago: what the other answers said is so."
    )
