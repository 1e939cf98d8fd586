"""Skills of an agent: their part of the system prompt, and the built-in tool with which the agent reads them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from kneo.agents.start_check import check_skills
from kneo.agents.texts import cut_text
from kneo.agents.turn import ToolCall, Turn
from kneo.records.conversation import EntryStatus
from kneo.spec.models.spec import Skill, Tool
from kneo.spec.tool_kinds import READ_SKILL

INLINE_CHARS = 4_000
"""The longest content of a skill that stands in the system prompt; longer content is read with ``read_skill``."""


@dataclass(frozen=True)
class AgentSkills:
    """The skills of one agent.

    Attributes:
        skills: The skills by name, in the order in which the agent lists them.
        reads: Whether the agent can be offered ``read_skill``. Where it is offered no tools, its system prompt has every
            content and resource.
    """

    skills: Mapping[str, Skill] = field(default_factory=dict)
    reads: bool = False

    @classmethod
    def of(cls, turn: Turn, *, reads: bool) -> AgentSkills:
        """Return the skills of a turn's agent.

        Raises:
            Invalid: ``spec_invalid``: a skill is not in the spec, or its source was not inlined.
        """
        check_skills(turn.agent_name, turn.agent, turn.spec)
        return cls({name: turn.spec.skills[name] for name in dict.fromkeys(turn.agent.skills)}, reads)

    @property
    def readable(self) -> tuple[str, ...]:
        """The skills with a content or a resource that is not in the system prompt."""
        return tuple(name for name, skill in self.skills.items() if self.reads and (_is_long(skill) or skill.resources))

    @cached_property
    def tool(self) -> Tool:
        """The built-in tool ``read_skill``."""
        parameters = {
            "type": "object",
            "properties": {
                "name": {"type": "string", "enum": list(self.readable)},
                "resource": {"type": "string", "description": "A resource of the skill; left out: its instructions."},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        return Tool(description="Read the instructions of a skill, or one of its resources.", parameters=parameters)

    def instructions(self) -> str | None:
        """Return the skills' part of the system prompt."""
        if not self.skills:
            return None
        return "\n\n".join(("# Skills", *(self._described(name, skill) for name, skill in self.skills.items())))

    def _described(self, name: str, skill: Skill) -> str:
        return "\n\n".join(part.strip() for part in (f"## {name}", *self._parts(skill)) if part.strip())

    def _parts(self, skill: Skill) -> Iterator[str]:
        content = skill.content or ""
        yield skill.description or ""
        if skill.tools:
            yield f"Tools: {', '.join(skill.tools)}."
        if self.reads and _is_long(skill):
            yield f"Read these instructions with {READ_SKILL} before you follow them ({len(content)} characters)."
        else:
            yield content
        if self.reads and skill.resources:
            yield f"Resources, to be read with {READ_SKILL}: {', '.join(skill.resources)}."
        elif skill.resources:
            yield from (f"### {name}\n\n{text}" for name, text in skill.resources.items())

    def read(self, call: ToolCall, limit: int) -> ToolCall:
        """Return a call of ``read_skill`` whose arguments fit, with its result."""
        name, resource = str(call.arguments["name"]), call.arguments.get("resource")
        skill = self.skills[name]
        text = skill.content if resource is None else skill.resources.get(str(resource))
        if text is None:
            message = (
                f"The skill {name} has no resource {str(resource)[:200]!r}. Resources: {_listed(skill.resources)}."
            )
            return replace(call, status=EntryStatus.FAILED, result={"error": "not_found", "message": message})
        return replace(call, status=EntryStatus.DONE, result=cut_text(text, limit))


def _is_long(skill: Skill) -> bool:
    return len(skill.content or "") > INLINE_CHARS


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)[:1_000] or "none"
