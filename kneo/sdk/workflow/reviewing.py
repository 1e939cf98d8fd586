"""From what a program asks of people around a primitive to the gates of the spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from kneo.sdk.workflow.types import HumanReview, OnError, OnReject

Json: TypeAlias = dict[str, object]

ASKED = {
    "requires_confirmation": ("Step", "Steps", "Condition", "Loop", "Router"),
    "requires_user_input": ("Step", "Router"),
    "requires_output_review": ("Step", "Router"),
    "requires_iteration_review": ("Loop",),
}
"""Which primitives can be asked about in which way."""

NEEDS_REVIEW = "review"
"""The metadata entry by which a step says that its output has to be looked at."""

FLAT = frozenset(
    {
        "requires_confirmation",
        "confirmation_message",
        "requires_user_input",
        "user_input_message",
        "user_input_schema",
        "requires_output_review",
        "output_review_message",
        "requires_iteration_review",
        "iteration_review_message",
        "allow_multiple_selections",
        "on_reject",
        "on_error",
        "max_retries",
        "timeout",
        "on_timeout",
    }
)
"""Parameters that may be written on a primitive itself instead of into its HumanReview."""


def chosen(kind: str, name: str, review: HumanReview | None, flat: Mapping[str, object]) -> HumanReview | None:
    """Return the review of a primitive, whichever way it was written.

    Raises:
        ValueError: it asks for something that means nothing there, or is written both ways.
        TypeError: a parameter nobody knows.
    """
    unknown = flat.keys() - FLAT
    if unknown:
        msg = f"{kind}() got an unexpected keyword argument {min(unknown)!r}"
        raise TypeError(msg)
    if flat and review is not None:
        msg = f"{kind} {name} says {min(flat)} beside its human_review; write it there."
        raise ValueError(msg)
    found = HumanReview(**flat) if flat else review  # type: ignore[arg-type]  # checked by name above
    if found is not None:
        _check(kind, name, found)
    return found


def _check(kind: str, name: str, review: HumanReview) -> None:
    for asked, kinds in ASKED.items():
        if getattr(review, asked) and kind not in kinds:
            legal = ", ".join(word for word, where in ASKED.items() if kind in where) or "nothing"
            msg = f"{kind} {name} does not support {asked}; supported there: {legal}."
            raise ValueError(msg)
    if kind == "Step" and review.requires_user_input and not review.user_input_schema:
        msg = f"Step {name} requires user input and has no user_input_schema."
        raise ValueError(msg)
    if review.on_reject is OnReject.else_branch and kind != "Condition":
        msg = f"{kind} {name} has no else branch; on_reject takes skip, cancel or retry there."
        raise ValueError(msg)
    if review.on_reject is OnReject.retry and not (review.requires_output_review or review.requires_iteration_review):
        msg = f"{kind} {name}: on_reject=retry before it runs would run what was rejected; take skip or cancel."
        raise ValueError(msg)


def gates(kind: str, name: str, review: HumanReview | None) -> Json:
    """Return what stands under ``review`` in the spec, and ``on_error`` beside it."""
    if review is None:
        return {}
    found: Json = {}
    if review.requires_confirmation or (review.requires_user_input and kind == "Step"):
        found["before"] = _before(kind, name, review)
    if review.requires_output_review:
        after = _afterwards(review, review.output_review_message or f"Review the output of {name}?")
        if callable(review.requires_output_review):
            after["when"] = {"type": "metadata_equals", "key": NEEDS_REVIEW, "value": "true"}
        found["after"] = after
    if review.requires_iteration_review:
        found["each"] = _afterwards(review, review.iteration_review_message or f"Is this round of {name} good enough?")
    if review.requires_user_input and kind == "Router":
        prompt = review.user_input_message or f"Which way should {name} go?"
        several = {"multiple": True} if review.allow_multiple_selections else {}
        found["route"] = {"prompt": prompt, "decisions": ["selected"], **several, **_time(review)}
    if review.on_error is OnError.pause:
        asked = {"prompt": f"{name} failed.", "options": ["retry", "skip"], "max_retries": review.max_retries}
        found["error"] = {**asked, **_time(review)}
    written: Json = {"review": found} if found else {}
    return written | ({"on_error": "continue"} if review.on_error is OnError.skip else {})


def _before(kind: str, name: str, review: HumanReview) -> Json:
    message = review.confirmation_message if review.requires_confirmation else review.user_input_message
    gate: Json = {"prompt": message or _default(kind, name, review), **_time(review)}
    effect = review.on_reject
    if effect is None:
        effect = OnReject.else_branch if kind == "Condition" else OnReject.skip
    gate["on_reject"] = (OnReject.skip if effect is OnReject.retry else effect).value
    if review.requires_user_input:
        gate["fields"] = [each.declared() for each in review.input_fields]
        if review.requires_confirmation and review.user_input_message:
            gate["description"] = review.user_input_message
    return gate


def _default(kind: str, name: str, review: HumanReview) -> str:
    if review.requires_user_input:
        return f"What should {name} work with?"
    what = {"Step": "step", "Steps": "steps", "Condition": "condition", "Loop": "loop", "Router": "router"}[kind]
    return f"Execute the {what} {name}?"


def _afterwards(review: HumanReview, prompt: str) -> Json:
    effect = review.on_reject or OnReject.skip
    return {
        "prompt": prompt,
        "on_reject": effect.value,
        "max_retries": review.max_retries,
        **_time(review),
    }


def _time(review: HumanReview) -> Json:
    if review.timeout is None:
        return {}
    return {"timeout_seconds": review.timeout, "on_timeout": review.on_timeout.value}
