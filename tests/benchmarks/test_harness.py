"""The benchmarks' own arithmetic, and the page that they write."""

import os
import subprocess
import sys
from collections.abc import Iterable
from ipaddress import ip_address
from pathlib import Path

import pytest

from benchmarks import __main__ as command, bench_engine, end_to_end, harness, profiling, scale
from benchmarks.harness import CannotRun, Compared, Pair, Section, Table


def _section(title: str, figure: str) -> Section:
    section = Section(title, "python -m benchmarks")
    table = Table(("what", "figure"))
    table.add("`rate`", figure)
    section.add(table)
    return section


def test_a_section_replaces_its_older_self_and_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "RESULTS.md"
    _section("Transport", "1").report(page)
    _section("End to end", "2").report(page)
    _section("Transport", "3").report(page)
    text = page.read_text()
    assert text.startswith("# Results\n")
    assert text.index("## End to end") < text.index("## Transport")
    assert text.count("## Transport") == 1
    assert "| `rate` | 3 |" in text
    assert "| `rate` | 2 |" in text
    assert "| `rate` | 1 |" not in text
    assert "rate       3" in capsys.readouterr().out


def test_a_section_without_a_page_is_only_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _section("Transport", "1").report(None)
    assert "Transport" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda tool: None if tool == "wrk" else f"/usr/bin/{tool}")
    harness.require("taskset")
    with pytest.raises(CannotRun, match=r"not found: wrk\. .*apt-get install wrk"):
        harness.require("wrk", "taskset")


@pytest.mark.parametrize("what", ["soak", "growth", "all"])
def test_what_ends_in_a_plot_does_not_begin_without_the_library(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["benchmarks", what])
    monkeypatch.setattr("benchmarks.harness.find_spec", lambda name: None if name == "matplotlib" else name)
    monkeypatch.setattr(command, "compile_daemon", lambda: pytest.fail("it has begun"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert command.main() == 2
    assert "`pip install matplotlib`" in capsys.readouterr().err


@pytest.mark.parametrize(("x", "y"), [(-1, 10), (0, 10), (5, 15), (10, 20), (15, 40), (20, 60), (99, 60)])
def test_a_value_between_two_points_lies_on_the_line(x: float, y: float) -> None:
    assert harness.crossing([(0, 10), (10, 20), (20, 60)], x) == y


def _readings(monkeypatch: pytest.MonkeyPatch, others: Iterable[float]) -> None:
    """`Disturbance.read` gives these shares, one after the other."""
    rest = iter(others)

    class Scripted:
        LIMIT = 0.05

        def read(self) -> tuple[float, float]:
            return next(rest), 0.0

    monkeypatch.setattr(harness, "Disturbance", Scripted)
    monkeypatch.setattr(harness, "wait_for_calm", lambda _: None)


def test_each_measurement_is_compared_with_the_wrk_runs_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    _readings(monkeypatch, [0.0] * 9)
    rates = iter([50.0, 60.0])
    wrks = iter([100.0, 200.0, 300.0])
    compared = harness.beside_wrk(lambda: (next(rates), "seen"), lambda: next(wrks), 2)
    assert compared == Compared([Pair(50, 150), Pair(60, 250)], ["seen", "seen"], disturbed=0, set_aside=0)
    assert compared.ratios == [50 / 150, 60 / 250]
    assert compared.remark() == ""


def test_a_disturbed_measurement_is_repeated_whatever_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    # wrk, then (measurement, wrk) each: the first measurement is disturbed, the others are calm.
    _readings(monkeypatch, [0.0, 0.9, 0.0, 0.0, 0.0])
    rates = iter([99.0, 50.0])
    compared = harness.beside_wrk(lambda: (next(rates), None), lambda: 100.0, 1)
    assert compared.rates == [50.0]
    assert (compared.disturbed, compared.set_aside) == (0, 1)
    assert "repeated" in compared.remark()


def test_on_a_machine_that_never_calms_down_the_figures_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    _readings(monkeypatch, [0.9] * 99)
    compared = harness.beside_wrk(lambda: (1.0, None), lambda: 100.0, 2)
    assert len(compared.pairs) == 2
    assert compared.disturbed == 2
    assert "2 of 2 runs" in compared.remark()


@pytest.mark.parametrize("size", [600, 1024, 4096])
def test_events_have_exactly_the_size_asked_for(size: int) -> None:
    event_id, body = harness.envelope(7, size)
    assert len(body) == size
    assert event_id.encode() in body


def test_events_spread_evenly_over_subscriptions_and_within_those_over_partitions() -> None:
    made = list(end_to_end.events(128))
    assert len({event_id for event_id, _ in made}) == 128
    places = {(number % 8, message.partition) for number, (_, message) in enumerate(made)}
    assert len(places) == 64


def test_metrics_are_read_as_the_daemon_writes_them() -> None:
    before = end_to_end.Metrics(
        'dispatcher_lag_bucket{le="0.01"} 5.0\ndispatcher_lag_bucket{le="+Inf"} 5.0\n'
    )
    after = end_to_end.Metrics(
        'dispatcher_deliveries_total{outcome="delivered"} 42.0\n'
        'dispatcher_lag_bucket{le="0.01"} 103.0\n'
        'dispatcher_lag_bucket{le="0.1"} 105.0\n'
        'dispatcher_lag_bucket{le="+Inf"} 105.0\n'
    )
    assert after.delivered == 42
    assert after["nothing"] == 0
    assert after.quantile("lag", 0.5, before) == 0.01
    assert after.quantile("lag", 0.99, before) == 0.1


def test_samples_count_for_what_the_nearest_known_frame_does() -> None:
    loop = "asyncio/runners.py:Runner.run"
    done = "dispatcher/delivery/engine.py:Engine._done"
    assert profiling._purpose((loop,)) == "event loop, sockets"
    assert profiling._purpose((loop, done)) == "attempt, result"
    assert profiling._purpose((loop, done, "dispatcher/core/endpoint/lane.py:Lane.take")) == "queue"
    assert profiling._purpose((loop, done, "dispatcher/transport/connection.py:Connection._write")) == "send"
    prefetch = "dispatcher/core/request/build.py:Template.prefetch"
    assert profiling._purpose((loop, "dispatcher/delivery/sending.py:_prefetch", prefetch)) == "prefetch"
    assert profiling._purpose((loop, "aiokafka/consumer/fetcher.py:FetchResult.getall")) == "consume"
    assert profiling._purpose(("elsewhere.py:f",)) == "other"


@pytest.mark.parametrize(
    ("symbol", "known_as"),
    [
        ("CPyDef_lane___Lane___take", "dispatcher/core/endpoint/lane.py:Lane.take"),
        ("CPyDef_signing____Hmac___digest", "dispatcher/core/request/signing.py:_Hmac.digest"),
        ("CPyPy_decode___decode", "dispatcher/core/event/decode.py:decode"),
        ("CPyDef_decode____envelope", "dispatcher/core/event/decode.py:_envelope"),
        (
            "CPyDef_attempt_log___AttemptLog___note",
            "dispatcher/delivery/attempt_log.py:AttemptLog.note",
        ),
        (
            "CPyDef_attempt_log____write_AttemptLog_gen_____mypyc_generator_helper__",
            "dispatcher/delivery/attempt_log.py:AttemptLog._write",
        ),
    ],
)
def test_compiled_functions_get_the_names_of_their_sources(symbol: str, known_as: str) -> None:
    stack = ["run (asyncio/runners.py:118)", f"{symbol} (__native_dispatcher.c:7)", "malloc (libc.so.6)"]
    assert list(profiling._named(stack)) == ["asyncio/runners.py:run", known_as]


def test_the_flame_graph_draws_each_frame_as_wide_as_its_share() -> None:
    drawn = profiling.flame_graph({("a.py:run", "b.py:<lambda>"): 3, ("a.py:run",): 1})
    assert "<title>a.py:run 100.0%</title>" in drawn
    assert "<title>b.py:&lt;lambda&gt; 75.0%</title>" in drawn
    assert f'width="{0.75 * 1400:.1f}"' in drawn


def test_the_many_hosts_are_loopback_addresses_each_once() -> None:
    addresses = scale.addresses(70_000)
    assert len(set(addresses)) == 70_000
    assert all(ip_address(address).is_loopback for address in addresses)
    assert not {*addresses} & {*end_to_end.HOSTS}


def test_the_engine_is_measured_with_stand_ins_that_fit_it() -> None:
    taken = bench_engine.results(quick=True)
    assert all(seconds > 0 for seconds in taken.values()), taken


def test_another_revision_is_run_from_a_folder_of_its_own() -> None:
    with harness.revision("HEAD", compiled=False) as site:
        assert Path(site, "dispatcher", "__about__.py").exists()
        assert harness.daemon_environ(site)["PYTHONPATH"].split(os.pathsep)[0] == site
    assert not Path(site).exists()
    with pytest.raises(harness.CannotRun, match="no revision"), harness.revision("no-such", compiled=False):
        pass


def test_the_cpu_of_a_server_is_that_of_its_children_too_also_when_they_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    before = harness.tree_cpu(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        while_it_runs = harness.tree_cpu(os.getpid())
        child.stdin.write("\n")
    # The kernel counts in hundredths of a second.
    assert while_it_runs - before >= 0.28
    assert harness.tree_cpu(os.getpid()) - before >= 0.28
