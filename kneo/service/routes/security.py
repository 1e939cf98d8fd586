"""Which credentials there are. Their values are never read."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query
from pydantic import Field

from kneo.api.context import Principal
from kneo.service import responses
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json

router = Router(tags=["security"])

Names = Annotated[list[Annotated[str, Field(max_length=200)]], Query(max_length=100)]
"""All of them at their longest fit into an address that servers read."""


@router.get("/security/credentials", operation_id="list_credentials", responses=responds(responses.CredentialInventory))
def list_credentials(
    service: ServiceDep,
    principal: Annotated[Principal, Depends(require("credentials:read"))],
    providers: Names = [],  # noqa: B006 - it is read by the framework and never changed
    extras: Names = [],  # noqa: B006 - so is it
    *,
    include_service_tokens: bool = True,
) -> Json:
    """Say which keys of providers, which other secrets, and which keys of this service are set."""
    return service.governance.credentials(
        providers, extras, service_tokens=include_service_tokens, actor=principal.name
    )
