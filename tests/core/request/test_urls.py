"""URLs and redirects: one strict reading, a reason for each refusal."""

import re
from ipaddress import ip_address

import pytest
from hypothesis import example, given, strategies as st

from dispatcher.core.request import urls
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.urls import MAX_URL, RULES, Blocked, Origin, Target
from tests.core.request.test_netguard import ACCEPTED, REFUSED, outcome, refusal


@pytest.mark.parametrize(("url", "rule", "told"), REFUSED)
def test_a_refused_url_says_which_rule_and_what_to_write(url: str, rule: str, told: str) -> None:
    blocked = refusal(Guard().check_url, url)
    assert (blocked.rule, told in str(blocked)) == (rule, True), str(blocked)
    assert re.fullmatch(r"[ -~]*", str(blocked)), "the message must be safe to log"


@pytest.mark.parametrize(("url", "host", "port", "target", "host_header"), ACCEPTED)
def test_an_accepted_url_has_one_canonical_form(
    url: str, host: str, port: int, target: str, host_header: str
) -> None:
    found = Guard().check_url(url)
    assert found == Target(Origin("https", host, port), target, host_header)
    assert Guard().check_url(found.url) == found


def test_the_message_gives_away_neither_credentials_nor_path() -> None:
    for url in ("https://user:hunter2@example.com/", "https://10.0.0.1/hunter2?hunter2", "http://a/hunter2"):
        assert "hunter2" not in str(refusal(Guard().check_url, url))


def test_http_is_accepted_when_allowed_with_its_own_default_port() -> None:
    guard = Guard(https_only=False)
    assert guard.check_url("http://example.com/x") == Target(
        Origin("http", "example.com", 80), "/x", "example.com"
    )
    assert guard.check_url("http://example.com:443/").host_header == "example.com:443"
    assert "or http://" in str(refusal(guard.check_url, "ftp://example.com"))


def test_the_ports_setting_replaces_the_default() -> None:
    guard = Guard(ports=[443, "8000-8002"])
    assert guard.check_url("https://example.com:8002/").origin.port == 8002
    assert refusal(guard.check_url, "https://example.com:8003/").rule == "port"
    assert refusal(guard.check_url, "https://example.com:80/").rule == "port"


@pytest.mark.parametrize("ports", [["0"], ["65536"], ["10-5"], ["x"], ["1-2-3"], [""], [-1], ["1-"]])
def test_a_port_setting_that_is_neither_port_nor_range_is_named(ports: list[str]) -> None:
    with pytest.raises(ValueError, match="ports: "):
        Guard(ports=ports)


def test_the_origin_reads_as_in_a_url() -> None:
    assert str(Origin("https", "example.com", 443)) == "https://example.com"
    assert str(Origin("http", "::1", 8080)) == "http://[::1]:8080"


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://example.com/x", "/x"),
        ("HTTPS://EXAMPLE.com:443/x", "/x"),
        ("//example.com/x", "/x"),
        ("/x?y", "/x?y"),
        ("/a/../x", "/x"),
        ("/../../x", "/x"),
        ("x", "/a/x"),
        ("./x", "/a/x"),
        ("../x", "/x"),
        ("../../../x/", "/x/"),
        ("..", "/"),
        (".", "/a/"),
        ("x/.", "/a/x/"),
        ("?z", "/a/b?z"),
        ("x?y/../z", "/a/x?y/../z"),
        ("/x#fragment", "/x"),
        ("/\xe9", "/%C3%A9"),
    ],
)
def test_a_redirect_within_the_origin_is_resolved(location: str, target: str) -> None:
    guard = Guard()
    base = guard.check_url("https://example.com/a/b?c")
    assert guard.check_redirect(base, location) == Target(base.origin, target, base.host_header)


@pytest.mark.parametrize(
    ("location", "rule"),
    [
        ("https://evil.example/", "redirect"),
        ("//evil.example/", "redirect"),
        ("https://example.com:8443/", "redirect"),
        ("https://sub.example.com/", "redirect"),
        ("http://example.com/", "https_only"),
        ("https://127.0.0.1/", "address"),
        ("//169.254.169.254/latest", "address"),
        ("https://0x7f000001/", "notation"),
        ("//[::ffff:127.0.0.1]/", "notation"),
        ("https://example.com@evil.example/", "userinfo"),
        ("/\\evil.example/", "characters"),
        ("\\\\evil.example/", "characters"),
        ("/x\r\nHost: evil", "characters"),
        ("/x y", "characters"),
        ("/%", "syntax"),
        ("file:///etc/passwd", "scheme"),
        ("javascript:x", "scheme"),
        ("", "syntax"),
        ("#x", "syntax"),
        ("/" + "x" * 30_000, "length"),
    ],
)
def test_a_redirect_that_leads_elsewhere_is_refused(location: str, rule: str) -> None:
    guard = Guard()
    assert refusal(guard.check_redirect, guard.check_url("https://example.com/a/b?c"), location).rule == rule


# Everything that makes up URLs, so that random strings get past the first check.
PIECES = st.sampled_from(
    [
        *("https://", "http://", "//", "/", ":", "@", "?", "#", "[", "]", "%", ".", "-", "\\", "%41", "xn--"),
        *(
            "0x7f",
            "0177",
            "127",
            "1",
            "::",
            "ffff",
            "example",
            "com",
            "localhost",
            "\uff11",
            "\u3002",
            "\xe9",
        ),
        *("\u200d", "\u05d0", "\u0661", "\ud800", "\0", "\r\n", " ", "v1.", "443", "a" * 63),
    ]
)


URLS = st.one_of(
    st.text(),
    st.builds("https://{}".format, st.text()),
    st.builds("https://{}/{}".format, st.text(max_size=20), st.text()),
    st.lists(PIECES).map("".join),
    st.builds("https://{}".format, st.lists(PIECES).map("".join)),
    st.builds("https://{}.{}:{}/{}?{}".format, st.text(), st.text(), st.integers(), st.text(), st.text()),
    st.builds("https://[{}]/".format, st.ip_addresses(v=6)),
    st.builds("https://{}/".format, st.ip_addresses(v=4)),
)


@given(URLS)
@example("https://\u1e9e.\u0345")
@example("https://xn--\xe9")
def test_any_string_is_either_refused_or_has_a_canonical_form(url: str) -> None:
    guard = Guard()
    found = outcome(guard.check_url, url)
    if isinstance(found, Blocked):
        assert found.rule in RULES
        assert str(found).isascii()
        assert str(found).isprintable()
        return
    host = found.origin.host
    assert re.fullmatch(r"[a-z0-9_.-]{1,253}|[0-9a-f:]{2,39}", host)
    assert re.fullmatch(r"/[!-~]*", found.target)
    assert not set('#\\"<>') & set(found.target)
    assert re.fullmatch(r"[!-~]+", found.host_header)
    assert len(found.url) <= MAX_URL
    assert guard.check_url(found.url) == found
    try:
        literal = ip_address(host)
    except ValueError:
        return
    guard.check_address(str(literal))


@given(st.from_regex(urls._CANONICAL, fullmatch=True) | URLS)
@example("https://a.example:22/")
@example("http://a.example/")
@example("https://" + "a" * 63 + ".example/")
@example("https://" + "a" * 64 + ".example/")
@example("https://" + "a." * 127 + "example/")
def test_a_url_in_its_canonical_spelling_is_read_as_any_other(url: str) -> None:
    for guard in (Guard(), Guard(https_only=False, ports=(80, 443))):
        found, expected = outcome(guard.check_url, url), outcome(guard._urls._read, url)
        if isinstance(expected, Blocked) and len(url) <= MAX_URL:
            assert isinstance(found, Blocked)
            assert (found.rule, str(found)) == (expected.rule, str(expected))
        elif len(url) <= MAX_URL:
            assert found == expected


@given(URLS)
def test_any_location_is_either_refused_or_stays_within_the_origin(location: str) -> None:
    guard = Guard()
    base = guard.check_url("https://example.com/a/b?c")
    found = outcome(guard.check_redirect, base, location)
    if isinstance(found, Blocked):
        assert found.rule in RULES
    else:
        assert found.origin == base.origin
        assert re.fullmatch(r"/[!-~]*", found.target)
