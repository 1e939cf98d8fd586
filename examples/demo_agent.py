"""The agent of the demo: it calls a tool, is stopped at a gate, a person edits the arguments, and it finishes.

The model is a script on loopback, which answers the same whatever it is asked; ``MODEL=ollama/NAME`` names a real one.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kneo.settings import process_environment

SERVER = Path(__file__).parents[1] / "tests" / "support" / "model_server.py"
INPUT = "Invoice 7 of Bolt Ltd, 120 EUR, please pay."
SCRIPT = [
    {"calls": [{"name": "find_invoice", "arguments": {"number": 7}}], "usage": [148, 16]},
    {"calls": [{"name": "pay", "arguments": {"to": "Bolt Ltd", "amount": 120}}], "usage": [212, 21]},
    {"text": "Bolt Ltd was paid.", "usage": [251, 9]},
]

SPEC = """\
version: v1
agent:
  name: clerk
  system_prompt: >-
    You are a clerk. Look each invoice up, pay it with the tool pay, exactly once, then say in one sentence what was paid.
  model: {provider: PROVIDER, name: NAME, token_budget: 50000}
  strategy: {type: react, max_iterations: 4}
  tools:
    include: [find_invoice, pay]
    permissions: {allow_network: false, allow_filesystem_read: false, allow_filesystem_write: false, allow_shell: false}
tools:
  find_invoice:
    description: Find an invoice by its number.
    parameters: {type: object, properties: {number: {type: integer}}, required: [number]}
    implementation: payments.find_invoice
  pay:
    description: Pay an invoice.
    title: "Pay {amount} EUR to {to}"
    parameters:
      type: object
      properties: {to: {type: string}, amount: {type: number, maximum: 10000}}
      required: [to, amount]
    implementation: payments.pay
    capabilities: [privileged]
    review: {before: {human: finance, decisions: [approved, rejected, edited]}}
components:
  humans:
    finance: {description: Is this payment right?}
"""

TOOL = '''\
"""Payments, written to a file."""

import json
from pathlib import Path


def find_invoice(arguments):
    return {"number": arguments["number"], "from": "Bolt Ltd", "amount": 120, "already_paid": 20}


def pay(arguments, key):
    with Path(__file__).with_name("payments.jsonl").open("a") as file:
        file.write(json.dumps({**arguments, "idempotency_key": key}) + "\\n")
    return "paid"
'''


def write_project(folder: Path, model: str) -> None:
    """Write the agent's spec, its tools and the script of its model."""
    folder.mkdir()
    write_spec(folder / "clerk.yaml", model)
    (folder / "payments.py").write_text(TOOL)
    write_script(folder)


def write_script(folder: Path) -> None:
    """Write the script of the model."""
    (folder / "script.json").write_text(json.dumps(SCRIPT))


def write_spec(path: Path, model: str = "") -> None:
    """Write the agent's spec."""
    provider, _, name = model.partition("/")
    spec = SPEC.replace("PROVIDER", provider or "openai-compatible").replace("NAME", json.dumps(name or "scripted"))
    path.write_text(spec)


@contextlib.contextmanager
def model_variables(folder: Path, model: str) -> Iterator[Mapping[str, str]]:
    """Yield the variables with which commands reach the model: the person's own, or those of the scripted server."""
    if model:
        provider = model.partition("/")[0].upper().replace("-", "_")
        yield process_environment(*(f"{provider}_{end}" for end in ("BASE_URL", "API_KEY", "API_KEY_FILE")))
        return
    command = [sys.executable, str(SERVER), "script.json"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own
        try:
            assert process.stdout is not None
            yield {"OPENAI_COMPATIBLE_BASE_URL": f"{process.stdout.readline().strip()}/v1"}
        finally:
            process.terminate()
