"""The functions and scripts that tools name, in this process and in sandboxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

from kneo.agents.addresses import HostRules
from kneo.agents.function_tools import Handler
from kneo.agents.tools.middleware import context_of
from kneo.agents.tools.python import gates_of
from kneo.agents.turn import ToolCall
from kneo.errors import KneoError
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.sandboxes import FunctionUse, Sandboxes
from kneo.runtime.steps.threads import in_thread
from kneo.sandbox.network import Check
from kneo.sandbox.processes import ChildFailed
from kneo.sandbox.programs import ScriptProgram
from kneo.spec.code import RunCode
from kneo.spec.coverage.sandboxes import tool_part
from kneo.spec.models.agent import Agent
from kneo.spec.models.spec import SkillScript


class ToolFunctions:
    """Loads functions, and calls them in threads and in sandboxes.

    Args:
        code: The modules that specs may name.
        sandboxes: The sandboxes of the process.
    """

    def __init__(self, code: CodeLoader, sandboxes: Sandboxes) -> None:
        self._code, self._sandboxes = code, sandboxes

    def load(self, implementation: str, code: RunCode) -> Handler:
        """Load a function; raises what ``CodeLoader.load`` raises."""
        return self._code.load(implementation, code.pins).function

    async def in_thread(self, work: Callable[[], object]) -> object:
        """Do work in a thread of its own."""
        return await in_thread(work)

    async def call_in_sandbox(self, call: ToolCall) -> tuple[object] | None:
        """Call a function in a sandbox and return its result in a tuple; ``None`` where it runs in this process.

        Raises:
            KneoError: the function raised, took its process down with it, or may not be called.
        """
        use = _use(call)
        request = {"arguments": dict(call.arguments), "context": asdict(context_of(call))}
        try:
            called = await self._sandboxes.call(
                use,
                request,
                call.secrets,
                check=lambda inside: _agent_hosts(call.turn.agent, inside),
                gates=gates_of(call),
            )
        except ChildFailed as error:
            raise KneoError(str(error), code=error.kind) from None
        if called is None:
            return None
        call.observed.update(called.facts)
        return (called.answer.get("value"),)

    async def run_script(self, call: ToolCall, script: SkillScript, command: Sequence[str], data: bytes) -> bytes:
        """Run a script in a sandbox, and return its output.

        Raises:
            KneoError: its exit status is not 0, or it may not run.
        """
        files = await in_thread(partial(self._code.script, script, call.turn.spec, call.turn.code))
        program = ScriptProgram(name=call.name, command=command, files=files, data=data)
        key = {"KNEO_IDEMPOTENCY_KEY": call.idempotency_key}
        hosts = partial(_agent_hosts, call.turn.agent)
        try:
            ran = await self._sandboxes.run(_use(call), program, call.secrets, key, check=hosts)
        except ChildFailed as error:
            raise KneoError(str(error), code=error.kind) from None
        call.observed.update(ran.facts)
        return ran.output


def _use(call: ToolCall) -> FunctionUse:
    return FunctionUse(
        part=tool_part(call.name, call.tool),
        implementation=call.tool.implementation,
        environment=call.turn.environment,
        code=call.turn.code,
        floor=call.floor,
    )


def _agent_hosts(agent: Agent, inside: Sequence[str]) -> Check:
    """Return the check of hosts by the domain lists of an agent."""
    hosts = HostRules.of(agent, inside)

    async def check(host: str, port: int) -> Sequence[str]:
        if hosts.allowed or hosts.denied:
            replace(hosts, allowed=hosts.allowed or ("*",)).check_host(host)
        return await hosts.addresses(host, port)

    return check
