"""The routes of the API: the one list that is served, documented and tested. Each resource says its own."""

from __future__ import annotations

from typing import Final

from dispatcher.api import (
    audit,
    cluster,
    dead_letters,
    deliveries,
    deployment,
    event_types,
    events,
    explanations,
    history_events,
    interventions,
    issues,
    keys,
    portal,
    replays,
    sessions,
    statistics,
    stream,
    subscription_verbs,
    subscriptions,
    tenants,
)
from dispatcher.api.route import Route

ROUTES: Final[tuple[Route, ...]] = (
    *subscriptions.ROUTES,
    *subscription_verbs.ROUTES,
    *event_types.ROUTES,
    *events.ROUTES,
    *history_events.ROUTES,
    *explanations.ROUTES,
    *deliveries.ROUTES,
    *statistics.ROUTES,
    *issues.ROUTES,
    *cluster.ROUTES,
    *replays.ROUTES,
    *interventions.ROUTES,
    *dead_letters.ROUTES,
    *keys.ROUTES,
    *sessions.ROUTES,
    *portal.ROUTES,
    *audit.ROUTES,
    *stream.ROUTES,
    *tenants.ROUTES,
    *deployment.ROUTES,
)
