from __future__ import annotations

from typing import Any

import pytest

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def entry(name: Any, types: Any = "ping", extra: Any = "") -> Any:
    return f'  - {{id: {name}, url: "https://{name}.example/", event_types: [{types}], secrets: ["${{S}}"]{extra}}}\n'


def document(*entries: Any) -> Any:
    return "subscriptions:\n" + "".join(entries)


@pytest.fixture
def file(tmp_path: Any) -> Any:
    return tmp_path / "subscriptions.yaml"
