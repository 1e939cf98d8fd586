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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import httpx

from examples import demo_agent
from kneo.cli import render
from kneo.clock import monotonic, sleep
from kneo.settings import process_environment

FOLDER = Path(".demo")
NAME = "support"
PATIENCE_SECONDS = 30.0
WIDTH = 110
"""Characters of a line; the whole demo fits one screen."""

MUG = "My mug of order 7 is broken, please refund it."
CHAIR = "The chair of order 8 never arrived, please refund it."
TABLE = "I do not like the table of order 9, please refund it."


class Demo:
    """A folder, two people with API keys, and a server once it is up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {name: secrets.token_urlsafe(18) for name in ("bob", "ann")}
        self.url = ""
        self.variables: Mapping[str, str] = {}
        self.section = 0
        self.started = monotonic()

    def heading(self, title: str) -> None:
        """Print a heading."""
        self.section += 1
        render.text(f"\n{self.section}. {title}")

    def show(self, *lines: str) -> None:
        """Print lines of output, each cut at the width of the demo."""
        for line in lines:
            render.text(f"     {line if len(line) <= WIDTH else line[: WIDTH - 1] + '…'}")

    def kneo(
        self,
        *arguments: str,
        who: str = "bob",
        cwd: str = "acme",
        expect: int = 0,
        quiet: bool = False,
        lines: slice = slice(1),
        to: str = "",
    ) -> str:
        """Run one command; print the command and, unless ``quiet``, some lines of its output, by default the first one; ``to`` is its file."""
        shown = f"{shlex.join(arguments)} > {to}" if to else shlex.join(arguments).removesuffix(" --json")
        render.text(f"   [{who}] $ kneo {shown if len(shown) <= WIDTH - 15 else f'{shown[: WIDTH - 16]}…'}")
        command = [sys.executable, "-m", "kneo.cli.main", *arguments]
        # A command with the key at its end verifies offline.
        if self.url and "--key" not in arguments[-2:] and arguments[0] in _SERVED:
            command += ["--service-url", self.url]
        done = subprocess.run(  # noqa: S603 - our own command
            command,
            cwd=self.folder / cwd,
            env=self.environment(who),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if quiet else subprocess.STDOUT,
            text=True,
            check=False,
        )
        output = ((done.stderr or "") + done.stdout).replace(f"{self.folder}/", "")
        if not quiet:
            self.show(*[line.strip() for line in output.splitlines() if line.strip()][lines])
        if done.returncode != expect:
            _give_up(f"kneo {shlex.join(arguments)} ended with {done.returncode} instead of {expect}.\n{output}")
        if to:
            (self.folder / cwd / to).write_text(done.stdout)
        return done.stdout

    def answer(self, *arguments: str, who: str = "bob") -> dict[str, Any]:
        """Run one command without printing its output; return what it answers as JSON."""
        answer: dict[str, Any] = json.loads(self.kneo(*arguments, "--json", who=who, quiet=True))
        return answer

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=Bob", "-c", "user.email=bob@example.com"]
        command = ["git", *identity, *arguments]
        subprocess.run(command, cwd=self.folder / "acme", check=True, capture_output=True)  # noqa: S603 - as above

    def commit(self, message: str) -> None:
        """Commit everything in the repository."""
        self.git("add", "-A")
        self.git("commit", "-m", message)

    def environment(self, who: str) -> Mapping[str, str]:
        """Return the environment of a person's commands, with a home folder inside the demo's folder."""
        roles = {"bob": "operator", "ann": "approver,audit:read"}
        keys = ";".join(f"{name}:{key}:{roles[name]}" for name, key in self.keys.items())
        return {
            **process_environment("PATH", "LANG", "LC_ALL", "TMPDIR"),
            "COLUMNS": str(WIDTH),
            "HOME": str(self.folder / "home"),
            "KNEO_SERV_API_KEYS": keys,
            "KNEO_SERV_API_KEY": self.keys[who],
            **self.variables,
        }

    @contextmanager
    def up(self) -> Iterator[subprocess.Popen[str]]:
        """Run ``kneo up`` until the block ends, however it ends; read its address."""
        command = [sys.executable, "-m", "kneo.cli.main", "up", "--repo", "acme", "--port", "0"]
        render.text("   [bob] $ kneo up --repo acme")
        with (
            (self.folder / "kneo.log").open("w") as log,
            subprocess.Popen(  # noqa: S603 - our own command
                command, cwd=self.folder, env=self.environment("bob"), stdout=subprocess.PIPE, stderr=log, text=True
            ) as process,
        ):
            assert process.stdout is not None
            reader = Thread(target=process.stdout.read, daemon=True)
            try:
                line = process.stdout.readline().strip()
                if "http://" not in line:
                    _give_up((self.folder / "kneo.log").read_text())
                self.show(line)
                self.url = "http://" + line.split("http://")[1].split(",")[0]
                reader.start()
                yield process
            finally:
                _stop(process)
                if reader.is_alive():
                    reader.join()

    def sign_in_link(self, person: str) -> str:
        """Make a link that signs one browser in as a person, once."""
        words = ("service", "sign-in-link", "--person", person, "--address", self.url)
        return self.kneo(*words, cwd=".", quiet=True).strip()

    def wait_for(self, version: str = "", reason: str = "") -> None:
        """Wait until prod has released a version, or has a condition with a reason."""
        deadline = monotonic() + PATIENCE_SECONDS
        headers = {"Authorization": f"Bearer {self.keys['bob']}"}
        while monotonic() < deadline:
            prod = httpx.get(f"{self.url}/v1/environments/prod", headers=headers, timeout=PATIENCE_SECONDS).json()
            if version and any(item["version"] == version for item in prod.get("releases", [])):
                return
            if reason and any(item["reason"] == reason for item in prod.get("conditions", [])):
                return
            sleep(0.1)
        _give_up(f"prod did not reach {version or reason!r} within {PATIENCE_SECONDS:.0f} s.")


_SERVED = frozenset({"run", "runs", "task", "status", "approve", "why"})
"""The commands that ask the server of the demo."""


def run(demo: Demo) -> None:
    """Declare, run, ask, edit, reject, evaluate, refuse, prove."""
    model = _model()
    source = (
        "The model is a script on loopback; make demo MODEL=ollama/NAME uses yours." if _is_scripted(model) else model
    )
    render.text(f"A support agent that refunds. {source}")
    demo.heading("A config repository with a signed agent. Bob signs and runs; Ann is an approver, and finance.")
    words = ("init", "acme", "--template", "agent", "--principal", "bob", "--approver", "ann", "--model", model)
    demo.kneo(*words, cwd=".")
    with demo_agent.model_variables(model) as demo.variables, demo.up() as process:
        demo.wait_for("1.0.0")
        edited = _refunds(demo, model)
        _bad_prompt(demo)
        _changed_byte(demo)
        _proof(demo, edited)
        _end(demo, process)


def start(demo: Demo, text: str) -> dict[str, Any]:
    """Start a run of the agent in prod, up to its question or its end."""
    return demo.answer("run", "--bundle", NAME, "--env", "prod", "--input", text)


def _refunds(demo: Demo, model: str) -> str:
    """Refund without a question, with an edited amount, and not at all; return the task of the edited call."""
    demo.heading("A refund of 20 EUR: up to 100 EUR the rules of prod ask no one.")
    demo.show(start(demo, MUG)["output_text"])
    demo.heading("A refund of 120 EUR asks finance, and Ann refunds less. It was made once, as she decided.")
    edited = _ask(demo, CHAIR, model)
    words = ("--edit", json.dumps({"order": 8, "euros": 100}))
    demo.show(demo.answer("task", "decide", edited, *words, who="ann")["output_text"])
    demo.heading("A refund of 300 EUR, which Ann rejects.")
    rejected = _ask(demo, TABLE, model)
    demo.show(demo.answer("task", "decide", rejected, "--reject", "--reason", "Too late", who="ann")["output_text"])
    return edited


def _ask(demo: Demo, text: str, model: str) -> str:
    """Start a run that asks a person; return the id of the task."""
    paused = start(demo, text)
    if paused["status"] != "paused":
        _give_up(f"The model {model} did not call the tool: {paused['output_text'] or paused['error']}")
    task = str(paused["continuation_id"])
    demo.kneo("task", "list", who="ann", lines=slice(-1, None))
    return task


def _bad_prompt(demo: Demo) -> None:
    demo.heading("A prompt that pays what customers claim is stopped by the suite, in CI and before it is signed.")
    spec = demo.folder / "acme" / f"specs/{NAME}.yaml"
    spec.write_text(spec.read_text().replace(demo_agent.CAREFUL, demo_agent.GENEROUS))
    demo.show(f"- {demo_agent.CAREFUL}", f"+ {demo_agent.GENEROUS}")
    words = ("eval", f"evals/{NAME}.yaml", "--bundle", f"specs/{NAME}.yaml", "--env", "prod", "--models", "live")
    demo.kneo(*words, expect=1, lines=slice(5))


def _changed_byte(demo: Demo) -> None:
    demo.heading("A bundle with one changed byte is not released; prod keeps 1.0.0.")
    demo.git("checkout", ".")
    signed = demo.folder / "acme" / f"bundles/{NAME}"
    _touch(signed / "1.0.0.dsse.json", signed / "1.1.0.dsse.json", b"args.euros > 100", b"args.euros > 900")
    prod = demo.folder / "acme/environments/prod.yaml"
    prod.write_text(prod.read_text().replace("version: 1.0.0", "version: 1.1.0"))
    demo.commit("Release a changed bundle")
    demo.wait_for(reason="SignatureInvalid")
    demo.kneo("status", "prod", lines=slice(2))


def _proof(demo: Demo, task: str) -> None:
    demo.heading(
        "The receipt of Ann's decision is verified offline, by the key alone; a copy with another name is refused."
    )
    demo.kneo("task", "receipt", "key", "--output", "service.pem", quiet=True)
    demo.kneo("task", "receipt", "show", task, "--json", quiet=True, to="receipt.json")
    receipt = demo.folder / "acme/receipt.json"
    receipt.with_name("forged.json").write_text(receipt.read_text().replace('"ann"', '"eve"'))
    demo.kneo("task", "receipt", "verify", "receipt.json", "--key", "service.pem", lines=slice(2))
    demo.kneo("task", "receipt", "verify", "forged.json", "--key", "service.pem", expect=3)
    demo.kneo("audit", "verify", cwd=".")


def _model() -> str:
    """Return the model that the command line names, as PROVIDER/NAME, else the scripted one."""
    given = sys.argv[sys.argv.index("--model") + 1 :] if "--model" in sys.argv else []
    return given[0] if given else demo_agent.SCRIPTED


def _is_scripted(model: str) -> bool:
    return model == demo_agent.SCRIPTED


def _end(demo: Demo, process: subprocess.Popen[str]) -> None:
    if "--up" not in sys.argv:
        _stop(process)
        render.text(f"\n✓ Done in {monotonic() - demo.started:.0f} s. All of it is in {FOLDER}/.")
        render.text("  make up does the same and leaves the server running, for your own commits and approvals.")
        return
    start(demo, CHAIR)
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


def _touch(bundle: Path, changed: Path, old: bytes, new: bytes) -> None:
    envelope = json.loads(bundle.read_text())
    payload = base64.b64decode(envelope["payload"])
    assert old in payload
    payload = payload.replace(old, new).replace(b'"1.0.0"', b'"1.1.0"')
    envelope["payload"] = base64.b64encode(payload).decode()
    changed.write_text(json.dumps(envelope))


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
