"""What is wrong with a document is told at once."""

from __future__ import annotations

import pytest

from tests.control.conftest import Plane, flaws

pytestmark = [pytest.mark.looptime]


async def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(plane: Plane) -> None:
    wrong = await flaws(
        plane.create(
            id="a b",
            url="http://10.0.0.1/",
            event_types=["*x"],
            status="disabled",
            secrets=["abc"],
            client_certificate={"cert_file": "/etc/passwd"},
            bogus=1,
        )
    )
    assert set(wrong) == {
        "id",
        "url",
        "event_types[0]",
        "status",
        "secrets[0]",
        "client_certificate",
        "bogus",
    }
    assert len(plane.store) == 0


async def test_a_reference_to_the_environment_is_not_replaced(plane: Plane) -> None:
    created = await plane.create(headers={"X-Path": "${PATH}"})
    assert created.view.document["headers"] == {"X-Path": "${PATH}"}
