"""Functions and scripts that specs name, in sandboxes: the rights of each call, its answer, and the facts about it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from kneo.agents.sandboxes import SandboxHost, public_hosts, sandbox_facts
from kneo.agents.secrets import CallSecrets, Secrets
from kneo.function_context import WaitForAnswer, read_wait_request
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.threads import in_thread
from kneo.sandbox.levels import Rights
from kneo.sandbox.network import Check
from kneo.sandbox.processes import ChildFailed, SandboxProcesses
from kneo.sandbox.programs import ScriptProgram, run_program
from kneo.spec.code import RunCode
from kneo.spec.coverage.sandboxes import CodePart
from kneo.spec.policy import SandboxLevel, ToolRules

ReadRules: TypeAlias = Callable[[str | None], ToolRules]
"""Reads the tool rules of an environment as they are now, from a thread that may wait."""

CheckHosts: TypeAlias = Callable[[Sequence[str]], Check]
"""From the services inside the network that may be reached to the check of a host."""


@dataclass(frozen=True, kw_only=True)
class FunctionUse:
    """A function as a spec names it.

    Attributes:
        part: The tool or function of the spec.
        implementation: Its dotted name; ``None`` of one that the program registered.
        environment: The run's environment.
        code: The code that the run executes.
        floor: The level at which people approved the call.
    """

    part: CodePart
    implementation: str | None
    environment: str | None
    code: RunCode
    floor: SandboxLevel | None = None


@dataclass(frozen=True, kw_only=True)
class Called:
    """The answer of a function in a sandbox.

    Attributes:
        answer: ``value``, and ``text`` where the value is no JSON.
        code_digest: The SHA-256 of the module.
        facts: ``sandbox`` with the level, the digest of the profile and the hosts that were denied.
    """

    answer: Mapping[str, object]
    code_digest: str | None
    facts: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Ran:
    """The output of a script in a sandbox, and the facts about the sandbox."""

    output: bytes
    facts: Mapping[str, object]


class Sandboxes:
    """Calls functions and runs scripts at the level that the spec and the environment of a run require.

    Args:
        code: The modules that specs may name.
        rules: Reads the rules of an environment.
        secrets: The secrets of the process.
        host: What sandboxes of this machine may have.
        templates: Processes that are kept.
    """

    def __init__(
        self,
        code: CodeLoader,
        rules: ReadRules,
        secrets: Secrets,
        host: SandboxHost,
        templates: int = 8,
    ) -> None:
        self._code, self._rules, self._secrets, self._host = code, rules, secrets, host
        self._processes, self._gives_all = SandboxProcesses(templates), False

    def is_plain(self, part: CodePart, parts: Sequence[CodePart], environment: str | None) -> bool:
        """Return whether a function runs in this process, and no part of its spec is above level ``process``. May wait.

        Args:
            part: The function.
            parts: The parts of its spec whose level this machine gives.
            environment: The environment of the run.

        Raises:
            Forbidden: what ``SandboxHost.check`` raises.
        """
        if part.profile.level not in {None, "none"} or part.profile.env:
            return False
        rules = self._rules(environment).sandbox
        self._host.check(part, rules, environment)
        return part.level(rules) == "none" and all(each.level(rules) != "kernel" for each in parts)

    async def check_levels(self, parts: Sequence[CodePart], environment: str | None) -> None:
        """Refuse every step of a run in which this machine cannot give the level of some part.

        Raises:
            Forbidden: ``sandbox_unavailable``.
        """
        if parts and not self._gives_all:
            self._gives_all = await in_thread(partial(self._check_levels, parts, environment))

    def _check_levels(self, parts: Sequence[CodePart], environment: str | None) -> bool:
        """Check the levels of parts; return whether this machine can give the highest level."""
        rules = self._rules(environment).sandbox
        confined = [part for part in parts if part.level(rules) == "kernel"]
        for part in confined:
            self._host.check_level(part.name, "kernel")
        return bool(confined)

    async def call(
        self,
        use: FunctionUse,
        request: Mapping[str, object],
        hidden: CallSecrets,
        *,
        check: CheckHosts | None = None,
        gates: Collection[str] | None = None,
    ) -> Called | None:
        """Call a function in a sandbox, and return its answer; ``None`` where it runs in this process. A cancellation kills it.

        Args:
            use: The function.
            request: ``text`` or ``arguments``, and ``context``.
            hidden: Takes the secrets that the function is given, which are removed from what it answers.
            check: Makes the check of hosts beyond the profile; left out: public ones and the services inside the network.
            gates: The gates of a tool.

        Raises:
            WaitForAnswer: the function asks a person first.
            ChildFailed: the function raised, or took its process down with it.
            KneoError: it cannot be called so.
        """
        rights, inside = await self._rights(use, hidden)
        if use.implementation is None or (rights.level == "none" and use.code.digest is None):
            return None
        code = self._code.known_source(use.implementation, use.code)
        if code is None:
            code = await in_thread(partial(self._code.source, use.implementation, use.code))
        hosts = (check or public_hosts)(inside)
        try:
            answer = await self._processes.call(use.part.name, code, rights, request, check=hosts, gates=gates)
        except ChildFailed as error:
            raise ChildFailed(error.kind, hidden.hide_text(str(error))) from None
        content = hidden.hide_fields(answer.content) if len(hidden) else answer.content
        if "waiting" in content:
            raise _question(content["waiting"])
        return Called(answer=content, code_digest=code.digest, facts=sandbox_facts(rights, answer.denied))

    async def run(
        self,
        use: FunctionUse,
        program: ScriptProgram,
        hidden: CallSecrets,
        env: Mapping[str, str],
        *,
        check: CheckHosts,
    ) -> Ran:
        """Run a script in a sandbox to its end. A cancellation kills it.

        Args:
            use: The tool.
            program: The script and its input.
            hidden: Takes the secrets that the script is given.
            env: Variables beside those of the profile.
            check: Makes the check of hosts beyond the profile.

        Raises:
            ChildFailed: its exit status is not 0, or its output is too long.
            KneoError: it may not run.
        """
        rights, inside = await self._rights(use, hidden)
        async with self._processes.free:
            ran = await run_program(program, replace(rights, env={**rights.env, **env}), check(inside))
        return Ran(output=ran.data, facts=sandbox_facts(rights, ran.denied))

    async def _rights(self, use: FunctionUse, hidden: CallSecrets) -> tuple[Rights, Sequence[str]]:
        """Return the rights of a call now, and the services inside the network that it may reach."""
        rules = await in_thread(partial(self._rules, use.environment))
        fill = partial(hidden.fill, secrets=self._secrets)
        return self._host.rights(use.part, rules.sandbox, use.environment, fill, use.floor), rules.inside

    async def close(self) -> None:
        """End the processes."""
        await self._processes.close()


def _question(waiting: object) -> WaitForAnswer | ChildFailed:
    try:
        return WaitForAnswer(read_wait_request(waiting))
    except (AssertionError, TypeError):
        return ChildFailed("function_output_invalid", "The function asked a question of no known form.")
