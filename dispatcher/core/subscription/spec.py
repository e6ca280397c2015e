"""Subscriptions as people write them: every field checked, every mistake named, and read into `Subscription`.

One model for all who write them (the file, the API, the topic), so that nobody's rules drift. What can't be kept is refused, not ignored: somebody who writes
`rate_limit: 5` without saying of what, and gets a flood, has been lied to.

Values of `secrets` and `headers` are secrets: no message quotes them.

**Two ways to read a subscription.** A start with a hundred thousand of them reads each, and the model is slow. So `SpecReader._usual` reads what is written the
usual way, field by field and without a model, in about a tenth of the time. It decides nothing by itself: each field's rule is the model's own (the
same function or type, remembered where the same few values stand in many). Whatever it doesn't know for sure to be right it leaves to the
model, which then takes it or says what is wrong. A test holds the two together for any document. Rejected: to believe what was checked
when it was written. The settings may refuse today what they took yesterday, and others may write to the topic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, TypeVar

from pydantic import ValidationError

from dispatcher.core.flaws import Flaw, FlawedError
from dispatcher.core.request.build import MAX_OWN_HEADERS, check_header
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.signing import make_signers, usual_secrets
from dispatcher.core.request.urls import Blocked
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.fields import (
    FIELDS,
    FIELDS_BELOW,
    ID,
    MAX_HEADER_BYTES,
    MAX_IN_FLIGHT,
    MOST_IN_FLIGHT,
    RetrySpec,
    SubscriptionSpec,
    checked_patterns,
    checked_tenant,
    rate_of,
    retry_of,
    timeout_of,
)
from dispatcher.core.subscription.model import ClientCertificate, Status, Subscription
from dispatcher.core.subscription.patterns import check_pattern
from dispatcher.core.text.units import WRITTEN
from dispatcher.core.text.yaml_document import did_you_mean, explain

_SECRET_FIELDS: Final = ("secrets", "headers")

T = TypeVar("T", bound=Hashable)


# What `SpecReader._usual` reads with: the model's rules, one by one. They raise ValueError, of which pydantic's is one.
_USUAL_ID = re.compile(ID, re.ASCII)
_USUAL_FIELDS: Final = frozenset(FIELDS) - {"client_certificate"}
_USUAL_RETRY: Final = frozenset(RetrySpec.model_fields)
_V1: Final = ["v1"]
_STATUSES: Final = {status.value: status for status in Status}
_check_pattern: Final = lru_cache(maxsize=4096)(check_pattern)


def _usual_retry(raw: object) -> RetrySpec:
    """Raises ValueError for what is wrong, or not written the usual way."""
    if type(raw) is not dict or not raw.keys() <= _USUAL_RETRY:
        raise ValueError
    schedule, jitter = raw.get("schedule"), raw.get("jitter")
    if schedule is not None:
        if type(schedule) is not list or not _all_text(schedule):
            raise ValueError
        schedule = tuple(schedule)
    if jitter is not None and type(jitter) not in (int, float):
        raise ValueError
    return retry_of(schedule, jitter)


def _all_text(values: list[Any]) -> bool:
    # One is the usual number, and needs no generator.
    return all(type(value) is str for value in values) if len(values) != 1 else type(values[0]) is str


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


class SpecReader:
    """Reads specs into subscriptions; what is equal in many of them is kept once."""

    def __init__(
        self,
        guard: Guard,
        *,
        timeout: float,
        retry: RetryPolicy,
        environ: Mapping[str, str] | None = None,
        keeps: bool = True,
        accepted: bool = False,
    ) -> None:
        """`timeout` and `retry` are the defaults. `environ` is for `${NAME}`; without it nothing is replaced.

        What comes over the network is read without: its author must not get at the daemon's environment. And where it is
        only to be checked, with `keeps` false: what was sent must not stay. `accepted`: these were taken before, by a version
        that may have allowed more; an upgrade doesn't end a subscription whose requests are sound.
        """
        self._guard = guard
        self._timeout = timeout
        self._retry = retry
        self._environ = environ
        self._keeps = keeps
        self._accepted = accepted
        self._shared: dict[Hashable, Any] = {}
        self._lists: dict[tuple[str, ...], tuple[str, ...]] = {}  # of patterns as written, that are right
        self._tenants: dict[str, str] = {}  # likewise
        self._v1 = self._share(tuple(_V1))

    def _share(self, value: T) -> T:
        if not self._keeps:
            return value
        shared: T = self._shared.setdefault(value, value)
        return shared

    def read(self, raw: object, *, validated: bool = False) -> Subscription:
        """The subscription; raises `FlawedError` with all that is wrong.

        `validated`: its endpoint has agreed. Without that, one that asks for validation is pending.
        """
        usual = self._usual(raw, validated=validated)
        return self._checked(raw, validated=validated) if usual is None else usual

    def _usual(self, raw: Any, *, validated: bool) -> Subscription | None:
        """The subscription, if it is written the usual way and surely right; None: ask `_checked`."""
        if type(raw) is not dict or not raw.keys() <= _USUAL_FIELDS:
            return None
        get: Callable[[str], Any] = raw.get
        try:
            id_, tenant, url, patterns, secrets = (
                get("id"), get("tenant"), get("url"), get("event_types"), get("secrets")
            )  # fmt: skip
            if type(id_) is not str or _USUAL_ID.fullmatch(id_) is None or type(url) is not str:
                return None
            if tenant is not None:
                if type(tenant) is not str:
                    return None
                if (known := self._tenants.get(tenant)) is None:
                    known = self._share(checked_tenant(tenant))
                    if self._keeps:
                        self._tenants[tenant] = known
                tenant = known
            wanted = self._usual_patterns(patterns)
            signatures = self._usual_signatures(secrets, get("signatures"))
            headers = self._usual_headers(get("headers"))
            if wanted is None or signatures is None or headers is None:
                return None
            payload, redirects = get("payload"), get("redirects")
            if payload not in (None, "full", "thin") or redirects not in (None, "never", "same-origin"):
                return None
            written, asking, in_flight = get("status"), get("validate"), get("max_in_flight")
            if not (written is None or type(written) is str) or type(asking) not in (bool, type(None)):
                return None
            if in_flight is None:
                in_flight = MAX_IN_FLIGHT
            elif type(in_flight) is not int or not 1 <= in_flight <= MOST_IN_FLIGHT:
                return None
            timeout, rate, retry = get("timeout"), get("rate_limit"), get("retry")
            if type(timeout) not in (str, type(None)) or type(rate) not in (str, type(None)):
                return None
            status = _status_of(_STATUSES[written or "active"], asking=bool(asking), validated=validated)
            target = self._guard.check_url(url)
            return Subscription(
                id=id_,
                tenant=tenant,
                origin=self._share(target.origin),
                target=self._share(target.target),
                event_types=wanted,
                secrets=tuple(secrets),
                signatures=signatures,
                headers=self._share(headers),
                thin=payload == "thin",
                follow_redirects=redirects == "same-origin",
                timeout=self._timeout if timeout is None else timeout_of(timeout),
                max_in_flight=in_flight,
                rate_limit=None if rate is None else rate_of(rate),
                retry=self._retry if retry is None else self._share(self._policy(_usual_retry(retry))),
                status=status,
                reason=_REASONS.get(status),
            )
        except (ValueError, KeyError):
            return None

    def _usual_patterns(self, patterns: Any) -> tuple[str, ...] | None:
        if type(patterns) is not list:
            return None
        wanted = tuple(patterns)
        try:
            known = self._lists.get(wanted)
        except TypeError:  # something in it is no text, and can't be looked up
            return None
        if known is None:
            if not _all_text(patterns):
                return None
            for pattern in checked_patterns(wanted):
                _check_pattern(pattern)
            known = self._wanted(wanted)
            if self._keeps:
                self._lists[wanted] = known
        return known

    def _usual_signatures(self, secrets: Any, signatures: Any) -> tuple[str, ...] | None:
        if type(secrets) is not list or not _all_text(secrets):
            return None
        if signatures is None:
            signatures = _V1
        elif type(signatures) is not list or not _all_text(signatures):
            return None
        if signatures == _V1 and usual_secrets(secrets):
            return self._v1
        if self._environ is not None:
            return None
        make_signers(secrets, signatures)
        return self._share(tuple(signatures))

    def _usual_headers(self, headers: Any) -> tuple[tuple[str, str], ...] | None:
        if not headers and (headers is None or type(headers) is dict):
            return ()
        if self._environ is not None or type(headers) is not dict:
            return None
        if not _all_text([*headers, *headers.values()]) or _check_headers(
            headers, (), folded=not self._accepted
        ):
            return None
        return tuple(headers.items())

    def _wanted(self, patterns: Sequence[str]) -> tuple[str, ...]:
        return self._share(tuple(self._share(name) for name in dict.fromkeys(patterns)))

    def _policy(self, spec: RetrySpec) -> RetryPolicy:
        default = self._retry
        return RetryPolicy(
            default.schedule if spec.schedule is None else spec.schedule,
            default.jitter if spec.jitter is None else spec.jitter,
        )

    def _checked(self, raw: object, *, validated: bool) -> Subscription:
        """By the model, with all that is wrong."""
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
        flaws.extend(_check_headers(written.get("headers"), flaws, folded=not self._accepted))
        wrong = {flaw.path[0] for flaw in flaws if flaw.path}
        if wrong.isdisjoint(("secrets", "signatures")) and "secrets" in written:
            try:
                make_signers(tuple(written["secrets"]), tuple(written.get("signatures", ("v1",))))
            except ValueError as error:
                flaws.append(_signers_flaw(str(error)))
        if target is not None and target.origin.scheme == "http" and "client_certificate" in written:
            flaws.append(Flaw(("client_certificate",), "has no effect: the URL is not https"))
        if flaws or spec is None or target is None:
            raise FlawedError(flaws)
        retry = self._retry if spec.retry is None else self._policy(spec.retry)
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
            event_types=self._wanted(spec.event_types),
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
            status=(status := _status_of(Status(spec.status), asking=spec.validated, validated=validated)),
            reason=_REASONS.get(status),
        )


_REASONS: Final = {Status.DISABLED: "config", Status.PENDING: "not validated"}


def _status_of(written: Status, *, asking: bool, validated: bool) -> Status:
    """The status in force: who asks for validation is active only after it."""
    if written is Status.PENDING or (written is Status.ACTIVE and asking):
        return Status.ACTIVE if validated else Status.PENDING
    return written


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
            known = FIELDS_BELOW.get(str(path[0]), ()) if len(path) > 1 else FIELDS
            message = f"there is no such field{did_you_mean(str(path[-1]), known)}"
        elif path == ("id",) and error["type"] == "string_pattern_mismatch":
            message = "must be 1 to 64 of the characters A-Z a-z 0-9 _ -"
        else:
            message = explain(error, secret=not path or path[0] in (*_SECRET_FIELDS, "url"))
        flaws.append(Flaw(path, message))
    return flaws


def _check_headers(headers: object, known: Sequence[Flaw], *, folded: bool) -> list[Flaw]:
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
                check_header(name, value, folded=folded)
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
