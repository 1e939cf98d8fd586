"""The pages of standing grants: the list, one grant with its terms and uses, and drafts from answers."""

from __future__ import annotations

from kneo.api.grants import (
    REVOKING,
    GrantRevoke,
    get_grant,
    list_grant_uses,
    list_grants,
    propose_grant,
    revoke_grant,
)
from kneo.errors import KneoError
from kneo.service.console import inbox
from kneo.service.console.page import Page, PageRequest, Pages, SeeOther

pages = Pages(inbox.pages.place)


@pages.get("/grants", scope="human:read")
def show_grants(request: PageRequest) -> Page:
    """List standing grants, the newest first."""
    return Page("grants.html", {"grants": request.call(list_grants).grants})


@pages.get("/grants/proposal", scope="human:read")
def show_proposal(request: PageRequest) -> Page:
    """Draft a grant from the answers of people for the present release."""
    environment, bundle, tool = (request.query.get(name)[:200] for name in ("environment", "bundle", "tool"))
    draft = request.call(propose_grant, environment, bundle, tool)
    return Page("grant_proposal.html", {"environment": environment, "draft": draft})


@pages.get("/grants/{grant}", scope="human:read")
def show_grant(request: PageRequest) -> Page:
    """Show the terms, the votes and the uses of a grant."""
    return _page(request, None)


@pages.post("/grants/{grant}/revoke", scope="human:read")
def accept_revocation(request: PageRequest) -> Page | SeeOther:
    """Revoke a grant."""
    grant_id = request.path["grant"]
    try:
        request.call(revoke_grant, grant_id, GrantRevoke(reason=request.form.get("reason")[:2_000] or None))
    except KneoError as error:
        return _page(request, error)
    return SeeOther(f"/console/grants/{grant_id}")


def _page(request: PageRequest, problem: KneoError | None) -> Page:
    grant_id = request.path["grant"]
    values = {
        "grant": request.call(get_grant, grant_id),
        "uses": request.call(list_grant_uses, grant_id).uses,
        "may_revoke": any(map(request.may, REVOKING)),
    }
    return Page("grant.html", values, problem=problem)
