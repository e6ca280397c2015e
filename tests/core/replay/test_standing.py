"""Where nobody knows of replays."""

from __future__ import annotations

from dispatcher.core.replay.standing import NoReplays, ReplayStanding


def test_without_replays_none_is_known() -> None:
    assert NoReplays().standing("rpl_1") is ReplayStanding.UNKNOWN
