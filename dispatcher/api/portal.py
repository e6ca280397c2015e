"""Portal sessions: links that let a tenant's own people into the portal, and the images that it shows."""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field

from dispatcher.api.models import (
    Duration,
    Pattern,
    QueryModel,
    ReplyModel,
    RequestModel,
    Tenant,
    TenantFilter,
    Time,
)
from dispatcher.api.problems import Kind, Problem, invalid
from dispatcher.api.route import Audience, Body, Call, Reply, Route, RouteAnswer
from dispatcher.control.portal import MAX_LIFETIME, PortalAccess
from dispatcher.core.control.keys import CAPABILITIES, OF_NEW_TENANT_KEYS, Capability
from dispatcher.core.control.portal import MAX_IMAGE, PortalImage, PortalSession
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.times import rfc3339
from dispatcher.core.text.units import parse_duration

_LIFETIME: Final = 3600.0
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def _host_url(value: str) -> str:
    """An address of the host's application: https, or this machine's."""
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    local = parts.scheme == "http" and parts.hostname in _LOCAL
    plain = re.fullmatch(r"[\x21-\x7e]+", value) and not set(value) & set("\\<>\"'`")
    if (
        not plain
        or not parts.hostname
        or parts.username
        or port == 0
        or not (parts.scheme == "https" or local)
    ):
        raise ValueError("must be an https address")
    return value


def _inner_path(value: str) -> str:
    if not re.fullmatch(r"/(?!/)[A-Za-z0-9/_.~%?=&,:@+-]*", value):
        raise ValueError("must be a path in the portal, such as /deliveries")
    return value


Color = Annotated[str, Field(pattern=r"^#[0-9A-Fa-f]{6}$", examples=["#1a56db"])]
HostUrl = Annotated[
    str,
    Field(min_length=9, max_length=2048),
    AfterValidator(_host_url),
    Field(examples=["https://app.example.com/hooks"]),
]
ImageId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="Of `POST /v1/portal-images`.")]
Font = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9 -]{0,63}$",
        description="A font that the reader's machine has; the page loads none.",
        examples=["Georgia"],
    ),
]


class PortalColors(RequestModel):
    """Colours of one mode; those left out are the page's own."""

    accent: Color | None = None
    background: Color | None = None
    surface: Color | None = None
    text: Color | None = None


class PortalColorModes(RequestModel):
    """Colours by mode."""

    light: PortalColors = PortalColors()
    dark: PortalColors = PortalColors()


class PortalBrandingSpec(RequestModel):
    """Whose portal it is."""

    name: (
        Annotated[str, Field(min_length=1, max_length=80, description="In the head of the page.")] | None
    ) = None
    colors: PortalColorModes = PortalColorModes()
    font: Font | None = None
    logo: ImageId | None = None
    favicon: ImageId | None = None


class PortalSessionCreate(RequestModel):
    """A new portal session."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "tenant": "acme",
                "lifetime": "1h",
                "capabilities": ["read", "resend"],
                "branding": {"name": "Example Inc.", "colors": {"light": {"accent": "#1a56db"}}},
                "back_url": "https://app.example.com/settings",
            }
        }
    )

    tenant: Annotated[Tenant, Field(description="Whose subscriptions and deliveries it shows.")]
    lifetime: Annotated[Duration, Field(description="24h at the most; 1h if left out.")] | None = None
    capabilities: (
        Annotated[
            list[Capability],
            Field(
                min_length=1,
                max_length=len(CAPABILITIES),
                description="As those of a tenant's key; all but `publish` if left out.",
            ),
        ]
        | None
    ) = None
    user: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=128,
                description="Who it is for, as the audit shows it.",
                examples=["ada@acme.example"],
            ),
        ]
        | None
    ) = None
    next: Annotated[
        str,
        Field(max_length=1024, description="Where in the portal it begins.", examples=["/deliveries"]),
        AfterValidator(_inner_path),
    ] = "/"
    navigation: Annotated[
        bool, Field(description="false: only the page that `next` names, without the menu.")
    ] = True
    gutters: Annotated[bool, Field(description="false: no room around the content, for embedding.")] = True
    branding: PortalBrandingSpec = PortalBrandingSpec()
    hidden_event_types: Annotated[
        list[Pattern],
        Field(
            default_factory=list,
            max_length=100,
            description="Not shown in the portal's catalogue and pickers. No secret: the catalogue is public.",
        ),
    ]
    back_url: Annotated[HostUrl, Field(description="The way back to your application.")] | None = None
    refresh_url: (
        Annotated[HostUrl, Field(description="Where a reader gets a new link, once the session has ended.")]
        | None
    ) = None


class PortalBranding(ReplyModel):
    """Whose portal it is."""

    name: str | None
    colors: dict[str, dict[str, str]]
    font: str | None
    logo: Annotated[str | None, Field(description="Its address, from the server's root.")]
    favicon: str | None


class PortalSessionReply(ReplyModel):
    """A portal session, without a token."""

    model_config = ConfigDict(title="PortalSession")

    id: str
    tenant: str
    user: str | None
    capabilities: list[Capability]
    created_at: Time | None
    created_by: str
    expires_at: Time | None
    next: str
    navigation: bool
    gutters: bool
    branding: PortalBranding
    hidden_event_types: list[str]
    back_url: str | None
    refresh_url: str | None


class PortalSessionCreated(ReplyModel):
    """A new session, and how to open it."""

    session: PortalSessionReply
    url: Annotated[
        str,
        Field(
            description="Open it in a browser or an iframe. The token is in the fragment, which browsers send to no server."
        ),
    ]
    token: Annotated[str, Field(description="What the link has; sent as `Authorization: Bearer ...`.")]
    token_expires_at: Annotated[
        Time | None, Field(description="Before it the token is renewed, or another one made.")
    ]


class PortalTokenReply(ReplyModel):
    """Another token of a session."""

    model_config = ConfigDict(title="PortalToken")

    token: str
    token_expires_at: Time | None
    expires_at: Annotated[Time | None, Field(description="When the session ends.")]


class PortalSessionList(ReplyModel):
    """Sessions that have not ended, oldest first."""

    sessions: list[PortalSessionReply]


class PortalSessionsRevoked(ReplyModel):
    """How many sessions were ended."""

    revoked: int


class PortalFilters(QueryModel):
    """Which sessions."""

    tenant: TenantFilter | None = None


class OfTenant(QueryModel):
    """Whose sessions."""

    tenant: TenantFilter


class PortalImageCreate(RequestModel):
    """An image to be shown in portals."""

    data: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_IMAGE * 4 // 3 + 8,
            description="Base64 of a PNG, JPEG, GIF, WebP, ICO or SVG image of at most 64 KiB.",
        ),
    ]


class PortalImageReply(ReplyModel):
    """An image of the portal."""

    model_config = ConfigDict(title="PortalImage")

    id: str
    media_type: str
    size: int
    url: Annotated[str, Field(description="From the server's root. Public: whoever knows it sees the image.")]
    created_at: Time | None


class PortalImageList(ReplyModel):
    """All images, oldest first."""

    images: list[PortalImageReply]


def portal_page(session: PortalSession) -> dict[str, Any]:
    """How the portal looks in a session, as both answers say it."""
    page = session.page
    branding = page.get("branding", {})
    modes = branding.get("colors", {})
    return {
        "next": page.get("next", "/"),
        "navigation": page.get("navigation", True),
        "gutters": page.get("gutters", True),
        "branding": PortalBranding(
            name=branding.get("name"),
            colors={mode: dict(modes.get(mode, {})) for mode in ("light", "dark")},
            font=branding.get("font"),
            logo=_image_url(branding.get("logo")),
            favicon=_image_url(branding.get("favicon")),
        ),
        "hidden_event_types": list(page.get("hidden_event_types", [])),
        "back_url": page.get("back_url"),
        "refresh_url": page.get("refresh_url"),
    }


def _image_url(id_: str | None) -> str | None:
    return None if id_ is None else f"portal/images/{id_}"


def _reply(session: PortalSession) -> PortalSessionReply:
    return PortalSessionReply(
        id=session.id,
        tenant=session.tenant,
        user=session.user,
        capabilities=[name for name in CAPABILITIES if name in session.capabilities],
        created_at=rfc3339(session.created_ms),
        created_by=session.created_by,
        expires_at=rfc3339(session.expires_ms),
        **portal_page(session),
    )


def _created(call: Call, made: PortalAccess) -> PortalSessionCreated:
    base = call.services.pages.url or f"{call.site_of().base}/portal"
    return PortalSessionCreated(
        session=_reply(made.session),
        url=f"{base}#token={made.token}",
        token=made.token,
        token_expires_at=rfc3339(made.token_expires_ms),
    )


async def create_session(call: Call) -> Reply:
    request: PortalSessionCreate = call.model
    lifetime = _LIFETIME if request.lifetime is None else parse_duration(request.lifetime)
    flaws = []
    if not 60 <= lifetime <= MAX_LIFETIME:
        flaws.append(Flaw(("lifetime",), "must be between 1m and 24h"))
    if request.user is not None and not request.user.isprintable():
        flaws.append(Flaw(("user",), "must be printable"))
    if request.branding.name is not None and not request.branding.name.isprintable():
        flaws.append(Flaw(("branding", "name"), "must be printable"))
    if flaws:
        raise invalid(flaws)
    page = request.model_dump(
        include={
            "next",
            "navigation",
            "gutters",
            "branding",
            "hidden_event_types",
            "back_url",
            "refresh_url",
        },
        exclude_none=True,
    )
    made = await call.services.portal.create(
        request.tenant,
        lifetime,
        request.capabilities or OF_NEW_TENANT_KEYS,
        page,
        user=request.user,
        by=call.caller,
    )
    session = made.session
    call.audit(
        "portal-session.create",
        session.id,
        of_tenant=session.tenant,
        capabilities=sorted(session.capabilities),
    )
    headers = {"Location": f"/v1/portal-sessions/{session.id}"}
    return Reply(_created(call, made), 201, headers)


async def list_sessions(call: Call) -> Reply:
    query: PortalFilters = call.query
    found = call.services.portal.list(query.tenant)
    return Reply(PortalSessionList(sessions=[_reply(session) for session in found]))


async def revoke_session(call: Call) -> Reply:
    session = await call.services.portal.revoke(call.path["id"])
    call.audit("portal-session.revoke", session.id, of_tenant=session.tenant)
    return Reply(status=204)


async def revoke_sessions(call: Call) -> Reply:
    query: OfTenant = call.query
    count = await call.services.portal.revoke_all(query.tenant)
    call.audit("portal-session.revoke-all", query.tenant, revoked=count)
    return Reply(PortalSessionsRevoked(revoked=count))


async def renew_session(call: Call) -> Reply:
    kind, _, id_ = call.caller.id.partition(":")
    if kind != "portal":
        raise Problem(Kind.FORBIDDEN, "this takes a token of a portal session; a key needs no renewal")
    made = call.services.portal.renew(id_)
    return Reply(
        PortalTokenReply(
            token=made.token,
            token_expires_at=rfc3339(made.token_expires_ms),
            expires_at=rfc3339(made.session.expires_ms),
        )
    )


def _image(image: PortalImage) -> PortalImageReply:
    return PortalImageReply(
        id=image.id,
        media_type=image.media_type,
        size=len(image.data),
        url=f"portal/images/{image.id}",
        created_at=rfc3339(image.created_ms),
    )


async def create_image(call: Call) -> Reply:
    request: PortalImageCreate = call.model
    try:
        data = b64decode("".join(request.data.split()), validate=True)
    except (NotBase64, ValueError):
        raise invalid([Flaw(("data",), "must be base64: `base64 -w0 logo.png`")]) from None
    image = await call.services.portal.add_image(data)
    call.audit("portal-image.create", image.id, media_type=image.media_type, size=len(image.data))
    return Reply(_image(image), 201, {"Location": f"/v1/portal-images/{image.id}"})


async def list_images(call: Call) -> Reply:
    return Reply(PortalImageList(images=[_image(image) for image in call.services.portal.images()]))


async def delete_image(call: Call) -> Reply:
    await call.services.portal.remove_image(call.path["id"])
    call.audit("portal-image.delete", call.path["id"])
    return Reply(status=204)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "POST",
        "/v1/portal-sessions",
        "createPortalSession",
        "portal",
        "Make a link into the portal",
        Audience.OPERATOR,
        None,
        {201: RouteAnswer("The session, its link and its first token.", PortalSessionCreated, ("Location",))},
        create_session,
        description="Call it from your own back end, for a reader whom your application knows. docs/portal.md shows how.",
        body=Body(PortalSessionCreate),
        problems=(Kind.OVERLOADED,),
    ),
    Route(
        "GET",
        "/v1/portal-sessions",
        "listPortalSessions",
        "portal",
        "List portal sessions",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("Those that have not ended.", PortalSessionList)},
        list_sessions,
        query=PortalFilters,
    ),
    Route(
        "DELETE",
        "/v1/portal-sessions",
        "revokePortalSessions",
        "portal",
        "Revoke the portal sessions of a tenant",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("They are revoked, on all replicas within a second.", PortalSessionsRevoked)},
        revoke_sessions,
        query=OfTenant,
    ),
    Route(
        "POST",
        "/v1/portal-sessions/renew",
        "renewPortalSession",
        "portal",
        "Renew the token of a portal session",
        Audience.TENANT,
        None,
        {200: RouteAnswer("Another token of the same session.", PortalTokenReply)},
        renew_session,
        description="By a token of the session that has not ended.",
        problems=(Kind.FORBIDDEN,),
    ),
    Route(
        "DELETE",
        "/v1/portal-sessions/{id}",
        "revokePortalSession",
        "portal",
        "Revoke a portal session",
        Audience.OPERATOR,
        None,
        {204: RouteAnswer("It is revoked, on all replicas within a second.")},
        revoke_session,
        problems=(Kind.NOT_FOUND,),
    ),
    Route(
        "POST",
        "/v1/portal-images",
        "createPortalImage",
        "portal",
        "Upload a logo or a favicon",
        Audience.OPERATOR,
        None,
        {
            201: RouteAnswer(
                "The image; the same bytes again are the same image.", PortalImageReply, ("Location",)
            )
        },
        create_image,
        body=Body(PortalImageCreate),
        problems=(Kind.OVERLOADED,),
    ),
    Route(
        "GET",
        "/v1/portal-images",
        "listPortalImages",
        "portal",
        "List the portal's images",
        Audience.OPERATOR,
        None,
        {200: RouteAnswer("All images.", PortalImageList)},
        list_images,
    ),
    Route(
        "DELETE",
        "/v1/portal-images/{id}",
        "deletePortalImage",
        "portal",
        "Delete an image",
        Audience.OPERATOR,
        None,
        {204: RouteAnswer("It is gone; portals that show it go without.")},
        delete_image,
        problems=(Kind.NOT_FOUND, Kind.VERSION_MISMATCH),
    ),
)
