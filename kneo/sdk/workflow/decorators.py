"""The decorator that declares the human review of a step at its function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from kneo.sdk.workflow.types import Executor, review_of

F = TypeVar("F", bound=Executor)


def pause(**review: object) -> Callable[[F], F]:
    """Declare the human review of every Step that runs this function, unless the Step declares another one.

    Args:
        review: The parameters of HumanReview.

    Raises:
        ValueError: a Step does not support such a review.
    """

    def decorate(function: F) -> F:
        name = getattr(function, "__name__", "step")
        function.human_review = review_of("Step", name, None, review)  # type: ignore[attr-defined]  # read by Step
        return function

    return decorate
