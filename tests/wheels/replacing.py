"""A plugin for tests of a compiled package: one that puts something into the place of what is compiled is skipped, since C doesn't look there."""

from __future__ import annotations

import sys
import sysconfig
from types import ModuleType
from typing import Any

import pytest

_setattr: Any = pytest.MonkeyPatch.setattr


def _compiled(target: object) -> bool:
    if isinstance(target, ModuleType):
        name = target.__name__
    else:
        name = (target if isinstance(target, type) else type(target)).__module__
    file = getattr(sys.modules.get(name), "__file__", None) or ""
    return file.endswith(sysconfig.get_config_var("EXT_SUFFIX")) and name.startswith("dispatcher.")


def _set(self: pytest.MonkeyPatch, target: object, *arguments: Any, **options: Any) -> None:
    if _compiled(target):
        pytest.skip("it replaces a part of what is compiled")
    _setattr(self, target, *arguments, **options)


def pytest_configure() -> None:
    pytest.MonkeyPatch.setattr = _set  # type: ignore[method-assign] # for this run alone
