"""``kneo credentials``: which secrets there are, never what they are."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import render
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption, backend


def credentials(
    providers: Annotated[list[str], typer.Option("--provider", help="Only this provider; repeatable.")] = [],  # noqa: B006 - it is read by the framework and never changed
    extras: Annotated[list[str], typer.Option("--extra", help="Another secret to look for; repeatable.")] = [],  # noqa: B006 - so is it
    service_tokens: Annotated[
        bool, typer.Option("--service-tokens/--no-service-tokens", help="Whether to name the service's own keys.")
    ] = True,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which credentials are set where runs are executed. Their values are never read."""
    with backend(service_url, profile) as asked:
        answer = asked.credentials(providers, extras, service_tokens=service_tokens)
    inventory = answer["inventory"]
    assert isinstance(inventory, dict)
    rows = [
        [group, name, entry["env_var"], "set" if entry["present"] else "missing"]
        for group, entries in inventory.items()
        for name, entry in entries.items()
    ]
    render.emit(answer, as_json=as_json, text=lambda: render.table("", ["Kind", "Name", "Variable", ""], rows))
