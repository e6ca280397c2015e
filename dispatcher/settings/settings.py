"""Every setting, frozen and grouped: file < environment < flags.

`load` is the one way in for the daemon. It merges the three sources, remembering where each
value came from, validates all of it, and raises one `SettingsError` that lists *every* mistake
with its place. It reads the environment it is given and nothing else; nobody reads it again.

pydantic-settings was rejected: it reads `os.environ` by itself, passes over unknown
nested variables in silence, and forgets which source a value came from, which is what a
message must say.

`config/dispatcher.yaml` says what each setting does; a test holds it equal to this module.

Code that builds a group by hand (tests, benchmarks) passes seconds and bytes as numbers, and
skips the checks between fields, which `load` makes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
)

from dispatcher.core.control.sealing import read_key
from dispatcher.core.text import yaml_document as document
from dispatcher.core.text.redact import without_credentials
from dispatcher.core.text.units import (
    WRITTEN,
    Duration,
    Size,
    duration_between,
    format_duration,
    format_size,
    size_between,
)
from dispatcher.core.text.yaml_document import Document, DocumentError, did_you_mean, explain

PREFIX: Final = "DISPATCHER_"
_NESTING: Final = "__"

# Not settings: the file's own name, what the commands that call the API take, and what the test suite takes.
_NOT_SETTINGS: Final = re.compile(r"DISPATCHER_(?:CONFIG|API_URL|API_KEY|TEST_.*)")

# Kubernetes puts these into every pod of a namespace that has a Service called `dispatcher` or `dispatcher-...`.
_SERVICE_LINK: Final = re.compile(
    r"DISPATCHER_(?:[A-Z0-9]+_)*(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_[A-Z]+)?)"
)
_SERVICE_PORT: Final = re.compile(r"DISPATCHER_(?:[A-Z0-9]+_)*PORT")
_SERVICE_PORT_VALUE: Final = re.compile(r"(?:tcp|udp|sctp)://")


class Mistake(NamedTuple):
    """One thing that is wrong with the settings, and where it was written."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


class Flag(NamedTuple):
    """A value from the command line, and the option that it was given by: `--http-port`, `--set`."""

    option: str
    value: Any


class SettingsError(ValueError):
    """The settings can't be used; `mistakes` are all of them."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(map(str, mistakes)))
        self.mistakes = tuple(mistakes)


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


def _api_key(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", value.get_secret_value()):
        raise ValueError(
            "must be 16 to 512 visible ASCII characters without a space; `openssl rand -base64 32` makes a good one"
        )
    return value


def _secrets_key(value: SecretStr) -> SecretStr:
    read_key(value.get_secret_value())
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


_KAFKA_SERVER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9._-]*))(?::([0-9]{1,5}))?")
_BROKER_HELP: Final = (
    "must be kafka://host:9092,host2:9092 or sqlite:///relative/path.db (sqlite:////absolute/path.db)"
)


def _broker(value: str) -> str:
    # The value stays out of these messages where it could hold a password.
    scheme, separator, rest = value.partition("://")
    if not separator or scheme not in {"kafka", "sqlite"}:
        raise ValueError(_BROKER_HELP)
    if scheme == "sqlite":
        if (
            not rest.startswith("/")
            or not rest.strip("/")
            or rest.endswith("/")
            or re.search(r"[?#\0]", rest)
        ):
            raise ValueError(_BROKER_HELP)
        return value
    if "@" in rest:
        raise ValueError(
            "must not contain credentials: they belong into kafka.sasl_username and kafka.sasl_password"
        )
    for server in rest.split(","):
        match = _KAFKA_SERVER.fullmatch(server.strip())
        if match is None or (match[1] and not 0 < int(match[1]) < 65536):
            raise ValueError(_BROKER_HELP)
    return value


Int = Annotated[int, BeforeValidator(_number)]
Share = Annotated[float, Field(ge=0, le=1), BeforeValidator(_number)]
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


class Group(BaseModel):
    """What all groups have in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, str_strip_whitespace=True
    )

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is wrong although each field by itself is right: fields (most telling first), message."""
        yield from ()


class KafkaSettings(Group):
    client_id: Text = "dispatcher"
    member_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,150}$")] = "auto"
    security_protocol: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: Text | None = None
    sasl_password: SecretStr | None = None
    tls_ca_file: Path | None = None
    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_key_password: SecretStr | None = None
    fetch_max_bytes: Annotated[Size, size_between("64KiB", "1GiB")] = 4 << 20
    fetch_max_bytes_per_partition: Annotated[Size, size_between("16KiB", "1GiB")] = 512 << 10
    fetch_max_wait: Annotated[Duration, duration_between("1ms", "30s")] = 0.5
    max_poll_records: Annotated[Int, Field(ge=1, le=100_000)] = 1000
    session_timeout: Annotated[Duration, duration_between("1s", "30m")] = 30.0
    heartbeat_interval: Annotated[Duration, duration_between("100ms", "10m")] = 1.0
    rebalance_timeout: Annotated[Duration, duration_between("1s", "1h")] = 60.0
    request_timeout: Annotated[Duration, duration_between("1s", "10m")] = 40.0
    compression: Literal["none", "gzip", "lz4", "snappy", "zstd"] = "none"
    offset_reset: Literal["earliest", "latest"] = "earliest"

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        sasl = self.security_protocol.startswith("sasl")
        tls = self.security_protocol.endswith("ssl")
        for name in ("sasl_username", "sasl_password"):
            given = getattr(self, name) is not None
            if sasl and not given:
                yield (
                    (name, "security_protocol"),
                    f"is required with security_protocol {self.security_protocol}",
                )
            elif given and not sasl:
                yield (
                    (name, "security_protocol"),
                    "has no effect: security_protocol must be sasl_ssl or sasl_plaintext",
                )
        for name in ("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_key_password"):
            if getattr(self, name) is not None and not tls:
                yield (name, "security_protocol"), "has no effect: security_protocol must be ssl or sasl_ssl"
        if self.tls_key_file is not None and self.tls_cert_file is None:
            yield ("tls_cert_file", "tls_key_file"), "is required with tls_key_file"
        if self.tls_key_password is not None and self.tls_cert_file is None:
            yield ("tls_cert_file", "tls_key_password"), "is required with tls_key_password"
        if self.heartbeat_interval * 3 > self.session_timeout:
            yield (
                ("heartbeat_interval", "session_timeout"),
                f"must be at most a third of kafka.session_timeout ({format_duration(self.session_timeout)})",
            )
        if self.session_timeout > self.rebalance_timeout:
            yield (
                ("session_timeout", "rebalance_timeout"),
                f"must not exceed kafka.rebalance_timeout ({format_duration(self.rebalance_timeout)})",
            )
        if self.fetch_max_bytes_per_partition > self.fetch_max_bytes:
            yield (
                ("fetch_max_bytes_per_partition", "fetch_max_bytes"),
                f"must not exceed kafka.fetch_max_bytes ({format_size(self.fetch_max_bytes)})",
            )
        if self.fetch_max_wait >= self.request_timeout:
            yield (
                ("fetch_max_wait", "request_timeout"),
                f"must be shorter than kafka.request_timeout ({format_duration(self.request_timeout)})",
            )


class TopicsSettings(Group):
    events: Annotated[
        tuple[Annotated[str, AfterValidator(_topic)], ...],
        Listed,
        AfterValidator(_not_empty),
        AfterValidator(_unique),
    ] = ("events",)
    prefix: Annotated[str, AfterValidator(_prefix)] = "dispatcher."
    create: bool = True
    partitions: Annotated[Int, Field(ge=1, le=100_000)] | None = None
    replication: Annotated[Int, Field(ge=1, le=1000)] | None = None

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for topic in self.events:
            name = topic.removeprefix(self.prefix)
            if topic.startswith(self.prefix) and (
                name in {"subscriptions", "attempts", "dead", "progress"} or name.startswith("retry.")
            ):
                yield (
                    ("events", "prefix"),
                    f"must not contain {topic}: the dispatcher writes to that topic itself",
                )


class HttpSettings(Group):
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: Annotated[Int, Field(ge=0, le=65535)] = 8080

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class ApiSettings(Group):
    keys: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_api_key)], ...], Listed, AfterValidator(_unique)
    ] = ()
    wrong_keys_per_minute: Annotated[Int, Field(ge=1, le=1_000_000)] = 20
    egress_addresses: Networks = ()
    origin: Annotated[str, AfterValidator(_origin)] | None = None
    event_types: Literal["open", "catalogued"] = "open"
    publish_validation: Literal["off", "warn", "enforce"] = "off"
    publish_window: Annotated[Duration, duration_between("0s", "1d")] = 600.0
    max_event_bytes: Annotated[Size, size_between("1KiB", "64MiB")] = 1 << 20
    operational_events: bool = True
    secrets_keys: Annotated[
        tuple[Annotated[SecretStr, AfterValidator(_secrets_key)], ...], Listed, AfterValidator(_unique)
    ] = ()


class DeliverySettings(Group):
    timeout: Annotated[Duration, duration_between("10ms", "10m")] = 15.0
    connect_timeout: Annotated[Duration, duration_between("10ms", "10m")] = 5.0
    connections_per_host: Annotated[Int, Field(ge=1, le=10_000)] = 32
    max_in_flight: Annotated[Int, Field(ge=1, le=1_000_000)] = 10_000
    max_in_flight_bytes: Annotated[Size, size_between("1MiB", "1TiB")] = 256 << 20
    max_queue_wait: Annotated[Duration, duration_between("100ms", "1h")] = 5.0
    breaker_threshold: Share = 0.8
    response_cap: Annotated[Size, size_between("1KiB", "64MiB")] = 64 << 10
    idle_timeout: Annotated[Duration, duration_between("100ms", "1h")] = 60.0
    connection_max_age: Annotated[Duration, duration_between("1s", "7d")] = 600.0
    connection_max_requests: Annotated[Int, Field(ge=1, le=1_000_000_000)] = 100_000

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.connect_timeout > self.timeout:
            yield (
                ("connect_timeout", "timeout"),
                f"must not exceed delivery.timeout ({format_duration(self.timeout)}), which contains it",
            )
        if self.connections_per_host > self.max_in_flight:
            yield (
                ("connections_per_host", "max_in_flight"),
                f"must not exceed delivery.max_in_flight ({self.max_in_flight})",
            )


class NetworkSettings(Group):
    allow: Networks = ()
    deny: Networks = ()
    https_only: bool = True
    ports: Ports = ("80", "443", "1024-65535")
    ca_file: Path | None = None
    bind: Annotated[str, AfterValidator(_address)] | None = None
    proxy: Annotated[str, AfterValidator(_proxy)] | None = None
    proxy_username: Annotated[str, AfterValidator(_proxy_username)] | None = None
    proxy_password: SecretStr | None = None
    dns_servers: Annotated[tuple[Annotated[str, AfterValidator(_name_server)], ...], Listed] = ()
    dns_timeout: Annotated[Duration, duration_between("10ms", "1m")] = 3.0
    dns_ttl_min: Annotated[Duration, duration_between("0s", "1h")] = 1.0
    dns_ttl_max: Annotated[Duration, duration_between("1s", "1d")] = 300.0
    dns_negative_ttl: Annotated[Duration, duration_between("0s", "1h")] = 5.0

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.proxy is None and self.proxy_username is not None:
            yield ("proxy", "proxy_username"), "is required with proxy_username"
        if self.proxy_username is None and self.proxy_password is not None:
            yield ("proxy_username", "proxy_password"), "is required with proxy_password"
        if self.dns_ttl_min > self.dns_ttl_max:
            yield (
                ("dns_ttl_min", "dns_ttl_max"),
                f"must not exceed network.dns_ttl_max ({format_duration(self.dns_ttl_max)})",
            )


class RetrySettings(Group):
    schedule: Durations = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
    jitter: Share = 0.1
    tiers: Annotated[
        tuple[Annotated[Duration, duration_between("1s", "7d")], ...], Listed, AfterValidator(_not_empty)
    ] = (30.0, 120.0, 600.0, 3600.0, 21600.0)
    horizon: Annotated[Duration, duration_between("1s", "1h")] = 30.0
    hold_limit: Annotated[Duration, duration_between("1s", "1h")] = 60.0
    disable_after: Annotated[Duration, duration_between("0s", "3650d")] | None = 5 * 86400.0

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if any(shorter >= longer for shorter, longer in zip(self.tiers, self.tiers[1:], strict=False)):
            yield ("tiers",), "must grow from one to the next"
        if self.tiers[0] > self.horizon:
            yield (
                ("tiers", "horizon"),
                f"must begin with at most retry.horizon ({format_duration(self.horizon)}), to leave no gap",
            )
        if self.horizon > self.hold_limit:
            yield (
                ("horizon", "hold_limit"),
                f"must not exceed retry.hold_limit ({format_duration(self.hold_limit)})",
            )


class SubscriptionSettings(Group):
    pause_keeps: Annotated[Duration, duration_between("1m", "365d")] = 7 * 86400.0


class AttemptsSettings(Group):
    log: Literal["all", "failures", "none"] = "all"
    retention: Annotated[Duration, duration_between("1m", "3650d")] = 7 * 86400.0
    retention_size: Annotated[Size, size_between("1MiB", "1TiB")] = 1 << 30


class ShutdownSettings(Group):
    drain: Annotated[Duration, duration_between("0s", "1h")] = 20.0


class LogSettings(Group):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    success_sample: Share = 0.0


class SqliteSettings(Group):
    partitions: Annotated[Int, Field(ge=1, le=1024)] = 4
    retention: Annotated[Duration, duration_between("1m", "3650d")] = 7 * 86400.0


class Settings(Group):
    """All of them. Made by `load`; by hand in tests."""

    broker: Annotated[str, AfterValidator(_broker)] = "sqlite:///./dispatcher-data/log.db"
    group: Text = "dispatcher"
    subscriptions_file: Path | None = None
    kafka: KafkaSettings = KafkaSettings()
    sqlite: SqliteSettings = SqliteSettings()
    topics: TopicsSettings = TopicsSettings()
    http: HttpSettings = HttpSettings()
    api: ApiSettings = ApiSettings()
    delivery: DeliverySettings = DeliverySettings()
    network: NetworkSettings = NetworkSettings()
    subscription: SubscriptionSettings = SubscriptionSettings()
    retry: RetrySettings = RetrySettings()
    attempts: AttemptsSettings = AttemptsSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()

    _sources: dict[_Name, str] = PrivateAttr(default_factory=dict)

    @property
    def kafka_servers(self) -> tuple[str, ...]:
        """`host:port` of each bootstrap server; empty with the embedded broker."""
        if not self.broker.startswith("kafka://"):
            return ()
        servers = [server.strip() for server in self.broker.removeprefix("kafka://").split(",")]
        return tuple(
            s if re.search(r":[0-9]+\Z", s) and not s.endswith("]") else f"{s}:9092" for s in servers
        )

    @property
    def sqlite_file(self) -> Path | None:
        """The embedded broker's file; None with Kafka."""
        if not self.broker.startswith("sqlite:///"):
            return None
        return Path(self.broker.removeprefix("sqlite:///"))

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if not self.http.loopback and not self.api.keys:
            yield (
                ("api.keys", "http.host"),
                f"is required where http.host ({self.http.host}) is not loopback (DISPATCHER_API__KEYS): the API would be open to all",
            )


_Name = tuple[str, ...]


class Effective(NamedTuple):
    """One setting as it is in force."""

    name: str  # dotted
    value: str  # as it would be written in the file; secrets masked
    source: str  # "default", "config/dispatcher.yaml:12", "environment DISPATCHER_...", "--http-port"


@cache
def _fields() -> Mapping[_Name, Any]:
    """Every setting's path and its annotation, in the order of the file."""
    fields: dict[_Name, Any] = {}
    for name, info in Settings.model_fields.items():
        group = _group(name)
        if group is None:
            fields[(name,)] = info
        else:
            fields.update({(name, inner): value for inner, value in group.model_fields.items()})
    return fields


def _group(name: str) -> type[Group] | None:
    info = Settings.model_fields.get(name)
    kind = info.annotation if info is not None else None
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


_ADDRESSES: Final = {("broker",), ("network", "proxy")}  # people write passwords into them


@cache
def _secret(name: _Name) -> bool:
    """A value of this setting must not be shown. Of an unknown one nothing is shown either."""
    info = _fields().get(name)
    return info is None or _mentions(SecretStr, info.annotation)


def _mentions(kind: Any, annotation: Any) -> bool:
    return annotation is kind or any(_mentions(kind, part) for part in get_args(annotation))


def _is(kind: Any, name: _Name) -> bool:
    """Whether the setting is written as a `Duration` or a `Size`, alone or in a list."""
    marker = get_args(kind)[1]
    info = _fields()[name]
    return any(part is marker for part in info.metadata) or _mentions_marker(marker, info.annotation)


def _mentions_marker(marker: Any, annotation: Any) -> bool:
    return any(part is marker or _mentions_marker(marker, part) for part in get_args(annotation))


def names() -> tuple[str, ...]:
    """Every setting, dotted, in the order of the file."""
    return tuple(".".join(name) for name in _fields())


def load(file: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Any]) -> Settings:
    """The settings in force, or a `SettingsError` with everything that is wrong.

    `overrides` are the flags that were given, by dotted name (`{"http.port": Flag("--http-port", 9000)}`).
    A value without its flag is named after the setting; one of None was not given.
    """
    mistakes: list[Mistake] = []
    values: dict[_Name, Any] = {}
    sources: dict[_Name, str] = {}
    where: dict[_Name, tuple[Document, str]] = {}
    if file is not None:
        _from_file(file, values, sources, where, mistakes)
    _from_environment(environ, values, sources, where, mistakes)
    _from_flags(overrides, values, sources, where, mistakes)

    def place(name: _Name, rest: Sequence[str | int] = ()) -> str:
        """Where the value came from; into lists as deep as the file's lines go."""
        if name in where:
            read, path = where[name]
            return f"{path}:{read.lines.find((*name, *rest))}"
        return sources.get(name, "settings")

    wrong: set[_Name] = set()
    try:
        settings = Settings.model_validate(_nested(values), context=WRITTEN)
    except ValidationError as invalid:
        for error in invalid.errors(include_url=False):
            location = error["loc"]
            name = _name_of(location)
            inside = [step for step in location[len(name) :] if isinstance(step, int)]
            subject = ".".join(name) + "".join(f"[{index}]" for index in inside)
            said = explain(error, secret=_secret(name) or name in _ADDRESSES)
            mistake = Mistake(place(name, inside), f"{subject}: {said}")
            if mistake not in mistakes:
                mistakes.append(mistake)
            wrong.add(name)
        # What remains is valid: its checks between fields still run, so that one start lists all mistakes.
        right = {name: value for name, value in values.items() if name not in wrong}
        settings = Settings.model_validate(_nested(right), context=WRITTEN)
    for fields, message in _between_fields(settings):
        if wrong.isdisjoint(fields):
            told = next((name for name in fields if name in sources), fields[0])
            mistakes.append(Mistake(place(told), f"{'.'.join(fields[0])}: {message}"))
    if mistakes:
        raise SettingsError(mistakes)
    settings._sources.update({name: place(name) for name in sources})
    return settings


def _between_fields(settings: Settings) -> Iterator[tuple[tuple[_Name, ...], str]]:
    for fields, message in settings.between_fields():
        yield tuple(tuple(field.split(".")) for field in fields), message
    for name in Settings.model_fields:
        group = getattr(settings, name)
        if isinstance(group, Group):
            for fields, message in group.between_fields():
                yield tuple((name, field) for field in fields), message


def _name_of(location: Sequence[str | int]) -> _Name:
    """The setting that an error's location is in; pydantic adds union and tuple members to it."""
    head = tuple(str(step) for step in location[:2])
    return head if head in _fields() else head[:1]


def _nested(values: Mapping[_Name, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if len(name) == 1:
            nested[name[0]] = value
        else:
            nested.setdefault(name[0], {})[name[1]] = value
    return nested


def _from_file(
    file: Path,
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    try:
        read = document.parse(file.read_bytes())
    except OSError as error:
        mistakes.append(Mistake(str(file), f"can't be read: {error.strerror or error}"))
        return
    except DocumentError as error:
        mistakes.extend(
            Mistake(f"{file}:{line}" if line else str(file), said) for line, said in error.problems
        )
        return
    if read.data is None:
        return
    if not isinstance(read.data, dict):
        mistakes.append(
            Mistake(f"{file}:{read.lines.find(())}", "must be a mapping of settings: `name: value`")
        )
        return

    def take(name: _Name, value: Any) -> None:
        values[name] = value
        where[name] = (read, str(file))
        sources[name] = str(file)

    for key, value in read.data.items():
        at = f"{file}:{read.lines.find((key,))}"
        if (key,) in _fields():
            take((key,), value)
        elif not isinstance(key, str) or _group(key) is None:
            mistakes.append(Mistake(at, _unknown((str(key),))))
        elif isinstance(value, dict):
            for inner, inner_value in value.items():
                if (key, inner) in _fields():
                    take((key, inner), inner_value)
                else:
                    line = read.lines.find((key, str(inner)))
                    mistakes.append(Mistake(f"{file}:{line}", _unknown((key, str(inner)))))
        elif value is not None:  # a group of which everything is commented out
            mistakes.append(Mistake(at, f"{key}: must be a mapping of settings, one a line, indented"))


def _unknown(name: _Name) -> str:
    """What to say of a setting that doesn't exist: perhaps a typing error, perhaps the wrong group."""
    dotted = ".".join(name)
    known = names()
    same = [candidate for candidate in known if candidate.rpartition(".")[2] == name[-1]]
    close = get_close_matches(dotted, known, n=1, cutoff=0.6)
    if len(name) == 1 and not same:
        close = get_close_matches(dotted, Settings.model_fields, n=1, cutoff=0.6) or close
    guess = same[:1] if len(same) == 1 else close
    return f"{without_credentials(dotted)}: there is no such setting" + (
        f" (did you mean {guess[0]}?)" if guess else ""
    )


def _variable(name: _Name) -> str:
    return PREFIX + _NESTING.join(name).upper()


@cache
def _variables() -> Mapping[str, _Name]:
    return {_variable(name): name for name in _fields()}


def _from_environment(
    environ: Mapping[str, str],
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or _NOT_SETTINGS.fullmatch(variable):
            continue
        value = environ[variable]
        name = _variables().get(variable)
        if name is None:
            if not _is_service_link(variable, value):
                mistakes.append(Mistake(f"environment {variable}", _unknown_variable(variable)))
        elif value:  # an empty one is not set, as in `X: ${X:-}` of a compose file
            values[name] = value
            sources[name] = f"environment {variable}"
            where.pop(name, None)


def _is_service_link(variable: str, value: str) -> bool:
    if _SERVICE_LINK.fullmatch(variable):
        return True
    return bool(_SERVICE_PORT.fullmatch(variable) and _SERVICE_PORT_VALUE.match(value))


def _unknown_variable(variable: str) -> str:
    group = variable.removeprefix(PREFIX).lower()
    kind = _group(group)
    if kind is not None:
        return f"names a group of settings; set {_variable((group, next(iter(kind.model_fields))))} and so on"
    return f"there is no such setting{did_you_mean(variable.upper(), _variables())}"


def _from_flags(
    overrides: Mapping[str, Any],
    values: dict[_Name, Any],
    sources: dict[_Name, str],
    where: dict[_Name, tuple[Document, str]],
    mistakes: list[Mistake],
) -> None:
    for dotted, given in overrides.items():
        if given is None:
            continue
        name = tuple(dotted.split("."))
        option, value = given if isinstance(given, Flag) else (_flag(name), given)
        if name not in _fields():
            kind = _group(dotted)
            known = None if kind is None else f"{dotted}.{next(iter(kind.model_fields))}"
            said = f"{dotted}: names a group of settings; set {known} and so on" if known else _unknown(name)
            mistakes.append(Mistake(option, said))
            continue
        values[name] = value
        sources[name] = option
        where.pop(name, None)


def _flag(name: _Name) -> str:
    return "--" + "-".join(name).replace("_", "-")


def describe(settings: Settings) -> list[Effective]:
    """Every setting in force and where it came from, in the order of the file; secrets are masked."""
    described = []
    for name in _fields():
        value: Any = settings
        for part in name:
            value = getattr(value, part)
        source = settings._sources.get(name, "default")
        described.append(Effective(".".join(name), _written(name, value), source))
    return described


def _written(name: _Name, value: Any) -> str:
    """As the file would have it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{', '.join(_written(name, item) for item in value)}]"
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, bool):
        return str(value).lower()
    if name == ("network", "ports"):
        return str(value)
    if isinstance(value, (int, float)):
        if _is(Duration, name):
            return format_duration(value)
        return format_size(int(value)) if _is(Size, name) else f"{value:g}" if value < 1 else str(value)
    # In a list, so that it is quoted where a list would need it.
    return yaml.safe_dump([str(value)], default_flow_style=True, width=10_000, allow_unicode=True)[1:-2]
