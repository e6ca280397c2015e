"""The OpenAPI 3.1 document, generated from the table of routes and its models.

It is committed (docs/openapi.json), so that a change of the API shows in review; a test holds the two equal.
`python -m dispatcher.api.openapi > docs/openapi.json` (`make openapi`) writes it anew.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

import orjson
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from dispatcher.__about__ import __version__
from dispatcher.api import problems
from dispatcher.api.frame import PARAMETERS
from dispatcher.api.models import ProblemDocument
from dispatcher.api.problems import Kind
from dispatcher.api.route import CSV, MERGE_PATCH, NDJSON, Audience, Body, Route, RouteAnswer
from dispatcher.api.table import ROUTES

_DESCRIPTION: Final = """\
Webhooks: who gets which events, and publishing them.

**Keys.** Send yours as `Authorization: Bearer <key>`. An operator's key may do everything, or only see (`read`); a tenant's key sees and changes
what is its tenant's, as far as its capabilities go (`publish`, `read`, `write`, `secrets`, `resend`), and of the rest not even that it exists. Without any operator's key, in the settings or made here, the
API answers to this machine only, and needs none.

**Errors** are problem documents (RFC 9457): `type` is for programs, `detail` for people, and `errors` names every field that is wrong.

**Changes** carry a version, the `ETag`. Send it back as `If-Match`, and a change that somebody else's has overtaken is refused
(412) instead of undoing theirs. A write is acknowledged when the broker has it on all its replicas.
"""
_TAGS: Final = {
    "subscriptions": "Who wants which events, and where.",
    "event types": "What may be subscribed to.",
    "events": "Publishing over HTTP, and verifying what was published.",
    "deliveries": "What became of each event, from the history.",
    "issues": "What keeps deliveries from arriving, by subscription and cause.",
    "statistics": "How deliveries go: figures over time, who is failing now, and the processes that deliver.",
    "dead letters": "What was given up, straight from its topic.",
    "keys": "Who may use the API.",
    "sessions": "The session of whoever looks at the console or the portal.",
    "portal": "Links that let a tenant's own people into the portal.",
    "deployment": "About this installation.",
}
_HEADERS: Final = {
    "ETag": "The version, for `If-Match`.",
    "Location": "Its address.",
    "X-Request-Id": "Names the request in the log; the caller's own, if it sent one.",
    "Retry-After": "Seconds to wait.",
    "Set-Cookie": "The session, for a browser.",
    "X-Next-Cursor": "Of NDJSON and CSV: where the rest begins, if there is any.",
    "X-As-Of": "Of NDJSON and CSV: `as_of`.",
    "X-Gaps": "Of NDJSON and CSV: how many gaps the history has in this time.",
    "X-Payload-Masked": "`true` where fields are hidden, so that these are not the bytes that were published.",
    "X-Event-Source": "Where the event stands: topic, partition and offset.",
    "WWW-Authenticate": "How to send a key.",
}
_ETAGS: Final = r'^(\*|[0-9]{1,18}|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$'
_SECURITY: Final[Mapping[Audience, list[dict[str, list[str]]]]] = {
    Audience.PUBLIC: [],
    Audience.ANYBODY: [{}, {"key": []}],
}
_COMPONENTS: Final = "#/components/schemas/{model}"


@cache
def document() -> bytes:
    """The whole document, as it is served and committed."""
    return orjson.dumps(generate(ROUTES), option=orjson.OPT_INDENT_2) + b"\n"


def generate(routes: Iterable[Route]) -> dict[str, Any]:
    """The document of these routes."""
    routes = tuple(routes)
    references, components = _schemas(routes)
    paths: defaultdict[str, dict[str, Any]] = defaultdict(dict)
    for route in routes:
        paths[route.path][route.method.lower()] = _operation(route, references)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "webhook-dispatcher API",
            "version": __version__,
            "description": _DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "tags": [{"name": name, "description": said} for name, said in _TAGS.items()],
        "paths": dict(paths),
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_Reference = tuple[Any, JsonSchemaMode]  # a model, and whether it is read or written


def _schemas(routes: tuple[Route, ...]) -> tuple[dict[_Reference, Any], dict[str, Any]]:
    wanted: dict[_Reference, None] = {(ProblemDocument, "serialization"): None}
    for route in routes:
        if route.body is not None:
            wanted[route.body.model, "validation"] = None
        if route.query is not None:
            wanted[route.query, "validation"] = None
        for answer in route.answers.values():
            if answer.model is not None:
                wanted[answer.model, "serialization"] = None
    references, definitions = models_json_schema(list(wanted), by_alias=True, ref_template=_COMPONENTS)
    schemas = definitions["$defs"]
    for model, _ in wanted:
        if any(route.query is model for route in routes):
            schemas.pop(model.__name__)  # its fields are parameters
    # Clients know a schema by the title of its model, which is the model's own name unless it says another.
    public = {name: schema["title"] for name, schema in schemas.items()}
    if len(set(public.values())) < len(public):
        raise ValueError("two models of the API have one title")
    components = {public[name]: _tidy(_renamed(schema, public)) for name, schema in schemas.items()}
    return _renamed(references, public), dict(sorted(components.items()))


def _renamed(value: Any, public: Mapping[str, str]) -> Any:
    """With references to schemas by their public names."""
    if isinstance(value, list):
        return [_renamed(item, public) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        name: _COMPONENTS.format(model=public.get(model := inner.rpartition("/")[2], model))
        if name == "$ref"
        else _renamed(inner, public)
        for name, inner in value.items()
    }


def _tidy(schema: Any, without: tuple[str, ...] = ("title", "default")) -> Any:
    """Without titles, which only repeat a field's name, and defaults: what is left out may mean something of its own."""
    if isinstance(schema, list):
        return [_tidy(item, without) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: (
            {field: _tidy(inner, without) for field, inner in value.items()}
            if name == "properties"
            else value
            if name in ("example", "examples", "enum")
            else _tidy(value, without)
        )
        for name, value in schema.items()
        if name not in without
    }


def _operation(route: Route, references: dict[_Reference, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation,
        "tags": [route.tag],
        "summary": route.summary,
        "description": " ".join(filter(None, (route.description, _scope(route)))),
        "security": _SECURITY.get(route.allowed, [{"key": []}]),
    }
    if parameters := [*_path(route), *_query(route), *_headers(route)]:
        operation["parameters"] = parameters
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body.required,
            "content": _content(route.body, references),
        }
    operation["responses"] = {
        **{
            str(status): {
                "description": answer.description,
                "headers": _described(("X-Request-Id", *answer.headers)),
                **_answered(answer, references, exports=route.exports is not None),
            }
            for status, answer in route.answers.items()
        },
        **_problems(route, references),
    }
    return operation


def _answered(answer: RouteAnswer, references: dict[_Reference, Any], *, exports: bool) -> dict[str, Any]:
    """What an answer's body is."""
    if answer.raw:
        return _json("*/*", {})
    if answer.model is None:
        return {} if answer.media is None else _json(answer.media, {"type": "string"})
    found = _json("application/json", references[answer.model, "serialization"])
    if exports:
        text = {"type": "string", "description": "All pages, 10,000 rows at the most."}
        found["content"] |= {media: {"schema": text} for media in (NDJSON, CSV)}
        found["headers"] = _described(("X-Request-Id", *answer.headers, "X-Next-Cursor", "X-As-Of", "X-Gaps"))
    return found


def _scope(route: Route) -> str:
    match route.allowed:
        case Audience.PUBLIC:
            return "Needs no key."
        case Audience.ANYBODY:
            return "Needs no key; one that is sent has to be right."
        case Audience.TENANT if route.needs is None:
            return "Takes any key, or a portal session's token."
        case Audience.TENANT:
            return f"Takes an operator's key, or a tenant's with the capability `{route.needs}`."
        case Audience.OPERATOR if route.method == "GET":
            return "Takes an operator's key, also one that has the capability `read` alone."
        case Audience.OPERATOR:
            return "Takes an operator's key."


def _path(route: Route) -> list[dict[str, Any]]:
    names = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "pattern": PARAMETERS[route.tag, name], "minLength": 1},
        }
        for name in names
    ]


def _query(route: Route) -> list[dict[str, Any]]:
    if route.query is None:
        return []
    schema = _tidy(route.query.model_json_schema(ref_template=_COMPONENTS), ("title",))
    return [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", ()),
            **({"description": said} if (said := field.pop("description", "")) else {}),
            "schema": _not_null(field),
        }
        for name, field in schema["properties"].items()
    ]


def _not_null(field: dict[str, Any]) -> dict[str, Any]:
    """A parameter's schema: it is there or it isn't, and is never null."""
    options = [option for option in field.get("anyOf", ()) if option != {"type": "null"}]
    rest = {
        name: value for name, value in field.items() if name != "anyOf" and (name, value) != ("default", None)
    }
    return {**rest, **options[0]} if len(options) == 1 else rest


def _headers(route: Route) -> list[dict[str, Any]]:
    wanted: list[tuple[str, str, dict[str, Any]]] = []
    if route.if_match:
        wanted.append(
            ("If-Match", "The version to change, as its ETag says.", {"type": "string", "pattern": _ETAGS})
        )
    if route.only_new:
        wanted.append(
            ("If-None-Match", "Only if there is none of this name yet.", {"type": "string", "enum": ["*"]})
        )
    if route.idempotent:
        pattern = r"^[\x21-\x7e]{1,255}$"
        wanted.append(
            ("Idempotency-Key", "The same in a repeated request.", {"type": "string", "pattern": pattern})
        )
    if route.traced:
        # Whatever comes is taken, so no schema says that it would be refused.
        said = "Trace Context of an operator's request, which goes on with the events; what is none is passed over."
        wanted.append(("traceparent", said, {}))
        wanted.append(("tracestate", "The same.", {}))
    return [
        {
            "name": name,
            "in": "header",
            "required": False,
            "description": said,
            "schema": form,
        }
        for name, said, form in wanted
    ]


def _content(body: Body, references: dict[_Reference, Any]) -> dict[str, Any]:
    one = references[body.model, "validation"]
    content: dict[str, Any] = {}
    for media in body.types:
        if body.many:
            several = {"type": "array", "items": one, "minItems": 1, "maxItems": body.many}
            content[media] = {
                "schema": {**several, "description": "One a line."}
                if media == NDJSON
                else {"anyOf": [one, several]}
            }
        else:
            content[media] = {"schema": one}
    if MERGE_PATCH in content:
        content = dict(sorted(content.items(), key=lambda item: item[0] != MERGE_PATCH))
    return content


def _problems(route: Route, references: dict[_Reference, Any]) -> dict[str, Any]:
    kinds = {
        Kind.MALFORMED,
        Kind.FOREIGN_ORIGIN,
        Kind.TOO_LARGE,
        Kind.ADDRESS_TOO_LONG,
        Kind.FIELDS_TOO_LARGE,
        Kind.INVALID,
        Kind.UNAVAILABLE,
        *route.problems,
    }
    kinds.add(Kind.TOO_MANY_REQUESTS)
    if route.quota is not None:
        kinds.add(Kind.QUOTA_EXCEEDED)
    if route.allowed is not Audience.PUBLIC:
        kinds |= {Kind.UNAUTHENTICATED, Kind.TOO_MANY_WRONG_KEYS}
    if route.allowed is Audience.OPERATOR or route.needs is not None:
        kinds.add(Kind.FORBIDDEN)
    if route.body is not None:
        kinds |= {Kind.TOO_SLOW, Kind.UNSUPPORTED_MEDIA_TYPE}
    if route.if_match:
        kinds.add(Kind.VERSION_MISMATCH)
    by_status: defaultdict[int, list[Kind]] = defaultdict(list)
    for kind in Kind:
        if kind in kinds:
            by_status[kind.status].append(kind)
    reference = references[ProblemDocument, "serialization"]
    return {
        str(status): {
            "description": "; ".join(f"{kind.title} (`{kind.uri}`)" for kind in found),
            "headers": _described(("X-Request-Id", *_of_status(status))),
            **_json(problems.MEDIA_TYPE, reference),
        }
        for status, found in sorted(by_status.items())
    }


def _of_status(status: int) -> tuple[str, ...]:
    return {401: ("WWW-Authenticate",), 429: ("Retry-After",), 503: ("Retry-After",)}.get(status, ())


def _described(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"description": _HEADERS[name], "schema": {"type": "string"}} for name in names}


def _json(media: str, schema: Any) -> dict[str, Any]:
    return {"content": {media: {"schema": schema}}}


if __name__ == "__main__":
    sys.stdout.buffer.write(document())
