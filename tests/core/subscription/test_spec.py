from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from dispatcher.core.flaws import FlawedError
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.urls import Origin
from dispatcher.core.retry.policy import RetryPolicy
from dispatcher.core.subscription.fields import MAX_IN_FLIGHT
from dispatcher.core.subscription.model import Status
from dispatcher.core.subscription.spec import SpecReader, expand

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + b64encode(bytes(range(32))).decode()
ED25519 = "whsk_" + b64encode(bytes(range(32))).decode()
DEFAULTS = RetryPolicy((5.0, 300.0), 0.1)


def reader(environ: Any = None) -> Any:
    return SpecReader(Guard(), timeout=15.0, retry=DEFAULTS, environ=environ)


def spec(**changes: Any) -> Any:
    base = {
        "id": "sub_1",
        "url": "https://hooks.acme.example/in",
        "event_types": ["billing.*"],
        "secrets": [SECRET],
    }
    return {name: value for name, value in {**base, **changes}.items() if value is not ...}


def flaws(raw: Any, environ: Any = None) -> Any:
    with pytest.raises(FlawedError) as caught:
        reader(environ).read(raw)
    return {flaw.field: flaw.message for flaw in caught.value.flaws}


def test_what_is_left_out_comes_from_the_settings() -> None:
    found = reader().read(spec())
    assert (found.id, found.tenant, found.url) == ("sub_1", None, "https://hooks.acme.example/in")
    assert found.origin == Origin("https", "hooks.acme.example", 443)
    assert (found.timeout, found.retry, found.max_in_flight) == (15.0, DEFAULTS, MAX_IN_FLIGHT)
    assert (found.signatures, found.headers, found.thin) == (("v1",), (), False)
    assert (found.status, found.reason) == (Status.ACTIVE, None)


def test_every_field_is_taken() -> None:
    found = reader().read(
        spec(
            tenant="acme",
            url="HTTPS://Hooks.Acme.example:8443/in?a=b",
            event_types=["billing.*", "invoice.paid"],
            secrets=[SECRET, OTHER, ED25519],
            signatures=["v1", "v1a", "github"],
            headers={"Authorization": "Bearer abc", "X-Env": "prod"},
            payload="thin",
            status="paused",
            validate=False,
            redirects="same-origin",
            timeout="2s",
            max_in_flight=3,
            rate_limit="90/m",
            retry={"schedule": ["1s", "1m30s"], "jitter": 0},
        )
    )
    assert found.url == "https://hooks.acme.example:8443/in?a=b"
    assert (found.tenant, found.event_types) == ("acme", ("billing.*", "invoice.paid"))
    assert (found.secrets, found.signatures) == ((SECRET, OTHER, ED25519), ("v1", "v1a", "github"))
    assert found.headers == (("Authorization", "Bearer abc"), ("X-Env", "prod"))
    assert (found.thin, found.status, found.timeout, found.max_in_flight) == (True, Status.PAUSED, 2.0, 3)
    assert found.retry == RetryPolicy((1.0, 90.0), 0.0)
    assert found.follow_redirects
    assert found.rate_limit == 1.5
    assert found.request.tail.startswith(b"\r\nAuthorization: Bearer abc\r\nX-Env: prod\r\n")


def test_one_written_disabled_says_where_that_comes_from() -> None:
    found = reader().read(spec(status="disabled"))
    assert (found.status, found.reason) == (Status.DISABLED, "config")


def test_a_field_whose_value_is_commented_out_counts_as_absent() -> None:
    assert reader().read(spec(headers=None, retry=None, tenant=None, timeout=None)).headers == ()
    assert flaws(spec(event_types=None)) == {"event_types": "is required"}


@pytest.mark.parametrize("asking", [{"validate": True}, {"status": "pending"}])
def test_one_that_asks_for_validation_is_pending_until_its_endpoint_has_agreed(asking: Any) -> None:
    found = reader().read(spec(**asking))
    assert (found.status, found.reason) == (Status.PENDING, "not validated")
    assert reader().read(spec(**asking), validated=True).status is Status.ACTIVE


def test_validation_does_not_wake_one_that_is_paused() -> None:
    assert reader().read(spec(validate=True, status="paused")).status is Status.PAUSED
    assert reader().read(spec(validate=True, status="disabled"), validated=True).status is Status.DISABLED


@pytest.mark.parametrize("raw", [None, [], "x", 5])
def test_what_is_no_mapping_is_refused(raw: Any) -> None:
    assert "mapping" in flaws(raw)[""]


def test_all_mistakes_are_told_at_once() -> None:
    found = flaws(
        spec(
            id="a b",
            url="ftp://x",
            event_types=["a*", "b..c"],
            secrets=["${NO_SUCH}"],
            headers={"TE": "x", "A": 1},
            foo=1,
        ),
        environ={},
    )
    assert set(found) == {
        "id", "url", "event_types[0]", "event_types[1]", "secrets[0]", "headers.TE", "headers.A", "foo",
    }  # fmt: skip


def test_no_message_quotes_a_secret_or_a_header_value() -> None:
    for changes in (
        {"secrets": ["hunter2hunter2"]},
        {"secrets": "hunter2"},
        {"secrets": [SECRET, {"hunter2": 1}]},
        {"secrets": ["whsec_hunter2"]},
        {"headers": {"Authorization": "hunter2 hunter2"}},
        {"headers": {"X-A": "hunter2\n"}},
        {"headers": "hunter2"},
        {"url": "https://a:hunter2@b.example/"},
        {"unknown": "hunter2"},
    ):
        assert "hunter2" not in str(flaws(spec(**changes)))
    assert "hunter2" not in str(flaws(spec(secrets=["${S}"]), environ={"S": "hunter2"}))


def test_the_environment_is_put_into_secrets_and_header_values_only() -> None:
    found = reader({"S": SECRET + "\n", "T": "abc"}).read(
        spec(secrets=["${S}"], headers={"Authorization": "Bearer ${T}", "X-Price": "$${T} $5"})
    )
    assert found.secrets == (SECRET,)
    assert dict(found.headers) == {"Authorization": "Bearer abc", "X-Price": "${T} $5"}
    assert "url" in flaws(spec(url="https://${T}.example/"), environ={"T": "abc"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${B}", "B, which is not set"),
        ("x${C}", "C, which is empty"),
        ("${", "no environment variable"),
        ("${a-b}", "no env"),
    ],
)
def test_a_variable_that_isnt_there_is_named(text: Any, said: Any) -> None:
    assert said in flaws(spec(headers={"X-A": text}), environ={"C": "\n"})["headers.X-A"]


def test_without_an_environment_nothing_is_replaced() -> None:
    assert reader(None).read(spec(headers={"X-A": "${HOME}"})).headers == (("X-A", "${HOME}"),)


@given(st.lists(st.sampled_from(["${A}", "$${", "}", "$-", "{", "A"])))
def test_references_and_escapes_are_told_apart_anywhere(parts: Any) -> None:
    meant = {"${A}": "1", "$${": "${"}
    assert expand("".join(parts), {"A": "1"}) == "".join(meant.get(part, part) for part in parts)


def test_what_is_only_checked_leaves_nothing_behind() -> None:
    checking = SpecReader(Guard(), timeout=15.0, retry=DEFAULTS, keeps=False)
    full = spec(tenant="acme", headers={"X-Env": "prod"}, retry={"jitter": 0.5})
    assert outcome(checking.read, full, validated=False) == outcome(reader().read, full, validated=False)
    checking.read(spec(tenant="acme", url="https://b\xfccher.example/in", signatures=["v1"]))
    assert not checking._shared
    assert not checking._tenants
    assert not checking._lists


def test_equal_parts_of_many_are_kept_once() -> None:
    one = reader()
    first, second = one.read(spec(tenant="acme")), one.read(spec(id="other", tenant="acme"))
    assert first.origin is second.origin
    assert first.event_types is second.event_types
    assert first.retry is second.retry
    assert first.headers is second.headers


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from([*spec(), "tenant", "signatures", "headers", "retry", "timeout", "status"]), JUNK
    )
)
def test_nothing_but_a_spec_error_comes_of_junk(junk: Any) -> None:
    with pytest.raises(FlawedError) as caught:
        reader({}).read(spec(id="not valid", **{name: value for name, value in junk.items() if name != "id"}))
    assert "id" in {flaw.field for flaw in caught.value.flaws}


PLAIN = "a secret without a prefix".replace(" ", "-")
# What each field may hold: the usual, the unusual that is right, and what is wrong or nearly right.
VALUES: dict[str, list[Any]] = {
    "id": ["sub_2", "a" * 64, "a" * 65, "", "s\n", "\xe9", 5, None],
    "tenant": ["acme", "*", "Zo\xeb", "", "a\nb", "\ud800", "x" * 257, 5, None],
    "url": [
        "https://hooks.acme.example",
        "HTTPS://Hooks.Acme.example:443/in?a=%20",
        "https://hooks.acme.example:8443/in?a=b/c?d",
        "https://hooks.acme.example:22/",
        "https://xn--bcher-kva.example/",
        "https://b\xfccher.example/",
        "https://hooks.acme.example./",
        "https://1.2.3/",
        "https://8.8.8.8/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://a@b.example/",
        "https://a.example/#x",
        "https://a.example/\u200b",
        "https://a_b.example/x y",
        "http://a.example/",
        "https://a.example/" + "x" * 2048,
        "https://" + "a." * 127 + "example/",
        "",
        5,
        None,
    ],
    "event_types": [
        ["*"], ["a", "a", "b.*"], ["a.*.b"], [], ["a..b"], ["a*"], ["a", 5], ["a", None], ["x"] * 257, "a", ("a",), None,
    ],
    "secrets": [
        [OTHER], [SECRET, OTHER], [SECRET, SECRET], [ED25519], [SECRET, ED25519], [PLAIN], [SECRET[:-1]],
        [SECRET[:-1] + "-"], [OTHER[:-2] + "9="], ["whsec_" + "A" * 84], ["${A}"], ["${B}"], ["whsk_" + "A" * 88],
        [f"whsec_{str(number) * 32}" for number in range(9)], [], [5], [None], SECRET, None,
    ],
    "signatures": [["v1"], ["v1a"], ["github"], ["v1", "github"], ["v1", "v1"], ["v2"], [], [5], "v1", ("v1",), None],
    "headers": [
        {}, {"X-Env": "prod"}, {"Authorization": "Bearer abc"}, {"X-A": "1", "x-a": "2"}, {"Host": "x"}, {"X": "${A}"},
        {"X": "${B}"}, {"X": ""}, {"X": "\ud800"}, {"X": 5}, {5: "x"}, {f"X-{n}": "x" for n in range(33)}, [], "x", None,
    ],
    "payload": ["full", "thin", "fat", 5, [], None],
    "status": ["active", "paused", "pending", "disabled", "gone", 5, [], None],
    "validate": [True, False, "true", 1, 0, [], None],
    "redirects": ["never", "same-origin", "always", 5, None],
    "client_certificate": [{"cert_file": "c.pem"}, {}, 5, None],
    "timeout": ["2s", "10ms", "9ms", "10m", "601s", "5", "", 5, 5.0, True, None],
    "max_in_flight": [1, 10_000, 0, 10_001, -1, 3.0, 3.5, "3", True, None],
    "rate_limit": ["90/m", "1/h", "100000/s", "0/s", "100001/s", "x", 5, None],
    "retry": [
        {}, {"schedule": []}, {"schedule": ["1s", "1m30s"]}, {"schedule": None, "jitter": None}, {"jitter": 0},
        {"jitter": 1}, {"jitter": 0.25}, {"jitter": 1.5}, {"jitter": True}, {"jitter": "0.5"}, {"jitter": float("nan")},
        {"schedule": ["1ms"]}, {"schedule": [5]}, {"schedule": "5s"}, {"schedule": ("5s",)}, {"schedule": ["5s"] * 101},
        {"shedule": []}, {5: 5}, [], None,
    ],
    "nonsense": [None, 1],
    "validated": [True],
}  # fmt: skip
FIELD = st.one_of(
    [st.tuples(st.just(name), st.sampled_from(values) | JUNK) for name, values in VALUES.items()]
)


def outcome(read: Any, raw: Any, *, validated: bool) -> Any:
    try:
        found = read(raw, validated=validated)
    except FlawedError as error:
        return error.flaws
    return {
        name: (type(value), value)
        for name in found.__slots__
        if name != "request" and (value := getattr(found, name),)
    }


@pytest.mark.parametrize("environ", [None, {}, {"A": SECRET}])
@pytest.mark.parametrize("field", VALUES)
def test_each_value_of_a_field_is_read_the_short_way_as_by_the_model(field: str, environ: Any) -> None:
    found = reader(environ)
    for value in VALUES[field]:
        raw = spec(**{field: value})
        assert outcome(found.read, raw, validated=False) == outcome(found._checked, raw, validated=False)


@settings(max_examples=300)
@given(
    st.lists(FIELD, max_size=4),
    st.lists(st.sampled_from(list(spec())), max_size=1),
    st.sampled_from([None, {}, {"A": SECRET}]),
    st.booleans(),
)
def test_what_is_read_the_short_way_is_what_the_model_makes_of_it(
    changes: Any, missing: Any, environ: Any, validated: bool
) -> None:
    """For any document: the same subscription, to the types of its parts, or the same mistakes."""
    raw = spec(**dict(changes))
    for name in missing:
        raw.pop(name, None)
    found = reader(environ)
    assert outcome(found.read, raw, validated=validated) == outcome(found._checked, raw, validated=validated)
    # Once more, with all that it remembers by now.
    assert outcome(found.read, raw, validated=validated) == outcome(found._checked, raw, validated=validated)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"secrets": [SECRET, OTHER]},
        {"secrets": [ED25519], "signatures": ["v1a"]},
        {"url": "https://hooks.acme.example:8443/in?customer=5"},
        {
            "tenant": "acme",
            "status": "paused",
            "payload": "thin",
            "redirects": "same-origin",
            "validate": True,
        },
        {"timeout": "2s", "max_in_flight": 3, "rate_limit": "90/m", "headers": {"X-Env": "prod"}},
        {"retry": {"schedule": ["1s", "1m30s"], "jitter": 0.2}},
        {"tenant": None, "retry": None, "headers": None},
    ],
)
def test_the_usual_is_read_the_short_way(changes: Any) -> None:
    assert reader()._usual(spec(**changes), validated=False) is not None
