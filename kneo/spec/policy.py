"""The policy of an environment: the weekly windows in which releases may change, the flags that a spec must satisfy, and the
rules for models, tools and protocols.

Rules are read when a model is asked and when a tool is called, from the file that is then in force: a rule that is tightened
reaches runs that wait. Keys are written as in specs.

Policies combine to the strictest: each source of a policy can add requirements, and none can remove those of another.

``"Fri 16:00 - Mon 08:00"`` is one stretch of every week; ``"Mon-Fri 09:00 - 17:00"``, ``"Sat,Sun 10:00 - 12:00"`` and
``"* 06:00 - 20:00"`` repeat on each named day, past midnight where the end is not after the start. The start belongs
to a window, the end does not. Windows follow the wall clock of their zone, so a day with a clock change is an hour
shorter or longer.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Annotated, Literal, NamedTuple, Self, TypeAlias
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, Tag, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from kneo.errors import Invalid
from kneo.names import person_key
from kneo.spec.base import (
    CamelModel,
    Duration,
    FullPath,
    Host,
    HostAndPort,
    ListOf,
    MapOf,
    Pattern,
    SecretName,
    SpecModel,
    quote,
    refused,
)
from kneo.spec.expression import MAX_CHARS, ExpressionInvalid, evaluate, parse

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_OF_THE_MACHINE = frozenset({"localtime", "posixrules", "Factory"})
"""Files of the zone database that are another zone on each machine, or none."""

_VARIANTS = ("posix/", "right/")
_DAY_MINUTES = 24 * 60
_WEEK_MINUTES = 7 * _DAY_MINUTES
_DAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_EXPRESSION = re.compile(
    rf"(?P<days>\*|{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?)*) +(?P<start>\d\d:\d\d) +- +"
    rf"(?:(?P<last>{_DAY}) +)?(?P<end>\d\d:\d\d)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Window:
    """A repeating stretch of time in which changes are allowed, or in which they are denied.

    Attributes:
        effect: ``allow`` or ``deny``.
        expression: As it was written.
        timezone: IANA name, such as ``Europe/Berlin``.
        spans: Start and end in minutes since Monday 00:00; an end may lie in the next week.
    """

    effect: Literal["allow", "deny"]
    expression: str
    timezone: str
    spans: tuple[tuple[int, int], ...]

    def contains(self, now: datetime) -> bool:
        """Tell whether a time is in this window."""
        local = now.astimezone(ZoneInfo(self.timezone))
        minute = local.weekday() * _DAY_MINUTES + local.hour * 60 + local.minute
        return any(start <= minute < end or start <= minute + _WEEK_MINUTES < end for start, end in self.spans)

    def is_open(self, now: datetime) -> bool:
        """Tell whether this window, taken alone, lets a change happen."""
        return self.contains(now) == (self.effect == "allow")

    def edges(self, now: datetime) -> Iterator[datetime]:
        """Yield the moments of about a week around a moment at which this window begins or ends, in no order."""
        zone = ZoneInfo(self.timezone)
        local = now.astimezone(zone)
        monday = (local - timedelta(days=local.weekday())).replace(
            hour=0, minute=0, second=0, microsecond=0, tzinfo=None
        )
        for start, end in self.spans:
            for week in (-1, 0, 1):
                for minute in (start, end):
                    moment = monday + timedelta(weeks=week, minutes=minute)
                    yield moment.replace(tzinfo=zone).astimezone(UTC)


def parse_window(
    effect: Literal["allow", "deny"], expression: str, timezone: str = "UTC", *, accepted: bool = False
) -> Window:
    """Read a window.

    Args:
        effect: What it does.
        expression: When.
        timezone: Where.
        accepted: Whether it was accepted by an earlier version, which took windows that are never, and zones of a machine.

    Raises:
        Invalid: the expression or the time zone is not one.
    """
    match = _EXPRESSION.fullmatch(expression.strip())
    if match is None:
        message = f"{expression[:80]!r} is not a window."
        raise Invalid(message, hint='Write it like "Fri 16:00 - Mon 08:00" or "Mon-Fri 09:00 - 17:00".')
    if not accepted and (timezone in _OF_THE_MACHINE or timezone.startswith(_VARIANTS)):
        message = f"{timezone[:80]!r} is another time zone on each machine, or none."
        raise Invalid(message, hint="Use an IANA name such as Europe/Berlin, or UTC.")
    try:
        ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        message = f"{timezone[:80]!r} is not a time zone."
        raise Invalid(message, hint="Use an IANA name such as Europe/Berlin, or UTC.") from error
    days = _days(match["days"])
    start, end = _minutes(match["start"]), _minutes(match["end"])
    if match["last"] is None:
        spans = tuple(_span(day * _DAY_MINUTES + start, day * _DAY_MINUTES + end, _DAY_MINUTES) for day in days)
    elif len(days) == 1:
        first, last = days[0] * _DAY_MINUTES + start, DAYS.index(match["last"]) * _DAY_MINUTES + end
        if not accepted and first % _WEEK_MINUTES == last and match["start"] == "24:00" and match["end"] == "00:00":
            raise _never(expression)
        spans = (_span(first, last, _WEEK_MINUTES),)
    else:
        message = f"{expression[:80]!r} begins on several days and ends on one."
        raise Invalid(message, hint="Name one day at each end, or no day at the end.")
    if not accepted and any(start == end for start, end in spans):
        raise _never(expression)
    return Window(effect, expression.strip(), timezone, spans)


def _never(expression: str) -> Invalid:
    message = f"{expression[:80]!r} ends when it begins, so it is never."
    hint = 'Write 24:00 at the end of a day, or 00:00 at the beginning, as in "Sun 00:00 - 24:00".'
    return Invalid(message, hint=hint)


def windows_open(windows: Sequence[Window], now: datetime) -> bool:
    """Tell whether changes may happen: in no denied window and, where any are allowed, in one of those."""
    if any(window.effect == "deny" and window.contains(now) for window in windows):
        return False
    allowed = [window for window in windows if window.effect == "allow"]
    return not allowed or any(window.contains(now) for window in allowed)


def next_opening(windows: Sequence[Window], now: datetime) -> datetime | None:
    """Return the first moment from now on at which changes may happen; None when there is none within a week."""
    if windows_open(windows, now):
        return now
    edges = sorted({edge for window in windows for edge in window.edges(now) if edge > now})
    return next((edge for edge in edges if windows_open(windows, edge)), None)


def _days(text: str) -> list[int]:
    if text == "*":
        return list(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, length = DAYS.index(first), (DAYS.index(last or first) - DAYS.index(first)) % 7
        days |= {(begin + offset) % 7 for offset in range(length + 1)}
    return sorted(days)


def _minutes(text: str) -> int:
    hours, minutes = int(text[:2]), int(text[3:])
    if minutes > 59 or hours * 60 + minutes > _DAY_MINUTES:
        message = f"{text} is not a time of day."
        raise Invalid(message, hint="Write hours 00 to 24 and minutes 00 to 59.")
    return hours * 60 + minutes


def _span(start: int, end: int, around: int) -> tuple[int, int]:
    return start, end if end > start else end + around


class PolicyFlags(SpecModel):
    """What a spec must satisfy to be used in an environment."""

    enabled: bool = Field(default=True, description="false skips every check of this policy.")
    fail_on_warnings: bool = Field(default=False, description="Treat every warning as a violation.")
    blocked_diagnostic_codes: ListOf[str] = Field(default=(), description="Diagnostic codes that are violations here.")
    require_human_review: bool = Field(default=False, description="A run must be able to come to a human step or gate.")
    require_tool_permissions: bool = Field(
        default=False, description="Every agent that selects tools must state permissions."
    )
    deny_unrestricted_tools: bool = Field(
        default=False, description="No agent may have shell, file system or unlimited network access."
    )
    require_guardrails: bool = Field(
        default=False, description="A guardrail must run: of an agent that the run reaches, or as a step."
    )


NO_POLICY = PolicyFlags(enabled=False)
"""The policy without requirements, where a policy may be absent."""

SWITCHES = tuple(
    name for name, field in PolicyFlags.model_fields.items() if field.annotation is bool and name != "enabled"
)
"""The requirements that are on or off."""


def strictest(*policies: PolicyFlags) -> PolicyFlags:
    """Combine policies to the strictest of all.

    A policy that is not enabled has no requirements. Without any policy the result is :data:`NO_POLICY`.
    """
    enabled = [policy for policy in policies if policy.enabled]
    if not enabled:
        return NO_POLICY
    codes = sorted({code for policy in enabled for code in policy.blocked_diagnostic_codes})
    switches = {name: any(getattr(policy, name) for policy in enabled) for name in SWITCHES}
    return PolicyFlags(enabled=True, blocked_diagnostic_codes=tuple(codes), **switches)


MAX_RULES = 1_000

MAX_USES = 10_000
"""The most calls that a grant covers."""

MAX_GRANT = timedelta(days=90)
"""The longest time for which a grant counts."""

Money: TypeAlias = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


class AllowedModel(SpecModel):
    """Models of a provider."""

    provider: str = Field(examples=["openai"])
    names: ListOf[Pattern] = Field(
        default=("*",), min_length=1, description="Patterns of names.", examples=[["gpt-5*"]]
    )


class ModelConnection(SpecModel):
    """The connection to a provider; it replaces what specs and the project state."""

    api_key_ref: SecretName | None = Field(default=None, description="The secret that holds the key.")
    base_url: str | None = Field(default=None, max_length=2_000, examples=["https://gateway.example/v1"])


class ModelLimit(SpecModel):
    """Limits of the requests to a provider, over all runs of the environment; at least one is required."""

    provider: str
    concurrency: int | None = Field(default=None, ge=1, le=100_000, description="Requests at a time, per worker.")
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if self.concurrency is None and self.requests_per_minute is None and self.tokens_per_minute is None:
            message = "A limit has concurrency, requests_per_minute or tokens_per_minute."
            raise refused("E_ENVIRONMENT", message)
        return self


class ModelBudget(SpecModel):
    """Tokens and cost that runs may use; checked before each request. At least one of tokens and cost is required."""

    per: Literal["run", "day", "month"] = Field(
        description="A run, or all runs of the environment in a day or month (UTC)."
    )
    tokens: int | None = Field(default=None, ge=1)
    cost: Money | None = Field(default=None, description="In the currency of the prices.")
    on_exceeded: Literal["fail", "ask"] = Field(
        default="fail", description="fail ends the run; ask asks a person, whose approval grants the budget once more."
    )

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.tokens is None and self.cost is None:
            message = "A budget has tokens or cost."
            raise refused("E_ENVIRONMENT", message)
        return self


class ModelPrice(SpecModel):
    """The price of a model per million tokens."""

    input: Money
    output: Money


class ModelRules(SpecModel):
    """Rules for models: which ones, through which connection, how often, and for how much."""

    model_config = ConfigDict(title="Models")

    allow: ListOf[AllowedModel] | None = Field(
        default=None, max_length=MAX_RULES, description="The only models that may be asked. Left out: every one."
    )
    connections: MapOf[ModelConnection] = Field(default_factory=dict, description="Connections by provider.")
    hosts: ListOf[Host] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Hosts that the base_url of a spec may name, each in full. Left out: none.",
    )
    limits: ListOf[ModelLimit] = Field(default=(), max_length=MAX_RULES)
    budgets: ListOf[ModelBudget] = Field(default=(), max_length=MAX_RULES)
    prices: MapOf[ModelPrice] = Field(
        default_factory=dict, description="Prices by the model's name; known prices are built in."
    )

    def permits(self, provider: str, name: str) -> bool:
        """Tell whether a model may be asked."""
        return self.allow is None or any(
            each.provider == provider and any(fnmatchcase(name, pattern) for pattern in each.names)
            for each in self.allow
        )


class McpRules(SpecModel):
    """Rules for MCP servers."""

    commands: ListOf[FullPath] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Full paths of the programs that servers over stdio may be. Left out: none.",
        examples=[["/usr/local/bin/crm-mcp"]],
    )
    hosts: ListOf[Host] | None = Field(
        default=None,
        max_length=MAX_RULES,
        description="The only hosts that servers over HTTP may have. Left out: every public one.",
    )
    pinned: bool = Field(
        default=False, description="Whether bundles must pin the tools of MCP servers; a changed tool is refused."
    )


MAX_SERVED = 100
"""Entries of ``protocols.calls``."""


class CallerNames(SpecModel):
    """The programs and people that may make calls; each is named by the name of its API key, or by its groups and roles."""

    users: ListOf[str] = ()
    groups: ListOf[str] = ()
    roles: ListOf[str] = ()

    @model_validator(mode="after")
    def _names_someone(self) -> Self:
        if not (self.users or self.groups or self.roles):
            message = "callers names no user, group or role; leave it out to admit every key with calls:make."
            raise refused("E_ENVIRONMENT", message)
        return self


class ServedTools(SpecModel):
    """The tools of a bundle that other programs may call."""

    bundle: Pattern = Field(description="A pattern of bundles with the target call.", examples=["payments"])
    callers: CallerNames | None = Field(
        default=None, description="Who may call. Left out: every key with the scope calls:make."
    )
    tools: ListOf[Pattern] = Field(
        default=("*",), min_length=1, max_length=MAX_RULES, description="Patterns of tools, by their names in the spec."
    )

    @property
    def grants(self) -> frozenset[tuple[str, str]]:
        """What the rule allows, in pairs of a tool pattern and a caller; ``*`` stands for every caller."""
        named = self.callers
        callers = (
            {"*"}
            if named is None
            else {f"{kind} {name}" for kind in ("users", "groups", "roles") for name in getattr(named, kind)}
        )
        return frozenset((tool, caller) for tool in self.tools for caller in callers)

    @property
    def who(self) -> tuple[str, ...]:
        """The callers in words."""
        if self.callers is None:
            return ("every key with calls:make",)
        named = self.callers
        return (
            *named.users,
            *(f"group {each}" for each in named.groups),
            *(f"role {each}" for each in named.roles),
        )

    def names(self, user: str, groups: Collection[str], roles: Collection[str]) -> bool:
        """Return whether the rule names a caller; names of users are compared as names of people are."""
        if self.callers is None:
            return True
        users = {person_key(name) for name in self.callers.users}
        return (
            person_key(user) in users
            or not frozenset(groups).isdisjoint(self.callers.groups)
            or not frozenset(roles).isdisjoint(self.callers.roles)
        )


class ProtocolRules(SpecModel):
    """Bundles that other programs may call by a protocol, with the API keys of the service."""

    a2a: ListOf[Pattern] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of bundles that are served over Agent2Agent. Left out: none.",
        examples=[["research-agent"]],
    )
    mcp: ListOf[Pattern] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of bundles that are tools of the service's MCP server. Left out: none.",
        examples=[["*"]],
    )
    calls: ListOf[ServedTools] = Field(
        default=(),
        max_length=MAX_SERVED,
        description="Tools of bundles that other programs may call, one by one. Left out: none. Entries add up.",
        examples=[[{"bundle": "payments", "callers": {"groups": ["support"]}, "tools": ["lookup"]}]],
    )

    def serving(self, bundle: str) -> tuple[str, ...]:
        """Return the protocols that serve a bundle."""
        served = {"a2a": self.a2a, "mcp": self.mcp}
        return tuple(name for name, patterns in served.items() if any(fnmatchcase(bundle, each) for each in patterns))


class ToolNames(NamedTuple):
    """The names by which rules know a tool: a spec can give any name to what it calls."""

    own: str
    """The name in the spec."""
    called: tuple[str, ...] = ()
    """The names of the function or of the MCP tool behind it, in every form: with and without package or server."""
    reached: tuple[str, ...] = ()
    """The address or the agent behind it."""


ExpressionText: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_CHARS)]
"""The text of an expression; see ``kneo.spec.expression``."""


def evaluate_text(text: str, facts: Mapping[str, object]) -> bool | None:
    """Evaluate the text of an expression; None where it is unknown."""
    try:
        return evaluate(parse(text), facts)
    except ExpressionInvalid:
        return None


class CallPatterns(CamelModel):
    """Calls of tools, by patterns of the tools and an expression about each call."""

    tools: ListOf[Pattern] = Field(
        min_length=1,
        max_length=MAX_RULES,
        description="Patterns of the name in the spec.",
    )
    when: ExpressionText | None = Field(
        default=None, description="An expression about args, tool, agent, values and run. Left out: every call."
    )

    def matches(self, names: ToolNames) -> bool:
        """Tell whether the rule is about a tool: what permits calls is about the name that reviewers read."""
        return _matches(names.own, self.tools)

    def holds(self, facts: Mapping[str, object]) -> bool | None:
        """Tell whether the rule is true for a call; None where that is unknown."""
        return self.when is None or evaluate_text(self.when, facts)


class CallRule(CallPatterns):
    """Calls of tools that may happen without an approval."""

    when: ExpressionText = Field(description="An expression about args, tool, agent, values and run.")


class CallDenial(CallRule):
    """Calls of tools that are denied."""

    tools: ListOf[Pattern] = Field(
        min_length=1, max_length=MAX_RULES, description="Patterns of the name in the spec, or of what is behind it."
    )

    def matches(self, names: ToolNames) -> bool:
        """Tell whether the rule is about a tool, whatever its name in the spec."""
        return any(_matches(name, self.tools) for name in (names.own, *names.called, *names.reached))


class GrantRule(CallPatterns):
    """Limits of the standing grants of people for calls of tools."""

    uses: int = Field(ge=1, le=MAX_USES, description="The most calls that one grant covers.")
    uses_per_day: int | None = Field(default=None, ge=1, le=MAX_USES, description="In a day (UTC).")
    uses_per_run: int | None = Field(default=None, ge=1, le=MAX_USES, description="In one run.")
    total: MapOf[Money] = Field(
        default_factory=dict, description="The largest sum of an argument over all calls that one grant covers."
    )
    expires: Duration = Field(description="The longest time for which a grant counts, up to 90d.")
    signed: bool = Field(default=True, description="Whether each voter signs with a key of their own.")
    spot_checks: float = Field(
        default=0.05, ge=0, le=1, description="The share of covered calls about which people are asked anyway."
    )

    @model_validator(mode="after")
    def _ends_in_time(self) -> Self:
        if not timedelta(0) < self.expires <= MAX_GRANT:
            message = "A grant expires after 1 second to 90 days."
            raise refused("E_ENVIRONMENT", message, "expires")
        return self


def _denial_tag(value: object) -> str:
    return "deny=pattern" if isinstance(value, str) else "deny=calls"


Denial: TypeAlias = Annotated[
    Annotated[Pattern, Tag("deny=pattern")] | Annotated[CallDenial, Tag("deny=calls")], Discriminator(_denial_tag)
]


SandboxLevel: TypeAlias = Literal["none", "process", "kernel"]
SANDBOX_LEVELS: tuple[SandboxLevel, ...] = ("none", "process", "kernel")
"""The levels of sandboxes, the weakest first."""

UNITS: Mapping[str, int] = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}

_SIZE = r"^[1-9][0-9]{0,11}(?:Ki|Mi|Gi|Ti)$"


def in_bytes(text: str) -> int:
    """Return an amount of memory or storage in bytes."""
    return int(text[:-2]) * UNITS[text[-2:]]


def _between(least: str, most: str) -> AfterValidator:
    """Return the check of a size within bounds."""

    def check(text: str) -> str:
        if re.fullmatch(_SIZE, text) is None or not in_bytes(least) <= in_bytes(text) <= in_bytes(most):
            reason = f"{quote(text)} is not a size from {least} to {most}."
            raise PydanticCustomError("size", "{reason}", {"reason": reason})
        return text

    return AfterValidator(check)


def _size_schema(example: str, words: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": _SIZE, "examples": [example], "description": words})


Memory: TypeAlias = Annotated[str, _between("16Mi", "64Gi"), _size_schema("512Mi", "16Mi to 64Gi.")]
"""16Mi to 64Gi."""

Storage: TypeAlias = Annotated[str, _between("64Ki", "10Ti"), _size_schema("10Gi", "64Ki to 10Ti.")]
"""64Ki to 10Ti."""

_NET = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?)*:([1-9][0-9]{0,4})")
_NUMERIC = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)(?:\.(?:0x[0-9a-f]*|[0-9]+))*")
"""Hosts that some client reads as an address: ``127.1``, ``2130706433``, ``0x7f.1``."""


def find_host_flaw(net: str) -> str | None:
    """Return why a text is not ``host:port`` or ``*.host:port``; ``None`` where it is."""
    found = _NET.fullmatch(net)
    if found is not None and int(found[1]) <= 65_535 and not _is_address(net.rpartition(":")[0].removeprefix("*.")):
        return None
    return f"{net[:100]!r} is not host:port or *.host:port, in lower case and without addresses."


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return _NUMERIC.fullmatch(host) is not None
    return True


def is_canonical(path: str) -> bool:
    """Return whether a text is a full path below ``/``, without parts that another path would leave out."""
    root, *parts = path.split("/")
    return (
        not root and bool(parts) and not {"", ".", ".."}.intersection(parts) and "\0" not in path and len(path) <= 1_000
    )


def permits_host(net: str, permitted: Sequence[str]) -> bool:
    """Return whether each host and port of an entry of ``net`` is permitted."""
    host, _, port = net.rpartition(":")
    for each in permitted:
        name, _, number = each.rpartition(":")
        below = name.startswith("*.") and (host == name or host.removeprefix("*").endswith(name[1:]))
        if port == number and (host == name or below):
            return True
    return False


def permits_path(path: str, permitted: Sequence[str]) -> bool:
    """Return whether a path is one of some folders, or below one."""
    return any(path == each or path.startswith(f"{each.rstrip('/')}/") for each in permitted)


def permits_name(name: str, permitted: Sequence[str]) -> bool:
    """Return whether a name matches a pattern."""
    return _matches(name, permitted)


class SandboxLimits(SpecModel):
    """The most that sandboxes may declare. A key that is left out limits nothing."""

    net: ListOf[str] | None = Field(default=None, max_length=MAX_RULES, description="Hosts: host:port or *.host:port.")
    read: ListOf[FullPath] | None = Field(default=None, max_length=MAX_RULES, description="Folders to read.")
    write: ListOf[FullPath] | None = Field(default=None, max_length=MAX_RULES, description="Folders to change.")
    secrets: ListOf[Pattern] | None = Field(default=None, max_length=MAX_RULES, description="Patterns of secrets.")
    memory: Memory | None = Field(default=None, description="Writable memory of a process.")
    cpu_seconds: int | None = Field(default=None, ge=1, le=86_400, description="Processor time of a process.")
    processes: int | None = Field(default=None, ge=1, le=64, description="Processes at a time.")

    @model_validator(mode="after")
    def _can_be_declared(self) -> Self:
        for index, each in enumerate(self.net or ()):
            flaw = find_host_flaw(each)
            if flaw is not None:
                raise refused("E_ENVIRONMENT", flaw, "net", index)
        for key in ("read", "write"):
            for index, each in enumerate(getattr(self, key) or ()):
                if not is_canonical(each):
                    raise refused("E_ENVIRONMENT", f"{each[:200]!r} is not a canonical full path.", key, index)
        return self


class SandboxRules(SpecModel):
    """Rules for the sandboxes of tools, functions and MCP servers."""

    required: SandboxLevel = Field(
        default="process", description="The weakest level: kernel, process or none. A spec may declare a stronger one."
    )
    trusted: ListOf[str] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Tools, functions and servers that may run at none: in the worker.",
    )
    limits: SandboxLimits = SandboxLimits()

    def level_of(self, name: str, declared: SandboxLevel | None) -> SandboxLevel:
        """Return the level of a call.

        Args:
            name: The tool, function or server.
            declared: The level of its sandbox in the spec.
        """
        if name in self.trusted:
            return declared or "none"
        return max(declared or self.required, self.required, key=SANDBOX_LEVELS.index)


class ToolRules(SpecModel):
    """Rules for tools, in addition to the permissions that specs state."""

    deny: ListOf[Denial] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Patterns of tools that are refused: of the name in the spec, or of what is behind it, a function, a tool of "
        "an MCP server, an agent or an address. With when only calls for which the expression is not false.",
        examples=[["shell", "*.delete_*", {"tools": ["refund"], "when": "args.amount > 5000"}]],
    )
    unattended: ListOf[CallRule] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Privileged calls that happen without an approval where a gate has an expression as its condition, which is "
        "false: one rule is true for the call. Left out: none.",
    )
    allow: ListOf[Pattern] | None = Field(
        default=None,
        max_length=MAX_RULES,
        description="Patterns of the only tools that may be called: of the name in the spec, and of the function or the tool of an "
        "MCP server behind it. Left out: every one.",
    )
    inside: ListOf[HostAndPort] = Field(
        default=(),
        max_length=MAX_RULES,
        description="Addresses inside the network that tools may reach, also without TLS. A spec cannot name any.",
        examples=[["crm.internal:8443"]],
    )
    mcp: McpRules = McpRules()
    sandbox: SandboxRules = SandboxRules()

    def denied(self, names: ToolNames) -> str | None:
        """Return the name by which all calls of a tool are denied: that of the spec, or of what is behind it."""
        patterns = [each for each in self.deny if isinstance(each, str)]
        return next((name for name in (names.own, *names.called, *names.reached) if _matches(name, patterns)), None)

    def denies_call(self, names: ToolNames, facts: Mapping[str, object]) -> bool:
        """Tell whether a call is denied by its arguments: a rule about the tool is true or unknown."""
        rules = (each for each in self.deny if isinstance(each, CallDenial))
        return any(rule.matches(names) and rule.holds(facts) is not False for rule in rules)

    def accepts_unattended(self, names: ToolNames, facts: Mapping[str, object]) -> bool:
        """Tell whether a privileged call may happen without an approval."""
        return any(rule.matches(names) and rule.holds(facts) is True for rule in self.unattended)

    def not_allowed(self, names: ToolNames) -> str | None:
        """Return the name by which a tool is none of those that are allowed: no name in a spec allows what is behind it."""
        if self.allow is None:
            return None
        if not _matches(names.own, self.allow):
            return names.own
        return (
            names.called[0] if names.called and not any(_matches(name, self.allow) for name in names.called) else None
        )


NO_TOOL_RULES = ToolRules()
"""The rules for tools where no environment has any."""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
