"""Where a run went, in words."""

from __future__ import annotations

from cli import render
from cli.backend import Json


def show_outcome(answer: Json) -> None:
    """Say where a run went, and what to do when it waits."""
    metadata = answer["metadata"]
    assert isinstance(metadata, dict)
    lines = [("Status", f"{answer['status']}")]
    release = metadata.get("release")
    if isinstance(release, dict):
        lines.append(("Bundle", f"{release['bundle']} {release['version']} in {release['environment']}"))
        lines.append(("Digest", f"{release['digest']}"))
    if answer["output_text"] is not None:
        lines.append(("Output", f"{answer['output_text']}"))
    error = answer.get("error")
    if isinstance(error, dict):
        lines.append(("Error", f"{error['type']}: {error['message']}"))
    render.panel(f"Run {answer['run_id']}", lines)
    if answer.get("note"):
        render.text(f"{answer['note']}")
    if answer["human_intervention_required"]:
        request = metadata["pending_human_request"]
        render.warning(f"It waits for a person: {request['prompt']}")
        render.text(f"  kneo human resume {answer['continuation_id']} --request-id {request['request_id']} --approve")
