"""kneo-studio 0.9.0 completes a test run: a spec in its folder is registered, made an artifact, tried on our service, and
looked at. Studio's own server is started here, in its own environment; it checks every answer's types strictly."""

from __future__ import annotations

import json
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from checks import run_checks
from served import PATIENCE, free_port, serve, until

MODEL = {"provider": "dummy", "name": "dummy"}


def spec(name, steps, model=MODEL, **question):
    """A sequence of agents and people: Studio lets no spec name functions that nobody registered with it."""
    kinds = {"writer": "agent", "editor": "human"}
    return {
        "version": "v1",
        "agent": {"name": "desk", "model": MODEL},
        "workflow": {
            "type": "sequential",
            "name": name,
            "steps": [{"id": step, "kind": kinds[ref], "ref": ref} for step, ref in steps.items()],
        },
        "components": {
            "agents": {"writer": {"name": "writer", "model": model}},
            "humans": {"editor": {"description": "Approve the draft?", **question}},
        },
    }


SPECS = {
    "plain": spec("plain", {"draft": "writer", "publish": "writer"}),
    "reviewed": spec("reviewed", {"draft": "writer", "approve": "editor", "publish": "writer"}),
    "broken": spec("broken", {"draft": "writer"}, {"provider": "nobodys", "name": "none"}),
    "failing": spec("failing", {"draft": "writer", "approve": "editor"}, timeout_seconds=1, on_timeout="fail"),
}

STUDIO: dict[str, str] = {}
"""Where Studio answers and where its folder is, once the first check has started it."""


def studio(scene):
    if not STUDIO:
        folder = Path(tempfile.mkdtemp(prefix="kneo-studio-"))
        port = free_port()
        (folder / "project").mkdir()
        for name, tree in SPECS.items():
            (folder / "project" / f"{name}.yaml").write_text(json.dumps(tree))
        variables = {
            "HOME": str(folder),
            "KNEO_URL": scene.url,
            "KNEO_API_KEY": scene.keys["admin"],
            "KNEO_STUDIO_DEFAULT_PROFILE": "default",
            "KNEO_STUDIO_PROJECT_ROOT": str(folder / "project"),
            "KNEO_STUDIO_DB_URL": f"sqlite:///{folder / 'studio.db'}",
            "KNEO_STUDIO_PORT": str(port),
        }
        STUDIO["url"] = serve([str(Path(sys.executable).with_name("kneo-studio"))], variables, folder, port)
        exposure = ask("GET", "/api/projects/default/exposure/preflight")
        STUDIO["exposure"] = exposure["exposure_digest"]
        ask("POST", "/api/projects/default/exposure/confirm", {"exposure_digest": exposure["exposure_digest"]})
    return STUDIO


def ask(method, path, body=None):
    headers = {"content-type": "application/json", "origin": STUDIO["url"]}
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(f"{STUDIO['url']}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {path} → {error.code}: {error.read()[:2000]}") from error
    return json.loads(text) if text else {}


def start(scene, name, text="hello"):
    """Try a spec; return the test run."""
    house = studio(scene)
    project = "/api/projects/default"
    exposure = ask("GET", f"{project}/exposure/preflight")["exposure_digest"]
    known = {item["ref"] for item in ask("GET", f"{project}/drafts")}
    if f"{name}.yaml" not in known:
        ask("POST", f"{project}/drafts/register", {"path": f"{name}.yaml", "exposure_digest": exposure})
    revision = ask("GET", f"{project}/drafts/{name}.yaml")["revision"]
    body = {"base": {"path": f"{name}.yaml", "revision": revision}, "alias": "default"}
    artifact = ask("POST", f"{project}/artifacts", body)
    assert house["url"]
    return ask("POST", f"{project}/test-runs", {"artifact_id": artifact["id"], "input": text}), artifact


def read(run):
    return ask("GET", f"/api/projects/default/test-runs/{run['id']}")


def settled(run, status):
    return until(lambda: read(run) if read(run)["platform"]["status"] == status else None, f"not {status}")


def check_a_test_run_completes(scene):
    run, _ = start(scene, "plain")
    assert run["status"] == "started"
    ended = settled(run, "completed")
    assert "hello" in ended["platform"]["output_text"]
    assert ended["platform"]["error"] is None


def check_a_completed_run_is_looked_at(scene):
    run, _ = start(scene, "plain")
    settled(run, "completed")
    base = f"/api/projects/default/test-runs/{run['id']}"
    graph = ask("GET", f"{base}/graph")
    assert [(node["id"], node["kind"]) for node in graph["nodes"]] == [("draft", "agent"), ("publish", "agent")]
    assert ask("GET", f"{base}/trace")["events"]
    numbers = [item["sequence"] for item in ask("GET", f"{base}/checkpoints")["checkpoints"]]
    assert numbers == sorted(numbers)
    diff = ask("GET", f"{base}/checkpoints/diff?from_sequence={numbers[0]}&to_sequence={numbers[-1]}")
    assert diff["change_count"] > 0


def check_a_run_that_waits_is_shown_and_stopped(scene):
    run, _ = start(scene, "reviewed")
    settled(run, "blocked")
    graph = ask("GET", f"/api/projects/default/test-runs/{run['id']}/graph")
    assert graph["current"] == "approve"
    ask("POST", f"/api/projects/default/test-runs/{run['id']}/cancel")
    settled(run, "cancelled")


def check_a_run_that_fails_says_why(scene):
    run, _ = start(scene, "failing")
    assert "approve" in str(settled(run, "expired")["platform"]["error"])


def check_a_run_that_cannot_start_says_why(scene):
    refusal = ""
    try:
        start(scene, "broken")
    except AssertionError as error:
        refusal = str(error)
    assert "provider_not_configured" in refusal
    assert "nobodys" in refusal


def check_an_artifact_is_judged_before_it_runs(scene):
    _, artifact = start(scene, "reviewed")
    base = f"/api/projects/default/artifacts/{artifact['id']}"
    assert ask("GET", f"{base}/preflight/policy")
    assert ask("GET", f"{base}/freshness")


def check_specs_are_judged_while_they_are_written(scene):
    _, artifact = start(scene, "plain")
    for stage in ("validate", "compile", "policy-report", "graph"):
        said = ask("POST", f"/api/projects/default/specs/{stage}", {"artifact_id": artifact["id"]})
        assert said


if __name__ == "__main__":
    run_checks(globals())
