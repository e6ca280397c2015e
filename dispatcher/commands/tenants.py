"""`dispatcher tenants`: what tenants may have and take, by way of the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from dispatcher.commands.client import Api, api_options, part, print_json
from dispatcher.commands.group import Commands, ConfigError
from dispatcher.commands.tables import print_rows
from dispatcher.core.control.quotas import QUOTAS
from dispatcher.core.text.yaml_document import did_you_mean

_AS_ALL = "default"


@click.group(cls=Commands, short_help="Show and set the quotas of tenants.")
def tenants() -> None:
    """Show and set what tenants may have and take, through the API of a running dispatcher.

    DISPATCHER_API_URL says where that is, DISPATCHER_API_KEY holds the key.
    """


@tenants.group("quotas", cls=Commands, short_help="Show or set the quotas of a tenant.")
def quotas() -> None:
    """Show or set the quotas of a tenant."""


@quotas.command()
@click.argument("tenant")
@api_options
def show(api: Api, tenant: str, *, as_json: bool) -> None:
    """Show the quotas of TENANT that are in force."""
    _print(api.get(_path(tenant)), as_json=as_json)


@quotas.command("set")
@click.argument("tenant")
@click.argument("changes", nargs=-1, required=True, metavar="QUOTA=VALUE...")
@api_options
def set_(api: Api, tenant: str, changes: tuple[str, ...], *, as_json: bool) -> None:
    """Give TENANT quotas of its own: `subscriptions=5000 max_timeout=2m`.

    The value `default` gives it that of the settings again. Quotas that are not named stay. It takes an operator's key.
    """
    wanted = _read(changes)
    found = api.get(_path(tenant))
    own = {name: found["quotas"][name] for name in found["own"]}
    own |= {name: value for name, value in wanted.items() if value is not None}
    given = {name: value for name, value in own.items() if wanted.get(name, value) is not None}
    # Nobody else's change is undone.
    answer = api.call("PUT", _path(tenant), given, headers={"If-Match": f'"{found["version"]}"'})
    _print(answer.json, as_json=as_json)


def _path(tenant: str) -> str:
    return f"/v1/tenants/{part(tenant)}/quotas"


def _read(changes: Sequence[str]) -> dict[str, Any]:
    """The values by name, as the API takes them; None where the settings' value is wanted."""
    wanted: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if name not in QUOTAS:
            near = did_you_mean(name, QUOTAS)
            raise ConfigError(f"there is no quota {name}{near or '; there are ' + ', '.join(QUOTAS)}")
        if not equals or not value:
            raise ConfigError(f"write {name}=VALUE, or {name}={_AS_ALL}")
        if name in wanted:
            raise ConfigError(f"{name} is given twice")
        number = value.isascii() and value.isdigit() and len(value) < 16
        wanted[name] = None if value == _AS_ALL else int(value) if number else value
    return wanted


def _print(found: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    print_rows(
        ("quota", "value", "from", "used"),
        (
            (
                name,
                value,
                "this tenant" if name in found["own"] else "the settings",
                found["used"].get(name),
            )
            for name, value in found["quotas"].items()
        ),
    )
