from __future__ import annotations

import os
import socket

from dispatcher.runtime.replica import replica_name


def test_a_process_is_named_by_its_host_and_id() -> None:
    assert replica_name() == f"{socket.gethostname()}:{os.getpid()}"
