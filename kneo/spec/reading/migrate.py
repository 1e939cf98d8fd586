"""Migration of older specs to v1.

Unversioned and ``v0`` specs have their components at the root and workflows as lists. The result lists each applied
step in the published words, and each moved part, so that findings are located in the old file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from kneo.errors import Invalid
from kneo.spec.base import quote
from kneo.spec.documents import Path, format_path

TARGET_VERSION = "v1"

_RENAMED_ROOT = (("root_agent", "agent"), ("root_workflow", "workflow"))
_MOVED_TO_COMPONENTS = (
    ("component_agents", "agents"),
    ("component_workflows", "workflows"),
    ("functions", "functions"),
    ("humans", "humans"),
)


class UnsupportedVersion(Invalid):
    """The version of the spec is unknown."""

    default_code = "unsupported_spec_version"


@dataclass(frozen=True, slots=True)
class Migration:
    """A spec in the form of v1.

    Attributes:
        source_version: The version of the spec; None where it has none.
        applied: The steps, in order, in stable words.
        renames: The new and old path of every part that moved, in order.
    """

    tree: dict[str, object]
    source_version: str | None
    applied: tuple[str, ...] = ()
    renames: tuple[tuple[Path, Path], ...] = field(default=(), repr=False)

    @property
    def changed(self) -> bool:
        return bool(self.applied)


def migrate(tree: Mapping[str, object]) -> Migration:
    """Migrate a spec to v1.

    Raises:
        UnsupportedVersion: it declares another version than v0 or v1.
    """
    steps = _to_v1(tree)
    steps.rewrite_reviews()
    return steps.done()


def bring_to_v1(tree: Mapping[str, object]) -> Migration:
    """Migrate a spec as published tools do: another version to v1, and v1 not at all.

    Raises:
        UnsupportedVersion: it declares another version than v0 or v1.
    """
    return _to_v1(tree).done()


def _to_v1(tree: Mapping[str, object]) -> _Steps:
    version = tree.get("version")
    if version is not None and version not in ("v0", TARGET_VERSION):
        message = f"The spec version {quote(version)} is not known here."
        raise UnsupportedVersion(message, hint="Write version: v1, or use a newer release of kneo.")
    steps = _Steps(dict(tree), version if isinstance(version, str) else None)
    if version != TARGET_VERSION:
        steps.from_v0()
    return steps


class _Steps:
    def __init__(self, tree: dict[str, object], source_version: str | None) -> None:
        self.tree = tree
        self.source_version = source_version
        self.applied: list[str] = []
        self.renames: list[tuple[Path, Path]] = []

    def done(self) -> Migration:
        return Migration(self.tree, self.source_version, tuple(self.applied), tuple(self.renames))

    def from_v0(self) -> None:
        self.tree = {"version": TARGET_VERSION, **{key: value for key, value in self.tree.items() if key != "version"}}
        self.applied.append("set version=v1")
        for old, new in _RENAMED_ROOT:
            if old in self.tree and new not in self.tree:
                self.tree = {(new if key == old else key): value for key, value in self.tree.items()}
                self._moved(f"renamed {old} to {new}", (new,), (old,))
        self._collect_components()
        self._type_workflow(("workflow",))
        components = self.tree.get("components")
        workflows = components.get("workflows") if isinstance(components, dict) else None
        for name in workflows if isinstance(workflows, dict) else ():
            self._type_workflow(("components", "workflows", name))

    def _collect_components(self) -> None:
        components = self.tree.get("components")
        if components is None:
            components = {}
        for old, new in _MOVED_TO_COMPONENTS:
            moved = self.tree.get(old)
            if not isinstance(moved, dict | None) or not isinstance(components, dict):
                continue  # a wrong kind stays where it is, for the schema to refuse
            self.tree.pop(old, None)
            if moved:
                kept = components.get(new)
                components = {**components, new: {**(kept if isinstance(kept, dict) else {}), **moved}}
                self.applied.append(f"moved {old} to components.{new}")
                self.renames += [(("components", new, name), (old, name)) for name in moved]
        self.tree["components"] = components

    def _type_workflow(self, path: Path) -> None:
        workflow = _at(self.tree, path)
        name = ".".join(str(part) for part in path)
        if isinstance(workflow, list):
            self.tree = _replaced(self.tree, path, {"type": "sequential", "steps": workflow})
            self._moved(f"converted {name} list to sequential workflow", (*path, "steps"), path)
        elif isinstance(workflow, dict) and "steps" in workflow and workflow.get("type") is None:
            typed = {"type": "sequential", **{key: value for key, value in workflow.items() if key != "type"}}
            self.tree = _replaced(self.tree, path, typed)
            self.applied.append(f"set {name}.type=sequential")

    def rewrite_reviews(self) -> None:
        rewritten, places = rewrite_reviews(self.tree)
        if isinstance(rewritten, dict):
            self.tree = rewritten
        for path in places:
            words = f"rewrote {format_path(path)}.human_review to review"
            self._moved(words, (*path, "review"), (*path, "human_review"))

    def _moved(self, words: str, new: Path, old: Path) -> None:
        self.applied.append(words)
        self.renames.append((new, old))


def _at(tree: object, path: Path) -> object:
    for part in path:
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
        else:
            return None
    return tree


def _replaced(tree: dict[str, object], path: Path, value: object) -> dict[str, object]:
    """Return the tree with another value at a path of map keys that exist."""
    first, *rest = path
    inner = tree[str(first)]
    return {**tree, str(first): _replaced(inner, tuple(rest), value) if rest and isinstance(inner, dict) else value}


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
