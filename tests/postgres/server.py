"""A real PostgreSQL on loopback, for tests and benchmarks: the machine's own binaries, a directory and a port of its own.

`initdb` and `postgres` refuse to run as root: then they run as another user of the machine (`_USERS`). By hand::

    python -m tests.postgres.server [name=value...]      prints its URL and stays until Ctrl-C

In code::

    with Server() as server:
        server.url                 # "postgresql://dispatcher:...@127.0.0.1:12345/postgres"
        server.kill()              # as a crash does
        server.start()             # same port, same data
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.ports import HOST, free_port

_PLACES = "/usr/lib/postgresql/*/bin"  # Debian's, where no version is on the path
_USERS = ("postgres", "nobody")
_START_TIMEOUT = 60.0
_STOP_TIMEOUT = 20.0


class Unavailable(Exception):
    """PostgreSQL can't be started here; the message says what is missing."""


def binaries() -> Path | None:
    """The directory of `initdb` and `postgres`; the newest where there are several."""
    if (found := shutil.which("initdb")) is not None and shutil.which("postgres") is not None:
        return Path(found).resolve().parent
    places = [path for path in Path("/").glob(_PLACES.lstrip("/")) if (path / "initdb").exists()]
    return max(
        places, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0, default=None
    )


class Server:
    """One server, with a database that is gone after `stop()`."""

    def __init__(self, settings: Sequence[str] = ()) -> None:
        """`settings`: `name=value` of its configuration."""
        self.port = free_port()
        self._settings = [
            "shared_buffers=256MB",
            "max_wal_size=2GB",
            f"listen_addresses={HOST}",
            "unix_socket_directories=",
            *settings,
        ]
        self._password = secrets.token_hex(16)
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://dispatcher:{self._password}@{HOST}:{self.port}/postgres"

    @property
    def data(self) -> Path:
        """Where its files are, while it runs or is killed."""
        assert self._directory is not None
        return self._directory / "data"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Return once it answers."""
        bin_ = binaries()
        if bin_ is None:
            raise Unavailable("no initdb on the path (Debian's package is postgresql)")
        user = self._user()
        if self._directory is None:
            self._make(bin_, user)
        assert self._directory is not None
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(bin_ / "postgres"),
                    "-D",
                    str(self._directory / "data"),
                    "-p",
                    str(self.port),
                    *(word for setting in self._settings for word in ("-c", setting)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=user,
                group=None if user is None else pwd.getpwnam(user).pw_gid,
                start_new_session=True,
                cwd="/",
            )
        atexit.register(self.stop)
        deadline = time.monotonic() + _START_TIMEOUT
        while subprocess.run(
            [str(bin_ / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)], check=False, cwd="/"
        ).returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = (self._directory / "log").read_text(errors="replace")[-2000:]
                self.stop()
                raise RuntimeError(f"PostgreSQL did not start:\n{said}")
            time.sleep(0.05)

    def _user(self) -> str | None:
        if os.geteuid() != 0:
            return None
        for name in _USERS:
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(name).pw_name
        raise Unavailable("PostgreSQL refuses to run as root, and there is no other user")

    def _make(self, bin_: Path, user: str | None) -> None:
        directory = Path(tempfile.mkdtemp(prefix="dispatcher-postgres-"))
        password = directory / "password"
        password.write_text(self._password)
        if user is not None:
            entry = pwd.getpwnam(user)
            for path in (directory, password):
                os.chown(path, entry.pw_uid, entry.pw_gid)
        self._directory = directory
        made = subprocess.run(
            [
                str(bin_ / "initdb"),
                "-D",
                str(directory / "data"),
                "-U",
                "dispatcher",
                f"--pwfile={password}",
                "-A",
                "scram-sha-256",
                "-E",
                "UTF8",
                "--no-locale",
                "--no-sync",
            ],
            capture_output=True,
            text=True,
            user=user,
            group=None if user is None else pwd.getpwnam(user).pw_gid,
            cwd="/",
            check=False,
        )
        if made.returncode:
            raise RuntimeError(f"initdb failed:\n{made.stdout}{made.stderr}")

    def kill(self) -> None:
        """As a crash does: all of its processes, at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_STOP_TIMEOUT)
            self._process = None
            if self._directory is not None:
                (self._directory / "data" / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it, and remove its data."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def reachable(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex((HOST, self.port)) == 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def main() -> None:
    with Server(sys.argv[1:]) as server:
        print(server.url, flush=True)
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
