"""How secrets of a subscription are shown: enough to tell two of them apart, nothing to sign with."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

_SHOWN: Final = 4  # characters of a secret's end
_LONG_ENOUGH: Final = 20  # of a shorter one that would be too large a part
_PREFIXES: Final = ("whsec_", "whsk_")

# Headers whose name says that the value lets somebody in.
_CREDENTIALS: Final = re.compile(
    r"auth|key|token|secret|pass|cookie|credential|signature|session", re.IGNORECASE
)


def mask_secret(secret: str) -> str:
    """`whsec_...LaSw`."""
    prefix = next((known for known in _PREFIXES if secret.startswith(known)), "")
    end = secret[-_SHOWN:] if len(secret) - len(prefix) >= _LONG_ENOUGH else ""
    return f"{prefix}...{end}"


def mask_header(name: str, value: str) -> str:
    """A header's value as it is shown: what looks like a credential by its name is masked."""
    if not _CREDENTIALS.search(name):
        return value
    if name.lower() == "authorization":
        scheme, _, credentials = value.partition(" ")
        return f"{scheme} {_ended(credentials)}"
    return _ended(value)


def _ended(value: str) -> str:
    return f"...{value[-_SHOWN:]}" if len(value) >= _LONG_ENOUGH else "..."


def mask_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of which the header values are masked."""
    copy = dict(document)
    headers = document.get("headers")
    if isinstance(headers, Mapping):
        copy["headers"] = {name: mask_header(name, str(value)) for name, value in headers.items()}
    return copy


def unmask_headers(patched: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Headers of which those that came back as they were shown keep the value that is known.

    Who reads a subscription, changes one thing and sends all of it back must not overwrite a token with its mask.
    """
    return {
        name: known[name]
        if name in known and isinstance(known[name], str) and value == mask_header(name, known[name])
        else value
        for name, value in patched.items()
    }
