"""A deploy that loses the setting `subscriptions_file`, on the embedded broker and on a real Kafka."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.e2e.daemon import Daemon, Endpoint, envelope


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/log.db"
    return f"kafka://{request.getfixturevalue('kafka')}"


async def warnings(daemon: Daemon) -> list[str]:
    status, body = await daemon.get("/readyz")
    assert status == 200, body
    found: list[str] = orjson.loads(body).get("warnings", [])
    return [each for each in found if "subscriptions_file" in each]


async def test_what_is_missing_is_said_until_a_file_is_named_again(
    tmp_path: Path, broker: str, unique: Callable[[str], str]
) -> None:
    shared: dict[str, Any] = {
        "group": unique("group"),
        "topics": {"events": [unique("events")], "prefix": f"{unique('own')}."},
    }
    entry = {"id": "sub_file", "event_types": ["test.*"]}
    async with Endpoint() as endpoint:
        for number, (file, missing) in enumerate(((True, 0), (False, 1), (True, 0), (None, 0), (False, 0))):
            folder = tmp_path / str(number)
            folder.mkdir()
            wanted = [{**entry, "url": endpoint.url}] if file else []
            settings = {**shared, "subscriptions_file": None} if file is False else shared
            daemon = Daemon(folder, broker, wanted, **settings)
            try:
                await daemon.start()
                if file:
                    id_, event = envelope(number)
                    await daemon.post_event(event)
                    await endpoint.received({id_}, 30)
                said = await warnings(daemon)
                assert len(said) == missing, (number, said)
                assert len(daemon.log_lines("the subscriptions file is missing")) == missing
                assert await daemon.stop() == 0
            finally:
                await daemon.kill()
