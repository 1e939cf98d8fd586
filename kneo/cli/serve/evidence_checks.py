"""The checks of evidence: results that expire, results of canaries that Git does not have, and suites that differ from their pins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from kneo import registry
from kneo.api.canaries import find_result
from kneo.cli.checks import Diagnosis, ok, warning
from kneo.cli.files import read_bytes
from kneo.cli.repository import find_repository
from kneo.clock import isoformat, parse_time
from kneo.controller.stages.attestations import Makers, makers_of, newest_fitting
from kneo.controller.stages.evidence import verify_recorded
from kneo.controller.stages.gates import CONTROLLER_ROLE
from kneo.errors import KneoError
from kneo.names import visible
from kneo.settings import Settings
from kneo.spec.environment import ENVIRONMENT_LIMITS, parse_environment
from kneo.spec.reading.suite import SUITE_LIMITS, parse_suite
from kneo.store import attestations, canaries, releases
from kneo.store.engine import Store, Tx
from kneo.trust.root import TrustRoot

EXPIRY_WARNING = timedelta(days=3)
"""Time before the expiry of evidence from which it should be issued again; at most a fifth of its ``maxAge``."""

MAX_SHOWN = 10
"""Problems that a message lists."""

MAX_SUITES = 200
"""Suites below ``evals/`` that are read."""


RESULT_AGE = timedelta(days=30)
"""The time after the end of a canary in which its result is missed."""


def check_evidence(settings: Settings, store: Store) -> Diagnosis:
    """Check that evidence about pending releases and canaries does not expire soon, and that Git has the results of canaries."""
    with store.read() as tx:
        if not registry.is_followed(tx, settings.trust_root) or not releases.trust_chain(tx):
            return ok("No config repository is reconciled with this database.")
        root = registry.trust_root(tx, settings.trust_root)
        expiring = list(_expiring(tx, root))
        # Without a key in that role no result counts, so that none is missed.
        missing = list(_missing_results(tx)) if CONTROLLER_ROLE in root.document.roles else []
    hints = ["Evaluate again and commit the result: kneo eval."] if expiring else []
    if missing:
        hints.append(
            f"Commit the result, so that a rebuilt registry decides the same: kneo canary result {missing[0]}."
        )
    return _diagnose(
        [*expiring, *(f"Git has no result of the canary of {place}" for place in missing)],
        " ".join(hints),
        "No evidence about a pending release expires soon, and Git has the results of canaries.",
    )


def _diagnose(problems: Sequence[str], hint: str, well: str) -> Diagnosis:
    if not problems:
        return ok(well)
    more = f"; and {len(problems) - MAX_SHOWN} more" if problems[MAX_SHOWN:] else ""
    return warning(f"{'; '.join(map(visible, problems[:MAX_SHOWN]))}{more}.", hint)


def _expiring(tx: Tx, root: TrustRoot) -> Iterator[str]:
    """Yield the evidence about pending releases and live canaries that is too old now or soon."""
    wanted = {
        (name, item.bundle, item.version, item.digest)
        for name, item in releases.list_pending(tx)
        if item.digest is not None
    }
    wanted |= {(item.environment, item.bundle, item.version, item.digest) for item in canaries.list_live(tx)}
    stated, _ = verify_recorded(tx, {digest for *_, digest in wanted}, root)
    for name, bundle, version, digest in sorted(wanted):
        declared, record = registry.find_declared(tx, name), releases.bundle(tx, digest)
        # The registry has the signers of a bundle once it is a canary or a release.
        makers = makers_of(record) if record is not None else Makers()
        for rule in declared.spec.evidence if declared is not None else ():
            found = newest_fitting(rule, bundle, stated.get(digest, ()), name, makers.excluded_by(rule), tx.now)
            issued = [item.statement.facts.issued_at for item in found]
            left = min(issued) + rule.max_age - tx.now if issued else None
            if left is not None and left < min(EXPIRY_WARNING, rule.max_age / 5):
                when = f"expires in {left // timedelta(hours=1)} hours" if left > timedelta(0) else "has expired"
                yield f"evidence {rule.name} about {bundle} {version} in {name} {when}"


def _missing_results(tx: Tx) -> Iterator[str]:
    """Yield the environment and bundle of each newest canary that has a result which no file in Git states."""
    for canary in canaries.list_ended(tx, isoformat(tx.now - RESULT_AGE)):
        if find_result(canary) is None:
            continue
        stated = {
            parse_time(item.issued_at)
            for item in attestations.list_about(tx, {canary.digest})
            if (item.type, item.environment) == ("canary", canary.environment)
        }
        if parse_time(str(canary.ended_at)) not in stated:
            yield f"{canary.environment}/{canary.bundle}"


def check_suites(_settings: Settings) -> Diagnosis:
    """Check that the suites below ``evals/`` are those that the environment files next to them pin."""
    repository = find_repository(Path.cwd())
    if repository is None:
        return ok("There is no config repository in this folder.")
    suites, problems = _read_suites(repository.root / "evals"), list[str]()
    for name in repository.environment_names():
        path = repository.environment_file(name)
        assert path is not None, "it was listed"
        declared = parse_environment(
            read_bytes(path, max_bytes=ENVIRONMENT_LIMITS.max_bytes, what="environment"), file=str(path)
        )
        for rule in declared.spec.evidence:
            found = suites.get(rule.suite.name, {}) if rule.suite is not None else {}
            if found and rule.suite is not None and rule.suite.digest not in found:
                digest, file = next(iter(found.items()))
                problems.append(f"{name} pins suite {rule.suite.name} at {rule.suite.digest}, and {file} is {digest}")
    hint = (
        "Evaluate with the file that is pinned, or pin the other one, which people approve: kneo evidence digest SUITE."
    )
    return _diagnose(problems, hint, f"Environments pin no other suites than those in evals/: {len(suites)}.")


def _read_suites(folder: Path) -> Mapping[str, Mapping[str, str]]:
    """Return the file of each suite below a folder, by name and digest; a file that is no suite is left out."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*/*.yaml")))[:MAX_SUITES]:
        try:
            loaded = parse_suite(read_bytes(path, max_bytes=SUITE_LIMITS.max_bytes, what="suite"), file=str(path))
        except KneoError:
            continue
        found.setdefault(loaded.name, {})[loaded.digest] = str(path.relative_to(folder.parent))
    return found
