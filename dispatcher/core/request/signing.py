"""Signatures that let a receiver tell our requests from anybody else's.

Three schemes, any of them together:

``v1``      Standard Webhooks, HMAC-SHA256 over ``id.timestamp.body``; secret ``whsec_<base64 of 24 to 64 bytes>``
``v1a``     Standard Webhooks, ed25519 over the same; secret ``whsk_<base64 of the 32-byte seed, or of seed and
            public key (64 bytes)>``
``github``  ``X-Hub-Signature-256``: HMAC-SHA256 over the body alone

During a rotation several secrets are live, newest first, and ``webhook-signature`` carries one signature
of each. GitHub's header holds only one: the newest secret's. Its key is the secret's text as it stands
(``whsec_`` included), because that is what receivers written for GitHub do with the string they are given;
for the same reason a secret without a prefix is accepted for ``github`` alone.

Base64 is taken in one spelling only: standard alphabet, padded, no stray bits. Some receiver libraries
repair other spellings, some fail, and a few decode them to different bytes. A signature that verifies
in one language and not in another is worse than a refused setting.

An HMAC is two hashes fed with the padded keys, which takes less than `hmac.digest` does. Hash states that have the keys already would take
less still, but are three objects of OpenSSL's for each subscription, and out of the CPU's caches when its turn comes. The padded keys are made at the first
signature, so that a million subscriptions cost no more than their secrets. Those of the one v1 secret that nearly everybody has are kept by
the request's template (`Signers.pads`), together with the rest that a request takes from there.

Source: Standard Webhooks 1.0.0; RFC 2104 for the two hashes; RFC 8032 for ed25519.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from binascii import Error as Base64Error, a2b_base64, b2a_base64, hexlify
from collections.abc import Sequence
from typing import Final, Protocol

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SCHEMES: Final = ("v1", "v1a", "github")
MAX_SECRETS: Final = 8  # a rotation needs two; each one costs every delivery a signature

_SYMMETRIC: Final = "whsec_"
_ASYMMETRIC: Final = "whsk_"
_PLAIN = re.compile(r"[!-~]{16,256}", re.ASCII)
# 24 or 32 bytes, as nearly everybody has: the base64 that `_decode` takes, found without decoding.
_USUAL = re.compile(r"whsec_(?:[A-Za-z0-9+/]{32}|[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=)", re.ASCII)
_BLOCK: Final = 64
PADS: Final = 2 * _BLOCK
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))
_SHA256: Final = hashlib.sha256()  # of nothing; copying it takes a little less than making one
_B2A_BASE64: Final = (
    b2a_base64  # compiled, what comes of a module that isn't is looked up by its name in each call
)


def _pads(key: bytes) -> bytes:
    """The key of an HMAC-SHA256, padded for the inner hash and for the outer one (RFC 2104 2): PADS bytes."""
    if len(key) > _BLOCK:
        key = hashlib.sha256(key).digest()
    padded = key.ljust(_BLOCK, b"\0")
    return padded.translate(_INNER) + padded.translate(_OUTER)


def _digest(pads: bytes, prefix: bytes, body: bytes) -> bytes:
    """An HMAC-SHA256 over both; `pads` may be followed by anything."""
    inner = _SHA256.copy()
    inner.update(pads[:_BLOCK] + prefix)
    inner.update(body)
    outer = _SHA256.copy()
    outer.update(pads[_BLOCK:PADS] + inner.digest())
    return outer.digest()


def _v1(pads: bytes, prefix: bytes, body: bytes) -> bytes:
    return b"v1," + _B2A_BASE64(_digest(pads, prefix, body), newline=False)


class _Scheme(Protocol):
    def sign(self, prefix: bytes, body: bytes) -> bytes:
        """One entry of `webhook-signature`."""


class _V1:
    __slots__ = ("_pads",)

    def __init__(self, key: bytes) -> None:
        self._pads = _pads(key)

    def sign(self, prefix: bytes, body: bytes) -> bytes:
        return _v1(self._pads, prefix, body)


class _V1a:
    __slots__ = ("_key",)

    def __init__(self, seed: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(seed)

    def sign(self, prefix: bytes, body: bytes) -> bytes:
        return b"v1a," + b2a_base64(self._key.sign(prefix + body), newline=False)


def v1_line(pads: bytes, id: bytes, timestamp: bytes, body: bytes) -> bytes:  # noqa: A002 - the spec's name for it
    """The header line of the one v1 secret whose `Signers.pads` are `pads`, or stand at its beginning."""
    return b"webhook-signature: %b\r\n" % _v1(pads, b"%b.%b." % (id, timestamp), body)


class Signers:
    """A subscription's live secrets. Made by `make_signers`; the repr shows no secret."""

    __slots__ = ("_github_key", "_github_pads", "_keys", "_schemes")

    def __init__(self, keys: Sequence[tuple[str, bytes]], github_key: bytes | None) -> None:
        """`keys` are ("v1", key) and ("v1a", seed), newest first."""
        self._keys = tuple(keys)
        self._github_key = github_key
        self._schemes: tuple[_Scheme, ...] | None = None
        self._github_pads = b""

    def __repr__(self) -> str:
        names = [scheme for scheme, _ in self._keys] + ["github"] * (self._github_key is not None)
        return f"<Signers {' '.join(names)}>"

    def pads(self) -> bytes:
        """The key, padded for both hashes, for `v1_line`: PADS bytes; none unless there is one v1 secret and nothing else."""
        if self._github_key is not None or len(self._keys) != 1 or self._keys[0][0] != "v1":
            return b""
        return _pads(self._keys[0][1])

    def header_lines(self, id: bytes, timestamp: bytes, body: bytes) -> bytes:  # noqa: A002 - the spec's name for it
        """The ready header lines, each ending CRLF: `webhook-signature` and, with github, `x-hub-signature-256`."""
        schemes = self._schemes
        if schemes is None:
            # With the first use: what there is of it, of each of 100,000 subscriptions, is memory and time of the start.
            schemes = self._schemes = tuple(
                _V1(key) if scheme == "v1" else _V1a(key) for scheme, key in self._keys
            )
            self._github_pads = b"" if self._github_key is None else _pads(self._github_key)
        lines = b""
        if schemes:
            prefix = b"%b.%b." % (id, timestamp)
            entries = b" ".join([scheme.sign(prefix, body) for scheme in schemes])
            lines = b"webhook-signature: %b\r\n" % entries
        if self._github_pads:
            lines += b"x-hub-signature-256: sha256=%b\r\n" % hexlify(_digest(self._github_pads, b"", body))
        return lines

    def public_keys(self) -> tuple[str, ...]:
        """`whpk_...` of each v1a secret, newest first: what its receiver verifies with."""
        return tuple(_written(key) for scheme, key in self._keys if scheme == "v1a")


def public_key(secret: str) -> str | None:
    """`whpk_...`, which the receiver of an ed25519 secret (`whsk_...`) verifies with; None for any other secret."""
    if not secret.startswith(_ASYMMETRIC):
        return None
    try:
        _, seed = _parse(secret)
    except ValueError:
        return None
    return _written(seed)


def _written(seed: bytes) -> str:
    return "whpk_" + b64encode(_public(seed)).decode()


def make_signers(secrets: Sequence[str], signatures: Sequence[str]) -> Signers:
    """Check the settings `secrets` (newest first) and `signatures`. ValueErrors don't quote secrets."""
    for name in signatures:
        if name not in SCHEMES:
            raise ValueError(f"signatures: {name[:32]!r} is unknown; use {', '.join(SCHEMES)}")
    if not signatures or len(set(signatures)) != len(signatures):
        raise ValueError("signatures: name at least one of v1, v1a, github, each only once")
    if not secrets:
        raise ValueError("secrets: at least one is needed")
    if len(secrets) > MAX_SECRETS:
        raise ValueError(f"secrets: at most {MAX_SECRETS} can be live at a time")
    if len(set(secrets)) != len(secrets):
        raise ValueError("secrets: the same secret stands there twice")
    keys: list[tuple[str, bytes]] = []
    github_key: bytes | None = None
    for number, secret in enumerate(secrets):
        try:
            kind, key = _parse(secret)
            if kind == "v1a":
                _require(kind in signatures, "a whsk_ secret signs v1a only, which signatures doesn't name")
                keys.append((kind, key))
                continue
            if kind == "v1":
                _require("v1" in signatures or "github" in signatures, "a whsec_ secret can't sign v1a")
                if "v1" in signatures:
                    keys.append((kind, key))
            else:
                _require("github" in signatures, "must begin with whsec_ (v1) or whsk_ (v1a)")
            if "github" in signatures and github_key is None:
                github_key = secret.encode()
        except ValueError as error:
            raise ValueError(f"secrets[{number}]: {error}") from None
    made = {kind for kind, _ in keys}
    for name, prefix in (("v1", "whsec_"), ("v1a", "whsk_")):
        if name in signatures and name not in made:
            raise ValueError(f"signatures: {name} needs a secret that begins with {prefix}")
    if "github" in signatures and github_key is None:
        raise ValueError("signatures: github needs a secret that is not a whsk_ key")
    return Signers(keys, github_key)


def usual_secrets(secrets: Sequence[str]) -> bool:
    """Whether `make_signers` is sure to take them for `v1`, found at a tenth of its cost; False: ask it."""
    if not 0 < len(secrets) <= MAX_SECRETS or len(set(secrets)) != len(secrets):
        return False
    return None not in [_USUAL.fullmatch(secret) for secret in secrets]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _parse(secret: str) -> tuple[str, bytes]:
    """("v1", key), ("v1a", seed) or ("github", b"")."""
    if secret.startswith(_SYMMETRIC):
        key = _decode(secret.removeprefix(_SYMMETRIC))
        _require(24 <= len(key) <= 64, f"holds {len(key)} bytes; Standard Webhooks asks for 24 to 64")
        return "v1", key
    if secret.startswith(_ASYMMETRIC):
        key = _decode(secret.removeprefix(_ASYMMETRIC))
        _require(
            len(key) in {32, 64},
            f"holds {len(key)} bytes; an ed25519 key has 32 (seed) or 64 (seed and public)",
        )
        seed, public = key[:32], key[32:]
        _require(not public or _public(seed) == public, "its public half doesn't belong to its seed")
        return "v1a", seed
    _require(not secret.startswith("whpk_"), "is a public key (whpk_); signing needs the secret one (whsk_)")
    _require(
        _PLAIN.fullmatch(secret) is not None,
        "must begin with whsec_ (v1) or whsk_ (v1a), or for github be 16 to 256 visible ASCII characters",
    )
    return "github", b""


def _public(seed: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def _decode(text: str) -> bytes:
    """Base64 in its one canonical spelling."""
    _require(
        not ("-" in text or "_" in text),
        "uses the URL-safe base64 alphabet; write + for - and / for _",
    )
    _require(
        text.isascii() and len(text) % 4 == 0, "is not padded base64; its length must be a multiple of 4"
    )
    try:
        data = a2b_base64(text, strict_mode=True)
    except Base64Error:
        raise ValueError("is not base64") from None
    _require(b64encode(data).decode() == text, "is not base64 in its canonical form")
    return data
