"""Helm, kubeconform and the schemas that it checks with: fetched and built once, by pinned versions, and kept in the user's cache.

| what | from | needs |
| --- | --- | --- |
| helm, kubeconform | `go install` | Go |
| Kubernetes' schemas | a wheel of PyPI, by its hash | pip |
| KEDA, the Prometheus operator | the modules' own definitions | Go |
| Strimzi | its generator and its model, from Maven Central | Maven, Java 21 or newer |

What can't be had makes the test fail that needs it: these tests run where they are asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

HERE: Final = Path(__file__).parent
HELM: Final = "helm.sh/helm/v3/cmd/helm@v3.22.0"
KUBECONFORM: Final = "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0"
KEDA: Final = "github.com/kedacore/keda/v2@v2.21.0"
PROMETHEUS_OPERATOR: Final = "github.com/prometheus-operator/prometheus-operator@v0.85.0"
STRIMZI: Final = {
    "topic.yaml": "io.strimzi.api.kafka.model.topic.KafkaTopic",
    "user.yaml": "io.strimzi.api.kafka.model.user.KafkaUser",
}
OLDEST: Final = "1.27.0"
"""The first Kubernetes that knows every field of the chart, `kubeVersion` of Chart.yaml."""
NEWEST: Final = "1.37.0"

_REFERENCE: Final = re.compile(r"(?:/api/_definitions\.json)?#/\$defs/")
_SHARED: Final = "_definitions.json"


def cached(name: str) -> Path:
    """A place in the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    place = base / "webhook-dispatcher-tests" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def run(*command: str | Path, cwd: Path | None = None, **environ: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def _needs(command: str, package: str) -> str:
    found = shutil.which(command)
    assert found is not None, f"{command} is missing (Debian: {package})"
    return found


def _go_tool(module: str) -> Path:
    path, _, version = module.partition("@")
    name = path.rpartition("/")[2]
    folder = cached(f"{name}-{version}")
    if not (folder / name).exists():
        run(_needs("go", "golang-go"), "install", module, GOBIN=str(folder), GOTOOLCHAIN="local")
    return folder / name


@cache
def helm() -> Path:
    return _go_tool(HELM)


def template(chart: Path) -> list[str]:
    """The command that renders a chart as a cluster of the oldest version would get it. A helm made by `go install` knows no version."""
    name = ("template", "dispatcher", chart, "--namespace", "webhooks")
    return [str(each) for each in (helm(), *name, "--kube-version", OLDEST)]


@cache
def kubeconform() -> Path:
    return _go_tool(KUBECONFORM)


@cache
def schemas(kubernetes: str) -> Path:
    """A folder with one self-contained schema for each kind that the chart makes."""
    return _once(f"schemas-{kubernetes}", lambda folder: _write_schemas(folder, kubernetes))


def _once(name: str, write: Any) -> Path:
    folder = cached(name)
    if not folder.exists():
        unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        write(unfinished)
        try:
            unfinished.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(unfinished)
    return folder


def _write_schemas(folder: Path, kubernetes: str) -> None:
    _write_kubernetes(folder, kubernetes)
    for definition in (*_keda(), *_prometheus_operator(), *_strimzi()):
        write_custom(folder, yaml.safe_load(definition.read_text()))


def _write_kubernetes(folder: Path, version: str) -> None:
    """The schemas name each other in one shared file, which kubeconform doesn't find: each gets what it needs of it."""
    downloads = folder / "downloads"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download")
    options = ("--no-deps", "--require-hashes", "--only-binary", ":all:", "--dest", downloads)
    run(*pip, *options, "-r", HERE / "requirements.txt")
    (wheel,) = downloads.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        inside = f"kubernetes_validate/kubernetes-json-schema/v{version}-local-strict/"
        shared = json.loads(files.read(inside + _SHARED))["$defs"]
        for name in files.namelist():
            if not name.startswith(inside) or name.endswith((_SHARED, "/all.json")):
                continue
            schema = json.loads(files.read(name))
            kind = name.removeprefix(inside)
            if isinstance(schema, dict) and "apiVersion" in schema.get("properties", {}):
                (folder / kind).write_text(json.dumps(_whole(schema, shared)))
    shutil.rmtree(downloads)


def _whole(schema: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    needed: dict[str, Any] = {}
    wanted = list(_references(schema))
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed[name] = shared[name]
            wanted += _references(shared[name])
    named = {name: value for name, value in schema.items() if name not in ("$id", "$schema")}
    text = json.dumps({**named, "definitions": needed})
    return json.loads(_REFERENCE.sub("#/definitions/", text))  # type: ignore[no-any-return] # it was one


def _references(part: Any) -> Iterable[str]:
    for value in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        if isinstance(value, str):
            if found := _REFERENCE.match(value):
                yield value[found.end() :]
        else:
            yield from _references(value)


def write_custom(folder: Path, definition: dict[str, Any]) -> None:
    """The schemas of a CustomResourceDefinition, named as kubeconform looks for them."""
    group = definition["spec"]["group"].partition(".")[0]
    kind = definition["spec"]["names"]["kind"].lower()
    for version in definition["spec"]["versions"]:
        schema = version["schema"]["openAPIV3Schema"]
        (folder / f"{kind}-{group}-{version['name']}.json").write_text(json.dumps(_strict(schema)))


def _strict(schema: Any) -> Any:
    """JSON Schema out of Kubernetes' structural one: unknown fields are mistakes."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        name: {field: _strict(value) for field, value in each.items()}
        if name == "properties"
        else _strict(each)
        for name, each in schema.items()
        if name not in ("description", "default", "format", "example") and not name.startswith("x-")
    }
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if "properties" in schema and not open_ended:
        made["additionalProperties"] = False
    return made


def _module(module: str) -> Path:
    found = run(_needs("go", "golang-go"), "mod", "download", "-json", module, cwd=HERE, GOTOOLCHAIN="local")
    return Path(json.loads(found)["Dir"])


def _keda() -> list[Path]:
    bases = _module(KEDA) / "config" / "crd" / "bases"
    return [bases / f"keda.sh_{kind}.yaml" for kind in ("scaledobjects", "triggerauthentications")]


def _prometheus_operator() -> list[Path]:
    folder = _module(PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    kinds = ("podmonitors", "servicemonitors", "prometheusrules")
    return [folder / f"monitoring.coreos.com_{kind}.yaml" for kind in kinds]


def _strimzi() -> list[Path]:
    def write(folder: Path) -> None:
        jars = folder / "jars"
        run(
            *(_needs("mvn", "maven"), "--quiet", "--batch-mode", "--file", HERE / "pom.xml"),
            *("dependency:copy-dependencies", f"-DoutputDirectory={jars}"),
        )
        asked = [f"{model}={folder / name}" for name, model in STRIMZI.items()]
        generator = ("-cp", f"{jars}/*", "io.strimzi.crdgenerator.CrdGenerator", "--yaml")
        run(_java(), *generator, *asked)
        shutil.rmtree(jars)

    folder = _once("strimzi-1.2.0", write)
    return [folder / name for name in STRIMZI]


def _java() -> Path:
    """A Java of version 21 or newer: the one in the path, or another of Debian's place for them."""
    found = shutil.which("java")
    others = sorted(Path("/usr/lib/jvm").glob("*/bin/java"))
    for java in [Path(found)] if found else [], others:
        for candidate in java:
            said = subprocess.run([candidate, "-version"], capture_output=True, text=True, check=False).stderr
            version = re.search(r'version "(\d+)', said)
            if version is not None and int(version[1]) >= 21:
                return candidate
    raise AssertionError("no Java 21 or newer (Debian: openjdk-21-jre-headless)")
