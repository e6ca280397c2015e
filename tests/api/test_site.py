"""What a request says about the browser that sent it, and whom it is believed from."""

from __future__ import annotations

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from dispatcher.api.limits import TrustedProxies
from dispatcher.api.problems import Problem
from dispatcher.api.site import cookie_of, refuse_other_sites, set_cookie, site_of

PROXY, STRANGER = "10.0.0.1", "192.0.2.7"
PROXIES = TrustedProxies((PROXY,))


def request(method: str = "POST", remote: str = STRANGER, **headers: str) -> web.Request:
    given = {"Host": "hooks.example", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return make_mocked_request(method, "/v1/session", headers=given).clone(remote=remote)


def test_only_a_trusted_proxy_says_how_the_browser_came() -> None:
    said = {"X_Forwarded_Proto": "http, https", "X_Forwarded_Host": "webhooks.example.com:444"}
    assert site_of(request(remote=PROXY, **said), PROXIES) == ("https", "webhooks.example.com:444")
    assert site_of(request(remote=STRANGER, **said), PROXIES) == (None, "hooks.example")


def test_without_a_proxy_the_origin_of_a_change_says_the_scheme() -> None:
    assert site_of(request(Origin="https://hooks.example"), PROXIES).scheme == "https"
    assert site_of(request(Origin="http://hooks.example"), PROXIES).scheme == "http"
    assert site_of(request(Origin="https://evil.example"), PROXIES).scheme is None
    assert site_of(request(Origin="null"), PROXIES).scheme is None
    assert site_of(request(X_Forwarded_Proto="javascript", remote=PROXY), PROXIES).scheme is None


def test_a_host_that_is_none_gets_into_no_address() -> None:
    assert site_of(request(Host='evil"><script>'), PROXIES).host == "localhost"


@pytest.mark.parametrize(
    ("method", "headers", "ours"),
    [
        ("GET", {}, True),
        ("GET", {"Sec_Fetch_Site": "same-origin"}, True),
        ("GET", {"Sec_Fetch_Site": "none"}, True),
        ("GET", {"Sec_Fetch_Site": "same-site"}, False),
        ("GET", {"Sec_Fetch_Site": "cross-site"}, False),
        ("GET", {"Origin": "https://evil.example"}, False),
        ("POST", {}, False),
        ("POST", {"Sec_Fetch_Site": "same-origin"}, True),
        ("POST", {"Sec_Fetch_Site": "none"}, False),
        ("POST", {"Sec_Fetch_Site": "cross-site", "Origin": "https://hooks.example"}, False),
        ("POST", {"Origin": "https://hooks.example"}, True),
        ("POST", {"Origin": "https://hooks.example:8443"}, False),
        ("POST", {"Origin": "https://evil.example"}, False),
        ("POST", {"Origin": "null"}, False),
        ("DELETE", {"Origin": "https://hooks.example.evil.example"}, False),
    ],
)
def test_a_change_has_to_come_from_a_page_of_ours(method: str, headers: dict[str, str], ours: bool) -> None:
    if ours:
        refuse_other_sites(request(method, **headers), PROXIES)
    else:
        with pytest.raises(Problem) as caught:
            refuse_other_sites(request(method, **headers), PROXIES)
        assert caught.value.kind.name == "FOREIGN_ORIGIN"


def test_over_https_the_cookie_is_bound_to_it_and_the_plain_one_counts_for_nothing() -> None:
    https = site_of(request(Origin="https://hooks.example"), PROXIES)
    plain = site_of(request(Origin="http://hooks.example"), PROXIES)
    assert set_cookie("d", "v", 60, https) == (
        "__Host-d=v; Path=/; Max-Age=60; HttpOnly; SameSite=Strict; Secure"
    )
    assert set_cookie("d", "v", 60, plain) == "d=v; Path=/; Max-Age=60; HttpOnly; SameSite=Strict"
    both = request(Cookie="d=planted; __Host-d=v")
    assert cookie_of(both, "d", https) == cookie_of(both, "d", plain) == "v"
    planted = request(Cookie="d=planted")
    assert cookie_of(planted, "d", https) is None
    assert cookie_of(planted, "d", plain) == "planted"
