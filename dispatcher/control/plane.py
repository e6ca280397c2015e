"""The control plane of one process: its parts, wired."""

from __future__ import annotations

from dispatcher.control.catalogue import Catalogue
from dispatcher.control.publishing import Publisher
from dispatcher.control.subscriptions import Subscriptions


class ControlPlane:
    """What the HTTP side calls. Made by `app.py`, before the broker is there."""

    subscriptions: Subscriptions
    catalogue: Catalogue
    publisher: Publisher

    def problems(self) -> list[str]:
        """Why it can't be asked yet, a sentence each."""
        raise NotImplementedError
