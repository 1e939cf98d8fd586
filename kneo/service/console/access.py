"""The page of access: what a person may do in an environment, and which line of its file or which role says so."""

from __future__ import annotations

from kneo.api.access import ME, check_access
from kneo.service.console import environments
from kneo.service.console.page import Page, PageRequest, Pages

pages = Pages(environments.PLACE)

MAX_NAME = 200


@pages.get("/access", scope="releases:read")
def show_access(request: PageRequest) -> Page:
    """Explain the access of a person, by default of the one who is signed in."""
    names = [item.name for item in environments.ordered(request)]
    environment = request.query.get("environment").strip()[:MAX_NAME] or next(iter(names), "")
    who = request.query.get("who").strip()[:MAX_NAME]
    found = request.call(check_access, environment, who or ME) if environment else None
    return Page("access.html", {"found": found, "names": names, "environment": environment, "who": who})
