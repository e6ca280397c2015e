from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies as st

from dispatcher.settings.groups import Settings
from dispatcher.settings.load import SettingsError, describe, load, names

EXAMPLE = Path(__file__).parents[2] / "config" / "dispatcher.yaml"
KEY = "k3y-" * 8


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
        f"{file}:2: timeout: there is no such setting (did you mean delivery.timeout or tracing.timeout?)",
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
        "tracing: {endpoint: 'http://kim:hunter2@collector:4318'}",
        "tracing: {endpoint: 'http://collector:4318/?key=hunter2'}",
        "tracing: {headers: [hunter2]}",
        "tracing: {headers: ['x: hunter2']}",
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
