"""What the toggles take out of the package is still there, and what is left is Python."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from benchmarks.engine_case import CASES
from benchmarks.toggles import TOGGLES, Toggle, copy_without


@pytest.mark.parametrize("toggle", TOGGLES, ids=lambda toggle: toggle.name)
def test_a_trick_can_be_switched_off(toggle: Toggle, tmp_path: Path) -> None:
    assert toggle.case in CASES
    for edit in toggle.edits:
        original = (copy_without(None, tmp_path / f"whole-{id(edit)}") / "dispatcher" / edit.file).read_text()
        changed = (
            copy_without(toggle, tmp_path / f"without-{id(edit)}") / "dispatcher" / edit.file
        ).read_text()
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(original))
