"""The page of the person who is signed in: name, scopes, and groups and roles in each environment."""

from __future__ import annotations

from kneo.api.identity import get_me
from kneo.service.auth import SCOPES
from kneo.service.console.page import Page, PageRequest, Pages
from kneo.service.console.parts import load_parts

pages = Pages()


@pages.get("/me")
def show_me(request: PageRequest) -> Page:
    """Show who the person is to Kneo."""
    me = request.call(get_me)
    scopes = [(name, SCOPES.get(name, "")) for name in me.scopes]
    sections = [part.section(request) for part in load_parts()]
    return Page("me.html", {"caller": me, "scopes": scopes, "sections": sections})
