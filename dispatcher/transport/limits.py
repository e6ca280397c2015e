"""Every bound on what an endpoint, a proxy or a name server sends. `SECURITY.md` lists them with their tests."""

from __future__ import annotations

from typing import Final

MAX_HEAD: Final = 32 * 1024
"""Bytes of a response's status line and fields, interim responses included."""
MAX_FIELDS: Final = 100
"""Fields of a response's head."""
MAX_INTERIM: Final = 16
"""Interim (1xx) responses before the one that counts, of an endpoint or a proxy."""
MAX_FIELD_VALUE: Final = 2048
"""Characters of a field's value that are kept."""
KEPT_BODY: Final = 1024
"""Bytes of a response's body that go into the result."""
KNOWN_RESPONSES: Final = 64
"""Responses that are remembered to the byte, over all endpoints."""
KNOWN_RESPONSE_BYTES: Final = 1024
"""Bytes of a response that is remembered."""

MAX_SILENT: Final = 64 * 1024
"""Bytes of TLS that carry no data. Two session tickets with a chain of certificates in them take some 10,000."""
MAX_HANDSHAKE: Final = 256 * 1024
"""Bytes before a TLS handshake is over. OpenSSL takes chains of 100 KiB."""
MAX_CONNECT_RESPONSE: Final = 16 * 1024
"""Bytes of a proxy's response to CONNECT, interim ones included."""

MAX_ALIASES: Final = 16
"""Aliases (CNAME) of a name in one DNS answer. More are a mistake, or an attack."""
MAX_ADDRESSES: Final = 64
"""Addresses of one DNS answer that are looked at."""
MAX_TRIED: Final = 8
"""Addresses of one name that are tried for a connection."""
