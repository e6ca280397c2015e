"""`dispatcher failing` and `dispatcher cluster`, against a server whose cluster view is told what to say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest

from dispatcher.control.cluster import FailingNow, FailingPage
from dispatcher.core.cluster.merge import Failing
from dispatcher.core.cluster.record import HistoryState, ReplicaRecord
from dispatcher.history.base import Awaiting
from tests.api.fakes import NOW, MemoryCluster
from tests.commands.calling import Api, one_line
from tests.fakes import subscription

FAILING = Failing(
    "sub_billing",
    "acme",
    NOW,
    64,
    16,
    None,
    None,
    "open",
    1,
    1,
    2,
    120,
    True,
    NOW - 5000,
    NOW + 5000,
    "status 503",
    NOW,
    ("one:1",),
)
REPLICAS = [
    ReplicaRecord(
        replica="one:1",
        version="1.0.0",
        started_ms=NOW,
        at_ms=NOW,
        roles=("deliver", "api"),
        problems=("the broker is away",),
        partitions={"events": (0, 1), "dispatcher.retry.30s": (0,)},
        lag={"events": 40, "dispatcher.retry.30s": 2},
        in_flight=7,
        parked={"breaker": 120},
        breakers={"subscription": 1, "host": 2},
        troubles_total=9,
    ),
    ReplicaRecord(
        replica="two:1",
        version="1.0.0",
        started_ms=NOW,
        at_ms=NOW,
        roles=("history",),
        history=HistoryState(as_of_ms=NOW, behind_records=5, partitions=3),
    ),
]


class Told(MemoryCluster):
    """Says what it is told."""

    page = FailingPage([], 0, cut=False, replicas=["one:1"])
    asked: dict[str, Any]

    def replicas(self) -> Sequence[ReplicaRecord]:
        return REPLICAS

    async def failing(self, tenant: str | None, **asked: Any) -> FailingPage:
        self.asked = asked
        return self.page


@pytest.fixture
def told(api: Api) -> Told:
    made = Told()
    object.__setattr__(api.plane.services, "cluster", made)
    return made


def test_each_that_fails_is_a_line_with_what_waits_for_it(api: Api, told: Told) -> None:
    made = subscription("sub_billing", "http://billing.example/", tenant="acme")
    told.page = FailingPage(
        [FailingNow(FAILING, made, Awaiting(15, False, NOW - 9000, NOW))], 1, cut=False, replicas=["one:1"]
    )
    shown = api("failing", "--tenant", "acme", "--host", "Billing.example", "--limit", "5")
    assert shown.exit_code == 0, shown.output
    (line,) = shown.stdout.splitlines()[1:]
    for part in (
        "sub_billing",
        "billing.example",
        "status 503",
        "25%",
        "open",
        "4 soon, 120+ parked, 15 retrying",
    ):
        assert part in line
    assert told.asked == {"of_tenant": "acme", "subscription_id": None, "host": "billing.example", "limit": 5}
    (found,) = api.json("failing")["failing"]
    assert found["waiting"]["retrying"] == 15
    assert found["oldest_waiting_since"] < found["failing_since"] < found["next_attempt_at"]


def test_where_nobody_fails_or_nobody_says_anything_that_is_said(api: Api, told: Told) -> None:
    ended = api("failing")
    assert (ended.exit_code, ended.stdout) == (0, "")
    assert ended.stderr == "nobody is failing\n"
    told.page = FailingPage([], 0, cut=True, replicas=[])
    ended = api("failing")
    assert "there are more" in ended.stderr
    assert "dispatcher cluster" in ended.stderr


def test_each_process_is_a_line_and_what_is_wrong_with_it_another(api: Api, told: Told) -> None:
    shown = api("cluster")
    assert shown.exit_code == 0, shown.output
    one, two = shown.stdout.splitlines()[1:]
    assert one.split()[-8:] == ["no", "3", "40", "7", "120", "3", "9", "-"]
    assert two.rstrip().endswith("5 behind")
    assert shown.stderr == "one:1: the broker is away\n"
    assert [each["replica"] for each in api.json("cluster")["replicas"]] == ["one:1", "two:1"]


def test_a_process_that_has_fallen_silent_is_named(
    api: Api, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = ReplicaRecord(
        replica="three:1",
        version="1.0.0",
        started_ms=NOW,
        at_ms=NOW - 20_000,
        partitions={"events": (4, 5), "dispatcher.retry.30s": (0,)},
    )
    monkeypatch.setattr(told, "replicas", lambda: [*REPLICAS, silent])
    shown = api("cluster")
    assert re.findall(r"\d+s ago", shown.stdout) == ["0s ago", "0s ago", "20s ago"]
    (said,) = [line for line in shown.stderr.splitlines() if line.startswith("three:1: ")]
    assert "nothing was heard of it for 20 seconds" in said
    assert said.endswith("It reads events 4, 5")


def test_what_is_wrong_is_one_line(api: Api) -> None:
    one_line(api("failing", "--limit", "0"), "--limit", code=2)
    one_line(api("cluster", DISPATCHER_API_KEY=None), "the API wants a key")
