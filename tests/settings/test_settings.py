from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import ValidationError

from dispatcher.settings.groups import DeliverySettings, Settings
from dispatcher.settings.load import SettingsError, describe, load, names

EXAMPLE = Path(__file__).parents[2] / "config" / "dispatcher.yaml"
KEY = "k3y-" * 8


@pytest.fixture
def write(tmp_path: Any) -> Any:
    def written(text: Any) -> Any:
        file = tmp_path / "d.yaml"
        file.write_text(text)
        return file

    return written


def mistakes(file: Any = None, environ: Any = None, overrides: Any = None) -> Any:
    with pytest.raises(SettingsError) as caught:
        load(file, environ or {}, overrides or {})
    return [str(mistake) for mistake in caught.value.mistakes]


def values(settings: Any) -> Any:
    return settings.model_dump()


def test_without_any_source_everything_has_its_default() -> None:
    assert values(load(None, {}, {})) == values(Settings())


def test_the_example_file_holds_every_setting_with_its_default() -> None:
    found = load(EXAMPLE, {}, {})
    assert values(found) == values(Settings())
    assert {each.source.rpartition(":")[0] for each in describe(found)} == {str(EXAMPLE)}


def test_the_example_file_writes_the_defaults_as_describe_shows_them() -> None:
    written = yaml.safe_load(EXAMPLE.read_text())
    for each in describe(Settings()):
        value = written
        for part in each.name.split("."):
            value = value[part]
        assert yaml.safe_load(each.value) == value, each.name


def test_the_example_file_says_something_about_every_setting() -> None:
    described = set()
    comment = False
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match(r" *([a-z_]+):", line):
            if comment:
                described.add(match[1])
            # A comment may stand above several settings in a row.
        elif line.lstrip().startswith("#"):
            comment = True
        else:
            comment = False
    assert {name.rpartition(".")[2] for name in names()} <= described


def test_flags_win_over_the_environment_and_that_over_the_file(write: Any) -> None:
    file = write("group: file\ndelivery: {timeout: 1s, connect_timeout: 1s}\nhttp: {port: 1}\n")
    found = load(
        file, {"DISPATCHER_GROUP": "env", "DISPATCHER_HTTP__PORT": "2"}, {"http.port": 3, "group": None}
    )
    assert (found.group, found.delivery.timeout, found.http.port) == ("env", 1.0, 3)
    sources = {each.name: each.source for each in describe(found)}
    assert sources["group"] == "environment DISPATCHER_GROUP"
    assert sources["delivery.timeout"] == f"{file}:2"
    assert sources["http.port"] == "--http-port"
    assert sources["broker"] == "default"


@pytest.mark.parametrize("text", ["a.b, c", "[a.b, c]", "a.b,c,", '["a.b", "c"]'])
def test_lists_in_the_environment_are_written_with_commas_or_brackets(text: Any) -> None:
    assert load(None, {"DISPATCHER_TOPICS__EVENTS": text}, {}).topics.events == ("a.b", "c")


def test_an_empty_variable_counts_as_not_set() -> None:
    assert load(None, {"DISPATCHER_HTTP__PORT": "", "DISPATCHER_BROKER": ""}, {}).http.port == 8080


def test_a_group_of_which_everything_is_commented_out_is_empty(write: Any) -> None:
    assert values(load(write("delivery:\n  # timeout: 1s\nhttp:\n"), {}, {})) == values(Settings())


def test_every_mistake_of_every_source_is_listed_with_its_place(write: Any) -> None:
    file = write(
        "broker: redis://x\n"
        "timeout: 3s\n"
        "delivery:\n"
        "  timeout: 15\n"
        "  conect_timeout: 1s\n"
        "network:\n"
        "  allow:\n"
        "    - 10.0.0.0/8\n"
        "    - 10.0.0.1/8\n"
        "log: {level: loud}\n"
        "kafka: [1]\n"
    )
    found = mistakes(
        file,
        {"DISPATCHER_RETRY__JITTER": "2", "DISPATCHER_BROKR": "x", "DISPATCHER_DELIVERY": "x"},
        {"http.port": "x", "htp.port": 1},
    )
    expected = {
        f"{file}:1: broker: must be kafka://",
        f"{file}:2: timeout: there is no such setting (did you mean delivery.timeout?)",
        f"{file}:4: delivery.timeout: has no unit: write 15s",
        f"{file}:5: delivery.conect_timeout: there is no such setting (did you mean delivery.connect_timeout?)",
        f"{file}:9: network.allow[1]: has bits set beyond its prefix length: write 10.0.0.0/8",
        f"{file}:10: log.level: must be 'debug', 'info', 'warning' or 'error', not 'loud'",
        f"{file}:11: kafka: must be a mapping",
        "environment DISPATCHER_RETRY__JITTER: retry.jitter: must be less than or equal to 1, not '2'",
        "environment DISPATCHER_BROKR: there is no such setting (did you mean DISPATCHER_BROKER?)",
        "environment DISPATCHER_DELIVERY: names a group of settings; set DISPATCHER_DELIVERY__TIMEOUT",
        "--http-port: http.port: must be a whole number, not 'x'",
        "--htp-port: htp.port: there is no such setting (did you mean http.port?)",
    }
    assert len(found) == len(expected)
    for start in expected:
        assert any(each.startswith(start) for each in found), start


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", ":1: must be a mapping of settings"),
        ("group: a\ngroup: b", ":2: group: this key stands twice here"),
        ("group: 5", ":1: group: must be text: put it in quotes, not '5'"),
        ("group:", ":1: group: must be text: put it in quotes (it is empty)"),
        ("http: {port: true}", "http.port: must be a number, not 'true'"),
        ("http: {port: 70000}", "http.port: must be less than or equal to 65535, not '70000'"),
        ("http: {host: 'http://x'}", "http.host: must be an IP address or a host name"),
        ("http: {host: 1.2.3}", "http.host: must be an IP address or a host name"),
        ("delivery: {timeout: 1h}", "must be between 10ms and 10m, not '1h'"),
        ("delivery: {max_in_flight_bytes: 1000}", "has no unit: write 1000KiB"),
        ("network: {ports: [0]}", "network.ports[0]: must be a port (443) or a range"),
        ("network: {ports: [20-10]}", "network.ports[0]: must be a port"),
        ("network: {proxy: 'proxy:3128'}", "network.proxy: must be http://host:port"),
        ("network: {proxy: 'http://a:b@c:1'}", "network.proxy: must not contain credentials"),
        (
            "network: {proxy_username: kim}",
            "network.proxy: is required with proxy_username",
        ),
        ("network: {proxy: 'http://p:1', proxy_password: x}", "is required with proxy_password"),
        ("network: {bind: eth0}", "network.bind: must be an IP address, not 'eth0'"),
        (
            "network: {dns_servers: [dns.example]}",
            "network.dns_servers[0]: must be the IP address of a name server",
        ),
        ("topics: {events: []}", "topics.events: must not be empty"),
        ("topics: {events: [a b]}", "topics.events[0]: must be a topic name"),
        ("topics: {events: [a, a]}", "topics.events: must not contain a value twice"),
        ("broker: kafka://user:pass@host", "broker: must not contain credentials"),
        ("broker: 'sqlite://x.db'", "broker: must be kafka://"),
        ("broker: 'kafka://host:99999'", "broker: must be kafka://"),
        ("retry: {tiers: []}", "retry.tiers: must not be empty"),
        # Between fields, which are right by themselves:
        (
            "delivery: {connect_timeout: 20s}",
            ":1: delivery.connect_timeout: must not exceed delivery.timeout (15s)",
        ),
        ("kafka: {heartbeat_interval: 20s}", "kafka.heartbeat_interval: must be at most a third"),
        ("kafka: {security_protocol: sasl_ssl, sasl_password: x}", "kafka.sasl_username: is required"),
        ("kafka: {sasl_username: x}", "kafka.sasl_username: has no effect"),
        ("kafka: {tls_ca_file: x}", "kafka.tls_ca_file: has no effect"),
        ("kafka: {security_protocol: ssl, tls_key_file: x}", "kafka.tls_cert_file: is required"),
        ("retry: {tiers: [1m, 2m]}", "retry.tiers: must begin with at most retry.horizon (30s)"),
        ("retry: {tiers: [10s, 5s]}", "retry.tiers: must grow"),
        ("retry: {hold_limit: 20s}", ":1: retry.horizon: must not exceed retry.hold_limit (20s)"),
        ("topics: {events: [dispatcher.dead]}", "must not contain dispatcher.dead"),
        ("network: {dns_ttl_min: 10m}", "network.dns_ttl_min: must not exceed"),
        ("http: {host: 0.0.0.0}", ":1: api.keys: is required where http.host (0.0.0.0) is not loopback"),
    ],
)
def test_each_mistake_says_what_would_be_right(write: Any, text: Any, said: Any) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert said in found[0]


def test_checks_between_fields_are_made_beside_other_mistakes_but_not_on_wrong_values(write: Any) -> None:
    found = mistakes(write("delivery: {timeout: 1, connect_timeout: 20s}\nhttp: {host: 0.0.0.0}\n"))
    assert [each.split(": ")[1] for each in found] == ["delivery.timeout", "api.keys"]


@pytest.mark.parametrize(
    ("host", "fine"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("::", False), ("web", False)]
)
def test_beyond_loopback_keys_are_required(host: Any, fine: Any) -> None:
    load(None, {"DISPATCHER_HTTP__HOST": host, "DISPATCHER_API__KEYS": KEY}, {})
    if fine:
        load(None, {"DISPATCHER_HTTP__HOST": host}, {})
    else:
        assert "api.keys" in mistakes(environ={"DISPATCHER_HTTP__HOST": host})[0]


def test_a_missing_file_is_one_mistake(tmp_path: Any) -> None:
    assert mistakes(tmp_path / "none.yaml") == [
        f"{tmp_path}/none.yaml: can't be read: No such file or directory"
    ]


def test_what_kubernetes_puts_into_the_environment_is_no_mistake() -> None:
    load(
        None,
        {
            "DISPATCHER_SERVICE_HOST": "10.0.0.1",
            "DISPATCHER_SERVICE_PORT": "80",
            "DISPATCHER_SERVICE_PORT_HTTP": "80",
            "DISPATCHER_PORT": "tcp://10.0.0.1:80",
            "DISPATCHER_PORT_80_TCP": "tcp://10.0.0.1:80",
            "DISPATCHER_PORT_80_TCP_ADDR": "10.0.0.1",
            "DISPATCHER_METRICS_SERVICE_HOST": "10.0.0.1",
            "DISPATCHER_CONFIG": "x",
            "DISPATCHER_TEST_KAFKA": "x",
            "PATH": "/bin",
        },
        {},
    )
    assert "DISPATCHER_HTTP__PORT" in mistakes(environ={"DISPATCHER_HTTP_PORT": "80"})[0]


def test_secrets_are_neither_in_errors_nor_in_repr_nor_described(write: Any) -> None:
    password = "hunter2"
    file = write(
        f"kafka: {{security_protocol: sasl_ssl, sasl_username: u, sasl_password: {password}}}\napi: {{keys: [{KEY}]}}\n"
    )
    found = load(file, {}, {})
    assert found.kafka.sasl_password is not None
    assert found.kafka.sasl_password.get_secret_value() == password
    shown = repr(found) + str(describe(found))
    assert password not in shown
    assert KEY not in shown
    for text in (
        "api: {keys: [hunter2]}",
        "api: {keys: {hunter2: 1}}",
        "api: {kys: [hunter2]}",
        "kafka: {sasl_password: [hunter2]}",
        "kafka: {sasl_password: {x: hunter2}}",
        "kafka: {sasl_pasword: hunter2}",
        "broker: kafka://a:hunter2@h",
        "network: {proxy: 'http://kim:hunter2@proxy:3128'}",
        "network: {proxy: 'http://kim:hunter2%40proxy:3128'}",
        "network: {proxy: 'http://kim:hun@hunter2/@proxy:3128'}",
        "network: {dns_servers: ['http://kim:hunter2@10.0.0.1']}",
        "network: {'http://kim:hunter2@proxy:3128': x}",
        "api: {origin: 'https://kim:hunter2@d.example'}",
        "http: {host: 'kim:hunter2@x'}",
        "sasl_password: hunter2",
    ):
        assert "hunter2" not in "\n".join(mistakes(write(text)))
    assert "hunter2" not in "\n".join(
        mistakes(
            environ={
                "DISPATCHER_API__KEYS": "hunter2",
                "DISPATCHER_X": "hunter2",
                "DISPATCHER_NETWORK__PROXY": "http://a:hunter2@p:1",
            }
        )
    )


def test_the_broker_is_taken_apart() -> None:
    found = load(None, {"DISPATCHER_BROKER": "kafka://one:1, [::1]:2,[::1],three"}, {})
    assert found.kafka_servers == ("one:1", "[::1]:2", "[::1]:9092", "three:9092")
    assert found.sqlite_file is None
    assert Settings().kafka_servers == ()
    assert Settings().sqlite_file == Path("dispatcher-data/log.db")
    assert load(None, {"DISPATCHER_BROKER": "sqlite:////var/log.db"}, {}).sqlite_file == Path("/var/log.db")


def test_code_passes_plain_seconds_and_bytes() -> None:
    made = DeliverySettings(timeout=0.5, max_in_flight_bytes=1 << 20)
    assert (made.timeout, made.max_in_flight_bytes) == (0.5, 1 << 20)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings(), "group", "x")  # noqa: B010 - the type checker knows it is wrong
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings().delivery, "timeout", 1.0)  # noqa: B010


def test_what_describe_shows_can_be_written_back(write: Any) -> None:
    found = load(
        None,
        {
            "DISPATCHER_NETWORK__ALLOW": "10.0.0.0/8,::1",
            "DISPATCHER_KAFKA__CLIENT_ID": "yes",
            "DISPATCHER_GROUP": "1",
        },
        {},
    )
    nested: dict[str, Any] = {}
    for each in describe(found):
        *groups, name = each.name.split(".")
        at = nested
        for group in groups:
            at = at.setdefault(group, {})
        at[name] = yaml.safe_load(each.value)
    assert values(load(write(yaml.safe_dump(nested)), {}, {})) == values(found)


@given(
    st.dictionaries(
        st.sampled_from([f"DISPATCHER_{name.upper().replace('.', '__')}" for name in names()]),
        st.text(max_size=12),
    )
)
def test_no_environment_gives_anything_but_settings_or_a_list_of_mistakes(environ: Any) -> None:
    try:
        load(None, environ, {})
    except SettingsError as error:
        places = {each.place.partition(" ")[0] for each in error.mistakes}
    else:
        places = {"environment"}
    assert places == {"environment"}
