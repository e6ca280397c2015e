"""Types and base classes that several resources share: they check requests, write answers, and make the OpenAPI schemas.

Models check the shape of a request, strictly: no `"5"` for 5, no unknown fields. The control plane checks its meaning
(may this URL be contacted, is the id taken), and names the same fields in its flaws. Durations are written as in the
files: `15s`, `1h30m`. Times are RFC 3339 in UTC.

A model whose class has another name than its schema says that name as `title`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from dispatcher.core.event.decode import MAX_TYPE, valid_type
from dispatcher.core.subscription.patterns import check_pattern
from dispatcher.core.text.units import (
    duration_please,
    format_duration,
    parse_duration,
    parse_rate,
    parse_size,
    rate_please,
    size_please,
)

_ID: Final = r"^[A-Za-z0-9_-]{1,64}$"
_TYPE: Final = r"^[^\u0000-\u001f\u007f-\u009f]+$"
_PATTERN: Final = r"^(\*|[^\u0000-\u001f\u007f-\u009f*.]+)(\.(\*|[^\u0000-\u001f\u007f-\u009f*.]+))*$"
_DURATION: Final = (
    r"^([0-9]{1,12}(\.[0-9]{1,9})?d)?([0-9]{1,12}(\.[0-9]{1,9})?h)?([0-9]{1,12}(\.[0-9]{1,9})?m)?"
    r"([0-9]{1,12}(\.[0-9]{1,9})?s)?([0-9]{1,12}(\.[0-9]{1,9})?ms)?$"
)
_SIZE: Final = r"^[0-9]{1,15}(\.[0-9]{1,3})? ?(B|KiB|MiB|GiB|TiB)$"
_RATE: Final = r"^[0-9]{1,9}(\.[0-9]{1,3})?/[smh]$"


def _text(check: Callable[[str], object], pattern: str, shortest: int, longest: int) -> tuple[Any, Any]:
    """For a text whose form `check` tells people about in words: its validator, and its schema."""

    def checked(value: str) -> str:
        if len(value) > longest:
            raise ValueError(f"must have at most {longest} characters")
        check(value)
        return value

    return AfterValidator(checked), {"pattern": pattern, "minLength": shortest, "maxLength": longest}


def _a_text(please: Callable[[object], str]) -> BeforeValidator:
    """Refuses what is no text; `please` says what is wanted."""

    def checked(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(please(value))  # noqa: TRY004 - pydantic reports a ValueError
        return value

    return BeforeValidator(checked)


def _check_id(value: str) -> None:
    if not re.fullmatch(_ID[1:-1], value):
        raise ValueError("must be 1 to 64 of the characters A-Z a-z 0-9 _ -")


def _check_type(value: str) -> None:
    if not valid_type(value):
        raise ValueError(f"must be 1 to {MAX_TYPE} bytes in UTF-8, without control characters")


_valid_id, _id_schema = _text(_check_id, _ID, 1, 64)
_valid_type, _type_schema = _text(_check_type, _TYPE, 1, MAX_TYPE)
_valid_pattern, _pattern_schema = _text(check_pattern, _PATTERN, 1, MAX_TYPE)
_valid_duration, _duration_schema = _text(parse_duration, _DURATION, 2, 64)
_valid_size, _size_schema = _text(parse_size, _SIZE, 2, 32)
_valid_rate, _rate_schema = _text(parse_rate, _RATE, 3, 32)
SubscriptionId = Annotated[
    str,
    _valid_id,
    Field(
        json_schema_extra=_id_schema,
        examples=["sub_billing"],
        description="Made here if left out; a tenant's key can't choose it.",
    ),
]
TypeName = Annotated[
    str,
    _valid_type,
    Field(
        json_schema_extra=_type_schema,
        description="A name; dots separate the parts that patterns look at.",
        examples=["invoice.paid"],
    ),
]
Pattern = Annotated[
    str,
    _valid_pattern,
    Field(
        json_schema_extra=_pattern_schema,
        description="An event type in which whole segments may be `*`: as the last one it stands for one or more, "
        "elsewhere for exactly one, alone for all types but the dispatcher's own (`dispatcher.*`).",
        examples=["billing.*"],
    ),
]
Tenant = Annotated[str, Field(min_length=1, max_length=256, examples=["acme"])]
Duration = Annotated[
    str,
    _a_text(duration_please),
    _valid_duration,
    Field(json_schema_extra=_duration_schema, description="With its unit.", examples=["15s", "1h30m"]),
]
Size = Annotated[
    str,
    _a_text(size_please),
    _valid_size,
    Field(json_schema_extra=_size_schema, description="With its unit.", examples=["16MiB"]),
]
RateLimit = Annotated[
    str,
    _a_text(rate_please),
    _valid_rate,
    Field(json_schema_extra=_rate_schema, description="At most so many attempts.", examples=["100/s"]),
]
Time = Annotated[
    str,
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00.000Z"]}),
]


def _host(value: str) -> str:
    """As the hosts of URLs are kept."""
    return value.lower().rstrip(".")


# Of lists and figures: what they are narrowed to.
TenantFilter = Annotated[str, Field(min_length=1, max_length=256, description="Of this tenant.")]
SubscriptionFilter = Annotated[str, Field(min_length=1, max_length=64, description="To this subscription.")]
TypeFilter = Annotated[
    str, Field(min_length=1, max_length=1024, description="A type, or the beginning of one before `*`.")
]
HostFilter = Annotated[
    str,
    Field(min_length=1, max_length=253, description="With this host in the URL."),
    AfterValidator(_host),
]


def whole_number(value: Any) -> Any:
    """The number of a query parameter, in digits. Pydantic would take ` 5 `, `+5` and `5_0` too."""
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) < 10):
        raise ValueError("must be a number")
    return value


def duration_of(seconds: Any) -> Any:
    """Seconds as they are written in a document."""
    return (
        format_duration(seconds)
        if isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
        else seconds
    )


class RequestModel(BaseModel):
    """A body that is sent to us."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class ReplyModel(BaseModel):
    """A body that we send."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True, validate_by_name=True)


class QueryModel(BaseModel):
    """Parameters of a query; every one comes as text."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


# --- errors ---------------------------------------------------------------------------------------------------------
class FieldError(ReplyModel):
    """One thing that is wrong."""

    field: Annotated[
        str,
        Field(description="Where: `event_types[0]`, `retry.jitter`; empty for the whole.", examples=["url"]),
    ]
    message: Annotated[str, Field(description="What is wrong, as the end of a sentence about the field.")]


class ProblemDocument(ReplyModel):
    """An error (RFC 9457)."""

    type: Annotated[str, Field(description="A stable URN that programs may compare.")]
    title: str
    status: int
    detail: Annotated[str, Field(description="What is wrong with this request, and what to do.")]
    request_id: Annotated[str, Field(description="Also in the header X-Request-Id, and in the log.")]
    errors: Annotated[list[FieldError], Field(description="Every field that is wrong.")] = []
    quota: Annotated[
        str,
        Field(
            description="Of `quota-exceeded`: which quota.",
            examples=["events_per_second"],
        ),
    ] = ""


# --- subscriptions --------------------------------------------------------------------------------------------------
Url = Annotated[
    str,
    Field(
        min_length=1,
        max_length=8192,
        description="https to a public address, unless the deployment allows more. No credentials in it.",
        examples=["https://hooks.acme.example/webhooks"],
    ),
]
EventTypes = Annotated[
    list[Pattern], Field(min_length=1, max_length=256, description="Which events it wants.")
]
Secrets = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024)]],
    Field(
        min_length=1,
        max_length=16,
        description="What its requests are signed with, newest first: `whsec_` and base64 of 24 to 64 bytes "
        "(`whsk_` for ed25519). Left out, one is made here and shown once, in this answer.",
    ),
]
Signatures = Annotated[list[Literal["v1", "v1a", "github"]], Field(min_length=1, max_length=3)]
Headers = Annotated[
    dict[str, Annotated[str, Field(max_length=8192)]],
    Field(description="Sent with every request. Credentials among them are shown masked."),
]
Jitter = Annotated[float, Field(ge=0, le=1)]
Schedule = Annotated[
    list[Duration],
    Field(max_length=100, description="The waits between attempts: N waits are N + 1 attempts."),
]
MaxInFlight = Annotated[int, Field(ge=1, le=10_000, description="Deliveries to it at a time.")]
