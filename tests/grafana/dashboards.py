"""The dashboards of config/grafana, and every query in them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

FOLDER: Final = Path(__file__).parents[2] / "config" / "grafana" / "dashboards"
BOARDS: Final[Mapping[str, dict[str, Any]]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}


class Query(NamedTuple):
    place: str  # board and panel
    expression: str

    def filled(self, interval: str, span: str) -> str:
        """As Grafana would send it with every replica chosen."""
        text = self.expression.replace("$__rate_interval", interval).replace("$__range", span)
        return text.replace("$job", ".*").replace("$instance", ".*")


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", ())


def queries() -> list[Query]:
    """Of all panels."""
    return [
        Query(f"{name}: {panel['title']}", target["expr"])
        for name, board in BOARDS.items()
        for panel in panels(board)
        for target in panel.get("targets", ())
    ]
