"""Running replays: all of it is sent, by one replica at a time, whoever dies when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from dispatcher.broker.base import BrokerUnavailable
from dispatcher.core.replay.job import JobState, ReplaySource
from dispatcher.core.replay.pacing import AHEAD
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.history.base import DeliveryState
from dispatcher.history.merge import merge
from dispatcher.replays.runner import LEASE
from dispatcher.replays.service import ReplayAsked, Replays
from tests.fakes import subscription
from tests.history.records import NOON, attempt
from tests.replays.world import ID, REPLAY, WALL, ReplayWorld, Replica, asked, becomes, over, world

pytestmark = [pytest.mark.looptime]


async def begun(made: ReplayWorld, **more: object) -> None:
    replica = made.replicas[0]
    await replica.store.wait_loaded()
    await replica.store.put(asked(**more), base=0)  # type: ignore[arg-type] # what a request has


async def test_everything_of_the_time_is_sent_once() -> None:
    async with world() as made:
        for partition in range(2):
            made.publish(1500, partition=partition)
        replica = made.replica()
        since = int(WALL * 1000) - 10_000_000 + 100_000
        await begun(made, since_ms=since, until_ms=since + 500_000)
        job = await over(replica)
        assert job.state is JobState.DONE
        assert (job.written, job.sent, job.behind, job.fraction) == (1000, 1000, 0, 1.0)
        wanted = {f"evt_{partition}_{number}": 1 for partition in range(2) for number in range(100, 600)}
        assert made.sent() == wanted
        assert made.broker.replayed()[0].replay == ID
        assert replica.parts.counts.by_result() == {"written": 1000, "sent": 1000, "skipped": 0}


async def test_what_one_partition_has_comes_in_its_order() -> None:
    async with world() as made:
        made.publish(700)
        await begun_and_done(made)
        assert [record.source.offset for record in made.broker.replayed()] == [*range(700)]


async def begun_and_done(made: ReplayWorld) -> None:
    replica = made.replica()
    await begun(made)
    assert (await over(replica)).state is JobState.DONE


async def test_nothing_is_written_further_ahead_than_may_be() -> None:
    async with world() as made:
        made.publish(5000)
        made.delivers = False
        replica = made.replica()
        await begun(made)
        await asyncio.sleep(60)
        assert len(made.broker.log[REPLAY]) == AHEAD
        assert replica.runner.behind() == AHEAD
        assert replica.job().behind == AHEAD
        made.delivers = True
        assert (await over(replica)).sent == 5000


async def test_a_rate_is_kept() -> None:
    async with world() as made:
        made.publish(300)
        replica = made.replica()
        await begun(made, rate=10.0)
        await becomes(replica, JobState.RUNNING)
        started = asyncio.get_running_loop().time()
        await over(replica)
        assert 28 <= asyncio.get_running_loop().time() - started <= 40


async def test_a_pause_stops_the_writing_and_loses_nothing() -> None:
    async with world() as made:
        made.publish(1000)
        replica = made.replica()
        await begun(made, rate=50.0)
        await asyncio.sleep(8)
        await replica.change(lambda job: job.pause(replica.store.now_ms()))
        await asyncio.sleep(5)
        written = len(made.broker.log[REPLAY])
        await asyncio.sleep(600)
        assert len(made.broker.log[REPLAY]) == written
        job = replica.job()
        assert (job.state, job.runner, job.written) == (JobState.PAUSED, None, written)
        await replica.change(lambda job: job.resume())
        job = await over(replica)
        assert (job.state, job.written) == (JobState.DONE, 1000)
        assert set(made.sent().values()) == {1}


async def test_what_is_cancelled_is_not_written_on() -> None:
    async with world() as made:
        made.publish(1000)
        replica = made.replica()
        await begun(made, rate=50.0)
        await asyncio.sleep(8)
        await replica.change(lambda job: job.cancel(7, "by me"))
        await asyncio.sleep(5)
        written = len(made.broker.log[REPLAY])
        await asyncio.sleep(60)
        assert len(made.broker.log[REPLAY]) == written < 1000
        job = replica.job()
        assert (job.state, job.detail, job.written) == (JobState.CANCELLED, "by me", written)


async def test_one_replica_runs_it_and_another_goes_on_where_it_stopped() -> None:
    async with world() as made:
        made.publish(1000)
        first = made.replica("a")
        await begun(made, rate=50.0)
        await becomes(first, JobState.RUNNING)
        second = made.replica("b")
        await asyncio.sleep(5)
        assert second.job().runner == "a"
        await first.stop()
        job = await over(second)
        assert (job.state, job.written) == (JobState.DONE, 1000)
        assert set(made.sent().values()) == {1}


async def test_a_job_whose_runner_died_is_taken_over_after_the_lease_and_not_before() -> None:
    async with world() as made:
        made.publish(1000)
        first = made.replica("a")
        await begun(made, rate=50.0)
        await becomes(first, JobState.RUNNING)
        second = made.replica("b")
        await asyncio.sleep(6)
        await first.kill()
        await asyncio.sleep(LEASE - 3)
        assert second.job().runner == "a"
        await asyncio.sleep(6)
        assert second.job().runner == "b"
        job = await over(second)
        assert made.sent().keys() == {f"evt_0_{number}" for number in range(1000)}
        # At most what was written since the last checkpoint: a second's worth.
        assert made.sent().total() <= 1000 + 100
        assert job.state is JobState.DONE


async def test_a_runner_that_comes_back_by_its_name_goes_on_at_once() -> None:
    async with world() as made:
        made.publish(500)
        first = made.replica("a")
        await begun(made, rate=50.0)
        await asyncio.sleep(4)
        await first.kill()
        again = made.replica("a")
        await asyncio.sleep(2)
        assert len(made.broker.log[REPLAY]) > 200
        assert (await over(again)).state is JobState.DONE
        assert made.sent().keys() == {f"evt_0_{number}" for number in range(500)}


async def test_a_runner_that_lost_its_job_writes_no_more() -> None:
    """It hung for longer than the lease, and finds another one's checkpoint."""
    async with world() as made:
        made.publish(1000)
        first = made.replica("a")
        await begun(made, rate=20.0)
        await becomes(first, JobState.RUNNING)
        second = made.replica("b")
        await second.store.wait_loaded()
        await second.change(lambda job: job.begin(5, "c"))
        await asyncio.sleep(2)
        assert not first.runner._running
        assert not first.failures
        assert second.job().runner == "c"


def dies_from(first: int, when: str) -> Callable[[int, str], str | None]:
    return lambda at, _topic: when if at >= first else None


@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_at_any_write_it_skips_none_and_repeats_little(when: str) -> None:
    """The first replica dies at its nth write, of whatever topic, and the second one does the rest."""
    for number in range(40):
        async with world() as made:
            made.publish(1200)
            first = made.replica("a")
            await begun(made)
            writes = len(made.broker.writes)
            made.broker.dies = dies_from(writes + number, when)
            await asyncio.sleep(60)
            dead = len(made.broker.writes) > writes + number
            await first.kill()
            made.broker.dies = lambda _at, _topic: None
            second = made.replica("b")
            job = await over(second)
            assert job.state is JobState.DONE
            sent = made.sent()
            assert sent.keys() == {f"evt_0_{each}" for each in range(1200)}
            assert sent.total() - 1200 <= AHEAD
            if not dead:
                assert number > 3
                break
    else:
        pytest.fail("it wrote more often than was tried")


async def test_while_the_broker_is_away_it_waits_and_then_goes_on() -> None:
    async with world() as made:
        made.publish(600)
        replica = made.replica()
        await begun(made, rate=100.0)
        await asyncio.sleep(3)
        made.broker.produce_errors = [BrokerUnavailable("away")] * 4
        made.broker.unreadable_for = 4
        job = await over(replica)
        assert job.state is JobState.DONE
        assert made.sent().keys() == {f"evt_0_{number}" for number in range(600)}


async def test_it_fails_when_its_subscription_is_deleted_and_says_so() -> None:
    async with world() as made:
        made.publish(1000)
        replica = made.replica()
        await begun(made, rate=20.0, subscription="sub_1")
        await asyncio.sleep(5)
        made.index = Index([])
        job = await over(replica)
        assert (job.state, job.detail) == (JobState.FAILED, "the subscription sub_1 was deleted")


async def test_what_is_paused_meanwhile_is_left_out_and_counted() -> None:
    async with world() as made:
        made.publish(100)
        made.index = Index([subscription(), subscription("sub_2", status=Status.PAUSED)])
        replica = made.replica()
        await begun(made)
        job = await over(replica)
        assert (job.written, job.skipped) == (100, {"not_active": 100})


async def test_dead_letters_that_come_meanwhile_are_no_part_of_it() -> None:
    async with world() as made:
        replica = made.replica()
        await begun(made, source=ReplaySource.DEAD_LETTERS)
        job = await over(replica)
        assert (job.state, job.written) == (JobState.DONE, 0)


async def test_a_replay_of_the_history_waits_for_a_replica_that_has_one() -> None:
    async with world() as made:
        replica = made.replica()
        await begun(made, source=ReplaySource.DELIVERIES)
        await asyncio.sleep(60)
        assert replica.job().state is JobState.PLANNED


async def test_an_error_of_its_own_ends_the_job_and_not_the_process() -> None:
    async with world() as made:
        made.publish(10)
        replica = made.replica()

        def broken() -> Index:
            raise RuntimeError("a bug")

        replica.parts.index = broken
        await begun(made)
        job = await over(replica)
        assert job.state is JobState.FAILED
        assert "a bug" in (job.detail or "")
        assert not replica.failures


def service_of(replica: Replica) -> Replays:
    return Replays(replica.parts, int, history_is_on=True)


async def start(replica: Replica) -> str:
    """One of everything, 50 a second."""
    await replica.store.wait_loaded()
    everything = ReplayAsked(ReplaySource.EVENTS, since_ms=0, rate=50.0)
    return (await service_of(replica).start(everything, tenant=None, principal="p", name="ops")).id


async def ended(replica: Replica, *ids: str) -> None:
    async with asyncio.timeout(600):
        while not all(replica.job(id_).state is JobState.DONE for id_ in ids):
            await asyncio.sleep(0.05)


def generations(made: ReplayWorld, *ids: str) -> list[set[int]]:
    """Of each replay's deliveries."""
    return [{each.generation for each in made.broker.replayed() if each.replay == id_} for id_ in ids]


@pytest.mark.parametrize("later_first", [False, True])
async def test_two_replays_of_one_event_have_a_generation_each_whichever_runs_first(
    later_first: bool,
) -> None:
    async with world() as made:
        made.publish(100)
        replica = made.replica()
        ids = [await start(replica), await start(replica)]
        for id_ in ids:
            await service_of(replica).pause(id_, tenant=None)
        for id_ in reversed(ids) if later_first else ids:
            await service_of(replica).resume(id_, tenant=None)
            await ended(replica, id_)
        assert generations(made, *ids) == [{2}, {3}]
        assert len(made.broker.replayed()) == 200


@pytest.mark.parametrize("delivered_first", [False, True])
def test_of_two_replays_of_one_event_the_later_one_holds_in_whatever_order_they_end(
    delivered_first: bool,
) -> None:
    # The first replay delivers; the second one, begun later, is given up.
    records = [
        attempt(0, decision="dead", reason="exhausted", generation=1),
        attempt(1, generation=2, time_ms=NOON + 10),
        attempt(
            2,
            decision="dead",
            reason="exhausted",
            generation=3,
            time_ms=NOON + (20 if delivered_first else 5),
        ),
    ]
    row, _ = merge(
        None, records if delivered_first else [records[0], records[2], records[1]], (), NOON, int, {}
    )
    assert row is not None
    assert (row.state, row.generation, row.attempts) == (DeliveryState.DEAD, 3, 3)


async def test_after_a_crash_each_replay_goes_on_with_its_own_generation() -> None:
    async with world() as made:
        made.publish(100)
        one = made.replica("one")
        ids = [await start(one), await start(one)]
        await asyncio.sleep(1.1)
        made.broker.dies = lambda _, topic: "after" if topic == REPLAY.topic else None
        await asyncio.sleep(1)
        await one.kill()
        made.replicas.remove(one)
        made.broker.dies = lambda *_: None
        written = len(made.broker.replayed())
        other = made.replica("other")
        await other.store.wait_loaded()
        await ended(other, *ids)
        assert 0 < written < 200
        assert generations(made, *ids) == [{2}, {3}]
        for id_ in ids:
            assert {each.event.id for each in made.broker.replayed() if each.replay == id_} == {
                f"evt_0_{number}" for number in range(100)
            }
