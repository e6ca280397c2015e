from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from multidict import CIMultiDict
from rich.console import Console

from dispatcher.commands.demo import (
    Demo,
    DemoEvent,
    Endpoint,
    complaints,
    demo_settings,
    endpoints,
    flaky,
    percentile,
)
from dispatcher.commands.receiver import Arrival, ReceiverAnswer, SignatureVerdict, healthy
from tests.commands import console


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPATCHER_BROKER", raising=False)
    monkeypatch.delenv("DISPATCHER_CONFIG", raising=False)


def test_it_delivers_everything_and_says_so(tmp_path: Path) -> None:
    ended = console.dispatcher("demo", "--events", "400", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = {cells[0]: cells[1:] for line in ended.stdout.splitlines() if (cells := line.split())}
    assert rows["orders"][:2] == ["100", "100"]
    assert rows["audit"][:2] == ["400", "400"]
    assert rows["flaky"][:2] == ["200", "200"]
    assert int(rows["flaky"][2]) > 200
    assert rows["dead"][:6] == ["50", "0", "150", "0", "50", "0"]
    assert "Everything owed arrived: 700 deliveries" in ended.stdout
    assert ended.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_it_runs_on_kafka_with_topics_of_its_own(tmp_path: Path, kafka: str) -> None:
    broker = f"kafka://{kafka}"
    runs = [
        console.dispatcher("demo", "--events", "80", cwd=tmp_path, DISPATCHER_BROKER=broker) for _ in "12"
    ]
    assert [run.returncode for run in runs] == [0, 0], "".join(run.stdout + run.stderr for run in runs)
    assert f"80 events through {broker}" in runs[1].stdout
    assert len({run.stdout.rpartition("The topics ")[2] for run in runs}) == 2


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    process = console.start("demo", "--events", "100000", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert process.stdout is not None
    while "published" not in (line := process.stdout.readline()):
        assert line, "it ended before it began"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert out.endswith("Interrupted: ending what is under way.\n")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_command_line_exits_2(tmp_path: Path) -> None:
    ended = console.dispatcher("demo", "--events", "0", cwd=tmp_path)
    assert ended.returncode == 2
    assert "--events" in ended.stderr


async def run(cast: list[Endpoint], directory: Path, patience: float) -> tuple[int, str]:
    """The demo with another cast, in this process; `patience` in seconds."""
    screen = io.StringIO()
    settings = demo_settings(None, {}, directory)
    code = await Demo(settings, cast, 16, Console(file=screen, width=120), patience=patience).run()
    return code, screen.getvalue()


def wants_all(_event: DemoEvent) -> bool:
    return True


@pytest.mark.usefixtures("clean_environment")
async def test_an_endpoint_that_got_nothing_makes_it_fail(tmp_path: Path) -> None:
    options = {"retry": {"schedule": ["10ms"], "jitter": 0}}
    broken = Endpoint("broken", "never", "*", ["*"], wants_all, lambda _id, _n: ReceiverAnswer(500), options)
    code, said = await run([broken], tmp_path, 60.0)
    assert code == 1
    assert (
        "Wrong: broken did not get 16 of the 16 events it is owed (evt_000000, evt_000001, evt_000002" in said
    )
    assert "16 of them are in the dead-letter topic" in said


@pytest.mark.usefixtures("clean_environment")
async def test_a_signature_that_does_not_verify_makes_it_fail(tmp_path: Path) -> None:
    options = {"secrets": ["whsec_" + "A" * 44]}
    stranger = Endpoint("stranger", "has another secret", "*", ["*"], wants_all, healthy, options)
    code, said = await run([stranger], tmp_path, 3.0)
    assert code == 1
    assert "requests to stranger had a signature that does not verify" in said


def endpoint(owed: int = 3, **changes: object) -> Endpoint:
    made = Endpoint("one", "", "*", ["*"], wants_all, healthy)
    made.owed = {DemoEvent(number).id for number in range(owed)}
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def arrival(event: DemoEvent, **changes: object) -> Arrival:
    arrived = Arrival(event.id, 1, SignatureVerdict.VALID, ReceiverAnswer(), 12.5, CIMultiDict(), event.body)
    return arrived._replace(**changes)  # type: ignore[arg-type] # of every field's own type


def test_only_an_acknowledged_valid_unaltered_request_counts_as_delivered() -> None:
    one = endpoint()
    for request in (
        arrival(DemoEvent(0), answer=ReceiverAnswer(500)),
        arrival(DemoEvent(0), answer=ReceiverAnswer(None)),
        arrival(DemoEvent(0), verdict=SignatureVerdict.WRONG),
        arrival(DemoEvent(0), body=DemoEvent(1).body),
        arrival(DemoEvent(7)),
    ):
        one.arrived(request, lambda _id: 12.0)
    assert (one.latencies, one.attempts, one.bad_signatures, one.altered) == ({}, 5, 1, 2)
    one.arrived(arrival(DemoEvent(0)), lambda _id: 12.0)
    one.arrived(arrival(DemoEvent(0)), lambda _id: 12.0)
    assert (one.latencies, one.duplicates) == ({"evt_000000": 0.5}, 1)


def test_nothing_is_wrong_when_all_arrived() -> None:
    assert complaints(endpoint(latencies=dict.fromkeys(endpoint().owed, 0.1), attempts=9, duplicates=2)) == []
    assert complaints(endpoint(behaviour=None, dead=endpoint().owed)) == []


@pytest.mark.parametrize(
    ("account", "sentence"),
    [
        (endpoint(latencies={"evt_000001": 0.1}), "did not get 2 of the 3 events"),
        (endpoint(dead=endpoint().owed), "3 of them are in the dead-letter topic"),
        (
            endpoint(behaviour=None, dead={"evt_000001"}),
            "2 of the 3 events owed to one are not in the dead-letter",
        ),
        (endpoint(0, bad_signatures=4), "4 requests to one had a signature"),
        (endpoint(0, altered=5), "5 requests to one were not what was published"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(account: Endpoint, sentence: str) -> None:
    assert any(sentence in said for said in complaints(account))


def test_every_event_is_owed_to_somebody_and_the_filters_say_what_the_predicates_say() -> None:
    cast = {each.id: each for each in endpoints()}
    events = [DemoEvent(number) for number in range(80)]
    for each in cast.values():
        for event in events:
            exact = event.type in each.event_types or "*" in each.event_types
            below = f"{event.type.split('.')[0]}.*" in each.event_types
            assert each.wants(event) == ((exact or below) and each.tenant in {"*", event.tenant})


def test_the_flaky_endpoint_fails_a_quarter_in_three_ways_and_gives_in() -> None:
    owed = [DemoEvent(number).id for number in range(1, 800, 2)]
    first = [flaky(event_id, 1) for event_id in owed]
    assert sum(answer != ReceiverAnswer() for answer in first) == len(owed) // 4
    assert {answer.status for answer in first if answer.delay == 0} == {200, 500, None}
    assert any(answer.delay for answer in first)
    assert all(flaky(event_id, 3) == ReceiverAnswer() for event_id in owed)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.5, 2.0), (0.51, 3.0), (0.75, 3.0), (0.99, 4.0), (1.0, 4.0)]
)
def test_percentiles_are_by_nearest_rank(share: float, expected: float) -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], share) == expected
    assert percentile([], share) is None
