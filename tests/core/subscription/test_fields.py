"""What each field of a subscription takes, and what is said of a value that doesn't fit."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.core.retry.policy import RetryPolicy
from tests.core.subscription.test_spec import ED25519, SECRET, flaws, reader, spec


def test_an_empty_schedule_means_one_attempt_and_jitter_stays_the_default() -> None:
    assert reader().read(spec(retry={"schedule": []})).retry == RetryPolicy((), 0.1)


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"id": "a b"}, "id", "A-Z a-z 0-9 _ -"),
        ({"rate_limit": 5}, "rate_limit", "write 5/s"),
        ({"rate_limit": "5"}, "rate_limit", "100/s, 10/m, 1000/h"),
        ({"rate_limit": "0/s"}, "rate_limit", "between 1/h and 100000/s"),
        ({"rate_limit": "0.5/h"}, "rate_limit", "between 1/h and 100000/s"),
        ({"id": "x" * 65}, "id", "1 to 64"),
        ({"id": "a\n"}, "id", "1 to 64"),
        ({"id": 123}, "id", "put it in quotes"),
        ({"id": ...}, "id", "is required"),
        ({"tenant": ""}, "tenant", "printable"),
        ({"tenant": 7}, "tenant", "put it in quotes"),
        ({"url": ...}, "url", "is required"),
        ({"url": "http://hooks.acme.example/"}, "url", "https_only"),
        ({"url": "https://127.0.0.1/"}, "url", "loopback"),
        ({"url": "https://user:hunter2@hooks.acme.example/"}, "url", "credentials"),
        ({"event_types": []}, "event_types", "1 to 256 entries"),
        ({"event_types": "billing.*"}, "event_types", "must be a list"),
        ({"event_types": ["ok", "bill*"]}, "event_types[1]", "whole"),
        ({"secrets": []}, "secrets", "at least one"),
        ({"secrets": [SECRET, "whsec_abc"]}, "secrets[1]", "base64"),
        ({"secrets": [ED25519]}, "secrets[0]", "v1a only"),
        ({"secrets": ["short"]}, "secrets[0]", "whsec_"),
        ({"signatures": ["v2"]}, "signatures[0]", "'v1', 'v1a' or 'github'"),
        ({"signatures": ["v1a"]}, "secrets[0]", "can't sign v1a"),
        ({"signatures": []}, "signatures", "at least one"),
        ({"headers": ["X-A: 1"]}, "headers", "mapping"),
        ({"headers": {"X-A": 1}}, "headers.X-A", "quotes"),
        ({"headers": {"Host": "x"}}, "headers.Host", "set by the dispatcher"),
        ({"headers": {"content-length": "1"}}, "headers.content-length", "set by the dispatcher"),
        ({"headers": {"Webhook-Id": "1"}}, "headers.Webhook-Id", "set by the dispatcher"),
        ({"headers": {"Content-Type": "a/b"}}, "headers.Content-Type", "set by the dispatcher"),
        ({"headers": {"Proxy-Authorization": "x"}}, "headers.Proxy-Authorization", "set by"),
        ({"headers": {"X A": "1"}}, "headers.X A", "header name"),
        ({"headers": {"X-A": "a\r\nHost: b"}}, "headers.X-A", "visible ASCII"),
        ({"headers": {"X-A": "a\0b"}}, "headers.X-A", "visible ASCII"),
        ({"headers": {"X-A": "é"}}, "headers.X-A", "visible ASCII"),
        ({"headers": {"Authorization": "Digest abc"}}, "headers.Authorization", "Basic or Bearer"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a", "twice"),
        ({"headers": {f"X-{n}": "v" * 1000 for n in range(9)}}, "headers", "8192"),
        ({"headers": {f"X-{n}": "v" for n in range(33)}}, "headers", "at most 32"),
        ({"payload": "thick"}, "payload", "'full' or 'thin'"),
        ({"redirects": "always"}, "redirects", "'never' or 'same-origin'"),
        ({"status": "off"}, "status", "'pending' or 'disabled'"),
        ({"timeout": 15}, "timeout", "no unit"),
        ({"timeout": "11m"}, "timeout", "between 10ms and 10m"),
        ({"max_in_flight": 0}, "max_in_flight", "greater than or equal to 1"),
        ({"max_in_flight": True}, "max_in_flight", "must be a number"),
        ({"max_in_flight": 1.5}, "max_in_flight", "whole number"),
        ({"retry": {"schedule": ["5"]}}, "retry.schedule[0]", "with its unit"),
        ({"retry": {"schedule": ["1s"] * 101}}, "retry.schedule", "at most 100"),
        ({"retry": {"jitter": 1.5}}, "retry.jitter", "less than or equal to 1"),
        ({"retry": {"jiter": 1}}, "retry.jiter", "did you mean jitter?"),
        ({"evnt_types": ["a"]}, "evnt_types", "did you mean event_types?"),
        ({"validte": True}, "validte", "did you mean validate?"),
    ],
)
def test_each_mistake_is_named_with_its_field(changes: Any, field: Any, said: Any) -> None:
    found = flaws(spec(**changes))
    assert list(found) == [field]
    assert said in found[field]
