"""Letting a service check a spec: it knows its own modules, tools and policies."""

from __future__ import annotations

from cli.connection import choose, open_service
from cli.specs.check import Checked, require_usable
from kneo.errors import Usage


def ask_service(verb: str, checked: Checked, service_url: str | None, profile: str | None) -> dict[str, object]:
    """Send the resolved spec to a service.

    Args:
        verb: ``validate``, ``compile``, ``explain`` or ``policy-report``.
        checked: The spec; one whose shape is wrong is refused here, with its findings.
        service_url: The service's address, if named.
        profile: A profile's name, if named.
    """
    if checked.spec is None:
        require_usable(checked, as_json=False)
    settings = checked.project.settings
    address = choose(settings, service_url, profile)
    if address is None:
        message = "No service is named."
        raise Usage(message, hint="Use --service-url URL or --profile NAME.")
    service = open_service(settings, address)
    try:
        body = {"spec": checked.file.loaded.tree, "environment": checked.project.environment}
        return service.spec(verb, body)
    finally:
        service.close()
