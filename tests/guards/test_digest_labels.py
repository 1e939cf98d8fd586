"""Parts of digests are for people: whatever is compared, looked up or agreed to has a whole digest."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]

SHORTENED: Mapping[str, str] = {
    "agents/turn.py task_key": "a key that people read; answers are found by whole digests",
    "agents/guardrails.py _at_call": "a key that people read",
    "agents/guardrails.py _reviewed": "a key that people read",
    "agents/tool_calls/questions.py gate_question": "a key that people read; answers are found by whole digests",
    "cli/clone.py read": "a message",
    "cli/releases/bundles.py _show_list": "a table",
    "cli/releases/environments.py _history_row": "a table",
    "cli/releases/environments.py show_environment": "a table",
    "cli/render.py short_digest": "a table",
    "cli/render.py short_revision": "a table",
    "cli/serve/database_checks.py check_source": "a message",
    "cli/specs/trust.py _find_key": "finds one key of the trust root, which is edited in a file and signed",
    "clock.py derived_id": "the id of an imported record",
    "controller/stages/gates.py _outdated": "a message; approvals are compared by whole digests",
    "controller/source/mirror.py __init__": "a folder with the address written in it",
    "controller/stages/report.py report_policy": "the version that people read; the subject is the whole digest",
    "digest.py __init__": "the label itself",
    "notify/channels.py _bitbucket": "the name of a commit status",
    "registry/record.py _dated": "160 bits, which an id has room for",
    "sdk/builder.py identifier": "the name of a function of the program itself",
    "sdk/waits.py ask_question": "a key that people read; answers are found by whole digests",
    "service/console/render.py version_of": "the address of files that are cached",
    "service/console/search.py _bundles": "a search",
    "service/console/render.py short": "a page",
    "spec/conditions.py draw": "a random number",
    "spec/diff/summary.py _code": "a review that people read; the whole digest is in the environment file",
    "extensions/protocols/mcp/server.py tool_name": "a name for models",
    "extensions/push/delivery.py _send": "replaces an older push message about the same task",
    "extensions/kneo_serv/source.py _checked": "tells databases of a published version apart",
    "trust/approvals.py approval_id": "the id of one person's own decisions",
    "registry/assignment.py position_of": "a random number",
    "trust/result.py attestation_id": "the id of a row, whose payload digest is unique and whole",
    "trust/checkpoint.py _key_hash": "the hint of a signed note; the signature is verified",
    "trust/record_mac.py __init__": "the hint to a key; the MAC is verified",
    "trust/receipt.py mark_of": "names the changed field behind a broken signature",
    "trust/sshsig.py find_ssh_signer": "the name of a hash in a message",
    "trust/sealing.py _key_id": "the hint to a key; what is sealed is authenticated",
}
"""The places that shorten a digest, and why nothing is agreed to by what they return."""

LABELS = {"DigestLabel", "short_digest", "short_revision"}
DIGEST = re.compile(r"digest|sha1|sha256|blake2|hash|commit(?!ter)|revision|b32|hex", re.IGNORECASE)
WHOLE_CHARS = len("sha256:") + 64


def shortened(tree: ast.AST, scope: str = "<module>") -> Iterator[tuple[str, int]]:
    """Yield the functions that make a part of a digest, compare one, or make a label, with the lines."""
    for node in ast.iter_child_nodes(tree):
        inner = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else scope
        match node:
            case ast.Subscript(value=value, slice=ast.Slice() as part) if DIGEST.search(
                ast.unparse(value)
            ) and _is_shorter(part):
                yield scope, node.lineno
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if name in LABELS:
                yield scope, node.lineno
            case ast.Call(func=ast.Attribute(value=value, attr="startswith"), args=[beginning]) if DIGEST.search(
                ast.unparse(value)
            ) and not isinstance(beginning, ast.Constant):
                yield scope, node.lineno
        yield from shortened(node, inner)


def _is_shorter(part: ast.Slice) -> bool:
    match part.upper:
        case None:
            return isinstance(part.lower, ast.UnaryOp)
        case ast.Constant(value=int(length)):
            return length < WHOLE_CHARS
        case _:
            return True


def test_every_place_that_shortens_a_digest_is_listed_with_its_reason() -> None:
    found = {
        f"{path.relative_to(ROOT / 'kneo')} {function}": line
        for path in sorted((ROOT / "kneo").rglob("*.py"))
        for function, line in shortened(ast.parse(path.read_text()))
    }
    assert {place: line for place, line in found.items() if place not in SHORTENED} == {}
    assert SHORTENED.keys() - found.keys() == set()


def test_the_ways_to_compare_a_part_of_a_digest_are_found() -> None:
    written = """
def guard(arguments):
    agreed[gate] = sha256(arguments).hexdigest()[:8]
def question(call):
    return f"{call.key}@{DigestLabel(digest_of_json(call.arguments))}"
def accept(new, commit):
    return new_commit.startswith(commit)
def fine(digest):
    return digest == other_digest and digest.startswith("sha256:") and names[:10]
"""
    assert [function for function, _ in shortened(ast.parse(written))] == ["guard", "question", "accept"]
