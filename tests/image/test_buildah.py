"""The Dockerfile as it is, built by buildah over a stand-in of its base, and run. Minutes: only with DISPATCHER_TEST_IMAGE=1.

The stand-in is a Debian of the base's release with its Python, because the base can't be had everywhere. It needs the
superuser and Debian's packages: apt-get install buildah crun mmdebstrap. DISPATCHER_TEST_IMAGE=/a/root.tar takes a root
filesystem that is there instead of making one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
_ASKED = os.environ.get("DISPATCHER_TEST_IMAGE", "")
_PACKAGES = "python3,python3-venv,python3-dev,gcc,libc6-dev,ca-certificates"

pytestmark = [
    pytest.mark.skipif(_ASKED in ("", "0"), reason="NOT TESTED: buildah; DISPATCHER_TEST_IMAGE=1 does"),
    pytest.mark.timeout(3600),
]


class Store:
    """Buildah with a store of its own, without any daemon or overlay filesystem."""

    def __init__(self, folder: Path) -> None:
        self._command = [
            "buildah",
            "--storage-driver=vfs",
            f"--root={folder / 'root'}",
            f"--runroot={folder / 'run'}",
        ]

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{arguments}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout.strip()

    def run(self, container: str, script: str) -> str:
        return self("run", "--isolation=chroot", container, "--", "sh", "-ec", script)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    for command in ("buildah", "mmdebstrap"):
        if shutil.which(command) is None:
            pytest.fail(f"no {command}: apt-get install buildah crun mmdebstrap", pytrace=False)
    folder = tmp_path_factory.mktemp("buildah")
    store = Store(folder)
    base = re.search(r"^ARG BASE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert base is not None
    tar = Path(_ASKED)
    if _ASKED == "1":
        tar = folder / "base.tar"
        release = base[1].rpartition("-")[2]
        made = ["mmdebstrap", "--variant=minbase", f"--include={_PACKAGES}", release, str(tar)]
        subprocess.run(made, check=True, capture_output=True)
    container = store("from", "scratch")
    store("add", container, str(tar), "/")
    store("run", "--isolation=chroot", container, "--", "ln", "-sf", "python3", "/usr/bin/python")
    store("commit", container, f"docker.io/library/{base[1]}")
    store("rm", container)
    yield store
    store("rm", "--all")
    store("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def container(store: Store) -> str:
    # How this machine reaches the package index; where it needs nothing of the kind the files say nothing.
    mounts = [
        f"--volume={path}:{path}:ro" for path in ("/etc/ssl/certs", "/etc/pip.conf") if Path(path).exists()
    ]
    options = ["--pull-never", "--format=docker", "--isolation=chroot", "--network=host", *mounts]
    compiled = os.environ.get("DISPATCHER_COMPILE", "1")
    store("bud", *options, f"--build-arg=DISPATCHER_COMPILE={compiled}", "-t", "webhook-dispatcher", ".")
    return store("from", "--pull-never", "localhost/webhook-dispatcher")


def test_the_demo_runs_as_the_numeric_user(store: Store, container: str) -> None:
    assert "uid=10001 gid=10001" in store.run(container, "id; dispatcher demo >&2")


def test_the_daemon_is_ready_and_stops_cleanly(store: Store, container: str) -> None:
    said = store.run(
        container,
        f"""
        export DISPATCHER_API__KEYS=abcdefghijklmnopqrstuvwxyz DISPATCHER_HTTP__PORT={free_port()}
        dispatcher run 2>/dev/null & daemon=$!
        until python -m dispatcher.commands.health 2>/dev/null; do kill -0 $daemon; sleep 0.2; done
        kill -TERM $daemon
        wait $daemon
        stat -c '%a %n' dispatcher-data dispatcher-data/log.db
        """,
    )
    assert said.splitlines() == ["700 dispatcher-data", "600 dispatcher-data/log.db"]


def test_nothing_but_the_volume_is_written(store: Store, container: str) -> None:
    """So the root may be read-only: as the image's user, nothing outside of it and of /tmp can be written at all."""
    found = store.run(
        container,
        "find / -xdev -writable -not -type l -not -path '/proc/*' -not -path '/sys/*' 2>/dev/null || true",
    )
    elsewhere = [
        path
        for path in found.splitlines()
        if not re.match(r"/(?:var/lib/dispatcher|tmp|var/tmp|dev|run|proc|sys)(?:/|$)", path)
    ]
    assert elsewhere == []


def test_the_bill_of_materials_is_inside(store: Store, container: str) -> None:
    assert '"CycloneDX"' in store.run(container, "cat /opt/dispatcher/sbom.cdx.json")
