"""An event type as the catalogue documents it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class EventType:
    """What producers publish under a name. `schema` is JSON Schema 2020-12 of the payload (`data`)."""

    name: str
    description: str = ""
    schema: dict[str, Any] | bool | None = None
    example: Any = None
    deprecated: bool = False

    def document(self) -> dict[str, Any]:
        """As it is stored and shown, without the name."""
        return {
            "description": self.description,
            "schema": self.schema,
            "example": self.example,
            "deprecated": self.deprecated,
        }

    @classmethod
    def of(cls, name: str, document: dict[str, Any]) -> EventType:
        """Of a document as `document()` writes it."""
        return cls(
            name,
            document.get("description") or "",
            document.get("schema"),
            document.get("example"),
            bool(document.get("deprecated")),
        )
