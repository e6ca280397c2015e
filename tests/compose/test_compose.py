"""The compose file without an engine: what it starts of ours is started as it would be, and every file goes to its own checker."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dispatcher.cli import main
from dispatcher.core.request.netguard import Guard
from dispatcher.core.text.units import parse_duration
from dispatcher.registry.file import load_file
from dispatcher.settings.broker_url import KafkaServers
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import PREFIX, SettingsError, load
from tests.kafka import server as kafka

FOLDER = Path(__file__).parents[2] / "config" / "compose"
OURS = "webhook-dispatcher"
SET = {"DISPATCHER_API_KEY": "abcdefghijklmnopqrstuvwxyz"}  # what the first comment has one export


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(substituted((FOLDER / "compose.yaml").read_text(), SET))
    return found


def substituted(text: str, given: dict[str, str]) -> str:
    """Compose's own substitution, as far as the file uses it: ${NAME}, ${NAME:-else}, ${NAME:?missing}; $$ is a dollar."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        name, how, rest = match["name"], match["how"], match["rest"]
        if given.get(name):
            return given[name]
        if how == ":-":
            return rest
        raise LookupError(f"{name}: {rest or 'is not set'}")

    lines = (
        line
        if line.lstrip().startswith("#")
        else re.sub(r"\$\$|\$\{(?P<name>\w+)(?:(?P<how>:-|:\?)(?P<rest>[^}]*))?\}", value, line)
        for line in text.splitlines()
    )
    return "\n".join(lines)


def ours() -> dict[str, dict[str, Any]]:
    return {name: each for name, each in compose()["services"].items() if each["image"] == OURS}


def mounts(service: dict[str, Any]) -> dict[str, Path]:
    """What is mounted of this repository, by its place in the container."""
    parts = [mount.split(":") for mount in service.get("volumes", ()) if mount.startswith(".")]
    assert all(part[2] == "ro" for part in parts)
    return {part[1]: (FOLDER / part[0]).resolve() for part in parts}


def source(service: dict[str, Any], inside: str) -> Path:
    """The file of this repository that the container has at `inside`."""
    for place, path in mounts(service).items():
        if inside == place or inside.startswith(f"{place}/"):
            return path / inside.removeprefix(place).lstrip("/")
    raise LookupError(f"nothing is mounted at {inside}")


def settings() -> tuple[Settings, dict[str, str]]:
    service = ours()["dispatcher"]
    environ = {"DISPATCHER_HTTP__HOST": "0.0.0.0", **service["environment"]}
    settings = load(
        source(service, environ["DISPATCHER_CONFIG"]),
        {name: value for name, value in environ.items() if name.startswith(PREFIX)},
        {},
    )
    return settings, environ


def test_every_image_of_others_is_pinned_to_a_version() -> None:
    images = {each["image"] for each in compose()["services"].values()} - {OURS}
    assert len(images) == 4
    for image in images:
        assert re.fullmatch(r"[a-z/]+:v?\d+(\.\d+)*(-alpine)?", image), image


def test_whoever_forgets_the_key_is_told_how_to_make_one() -> None:
    with pytest.raises(LookupError, match=r"export DISPATCHER_API_KEY=\$\$\(openssl"):
        substituted((FOLDER / "compose.yaml").read_text(), {})


def test_whatever_is_named_is_there() -> None:
    whole = compose()
    for service in whole["services"].values():
        for mount in service.get("volumes", ()):
            name = mount.partition(":")[0]
            assert (FOLDER / name).exists() if name.startswith(".") else name in whole["volumes"], mount
        assert set(service["networks"]) <= set(whole["networks"])
        assert set(service.get("depends_on", ())) <= set(whole["services"])
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def test_every_command_of_ours_is_one_that_the_image_knows() -> None:
    services = ours()
    assert set(services) == {"dispatcher", "receiver"}
    for service in services.values():
        command, *arguments = service.get("command", ["run"])
        main.commands[command].make_context(command, list(arguments))


def test_the_settings_are_taken_and_the_subscriptions_too() -> None:
    found, environ = settings()
    network = found.network
    guard = Guard(network.allow, network.deny, network.https_only, network.ports)
    file = source(ours()["dispatcher"], str(found.subscriptions_file))
    (subscription,) = load_file(file, found, guard, environ)
    target = urlsplit(str(yaml.safe_load(file.read_text())["subscriptions"][0]["url"]))
    assert target.hostname in compose()["services"]
    receiver = compose()["services"][target.hostname]["command"]
    assert receiver[receiver.index("--port") + 1] == str(target.port)
    assert receiver[receiver.index("--secret") + 1] == environ["RECEIVER_SECRET"]
    assert subscription.id == "receiver"


def test_a_wrong_setting_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compose()
    whole["services"]["dispatcher"]["environment"]["DISPATCHER_TOPIC__PREFIX"] = "x."
    monkeypatch.setattr(f"{__name__}.compose", lambda: whole)
    with pytest.raises(SettingsError):
        settings()


def test_deliveries_may_go_into_the_network_and_nowhere_else_that_is_private() -> None:
    (subnet,) = [each["subnet"] for each in compose()["networks"]["inside"]["ipam"]["config"]]
    assert ipaddress.ip_network(subnet).is_private
    assert settings()[0].network.allow == (subnet,)


def test_the_broker_is_the_service_at_its_inner_listener() -> None:
    address = settings()[0].broker_address
    assert isinstance(address, KafkaServers)
    (server,) = address.servers
    advertised = compose()["services"]["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"INSIDE://{server}," in advertised
    assert settings()[0].topics.replication == 1


def test_the_dispatcher_gets_the_time_to_drain_and_may_do_little() -> None:
    service = ours()["dispatcher"]
    assert parse_duration(service["stop_grace_period"]) >= settings()[0].shutdown.drain + 5
    for each in ours().values():
        assert each["read_only"] is True
        assert each["cap_drop"] == ["ALL"]


@pytest.fixture(scope="module")
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail("no promtool (Debian: prometheus)", pytrace=False)
        pytest.skip("NOT TESTED: Prometheus' configuration; promtool is missing (Debian: prometheus)")
    return found


@pytest.mark.parametrize("broken", [False, True])
def test_promtool_finds_the_configuration_of_prometheus_right(
    promtool: str, tmp_path: Path, broken: bool
) -> None:
    service = compose()["services"]["prometheus"]
    inside = tmp_path / "etc" / "prometheus"
    inside.mkdir(parents=True)
    for place, path in mounts(service).items():
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / place.lstrip("/"))
    file = inside / "prometheus.yml"
    if broken:
        file.write_text(file.read_text().replace("dns_sd_configs", "dns_configs"))
    done = subprocess.run(
        [promtool, "check", "config", str(file)], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) is broken, done.stdout + done.stderr
    if not broken:
        assert "2 rule files" in done.stdout
    assert f"--config.file=/{file.relative_to(tmp_path)}" in service["command"]


def test_prometheus_asks_every_dispatcher() -> None:
    (job, _) = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert found["names"] == ["dispatcher"]
    assert found["port"] == settings()[0].http.port


def test_grafana_finds_prometheus_and_the_dashboards() -> None:
    service = compose()["services"]["grafana"]
    assert source(service, service["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]).is_file()
    provisioning = source(service, "/etc/grafana/provisioning")
    (datasource,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    target = urlsplit(datasource["url"])
    assert target.hostname in compose()["services"]
    assert compose()["services"][target.hostname]["ports"] == [f"127.0.0.1:{target.port}:{target.port}"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "dispatcher.yaml").read_text())["providers"]
    assert list(source(service, provider["options"]["path"]).glob("*.json"))


@pytest.mark.kafka
def test_kafka_takes_its_settings_and_knows_every_one(tmp_path: Path) -> None:
    try:
        kafka.fetch()
    except kafka.Unavailable as error:
        if os.environ.get("CI", "").lower() in {"1", "true"}:
            pytest.fail(f"no Kafka: {error}", pytrace=False)
        pytest.skip(f"NOT TESTED: Kafka's settings; {error}")
    environment = compose()["services"]["kafka"]["environment"]
    # The image's own rule: KAFKA_LOG_DIRS is log.dirs.
    given = {
        name.removeprefix("KAFKA_").lower().replace("_", "."): str(value)
        for name, value in environment.items()
    }
    given["log.dirs"] = str(tmp_path / "data")
    file = tmp_path / "server.properties"
    file.write_text("".join(f"{name}={value}\n" for name, value in given.items()))
    java = [
        "java",
        "-Xmx64m",
        "-cp",
        f"{kafka.JARS}/*",
        f"-Dlog4j2.configurationFile={kafka.HERE / 'log4j2.properties'}",
    ]

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*java, *arguments], capture_output=True, text=True, check=False)

    checked = run("kafka.tools.StorageTool", "format", "-t", "MkU3OEVBNTcwNTJENDM2Qk", "-c", str(file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    # Kafka passes over what it doesn't know. This prints the documentation of all that it does.
    known = re.findall(r'id="([a-z.]+)"', run("kafka.server.KafkaConfig").stdout)
    assert set(given) - set(known) == set()
