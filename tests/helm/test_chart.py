"""The chart, by helm itself and against the schemas of everything that it makes. Minutes the first time: only with DISPATCHER_TEST_HELM=1.

`tools.py` says what is fetched and built for it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from dispatcher.settings.broker_url import KafkaServers
from tests.helm import tools
from tests.helm.manifests import of_kind, pods, read, started, the
from tests.helm.render import manifests

ROOT = Path(__file__).parents[2]
CHART = ROOT / "config" / "helm" / "dispatcher"

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("DISPATCHER_TEST_HELM", "") in ("", "0"),
        reason="NOT TESTED: the Helm chart by helm and kubeconform; DISPATCHER_TEST_HELM=1 does",
    ),
    pytest.mark.timeout(1800),
]

LEAST: Final = ("kafka.servers=kafka:9092", "apiKeys.secret=dispatcher")
SASL: Final = (
    "kafka.securityProtocol=sasl_ssl",
    "kafka.username=dispatcher",
    "kafka.password.secret=dispatcher-user",
    "kafka.ca.secret=main-cluster-ca-cert",
)
MTLS: Final = ("kafka.securityProtocol=ssl", "kafka.certificate.secret=dispatcher-user")
KEDA: Final = (
    "deliver.keda.enabled=true",
    "settings.topics.events={orders,invoices}",
    "settings.group=hooks",
)
STRIMZI: Final = (
    "strimzi.topics=true",
    "strimzi.user=true",
    "strimzi.cluster=main",
    "strimzi.namespace=kafka",
)
ALL_ELSE: Final = (
    "secretsKeys.secret=dispatcher",
    "persistence.enabled=true",
    "persistence.storageClass=fast",
    "monitoring.labels.release=prometheus",
    "monitoring.rules=true",
    "image.digest=sha256:" + "0" * 64,
    "imagePullSecrets[0].name=registry",
    "fullnameOverride=hooks",
    "env[0].name=ACME_SECRET",
    "env[0].valueFrom.secretKeyRef.name=webhooks",
    "env[0].valueFrom.secretKeyRef.key=acme",
    "envFrom[0].secretRef.name=more",
    "subscriptions[0].id=acme",
    "subscriptions[0].url=https://hooks.acme.example/",
    "subscriptions[0].event_types={invoice.*}",
    "subscriptions[0].secrets={whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw}",
    "deliver.podAnnotations.a=b",
    "deliver.podLabels.a=b",
    "deliver.nodeSelector.a=b",
    "deliver.tolerations[0].operator=Exists",
    "deliver.priorityClassName=high",
    "networkPolicy.from[0].namespaceSelector.matchLabels.a=b",
    "networkPolicy.kafka[0].ipBlock.cidr=10.0.0.0/8",
    "networkPolicy.egress[0].to[0].ipBlock.cidr=10.1.0.0/16",
    "serviceAccount.annotations.a=b",
    "service.type=LoadBalancer",
    "service.annotations.a=b",
    "topologySpread[0].whenUnsatisfiable=DoNotSchedule",
    "topologySpread[0].topologyKey=kubernetes.io/hostname",
    "topologySpread[0].maxSkew=2",
)
MATRIX: Final[Mapping[str, tuple[str, ...]]] = {
    "least": (),
    "sasl, PodMonitor": (*SASL, "monitoring.kind=pod"),
    "mtls, ServiceMonitor": (*MTLS, "monitoring.kind=service"),
    "hpa": ("deliver.hpa.enabled=true", "monitoring.kind=annotations"),
    "keda": KEDA,
    "keda, sasl": (*KEDA, *SASL, "kafka.saslMechanism=PLAIN"),
    "keda, mtls": (*KEDA, *MTLS),
    "strimzi": (*STRIMZI, *SASL),
    "strimzi, mtls": (*STRIMZI, *MTLS, "strimzi.authentication=tls"),
    "nothing that can be left out": (
        "networkPolicy.enabled=false",
        "serviceAccount.create=false",
        "topologySpread=null",
        "deliver.maxUnavailable=null",
        "preStopSeconds=0",
    ),
    "all else": (*ALL_ELSE, *SASL, "monitoring.kind=pod"),
    "split": ("split=true",),
    "split, all else": (
        *("split=true", *ALL_ELSE, *SASL, *STRIMZI, *KEDA),
        *("api.hpa.enabled=true", "monitoring.kind=service"),
    ),
}
each_case = pytest.mark.parametrize("case", MATRIX)


def template(*assignments: str) -> subprocess.CompletedProcess[str]:
    command = [*tools.template(CHART), *(f"--set={each}" for each in (*LEAST, *assignments))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def rendered(*assignments: str) -> str:
    done = template(*assignments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def conforms(text: str, kubernetes: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    file = tmp_path / "manifests.yaml"
    file.write_text(text)
    location = f"{tools.schemas(kubernetes)}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"
    command = [str(tools.kubeconform()), "-strict", "-summary", "-schema-location", location, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_helm_finds_nothing_to_say() -> None:
    command = [str(tools.helm()), "lint", "--strict", str(CHART), *(f"--set={each}" for each in LEAST)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@each_case
@pytest.mark.parametrize("kubernetes", [tools.OLDEST, tools.NEWEST])
def test_what_is_rendered_is_what_the_cluster_takes(case: str, kubernetes: str, tmp_path: Path) -> None:
    done = conforms(rendered(*MATRIX[case]), kubernetes, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "Skipped: 0" in done.stdout
    assert "Invalid: 0" in done.stdout


@each_case
def test_the_pods_start_with_settings_that_are_taken(case: str, tmp_path: Path) -> None:
    documents = read(rendered(*MATRIX[case]))
    found = []
    for name, pod in pods(documents):
        settings = started(documents, pod, tmp_path / name)
        assert settings.broker_address == KafkaServers(("kafka:9092",))
        found.append(name)
    assert len(found) == 1 + ("split=true" in MATRIX[case])


@pytest.mark.parametrize(
    ("assignments", "right", "wrong"),
    [
        ((), "terminationGracePeriodSeconds", "terminationGracePeriodSecond"),
        ((), "unhealthyPodEvictionPolicy", "unhealthyPodEviction"),
        ((), "endPort", "portEnd"),
        (KEDA, "pollingInterval: 15", "pollingInterval: often"),
        (KEDA, "maxReplicaCount", "maxReplicas"),
        ((*SASL, *KEDA), "secretTargetRef", "secretTarget"),
        (("monitoring.kind=pod",), "filterRunning", "onlyRunning"),
        (("monitoring.kind=service",), "jobLabel", "jobLabels"),
        (("monitoring.rules=true",), "record:", "records:"),
        (STRIMZI, "topicName", "topicname"),
        (STRIMZI, "patternType: prefix", "patternType: prefixed"),
        (STRIMZI, "- resource: {type: cluster}", "- {}"),
    ],
)
def test_a_planted_mistake_is_found(
    assignments: tuple[str, ...], right: str, wrong: str, tmp_path: Path
) -> None:
    text = rendered(*assignments)
    assert right in text
    assert conforms(text.replace(right, wrong), tools.NEWEST, tmp_path).returncode != 0


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (("kafka.servers=",), "kafka.servers is required"),
        (("apiKeys.secret=",), "apiKeys.secret is required"),
        (("kafka.securityProtocol=sasl_ssl",), "kafka.username and kafka.password.secret are required"),
        (("kafka.ca.secret=ca",), "kafka.ca and kafka.certificate have no effect"),
        (("deliver.hpa.enabled=true", "deliver.keda.enabled=true"), "would scale the same StatefulSet"),
        (("strimzi.topics=true",), "strimzi.cluster is required"),
        (("settings.broker=x",), "settings.broker: the chart writes it by itself"),
        (("deliver.replica=3",), "replica"),
        (("deliver.replicas=many",), "replicas"),
        (("kafka.securityProtocol=tls",), "securityProtocol"),
        (("image.digest=latest",), "digest"),
    ],
)
def test_wrong_values_are_refused_with_their_place(assignments: tuple[str, ...], said: str) -> None:
    done = template(*assignments)
    assert done.returncode != 0
    assert said in done.stderr


def test_keda_looks_at_the_main_group_on_each_topic_of_events() -> None:
    triggers = the(read(rendered(*KEDA)), "ScaledObject")["spec"]["triggers"]
    assert [(each["metadata"]["topic"], each["metadata"]["consumerGroup"]) for each in triggers] == [
        ("orders", "hooks"),
        ("invoices", "hooks"),
    ]


@pytest.mark.parametrize("scaler", ["deliver.hpa.enabled=true", "deliver.keda.enabled=true"])
def test_an_autoscalers_number_is_not_taken_back(scaler: str) -> None:
    assert "replicas" in the(read(rendered()), "StatefulSet")["spec"]
    documents = read(rendered(scaler))
    assert "replicas" not in the(documents, "StatefulSet")["spec"]


def test_a_change_of_settings_starts_the_pods_anew_and_one_of_subscriptions_does_not() -> None:
    def annotations(*assignments: str) -> dict[str, Any]:
        spec = the(read(rendered(*assignments)), "StatefulSet")["spec"]
        found: dict[str, Any] = spec["template"]["metadata"]["annotations"]
        return found

    one = [f"subscriptions[0].{each}" for each in ("id=a", "url=https://a.example", "event_types={a}")]
    two = [*one[:2], "subscriptions[0].event_types={b}"]
    assert annotations(*one) == annotations(*two)
    assert annotations() != annotations("settings.delivery.timeout=5s")


def test_split_roles_are_told_apart_and_api_requests_go_to_the_api() -> None:
    documents = read(rendered("split=true"))
    labels = {
        name: the(documents, kind)["spec"]["template"]["metadata"]["labels"]
        for name, kind in (("deliver", "StatefulSet"), ("api", "Deployment"))
    }
    service = next(each for each in of_kind(documents, "Service") if each["spec"].get("clusterIP") != "None")
    assert service["spec"]["selector"].items() <= labels["api"].items()
    assert not service["spec"]["selector"].items() <= labels["deliver"].items()
    for kind, name in (("StatefulSet", "deliver"), ("Deployment", "api")):
        assert the(documents, kind)["spec"]["selector"]["matchLabels"].items() <= labels[name].items()


def test_the_manifests_of_config_kubernetes_are_what_the_chart_renders() -> None:
    for manifest, text in manifests().items():
        assert manifest.read_text() == text, f"make manifests writes {manifest.name} anew"


def test_the_rules_are_those_of_the_files() -> None:
    rule = the(read(rendered("monitoring.rules=true")), "PrometheusRule")
    groups = [
        group
        for path in sorted((ROOT / "config" / "prometheus").glob("*.yaml"))
        for group in yaml.safe_load(path.read_text())["groups"]
    ]
    assert rule["spec"]["groups"] == groups
