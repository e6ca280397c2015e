"""What SIGTERM, SIGINT and SIGHUP do to a process that runs until told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final

import structlog

log = structlog.get_logger(__name__)

# Supervisors (coreutils' timeout, a shell's Ctrl-C) signal a process and its group: twice, at once, meant once.
_SAME_SIGNAL: Final = 1.0


def handle_signals(
    *,
    stop: Callable[[], None],
    stop_at_once: Callable[[signal.Signals], None],
    reload: Callable[[], object],
) -> None:
    """SIGTERM and SIGINT call `stop`, a second one `stop_at_once`; SIGHUP calls `reload`. For as long as the running loop lives."""
    loop = asyncio.get_running_loop()
    first: float | None = None

    def stopping(number: signal.Signals) -> None:
        nonlocal first
        now = loop.time()
        if first is None:
            first = now
            log.info("signal received: draining, a second one exits at once", signal=number.name)
            stop()
        elif now - first >= _SAME_SIGNAL:
            log.warning("second signal: exiting at once", signal=number.name)
            stop_at_once(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping, number)
    loop.add_signal_handler(signal.SIGHUP, reload)
