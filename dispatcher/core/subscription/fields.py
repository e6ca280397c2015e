"""The fields of a subscription as people write them, each with its rule.

One model for all who write subscriptions (the file, the API, the topic), so that nobody's rules drift.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from dispatcher.core.event.decode import valid_tenant
from dispatcher.core.subscription.model import EVERY_TENANT
from dispatcher.core.subscription.patterns import check_pattern
from dispatcher.core.text.units import MAX_RATE, WRITTEN, Duration, Rate, duration_between

MAX_PATTERNS: Final = 256
MIN_RATE: Final = 1 / 3600  # deliveries a second
MAX_HEADER_BYTES: Final = 8192  # with what the dispatcher and the event add, what servers commonly take
MAX_IN_FLIGHT: Final = 16
"""How many deliveries of one subscription are in flight at a time, unless it says otherwise."""


def checked_tenant(value: str) -> str:
    if value != EVERY_TENANT and not valid_tenant(value):
        raise ValueError('must be 1 to 256 printable characters, or "*" for every tenant')
    return value


def _pattern(value: str) -> str:
    check_pattern(value)
    return value


def checked_patterns(value: tuple[str, ...]) -> tuple[str, ...]:
    if not 0 < len(value) <= MAX_PATTERNS:
        raise ValueError(f"must have 1 to {MAX_PATTERNS} entries")
    return value


def _rate(value: float) -> float:
    if not MIN_RATE <= value <= MAX_RATE:
        raise ValueError("must be between 1/h and 100000/s")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # noqa: TRY004 - pydantic reports ValueError
    return value


def _waits(value: tuple[float, ...]) -> tuple[float, ...]:
    if len(value) > 100:
        raise ValueError("must have at most 100 waits")
    return value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


class RetrySpec(_Model):
    """The waits between attempts, and the share of each by which it may vary."""

    schedule: (
        Annotated[tuple[Annotated[Duration, duration_between("10ms", "30d")], ...], AfterValidator(_waits)]
        | None
    ) = None
    jitter: Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)] | None = None


class ClientCertificateSpec(_Model):
    """PEM files on the dispatcher's own disk; without `key_file` the certificate's file holds the key too."""

    cert_file: Annotated[str, Field(min_length=1)]
    key_file: Annotated[str, Field(min_length=1)] | None = None


ID: Final = r"[A-Za-z0-9_-]{1,64}"
_Timeout = Annotated[Duration, duration_between("10ms", "10m")]
_RateLimit = Annotated[Rate, AfterValidator(_rate)]
MOST_IN_FLIGHT: Final = 10_000


class SubscriptionSpec(_Model):
    """One subscription as it is written. What is None comes from the settings."""

    id: Annotated[str, Field(pattern=f"^{ID}$")]
    tenant: Annotated[str, AfterValidator(checked_tenant)] | None = None
    url: str
    event_types: Annotated[
        tuple[Annotated[str, AfterValidator(_pattern)], ...], AfterValidator(checked_patterns)
    ]
    secrets: tuple[str, ...]
    signatures: tuple[Literal["v1", "v1a", "github"], ...] = ("v1",)
    headers: dict[str, str] = {}
    payload: Literal["full", "thin"] = "full"
    status: Literal["active", "paused", "pending", "disabled"] = "active"
    validated: bool = Field(default=False, alias="validate")
    redirects: Literal["never", "same-origin"] = "never"
    client_certificate: ClientCertificateSpec | None = None
    timeout: _Timeout | None = None
    max_in_flight: Annotated[int, BeforeValidator(_number), Field(ge=1, le=MOST_IN_FLIGHT)] = MAX_IN_FLIGHT
    rate_limit: _RateLimit | None = None
    retry: RetrySpec | None = None


# Fields as they are written, for suggestions: pydantic knows `validate` by another name.
FIELDS: Final = tuple(info.alias or name for name, info in SubscriptionSpec.model_fields.items())
FIELDS_BELOW: Final = {
    "retry": tuple(RetrySpec.model_fields),
    "client_certificate": tuple(ClientCertificateSpec.model_fields),
}

_remembered: Final = lru_cache(maxsize=4096)
_timeout_type: Final[TypeAdapter[float]] = TypeAdapter(_Timeout)
_rate_type: Final[TypeAdapter[float]] = TypeAdapter(_RateLimit)


@_remembered
def timeout_of(text: str) -> float:
    return _timeout_type.validate_python(text, context=WRITTEN)


@_remembered
def rate_of(text: str) -> float:
    return _rate_type.validate_python(text, context=WRITTEN)


@_remembered
def retry_of(schedule: tuple[str, ...] | None, jitter: float | None) -> RetrySpec:
    return RetrySpec.model_validate({"schedule": schedule, "jitter": jitter}, context=WRITTEN)
