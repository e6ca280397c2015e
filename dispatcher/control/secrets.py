"""Signing secrets of subscriptions: made here, and rotated.

Secrets leave the control plane in full only in the answer that made them.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from secrets import token_bytes
from typing import Any, Final

from dispatcher.control.documents import StoredSecret
from dispatcher.core.request.signing import MAX_SECRETS

OVERLAP: Final = 24 * 3600.0
"""Seconds that a rotated secret goes on signing beside the new one, unless the caller says otherwise."""
MAX_OVERLAP: Final = 30 * 24 * 3600.0
_HMAC: Final = "whsec_"
_ED25519: Final = "whsk_"


def live(secrets: Sequence[StoredSecret], now_ms: int) -> list[StoredSecret]:
    """The secrets that haven't ended."""
    return [one for one in secrets if one.expires_ms is None or one.expires_ms > now_ms]


def _kind(secret: str) -> str:
    return _ED25519 if secret.startswith(_ED25519) else _HMAC


def _made_secret(prefix: str) -> str:
    return prefix + b64encode(token_bytes(32)).decode()


def made_secrets(signatures: Any) -> list[str]:
    """New ones. What the signatures need: an ed25519 key for v1a, an HMAC secret for the others."""
    names = signatures if isinstance(signatures, (list, tuple)) and signatures else ["v1"]
    prefixes = dict.fromkeys(_ED25519 if name == "v1a" else _HMAC for name in names)
    return [_made_secret(prefix) for prefix in prefixes]


def rotated(
    secrets: Sequence[StoredSecret], new: str, end_ms: int, *, overlapping: bool
) -> list[StoredSecret]:
    """The new secret, then the old ones. Those of its own kind end at `end_ms`, or at once unless they overlap.

    Secrets rotated more often than their overlap allows: the oldest end at once.
    """
    kind = _kind(new)
    kept = []
    for one in secrets:
        ends = one.expires_ms
        if _kind(one.secret) == kind and (ends is None or ends > end_ms):
            ends = end_ms
        if overlapping or ends != end_ms:
            kept.append(StoredSecret(one.secret, ends))
    found = [StoredSecret(new), *kept]
    ending = [one for one in found if one.expires_ms is not None]
    while len(found) > MAX_SECRETS and ending:
        found.remove(ending.pop())
    return found


def successor(secrets: Sequence[StoredSecret]) -> str:
    """A new secret of the kind that rotating replaces: an HMAC secret, an ed25519 key where there is no other."""
    hmac = [one for one in secrets if _kind(one.secret) != _ED25519]
    return _made_secret(_HMAC if hmac or not secrets else _ED25519)
