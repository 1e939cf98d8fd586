"""The demo on a terminal: ``make demo``. Every line with a ``$`` is a command that runs now.

With ``--up`` the server is left running at the end; ``--model ollama/NAME`` gives the demo's agent a model of your own.
"""

from __future__ import annotations

import base64
import json
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import NoReturn

import httpx

from examples import demo_agent
from kneo.cli import render
from kneo.clock import monotonic, sleep
from kneo.settings import process_environment

FOLDER = Path(".demo")
NAME = "announcement"
PATIENCE_SECONDS = 30.0


class Demo:
    """A folder, two people with API keys, and a server once it is up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {name: secrets.token_urlsafe(18) for name in ("bob", "ann")}
        self.url = ""
        self.variables: Mapping[str, str] = {}
        self.section = 0
        self.started = monotonic()

    def heading(self, title: str, *lines: str) -> None:
        """Print a heading."""
        self.section += 1
        render.text(f"\n── {self.section}. {title} " + "─" * max(4, 88 - len(title)))
        for line in lines:
            render.text(f"   {line}")

    def kneo(self, *arguments: str, who: str = "bob", cwd: str = ".", expect: int = 0, quiet: bool = False) -> str:
        """Run one command; print the command and its output."""
        shown = shlex.join(arguments)
        shown = shown.replace(self.url, "$URL") if self.url else shown
        person = f"[{who}] " if self.url else ""
        render.text(f"\n   {person}$ kneo {shown}")
        command = [sys.executable, "-m", "kneo.cli.main", *arguments]
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=self.folder / cwd, env=self.environment(who), capture_output=True, text=True, check=False
        )
        output = (done.stderr + done.stdout).replace(f"{self.folder}/", "")
        if not quiet:
            render.text("\n".join(f"     {line.rstrip()}" for line in output.splitlines() if line.strip()))
        if done.returncode != expect:
            _give_up(f"kneo {shown} ended with {done.returncode} instead of {expect}.\n{output}")
        return done.stdout

    def git(self, *arguments: str) -> None:
        render.text(f"\n   $ git {shlex.join(arguments)}")
        identity = ["-c", "user.name=Bob", "-c", "user.email=bob@example.com"]
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=self.folder / "acme", check=True, capture_output=True)  # noqa: S603 - as above

    def environment(self, who: str) -> Mapping[str, str]:
        """Return the environment of a person's commands, with a home folder inside the demo's folder."""
        roles = {"bob": "operator", "ann": "approver,audit:read"}
        keys = ";".join(f"{name}:{key}:{roles[name]}" for name, key in self.keys.items())
        return {
            **process_environment("PATH", "LANG", "LC_ALL", "COLUMNS", "TMPDIR"),
            "HOME": str(self.folder / "home"),
            "KNEO_SERV_API_KEYS": keys,
            "KNEO_SERV_API_KEY": self.keys[who],
            **self.variables,
        }

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """Run ``kneo up`` until the block ends, however it ends; read its address."""
        command = [sys.executable, "-m", "kneo.cli.main", "up", "--repo", "acme", "--port", "0"]
        render.text("\n   $ kneo up --repo acme")
        log = (self.folder / "kneo.log").open("w")
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=self.folder, env=self.environment("bob"), stdout=subprocess.PIPE, stderr=log, text=True
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            if "http://" not in line:
                _give_up((self.folder / "kneo.log").read_text())
            render.text(f"     {line}")
            self.url = "http://" + line.split("http://")[1].split(",")[0]
            Thread(target=process.stdout.read, daemon=True).start()
            yield process
        finally:
            _stop(process)

    def sign_in_link(self, person: str) -> str:
        """Make a link that signs one browser in as a person, once."""
        return self.kneo("service", "sign-in-link", "--person", person, "--address", self.url, quiet=True).strip()

    def wait_for(self, version: str = "", reason: str = "") -> None:
        """Wait until prod has released a version, or has a condition with a reason."""
        deadline = monotonic() + PATIENCE_SECONDS
        while monotonic() < deadline:
            prod = self.ask("GET", "/environments/prod")
            if version and any(item["version"] == version for item in prod.get("releases", [])):
                return
            if reason and any(item["reason"] == reason for item in prod.get("conditions", [])):
                return
            sleep(0.1)
        _give_up(f"prod did not reach {version or reason!r} within {PATIENCE_SECONDS:.0f} s.")

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, list[dict[str, str]]]:
        headers = {"Authorization": f"Bearer {self.keys['bob']}"}
        answer = httpx.request(method, f"{self.url}/v1{path}", json=body, headers=headers, timeout=PATIENCE_SECONDS)
        view: dict[str, list[dict[str, str]]] = answer.json()
        return view

    def post(self, path: str, body: Mapping[str, object]) -> None:
        """Print a request as a curl command, send it, and print the response."""
        render.text(f"\n   [bob] $ curl -X POST $URL/v1{path} -d '{_short(json.dumps(body))}'")
        answer = self.ask("POST", path, body)
        problem = {key: answer[key] for key in ("error", "message") if key in answer}
        render.text(f"     {json.dumps(problem or answer)}")


def declare(demo: Demo) -> None:
    """Create a config repository, and declare version 1.1.0 of its bundle in prod, which waits for an approval."""
    demo.heading(
        "A config repository",
        "Specs, signed bundles, one file per environment and a trust root. The private keys stay outside: bob holds those of",
        "root and release, ann that of the approver. prod requires an approval by a person who did not sign the bundle.",
    )
    demo.kneo("init", "acme", "--principal", "bob", "--approver", "ann")
    key, spec = "../acme-keys/release.pem", f"specs/{NAME}.yaml"

    demo.heading(
        "Change the spec, lint it, sign it, declare it in prod, commit", "The signature covers the resolved spec."
    )
    _edit(demo.folder / "acme" / spec, "Write a short announcement", "Write an announcement of two sentences")
    demo.kneo("spec", "lint", spec, cwd="acme")
    _sign(demo, "1.1.0", key)
    _name_release(demo, "1.0.0", "1.1.0")
    demo.git("add", "-A")
    demo.git("commit", "-m", f"Release {NAME} 1.1.0 to prod")


def run(demo: Demo) -> None:
    """Declare, sign, deploy, run, approve; then try what is refused."""
    declare(demo)
    key = "../acme-keys/release.pem"

    demo.heading(
        "One process reconciles the commit", "The trust root that kneo init created on this machine is pinned."
    )
    with demo.up() as process:
        at = ("--service-url", demo.url)
        _approve_release(demo, at)
        _run_and_approve(demo, at)
        _refusals(demo, at, key)
        _agent_at_a_gate(demo, _model())
        _end(demo, process)


def _approve_release(demo: Demo, at: Sequence[str]) -> None:
    demo.wait_for(reason="AwaitingApproval")
    demo.kneo("status", "prod", *at)
    demo.heading(
        "Another person approves the release",
        "The command compares the bundle with the clone, shows the change and signs.",
    )
    words = ("--key", "../acme-keys/approver.pem", "--reason", "Read the diff")
    demo.kneo("approve", f"prod/{NAME}@1.1.0", *words, *at, who="ann", cwd="acme")
    demo.wait_for("1.1.0")
    demo.kneo("history", "prod", *at)


def _run_and_approve(demo: Demo, at: Sequence[str]) -> None:
    demo.heading("A run of exactly that digest pauses for a decision", "draft → approve → publish")
    run = json.loads(
        demo.kneo("run", "--bundle", NAME, "--env", "prod", "--input", "We ship on Friday", *at, "--json", quiet=True)
    )
    request = run["metadata"]["pending_human_request"]
    render.text(f"     {run['run_id']}  {run['status']}  {run['metadata']['release']['digest']}")
    demo.kneo("human", "list", *at, who="ann")
    demo.kneo(
        "human", "resume", run["continuation_id"], "--request-id", request["request_id"], "--approve", *at, who="ann"
    )
    render.text("\n   The publish step ran once:")
    render.text(f"     {(demo.folder / 'published.jsonl').read_text().strip()}")


def _refusals(demo: Demo, at: Sequence[str], key: str) -> None:
    demo.heading("What is not approved does not run", "The previous release keeps running.")
    render.text('\n   One byte of a signed bundle is changed: "No promises" becomes "So promises".')
    _touch(_sign(demo, "1.2.0", key), b"No promises", b"So promises")
    _name_release(demo, "1.1.0", "1.2.0")
    demo.git("add", "-A")
    demo.git("commit", "-m", "Touch a bundle")
    demo.wait_for(reason="SignatureInvalid")
    demo.kneo("status", "prod", *at)

    render.text("\n   A key outside the trust root signs:")
    demo.kneo("keys", "generate", "--output", "unknown.pem")
    _sign(demo, "1.3.0", "../unknown.pem")
    _name_release(demo, "1.2.0", "1.3.0")
    demo.git("add", "-A")
    demo.git("commit", "-m", "Release a bundle with an unknown signer")
    demo.kneo("reconcile", "prod", *at)
    demo.kneo("run", "--bundle", f"{NAME}@1.3.0", "--env", "prod", "--input", "x", *at, expect=1)

    render.text("\n   A version that is not released, and an inline spec:")
    demo.post("/runs", {"bundle": f"{NAME}@9.9.9", "environment": "prod", "input": "x"})
    demo.post("/runs", {"spec": {"version": "v1", "agent": {"name": "mine"}}, "environment": "prod", "input": "x"})

    demo.heading("The audit log explains why", "Every change and refusal is in a hash chain.")
    demo.kneo("events", "--limit", "12", *at, who="ann")
    demo.kneo("audit", "verify")


def _model() -> str:
    """Return the model that the command line names, as PROVIDER/NAME; empty for the scripted one."""
    given = sys.argv[sys.argv.index("--model") + 1 :] if "--model" in sys.argv else []
    return given[0] if given else ""


def _agent_at_a_gate(demo: Demo, model: str) -> None:
    source = (
        f"The model is {model}."
        if model
        else "The model is a script on loopback, not a real one; make demo MODEL=ollama/NAME."
    )
    demo.heading("An agent calls a tool, and a person edits the call", source)
    folder = demo.folder / "clerk"
    demo_agent.write_project(folder, model)
    render.text("\n" + "\n".join(f"     {line}" for line in (folder / "clerk.yaml").read_text().splitlines()))
    with demo_agent.model_variables(folder, model) as demo.variables:
        words = ("run", "clerk.yaml", "--target", "agent", "--input", demo_agent.INPUT)
        run = json.loads(demo.kneo(*words, "--json", cwd="clerk", quiet=True))
        if run["status"] != "paused":
            _give_up(f"The model {model} did not call the tool: {run['output_text'] or run['error']}")
        request = run["metadata"]["pending_human_request"]
        render.text(f"     {run['run_id']}  {run['status']}: {' '.join(request['prompt'].split())}")
        edited = json.dumps({"to": "Bolt Ltd", "amount": 100})
        demo.kneo("human", "resume", run["continuation_id"], "--edit", edited, who="ann", cwd="clerk")
        demo.kneo("runs", "conversation", run["run_id"], cwd="clerk")
    demo.variables = {}
    render.text("\n   The payment was made once, with the edited amount:")
    render.text(f"     {(folder / 'payments.jsonl').read_text().strip()}")


def _end(demo: Demo, process: subprocess.Popen[str]) -> None:
    if "--up" not in sys.argv:
        _stop(process)
        render.text(
            f"\n✓ Done in {monotonic() - demo.started:.0f} s. The repository, keys and database are in {FOLDER}/."
        )
        render.text("  make up does the same and leaves the server running, for your own commits and approvals.")
        return
    at = ("--service-url", demo.url)
    demo.kneo("run", "--bundle", NAME, "--env", "prod", "--input", "We ship on Monday", *at, "--json", quiet=True)
    link = demo.sign_in_link("ann")
    render.text(f"\n✓ A task waits for ann. Open the console as ann, once within ten minutes:\n    {link}")
    render.text(f"\n✓ Kneo is up at {demo.url} (API documentation: {demo.url}/docs). Commit to {FOLDER}/acme; try:")
    render.text(f"    cd {FOLDER} && export HOME=$PWD/home KNEO_SERV_API_KEY={demo.keys['bob']}")
    render.text(f"    ../.venv/bin/kneo status --service-url {demo.url}")
    render.text(f"    API key of ann, the approver: {demo.keys['ann']}. Stop with Ctrl-C.")
    with suppress(KeyboardInterrupt):
        process.wait()


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a process in order, or kill it where that takes too long."""
    process.terminate()
    try:
        process.wait(PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _sign(demo: Demo, version: str, key: str) -> Path:
    output = f"bundles/{NAME}/{version}.dsse.json"
    words = ["--output", output, "--approved-by", "bob", "--key", key]
    demo.kneo("spec", "bundle", "sign", f"specs/{NAME}.yaml", *words, cwd="acme")
    return demo.folder / "acme" / output


def _name_release(demo: Demo, old: str, new: str) -> None:
    _edit(demo.folder / "acme/environments/prod.yaml", f"version: {old}", f"version: {new}")


def _edit(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    if old not in content:
        _give_up(f"{path} does not contain {old!r}.")
    path.write_text(content.replace(old, new))


def _touch(bundle: Path, old: bytes, new: bytes) -> None:
    envelope = json.loads(bundle.read_text())
    payload = base64.b64decode(envelope["payload"])
    assert old in payload
    envelope["payload"] = base64.b64encode(payload.replace(old, new)).decode()
    bundle.write_text(json.dumps(envelope))


def _short(text: str) -> str:
    return text if len(text) < 100 else text[:97] + "..."


def _give_up(message: str) -> NoReturn:
    render.failure(message)
    raise SystemExit(1)


def main() -> None:
    """Run the demo in a new folder. SIGTERM ends it as an exception does, so that it stops the server that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = FOLDER.absolute()
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "home").mkdir(parents=True)
    run(Demo(folder))


if __name__ == "__main__":
    main()
