"""TLS settings, the meaning of TLS errors, and the gate that keeps handshakes from stalling the loop.

Verification can't be turned off: a deployment with a private authority names it in
`network.ca_file`.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import Final

from dispatcher.core.endpoint.rounds import Rounds
from dispatcher.core.request.results import Failure, Reason
from dispatcher.core.subscription.model import ClientCertificate

# X509_V_ERR_* of OpenSSL (x509_vfy.h). Whatever else fails in verification is a matter of trust.
_EXPIRED: Final = {9: "the certificate is not valid yet", 10: "the certificate has expired"}
_HOSTNAME: Final = {62, 63, 64}

# A handshake step is asymmetric cryptography, a fraction of a millisecond. The loop bears a few of them in one turn, but not the
# hundreds that may become ready together.
_GATE_BUDGET: Final = 0.002  # seconds


def context(ca_file: str | None = None, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """A client context: TLS 1.2 or newer, chain and host name verified.

    Trust: `ca_file` (PEM) alone, or without it the system's store. Raises OSError for an unreadable file.
    """
    made = ssl.create_default_context(cafile=ca_file)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    # Only a TLS 1.2 server could ask for it, and nothing good ever came of it.
    made.options |= ssl.OP_NO_RENEGOTIATION
    # Some servers pick HTTP/2 when nobody says otherwise.
    made.set_alpn_protocols(["http/1.1"])
    if certificate is not None:
        made.load_cert_chain(*certificate, password="")  # or OpenSSL would ask on the terminal
    return made


def failure(error: ssl.SSLError) -> Failure:
    """The reason in our words; OpenSSL's own in the detail."""
    if isinstance(error, ssl.SSLCertVerificationError):
        message = error.verify_message or "certificate verification failed"
        if error.verify_code in _EXPIRED:
            return Failure(Reason.TLS_EXPIRED, _EXPIRED[error.verify_code])
        if error.verify_code in _HOSTNAME:
            return Failure(Reason.TLS_HOSTNAME, message)
        return Failure(Reason.TLS_UNTRUSTED, message)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return Failure(Reason.TLS_FAILED, "the endpoint closed the connection during the TLS handshake")
    reason = (error.reason or "").replace("_", " ").lower()
    return Failure(Reason.TLS_FAILED, f"TLS: {reason or error}")


class Gate:
    """Runs the steps of opening connections, at most some milliseconds of them per turn of the loop.

    Tenants take turns, and of each tenant its endpoints: a tenant whose endpoints close every connection keeps nobody else from opening one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: Rounds[Callable[[], None]] = Rounds()
        self._scheduled = False

    def run(self, step: Callable[[], None], tenant: object = None, endpoint: object = None) -> None:
        """Run `step` in one of the next turns of the loop; those of one endpoint of a tenant in the order of the calls."""
        self._waiting.put(step, tenant, endpoint)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        waiting = self._waiting
        end = time.perf_counter() + _GATE_BUDGET
        try:
            while waiting:
                waiting.pop()()
                if time.perf_counter() >= end:
                    break
        finally:
            if waiting and not self._scheduled:
                self._scheduled = True
                self._loop.call_soon(self._turn)
