"""The values that settings have, each checked by itself: names, addresses, keys, lists.

A check gets the value as it was written and returns it as the program uses it, or raises ValueError with what it must be.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from dispatcher.core.control.sealing import read_key
from dispatcher.core.event.payload_mask import read_path
from dispatcher.core.text import yaml_document as document
from dispatcher.core.text.units import Duration, duration_between
from dispatcher.core.text.yaml_document import DocumentError
from dispatcher.settings.broker_url import parse_broker_url


def _split(value: Any) -> Any:
    """A list as the environment and the command line write it: `a, b`, or `[a, b]`."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.startswith("["):
        try:
            parsed = document.parse(text.encode()).data
        except DocumentError:
            parsed = None
        if isinstance(parsed, list):
            return parsed
    return [part.strip() for part in text.split(",") if part.strip()]


def _network(value: str) -> str:
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as error:
        try:
            wide = ipaddress.ip_network(value, strict=False)
        except ValueError:
            raise ValueError("must be a CIDR block such as 10.0.0.0/8 or fd00::/8, or one address") from error
        raise ValueError(f"has bits set beyond its prefix length: write {wide}") from error


def _address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError as error:
        raise ValueError("must be an IP address") from error


def _proxy(value: str) -> str:
    # The value stays out of these messages where it could hold a password.
    match = re.fullmatch(
        r"http://(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9_.-]+)):(?P<port>[0-9]{1,5})/?", value
    )
    if "@" in value:
        raise ValueError(
            "must not contain credentials: they belong into network.proxy_username and network.proxy_password"
        )
    if match is None or not 0 < int(match["port"]) < 65536:
        raise ValueError("must be http://host:port, the proxy's address without a path")
    return value.removesuffix("/")


def _proxy_username(value: str) -> str:
    if ":" in value or not value.isprintable():
        raise ValueError("must have neither a colon nor control characters")
    return value


def _name_server(value: str) -> str:
    # With a port: `10.0.0.53:5353`, `[fd00::53]:5353`.
    match = re.fullmatch(r"(?:\[(?P<six>[^\]]+)\]|(?P<four>[0-9.]+))(?::(?P<port>[0-9]{1,5}))?", value)
    host = (match["six"] or match["four"]) if match else value
    if match and match["port"] and not 0 < int(match["port"]) < 65536:
        raise ValueError("must have a port between 1 and 65535")
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        raise ValueError(
            "must be the IP address of a name server, or address:port ([address]:port for IPv6)"
        ) from error
    return value


def _port_range(value: Any) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", text) if isinstance(text, str) else None
    if match is None or not 0 < int(match[1]) <= int(match[2] or match[1]) < 65536:
        raise ValueError("must be a port (443) or a range of ports (1024-65535)")
    return match[0]


def _topic(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", value) or value in {".", ".."}:
        raise ValueError("must be a topic name: 1 to 249 of the characters A-Z a-z 0-9 . _ -")
    return value


def _prefix(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,200}", value):
        raise ValueError(
            "must be the beginning of a topic name: 1 to 200 of the characters A-Z a-z 0-9 . _ -"
        )
    return value


def _word(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", value):
        raise ValueError("must be 1 to 255 visible ASCII characters without a space")
    return value


def _host(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        if re.fullmatch(
            r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", value
        ) and not re.fullmatch(r"[0-9.]+", value):
            return value
        raise ValueError("must be an IP address or a host name, without scheme or port") from None


def _origin(value: str) -> str:
    # CloudEvents HTTP Webhooks 1.0.2, 4.1.1: a DNS expression. Goes into a header.
    if not re.fullmatch(r"(?=.{1,253}$)[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", value):
        raise ValueError("must be a host name: dispatcher.example.com")
    return value


_LOOPBACK_NAME = r"localhost|127\.0\.0\.1|\[::1\]"


def _frame_ancestor(value: str) -> str:
    # Goes into a Content-Security-Policy, so nothing else may be in it.
    name = r"(?:\*\.)?[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?"
    if not re.fullmatch(rf"(?:https://{name}|http://(?:{_LOOPBACK_NAME}))(?::[0-9]{{1,5}})?", value):
        raise ValueError(
            "must be an origin such as https://app.example.com or https://*.example.com, without a path"
        )
    return value


def _page_url(value: str) -> str:
    if not re.fullmatch(
        rf"(?:https://[A-Za-z0-9.-]{{1,253}}|http://(?:{_LOOPBACK_NAME}))(?::[0-9]{{1,5}})?(?:/[A-Za-z0-9._~/-]*)?",
        value,
    ):
        raise ValueError("must be an address such as https://webhooks.example.com/portal, without a query")
    return value.rstrip("/")


def _label(value: str) -> str:
    if not 0 < len(value) <= 40 or not value.isprintable():
        raise ValueError("must be 1 to 40 printable characters")
    return value


def _color(value: str) -> str:
    if not re.fullmatch(r"#[0-9A-Fa-f]{6}", value):
        raise ValueError("must be a colour such as '#b3261e', in quotes")
    return value.lower()


def _header_name(value: str) -> str:
    # Of ASCII letters, digits and dashes: an underscore is a dash to some proxies, which then let both through.
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,63}", value):
        raise ValueError("must be the name of a header, of letters, digits and dashes")
    if value.lower() in {"authorization", "cookie", "host", "origin", "x-forwarded-for", "x-dispatcher-csrf"}:
        raise ValueError("must not be a header that has a meaning of its own")
    return value


def _body_path(value: str) -> str:
    read_path(value)
    return value


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", value.get_secret_value()):
        raise ValueError(
            "must be 16 to 512 visible ASCII characters without a space; `openssl rand -base64 32` makes a good one"
        )
    return value


def _secrets_key(value: SecretStr) -> SecretStr:
    read_key(value.get_secret_value())
    return value


def _collector(value: str) -> str:
    # The value stays out of these messages where it could hold a password.
    if "@" in value or "?" in value:
        raise ValueError(
            "must not contain credentials or a query: what the collector asks for belongs into tracing.headers"
        )
    if not re.fullmatch(
        r"https?://(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?", value
    ):
        raise ValueError(
            "must be the collector's address: http://collector:4318, or http://collector:4317 for gRPC"
        )
    return value


def _sent_header(value: SecretStr) -> SecretStr:
    if not re.fullmatch(
        r"[A-Za-z0-9_.-]{1,128}\s*=\s*[\x21-\x7e](?:[\x20-\x7e]{0,4094}[\x21-\x7e])?",
        value.get_secret_value(),
    ):
        raise ValueError("must be name=value, both of visible ASCII characters")
    return value


def _number(value: Any) -> Any:
    # Python takes True for 1; nobody who writes `port: true` means that.
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError
    return value


def _unique(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(value)) != len(value):
        raise ValueError("must not contain a value twice")
    return value


def _not_empty(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value:
        raise ValueError("must not be empty")
    return value


def _broker(value: str) -> str:
    parse_broker_url(value)
    return value


_STORE_HELP = "must be off, sqlite or postgresql://user@host:5432/database"


def _history_store(value: Any) -> Any:
    # YAML reads `off` as false. The value stays out of these messages where it could hold a password.
    if value is False:
        return "off"
    if not isinstance(value, str) or value in {"off", "sqlite"}:
        return value
    match = re.fullmatch(r"(?:postgresql|postgres)://(?:(?P<user>[^/]*)@)?[^/@\s]+/[^/@\s]+", value)
    if match is None:
        raise ValueError(_STORE_HELP)
    if ":" in (match["user"] or "") or re.search(r"[?&]password=", value):
        raise ValueError("must not contain a password: it belongs into history.password")
    return value


Int = Annotated[int, BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
LoopShare = Annotated[float, Field(ge=0.05, le=1), BeforeValidator(_number)]
Listed = BeforeValidator(_split)
Networks = Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Listed]
Ports = Annotated[
    tuple[Annotated[str, BeforeValidator(_port_range)], ...],
    Listed,
    AfterValidator(_not_empty),
    AfterValidator(_unique),
]
Durations = Annotated[tuple[Annotated[Duration, duration_between("10ms", "30d")], ...], Listed]
Text = Annotated[str, AfterValidator(_word)]
Topic = Annotated[str, AfterValidator(_topic)]
TopicPrefix = Annotated[str, AfterValidator(_prefix)]
HostName = Annotated[str, AfterValidator(_host)]
OriginName = Annotated[str, AfterValidator(_origin)]
Address = Annotated[str, AfterValidator(_address)]
ProxyUrl = Annotated[str, AfterValidator(_proxy)]
ProxyUsername = Annotated[str, AfterValidator(_proxy_username)]
NameServer = Annotated[str, AfterValidator(_name_server)]
BrokerUrl = Annotated[str, AfterValidator(_broker)]
ApiKeyText = Annotated[SecretStr, AfterValidator(_api_key)]
HistoryStoreName = Annotated[str, BeforeValidator(_history_store)]
SecretsKeyText = Annotated[SecretStr, AfterValidator(_secrets_key)]
CollectorUrl = Annotated[str, AfterValidator(_collector)]
SentHeader = Annotated[SecretStr, AfterValidator(_sent_header)]
FrameAncestors = Annotated[tuple[Annotated[str, AfterValidator(_frame_ancestor)], ...], Listed]
PageUrl = Annotated[str, AfterValidator(_page_url)]
Label = Annotated[str, AfterValidator(_label)]
Color = Annotated[str, AfterValidator(_color)]
HeaderName = Annotated[str, AfterValidator(_header_name)]
PersonNames = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Listed]
BodyPaths = Annotated[tuple[Annotated[str, AfterValidator(_body_path)], ...], Listed]
NotEmpty = AfterValidator(_not_empty)
Unique = AfterValidator(_unique)
