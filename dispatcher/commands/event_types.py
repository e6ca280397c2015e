"""`dispatcher event-types`: the catalogue of event types, by way of the API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import orjson

from dispatcher.commands.client import Api, api_options, part, print_json
from dispatcher.commands.group import Commands, ConfigError
from dispatcher.commands.tables import print_fields, print_rows


@click.group("event-types", cls=Commands, short_help="Document what may be subscribed to.")
def event_types() -> None:
    """Document what may be subscribed to, through the API of a running dispatcher; /docs shows it.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@event_types.command("list")
@api_options
def list_(api: Api, *, as_json: bool) -> None:
    """List the catalogue."""
    found = api.get("/v1/event-types")["event_types"]
    if as_json:
        print_json(found)
    elif found:
        print_rows(
            ("name", "schema", "deprecated", "description"),
            (
                (
                    each["name"],
                    each["schema"] is not None,
                    each["deprecated"],
                    each["description"].partition("\n")[0],
                )
                for each in found
            ),
            folded="description",
        )
    else:
        click.echo("there are none", err=True)


@event_types.command()
@click.argument("name")
@api_options
def show(api: Api, name: str, *, as_json: bool) -> None:
    """Show an event type, with its schema and example."""
    found = api.get(f"/v1/event-types/{part(name)}")
    if as_json:
        print_json(found)
    else:
        _print(found)


def _print(found: dict[str, Any]) -> None:
    print_fields(
        {
            "name": found["name"],
            "description": found["description"],
            "deprecated": found["deprecated"],
            "example": _json(found["example"]),
            "schema": _json(found["schema"]),
            "version": found["version"],
            "changed": found["updated_at"],
        }
    )


def _json(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


@event_types.command()
@click.argument("name")
@click.option("--description")
@click.option("--schema", metavar="JSON", help="JSON Schema of the payload: JSON, or @FILE.")
@click.option("--example", metavar="JSON", help="An example of the payload: JSON, or @FILE.")
@click.option("--deprecated/--not-deprecated", default=None)
@api_options
def put(
    api: Api,
    name: str,
    *,
    description: str | None,
    schema: str | None,
    example: str | None,
    deprecated: bool | None,
    as_json: bool,
) -> None:
    """Add an event type, or change what is named of one that is there."""
    given: dict[str, Any] = {}
    if description is not None:
        given["description"] = description
    if schema is not None:
        given["schema"] = _read(schema, "--schema")
    if example is not None:
        given["example"] = _read(example, "--example")
    if deprecated is not None:
        given["deprecated"] = deprecated
    path = f"/v1/event-types/{part(name)}"
    known = {each["name"]: each for each in api.get("/v1/event-types")["event_types"]}.get(name)
    headers = {"If-None-Match": "*"}  # nobody else's change is undone
    if known is not None:
        kept = {field: known[field] for field in ("description", "schema", "example", "deprecated")}
        given = {**kept, **given}
        headers = {"If-Match": f'"{known["version"]}"'}
    answer = api.call("PUT", path, given, headers=headers)
    if as_json:
        print_json(answer.json)
    else:
        click.echo(f"{name} is {'added' if answer.status == 201 else 'changed'}")


def _read(text: str, option: str) -> Any:
    try:
        data = Path(text[1:]).read_bytes() if text.startswith("@") else text.encode(errors="surrogateescape")
        return orjson.loads(data)
    except OSError as error:
        raise ConfigError(f"{option}: can't read {text[1:]}: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        file = "" if text.startswith("@") or not Path(text).is_file() else f"; @{text} reads the file {text}"
        raise ConfigError(f"{option}: not JSON: {error}{file}") from error


@event_types.command()
@click.argument("name")
@api_options
def delete(api: Api, name: str, *, as_json: bool) -> None:
    """Forget an event type. Subscriptions and events of the type stay as they are."""
    api.call("DELETE", f"/v1/event-types/{part(name)}")
    if not as_json:
        click.echo(f"{name} is deleted")
