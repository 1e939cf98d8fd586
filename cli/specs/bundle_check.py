"""The account of a bundle's verification: the trust root, the steps over the bytes, its place in the sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cli.repository.environments import read_environment
from cli.repository.known_roots import KnownRoots
from cli.repository.layout import ConfigRepository, find_repository, read_bundle, repository_of
from cli.specs.signing import read_statement
from cli.specs.trust_roots import TrustFiles
from kneo.digest import Digest
from kneo.errors import KneoError, NotFound, Untrusted
from kneo.settings import Settings
from kneo.trust.keys import PublicKey
from kneo.trust.root import TrustRoot
from kneo.trust.statement import BundleStatement
from kneo.trust.verified import SignatureRule, SignatureTerms
from kneo.trust.verify import VerificationStep, bundle_path, parse_bundle_path, verification_steps

DEFAULT_TERMS = SignatureRule(roles=("release",))
"""What is asked of a bundle where no environment file says more."""


SIGNATURES_STEP, SPEC_STEP = 4, 6
"""Which of ``verify_bundle``'s steps say that enough people signed, and that the spec is the one that is named."""


@dataclass(frozen=True)
class Believed:
    """The trust root that a bundle is judged by."""

    root: TrustRoot
    file: Path
    pin: Digest
    pinned_by: str | None
    """Who vouched for the first root; None when only the file itself did."""


@dataclass(frozen=True)
class EnvironmentAccount:
    environment: str
    steps: tuple[VerificationStep, ...]

    @property
    def valid(self) -> bool:
        return all(step.passed for step in self.steps)

    def passed(self, number: int) -> bool:
        """Say whether a step was reached and passed."""
        return any(step.number == number and step.passed for step in self.steps)

    @property
    def failed(self) -> VerificationStep | None:
        """The step at which it ended, if it did."""
        return next((step for step in self.steps if step.passed is False), None)


@dataclass(frozen=True)
class Account:
    """Everything that was checked, for each environment the bundle is judged for."""

    believed: Believed
    path: str
    environments: tuple[EnvironmentAccount, ...]

    @property
    def valid(self) -> bool:
        return bool(self.environments) and all(each.valid for each in self.environments)

    @property
    def told(self) -> EnvironmentAccount:
        """The one to show in full: the first that fails, else the first."""
        return next((each for each in self.environments if not each.valid), self.environments[0])


def choose_root(bundle: Path, trust: Path | None, pin: Digest | None, settings: Settings, now: datetime) -> Believed:
    """Find the trust root that judges a bundle, and walk to it from the pinned first one.

    The pin is the one given, else the one of the settings, else the one this machine remembers for the repository. With
    none of them the root's own first version is all there is, which proves nothing; the caller must say so.

    Raises:
        NotFound: there is no trust root.
        Untrusted, Invalid: the chain does not hold.
    """
    repository = repository_of(bundle) or find_repository(Path.cwd())
    file = trust or (repository.trust_file if repository else None)
    if file is None:
        msg = f"{bundle} is not in a config repository, so there is no trust root to judge it by."
        raise NotFound(msg, hint="Name one with --trust environments/trust.json.")
    chain = TrustFiles(file).read()
    pinned_by, chosen = _pin(file, pin, settings)
    believed = chosen or chain.first
    return Believed(chain.verify(believed, now), file, believed, pinned_by)


def _pin(file: Path, given: Digest | None, settings: Settings) -> tuple[str | None, Digest | None]:
    if given is not None:
        return "--trust-root", given
    if settings.trust_root is not None:
        return "KNEO_SERV_TRUST_ROOT", settings.trust_root
    known = KnownRoots(settings.known_roots_path).lookup(file.resolve().parent.parent)
    return (str(settings.known_roots_path), known) if known else (None, None)


def check_bundle(file: Path, believed: Believed, environment: str | None, now: datetime) -> Account:
    """Go through every check for one environment, or for all that the bundle names and that have a file.

    Raises:
        NotFound: the bundle is not there.
        Invalid: an environment's file is not one.
    """
    data = read_bundle(file)
    statement = _statement(file)
    path = _path(file, statement)
    repository = _repository(believed)
    accounts = []
    for name in _environments(repository, environment, statement):
        steps = verification_steps(
            data, root=believed.root, signatures=_terms(repository, name), path=path, environment=name, now=now
        )
        accounts.append(EnvironmentAccount(name, (*steps, _sequence_step(file, statement, steps))))
    return Account(believed, path, tuple(accounts))


def known_keys(believed: Believed) -> list[PublicKey]:
    """The keys of a trust root."""
    return [key.public for key in believed.root.keys.values()]


def _statement(file: Path) -> BundleStatement | None:
    try:
        return read_statement(file)[1]
    except NotFound:
        raise
    except KneoError:
        return None  # the steps say what is wrong with it


def _path(file: Path, statement: BundleStatement | None) -> str:
    """The place to judge it by: where it stands, or, for a file that was carried elsewhere, where it says it belongs."""
    place = "/".join(file.absolute().parts[-3:])
    if parse_bundle_path(place) is not None or statement is None:
        return place
    return bundle_path(statement.predicate.name, statement.predicate.version)


def _repository(believed: Believed) -> ConfigRepository | None:
    folder = believed.file.absolute().parent
    return ConfigRepository(folder.parent) if folder.name == "environments" else None


def _environments(
    repository: ConfigRepository | None, asked: str | None, statement: BundleStatement | None
) -> Sequence[str]:
    if asked is not None:
        return [asked]
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
    """Compare with the files beside it. The controller compares with what it accepted, which no file can change."""
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
            msg = f"It says that it follows {mine.prev}, but {path.name} is {other.digest}."
            raise Untrusted(msg, code="Equivocation", hint="Sign it again beside that version.")
    return f"seq {mine.seq}, after {mine.prev or 'none'}"
