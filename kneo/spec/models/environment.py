"""Environment files: releases, people, policy, signatures, approvals, windows, and the gates that an environment adds.

``environments/<env>.yaml`` is not signed; the repository's review guards it, and the controller compares it with the
version it accepted before. Fields that decide about trust are required: an environment without a ``policy`` or without
``signatures`` is refused, as is one that requires no signature at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias

from pydantic import ConfigDict, Field

from kneo.digest import Digest
from kneo.errors import Invalid
from kneo.spec.base import ApiVersion, CamelModel, DigestText, Duration, ListOf, MapOf, Name, Pattern, SpecModel
from kneo.spec.models.canary import CanaryPlan
from kneo.spec.models.evidence import MAX_RULES, EvidenceRule
from kneo.spec.models.human import AnyGate, AnyHuman, Gate
from kneo.spec.models.spec import Spec
from kneo.spec.policy import GrantRule, ModelRules, PolicyFlags, ProtocolRules, Storage, ToolRules, Window, parse_window
from kneo.spec.tool_kinds import Capability

EnvironmentGatePosition: TypeAlias = Literal["before", "after"]

StepKind: TypeAlias = Literal[
    "agent", "function", "workflow", "guardrail", "steps", "parallel", "condition", "loop", "router"
]

MatchedKind: TypeAlias = StepKind | Literal["tool"]
"""A kind of step, or a call of a tool."""

MAX_ADDED = 100


class QuestionPolicy(CamelModel):
    """Minimum requirements of every question to a person, for all specs of the environment."""

    approvals: int = Field(default=1, ge=1, le=100, description="The minimum number of approvals.")
    exclude: ListOf[str] = Field(
        default=(),
        description="People who may not answer, in addition to those that a gate excludes: names, or requester, bundle_signer, "
        "previous_reviewers.",
        examples=[["requester", "bundle_signer"]],
    )
    deny_on_timeout: ListOf[Literal["approve", "continue", "select", "skip"]] = Field(
        default=(), description="Effects that a timeout must not have; where a spec states one, the run ends instead."
    )
    receipt: Literal["signed", "signed_by_reviewer"] | None = Field(
        default=None,
        description="Whether every decision needs a signed receipt, or also the reviewer's signature with a key of "
        "their own.",
    )
    via: ListOf[Literal["slack"]] = Field(
        default=(),
        description="Chat programs whose buttons decide questions, as the person whose account `people` names. Their administrators can "
        "act for anyone. Left out: none.",
    )
    context: Literal["calls", "none"] = Field(
        default="calls",
        description="What a question about a tool call shows its candidates besides the call: the earlier calls of the step with "
        "their results, or nothing.",
    )


class Match(CamelModel):
    """The steps or tool calls of a gate: those that match every field, each by one of its entries.

    With ``kinds: [tool]`` the gate stands at calls: ``tools`` and ``capabilities`` are those of the called tool, ``refs`` is
    its agent, ``steps`` and ``workflows`` are where the agent runs. With other kinds it stands around whole steps.
    In patterns ``*`` matches any text and ``?`` one character.
    """

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    capabilities: ListOf[Capability] = Field(default=(), description="What running the step may do beyond computing.")
    kinds: ListOf[MatchedKind] = Field(
        default=(),
        description="Kinds of steps, or tool. Left out: every step that does something itself; groups and tool calls only "
        "where they are named.",
    )
    refs: ListOf[Pattern] = Field(
        default=(), description="Patterns of names: the agent, function or workflow that it runs."
    )
    tools: ListOf[Pattern] = Field(
        default=(),
        description="Patterns of tools: those that the step's agent can call, or the called one; by the name in the spec, or of "
        "what is behind it.",
    )
    steps: ListOf[Pattern] = Field(
        default=(), description="Patterns of paths: ids from the outside in.", examples=[["release/*"]]
    )
    workflows: ListOf[Pattern] = Field(default=(), description="Patterns of names: the workflow that it stands in.")


class EnvironmentGate(CamelModel):
    """A gate around steps or at tool calls, in addition to the gates of their specs."""

    name: Name = Field(description="A part of the question's key: pay.before+NAME.")
    match: Match = Field(description="The steps it stands around, or the calls it stands at.")
    before: AnyGate | None = Field(default=None, description="Asked before such a step begins, or such a call is made.")
    after: AnyGate | None = Field(default=None, description="Asked when such a step has finished.")

    def gates(self) -> dict[EnvironmentGatePosition, Gate]:
        """Return the gates by their position."""
        places: dict[EnvironmentGatePosition, Gate | None] = {"before": self.before, "after": self.after}
        return {place: gate for place, gate in places.items() if gate is not None}


class GatedSpec(Spec):
    """A spec as it runs in an environment, with the gates that the environment adds."""

    environment_gates: ListOf[EnvironmentGate] = ()


def with_gates(spec: Spec, gates: tuple[EnvironmentGate, ...]) -> Spec:
    """Add an environment's gates, with their humans written out, to a spec."""
    if not gates:
        return spec
    values = {name: getattr(spec, name) for name in spec.model_fields_set}
    return GatedSpec.model_construct(**values, environment_gates=gates)


def read_spec(body: bytes) -> GatedSpec:
    """Read the frozen spec that a run executes."""
    return GatedSpec.model_validate_json(body)


class ReleasePin(CamelModel):
    """A release: the version of a bundle in this environment."""

    bundle: Name
    version: Name = Field(description="The version's file name without its suffix.")
    digest: DigestText | None = Field(
        default=None, description="SHA-256 of the bundle's payload; must agree with the version where both stand."
    )
    canary: CanaryPlan | None = Field(
        default=None, description="The shares of new runs that this version gets before it replaces another one."
    )


class Person(CamelModel):
    """The groups and roles of a person in this environment."""

    groups: ListOf[Name] = ()
    roles: ListOf[Name] = ()
    slack: str | None = Field(
        default=None,
        pattern=r"^T[A-Z0-9]{1,30}/[UW][A-Z0-9]{1,30}$",
        description="The person's account in Slack, as TEAM/USER with the ids of Slack; for `questions.via`.",
        examples=["T0123ABCD/U0456EFGH"],
    )


PersonText: TypeAlias = Annotated[str, Field(min_length=1, max_length=200)]


class Who(CamelModel):
    """The callers of a rule of access: those of any of its entries."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    users: ListOf[PersonText] = Field(default=(), description="Names of API keys, or of people of the issuer.")
    groups: ListOf[PersonText] = Field(
        default=(),
        description="Groups of `people`; for callers whom the file does not name, groups that the issuer of their tokens states.",
    )
    roles: ListOf[PersonText] = Field(default=(), description="Roles of the API key, or of the issuer's groups.")


class AccessRule(CamelModel):
    """Callers, and what they may do in this environment."""

    who: Who
    may: ListOf[PersonText] = Field(
        min_length=1, description="Roles or scopes.", examples=[["viewer", "caller"], ["audit:read"]]
    )


class Quotas(SpecModel):
    """Limits of what an environment uses. Each is optional."""

    running: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Runs that workers execute at the same time; a further one waits."
    )
    queued: int | None = Field(
        default=None, ge=0, le=100_000_000, description="Runs that wait for a worker; a further one is refused."
    )
    requests_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=100_000_000,
        description="Requests about the environment in one minute; a further one is refused.",
    )
    stored: Storage | None = Field(
        default=None,
        description="Size of the inputs, outputs and conversations of its runs, `64Ki` to `10Ti`; a further run is refused.",
    )


class Signatures(CamelModel):
    """Signatures that a bundle needs in this environment."""

    accept: ListOf[Literal["dsse", "hmac-v1"]] = Field(default=("dsse",), min_length=1)
    roles: ListOf[Name] = Field(min_length=1, description="Roles of the trust root whose keys count.")
    threshold: int = Field(ge=1, le=100, description="How many different principals must have signed.")


class Approvals(CamelModel):
    """Approvals that a promotion needs."""

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


class Recordings(CamelModel):
    """Consent to read ended runs of the environment, redacted, to rehearse other versions on them."""

    use: ListOf[Literal["rehearsal"]] = Field(min_length=1, description="What the recordings are for.")
    redact: Literal["personal", "secrets"] = Field(
        default="personal",
        description="What no recording has: secrets and personal data as e-mail addresses, or secrets alone.",
    )
    max_age: Duration = Field(default=timedelta(days=30), description="The oldest runs that are read.")


class EnvironmentSpec(CamelModel):
    """The releases of an environment, and the requirements for a change."""

    releases: ListOf[ReleasePin] = Field(default=(), description="What runs here.")
    team: Name | None = Field(
        default=None, description="The owner; groups environments in lists, metrics and notifications."
    )
    access: ListOf[AccessRule] | None = Field(
        default=None,
        description="Who may do what here, of what the caller's key or issuer allows. Left out: everything that those allow. "
        "`[]`: administrators alone.",
    )
    admins: bool = Field(
        default=True,
        description="Whether the role admin may do everything here without a rule of `access`. `false` needs `access`.",
    )
    quotas: Quotas = Quotas()
    inline_specs: bool = Field(default=False, description="Whether a run may bring its own spec.")
    people: MapOf[Person] = Field(
        default_factory=dict, description="Who is who; a name is also the name of an API key and of a principal."
    )
    promote_from: Name | None = Field(
        default=None, description="Only what that environment serves and has verified may come here."
    )
    policy: PolicyFlags = Field(description="What every spec must satisfy here.")
    signatures: Signatures
    approvals: Approvals | None = Field(default=None, description="Left out: no approval is needed.")
    questions: QuestionPolicy = QuestionPolicy()
    humans: MapOf[AnyHuman] = Field(default_factory=dict, description="Whom the questions under gates ask, by name.")
    gates: ListOf[EnvironmentGate] = Field(
        default=(), max_length=MAX_ADDED, description="Gates in addition to those of the specs."
    )
    windows: ListOf[WindowRule] = Field(
        default=(), description="When changes may happen; denied windows win over allowed ones."
    )
    soak: Duration = Field(
        default=timedelta(0), description="How long the environment it comes from must have served it without failure."
    )
    evidence: ListOf[EvidenceRule] = Field(
        default=(), max_length=MAX_RULES, description="Signed statements about a bundle that its release needs."
    )
    recordings: Recordings | None = Field(default=None, description="Left out: recordings of its runs cannot be read.")
    prune: PruneGuard = PruneGuard()
    atomic: bool = Field(default=False, description="All changes of this environment happen, or none.")
    suspend: bool = Field(default=False, description="Change nothing here; what runs keeps running.")
    retired: bool = Field(
        default=False,
        description="The environment ends: what it still serves is removed with an approval, then no run starts here.",
    )
    models: ModelRules = ModelRules()
    tools: ToolRules = ToolRules()
    grants: ListOf[GrantRule] = Field(
        default=(), max_length=MAX_ADDED, description="Standing grants that people may create. Left out: none."
    )
    protocols: ProtocolRules = ProtocolRules()
    implementations: MapOf[DigestText] = Field(
        default_factory=dict, description="The SHA-256 that a Python module behind an implementation must have here."
    )
    code: Literal["bundled", "pinned", "any"] = Field(
        default="bundled",
        description="Where the code of a release comes from: its bundle; or, of a bundle without code, also modules of the worker "
        "that implementations pins, or any.",
    )
    packages: Literal["recorded", "same"] = Field(
        default="recorded",
        description="Whether the packages of a worker may have other versions than the bundle records, or must be the same.",
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
        windows: When changes may happen; see :func:`kneo.spec.policy.windows_open`.
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

    @property
    def canaries(self) -> Mapping[str, CanaryPlan]:
        """The canary plans, by bundle name."""
        return {entry.bundle: entry.canary for entry in self.spec.releases if entry.canary is not None}
