"""Ports for servers that are stopped and come back to the same one, or whose port is written down before they start.

A port the system chose lies in the range from which outgoing connections get theirs: by the time a server
binds it, one of the many connections of a test may have it. These lie below that range.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

HOST = "127.0.0.1"

_FIRST, _COUNT = 12_000, 18_000
# Test runs beside each other begin at different places, far apart also where one was started right after the other.
_ports = itertools.count(os.getpid() * 7919 % _COUNT)


def free_port() -> int:
    """A loopback port that nobody listens on, and that nobody is given meanwhile."""
    for number in itertools.islice(_ports, _COUNT):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, _FIRST + number % _COUNT))
            return _FIRST + number % _COUNT
    raise OSError("no free port")
