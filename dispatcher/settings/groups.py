"""Every setting, grouped, with its type, its limits and its default; frozen.

`config/dispatcher.yaml` says what each setting does; a test holds it equal to this module.

Code that builds a group by hand (tests, benchmarks) passes seconds and bytes as numbers, and
skips the checks between fields, which `load` makes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr

from dispatcher.core.text.units import (
    Duration,
    Size,
    duration_between,
    format_duration,
    format_size,
    size_between,
)
from dispatcher.settings.broker_url import BrokerAddress, SqliteFile, parse_broker_url
from dispatcher.settings.values import (
    Address,
    ApiKeyText,
    BodyPaths,
    BrokerUrl,
    CollectorUrl,
    Color,
    Durations,
    FrameAncestors,
    HeaderName,
    HistoryStoreName,
    HostName,
    Int,
    Label,
    Listed,
    LoopShare,
    NameServer,
    Networks,
    NotEmpty,
    OriginName,
    PageUrl,
    PersonNames,
    Ports,
    ProxyUrl,
    ProxyUsername,
    SecretsKeyText,
    SentHeader,
    Share,
    Text,
    Topic,
    TopicPrefix,
    Unique,
)


class SettingsGroup(BaseModel):
    """What all groups have in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False, str_strip_whitespace=True
    )

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What is wrong although each field by itself is right: fields (most telling first), message."""
        yield from ()


class KafkaSettings(SettingsGroup):
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


_OWN_TOPICS: Final = frozenset(
    {
        "subscriptions",
        "replicas",
        "progress",
        "interventions",
        "replay",
        "replays",
        "dead",
        "attempts",
        "audit",
    }
)
"""Names after the prefix, beside those of the retry topics."""


class TopicsSettings(SettingsGroup):
    events: Annotated[
        tuple[Topic, ...],
        Listed,
        NotEmpty,
        Unique,
    ] = ("events",)
    prefix: TopicPrefix = "dispatcher."
    create: bool = True
    partitions: Annotated[Int, Field(ge=1, le=100_000)] | None = None
    replication: Annotated[Int, Field(ge=1, le=1000)] | None = None

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        for topic in self.events:
            name = topic.removeprefix(self.prefix)
            if topic.startswith(self.prefix) and (name in _OWN_TOPICS or name.startswith("retry.")):
                yield (
                    ("events", "prefix"),
                    f"must not contain {topic}: the dispatcher writes to that topic itself",
                )


class HttpSettings(SettingsGroup):
    host: HostName = "127.0.0.1"
    port: Annotated[Int, Field(ge=0, le=65535)] = 8080
    trusted_proxies: Networks = ()
    max_connections: Annotated[Int, Field(ge=10, le=1_000_000)] = 1000
    max_connections_per_address: Annotated[Int, Field(ge=1, le=1_000_000)] = 256
    requests_per_second: Annotated[Int, Field(ge=1, le=1_000_000)] = 1000

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


class ApiSettings(SettingsGroup):
    keys: Annotated[tuple[ApiKeyText, ...], Listed, Unique] = ()
    wrong_keys_per_minute: Annotated[Int, Field(ge=1, le=1_000_000)] = 20
    requests_per_second: Annotated[Int, Field(ge=1, le=1_000_000)] = 1000
    loop_share: LoopShare = 0.3
    egress_addresses: Networks = ()
    origin: OriginName | None = None
    event_types: Literal["open", "catalogued"] = "open"
    require_validation: bool = False
    publish_validation: Literal["off", "warn", "enforce"] = "off"
    publish_window: Annotated[Duration, duration_between("0s", "1d")] = 600.0
    max_event_bytes: Annotated[Size, size_between("1KiB", "64MiB")] = 1 << 20
    operational_events: bool = True
    secrets_keys: Annotated[tuple[SecretsKeyText, ...], Listed, Unique] = ()
    audit_retention: Annotated[Duration, duration_between("1h", "3650d")] = 90 * 86400.0


class QuotaSettings(SettingsGroup):
    subscriptions: Annotated[Int, Field(ge=0, le=10_000_000)] = 1000
    subscriptions_per_origin: Annotated[Int, Field(ge=0, le=10_000_000)] = 100
    creations_per_minute: Annotated[Int, Field(ge=1, le=1_000_000)] = 60
    events_per_second: Annotated[Int, Field(ge=1, le=10_000_000)] = 1000
    bytes_per_second: Annotated[Size, size_between("1KiB", "1TiB")] = 16 << 20
    replays: Annotated[Int, Field(ge=0, le=10_000)] = 2
    queries: Annotated[Int, Field(ge=1, le=10_000)] = 4
    streams: Annotated[Int, Field(ge=1, le=10_000)] = 50
    max_timeout: Annotated[Duration, duration_between("10ms", "10m")] = 60.0
    max_in_flight: Annotated[Int, Field(ge=1, le=10_000)] = 100
    max_schedule: Annotated[Int, Field(ge=0, le=100)] = 20
    max_headers: Annotated[Int, Field(ge=0, le=1000)] = 20
    max_patterns: Annotated[Int, Field(ge=1, le=256)] = 100


class DeliverySettings(SettingsGroup):
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


class NetworkSettings(SettingsGroup):
    allow: Networks = ()
    deny: Networks = ()
    https_only: bool = True
    ports: Ports = ("80", "443", "1024-65535")
    ca_file: Path | None = None
    bind: Address | None = None
    proxy: ProxyUrl | None = None
    proxy_username: ProxyUsername | None = None
    proxy_password: SecretStr | None = None
    dns_servers: Annotated[tuple[NameServer, ...], Listed] = ()
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


class RetrySettings(SettingsGroup):
    schedule: Durations = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
    jitter: Share = 0.1
    tiers: Annotated[tuple[Annotated[Duration, duration_between("1s", "7d")], ...], Listed, NotEmpty] = (
        30.0,
        120.0,
        600.0,
        3600.0,
        21600.0,
    )
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


class SubscriptionSettings(SettingsGroup):
    pause_keeps: Annotated[Duration, duration_between("1m", "365d")] = 7 * 86400.0


class AttemptsSettings(SettingsGroup):
    log: Literal["all", "failures", "none"] = "all"
    retention: Annotated[Duration, duration_between("1m", "3650d")] = 7 * 86400.0
    retention_size: Annotated[Size, size_between("1MiB", "1TiB")] = 1 << 30


class HistorySettings(SettingsGroup):
    store: HistoryStoreName = "sqlite"
    password: SecretStr | None = None
    directory: Path | None = None
    retention: Annotated[Duration, duration_between("1h", "3650d")] = 30 * 86400.0
    retention_counts: Annotated[Duration, duration_between("1h", "3650d")] = 30 * 86400.0
    events: bool = True
    keep: Literal["all", "failures"] = "all"
    max_behind: Annotated[Duration, duration_between("1m", "30d")] = 3600.0

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        on_postgres = self.store not in {"off", "sqlite"}
        if self.password is not None and not on_postgres:
            yield ("password", "store"), "has no effect: history.store names no PostgreSQL"
        if self.directory is not None and self.store != "sqlite":
            yield ("directory", "store"), "has no effect: history.store must be sqlite"


class ConsoleSettings(SettingsGroup):
    enabled: bool = True
    name: Label | None = None
    color: Color | None = None
    trusted_header: HeaderName | None = None
    trusted_operators: Annotated[PersonNames, Unique] = ()

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.color is not None and self.name is None:
            yield ("color", "name"), "has no effect without console.name"
        if self.trusted_operators and self.trusted_header is None:
            yield ("trusted_operators", "trusted_header"), "has no effect without console.trusted_header"
        if self.trusted_header is not None and not self.enabled:
            yield ("trusted_header", "enabled"), "has no effect: console.enabled must be true"


class PortalSettings(SettingsGroup):
    enabled: bool = True
    url: PageUrl | None = None
    frame_ancestors: Annotated[FrameAncestors, Unique] = ()


class PayloadSettings(SettingsGroup):
    mask: Annotated[BodyPaths, Unique] = ()


class ShutdownSettings(SettingsGroup):
    drain: Annotated[Duration, duration_between("0s", "1h")] = 20.0


class LogSettings(SettingsGroup):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    success_sample: Share = 0.0


class TracingSettings(SettingsGroup):
    enabled: bool = False
    endpoint: CollectorUrl | None = None
    protocol: Literal["http/protobuf", "grpc"] | None = None
    headers: Annotated[tuple[SentHeader, ...], Listed, Unique] = ()
    timeout: Annotated[Duration, duration_between("100ms", "1m")] | None = None
    sampler: Literal["parentbased_traceidratio", "traceidratio"] = "parentbased_traceidratio"
    ratio: Share = 0.01
    queue: Annotated[Int, Field(ge=512, le=1_000_000)] = 8192
    propagate: Literal["event", "attempt", "none"] = "event"

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.propagate == "attempt" and not self.enabled:
            yield ("propagate", "enabled"), "attempt has no effect: tracing.enabled must be true"


class SqliteSettings(SettingsGroup):
    partitions: Annotated[Int, Field(ge=1, le=1024)] = 4
    retention: Annotated[Duration, duration_between("1m", "3650d")] = 7 * 86400.0


Role = Literal["deliver", "api", "history"]
"""What a process does: it delivers events, serves the API, or keeps the history."""

ROLES: Final[tuple[Role, ...]] = get_args(Role)


class Settings(SettingsGroup):
    """All of them. Made by `load`; by hand in tests."""

    broker: BrokerUrl = "sqlite:///./dispatcher-data/log.db"
    group: Text = "dispatcher"
    roles: Annotated[tuple[Role, ...], Listed, NotEmpty, Unique] = ROLES
    subscriptions_file: Path | None = None
    kafka: KafkaSettings = KafkaSettings()
    sqlite: SqliteSettings = SqliteSettings()
    topics: TopicsSettings = TopicsSettings()
    http: HttpSettings = HttpSettings()
    api: ApiSettings = ApiSettings()
    quotas: QuotaSettings = QuotaSettings()
    delivery: DeliverySettings = DeliverySettings()
    network: NetworkSettings = NetworkSettings()
    subscription: SubscriptionSettings = SubscriptionSettings()
    retry: RetrySettings = RetrySettings()
    attempts: AttemptsSettings = AttemptsSettings()
    history: HistorySettings = HistorySettings()
    console: ConsoleSettings = ConsoleSettings()
    portal: PortalSettings = PortalSettings()
    payload: PayloadSettings = PayloadSettings()
    shutdown: ShutdownSettings = ShutdownSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()

    _sources: dict[tuple[str, ...], str] = PrivateAttr(default_factory=dict)

    @property
    def broker_address(self) -> BrokerAddress:
        """What `broker` names."""
        return parse_broker_url(self.broker)

    @property
    def embedded(self) -> bool:
        """Whether the broker is the embedded one: a file, and this its only process."""
        return isinstance(self.broker_address, SqliteFile)

    def between_fields(self) -> Iterator[tuple[tuple[str, ...], str]]:
        if self.embedded and set(self.roles) != set(ROLES):
            yield (
                ("roles", "broker"),
                f"must be all of {', '.join(ROLES)} with the embedded broker, whose file serves one process: leave roles out, or use kafka://",
            )
        if "api" in self.roles and not self.http.loopback and not self.api.keys:
            yield (
                ("api.keys", "http.host"),
                f"is required where http.host ({self.http.host}) is not loopback (DISPATCHER_API__KEYS): the API would be open to all",
            )
        if self.console.trusted_header is not None and not self.http.trusted_proxies:
            yield (
                ("console.trusted_header", "http.trusted_proxies"),
                "needs http.trusted_proxies: anybody could send the header",
            )
        history = self.history
        if (
            history.store != "off"
            and "keep" in history.model_fields_set
            and history.keep == "all"
            and self.attempts.log != "all"
        ):
            yield (
                ("history.keep", "attempts.log"),
                f"must be failures, or attempts.log all: the attempt log ({self.attempts.log}) has not what would be kept",
            )
