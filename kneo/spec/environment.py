"""The file that says what runs in an environment and what must hold before that changes.

``environments/<env>.yaml`` is not signed; the repository's review guards it, and the controller compares it with the
version it accepted before. What decides about trust is therefore required rather than defaulted: an environment
without a ``policy`` or without ``signatures`` is refused, as is one that asks for no signature at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from pydantic import ConfigDict, Field

from kneo.digest import Digest, digest_of_json
from kneo.errors import Invalid
from kneo.spec.base import ApiVersion, CamelModel, DigestText, Duration, ListOf, MapOf, Name, SpecModel
from kneo.spec.diagnostics import Diagnostic, error, locate
from kneo.spec.documents import Document, ReadLimits
from kneo.spec.models.environment_gates import MAX_ADDED, EnvironmentGate, QuestionPolicy
from kneo.spec.models.human import AnyHuman, Human
from kneo.spec.policy_flags import PolicyFlags
from kneo.spec.reading.reader import read
from kneo.spec.reading.validate import InvalidDeclaration, parse_model
from kneo.spec.windows import Window, parse_window

ENVIRONMENT_LIMITS = ReadLimits(max_bytes=8 * 1_048_576, max_nodes=500_000)
"""Room for twenty thousand releases, each with a version and a digest."""


class ReleasePin(CamelModel):
    """Which version of a bundle runs here."""

    bundle: Name
    version: Name = Field(description="The version's file name without its suffix.")
    digest: DigestText | None = Field(
        default=None, description="SHA-256 of the bundle's payload; must agree with the version where both stand."
    )


class Person(CamelModel):
    """Who somebody is in this environment."""

    groups: ListOf[Name] = ()
    roles: ListOf[Name] = ()


class Signatures(CamelModel):
    """Who must have signed a bundle before it may run here."""

    accept: ListOf[Literal["dsse", "hmac-v1"]] = Field(default=("dsse",), min_length=1)
    roles: ListOf[Name] = Field(min_length=1, description="Roles of the trust root whose keys count.")
    threshold: int = Field(ge=1, le=100, description="How many different principals must have signed.")


class Approvals(CamelModel):
    """How many people must agree to a promotion."""

    required: int = Field(default=1, ge=0, le=100)
    roles: ListOf[Name] = Field(default=("approver",), min_length=1)
    exclude: ListOf[Literal["bundle_signer", "author", "requester"]] = Field(
        default=("bundle_signer",), description="People whose approval does not count, by their part in the change."
    )
    expires: Duration = Field(default=timedelta(days=7), description="How long an approval counts.")
    signed: bool = Field(default=False, description="Whether each approver must sign with a key of their own.")


class PruneGuard(CamelModel):
    """A guard against a commit that empties an environment by mistake."""

    max_percent: int = Field(
        default=20, ge=0, le=100, description="A larger share disappearing at once needs an approval."
    )


class WindowRule(CamelModel):
    """A repeating stretch of time in which changes are allowed, or in which they are denied: one of the two."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["allow"]}, {"required": ["deny"]}]})

    allow: str | None = Field(default=None, examples=["* 06:00 - 20:00", "Mon-Fri 09:00 - 17:00"])
    deny: str | None = Field(default=None, examples=["Fri 16:00 - Mon 08:00"])
    timezone: str = Field(default="UTC", examples=["Europe/Berlin"])

    def window(self, *, accepted: bool = False) -> Window:
        """Return the window this describes.

        Raises:
            Invalid: it describes none, or two.
        """
        if self.allow is not None and self.deny is None:
            return parse_window("allow", self.allow, self.timezone, accepted=accepted)
        if self.deny is not None and self.allow is None:
            return parse_window("deny", self.deny, self.timezone, accepted=accepted)
        message = "A window says either allow or deny."
        raise Invalid(message)


class EnvironmentSpec(CamelModel):
    """What runs in an environment, and what must hold before that changes."""

    releases: ListOf[ReleasePin] = Field(default=(), description="What runs here.")
    inline_specs: bool = Field(default=False, description="Whether a run may bring its own spec.")
    people: MapOf[Person] = Field(
        default_factory=dict, description="Who is who; a name is also the name of an API key and of a principal."
    )
    promote_from: Name | None = Field(
        default=None, description="Only what that environment serves and has verified may come here."
    )
    policy: PolicyFlags = Field(description="What every spec must satisfy here.")
    signatures: Signatures
    approvals: Approvals | None = Field(default=None, description="Left out: nobody needs to approve.")
    questions: QuestionPolicy = QuestionPolicy()
    humans: MapOf[AnyHuman] = Field(default_factory=dict, description="Whom the questions under gates ask, by name.")
    gates: ListOf[EnvironmentGate] = Field(
        default=(), max_length=MAX_ADDED, description="Questions that are asked here beside those of the specs."
    )
    windows: ListOf[WindowRule] = Field(
        default=(), description="When changes may happen; denied windows win over allowed ones."
    )
    soak: Duration = Field(
        default=timedelta(0), description="How long the environment it comes from must have served it without failure."
    )
    prune: PruneGuard = PruneGuard()
    atomic: bool = Field(default=False, description="All changes of this environment happen, or none.")
    suspend: bool = Field(default=False, description="Change nothing here; what runs keeps running.")
    retired: bool = Field(
        default=False,
        description="The environment ends: what it still serves is removed with an approval, then no run starts here.",
    )
    implementations: MapOf[DigestText] = Field(
        default_factory=dict, description="The SHA-256 that a Python module behind an implementation must have here."
    )
    allow_self: bool = Field(
        default=False, description="Whether people may approve what they signed or asked for; shown in every receipt."
    )


class _Metadata(CamelModel):
    name: Name


class EnvironmentFile(SpecModel):
    """One environment, as its file says it."""

    model_config = ConfigDict(title="Environment")

    api_version: ApiVersion = Field(alias="apiVersion")
    kind: Literal["Environment"]
    metadata: _Metadata
    spec: EnvironmentSpec


@dataclass(frozen=True, slots=True)
class Environment:
    """One environment.

    Attributes:
        spec: What the file says.
        windows: When changes may happen; see :func:`kneo.spec.windows.windows_open`.
        gates: Its own questions, with whom they ask.
        policy_digest: Digest of the content without ``releases`` and ``suspend``: what an approval is bound to, so that
            it does not outlive the rules it was given under.
    """

    name: str
    spec: EnvironmentSpec
    windows: tuple[Window, ...]
    gates: tuple[EnvironmentGate, ...]
    policy_digest: Digest
    file: str


def parse_environment(
    data: bytes, *, file: str, limits: ReadLimits = ENVIRONMENT_LIMITS, accepted: bool = False
) -> Environment:
    """Read an environment file, YAML or JSON by its name.

    Args:
        data: The file.
        file: Its path.
        limits: Bounds on its size.
        accepted: Whether the file was accepted earlier. Its names were, too, and are not checked again.

    Raises:
        Unreadable: the bytes are not a document.
        InvalidDeclaration: the document is not an environment; the findings carry file and line.
    """
    document = read(data, file=file, limits=limits)
    written = parse_model(EnvironmentFile, document)
    problems = _contradictions(written) if accepted else [*_contradictions(written), *_names(written.spec)]
    if problems:
        raise InvalidDeclaration([locate(problem, [document]) for problem in problems])
    windows = tuple(rule.window(accepted=accepted) for rule in written.spec.windows)
    # A retired environment names nothing, whatever its list of releases still says.
    spec = written.spec.model_copy(update={"releases": ()}) if written.spec.retired else written.spec
    from kneo.spec.lint.environment_gates import resolved  # as below

    gates = resolved(written.spec.gates, written.spec.humans)
    return Environment(written.metadata.name, spec, windows, gates, _policy_digest(document), file)


def _policy_digest(document: Document) -> Digest:
    content = dict(document.value) if isinstance(document.value, dict) else {}
    spec = content.get("spec")
    if isinstance(spec, dict):
        content["spec"] = {key: value for key, value in spec.items() if key not in {"releases", "suspend"}}
    return digest_of_json(content)


def _contradictions(written: EnvironmentFile) -> list[Diagnostic]:
    # Many commands know what an environment is and read none: the rules take longer to import than the rest of this.
    from kneo.spec.lint.environment_gates import added_problems

    spec, code = written.spec, "E_ENVIRONMENT"
    found: list[Diagnostic] = [*_repeated(spec), *_impossible_windows(spec)]
    found += added_problems(spec.gates, spec.humans, spec.people.values())
    if spec.promote_from == written.metadata.name:
        found.append(error(code, "An environment cannot promote from itself.", ("spec", "promoteFrom")))
    if spec.soak and spec.promote_from is None:
        message = "soak says how long another environment must have served a bundle, and promoteFrom names none."
        found.append(error(code, message, ("spec", "soak"), suggestion="Add promoteFrom, or drop soak."))
    return found


def _names(spec: EnvironmentSpec) -> Iterator[Diagnostic]:
    from kneo.spec.lint.names import environment_names, human_names  # as in _contradictions

    yield from environment_names(spec.people, spec.humans, spec.questions)
    for index, added in enumerate(spec.gates):
        for place, gate in added.gates().items():
            yield from human_names(gate, ("spec", "gates", index, place))
            if isinstance(gate.human, Human):
                yield from human_names(gate.human, ("spec", "gates", index, place, "human"))


def _repeated(spec: EnvironmentSpec) -> Iterator[Diagnostic]:
    seen: set[str] = set()
    for index, release in enumerate(spec.releases):
        if release.bundle in seen:
            message = f"The bundle {release.bundle} is listed twice; an environment runs one version of a bundle."
            yield error("E_ENVIRONMENT", message, ("spec", "releases", index, "bundle"))
        seen.add(release.bundle)


def _impossible_windows(spec: EnvironmentSpec) -> Iterator[Diagnostic]:
    for index, rule in enumerate(spec.windows):
        try:
            rule.window()
        except Invalid as refusal:
            yield error("E_ENVIRONMENT", refusal.message, ("spec", "windows", index), suggestion=refusal.hint)
