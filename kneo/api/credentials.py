"""The inventory of credentials. Their values are never read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from kneo.api.operation import Context, operation
from kneo.api.subjects import SERVICE
from kneo.project.secrets import Inventory, secret_inventory
from kneo.store import audit

Names = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)]
"""Names in a query; the longest such list fits into an address that servers read."""


@dataclass(frozen=True, kw_only=True)
class CredentialInventoryView:
    """Credentials by group (``providers``, ``extra``, ``service_tokens``) and name."""

    inventory: Inventory


@operation("GET", "/security/credentials", scope="credentials:read", about=SERVICE)
def list_credentials(
    context: Context,
    providers: Names = [],  # noqa: B006 - read by the framework and never changed
    extras: Names = [],  # noqa: B006 - read by the framework and never changed
    *,
    include_service_tokens: bool = True,
) -> CredentialInventoryView:
    """List which provider keys, other secrets and keys of this service are set. The access is recorded."""
    inventory = secret_inventory(
        context.project,
        providers=providers,
        extras=extras,
        service_tokens=include_service_tokens,
        folder=context.settings.secrets_dir,
    )
    facts: dict[str, object] = {
        "providers_requested": providers,
        "extras_requested": extras,
        "include_service_references": include_service_tokens,
    }
    groups = (("provider", "providers"), ("extra", "extra"), ("service_reference", "service_tokens"))
    for word, group in groups:
        entries = inventory.get(group, {}).values()
        facts[f"{word}_count"] = len(entries)
        facts[f"{word}s_present"] = sum(entry.present for entry in entries)
    context.store.transact(
        lambda tx: audit.record(tx, "credential.inventory_accessed", actor=context.actor, metadata=facts)
    )
    return CredentialInventoryView(inventory=inventory)
