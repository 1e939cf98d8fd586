"""What is asked of environments beside Git, and which secrets there are: for HTTP and for commands beside the database."""

from __future__ import annotations

from collections.abc import Iterable

from kneo import registry
from kneo.api.run_views import Json
from kneo.project.secrets import secret_inventory
from kneo.spec.coverage.policy import check_policy
from kneo.spec.lint import check
from kneo.spec.models.environment import read_spec
from kneo.spec.policy_flags import PolicyFlags, strictest
from kneo.spec.project import ProjectConfig
from kneo.store import audit, policies, runs
from kneo.store.engine import Store, Tx
from kneo.store.run_filter import RunFilter

PREVIEWED = 100
"""Latest runs of an environment that a preview looks at."""


class Governance:
    """Answers questions about policies and secrets.

    Args:
        store: The database.
        project: The config of the project that this process works in.
    """

    def __init__(self, store: Store, project: ProjectConfig | None) -> None:
        self.store = store
        self.project = project

    def policies(self) -> Json:
        """List the policies that were set here."""
        with self.store.read() as tx:
            found = {name: _shown(flags) for name, flags in policies.listed(tx).items()}
        return {"policies": found, "count": len(found)}

    def policy(self, environment: str) -> Json:
        """Read what was set here for an environment, and what it asks for in all."""
        with self.store.read() as tx:
            return self._answer(tx, environment, policies.find(tx, environment), None)

    def set_policy(self, environment: str, flags: PolicyFlags, *, actor: str) -> Json:
        """Set an environment's policy. It can ask for more than Git does, and takes nothing of that back."""

        def work(tx: Tx) -> Json:
            before = registry.change_policy(tx, environment, flags, actor=actor)
            return self._answer(tx, environment, flags, before)

        return self.store.transact(work)

    def preview_policy(self, environment: str, flags: PolicyFlags) -> Json:
        """Say what a policy would change, and which of the latest runs here could not be started under it."""
        with self.store.read() as tx:
            before = policies.find(tx, environment)
            others = registry.policy_in_force(tx, environment, self.project)
            found = runs.list_runs(tx, RunFilter(environment=environment), limit=PREVIEWED)
            bodies = {digest: runs.load_spec(tx, digest) for digest in {run.spec_digest for run in found}}
        now, then = _shown(flags), _shown(before or PolicyFlags())
        judged = {
            digest: (_accepted(body, others), _accepted(body, strictest(flags)))
            for digest, body in bodies.items()
            if body
        }
        blocked = [run for run in found if run.spec_digest in judged and not judged[run.spec_digest][1]]
        return {
            "environment": environment,
            "diff": {name: {"from": then[name], "to": now[name]} for name in now if then[name] != now[name]},
            "affected_run_ids": [run.id for run in blocked],
            "newly_blocking": [run.id for run in blocked if judged[run.spec_digest][0]],
            "runs_evaluated": len(found),
        }

    def _answer(self, tx: Tx, environment: str, flags: PolicyFlags | None, before: PolicyFlags | None) -> Json:
        effective = registry.policy_in_force(tx, environment, self.project)
        return {
            "environment": environment,
            "policy": _shown(flags) if flags is not None else None,
            "previous_policy": _shown(before) if before is not None else None,
            "effective": _shown(effective),
        }

    def credentials(
        self, providers: Iterable[str] = (), extras: Iterable[str] = (), *, service_tokens: bool = True, actor: str
    ) -> Json:
        """Say which keys of providers, which other secrets, and which keys of the service are set; that is recorded."""
        named, wanted = list(providers), list(extras)
        inventory = secret_inventory(self.project, providers=named, extras=wanted, service_tokens=service_tokens)
        groups = (("provider", "providers"), ("extra", "extra"), ("service_reference", "service_tokens"))
        facts: Json = {
            "providers_requested": named,
            "extras_requested": wanted,
            "include_service_references": service_tokens,
        }
        for word, group in groups:
            entries = inventory.get(group, {})
            facts[f"{word}_count"] = len(entries)
            facts[f"{word}s_present"] = sum(bool(entry["present"]) for entry in entries.values())
        self.store.transact(lambda tx: audit.record(tx, "credential.inventory_accessed", actor=actor, metadata=facts))
        return {"inventory": inventory}


def _accepted(body: bytes, flags: PolicyFlags) -> bool:
    spec = read_spec(body)
    return not (flags.enabled and check_policy(spec, check(spec), flags))


def _shown(flags: PolicyFlags) -> Json:
    return flags.model_dump(mode="json")
