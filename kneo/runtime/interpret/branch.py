"""One way or the other. Frame: ``node`` and one child, ``then`` or ``else``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from kneo.errors import Invalid
from kneo.records.run import RunError
from kneo.runtime.interpret.node import Again, Done, Ended, Failed, Frame, Moment, Node, Progress, with_child
from kneo.runtime.interpret.values import Value
from kneo.spec.gates import holds
from kneo.spec.models.conditions import Condition

THEN, ELSE = "then", "else"


def condition_failed(path: str, error: Invalid) -> Failed:
    return Failed(error=RunError(type=error.code, message=f"{path}: {error.message}"))


@dataclass(frozen=True, kw_only=True)
class Branch(Node):
    when: Condition | None
    """``None`` where a person decides before it begins."""
    then: Node
    otherwise: Node

    def parts(self) -> Iterable[Node]:
        return self.then, self.otherwise

    @property
    def may_repeat(self) -> bool:
        return self.then.may_repeat or self.otherwise.may_repeat

    def enter(self, moment: Moment, value: Value, place: str) -> Progress:
        if self.when is None:
            msg = "nobody decided and there is no condition"
            return condition_failed(self.path, Invalid(msg, code="condition_error"))
        try:
            chosen = THEN if holds(self.when, value.facts) else ELSE
        except Invalid as error:
            return condition_failed(self.path, error)
        return self.enter_chosen(moment, value, place, chosen)

    def enter_chosen(self, moment: Moment, value: Value, place: str, chosen: str) -> Progress:
        node, inner = self.locate({}, chosen, place)
        progress = node.enter(moment, value, inner)
        if isinstance(progress, Done | Failed | Again | Ended):
            return progress
        return with_child({"node": self.path}, chosen, progress)

    def locate(self, _frame: Frame, slot: str, place: str) -> tuple[Node, str]:
        return (self.then if slot == THEN else self.otherwise), place

    def resume(
        self, _moment: Moment, _frame: Frame, _slot: str, progress: Done | Failed | Again, _place: str
    ) -> Progress:
        return progress
