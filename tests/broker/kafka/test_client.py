"""What every client of aiokafka is made with, and what its errors and log lines become."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

import pytest
from aiokafka import errors
from pydantic import SecretStr

from dispatcher.broker.base import (
    BrokerError,
    BrokerRefused,
    BrokerUnavailable,
    CommitRefused,
    MessageTooLarge,
)
from dispatcher.broker.kafka.broker import KafkaBroker
from dispatcher.broker.kafka.client import client_options, mapped
from dispatcher.settings.groups import KafkaSettings

# Options.


def test_plain_settings_become_the_librarys_options() -> None:
    options = client_options(["a:1", "b:2"], KafkaSettings(client_id="me", request_timeout=7.5))
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert options["client_id"] == "me"
    assert options["request_timeout_ms"] == 7500
    assert options["security_protocol"] == "PLAINTEXT"
    assert "ssl_context" not in options
    assert "sasl_mechanism" not in options


def test_sasl_settings_become_the_librarys_options() -> None:
    settings = KafkaSettings(
        security_protocol="sasl_plaintext",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="alice",
        sasl_password=SecretStr("secret"),
    )
    options = client_options(["a:1"], settings)
    assert options["security_protocol"] == "SASL_PLAINTEXT"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert options["sasl_plain_username"] == "alice"
    assert options["sasl_plain_password"] == "secret"


def test_tls_always_verifies_certificate_and_name() -> None:
    context = client_options(["a:1"], KafkaSettings(security_protocol="ssl"))["ssl_context"]
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2


def test_tls_files_that_can_not_be_read_are_named(tmp_path: Path) -> None:
    absent = tmp_path / "absent.pem"
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for path in (absent, garbage):
        with pytest.raises(BrokerRefused, match=rf"kafka\.tls_ca_file .*{path.name}"):
            client_options(["a:1"], KafkaSettings(security_protocol="ssl", tls_ca_file=path))
        with pytest.raises(BrokerRefused, match=rf"kafka\.tls_cert_file .*{path.name}"):
            client_options(["a:1"], KafkaSettings(security_protocol="ssl", tls_cert_file=path))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionRefusedError(111, "x"), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (errors.NotLeaderForPartitionError(), BrokerUnavailable),
        (errors.KafkaConnectionError("x"), BrokerUnavailable),
        (errors.SaslAuthenticationFailed("x"), BrokerRefused),
        (errors.TopicAuthorizationFailedError("t"), BrokerRefused),
        (errors.MessageSizeTooLargeError(), MessageTooLarge),
        (errors.CommitFailedError(), CommitRefused),
        (errors.UnknownError(), BrokerError),
        (BrokerRefused("as it is"), BrokerRefused),
    ],
)
def test_foreign_errors_become_one_line_of_the_ports(error: Exception, expected: type[BrokerError]) -> None:
    found = mapped(error, "doing something")
    assert type(found) is expected
    assert str(found)
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.NodeNotReadyError("not ready (node id 1)"), "there is no connection to it now"),
        (errors.LeaderNotAvailableError(), "bring the brokers back"),
        (errors.TopicAuthorizationFailedError("t"), "t: not authorized: allow this user"),
    ],
)
def test_what_the_librarys_names_leave_open_is_said(error: Exception, said: str) -> None:
    assert said in str(mapped(error, "doing something"))


# The library's log lines.


def test_the_librarys_log_lines_are_thinned_out(caplog: pytest.LogCaptureFixture) -> None:
    KafkaBroker(["localhost:1"], KafkaSettings())
    logger = logging.getLogger("aiokafka.consumer.fetcher")
    marker = "Failed to test %s"
    with caplog.at_level("WARNING", "aiokafka"):
        for number in range(50):
            logger.warning(marker, number)
        logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["Failed to test 0", "something else"]
