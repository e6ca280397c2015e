"""The event loop of one command."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(command: Coroutine[Any, Any, T]) -> T:
    """Run it on uvloop; Ctrl-C ends the process with 130, without a traceback."""
    try:
        return uvloop.run(command)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
