"""What callers do with replays, on virtual time; the rest is held over the API (`tests/api/test_replays.py`)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from dispatcher.broker.base import BrokerUnavailable, TopicPartition
from dispatcher.control.errors import (
    Invalid,
    NotFound,
    Overloaded,
    QuotaExceeded,
    Unavailable,
    VersionMismatch,
    WrongState,
)
from dispatcher.control.table import Row
from dispatcher.core.commit.note import pack
from dispatcher.core.replay.job import JobState, ReplayJob, ReplayRange, ReplaySource
from dispatcher.core.subscription.index import Index
from dispatcher.core.subscription.model import Status
from dispatcher.replays.service import MOST, MOST_OF_TENANT, ReplayAsked, Replays
from dispatcher.replays.store import KEPT
from tests.fakes import subscription
from tests.replays.world import ID, WALL, Killed, ReplayWorld, Replica, asked, world

pytestmark = [pytest.mark.looptime]

EVENTS = TopicPartition("events", 0)
DEAD = ReplayAsked(ReplaySource.DEAD_LETTERS)


async def service_of(made: ReplayWorld) -> tuple[Replays, Replica]:
    """A service whose jobs nobody runs."""
    replica = Replica(made, "a")
    made.replicas.append(replica)
    replica.store.start()
    await replica.store.wait_loaded()
    return Replays(replica.parts, int, history_is_on=True), replica


async def start(service: Replays, asked_for: ReplayAsked = DEAD, tenant: str | None = None) -> ReplayJob:
    return await service.start(asked_for, tenant=tenant, principal="p", name="operator ops")


async def test_before_the_jobs_are_read_nobody_can_ask() -> None:
    async with world() as made:
        replica = Replica(made, "a")
        service = Replays(replica.parts, int, history_is_on=True)
        with pytest.raises(Unavailable):
            service.get(ID, tenant=None)
        with pytest.raises(Unavailable):
            await start(service)


async def test_a_tenant_sees_what_its_own_keys_began() -> None:
    async with world() as made:
        made.index = Index([subscription(tenant="acme"), subscription("sub_2", tenant="*")])
        service, _ = await service_of(made)
        mine = await start(service, tenant="acme")
        theirs = await start(service, replace(DEAD, tenant="acme"))
        assert [job.id for job in service.list(tenant="acme").jobs] == [mine.id]
        assert {job.id for job in service.list(tenant=None).jobs} == {mine.id, theirs.id}
        assert (mine.request.tenant, mine.owner, theirs.owner) == ("acme", "acme", None)
        for change in (service.pause, service.resume):
            with pytest.raises(NotFound):
                await change(mine.id, tenant="globex")
        with pytest.raises(NotFound):
            await service.cancel(theirs.id, tenant="acme", by="x")
        for id_ in ("sub_2", "sub_none"):
            with pytest.raises(NotFound):
                await start(service, replace(DEAD, subscription=id_), tenant="acme")
        with pytest.raises(Invalid):
            await start(service, replace(DEAD, tenant="globex"), tenant="acme")


async def test_pages_are_newest_first_and_go_on_where_the_last_one_ended() -> None:
    async with world() as made:
        service, _ = await service_of(made)
        jobs = []
        for _ in range(5):
            made.later += 1
            jobs.append(await start(service))
        await service.cancel(jobs[2].id, tenant=None, by="x")
        first = service.list(tenant=None, limit=2)
        second = service.list(tenant=None, limit=2, cursor=first.next)
        third = service.list(tenant=None, limit=2, cursor=second.next)
        found = [job.id for page in (first, second, third) for job in page.jobs]
        assert found == [job.id for job in reversed(jobs)]
        assert third.next is None
        cancelled = service.list(tenant=None, state=JobState.CANCELLED)
        assert [job.id for job in cancelled.jobs] == [jobs[2].id]


async def test_a_tenant_has_as_many_as_its_quota_says() -> None:
    asked: list[tuple[str | None, int]] = []

    def check(tenant: str | None, own: int) -> None:
        asked.append((tenant, own))
        if own >= 1:
            raise QuotaExceeded("replays", "as many as it may", 60.0)

    async with world() as made:
        _, replica = await service_of(made)
        service = Replays(replica.parts, int, history_is_on=True, check_quota=check)
        await start(service, tenant="acme")
        made.later += 1
        with pytest.raises(QuotaExceeded):
            await start(service, tenant="acme")
        assert asked == [("acme", 0), ("acme", 1)]


async def test_there_are_so_many_at_a_time_and_no_more() -> None:
    async with world() as made:
        service, _ = await service_of(made)
        last = await start(service, tenant="acme")
        for _ in range(MOST_OF_TENANT - 1):
            made.later += 1
            await start(service, tenant="acme")
        with pytest.raises(Overloaded):
            await start(service, tenant="acme")
        await service.cancel(last.id, tenant="acme", by="x")
        await start(service, tenant="acme")
        for _ in range(MOST - MOST_OF_TENANT):
            made.later += 1
            await start(service)
        with pytest.raises(Overloaded):
            await start(service)


async def test_a_change_is_made_again_on_what_a_checkpoint_left() -> None:
    async with world() as made:
        service, replica = await service_of(made)
        await replica.store.put(asked().begin(1, "a"), base=0)
        put = replica.store.put
        tries = 0

        async def contended(job: ReplayJob, *, base: int) -> Row[ReplayJob]:
            nonlocal tries
            tries += 1
            if tries == 1:
                row = replica.store.get(ID)
                assert row is not None
                await put(replace(row.value, written=7), base=row.version)
                raise VersionMismatch(row.version)
            return await put(job, base=base)

        replica.store.put = contended  # type: ignore[method-assign] # its runner comes in between
        paused = await service.pause(ID, tenant=None)
        assert (paused.state, paused.written, tries) == (JobState.PAUSED, 7, 2)
        assert await service.pause(ID, tenant=None) == paused


async def test_marks_are_where_everything_before_was_taken_up() -> None:
    async with world() as made:
        service, _ = await service_of(made)
        assert await service.marks() == ()
        made.broker.committed[EVENTS] = 10
        assert await service.marks() == (("events", 0, 10),)
        # What is done beyond the commit says how far reading had come.
        made.broker.notes[EVENTS] = pack("events", 0, 10, [(12, 20), (25, 30)], {}).text
        assert await service.marks() == (("events", 0, 30),)


async def test_a_pause_does_not_wait_for_a_broker_that_tells_no_marks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with world() as made:
        service, _ = await service_of(made)

        async def away(group: str, topic: str) -> None:
            raise BrokerUnavailable("away")

        monkeypatch.setattr(made.broker, "positions_of", away)
        assert await service.marks() == ()


async def test_catching_up_begins_at_the_marks_and_by_time_where_there_are_none() -> None:
    async with world() as made:
        for partition in range(2):
            made.publish(1000, partition=partition)
        service, _ = await service_of(made)
        # The 900th second; a minute before that is read as well, and the seek's own margin of five.
        since = int(WALL * 1000) - 10_000_000 + 900_000
        job = await service.catch_up("sub_1", since, [("events", 0, 950)], tenant=None, name="x")
        assert job.ranges == (
            ReplayRange("events", 0, 950, 950, 1000),
            ReplayRange("events", 1, 540, 540, 1000),
        )
        by_time = await service.catch_up("sub_1", since, (), tenant=None, name="x")
        assert by_time.request.since_ms == since - 60_000
        assert by_time.ranges is not None
        assert [each.start for each in by_time.ranges] == [540, 540]
        nothing = await service.catch_up(
            "sub_1", since, [("events", 0, 1000), ("events", 1, 1000)], tenant=None, name="x"
        )
        assert (nothing.ranges, nothing.exhausted) == ((), True)


async def test_to_what_takes_nothing_nothing_is_begun() -> None:
    async with world() as made:
        made.index = Index([subscription(status=Status.PAUSED)])
        service, _ = await service_of(made)
        with pytest.raises(WrongState, match="resume it first"):
            await start(service, replace(DEAD, subscription="sub_1"))


async def two_replicas(made: ReplayWorld) -> list[Replica]:
    """Two on one broker, whose jobs nobody runs."""
    replicas = [Replica(made, name) for name in "ab"]
    made.replicas += replicas
    for replica in replicas:
        replica.store.start()
        await replica.store.wait_loaded()
    return replicas


async def send(replica: Replica, key: str, asked_for: ReplayAsked = DEAD) -> ReplayJob:
    """The request of a caller with an Idempotency-Key."""
    service = Replays(replica.parts, int, history_is_on=True)
    return await service.start(asked_for, tenant=None, principal="p", name="ops", idempotency_key=key)


async def same_jobs(replicas: list[Replica]) -> list[str]:
    """The ids of all jobs, once both replicas know them."""
    async with asyncio.timeout(60):
        while replicas[0].store.ids() != replicas[1].store.ids():
            await asyncio.sleep(0.05)
    return list(replicas[0].store.ids())


async def test_a_request_that_two_replicas_get_at_once_begins_one_replay() -> None:
    async with world() as made:
        replicas = await two_replicas(made)
        jobs = await asyncio.gather(*(send(replica, "k") for replica in (*replicas, *replicas)))
        assert len({job.id for job in jobs}) == 1
        assert await same_jobs(replicas) == [jobs[0].id]
        # And again, when all is quiet; another key is another request.
        assert (await send(replicas[1], "k")).id == jobs[0].id
        assert (await send(replicas[1], "k2")).id != jobs[0].id


async def test_a_key_that_two_replicas_get_with_different_requests_at_once_is_refused_to_one() -> None:
    async with world() as made:
        replicas = await two_replicas(made)
        since = replace(DEAD, since_ms=1)
        answers = await asyncio.gather(
            send(replicas[0], "k"), send(replicas[1], "k", since), return_exceptions=True
        )
        assert sorted(type(answer).__name__ for answer in answers) == ["ReplayJob", "WrongState"]
        assert len(await same_jobs(replicas)) == 1


async def test_a_crash_between_any_two_writes_of_a_request_leaves_one_replay_when_it_is_sent_again() -> None:
    for at in range(3):
        for when in ("before", "after"):
            async with world() as made:
                replicas = await two_replicas(made)
                begin = len(made.broker.writes)
                made.broker.dies = lambda number, _, die=(begin + at, when): (
                    die[1] if number == die[0] else None
                )  # type: ignore[misc] # the parameter is bound
                with pytest.raises(Killed):
                    await send(replicas[0], "k")
                jobs = [await send(replica, "k") for replica in reversed(replicas)]
                assert len({job.id for job in jobs}) == 1
                assert await same_jobs(replicas) == [jobs[0].id]


async def test_no_two_replays_have_one_number_though_two_replicas_begin_them_at_once() -> None:
    async with world() as made:
        replicas = await two_replicas(made)
        jobs = await asyncio.gather(
            *(start(Replays(replica.parts, int, history_is_on=True)) for replica in replicas * 3)
        )
        assert sorted(job.number for job in jobs) == [1, 2, 3, 4, 5, 6]
        caught_up = await Replays(replicas[1].parts, int, history_is_on=True).catch_up(
            "sub_1", 0, (), tenant=None, name="x"
        )
        assert (caught_up.number, caught_up.generation) == (7, 8)


async def test_a_claim_is_forgotten_with_its_replay() -> None:
    async with world() as made:
        replica = (await two_replicas(made))[0]
        job = await send(replica, "k")
        made.later = KEPT + 60
        await replica.store.keep_house()
        claims = replica.store._claims
        assert len(claims.names()) == 1  # the replay is not over
        service = Replays(replica.parts, int, history_is_on=True)
        await service.cancel(job.id, tenant=None, by="x")
        made.later += KEPT + 60
        await replica.store.keep_house()
        assert (replica.store.ids(), claims.names()) == ([], [])
        assert (await send(replica, "k")).id != job.id
