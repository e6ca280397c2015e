"""The catalogue of event types: what producers publish, with its JSON Schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatcher.core.event_types import EventType
from dispatcher.core.spec import Flaw


@dataclass(frozen=True, slots=True)
class EventTypeView:
    """An entry of the catalogue, with its version (the ETag)."""

    type: EventType
    version: int
    updated_ms: int


class Catalogue:
    """The event types that are known."""

    def list(self) -> Sequence[EventTypeView]:
        """All of them, by name."""
        raise NotImplementedError

    def get(self, name: str) -> EventTypeView:
        """One by its name."""
        raise NotImplementedError

    async def put(
        self, name: str, document: Mapping[str, Any], *, if_match: int | None = None
    ) -> tuple[EventTypeView, bool]:
        """Add or replace it; True with it when it is new."""
        raise NotImplementedError

    async def delete(self, name: str, *, if_match: int | None = None) -> None:
        """Forget it. Subscriptions and events of the type stay as they are."""
        raise NotImplementedError

    def check_patterns(self, patterns: Sequence[str]) -> Sequence[Flaw]:
        """What is wrong with patterns of a subscription, where the setting wants them to name known types."""
        raise NotImplementedError

    def validate_payload(self, type: str, data: Any) -> Sequence[Flaw]:  # noqa: A002 - the field's name
        """Where a payload differs from its type's schema."""
        raise NotImplementedError
