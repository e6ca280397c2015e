"""The name of this process, one spelling everywhere: attempt records, health, the cluster view."""

from __future__ import annotations

import os
import socket


def replica_name() -> str:
    """`<host name>:<process id>`."""
    return f"{socket.gethostname()}:{os.getpid()}"
