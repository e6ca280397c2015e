"""What a local receiver got last, for the page that shows it (`dispatcher listen --inspect`): in memory, and bounded.

Rules:

1. At most `requests` requests and `size` bytes of bodies and header lines are kept. The oldest go first. The newest always stays.
2. The requests with one `webhook-id`, method and target are one delivery: the sender's attempts. A request without an id is a
   delivery by itself.
3. Deliveries are listed by their newest request. `changed` is set at each request.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from dispatcher.commands.receiver import BODY_CAP, Arrival, SignatureVerdict, expected_signature

REQUESTS: Final = 1000
SIZE: Final = BODY_CAP
_SIGNED: Final = ("webhook-id", "webhook-timestamp", "webhook-signature")
_LINE: Final = 32  # bytes that a header line takes beside its text


@dataclass(slots=True)
class KeptRequest:
    """A request, of which delivery it is, what it takes of the memory, and whether its sender left before the answer."""

    arrival: Arrival
    delivery: str
    size: int
    left: bool = False


class Inspection:
    """The last requests, by serial and by delivery."""

    def __init__(self, requests: int = REQUESTS, size: int = SIZE) -> None:
        self.changed: set[asyncio.Event] = set()
        self._limit = requests
        self._size_limit = size
        self._size = 0
        self._requests: dict[int, KeptRequest] = {}
        self._deliveries: dict[str, deque[KeptRequest]] = {}

    def keep(self, arrival: Arrival) -> None:
        """Take a request in; forget the oldest where there is no room."""
        delivery = delivery_id(arrival)
        kept = KeptRequest(arrival, delivery, _size_of(arrival))
        self._requests[arrival.serial] = kept
        attempts = self._deliveries.pop(delivery, None) or deque()
        attempts.append(kept)
        self._deliveries[delivery] = attempts
        self._size += kept.size
        while len(self._requests) > self._limit or (
            self._size > self._size_limit and len(self._requests) > 1
        ):
            self._forget_oldest()
        for event in self.changed:
            event.set()

    def _forget_oldest(self) -> None:
        oldest = self._requests.pop(next(iter(self._requests)))
        self._size -= oldest.size
        attempts = self._deliveries[oldest.delivery]
        attempts.popleft()
        if not attempts:
            del self._deliveries[oldest.delivery]

    def note_left(self, arrival: Arrival) -> None:
        """Note that the sender of a request left before it was answered."""
        kept = self._requests.get(arrival.serial)
        if kept is not None:
            kept.left = True

    def request(self, serial: int) -> KeptRequest | None:
        """Return one request; None when it isn't kept."""
        return self._requests.get(serial)

    def delivery(self, id_: str) -> list[KeptRequest]:
        """Return the requests of a delivery, oldest first; none when it isn't kept."""
        return list(self._deliveries.get(id_, ()))

    def newest(self) -> Iterator[KeptRequest]:
        """Yield the newest request of each delivery, newest first."""
        return (attempts[-1] for attempts in reversed(self._deliveries.values()))

    def since(self, serial: int) -> Iterator[KeptRequest]:
        """Yield the requests after this one, newest first."""
        for kept in reversed(self._requests.values()):
            if kept.arrival.serial <= serial:
                return
            yield kept


@dataclass(frozen=True, slots=True)
class SignatureFacts:
    """Why a signature verifies, or not."""

    verdict: SignatureVerdict
    missing: tuple[str, ...]
    """Of the header fields that are needed, those that aren't there."""
    off_seconds: int | None
    """How far `webhook-timestamp` was from the receiver's clock, negative in the past; None where it is no number."""
    schemes: tuple[str, ...]
    """Of the signatures in `webhook-signature`, in their order: `v1`, `v1a`..."""
    expected: str | None
    """The signature that would have verified."""


def signature_facts(key: bytes, arrival: Arrival) -> SignatureFacts:
    """Return what can be said of a request's signature."""
    headers = arrival.headers
    missing = tuple(name for name in _SIGNED if not headers.get(name))
    timestamp = headers.get("webhook-timestamp", "")
    off = None
    if timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 20:
        off = int(timestamp) - int(arrival.at)
    expected = None
    if "webhook-id" not in missing and "webhook-timestamp" not in missing:
        expected = expected_signature(key, headers["webhook-id"], timestamp, arrival.body).decode()
    schemes = tuple(
        sayable(signature.partition(",")[0])[:16]
        for signature in headers.get("webhook-signature", "").split(" ")[:20]
        if signature
    )
    return SignatureFacts(arrival.verdict, missing, off, schemes, expected)


def delivery_id(arrival: Arrival) -> str:
    """Return the id of the delivery that a request belongs to."""
    name = f"{arrival.method} {arrival.target} {arrival.id}" if arrival.id else f"request {arrival.serial}"
    return f"dlv_{sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"


def sayable(text: str) -> str:
    """Return a header's text for JSON: bytes that are not UTF-8 (surrogates, as aiohttp reads them) are replaced."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _size_of(arrival: Arrival) -> int:
    lines = sum(len(name) + len(value) + _LINE for name, value in arrival.headers.items())
    return len(arrival.body) + lines + len(arrival.target)
