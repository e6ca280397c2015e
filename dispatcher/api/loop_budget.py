"""A budget of the loop's time for the API: while deliveries are behind, requests wait first.

The API runs on the loop that delivers. What its requests take there is measured, step by step (`Meter.drive`). While deliveries are behind, all
requests together have a share of the loop's time (`api.loop_share`), and whatever is more than that waits until it is made up for. While
none is behind, nobody waits.

A request waits where it begins, before its body is read: for `_PATIENCE` at the most, then it is refused. A request that is at work waits where
it gives up its turn (`asyncio.sleep(0)`), and is not refused for that. So whoever works on the loop for long puts such a line into its loop.

Who waits: the kinds of callers in turn, and of one kind the callers in turn. So a caller that sends very much lengthens its own queue only, and
operators have their turn beside any number of strangers. Health and readiness are never measured, and never wait.

Half of the share is divided evenly among the operators and tenants that have taken some of it lately. Whoever has not taken its part doesn't wait: requests of
one tenant may take so much that for seconds nobody could be let in, and cheap requests of others don't pay for that.

Rules:

1. `_level` is what the API has left, in seconds; below zero it owes. Only `charge` lowers it, and only time raises it.
2. A future in `_queues` is counted in `_waiting`. Whoever takes it out lowers that.
3. While anybody waits, `_pump` is due.
4. `_accounts` has those who took something within `_LATELY`, whoever took last at the end. The level of an account is to its part what `_level` is to the whole.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Generator
from enum import Enum
from typing import Any, Final, TypeVar

from aiohttp import web

from dispatcher.api.problems import Kind, Problem

T = TypeVar("T")

_BURST: Final = 0.02  # seconds of the loop that may be taken at once
_MOST_OWED: Final = 2.0  # seconds; more is forgotten
_PATIENCE: Final = 5.0  # seconds that a request waits for its turn
_RETRY_AFTER: Final = 2  # seconds, for those that are refused
_WAITING: Final = 1000  # requests that wait at a time...
_OF_ONE: Final = 50  # ...and of one caller
_LEAST_PAUSE: Final = 0.001  # seconds between two looks at what is left
_LONGEST_PAUSE: Final = 0.05
_OVERHEAD: Final = (
    0.0001  # seconds for what isn't measured of a request: reading its head, and writing the answer
)
_PER_BYTE: Final = 1e-9  # seconds for writing a byte of an answer
_LATELY: Final = 60.0  # seconds
_OWN_SHARE: Final = 0.5  # of the share, which is divided among operators and tenants

RESULTS: Final = ("served", "refused")
"""What came of requests that waited: labels of `api_waits_total`."""


class CallerKind(Enum):
    """The kinds of callers that have their turns beside each other."""

    METRICS = "metrics"  # whoever scrapes
    OPERATOR = "operator"
    TENANT = "tenant"
    NOBODY = "nobody"  # without a key


def account_of(kind: CallerKind, caller: str) -> str | None:
    """The name of the caller's account. None: it has none, since anybody could call by any number of such names."""
    return f"{kind.value} {caller}" if kind in (CallerKind.OPERATOR, CallerKind.TENANT) else None


class _Account:
    """What a caller has left of its part, in seconds, as of when."""

    __slots__ = ("level", "since")

    def __init__(self, now: float) -> None:
        self.level = _BURST
        self.since = now


class LoopBudget:
    """What the API may take of the loop's time, and who waits for it."""

    def __init__(
        self, share: float, behind: Callable[[], bool], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """`share` of the loop's time is the API's while deliveries are `behind`; 1: all of it. `clock` gives seconds."""
        self.spent = 0.0
        """Seconds of the loop's time that requests took."""
        self.waits = dict.fromkeys(RESULTS, 0)
        self._share = share
        self._behind = behind
        self._clock = clock
        self._level = _BURST
        self._since = clock()
        self._queues: dict[CallerKind, OrderedDict[str, deque[asyncio.Future[None]]]] = {
            kind: OrderedDict() for kind in CallerKind
        }
        self._turns = deque(CallerKind)
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._waiting = 0
        self._due: asyncio.Handle | None = None

    def charge(self, seconds: float, account: str | None = None) -> None:
        """A request took this much of the loop's time; of whose account (`account_of`)."""
        self.spent += seconds
        self._refill()
        self._level = max(self._level - seconds, -_MOST_OWED)
        if account is not None:
            found = self._accounts.get(account)
            if found is None:
                found = self._accounts[account] = _Account(self._since)
            self._refill_own(found)
            found.level = max(found.level - seconds, -_MOST_OWED)
            self._accounts.move_to_end(account)

    def _refill_own(self, account: _Account) -> None:
        now = self._since
        while self._accounts and (oldest := next(iter(self._accounts.values()))).since < now - _LATELY:
            if oldest is account:
                break
            self._accounts.popitem(last=False)
        part = self._share * _OWN_SHARE / max(1, len(self._accounts))
        account.level = min(_BURST, account.level + (now - account.since) * part)
        account.since = now

    def _has_left(self, account: str | None) -> bool:
        """Whether the caller has not taken its own part."""
        if account is None:
            return False
        found = self._accounts.get(account)
        if found is None:
            return True
        self._refill_own(found)
        self._accounts.move_to_end(account)  # by when it was looked at, as `since`
        return found.level > 0

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(_BURST, self._level + (now - self._since) * self._share)
        self._since = now

    @property
    def short(self) -> bool:
        """Whether deliveries are behind, and the API has taken more than its share."""
        if self._share >= 1.0:
            return False
        self._refill()
        return self._level < 0 and self._behind()

    async def turn(self, kind: CallerKind, caller: str, *, refusable: bool = True) -> None:
        """Wait until it is the caller's turn; at once where the budget is not short. Raises Problem for a `refusable` request that waits too long."""
        if not self._waiting and not self.short:
            return
        if self._has_left(account_of(kind, caller)):
            return
        callers = self._queues[kind]
        queue = callers.get(caller, deque())
        if refusable and (self._waiting >= _WAITING or len(queue) >= _OF_ONE):
            raise self._refusal()
        callers[caller] = queue
        waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(waits)
        self._waiting += 1
        if self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._pump)
        try:
            async with asyncio.timeout(_PATIENCE if refusable else None):
                await waits
        except TimeoutError:
            raise self._refusal() from None
        finally:
            if waits in queue:
                queue.remove(waits)
                self._waiting -= 1
                if not queue and callers.get(caller) is queue:
                    del callers[caller]
        self.waits["served"] += 1

    def _refusal(self) -> Problem:
        self.waits["refused"] += 1
        return Problem(
            Kind.UNAVAILABLE,
            "deliveries are behind and come first, and too many requests wait: send it again soon",
            headers={"Retry-After": str(_RETRY_AFTER)},
        )

    def close(self) -> None:
        """Nobody is let in any more."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _pump(self) -> None:
        """Let the next one in where the budget allows it, and look again."""
        self._due = None
        if not self._waiting:
            return
        loop = asyncio.get_running_loop()
        if self.short:
            pause = min(max(-self._level / self._share, _LEAST_PAUSE), _LONGEST_PAUSE)
            self._due = loop.call_later(pause, self._pump)
            return
        self._next().set_result(None)
        # After its first step, which may have taken what there was.
        self._due = loop.call_soon(self._pump)

    def _next(self) -> asyncio.Future[None]:
        """Whose turn it is; there is somebody."""
        while not self._queues[self._turns[0]]:
            self._turns.rotate(-1)
        callers = self._queues[self._turns[0]]
        self._turns.rotate(-1)
        caller, queue = callers.popitem(last=False)
        waits = queue.popleft()
        if queue:
            callers[caller] = queue
        self._waiting -= 1
        return waits


class Meter:
    """Measures what one request takes of the loop's time."""

    def __init__(self, budget: LoopBudget, address: str) -> None:
        self._budget = budget
        self._kind = CallerKind.NOBODY
        self._caller = address
        self._account: str | None = None

    @property
    def short(self) -> bool:
        """Whether requests wait."""
        return self._budget.short

    async def turn(self, kind: CallerKind, caller: str) -> None:
        """Who calls is known: wait for their turn. Raises Problem."""
        self._kind, self._caller = kind, caller
        self._account = account_of(kind, caller)
        await self._budget.turn(kind, caller)

    async def beside(self, work: Callable[[], T]) -> T:
        """Do it in a thread. Its time is counted too: of two threads only one runs Python code."""
        took = 0.0

        def measured() -> T:
            nonlocal took
            began = time.thread_time()
            try:
                return work()
            finally:
                took = time.thread_time() - began

        try:
            return await asyncio.to_thread(measured)
        finally:
            self._charge(took)

    async def drive(self, handler: Awaitable[web.StreamResponse]) -> web.StreamResponse:
        """Run the handler of the request."""
        self._budget.charge(_OVERHEAD)
        response = await _Driven(handler, self._budget, self._charge, self._wait)
        if isinstance(response, web.Response) and isinstance(response.body, bytes):
            self._charge(len(response.body) * _PER_BYTE)
        return response

    def _charge(self, seconds: float) -> None:
        self._budget.charge(seconds, self._account)

    def _wait(self) -> Generator[Any, Any, None]:
        return self._budget.turn(self._kind, self._caller, refusable=False).__await__()


class _Driven(Awaitable[T]):
    """What is awaited step by step: the steps are measured, and wait for their turn where they give one up."""

    def __init__(
        self,
        inner: Awaitable[T],
        budget: LoopBudget,
        charge: Callable[[float], None],
        wait: Callable[[], Generator[Any, Any, None]],
    ) -> None:
        self._inner = inner
        self._budget = budget
        self._charge = charge
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, T]:
        inner, budget = self._inner.__await__(), self._budget
        error: BaseException | None = None
        while True:
            began = time.perf_counter()
            try:
                waits_for = next(inner) if error is None else inner.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            finally:
                self._charge(time.perf_counter() - began)
            error = None
            try:
                if waits_for is None and budget.short:  # as `asyncio.sleep(0)` does
                    yield from self._wait()
                else:
                    yield waits_for
            except BaseException as raised:  # noqa: BLE001 - the coroutine's own to deal with
                error = raised


METER: Final = web.RequestKey("meter", Meter)
"""Where a request has its meter; health and readiness have none."""
BUDGET: Final = web.AppKey("budget", LoopBudget)
"""Where an application has its budget."""
