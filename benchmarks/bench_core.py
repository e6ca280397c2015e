"""What the pure parts cost: decoding, signing, building a request, guarding. Microseconds each, 1 KiB bodies.

Each figure is the best of several rounds: on a shared machine everything else is noise of the others.
"""

import hmac
import timeit
from base64 import b64encode
from collections.abc import Callable, Sequence

import orjson

from dispatcher.broker.base import StoredRecord
from dispatcher.core.event.decode import JSON_HEAD, Event, decode
from dispatcher.core.request.build import Template, build, template
from dispatcher.core.request.netguard import Guard
from dispatcher.core.request.signing import Signers, make_signers, v1_line

ROUNDS = 15
SECONDS = 0.03  # of one round

MEMBERS = {"id": "evt_2dKx7Qp0bVhZ", "type": "book.published", "created": 1486697174, "tenant": "acme"}
DATA = {f"field_{number:02}": "value of some length " + "x" * 6 for number in range(22)}
ENVELOPE = orjson.dumps({**MEMBERS, "data": DATA})
CLOUD = orjson.dumps(
    {
        "specversion": "1.0",
        "id": "evt_2dKx7Qp0bVhZ",
        "source": "/shop",
        "type": "book.published",
        "time": "2017-02-10T03:26:14Z",
        "data": DATA,
    }
)
TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
ROUTED = (
    ("type", b"book.published"),
    ("id", b"evt_2dKx7Qp0bVhZ"),
    ("tenant", b"acme"),
    ("content-type", b"application/json"),
)
BINARY = (
    ("ce_specversion", b"1.0"),
    ("ce_id", b"evt_2dKx7Qp0bVhZ"),
    ("ce_source", b"/shop"),
    ("ce_type", b"book.published"),
    ("ce_time", b"2017-02-10T03:26:14Z"),
    ("content-type", b"application/json"),
)


def record(value: bytes, headers: Sequence[tuple[str, bytes | None]] = ()) -> StoredRecord:
    return StoredRecord(1_234_567, 1_700_000_000_123, None, value, headers)


def cost(call: Callable[[], object]) -> float:
    """Microseconds of one call, the loop's own cost included (0.03)."""
    timer = timeit.Timer(call)
    number, taken = timer.autorange()
    number = max(int(number * SECONDS / taken), 1)
    return min(timer.repeat(ROUNDS, number)) / number * 1e6


def signers() -> dict[str, Signers]:
    first, second = ("whsec_" + b64encode(letter * 32).decode() for letter in (b"a", b"b"))
    seed = "whsk_" + b64encode(b"s" * 32).decode()
    return {
        "v1": make_signers([first], ["v1"]),
        "v1, two secrets": make_signers([first, second], ["v1"]),
        "v1a": make_signers([seed], ["v1a"]),
        "github": make_signers([first], ["github"]),
    }


def cases() -> dict[str, Callable[[], object]]:
    """Every figure's name and the call that it is of."""
    made: dict[str, Callable[[], object]] = {}

    def decoding(name: str, value: bytes, headers: Sequence[tuple[str, bytes | None]] = ()) -> None:
        given = record(value, headers)
        made[f"decode, {name}"] = lambda: decode(given, "events", 3)

    made["(orjson.loads of the envelope alone)"] = lambda: orjson.loads(ENVELOPE)
    decoding("JSON envelope", ENVELOPE)
    decoding("JSON envelope with traceparent", ENVELOPE, (TRACE,))
    decoding("header-routed", ENVELOPE, ROUTED)
    decoding("CloudEvents structured", CLOUD, (("content-type", b"application/cloudevents+json"),))
    decoding("CloudEvents binary", ENVELOPE, BINARY)

    key = b"a" * 32
    made["(hmac.digest of 1 KiB alone)"] = lambda: hmac.digest(key, ENVELOPE, "sha256")
    for name, signer in signers().items():
        made[f"sign, {name}"] = _signing(signer)

    guard = Guard()
    target = guard.check_url("https://hooks.acme.example/webhooks/0123456789")
    event = Event("evt_2dKx7Qp0bVhZ", "book.published", "acme", ENVELOPE, 1_700_000_000_123, JSON_HEAD)
    own = (("Authorization", "Bearer 0123456789"), ("X-Env", "prod"))
    for name, thin in (("build, signing v1 included", False), ("build, thin", True)):
        made[name] = _building(template(target, own, signers()["v1"], thin=thin), event)

    made["check_address, seen before"] = lambda: guard.check_address("93.184.216.34")
    made["check_address, new IPv4"] = lambda: guard._judge("93.184.216.34")
    made["check_address, new IPv6"] = lambda: guard._judge("2606:4700::1111")
    made["check_url"] = lambda: guard.check_url("https://hooks.acme.example/webhooks/0123456789")
    return made


def _signing(signer: Signers) -> Callable[[], object]:
    given = (b"evt_2dKx7Qp0bVhZ", b"1700000000", ENVELOPE)
    pads = signer.pads()
    if pads:  # as `build` does it
        return lambda: v1_line(pads, *given)
    return lambda: signer.header_lines(*given)


def _building(parts: Template, event: Event) -> Callable[[], object]:
    return lambda: build(parts, event, 1_700_000_000)


def results() -> dict[str, float]:
    return {name: cost(call) for name, call in cases().items()}


def main() -> None:
    print(f"core, us per call, {len(ENVELOPE)} byte bodies, best of {ROUNDS}")
    for name, microseconds in results().items():
        print(f"  {name:<38} {microseconds:8.2f}")


if __name__ == "__main__":
    main()
