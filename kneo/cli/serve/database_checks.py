"""Results of checks, and the checks of the database: workers, controller, releases and the audit log."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path

from kneo import registry
from kneo.cli.checks import Checks, Diagnosis, error, ok, warning
from kneo.cli.serve.evidence_checks import check_evidence
from kneo.clock import Clock, isoformat, parse_time
from kneo.controller.source.mirror import Mirror
from kneo.digest import canonical_json
from kneo.errors import Invalid, KneoError, Untrusted
from kneo.names import person_key
from kneo.notify.channels import plain_name
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import package_differences
from kneo.sandbox.levels import host_level
from kneo.service.auth import configured, hash_keys
from kneo.settings import Settings
from kneo.spec.code import RunCode
from kneo.spec.models.spec import Spec
from kneo.spec.policy import SANDBOX_LEVELS, SandboxLevel
from kneo.store import audit, audit_tree, grants, metrics, releases, requests, runs, tasks
from kneo.store.adoption import count_without
from kneo.store.engine import Store, Tx
from kneo.store.metrics import (
    CONNECTIONS_PER_PROCESS,
    CONNECTIONS_PER_WORKER,
    WorkerProcess,
    has_worker,
    read_server,
)
from kneo.store.migrate import HEAD, migrate_database
from kneo.store.service_key import FILE
from kneo.tasks.grants import gates_now
from kneo.trust.checkpoint import read_checkpoint
from kneo.trust.keys import PrivateKey
from kneo.trust.record_mac import RecordMacs
from kneo.trust.statement import parse_bundle

MOST_SKEW = timedelta(seconds=5)
"""Difference of the clocks of this machine and the database from which leases and deadlines suffer."""

MOST_WAIT = timedelta(seconds=60)
"""Time after which a run should have been taken by a worker."""

MAX_PROBLEMS = 10
"""Functions that cannot be loaded that a message lists."""

ROOT_WARNING = timedelta(days=30)
"""Time before the end of a trust root from which a new one should be signed."""

SPECS = 500
"""Released bundles, and as many specs of runs, whose channels are compared with the settings."""


def check_schema(settings: Settings, clock: Clock) -> Diagnosis:
    """Check that the database answers, is Kneo's, and has a schema that this version works on. Changes nothing."""
    url = settings.database_url
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return ok("There is no database yet; the first process creates it.")
    change = migrate_database(url, clock, dry_run=True)
    if change.version is None:
        return warning("The database is empty.", "Run kneo maintenance migrate, or start a process.")
    if change.version > HEAD:
        hint = f"Finish the upgrade: this version works on schema {HEAD}, and only for the time of an upgrade on a newer one."
        return warning(f"The database has schema {change.version} of a newer version.", hint)
    if change.is_empty:
        return ok(f"The database answers and has schema {change.version}.")
    message = f"The database has schema {change.version}; this version needs {HEAD}."
    if settings.migrate == "never":
        return error(message, "Run kneo maintenance migrate.")
    return warning(message, "The next process migrates it; back up first.")


def database_checks(settings: Settings, store: Store, processes: int) -> Checks:
    """Return the checks of an open database.

    Args:
        settings: The settings of this process.
        store: The database.
        processes: The processes of Kneo that use it.
    """
    return {
        "connections": partial(check_connections, store, processes),
        "clock": partial(check_clock, store),
        "service_key": partial(check_service_key, settings, store),
        "worker": partial(check_worker, store),
        "suspects": partial(check_suspects, store),
        "grants": partial(check_grants, store),
        "calls": partial(check_calls, settings, store),
        "audit": partial(check_audit, store),
        "records": partial(check_records, settings, store),
        "trust_root": partial(check_trust_root, settings, store),
        "source": partial(check_source, settings, store),
        "controller": partial(check_controller, settings, store),
        "evidence": partial(check_evidence, settings, store),
        "channels": partial(check_channels, settings, store),
        "code": partial(check_code, settings, store),
    }


def check_connections(store: Store, processes: int) -> Diagnosis:
    """Check that the server accepts the connections of all processes."""
    server = read_server(store)
    if server is None:
        return ok("SQLite has no limit of connections.")
    # The processes that are connected, or those that are to be; this one is no process of the installation.
    processes = max(processes, server.processes - 1)
    needed = processes * CONNECTIONS_PER_PROCESS + server.workers * CONNECTIONS_PER_WORKER
    usable = server.max_connections - server.reserved
    counts = f"max_connections is {server.max_connections}, of which {usable} are usable"
    if needed > usable:
        hint = f"Set max_connections to at least {needed + server.reserved}."
        workers = f", {server.workers} of them workers," if server.workers else ""
        return error(f"{processes} processes{workers} need up to {needed} connections; {counts}.", hint)
    if server.used > usable * 0.9:
        return warning(
            f"{server.used} connections are open; {counts}.", "Raise max_connections, or find who uses them."
        )
    return ok(
        f"{server.used} connections are open; {counts}: enough for {usable // CONNECTIONS_PER_PROCESS} processes."
    )


def check_clock(store: Store) -> Diagnosis:
    """Compare the clock of this machine with that of the server."""
    server = read_server(store)
    if server is None:
        return ok("The database is on this machine.")
    skew = abs(store.clock.now() - server.now)
    if skew > MOST_SKEW:
        hint = "Synchronise the clocks (NTP); leases, deadlines and signatures depend on them."
        return error(f"The clocks of this machine and the database differ by {skew.total_seconds():.0f} seconds.", hint)
    return ok(f"The clocks differ by less than {MOST_SKEW.total_seconds():.0f} seconds.")


def check_service_key(settings: Settings, store: Store) -> Diagnosis:
    """Check that there is a service key, and that it signed the newest checkpoint of the audit log."""
    key = _service_key(settings)
    with store.read() as tx:
        checkpoint = audit_tree.newest_checkpoint(tx)
    if key is None and (checkpoint is not None or not store.is_sqlite):
        hint = "Set KNEO_SERV_SERVICE_KEY for every service, worker and controller; kneo keys generate makes one."
        return error("There is no service key: nothing can sign receipts and checkpoints.", hint)
    if key is None:
        return ok("There is no service key yet; the first signature creates it.")
    if checkpoint is not None:
        try:
            read_checkpoint(checkpoint.note, key.public)
        except Untrusted:
            hint = "Use the same KNEO_SERV_SERVICE_KEY everywhere; after a replacement pass the former key to kneo audit verify."
            return error("The service key is not the one that signed the newest checkpoint of the audit log.", hint)
    return ok(f"The service key is {key.public.keyid}.")


def _service_key(settings: Settings) -> PrivateKey | None:
    """Read the service key, without creating one."""
    if settings.service_key:
        text = settings.service_key.replace("\\n", "\n")
        try:
            return PrivateKey.load(text.encode(), settings.key_passphrase or None)
        except Invalid as failure:
            msg = f"KNEO_SERV_SERVICE_KEY: {failure.message}"
            raise Invalid(msg, code="invalid_setting", hint=failure.hint) from failure
    path = settings.state_dir / FILE
    is_local = settings.database_url.startswith("sqlite") and path.is_file()
    return PrivateKey.load(path.read_bytes()) if is_local else None


def check_worker(store: Store) -> Diagnosis:
    """Check that a worker is alive, that each gives the level of sandboxes that environments require, and that no run waits long."""
    with store.read() as tx:
        depth, since = metrics.queue(tx)
        waited = tx.now - parse_time(since) if since is not None else timedelta(0)
        workers = metrics.list_workers(tx)
        required = _required_levels(tx)
    is_late = waited > MOST_WAIT
    waiting = f"{depth} runs wait, the first for {waited.total_seconds():.0f} seconds"
    if not has_worker(store):
        hint = "Start kneo worker, kneo service serve or kneo up."
        return error(f"No worker is alive; {waiting}.", hint) if depth else warning("No worker is alive.", hint)
    if is_late:
        return warning(f"A worker is alive, and {waiting}.", "Start more workers, or look for steps that hang.")
    given = workers or [WorkerProcess("this machine", host_level().level)]
    weak = [
        f"{worker.name} gives sandboxes at level {worker.sandbox}, and {environment} requires {level}"
        for worker in given
        for environment, level in required.items()
        if worker.sandbox in SANDBOX_LEVELS and SANDBOX_LEVELS.index(worker.sandbox) < SANDBOX_LEVELS.index(level)
    ]
    if weak:
        hint = "Calls fail there with sandbox_unavailable. Run kneo doctor on that machine: its check sandbox shows what is missing."
        return warning(f"{'; '.join(weak[:MAX_PROBLEMS])}.", hint)
    shown = ", ".join(f"{worker.name} ({worker.sandbox or 'level of sandboxes not known'})" for worker in workers)
    return ok(f"A worker is alive{f': {shown}' if shown else ''}; {depth} runs wait.")


def _required_levels(tx: Tx) -> dict[str, SandboxLevel]:
    """Return the weakest level that each environment permits."""
    found = {item.name: registry.find_declared(tx, item.name) for item in releases.list_environments(tx)}
    return {name: declared.spec.tools.sandbox.required for name, declared in found.items() if declared is not None}


def check_suspects(store: Store) -> Diagnosis:
    """Check that no run is suspected of ending its workers, and that none ended for it."""
    with store.read() as tx:
        found = runs.list_suspects(tx, MAX_PROBLEMS)
    if found:
        each = ", ".join(f"{run_id} ({status})" for run_id, status in found)
        hint = "See with kneo runs get which step it is, and in the system's log why the workers died, such as their limit of memory."
        return warning(f"Workers died each time while they executed these runs: {each}.", hint)
    return ok("No run is suspected of ending its workers.")


UNUSED = timedelta(days=14)
"""The time after which a standing grant counts as unused."""


def check_grants(store: Store) -> Diagnosis:
    """Check that active standing grants are used, and that their votes still decide a gate."""
    with store.read() as tx:
        active = grants.list_grants(tx, status="active", unexpired=True, limit=1_000)
        last, before = grants.last_uses(tx, active), isoformat(tx.now - UNUSED)
        unused = [grant.id for grant in active if max(last.get(grant.id, ""), grant.created_at) < before]
        idle = [grant.id for grant in active if not gates_now(tx, grant)[0]]
    problems = [f"unused for 14 days: {', '.join(unused[:MAX_PROBLEMS])}"] if unused else []
    problems += [f"voters may no longer answer: {', '.join(idle[:MAX_PROBLEMS])}"] if idle else []
    if problems:
        return warning(
            f"Standing grants: {'; '.join(problems)}.", "Revoke those that are not needed: kneo grant revoke ID."
        )
    return ok(f"{len(active)} standing grants are active.")


TOO_MUCH = ("human:write", "runs:write")
"""Scopes that the key of a caller does not need: with them it answers questions, and starts other runs."""


def check_calls(settings: Settings, store: Store) -> Diagnosis:
    """Check the keys of callers, the address in the links that they get, and that begun calls were reported."""
    with store.read() as tx:
        names = [item.name for item in releases.list_environments(tx)]
        rules = [
            rule for name in names if (found := registry.find_declared(tx, name)) for rule in found.spec.protocols.calls
        ]
        lost = tasks.list_unreported_calls(tx, MAX_PROBLEMS)
    if not rules:
        return ok("No environment serves tools to other programs.")
    callers = {person_key(user) for rule in rules if rule.callers is not None for user in rule.callers.users}
    keys = hash_keys(configured(settings)).values()
    named = [key for key in keys if person_key(key.name) in callers]
    broad = sorted({key.name for key in named if any(key.may(scope) for scope in TOO_MUCH)})
    problems = [f"keys of callers can do more than make calls: {', '.join(broad[:MAX_PROBLEMS])}"] if broad else []
    problems += [f"calls were begun and not reported: {', '.join(lost)}"] if lost else []
    problems += (
        [] if settings.public_url else ["KNEO_SERV_PUBLIC_URL is not set, so links to questions name no address"]
    )
    if problems:
        hint = "Give callers keys of the role caller; look up what became of the calls: kneo inbox."
        return warning(f"Calls of other programs: {'; '.join(problems)}.", hint)
    return ok("The tools that environments serve are called with keys that can do no more.")


def check_audit(store: Store) -> Diagnosis:
    """Check that the events of the audit log are sealed."""
    with store.read() as tx:
        problem = audit.find_waiting_problem(tx, audit.MOST_WAITING)
        size = audit_tree.size(tx)
    if problem is not None:
        hint = "A worker seals events: see the check worker. If one is alive, run kneo audit verify."
        return error(f"The audit log is not sealed: {problem}.", hint)
    return ok(f"The audit log is sealed, with {size} events.")


def check_records(settings: Settings, store: Store) -> Diagnosis:
    """Check that records have a message authentication code of the service key, and that codes are checked."""
    key = _service_key(settings)
    if key is None:
        return ok("There is no service key yet; the first record creates it.")
    with store.read() as tx:
        counts = count_without(tx, RecordMacs(lambda: key))
    if counts:
        return warning(f"{describe_unauthenticated(counts)}.", ADOPT_HINT)
    if settings.record_macs != "check":
        hint = "Unset it when the last process of the earlier version has stopped."
        return warning("KNEO_SERV_RECORD_MACS is write: no process checks what others wrote.", hint)
    return ok("All records have a code of the service key.")


ADOPT_HINT = "After an upgrade: kneo maintenance adopt --dry-run. Otherwise find out who can write to the database."


def describe_unauthenticated(counts: Mapping[str, int]) -> str:
    """Return how many records of each table have no code of the service key, as a clause."""
    each = ", ".join(f"{count} of {name}" for name, count in counts.items())
    return f"{sum(counts.values())} records have no code of the service key, and are refused: {each}"


def check_trust_root(settings: Settings, store: Store) -> Diagnosis:
    """Check that the first trust root is pinned, and how long the present one is valid."""
    with store.read() as tx:
        if not registry.is_followed(tx, settings.trust_root):
            return ok("No config repository is reconciled with this database.")
        if not releases.trust_chain(tx):
            hint = "kneo source show says whether the repository was reached."
            return warning("No trust root was accepted yet; no run can start.", hint)
        root = registry.trust_root(tx, settings.trust_root)
        left = root.expires - tx.now
    if left <= timedelta(0):
        return error(f"The trust root expired on {root.expires:%Y-%m-%d}; nothing new is accepted.", "kneo trust sign")
    if left < ROOT_WARNING:
        hint = "Sign the next one: kneo trust sign --help."
        return warning(f"The trust root expires in {left.days} days, on {root.expires:%Y-%m-%d}.", hint)
    if settings.trust_root is None:
        hint = "Set KNEO_SERV_TRUST_ROOT to the digest of the first trust root for every process."
        return warning("The first trust root is not pinned here; the one in the database is trusted.", hint)
    return ok(f"The trust root is pinned and valid for {left.days} days.")


def check_source(settings: Settings, store: Store) -> Diagnosis:
    """Check that the mirror of the config repository is readable, and that its host answers."""
    with store.read() as tx:
        record = requests.source(tx)
    if record is None:
        return ok("No config repository is reconciled with this database.")
    # Outside the mirrors: asking the host of a damaged mirror would rebuild it.
    with tempfile.TemporaryDirectory() as folder:
        Mirror(record.url, record.ref, Path(folder), settings.git).poll()
    mirror = Mirror(record.url, record.ref, settings.state_dir / "mirrors", settings.git)
    mirror.accepted()
    if record.failed_at is not None:
        hint = "The host answers this machine: compare the controller's network and credentials."
        return warning(f"The controller has failed to fetch since {record.failed_at}: {record.failed_message}", hint)
    if record.refused_commit is not None:
        message = f"The commit {record.refused_commit[:12]} is refused: {record.refused_message}"
        return warning(message, "Correct it in Git; kneo status shows the environments.")
    return ok(f"The host answers, and {record.ref} is reconciled.")


def check_controller(settings: Settings, store: Store) -> Diagnosis:
    """Check that a controller is alive, where a config repository is reconciled."""
    with store.read() as tx:
        if not registry.is_followed(tx, settings.trust_root):
            return ok("No config repository is reconciled with this database.")
        holder = requests.lease_holder(tx, requests.CONTROLLER_LEASE)
    if holder is None:
        hint = "Start kneo controller run, or kneo up --repo."
        return warning("No controller is alive; commits are not reconciled.", hint)
    return ok("A controller is alive.")


def check_channels(settings: Settings, store: Store) -> Diagnosis:
    """Check that this process has the channels that released specs and those of runs notify."""
    with store.read() as tx:
        bodies = (*releases.released_payloads(tx, SPECS), *runs.latest_specs(tx, SPECS))
    named = {plain_name(name) for body in bodies for name in _channels(body)}
    missing = sorted(named - set(settings.channels))
    if missing:
        hint = "Set KNEO_SERV_CHANNEL_… for the workers; the guide Notifications describes the addresses."
        return warning(f"Specs notify channels that are not set here: {', '.join(missing[:20])}.", hint)
    return ok(f"All {len(named)} channels of specs are set." if named else "No spec notifies a channel.")


def check_code(settings: Settings, store: Store) -> Diagnosis:
    """Check that a worker with these settings may load the code that released specs name. Nothing of it is executed."""
    code = CodeLoader(settings.import_roots, settings.import_allow)
    with store.read() as tx:
        released = releases.released_bundles(tx, SPECS)
        rules = {name: registry.find_declared(tx, name) for name in {item.environment for item, _ in released}}
    functions, problems = 0, list[str]()
    for item, payload in released:
        declared = rules[item.environment]
        pins = declared.spec.implementations if declared is not None else {}
        statement = parse_bundle(payload)
        spec = Spec.model_validate_json(canonical_json(statement.predicate.spec))
        if statement.code is not None:
            functions += len(set(spec.implementations()))
            problems += (
                f"{item.bundle} {item.version} in {item.environment}: the package {each}."
                for each in package_differences(statement.code)
            )
            continue
        for implementation in dict.fromkeys(spec.implementations()):
            functions += 1
            try:
                code.source(implementation, RunCode(pins))
            except KneoError as problem:
                problems.append(f"{item.bundle} {item.version} in {item.environment}: {problem.message}")
    if problems:
        shown = " ".join(problems[:MAX_PROBLEMS])
        more = f" And {len(problems) - MAX_PROBLEMS} more." if len(problems) > MAX_PROBLEMS else ""
        hint = "On a worker: install the recorded versions of packages, and sign releases with their code, or deploy it, list it in KNEO_SERV_IMPORT_ALLOW, or pin it."
        return warning(f"Steps fail, or run with other packages, on a worker with these settings. {shown}{more}", hint)
    return ok(f"All {functions} functions of releases can be loaded." if functions else "No release names a function.")


def _channels(body: bytes) -> Iterator[str]:
    """Yield the channels that the spec in a payload notifies."""
    try:
        waiting: list[object] = [json.loads(body)]
    except (ValueError, RecursionError):
        return
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            names = part.get("notify")
            yield from (name for name in ([names] if isinstance(names, str) else names or ()) if isinstance(name, str))
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
