"""The verification of a bundle: trust root, steps over the bytes, place in the sequence, and the output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from kneo.cli import render
from kneo.cli.project import read_environment
from kneo.cli.repository import ConfigRepository, KnownRoots, find_repository, read_bundle, repository_of
from kneo.cli.specs.signing import read_statement
from kneo.cli.specs.trust_roots import TrustFiles
from kneo.clock import SystemClock, isoformat
from kneo.digest import Digest, parse_digest
from kneo.errors import KneoError, NotFound, Untrusted
from kneo.settings import from_env
from kneo.spec.code import BundleCode
from kneo.trust.root import TrustRoot
from kneo.trust.statement import BundleStatement
from kneo.trust.verify import (
    SignatureRule,
    SignatureTerms,
    VerificationStep,
    bundle_path,
    parse_bundle_path,
    verification_steps,
)

DEFAULT_TERMS = SignatureRule(roles=("release",))
"""Signature terms without an environment file."""


SIGNATURES_STEP, SPEC_STEP = 4, 6
"""Numbers of the steps of ``verify_bundle`` for the signatures and for the spec's digest."""


@dataclass(frozen=True)
class PinnedRoot:
    """The trust root of a verification."""

    root: TrustRoot
    file: Path
    pin: Digest
    pinned_by: str | None
    """Source of the pin; None without one."""


@dataclass(frozen=True)
class EnvironmentAccount:
    environment: str
    steps: tuple[VerificationStep, ...]

    @property
    def valid(self) -> bool:
        return all(step.passed for step in self.steps)

    def passed(self, number: int) -> bool:
        """Return whether a step was reached and passed."""
        return any(step.number == number and step.passed for step in self.steps)

    @property
    def failed(self) -> VerificationStep | None:
        """The failed step; None without one."""
        return next((step for step in self.steps if step.passed is False), None)


@dataclass(frozen=True)
class Account:
    """The verification of a bundle for each environment."""

    trust: PinnedRoot
    path: str
    environments: tuple[EnvironmentAccount, ...]

    @property
    def valid(self) -> bool:
        return bool(self.environments) and all(each.valid for each in self.environments)

    @property
    def shown(self) -> EnvironmentAccount:
        """The environment to show in full: the first failed one, else the first."""
        return next((each for each in self.environments if not each.valid), self.environments[0])


def choose_root(bundle: Path, trust: Path | None, pin: str | None, now: datetime) -> PinnedRoot:
    """Return the trust root for a bundle, verified from the pinned one.

    The pin is the argument, else that of the settings, else the recorded one of this machine. Without a pin the first root
    in the file is used, which proves nothing; the caller has to warn, as ``choose_root_or_warn`` does.

    Raises:
        NotFound: there is no trust root.
        Untrusted, Invalid: the chain does not hold.
    """
    repository = repository_of(bundle) or find_repository(Path.cwd())
    file = trust or (repository.trust_file if repository else None)
    if file is None:
        msg = f"{bundle} is not in a config repository, so there is no trust root."
        raise NotFound(msg, hint="Pass one: --trust environments/trust.json")
    chain = TrustFiles(file).read()
    pinned_by, chosen = _pin(file, pin)
    pinned = chosen or chain.first
    return PinnedRoot(chain.verify(pinned, now), file, pinned, pinned_by)


def choose_root_or_warn(file: Path, trust: Path | None, pin: str | None, now: datetime) -> TrustRoot:
    """Return the trust root for a file as ``choose_root`` does; print a warning where it is not pinned."""
    chosen = choose_root(file, trust, pin, now)
    if chosen.pinned_by is None:
        hint = f"Check its first version, {chosen.pin}, and pass it with --trust-root."
        render.warning(f"{chosen.file} is not pinned.", hint)
    return chosen.root


def _pin(file: Path, given: str | None) -> tuple[str | None, Digest | None]:
    if given is not None:
        return "--trust-root", parse_digest(given)
    settings = from_env()
    if settings.trust_root is not None:
        return "KNEO_SERV_TRUST_ROOT", settings.trust_root
    known = KnownRoots(settings.known_roots_path).lookup(file.resolve().parent.parent)
    return (str(settings.known_roots_path), known) if known else (None, None)


def check_bundle(file: Path, trust: PinnedRoot, environment: str | None, now: datetime) -> Account:
    """Verify a bundle for one environment, or for all of its environments that have a file.

    Raises:
        NotFound: the bundle is not there.
        Invalid: an environment's file is not one.
    """
    data = read_bundle(file)
    statement = _statement(file)
    path = _path(file, statement)
    repository = _repository(trust)
    accounts = []
    for name in _environments(repository, environment, statement):
        steps = verification_steps(
            data, root=trust.root, signatures=_terms(repository, name), path=path, environment=name, now=now
        )
        accounts.append(EnvironmentAccount(name, (*steps, _sequence_step(file, statement, steps))))
    return Account(trust, path, tuple(accounts))


def _statement(file: Path) -> BundleStatement | None:
    try:
        return read_statement(file)[1]
    except NotFound:
        raise
    except KneoError:
        return None  # the steps report the error


def _path(file: Path, statement: BundleStatement | None) -> str:
    """Return the repository path to verify: that of the file or, outside of a repository, that in the bundle."""
    place = "/".join(file.absolute().parts[-3:])
    if parse_bundle_path(place) is not None or statement is None:
        return place
    return bundle_path(statement.predicate.name, statement.predicate.version)


def _repository(trust: PinnedRoot) -> ConfigRepository | None:
    folder = trust.file.absolute().parent
    return ConfigRepository(folder.parent) if folder.name == "environments" else None


def _environments(
    repository: ConfigRepository | None, environment: str | None, statement: BundleStatement | None
) -> Sequence[str]:
    if environment is not None:
        return [environment]
    named = statement.predicate.environments if statement else ()
    present = repository.environment_names() if repository else []
    return [name for name in named if name in present] or [*named[:1]] or present[:1] or ["prod"]


def _terms(repository: ConfigRepository | None, environment: str) -> SignatureTerms:
    if repository is None or environment not in repository.environment_names():
        return DEFAULT_TERMS
    return read_environment(repository, environment).spec.signatures


def _sequence_step(
    file: Path, statement: BundleStatement | None, before: Sequence[VerificationStep]
) -> VerificationStep:
    step = VerificationStep(len(before) + 1, "It follows the version before it", passed=None, detail="not reached")
    if statement is None or not all(each.passed for each in before):
        return step
    try:
        return replace(step, passed=True, detail=_check_sequence(file, statement))
    except KneoError as error:
        return replace(step, passed=False, detail=str(error), code=error.code)


def _check_sequence(file: Path, statement: BundleStatement) -> str:
    """Compare with the other versions in the folder. The controller compares with the accepted ones."""
    mine = statement.predicate
    for path in sorted(file.parent.glob("*.dsse.json")):
        if path.name == file.name:
            continue
        other = _statement(path)
        if other is None or other.predicate.name != mine.name:
            continue
        if other.predicate.seq == mine.seq:
            msg = f"{path.name} has the same sequence number, {mine.seq}."
            raise Untrusted(msg, code="Equivocation", hint="Find out who signed both, then sign a new version.")
        if other.predicate.seq == mine.seq - 1 and mine.prev != other.digest:
            msg = f"It follows {mine.prev}, but {path.name} is {other.digest}."
            raise Untrusted(msg, code="Equivocation", hint="Sign it again in the folder of that version.")
    return f"seq {mine.seq}, after {mine.prev or 'none'}"


def facts_of(statement: BundleStatement) -> dict[str, object]:
    """Return the content of a bundle as JSON."""
    predicate = statement.predicate
    source = predicate.source.model_dump(mode="json", exclude_none=True) if predicate.source else None
    return {
        "name": predicate.name,
        "version": predicate.version,
        "seq": predicate.seq,
        "prev": predicate.prev,
        "environments": list(predicate.environments),
        "approved_by": predicate.approved_by,
        "issued_at": isoformat(predicate.issued_at),
        "expires_at": isoformat(predicate.expires_at) if predicate.expires_at else None,
        "spec_digest": predicate.spec_digest,
        "source": source,
        "code": code_facts(statement.code),
    }


def code_facts(code: BundleCode | None) -> dict[str, object] | None:
    """Return the size and the digest of a bundle's code as JSON."""
    if code is None:
        return None
    return {"digest": code.digest, "files": len(code.files), "bytes": code.size, "packages": len(code.packages)}


def print_facts(statement: BundleStatement) -> None:
    """Print the content of a bundle, one line for each field."""
    for name, value in facts_of(statement).items():
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        else:
            shown = ", ".join(value) if isinstance(value, list) else str(value)
        if value is not None:
            render.text(f"  {name.replace('_', ' '):<13} {shown}")


def trust_facts(account: Account) -> dict[str, object]:
    """Return the trust root of a verification as JSON."""
    trust = account.trust
    return {
        "path": account.path,
        "trust_root": {
            "file": str(trust.file),
            "version": trust.root.version,
            "digest": trust.root.digest,
            "first": trust.pin,
            "pinned": trust.pinned_by is not None,
            "pinned_by": trust.pinned_by,
            "expired": trust.root.expired_at(SystemClock().now()),
        },
    }


def print_account(account: Account) -> None:
    """Print a verification, step by step."""
    trust = account.trust
    if trust.pinned_by:
        render.success(f"Trust root version {trust.root.version} follows from {trust.pin}")
        render.text(f"  pinned by {trust.pinned_by}")
    else:
        render.warning(
            f"THE TRUST ROOT ITSELF WAS NOT PINNED: {trust.file} is signed only by its own keys, which proves nothing.",
            "Ask the owner of the repository for the digest, then pass --trust-root sha256:…",
        )
    if trust.root.expired_at(SystemClock().now()):
        render.warning(f"The trust root expired at {isoformat(trust.root.expires)}: new bundles are refused.")
    render.text(f"For {account.shown.environment}:")
    marks = {True: render.DONE, False: render.FAILED, None: render.OPEN}
    for step in account.shown.steps:
        code = f"{step.code}: " if step.code else ""
        render.line(marks[step.passed], f"{step.number:>2} {step.title}: {code}{step.detail}")
    for each in account.environments:
        if each is not account.shown:
            render.line(marks[each.valid], f"   For {each.environment}")
