"""The broker URL: `kafka://host:port,...` or `sqlite:///path`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

DEFAULT_PORT: Final = 9092

_FORMS: Final = (
    "must be kafka://host:9092,host2:9092 or sqlite:///relative/path.db (sqlite:////absolute/path.db)"
)
_SERVER: Final = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(?::(?P<port>[0-9]{1,5}))?"
)


class KafkaServers(NamedTuple):
    """A Kafka cluster."""

    servers: tuple[str, ...]
    """`host:port` of each bootstrap server."""


class SqliteFile(NamedTuple):
    """The embedded broker."""

    path: Path
    """What follows `sqlite:///`, so that the URL of an absolute path has four slashes."""


BrokerAddress = KafkaServers | SqliteFile


def parse_broker_url(url: str) -> BrokerAddress:
    """What the URL names. Raises ValueError with the forms there are; its text never repeats the URL, which could hold a password."""
    scheme, _, rest = url.partition("://")
    if scheme == "kafka":
        if "@" in rest:
            raise ValueError(
                "must not contain credentials: they belong into kafka.sasl_username and kafka.sasl_password"
            )
        return KafkaServers(tuple(map(_server, rest.split(","))))
    if scheme == "sqlite":
        path = rest[1:]
        if (
            not rest.startswith("/")
            or not path.strip("/")
            or path.endswith("/")
            or re.search(r"[?#\0]", path)
        ):
            raise ValueError(_FORMS)
        return SqliteFile(Path(path))
    raise ValueError(_FORMS)


def _server(written: str) -> str:
    match = _SERVER.fullmatch(written.strip().removesuffix("/"))
    if match is None or (match["port"] is not None and not 0 < int(match["port"]) < 65536):
        raise ValueError(_FORMS)
    return f"{match['host']}:{match['port'] or DEFAULT_PORT}"
