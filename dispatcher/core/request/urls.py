"""One strict parser of URLs: what it returns is what gets connected to.

URL parsers disagree (RFC 3986, the WHATWG, curl, `urllib`) about backslashes, `@`, missing slashes, numbers as hosts,
full-width digits and percent signs in hosts. A guard that checks with one parser and connects with another can be talked past. So
nothing is guessed or repaired here. What two parsers could read differently is refused, and the message shows the right spelling.

Messages name the rule, the host and the remedy, but neither path, query nor credentials.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
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


_DEFAULT_PORT: Final = {"http": 80, "https": 443}


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


class UrlParser:
    """Reads URLs by the operator's rules on schemes and ports. Immutable."""

    __slots__ = ("_check_address", "_https_only", "_origin", "_ports")

    def __init__(
        self, https_only: bool, ports: Iterable[int | str], check_address: Callable[[str], None]
    ) -> None:
        """`check_address` raises Blocked for a literal address that may not be contacted. Raises ValueError."""
        self._https_only = https_only
        self._ports = _port_ranges(ports)
        self._check_address = check_address
        self._origin = lru_cache(maxsize=8192)(self._make_origin)

    def parse(self, url: str) -> Target:
        """Parse strictly (RFC 3986 with an IDNA host). Raises Blocked."""
        if len(url) > MAX_URL:
            raise Blocked("length", f"the URL is longer than {MAX_URL} characters")
        # Nearly every URL: a third of the time, which a hundred thousand subscriptions at the start are worth.
        if (match := _CANONICAL.fullmatch(url)) is not None and len(match[2]) <= MAX_HOST:
            scheme, host, port_text, target = match.groups()
            if scheme == "https" or not self._https_only:
                origin, header = self._origin(scheme, host, port_text)
                return Target(origin, target, header)
        return self._read(url)

    def resolve(self, base: Target, location: str) -> Target:
        """The target that a Location means, for the target that sent it (RFC 3986 5.2). Raises Blocked."""
        reference = location.partition("#")[0]  # allowed in a Location, and not part of a request
        if not reference:
            raise Blocked("syntax", "the redirect leads nowhere: its Location is empty")
        path = base.target.partition("?")[0]
        if _SCHEME.match(reference):
            return self.parse(reference)
        if reference.startswith("//"):
            return self.parse(f"{base.origin.scheme}:{reference}")
        if reference.startswith("?"):
            return self.parse(f"{base.origin}{path}{reference}")
        merged, mark, query = reference.partition("?")
        if not merged.startswith("/"):
            merged = path[: path.rindex("/") + 1] + merged
        return self.parse(f"{base.origin}{_without_dots(merged)}{mark}{query}")

    def _make_origin(self, scheme: str, host: str, port: str | None) -> tuple[Origin, str]:
        """The origin of parts that are right, but for the port perhaps; with its Host header."""
        origin = Origin(scheme, host, self._port(port, scheme))
        return origin, origin.host_header

    def _read(self, url: str) -> Target:
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
        self._check_address(canonical)
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
                self._check_address(host)
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
