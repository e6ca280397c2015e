from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trustme

import dispatcher.registry.file as module
from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.fields import FIELDS
from dispatcher.registry.file import SubscriptionsError, load_file
from dispatcher.settings.groups import RetrySettings, Settings
from tests.registry.conftest import SECRET, document, entry


def mistakes(file: Any, text: Any, environ: Any = None) -> Any:
    file.write_text(text)
    with pytest.raises(SubscriptionsError) as caught:
        load_file(file, Settings(), Guard(), environ or {"S": SECRET})
    return [each.removeprefix(f"{file}") for each in caught.value.mistakes]


def test_a_file_is_read_with_the_settings_defaults(file: Any) -> None:
    file.write_text(
        "x-shared: &s {timeout: 3s}\n" + document(entry("a", '"*"'), entry("b", extra=", <<: *s"))
    )
    settings = Settings(retry=RetrySettings(schedule=(1.0,), jitter=0))
    first, second = load_file(file, settings, Guard(), {"S": SECRET})
    assert (first.id, first.timeout, first.retry) == ("a", 15.0, ((1.0,), 0.0))
    assert (second.id, second.timeout, second.secrets) == ("b", 3.0, (SECRET,))


def test_all_mistakes_of_all_entries_are_listed_with_line_id_and_field(file: Any) -> None:
    found = mistakes(
        file,
        "subscriptions:\n"
        "  - id: good\n"
        "    url: https://good.example/\n"
        "    event_types: [ping]\n"
        '    secrets: ["${S}"]\n'
        "  - id: bad\n"
        "    url: https://bad.example/\n"
        "    event_types:\n"
        "      - ok\n"
        "      - no*\n"
        '    secrets: ["${MISSING}"]\n'
        "    retry:\n"
        "      jiter: 1\n"
        "  - id: good\n"
        "    url: https://good.example/2\n"
        "    event_types: [ping]\n"
        '    secrets: ["${S}"]\n'
        "  - just text\n"
        "subscription: []\n",
    )
    assert sorted(found) == sorted(
        [
            ":11: bad: secrets[0]: needs the environment variable MISSING, which is not set",
            ":10: bad: event_types[1]: has a * that is only a part of a segment: it stands for whole ones, as in billing.*",
            ":13: bad: retry.jiter: there is no such field (did you mean jitter?)",
            ":14: good: id: stands in line 2 already",
            ":18: entry 4: must be a mapping of names to values",
            ":19: subscription: there is no such key (did you mean subscriptions?)",
        ]
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": has no `subscriptions:`"),
        ("# nothing\n", ": has no `subscriptions:`"),
        ("{}", ": has no `subscriptions:`"),
        ("x-a: 1\n", ": has no `subscriptions:`"),
        ("- id: a\n", ":1: must begin with `subscriptions:`"),
        ("subscriptions:\n", ":1: subscriptions: must be a list"),
        ("subscriptions: {a: 1}\n", ":1: subscriptions: must be a list"),
        ("subscriptions: [\n", "is not valid YAML"),
        ("subscriptions:\n  - {id: a, id: b}\n", ":2: id: this key stands twice here"),
    ],
)
def test_a_file_of_another_shape_is_refused(file: Any, text: Any, said: Any) -> None:
    assert any(each.startswith(said) or said in each for each in mistakes(file, text))


def test_no_subscriptions_at_all_are_written_as_an_empty_list(file: Any) -> None:
    file.write_text("subscriptions: []\n")
    assert load_file(file, Settings(), Guard(), {}) == []


def test_very_many_mistakes_are_counted_and_not_all_printed(file: Any) -> None:
    file.write_text(document(*[entry(f"s{n}", "a*") for n in range(150)]))
    with pytest.raises(SubscriptionsError, match=r"\.\.\. and 50 more") as caught:
        load_file(file, Settings(), Guard(), {"S": SECRET})
    assert len(caught.value.mistakes) == 150


async def test_only_a_regular_file_of_a_stated_size_is_read(file: Any, monkeypatch: Any) -> None:
    os.mkfifo(file)
    for path, kind in ((file, "a FIFO"), (file.parent, "a directory"), (Path("/dev/zero"), "a device")):
        with pytest.raises(SubscriptionsError, match="directory" if kind == "a directory" else kind):
            load_file(path, Settings(), Guard(), {})
    file.unlink()
    text = document(entry("a"))
    file.write_text(text)
    monkeypatch.setattr(module, "MAX_FILE", len(text))
    assert len(load_file(file, Settings(), Guard(), {"S": SECRET})) == 1
    with file.open("ab") as opened:
        opened.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(SubscriptionsError, match="is larger than"):
        load_file(file, Settings(), Guard(), {})


def test_a_client_certificate_that_is_a_fifo_holds_nothing_up(file: Any, tmp_path: Any) -> None:
    fifo = tmp_path / "client.pem"
    os.mkfifo(fifo)
    [said] = mistakes(file, document(entry("a", extra=f", client_certificate: {{cert_file: {fifo}}}")))
    assert f"{fifo} is no regular file" in said


def test_the_example_file_is_valid_and_shows_every_field() -> None:
    example = Path(__file__).parents[2] / "config" / "subscriptions.yaml"
    names = ("AUDIT_WEBHOOK_SECRET", "ACME_WEBHOOK_SECRET", "GLOBEX_WEBHOOK_SECRET", "ACME_WEBHOOK_TOKEN")
    environ = dict.fromkeys(names, SECRET) | {"ACME_OLD_WEBHOOK_SECRET": SECRET[:-1] + "A"}
    found = load_file(example, Settings(), Guard(), environ)
    assert [each.id for each in found] == ["audit", "sub_billing", "slow-crm"]
    text = example.read_text()
    assert [field for field in FIELDS if f"{field}:" not in text] == []


def test_a_client_certificate_that_cannot_be_used_is_a_mistake_at_once(file: Any, tmp_path: Any) -> None:
    certificate = trustme.CA().issue_cert("client.example")
    good, no_key = tmp_path / "good.pem", tmp_path / "no-key.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(good))
    certificate.cert_chain_pems[0].write_to_path(str(no_key))
    named = ", client_certificate: {{cert_file: '{}'}}"
    file.write_text(document(entry("a", extra=named.format(good))))
    (read,) = load_file(file, Settings(), Guard(), {"S": SECRET})
    assert read.certificate == (str(good), None)
    for unusable in (no_key, tmp_path / "missing.pem", tmp_path / ("long" * 1000)):
        (said,) = mistakes(file, document(entry("a", extra=named.format(unusable))))
        assert said.startswith(":2: a: client_certificate: ")
        assert str(unusable) in said


def test_a_client_certificate_for_plain_http_is_a_mistake(file: Any) -> None:
    text = "subscriptions:\n  - {id: a, url: 'http://a.example/', event_types: [ping], secrets: ['${S}'], client_certificate: {cert_file: x}}\n"
    file.write_text(text)
    with pytest.raises(SubscriptionsError, match="client_certificate: has no effect: the URL is not https"):
        load_file(file, Settings(), Guard(https_only=False), {"S": SECRET})


def test_a_file_of_json_is_read_at_once_with_the_same_result_and_its_mistakes_have_lines_all_the_same(
    file: Any, monkeypatch: Any
) -> None:
    entries = [
        {
            "id": f"s{number}",
            "url": "https://hooks.example/",
            "event_types": ["ping"],
            "secrets": [SECRET],
            "retry": {"schedule": ["2s"] * 5, "jitter": 0.5},
        }
        for number in range(5)
    ]
    document = {"x-made-by": "a program", "subscriptions": entries}
    file.write_text(json.dumps(document, indent=1))
    content = file.read_bytes()
    reader = module.subscription_reader(Settings(), Guard(), {})
    slow = module.read_entries(file, content, reader, {})
    monkeypatch.setattr(module, "stream", None)
    quick = module.read_entries(file, content, reader, {}, at_once=True)
    assert [(id_, each.digest, each.subscription.retry) for id_, each in quick.items()] == [
        (id_, each.digest, each.subscription.retry) for id_, each in slow.items()
    ]
    monkeypatch.undo()

    broken: list[dict[str, Any]] = [
        {**document, "subscription": []},
        {"subscriptions": [*entries, entries[0]]},
        {"subscriptions": {}},
    ]
    for wrong in broken:
        file.write_text(json.dumps(wrong, indent=1))
        with pytest.raises(SubscriptionsError) as told:
            load_file(file, Settings(), Guard(), {})
        with pytest.raises(SubscriptionsError) as expected:
            module.read_entries(file, file.read_bytes(), reader, {})
        assert told.value.mistakes == expected.value.mistakes
        assert any(":" in each.removeprefix(f"{file}:")[:5] for each in told.value.mistakes)
