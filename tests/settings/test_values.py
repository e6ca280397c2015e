"""What each kind of setting takes, and what is said of a value that doesn't fit."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher.settings.groups import DeliverySettings
from tests.settings.test_load import mistakes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- a", ":1: must be a mapping of settings"),
        ("group: a\ngroup: b", ":2: group: this key stands twice here"),
        ("group: 5", ":1: group: must be text: put it in quotes, not '5'"),
        ("group:", ":1: group: must be text: put it in quotes (it is empty)"),
        ("http: {port: true}", "http.port: must be a number, not 'true'"),
        ("http: {port: 70000}", "http.port: must be less than or equal to 65535, not '70000'"),
        ("http: {host: 'http://x'}", "http.host: must be an IP address or a host name"),
        ("http: {host: 1.2.3}", "http.host: must be an IP address or a host name"),
        ("delivery: {timeout: 1h}", "must be between 10ms and 10m, not '1h'"),
        ("delivery: {max_in_flight_bytes: 1000}", "has no unit: write 1000KiB"),
        ("network: {ports: [0]}", "network.ports[0]: must be a port (443) or a range"),
        ("network: {ports: [20-10]}", "network.ports[0]: must be a port"),
        ("network: {proxy: 'proxy:3128'}", "network.proxy: must be http://host:port"),
        ("network: {proxy: 'http://a:b@c:1'}", "network.proxy: must not contain credentials"),
        (
            "network: {proxy_username: kim}",
            "network.proxy: is required with proxy_username",
        ),
        ("network: {proxy: 'http://p:1', proxy_password: x}", "is required with proxy_password"),
        (
            "tracing: {endpoint: 'collector:4317'}",
            "tracing.endpoint: must be the collector's address: http://collector:4318",
        ),
        ("tracing: {endpoint: 'http://a:b@c:4318'}", "tracing.endpoint: must not contain credentials"),
        ("tracing: {headers: [x-api-key]}", "tracing.headers[0]: must be name=value"),
        ("tracing: {protocol: http/json}", "tracing.protocol: must be"),
        (
            "tracing: {propagate: attempt}",
            "tracing.propagate: attempt has no effect: tracing.enabled must be true",
        ),
        ("console: {color: red, name: a}", "console.color: must be a colour such as '#b3261e'"),
        ("console: {name: 'a\tb'}", "console.name: must be 1 to 40 printable characters"),
        ("console: {trusted_header: X_User}", "console.trusted_header: must be the name of a header"),
        (
            "console: {trusted_header: Cookie}",
            "console.trusted_header: must not be a header that has a meaning",
        ),
        ("portal: {frame_ancestors: ['*']}", "portal.frame_ancestors[0]: must be an origin such as"),
        ("portal: {frame_ancestors: ['https://a.example/x']}", "must be an origin such as"),
        ('portal: {frame_ancestors: ["https://a.example; script-src *"]}', "must be an origin such as"),
        ("portal: {frame_ancestors: ['http://a.example']}", "must be an origin such as"),
        ("portal: {url: 'https://a.example/portal?x=1'}", "portal.url: must be an address such as"),
        ("payload: {mask: [card]}", "payload.mask[0]: must be a path such as /data/card/number"),
        ("network: {bind: eth0}", "network.bind: must be an IP address, not 'eth0'"),
        (
            "network: {dns_servers: [dns.example]}",
            "network.dns_servers[0]: must be the IP address of a name server",
        ),
        ("topics: {events: []}", "topics.events: must not be empty"),
        ("topics: {events: [a b]}", "topics.events[0]: must be a topic name"),
        ("topics: {events: [a, a]}", "topics.events: must not contain a value twice"),
        ("broker: kafka://user:pass@host", "broker: must not contain credentials"),
        ("broker: 'sqlite://x.db'", "broker: must be kafka://"),
        ("broker: 'kafka://host:99999'", "broker: must be kafka://"),
        ("retry: {tiers: []}", "retry.tiers: must not be empty"),
        # Between fields, which are right by themselves:
        (
            "delivery: {connect_timeout: 20s}",
            ":1: delivery.connect_timeout: must not exceed delivery.timeout (15s)",
        ),
        ("kafka: {heartbeat_interval: 20s}", "kafka.heartbeat_interval: must be at most a third"),
        ("kafka: {security_protocol: sasl_ssl, sasl_password: x}", "kafka.sasl_username: is required"),
        ("kafka: {sasl_username: x}", "kafka.sasl_username: has no effect"),
        ("kafka: {tls_ca_file: x}", "kafka.tls_ca_file: has no effect"),
        ("kafka: {security_protocol: ssl, tls_key_file: x}", "kafka.tls_cert_file: is required"),
        ("retry: {tiers: [1m, 2m]}", "retry.tiers: must begin with at most retry.horizon (30s)"),
        ("retry: {tiers: [10s, 5s]}", "retry.tiers: must grow"),
        ("retry: {hold_limit: 20s}", ":1: retry.horizon: must not exceed retry.hold_limit (20s)"),
        ("topics: {events: [dispatcher.dead]}", "must not contain dispatcher.dead"),
        ("network: {dns_ttl_min: 10m}", "network.dns_ttl_min: must not exceed"),
        ("console: {color: '#b3261e'}", "console.color: has no effect without console.name"),
        ("console: {trusted_operators: [ada]}", "console.trusted_operators: has no effect without"),
        ("console: {trusted_header: X-User}", "console.trusted_header: needs http.trusted_proxies"),
        (
            "{console: {enabled: false, trusted_header: X-User}, http: {trusted_proxies: [10.0.0.1]}}",
            "console.trusted_header: has no effect: console.enabled must be true",
        ),
        ("http: {host: 0.0.0.0}", ":1: api.keys: is required where http.host (0.0.0.0) is not loopback"),
    ],
)
def test_each_mistake_says_what_would_be_right(write: Any, text: Any, said: Any) -> None:
    found = mistakes(write(text))
    assert len(found) == 1, found
    assert said in found[0]


def test_code_passes_plain_seconds_and_bytes() -> None:
    made = DeliverySettings(timeout=0.5, max_in_flight_bytes=1 << 20)
    assert (made.timeout, made.max_in_flight_bytes) == (0.5, 1 << 20)
