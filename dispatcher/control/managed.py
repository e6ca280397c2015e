"""The subscriptions that the API manages, from records of the control topic to the registry.

In: states of the topic (`take`), the clock (`end_secrets`). Out: `Registry.put_managed` and `remove_managed`. State
that this module alone writes: the ids in order, who was created by which request, when secrets end, and which
subscriptions can't be used.

A subscription whose secrets no key opens is kept, listed and disabled (`sealed`). One that the settings refuse (its
port, its scheme) is so too (`invalid`). Neither is ever written over by this module.

Rejected: a table of parsed documents. A hundred thousand of them are read once in a while, and the bytes that repairs
need are in memory anyway. Parsing and unsealing one takes some 10 us.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import structlog

from dispatcher.control.documents import INVALID, SEALED, Documents, Stored
from dispatcher.control.errors import Invalid, Unavailable
from dispatcher.control.log import ControlLog, PendingWrite
from dispatcher.control.table import SUBSCRIPTION, RecordKind, SortedNames
from dispatcher.core.control.ledger import LedgerState, Verdict
from dispatcher.core.flaws import FlawedError
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.model import Status, Subscription
from dispatcher.core.subscription.spec import SpecReader
from dispatcher.registry.registry import Registry
from dispatcher.registry.snapshot import Managed
from dispatcher.settings.groups import Settings

log = structlog.get_logger(__name__)

IDEMPOTENCY_WINDOW: Final = 24 * 3600.0
"""Seconds that a creation is found again by its Idempotency-Key."""

_RESEAL_BATCH: Final = 100
_RESEAL_PAUSE: Final = 0.5
_LOGGED: Final = 20
# A valid form that nothing is ever signed with.
_NO_SECRET: Final = "whsec_" + "A" * 32


class ManagedSubscriptions:
    """Reads the API's subscriptions, and tells the registry. A record that can't be read is logged and left out."""

    def __init__(
        self, settings: Settings, changes: ControlLog, registry: Registry, guard: Guard, documents: Documents
    ) -> None:
        """`guard` says which URLs may be contacted."""
        self.kind = RecordKind(SUBSCRIPTION, self.take)
        self.ids = SortedNames()
        self.sooner = asyncio.Event()
        """Set when a secret ends earlier than `next_expiry_ms` said before."""
        self._settings = settings
        self._log = changes
        self._registry = registry
        self._guard = guard
        self._documents = documents
        self._specs = self._spec_reader(guard)
        self._checks = self._spec_reader(guard, keeps=False)  # of what may never be written
        # For what the settings have come to refuse: it is not delivered to, but there.
        self._lenient = self._spec_reader(Guard(("0.0.0.0/0", "::/0"), https_only=False, ports=("1-65535",)))
        self._initial: dict[str, Managed] | None = {}  # until the registry is given all of them at once
        self._initial_ids: list[str] = []
        self._stale: list[str] = []  # of the initial ones: sealed with an old key, or not at all
        self._unusable: dict[str, str] = {}
        self._requests: dict[tuple[str, str], tuple[str, int]] = {}  # id and creation by Idempotency-Key
        self._expiries: list[tuple[int, str]] = []  # a heap: when some secret of it ends

    def _spec_reader(self, guard: Guard, *, keeps: bool = True) -> SpecReader:
        retry = RetryPolicy(self._settings.retry.schedule, self._settings.retry.jitter)
        return SpecReader(
            guard, timeout=self._settings.delivery.timeout, retry=retry, keeps=keeps, accepted=True
        )

    # What others ask.

    def get(self, id: str) -> Stored | None:  # noqa: A002 - the field's name
        """One by its id: parsed and unsealed at each call, some 10 us. What can't be read (the log told) isn't there."""
        state = self._log.present(id)
        if state is None or ":" in id:
            return None
        try:
            return self._stored(id, state)
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _stored(self, id: str, state: LedgerState[bytes]) -> Stored:  # noqa: A002 - the field's name
        return self._read(id, state.version, orjson.loads(state.value or b"{}"))

    def _read(self, id: str, version: int, raw: dict[str, Any]) -> Stored:  # noqa: A002 - the field's name
        return self._documents.read(
            id, version, raw, self._log.now_ms(), unusable=self._unusable.get(id), complain=self._cannot_open
        )

    def by_idempotency(self, principal: str, key: str) -> Stored | None:
        """The subscription that this principal created with this Idempotency-Key within the last 24 hours, on any replica."""
        id_, created_ms = self._requests.get((principal, key), ("", 0))
        if created_ms < self._log.now_ms() - IDEMPOTENCY_WINDOW * 1000:
            return None
        return self.get(id_)

    def unusable(self) -> dict[str, int]:
        """How many subscriptions can't be delivered to, by why: `sealed`, `invalid`."""
        return dict(Counter(self._unusable.values()))

    def check(self, written: Mapping[str, Any]) -> None:
        """Raise Invalid with the flaws of a document that is no subscription."""
        try:
            self._checks.read(written)
        except FlawedError as error:
            raise Invalid(error.flaws) from error

    # What the topic says.

    def take(self, id: str, state: LedgerState[bytes]) -> None:  # noqa: A002 - the field's name
        """What the topic says of it now."""
        if self._initial is not None:
            self._take_initial(self._initial, id, state)
        elif state.value is None:
            self.ids.discard(id)
            self._unusable.pop(id, None)
            self._registry.remove_managed(id)
        else:
            made, _ = self._made(id, state)
            self.ids.add(id)
            if made is None:
                self._registry.remove_managed(id)
            else:
                self._registry.put_managed(*made)

    def _take_initial(self, initial: dict[str, Managed], id: str, state: LedgerState[bytes]) -> None:  # noqa: A002
        if state.value is None:
            return
        self._initial_ids.append(id)
        made, old_key = self._made(id, state)
        if made is not None:
            initial[id] = made
        if old_key:
            self._stale.append(id)

    def initial(self) -> dict[str, Managed]:
        """All that the topic said at the start, for `Registry.load_managed`. From then on each is told by itself."""
        initial, self._initial = self._initial or {}, None
        self.ids.sorted, self._initial_ids = sorted(self._initial_ids), []
        if self._unusable:
            log.error(
                "SUBSCRIPTIONS ARE NOT DELIVERED TO: the settings refuse them, or no key opens their secrets",
                subscriptions=dict(list(self._unusable.items())[:_LOGGED]),
                total=len(self._unusable),
                reasons=self.unusable(),
                hint="sealed: put the key back into api.secrets_keys; invalid: change them, or the settings that refuse them."
                " What matches them meanwhile is kept for subscription.pause_keeps",
            )
        return initial

    def _made(self, id: str, state: LedgerState[bytes]) -> tuple[Managed | None, bool]:  # noqa: A002
        """The subscription of a record, and whether its secrets should be sealed anew. Fills the indexes."""
        self._unusable.pop(id, None)
        try:
            raw = orjson.loads(state.value or b"{}")
            otherwise = self._documents.sealed_otherwise(raw)
            stored = self._read(id, state.version, raw)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self._complain("a subscription in the topic can't be read", subscription=id, error=repr(error))
            self._unusable[id] = INVALID
            return None, False
        request = stored.idempotency
        if request is not None and stored.created_ms > self._log.now_ms() - IDEMPOTENCY_WINDOW * 1000:
            self._requests[request.principal, request.key] = (id, stored.created_ms)
        for each in stored.secrets:
            if each.expires_ms is not None and len(stored.secrets) > 1:
                heapq.heappush(self._expiries, (each.expires_ms, id))
                self.sooner.set()
        subscription = self._subscription(stored)
        if subscription is None:
            return None, False
        # With another URL everything that became of it starts over, as with a changed entry of the file.
        tag = f"{stored.created_ms} {stored.document.get('url')}"
        return Managed(subscription, tag), otherwise and not stored.unusable

    def _subscription(self, stored: Stored) -> Subscription | None:
        written = {**stored.document, "id": stored.id, "secrets": [each.secret for each in stored.secrets]}
        if stored.unusable == SEALED:
            self._unusable[stored.id] = SEALED
            written["secrets"], written["signatures"] = [_NO_SECRET], ["v1"]
            return self._disabled(written, SEALED)
        try:
            return self._specs.read(written)
        except FlawedError as error:
            self._complain(
                "a subscription in the topic is refused by the settings",
                subscription=stored.id,
                flaws=[str(flaw) for flaw in error.flaws],
            )
            self._unusable[stored.id] = INVALID
            return self._disabled(written, INVALID)

    def _disabled(self, written: dict[str, Any], reason: str) -> Subscription | None:
        try:
            subscription = self._lenient.read(written).with_status(Status.DISABLED, reason)
        except FlawedError:
            return None
        if written.get("status") == Status.PAUSED:
            # What matches a paused one is not owed, whatever else is wrong with it.
            subscription = subscription.with_status(Status.PAUSED)
        subscription.secrets = ()  # whatever happens, nothing is sent in its name
        return subscription

    def _cannot_open(self, id: str, field: str, why: str) -> None:  # noqa: A002 - the field's name
        self._complain("a secret can't be opened", subscription=id, field=field, error=why)

    def _complain(self, what: str, **about: object) -> None:
        """A line for each, but of the first ones only while loading: a key that is missing is all subscriptions'."""
        if self._initial is None or len(self._unusable) < _LOGGED:
            log.error(what, **about)

    # Time.

    @property
    def next_expiry_ms(self) -> int | None:
        """When the next secret ends."""
        return self._expiries[0][0] if self._expiries else None

    def expired(self, now_ms: int) -> Sequence[str]:
        """Whose secrets have ended since the last call; `end_secrets` is due for each."""
        ended = set()
        while self._expiries and self._expiries[0][0] <= now_ms:
            ended.add(heapq.heappop(self._expiries)[1])
        return sorted(ended)

    def end_secrets(self, id: str) -> None:  # noqa: A002 - the field's name
        """Sign no more with the secrets of it that have ended."""
        state = self._log.present(id)
        if state is not None:
            self.take(id, state)
            log.info("a rotated secret has ended", subscription=id)

    def forget(self) -> None:
        """Forget old requests, and copies that the reader of documents shares."""
        self._specs = self._spec_reader(self._guard)
        oldest = self._log.now_ms() - IDEMPOTENCY_WINDOW * 1000
        for request in [each for each, (_, created_ms) in self._requests.items() if created_ms < oldest]:
            del self._requests[request]

    async def reseal(self, delay: float) -> None:
        """Seal anew, with the newest key, what was sealed otherwise at the start; whoever else does it, once is enough.

        Begins after about `delay` seconds: replicas that get a new key one after the other all have it by then.
        """
        left, self._stale = self._stale, []
        if not left:
            return
        await asyncio.sleep(delay * (0.5 + random.random()))  # noqa: S311 - no secret
        done = 0
        while left:
            some, left = left[:_RESEAL_BATCH], left[_RESEAL_BATCH:]
            try:
                verdicts = await self._log.write_all([each for id_ in some for each in self._resealed(id_)])
            except Unavailable as error:
                log.warning("secrets can't be sealed anew, trying again", error=str(error))
                left = [*some, *left]
                await asyncio.sleep(10 * _RESEAL_PAUSE)
            else:
                done += sum(verdict is not Verdict.IGNORED for verdict in verdicts)
                await asyncio.sleep(_RESEAL_PAUSE)
        log.info("secrets are sealed with the newest key", subscriptions=done)

    def _resealed(self, id: str) -> list[PendingWrite]:  # noqa: A002 - the field's name
        """The write that seals it with the newest key, if one is needed."""
        state = self._log.present(id)
        if state is None or not self._documents.sealed_otherwise(orjson.loads(state.value or b"{}")):
            return []
        stored = self._stored(id, state)
        return [] if stored.unusable else [PendingWrite(id, state.version, self._documents.write(stored))]
