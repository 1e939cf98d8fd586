"""A service of two teams: each limited role may do in ``mine`` what its key allows, and nothing in ``theirs``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from config_repo import ConfigRepo, announcement
from service_bench import APPROVE, DRAFT, PUBLISH, Bench, serving, spec_of

from kneo.cli.serve.controller import Repository, make_controller
from kneo.roles import ROLES
from kneo.store import audit

LIMITED = [role for role in ROLES if role != "admin"]

MADE_UP = {
    "name": "no-such-one",
    "environment": "no-such-one",
    "run_id": "run_01ffffffffffffffffffff",
    "continuation_id": "cont_01fffffffffffffffffff",
    "session_id": "no-such-session",
    "promotion_id": "prm_01ffffffffffffffffffff",
    "approval_id": "apr_01ffffffffffffffffffff",
    "reference": "run_01ffffffffffffffffffff",
    "link_id": "lnk_01ffffffffffffffffffff",
    "seq": "999999",
    "call_id": "run_01ffffffffffffffffffff",
    "grant_id": "grt_01ffffffffffffffffffff",
    "bundle": "no-such-one",
}

TOOLS = {
    "version": "v1",
    "targets": ["call"],
    "agent": {"name": "tools", "tools": {"include": ["refund"], "permissions": {}}},
    "tools": {
        "refund": {
            "description": "Refund an order.",
            "implementation": "lab_functions.refund",
            "parameters": {"type": "object", "properties": {"amount": {"type": "number"}}},
            "capabilities": ["privileged"],
            "review": {"before": {"human": "finance"}},
        }
    },
    "components": {"humans": {"finance": {"description": "May it be done?"}}},
}


TERMS = {"tool": "refund", "uses": 1, "expires_in": "1d"}


PARAMETERS = {
    "environment": "name",
    "task": "continuation_id",
    "promotion": "promotion_id",
    "approval": "approval_id",
    "grant": "grant_id",
    "number": "step",
}
"""Parameters of pages, and the subjects of the table of operations that they name."""


def declare(repo: ConfigRepo, name: str, **rules: object) -> None:
    """Write the file of an environment whose bundles are served by each protocol."""
    repo.environment(
        name,
        {f"bundle-{name}": "1.0.0", f"tools-{name}": "1.0.0"},
        inlineSpecs=True,
        team=f"team-{name}",
        protocols={
            "a2a": ["bundle-*"],
            "mcp": ["bundle-*"],
            "calls": [{"bundle": "tools-*", "callers": {"users": ["caller", "admin"]}}],
        },
        grants=[{"tools": ["refund"], "uses": 10, "expires": "30d", "signed": False}],
        **rules,
    )


@dataclass
class House:
    """The service, the config repository, and the names of what each environment has."""

    bench: Bench
    repo: ConfigRepo
    theirs: dict[str, str]
    mine: dict[str, str]

    def accept(self, message: str) -> None:
        self.repo.commit(message)
        source = Repository(str(self.repo.folder), "main", self.repo.pin, timedelta(seconds=60))
        make_controller(self.bench.settings, self.bench.store, source).run_once()


@contextmanager
def opened(folder: Path) -> Iterator[House]:
    """Serve a house, with workers."""
    repo = ConfigRepo(folder / "repo", environments=())
    for name in ("mine", "theirs"):
        repo.bundle(
            f"bundle-{name}", "1.0.0", announcement(targets=["workflow", "agent"]), environments=("mine", "theirs")
        )
        repo.bundle(f"tools-{name}", "1.0.0", TOOLS, environments=("mine", "theirs"))
        declare(repo, name)
    repo.commit("Begin")
    with serving(folder / "house", f"sqlite:///{folder / 'house' / 'kneo.sqlite'}", workers=2) as bench:
        made = House(bench, repo, {}, {})
        made.accept("Declare")
        for name in ("mine", "theirs"):
            asks = spec_of(DRAFT, APPROVE, PUBLISH, name=f"flow-{name}")
            # The admin starts both, so that the requester says nothing about access.
            run = bench.start(asks, role="admin", environment=name, session_id=f"session-{name}")
            link = bench.post(f"/human-tasks/{run['continuation_id']}/links", role="admin")
            promotion = bench.get("/promotions", environment=name)["promotions"][0]["id"]
            bench.ask("PUT", f"/policies/environment/{name}", {})
            served = {"environment": name, "bundle": f"tools-{name}", "tool": "refund"}
            call = bench.post("/calls?wait=1s", {**served, "arguments": {"amount": 7}}, role="caller")
            ids = {
                "call_id": call["id"],
                "grant_id": bench.post(f"/environments/{name}/grants", {**TERMS, "bundle": f"tools-{name}"})["id"],
                "name": name,
                "environment": name,
                "run_id": run["run_id"],
                "continuation_id": run["continuation_id"],
                "session_id": f"session-{name}",
                "promotion_id": promotion,
                "reference": run["run_id"],
                "link_id": link["id"],
                "version": "1.0.0",
                "bundle": f"bundle-{name}",
                "step": "draft",
                "workflow_id": f"flow-{name}",
                "call": "x",
                "approval_id": MADE_UP["approval_id"],
            }
            (made.mine if name == "mine" else made.theirs).update(ids)
        audit.seal(bench.store)
        event = next(
            item for item in bench.get("/audit-events", environment="theirs", limit=50)["events"] if item["seq"]
        )
        made.theirs["seq"] = str(event["seq"])
        declare(repo, "mine", access=[{"who": {"users": LIMITED}, "may": ["admin"]}])
        declare(repo, "theirs", access=[])
        made.accept("Limit access")
        yield made


def filled(path: str, values: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: values.get(PARAMETERS.get(match[1], match[1]), "1"), path)


def without_ids(text: str, ids: dict[str, str]) -> str:
    """Replace the ids that a response repeats, and the times of the request."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME", text)
    text = re.sub(r"Request <code>\w+</code>", "REQUEST", text)
    text = text.replace("&#39;", "'").replace(f"'{ids['seq']}'", "ID").replace(f"/audit/{ids['seq']}/", "/audit/ID/")
    for name in sorted(ids.values(), key=len, reverse=True):
        if len(name) > 5:
            text = text.replace(name, "ID")
    return text
