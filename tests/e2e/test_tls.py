"""Delivering over TLS, with a client certificate, by the whole program."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from dispatcher.broker.base import Message
from tests.e2e.daemon import Daemon, Endpoint, envelope, publish


async def test_events_reach_an_endpoint_that_demands_a_client_certificate(tmp_path: Path) -> None:
    ours, theirs = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.issue_cert("127.0.0.1").configure_cert(context)
    ours.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    theirs.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    ours.issue_cert("dispatcher.example").private_key_and_cert_chain_pem.write_to_path(
        str(tmp_path / "client.pem")
    )
    async with Endpoint(tls=context) as endpoint:
        with_certificate = {
            "id": "sub_with",
            "tenant": "*",
            "url": f"https://127.0.0.1:{endpoint.port}/with",
            "event_types": ["*"],
            "client_certificate": {"cert_file": str(tmp_path / "client.pem")},
        }
        without = {
            "id": "sub_without",
            "tenant": "*",
            "url": f"https://127.0.0.1:{endpoint.port}/without",
            "event_types": ["*"],
            "retry": {"schedule": []},
        }
        broker = f"sqlite:///{tmp_path}/log.db"
        daemon = Daemon(
            tmp_path, broker, [with_certificate, without], network={"ca_file": str(tmp_path / "ca.pem")}
        )
        events = dict(envelope(number) for number in range(50))
        await publish(broker, [Message("events", value) for value in events.values()])
        try:
            await daemon.start()
            await endpoint.received(set(events), within=60)
            assert await daemon.stop() == 0
        finally:
            await daemon.kill()
        assert {path for path, _, _ in endpoint.requests} == {"/with"}
        failed = daemon.log_lines("attempt failed")
        assert {line["subscription_id"] for line in failed} == {"sub_without"}
        assert len(failed) == 50
