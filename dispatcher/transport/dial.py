"""Opening a connection for one exchange: look up, check, race, shake hands.

The only part of the transport with a task per use: a connection is opened rarely and serves many
exchanges. From the moment the socket is connected everything goes by callback, so that whatever
the endpoint says at once meets a connection that is ready for it.

Nothing is connected to without a `Permit` of the guard's, whoever sends: deliveries, pings, validations, redirects.
The address that has been checked is the address that is connected to: `create_connection` is given
the literal, never the name, so no second look-up can answer differently (rebinding).

Several addresses are raced as RFC 8305 ("happy eyeballs") has it: IPv6 and IPv4 alternate, the next
starts when the one before has failed or has had 250 ms; the first connected socket wins.

Rules:

1. `_over` is set once, by `made` for a connection without TLS, by `secured`, or by `fail`.
2. Whatever happens, the exchange is handed to a connection or gets its result, once.
3. After it is over no connection of this dial is left but the one that was handed over.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Final, Protocol, cast

import structlog

from dispatcher.core.request.netguard import Guard, Permit
from dispatcher.core.request.results import Failure, Opened, Reason
from dispatcher.core.request.urls import Blocked, Origin
from dispatcher.core.retry.wheel import Entry
from dispatcher.core.subscription.model import ClientCertificate
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Callback
from dispatcher.transport.base import Exchange
from dispatcher.transport.connection import Connection, ConnectionOwner, Shared, report
from dispatcher.transport.limits import MAX_TRIED
from dispatcher.transport.proxy import ForwardedConnection, Proxy, TunnelConnection
from dispatcher.transport.secure import SecureConnection

log = structlog.get_logger(__name__)

STAGGER: Final = (
    0.25  # seconds before the next address is tried beside the one that is under way (RFC 8305 5)
)
_NO_FILES: Final = {errno.EMFILE, errno.ENFILE}


class LookupFailed(Exception):
    """The name has no usable answer."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


class Lookup(Protocol):
    """Names to addresses. See `resolver.py`."""

    async def resolve(self, host: str) -> Sequence[str]:
        """Return IP literals, best first; raise LookupFailed."""

    async def close(self) -> None: ...


def is_literal(host: str) -> bool:
    """Whether the host is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class Dialer:
    """How connections of one transport are opened."""

    __slots__ = ("bind", "connect_timeout", "context", "guard", "lookup", "make_room", "proxy", "tasks")

    def __init__(
        self,
        *,
        guard: Guard,
        lookup: Lookup,
        tasks: Tasks,
        context: Callable[[ClientCertificate | None], ssl.SSLContext],
        make_room: Callable[[], bool],
        connect_timeout: float,
        bind: Sequence[str] = (),
        proxy: Proxy | None = None,
    ) -> None:
        """`make_room` closes idle connections when there are no file descriptors left; False: there were none.

        `bind` are local addresses to connect from, at most one per family; a family without one isn't used.
        """
        self.guard = guard
        self.lookup = lookup
        self.tasks = tasks
        self.context = context
        self.make_room = make_room
        self.connect_timeout = connect_timeout
        self.proxy = proxy
        self.bind = {":" in address: address for address in bind}  # by "is IPv6"

    def reachable(self, host: str, fit: Sequence[str]) -> list[str]:
        """Those that the bound addresses can reach, in the order in which to try them. Raises OSError."""
        if self.bind:
            fit = [address for address in fit if (":" in address) in self.bind]
            if not fit:
                raise OSError(
                    errno.EAFNOSUPPORT, f"{host} has no address of a family that network.bind names"
                )
        return _interleaved(fit)[:MAX_TRIED]


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """Alternate the families, beginning with that of the first address (RFC 8305 4)."""
    if len(addresses) < 3:
        return list(addresses)
    first = ":" in addresses[0]
    same = [address for address in addresses if (":" in address) == first]
    other = [address for address in addresses if (":" in address) != first]
    mixed: list[str] = []
    for index in range(max(len(same), len(other))):
        mixed += same[index : index + 1] + other[index : index + 1]
    return mixed


class DialOwner(ConnectionOwner, Protocol):
    """The pool, as its dials see it."""

    origin: Origin
    certificate: ClientCertificate | None

    def joined(self) -> None:
        """A connection is being made; `left` follows some time."""

    def dialed(self, dial: Dial) -> None:
        """It is over."""


class Dial:
    """One exchange on its way to a connection of its own."""

    __slots__ = (
        "_deadline_first",
        "_dialer",
        "_entry",
        "_made",
        "_opened",
        "_over",
        "_owner",
        "_shared",
        "_since",
        "_stage",
        "_task",
        "_winner",
        "endpoint",
        "exchange",
        "tenant",
    )

    def __init__(self, shared: Shared, dialer: Dialer, owner: DialOwner, exchange: Exchange) -> None:
        self._shared = shared
        self._dialer = dialer
        self._owner = owner
        self._over = False
        self._winner: Connection | None = None
        self._made: list[Connection] = []
        self._stage = "waiting for its turn"
        self._since = 0.0  # when the stage began
        self._opened = Opened()
        self._deadline_first = False
        self._entry: Entry[Callback] | None = None
        self._task: asyncio.Task[None] | None = None
        self.exchange = exchange
        self.tenant: object = getattr(exchange, "usage", None)  # a delivery has one, a ping has not
        self.endpoint: object = owner

    def start(self) -> None:
        """Begin. Nothing is reported before this returns."""
        deadline, limit = self.exchange.deadline, self._shared.loop.time() + self._dialer.connect_timeout
        # Kept, as timers may come up a moment early: the clock would not tell then which of the two has passed.
        self._deadline_first = deadline <= limit
        self._entry = self._shared.timers.at(min(deadline, limit), self._expire)
        self._shared.gate.run(self._begin, self.tenant, self.endpoint)

    def _begin(self) -> None:
        if not self._over:
            self._task = self._dialer.tasks.start(self._run(), "dial")

    def _lap(self) -> float:
        """Seconds that the stage took which ends now."""
        now = self._shared.loop.time()
        since, self._since = self._since, now
        return now - since

    async def _run(self) -> None:
        self._since = self._shared.loop.time()
        try:
            if self._dialer.proxy is None:
                origin = self._owner.origin
                permit = self._dialer.guard.permit(origin.host, await self._resolve(origin.host))
                await self._race(permit, origin.port)
            else:
                await self._to_proxy(self._dialer.proxy)
        except Blocked as error:
            self.fail(Failure(Reason.BLOCKED, str(error)))
        except LookupFailed as error:
            self.fail(error.failure)
        except OSError as error:
            self.fail(_connect_failure(error))
        except Exception as error:
            # Whatever it is, the exchange must get its result (rule 2).
            log.exception("opening a connection failed", origin=str(self._owner.origin))
            self.fail(Failure(Reason.CONNECT_FAILED, repr(error)))

    async def _to_proxy(self, proxy: Proxy) -> None:
        """The proxy is the operator's: where it is isn't the guard's business, where it leads to is."""
        host, guard = self._owner.origin.host, self._dialer.guard
        guard.check_name(host)  # before the proxy is looked up, whose failures are another's fault
        try:
            await self._race(guard.permit_by_proxy(host, await self._resolve(proxy.host)), proxy.port)
        except (LookupFailed, OSError) as error:
            self.fail(Failure(Reason.PROXY_ERROR, f"the proxy {proxy} can't be reached: {error}"))

    async def _resolve(self, host: str) -> Sequence[str]:
        if is_literal(host):
            return (host,)
        self._stage = f"looking up {host}"
        try:
            return await self._dialer.lookup.resolve(host)
        finally:
            self._opened.dns = self._lap()

    async def _race(self, permit: Permit, port: int) -> None:
        """Connect to one of the addresses that the guard has permitted for this origin, and to nothing else."""
        if permit.host != self._owner.origin.host:
            raise Blocked("host", f"what is permitted is {permit.host}, not {self._owner.origin.host}")
        addresses = self._dialer.reachable(permit.host, permit.addresses)
        self._stage = f"connecting to {', '.join(addresses)}"
        if len(addresses) == 1:
            error = await self._connect(addresses[0], port, self._connection())
            if error is not None:
                raise error
            return
        # The winner's own task must end by itself: cancelling it would close the socket under the connection.
        runners: dict[asyncio.Task[OSError | None], Connection] = {}
        first_error: OSError | None = None
        waiting = list(reversed(addresses))
        try:
            while self._winner is None and (waiting or runners):
                if waiting:
                    connection = self._connection()
                    attempt = self._connect(waiting.pop(), port, connection)
                    runners[self._dialer.tasks.start(attempt, "connect")] = connection
                ended, _ = await asyncio.wait(
                    runners,
                    timeout=STAGGER if waiting else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for runner in ended:
                    del runners[runner]
                    first_error = first_error or runner.result()
        finally:
            for runner, connection in runners.items():
                if connection is not self._winner:
                    runner.cancel()
        if self._winner is None and first_error is not None:
            raise first_error

    def _connection(self) -> Connection:
        origin, proxy = self._owner.origin, self._dialer.proxy
        connection: Connection
        if origin.scheme == "https":
            kind = SecureConnection if proxy is None else TunnelConnection
            connection = kind(self._shared, self._owner, self)
        elif proxy is None:
            connection = Connection(self._shared, self._owner, self)
        else:
            connection = ForwardedConnection(self._shared, self._owner, self, origin, proxy)
        self._owner.joined()
        self._made.append(connection)
        return connection

    async def _connect(self, address: str, port: int, connection: Connection) -> OSError | None:
        """Return why it failed; None when it is connected (or another one was first)."""
        local = self._dialer.bind.get(":" in address)
        for last in (False, True):
            try:
                await self._shared.loop.create_connection(
                    lambda: cast("asyncio.Protocol", connection),
                    address,
                    port,
                    local_addr=(local, 0) if local is not None else None,
                )
            except OSError as error:
                if not last and error.errno in _NO_FILES and self._dialer.make_room():
                    await asyncio.sleep(0.001)  # sockets close in the loop's next turn
                    continue
                connection.abort()
                return error
            break
        return None

    def made(self, connection: Connection) -> None:
        """The first connected socket wins."""
        if self._over or self._winner is not None:
            connection.abort()
            return
        self._winner = connection
        self._opened.connect = self._lap()
        for other in self._made:
            if other is not connection:
                other.abort()
        self._made = []
        if isinstance(connection, SecureConnection):
            try:
                context = self._dialer.context(self._owner.certificate)
            except OSError as error:  # ssl.SSLError is one
                self.fail(Failure(Reason.TLS_FAILED, f"the client certificate can't be used: {error}"))
                return
            proxy = self._dialer.proxy
            if proxy is not None and isinstance(connection, TunnelConnection):
                self._stage = "asking the proxy for the tunnel and shaking hands (TLS)"
                connection.tunnel(proxy, self._owner.origin, context)
            else:
                self._stage = "shaking hands (TLS)"
                connection.secure(context, self._owner.origin.host)
        else:
            self._hand_over(connection)

    def secured(self, connection: Connection) -> None:
        """TLS stands: the exchange may go."""
        if not self._over:
            self._opened.tls = self._lap()
            self._hand_over(connection)

    def failed(self, connection: Connection, failure: Failure) -> None:
        """The connection ended before it could be used."""
        if connection is self._winner:
            self._winner = None  # it closes by itself, with what it still has to say
            self.fail(failure)

    def _hand_over(self, connection: Connection) -> None:
        self._end()
        connection.use(self.exchange, self._opened)

    def _expire(self) -> None:
        self._entry = None
        if self._dialer.proxy is not None and self._winner is None:
            self.fail(Failure(Reason.PROXY_ERROR, f"the proxy takes too long: {self._stage}"))
        elif self._deadline_first:
            self.fail(Failure(Reason.TIMEOUT, f"the deadline passed while {self._stage}"))
        else:
            seconds = self._dialer.connect_timeout
            detail = f"no connection within {seconds:g} s: {self._stage}"
            self.fail(Failure(Reason.CONNECT_TIMEOUT, detail))

    def fail(self, failure: Failure) -> None:
        """Give up, leave nothing open, report."""
        if self._over:
            return
        self._end()
        made, self._made = self._made, []
        if self._winner is not None:
            made.append(self._winner)
        for connection in made:
            connection.abort()
        if self._task is not None:
            self._task.cancel()
        failure.opened = self._opened
        report(self.exchange, failure)

    def _end(self) -> None:
        self._over = True
        if self._entry is not None:
            self._shared.timers.cancel(self._entry)
            self._entry = None
        self._owner.dialed(self)


def _connect_failure(error: OSError) -> Failure:
    if isinstance(error, ConnectionRefusedError):
        return Failure(Reason.CONNECT_REFUSED, "connection refused")
    if isinstance(error, TimeoutError):
        return Failure(Reason.CONNECT_TIMEOUT, "the system gave up connecting")
    return Failure(Reason.CONNECT_FAILED, error.strerror or str(error))
