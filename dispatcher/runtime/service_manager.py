"""What a service manager is told: that the start is done, how it goes, that the event loop turns, that the stop has begun.

The protocol is systemd's (sd_notify(3), sd_watchdog_enabled(3)): lines of `NAME=value`, one datagram a message, to the socket that
`NOTIFY_SOCKET` names. The supervisor of several workers (`dispatcher/workers`) takes the same lines over a stream.

1. Without a service manager every method does nothing.
2. Telling never waits and never fails: a service manager that doesn't read loses messages, and the daemon goes on.
3. `WATCHDOG=1` is sent by the event loop itself. A loop that hangs sends none, and the service manager ends the process.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

READY: Final = "READY=1"
STOPPING: Final = "STOPPING=1"
WATCHDOG: Final = "WATCHDOG=1"
DELIVERING: Final = "X_DELIVERING=1"
"""For our own supervisor: `/readyz` answers 200. systemd passes over names that begin with X_."""

_STATUS_INTERVAL: Final = 2.0  # seconds between looks at what there is to say
_STATUS_LENGTH: Final = 1000


class ServiceManager:
    """Whoever started this process and wants to hear of it."""

    def __init__(self, link: socket.socket | None, watchdog: float | None = None) -> None:
        """`link` is connected; `watchdog`: seconds without a sign of life after which the process is ended."""
        self._link = link
        self._watchdog = watchdog
        self._status = ""
        if link is not None:
            link.setblocking(False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> ServiceManager:
        """The one that the environment names, if any."""
        return cls(_connect(environ.get("NOTIFY_SOCKET", "")), _watchdog(environ))

    def tell(self, *lines: str) -> None:
        """One message."""
        if self._link is None:
            return
        try:
            self._link.send("".join(f"{line}\n" for line in lines).encode())
        except OSError:  # it is gone, or doesn't read: rule 2
            return

    async def beat(self, problems: Callable[[], Sequence[str]]) -> None:
        """Until cancelled: signs of life, and what `/readyz` would say whenever that changes."""
        if self._link is None:
            return
        interval = _STATUS_INTERVAL if self._watchdog is None else min(self._watchdog / 3, _STATUS_INTERVAL)
        while True:
            self._tell_status(problems())
            if self._watchdog is not None:
                self.tell(WATCHDOG)
            await asyncio.sleep(interval)

    def _tell_status(self, problems: Sequence[str]) -> None:
        status = f"not ready: {'; '.join(problems)}" if problems else "ready"
        status = " ".join(status.split())[:_STATUS_LENGTH]  # one line
        if status != self._status:
            self._status = status
            self.tell(f"STATUS={status}", *(() if problems else (DELIVERING,)))

    def when_gone(self, gone: Callable[[], None]) -> None:
        """Call `gone` once the other end of the link is closed, where it is a stream."""
        if self._link is not None:
            asyncio.get_running_loop().add_reader(self._link, self._read, self._link, gone)

    def _read(self, link: socket.socket, gone: Callable[[], None]) -> None:
        try:
            if link.recv(4096):  # nothing that it says is for us
                return
        except BlockingIOError:
            return
        except OSError:  # reset: gone as well
            pass
        asyncio.get_running_loop().remove_reader(link)
        gone()

    def close(self) -> None:
        """Tell nothing more, and hear of nothing."""
        if self._link is not None:
            with suppress(RuntimeError):  # no loop: there was nothing to hear
                asyncio.get_running_loop().remove_reader(self._link)
            self._link.close()
            self._link = None


def _connect(address: str) -> socket.socket | None:
    if not address.startswith(("/", "@")):  # systemd's other forms are for virtual machines
        return None
    link = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        link.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError:
        link.close()
        return None
    return link


def _watchdog(environ: Mapping[str, str]) -> float | None:
    """Seconds; None where nobody watches this process."""
    if environ.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return None
    try:
        microseconds = int(environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 else None
