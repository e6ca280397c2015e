"""The manifests of config/kubernetes: what they start is ours, with settings that are taken. `test_chart.py` renders them again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dispatcher.__about__ import __version__
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import SettingsError
from dispatcher.topics.specs import topic_specs
from tests.helm.manifests import environment, of_kind, pods, read, started, the
from tests.image.dockerfile import parse

ROOT = Path(__file__).parents[2]
CHART = ROOT / "config" / "helm" / "dispatcher"
MANIFESTS = sorted(
    path for path in (ROOT / "config" / "kubernetes").glob("*.yaml") if not path.name.startswith("values")
)
each_manifest = pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)


def test_there_are_manifests() -> None:
    assert [path.name for path in MANIFESTS] == ["dispatcher-split.yaml", "dispatcher.yaml"]


@each_manifest
def test_every_pod_starts_a_command_of_ours_with_settings_that_are_taken(
    manifest: Path, tmp_path: Path
) -> None:
    documents = read(manifest.read_text())
    for name, pod in pods(documents):
        settings = started(documents, pod, tmp_path / name)
        assert not settings.embedded
        assert settings.api.keys
        assert settings.http.port == pod["containers"][0]["ports"][0]["containerPort"]
        assert not settings.http.loopback


@each_manifest
@pytest.mark.parametrize(
    ("right", "wrong", "error"),
    [
        ("security_protocol", "security_protokoll", SettingsError),
        ("- run\n", "- runn\n", KeyError),
        ("DISPATCHER_HTTP__PORT", "DISPATCHER_HTTP_PORT", SettingsError),
    ],
)
def test_a_wrong_name_would_be_noticed(
    manifest: Path, tmp_path: Path, right: str, wrong: str, error: type[Exception]
) -> None:
    text = manifest.read_text().replace("args: [run]", "args:\n            - run\n")
    assert right in text
    documents = read(text.replace(right, wrong))
    _, pod = next(pods(documents))
    with pytest.raises(error):
        started(documents, pod, tmp_path)


@each_manifest
def test_a_pod_has_the_time_to_drain(manifest: Path, tmp_path: Path) -> None:
    documents = read(manifest.read_text())
    for name, pod in pods(documents):
        drain = started(documents, pod, tmp_path / name).shutdown.drain
        hook = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        before = 0 if hook is None else int(hook[1])
        assert hook is None or hook[0] == "sleep"
        assert pod["terminationGracePeriodSeconds"] >= before + drain + 5


@each_manifest
def test_a_pod_may_do_little(manifest: Path) -> None:
    _, stages = parse((ROOT / "Dockerfile").read_text())
    user = stages[-1].said("USER")
    workdir = stages[-1].said("WORKDIR")
    for _, pod in pods(read(manifest.read_text())):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert f"{context['runAsUser']}:{context['runAsGroup']}" == user
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
        assert writable == [workdir]


@each_manifest
def test_probes_ask_what_each_is_for(manifest: Path) -> None:
    for _, pod in pods(read(manifest.read_text())):
        (container,) = pod["containers"]
        # A broker that is away must not have the pods restarted.
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


@each_manifest
def test_secrets_come_by_reference(manifest: Path) -> None:
    documents = read(manifest.read_text())
    assert of_kind(documents, "Secret") == []
    for _, pod in pods(documents):
        for variable in pod["containers"][0]["env"]:
            if re.search(r"KEY|PASSWORD|SECRET", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], variable


@each_manifest
def test_selectors_find_the_pods(manifest: Path) -> None:
    documents = read(manifest.read_text())
    labels = [
        each["spec"]["template"]["metadata"]["labels"]
        for each in documents
        if each["kind"] in ("StatefulSet", "Deployment")
    ]

    def finds(selector: dict[str, str]) -> bool:
        return any(selector.items() <= each.items() for each in labels)

    for service in of_kind(documents, "Service"):
        assert finds(service["spec"]["selector"]), service
    for kind in ("PodDisruptionBudget", "StatefulSet", "Deployment"):
        for each in of_kind(documents, kind):
            assert finds(each["spec"]["selector"]["matchLabels"]), each
    assert finds(the(documents, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"])
    services = {each["metadata"]["name"] for each in of_kind(documents, "Service")}
    assert the(documents, "StatefulSet")["spec"]["serviceName"] in services


@each_manifest
def test_a_replica_that_comes_back_has_its_old_name(manifest: Path) -> None:
    stateful = the(read(manifest.read_text()), "StatefulSet")["spec"]["template"]["spec"]
    assert environment(stateful["containers"][0])["DISPATCHER_KAFKA__MEMBER_NAME"] == "dispatcher-0"


def test_split_pods_have_the_roles_between_them(tmp_path: Path) -> None:
    documents = read((ROOT / "config" / "kubernetes" / "dispatcher-split.yaml").read_text())
    roles = {name: started(documents, pod, tmp_path / name).roles for name, pod in pods(documents)}
    assert roles == {"dispatcher": ("deliver",), "dispatcher-api": ("api", "history")}


def values() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def test_the_topics_that_strimzi_is_told_of_are_those_that_the_dispatcher_needs() -> None:
    wanted = {
        spec.name: (spec.partitions, dict(spec.config))
        for spec in topic_specs(Settings(broker="kafka://localhost:9092"))
    }
    strimzi = values()["strimzi"]
    told = {
        topic["name"]: (
            topic.get("partitions"),
            {name: str(value) for name, value in topic.get("config", {}).items()},
        )
        for topic in (*strimzi["events"], *strimzi["own"])
    }
    assert told == wanted


def test_the_charts_rules_are_those_of_prometheus() -> None:
    """A chart can't read beyond its folder; `make manifests` copies them."""
    ours = {path.name: path.read_text() for path in (ROOT / "config" / "prometheus").glob("*.yaml")}
    assert {path.name: path.read_text() for path in (CHART / "rules").glob("*.yaml")} == ours


def test_the_chart_is_of_this_version() -> None:
    assert yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] == __version__


def test_every_value_is_in_the_schema_with_nothing_beside_it() -> None:
    """Helm itself checks the values' types (`test_chart.py`); here that neither file knows more than the other."""
    import json  # noqa: PLC0415 - used here only

    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(value: Any, part: dict[str, Any], place: str) -> None:
        if isinstance(value, dict) and "properties" in part and part.get("additionalProperties") is False:
            optional = {"global"} if not place else {"claims"}
            assert value.keys() <= part["properties"].keys(), place
            assert part["properties"].keys() - value.keys() <= optional, place
            for name, inner in value.items():
                compare(inner, part["properties"][name], f"{place}.{name}")

    compare(values(), schema, "")
