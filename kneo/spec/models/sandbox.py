"""The sandbox of a tool, a function or an MCP server: what its processes may do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Self, TypeAlias

from pydantic import Field, model_validator

from kneo.digest import Digest, digest_of_json
from kneo.spec.base import ListOf, SpecModel, refused
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.spec.policy import (
    Memory,
    SandboxLevel,
    SandboxLimits,
    find_host_flaw,
    in_bytes,
    is_canonical,
    permits_host,
    permits_name,
    permits_path,
)
from kneo.spec.tool_kinds import Capability

_FORBIDDEN_FOLDERS = ("/proc", "/sys", "/dev", "/run")
_SECRET = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]{0,200})\}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
_LOADERS = re.compile(r"(?:LD|DYLD|GLIBC|MALLOC)_|PYTHON|KNEO_SERV_|(?:HTTPS?|ALL|NO|FTP)_PROXY$", re.IGNORECASE)

MAX_ENTRIES = 50

Processes: TypeAlias = Annotated[int, Field(ge=1, le=64)]
CpuSeconds: TypeAlias = Annotated[int, Field(ge=1, le=86_400)]


class Sandbox(SpecModel):
    """What the processes of a tool, a function or an MCP server may do. Nothing declared is nothing allowed, at level kernel."""

    level: SandboxLevel | None = Field(
        default=None,
        description="kernel: files, hosts and processes are those declared. process: no variable and no memory of the worker can be "
        "read. none: in the worker. An environment may require a stronger one. Left out: the environment's.",
    )
    net: ListOf[str] = Field(
        default=(), max_length=MAX_ENTRIES, description="Hosts that it may reach: host:port or *.host:port."
    )
    read: ListOf[str] = Field(
        default=(), max_length=MAX_ENTRIES, description="Full paths of files and folders to read."
    )
    write: ListOf[str] = Field(
        default=(), max_length=MAX_ENTRIES, description="Full paths of files and folders to read and change."
    )
    env: dict[str, str] = Field(
        default_factory=dict,
        max_length=MAX_ENTRIES,
        description="Variables; ${NAME} stands for a secret of the worker.",
    )
    memory: Memory = Field(default="512Mi", description="Writable memory of each process.")
    cpu_seconds: CpuSeconds = Field(default=60, description="Processor time of each process.")
    processes: Processes = Field(default=1, description="Processes at a time.")

    @model_validator(mode="after")
    def _names_hosts(self) -> Self:
        for index, each in enumerate(self.net):
            flaw = find_host_flaw(each)
            if flaw is not None:
                raise refused("E_SANDBOX_NET", flaw, "net", index)
        return self

    @model_validator(mode="after")
    def _names_paths(self) -> Self:
        for key in ("read", "write"):
            for index, each in enumerate(getattr(self, key)):
                below = any(each == folder or each.startswith(f"{folder}/") for folder in _FORBIDDEN_FOLDERS)
                if not is_canonical(each) or below:
                    message = (
                        f"{each[:200]!r} is not a full path that a sandbox may have: canonical, below /, and not in "
                    )
                    raise refused("E_SANDBOX_PATH", f"{message}{', '.join(_FORBIDDEN_FOLDERS)}.", key, index)
        return self

    @model_validator(mode="after")
    def _names_variables(self) -> Self:
        for name, value in self.env.items():
            named = [name, *_SECRET.findall(value)]
            denied = {each for each in named if each in PROVIDER_VARIABLES.values() or each.startswith("KNEO_SERV_")}
            if denied or _LOADERS.match(name) or not _VARIABLE.fullmatch(name):
                message = f"{min(denied or {name})[:100]} is not a variable that a sandbox may have."
                raise refused("E_SANDBOX_SECRET", message, "env", name)
        return self

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets that its variables name."""
        return tuple(dict.fromkeys(each for value in self.env.values() for each in _SECRET.findall(value)))

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """The capabilities that it adds to those that are declared."""
        found: Mapping[Capability, object] = {
            "network": self.net,
            "filesystem_read": self.read,
            "filesystem_write": self.write,
            "shell": self.processes > 1,
        }
        return tuple(name for name, has in found.items() if has)

    @property
    def digest(self) -> Digest:
        """The identity of the profile, with the names of secrets."""
        return digest_of_json(self.model_dump(mode="json"))


NOTHING = Sandbox()
"""What a part without a declaration has: making one takes longer than checking it."""


def widenings(old: Sandbox | None, new: Sandbox | None) -> Iterator[tuple[str, str]]:
    """Yield what a new sandbox permits and an old one did not: the field, and the end of a sentence that begins with a name."""
    before, after = old or NOTHING, new or NOTHING
    if after.level != before.level and after.level == "none":
        yield "level", "may run in the worker"
    elif before.level == "kernel" and after.level != "kernel":
        yield "level", "may run at a lower level than kernel"
    for key, verb in (("net", "reach"), ("read", "read"), ("write", "change")):
        for each in sorted(set(getattr(after, key)) - set(getattr(before, key))):
            yield key, f"may also {verb} {each}"
    for each in sorted(set(after.secrets) - set(before.secrets)):
        yield "env", f"may use the secret {each}"
    if in_bytes(after.memory) > in_bytes(before.memory):
        yield "memory", f"may use {after.memory} of memory instead of {before.memory}"
    if after.cpu_seconds > before.cpu_seconds:
        yield "cpu_seconds", f"may use {after.cpu_seconds} s of processor time instead of {before.cpu_seconds} s"
    if after.processes > before.processes:
        yield "processes", f"may have {after.processes} processes instead of {before.processes}"


def excesses(sandbox: Sandbox | None, limits: SandboxLimits) -> Iterator[tuple[str, str]]:
    """Yield what a sandbox permits beyond the limits of an environment: the key of the limit, and the end of a sentence."""
    profile = sandbox or NOTHING
    for key, verb, values, permits in (
        ("net", "reach", profile.net, permits_host),
        ("read", "read", (*profile.read, *profile.write), permits_path),
        ("write", "change", profile.write, permits_path),
        ("secrets", "use the secret", profile.secrets, permits_name),
    ):
        permitted = getattr(limits, key)
        if key == "read" and permitted is not None:
            permitted = (*permitted, *(limits.write or ()))
        for each in values if permitted is not None else ():
            if not permits(each, permitted):
                yield key, f"may {verb} {each}"
    if limits.memory is not None and in_bytes(profile.memory) > in_bytes(limits.memory):
        yield "memory", f"may use {profile.memory} of memory"
    if limits.cpu_seconds is not None and profile.cpu_seconds > limits.cpu_seconds:
        yield "cpu_seconds", f"may use {profile.cpu_seconds} s of processor time"
    if limits.processes is not None and profile.processes > limits.processes:
        yield "processes", f"may have {profile.processes} processes"
