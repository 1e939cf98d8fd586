"""Saying at a function what people are asked around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kneo.sdk.workflow.reviewing import chosen
from kneo.sdk.workflow.types import Executor

F = TypeVar("F", bound=Executor)


def pause(**review: object) -> Callable[[F], F]:
    """Ask people around every Step that runs this function, unless the Step says otherwise.

    Args:
        review: The parameters of HumanReview.

    Raises:
        ValueError: they ask for what means nothing at a step.
    """

    def decorate(function: F) -> F:
        name = getattr(function, "__name__", "step")
        function.human_review = chosen("Step", name, None, review)  # type: ignore[attr-defined]  # read by Step
        return function

    return decorate
