from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from dispatcher.broker.base import BrokerUnavailable, Message, MessageTooLarge, TopicPartition
from dispatcher.control.documents import Idempotency, StoredSecret
from dispatcher.control.errors import Invalid, NotFound, TooLarge, Unavailable, VersionMismatch
from dispatcher.control.store import ControlStore, subscriptions_topic
from dispatcher.core.control.keys import Key
from dispatcher.core.control.ledger import Change, to_headers
from dispatcher.core.event.catalogued import EventType
from dispatcher.core.request.netguard import Guard
from dispatcher.registry.registry import Registry
from dispatcher.settings.groups import ApiSettings, Settings
from tests.fakes import MemoryBroker, MemoryReader

pytestmark = pytest.mark.looptime

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + "B" * 32
DOCUMENT = {"url": "https://hooks.example/acme", "event_types": ["a.*"], "tenant": "acme"}
TOPIC = TopicPartition(subscriptions_topic(Settings()), 0)
OLD_KEY, NEW_KEY = (b64encode(bytes([n]) * 32).decode() for n in (1, 2))


class Replica:
    """A store with its registry, on virtual time."""

    def __init__(self, broker: MemoryBroker, settings: Settings, wall: Callable[[], float]) -> None:
        guard = Guard()
        self.registry = Registry(settings, guard, {"S": SECRET}, poll=1000, wall=wall)
        self.failures: list[BaseException] = []
        self.store = ControlStore(
            settings,
            broker,
            self.registry,
            guard,
            wall=wall,
            on_failure=lambda _, error: self.failures.append(error),
            reseal_delay=1.0,
        )

    def status(self, id: str = "s") -> tuple[str, str | None] | None:  # noqa: A002 - the field's name
        found = self.registry.index.get(id)
        return None if found is None else (found.status.value, found.reason)


class World:
    def __init__(self) -> None:
        self.broker = MemoryBroker()
        self.replicas: list[Replica] = []
        self.later = 0.0  # seconds that the wall clock has jumped: idle hours cost time here too

    def wall(self) -> float:
        return 1_700_000_000 + self.later + asyncio.get_running_loop().time()

    async def replica(self, *keys: str, file: Path | None = None, **api: Any) -> Replica:
        api["secrets_keys"] = tuple(map(SecretStr, keys))
        replica = Replica(self.broker, Settings(api=ApiSettings(**api), subscriptions_file=file), self.wall)
        self.replicas.append(replica)
        await replica.registry.start()
        await replica.store.start()
        await replica.store.wait_loaded()
        return replica

    async def stop(self, replica: Replica) -> None:
        self.replicas.remove(replica)
        await replica.store.stop()
        await replica.registry.stop()
        assert not replica.failures

    def written(self) -> list[tuple[str, bytes | None]]:
        return [
            ((record.key or b"").decode(errors="replace"), record.value) for record in self.broker.log[TOPIC]
        ]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    for replica in list(made.replicas):
        await made.stop(replica)


async def create(replica: Replica, id: str = "s", base: int = 0, **fields: Any) -> Any:  # noqa: A002
    return await replica.store.put(id, DOCUMENT | fields, [StoredSecret(SECRET)], base=base)


# Subscriptions.


async def test_a_created_subscription_is_in_force_here_at_once_and_on_the_others_soon(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    stored = await create(one, timeout="3s", headers={"X-Env": "prod"})
    assert (stored.id, stored.version, stored.secrets) == ("s", 1, (StoredSecret(SECRET),))
    assert stored.document == DOCUMENT | {"timeout": "3s", "headers": {"X-Env": "prod"}}
    assert stored.created_ms == stored.updated_ms
    found = one.registry.index.match("acme", "a.b")[0]
    assert (found.timeout, found.secrets, found.headers) == (3.0, (SECRET,), (("X-Env", "prod"),))
    await asyncio.sleep(0.01)
    assert two.store.get("s") == stored
    assert two.registry.index.match("acme", "a.b")[0].url == "https://hooks.example/acme"
    assert (list(two.store.ids()), len(two.store)) == (["s"], 1)


async def test_a_change_keeps_when_and_by_which_request_it_was_created(world: World) -> None:
    one = await world.replica()
    request = Idempotency("key abc", "retry-1", "digest")
    first = await one.store.put("s", DOCUMENT, [StoredSecret(SECRET)], base=0, idempotency=request)
    await asyncio.sleep(5)
    second = await create(one, base=first.version, event_types=["b"])
    assert (second.version, second.created_ms, second.idempotency) == (2, first.created_ms, request)
    assert 5000 <= second.updated_ms - first.updated_ms < 5100
    assert one.registry.index.match("acme", "a.b") == ()
    assert one.store.by_idempotency("key abc", "retry-1") == second
    assert one.store.by_idempotency("another", "retry-1") is None


async def test_what_was_created_by_a_request_is_found_for_a_day_after_a_restart_too(world: World) -> None:
    one = await world.replica()
    request = Idempotency("key abc", "retry-1", "digest")
    stored = await one.store.put("s", DOCUMENT, [StoredSecret(SECRET)], base=0, idempotency=request)
    await world.stop(one)
    two = await world.replica()
    assert two.store.by_idempotency("key abc", "retry-1") == stored
    world.later = 24 * 3600 + 1
    assert two.store.by_idempotency("key abc", "retry-1") is None


async def test_of_two_changes_of_the_same_version_one_wins_and_the_other_is_told(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.01)
    results = await asyncio.gather(
        create(one, base=1, event_types=["one"]),
        create(two, base=1, event_types=["two"]),
        return_exceptions=True,
    )
    (won,) = [each for each in results if not isinstance(each, BaseException)]
    (lost,) = [each for each in results if isinstance(each, BaseException)]
    assert isinstance(lost, VersionMismatch)
    assert lost.current == 2
    await asyncio.sleep(60)
    assert one.store.get("s") == two.store.get("s") == won
    key, value = world.written()[-1]
    assert key == "s"
    assert orjson.loads(value or b"")["document"]["event_types"] == won.document["event_types"], "repaired"
    assert len(world.written()) == 4, "once, by the one that lost"


async def test_of_two_creations_of_an_id_one_wins(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    results = await asyncio.gather(create(one), create(two), create(one), return_exceptions=True)
    assert sorted(type(each).__name__ for each in results) == ["Stored", "VersionMismatch", "VersionMismatch"]


async def test_a_change_of_an_old_version_is_refused_without_a_record(world: World) -> None:
    one = await world.replica()
    await create(one)
    for base in (0, 2):
        with pytest.raises(VersionMismatch) as caught:
            await create(one, base=base)
        assert caught.value.current == 1
    with pytest.raises(VersionMismatch) as caught:
        await create(one, "other", base=1)
    assert caught.value.current is None
    assert len(world.written()) == 1


async def test_a_deleted_one_is_gone_everywhere_and_may_be_made_anew(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    one.registry.disable("s", "gone")
    await asyncio.sleep(5)
    await one.store.delete("s", base=1)
    await asyncio.sleep(0.1)
    assert two.store.get("s") is None
    assert (list(two.store.ids()), len(two.registry.index)) == ([], 0)
    with pytest.raises(VersionMismatch):
        await two.store.delete("s", base=1)
    again = await create(two)
    assert again.version == 3
    await asyncio.sleep(0.1)
    assert one.status() == two.status() == ("active", None)


async def test_what_is_no_subscription_is_refused_field_by_field(world: World) -> None:
    one = await world.replica()
    with pytest.raises(Invalid) as caught:
        await create(one, url="http://10.0.0.1/", event_types=[], nonsense=1)
    assert {flaw.field for flaw in caught.value.flaws} == {"url", "event_types", "nonsense"}
    assert world.written() == []


async def test_everything_is_there_again_after_a_restart(world: World) -> None:
    one = await world.replica()
    for number in range(20):
        await create(one, f"s{number:02}")
    await create(one, "s03", base=1, url="https://else.example/")
    await one.store.delete("s07", base=1)
    one.registry.disable("s05", "gone")
    await asyncio.sleep(5)
    before = [one.store.get(id_) for id_ in one.store.ids()]
    counts = one.registry.counts()
    await world.stop(one)
    two = await world.replica()
    assert [two.store.get(id_) for id_ in two.store.ids()] == before
    assert two.registry.counts() == counts == {"active": 18, "paused": 0, "pending": 0, "disabled": 1}
    assert two.status("s05") == ("disabled", "gone")
    assert two.status("s07") is None


async def test_nothing_can_be_written_before_everything_is_read(world: World) -> None:
    replica = Replica(world.broker, Settings(), world.wall)
    assert not replica.store.loaded
    assert replica.store.problem is not None
    with pytest.raises(Unavailable):
        await create(replica)
    with pytest.raises(Unavailable):
        await replica.store.enable("s")


async def test_a_broker_that_is_away_for_a_moment_is_waited_for_and_the_write_counts_once(
    world: World,
) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away"), BrokerUnavailable("away")]
    assert (await create(one)).version == 1
    assert len(world.written()) == 1


async def test_a_write_that_is_acknowledged_and_not_read_back_in_time_is_answered_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await world.replica()

    async def hang(*_: object) -> None:
        await asyncio.sleep(1e6)

    monkeypatch.setattr(MemoryReader, "read", hang)
    await asyncio.sleep(2)  # until the poll under way is over
    with pytest.raises(Unavailable, match="may still take effect"):
        await create(one)


async def test_one_that_cannot_be_read_hides_no_other(world: World) -> None:
    one = await world.replica()
    await create(one)
    await world.broker.produce([Message(TOPIC.topic, b"[]", b"t", to_headers(Change(0, 1, b"n")), 0)])
    await asyncio.sleep(1)
    assert list(one.store.ids()) == ["s", "t"]
    assert one.store.get("t") is None
    assert one.store.get("s") is not None


async def test_a_broker_that_stays_away_is_told_and_the_store_recovers(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    with pytest.raises(Unavailable, match="may still take effect"):
        await create(one)
    assert one.store.get("s") is None
    world.broker.produce_errors.clear()
    assert (await create(one)).version == 1


async def test_a_document_that_the_broker_does_not_take_is_too_large(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors.append(MessageTooLarge("too large"))
    with pytest.raises(TooLarge):
        await create(one)


async def test_writes_under_way_end_when_the_store_stops(world: World) -> None:
    one = await world.replica()
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    writing = asyncio.get_running_loop().create_task(create(one))
    await asyncio.sleep(0.1)
    await world.stop(one)
    with pytest.raises(Unavailable, match="stopping"):
        await writing


# Secrets.


async def test_a_rotated_secret_ends_by_itself_on_every_replica(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    ends = one.store.now_ms() + 3600_000
    await one.store.put("s", DOCUMENT, [StoredSecret(OTHER), StoredSecret(SECRET, ends)], base=0)
    world.later = 3590
    await asyncio.sleep(5)
    three = await world.replica()
    for replica in (one, two, three):
        assert replica.registry.index.get("s").secrets == (OTHER, SECRET)  # type: ignore[union-attr]
    await asyncio.sleep(70)
    for replica in (one, two, three):
        assert replica.registry.index.get("s").secrets == (OTHER,)  # type: ignore[union-attr]
        assert replica.store.get("s").secrets == (StoredSecret(OTHER),)  # type: ignore[union-attr]
    assert len(world.written()) == 1


async def test_secrets_and_headers_are_sealed_in_the_topic(world: World) -> None:
    one, two = await world.replica(NEW_KEY), await world.replica(OLD_KEY, NEW_KEY)
    await create(one, headers={"Authorization": "Bearer very-secret"})
    written = world.written()[0][1] or b""
    assert SECRET.encode() not in written
    assert b"very-secret" not in written
    await asyncio.sleep(0.1)
    found = two.registry.index.get("s")
    assert found is not None
    assert (found.secrets, found.headers) == ((SECRET,), (("Authorization", "Bearer very-secret"),))


async def test_without_a_key_every_start_says_loudly_once_that_secrets_are_not_encrypted(
    world: World,
) -> None:
    for name in ("s", "t"):
        with capture_logs() as logs:
            one = await world.replica()
            await create(one, name)
        assert len([each for each in logs if "NOT ENCRYPTED" in each["event"]]) == 1
    with capture_logs() as logs:
        await world.replica(NEW_KEY)
    assert not [each for each in logs if "NOT ENCRYPTED" in each["event"]]


async def test_a_subscription_whose_key_is_missing_is_disabled_and_named_and_not_lost(world: World) -> None:
    one = await world.replica(OLD_KEY)
    await create(one, headers={"X-Key": "hidden"})
    with capture_logs() as logs:
        two = await world.replica(NEW_KEY)
    assert two.status() == ("disabled", "sealed")
    (told,) = [each for each in logs if "NOT DELIVERED TO" in each["event"]]
    assert told["subscriptions"] == {"s": "sealed"}
    stored = two.store.get("s")
    assert stored is not None
    assert (stored.unusable, stored.secrets, stored.document["headers"]) == ("sealed", (), {})
    assert two.registry.index.get("s").secrets == ()  # type: ignore[union-attr]
    await asyncio.sleep(100)
    assert len(world.written()) == 1, "nothing was written over it"
    assert one.status() == ("active", None)
    three = await world.replica(NEW_KEY, OLD_KEY)
    assert three.status() == ("active", None)


async def test_a_key_that_is_missing_fills_no_log(world: World) -> None:
    """It is all subscriptions' that it has sealed: the first ones are named, and how many there are."""
    one = await world.replica(OLD_KEY)
    for number in range(50):
        await create(one, f"s{number}")
    for keys, said in (((NEW_KEY,), "a secret can't be opened"), ((), "a secret can't be opened")):
        with capture_logs() as logs:
            await world.replica(*keys)
        assert len([each for each in logs if each["event"] == said]) == 20
        (told,) = [each for each in logs if "NOT DELIVERED TO" in each["event"]]
        assert (told["total"], len(told["subscriptions"])) == (50, 20)


async def test_what_an_old_key_sealed_or_none_is_sealed_with_the_newest_after_the_start(world: World) -> None:
    one = await world.replica()
    await create(one, "plain")
    await world.stop(one)
    two = await world.replica(OLD_KEY)
    for number in range(250):
        await create(two, f"s{number}")
    await world.stop(two)
    three, four = await world.replica(NEW_KEY, OLD_KEY), await world.replica(NEW_KEY, OLD_KEY)
    await asyncio.sleep(100)
    assert three.store.ids() == four.store.ids()
    await world.stop(three)
    await world.stop(four)
    last = await world.replica(NEW_KEY)
    assert last.registry.counts()["active"] == 251
    before = len(world.written())
    await asyncio.sleep(100)
    assert len(world.written()) == before


@pytest.mark.parametrize(
    "broken",
    [
        {"secrets": [{"plain": SECRET, "expires_ms": "soon"}]},
        {"secrets": [{"plain": SECRET}]},
        {"secrets": [SECRET]},
        {"secrets": None},
        {"document": []},
        {"document": None},
        {"created_ms": ...},
        {"idempotency": {"principal": "p"}},
    ],
)
async def test_a_record_that_cannot_be_read_is_told_of_and_harms_nothing(
    world: World, broken: dict[str, Any]
) -> None:
    one = await world.replica()
    await create(one)
    await create(one, "t")
    raw = {**orjson.loads(world.written()[0][1] or b""), **broken}
    kept = {name: value for name, value in raw.items() if value is not ...}
    world.broker.log[TOPIC][0].value = orjson.dumps(kept)
    with capture_logs() as logs:
        two = await world.replica()
    assert [each["event"] for each in logs if each["log_level"] == "error"] == [
        "a subscription in the topic can't be read",
        "SUBSCRIPTIONS ARE NOT DELIVERED TO: the settings refuse them, or no key opens their secrets",
    ]
    assert two.status() is None
    assert two.store.get("s") is None
    assert two.status("t") == ("active", None)


async def test_one_that_the_settings_refuse_by_now_is_disabled_and_there(world: World) -> None:
    one = await world.replica()
    await create(one)
    raw = orjson.loads(world.written()[0][1] or b"")
    raw["document"]["url"] = "http://hooks.example:22/acme"
    world.broker.log[TOPIC][0].value = orjson.dumps(raw)
    two = await world.replica()
    assert two.status() == ("disabled", "invalid")
    stored = two.store.get("s")
    assert stored is not None
    assert stored.unusable == "invalid"


async def test_headers_that_were_taken_before_are_kept_with_all_that_they_say(world: World) -> None:
    """A name that servers fold into ours was allowed once: an upgrade ends nobody's subscription for it."""
    await create(await world.replica(), headers={"Content_Length": "7", "webhook.id": "x"})
    two = await world.replica()
    assert two.status() == ("active", None)
    subscription = two.registry.index.get("s")
    assert subscription is not None
    assert subscription.request.tail == b"\r\nContent_Length: 7\r\nwebhook.id: x\r\n\r\n"
    with pytest.raises(Invalid, match="set by the dispatcher"):
        await create(two, "t", headers={"Webhook-Id": "x"})


async def test_records_of_others_are_left_alone_and_what_they_cover_is_repaired(world: World) -> None:
    one = await world.replica()
    await create(one)
    for key, value in ((b"s", b"rubbish"), (b"t", b"rubbish"), (None, b"rubbish"), (b"\xff", None)):
        world.broker.append(value, partition=TOPIC)
        world.broker.log[TOPIC][-1].key = key
    await asyncio.sleep(60)
    two = await world.replica()
    assert list(two.store.ids()) == list(one.store.ids()) == ["s"]
    assert world.written()[-1] == world.written()[0], "repaired"
    assert len(world.written()) == 6


async def test_a_dirty_key_whose_writer_is_gone_is_repaired_by_who_comes(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.1)
    await world.stop(two)
    log = world.broker.log[TOPIC]
    world.broker.append(b"{}", [("base", b"0"), ("version", b"1"), ("write", b"lost")], partition=TOPIC)
    log[-1].key = b"s"
    await world.stop(one)
    three = await world.replica()
    await asyncio.sleep(5)
    assert world.written()[-1] == world.written()[0]
    assert three.status() == ("active", None)


# Statuses.


FILE = "subscriptions:\n  - {id: f, url: 'https://f.example/', event_types: [%s], secrets: ['${S}']}\n"


async def test_what_is_disabled_stays_so_after_a_restart_until_its_entry_changes(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "subscriptions.yaml"
    file.write_text(FILE % "a")
    one, two = await world.replica(file=file), await world.replica(file=file)
    one.registry.disable("f", "gone")
    await asyncio.sleep(3)
    assert one.status("f") == two.status("f") == ("disabled", "gone")
    await world.stop(one)
    await world.stop(two)
    three = await world.replica(file=file)
    assert three.status("f") == ("disabled", "gone")
    assert three.registry.runtime("f").since is not None  # type: ignore[union-attr]
    await world.stop(three)
    file.write_text(FILE % "b")
    four = await world.replica(file=file)
    assert four.status("f") == ("active", None)


async def test_an_entry_that_changes_while_it_runs_is_enabled_and_stays_so(
    world: World, tmp_path: Path
) -> None:
    file = tmp_path / "subscriptions.yaml"
    file.write_text(FILE % "a")
    one = await world.replica(file=file)
    one.registry.disable("f", "gone")
    await asyncio.sleep(3)
    file.write_text(FILE % "b")
    assert await one.registry.reload()
    await asyncio.sleep(3)
    assert one.status("f") == ("active", None)
    assert world.written()[-1] == ("status:f", None)
    file.write_text(FILE % "a")
    two = await world.replica(file=file)
    assert two.status("f") == ("active", None)


async def test_enabling_ends_a_disabling_on_every_replica(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    stored = await create(one)
    await asyncio.sleep(0.1)
    two.registry.disable("s", "gone")
    await asyncio.sleep(3)
    assert one.status() == ("disabled", "gone")
    await one.store.enable("s")
    await asyncio.sleep(0.1)
    assert one.status() == two.status() == ("active", None)
    assert one.store.get("s") == stored, "its version is the same"
    with pytest.raises(NotFound):
        await one.store.enable("nobody")


async def test_another_url_starts_over(world: World) -> None:
    one = await world.replica()
    await create(one)
    await one.store.set_disabled("s", "gone")
    assert (await create(one, base=1, event_types=["b"])).version == 2
    assert one.status() == ("disabled", "gone")
    await create(one, base=2, url="https://hooks.example/new")
    assert one.status() == ("active", None)


async def test_passing_the_validation_is_kept(world: World) -> None:
    one = await world.replica()
    await create(one, validate=True)
    assert one.status() == ("pending", "not validated")
    await one.store.set_validated("s")
    two = await world.replica()
    assert one.status() == two.status() == ("active", None)


async def test_failing_since_is_kept_with_few_records(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(0.1)
    before = len(world.written())
    for number in range(100):
        one.registry.note_failing("s", 1000.0 - number)
        await asyncio.sleep(0.01)
    await asyncio.sleep(5)
    assert two.registry.failing("s") == 901.0
    assert len(world.written()) - before <= 3
    three = await world.replica()
    assert three.registry.failing("s") == 901.0
    two.registry.note_recovered("s")
    await asyncio.sleep(5)
    assert one.registry.failing("s") is None
    assert world.written()[-1] == ("status:s", None)


async def test_decisions_of_two_replicas_about_different_things_both_count(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(5)
    one.registry.note_failing("s", 500.0)
    two.registry.disable("s", "gone")
    await asyncio.sleep(10)
    for replica in (one, two):
        assert replica.status() == ("disabled", "gone")
        assert replica.registry.failing("s") == 500.0


async def test_a_disabling_holds_here_while_the_broker_is_away_and_is_kept_later(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    await create(one)
    await asyncio.sleep(2)
    world.broker.produce_errors += [BrokerUnavailable("away")] * 100
    one.registry.disable("s", "gone")
    with pytest.raises(Unavailable):
        await one.store.set_validated("s")
    assert one.status() == ("disabled", "gone")
    assert two.status() == ("active", None)
    world.broker.produce_errors.clear()
    await asyncio.sleep(30)
    assert two.status() == ("disabled", "gone")


# Tables.


async def test_keys_and_event_types_are_kept_with_versions(world: World) -> None:
    one, two = await world.replica(), await world.replica()
    key = Key("abcd2345", "billing", "tenant", "acme", bytes(32), 5)
    kind = EventType("invoice.paid", "Somebody paid", {"type": "object"}, {"amount": 3})
    assert (await one.store.keys.put(key.id, key, base=0)).version == 1
    row = await one.store.event_types.put(kind.name, kind, base=0)
    await one.store.event_types.put("a.first", EventType("a.first"), base=0)
    await asyncio.sleep(0.1)
    assert two.store.keys.get("abcd2345").value == key  # type: ignore[union-attr]
    assert two.store.event_types.get("invoice.paid") == row
    assert list(two.store.event_types.names()) == ["a.first", "invoice.paid"]
    with pytest.raises(VersionMismatch):
        await two.store.event_types.put(kind.name, kind, base=0)
    await two.store.keys.delete("abcd2345", base=1)
    three = await world.replica()
    assert (three.store.keys.get("abcd2345"), len(three.store.keys), len(three.store.event_types)) == (
        None,
        0,
        2,
    )
    assert len(three.store) == 0
    assert three.registry.index.get("invoice.paid") is None


async def test_a_reader_that_fails_ends_the_process(world: World) -> None:
    one = await world.replica()
    world.broker.read_errors.append(BrokerUnavailable("cut"))
    world.broker.append(None, partition=TOPIC)
    await asyncio.sleep(2)
    assert [str(error) for error in one.failures] == ["cut"]
    one.failures.clear()


async def test_a_short_overlap_ends_on_time(world: World) -> None:
    one = await world.replica()
    await asyncio.sleep(1)
    for ends in (50, 7):
        await one.store.put(
            f"s{ends}",
            DOCUMENT,
            [StoredSecret(OTHER), StoredSecret(SECRET, one.store.now_ms() + ends * 1000)],
            base=0,
        )
    await asyncio.sleep(6.5)
    assert one.registry.index.get("s7").secrets == (OTHER, SECRET)  # type: ignore[union-attr]
    await asyncio.sleep(1)
    assert one.registry.index.get("s7").secrets == (OTHER,)  # type: ignore[union-attr]
    assert one.registry.index.get("s50").secrets == (OTHER, SECRET)  # type: ignore[union-attr]
