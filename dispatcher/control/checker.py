"""Checks of subscriptions that come over the network: all flaws of a document at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from dispatcher.control.catalogue import Catalogue
from dispatcher.control.errors import (
    Invalid,
)
from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.subscription.model import Subscription
from dispatcher.core.subscription.spec import SpecReader

_REFUSED: Final = {
    "client_certificate": "names files of the dispatcher's own disk: only the subscriptions file may have it",
}
_STATUSES: Final = ("active", "paused")


class Checker:
    """Checks documents that come over the network."""

    def __init__(self, reader: SpecReader, catalogue: Catalogue, *, require_validation: bool) -> None:
        """`reader` knows which URLs may be contacted, and nothing of the environment.

        `require_validation`: endpoints of tenants have to agree before anything is delivered to them.
        """
        self._reader = reader
        self._catalogue = catalogue
        self._require_validation = require_validation

    def require_validation(self, fields: dict[str, Any], flaws: list[Flaw]) -> None:
        """Have a tenant's new endpoint validated, where the setting says so."""
        if self._require_validation and not fields.setdefault("validate", True):
            flaws.append(Flaw(("validate",), "must be true, or left out (setting api.require_validation)"))

    def check(
        self,
        id: str,  # noqa: A002 - the field's name
        fields: Mapping[str, Any],
        secrets: Any,
        flaws: list[Flaw],
        *,
        patterns: bool,
    ) -> Subscription:
        """The subscription that these make; raises Invalid with all that is wrong."""
        status = fields.get("status")
        if status is not None and status not in _STATUSES:
            flaws.append(Flaw(("status",), "must be active or paused"))
        wrong = {flaw.path[:1] for flaw in flaws}
        raw = {name: value for name, value in fields.items() if (name,) not in wrong}
        read: Subscription | None = None
        try:
            read = self._reader.read({"id": id, **raw, "secrets": secrets})
        except FlawedError as error:
            flaws.extend(flaw for flaw in error.flaws if flaw.path[:1] not in wrong)
        wanted = fields.get("event_types")
        if patterns and isinstance(wanted, (list, tuple)):
            known = {flaw.path for flaw in flaws}
            flaws.extend(
                flaw
                for flaw in self._catalogue.check_patterns([str(one) for one in wanted])
                if flaw.path not in known
            )
        if flaws or read is None:
            raise Invalid(flaws)
        return read


def refused(fields: Mapping[str, Any]) -> list[Flaw]:
    """Fields that nobody may set over the network."""
    return [Flaw((name,), said) for name, said in _REFUSED.items() if fields.get(name) is not None]
