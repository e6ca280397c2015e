from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Any) -> Any:
    def written(text: Any) -> Any:
        file = tmp_path / "d.yaml"
        file.write_text(text)
        return file

    return written
