"""Signs what browsers carry back: session cookies, CSRF values, tokens of portal sessions.

Every replica has the same secrets from its settings, so each one verifies what another one signed, and nothing is stored for it.
The first secret signs, all verify: a replica that got a new key a moment earlier, and one that has the old key still, take each
other's signatures.

A signature is over its purpose and its parts, each with its length before it: nothing signed for one purpose passes for another,
and no two lists of parts are the same bytes.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Final

TEXT_LENGTH: Final = 43
"""Characters of a signature."""


class Signer:
    """Signs with the first of its secrets, verifies with any."""

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """At least one; what they are worth is the caller's business."""
        self._keys = [hmac.new(secret, b"dispatcher signer", sha256).digest() for secret in secrets]
        self.name = hmac.new(self._keys[0], b"name", sha256).hexdigest()[:8]
        """Tells one installation's signer from another's, and nothing of its secret."""

    def sign(self, purpose: str, *parts: str) -> str:
        """The signature as text that a cookie and a URL can hold."""
        return _signed(self._keys[0], purpose, parts)

    def verifies(self, signature: str, purpose: str, *parts: str) -> bool:
        """Whether one of the secrets has signed these parts for this purpose."""
        given = signature.encode(errors="replace")
        found = False
        for key in self._keys:
            found |= hmac.compare_digest(_signed(key, purpose, parts).encode(), given)
        return found


def _signed(key: bytes, purpose: str, parts: Sequence[str]) -> str:
    signing = hmac.new(key, digestmod=sha256)
    for part in (purpose, *parts):
        data = part.encode(errors="surrogatepass")
        signing.update(b"%d:" % len(data))
        signing.update(data)
    return urlsafe_b64encode(signing.digest()).rstrip(b"=").decode()
