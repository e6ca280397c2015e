"""Which URLs and addresses may be contacted.

Subscribers choose the URLs, so every URL is an attempt to make the dispatcher talk to
something inside the operator's network until it is shown to be otherwise (server-side
request forgery). Two checks, because neither is enough alone:

- `Guard.check_url` when a subscription is read and at each redirect. It tells people early and
  in words what is wrong, and yields the one canonical spelling that the rest of the program uses.
- `Guard.check_address` for the very address that is about to be connected to. A name can resolve
  to anything, differently each time; only this check holds against rebinding.

`urls.py` parses URLs; its result is what gets connected to. `ipaddress.is_global` was rejected as
the address rule: it changes between Python releases, calls deprecated relays and identifiers that
nobody can be reached at global, and lets through whatever is embedded in IPv6.

Rules:

1. Order for an address: the operator's `deny`, then the operator's `allow`, then the built-in
   tables, then everything in IPv6 that is outside global unicast (2000::/3).
2. An IPv4-mapped address (::ffff:a.b.c.d) *is* that IPv4 address: the kernel sends IPv4. It is
   judged by the IPv4 lists, so allowing 127.0.0.0/8 allows ::ffff:127.0.0.1 and nothing more.
3. NAT64's well-known prefix (64:ff9b::/96) is judged by the embedded address, since a network with
   DNS64 reaches all of IPv4 through it. `allow` must name the IPv6 range itself, because RFC 6052
   forbids to translate anything but global addresses there.
4. Every other embedding (compatible, translated, local-use NAT64, 6to4, Teredo, ISATAP) is
   denied as a whole: nothing on today's internet is reachable only that way.
5. `deny` also looks inside every embedding, so a denied IPv4 range can't be reached in disguise.
6. Messages name the rule, the host and the remedy, but neither path, query nor credentials.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from dispatcher.core.request.urls import DEFAULT_PORTS, Blocked, Target, UrlParser


class Permit:
    """Leave to open connections for one host, to these addresses and no others.

    Only a Guard makes them, out of what it has checked, and the transport connects to nothing else: a way that goes past the
    guard has nothing to connect with.
    """

    __slots__ = ("addresses", "host")

    def __init__(self, guard: Guard, host: str, addresses: Sequence[str]) -> None:
        if not isinstance(guard, Guard):
            raise TypeError("only a Guard permits connections")
        self.host = host
        self.addresses = tuple(addresses)


# IANA IPv4 Special-Purpose Address Registry, and what stands beside it. Blocks that the registry calls
# globally reachable (AS112, AMT, anycast) are in it too: nobody's webhook endpoint lives there.
_IPV4: Final = (
    ("0.0.0.0/8", "this network", "RFC 791"),
    ("10.0.0.0/8", "private", "RFC 1918"),
    ("100.64.0.0/10", "carrier-grade NAT", "RFC 6598"),
    ("127.0.0.0/8", "loopback", "RFC 1122"),
    ("168.63.129.16/32", "a cloud platform's own service", "Azure"),
    ("169.254.0.0/16", "link-local", "RFC 3927"),
    ("172.16.0.0/12", "private", "RFC 1918"),
    ("192.0.0.0/24", "IETF protocol assignments", "RFC 6890"),
    ("192.0.2.0/24", "documentation", "RFC 5737"),
    ("192.31.196.0/24", "AS112", "RFC 7535"),
    ("192.52.193.0/24", "automatic multicast tunneling", "RFC 7450"),
    ("192.88.99.0/24", "6to4 relay anycast", "RFC 7526"),
    ("192.168.0.0/16", "private", "RFC 1918"),
    ("192.175.48.0/24", "AS112", "RFC 7534"),
    ("198.18.0.0/15", "benchmarking", "RFC 2544"),
    ("198.51.100.0/24", "documentation", "RFC 5737"),
    ("203.0.113.0/24", "documentation", "RFC 5737"),
    ("224.0.0.0/4", "multicast", "RFC 5771"),
    ("255.255.255.255/32", "limited broadcast", "RFC 919"),
    ("240.0.0.0/4", "reserved", "RFC 1112"),
)

# IANA IPv6 Special-Purpose Address Registry, and the deprecated embeddings. First match names the reason,
# so the narrower range stands before the wider one.
_IPV6: Final = (
    ("::/128", "unspecified", "RFC 4291"),
    ("::1/128", "loopback", "RFC 4291"),
    ("::/96", "IPv4-compatible", "RFC 4291"),
    ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765"),
    ("64:ff9b:1::/48", "local-use NAT64", "RFC 8215"),
    ("100::/64", "discard-only", "RFC 6666"),
    ("100:0:0:1::/64", "dummy prefix", "RFC 9780"),
    ("2001::/32", "Teredo", "RFC 4380"),
    ("2001:1::1/128", "port control protocol anycast", "RFC 7723"),
    ("2001:1::2/128", "TURN anycast", "RFC 8155"),
    ("2001:1::3/128", "service registration anycast", "RFC 9665"),
    ("2001:2::/48", "benchmarking", "RFC 5180"),
    ("2001:3::/32", "automatic multicast tunneling", "RFC 7450"),
    ("2001:4:112::/48", "AS112", "RFC 7535"),
    ("2001:10::/28", "ORCHID", "RFC 4843"),
    ("2001:20::/28", "ORCHIDv2", "RFC 7343"),
    ("2001:30::/28", "drone entity tags", "RFC 9374"),
    ("2001::/23", "IETF protocol assignments", "RFC 2928"),
    ("2001:db8::/32", "documentation", "RFC 3849"),
    ("2002::/16", "6to4", "RFC 3056"),
    ("2620:4f:8000::/48", "AS112", "RFC 7534"),
    ("3ffe::/16", "6bone", "RFC 3701"),
    ("3fff::/20", "documentation", "RFC 9637"),
    ("5f00::/16", "SRv6 segment identifiers", "RFC 9602"),
    ("fc00::/7", "unique local", "RFC 4193"),
    ("fe80::/10", "link-local", "RFC 4291"),
    ("fec0::/10", "site-local", "RFC 3879"),
    ("ff00::/8", "multicast", "RFC 4291"),
)

# RFC 6761, RFC 6762 with its appendix G, RFC 8375; .internal is reserved by ICANN for private use (2024). The last are what
# Kubernetes, Consul and resolv.conf put below nothing.
_INSIDE: Final = (
    ".localhost",
    ".local",
    ".home.arpa",
    ".internal",
    ".intranet",
    ".private",
    ".corp",
    ".home",
    ".lan",
    ".svc",
    ".consul",
    ".localdomain",
)

_Span = tuple[int, int, str]  # first address, last address, what it is


def _spans(table: Iterable[tuple[str, str, str]]) -> tuple[_Span, ...]:
    networks = ((ip_network(cidr), f"{name}, {source}") for cidr, name, source in table)
    return tuple((int(net[0]), int(net[-1]), reason) for net, reason in networks)


_SPANS4: Final = _spans(_IPV4)
_SPANS6: Final = _spans(_IPV6)

_MAPPED: Final = 0xFFFF  # value >> 32
_NAT64: Final = 0x0064_FF9B_0000_0000_0000_0000  # value >> 32
_NAT64_LOCAL: Final = 0x0064_FF9B_0001  # value >> 80
_SIXTO4: Final = 0x2002  # value >> 112
_TEREDO: Final = 0x2001_0000  # value >> 96
_TRANSLATED: Final = 0xFFFF_0000  # value >> 32
_ISATAP: Final = 0x0000_5EFE  # (value >> 32) & 0xFDFF_FFFF: the universal/local bit may be set (RFC 5214 6.1)
_U32: Final = 0xFFFF_FFFF


def _embedded(value: int) -> list[int]:
    """Every IPv4 address that some mechanism would read out of this IPv6 address."""
    found = []
    top = value >> 32
    if top in {0, _MAPPED, _TRANSLATED, _NAT64} or top & 0xFDFF_FFFF == _ISATAP:
        found.append(value & _U32)
    if value >> 80 == _NAT64_LOCAL:
        # RFC 6052 2.2: where the address stands depends on the prefix length, which only the operator knows.
        # Bits 64 to 71 are skipped.
        found.append(value & _U32)  # /96
        found.append((value >> 24) & _U32)  # /64
        found.append(((value >> 64) & 0xFF) << 24 | ((value >> 32) & 0xFF_FFFF))  # /56
        found.append(((value >> 64) & 0xFFFF) << 16 | ((value >> 40) & 0xFFFF))  # /48
    if value >> 112 == _SIXTO4:
        found.append((value >> 80) & _U32)
    if value >> 96 == _TEREDO:
        found.append((value >> 64) & _U32)  # the server
        found.append(~value & _U32)  # the client, obfuscated (RFC 4380 4)
    return found


def _within(spans: Iterable[_Span], value: int) -> str | None:
    for first, last, reason in spans:
        if first <= value <= last:
            return reason
    return None


def _networks(cidrs: Iterable[str], setting: str) -> tuple[list[_Span], list[_Span]]:
    spans4: list[_Span] = []
    spans6: list[_Span] = []
    for cidr in cidrs:
        try:
            network: IPv4Network | IPv6Network = ip_network(cidr)
        except ValueError as error:
            raise ValueError(f"{setting}: {error}") from None
        if isinstance(network, IPv6Network) and network.prefixlen >= 96 and int(network[0]) >> 32 == _MAPPED:
            network = IPv4Network((int(network[0]) & _U32, network.prefixlen - 96))
        span = (int(network[0]), int(network[-1]), str(network))
        (spans4 if isinstance(network, IPv4Network) else spans6).append(span)
    return spans4, spans6


class Guard:
    """The operator's rules. Immutable; one for the whole process."""

    def __init__(
        self,
        allow: Iterable[str] = (),
        deny: Iterable[str] = (),
        https_only: bool = True,
        ports: Iterable[int | str] = DEFAULT_PORTS,
    ) -> None:
        """`allow` and `deny` are CIDRs, `ports` numbers and "low-high" ranges. Raises ValueError."""
        self._allow4, self._allow6 = _networks(allow, "allow")
        self._deny4, self._deny6 = _networks(deny, "deny")
        # On the connect path: parsing an address costs some microseconds, a hit a twentieth of that.
        self._verdict = lru_cache(maxsize=8192)(self._judge)
        self._urls = UrlParser(https_only, ports, self.check_address)

    def check_address(self, address: str) -> None:
        """Raise Blocked unless the address, which is about to be connected to, may be contacted."""
        if len(address) > 45:  # the longest IPv6 spelling; keeps garbage out of the cache
            raise Blocked("address", "not an IP address")
        if (reason := self._verdict(address)) is not None:
            raise Blocked("address", reason)

    def permit(self, host: str, addresses: Iterable[str]) -> Permit:
        """Leave to connect to those of the host's addresses that may be contacted. Raises Blocked when none may."""
        fit: list[str] = []
        blocked: Blocked | None = None
        for address in addresses:
            try:
                self.check_address(address)
            except Blocked as error:
                blocked = error
            else:
                fit.append(address)
        if not fit:
            raise blocked if blocked is not None else Blocked("address", f"{host} has no address")
        return Permit(self, host, fit)

    def permit_by_proxy(self, host: str, proxy: Sequence[str]) -> Permit:
        """Leave to reach the host through the operator's proxy, which has these addresses. Raises Blocked.

        The proxy resolves the name, so the name is all that can be checked; where the proxy is, the operator says.
        """
        self.check_name(host)
        return Permit(self, host, proxy)

    def _judge(self, address: str) -> str | None:
        """Why the address is refused, or None."""
        if "%" in address:
            return "an address with a zone id is local to one link and is never contacted"
        try:
            ip = IPv6Address(address) if ":" in address else IPv4Address(address)
        except ValueError:
            return "not an IP address"
        value = int(ip)
        if isinstance(ip, IPv4Address):
            return self._judge4(value)
        embedded = _embedded(value)
        denied = _within(self._deny6, value)
        for inner in embedded:
            denied = denied or _within(self._deny4, inner)
        if denied is not None:
            return f"{ip} is in {denied}, which network.deny lists"
        if value >> 32 == _MAPPED:
            return self._judge4(value & _U32)
        if _within(self._allow6, value) is not None:
            return None
        remedy = "to contact it anyway, add its CIDR to network.allow"
        if value >> 32 == _NAT64:
            inner_reason = _within(_SPANS4, value & _U32)
            if inner_reason is None:
                return None
            return f"{ip} leads to {IPv4Address(value & _U32)} ({inner_reason}); {remedy}"
        if (reason := _within(_SPANS6, value)) is not None:
            return f"{ip} is not a public address ({reason}); {remedy}"
        if (value >> 32) & 0xFDFF_FFFF == _ISATAP:
            return f"{ip} is not a public address (ISATAP, RFC 5214); {remedy}"
        if value >> 125 != 1:
            return f"{ip} is not a public address (outside 2000::/3, RFC 4291); {remedy}"
        return None

    def _judge4(self, value: int) -> str | None:
        if (reason := _within(self._deny4, value)) is not None:
            return f"{IPv4Address(value)} is in {reason}, which network.deny lists"
        if _within(self._allow4, value) is not None:
            return None
        if (reason := _within(_SPANS4, value)) is not None:
            return (
                f"{IPv4Address(value)} is not a public address ({reason}); "
                "to contact it anyway, add its CIDR to network.allow"
            )
        return None

    def check_url(self, url: str) -> Target:
        """Parse strictly (RFC 3986 with an IDNA host); raise Blocked for what may not be contacted.

        A name passes here whatever it resolves to, `localhost` included: `check_address` decides
        at each connection. A literal address is checked at once.
        """
        return self._urls.parse(url)

    def check_redirect(self, base: Target, location: str) -> Target:
        """Resolve a Location against the target that sent it (RFC 3986 5.2), and guard it like any URL.

        Only the same origin is followed: another one was never agreed on with the subscriber.
        """
        found = self._urls.resolve(base, location)
        if found.origin != base.origin:
            raise Blocked("redirect", f"the redirect leads to another origin, {found.origin}")
        return found

    def check_name(self, host: str) -> None:
        """For a name that an egress proxy resolves, so that its addresses are never seen here.

        Names that by convention stay inside a network are refused, unless the operator has allowed
        any range at all and thereby said that inside is wanted.
        """
        labels = host.split(".")
        if ":" in host or labels[-1].isdigit():
            self.check_address(host)
        elif not self._allow4 and not self._allow6 and (len(labels) == 1 or f".{host}".endswith(_INSIDE)):
            raise Blocked(
                "host", f"{host} is a name inside a network; to contact it, add a CIDR to network.allow"
            )
