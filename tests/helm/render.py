"""`python -m tests.helm.render`: the rules of config/prometheus into the chart, and config/kubernetes anew as the chart makes it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.helm import tools

ROOT = Path(__file__).parents[2]
CHART = ROOT / "config" / "helm" / "dispatcher"
KUBERNETES = ROOT / "config" / "kubernetes"
_ABOVE = """\
# Made of the chart in config/helm/dispatcher with {values} (`make manifests`); the chart has more to choose from.
#
#   kubectl create namespace webhooks
#   kubectl -n webhooks create secret generic dispatcher --from-literal=api-keys="$(openssl rand -base64 32)" \\
#     --from-literal=secrets-keys="$(openssl rand -base64 32)"
#   kubectl -n webhooks apply -f {manifest}
"""


def manifests() -> dict[Path, str]:
    """Each manifest, and what it should hold."""
    found = {}
    for values in sorted(KUBERNETES.glob("values*.yaml")):
        manifest = KUBERNETES / f"{values.stem.replace('values', 'dispatcher')}.yaml"
        names = {
            name: path.relative_to(ROOT).as_posix()
            for name, path in (("values", values), ("manifest", manifest))
        }
        rendered = tools.run(*tools.template(CHART), "--values", values)
        found[manifest] = _ABOVE.format(**names) + rendered
    return found


if __name__ == "__main__":
    for rule in (ROOT / "config" / "prometheus").glob("*.yaml"):
        shutil.copy(rule, CHART / "rules")
    for path, text in manifests().items():
        path.write_text(text)
