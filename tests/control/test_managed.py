"""The API's subscriptions, from the topic to the registry."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from dispatcher.broker.base import Message
from dispatcher.control.documents import Idempotency, StoredSecret
from dispatcher.control.errors import Invalid
from dispatcher.core.control.ledger import Change, to_headers
from tests.control.replicas import DOCUMENT, NEW_KEY, OLD_KEY, OTHER, SECRET, TOPIC, World, create

pytestmark = pytest.mark.looptime


async def test_what_was_created_by_a_request_is_found_for_a_day_after_a_restart_too(world: World) -> None:
    one = await world.replica()
    request = Idempotency("key abc", "retry-1", "digest")
    stored = await one.store.put("s", DOCUMENT, [StoredSecret(SECRET)], base=0, idempotency=request)
    await world.stop(one)
    two = await world.replica()
    assert two.store.by_idempotency("key abc", "retry-1") == stored
    world.later = 24 * 3600 + 1
    assert two.store.by_idempotency("key abc", "retry-1") is None


async def test_what_is_no_subscription_is_refused_field_by_field(world: World) -> None:
    one = await world.replica()
    with pytest.raises(Invalid) as caught:
        await create(one, url="http://10.0.0.1/", event_types=[], nonsense=1)
    assert {flaw.field for flaw in caught.value.flaws} == {"url", "event_types", "nonsense"}
    assert world.written() == []


async def test_one_that_cannot_be_read_hides_no_other(world: World) -> None:
    one = await world.replica()
    await create(one)
    await world.broker.produce([Message(TOPIC.topic, b"[]", b"t", to_headers(Change(0, 1, b"n")), 0)])
    await asyncio.sleep(1)
    assert list(one.store.ids()) == ["s", "t"]
    assert one.store.get("t") is None
    assert one.store.get("s") is not None


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
