"""Placeholders in system prompts: texts of the spec itself, put in before the spec is signed or run.

``{{ variables.NAME }}`` is a text of ``Spec.variables``, ``{{ skills.NAME }}`` the content of a skill, ``{{ tools.NAME }}`` the
description of a tool. Anything else in braces is text: a system prompt never has a value of a run. A text that is put in has no
placeholders of its own, so that a spec is the same however often it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kneo.spec.diagnostics import Diagnostic, error, warning
from kneo.spec.documents import Path
from kneo.spec.messages import quote
from kneo.spec.reading.inline import Inlined

MAX_PLACEHOLDERS = 100
"""Placeholders in one system prompt."""

_TEXTS: Mapping[str, str | None] = {"variables": None, "skills": "content", "tools": "description"}
"""The parts of a spec that a prompt can name, and the field that has the text; a variable is the text itself."""

_PLACEHOLDER = re.compile(r"\{\{[ \t]*(variables|skills|tools)\.([^\s{}]{1,200})[ \t]*\}\}")
_OTHER = re.compile(r"\{\{[ \t]*([A-Za-z_][\w.]{0,200})[ \t]*\}\}")


def fill_prompts(tree: Mapping[str, object]) -> Inlined:
    """Replace the placeholders of every system prompt. Those of a skill whose source is not inlined yet are left."""
    findings: list[Diagnostic] = []
    filled = dict(tree)
    if isinstance(root := tree.get("agent"), dict):
        filled["agent"] = _agent(root, ("agent",), tree, findings)
    components = tree.get("components")
    agents = components.get("agents") if isinstance(components, dict) else None
    if isinstance(components, dict) and isinstance(agents, dict):
        path = ("components", "agents")
        inner = {name: _agent(agent, (*path, name), tree, findings) for name, agent in agents.items()}
        filled["components"] = {**components, "agents": inner}
    return Inlined(filled, tuple(findings))


def _agent(agent: object, path: Path, tree: Mapping[str, object], findings: list[Diagnostic]) -> object:
    prompt = agent.get("system_prompt") if isinstance(agent, dict) else None
    if not isinstance(agent, dict) or not isinstance(prompt, str) or "{{" not in prompt:
        return agent
    filling = _Filling(tree, (*path, "system_prompt"), findings)
    return {**agent, "system_prompt": filling.filled(prompt)}


@dataclass(frozen=True)
class _Filling:
    """The replacement of the placeholders of one prompt."""

    tree: Mapping[str, object]
    path: Path
    findings: list[Diagnostic]

    def filled(self, prompt: str) -> str:
        found = list(_PLACEHOLDER.finditer(prompt))
        if len(found) > MAX_PLACEHOLDERS:
            self._report(f"The prompt has more than {MAX_PLACEHOLDERS} placeholders.", "Write the texts out.")
            return prompt
        self.findings.extend(self._literal(prompt))
        texts = {
            whole: self._text(part, name) for whole, part, name in dict.fromkeys((m[0], m[1], m[2]) for m in found)
        }
        filled = _PLACEHOLDER.sub(lambda each: each[0] if texts[each[0]] is None else str(texts[each[0]]), prompt)
        kept = [each[0] for each in found if texts[each[0]] is None]
        if [each[0] for each in _PLACEHOLDER.finditer(filled)] != kept:
            self._report("The texts that are put in form a placeholder with those around them.", "Write the text out.")
        return filled

    def _literal(self, prompt: str) -> Iterator[Diagnostic]:
        for name in dict.fromkeys(found[1] for found in _OTHER.finditer(prompt)):
            if name.partition(".")[0] not in _TEXTS:
                message = (
                    f"{{{{ {name} }}}} is sent to the model as it is written: a system prompt has no values of a run."
                )
                hint = "Declare the text under variables and write {{ variables.NAME }}, or take out the braces."
                yield warning("W_PROMPT_PLACEHOLDER", message, self.path, suggestion=hint)

    def _text(self, part: str, name: str) -> str | None:
        """Return the text of a placeholder; ``None`` where it is left as it is."""
        declared = self.tree.get(part)
        value = declared.get(name) if isinstance(declared, dict) else None
        field = _TEXTS[part]
        if isinstance(value, dict) and field is not None:
            if part == "skills" and "source" in value:
                return None
            value = value.get(field)
        if not isinstance(value, str):
            self._report(f"The prompt names {part}.{name}, which has no text.", f"Declare {quote(name)} under {part}.")
        elif _PLACEHOLDER.search(value) or _OTHER.search(value):
            self._report(
                f"The text of {part}.{name} has braces of its own, which are not replaced.", "Write the text out."
            )
        else:
            return value
        return None

    def _report(self, message: str, hint: str) -> None:
        self.findings.append(error("E_PROMPT_PLACEHOLDER", message, self.path, suggestion=hint))
