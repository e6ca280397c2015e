"""Portal sessions: who is let in, for how long, and how many there may be."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from dispatcher.control import portal
from dispatcher.control.access import Access, Principal, TooManyWrongKeys, Unauthenticated
from dispatcher.control.errors import Invalid, NotFound, Overloaded, Unavailable
from dispatcher.control.portal import TOKEN_LIFETIME, PortalSessions
from dispatcher.core.control.portal import MAX_IMAGE, PortalImage, PortalSession
from dispatcher.core.control.signer import Signer
from dispatcher.settings.groups import Settings
from tests.api.fakes import MemoryKeys
from tests.control.memory import MemoryTable

OPERATOR = Principal("settings", "key 1 of the settings", "operator")
GIF = b"GIF89a" + bytes(20)


class Replica:
    """Portal sessions of one process; two of them on the same tables are two replicas."""

    def __init__(self, other: Replica | None = None, secret: bytes = b"s" * 32, **options: Any) -> None:
        self.now = 1_760_000_000.0
        self.loaded = True
        self.sessions: MemoryTable[PortalSession] = MemoryTable() if other is None else other.sessions
        self.images: MemoryTable[PortalImage] = MemoryTable() if other is None else other.images
        self.portal = PortalSessions(
            self.sessions,
            self.images,
            lambda: self.loaded,
            Signer([secret]),
            wall=lambda: self.now,
            **options,
        )

    async def make(self, tenant: str = "acme", lifetime: float = 3600.0, **page: Any) -> Any:
        return await self.portal.create(
            tenant, lifetime, {"read", "resend"}, page, user="ada@acme.example", by=OPERATOR
        )


async def test_its_token_lets_the_tenants_people_in_on_every_replica() -> None:
    one = Replica()
    made = await one.make()
    for replica in (one, Replica(one)):
        assert replica.portal.principal(made.token) == Principal(
            f"portal:{made.session.id}", "ada@acme.example", "tenant", "acme", frozenset({"read", "resend"})
        )
    assert made.token not in str(one.sessions.rows)
    assert made.session.seed not in made.token
    assert Replica(one, secret=b"t" * 32).portal.principal(made.token) is None


async def test_a_token_ends_before_its_session_and_is_renewed_until_then() -> None:
    one = Replica()
    made = await one.make(lifetime=TOKEN_LIFETIME + 60)
    one.now += TOKEN_LIFETIME - 1
    renewed = one.portal.renew(made.session.id)
    assert renewed.token_expires_ms == made.session.expires_ms
    one.now += 1
    with pytest.raises(Unauthenticated, match="open the portal anew"):
        one.portal.principal(made.token)
    assert one.portal.principal(renewed.token) is not None
    one.now += 60
    with pytest.raises(Unauthenticated, match="ended"):
        one.portal.principal(renewed.token)
    with pytest.raises(NotFound):
        one.portal.renew(made.session.id)


async def test_a_revoked_session_is_over_on_every_replica() -> None:
    one = Replica()
    other = Replica(one)
    first, second, globex = await one.make(), await one.make(), await one.make("globex")
    await one.portal.revoke(first.session.id)
    with pytest.raises(Unauthenticated):
        other.portal.principal(first.token)
    assert other.portal.principal(second.token) is not None
    assert await other.portal.revoke_all("acme") == 1
    with pytest.raises(Unauthenticated):
        one.portal.principal(second.token)
    assert [each.id for each in one.portal.list()] == [globex.session.id]
    with pytest.raises(NotFound):
        await one.portal.revoke(second.session.id)


async def test_no_session_lasts_longer_than_a_day() -> None:
    made = await Replica().make(lifetime=10**9)
    assert made.session.expires_ms - made.session.created_ms == 24 * 3600 * 1000


async def test_their_number_is_bounded_and_those_that_have_ended_are_deleted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portal, "MAX_SESSIONS", 3)
    monkeypatch.setattr(portal, "MAX_OF_TENANT", 2)
    one = Replica()
    await one.make()
    await one.make()
    with pytest.raises(Overloaded):
        await one.make()
    await one.make("globex")
    with pytest.raises(Overloaded):
        await one.make("initech")
    one.now += 3600
    assert one.portal.list() == []
    assert len(one.sessions.rows) == 3
    await one.portal.sweep()
    assert not one.sessions.rows
    await one.make("initech")


async def test_a_wrong_token_is_counted_like_a_wrong_key_and_one_that_has_ended_is_not() -> None:
    one = Replica()
    made = await one.make()
    settings = Settings.model_validate({"api": {"keys": ["k" * 32], "wrong_keys_per_minute": 2}})
    access = Access(settings, MemoryKeys(), lambda: True, tokens=one.portal)
    assert access.authenticate(f"Bearer {made.token}", "192.0.2.1").tenant == "acme"
    one.now += 3600
    for _ in range(5):
        with pytest.raises(Unauthenticated, match="ended"):
            access.authenticate(f"Bearer {made.token}", "192.0.2.1")
    one.now -= 3600
    forged = made.token[:-3] + ("AAA" if made.token[-3:] != "AAA" else "BBB")
    for _ in range(2):
        with pytest.raises(Unauthenticated, match="not valid"):
            access.authenticate(f"Bearer {forged}", "192.0.2.1")
    with pytest.raises(TooManyWrongKeys):
        access.authenticate(f"Bearer {made.token}", "192.0.2.1")


async def test_before_the_records_are_read_no_token_is_called_wrong() -> None:
    one = Replica()
    made = await one.make()
    one.loaded = False
    with pytest.raises(Unavailable):
        one.portal.principal(made.token)


async def test_a_tenant_that_is_none_and_an_image_that_is_not_there_are_told() -> None:
    one = Replica()
    with pytest.raises(Invalid) as caught:
        await one.make("*", branding={"logo": "0" * 32})
    assert [str(flaw.field) for flaw in caught.value.flaws] == ["tenant", "branding.logo"]
    with pytest.raises(Invalid, match=r"portal\.enabled"):
        await Replica(enabled=False).make()


async def test_where_the_portal_is_off_no_token_opens_anything() -> None:
    one = Replica()
    made = await one.make()
    with pytest.raises(Unauthenticated):
        Replica(one, enabled=False).portal.principal(made.token)


async def test_an_image_is_kept_once_and_only_if_it_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Replica()
    image = await one.portal.add_image(GIF)
    assert (await one.portal.add_image(GIF)).id == image.id
    assert one.portal.image(image.id).data == GIF
    for data, said in ((b"<html>", "must be a PNG"), (GIF + bytes(MAX_IMAGE), "may have")):
        with pytest.raises(Invalid, match=said):
            await one.portal.add_image(data)
    assert b64encode(GIF).decode() in str(one.images.rows[image.id].value.to_document())
    monkeypatch.setattr(portal, "MAX_IMAGES", 1)
    with pytest.raises(Overloaded):
        await one.portal.add_image(GIF + b"1")
    assert await one.make(branding={"logo": image.id})
    await one.portal.remove_image(image.id)
    with pytest.raises(NotFound):
        one.portal.image(image.id)
