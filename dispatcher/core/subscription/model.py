"""Subscription: who wants which events, and how each is delivered.

A subscription never changes, but for `request`, `route`, `usage` and `health`, which the first delivery makes.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

from dispatcher.core.endpoint.fairness import TenantUsage
from dispatcher.core.request.build import Template, template
from dispatcher.core.request.signing import make_signers
from dispatcher.core.request.urls import Origin, Target
from dispatcher.core.retry.policy import RetryPolicy

EVERY_TENANT: Final = "*"


class Status(StrEnum):
    """Whether a subscription is delivered to."""

    ACTIVE = "active"
    PAUSED = "paused"  # its owner wants nothing for now: what matches is dropped
    PENDING = "pending"  # not validated yet
    DISABLED = "disabled"  # the dispatcher or an operator gave up on it


class ClientCertificate(NamedTuple):
    """What the dispatcher proves itself with to one subscriber (mTLS): PEM files; one file may hold both."""

    cert_file: str
    key_file: str | None = None


class Subscription:
    """Who wants which events, and how to deliver them. Made by `core/subscription/spec.py`; treated as immutable.

    Plain slots, and parts that are equal are shared between subscriptions: there may be a million.
    """

    __slots__ = (
        "_request",
        "certificate",
        "event_types",
        "follow_redirects",
        "headers",
        "health",
        "id",
        "max_in_flight",
        "origin",
        "rate_limit",
        "reason",
        "retry",
        "route",
        "secrets",
        "signatures",
        "status",
        "target",
        "tenant",
        "thin",
        "timeout",
        "usage",
    )

    route: object
    """Whoever delivers to it keeps here how it gets there. Nothing else looks at it."""
    health: object
    """Likewise, how that has gone (`core/endpoint/health.py`), once anything was delivered."""

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the field's name
        tenant: str | None,
        origin: Origin,
        target: str,
        event_types: tuple[str, ...],
        secrets: tuple[str, ...],
        signatures: tuple[str, ...],
        headers: tuple[tuple[str, str], ...],
        thin: bool,
        timeout: float,
        max_in_flight: int,
        retry: RetryPolicy,
        status: Status,
        follow_redirects: bool = False,
        certificate: ClientCertificate | None = None,
        reason: str | None = None,
        rate_limit: float | None = None,
    ) -> None:
        """`target` is the URL's path and query as sent, `timeout` in seconds, `reason` why it is disabled.

        `rate_limit` is in deliveries a second.
        """
        # What every delivery looks at comes first: compiled, it is side by side in memory.
        self.route = None
        self._request: Template | None = None
        self.usage: TenantUsage | None = None  # what its tenant uses, likewise
        self.health = None
        self.id = id
        self.status = status
        self.max_in_flight = max_in_flight
        self.rate_limit = rate_limit
        self.timeout = timeout
        self.certificate = certificate
        self.tenant = tenant
        self.origin = origin
        self.target = target
        self.event_types = event_types
        self.secrets = secrets
        self.signatures = signatures
        self.headers = headers
        self.thin = thin
        self.retry = retry
        self.follow_redirects = follow_redirects
        self.reason = reason

    @property
    def request(self) -> Template:
        """The constant parts of every request to it, made at first use."""
        made = self._request
        if made is None:
            signers = make_signers(self.secrets, self.signatures)
            target = Target(self.origin, self.target, self.origin.host_header)
            made = self._request = template(target, self.headers, signers, thin=self.thin)
        return made

    def __repr__(self) -> str:
        return f"<Subscription {self.id} {self.status} tenant={self.tenant!r} {self.origin}>"

    @property
    def url(self) -> str:
        """In its canonical spelling."""
        return f"{self.origin}{self.target}"

    def with_status(self, status: Status, reason: str | None = None) -> Subscription:
        """The same, but for its status."""
        return Subscription(
            id=self.id,
            tenant=self.tenant,
            origin=self.origin,
            target=self.target,
            event_types=self.event_types,
            secrets=self.secrets,
            signatures=self.signatures,
            headers=self.headers,
            thin=self.thin,
            timeout=self.timeout,
            max_in_flight=self.max_in_flight,
            retry=self.retry,
            status=status,
            follow_redirects=self.follow_redirects,
            certificate=self.certificate,
            reason=reason,
            rate_limit=self.rate_limit,
        )
