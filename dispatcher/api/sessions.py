"""The session of whoever looks at the console or the portal: logging in and out, and what the pages need to know first."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from dispatcher.__about__ import __version__
from dispatcher.api.models import ReplyModel, RequestModel, Time
from dispatcher.api.portal import PortalBranding, portal_page
from dispatcher.api.problems import Kind, Problem
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.api.site import set_cookie
from dispatcher.control.sessions import LIFETIME, Admitted
from dispatcher.core.control.keys import CAPABILITIES, Capability
from dispatcher.core.text.times import rfc3339
from dispatcher.runtime.replica import replica_name


class Login(RequestModel):
    """A key, for a session in its place."""

    model_config = ConfigDict(json_schema_extra={"example": {"key": "dk_0123456789abcdef_..."}})

    key: Annotated[str, Field(min_length=1, max_length=512, description="An operator's key, or a tenant's.")]


class EnvironmentReply(ReplyModel):
    """What tells this installation from others (`console.name`, `console.color`)."""

    model_config = ConfigDict(title="Environment")

    name: str
    color: str | None


class PrincipalReply(ReplyModel):
    """Who asks."""

    model_config = ConfigDict(title="Principal")

    id: str
    name: str
    scope: Literal["operator", "tenant"]
    tenant: str | None
    capabilities: list[Capability]
    read_only: Annotated[bool, Field(description="It may see, and change nothing.")]
    by: Annotated[
        Literal["open", "key", "cookie", "proxy", "portal"],
        Field(description="How it came in; `open`: the API has no keys."),
    ]


class PortalPage(ReplyModel):
    """How the portal looks in this session."""

    session: str
    expires_at: Annotated[Time | None, Field(description="When the session ends; no token lasts longer.")]
    next: str
    navigation: bool
    gutters: bool
    branding: PortalBranding
    hidden_event_types: list[str]
    back_url: str | None
    refresh_url: str | None
    parents: Annotated[
        list[str],
        Field(
            description="The origins that may embed the portal (`portal.frame_ancestors`), and send it a token."
        ),
    ]


class SessionReply(ReplyModel):
    """What a page has to know before anything else."""

    model_config = ConfigDict(title="Session")

    version: str
    replica: str
    environment: EnvironmentReply | None
    history: Annotated[bool, Field(description="Whether the routes of the history answer (`history.store`).")]
    principal: Annotated[PrincipalReply | None, Field(description="null: nobody; log in.")]
    expires_at: Annotated[Time | None, Field(description="When what was shown ends; null for a key.")]
    csrf: Annotated[
        str | None,
        Field(description="Of a session: what every change has to carry as `X-Dispatcher-Csrf`."),
    ]
    portal: PortalPage | None


def _session(call: Call, admitted: Admitted | None) -> SessionReply:
    console = call.services.console
    principal = None if admitted is None else admitted.principal
    portal, expires_ms = None, None if admitted is None else admitted.expires_ms
    if admitted is not None and admitted.by == "portal":
        session = call.services.portal.get(admitted.principal.id.partition(":")[2])
        expires_ms = expires_ms or session.expires_ms
        portal = PortalPage(
            session=session.id,
            expires_at=rfc3339(session.expires_ms),
            parents=list(call.services.pages.frame_ancestors),
            **portal_page(session),
        )
    return SessionReply(
        version=__version__,
        replica=replica_name(),
        environment=None
        if console.name is None or (principal is not None and principal.scope == "tenant")
        else EnvironmentReply(name=console.name, color=console.color),
        history=call.services.history.kept,
        principal=None
        if principal is None or admitted is None
        else PrincipalReply(
            id=principal.id,
            name=principal.name,
            scope=principal.scope,
            tenant=principal.tenant,
            capabilities=[name for name in CAPABILITIES if name in principal.capabilities],
            read_only=principal.capabilities <= {"read"},
            by=admitted.by,
        ),
        expires_at=None if expires_ms is None else rfc3339(expires_ms),
        csrf=None if admitted is None else admitted.csrf,
        portal=portal,
    )


async def get_session(call: Call) -> Reply:
    return Reply(_session(call, call.admitted))


async def log_in(call: Call) -> Reply:
    sessions = call.services.sessions
    if not sessions.enabled:
        raise Problem(Kind.NOT_FOUND, "this installation has no console (console.enabled)")
    request: Login = call.model
    opened = sessions.open(request.key, call.source)
    principal = opened.admitted.principal
    call.audit("session.open", principal.id, by=principal)
    cookie = set_cookie(sessions.name, opened.cookie, LIFETIME, call.site_of())
    return Reply(_session(call, opened.admitted), 201, {"Set-Cookie": cookie})


async def log_out(call: Call) -> Reply:
    cookie = set_cookie(call.services.sessions.name, "", 0, call.site_of())
    return Reply(status=204, headers={"Set-Cookie": cookie})


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/session",
        "getSession",
        "sessions",
        "Who am I",
        Audience.ANYBODY,
        None,
        {200: RouteAnswer("Who asks, what they may, and how the pages look.", SessionReply)},
        get_session,
    ),
    Route(
        "POST",
        "/v1/session",
        "logIn",
        "sessions",
        "Log in to the console",
        Audience.PUBLIC,
        None,
        {201: RouteAnswer("A session, in a cookie that scripts can't read.", SessionReply, ("Set-Cookie",))},
        log_in,
        description="For pages of this server: a script sends its key with each request instead. The session ends after 12 hours, and with its"
        " key. Every change by it has to carry `X-Dispatcher-Csrf`.",
        body=Body(Login),
        problems=(Kind.UNAUTHENTICATED, Kind.TOO_MANY_WRONG_KEYS, Kind.NOT_FOUND),
        from_page=True,
    ),
    Route(
        "DELETE",
        "/v1/session",
        "logOut",
        "sessions",
        "Log out",
        Audience.PUBLIC,
        None,
        {204: RouteAnswer("The browser has no session any more.", None, ("Set-Cookie",))},
        log_out,
        from_page=True,
    ),
)
