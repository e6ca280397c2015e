"""Signatures: the published vectors, two oracles we did not write, and settings that are refused."""

import hashlib
import hmac
import json
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, strategies as st
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from dispatcher.core.request.signing import MAX_SECRETS, PADS, make_signers, usual_secrets, v1_line

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "standard-webhooks.json").read_text())
MESSAGE = (
    VECTORS["message"]["id"].encode(),
    b"%d" % VECTORS["message"]["timestamp"],
    VECTORS["message"]["body"].encode(),
)
V1 = VECTORS["v1"]["secret"]
V1A = VECTORS["v1a"]["secret"]


def whsec(key: bytes) -> str:
    return "whsec_" + b64encode(key).decode()


def whsk(key: bytes) -> str:
    return "whsk_" + b64encode(key).decode()


def signatures_of(lines: bytes) -> list[str]:
    first = lines.decode("ascii").split("\r\n")[0]
    name, _, value = first.partition(": ")
    assert name == "webhook-signature"
    return value.split(" ")


@pytest.mark.parametrize("version", ["v1", "v1a"])
def test_the_published_vectors_hold_at_the_first_signature_and_at_the_next(version: str) -> None:
    signers = make_signers([VECTORS[version]["secret"]], [version])
    expected = b"webhook-signature: %b\r\n" % VECTORS[version]["signature"].encode()
    assert [signers.header_lines(*MESSAGE) for _ in range(3)] == [expected] * 3


def test_every_live_secret_signs_newest_first() -> None:
    newer = whsec(b"n" * 32)
    signers = make_signers([newer, V1, V1A], ["v1", "v1a"])
    found = signatures_of(signers.header_lines(*MESSAGE))
    assert found[0] == signatures_of(make_signers([newer], ["v1"]).header_lines(*MESSAGE))[0]
    assert found[1:] == [VECTORS["v1"]["signature"], VECTORS["v1a"]["signature"]]


def test_the_public_package_verifies_with_either_secret_of_a_rotation() -> None:
    old, new = whsec(b"o" * 24), whsec(b"n" * 64)
    now = b"%d" % time.time()
    body = '{"type":"a.b","data":"häß"}'
    lines = make_signers([new, old], ["v1"]).header_lines(b"msg_1", now, body.encode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": now.decode(),
        "webhook-signature": " ".join(signatures_of(lines)),
    }
    for secret in (old, new):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        Webhook(whsec(b"x" * 24)).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(body + " ", headers)


@given(st.binary(min_size=24, max_size=64), st.binary(max_size=300), st.integers(0, 2**40))
def test_v1_is_hmac_sha256_over_id_timestamp_and_body(key: bytes, body: bytes, now: int) -> None:
    stamp = b"%d" % now
    expected = b64encode(hmac.digest(key, b"msg_1." + stamp + b"." + body, "sha256")).decode()
    signers = make_signers([whsec(key)], ["v1"])
    for _ in range(2):
        assert signatures_of(signers.header_lines(b"msg_1", stamp, body)) == [f"v1,{expected}"]


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300))
def test_v1a_verifies_with_the_public_key_that_is_given_out(seed: bytes, body: bytes) -> None:
    signers = make_signers([whsk(seed)], ["v1a"])
    (public,) = signers.public_keys()
    key = Ed25519PublicKey.from_public_bytes(b64decode(public.removeprefix("whpk_")))
    (signature,) = signatures_of(signers.header_lines(b"msg_1", b"1", body))
    version, _, encoded = signature.partition(",")
    assert version == "v1a"
    key.verify(b64decode(encoded), b"msg_1.1." + body)
    with pytest.raises(InvalidSignature):
        key.verify(b64decode(encoded), b"msg_1.1." + body + b"x")


def test_a_seed_alone_signs_as_seed_and_public_key_do() -> None:
    seed = b64decode(V1A.removeprefix("whsk_"))[:32]
    assert make_signers([whsk(seed)], ["v1a"]).header_lines(*MESSAGE) == make_signers(
        [V1A], ["v1a"]
    ).header_lines(*MESSAGE)
    assert make_signers([V1A], ["v1a"]).public_keys() == (VECTORS["v1a"]["public"],)


@pytest.mark.parametrize("secret", [V1, "It's a Secret to Everybody".replace(" ", "_")])
def test_github_signs_the_body_with_the_secrets_text_as_it_stands(secret: str) -> None:
    lines = make_signers([secret], ["github"]).header_lines(*MESSAGE)
    digest = hmac.new(secret.encode(), MESSAGE[2], hashlib.sha256).hexdigest()
    assert lines == f"x-hub-signature-256: sha256={digest}\r\n".encode()


def test_github_carries_one_signature_the_newest_secrets() -> None:
    newer = whsec(b"n" * 32)
    both = make_signers([newer, V1], ["github"]).header_lines(*MESSAGE)
    assert both == make_signers([newer], ["github"]).header_lines(*MESSAGE)


def test_schemes_go_together() -> None:
    lines = make_signers([V1, V1A], ["v1", "github", "v1a"]).header_lines(*MESSAGE)
    assert signatures_of(lines) == [VECTORS["v1"]["signature"], VECTORS["v1a"]["signature"]]
    assert lines.count(b"\r\n") == 2
    assert b"\r\nx-hub-signature-256: sha256=" in lines


def test_a_plain_secret_beside_standard_ones_signs_for_github_only() -> None:
    plain = "a-plain-github-secret"
    lines = make_signers([plain, V1], ["v1", "github"]).header_lines(*MESSAGE)
    assert signatures_of(lines) == [VECTORS["v1"]["signature"]]
    assert hmac.new(plain.encode(), MESSAGE[2], hashlib.sha256).hexdigest().encode() in lines


OTHER_HALF = Ed25519PrivateKey.from_private_bytes(b"o" * 32).public_key().public_bytes_raw()

REFUSED = [
    ([], ["v1"], "at least one"),
    ([V1], [], "name at least one"),
    ([V1], ["v2"], "unknown"),
    ([V1], ["v1", "v1"], "only once"),
    ([V1, V1], ["v1"], "twice"),
    ([whsec(bytes((n,)) * 24) for n in range(MAX_SECRETS + 1)], ["v1"], "at most"),
    ([V1], ["v1a"], "can't sign v1a"),
    ([V1], ["v1", "v1a"], "begins with whsk_"),
    ([V1A], ["v1"], "doesn't name"),
    ([V1A], ["v1", "v1a"], "begins with whsec_"),
    ([V1A], ["v1a", "github"], "github needs"),
    (["a-plain-github-secret"], ["v1"], "must begin with whsec_"),
    (["a-plain-github-secret"], ["v1", "github"], "v1 needs"),
    (["tooshort"], ["github"], "16 to 256"),
    (["a secret with spaces"], ["github"], "16 to 256"),
    (["a-secret-with-a-newline\n"], ["github"], "16 to 256"),
    (["ein-geheimnis-mit-ümlaut"], ["github"], "16 to 256"),
    ([""], ["v1"], "must begin"),
    (["whsec_"], ["v1"], "0 bytes"),
    ([whsec(b"k" * 23)], ["v1"], "23 bytes"),
    ([whsec(b"k" * 65)], ["v1"], "65 bytes"),
    (["whsec_" + "A" * 31], ["v1"], "padded"),
    ([whsec(b"k" * 25).rstrip("=")], ["v1"], "padded"),
    (["whsec_" + urlsafe_b64encode(b"\xff" * 24).decode()], ["v1"], "URL-safe"),
    (["whsec_" + "A" * 31 + "!"], ["v1"], "not base64"),
    (["whsec_" + "A" * 16 + "\n" + "A" * 15], ["v1"], "not base64"),
    (["whsec_" + "A" * 28 + "===="], ["v1"], "not base64"),
    (["whsec_" + "A" * 33 + "B=="], ["v1"], "canonical"),
    (["whsec_" + "Ä" * 32], ["v1"], "not padded base64"),
    (["whsec_" + "\ud800" * 32], ["v1"], "not padded base64"),
    (["WHSEC_" + "A" * 32], ["v1"], "must begin"),
    ([whsk(b"k" * 31)], ["v1a"], "31 bytes"),
    ([whsk(b"k" * 33)], ["v1a"], "33 bytes"),
    ([whsk(b"k" * 32 + OTHER_HALF)], ["v1a"], "doesn't belong"),
    ([VECTORS["v1a"]["public"]], ["v1a"], "public key"),
    ([whsk(b"k" * 32).rstrip("=")], ["v1a"], "padded"),
]


@pytest.mark.parametrize(("secrets", "signatures", "told"), REFUSED)
def test_settings_that_make_no_sense_are_refused_without_quoting_the_secret(
    secrets: list[str], signatures: list[str], told: str
) -> None:
    with pytest.raises(ValueError, match=r"^(secrets|signatures)") as caught:
        make_signers(secrets, signatures)
    message = str(caught.value)
    assert told in message
    for secret in secrets:
        core = secret.partition("_")[2] or secret
        assert not core or core not in message
    assert caught.value.__cause__ is None


@given(
    st.lists(st.text(max_size=80), max_size=3), st.lists(st.sampled_from(["v1", "v1a", "github"]), max_size=3)
)
def test_any_text_as_a_secret_is_refused_or_signs(secrets: list[str], signatures: list[str]) -> None:
    try:
        signers = make_signers(secrets, signatures)
    except ValueError:
        return
    lines = signers.header_lines(b"id", b"1", b"")
    assert lines.endswith(b"\r\n")
    assert lines.count(b"\r\n") == lines.count(b"\n") == lines.count(b"\r") <= 2


def test_the_repr_shows_schemes_and_no_secret() -> None:
    signers = make_signers([V1, V1A], ["v1", "v1a", "github"])
    signers.header_lines(*MESSAGE)
    assert repr(signers) == "<Signers v1 v1a github>"


ALMOST = st.text("Aa0/+-_=Qg9", max_size=4).flatmap(
    lambda end: st.sampled_from([28, 32, 40, 41, 42, 43, 44, 88]).map(
        lambda length: "whsec_" + "A" * (length - len(end)) + end
    )
)


@given(st.lists(st.binary(min_size=24, max_size=32).map(whsec) | ALMOST, max_size=MAX_SECRETS + 1))
def test_what_is_found_usual_can_sign(secrets: list[str]) -> None:
    if usual_secrets(secrets):
        make_signers(secrets, ["v1"])


@pytest.mark.parametrize("size", [24, 32])
def test_keys_of_the_usual_sizes_are_found_usual(size: int) -> None:
    secrets = [whsec(bytes([number] * size)) for number in range(MAX_SECRETS)]
    assert usual_secrets(secrets)
    assert not usual_secrets([])
    assert not usual_secrets([*secrets, whsec(bytes(30))])
    assert not usual_secrets(secrets[:1] * 2)


def test_the_pads_of_one_v1_secret_sign_as_its_signers_do() -> None:
    signers = make_signers([V1], ["v1"])
    pads = signers.pads()
    assert len(pads) == PADS
    assert v1_line(pads + b"POST / HTTP/1.1", *MESSAGE) == signers.header_lines(*MESSAGE)
    newer = whsec(bytes(range(24)))
    for secrets, signatures in (
        ([newer, V1], ["v1"]),
        ([V1A], ["v1a"]),
        ([V1], ["github"]),
        ([V1], ["v1", "github"]),
    ):
        assert make_signers(secrets, signatures).pads() == b""
