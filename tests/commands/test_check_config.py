"""`check-config`: everything that is wrong, each with its place, before anything is started."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.commands.console import dispatcher
from tests.ports import free_port

ENDPOINT = """
subscriptions:
  - id: one
    url: https://hooks.example.com/
    event_types: ["*"]
    secrets: ["${HOOK_SECRET}"]
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_what_is_right_is_shown_with_its_source_and_no_secret(tmp_path: Path) -> None:
    (tmp_path / "subscriptions.yaml").write_text(ENDPOINT)
    (tmp_path / "settings.yaml").write_text(
        "subscriptions_file: subscriptions.yaml\n"
        "kafka: {security_protocol: sasl_ssl, sasl_username: me, sasl_password: hush-hush}\n"
        "tracing: {headers: [x-api-key=hush-hush, x-tenant=hush]}\n"
    )
    ended = dispatcher(
        *("check-config", "-c", "settings.yaml", "--set", "delivery.timeout=9s"),
        cwd=tmp_path,
        HOOK_SECRET=SECRET,
        DISPATCHER_GROUP="mine",
    )
    assert ended.returncode == 0, ended.stderr
    rows = {line.split()[0]: line for line in ended.stdout.splitlines() if line.strip()}
    assert "settings.yaml" in rows["subscriptions_file"]
    assert "mine" in rows["group"]
    assert "DISPATCHER_GROUP" in rows["group"]
    assert "9s" in rows["delivery.timeout"]
    assert "[deliver, api, history]" in rows["roles"]
    assert "[events]" in rows["topics.events"]
    assert "[********, ********]" in rows["tracing.headers"]
    assert "default" in rows["delivery.max_in_flight"]
    assert "1 subscriptions in subscriptions.yaml" in ended.stdout
    assert "hush" not in ended.stdout + ended.stderr
    assert SECRET not in ended.stdout + ended.stderr


def test_what_has_a_flag_of_its_own_can_be_set_like_any_other(tmp_path: Path) -> None:
    """The flag that was not given must not take it back."""
    (tmp_path / "subscriptions.yaml").write_text(ENDPOINT)
    ended = dispatcher(
        *("check-config", "--set", "broker=kafka://set.example:9092", "--set", "group=mine"),
        *("--set", "subscriptions_file=subscriptions.yaml"),
        cwd=tmp_path,
        HOOK_SECRET=SECRET,
    )
    assert ended.returncode == 0, ended.stderr
    rows = {line.split()[0]: line for line in ended.stdout.splitlines() if line.strip()}
    assert "kafka://set.example:9092" in rows["broker"]
    assert "mine" in rows["group"]
    assert "1 subscriptions in subscriptions.yaml" in ended.stdout
    ended = dispatcher("check-config", "--set", "group=mine", "--group", "yours", cwd=tmp_path)
    assert "yours" in next(line for line in ended.stdout.splitlines() if line.split()[:1] == ["group"])


def test_every_mistake_of_every_source_is_listed_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "settings.yaml").write_text("delivery:\n  timeout: forever\n  conections_per_host: 3\n")
    ended = dispatcher(
        *("check-config", "-c", "settings.yaml", "--set", "log.level=loud"),
        cwd=tmp_path,
        DISPATCHER_RETRY__JITTER="much",
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    for said in (
        "settings.yaml:2: delivery.timeout",
        "settings.yaml:3: delivery.conections_per_host",
        "connections_per_host",
        "DISPATCHER_RETRY__JITTER",
        "log.level",
    ):
        assert said in ended.stderr.replace("--log-level", "log.level")


def test_every_mistake_in_the_subscriptions_is_listed_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "subscriptions.yaml").write_text(
        ENDPOINT
        + "  - id: two\n    url: https://127.0.0.1/\n    event_types: ['a..b']\n    secrets: [short]\n"
    )
    ended = dispatcher("check-config", "--subscriptions", "subscriptions.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    for said in ("HOOK_SECRET", "two", "127.0.0.1", "network.allow", "event_types[0]", "secrets"):
        assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_settings_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    ended = dispatcher("check-config", "-c", "nowhere.yaml", cwd=tmp_path)
    assert ended.returncode == 2
    assert "nowhere.yaml" in ended.stderr


def test_certificates_that_cannot_be_read_are_named_and_run_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "garbage.pem").write_text("no certificate")
    for file in ("missing.pem", "garbage.pem"):
        for command in ("check-config", "run"):
            ended = dispatcher(command, "--set", f"network.ca_file={file}", cwd=tmp_path)
            assert ended.returncode == 2
            assert f"network.ca_file {file}" in ended.stderr
            assert "Traceback" not in ended.stderr
    ended = dispatcher(
        *("check-config", "--broker", "kafka://localhost:9092", "--set", "kafka.security_protocol=ssl"),
        *("--set", "kafka.tls_ca_file=missing.pem"),
        cwd=tmp_path,
    )
    assert ended.returncode == 2
    assert "kafka.tls_ca_file missing.pem" in ended.stderr


def test_quietly_it_says_only_that_it_is_right(tmp_path: Path) -> None:
    ended = dispatcher("check-config", "--quiet", cwd=tmp_path)
    assert ended.returncode == 0
    assert ended.stdout.startswith("ok: settings and no subscriptions file")
    assert len(ended.stdout.splitlines()) == 1


def test_no_mistake_shows_a_password(tmp_path: Path) -> None:
    for arguments in (
        ("check-config", "--set", "network.proxy=http://kim:hunter2@proxy:3128"),
        ("check-config", "--set", "network.proxy=http://kim:hunter2%40proxy:3128"),
        ("check-config", "--set", "network.proxy_password:hunter2"),
        ("check-config", "--set", "broker=kafka://kim:hunter2@broker:9092"),
        ("subscriptions", "list", "--url", "http://kim:hunter2@dispatcher.example"),
        ("subscriptions", "update", "x", "--header", "Authorization: Bearer hunter2"),
        ("publish", "a.b", "--header", "authorization hunter2"),
    ):
        ended = dispatcher(*arguments, cwd=tmp_path)
        assert ended.returncode == 2, arguments
        assert ended.stderr, arguments
        assert "hunter2" not in ended.stdout + ended.stderr


def test_connect_asks_the_broker_and_changes_nothing(tmp_path: Path) -> None:
    broker = ("--set", "broker=sqlite:///log.db")
    asked = dispatcher("check-config", "-q", "--connect", *broker, cwd=tmp_path)
    assert (asked.returncode, asked.stderr.strip()) == (
        0,
        "sqlite:///log.db is not there yet: `run` makes it",
    )
    assert not (tmp_path / "log.db").exists()
    tiers = ("--set", "retry.tiers=10s,1m")
    made = dispatcher("topics", "--create", *broker, *tiers, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    asked = dispatcher("check-config", "-q", "--connect", *broker, *tiers, cwd=tmp_path)
    assert (asked.returncode, asked.stderr) == (0, "")
    more = ("--set", "retry.tiers=10s,1m,1h")
    asked = dispatcher(
        "check-config", "-q", "--connect", *broker, *more, "--set", "topics.create=false", cwd=tmp_path
    )
    assert asked.returncode == 2
    assert "missing topics: dispatcher.retry.1h; `dispatcher topics --create` makes them" in asked.stderr


def test_connect_says_that_no_broker_answers(tmp_path: Path) -> None:
    port = free_port()
    asked = dispatcher(
        "check-config", "-q", "--connect", "--set", f"broker=kafka://127.0.0.1:{port}", cwd=tmp_path
    )
    assert asked.returncode == 1
    assert "connection refused" in asked.stderr


def test_a_history_in_postgresql_is_asked_for_too(
    tmp_path: Path, kafka: str, postgres: str, unique: Callable[[str], str]
) -> None:
    parts = urlsplit(postgres)
    place = f"{parts.hostname}:{parts.port}{parts.path}"

    def checked(store: str, password: str, *more: str) -> tuple[int, str]:
        ended = dispatcher(
            *("check-config", "--quiet", "--connect", "--broker", f"kafka://{kafka}"),
            *("--set", f"topics.prefix={unique('own')}.", "--set", f"history.store={store}", *more),
            cwd=tmp_path,
            DISPATCHER_HISTORY__PASSWORD=password,
        )
        return ended.returncode, ended.stdout + ended.stderr

    right = f"postgresql://{parts.username}@{place}"
    assert checked(right, parts.password or "")[0] == 0
    code, said = checked(right, "wrong")
    assert code == 2
    assert "PostgreSQL refuses the history: password authentication failed" in said
    code, said = checked(f"{right}?search_path=nowhere", parts.password or "")
    assert code == 2
    assert "may not create tables there" in said
    away = f"postgresql://{parts.username}@127.0.0.1:{free_port()}/postgres"
    code, said = checked(away, parts.password or "")
    assert code == 1
    assert "PostgreSQL can't be used for the history now" in said
    # A process that keeps no history and shows none does not need it.
    assert checked(away, parts.password or "", "--set", "roles=deliver")[0] == 0
