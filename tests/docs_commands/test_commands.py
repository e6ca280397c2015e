"""The commands of README and docs, run from their pages (see `blocks.py`)."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import aiohttp
import pytest

from tests.docs_commands.blocks import ROOT, Block, first_word, pages, shell_blocks
from tests.docs_commands.world import WITHIN, Services, World, ports

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

STAYING: Final = {
    ("README.md", "export PATH=$PWD/.venv/bin:$PATH DISPATCHER_BROKER=kafka://localhost:9092"),
    ("docs/deploying.md", "dispatcher run --config dispatcher.yaml --roles deliver"),
    ("docs/portal.md", "DISPATCHER_PORTAL__FRAME_ANCESTORS=http://127.0.0.1:3000 dispatcher run &"),
}
"""Blocks whose commands don't end by themselves, by page and first command: each has a test of its own here."""

OPTIONAL: Final = ("promtool",)
"""Commands of others that a machine may lack. CI has them."""


LOOKS: Final = ("dispatcher", "curl")
"""What leaves nothing to the commands after it but what it has changed in the installation."""


def block(page: str, first: str) -> Block:
    """The block of a page whose first command is this one."""
    (found,) = [each for each in shell_blocks(page) if each.commands[0] == first]
    return found


def staying(page: str) -> str:
    (first,) = [first for name, first in STAYING if name == page]
    return block(page, first).text


def here(command: str) -> bool:
    """Whether what is called is on this machine; in CI everything is."""
    word = first_word(command)
    return word not in OPTIONAL or bool(os.environ.get("CI")) or shutil.which(word) is not None


async def test_the_commands_of_all_pages_do_what_they_should(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    world = World(tmp_path, kafka, unique)
    wrong = []
    ran: set[str] = set()  # a look that several pages take is taken once
    async with world.endpoint:
        try:
            await world.start()
            for page in pages():
                for each in shell_blocks(page):
                    if each.elsewhere is None and (page, each.commands[0]) not in STAYING:
                        script = "\n".join(
                            command for command in each.run if here(command) and command not in ran
                        )
                        ran.update(command for command in each.run if first_word(command) in LOOKS)
                        code, said = await world.run(script)
                        if code:
                            wrong.append(
                                f"{each.name} ended with {code}:\n{world.filled(script)}\n{said[-2000:]}"
                            )
        finally:
            await world.stop()
    assert not wrong, "\n\n".join(wrong)


async def until(condition: Callable[[], Awaitable[bool]], services: Services) -> None:
    """Fail with what they said where it does not come true."""
    try:
        async with asyncio.timeout(WITHIN):
            while not await condition():
                assert services.running, services.said()
                await asyncio.sleep(0.1)
    except TimeoutError:
        pytest.fail(services.said())


async def answers(url: str) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200
    except aiohttp.ClientConnectionError:
        return False


def environ(world: World, unique: Callable[[str], str], port: int) -> dict[str, str]:
    """An installation of its own, by variables."""
    return {
        "PATH": world.path,
        "DISPATCHER_HTTP__PORT": str(port),
        "DISPATCHER_GROUP": unique("group"),
        "DISPATCHER_TOPICS__EVENTS": unique("events"),
        "DISPATCHER_TOPICS__PREFIX": f"{unique('own')}.",
        "DISPATCHER_KAFKA__MEMBER_NAME": "off",
    }


async def test_the_readmes_way_with_kafka_leads_to_a_verified_request(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    world = World(tmp_path, kafka, unique)
    listener, http = ports(2)
    text = staying("README.md")
    for old, new in (("kafka://localhost:9092", world.broker), ("9000", str(listener))):
        assert old in text
        text = text.replace(old, new)
    async with Services(world.work, text, environ(world, unique, http)) as services:

        async def verified() -> bool:
            return bool(re.search(r"^\S+ +200 +valid +\S+.*invoice\.paid", services.said(), re.MULTILINE))

        await until(verified, services)


async def test_the_roles_run_side_by_side_as_the_page_starts_them(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    world = World(tmp_path, kafka, unique)
    deliver, api = ports(2)
    text = re.sub("$", " &", staying("docs/deploying.md").rstrip(), flags=re.MULTILINE)
    assert "8081" in text
    (world.work / "dispatcher.yaml").write_text(f"broker: {world.broker}\n")
    async with Services(
        world.work, text.replace("8081", str(api)), environ(world, unique, deliver)
    ) as services:

        async def ready() -> bool:
            urls = [f"http://127.0.0.1:{port}/readyz" for port in (deliver, api)]
            return all([await answers(url) for url in urls])

        await until(ready, services)
        assert await answers(f"http://127.0.0.1:{api}/v1/subscriptions")
        assert not await answers(f"http://127.0.0.1:{deliver}/v1/subscriptions")


async def test_the_portals_host_application_runs_beside_the_dispatcher(
    tmp_path: Path, kafka: str, unique: Callable[[str], str]
) -> None:
    world = World(tmp_path, kafka, unique)
    host, http = ports(2)
    text = staying("docs/portal.md").replace(":3000", f":{host}").replace("docs/", f"{ROOT}/docs/")
    variables = {
        **environ(world, unique, http),
        "DISPATCHER_BROKER": world.broker,
        "DISPATCHER_API_URL": f"http://127.0.0.1:{http}",
        "PORT": str(host),
    }
    async with Services(world.work, text, variables) as services:

        async def session() -> bool:
            if not await answers(f"http://127.0.0.1:{http}/readyz"):
                return False
            url = f"http://127.0.0.1:{host}/portal-session"
            async with aiohttp.ClientSession() as asked, asked.post(url) as response:
                return response.status == 200 and "token" in await response.json()

        await until(session, services)


def test_each_block_that_stays_is_on_its_page_and_starts_something() -> None:
    for page, first in STAYING:
        assert re.search(r"dispatcher run|host\.py", block(page, first).text)
        assert not block(page, first).notes
