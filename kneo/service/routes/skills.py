"""Skills that agents of served bundles can be given."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Depends, Query

from kneo import registry
from kneo.api.context import Principal
from kneo.service import responses, wire
from kneo.service.auth import require
from kneo.service.context import ServiceDep
from kneo.service.router import Router, responds
from kneo.service.wire import Json
from kneo.spec.models import Spec
from kneo.spec.reading.load import load_tree
from kneo.store import releases
from kneo.store.engine import Tx

router = Router(tags=["specs"])


@router.get("/skills", operation_id="list_skills", responses=responds(responses.SkillsList))
def list_skills(
    service: ServiceDep,
    _principal: Annotated[Principal, Depends(require("specs:read"))],
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=10_000)] = 0,
    sort_by: Literal["name"] = "name",
    sort_order: Literal["asc", "desc"] = "asc",
) -> Json:
    """List the skills that served bundles declare, and which of their agents have each."""
    with service.store.read() as tx:
        found = _declared(tx)
    ordered = [found[name] for name in sorted(found, reverse=sort_order == "desc")]
    shown = ordered[offset : offset + limit]
    return wire.page(
        "skills", shown, total=len(ordered), limit=limit, offset=offset, sort_by=sort_by, sort_order=sort_order
    )


def _declared(tx: Tx) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for release in releases.list_releases(tx):
        record = releases.bundle(tx, release.digest)
        if record is None:
            continue
        spec = load_tree(dict(registry.spec_in(record))).spec
        for name, skill in (spec.skills if spec is not None else {}).items():
            assert spec is not None
            entry = found.setdefault(name, {"name": name, "description": skill.description, "bundles": []})
            listed = entry["bundles"]
            assert isinstance(listed, list)
            listed.append(
                {
                    "bundle": release.bundle,
                    "version": release.version,
                    "environment": release.environment,
                    "agents": _agents_with(spec, name),
                }
            )
    return found


def _agents_with(spec: Spec, skill: str) -> list[str]:
    agents = (spec.agent, *spec.components.agents.values())
    return [agent.name for agent in agents if skill in agent.skills]
