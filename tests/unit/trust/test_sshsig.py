"""SSH signatures made by ssh-keygen itself, and every way in which they must not count."""

from __future__ import annotations

import base64
import shutil
import subprocess
from pathlib import Path

import pytest

from kneo.errors import Invalid
from kneo.trust.dsse import TrustedKey
from kneo.trust.keys import Algorithm, PublicKey
from kneo.trust.sshsig import BEGIN, END, find_ssh_signer

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")

MESSAGE = b"tree 1234\n\nsomething\n"


class Person:
    """Somebody with an SSH key."""

    def __init__(self, folder: Path, name: str, kind: str = "ed25519") -> None:
        self.file = folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", name, "-f", self.file], check=True)
        self.key = TrustedKey(PublicKey.load(self.file.with_suffix(".pub").read_bytes()), name)

    def sign(self, message: bytes = MESSAGE, namespace: str = "git", hashed: str = "sha512") -> bytes:
        options = ["-Y", "sign", "-n", namespace, "-O", f"hashalg={hashed}", "-f", str(self.file)]
        done = subprocess.run(["ssh-keygen", *options], input=message, capture_output=True, check=True)
        return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ssh")


@pytest.fixture(scope="module")
def ann(folder: Path) -> Person:
    return Person(folder, "ann")


@pytest.fixture(scope="module")
def bob(folder: Path) -> Person:
    return Person(folder, "bob", "ecdsa")


def signer(armored: bytes, *people: Person, message: bytes = MESSAGE) -> str | None:
    found = find_ssh_signer(armored, message, {person.key.public.keyid: person.key for person in people})
    return found.principal if found else None


def test_both_kinds_of_keys_and_of_hashes(ann: Person, bob: Person) -> None:
    assert (ann.key.public.algorithm, bob.key.public.algorithm) == (Algorithm.ED25519, Algorithm.P256)
    for hashed in ("sha256", "sha512"):
        assert signer(ann.sign(hashed=hashed), ann, bob) == "ann"
        assert signer(bob.sign(hashed=hashed), ann, bob) == "bob"


def test_nobody_else_signed_it(ann: Person, bob: Person) -> None:
    assert signer(ann.sign(), bob) is None
    assert signer(ann.sign()) is None
    assert signer(ann.sign(), ann, message=MESSAGE + b" ") is None


def test_a_signature_for_something_else_is_none(ann: Person) -> None:
    with pytest.raises(Invalid, match="not for git"):
        signer(ann.sign(namespace="file"), ann)


def test_a_key_of_a_kind_we_do_not_know(folder: Path, ann: Person) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", folder / "rsa"], check=True)
    options = ["-Y", "sign", "-n", "git", "-f", str(folder / "rsa")]
    made = subprocess.run(["ssh-keygen", *options], input=MESSAGE, capture_output=True, check=True).stdout
    with pytest.raises(Invalid, match="not supported"):
        signer(made, ann)


def test_every_changed_byte_is_noticed(ann: Person) -> None:
    blob = base64.b64decode(b"".join(ann.sign().strip()[len(BEGIN) : -len(END)].split()))
    for place in range(len(blob)):
        spoiled = blob[:place] + bytes([blob[place] ^ 1]) + blob[place + 1 :]
        armored = BEGIN + b"\n" + base64.b64encode(spoiled) + b"\n" + END
        try:
            found = signer(armored, ann)
        except Invalid:
            continue
        # The key that a signature names is no part of what it vouches for; ours is the one that was asked.
        assert found is None or blob.find(b"ssh-ed25519") - 8 < place < blob.find(b"git")


@pytest.mark.parametrize(
    "armored",
    [b"", BEGIN, BEGIN + END, BEGIN + b"\n!!!\n" + END, b"-----BEGIN PGP SIGNATURE-----\n\n-----END PGP SIGNATURE-----",
     BEGIN + base64.b64encode(b"SSHSIG\0\0\0\1" + b"\xff" * 40) + END, BEGIN + b"A" * 9_000 + END],
)  # fmt: skip
def test_garbage_is_refused(armored: bytes, ann: Person) -> None:
    with pytest.raises(Invalid):
        signer(armored, ann)


def test_what_follows_a_signature_is_refused(ann: Person) -> None:
    blob = base64.b64decode(b"".join(ann.sign().strip()[len(BEGIN) : -len(END)].split()))
    with pytest.raises(Invalid):
        signer(BEGIN + base64.b64encode(blob + b"x") + END, ann)
