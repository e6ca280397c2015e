"""Secrets in the topic."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from tests.control.replicas import NEW_KEY, OLD_KEY, SECRET, World, create

pytestmark = pytest.mark.looptime


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
