"""The registry that a plan is judged against, where a service or a database is at hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from cli import render
from cli.backend import Json
from cli.connection import backend, choose
from cli.deployments import deployments
from cli.people.open_tasks import has_database
from controller.compare import LiveRegistry
from kneo.errors import KneoError, NotFound
from kneo.records.release import Hold, Release, Suspension
from kneo.settings import Settings


@dataclass(frozen=True)
class Source:
    """What a plan compares with.

    Args:
        kind: ``git``, ``database`` or ``service``.
        address: Of the service; None for the others.
        commit: The commit that the registry accepted last.
        live: What the registry says.
    """

    kind: str = "git"
    address: str | None = None
    commit: str | None = None
    live: LiveRegistry = field(default_factory=LiveRegistry)

    def as_json(self) -> Json:
        return {"kind": self.kind, "address": self.address, "commit": self.commit}


def find_source(
    settings: Settings, service_url: str | None, profile: str | None, is_here: Callable[[str], bool]
) -> Source:
    """Ask the service or the database that a command would use for what it serves and holds.

    Args:
        settings: This process's settings.
        service_url: The service that was named.
        profile: The profile that was named.
        is_here: Says whether the repository has a commit: a registry that follows another one says nothing about it.

    Raises:
        KneoError: a service or profile was named and cannot be asked.
    """
    address = choose(settings, service_url, profile)
    if address is None and not has_database(settings):
        return Source()
    kind = "database" if address is None else "service"
    try:
        with deployments(service_url, profile) as asked:
            commit = asked.source()["accepted_commit"]
        with backend(service_url, profile) as asked_too:
            environments = asked_too.environments()["environments"]
    except NotFound:
        return Source()
    except KneoError as error:
        if service_url is not None or profile is not None:
            raise
        render.warning(f"The {kind} could not be asked, so this plan compares with Git alone: {error.message}")
        return Source()
    if not isinstance(commit, str) or not is_here(commit):
        render.warning(f"The {kind} follows no commit of this repository, so this plan compares with Git alone.")
        return Source()
    assert isinstance(environments, list)
    return Source(kind, address.url if address is not None else None, commit, _live(environments))


def _live(environments: list[Json]) -> LiveRegistry:
    served: dict[str, dict[str, Release]] = {}
    holds: dict[str, dict[str, Hold]] = {}
    suspensions: dict[str, Suspension] = {}
    for item in environments:
        name = str(item["name"])
        served[name] = {str(entry["bundle"]): _release(name, entry) for entry in _rows(item["releases"])}
        held = item["holds"]
        assert isinstance(held, list)
        holds[name] = {str(entry["bundle"]): Hold(**entry) for entry in held}
        suspended = item["suspension"]
        if isinstance(suspended, dict):
            suspensions[name] = Suspension(**suspended)
    rules = {str(item["name"]): str(item["policy_digest"]) for item in environments if item["policy_digest"]}
    return LiveRegistry(served, holds, suspensions, rules)


def _release(environment: str, entry: Json) -> Release:
    return Release(
        environment=environment,
        bundle=str(entry["bundle"]),
        version=str(entry["version"]),
        digest=str(entry["digest"]),
        revision=str(entry["revision"]),
        promotion_id="",
        since=str(entry["since"]),
    )


def _rows(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value
