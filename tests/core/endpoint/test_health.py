import pytest

from dispatcher.core.endpoint.health import (
    KEPT,
    LOOK,
    NOTED_AFTER,
    SILENCE,
    EndpointHealth,
    HealthRegistry,
    Streak,
)

DAY = 86400.0


def failed(
    vitals: EndpointHealth, now: float, noted: float | None = None, patience: float = NOTED_AFTER
) -> Streak:
    return vitals.failed(0.5, "status 500", now, noted, patience, SILENCE)


def test_nothing_is_said_before_the_first_attempt() -> None:
    health = EndpointHealth(None).health("closed", 0, 0)
    assert (health.success_rate, health.latency_mean, health.latency_p95) == (None, None, None)
    assert (health.last_failure, health.last_failure_at) == (None, None)


def test_rate_and_latencies_are_those_of_the_attempts_kept() -> None:
    vitals = EndpointHealth(None)
    for number in range(20):
        vitals.succeeded((number + 1) / 10, 100.0)
    for _ in range(5):
        failed(vitals, 200.0)
    health = vitals.health("open", 3, 2)
    assert health.success_rate == 20 / 25
    assert health.latency_mean == pytest.approx(1.05)
    assert health.latency_p95 == pytest.approx(1.9)  # 19 of 20 took that or less
    assert (health.breaker, health.queued, health.in_flight) == ("open", 3, 2)
    assert (health.last_failure, health.last_failure_at) == ("status 500", 200.0)


def test_old_attempts_are_pushed_out_by_new_ones() -> None:
    vitals = EndpointHealth(None)
    for _ in range(KEPT):
        failed(vitals, 1.0)
    assert vitals.health("closed", 0, 0).success_rate == 0.0
    for _ in range(KEPT // 2):
        vitals.succeeded(0.0, 2.0)
    assert vitals.health("closed", 0, 0).success_rate == 0.5
    for _ in range(KEPT):
        vitals.succeeded(0.25, 3.0)
    health = vitals.health("closed", 0, 0)
    assert (health.success_rate, health.latency_mean, health.latency_p95) == (1.0, 0.25, 0.25)
    assert health.last_failure == "status 500"  # still the last there was


def test_an_attempt_that_failed_at_once_is_a_failure_all_the_same() -> None:
    vitals = EndpointHealth(None)
    vitals.failed(0.0, "blocked", 1.0, None, NOTED_AFTER, SILENCE)
    assert vitals.health("closed", 0, 0).success_rate == 0.0


def test_failures_are_worth_noting_after_some_minutes_and_then_no_more() -> None:
    vitals = EndpointHealth(None)
    assert not failed(vitals, 1000.0).worth_noting
    assert not failed(vitals, 1000.0 + NOTED_AFTER - 1).worth_noting
    streak = failed(vitals, 1000.0 + NOTED_AFTER)
    assert (streak.worth_noting, streak.since, streak.struck) == (True, 1000.0, False)
    assert not failed(vitals, 1000.0 + 2 * NOTED_AFTER, noted=1000.0).worth_noting


def test_the_earliest_note_counts_whoever_made_it() -> None:
    vitals = EndpointHealth(None)
    streak = failed(vitals, 5000.0, noted=1000.0)
    assert (streak.since, streak.own, streak.worth_noting) == (1000.0, 5000.0, False)
    # One that came later than this process's own first failure is put right.
    vitals = EndpointHealth(None)
    failed(vitals, 1000.0)
    streak = failed(vitals, 5000.0, noted=2000.0)
    assert (streak.since, streak.worth_noting) == (1000.0, True)


def test_a_success_ends_the_streak_and_asks_for_a_look_at_the_notes() -> None:
    vitals = EndpointHealth(None)
    failed(vitals, 1000.0)
    assert vitals.succeeded(0.1, 1001.0)
    assert not vitals.succeeded(0.1, 1002.0)
    assert not vitals.failing
    assert failed(vitals, 5000.0).since == 5000.0


def test_the_notes_are_looked_at_now_and_then_where_all_is_well() -> None:
    """Another replica may have noted failures, and this one delivers."""
    vitals = EndpointHealth(None)
    looks = [vitals.succeeded(0.1, 1000.0 + second) for second in range(int(2 * LOOK) + 1)]
    assert [second for second, look in enumerate(looks) if look] == [0, LOOK, 2 * LOOK]


def test_a_note_from_before_the_last_success_is_struck_out() -> None:
    vitals = EndpointHealth(None)
    vitals.succeeded(0.1, 3000.0)
    streak = failed(vitals, 3001.0, noted=2000.0)
    assert (streak.struck, streak.since) == (True, 3001.0)
    # And one from after it is not.
    vitals = EndpointHealth(None)
    vitals.succeeded(0.1, 3000.0)
    streak = failed(vitals, 5000.0, noted=4000.0)
    assert (streak.struck, streak.since) == (False, 4000.0)


def test_a_note_that_somebody_struck_out_begins_the_streak_anew() -> None:
    vitals = EndpointHealth(None)
    failed(vitals, 1000.0)
    assert failed(vitals, 2000.0).worth_noting
    failed(vitals, 2500.0, noted=1000.0)
    streak = failed(vitals, 3000.0)  # another replica has delivered meanwhile
    assert (streak.since, streak.worth_noting) == (3000.0, False)


def test_after_a_long_silence_this_process_begins_anew() -> None:
    vitals = EndpointHealth(None)
    failed(vitals, 1000.0)
    streak = failed(vitals, 1000.0 + 90 * DAY, noted=1000.0)
    assert (streak.since, streak.own) == (1000.0, 1000.0 + 90 * DAY)


def test_a_roster_holds_two_generations_and_keeps_who_is_heard_of() -> None:
    roster = HealthRegistry(100)
    kept = roster.admit("kept", None)
    for number in range(1000):
        roster.admit(f"sub_{number}", None)
        assert roster.admit("kept", None) is kept
    assert len(roster) <= 200
    assert roster.find("kept") is kept
    assert roster.find("sub_999") is not None
    assert roster.find("sub_0") is None


def test_the_silent_are_forgotten_in_time_but_for_those_that_fail() -> None:
    roster = HealthRegistry()
    roster.admit("well", None).succeeded(0.1, 1.0)
    failed(roster.admit("ill", None), 1.0)
    roster.age()
    assert roster.find("well") is not None
    roster.age()
    assert roster.find("well") is None
    assert roster.find("ill") is not None


def test_those_that_fail_are_bounded_too() -> None:
    roster = HealthRegistry(10)
    for number in range(100):
        failed(roster.admit(f"sub_{number}", None), 1.0)
        if number % 3 == 0:
            roster.age()
    assert len(roster) <= 20


def test_an_id_that_went_to_somebody_else_is_forgotten() -> None:
    roster = HealthRegistry()
    roster.admit("one", "acme")
    roster.age()
    roster.admit("two", "acme")
    for key in ("one", "two", "three"):
        roster.forget(key)
        assert roster.find(key) is None


def test_what_was_admitted_may_be_kept_while_its_generation_is_the_rosters() -> None:
    roster = HealthRegistry(2)
    kept = roster.admit("kept", "acme")
    roster.admit("other", "acme")
    assert kept.generation == roster.generation
    roster.admit("one more", "acme")  # the young ones are the old ones now
    assert kept.generation != roster.generation
    assert roster.admit("kept", "acme") is kept
    assert kept.generation == roster.generation
    roster.age()
    assert kept.generation != roster.generation
    assert roster.admit("kept", "acme") is kept
    roster.forget("kept")
    assert kept.generation != roster.generation
    assert roster.admit("kept", "acme") is not kept


def test_after_any_number_of_attempts_the_last_ones_count() -> None:
    vitals = EndpointHealth(None)
    told: list[float] = []
    for number in range(3 * KEPT + 5):
        told.append(float(number + 1))
        vitals.succeeded(told[-1], 100.0)
        health = vitals.health("closed", 0, 0)
        last = told[-KEPT:]
        assert health.success_rate == 1.0
        assert health.latency_mean == pytest.approx(sum(last) / len(last))
        assert health.latency_p95 == pytest.approx(last[(len(last) * 95 + 99) // 100 - 1])


def test_whoever_keeps_vitals_that_were_forgotten_can_tell() -> None:
    roster = HealthRegistry(size=2)
    kept = {key: roster.admit(key, None) for key in "ab"}
    assert {vitals.generation for vitals in kept.values()} == {roster.generation}
    assert HealthRegistry(size=2).generation != roster.generation  # another's are never taken for its own
    kept["a"].succeeded(0.5, 1.0)
    roster.forget("a")
    assert kept["a"].generation != roster.generation
    for key in "cdefg":
        roster.admit(key, None)
    assert kept["b"].generation != roster.generation
    assert roster.find("b") is None
    assert kept["a"].health("closed", 0, 0).success_rate is None  # nor is anything large left of them
