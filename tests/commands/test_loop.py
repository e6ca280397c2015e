from __future__ import annotations

import pytest

from dispatcher.commands.loop import run


def test_ctrl_c_ends_it_without_a_traceback() -> None:
    async def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run(interrupted())
    assert ended.value.code == 130
