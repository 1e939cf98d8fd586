r"""Send the requests of a first day to a deployed service: probes, keys, a spec, a run, a decision, the audit log, a policy.

    python scripts/deployment_smoke.py --base-url https://kneo.example.org \
        --operator-token … --reviewer-token … --viewer-token …

Every step prints PASS, or FAIL with the request and its response; the exit status is 1 after a failure. The script needs Python and
nothing else. It leaves one run, its audit events and a policy of the environment ``deployment-smoke``, which it creates.
"""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

MAX_BYTES = 4_194_304
TIMEOUT_SECONDS = 240

SPEC = {
    "version": "v1",
    "agent": {"name": "deployment-smoke", "model": {"provider": "dummy", "name": "echo"}},
    "workflow": {
        "type": "sequential",
        "name": "deployment-smoke",
        "steps": [
            {"id": "answer", "kind": "agent", "ref": "echo"},
            {"id": "approve", "kind": "human", "ref": "reviewer"},
        ],
    },
    "components": {
        "agents": {"echo": {"name": "echo", "model": {"provider": "dummy", "name": "echo"}}},
        "humans": {"reviewer": {"description": "Does the answer look right?"}},
    },
}
"""A workflow that pauses, needs no model and no functions."""


class SmokeError(Exception):
    """A response is not the expected one."""


@dataclass(frozen=True)
class Deployment:
    """A service, with the API keys of three people."""

    url: str
    operator: str
    reviewer: str
    viewer: str
    context: ssl.SSLContext | None

    def ask(
        self,
        method: str,
        path: str,
        key: str | None,
        body: Mapping[str, object] | None = None,
        *,
        expect: int = 200,
    ) -> dict[str, object]:
        """Send a request; return the JSON object of its response.

        Raises:
            SmokeError: the service did not respond, or with another status.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "deployment-smoke"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        if method == "POST":
            headers["Idempotency-Key"] = f"smoke-{uuid.uuid4()}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)  # noqa: S310 - the address of an option, checked to be http
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=self.context) as response:  # noqa: S310
                status, text = response.status, response.read(MAX_BYTES)
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read(MAX_BYTES)
        except OSError as error:
            msg = f"{method} {path}: no response from {self.url}: {error}"
            raise SmokeError(msg) from error
        if status != expect:
            msg = f"{method} {path} responded {status} instead of {expect}: {text[:500].decode(errors='replace')}"
            raise SmokeError(msg)
        try:
            answer = json.loads(text)
        except ValueError as error:
            msg = f"{method} {path} responded {status} without JSON: {text[:200]!r}"
            raise SmokeError(msg) from error
        return answer if isinstance(answer, dict) else {"items": answer}


def check_probes(deployment: Deployment) -> str:
    deployment.ask("GET", "/livez", None)
    ready = deployment.ask("GET", "/readyz", None)
    return f"version {ready.get('version')}, build {ready.get('build')}"


def check_keys(deployment: Deployment) -> str:
    deployment.ask("GET", "/v1/runs", None, expect=401)
    deployment.ask("GET", "/v1/runs", f"not-a-key-{uuid.uuid4()}", expect=401)
    deployment.ask("POST", "/v1/runs", deployment.viewer, {"input": "smoke", "spec": SPEC}, expect=403)
    names = {str(deployment.ask("GET", "/v1/me", key)["name"]) for key in people(deployment)}
    if len(names) != len(people(deployment)):
        msg = f"GET /v1/me: the three keys belong to {', '.join(sorted(names))}; use the keys of three people."
        raise SmokeError(msg)
    return f"{', '.join(sorted(names))}; no key and an unknown key are refused, a viewer starts no run"


def people(deployment: Deployment) -> tuple[str, str, str]:
    return deployment.operator, deployment.reviewer, deployment.viewer


def check_spec(deployment: Deployment, start: Mapping[str, object]) -> str:
    if "spec" not in start:
        return "skipped: the run uses a release or a path"
    answer = deployment.ask("POST", "/v1/specs/validate", deployment.operator, {"spec": start["spec"]})
    if answer.get("valid") is not True:
        msg = f"POST /v1/specs/validate: the spec is not valid here: {json.dumps(answer)[:500]}"
        raise SmokeError(msg)
    return "valid"


def check_run(deployment: Deployment, start: Mapping[str, object]) -> dict[str, object]:
    run = deployment.ask("POST", "/v1/runs", deployment.operator, {"input": "smoke", **start})
    if run.get("status") not in {"paused", "blocked"} or not run.get("continuation_id"):
        msg = (
            f"POST /v1/runs: the run did not pause for a person, its status is {run.get('status')}: {run.get('error')}"
        )
        raise SmokeError(msg)
    return run


def check_decision(deployment: Deployment, run: Mapping[str, object]) -> str:
    metadata = run.get("metadata")
    pending = metadata.get("pending_human_request") if isinstance(metadata, dict) else None
    request_id = pending.get("request_id") if isinstance(pending, dict) else None
    path = f"/v1/human-tasks/{run['continuation_id']}/resume"
    body = {"request_id": request_id, "decision": "approved"}
    deployment.ask("POST", path, deployment.viewer, body, expect=403)
    deployment.ask("POST", path, deployment.reviewer, body)
    after = deployment.ask("GET", f"/v1/runs/{run['run_id']}", deployment.operator)
    if after.get("status") not in {"succeeded", "completed"}:
        msg = f"GET /v1/runs/{run['run_id']}: after the approval the status is {after.get('status')}: {after.get('error')}"
        raise SmokeError(msg)
    return f"approved by the reviewer, {after['status']}"


def check_audit(deployment: Deployment, run: Mapping[str, object]) -> str:
    answer = deployment.ask("GET", f"/v1/audit-events?run_id={run['run_id']}", deployment.viewer)
    events = answer.get("events") or answer.get("audit_events") or []
    names = (
        {str(event.get("event_type") or event.get("event")) for event in events} if isinstance(events, list) else set()
    )
    if "human.decision" not in names:
        msg = f"GET /v1/audit-events: the decision is not among the events of the run: {sorted(names)}"
        raise SmokeError(msg)
    return f"{len(names)} kinds of events, human.decision among them"


def check_credentials(deployment: Deployment) -> str:
    answer = deployment.ask("GET", "/v1/security/credentials", deployment.operator)
    text = json.dumps(answer)
    if any(key in text for key in people(deployment)):
        msg = "GET /v1/security/credentials: the response contains an API key"
        raise SmokeError(msg)
    return "listed, without values"


def check_policy(deployment: Deployment) -> str:
    path = "/v1/policies/environment/deployment-smoke"
    deployment.ask("PUT", path, deployment.viewer, {"require_human_review": True}, expect=403)
    deployment.ask("PUT", path, deployment.operator, {"require_human_review": True})
    policy = deployment.ask("GET", path, deployment.operator).get("policy")
    if not isinstance(policy, dict) or policy.get("require_human_review") is not True:
        msg = f"GET {path}: the policy that was set is not there: {policy}"
        raise SmokeError(msg)
    return "set and read; a viewer may not set it"


def smoke(deployment: Deployment, start: Mapping[str, object]) -> bool:
    """Execute every step; return whether all passed. Steps after a failed one are not executed."""
    run: dict[str, object] = {}

    def begin() -> str:
        run.update(check_run(deployment, start))
        return f"{run['run_id']} waits for {run['continuation_id']}"

    steps = (
        ("probes", lambda: check_probes(deployment)),
        ("keys", lambda: check_keys(deployment)),
        ("spec validation", lambda: check_spec(deployment, start)),
        ("run", begin),
        ("decision", lambda: check_decision(deployment, run)),
        ("audit events", lambda: check_audit(deployment, run)),
        ("credentials", lambda: check_credentials(deployment)),
        ("policy", lambda: check_policy(deployment)),
    )
    for name, step in steps:
        try:
            result = step()
        except SmokeError as error:
            sys.stdout.write(f"FAIL  {name}: {error}\n")
            return False
        sys.stdout.write(f"PASS  {name}: {result}\n")
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", required=True, help="address of the service")
    for role in ("operator", "reviewer", "viewer"):
        parser.add_argument(f"--{role}-token", required=True, help=f"API key of a person with the role {role}")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--bundle", help="released bundle that pauses for a person, where specs of callers are not allowed"
    )
    what.add_argument("--spec-path", help="spec below KNEO_SERV_SPEC_ROOT that pauses for a person")
    parser.add_argument("--environment", help="environment of the run")
    parser.add_argument("--insecure", action="store_true", help="accept any certificate")
    chosen = parser.parse_args(arguments)
    if not chosen.base_url.startswith(("https://", "http://")):
        parser.error("--base-url begins with https:// or http://")
    start: dict[str, object] = {"spec": SPEC}
    if chosen.bundle:
        start = {"bundle": chosen.bundle}
    elif chosen.spec_path:
        start = {"spec_path": chosen.spec_path}
    if chosen.environment:
        start["environment"] = chosen.environment
    context = None
    if chosen.insecure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    deployment = Deployment(
        chosen.base_url.rstrip("/"), chosen.operator_token, chosen.reviewer_token, chosen.viewer_token, context
    )
    return 0 if smoke(deployment, start) else 1


if __name__ == "__main__":
    sys.exit(main())
