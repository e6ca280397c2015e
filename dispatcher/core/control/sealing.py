"""Secrets at rest: sealed with AES-256-GCM before they are written to the topic.

Whoever may read the cluster reads the topic, and it lies on the cluster's disks and in its backups. The keys come from
the settings. A sealed value is bound to its place (`context`: the subscription's id and the field). So nobody who can
write the topic can move a secret of one subscription into another.

Several keys: the first seals, all open. To rotate, put a new key before the old one. Values that the old key sealed are
sealed anew in the background, and then the old key can go. A key's id is a hash of it: it says which key is missing
and nothing else of the key.

The nonce is random, 96 bits: with one key, 2^32 sealings keep the chance of a repetition below 2^-32
(NIST SP 800-38D 8.3). That is a subscription a second for a century.

A sealed value is text: `<key id>.<base64url of nonce, ciphertext and tag>`.
"""

from __future__ import annotations

from base64 import b64decode, urlsafe_b64encode
from binascii import Error as NotBase64, a2b_base64
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_STANDARD: Final = bytes.maketrans(b"-_", b"+/")


class CannotOpen(ValueError):
    """None of the keys opens it; the message names the key that would, or says that it was tampered with."""


def read_key(text: str) -> bytes:
    """A key as it is written: base64 of 32 bytes. Raises ValueError."""
    try:
        key = b64decode(text.strip().replace("-", "+").replace("_", "/"), validate=True)
    except (NotBase64, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError("must be 32 bytes in base64; `openssl rand -base64 32` makes one")
    return key


def key_id(key: bytes) -> str:
    """The name of a key, which stands in each value that it has sealed."""
    return sha256(b"dispatcher sealing key " + key).hexdigest()[:8]


class Sealer:
    """Seals with the first of its keys, opens with any."""

    def __init__(self, keys: Sequence[bytes], chance: Callable[[int], bytes]) -> None:
        """`chance` gives so many random bytes, never the same ones (`os.urandom`)."""
        self._keys = {key_id(key): AESGCM(key) for key in keys}
        self._newest = next(iter(self._keys), None)
        self._newest_prefix = f"{self._newest}."
        self._chance = chance

    def __bool__(self) -> bool:
        """Whether it has a key."""
        return self._newest is not None

    def seal(self, secret: str, context: str) -> str:
        """The secret as it may be written down; it opens with the same context only."""
        if self._newest is None:
            raise ValueError("there is no key to seal with")
        nonce = self._chance(_NONCE_BYTES)
        sealed = self._keys[self._newest].encrypt(nonce, secret.encode(), context.encode())
        return f"{self._newest}.{urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, context: str) -> str:
        """The secret. Raises CannotOpen."""
        name, _, text = sealed.partition(".")
        key = self._keys.get(name)
        if key is None:
            raise CannotOpen(f"sealed with the key {name[:8]!r}, which api.secrets_keys does not have")
        try:
            data = a2b_base64(text.encode("ascii").translate(_STANDARD))
            return key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode()).decode()
        except (InvalidTag, ValueError) as error:
            raise CannotOpen(f"not what was sealed with the key {name!r} for {context}") from error

    def is_newest(self, sealed: str) -> bool:
        """Whether the first key has sealed it."""
        return self._newest is not None and sealed.startswith(self._newest_prefix)
