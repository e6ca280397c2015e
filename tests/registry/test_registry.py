from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import trustme
from structlog.testing import capture_logs

import dispatcher.registry.registry as module
from dispatcher.core.request.netguard import Guard
from dispatcher.core.subscription.index import Status
from dispatcher.core.subscription.spec import FIELDS
from dispatcher.registry.registry import Managed, Registry, Runtime, SubscriptionsError, load_file
from dispatcher.settings.groups import RetrySettings, Settings
from tests.fakes import subscription

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
POLL = 0.02


def entry(name: Any, types: Any = "ping", extra: Any = "") -> Any:
    return f'  - {{id: {name}, url: "https://{name}.example/", event_types: [{types}], secrets: ["${{S}}"]{extra}}}\n'


def document(*entries: Any) -> Any:
    return "subscriptions:\n" + "".join(entries)


@pytest.fixture
def file(tmp_path: Any) -> Any:
    return tmp_path / "subscriptions.yaml"


@pytest.fixture
async def registries(file: Any) -> Any:
    started = []

    async def start(text: Any = None, environ: Any = None, poll: Any = POLL) -> Any:
        if text is not None:
            file.write_text(text)
        registry = Registry(Settings(subscriptions_file=file), Guard(), environ or {"S": SECRET}, poll=poll)
        started.append(registry)
        await registry.start()
        return registry

    yield start
    for registry in started:
        await registry.stop()


async def eventually(condition: Any) -> Any:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(POLL / 2)


def ids(registry: Any) -> Any:
    return sorted(each.id for each in registry.index)


def replace(file: Any, text: Any) -> Any:
    fresh = file.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(file)


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


async def test_without_a_file_there_are_no_subscriptions_of_one_and_that_is_said() -> None:
    registry = Registry(Settings(), Guard(), {})
    with capture_logs() as logs:
        await registry.start()
        assert await registry.reload()
    await registry.stop()
    assert len(registry.index) == 0
    assert [each["log_level"] for each in logs] == ["info", "warning"]


@pytest.mark.parametrize("text", [None, "subscriptions: [", document(entry("a b"))])
async def test_a_start_with_a_missing_or_bad_file_fails(registries: Any, file: Any, text: Any) -> None:
    with pytest.raises(SubscriptionsError, match=r"subscriptions\.yaml"):
        await registries(text)


async def test_a_rewritten_file_is_taken(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    assert ids(registry) == ["a"]
    file.write_text(document(entry("a"), entry("b")))
    await eventually(lambda: ids(registry) == ["a", "b"])
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 0)


async def test_a_replaced_file_is_taken(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_config_map_swapped_by_its_link_is_taken(registries: Any, file: Any, tmp_path: Any) -> None:
    for version in ("one", "two"):
        (tmp_path / version).mkdir()
        (tmp_path / version / file.name).write_text(document(entry(version)))
    (tmp_path / "..data").symlink_to("one")
    file.symlink_to(f"..data/{file.name}")
    registry = await registries()
    assert ids(registry) == ["one"]
    (tmp_path / "..data_tmp").symlink_to("two")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    await eventually(lambda: ids(registry) == ["two"])


async def test_a_bad_file_keeps_the_old_snapshot_and_is_logged_once(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")))
    index = registry.index
    with capture_logs() as logs:
        replace(file, document(entry("a"), entry("b", "no*")))
        await eventually(lambda: registry.reloads_failed == 1)
        replace(file, document(entry("a"), entry("b", "no*")))
        await eventually(lambda: registry.reloads_failed == 2)
    assert registry.index is index
    [line] = [each for each in logs if each["log_level"] == "error"]
    assert line["mistakes_total"] == 1
    assert ":3: b: event_types[0]" in line["mistakes"][0]
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_file_that_went_away_keeps_the_old_snapshot_until_it_is_back(
    registries: Any, file: Any
) -> None:
    registry = await registries(document(entry("a")))
    file.unlink()
    assert not await registry.reload()
    assert ids(registry) == ["a"]
    file.write_text(document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


async def test_a_file_that_still_changes_is_not_read(registries: Any, file: Any, monkeypatch: Any) -> None:
    registry = await registries(document(entry("a")))
    real = module._look
    looks = 0
    writing = True

    def look(path: Any) -> Any:
        # While somebody writes in place, each look finds another state.
        nonlocal looks
        looks += 1
        return (0, 0, 0, looks) if writing else real(path)

    monkeypatch.setattr(module, "_look", look)
    file.write_text("subscriptions: []\n")  # valid, and not what its author means
    await eventually(lambda: looks >= 5)
    assert (registry.reloads_ok, registry.reloads_failed) == (1, 0)
    file.write_text(document(entry("b")))
    writing = False
    await eventually(lambda: ids(registry) == ["b"])
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 0)


async def test_reload_reads_at_once_and_tells_again_of_the_same_mistake(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    file.write_text(document(entry("a"), entry("b")))
    assert await registry.reload()
    assert ids(registry) == ["a", "b"]
    file.write_text("subscriptions: [")
    with capture_logs() as logs:
        assert not await registry.reload()
        assert not await registry.reload()
    assert [each["log_level"] for each in logs] == ["error", "error"]
    assert (registry.reloads_ok, registry.reloads_failed) == (2, 2)


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_what_didnt_change_keeps_its_subscription(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(module, "_PIECEMEAL", piecemeal)
    registry = await registries(document(entry("a"), entry("b"), entry("c")), poll=1000)
    kept, changed = registry.index.get("a"), registry.index.get("b")
    file.write_text("# moved down\n" + document(entry("d"), entry("b", "pong"), entry("a")))
    assert await registry.reload()
    assert ids(registry) == ["a", "b", "d"]
    assert registry.index.get("a") is kept
    assert registry.index.get("b") is not changed
    assert [each.id for each in registry.index.match(None, "pong")] == ["b"]
    assert sorted(each.id for each in registry.index.match(None, "ping")) == ["a", "d"]
    assert registry.counts() == {"active": 3, "paused": 0, "pending": 0, "disabled": 0}


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_a_disabled_one_stays_so_until_its_entry_changes(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(module, "_PIECEMEAL", piecemeal)
    registry = await registries(
        document(entry("a"), entry("b"), entry("p", extra=", status: paused")), poll=1000
    )
    with capture_logs() as logs:
        registry.disable("a", "gone")
        registry.disable("a", "gone")
        registry.disable("nobody", "gone")
    assert [(each["subscription"], each["reason"]) for each in logs] == [("a", "gone")]
    assert registry.counts() == {"active": 1, "paused": 1, "pending": 0, "disabled": 1}
    for text in (
        document(entry("a"), entry("b", "pong"), entry("p", extra=", status: paused")),
        document(entry("p", extra=", status: paused"), entry("a"), entry("c")),
    ):
        file.write_text(text)
        assert await registry.reload()
        found = registry.index.get("a")
        assert found is not None
        assert (found.status, found.reason) == (Status.DISABLED, "gone")
        assert registry.counts()["disabled"] == 1
    file.write_text(document(entry("a", "ping, pong"), entry("c")))
    assert await registry.reload()
    assert registry.index.match(None, "pong")[0].status is Status.ACTIVE
    assert registry.counts() == {"active": 2, "paused": 0, "pending": 0, "disabled": 0}


async def test_one_disabled_while_the_file_is_read_is_disabled_afterwards(
    registries: Any, file: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(module, "_PIECEMEAL", 0)
    registry = await registries(document(entry("a"), entry("b")), poll=1000)
    loop = asyncio.get_running_loop()
    real = module._read

    def slow(*arguments: Any) -> Any:
        loop.call_soon_threadsafe(registry.disable, "a", "gone")
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        return real(*arguments)

    monkeypatch.setattr(module, "_read", slow)
    file.write_text(document(entry("a"), entry("c")))
    assert await registry.reload()
    found = registry.index.get("a")
    assert found is not None
    assert found.status is Status.DISABLED
    assert registry.counts()["disabled"] == 1


async def test_the_loop_turns_while_a_large_file_is_read(registries: Any, file: Any) -> None:
    registry = await registries(document(*[entry(f"s{n}") for n in range(1500)]), poll=1000)
    turns = 0

    async def turn() -> Any:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.get_running_loop().create_task(turn())
    file.write_text(document(*[entry(f"s{n}", "pong") for n in range(1500)]))
    assert await registry.reload()
    turning.cancel()
    assert len(registry.index.match(None, "pong")) == 1500
    assert turns > 20


async def test_stopping_ends_the_reading_of_a_large_file(registries: Any, file: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    file.write_text(document(*[entry(f"s{n}") for n in range(3000)]))
    reading = asyncio.get_running_loop().create_task(registry.reload())
    await asyncio.sleep(0)
    await registry.stop()
    assert await reading is False
    assert ids(registry) == ["a"]


async def test_a_fifo_is_refused_and_the_file_that_comes_after_it_is_taken(
    registries: Any, file: Any
) -> None:
    """Opening one waits for its writer: the thread that reads would never come back, and nothing be reloaded again."""
    registry = await registries(document(entry("a")))
    file.unlink()
    os.mkfifo(file)
    await eventually(lambda: registry.reloads_failed)
    assert ids(registry) == ["a"]
    replace(file, document(entry("b")))
    await eventually(lambda: ids(registry) == ["b"])


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


async def test_a_file_that_can_not_be_read_is_named_with_the_reason(registries: Any, file: Any) -> None:
    file.mkdir()
    with pytest.raises(SubscriptionsError, match="Is a directory"):
        await registries()


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


# What the API manages, and what becomes of subscriptions at run time.


def managed(name: Any, types: Any = ("ping",), **fields: Any) -> Any:
    return subscription(name, f"https://{name}.example/api", tenant=None, event_types=types, **fields)


async def test_subscriptions_of_the_api_stand_beside_those_of_the_file(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    registry.put_managed(managed("b"), "first")
    assert ids(registry) == ["a", "b"]
    assert sorted(each.id for each in registry.index.match(None, "ping")) == ["a", "b"]
    assert (registry.in_file("a"), registry.in_file("b"), "b" in registry, "c" in registry) == (
        *(True, False),
        *(True, False),
    )
    registry.put_managed(managed("b", ("pong",)), "first")
    assert [each.id for each in registry.index.match(None, "pong")] == ["b"]
    assert registry.counts()["active"] == 2
    registry.remove_managed("b")
    registry.remove_managed("b")
    assert ids(registry) == ["a"]
    assert registry.counts()["active"] == 1


@pytest.mark.parametrize("piecemeal", [100, 0], ids=["piecemeal", "anew"])
async def test_of_an_id_that_both_have_the_files_is_in_force_and_that_is_said(
    registries: Any, file: Any, monkeypatch: Any, piecemeal: Any
) -> None:
    monkeypatch.setattr(module, "_PIECEMEAL", piecemeal)
    registry = await registries(document(entry("a")), poll=1000)
    with capture_logs() as logs:
        registry.put_managed(managed("a", ("of.the.api",)))
    assert [each["subscriptions"] for each in logs if each["log_level"] == "warning"] == [["a"]]
    assert registry.index.match(None, "of.the.api") == ()
    file.write_text(document(entry("b")))
    assert await registry.reload()
    assert [each.id for each in registry.index.match(None, "of.the.api")] == ["a"]
    file.write_text(document(entry("b"), entry("a")))
    with capture_logs() as logs:
        assert await registry.reload()
    assert [each["subscriptions"] for each in logs if each["log_level"] == "warning"] == [["a"]]
    assert registry.index.match(None, "of.the.api") == ()
    assert registry.counts()["active"] == 2


async def test_all_of_the_apis_are_loaded_at_once(registries: Any) -> None:
    registry = await registries(document(entry("a"), entry("b")), poll=1000)
    many = {f"m{n}": Managed(managed(f"m{n}"), "t") for n in range(1000)} | {"b": Managed(managed("b"), "t")}
    tag = registry.tag("a")
    runtimes = {
        "a": Runtime(tag, Status.DISABLED, "gone", 5.0),
        "m1": Runtime("t", Status.DISABLED, "failing", 6.0, 1.0),
        "m2": Runtime("of an earlier one", Status.DISABLED, "gone"),
    }
    with capture_logs() as logs:
        await registry.load_managed(many, runtimes)
    assert [each["total"] for each in logs if each["log_level"] == "warning"] == [1]
    assert len(registry.index) == 1002
    assert registry.counts() == {"active": 1000, "paused": 0, "pending": 0, "disabled": 2}
    assert registry.runtime("a") == runtimes["a"]
    assert (registry.failing("m1"), registry.failing("m2"), registry.runtime("m2")) == (1.0, None, None)


async def test_what_changes_while_a_thread_builds_is_in_force_afterwards(
    registries: Any, monkeypatch: Any
) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    loop = asyncio.get_running_loop()
    real = module._build

    def change() -> None:
        registry.put_managed(managed("late"))
        registry.remove_managed("m2")
        registry.disable("a", "gone")

    def slow(*arguments: Any) -> Any:
        built = real(*arguments)
        loop.call_soon_threadsafe(change)
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result()
        return built

    monkeypatch.setattr(module, "_build", slow)
    await registry.load_managed({f"m{n}": Managed(managed(f"m{n}"), "") for n in range(3)}, {})
    assert ids(registry) == ["a", "late", "m0", "m1"]
    assert registry.counts() == {"active": 3, "paused": 0, "pending": 0, "disabled": 1}


async def test_what_is_decided_here_is_told_and_what_the_topic_brings_is_not(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    told: Any = []
    registry.on_status = told.append
    registry.note_failing("a", 100.0)
    registry.note_failing("a", 150.0)
    registry.note_failing("nobody", 100.0)
    assert (told, registry.failing("a")) == (["a"], 100.0)
    registry.disable("a", "gone")
    assert (told, registry.failing("a")) == (["a", "a"], 100.0)
    registry.note_recovered("a")
    registry.note_recovered("a")
    registry.enable("a")
    registry.enable("a")
    assert told == ["a"] * 4
    assert registry.runtime("a") is None
    assert registry.counts()["active"] == 1
    registry.set_runtime("a", Runtime(registry.tag("a"), Status.DISABLED, "gone"))
    assert registry.counts()["disabled"] == 1
    assert told == ["a"] * 4


async def test_a_changed_entry_starts_over_even_should_it_become_what_it_was(
    registries: Any, file: Any
) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    registry.disable("a", "gone")
    told: Any = []
    registry.on_status = told.append
    for types in ("pong", "ping"):
        file.write_text(document(entry("a", types)))
        assert await registry.reload()
        assert registry.index.match(None, types)[0].status is Status.ACTIVE
    assert told == ["a"]


async def test_passing_the_validation_ends_a_pending_and_nothing_else(registries: Any) -> None:
    registry = await registries(document(entry("a")), poll=1000)
    for status, effective in (
        (Status.PENDING, Status.ACTIVE),
        (Status.PAUSED, Status.PAUSED),
        (Status.DISABLED, Status.DISABLED),
    ):
        registry.put_managed(managed("m", status=status), "t")
        registry.set_runtime("m", Runtime("t", Status.ACTIVE))
        assert registry.index.get("m").status is effective
    registry.put_managed(managed("m", status=Status.PENDING), "created anew")
    assert registry.index.get("m").status is Status.PENDING
