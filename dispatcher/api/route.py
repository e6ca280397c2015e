"""What a route is: everything that serving it, documenting it and testing it have to know, in one place.

`table.py` is the only list of routes. The server registers it, the OpenAPI document is generated from it, and the tests
of authorization and of bad input go through it. So no route can be served and undocumented, or documented with
another model than the one that checks it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from pydantic import BaseModel

from dispatcher.api.models import QueryModel
from dispatcher.api.problems import Kind, Problem
from dispatcher.api.site import Site
from dispatcher.control.access import Access, Principal
from dispatcher.control.audit import AuditTrail
from dispatcher.control.catalogue import Catalogue
from dispatcher.control.cluster import ClusterView
from dispatcher.control.creation import Creation
from dispatcher.control.dead_letters import DeadLetters
from dispatcher.control.endpoint_checks import EndpointChecks
from dispatcher.control.explaining import Explanations
from dispatcher.control.history import HistoryReader
from dispatcher.control.interventions import Interventions
from dispatcher.control.issues import Issues
from dispatcher.control.listing import Listing
from dispatcher.control.live import Live
from dispatcher.control.payloads import Payloads
from dispatcher.control.portal import PortalSessions
from dispatcher.control.publishing import Publisher
from dispatcher.control.quotas import Gate, Quotas
from dispatcher.control.sessions import Admitted, Sessions
from dispatcher.control.statistics import StatisticsReader
from dispatcher.control.subscriptions import Subscriptions
from dispatcher.control.views import Views
from dispatcher.core.control.keys import Capability
from dispatcher.core.flaws import Flaw
from dispatcher.replays.service import Replays
from dispatcher.settings.groups import ConsoleSettings, PortalSettings

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
BODY_LIMIT: Final = 256 << 10
"""Bytes of a request's body, where a route doesn't say otherwise."""


_VERSION: Final = re.compile(r"[0-9]{1,18}")
_TAG: Final = re.compile(r'"([0-9]{1,18})"')
_TAGS: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e]*"(?:[ \t]*,[ \t]*(?:W/)?"[\x21\x23-\x7e]*")*')


class Audience(Enum):
    """The callers that a route takes."""

    PUBLIC = "public"  # without a key
    ANYBODY = "anybody"  # with or without one; one that is shown has to be right
    TENANT = "tenant"  # with any key; a tenant's reaches what is its own
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the control plane that handlers call."""

    views: Views
    listing: Listing
    creation: Creation
    subscriptions: Subscriptions
    checks: EndpointChecks
    catalogue: Catalogue
    publisher: Publisher
    access: Access
    audit: AuditTrail
    history: HistoryReader
    sessions: Sessions
    portal: PortalSessions
    live: Live
    console: ConsoleSettings
    pages: PortalSettings
    quotas: Quotas
    payloads: Payloads
    explanations: Explanations
    cluster: ClusterView
    statistics: StatisticsReader
    issues: Issues
    replays: Replays
    interventions: Interventions
    dead_letters: DeadLetters
    egress: tuple[str, ...]


@dataclass(slots=True)
class Call:
    """One request, read and checked."""

    services: Services
    admitted: Admitted | None  # the caller, and how it came in; None where nothing had to be shown
    path: Mapping[str, str]
    query: Any  # an instance of the route's query model
    body: Any  # the parsed JSON, of which the route's model found nothing wrong; None without a body
    model: Any  # the same as an instance of the route's model
    if_match: str | None
    only_new: bool
    idempotency_key: str | None
    trace: Sequence[tuple[str, bytes]]  # the request's trace context, as headers of a record
    audit: Callable[..., None]
    site_of: Callable[[], Site]  # as the browser knows it
    source: str  # the caller's address
    still_admitted: Callable[[], bool]  # whether the caller would be let in now

    @property
    def caller(self) -> Principal:
        """The caller."""
        assert self.admitted is not None  # noqa: S101 - only public routes have none
        return self.admitted.principal

    @property
    def tenant(self) -> str | None:
        """Whose subscriptions the caller is confined to; None for an operator."""
        return self.caller.tenant

    def if_match_version(self, current: int | None) -> int | None:
        """The version that the caller wants to change; `current` is the one in force."""
        given = "*" if self.if_match is None else self.if_match.strip()
        if given == "*":
            return None
        if _VERSION.fullmatch(given):
            given = f'"{given}"'  # the version as documents show it: what else could be meant?
        if not _TAGS.fullmatch(given):
            flaw = Flaw(("If-Match",), 'must be an ETag as it was sent: "3"')
            raise Problem(Kind.MALFORMED, str(flaw), errors=[flaw])
        # A weak tag matches nothing here (RFC 9110, 13.1.1), nor does one that we never made.
        versions = [int(tag) for tag in _TAG.findall(re.sub(r'W/"[^"]*"', "", given))]
        if current in versions:
            return current
        raise Problem(
            Kind.VERSION_MISMATCH,
            f"If-Match is {given}, and the version in force is {current}: read it again and repeat the change",
        )


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of a handler."""

    body: BaseModel | bytes | None = None  # bytes are of `content_type`, written already
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = JSON
    stream: AsyncGenerator[bytes, None] | None = (
        None  # in the place of a body: sent as it comes, for as long as it goes on
    )


def etag(version: int) -> Mapping[str, str]:
    """The header that names a version."""
    return {"ETag": f'"{version}"'}


@dataclass(frozen=True, slots=True)
class Body:
    """The body that a request may carry. With `many` set, a list of the model, or NDJSON, is taken too."""

    model: type[BaseModel]
    types: tuple[str, ...] = (JSON,)
    required: bool = True
    many: int = 0


@dataclass(frozen=True, slots=True)
class RouteAnswer:
    """One way in which a route succeeds."""

    description: str
    model: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()
    media: str | None = None  # of a body that isn't JSON
    raw: bool = False  # bytes of any type, without a model


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one path."""

    method: str
    path: str
    operation: str
    tag: str
    summary: str
    allowed: Audience
    needs: Capability | None  # of a tenant's key; None where no tenant's key is taken, or none is needed
    answers: Mapping[int, RouteAnswer]
    handler: Callable[[Call], Awaitable[Reply]]
    description: str = ""
    query: type[QueryModel] | None = None
    body: Body | None = None
    problems: tuple[Kind, ...] = ()
    if_match: bool = False
    only_new: bool = False  # takes If-None-Match: *
    idempotent: bool = False  # takes an Idempotency-Key
    traced: bool = False  # takes a traceparent
    from_page: bool = False  # a browser's page has to ask, one of ours
    quota: Gate | None = None  # that a tenant's request is held against
    exports: str | None = None  # the list of its pages, which come as NDJSON and CSV too
