"""The whole story on a terminal: ``make demo``. Every line with a ``$`` is a real command that runs now.

With ``--up`` the service is left running at the end.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import NoReturn

import httpx

from cli import render
from kneo.clock import monotonic, sleep
from kneo.settings import process_environment

FOLDER = Path(".demo")
NAME = "announcement"
PATIENCE_SECONDS = 30.0


class Story:
    """A folder, people with keys, and a service once it is up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {name: secrets.token_urlsafe(18) for name in ("bob", "ann")}
        self.url = ""
        self.chapter = 0
        self.started = monotonic()

    def say(self, title: str, *lines: str) -> None:
        """Begin a chapter."""
        self.chapter += 1
        render.text(f"\n── {self.chapter}. {title} " + "─" * max(4, 88 - len(title)))
        for line in lines:
            render.text(f"   {line}")

    def kneo(self, *arguments: str, who: str = "bob", cwd: str = ".", expect: int = 0, quiet: bool = False) -> str:
        """Run one command, show it and what it says."""
        shown = " ".join(arguments).replace(self.url, "$URL") if self.url else " ".join(arguments)
        person = f"[{who}] " if self.url else ""
        render.text(f"\n   {person}$ kneo {shown}")
        command = [sys.executable, "-m", "cli.main", *arguments]
        done = subprocess.run(  # noqa: S603 - our own command
            command, cwd=self.folder / cwd, env=self.environment(who), capture_output=True, text=True, check=False
        )
        said = (done.stderr + done.stdout).replace(f"{self.folder}/", "")
        if not quiet:
            render.text("\n".join(f"     {line.rstrip()}" for line in said.splitlines() if line.strip()))
        if done.returncode != expect:
            _give_up(f"kneo {shown} ended with {done.returncode} instead of {expect}.\n{said}")
        return done.stdout

    def git(self, *arguments: str) -> None:
        render.text(f"\n   $ git {' '.join(arguments)}")
        identity = ["-c", "user.name=Bob", "-c", "user.email=bob@example.com"]
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=self.folder / "acme", check=True, capture_output=True)  # noqa: S603 - as above

    def environment(self, who: str) -> Mapping[str, str]:
        """What a command of this person sees: a home of its own, so that nothing of yours is touched."""
        roles = {"bob": "operator", "ann": "approver,audit:read"}
        keys = ";".join(f"{name}:{key}:{roles[name]}" for name, key in self.keys.items())
        return {
            **process_environment("PATH", "LANG", "LC_ALL", "COLUMNS", "TMPDIR"),
            "HOME": str(self.folder / "home"),
            "KNEO_SERV_API_KEYS": keys,
            "KNEO_SERV_API_KEY": self.keys[who],
        }

    def up(self) -> subprocess.Popen[str]:
        """Start ``kneo up`` and learn its address."""
        command = [sys.executable, "-m", "cli.main", "up", "--repo", "acme", "--port", "0"]
        render.text("\n   $ kneo up --repo acme")
        log = (self.folder / "kneo.log").open("w")
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, cwd=self.folder, env=self.environment("bob"), stdout=subprocess.PIPE, stderr=log, text=True
        )
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if "http://" not in line:
            _give_up((self.folder / "kneo.log").read_text())
        render.text(f"     {line}")
        self.url = "http://" + line.split("http://")[1].split(",")[0]
        Thread(target=process.stdout.read, daemon=True).start()
        return process

    def wait_for(self, version: str = "", reason: str = "") -> None:
        """Wait until prod serves a version, or says why it does not serve another."""
        deadline = monotonic() + PATIENCE_SECONDS
        while monotonic() < deadline:
            prod = self.ask("GET", "/environments/prod")
            if version and any(item["version"] == version for item in prod.get("releases", [])):
                return
            if reason and any(item["reason"] == reason for item in prod.get("conditions", [])):
                return
            sleep(0.1)
        _give_up(f"prod neither served {version!r} nor said {reason!r} within {PATIENCE_SECONDS:.0f} s.")

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, list[dict[str, str]]]:
        headers = {"Authorization": f"Bearer {self.keys['bob']}"}
        answer = httpx.request(method, f"{self.url}/v1{path}", json=body, headers=headers, timeout=PATIENCE_SECONDS)
        found: dict[str, list[dict[str, str]]] = answer.json()
        return found

    def post(self, path: str, body: Mapping[str, object]) -> None:
        """Show a request as a curl command and what it answers."""
        render.text(f"\n   [bob] $ curl -X POST $URL/v1{path} -d '{_short(json.dumps(body))}'")
        answer = self.ask("POST", path, body)
        told = {key: answer[key] for key in ("error", "message") if key in answer}
        render.text(f"     {json.dumps(told or answer)}")


def tell(story: Story) -> None:
    """Path 1 to 5: declare, sign, deploy, run, approve; and what is refused."""
    story.say(
        "A config repository",
        "Specs, signed bundles, one file per environment and a trust root. The private keys stay outside: bob holds those of",
        "root and release, ann that of the approver. prod requires an approval of somebody who did not sign the bundle.",
    )
    story.kneo("init", "acme", "--principal", "bob", "--approver", "ann")
    key, spec = "../acme-keys/release.pem", f"specs/{NAME}.yaml"

    story.say("Change the spec, lint it, sign it, name it in prod, commit", "A signature is over the resolved spec.")
    _edit(story.folder / "acme" / spec, "dummy", "dummy")
    story.kneo("spec", "lint", spec, cwd="acme")
    _sign(story, "1.1.0", key)
    _name_release(story, "1.0.0", "1.1.0")
    story.git("add", "-A")
    story.git("commit", "-m", f"Release {NAME} 1.1.0 to prod")

    story.say("One process follows the commit", "It believes the trust root that kneo init made on this machine.")
    process = story.up()
    try:
        at = ("--service-url", story.url)
        _approve_release(story, at)
        _run_and_approve(story, at)
        _refusals(story, at, key)
    except BaseException:
        process.kill()
        raise
    _end(story, process)


def _approve_release(story: Story, at: Sequence[str]) -> None:
    story.wait_for(reason="AwaitingApproval")
    story.kneo("status", "prod", *at)
    story.say("Another person approves the release", "Compared with the bundle in the clone, shown, and then signed.")
    words = ("--key", "../acme-keys/approver.pem", "--reason", "Read the diff")
    story.kneo("approve", f"prod/{NAME}@1.1.0", *words, *at, who="ann", cwd="acme")
    story.wait_for("1.1.0")
    story.kneo("history", "prod", *at)


def _run_and_approve(story: Story, at: Sequence[str]) -> None:
    story.say("A run of exactly that digest stops at the person", "draft → approve → publish")
    run = json.loads(
        story.kneo("run", "--bundle", NAME, "--env", "prod", "--input", "We ship on Friday", *at, "--json", quiet=True)
    )
    request = run["metadata"]["pending_human_request"]
    render.text(f"     {run['run_id']}  {run['status']}  {run['metadata']['release']['digest']}")
    story.kneo("human", "list", *at, who="ann")
    story.kneo(
        "human", "resume", run["continuation_id"], "--request-id", request["request_id"], "--approve", *at, who="ann"
    )
    render.text("\n   The publish step ran once:")
    render.text(f"     {(story.folder / 'published.jsonl').read_text().strip()}")


def _refusals(story: Story, at: Sequence[str], key: str) -> None:
    story.say("What is not approved does not run", "What ran before keeps running.")
    render.text('\n   Somebody changes one byte of a signed bundle: "No promises" becomes "So promises".')
    _touch(_sign(story, "1.2.0", key), b"No promises", b"So promises")
    _name_release(story, "1.1.0", "1.2.0")
    story.git("add", "-A")
    story.git("commit", "-m", "Touch a bundle")
    story.wait_for(reason="SignatureInvalid")
    story.kneo("status", "prod", *at)

    render.text("\n   A stranger signs:")
    story.kneo("keys", "generate", "--output", "stranger.pem")
    _sign(story, "1.3.0", "../stranger.pem")
    _name_release(story, "1.2.0", "1.3.0")
    story.git("add", "-A")
    story.git("commit", "-m", "Release what a stranger signed")
    story.kneo("reconcile", "prod", *at)
    story.kneo("run", "--bundle", f"{NAME}@1.3.0", "--env", "prod", "--input", "x", *at, expect=1)

    render.text("\n   A version nobody released, and a spec that a request brings along:")
    story.post("/runs", {"bundle": f"{NAME}@9.9.9", "environment": "prod", "input": "x"})
    story.post("/runs", {"spec": {"version": "v1", "agent": {"name": "mine"}}, "environment": "prod", "input": "x"})

    story.say("Everybody can see why", "Every change and refusal is in a hash chain.")
    story.kneo("events", "--limit", "12", *at, who="ann")
    story.kneo("audit", "verify")


def _end(story: Story, process: subprocess.Popen[str]) -> None:
    if "--up" not in sys.argv:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
        render.text(f"\n✓ Told in {monotonic() - story.started:.0f} s. It is all in {FOLDER}/ to look at.")
        render.text("  make up tells it again and leaves the service running, for your own commits and approvals.")
        return
    render.text(f"\n✓ It stays up at {story.url} (docs at {story.url}/docs). Work on {FOLDER}/acme and commit; try:")
    render.text(f"    cd {FOLDER} && export HOME=$PWD/home KNEO_SERV_API_KEY={story.keys['bob']}")
    render.text(f"    ../.venv/bin/kneo status --service-url {story.url}")
    render.text(f"    Ann's key, who approves: {story.keys['ann']}. Ctrl-C ends it.")
    try:
        process.wait()
    except KeyboardInterrupt:
        process.terminate()
        process.wait(PATIENCE_SECONDS)


def _sign(story: Story, version: str, key: str) -> Path:
    output = f"bundles/{NAME}/{version}.dsse.json"
    words = ["--output", output, "--approved-by", "bob", "--key", key]
    story.kneo("spec", "bundle", "sign", f"specs/{NAME}.yaml", *words, cwd="acme")
    return story.folder / "acme" / output


def _name_release(story: Story, old: str, new: str) -> None:
    _edit(story.folder / "acme/environments/prod.yaml", f"version: {old}", f"version: {new}")


def _edit(path: Path, old: str, new: str) -> None:
    content = path.read_text()
    if old not in content:
        _give_up(f"{path} does not say {old!r} any more.")
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
    """Tell the story in a fresh folder."""
    folder = FOLDER.absolute()
    if folder.exists():
        shutil.rmtree(folder)
    (folder / "home").mkdir(parents=True)
    tell(Story(folder))


if __name__ == "__main__":
    main()
