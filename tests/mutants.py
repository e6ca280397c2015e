"""Deliberate faults of the package, and for each the tests that must fail with it.

`python -m tests.mutants` copies the tree to a temporary folder. It runs the named tests there once as they are: they must pass.
Then it puts in one fault after the other and runs the tests of that fault: one of them must fail. `python -m tests.mutants NAME...`
does so for these faults only, `--list` shows all of them, and `--table` prints the table of docs/testing.md.

Rules:

1. A fault is found by its text, wherever in the package that stands. A text that is not there exactly once is an error, and so is a
   fault whose module can't be imported any more: a mutant counts as caught only by a test that ran and failed.
2. The code that runs is the copy. The tree that the copy was made of is never written to.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parent.parent
PACKAGE: Final = "dispatcher"
_COPIED: Final = (PACKAGE, "tests", "benchmarks", "config", "docs")
_REACH: Final = 4000  # characters between an anchor and what is replaced
_LIMIT: Final = 600  # seconds for the tests of one mutant


class Edit(NamedTuple):
    """`find` becomes `replace`. White space of `find` matches any white space."""

    find: str
    replace: str
    after: str = ""
    """Text that stands once in the package: the first `find` behind it is meant. Without it `find` stands once itself."""


class Mutant(NamedTuple):
    """One fault."""

    name: str
    fault: str
    """What is wrong with it, in a sentence."""
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    """Node ids, `file::test`, below tests/."""


class NotApplicable(Exception):
    """The text of a mutant is not there, or more than once."""


MUTANTS: Final[tuple[Mutant, ...]] = (
    Mutant(
        "commit_too_early",
        "the commit passes over the lowest offset that still owes a delivery",
        (Edit("for offset in self._owed: return offset", "for offset in self._owed: return offset + 1"),),
        (
            "core/commit/test_offsets.py::test_a_partition_that_comes_back_keeps_its_tracker_only_if_nobody_else_worked_on_it",
        ),
    ),
    Mutant(
        "note_says_too_much",
        "the note beside a commit calls one offset more done than is",
        (Edit("runs.append((at, offset))", "runs.append((at, offset + 1))"),),
        (
            "core/commit/test_offsets.py::test_what_a_former_owner_completed_is_passed_over_also_where_records_are_missing",
        ),
    ),
    Mutant(
        "note_is_always_believed",
        "a note whose checksum is wrong is believed",
        (Edit('if data[:4] != zlib.crc32(data[4:], zlib.crc32(about)).to_bytes(4, "big"):', "if False:"),),
        ("core/commit/test_note.py::test_a_note_of_another_commit_tells_nothing",),
    ),
    Mutant(
        "note_is_forgotten_with_its_offset",
        "where retention has passed a commit, what its note says is done is sent again",
        (
            Edit(
                "return Start(committed, Why.RETENTION if committed.offset < earliest else None)",
                "return Start(Position(max(earliest, committed.offset)), Why.RETENTION if committed.offset < earliest else None)",
            ),
        ),
        (
            "broker/test_assignment.py::test_a_commit_that_retention_has_passed_is_taken_up_with_its_metadata_and_read_from_what_is_left",
        ),
    ),
    Mutant(
        "topic_made_anew_is_read_on",
        "a topic that was made anew while nothing was heard of it is read on as if it were the old one, and once more then",
        (
            Edit("if fetched and self.in_doubt:", "if False:"),
            Edit("if self._fetching.in_doubt:", "if False:"),
        ),
        (
            "broker/kafka/test_fetching.py::test_of_a_topic_that_was_made_anew_during_a_silence_nothing_is_handed_out_before_it_is_taken_anew",
        ),
    ),
    Mutant(
        "note_forgets_who_was_served",
        "the note names no subscription that has already got an event which others still wait for",
        (Edit("self._served[offset] = [subscription_id]", "self._served[offset] = []"),),
        ("core/commit/test_offsets.py::test_of_many_subscriptions_the_fewer_are_remembered",),
    ),
    Mutant(
        "read_twice_delivered_twice",
        "a record that is read a second time is delivered a second time",
        (
            Edit(
                "return offset < self._next or (bool(self._ahead) and self._done_before(offset))",
                "return False",
            ),
        ),
        (
            "core/commit/test_offsets.py::test_what_a_former_owner_completed_is_passed_over_also_where_records_are_missing",
        ),
    ),
    Mutant(
        "no_commit_at_revocation",
        "partitions are given up without a last commit",
        (Edit("await self._commit(partitions, last=True)", "pass"),),
        ("delivery/test_rebalancing.py::test_a_rebalance_lets_attempts_end_and_commits_them",),
    ),
    Mutant(
        "attempts_begin_during_a_rebalance",
        "attempts begin while partitions move to another replica",
        (Edit("self._sending.close_gate() self._moving.add(membership)", "self._moving.add(membership)"),),
        ("delivery/test_rebalancing.py::test_a_rebalance_lets_attempts_end_and_commits_them",),
    ),
    Mutant(
        "retry_record_dropped",
        "a record for a retry or dead-letter topic counts as written and is thrown away",
        (Edit("self._waiting.append((message, written))", "written()"),),
        ("delivery/test_outbox.py::test_what_waits_goes_in_one_batch_in_order",),
    ),
    Mutant(
        "failed_write_forgotten",
        "a record that the broker did not take is not written again",
        (
            Edit(
                "entries = batch.left()",
                "entries = []",
                after="except BrokerError as error:\n                entries",
            ),
        ),
        (
            "delivery/test_outbox.py::test_a_broker_that_fails_is_asked_again_with_growing_pauses_until_it_takes_it",
        ),
    ),
    Mutant(
        "dead_letter_not_written",
        "a delivery is given up without its dead letter",
        (Edit("self._outbox.put(delivery.record(self._dead_topic, reason), written)", "written()"),),
        (
            "delivery/test_settlement.py::test_a_delivery_given_up_is_in_the_dead_letter_topic_before_its_offset_is_committed",
        ),
    ),
    Mutant(
        "lane_limit_off_by_one",
        "a host gets one attempt at a time more than its lane allows",
        (
            Edit(
                "if self.in_flight >= self.limit:",
                "if self.in_flight > self.limit:",
                after="def take(self, now: float)",
            ),
            Edit("free = self.limit - self.in_flight", "free = self.limit - self.in_flight + 1"),
        ),
        ("core/endpoint/test_lane.py::test_a_lane_hands_out_no_more_at_a_time_than_its_limit",),
    ),
    Mutant(
        "share_limit_off_by_one",
        "a subscription gets one attempt at a time more than its max_in_flight",
        (
            Edit(
                "if share.queued and share.in_flight < share.limit:",
                "if share.queued and share.in_flight <= share.limit:",
            ),
            Edit(
                "if share.in_flight >= share.limit:",
                "if share.in_flight > share.limit:",
                after="if share.blocked_until > now:",
            ),
        ),
        ("core/endpoint/test_lane.py::test_a_subscription_at_its_own_limit_leaves_the_slots_to_others",),
    ),
    Mutant(
        "rate_limit_ignored",
        "a subscription's rate_limit is not kept",
        (Edit("share._spend(share.rate, now)", "pass"),),
        ("core/endpoint/test_lane.py::test_a_rate_is_kept_within_every_second_and_wastes_nothing",),
    ),
    Mutant(
        "tenant_takes_all_attempts",
        "a tenant may have all attempts that there may be, whoever comes then",
        (Edit("room = more(held, free)", "room = free"),),
        (
            "core/endpoint/test_fairness.py::test_a_tenant_alone_takes_all_but_an_eighth_and_the_next_ones_two_thirds_of_what_they_find",
        ),
    ),
    Mutant(
        "all_attempts_are_lent",
        "a tenant that is alone may have all attempts that there may be",
        (Edit("self.reserve = max(1, most // RESERVE)", "self.reserve = 0"),),
        (
            "core/endpoint/test_fairness.py::test_a_tenant_alone_takes_all_but_an_eighth_and_the_next_ones_two_thirds_of_what_they_find",
        ),
    ),
    Mutant(
        "tenant_takes_all_slots",
        "a tenant whose attempts hang gets the last slots of an origin that others use too",
        (Edit("return more(held, free)", "return free"),),
        (
            "core/endpoint/test_turns.py::test_once_a_second_tenant_is_there_the_first_one_gets_no_more_than_twice_what_is_free",
        ),
    ),
    Mutant(
        "nothing_kept_for_the_next_tenant",
        "a tenant that is alone on an origin takes every slot",
        (Edit("return free - self.limit // RESERVE if self._reserved and held else free", "return free"),),
        ("core/endpoint/test_turns.py::test_a_tenant_that_is_alone_takes_all_slots_but_an_eighth",),
    ),
    Mutant(
        "held_for_ever",
        "a subscription whose tenant had its share is not asked again when the tenant has room",
        (Edit("self._resume_held(now)", "pass"),),
        (
            "test_fair_shares.py::test_a_subscription_that_could_begin_nothing_gets_its_turn_when_attempts_of_others_have_ended",
        ),
    ),
    Mutant(
        "memory_is_not_shared",
        "what a tenant has queued beyond its share keeps consumption from going on",
        (Edit("self._share_out()", "pass", after="if self._memory.look(now):"),),
        (
            "test_fair_shares.py::test_a_tenant_whose_endpoints_never_answer_does_not_keep_another_tenants_events",
        ),
    ),
    Mutant(
        "handshakes_in_order_of_arrival",
        "a tenant that opens a thousand connections makes every other one wait for all of them",
        (Edit("self._waiting.put(step, tenant, endpoint)", "self._waiting.put(step, None, None)"),),
        ("transport/test_tls.py::test_tenants_take_turns_at_the_gate",),
    ),
    Mutant(
        "neighbours_wait_for_a_flood",
        "a subscription that was served stays first in line, so its neighbours on the host wait for all of its queue",
        (Edit("turns.append(share)", "turns.appendleft(share)", after="def take(self, now: float)"),),
        ("core/endpoint/test_lane.py::test_a_flood_to_one_subscription_costs_its_neighbour_one_turn",),
    ),
    Mutant(
        "cap_ignored",
        "the caps on deliveries and bytes in flight are not kept",
        (
            Edit(
                "return self.in_flight >= self._max_in_flight or self.bytes >= self._max_bytes",
                "return False",
            ),
        ),
        ("delivery/test_consuming.py::test_the_cap_holds_within_the_fan_out_of_one_event",),
    ),
    Mutant(
        "throttling_429_ignored",
        "a 429 does not make an endpoint's window smaller",
        (Edit("frozenset({429, 502, 504})", "frozenset({502, 504})"),),
        ("core/retry/test_policy.py::test_an_overloaded_endpoint_is_throttled_unless_it_names_a_time",),
    ),
    Mutant(
        "retry_after_ignored",
        "the wait that an endpoint asks for (Retry-After) is not kept",
        (Edit("wait = max(wait, asked)", "pass"),),
        ("core/retry/test_policy.py::test_retry_after_puts_off_but_never_hastens",),
    ),
    Mutant(
        "retry_after_unbounded",
        "an endpoint can postpone a delivery for as long as it likes",
        (Edit("return min(max(wait, 0.0), RETRY_AFTER_CAP)", "return max(wait, 0.0)"),),
        ("core/retry/test_policy.py::test_retry_after_is_capped_at_a_day",),
    ),
    Mutant(
        "gone_410_ignored",
        "a 410 disables nothing",
        (Edit("if status == 410:", "if status == 418:"),),
        ("core/retry/test_policy.py::test_410_disables_the_subscription",),
    ),
    Mutant(
        "late_410_believed",
        "a 410 on a used connection disables the subscription without being confirmed",
        (
            Edit(
                "if not first and (status == 410 or (status == 408 and not keep)):",
                "if not first and status == 408 and not keep:",
            ),
        ),
        (
            "transport/test_client.py::test_410_on_a_used_connection_is_confirmed_on_a_fresh_one_within_the_attempt",
        ),
    ),
    Mutant(
        "one_attempt_too_few",
        "a schedule of N waits makes N attempts",
        (Edit("if attempt > len(policy.schedule):", "if attempt >= len(policy.schedule):"),),
        ("core/retry/test_policy.py::test_attempts_end_with_the_schedule",),
    ),
    Mutant(
        "breaker_never_opens",
        "a breaker does not open, whatever fails",
        (Edit("if results < MINIMUM or failures < self._threshold * results:", "if True:"),),
        ("core/endpoint/test_breaker.py::test_while_it_is_open_nothing_is_let_through_and_then_one_probe",),
    ),
    Mutant(
        "no_slow_start",
        "an endpoint whose breaker closes gets everything at once",
        (
            Edit(
                "self._narrow(backpressure, 1.0, now, rising=True)",
                "pass",
                after="if not backpressure.breaker.failed(started, now, random):",
            ),
        ),
        (
            "core/endpoint/test_lane.py::test_what_comes_to_an_open_breaker_is_turned_away_and_the_first_after_it_is_the_only_one",
        ),
    ),
    Mutant(
        "wheel_forgets",
        "the timing wheel drops what moves from a coarse slot to a finer one",
        (Edit("self._place(entry)", "pass", after="if entry.tick <= tick:"),),
        ("core/retry/test_wheel.py::test_a_sleeper_that_wakes_at_next_due_misses_nothing",),
    ),
    Mutant(
        "wheel_too_early",
        "the timing wheel fires up to a tick before the time",
        (Edit("math.ceil(due / self._resolution)", "math.floor(due / self._resolution)"),),
        (
            "core/retry/test_wheel.py::test_an_entry_comes_out_of_the_first_advance_that_is_not_before_its_due_time",
        ),
    ),
    Mutant(
        "tier_too_long",
        "a retry goes to the next longer tier than its wait",
        (
            Edit(
                "return self._all[max(0, bisect_right(self._delays, wait) - 1)]",
                "return self._all[min(len(self._all) - 1, bisect_right(self._delays, wait))]",
            ),
        ),
        ("core/retry/test_tiers.py::test_a_wait_goes_to_the_largest_tier_that_is_not_longer",),
    ),
    Mutant(
        "attempts_counted_anew",
        "a retry that comes out of a tier begins its schedule again",
        (Edit("delivery.attempt = retry.attempt", "delivery.attempt = 0"),),
        (
            "delivery/test_retry_reader.py::test_a_restart_goes_on_from_the_tier_and_not_from_the_first_attempt",
        ),
    ),
    Mutant(
        "retry_to_another_tenant",
        "a retry is sent to a subscription whose id belongs to another tenant by now",
        (
            Edit(
                "if subscription is None or subscription.tenant not in (retry.event.tenant, EVERY_TENANT):",
                "if subscription is None:",
            ),
        ),
        (
            "delivery/test_returning.py::test_a_retry_is_not_sent_to_another_tenant_that_got_the_subscription_id",
        ),
    ),
    Mutant(
        "paused_loses_what_it_is_owed",
        "what a paused subscription was owed is dropped",
        (Edit("case Status.PAUSED | Status.PENDING:", "case Status.PENDING:"),),
        ("delivery/test_backlogs.py::test_what_was_owed_before_a_pause_is_delivered_after_it",),
    ),
    Mutant(
        "tenancy_off_in_matching",
        "an event without subscriptions of its own tenant goes to those of no tenant",
        (
            Edit(
                "answer = self._find(None, type)",
                "answer = self._find(self._groups[hash(None) & (len(self._groups) - 1)].get(None), type)",
            ),
        ),
        (
            "core/subscription/test_index.py::test_without_a_tenant_only_events_without_a_tenant_match_and_a_star_takes_both",
        ),
    ),
    Mutant(
        "pattern_matches_too_much",
        "in a large index the dispatcher's own events match `*`",
        (Edit("if type.startswith(RESERVED):  # only for patterns that name it", "if False:"),),
        ("core/subscription/test_index.py::test_the_index_finds_what_a_naive_matcher_finds",),
    ),
    Mutant(
        "signature_without_the_id",
        "the signature of Standard Webhooks does not cover the event's id",
        (Edit('_v1(pads, b"%b.%b." % (id, timestamp), body)', '_v1(pads, b"%b." % timestamp, body)'),),
        ("core/request/test_build.py::test_a_receiver_verifies_what_is_sent",),
    ),
    Mutant(
        "ed25519_over_the_body_alone",
        "an ed25519 signature covers neither id nor time",
        (Edit("self._key.sign(prefix + body)", "self._key.sign(body)"),),
        ("core/request/test_signing.py::test_v1a_verifies_with_the_public_key_that_is_given_out",),
    ),
    Mutant(
        "old_secret_does_not_sign",
        "during a rotation only the newest secret signs",
        (
            Edit(
                "[scheme.sign(prefix, body) for scheme in schemes]",
                "[scheme.sign(prefix, body) for scheme in schemes[:1]]",
            ),
        ),
        ("core/request/test_signing.py::test_every_live_secret_signs_newest_first",),
    ),
    Mutant(
        "own_header_breaks_out",
        "a subscription's own header may hold line breaks",
        (Edit("if not _VALUE.fullmatch(value):", "if False:"),),
        ("core/request/test_build.py::test_a_header_value_is_visible_ascii_and_is_not_quoted_when_refused",),
    ),
    Mutant(
        "addresses_unchecked",
        "a name's addresses are connected to without the guard's check",
        (Edit("fit: list[str] = []", "fit: list[str] = list(addresses)"),),
        ("transport/test_dial.py::test_a_name_is_connected_to_only_where_its_addresses_may_be_contacted",),
    ),
    Mutant(
        "private_ranges_allowed",
        "no special-purpose IPv4 range is refused",
        (Edit("if (reason := _within(_SPANS4, value)) is not None:", "if (reason := None) is not None:"),),
        ("core/request/test_netguard.py::test_an_address_that_is_not_public_is_denied_and_the_reason_named",),
    ),
    Mutant(
        "redirect_leads_away",
        "a redirect to another origin is followed",
        (Edit("if found.origin != base.origin:", "if False:"),),
        ("core/request/test_urls.py::test_a_redirect_that_leads_elsewhere_is_refused",),
    ),
    Mutant(
        "inside_names_by_proxy",
        "a name that exists only inside the network goes to the egress proxy",
        (
            Edit("guard.check_name(host)", "pass"),
            Edit("self.check_name(host)", "pass", after="def permit_by_proxy"),
        ),
        ("transport/test_guarded.py::test_a_name_of_the_inside_never_goes_to_the_proxy",),
    ),
    Mutant(
        "redirects_without_end",
        "redirects are followed without a bound",
        (Edit("if hops >= MAX_HOPS or not response.location:", "if not response.location:"),),
        ("core/request/test_redirects.py::test_an_attempt_follows_no_more_redirects_than_the_limit",),
    ),
    Mutant(
        "unclean_connection_reused",
        "a connection that ends with its response is used again",
        (
            Edit("self.keep = parser.should_keep_alive()", "self.keep = True"),
            Edit(
                "self.keep = self.status <= LAST_STATUS and self._parser.should_keep_alive()",
                "self.keep = True",
            ),
        ),
        ("transport/test_zoo.py::test_behaviour_gives_its_result_and_leaves_its_connection",),
    ),
    Mutant(
        "body_without_a_cap",
        "a response body is read without a bound",
        (Edit("or self.body_size > self._cap or self._raw > 2 * self._cap + MAX_HEAD", ""),),
        ("transport/test_zoo.py::test_behaviour_gives_its_result_and_leaves_its_connection",),
    ),
    Mutant(
        "secret_unmasked",
        "reading a subscription shows its secrets in full",
        (Edit('return f"{prefix}...{end}"', "return secret"),),
        ("control/test_masking.py::test_of_any_secret_its_kind_and_at_most_four_characters_are_shown",),
    ),
    Mutant(
        "header_unmasked",
        "reading a subscription shows the value of its Authorization header",
        (Edit("if not _CREDENTIALS.search(name):", "if True:"),),
        ("control/test_masking.py::test_a_header_whose_name_lets_somebody_in_is_masked",),
    ),
    Mutant(
        "mask_overwrites_the_header",
        "a mask that is sent back replaces the header's value",
        (
            Edit(
                "if name in known and isinstance(known[name], str) and value == mask_header(name, known[name])",
                "if False",
            ),
        ),
        ("control/test_subscriptions.py::test_a_masked_header_that_comes_back_keeps_its_value",),
    ),
    Mutant(
        "tenancy_off_in_the_api",
        "a tenant sees and changes the subscriptions of others",
        (Edit("return tenant is None or tenant == owner", "return True"),),
        ("control/test_views.py::test_a_tenant_does_not_learn_that_anothers_is_there",),
    ),
    Mutant(
        "publishing_for_others",
        "a tenant publishes events of another tenant",
        (
            Edit('if tenant is not None and given.get("tenant", tenant) != tenant:', "if False:"),
            Edit(
                'whose = given.get("tenant") if tenant is None else tenant',
                'whose = given.get("tenant", tenant)',
            ),
        ),
        ("control/test_publishing.py::test_a_tenants_events_are_its_own",),
    ),
    Mutant(
        "operator_routes_open",
        "a tenant's key opens the operator's routes",
        (Edit('if principal.scope != "operator":', "if False:"),),
        ("api/test_authorization.py::test_each_gets_in_where_it_may_and_changes_nothing_where_not",),
    ),
    Mutant(
        "any_key_will_do",
        "a key with the right id and the wrong secret is taken",
        (
            Edit(
                "same = hmac.compare_digest(hash_of(secret), _NOBODY if key is None else key.hash)",
                "same = True",
            ),
        ),
        ("control/test_access.py::test_the_right_id_with_the_wrong_secret_is_refused",),
    ),
    Mutant(
        "wrong_keys_without_a_limit",
        "one address may try as many keys as it likes",
        (Edit("self._failures.check(source)", "pass"),),
        (
            "control/test_access.py::test_a_source_of_wrong_keys_has_to_wait_even_with_a_right_one_and_no_other_has",
        ),
    ),
    Mutant(
        "open_api_takes_foreign_pages",
        "an API without keys answers to pages of other sites",
        (Edit('if origin is not None and origin != f"http://{host}":', "if False:"),),
        ("api/test_frame.py::TestAnOpenApi::test_is_there_for_this_machine_alone",),
    ),
    Mutant(
        "changes_need_no_csrf_value",
        "a page that can't read the session changes things by its cookie",
        (
            Edit(
                "if admitted.csrf is None or not hmac.compare_digest(given, admitted.csrf.encode()):",
                "if False:",
            ),
        ),
        ("api/test_callers.py::test_no_other_site_changes_anything_in_a_readers_name",),
    ),
    Mutant(
        "anybody_names_a_person",
        "the header that a proxy names people in is believed from anybody",
        (
            Edit(
                "if sessions.header is not None and request.remote in proxies:",
                "if sessions.header is not None:",
            ),
        ),
        ("api/test_callers.py::test_a_proxys_word_is_taken_from_a_trusted_proxy_alone",),
    ),
    Mutant(
        "the_console_in_a_frame",
        "whoever may embed the portal may embed the console",
        (
            Edit(
                'return self.page(request, "console")',
                'return self.page(request, "console", self._ancestors)',
            ),
        ),
        (
            "api/test_pages.py::test_the_portal_is_embedded_by_those_that_the_settings_name_and_the_console_by_none",
        ),
    ),
    Mutant(
        "portal_tokens_live_on",
        "a token of the portal outlives its time",
        (
            Edit(
                "if not self._enabled or min(token.expires_ms, row.value.expires_ms) <= self._now_ms():",
                "if False:",
            ),
        ),
        ("control/test_portal.py::test_a_token_ends_before_its_session_and_is_renewed_until_then",),
    ),
    Mutant(
        "streams_of_everybody",
        "a tenant's stream tells of every tenant",
        (Edit("tenant = call.tenant or query.tenant", "tenant = query.tenant"),),
        ("api/test_stream.py::test_a_page_hears_of_its_tenants_deliveries",),
    ),
    Mutant(
        "issues_of_everybody",
        "a tenant sees and marks issues of subscriptions that are not its own",
        (
            Edit(
                "subscription is not None and tenant in (None, subscription.tenant) else None",
                "subscription is not None else None",
            ),
        ),
        ("control/test_issues.py::test_a_tenant_sees_and_marks_the_issues_of_its_own_subscriptions",),
    ),
    Mutant(
        "sessions_outlive_their_keys",
        "a session goes on when its key was revoked",
        (
            Edit(
                'signature, "session", mark, expires, nonce, holder.digest\n        ):',
                'signature, "session", mark, expires, nonce, ""\n        ):',
            ),
            Edit(
                'signature = self._signer.sign("session", holder.mark, expires, nonce, holder.digest)',
                'signature = self._signer.sign("session", holder.mark, expires, nonce, "")',
            ),
        ),
        ("control/test_sessions.py::test_a_key_of_the_same_id_does_not_have_the_old_ones_sessions",),
    ),
    Mutant(
        "secrets_change_places",
        "a sealed secret opens in another subscription's place",
        (
            Edit(
                "encrypt(nonce, secret.encode(), context.encode())", "encrypt(nonce, secret.encode(), None)"
            ),
            Edit(
                "key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], context.encode())",
                "key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], None)",
            ),
        ),
        ("core/control/test_sealing.py::test_a_secret_of_another_place_or_a_changed_one_does_not_open",),
    ),
    Mutant(
        "stale_change_accepted",
        "of two changes made from one version both take effect",
        (Edit("elif change.base >= state.version:", "elif True:"),),
        ("core/control/test_ledger.py::test_of_two_changes_from_the_same_version_the_first_wins",),
    ),
    Mutant(
        "if_match_ignored",
        "a change of another version than the one in force is made",
        (Edit("if if_match is not None and if_match != stored.version:", "if False:"),),
        ("control/test_subscriptions.py::test_a_change_of_another_version_than_the_one_in_force_is_refused",),
    ),
    Mutant(
        "published_twice",
        "an id that is published again is written again",
        (Edit("duplicate = event.name in self._known or event.name in fresh", "duplicate = False"),),
        ("control/test_publishing.py::test_an_id_is_written_once_within_the_window_and_for_each_tenant",),
    ),
    Mutant(
        "answered_before_the_broker_has_it",
        "publishing is answered though the broker did not take the event",
        (
            Edit(
                "await self._produce(messages) done = True",
                "self._loop.create_task(self._produce(messages)); done = True",
            ),
        ),
        (
            "control/test_publishing.py::test_a_broker_that_is_away_or_says_no_is_unavailable_and_the_event_can_be_sent_again",
        ),
    ),
    Mutant(
        "validated_unasked",
        "a subscription that waits for its endpoint's consent gets events at once",
        (
            Edit(
                "if not isinstance(verdict, Unknown):",
                "if True:\n            return Allowed(None)\n        if False:",
            ),
        ),
        ("control/test_probes.py::test_an_endpoint_that_merely_answers_does_not_pass_and_is_told_how",),
    ),
    Mutant(
        "failed_attempts_unrecorded",
        "a failed attempt leaves no record in the attempt log",
        (Edit('self.failures = mode != "none"', "self.failures = False"),),
        ("delivery/test_attempt_log.py::test_the_log_can_be_of_failures_only_or_off",),
    ),
    Mutant(
        "capabilities_ignored",
        "a tenant's key does what its capabilities don't say",
        (Edit("if needs is not None and needs not in principal.capabilities:", "if False:"),),
        ("api/test_authorization.py::test_a_tenants_key_may_what_its_capabilities_say_and_no_more",),
    ),
    Mutant(
        "quota_of_what_is_there",
        "subscriptions that are being made don't count against a tenant's quota",
        (Edit("creating.update(held)", "held = ()"),),
        ("control/test_quotas.py::test_those_that_are_being_made_count",),
    ),
    Mutant(
        "api_before_deliveries",
        "requests of the API take as much of the loop as they like while deliveries are behind",
        (Edit("return self._level < 0 and self._behind()", "return False"),),
        ("api/test_loop_budget.py::test_while_deliveries_are_behind_requests_have_their_share_of_the_time",),
    ),
    Mutant(
        "cheap_requests_pay_for_expensive_ones",
        "while deliveries are behind a tenant that takes little waits for one whose requests take seconds",
        (Edit("return found.level > 0", "return False"),),
        ("api/test_loop_budget.py::test_whoever_has_not_taken_its_part_does_not_wait_for_those_who_have",),
    ),
    Mutant(
        "superseded_is_sent",
        "what waits of an older generation is sent beside the retry that takes its place",
        (Edit("if command is not None and generation < command.generation:", "if False:"),),
        (
            "delivery/test_executing.py::test_a_pending_one_in_a_tier_is_sent_now_and_not_when_its_tier_lets_it_out",
        ),
    ),
    Mutant(
        "command_taken_over_as_it_is",
        "whoever takes a command over begins no generation of its own, and what the former process wrote to a tier comes too",
        (Edit("generation=command.generation + 1", "generation=command.generation"),),
        ("delivery/test_executing.py::test_a_partition_that_moves_takes_its_commands_with_it",),
    ),
    Mutant(
        "purge_goes_too_far",
        "a purge ends what is published after it",
        (
            Edit(
                "return PURGED if offset < purge.ends.get((topic, partition), 0) else None",
                "return PURGED if offset <= purge.ends.get((topic, partition), 0) else None",
            ),
        ),
        ("core/retry/test_generations.py::test_a_purge_ends_events_by_their_offsets_and_not_by_any_clock",),
    ),
    Mutant(
        "another_event_is_sent",
        "the record at the old place of an event is sent, whatever stands there now",
        (
            Edit(
                "(event.id, event.type, event.tenant) == (command.event_id, command.event_type, command.tenant)",
                "event.id != ''",
            ),
        ),
        ("delivery/test_executing.py::test_another_event_at_the_old_place_is_not_sent",),
    ),
    Mutant(
        "deliver_to_any_tenant",
        "an operator delivers a tenant's event to another tenant's subscription",
        (
            Edit('raise Invalid([Flaw(("subscription",), "is another tenant\'s than the event")])', "pass"),
            Edit(
                "if subscription.tenant not in (wanted.tenant, EVERY_TENANT): raise WrongState(",
                "if False:\n            raise WrongState(",
            ),
        ),
        ("api/test_interventions.py::test_an_event_is_delivered_to_a_subscription_that_was_made_later",),
    ),
    Mutant(
        "history_stands_before_its_rows",
        "the history's position is committed before the rows behind it",
        (
            Edit(
                "for day, work in sorted(works.items()): self._day(day).write(work, reached) self._advance(batches)",
                "self._advance(batches)\n        for day, work in sorted(works.items()):\n            self._day(day).write(work, reached)",
            ),
        ),
        (
            "history/conformance/test_conformance.py::test_a_crash_between_any_two_statements_loses_and_doubles_nothing",
        ),
    ),
    Mutant(
        "history_takes_again_what_it_has",
        "after a crash between two commits the history writes again what a day's file has already",
        (Edit("return file is not None and offset < file.positions.get(partition, 0)", "return False"),),
        (
            "history/conformance/test_conformance.py::test_a_crash_between_any_two_statements_loses_and_doubles_nothing",
        ),
    ),
    Mutant(
        "history_knows_no_generations",
        "to the history the end of an older generation stays the end of a delivery that was sent again",
        (Edit("if record.generation > row.generation:", "if False:"),),
        (
            "history/conformance/test_conformance.py::test_the_next_generation_begins_anew_and_an_older_one_changes_nothing",
        ),
    ),
    Mutant(
        "what_is_not_sampled_is_traced",
        "a delivery whose producer's trace isn't sampled is traced all the same",
        (Edit("return parent[_FLAGS] in _SAMPLED", "return True"),),
        ("core/attempt/test_tracing.py::test_the_producers_flag_decides_whatever_the_ratio",),
    ),
    Mutant(
        "a_span_is_left_open",
        "a delivery that goes with its partition leaves its attempts' spans without the one above them",
        (Edit("if delivery.trace is not None: self.left(delivery, LEFT_TO_ANOTHER, None)", "pass"),),
        ("telemetry/test_tracing.py::test_what_goes_with_its_partition_ends_its_span",),
    ),
    Mutant(
        "spans_are_kept_without_end",
        "while the collector takes nothing, spans fill the memory",
        (Edit("if self.waiting >= self._most:", "if False:"),),
        ("telemetry/test_otlp.py::test_beyond_the_queue_spans_are_dropped_and_counted_and_nobody_waits",),
    ),
)


# Applying.


def sources(root: Path = ROOT) -> dict[str, str]:
    """The package's modules, by path."""
    return {
        str(path.relative_to(root)): path.read_text(encoding="utf-8")
        for path in sorted((root / PACKAGE).rglob("*.py"))
    }


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(r"\s+".join(map(re.escape, text.split())))


def _only(text: str, modules: Mapping[str, str]) -> tuple[str, re.Match[str]]:
    pattern = _pattern(text)
    found = [(path, match) for path, source in modules.items() for match in pattern.finditer(source)]
    if len(found) != 1:
        places = ", ".join(sorted({path for path, _ in found})) or "nowhere"
        raise NotApplicable(f"{text!r} stands {len(found)} times in {PACKAGE}/ ({places}), not once")
    return found[0]


def _apply_one(edit: Edit, modules: Mapping[str, str]) -> tuple[str, str]:
    if not edit.after:
        path, match = _only(edit.find, modules)
    else:
        path, anchor = _only(edit.after, modules)
        behind = _pattern(edit.find).search(modules[path], anchor.start())
        if behind is None or behind.start() > anchor.end() + _REACH:
            raise NotApplicable(f"{edit.find!r} does not stand behind {edit.after!r} in {path}")
        match = behind
    source = modules[path]
    return path, source[: match.start()] + edit.replace + source[match.end() :]


def apply(mutant: Mutant, modules: Mapping[str, str]) -> dict[str, str]:
    """The modules that the fault changes, by path. Raises NotApplicable."""
    changed: dict[str, str] = {}
    for edit in mutant.edits:
        path, source = _apply_one(edit, {**modules, **changed})
        try:
            ast.parse(source)
        except SyntaxError as error:
            raise NotApplicable(f"{path} is no Python any more: {error}") from error
        changed[path] = source
    unchanged = [path for path, source in changed.items() if source == modules[path]]
    if unchanged:
        raise NotApplicable(f"nothing changes in {unchanged[0]}")
    return changed


def names_in(path: Path) -> set[str]:
    """Names that `file::name` may have: of functions, classes, and assigned test cases."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            names.update(f"{node.name}::{each.name}" for each in methods)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


def table() -> str:
    """The mutants as the rows of docs/testing.md."""
    rows = [
        "| `" + each.name + "` | " + each.fault + " | " + ", ".join(f"`{t}`" for t in each.tests) + " |"
        for each in MUTANTS
    ]
    return "\n".join(["| mutant | fault | a test that fails with it |", "| --- | --- | --- |", *rows])


# Running.


@contextmanager
def _copy() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copy = Path(name)
        for folder in _COPIED:
            shutil.copytree(
                ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("target", "node_modules")
            )
        for path in ROOT.iterdir():
            if path.is_file():
                shutil.copy2(path, copy / path.name)
        yield copy


def _run(copy: Path, tests: Sequence[str], *options: str) -> subprocess.CompletedProcess[str]:
    # No bytecode is written: one of the mutant could pass for the original's, whose file is as large and as old.
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "no:cacheprovider",
        "--timeout-method=signal",
        *options,
    ]
    return subprocess.run(
        [*command, *(f"tests/{test}" for test in tests)],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_LIMIT,
        check=False,
    )


_FAILED: Final = 1  # pytest: tests ran, and some failed


def run(mutants: Sequence[Mutant]) -> list[str]:
    """Names of those that no test has caught. Prints a line for each."""
    survivors: list[str] = []
    with _copy() as copy:
        modules = sources(copy)
        faults = [(each, apply(each, modules)) for each in mutants]
        tests = list(dict.fromkeys(test for each in mutants for test in each.tests))
        before = _run(copy, tests)
        if before.returncode:
            sys.exit(f"the tests fail without any fault:\n{before.stdout[-4000:]}{before.stderr[-1000:]}")
        for each, changed in faults:
            for path, source in changed.items():
                (copy / path).write_text(source, encoding="utf-8")
            ended = _run(copy, each.tests)
            for path in changed:
                (copy / path).write_text(modules[path], encoding="utf-8")
            failed = re.findall(r"^FAILED tests/(\S+)", ended.stdout, re.MULTILINE)
            if ended.returncode == _FAILED and failed:
                print(f"caught    {each.name}: {failed[0]}", flush=True)
            else:
                print(f"SURVIVED  {each.name} (pytest ended with {ended.returncode})", flush=True)
                survivors.append(each.name)
    return survivors


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__.partition("\n")[0] if __doc__ else None
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="faults to try; all without any")
    parser.add_argument("--list", action="store_true", help="name all faults and end")
    parser.add_argument("--table", action="store_true", help="print the table of docs/testing.md and end")
    options = parser.parse_args()
    known = {each.name: each for each in MUTANTS}
    if options.list:
        print("\n".join(f"{each.name}: {each.fault}" for each in MUTANTS))
    elif options.table:
        print(table())
    elif unknown := [name for name in options.names if name not in known]:
        parser.error(f"no such mutant: {', '.join(unknown)}; --list shows them")
    elif survivors := run([known[name] for name in options.names] if options.names else MUTANTS):
        sys.exit(f"{len(survivors)} not caught: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
