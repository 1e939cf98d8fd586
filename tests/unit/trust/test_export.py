from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from kneo.trust.dsse import Envelope, Signature, add_signature, export_pae, export_sigstore, parse_envelope, sign
from kneo.trust.keys import Algorithm, PrivateKey

ED, EC = PrivateKey.generate(), PrivateKey.generate(Algorithm.P256)
ENVELOPE = add_signature(sign("application/vnd.in-toto+json", '{"a": "é"}'.encode(), ED), EC)
OPENSSL = shutil.which("openssl")


@pytest.mark.skipif(OPENSSL is None, reason="needs openssl")
@pytest.mark.parametrize("key", [ED, EC], ids=["ed25519", "p256"])
def test_openssl_verifies_what_we_export(key: PrivateKey, tmp_path: Path) -> None:
    for name, content in export_pae(ENVELOPE, [ED.public, EC.public]).items():
        (tmp_path / name).write_bytes(content)
    name = key.keyid.removeprefix("sha256:")[:16]
    if key is ED:
        command = f"pkeyutl -verify -pubin -inkey {name}.pem -rawin -in pae.bin -sigfile {name}.sig"
    else:
        command = f"dgst -sha256 -verify {name}.pem -signature {name}.sig pae.bin"

    def openssl() -> int:
        return subprocess.run(
            [str(OPENSSL), *command.split()], cwd=tmp_path, capture_output=True, check=False
        ).returncode

    assert openssl() == 0
    (tmp_path / "pae.bin").write_bytes((tmp_path / "pae.bin").read_bytes() + b" ")
    assert openssl() != 0


def test_a_sigstore_bundle_carries_one_signature_each() -> None:
    files = export_sigstore(ENVELOPE)
    assert len(files) == 2
    for content in files.values():
        value = json.loads(content)
        assert value["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
        signature = value["dsseEnvelope"]["signatures"]
        assert len(signature) == 1
        assert value["verificationMaterial"]["publicKey"]["hint"] == signature[0]["keyid"]
        again = parse_envelope(json.dumps(value["dsseEnvelope"]).encode())
        key = next(k for k in (ED, EC) if k.keyid == again.signatures[0].keyid)
        assert key.public.verify(again.signed_bytes, again.signatures[0].sig)
        assert base64.b64decode(value["dsseEnvelope"]["payload"]) == ENVELOPE.payload


def test_a_key_hint_never_becomes_a_path() -> None:
    hints = ["../../etc/passwd", "", "sha256:" + "a" * 64, "sha256:" + "a" * 64, "sha256:" + "." * 64, "/x"]
    envelope = Envelope("x", b"", tuple(Signature(hint, b"s") for hint in hints))
    for files in (export_pae(envelope), export_sigstore(envelope)):
        assert all("/" not in name and not name.startswith(".") for name in files)
    assert len(export_sigstore(envelope)) == len(hints)
