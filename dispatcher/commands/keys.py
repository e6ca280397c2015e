"""`dispatcher keys`: API keys, by way of the API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from dispatcher.commands.client import Api, api_options, part, print_json, shown
from dispatcher.commands.group import Commands, ConfigError
from dispatcher.commands.tables import print_rows
from dispatcher.core.control.keys import CAPABILITIES


@click.group(cls=Commands, short_help="Make, list and revoke API keys.")
def keys() -> None:
    """Make, list and revoke keys of the API of a running dispatcher. It takes an operator's key.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@keys.command()
@click.argument("name")
@click.option("--operator", is_flag=True, help="It may do everything, unless --may says less.")
@click.option("--tenant", help="It sees and changes only what is this tenant's.")
@click.option(
    "--may",
    "capabilities",
    multiple=True,
    type=click.Choice(CAPABILITIES),
    help="What it may do; once for each [default: a tenant's key all but publish, an operator's everything].",
)
@api_options
def create(
    api: Api, name: str, *, operator: bool, tenant: str | None, capabilities: tuple[str, ...], as_json: bool
) -> None:
    """Make a key for NAME, which stands in the audit log. The key is shown once."""
    if operator and tenant is not None:
        raise ConfigError(
            "a key is an operator's or a tenant's: give --operator or --tenant TENANT, not both"
        )
    if not operator and tenant is None:
        raise ConfigError("say what it is for: --operator, or --tenant TENANT")
    wanted: dict[str, Any] = {"name": name, "scope": "operator" if operator else "tenant"}
    if tenant is not None:
        wanted["tenant"] = tenant
    if capabilities:
        wanted["capabilities"] = list(dict.fromkeys(capabilities))
    made = api.call("POST", "/v1/keys", wanted).json
    if as_json:
        print_json(made)
        return
    click.echo(f"key {made['key']['id']}, shown in full only now:", err=True)
    click.echo(shown(made["secret"]))
    if api.keyless and operator:
        # Nobody had to show a key: the API was open.
        click.echo(
            "the API wants a key from now on: export DISPATCHER_API_KEY=... with this one"
            if _full(made["key"])
            else "the API stays open: only an operator's key that may do everything closes it",
            err=True,
        )


def _full(key: Mapping[str, Any]) -> bool:
    """Whether it may do everything."""
    return key["scope"] == "operator" and len(key["capabilities"]) == len(CAPABILITIES)


@keys.command("list")
@api_options
def list_(api: Api, *, as_json: bool) -> None:
    """List the keys that the API made; those of the settings are not among them."""
    found = api.get("/v1/keys")["keys"]
    if as_json:
        print_json(found)
    elif found:
        print_rows(
            ("id", "name", "scope", "tenant", "may", "created", "by"),
            (
                (
                    each["id"],
                    each["name"],
                    each["scope"],
                    each["tenant"],
                    "everything" if _full(each) else each["capabilities"],
                    each["created_at"],
                    each["created_by"],
                )
                for each in found
            ),
            folded="name",
        )
    else:
        click.echo("there are none", err=True)


@keys.command()
@click.argument("id_", metavar="ID")
@api_options
def revoke(api: Api, id_: str, *, as_json: bool) -> None:
    """Revoke a key: requests with it are refused."""
    api.call("DELETE", f"/v1/keys/{part(id_)}")
    if not as_json:
        click.echo(f"{id_} is revoked")
