"""Request fields that several operations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from kneo.errors import InvalidValue
from kneo.names import MAX_ENVIRONMENT_CHARS, check_environment_name

Tree = Mapping[str, object]

MAX_NAMES = 1_000
"""Entries of a list of names or paths; settings may lower the limit."""

Name = Annotated[str, Field(max_length=4_096)]


def _check_environment(name: str) -> str:
    try:
        return check_environment_name(name)
    except InvalidValue as error:
        raise ValueError(error.message) from None


EnvironmentName = Annotated[
    str, Field(min_length=1, max_length=MAX_ENVIRONMENT_CHARS), AfterValidator(_check_environment)
]

Flag = StrictBool
"""A boolean as in JSON; ``0`` and ``"yes"`` are refused."""


def _is_number(value: object) -> object:
    if isinstance(value, str | bool):
        msg = "a number, not a text or a boolean"
        raise ValueError(msg)  # noqa: TRY004 - this is how a field is refused
    return value


AsNumber = BeforeValidator(_is_number)
"""A number as in JSON.

The annotation follows the bounds of a field, which the description would otherwise lose.
"""


@dataclass(frozen=True, kw_only=True)
class SkillsOverlay:
    """Skills to add to the root agent, and skills to remove from all agents."""

    add: tuple[str, ...] = ()
    disable: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SpecSelection:
    """The source of a spec: an inline spec or a path below the spec root, and its overlays and overrides, in this
    order.
    """

    spec: Tree | None = None
    spec_path: str | None = None
    environment: str | None = None
    overlays: tuple[str, ...] = ()
    overrides: Tree = field(default_factory=dict)
    skills: SkillsOverlay = SkillsOverlay()

    @property
    def is_plain(self) -> bool:
        """Whether the spec is inline and unchanged."""
        return self.spec is not None and not self.has_layers

    @property
    def has_layers(self) -> bool:
        """Whether there are overlays, overrides or skill changes."""
        return bool(self.overlays or self.overrides or self.skills != SkillsOverlay())

    def origin(self) -> dict[str, object]:
        """Return the source of the spec for the audit log."""
        return {
            "spec_path": self.spec_path,
            "inline_spec": self.spec is not None,
            "environment": self.environment,
            "overlays": list(self.overlays),
        }


class Body(BaseModel):
    """The base of request bodies. Unknown fields are refused: a typing error would otherwise be ignored."""

    model_config = ConfigDict(extra="forbid")


class SkillsChange(Body):
    """Skills to add to the root agent, and to remove from every agent."""

    add: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)
    disable: list[Name] = Field(default_factory=list, max_length=MAX_NAMES)


class SpecRequest(Body):
    """A spec with its overlays in order, then its overrides."""

    spec_path: Name | None = Field(default=None, description="A file below the service's spec root.")
    spec: dict[str, object] | None = Field(default=None, description="The spec itself; takes precedence over a path.")
    environment: EnvironmentName | None = None
    overlays: list[Name] = Field(
        default_factory=list, max_length=MAX_NAMES, description="Files below the service's spec root."
    )
    overrides: dict[str, object] = Field(default_factory=dict)

    def selection(self) -> SpecSelection:
        return SpecSelection(
            spec=self.spec,
            spec_path=self.spec_path,
            environment=self.environment,
            overlays=tuple(self.overlays),
            overrides=self.overrides,
        )


def overlay_of(skills: SkillsChange | None) -> SkillsOverlay:
    """Parse a change of skills; ``None`` changes nothing."""
    return SkillsOverlay(add=tuple(skills.add), disable=tuple(skills.disable)) if skills else SkillsOverlay()
