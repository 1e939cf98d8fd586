"""Rules for calls: specs whose tools other programs call, and the built-in human ``caller``."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.spec.coverage.exposure import callable_tools
from kneo.spec.coverage.gates import all_gates
from kneo.spec.documents import Diagnostic, error, warning
from kneo.spec.index import SpecIndex
from kneo.spec.models.agent import model_name
from kneo.spec.models.human import CALLER
from kneo.spec.tool_kinds import ASK_QUESTION, CALL_TARGET, GET_CALL


def calls(index: SpecIndex) -> Iterator[Diagnostic]:
    """A spec with the target call has tools that other programs can call, each under a name of its own and pinned."""
    spec = index.spec
    if CALL_TARGET not in spec.targets:
        return
    names = callable_tools(spec.agent)
    if not names:
        message = "targets names call, and the agent includes no tools."
        hint = "Name tools under agent.tools.include, or leave call out."
        yield error("E_CALL_TARGET", message, ("targets",), suggestion=hint)
    first: dict[str, str] = {}
    for name in names:
        tool = spec.tools.get(name)
        if name == ASK_QUESTION or (tool is not None and tool.transfer):
            what = "is for agents with a model" if name == ASK_QUESTION else "hands a task over, which a call cannot"
            message = f"targets names call, and the tool {name} {what}."
            yield error("E_CALL_TARGET", message, ("agent", "tools", "include"), suggestion="Leave the tool out.")
        called = model_name(name)
        other = GET_CALL if called == GET_CALL else first.setdefault(called, name)
        if other != name or called == GET_CALL:
            message = (
                f"The tool {name} has the MCP name {called}, as {'the built-in tool' if called == GET_CALL else other}."
            )
            yield error("E_CALL_NAME", message, ("tools", name), suggestion="Give it another name.")
        if tool is not None and tool.mcp is not None and tool.mcp.pin is None:
            message = f"Other programs call the tool {name}, which its MCP server can change without a new release."
            hint = "Sign with kneo spec bundle sign --pin-tools."
            yield warning("W_CALL_UNPINNED", message, ("tools", name, "mcp"), suggestion=hint)


def caller(index: SpecIndex) -> Iterator[Diagnostic]:
    """The human ``caller`` is built in, and makes calls itself at ``external``."""
    if CALLER in index.spec.components.humans:
        message = "caller is the built-in human that makes a call itself."
        hint = "Give the human another name."
        yield error("E_HUMAN_CALLER", message, ("components", "humans", CALLER), suggestion=hint)
    for at in all_gates(index):
        if at.gate.human == CALLER and at.position != "external":
            message = f"review.{at.position} asks caller, and the program that makes a call approves nothing."
            hint = "Name a human of components.humans; caller is for review.external of a tool."
            yield error("E_HUMAN_CALLER", message, (*at.path, "human"), suggestion=hint)
