"""The five fields that an envelope is read for. By itself, because it describes itself to msgspec at run time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

MISSING: Final = msgspec.UNSET
NotJson: Final = msgspec.DecodeError
NotAnObject: Final = msgspec.ValidationError


class Envelope(msgspec.Struct, gc=False):
    """Of any type each, so that a wrong one is named by us, and not by the library."""

    type: Any = MISSING
    id: Any = None
    tenant: Any = None
    created: Any = None
    timestamp: Any = None


decode_envelope: Final[Callable[[bytes], Envelope]] = msgspec.json.Decoder(Envelope).decode
