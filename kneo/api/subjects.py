"""What operations are about, and the environment that follows from it: the one place that decides whether a caller has access.

A caller from whom an environment is hidden gets the same response for a subject in it and for one that does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from kneo.errors import NotFound
from kneo.names import shown
from kneo.registry.access import Access
from kneo.registry.decisions import environment_not_found
from kneo.store import audit, grants, releases, runs, tasks
from kneo.store.engine import Tx


@dataclass(frozen=True)
class OperationSubject:
    """What an operation is about.

    Attributes:
        name: The kind of subject.
        parameters: Parameters of an operation that name one; a list has none of them.
        environments: Returns the environments of the subject of this name, none where it does not exist.
        not_found: Returns the error of a name without a subject.
    """

    name: str
    parameters: tuple[str, ...]
    environments: Callable[[Tx, str], Sequence[str | None]]
    not_found: Callable[[str], NotFound]

    def find_readable(
        self, tx: Tx, access: Access | None, values: Mapping[str, object], count_hidden: Callable[[str], None]
    ) -> Sequence[str]:
        """Return the environments of the subject of a call that the caller reads; none where the call names no subject.

        Args:
            tx: A transaction that reads all rows.
            access: What the caller may do in each environment; ``None`` where none limits the caller.
            values: The parameters of the call.
            count_hidden: Counts a request about an environment that the caller may not read.

        Raises:
            NotFound: the subject does not exist, or the caller may not read its environments.
        """
        identity = self._identity(values)
        if identity is None:
            return ()
        found = self.environments(tx, identity)
        if access is None:
            return [name for name in found if name is not None]
        readable = [name for name in found if name is not None and access.is_readable(name)]
        if not readable:
            if found and found[0] is not None:
                count_hidden(found[0])
            raise self.not_found(identity)
        return readable

    def _identity(self, values: Mapping[str, object]) -> str | None:
        for name in self.parameters:
            holder, _, field = name.rpartition(".")
            found = getattr(values.get(holder), field, None) if holder else values.get(name)
            if found is not None:
                return str(found)
        return None


def _error(kind: str, code: str = "not_found", hint: str | None = None) -> Callable[[str], NotFound]:
    return lambda name: NotFound(f"There is no {kind} {shown(name[:80])}.", code=code, hint=hint)


def _environments_of_task(tx: Tx, task_id: str) -> Sequence[str | None]:
    return tasks.environment_of(tx, task_id) or ()


def _environments_of_run(tx: Tx, run_id: str) -> Sequence[str | None]:
    return runs.environment_of(tx, run_id) or ()


def _environments_of_grant(tx: Tx, grant_id: str) -> Sequence[str]:
    grant = grants.get(tx, grant_id)
    return (grant.environment,) if grant is not None else ()


def _environments_of_promotion(tx: Tx, promotion_id: str) -> Sequence[str | None]:
    pending = releases.find_pending(tx, promotion_id)
    done = releases.promotion(tx, promotion_id) if pending is None else None
    return (pending[0],) if pending is not None else (done.environment,) if done is not None else ()


def _environments_of_approval(tx: Tx, approval_id: str) -> Sequence[str | None]:
    return [record.environment for record in releases.approvals_by_id(tx, (approval_id,))]


def _environments_of_event(tx: Tx, seq: str) -> Sequence[str | None]:
    found = audit.event_at(tx, int(seq))
    return (found.event.environment,) if found is not None else ()


def environments_of_bundle(tx: Tx, name: str) -> Sequence[str]:
    """Return the environments that a transaction reads and that release a bundle, released it, or wait to."""
    released = [item.environment for item in releases.list_releases(tx, names=(name,))]
    pending = [environment for environment, item in releases.list_pending(tx) if item.bundle == name]
    past = [item.environment for item in releases.list_promotions(tx, bundle_name=name, limit=100)]
    return sorted({*released, *pending, *past})


def _declared(tx: Tx, name: str) -> Sequence[str]:
    return (name,) if name in releases.environment_names(tx) else ()


ENVIRONMENT = OperationSubject("environment", ("name", "body.environment"), _declared, environment_not_found)
NAMED_ENVIRONMENT = replace(ENVIRONMENT, parameters=("environment",))
RUN = OperationSubject("run", ("run_id",), _environments_of_run, _error("run"))
TASK = OperationSubject("task", ("continuation_id",), _environments_of_task, _error("human task"))
CALL = OperationSubject("call", ("call_id",), _environments_of_run, _error("call", "call_not_found"))
GRANT = OperationSubject(
    "grant",
    ("grant_id",),
    _environments_of_grant,
    _error("grant", "grant_not_found", "List grants: kneo grant list"),
)
SESSION = OperationSubject("session", (), lambda _tx, _name: (), _error("session", "session_not_found"))
PROMOTION = OperationSubject(
    "promotion", ("promotion_id",), _environments_of_promotion, _error("promotion", "promotion_not_found")
)
APPROVAL = OperationSubject(
    "approval", ("approval_id",), _environments_of_approval, _error("approval or rejection", "receipt_not_found")
)
BUNDLE = OperationSubject("bundle", ("name",), environments_of_bundle, _error("bundle", "bundle_not_found"))
EVENT = OperationSubject("event", ("seq",), _environments_of_event, _error("audit event", "audit_event_not_found"))
SERVICE = None
"""An operation about the service, which no environment limits."""
