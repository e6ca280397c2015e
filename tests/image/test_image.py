"""What the Dockerfile's own steps make, run as the image would be: its numeric user, its environment, its volume."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.docs_commands.blocks import shell_blocks
from tests.image.dockerfile import Built, interpreter
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # the first test makes the image


@cache
def as_user(user: int, group: int) -> tuple[str, ...]:
    """What to put before a command, so that it runs as this user. Empty where only the superuser could do that."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() != 0 or setpriv is None:
        return ()
    plain = (setpriv, f"--reuid={user}", f"--regid={group}", "--clear-groups")
    # The interpreter may lie where the user can't look. The right to read is then given, none to write.
    reads = (*plain, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
    for prefix in (plain, reads):
        tried = subprocess.run([*prefix, str(interpreter()), "-c", ""], capture_output=True, check=False)
        if tried.returncode == 0:
            return prefix
    return ()


def arguments(image: Built, command: list[str], environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    found = shutil.which(command[0], path=image.environ["PATH"])
    assert found is not None, command
    return {
        "args": [*as_user(*image.user), found, *command[1:]],
        "cwd": image.workdir,
        "env": {**image.environ, **(environ or {})},
        "stdin": subprocess.DEVNULL,
    }


def run(image: Built, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    given = arguments(image, list(command), environ)
    return subprocess.run(**given, capture_output=True, text=True, check=False, timeout=300)


def test_the_user_is_a_number_and_not_the_superuser(image: Built) -> None:
    assert min(image.user) > 0
    assert image.command == ["dispatcher", "run"]


def test_everybody_may_read_the_program_and_nobody_else_the_data(image: Built) -> None:
    for path in image.inside("/opt/dispatcher").rglob("*"):
        if not path.is_symlink():
            assert path.stat().st_mode & stat.S_IROTH, path
    data = image.inside("/var/lib/dispatcher").stat()
    assert stat.S_IMODE(data.st_mode) == 0o700
    if os.geteuid() == 0:
        assert (data.st_uid, data.st_gid) == image.user


def test_the_demo_runs_and_accounts_for_every_delivery(image: Built) -> None:
    done = run(image, "dispatcher", "demo")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_hot_path_of_the_image_is_compiled(image: Built) -> None:
    done = run(image, "python", "-c", "import dispatcher.delivery.sending as it; print(it.__file__)")
    assert done.stdout.strip().endswith(".so"), done


def test_the_bill_of_materials_names_every_package_with_its_licence(image: Built) -> None:
    bill = json.loads(image.inside("/opt/dispatcher/sbom.cdx.json").read_text())
    assert bill["bomFormat"] == "CycloneDX"
    program = (
        "from importlib.metadata import distributions\n"
        "for each in distributions(): print(each.metadata['Name'], each.version)"
    )
    installed = {normal(line) for line in run(image, "python", "-c", program).stdout.splitlines()}
    assert {normal(f"{each['name']} {each['version']}") for each in bill["components"]} == installed
    assert any(each.startswith("webhook-dispatcher ") for each in installed)
    assert [each["name"] for each in bill["components"] if not each.get("licenses")] == []
    pinned = {
        normal(f"{name} {version}")
        for name, version in re.findall(
            r"^([a-z0-9-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
        )
    }
    assert {each for each in installed if not each.startswith("webhook-dispatcher ")} <= pinned


def normal(text: str) -> str:
    return re.sub(r"[-_.]+(?=.* )", "-", text).lower()


def test_without_a_key_the_start_says_which_setting_is_missing(image: Built) -> None:
    done = run(image, *image.command)
    assert done.returncode == 2
    assert "api.keys" in done.stderr
    assert "DISPATCHER_API__KEYS" in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def readme_lines() -> list[str]:
    (found,) = [block for block in shell_blocks("README.md") if "docker run -d -p 127" in block.text]
    return [command.replace("\\\n", " ") for command in found.commands]


async def test_the_container_of_the_readme_is_ready_and_answers_whoever_has_the_key(image: Built) -> None:
    build, export, start = readme_lines()
    assert build == "make image"
    name, key = re.fullmatch(r"export (\w+)=\$\((.*)\)", export).groups()  # type: ignore[union-attr] # fails the test
    secret = subprocess.run(shlex.split(key), capture_output=True, text=True, check=True).stdout.strip()
    words = shlex.split(start.replace(f"${name}", secret))
    assert words[:2] == ["docker", "run"]
    assert words[-1] == "webhook-dispatcher"
    environ, published = {"DISPATCHER_HTTP__PORT": str(free_port())}, None
    for option, value in pairwise(words):
        match option:
            case "-e":
                environ[value.partition("=")[0]] = value.partition("=")[2]
            case "-p":
                published = value.rpartition(":")[2]
            case "-v":
                assert value.partition(":")[2] == image.stage.said("VOLUME")
    assert published == image.stage.said("EXPOSE")
    given = arguments(image, image.command, environ)
    process = await asyncio.create_subprocess_exec(*given.pop("args"), **given)
    try:
        while run(image, *image.healthcheck, **environ).returncode:
            assert process.returncode is None
        url = f"http://127.0.0.1:{environ['DISPATCHER_HTTP__PORT']}"
        listed = run(image, "dispatcher", "subscriptions", "list", "--url", url, **{**environ, name: secret})
        assert (listed.returncode, listed.stderr) == (0, "there are none\n")
        async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/subscriptions") as answer:
            assert answer.status == 401
    finally:
        process.terminate()
        await process.wait()
    files = [path for path in image.workdir.rglob("*") if path.is_file()]
    written = {path.name for path in files}
    kept = {path.name for path in files if path.parent.name == "log-history"}
    assert "history.db" in kept
    assert {name for name in written - kept if not name.startswith("log.db")} == set()
    assert "log.db" in written
