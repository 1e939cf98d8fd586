"""Sigstore's own verifier for JavaScript checks what we export. It is fetched on request: `make interop`."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kneo.settings import process_environment
from kneo.trust.dsse import add_signature, export_sigstore, sign
from kneo.trust.keys import Algorithm, PrivateKey
from kneo.trust.statement import PAYLOAD_TYPE

HERE = Path(__file__).parent
FOLDER = HERE.parents[2] / ".conformance" / "sigstore-js"
KEYS = {"ed25519": PrivateKey.generate(), "p256": PrivateKey.generate(Algorithm.P256)}
ENVELOPE = add_signature(sign(PAYLOAD_TYPE, '{"a": "é"}'.encode(), KEYS["ed25519"]), KEYS["p256"])


@pytest.fixture(scope="module")
def node(request: pytest.FixtureRequest) -> str:
    """Node, with the verifier installed in a folder of its own."""
    if not request.config.getoption("--other-tools", default=False):
        pytest.skip("fetches packages: make interop")
    found, npm = shutil.which("node"), shutil.which("npm")
    if found is None or npm is None:
        pytest.skip("needs node and npm")
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "verify.cjs"):
        shutil.copyfile(HERE / name, FOLDER / name)
    install = [npm, "install", "--ignore-scripts", "--no-audit", "--no-fund", "--cache", str(FOLDER / "cache")]
    done = subprocess.run(install, cwd=FOLDER, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm: {done.stderr.strip()[-200:]}")
    return found


def _verify(node: str, folder: Path, key: PrivateKey, bundle: bytes) -> subprocess.CompletedProcess[str]:
    (folder / "key.pem").write_text(key.public.pem)
    (folder / "bundle.json").write_bytes(bundle)
    command = [node, str(FOLDER / "verify.cjs"), str(folder / "key.pem"), str(folder / "bundle.json")]
    env = process_environment("PATH")
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


def _bundle(key: PrivateKey) -> bytes:
    return export_sigstore(ENVELOPE)[f"{key.keyid.removeprefix('sha256:')[:16]}.sigstore.json"]


@pytest.mark.parametrize("name", KEYS)
def test_it_verifies_what_we_signed_and_nothing_else(node: str, tmp_path: Path, name: str) -> None:
    key = KEYS[name]
    done = _verify(node, tmp_path, key, _bundle(key))
    assert (done.returncode, done.stdout) == (0, "verified\n"), done.stderr
    changed = json.loads(_bundle(key))
    changed["dsseEnvelope"]["payload"] = "eyJhIjogMX0="
    for other, bundle in ((key, json.dumps(changed).encode()), (PrivateKey.generate(key.algorithm), _bundle(key))):
        refused = _verify(node, tmp_path, other, bundle)
        assert refused.returncode != 0
        assert "signature verification failed" in refused.stderr
