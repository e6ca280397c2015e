"""Subscriptions as people write them: every field checked, every mistake named, and read into `Subscription`.

One model for all who write them (the file now, the API and the topic later), so that nobody's
rules drift. What can't be kept is refused, not ignored: somebody who writes `rate_limit: 5` without saying of
what, and gets a flood, has been lied to.

Values of `secrets` and `headers` are secrets: no message quotes them.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from dispatcher.core.document import did_you_mean, explain
from dispatcher.core.events import valid_tenant
from dispatcher.core.netguard import Blocked, Guard
from dispatcher.core.policy import RetryPolicy
from dispatcher.core.request import MAX_OWN_HEADERS, check_header
from dispatcher.core.signing import make_signers
from dispatcher.core.subscriptions import (
    EVERY_TENANT,
    ClientCertificate,
    Status,
    Subscription,
    check_pattern,
)
from dispatcher.core.units import WRITTEN, Duration, Rate, duration_between

MAX_PATTERNS: Final = 256
MIN_RATE: Final = 1 / 3600  # deliveries a second
MAX_RATE: Final = 100_000.0
MAX_HEADER_BYTES: Final = 8192  # with what the dispatcher and the event add, what servers commonly take
MAX_IN_FLIGHT: Final = 16
"""How many deliveries of one subscription are in flight at a time, unless it says otherwise."""

_SECRET_FIELDS: Final = ("secrets", "headers")

T = TypeVar("T", bound=Hashable)


class Flaw(NamedTuple):
    """One mistake in a subscription: where in it, and what is wrong."""

    path: tuple[str | int, ...]
    message: str

    @property
    def field(self) -> str:
        """`event_types[0]`, `retry.jitter`; empty for the subscription as a whole."""
        return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in self.path).lstrip(".")

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """Not a subscription; `flaws` are all that is wrong with it."""

    def __init__(self, flaws: Sequence[Flaw]) -> None:
        super().__init__("; ".join(map(str, flaws)))
        self.flaws = tuple(flaws)


def _tenant(value: str) -> str:
    if value != EVERY_TENANT and not valid_tenant(value):
        raise ValueError('must be 1 to 256 printable characters, or "*" for every tenant')
    return value


def _pattern(value: str) -> str:
    check_pattern(value)
    return value


def _patterns(value: tuple[str, ...]) -> tuple[str, ...]:
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


class SubscriptionSpec(_Model):
    """One subscription as it is written. What is None comes from the settings."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    tenant: Annotated[str, AfterValidator(_tenant)] | None = None
    url: str
    event_types: Annotated[tuple[Annotated[str, AfterValidator(_pattern)], ...], AfterValidator(_patterns)]
    secrets: tuple[str, ...]
    signatures: tuple[Literal["v1", "v1a", "github"], ...] = ("v1",)
    headers: dict[str, str] = {}
    payload: Literal["full", "thin"] = "full"
    status: Literal["active", "paused", "pending", "disabled"] = "active"
    validated: bool = Field(default=False, alias="validate")
    redirects: Literal["never", "same-origin"] = "never"
    client_certificate: ClientCertificateSpec | None = None
    timeout: Annotated[Duration, duration_between("10ms", "10m")] | None = None
    max_in_flight: Annotated[int, BeforeValidator(_number), Field(ge=1, le=10_000)] = MAX_IN_FLIGHT
    rate_limit: Annotated[Rate, AfterValidator(_rate)] | None = None
    retry: RetrySpec | None = None


# Fields as they are written, for suggestions: pydantic knows `validate` by another name.
FIELDS: Final = tuple(info.alias or name for name, info in SubscriptionSpec.model_fields.items())
_FIELDS_BELOW: Final = {
    "retry": tuple(RetrySpec.model_fields),
    "client_certificate": tuple(ClientCertificateSpec.model_fields),
}

_REFERENCE = re.compile(r"\$\$\{|\$\{([^}]*)(\}?)")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


def expand(text: str, environ: Mapping[str, str]) -> str:
    """Put in the environment for `${NAME}`; `$${` stands for a literal `${`. Raises ValueError naming the variable."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$${":
            return "${"
        name, closed = match.groups()
        if not closed or not _VARIABLE.fullmatch(name):
            raise ValueError(
                "has a ${...} that names no environment variable; write $${ where ${ itself is meant"
            )
        found = environ.get(name)
        if found is None:
            raise ValueError(f"needs the environment variable {name}, which is not set")
        # A value mounted from a file often brings the file's last line break along.
        found = found.rstrip("\r\n")
        if not found:
            raise ValueError(f"needs the environment variable {name}, which is empty")
        return found

    return _REFERENCE.sub(value, text) if "${" in text else text


class Reader:
    """Reads specs into subscriptions; what is equal in many of them is kept once."""

    def __init__(
        self, guard: Guard, *, timeout: float, retry: RetryPolicy, environ: Mapping[str, str] | None = None
    ) -> None:
        """`timeout` and `retry` are the defaults. `environ` is for `${NAME}`; without it nothing is replaced.

        What comes over the network is read without: its author must not get at the daemon's environment.
        """
        self._guard = guard
        self._timeout = timeout
        self._retry = retry
        self._environ = environ
        self._shared: dict[Hashable, Any] = {}

    def _share(self, value: T) -> T:
        shared: T = self._shared.setdefault(value, value)
        return shared

    def read(self, raw: object, *, validated: bool = False) -> Subscription:
        """The subscription; raises `SpecError` with all that is wrong.

        `validated`: its endpoint has agreed. Without that, one that asks for validation is pending.
        """
        flaws: list[Flaw] = []
        raw, extra = _expanded(raw, self._environ, flaws)
        spec: SubscriptionSpec | None = None
        try:
            spec = SubscriptionSpec.model_validate(raw, context=WRITTEN)
        except ValidationError as invalid:
            flaws.extend(_flaws(invalid, skip=extra))
        target = None
        written = raw if isinstance(raw, dict) else {}
        # By hand, and for a spec that is wrong elsewhere too: all mistakes are told at once.
        url = written.get("url")
        if isinstance(url, str):
            try:
                target = self._guard.check_url(url)
            except Blocked as error:
                flaws.append(Flaw(("url",), str(error)))
        flaws.extend(_check_headers(written.get("headers"), flaws))
        wrong = {flaw.path[0] for flaw in flaws if flaw.path}
        if wrong.isdisjoint(("secrets", "signatures")) and "secrets" in written:
            try:
                make_signers(tuple(written["secrets"]), tuple(written.get("signatures", ("v1",))))
            except ValueError as error:
                flaws.append(_signers_flaw(str(error)))
        if target is not None and target.origin.scheme == "http" and "client_certificate" in written:
            flaws.append(Flaw(("client_certificate",), "has no effect: the URL is not https"))
        if flaws or spec is None or target is None:
            raise SpecError(flaws)
        retry = self._retry
        if spec.retry is not None:
            schedule, jitter = spec.retry.schedule, spec.retry.jitter
            retry = RetryPolicy(
                retry.schedule if schedule is None else schedule, retry.jitter if jitter is None else jitter
            )
        certificate = None
        if spec.client_certificate is not None:
            certificate = ClientCertificate(
                spec.client_certificate.cert_file, spec.client_certificate.key_file
            )
        return Subscription(
            id=spec.id,
            tenant=None if spec.tenant is None else self._share(spec.tenant),
            origin=self._share(target.origin),
            target=self._share(target.target),
            event_types=self._share(tuple(self._share(name) for name in dict.fromkeys(spec.event_types))),
            secrets=spec.secrets,
            signatures=self._share(tuple(spec.signatures)),
            headers=self._share(tuple(spec.headers.items())),
            thin=spec.payload == "thin",
            follow_redirects=spec.redirects == "same-origin",
            certificate=self._share(certificate),
            timeout=self._timeout if spec.timeout is None else self._share(spec.timeout),
            max_in_flight=spec.max_in_flight,
            rate_limit=spec.rate_limit,
            retry=self._share(retry),
            status=(status := _status(spec, validated=validated)),
            reason=_REASONS.get(status),
        )


_REASONS: Final = {Status.DISABLED: "config", Status.PENDING: "not validated"}


def _status(spec: SubscriptionSpec, *, validated: bool) -> Status:
    """The status in force: who asks for validation is active only after it."""
    if spec.status == "pending" or (spec.status == "active" and spec.validated):
        return Status.ACTIVE if validated else Status.PENDING
    return Status(spec.status)


def _expanded(
    raw: object, environ: Mapping[str, str] | None, flaws: list[Flaw]
) -> tuple[object, set[tuple[str | int, ...]]]:
    """A copy with `${NAME}` replaced in secrets and header values, and the places where that failed.

    A known field without a value (all of it commented out) counts as absent.
    """
    failed: set[tuple[str | int, ...]] = set()
    if not isinstance(raw, dict):
        return raw, failed
    copy = {name: value for name, value in raw.items() if value is not None or name not in FIELDS}
    if environ is None:
        return copy, failed

    def put(value: Any, *path: str | int) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return expand(value, environ)
        except ValueError as error:
            flaws.append(Flaw(path, str(error)))
            failed.add(path)
            return value

    if isinstance(secrets := raw.get("secrets"), list):
        copy["secrets"] = [put(secret, "secrets", number) for number, secret in enumerate(secrets)]
    if isinstance(headers := raw.get("headers"), dict):
        copy["headers"] = {name: put(value, "headers", str(name)) for name, value in headers.items()}
    return copy, failed


def _flaws(invalid: ValidationError, skip: set[tuple[str | int, ...]]) -> list[Flaw]:
    flaws: list[Flaw] = []
    for error in invalid.errors(include_url=False):
        path = tuple("validate" if step == "validated" else step for step in error["loc"] if step != "[key]")
        if path in skip:
            continue
        if error["type"] == "extra_forbidden":
            known = _FIELDS_BELOW.get(str(path[0]), ()) if len(path) > 1 else FIELDS
            message = f"there is no such field{did_you_mean(str(path[-1]), known)}"
        elif path == ("id",) and error["type"] == "string_pattern_mismatch":
            message = "must be 1 to 64 of the characters A-Z a-z 0-9 _ -"
        else:
            message = explain(error, secret=not path or path[0] in (*_SECRET_FIELDS, "url"))
        flaws.append(Flaw(path, message))
    return flaws


def _check_headers(headers: object, known: Sequence[Flaw]) -> list[Flaw]:
    """What is wrong with the headers that no flaw is known of yet."""
    flaws: list[Flaw] = []
    if not isinstance(headers, dict):
        return flaws
    told = {flaw.path for flaw in known}
    texts = {name: text for name, text in headers.items() if isinstance(name, str) and isinstance(text, str)}
    if len(texts) > MAX_OWN_HEADERS:
        flaws.append(Flaw(("headers",), f"must have at most {MAX_OWN_HEADERS} entries"))
    seen: set[str] = set()
    for name, value in texts.items():
        path = ("headers", name)
        if name.lower() in seen:
            flaws.append(
                Flaw(path, "stands twice: upper and lower case make no difference in a header's name")
            )
        seen.add(name.lower())
        if path not in told:
            try:
                check_header(name, value)
            except ValueError as error:
                flaws.append(Flaw(path, str(error)))
    size = sum(len(name) + len(value) + len(": \r\n") for name, value in texts.items())
    if size > MAX_HEADER_BYTES:
        flaws.append(Flaw(("headers",), f"take {size} bytes; {MAX_HEADER_BYTES} are the most"))
    return flaws


def _signers_flaw(message: str) -> Flaw:
    """`make_signers` begins its messages with the field: `secrets[1]: ...`."""
    match = re.match(r"(secrets|signatures)(?:\[(\d+)\])?: ", message)
    if match is None:
        return Flaw(("secrets",), message)
    path = (match[1],) if match[2] is None else (match[1], int(match[2]))
    return Flaw(path, message[match.end() :])
