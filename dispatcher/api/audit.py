"""Who did what: the changes that were made through the API, newest first."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from dispatcher.api.models import QueryModel, ReplyModel, Time, whole_number
from dispatcher.api.problems import Kind, invalid
from dispatcher.api.route import Audience, Call, Reply, Route, RouteAnswer
from dispatcher.control.audit import AuditRecord
from dispatcher.core.flaws import Flaw
from dispatcher.core.text.times import rfc3339

_PLATFORM: Final = "operator"
_DELIVERY: Final = re.compile(r"dlv_[0-9a-f]{24}")


class AuditFilters(QueryModel):
    """Which changes, and how many."""

    subject: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=256,
                description="What was changed: the id of a subscription, a delivery, a key..., the name of an event type. A tenant has"
                " to say it.",
            ),
        ]
        | None
    ) = None
    action: (
        Annotated[
            str,
            Field(
                min_length=1,
                max_length=64,
                description="Of this kind, or of kinds that begin so: `key.`, `subscription.pause`.",
            ),
        ]
        | None
    ) = None
    limit: Annotated[int, Field(ge=1, le=200), BeforeValidator(whole_number)] = 50


class AuditEntry(ReplyModel):
    """A change that somebody made."""

    at: Time | None
    action: str
    subject: str
    by: Annotated[str, Field(description="The caller. To a tenant every operator is `operator`.")]
    by_id: str
    scope: Literal["operator", "tenant"]
    tenant: Annotated[str | None, Field(description="The caller's.")]
    outcome: Annotated[
        str,
        Field(description="`done`, or `unknown`: the broker did not answer, and it may have taken effect."),
    ]
    details: dict[str, Any]
    request_id: str


class AuditEntries(ReplyModel):
    """Changes, newest first."""

    model_config = ConfigDict(title="Audit")

    records: list[AuditEntry]


def _entry(record: AuditRecord, tenant: str | None) -> AuditEntry:
    details = {name: value for name, value in record.details.items() if name != "outcome"}
    hidden = tenant is not None and record.scope == "operator"
    return AuditEntry(
        at=rfc3339(record.at_ms),
        action=record.action,
        subject=record.subject,
        by=_PLATFORM if hidden else record.name,
        by_id=_PLATFORM if hidden else record.by,
        scope="operator" if record.scope == "operator" else "tenant",
        tenant=record.tenant,
        outcome=str(record.details.get("outcome", "done")),
        details=details,
        request_id="" if hidden else record.request_id,
    )


async def list_changes(call: Call) -> Reply:
    query: AuditFilters = call.query
    if call.tenant is not None:
        await _see(call, query.subject)
    records = call.services.audit.records(query.subject, query.action, query.limit)
    return Reply(AuditEntries(records=[_entry(record, call.tenant) for record in records]))


async def _see(call: Call, subject: str | None) -> None:
    """Raise NotFound unless the tenant may see the subject, and Problem where it names none."""
    if subject is None:
        raise invalid([Flaw(("subject",), "is required: the id of a subscription or a delivery of yours")])
    if _DELIVERY.fullmatch(subject):
        await call.services.history.delivery(call.tenant, subject)
    else:
        call.services.views.get(subject, tenant=call.tenant)


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        "GET",
        "/v1/audit",
        "listChanges",
        "deployment",
        "List who did what",
        Audience.TENANT,
        "read",
        {200: RouteAnswer("The newest changes.", AuditEntries)},
        list_changes,
        description="Of the newest 10,000 changes that were made through the API, on any replica.",
        query=AuditFilters,
        quota="queries",
        problems=(Kind.NOT_FOUND, Kind.HISTORY_OFF),
    ),
)
