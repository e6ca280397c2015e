"""Honest tenants beside attackers: one short seed of each kind of attack. Longer ones, with what share they keep: `python -m tests.torture.hostile`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.e2e.daemon import Daemon
from tests.torture.attackers import ATTACKS, chosen
from tests.torture.hostile import (
    HonestEndpoints,
    HonestTenant,
    HostileReport,
    Window,
    judge,
    seed_among_attackers,
)

SEED = 2
"""Has six attacks at a time."""


def test_a_seed_draws_a_few_attacks_and_every_attack_is_drawn_by_some() -> None:
    assert chosen(SEED) == chosen(SEED)
    assert all(3 <= len(chosen(seed)) <= 6 for seed in range(50))
    assert {name for seed in range(50) for name, _ in chosen(seed)} == ATTACKS.keys()


def test_the_share_is_what_arrived_in_a_window_among_attackers_by_what_did_alone() -> None:
    report = HostileReport(1, Window(arrived=200, findings=["a"]), Window(arrived=190, findings=["b"]))
    assert report.share == pytest.approx(0.95)
    assert report.findings == ["a", "b"]
    assert "| 200 | 190 | 0.950 |" in str(report)
    assert HostileReport(1, None, Window(arrived=190)).share is None


@pytest.mark.parametrize(
    ("arrived", "log", "running", "said"),
    [
        (["a_1", "a_2"], "fine", True, None),
        (["a_1"], "fine", True, "1 of 2 were never delivered"),
        (["a_1", "a_2", "b_1"], "fine", True, "1 came where they don't belong"),
        (["a_1", "a_2"], "Traceback (most recent call last)", True, "traceback in"),
        (["a_1", "a_2"], "fine", False, "the daemon ended"),
    ],
)
def test_what_an_honest_tenant_lacks_or_gets_of_another_is_found(
    arrived: list[str], log: str, running: bool, said: str | None
) -> None:
    found = Window()
    tenant = HonestTenant("a", 1, "key", found)
    tenant.turns = dict.fromkeys(("a_1", "a_2", "a_3"), 0.0)
    tenant.owed = {"a_1", "a_2"}  # it was not told that the third one is published
    daemon = SimpleNamespace(running=running, log=lambda: log, output="daemon.log")
    with HonestEndpoints() as endpoints:
        for event in arrived:
            assert endpoints.take(b"/a", event.encode())
        assert not endpoints.take(b"/hang", b"evil_1")
        judge(cast("Daemon", daemon), endpoints, [tenant], found)
    assert len(found.findings) == (said is not None)
    assert said is None or said in found.findings[0]
    assert found.missing == 2 - len({"a_1", "a_2"}.intersection(arrived))


@pytest.mark.timeout(600)
async def test_whatever_honest_tenants_publish_beside_attackers_is_delivered(tmp_path: Path) -> None:
    report = await seed_among_attackers(SEED, tmp_path, seconds=5.0, rate=5.0, alone=False)
    assert report.among.owed > 0
    assert report.among.attacks, "they were there"
    assert report.among.missing == 0
    assert not report.findings, f"{report}\n" + "\n".join(report.findings)
