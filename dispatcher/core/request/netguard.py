"""Which URLs and addresses may be contacted.

Subscribers choose the URLs, so every URL is an attempt to make the dispatcher talk to
something inside the operator's network until it is shown to be otherwise (server-side
request forgery). Two checks, because neither is enough alone:

- `Guard.check_url` when a subscription is read and at each redirect. It tells people early and
  in words what is wrong, and yields the one canonical spelling that the rest of the program uses.
- `Guard.check_address` for the very address that is about to be connected to. A name can resolve
  to anything, differently each time; only this check holds against rebinding.

URL parsers disagree (RFC 3986, the WHATWG, curl, `urllib`) about backslashes, `@`, missing
slashes, numbers as hosts, full-width digits, percent signs in hosts. Whoever checks with one and
connects with another can be talked past. So nothing here is guessed or repaired: there is one
strict parser, its result is what gets connected to, and what two parsers could read differently
is refused, with the spelling it should have in the message. `ipaddress.is_global` was rejected as
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

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final, NamedTuple, NoReturn
from unicodedata import normalize

import idna

DEFAULT_PORTS: Final = ("80", "443", "1024-65535")
MAX_URL: Final = 2048  # characters, before and after percent-encoding: what every server and proxy takes
MAX_HOST: Final = 253  # RFC 1035 2.3.4, written with dots
MAX_LABEL: Final = 63

# Closed set: these become metric labels and fields of problem documents.
RULES: Final = frozenset(
    {
        "length",
        "characters",
        "syntax",
        "scheme",
        "https_only",
        "userinfo",
        "fragment",
        "host",
        "notation",
        "idna",
        "port",
        "address",
        "redirect",
    }
)


class Blocked(ValueError):
    """Refused. `rule` is one of `RULES`; the message says what to do about it."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


class Origin(NamedTuple):
    """Scheme, canonical ASCII host (lower case, A-labels, IPv6 compressed and without brackets), port."""

    scheme: str
    host: str
    port: int

    @property
    def host_header(self) -> str:
        """The host as the Host header and a URL want it: brackets for IPv6, the port unless default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host_header}"


class Target(NamedTuple):
    """A URL that may be contacted. `target` is path and query as sent: ASCII, beginning with a slash."""

    origin: Origin
    target: str
    host_header: str

    @property
    def url(self) -> str:
        """The canonical URL; `check_url` of it gives the same target again."""
        return f"{self.origin}{self.target}"


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


_DEFAULT_PORT: Final = {"http": 80, "https": 443}

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


def _port_ranges(ports: Iterable[int | str]) -> tuple[range, ...]:
    ranges = []
    for item in ports:
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", str(item).strip(), re.ASCII)
        low = int(match[1]) if match else 0
        high = int(match[2] or match[1]) if match else 0
        if not 1 <= low <= high <= 65535:
            raise ValueError(f"ports: {item!r} is neither a port (443) nor a range (1024-65535)")
        ranges.append(range(low, high + 1))
    return tuple(ranges)


# Controls, whitespace of any script, invisible and direction-changing characters, lone surrogates, and the
# backslash, which half of all parsers read as a slash.
_FORBIDDEN = re.compile(
    "[\x00-\x20\x7f-\xa0\xad\u061c\u115f\u1160\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000"
    "\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\\\\]"
)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_NOT_PATH = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/%]")
_NOT_QUERY = re.compile(r"[^A-Za-z0-9\-._~!$&'()*+,;=:@/?%]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_IPV4_STRICT = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])(?:\.(?!$)|$)){4}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*", re.ASCII)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]*[a-z0-9_])?", re.ASCII)
# A URL that is in its canonical spelling already, but for a port that needn't be there: a name that is no number and
# not internationalised, a path in which nothing needs an escape. What doesn't fit is not wrong: it is read step by step.
_CANONICAL = re.compile(
    r"(https?)://((?:(?!xn--)[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*(?!xn--)[a-z_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)"
    r"(?::([1-9][0-9]{0,4}))?(/[A-Za-z0-9\-._~!$&'()*+,;=:@/]*(?:\?[A-Za-z0-9\-._~!$&'()*+,;=:@/?]*)?)",
    re.ASCII,
)


def _loose_ipv4(host: str) -> str | None:
    """What `inet_aton` and browsers would make of the host: the address in its one good spelling."""
    parts = host.removesuffix(".").split(".")
    if not 1 <= len(parts) <= 4:
        return None
    numbers = []
    for part in parts:
        if not _NUMBER.fullmatch(part) or len(part) > 32:
            return None
        try:
            if part[:2] in {"0x", "0X"}:
                numbers.append(int(part[2:] or "0", 16))
            else:
                numbers.append(int(part, 8 if part[0] == "0" else 10))
        except ValueError:  # an 8 or 9 in an octal number
            return None
    *high, low = numbers
    if any(number > 255 for number in high) or low >= 256 ** (4 - len(high)):
        return None
    value = low
    for index, number in enumerate(high):
        value |= number << (24 - 8 * index)
    return str(IPv4Address(value))


def _without_dots(path: str) -> str:
    """RFC 3986 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)


def _encode(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode())


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
        self._https_only = https_only
        self._ports = _port_ranges(ports)
        # On the connect path: parsing an address costs some microseconds, a hit a twentieth of that.
        self._verdict = lru_cache(maxsize=8192)(self._judge)
        self._origin = lru_cache(maxsize=8192)(self._make_origin)

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
        if len(url) > MAX_URL:
            raise Blocked("length", f"the URL is longer than {MAX_URL} characters")
        # Nearly every URL: a third of the time, which a hundred thousand subscriptions at the start are worth.
        if (match := _CANONICAL.fullmatch(url)) is not None and len(match[2]) <= MAX_HOST:
            scheme, host, port_text, target = match.groups()
            if scheme == "https" or not self._https_only:
                origin, header = self._origin(scheme, host, port_text)
                return Target(origin, target, header)
        return self._read_url(url)

    def _make_origin(self, scheme: str, host: str, port: str | None) -> tuple[Origin, str]:
        """The origin of parts that are right, but for the port perhaps; with its Host header."""
        origin = Origin(scheme, host, self._port(port, scheme))
        return origin, origin.host_header

    def _read_url(self, url: str) -> Target:
        """Step by step, with the reason for which it is refused."""
        if (bad := _FORBIDDEN.search(url)) is not None:
            raise Blocked(
                "characters",
                f"the URL contains the character U+{ord(bad[0]):04X} at position {bad.start()}; "
                "whitespace, control and invisible characters and backslashes must be percent-encoded or left out",
            )
        scheme, rest = self._scheme(url)
        if "#" in rest:
            raise Blocked("fragment", "the URL has a fragment (#...), which is never sent; leave it out")
        authority, slash, query = rest, "", ""
        if (end := re.search(r"[/?]", rest)) is not None:
            authority, slash = rest[: end.start()], rest[end.start() :]
        path, mark, query = slash.partition("?")
        if "@" in authority:
            raise Blocked(
                "userinfo", "the URL contains credentials (user@host); use the subscription's headers instead"
            )
        host, port_text = self._split(authority)
        port = self._port(port_text, scheme)
        if _BAD_ESCAPE.search(slash):
            raise Blocked(
                "syntax", "the URL contains a % that begins no escape; write %25 for a percent sign"
            )
        target = (_NOT_PATH.sub(_encode, path) or "/") + mark + _NOT_QUERY.sub(_encode, query)
        origin = Origin(scheme, host, port)
        found = Target(origin, target, origin.host_header)
        if len(found.url) > MAX_URL:
            raise Blocked("length", f"the URL is longer than {MAX_URL} characters when percent-encoded")
        return found

    def check_redirect(self, base: Target, location: str) -> Target:
        """Resolve a Location against the target that sent it (RFC 3986 5.2), and guard it like any URL.

        Only the same origin is followed: another one was never agreed on with the subscriber.
        """
        reference = location.partition("#")[0]  # allowed in a Location, and not part of a request
        if not reference:
            raise Blocked("syntax", "the redirect leads nowhere: its Location is empty")
        path = base.target.partition("?")[0]
        if _SCHEME.match(reference):
            found = self.check_url(reference)
        elif reference.startswith("//"):
            found = self.check_url(f"{base.origin.scheme}:{reference}")
        elif reference.startswith("?"):
            found = self.check_url(f"{base.origin}{path}{reference}")
        else:
            merged, mark, query = reference.partition("?")
            if not merged.startswith("/"):
                merged = path[: path.rindex("/") + 1] + merged
            found = self.check_url(f"{base.origin}{_without_dots(merged)}{mark}{query}")
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

    def _scheme(self, url: str) -> tuple[str, str]:
        match = _SCHEME.match(url)
        wanted = "https://..." if self._https_only else "https://... or http://..."
        # `example.com:8443/x` parses as scheme `example.com`: no slashes, so say what is missing.
        if match is None or (match[2] is None and match[1].lower() not in _DEFAULT_PORT):
            raise Blocked("scheme", f"the URL must be absolute: {wanted}")
        scheme = match[1].lower()
        if scheme not in _DEFAULT_PORT:
            raise Blocked("scheme", f"the scheme {scheme[:32]} is not supported; use {wanted}")
        if match[2] is None:
            raise Blocked("syntax", f"after {scheme}: there must be exactly two slashes")
        if scheme == "http" and self._https_only:
            raise Blocked("https_only", "http is not allowed here; use https (setting network.https_only)")
        return scheme, url[match.end() :]

    def _split(self, authority: str) -> tuple[str, str | None]:
        """Canonical host and the text after its colon."""
        if authority.startswith("["):
            literal, bracket, after = authority[1:].partition("]")
            if not bracket or (after and not after.startswith(":")):
                raise Blocked("syntax", "the brackets around the IPv6 address are not closed properly")
            return self._ipv6(literal), after[1:] if after else None
        host, colon, port = authority.partition(":")
        if ":" in port:
            try:
                written = str(IPv6Address(authority))
            except ValueError:
                raise Blocked("syntax", "the URL has more than one colon after its host") from None
            raise Blocked("notation", f"an IPv6 address is written in brackets: [{written}]")
        return self._name(host), port if colon else None

    def _port(self, text: str | None, scheme: str) -> int:
        if text is None:
            port = _DEFAULT_PORT[scheme]
        else:
            if not re.fullmatch(r"[1-9][0-9]{0,4}", text, re.ASCII):
                raise Blocked(
                    "port", "the port must be a decimal number from 1 to 65535 without leading zeros"
                )
            port = int(text)
        for allowed in self._ports:
            if port in allowed:
                return port
        raise Blocked("port", f"port {port} is not allowed here (setting network.ports)")

    def _ipv6(self, literal: str) -> str:
        if "%" in literal:
            raise Blocked("notation", "an IPv6 address with a zone id (%) is local to one link; leave it out")
        if literal[:1] in {"v", "V"}:
            raise Blocked("notation", "IPvFuture addresses are not supported")
        try:
            ip = IPv6Address(literal)
        except ValueError:
            raise Blocked("notation", "what stands in brackets is not an IPv6 address") from None
        if (mapped := ip.ipv4_mapped) is not None:
            raise Blocked("notation", f"write the IPv4-mapped address [{ip}] as {mapped}")
        canonical = str(ip)
        self.check_address(canonical)
        return canonical

    def _name(self, host: str) -> str:
        if not host:
            raise Blocked("host", "the URL has no host")
        if len(host) > MAX_HOST + 1:
            raise Blocked("length", f"the host is longer than {MAX_HOST} characters")
        if "%" in host:
            raise Blocked("notation", "the host contains a percent sign; write it plainly, unencoded")
        canonical = host.lower() if host.isascii() else _to_ascii(host)
        last = canonical.removesuffix(".").rpartition(".")[2]
        if _NUMBER.fullmatch(last):
            # Ends in a number: an IPv4 address in some spelling, for the WHATWG as for inet_aton.
            if host == canonical and _IPV4_STRICT.fullmatch(host):
                self.check_address(host)
                return host
            written = _loose_ipv4(canonical)
            if written is None:
                raise Blocked("notation", "the host ends in a number but is not an IPv4 address (a.b.c.d)")
            raise Blocked("notation", f"write the address as {written}")
        if canonical.endswith("."):
            raise Blocked(
                "notation", f"write the host without the trailing dot: {canonical[:80].rstrip('.')}"
            )
        if not host.isascii():
            _refuse_disguise(host, canonical)
        if len(canonical) > MAX_HOST:
            raise Blocked("length", f"the host is longer than {MAX_HOST} characters")
        for label in canonical.split("."):
            _check_label(label)
        return canonical


def _refuse_disguise(host: str, canonical: str) -> None:
    """Refuse what is plain ASCII written with look-alikes: circled letters, full-width dots and so on."""
    labels = host.split(".")
    if len(labels) != canonical.count(".") + 1 or any(
        not label.isascii() and normalize("NFKC", label).isascii() for label in labels
    ):
        raise Blocked("notation", f"write the host in plain letters: {canonical[:80]}")


def _check_label(label: str) -> None:
    if not label:
        raise Blocked("host", "the host has an empty part (two dots, or a dot at its beginning)")
    if len(label) > MAX_LABEL:
        raise Blocked("length", f"a part of the host is longer than {MAX_LABEL} characters")
    if not _LABEL.fullmatch(label):
        raise Blocked(
            "host", "the host may contain letters, digits, hyphens (not at either end of a part) and dots"
        )
    if label.startswith("xn--"):
        try:
            idna.ulabel(label)
        except (ValueError, IndexError):
            _idna_refused(label)


def _to_ascii(host: str) -> str:
    """UTS 46 mapping, then A-labels (IDNA 2008, non-transitional), label by label.

    By label, because IDNA 2008 would refuse plain names beside it that DNS knows well (`a_b`, `r3---sn`).
    """
    try:
        return ".".join(
            label.lower() if label.isascii() else idna.encode(label, uts46=True).decode("ascii").lower()
            for label in host.split(".")
        )
    except (ValueError, IndexError):
        _idna_refused(host)


def _idna_refused(host: str) -> NoReturn:
    shown = host[:80].encode("ascii", "backslashreplace").decode("ascii")
    raise Blocked("idna", f"{shown} is not a valid internationalised host name (IDNA 2008)") from None
