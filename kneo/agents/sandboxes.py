"""Sandboxes on this machine: the rights of a call under the rules that hold now, and runs that are refused because of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kneo.agents.services import operator_rules
from kneo.errors import Forbidden
from kneo.sandbox.levels import HostLevel, Rights, host_level
from kneo.sandbox.network import Check
from kneo.settings import Settings, named_files
from kneo.spec.coverage.sandboxes import CodePart, code_parts, sandbox_refusals
from kneo.spec.models.spec import Spec
from kneo.spec.policy import NO_TOOL_RULES, SANDBOX_LEVELS, SandboxLevel, SandboxRules, in_bytes


@dataclass(frozen=True, kw_only=True)
class SandboxHost:
    """What sandboxes of this machine may have.

    Attributes:
        own: Files and folders of Kneo, which no sandbox is given.
        code: Folders of code, which no sandbox changes.
        operator: The rules of runs without an environment.
        level: Returns the highest level of this machine.
    """

    own: tuple[Path, ...] = ()
    code: tuple[Path, ...] = ()
    operator: SandboxRules = NO_TOOL_RULES.sandbox
    level: Callable[[], HostLevel] = host_level

    @classmethod
    def of(cls, settings: Settings) -> SandboxHost:
        """Return what the settings of a process say."""
        own = [settings.state_dir, settings.project_root / ".kneo", *named_files()]
        own += [settings.secrets_dir] if settings.secrets_dir is not None else []
        if settings.database_url.startswith("sqlite:///"):
            file = settings.database_url.removeprefix("sqlite:///")
            own += [Path(file + suffix) for suffix in ("", "-wal", "-shm", "-journal")]
        code = (*settings.import_roots, Path(sys.prefix), Path(sys.base_prefix))
        return cls(own=_resolved(own), code=_resolved(code), operator=operator_rules(settings).sandbox)

    def check_level(self, name: str, level: SandboxLevel) -> None:
        """Refuse a level that this machine cannot give.

        Raises:
            Forbidden: ``sandbox_unavailable``.
        """
        if level == "kernel" and not (host := self.level()).gives(level):
            msg = f"{name} needs a sandbox at level {level}, which this machine cannot give: {host.facts}."
            raise Forbidden(msg, code="sandbox_unavailable", hint="kneo doctor shows what is missing.")

    def rights(
        self,
        part: CodePart,
        rules: SandboxRules,
        environment: str | None,
        fill: Callable[[str], str] = str,
        floor: SandboxLevel | None = None,
    ) -> Rights:
        """Return the rights of a call now.

        Args:
            part: What is called.
            rules: The rules that hold now.
            environment: The environment of the run.
            fill: Replaces the secrets of a text by their values.
            floor: The level at which people approved the call.

        Raises:
            Forbidden: ``sandbox_exceeds``, ``sandbox_path_denied``, ``sandbox_trusted`` or ``sandbox_too_weak``.
        """
        self.check(part, rules, environment)
        level = part.level(rules)
        if floor is not None and SANDBOX_LEVELS.index(level) < SANDBOX_LEVELS.index(floor):
            msg = f"The call was approved at level {floor} and would run at {level}."
            raise Forbidden(msg, code="sandbox_too_weak", hint="Require that level again, or start a new run.")
        profile = part.profile
        return Rights(
            level=level,
            net=profile.net,
            read=profile.read,
            write=profile.write,
            env={name: fill(text) for name, text in profile.env.items()},
            memory=in_bytes(profile.memory),
            cpu_seconds=profile.cpu_seconds,
            processes=profile.processes,
            digest=profile.digest,
        )

    def check(self, part: CodePart, rules: SandboxRules, environment: str | None) -> None:
        """Refuse a part that an environment does not permit, or that would have files of Kneo.

        Raises:
            Forbidden: ``sandbox_exceeds``, ``sandbox_trusted`` or ``sandbox_path_denied``.
        """
        for refusal in sandbox_refusals(part, rules, environment):
            raise refusal
        profile = part.profile
        for verb, paths, denied, what in (
            ("reads", (*profile.read, *profile.write), self.own, "files of Kneo"),
            ("changes", profile.write, self.code, "code"),
        ):
            for path in map(Path, paths):
                if any(path.is_relative_to(each) or each.is_relative_to(path) for each in denied):
                    raise Forbidden(f"{part.name} {verb} {path}, which holds {what}.", code="sandbox_path_denied")


def public_hosts(inside: Sequence[str]) -> Check:
    """Return the check that permits public hosts and services inside the network."""

    async def check(host: str, port: int) -> Sequence[str]:
        # The module imports HTTP, which only sandboxes with hosts need.
        rules = importlib.import_module("kneo.agents.addresses").HostRules(inside=frozenset(map(str.lower, inside)))
        addresses: Sequence[str] = await rules.addresses(host, port)
        return addresses

    return check


def sandbox_facts(rights: Rights, denied: Sequence[str]) -> dict[str, object]:
    """Return the facts about the sandbox of a call."""
    return {"sandbox": {"level": rights.level, "profile": rights.digest, "denied": list(denied)}}


NO_FILES = SandboxHost()
"""A machine without files of Kneo."""


def check_sandboxes(
    spec: Spec, rules: SandboxRules | None, environment: str | None, host: SandboxHost, *, here: bool
) -> None:
    """Refuse a spec whose sandboxes an environment does not permit, or this machine cannot give.

    Args:
        spec: The spec.
        rules: The rules of the environment; ``None`` where none is declared.
        environment: The environment.
        host: This machine.
        here: Whether this machine executes the run; another one checks its own level and files.

    Raises:
        Forbidden: ``sandbox_exceeds``, ``sandbox_trusted``, ``sandbox_path_denied`` or ``sandbox_unavailable``.
    """
    host = host if here else SandboxHost(operator=host.operator)
    where, rules = (environment, rules) if rules is not None else (None, host.operator)
    for part in code_parts(spec):
        host.check(part, rules, where)
        if here and part.outside is None:
            host.check_level(part.name, part.level(rules))


def _resolved(paths: list[Path] | tuple[Path, ...]) -> tuple[Path, ...]:
    return tuple(each.expanduser().resolve() for each in paths)
