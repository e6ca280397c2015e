"""The composition root: builds the parts, starts and stops them in order.

Read top-down: `App.start`, `App.wait`, `App.stop`. Nothing else in the program makes these parts or
knows how they hang together.

Parts start in the order in which the operator can be told about them: first the subscriptions file, which is right or
wrong at once, then the HTTP side (health, and why the process isn't ready yet), then the broker, which may be away for long.
Which parts there are depends on the process's `roles`: the engine delivers, the API serves, the history keeps.
"""

from __future__ import annotations

import asyncio
import gc
import random
import resource
import time
from collections.abc import Awaitable, Mapping, Sequence
from itertools import chain
from typing import Final

import structlog
from prometheus_client import ProcessCollector

from dispatcher.__about__ import __version__
from dispatcher.api.limits import ApiLimits
from dispatcher.api.loop_budget import LoopBudget
from dispatcher.api.route import Services
from dispatcher.api.server import ApiServer
from dispatcher.broker.base import Broker, BrokerError, BrokerRefused, BrokerUnavailable
from dispatcher.broker.open import open_broker
from dispatcher.control.cluster import ClusterView
from dispatcher.control.dead_letters import DeadLetters
from dispatcher.control.explaining import Explanations
from dispatcher.control.history import HistoryReader
from dispatcher.control.interventions import Interventions
from dispatcher.control.issues import Issues
from dispatcher.control.live import Live
from dispatcher.control.payloads import Payloads
from dispatcher.control.plane import ControlPlane
from dispatcher.control.publishing import batch_limit
from dispatcher.control.reading_times import ReadingTimes
from dispatcher.control.replicas import Replicas, SharedProgress, Sources, replicas_topic
from dispatcher.control.statistics import StatisticsReader
from dispatcher.core.event.payload_mask import PayloadMask
from dispatcher.core.replay.record import replay_topic
from dispatcher.core.request.netguard import Guard
from dispatcher.core.retry.generations import Generations
from dispatcher.core.retry.tiers import Tiers
from dispatcher.delivery.engine import Engine
from dispatcher.delivery.interventions import InterventionLog, interventions_topic
from dispatcher.delivery.parking import parked_topic
from dispatcher.history.base import StoreRefused
from dispatcher.history.following import Counter
from dispatcher.history.indexer import Indexer
from dispatcher.history.open import followed_topics, history_group, open_store, shares_history
from dispatcher.history.versions import Origins, VersionKeeper
from dispatcher.registry.registry import Registry
from dispatcher.replays.runner import ReplayParts, ReplayRunner
from dispatcher.replays.service import Replays
from dispatcher.replays.store import ReplayStore
from dispatcher.runtime.backoff import Backoff
from dispatcher.runtime.replica import replica_name
from dispatcher.runtime.tasks import Tasks
from dispatcher.runtime.timers import Timers
from dispatcher.settings.groups import Settings
from dispatcher.telemetry.metrics import Labels, Metrics
from dispatcher.telemetry.tracing import open_tracing
from dispatcher.topics.specs import missing_topics, needed_groups, needed_rights, needed_specs, runs_replays
from dispatcher.topics.watch import TopicWatch
from dispatcher.transport.client import Transport
from dispatcher.workers.place import WorkerPlace
from dispatcher.workers.siblings import Siblings

log = structlog.get_logger(__name__)

COLLECTOR: Final = (50_000, 20, 100)
"""Thresholds of the garbage collector. Thousands of deliveries and fetched records are alive at any time, and none of them is
garbage. At Python's own thresholds, looking through them again and again costs a fifth of the throughput."""

_HISTORY_OPENS = 2.0  # seconds that being ready waits for the history to open
_ENVELOPE = 64 * 1024  # bytes of a batch of events beside the events


# Long: it is the one place that makes every part, in the order in which they need each other.
class App:
    """One dispatcher: everything from the broker's connection to the endpoints' sockets."""

    def __init__(
        self, settings: Settings, environ: Mapping[str, str], place: WorkerPlace | None = None
    ) -> None:
        """`environ` fills the `${NAME}` of the subscriptions file, and has the `OTEL_*`; `place`: among several workers of this machine.

        Raises TracingRefused: what tracing takes isn't installed.
        """
        self.settings = settings
        self.metrics = Metrics()
        self.http_port = 0
        self._tasks = Tasks(self._failed)
        self._over = asyncio.Event()
        self.failure: BaseException | None = None
        network = settings.network
        self._guard = guard = Guard(network.allow, network.deny, network.https_only, network.ports)
        self._timers = Timers(asyncio.get_running_loop())
        self.registry = Registry(settings, guard, environ)
        self.broker: Broker = open_broker(
            settings.broker,
            settings.kafka,
            settings.sqlite,
            port=settings.http.port,
            worker=None if place is None else place.number,
        )
        self._transport = Transport(
            delivery=settings.delivery, network=network, guard=guard, timers=self._timers
        )
        self._tracing = open_tracing(settings, replica_name(), environ)
        self._engine: Engine | None = None
        self._interventions = (
            InterventionLog(
                self.broker,
                interventions_topic(settings.topics.prefix),
                wall=time.time,
                chance=random.random,
                on_failure=self._failed,
            )
            if {"deliver", "api"} & {*settings.roles}
            else None
        )
        self._started = False
        self._waits_for = "connecting to the broker"  # until it has started
        self._stopping = False
        self._history_problem: str | None = None
        self._history = history = self._make_history()
        self._live = live = Live(history, complete=not shares_history(settings))
        if history is not None:
            history.on_indexed = live.indexed
        self.plane = ControlPlane(
            settings,
            self.broker,
            self.registry,
            guard,
            self._transport,
            self.metrics,
            on_failure=self._failed,
        )
        self._budget = budget = LoopBudget(settings.api.loop_share, self._behind)
        self._replicas = Replicas(
            self.broker,
            replicas_topic(settings),
            replica_name(),
            Sources(
                settings.roles,
                self.problems,
                self.warnings,
                lambda elsewhere: None if self._engine is None else self._engine.report(elsewhere),
                history,
            ),
            wall=time.time,
        )
        reader = HistoryReader(
            None if history is None else history.store,
            None if history is None else SharedProgress(history, self._replicas),
            metrics=self.metrics,
        )
        self.plane.checks.cluster = cluster = ClusterView(self._replicas, self.registry, reader)
        dead_letters = DeadLetters(self.broker, f"{settings.topics.prefix}dead")
        generations = Generations() if self._interventions is None else self._interventions.generations
        self._replays = ReplayStore(settings, self.broker, on_failure=self._failed)
        prefix = settings.topics.prefix
        parts = ReplayParts(
            self.broker,
            self._replays,
            lambda: self.registry.index,
            None if history is None else history.store,
            event_topics=settings.topics.events,
            dead_topic=f"{prefix}dead",
            replay_topic=replay_topic(prefix),
            group=f"{settings.group}.retry",
            events_group=settings.group,
            replica=replica_name(),
            next_generation=generations.next_generation,
        )
        self._replay_runner = ReplayRunner(parts, on_failure=self._failed)
        self._api = ApiServer(
            settings.http.host,
            settings.http.port,
            self.metrics.registry,
            self.problems,
            None
            if self._interventions is None or "api" not in settings.roles
            else Services(
                views=self.plane.views,
                listing=self.plane.listing,
                creation=self.plane.creation,
                subscriptions=self.plane.subscriptions,
                checks=self.plane.checks,
                catalogue=self.plane.catalogue,
                publisher=self.plane.publisher,
                access=self.plane.access,
                audit=self.plane.audit,
                sessions=self.plane.sessions,
                portal=self.plane.portal,
                live=live,
                console=settings.console,
                pages=settings.portal,
                quotas=self.plane.quotas,
                history=reader,
                payloads=Payloads(reader, self.broker, PayloadMask(settings.payload.mask)),
                explanations=Explanations(
                    reader,
                    self.registry,
                    keeps_all=settings.history.keep == "all",
                    reading_times=ReadingTimes(reader, self.broker),
                ),
                cluster=cluster,
                statistics=StatisticsReader(reader, time.time),
                issues=Issues(
                    reader,
                    self.plane.store.issues,
                    self.registry,
                    self.plane.views.ready,
                    time.time,
                    settings.history.retention,
                ),
                replays=Replays(
                    parts,
                    generations.next_order,
                    history_is_on=settings.history.store != "off",
                    check_quota=lambda tenant, own: self.plane.quotas.check(tenant, "replays", own),
                ),
                interventions=Interventions(
                    self._interventions,
                    reader,
                    dead_letters,
                    self.plane.views,
                    self.registry,
                    self.broker,
                    settings,
                    wall=time.time,
                ),
                dead_letters=dead_letters,
                egress=settings.api.egress_addresses or ((network.bind,) if network.bind is not None else ()),
            ),
            warnings=self.warnings,
            events_limit=batch_limit(settings.api) + _ENVELOPE,
            limits=ApiLimits(
                settings.http.max_connections,
                settings.http.max_connections_per_address,
                settings.http.requests_per_second,
                settings.api.requests_per_second,
                settings.http.trusted_proxies,
            ),
            budget=budget,
            listener=None if place is None else place.open_listener(),
            others=Siblings(place.ports) if place is not None and place.number == 1 else None,
        )
        self._watch = TopicWatch(settings, self.broker, self.metrics)
        self._gc_threshold = gc.get_threshold()
        self._report_metrics()
        ProcessCollector(registry=self.metrics.registry)

    async def start(self) -> None:
        """Start everything; returns before the broker is there (see `problems`).

        Raises SubscriptionsError or CannotListen: what nobody but the operator can mend. A broker that refuses
        ends it later (`wait`, `failure`).
        """
        log.info(
            "starting",
            version=__version__,
            broker=self.settings.broker,
            group=self.settings.group,
            roles=self.settings.roles,
        )
        await self.registry.start()
        self.http_port = await self._api.start()
        log.info("listening", host=self.settings.http.host, port=self.http_port)
        self._tasks.start(self._run(), "run")
        # What lives now lives until the end: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        self._gc_threshold = gc.get_threshold()
        gc.set_threshold(*COLLECTOR)

    async def _run(self) -> None:
        await self.broker.connect()
        await self._ensure_topics()
        await self.broker.check_rights(needed_rights(self.settings), needed_groups(self.settings))
        await self.plane.start()
        # A hundred thousand subscriptions, perhaps: nothing that the collector has to look through again and again.
        gc.freeze()
        if self._interventions is not None:
            await self._interventions.start()
        if "deliver" in self.settings.roles:
            self._deliver()
        if self._history is not None:
            self._history.start()
            # Who finds this process ready can ask what happened. Deliveries don't wait for it: they have begun.
            self._waits_for = "opening the history"
            await self._history.tried_to_open(_HISTORY_OPENS)
            if "history" in self.settings.roles:
                keeper = VersionKeeper(self._history.store, self.registry, self._origins, clock=time.time)
                self._history.start_beside(keeper.run(), "versions of subscriptions")
        self._replicas.start()
        if runs_replays(self.settings):
            self._replays.start()
            self._replay_runner.start()
        self._started = True

    def _behind(self) -> bool:
        return self._engine is not None and self._engine.behind()

    def _origins(self, subscription_id: str) -> Origins:
        """When a subscription of the API was made and changed."""
        stored = None if self.registry.in_file(subscription_id) else self.plane.store.get(subscription_id)
        return Origins(None, None) if stored is None else Origins(stored.created_ms, stored.updated_ms)

    def _deliver(self) -> None:
        self._engine = Engine(
            self.settings,
            self.broker,
            self._transport,
            self.registry,
            self._guard,
            self.metrics,
            self._timers,
            replica=replica_name(),
            on_failure=self._failed,
            on_given_up=self.plane.exhausted,
            memory=self.plane.memory,
            skips=lambda: self.plane.store.skips,
            replays=self._replays,
            interventions=self._interventions,
            descriptors=_descriptors(),
            tracing=self._tracing,
        )
        self._engine.start()
        self.plane.attach(self._engine)
        self._tasks.start(self._watch.run(), "watch topics")

    def _make_history(self) -> Indexer | None:
        """What follows the logs, or only asks what others have indexed; None without a history. Deliveries go on whatever comes of it."""
        settings = self.settings
        follows = "history" in settings.roles
        if not follows and not ("api" in settings.roles and shares_history(settings)):
            return None
        try:
            store = open_store(settings)
        except StoreRefused as error:
            self._history_problem = str(error)
            log.warning("there is no history; deliveries go on", error=str(error))
            return None
        if store is None:
            return None
        counter = Counter()
        history = Indexer(
            store,
            self.broker,
            followed_topics(settings, counter),
            history_group(settings),
            max_behind=settings.history.max_behind,
            counter=counter,
            follows=follows,
        )
        reads = self.metrics.reads
        reads("history_records_total", lambda: _by_word(counter.counts()))
        reads("history_behind_seconds", history.behind_seconds)
        reads("history_behind_records", history.behind_records)
        reads("history_rows", lambda: history.sizes.rows)
        reads("history_bytes", lambda: history.sizes.size)
        return history

    async def _ensure_topics(self) -> None:
        topics = self.settings.topics
        specs = needed_specs(self.settings)
        backoff = Backoff()
        missing: Sequence[str] | None = None
        while missing is None:
            try:
                missing = await self.broker.ensure_topics(specs, create=topics.create)
            except BrokerUnavailable as error:
                # It was there a moment ago, and may be away for as long as it likes.
                pause = backoff.failed()
                log.warning("the broker went away, trying again", error=str(error), pause=pause)
                await asyncio.sleep(pause)
        if missing:
            raise BrokerRefused(missing_topics(specs, missing))

    def problems(self) -> list[str]:
        """Why it isn't ready to deliver; empty when it is. `/readyz` shows it."""
        if self._stopping:
            return ["the dispatcher is stopping"]
        found = [problem for problem in (self.broker.problem,) if problem is not None]
        if not self._started:
            reading = None if self._interventions is None else self._interventions.problem
            # The commands are read when the control plane is there, and the history is opened after them.
            return found or self.plane.problems() or [reading or self._waits_for]
        parts = [self.plane.problems(), self._watch.problems()]
        if self._engine is not None:
            parts.append(self._engine.problems())
        return list(dict.fromkeys(chain(found, *parts)))

    def warnings(self) -> list[str]:
        """What isn't as it should be, while deliveries go on. `/readyz` shows it, and says ready all the same."""
        found = self.broker.warnings()
        if self._engine is not None:
            found += self._engine.warnings()
        if self._started:
            found += [*self.plane.warnings(), *self._watch.warnings()]
            if runs_replays(self.settings) and self._replays.warning is not None:
                found.append(f"replays: {self._replays.warning}")
        if self._started and self._interventions is not None and self._interventions.problem is not None:
            found.append(self._interventions.problem)
        if self._history is not None:
            found += self._history.warnings()
        if self._history_problem is not None:
            found.append(self._history_problem)
        return found

    def _failed(self, task: str, error: BaseException) -> None:
        """A part died by itself: better to end and be started anew than to go on as half a daemon.

        What the broker refuses has its own words, and the command line says them. Anything else is a bug.
        """
        if not isinstance(error, BrokerError):
            log.critical("a part of the dispatcher failed, stopping", part=task, exc_info=error)
        self.failure = error
        self._over.set()

    def request_stop(self) -> None:
        """Let `wait` return."""
        self._stopping = True
        self._over.set()

    async def wait(self) -> None:
        """Until `request_stop`, or until a part failed (see `failure`)."""
        await self._over.wait()

    async def reload(self) -> None:
        """Read the subscriptions file again (SIGHUP)."""
        await self.registry.reload()

    async def stop(self) -> None:
        """Drain, commit, leave the group, close everything. Takes `shutdown.drain` and little more."""
        self._stopping = True
        log.info("stopping", drain=self.settings.shutdown.drain)
        steps: list[tuple[str, Awaitable[None]]] = [
            ("tasks", self._tasks.stop()),
            ("replay runner", self._replay_runner.stop()),
        ]
        if self._history is not None:
            steps.append(("history", self._history.end()))
        if self._engine is not None:
            steps.append(("engine", self._engine.stop(self.settings.shutdown.drain)))
        if self._tracing is not None:
            steps.append(("tracing", self._tracing.close()))
        steps.append(("cluster view", self._replicas.stop()))
        if self._history is not None:
            steps.append(("history's store", self._history.close()))
        if self._interventions is not None:
            steps.append(("interventions", self._interventions.stop()))
        steps += [
            ("replays", self._replays.stop()),
            ("control plane", self.plane.stop()),
            ("transport", self._transport.close()),
            ("broker", self.broker.close()),
            ("registry", self.registry.stop()),
            ("api", self._api.stop()),
        ]
        for name, step in steps:
            try:
                await step
            except Exception:
                # The others are to be stopped all the same.
                log.exception("stopping a part failed", part=name)
        self._timers.close()
        gc.set_threshold(*self._gc_threshold)
        gc.unfreeze()
        log.info("stopped")

    @property
    def started(self) -> bool:
        """Whether it got as far as its work: everything it was told to start with was right."""
        return self._started

    def _report_metrics(self) -> None:
        registry, transport = self.registry, self._transport
        topics, retry = self.settings.topics, self.settings.retry
        self.metrics.expect("events_consumed_total", topics.events)
        tiers = list(Tiers(retry.tiers, topics.prefix))
        self.metrics.expect("retries_due_total", (tier.level for tier in tiers))
        retried = (*(tier.topic for tier in tiers), parked_topic(topics.prefix))
        self.metrics.expect("offsets_skipped_total", (*topics.events, *retried))
        reads = self.metrics.reads
        reads("ready", lambda: not self.problems())
        reads("replays", lambda: _by_word(self._replays.counts()))
        counts = self._replay_runner.counts
        reads("replay_deliveries_total", lambda: _by_word(counts.by_result()))
        reads("replay_deliveries_behind", self._replay_runner.behind)
        interventions = self._interventions
        if interventions is not None:
            reads("interventions", lambda: _by_word(interventions.counts()))
        tracing = self._tracing
        if tracing is not None:
            reads("trace_spans_total", lambda: _by_word(tracing.sink.counts()))
            reads("trace_spans_waiting", lambda: tracing.sink.waiting)
        reads("api_refused_total", lambda: _by_word(self._api.refused))
        reads("api_loop_seconds_total", lambda: self._budget.spent)
        reads("api_waits_total", lambda: _by_word(self._budget.waits))
        reads("connections", lambda: _by_word(transport.connections()))
        reads("connections_opened_total", lambda: transport.connections_opened)
        reads("subscriptions", lambda: _by_word(registry.counts()))
        reads(
            "registry_reloads_total",
            lambda: _by_word({"ok": registry.reloads_ok, "failed": registry.reloads_failed}),
        )


def _by_word(counts: Mapping[str, int]) -> dict[Labels, float]:
    return {(word,): count for word, count in counts.items()}


def _descriptors() -> int | None:
    """How many files this process may have open; None for any number."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
