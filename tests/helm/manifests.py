"""What the pods of a manifest would be started with, put to the dispatcher's own checks."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

from dispatcher.cli import main
from dispatcher.core.request.netguard import Guard
from dispatcher.registry.file import load_file
from dispatcher.settings.groups import Settings
from dispatcher.settings.load import PREFIX, load

# What a Secret would hold; anything that the settings take.
_SECRET: Final = base64.b64encode(bytes(range(32))).decode()
_FIELDS: Final = {"metadata.name": "dispatcher-0", "metadata.namespace": "webhooks"}
WORKLOADS: Final = ("StatefulSet", "Deployment")


def read(text: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(text) if document is not None]


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def the(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only one of its kind."""
    (found,) = of_kind(documents, kind)
    return found


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each workload's name, and the specification of its pods."""
    for document in documents:
        if document["kind"] in WORKLOADS:
            yield document["metadata"]["name"], document["spec"]["template"]["spec"]


def environment(container: dict[str, Any]) -> dict[str, str]:
    found = {}
    for variable in container["env"]:
        source = variable.get("valueFrom")
        if source is None:
            found[variable["name"]] = variable["value"]
        elif "fieldRef" in source:
            found[variable["name"]] = _FIELDS[source["fieldRef"]["fieldPath"]]
        else:
            assert set(source["secretKeyRef"]) == {"name", "key"}
            found[variable["name"]] = _SECRET
    return found


def mounted(documents: list[dict[str, Any]], pod: dict[str, Any], folder: Path) -> None:
    """Write what the pod's ConfigMaps hold below `folder`, where the container would see it below `/`."""
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(documents, "ConfigMap")}
    named = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in pod["containers"][0]["volumeMounts"]:
        volume = named.get(mount["name"], {})  # or a claim's
        if "configMap" in volume:
            place = folder / mount["mountPath"].lstrip("/")
            place.mkdir(parents=True)
            for name, text in maps[volume["configMap"]["name"]].items():
                (place / name).write_text(text)


def started(documents: list[dict[str, Any]], pod: dict[str, Any], folder: Path) -> Settings:
    """The settings that the pod would start with. Raises what a start would say."""
    mounted(documents, pod, folder)
    (container,) = pod["containers"]
    command, *arguments = container["args"]
    main.commands[command].make_context(command, list(arguments))
    environ = environment(container)
    file = environ["DISPATCHER_CONFIG"]
    ours = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    settings = load(folder / file.lstrip("/"), ours, {})
    if settings.subscriptions_file is not None:
        network = settings.network
        guard = Guard(network.allow, network.deny, network.https_only, network.ports)
        inside = folder / str(settings.subscriptions_file).lstrip("/")
        assert load_file(inside, settings, guard, environ)
    return settings
