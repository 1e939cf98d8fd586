"""The turn of an agent: its input, its ports to the runtime, and the ways it ends. Imports no model library.

A turn is entered again after each pause and each crash, never replayed: the journal has every model reply and every tool
call, and the loop continues behind them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha1
from typing import Literal, Protocol, TypeAlias

from kneo.agents.secrets import CallSecrets
from kneo.digest import DigestLabel, digest_of_json
from kneo.errors import Invalid
from kneo.records.agent_session import SessionMessage, SessionSummary
from kneo.records.conversation import ConversationEntry, EntryStatus
from kneo.records.run import NewTrace
from kneo.records.task import Decision
from kneo.spec.code import RunCode
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import Spec, Tool
from kneo.spec.policy import SandboxLevel
from kneo.spec.tool_kinds import ASK_QUESTION

LoadCode: TypeAlias = Callable[[Collection[str]], Awaitable[None]]
"""Loads functions by their dotted names, or raises why this process may not call one of them."""


async def load_nothing(_implementations: Collection[str]) -> None:
    """Load no code, where a turn has no modules."""


QuestionKind: TypeAlias = Literal["approval", "external", "question", "elicitation", "interrupted", "guardrail"]


@dataclass(frozen=True, kw_only=True)
class CallQuestion:
    """A question about one tool call, or about a text that a guardrail holds, answered by a person before the turn continues.

    Attributes:
        key: Unique in its turn, and that of the answer: ``<call key>:<gate or kind>``, with the digest of arguments that a person
            edited; of an agent behind a tool ``<call key>><call key>:<…>``. A call
            key is ``<number of the reply>.<call id>``: some servers use the same id in every reply.
        task_key: The name in recorded answers, below the step's location. Independent of call ids, which differ when a model
            is asked again: ``<tool>:<nth call of that tool>:<label of the digest of its arguments>``. People read it; several
            questions may have the same one.
        gate: The id of the gate that asks; ``None`` for questions of the agent, of a tool or after an interruption.
        tool: The tool; of a guardrail its id.
        arguments: The arguments of the call; with ``tool`` the subject of the task. Of a guardrail ``{"text": …}``: what it holds.
        title: The title of the call, from the tool's template; ``None`` where the tool has none.
        answer_schema: The JSON Schema of edited arguments, of a provided result or of a form; checked when the answer is sent.
        facts: Further information for the reviewer, such as when an interrupted call began.
    """

    key: str
    task_key: str
    kind: QuestionKind
    gate: str | None = None
    agent: str
    tool: str
    arguments: Mapping[str, object]
    answer_schema: Mapping[str, object] | None = None
    title: str | None = None
    prompt: str | None = None
    options: tuple[str, ...] = ()
    human: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


class PeopleRequired(BaseException):
    """The turn cannot continue without answers; it is entered again with each one.

    Not an ``Exception``: a tool that catches those must not continue without an answer.
    """

    def __init__(self, questions: Sequence[CallQuestion]) -> None:
        super().__init__(f"{len(questions)} questions")
        self.questions = tuple(questions)


GIVEN_UP = "given up"
"""The argument of ``asyncio.CancelledError`` where nothing continues the turn: its run has ended, or its step is not needed."""


class Postponed(BaseException):
    """The turn is to be entered again later, because a provider asks for it or a limit is reached. Not a failure."""

    def __init__(self, seconds: float, reason: str) -> None:
        super().__init__(reason)
        self.seconds, self.reason = seconds, reason


class Stopped(BaseException):
    """A person's answer ends the run: rejected with ``on_reject: stop`` (or ``fail``), or ``stop`` at an interrupted call."""

    def __init__(self, question: CallQuestion, decision: Decision) -> None:
        super().__init__(question.key)
        self.question, self.decision = question, decision


class GuardrailViolation(Invalid):
    """A guardrail blocks a text, or its check could not be carried out. Ends the run, whatever ``on_error`` says.

    Attributes:
        is_check_failure: Whether the check could not be carried out: a run that is continued checks again.
    """

    http_status = 422
    default_code = "guardrail_violation"
    is_check_failure = False


class Journal(Protocol):
    """The journal of one conversation."""

    def load(self) -> Sequence[ConversationEntry]:
        """Return the entries in the order in which they were first written."""
        ...

    def below(self, call_key: str) -> Journal:
        """Return the journal of an agent behind a tool call of this conversation."""
        ...

    async def append(self, *entries: ConversationEntry, trace: Sequence[NewTrace] = (), durable: bool = True) -> None:
        """Write entries and trace events in one transaction behind the run's fence.

        Args:
            entries: The entries; one of a name that exists replaces the earlier one.
            trace: Trace events, without content.
            durable: Whether the entries are on disk before this returns.

        Raises:
            asyncio.CancelledError: the run was cancelled or taken over; nothing was written.
        """
        ...


class SessionHistory(Protocol):
    """The messages that earlier runs of a run's session left, without those of the run itself and of its parent."""

    def newest(self, agent: str, *, after: int = 0, limit: int) -> Sequence[SessionMessage]:
        """Return the newest messages of an agent with numbers above ``after``, the oldest of them first."""
        ...

    def count(self, agent: str) -> int:
        """Count the messages of an agent."""
        ...

    def summary(self, agent: str) -> SessionSummary | None:
        """Return the summary of an agent's earlier messages."""
        ...

    async def keep_summary(self, last: SessionMessage, text: str) -> None:
        """Keep a summary of all messages up to one, unless that message was deleted or a summary reaches further."""
        ...


class DeltaStream(Protocol):
    """Receives the text of a model's replies while it arrives. What it passes on may get lost; the journal has every reply."""

    def is_read(self) -> bool:
        """Return whether a client reads the deltas now; checked before each request, which is streamed only then."""
        ...

    def write(self, request: int, offset: int, text: str) -> None:
        """Take a piece of a reply. A reply that is requested again begins again at offset 0.

        Args:
            request: The number of the request in its conversation.
            offset: The characters of the reply before this piece.
            text: The piece.
        """
        ...

    def end(self, request: int) -> None:
        """Take note that a reply is complete."""
        ...


@dataclass(frozen=True, kw_only=True)
class ToolGate:
    """A gate at a tool call: ``tool`` asks for approval, at ``external`` a person provides the result."""

    id: str
    position: str
    on_reject: str = "tell_agent"
    """``tell_agent``, ``stop`` or ``fail``."""
    unless_unattended: bool = False
    """Whether the gate's condition is definitely false: it asks about a privileged call that no rule of ``tools.unattended`` accepts."""


ToolGates: TypeAlias = Callable[[str, str, Mapping[str, object]], Sequence[ToolGate]]
"""From an agent, a tool and the arguments of a call to the call's gates, in the order in which they ask.

Where none asks and one has an expression as its condition, that one alone, with ``unless_unattended``.
"""


CallFunction: TypeAlias = Callable[[str, str], Awaitable[object]]
"""Calls a function of ``components.functions`` by its name with a text; returns a JSON value, or raises what the function raised."""


async def no_functions(name: str, _text: str) -> object:
    """Refuse to call a function, where a turn has none.

    Raises:
        Invalid: ``spec_invalid``.
    """
    msg = f"The function {name} cannot be called here."
    raise Invalid(msg, code="spec_invalid")


class AnswerRequired(Exception):
    """A tool cannot finish without an answer (MCP elicitation); it is called again with the answer and ``state``.

    ``restarted``: the server refused the state of an earlier question, and the call started again.
    """

    def __init__(
        self, prompt: str, schema: Mapping[str, object], state: Mapping[str, object], *, restarted: bool = False
    ) -> None:
        super().__init__(prompt)
        self.prompt, self.schema, self.state, self.restarted = prompt, schema, state, restarted


async def keep_nothing(_state: Mapping[str, object]) -> None:
    """Keep no state, where a call has no journal."""


Outcome: TypeAlias = Literal["success", "failed", "denied"]

FINISHED = frozenset({EntryStatus.DONE, EntryStatus.FAILED, EntryStatus.DENIED})


@dataclass(frozen=True, kw_only=True)
class ToolCall:
    """One tool call, from its request to its result; ``status`` is how far it is. A backend makes one that was checked and approved.

    Attributes:
        key: Unique in the conversation: ``<number of the reply>.<call id>``.
        number: The number of the reply that requests it.
        nth: The calls of this tool so far in the conversation, this one included.
        name: The tool's name in the spec.
        arguments: The arguments, as guardrails and people passed them on.
        original: The arguments before a person edited them; ``None`` where no person did.
        misfit: Why the call cannot be made as it was requested.
        status: The status of its journal entry; ``None`` where it has none.
        result: The result of a finished call, as the model is shown it.
        facts: Facts of the entry of a finished call: who decided and who edited it, tokens, why it was refused.
        started_at: When it began; ``None`` where nothing was called.
        state: The state of a call that is made again: with ``answer`` one that raised ``AnswerRequired``, without it one that kept
            a state and was interrupted afterwards.
    """

    key: str
    number: int = 0
    nth: int = 1
    name: str
    tool: Tool
    arguments: Mapping[str, object]
    original: Mapping[str, object] | None = None
    turn: Turn
    misfit: str | None = None
    status: EntryStatus | None = None
    result: object = None
    facts: Mapping[str, object] = field(default_factory=dict)
    started_at: str | None = None
    state: Mapping[str, object] | None = None
    answer: Decision | None = None
    secrets: CallSecrets = field(default_factory=CallSecrets, repr=False)
    """The secrets that the backend received for this call."""
    floor: SandboxLevel | None = None
    """The level of the sandbox that people approved; a call never runs at a lower one."""
    observed: dict[str, object] = field(default_factory=dict)
    """Facts that the backend adds to the entry of the call; never content."""
    keep: Callable[[Mapping[str, object]], Awaitable[None]] = keep_nothing
    """Records a state durably. A call that is interrupted afterwards is made again with it, and no person is asked whether it took
    effect."""

    @property
    def idempotency_key(self) -> str:
        """Equal whenever the same call is repeated after a crash: ``<run>:<conversation>:<call key>``."""
        return f"{self.turn.run_id}:{self.turn.conversation}:{self.key}"

    @property
    def compared(self) -> Mapping[str, object]:
        """What expressions compare at the call."""
        return {**self.turn.facts, "args": self.arguments, "tool": self.name, "agent": self.turn.agent_name}

    @property
    def asked(self) -> Mapping[str, object]:
        """The arguments that people were asked about first."""
        return self.arguments if self.original is None else self.original

    @property
    def is_edited(self) -> bool:
        """Whether a person changed the arguments."""
        return self.original is not None and digest_of_json(self.arguments) != digest_of_json(self.original)

    @property
    def task_key(self) -> str:
        """The name of the call's question in recorded answers; see ``CallQuestion.task_key``."""
        if self.name == ASK_QUESTION:
            question = str(self.asked.get("question", ""))
            digest = sha1(question.encode(), usedforsecurity=False).hexdigest()
        else:
            digest = digest_of_json(self.asked)
        return f"{self.name}:{self.nth}:{DigestLabel(digest)}"

    @property
    def is_finished(self) -> bool:
        """Whether the call has a result."""
        return self.status in FINISHED

    @property
    def outcome(self) -> Outcome:
        """What became of a finished call; one with wrong arguments has failed."""
        if self.status is EntryStatus.DENIED and self.facts.get("reason") != "arguments":
            return "denied"
        return "success" if self.status is EntryStatus.DONE else "failed"


class ToolBackend(Protocol):
    """What is behind a tool: a Python function, an HTTP request, an MCP server, a remote agent."""

    async def call(self, call: ToolCall) -> object:
        """Make the call and return its result, a JSON value or text.

        Raises:
            AnswerRequired: the tool needs an answer of a person first.
            Exception: the call failed; the model gets the error as the call's result.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn.

    Attributes:
        step_id: The step's path, for trace events.
        text: The input, with the values of forms. The session keeps it: a guardrail that changes it passes on another turn.
        feedback: An earlier result and why a reviewer sent it back. The model is shown it, the session does not keep it.
        own_text: The input without the messages of other participants, where the text has them; the session keeps this one.
        session: The messages of earlier runs of the session; ``None`` where the run has none, and behind tools.
        conversation: See ``ConversationEntry.conversation``; with the run's id it begins idempotency keys.
        answers: The decisions about earlier questions of this turn, by ``CallQuestion.key``.
        gates: The gates of tool calls, as frozen with the run.
        facts: What expressions at calls compare besides the call: ``values`` and ``run``.
        code: The Python code that the run executes.
        environment: The name of the run's environment; what it denies is read at each entry, so that a file that tightens its
            rules reaches runs that wait.
        functions: Calls functions of the spec.
        load_code: Loads the functions of modules that the spec names.
        depth: How many agents are above this one, each behind a tool or a guardrail of the one before.
        is_hidden: Whether no view shows what the agent was given and what it replied: it checks a text for a guardrail, or takes
            over from an agent whose answers are checked.
        deltas: Receives the text of replies while it arrives; ``None`` where no client may read it before the step has ended.
    """

    run_id: str
    step_id: str
    agent_name: str
    agent: Agent
    spec: Spec
    text: str
    feedback: str = ""
    own_text: str | None = None
    conversation: str
    journal: Journal
    session: SessionHistory | None = None
    answers: Mapping[str, Decision] = field(default_factory=dict)
    gates: ToolGates = lambda _agent, _tool, _arguments: ()
    facts: Mapping[str, object] = field(default_factory=dict)
    code: RunCode = field(default_factory=RunCode)
    environment: str | None = None
    functions: CallFunction = no_functions
    load_code: LoadCode = load_nothing
    depth: int = 0
    is_hidden: bool = False
    deltas: DeltaStream | None = None

    @property
    def prompt(self) -> str:
        """What the model is asked: the text and the feedback."""
        return f"{self.text}\n\n{self.feedback}" if self.feedback else self.text

    def answer_to(self, question: CallQuestion) -> Decision:
        """Return the answer to a question of the turn.

        Raises:
            PeopleRequired: there is none yet.
        """
        decision = self.answers.get(question.key)
        if decision is None:
            raise PeopleRequired([question])
        return decision

    @property
    def withheld(self) -> str | None:
        """What no view shows of the model's messages: ``all``, the ``replies`` until they passed a guardrail, or nothing."""
        if self.is_hidden:
            return "all"
        guardrails = self.agent.guardrails
        return "replies" if guardrails is not None and (guardrails.output or guardrails.workflow) else None


@dataclass(frozen=True, kw_only=True)
class TurnResult:
    """The agent's answer. ``facts`` are for the trace and the step: requests, tool calls, tokens, cost; never content.

    ``input`` is the agent's input as its guardrails passed it on; ``None`` where nothing checks it.
    """

    text: str
    facts: Mapping[str, object] = field(default_factory=dict)
    metadata: Mapping[str, object] = field(default_factory=dict)
    """Top-level scalars of a structured output, for conditions of type ``metadata_equals``."""
    input: str | None = None
