"""The options of every client of aiokafka 0.14, its errors in the port's words, and fewer of its log lines.

The library waits for ever for a broker that is away, and logs ten lines a second about it; others of its lines are part of
every rebalance. Lines that differ only in their arguments are thinned out here. `problem` says what is wrong.

The library's errors often say little more than their name, and errors of the operating system come through unchanged.
`mapped` turns both into the port's errors: the class says what may be done about it, the text is one line for people.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, errors
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.metadata import MetadataRequest

from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    MessageTooLarge,
    MetadataTooLarge,
)
from dispatcher.settings.groups import KafkaSettings

log = structlog.get_logger(__name__)

_STOP_TIMEOUT = 5.0
_RETRY_BACKOFF_MS = 250  # while a broker is away, several tasks of each client try again this often

_UNAVAILABLE = (
    errors.KafkaConnectionError,
    errors.KafkaTimeoutError,
    errors.KafkaUnavailableError,
    errors.BrokerNotAvailableError,
    errors.ReplicaNotAvailableError,
    OSError,
    TimeoutError,
)
_REFUSED = (
    errors.AuthenticationFailedError,
    errors.AuthenticationMethodNotSupported,
    errors.SaslAuthenticationFailed,
    errors.UnsupportedSaslMechanismError,
    errors.IllegalSaslStateError,
    errors.TopicAuthorizationFailedError,
    errors.GroupAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
    errors.TransactionalIdAuthorizationFailed,
    errors.InvalidTopicError,
    errors.InvalidPartitionsError,
    errors.InvalidReplicationFactorError,
    errors.InvalidConfigurationError,
    errors.PolicyViolationError,
    errors.InvalidGroupIdError,
    errors.InvalidSessionTimeoutError,
    errors.InconsistentGroupProtocolError,
    errors.OffsetMetadataTooLargeError,
    errors.UnsupportedVersionError,
    errors.IncompatibleBrokerVersion,
    errors.UnsupportedCodecError,
    errors.SecurityDisabled,
    ssl.SSLCertVerificationError,
)
_COMMIT_REFUSED = (
    errors.CommitFailedError,
    errors.IllegalStateError,
    errors.UnknownMemberIdError,
    errors.IllegalGenerationError,
    errors.RebalanceInProgressError,
)
# What to do about it, where the error's own words don't say.
_ADVICE: dict[type[errors.KafkaError], str] = {
    errors.NotEnoughReplicasError: "too few replicas are in sync: bring the brokers back that hold them, or lower the topic's min.insync.replicas",
    errors.NotEnoughReplicasAfterAppendError: "too few replicas are in sync: bring the brokers back that hold them, or lower the topic's min.insync.replicas",
    errors.KafkaStorageError: "the broker can't use its disk: look whether it is full or failed, and at that broker's log",
    errors.TopicAuthorizationFailedError: "not authorized: allow this user READ, WRITE and DESCRIBE on the topic",
    errors.GroupAuthorizationFailedError: "not authorized: allow this user READ on the group",
    errors.ClusterAuthorizationFailedError: "not authorized: allow this user IDEMPOTENT_WRITE on the cluster",
    errors.ProducerFenced: "another producer was given its id, a fresh one is made",
    errors.InvalidProducerEpoch: "another producer was given its id, a fresh one is made",
    errors.LeaderNotAvailableError: "the partition has no leader: bring the brokers back that hold its replicas",
    errors.NodeNotReadyError: "there is no connection to it now; one is opened again by itself",
    errors.UnknownTopicOrPartitionError: "the broker doesn't know it: was the topic deleted? `dispatcher topics --create` makes it again",
}
TOO_LARGE = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


def mapped(error: BaseException, doing: str) -> BrokerError:
    """The library's and the system's errors in the port's words."""
    if isinstance(error, BrokerError):
        return error
    text = f"{doing}: {reason_of(error)}"
    if isinstance(error, _COMMIT_REFUSED):
        return CommitRefused(text)
    if isinstance(error, errors.OffsetMetadataTooLargeError):
        return MetadataTooLarge(text)
    if isinstance(error, TOO_LARGE):
        return MessageTooLarge(text)
    if isinstance(error, _REFUSED):
        return BrokerRefused(text)
    if isinstance(error, _UNAVAILABLE) or getattr(error, "retriable", False):
        return BrokerUnavailable(text)
    return BrokerError(text)


def reason_of(error: BaseException) -> str:
    """One line; the library's errors often say little more than their name."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"the certificate was not accepted: {error.verify_message}"
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return f"the name can't be resolved ({error.strerror})"
        case TimeoutError() if not str(error):
            return "no answer in time"
        case errors.CommitFailedError():
            return "the group has rebalanced meanwhile"
        case errors.KafkaError() if type(error) in _ADVICE:
            number = f" ({error.errno})" if isinstance(error, errors.BrokerResponseError) else ""
            about = f"{_names(error)}: " if error.args and "Authorization" in type(error).__name__ else ""
            return f"{type(error).__name__}{number}: {about}{_ADVICE[type(error)]}"
        case errors.BrokerResponseError():
            said = ": ".join(str(part) for part in error.args) or error.description.split(". ")[0]
            return f"{type(error).__name__} ({error.errno}): {said.strip().rstrip('.')}"
    # `str` of the library's own errors begins with the class's name, or is that name alone.
    return str(error).strip() or type(error).__name__


def _names(error: errors.KafkaError) -> str:
    """Of the topics or the group that it is about: the library gives one, or a set."""
    named = error.args[0]
    return ", ".join(sorted(map(str, named))) if isinstance(named, set | frozenset) else str(named)


def client_options(servers: Sequence[str], settings: KafkaSettings) -> dict[str, Any]:
    """What every client of the library is made with. Reads the TLS files; BrokerRefused if it can't."""
    protocol = settings.security_protocol.upper()
    options: dict[str, Any] = {
        "bootstrap_servers": list(servers),
        "client_id": settings.client_id,
        "request_timeout_ms": milliseconds(settings.request_timeout),
        "retry_backoff_ms": _RETRY_BACKOFF_MS,
        "security_protocol": protocol,
    }
    if protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    if protocol.startswith("SASL"):
        password = settings.sasl_password
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = None if password is None else password.get_secret_value()
    return options


def _ssl_context(settings: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.tls_ca_file)
    except (OSError, ssl.SSLError) as error:
        raise BrokerRefused(f"kafka.tls_ca_file {settings.tls_ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if settings.tls_cert_file is not None:
        password = settings.tls_key_password
        try:
            context.load_cert_chain(
                settings.tls_cert_file,
                settings.tls_key_file,
                # Never None: OpenSSL would ask for it on the terminal.
                "" if password is None else password.get_secret_value(),
            )
        except (OSError, ssl.SSLError) as error:
            raise BrokerRefused(
                f"kafka.tls_cert_file {settings.tls_cert_file} with its key: {error}"
            ) from error
    return context


def milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))


class _Thin(logging.Filter):
    """Of the library's log lines that differ in their arguments only, one every ten seconds."""

    INTERVAL = 10.0
    # Part of every rebalance, and of every stop.
    USUAL = (
        "Heartbeat failed for group %s because it is rebalancing",
        "Sending username and password in the clear",
    )

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in self.USUAL:
            return False
        now = time.monotonic()
        key = (record.name, str(record.msg)[:80])
        since, held = self._seen.get(key, (float("-inf"), 0))
        if now - since < self.INTERVAL:
            self._seen[key] = (since, held + 1)
            return False
        if len(self._seen) > 1000:
            self._seen.clear()
        self._seen[key] = (now, 0)
        if held:
            record.msg = f"{record.getMessage()} (and {held} more like it)"
            record.args = ()
        return True


_thin = _Thin()


def thin_out_logs() -> None:
    """Let the library's loggers repeat themselves less; again and again does no harm."""
    # A filter holds for its own logger only, not for those below it.
    for name in [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "aiokafka"]:
        logger = logging.getLogger(name)
        if _thin not in logger.filters:
            logger.addFilter(_thin)


async def describe(client: AIOKafkaClient, topics: Sequence[str] | None) -> dict[str, list[int]]:
    """The partitions of each of these topics that exists (None: of all but the broker's own), without creating any.

    A partition without a leader counts as well.
    """
    request = MetadataRequest(None if topics is None else list(topics), allow_auto_topic_creation=False)
    problem: BaseException = errors.NoBrokersAvailable()
    for _ in range(3):
        node = client.get_random_node()
        if node is None:
            break
        try:
            response = await client.send(node, request)
        except (errors.KafkaError, OSError, TimeoutError) as error:
            problem = error
            await asyncio.sleep(0.1)
            continue
        found: dict[str, list[int]] = {}
        for code, name, internal, partitions in response.topics:
            error_type = errors.for_code(code)
            if error_type is errors.TopicAuthorizationFailedError or error_type is errors.InvalidTopicError:
                raise BrokerRefused(f"topic {name}: {reason_of(error_type())}")
            if partitions and not (topics is None and (internal or name.startswith("__"))):
                found[name] = sorted(partition[1] for partition in partitions)
        return found
    raise mapped(problem, "asking for topics") from problem


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Leave the group, if the broker lets us know in time; close the connections in any case."""
    try:
        async with asyncio.timeout(_STOP_TIMEOUT):
            await consumer.stop()
    except (errors.KafkaError, OSError, TimeoutError, asyncio.CancelledError) as error:
        log.warning("a consumer did not stop cleanly", error=reason_of(error))
        with contextlib.suppress(errors.KafkaError, OSError, asyncio.CancelledError):
            if consumer._fetcher is not None:
                await consumer._fetcher.close()
            await consumer._client.close()
        # The library lets the end of its own tasks out as a cancellation; only ours is passed on.
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
