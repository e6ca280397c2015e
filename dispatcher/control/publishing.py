"""Publishing over HTTP: events in, acknowledged when the broker has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dispatcher.core.spec import Flaw


@dataclass(frozen=True, slots=True)
class Published:
    """One event that is in the topic. `duplicate`: it was there already, under the same id."""

    id: str
    duplicate: bool = False
    warnings: list[Flaw] = field(
        default_factory=list
    )  # where it differs from its schema (`publish_validation: warn`)


class Publisher:
    """Writes events of the API to the events topic."""

    async def publish(
        self, events: Sequence[Mapping[str, Any]], *, tenant: str | None, batch: bool | None = None
    ) -> list[Published]:
        """Write all of them or, when any is invalid, none.

        `tenant` None is an operator, whose events name their tenant; a tenant's events are its own. Fields are those of
        the JSON envelope: type, id, tenant, created or timestamp, data. Flaws of a batch begin with the event's number.
        """
        raise NotImplementedError
