"""``human_review``, a flat way to write gates that other tools use, turned into ``review``.

One map says with ``requires_…`` flags where people are asked, and its other keys apply to all of those places. What
has no counterpart stays where it is, so that the schema refuses it instead of a question being dropped.
"""

from __future__ import annotations

from kneo.spec.documents import Path

_PLACES = (
    ("requires_confirmation", "before", "confirmation_message"),
    ("requires_user_input", "before", "user_input_message"),
    ("requires_output_review", "after", "output_review_message"),
    ("requires_iteration_review", "each", "iteration_review_message"),
)
_ON_ERROR = {"fail": "fail", "skip": "continue", "pause": "fail"}
_KNOWN = {
    *(word for place in _PLACES for word in (place[0], place[2])),
    "user_input_schema",
    "allow_multiple_selections",
    "on_reject",
    "on_error",
    "max_retries",
    "timeout",
    "on_timeout",
}


def rewrite_reviews(value: object, path: Path = ()) -> tuple[object, list[Path]]:
    """Rewrite every step that has ``human_review``.

    Returns:
        The rewritten value, and the paths of the steps that were.
    """
    if isinstance(value, list):
        items = [rewrite_reviews(item, (*path, index)) for index, item in enumerate(value)]
        return [item for item, _ in items], [place for _, places in items for place in places]
    if not isinstance(value, dict):
        return value, []
    parts = {key: rewrite_reviews(inner, (*path, key)) for key, inner in value.items()}
    rewritten = {key: inner for key, (inner, _) in parts.items()}
    places = [place for _, found in parts.values() for place in found]
    old = rewritten.get("human_review")
    if "id" in rewritten and "review" not in rewritten and isinstance(old, dict) and old.keys() <= _KNOWN:
        return _with_review(rewritten, old), [path, *places]
    return rewritten, places


def _with_review(step: dict[str, object], old: dict[str, object]) -> dict[str, object]:
    shared: dict[str, object] = {key: old[key] for key in ("timeout", "on_timeout") if key in old}
    review: dict[str, dict[str, object]] = {}
    for flag, place, message in _PLACES:
        if old.get(flag) is True:
            at = "route" if step.get("kind") == "router" and flag == "requires_user_input" else place
            gate = review.setdefault(at, dict(shared))
            if old.get(message) is not None:
                gate["prompt"] = old[message]
            if flag == "requires_user_input":
                _add_input(gate, old, at)
    for gate in review.values():
        gate |= {key: old[key] for key in ("on_reject", "max_retries") if key in old}
    if old.get("on_error") == "pause":
        review["error"] = {"options": ["retry", "skip", "stop"]}
    kept = {key: value for key, value in step.items() if key != "human_review"}
    if old.get("on_error") in _ON_ERROR and "on_error" not in kept:
        kept["on_error"] = _ON_ERROR[str(old["on_error"])]
    return {**kept, "review": review} if review else kept


def _add_input(gate: dict[str, object], old: dict[str, object], place: str) -> None:
    if place == "route":
        gate["multiple"] = old.get("allow_multiple_selections", False)
    elif isinstance(old.get("user_input_schema"), list):
        gate["fields"] = old["user_input_schema"]
