"""The pages of bundles: versions, signers, where each is released, and the difference of two versions."""

from __future__ import annotations

from kneo.api.bundles import diff_bundle_versions, get_bundle, list_bundles
from kneo.service.console.environments import PLACE
from kneo.service.console.page import Page, PageRequest, Pages
from kneo.service.console.release_words import shown_changes
from kneo.spec.diff import whole_command

pages = Pages(PLACE)


@pages.get("/bundles", scope="specs:read")
def show_bundles(request: PageRequest) -> Page:
    """List bundles, each with its newest version."""
    return Page("bundles.html", {"bundles": request.call(list_bundles).bundles}, live="environments")


@pages.get("/bundles/{bundle}", scope="specs:read")
def show_bundle(request: PageRequest) -> Page:
    """List the versions of a bundle."""
    found = request.call(get_bundle, request.path["bundle"])
    return Page("bundle.html", {"name": found.name, "versions": found.versions}, live="environments")


@pages.get("/bundles/{bundle}/diff", scope="specs:read")
def show_bundle_diff(request: PageRequest) -> Page:
    """Compare two versions of a bundle."""
    name = request.path["bundle"]
    before, after = request.query.get("from")[:200] or None, request.query.get("to")[:200] or None
    whole = request.query.get("whole") == "1"
    found = request.call(diff_bundle_versions, name, before, after, whole=whole)
    versions = request.call(get_bundle, name).versions
    command = whole_command(name, found.from_version, found.to_version)
    changes = shown_changes(found.changes)
    values = {"found": found, "changes": changes, "versions": versions, "whole": whole, "command": command}
    return Page("bundle_diff.html", values)
