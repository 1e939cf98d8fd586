import base64
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kneo.digest import digest_of_json
from kneo.trust.dsse import parse_envelope

Kneo = Callable[..., Any]
SPEC = "specs/announcement.yaml"


def path_of(version: str) -> str:
    return f"bundles/announcement/{version}.dsse.json"


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    done = subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repo(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A config repository that we stand in, and what init said about it."""
    made = kneo("init", "acme", "--json").json
    kneo("keys", "generate", "-o", tmp_path / "stranger.pem")
    monkeypatch.chdir(tmp_path / "acme")
    return {**made, "stranger": str(tmp_path / "stranger.pem")}


@pytest.fixture
def sign(kneo: Kneo, repo: dict[str, Any]) -> Callable[..., Any]:
    def call(version: str, *options: str, key: str = "", spec: str = SPEC) -> Any:
        words = ["--output", path_of(version), "--approved-by", "ann", "--key", key or repo["key"], "--json"]
        return kneo("spec", "bundle", "sign", spec, *words, *options)

    return call


@pytest.fixture
def verify(kneo: Kneo, repo: dict[str, Any]) -> Callable[..., Any]:
    return lambda version, *options: kneo("spec", "bundle", "verify", path_of(version), "--json", *options)


def change(**changes: object) -> None:
    content = yaml.safe_load(Path(SPEC).read_text())
    Path(SPEC).write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))


# ---- signing --------------------------------------------------------------------------------------------------------


def test_versions_follow_each_other(sign: Callable[..., Any], repo: dict[str, Any], verify: Callable[..., Any]):
    change(metadata={"note": "second"})
    second = sign("1.1.0").json
    assert (second["seq"], second["prev"], second["added"]) == (2, repo["digest"], False)
    assert second["environments"] == ["dev", "prod", "staging"]
    change(metadata={"note": "third"})
    third = sign("1.2.0", "--env", "prod", "--env", "staging").json
    assert (third["seq"], third["prev"]) == (3, second["digest"])
    assert third["environments"] == ["prod", "staging"]
    for version in ("1.0.0", "1.1.0", "1.2.0"):
        checked = verify(version)
        assert checked.status == 0, checked.out
        assert checked.json["valid"] is True


def test_a_second_signature_joins_the_first(
    kneo: Kneo, sign: Callable[..., Any], repo: dict[str, Any], verify: Callable[..., Any]
):
    add = [
        "trust",
        "add-key",
        repo["stranger"],
        "--principal",
        "bob",
        "--role",
        "release",
        "--key",
        repo["keys"]["root"],
    ]
    assert kneo(*add).status == 0
    prod = Path("environments/prod.yaml")
    prod.write_text(prod.read_text().replace("roles: [release], threshold: 1", "roles: [release], threshold: 2"))
    refused = verify("1.0.0", "--env", "prod")
    assert (refused.status, refused.json["reason"]) == (3, "ThresholdNotMet")
    both = sign("1.0.0", key=repo["stranger"]).json
    assert (both["added"], len(both["signers"]), both["digest"]) == (True, 2, repo["digest"])
    assert verify("1.0.0").status == 0


def test_a_signed_version_never_changes(sign: Callable[..., Any]):
    before = Path(path_of("1.0.0")).read_bytes()
    change(metadata={"note": "other"})
    refused = sign("1.0.0")
    assert refused.status == 5
    assert "next one" in refused.json["hint"]
    assert sign("1.0.0", "--env", "dev").status == 5
    assert Path(path_of("1.0.0")).read_bytes() == before


def test_errors_refuse_and_warnings_print(sign: Callable[..., Any], kneo: Kneo, repo: dict[str, Any]):
    good = Path(SPEC).read_text()
    change(workflow={"type": "sequential", "steps": [{"id": "x", "kind": "human", "ref": "nobody"}]})
    refused = sign("1.1.0")
    assert refused.status == 1
    assert refused.json["diagnostics"]
    assert not Path(path_of("1.1.0")).exists()
    Path(SPEC).write_text(good)
    content = yaml.safe_load(good)
    content["components"]["humans"]["advisor"] = {"response_role": "system"}
    Path(SPEC).write_text(yaml.safe_dump(content))
    warned = sign("1.1.0")
    assert warned.status == 0
    assert warned.err.count("W_HUMAN_RESPONSE_ROLE_SYSTEM") == 1, "once, not once for each environment"
    content["tools"] = {"look": {"implementation": "announcement_functions.publish", "description": "d"}}
    content["components"]["agents"]["writer"]["tools"] = {"include": ["look"]}
    Path(SPEC).write_text(yaml.safe_dump(content))
    violating = sign("1.2.0")
    assert violating.status == 1, "a warning, and more than the environments' policies allow"
    assert "E_ENV_POLICY_UNRESTRICTED_TOOLS" in {found["code"] for found in violating.json["diagnostics"]}


def test_name_and_version_come_from_the_place_or_from_options(kneo: Kneo, repo: dict[str, Any], tmp_path: Path):
    base = ["spec", "bundle", "sign", SPEC, "--approved-by", "ann", "--key", repo["key"]]
    assert kneo(*base).status == 2
    assert kneo(*base, "--output", "out.json").status == 2
    assert kneo(*base, "--output", path_of("2.0.0"), "--version", "3.0.0").status == 2
    named = kneo(*base, "--name", "announcement", "--version", "2.0.0", "--json")
    assert named.status == 0, named.err
    assert Path(path_of("2.0.0")).is_file()
    elsewhere = tmp_path / "out.json"
    assert kneo(*base, "--output", elsewhere, "--name", "a", "--version", "1", "--env", "dev").status == 0
    assert elsewhere.is_file()


def test_where_it_may_run_must_be_known(
    kneo: Kneo, repo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "alone").mkdir()
    shutil.copy(SPEC, tmp_path / "alone/spec.yaml")
    shutil.copy("announcement_functions.py", tmp_path / "alone")
    monkeypatch.chdir(tmp_path / "alone")
    base = [
        "spec",
        "bundle",
        "sign",
        "spec.yaml",
        "--output",
        path_of("1"),
        "--approved-by",
        "ann",
        "--key",
        repo["key"],
    ]
    assert kneo(*base).status == 2
    assert kneo(*base, "--env", "dev").status == 0


def test_the_source_is_said_only_where_it_is_true(sign: Callable[..., Any]):
    git("remote", "add", "origin", "https://ann:secret@git.example.com/acme.git")
    clean = sign("1.1.0").json["source"]
    assert clean == {"repo": "https://git.example.com/acme.git", "commit": git("rev-parse", "HEAD"), "path": SPEC}
    change(metadata={"note": "not committed"})
    assert sign("1.2.0").json["source"] == {"repo": "https://git.example.com/acme.git", "path": SPEC}


def test_a_key_in_a_variable(kneo: Kneo, repo: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RELEASE_KEY", Path(repo["key"]).read_text())
    words = ["--output", path_of("1.1.0"), "--approved-by", "ci", "--key-env", "RELEASE_KEY", "--json"]
    signed = kneo("spec", "bundle", "sign", SPEC, *words)
    assert signed.json["signature"]["algorithm"] == "ed25519"


def test_overlays_that_differ_need_a_version_each(kneo: Kneo, sign: Callable[..., Any]):
    Path(".kneo").mkdir()
    config = {
        "project": {"name": "acme"},
        "specs": {"overlays": {"prod": ["specs/prod.overlay.yaml"]}},
    }
    Path(".kneo/config.yaml").write_text(yaml.safe_dump(config))
    Path("specs/prod.overlay.yaml").write_text("agent: {system_prompt: Be brief.}\n")
    refused = sign("1.1.0")
    assert refused.status == 5, refused.out
    assert "--env" in refused.json["hint"]
    signed = sign("1.1.0", "--env", "prod")
    assert signed.status == 0, signed.err
    payload = json.loads(parse_envelope(Path(path_of("1.1.0")).read_bytes()).payload)
    assert payload["predicate"]["spec"]["agent"]["system_prompt"] == "Be brief."
    assert sign("1.2.0", "--env", "dev", "--env", "staging").status == 0, (
        "defaults that only name the environment agree"
    )


def test_a_strangers_signature_is_made_with_a_warning(
    sign: Callable[..., Any], repo: dict[str, Any], verify: Callable[..., Any]
):
    signed = sign("1.1.0", key=repo["stranger"])
    assert signed.status == 0
    assert "does not count yet" in signed.err
    assert verify("1.1.0").json["reason"] == "SignatureInvalid"


def test_a_damaged_version_stops_no_later_one(
    sign: Callable[..., Any], verify: Callable[..., Any], repo: dict[str, Any]
):
    Path(path_of("0.9.0")).write_text("{}")
    signed = sign("1.1.0")
    assert signed.status == 0
    assert path_of("0.9.0") in signed.err
    assert (signed.json["seq"], signed.json["prev"]) == (2, repo["digest"])
    assert verify("1.1.0").status == 0


@pytest.mark.usefixtures("repo")
def test_a_folder_holds_the_versions_of_one_bundle(sign: Callable[..., Any]):
    Path("bundles/other").mkdir()
    shutil.copy(path_of("1.0.0"), "bundles/other/1.0.0.dsse.json")
    refused = sign("1.1.0", "--output", "bundles/other/1.1.0.dsse.json")
    assert refused.status == 1
    assert "bundles/other/1.0.0" in refused.json["message"]


# ---- verifying ------------------------------------------------------------------------------------------------------


def test_steps_are_numbered_and_end_where_they_fail(verify: Callable[..., Any]):
    content = json.loads(Path(path_of("1.0.0")).read_text())
    payload = bytearray(base64.b64decode(content["payload"]))
    payload[payload.index(b"announcer")] ^= 1
    content["payload"] = base64.b64encode(payload).decode()
    Path(path_of("1.0.0")).write_text(json.dumps(content))
    checked = verify("1.0.0")
    assert checked.status == 3
    answer = checked.json
    assert (answer["valid"], answer["signature_valid"], answer["reason"]) == (False, False, "SignatureInvalid")
    steps = answer["environments"][0]["steps"]
    assert [step["number"] for step in steps] == list(range(1, 11))
    assert [step["passed"] for step in steps] == [True, True, True, False, *[None] * 6]


def test_the_pin_comes_from_elsewhere(
    verify: Callable[..., Any], repo: dict[str, Any], home: Path, kneo: Kneo, monkeypatch: pytest.MonkeyPatch
):
    assert verify("1.0.0").json["trust_root"]["pinned_by"] == str(home / ".kneo_serv" / "known_roots.json")
    given = verify("1.0.0", "--trust-root", repo["trust_root"])
    assert given.json["trust_root"]["pinned_by"] == "--trust-root"
    wrong = verify("1.0.0", "--trust-root", "sha256:" + "0" * 64)
    assert (wrong.status, wrong.json["error"]) == (3, "RootNotPinned")
    (home / ".kneo_serv" / "known_roots.json").unlink()
    loud = kneo("spec", "bundle", "verify", path_of("1.0.0"))
    assert loud.status == 0
    assert "NOT PINNED" in loud.err
    assert verify("1.0.0").json["trust_root"]["pinned"] is False
    monkeypatch.setenv("KNEO_SERV_TRUST_ROOT", str(repo["trust_root"]))
    assert verify("1.0.0").json["trust_root"]["pinned_by"] == "KNEO_SERV_TRUST_ROOT"


@pytest.mark.usefixtures("repo")
def test_a_file_carried_elsewhere_is_judged_by_what_it_says(kneo: Kneo, tmp_path: Path):
    shutil.copy(path_of("1.0.0"), tmp_path / "carried.json")
    checked = kneo("spec", "bundle", "verify", tmp_path / "carried.json", "--json")
    assert checked.status == 0, checked.out
    assert checked.json["path"] == path_of("1.0.0")
    (tmp_path / "acme/bundles/other").mkdir()
    shutil.copy(path_of("1.0.0"), "bundles/other/1.0.0.dsse.json")
    moved = kneo("spec", "bundle", "verify", "bundles/other/1.0.0.dsse.json", "--json")
    assert (moved.status, moved.json["reason"]) == (3, "SubjectMismatch")


def test_two_histories_are_seen(sign: Callable[..., Any], verify: Callable[..., Any], tmp_path: Path):
    change(metadata={"note": "a"})
    assert sign("1.1.0").status == 0
    Path(path_of("1.1.0")).rename(tmp_path / "aside")
    change(metadata={"note": "b"})
    assert sign("1.1.1").status == 0
    (tmp_path / "aside").rename(path_of("1.1.0"))
    assert verify("1.1.0").json["reason"] == "Equivocation"


@pytest.mark.usefixtures("repo")
def test_for_an_environment_it_is_not_for(verify: Callable[..., Any], sign: Callable[..., Any]):
    sign("1.1.0", "--env", "dev")
    assert verify("1.1.0").status == 0
    refused = verify("1.1.0", "--env", "prod")
    assert (refused.status, refused.json["reason"]) == (3, "SubjectMismatch")


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"payloadType":"x","payload":"","signatures":[]}', "\x00"])
@pytest.mark.usefixtures("repo")
def test_what_is_no_bundle(content: str, kneo: Kneo):
    Path(path_of("9.9.9")).write_text(content)
    checked = kneo("spec", "bundle", "verify", path_of("9.9.9"), "--json")
    assert checked.status == 3
    assert checked.json["environments"][0]["steps"][0]["passed"] is False
    assert kneo("spec", "bundle", "inspect", path_of("9.9.9")).status == 1
    assert kneo("spec", "bundle", "verify", path_of("0.0.0")).status == 4


# ---- inspecting and exporting ---------------------------------------------------------------------------------------


def test_inspect(kneo: Kneo, repo: dict[str, Any]):
    shown = kneo("spec", "bundle", "inspect", path_of("1.0.0"), "--json").json
    assert (shown["digest"], shown["name"], shown["seq"]) == (repo["digest"], "announcement", 1)
    assert digest_of_json(shown["spec"]) == shown["spec_digest"]
    assert [s["principal"] for s in shown["signatures"]] == ["owner"]
    assert shown["valid"] is True
    words = kneo("spec", "bundle", "inspect", path_of("1.0.0"))
    assert "of owner" in words.out
    assert "10 It follows" in words.out


def test_inspect_without_a_trust_root(
    kneo: Kneo, repo: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copy(path_of("1.0.0"), tmp_path / "x.json")
    monkeypatch.chdir(tmp_path)
    shown = kneo("spec", "bundle", "inspect", "x.json", "--json")
    assert shown.status == 0
    assert (shown.json["valid"], shown.json["steps"]) == (None, [])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("algorithm", ["ed25519", "p256"])
def test_openssl_checks_what_is_exported(
    algorithm: str, kneo: Kneo, sign: Callable[..., Any], repo: dict[str, Any], tmp_path: Path
):
    key = str(tmp_path / "k.pem")
    kneo("keys", "generate", "-o", key, "--algorithm", algorithm)
    kneo("trust", "add-key", key, "--principal", "bob", "--role", "release", "--key", repo["keys"]["root"])
    sign("1.1.0", key=key)
    out = tmp_path / "out"
    assert kneo("spec", "bundle", "export", path_of("1.1.0"), "--format", "pae", "--output", out).status == 0
    (pem,), (sig,) = out.glob("*.pem"), out.glob("*.sig")
    if algorithm == "ed25519":
        command = ["pkeyutl", "-verify", "-pubin", "-inkey", pem, "-rawin", "-in", out / "pae.bin", "-sigfile", sig]
    else:
        command = ["dgst", "-sha256", "-verify", pem, "-signature", sig, out / "pae.bin"]
    done = subprocess.run(["openssl", *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_export_to_sigstore(kneo: Kneo, repo: dict[str, Any], tmp_path: Path):
    words = ["--format", "sigstore", "--output", tmp_path / "out", "--json"]
    written = kneo("spec", "bundle", "export", path_of("1.0.0"), *words).json
    assert written["digest"] == repo["digest"]
    bundle = json.loads(Path(written["files"][0]).read_text())
    assert bundle["mediaType"].startswith("application/vnd.dev.sigstore.bundle")


# ---- the HMAC format ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("repo")
def test_the_published_format_and_answers(kneo: Kneo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base = ["spec", "bundle", "sign", SPEC, "--output", "out/b.json", "--approved-by", "rel", "--env", "prod", "--json"]
    assert kneo(*base).status == 2, "no key at all"
    monkeypatch.setenv("KNEO_SERV_SPEC_SIGNING_KEY", "secret")
    signed = kneo(*base)
    content = json.loads(Path("out/b.json").read_text())
    assert signed.json == {
        "output": "out/b.json",
        "digest": content["digest"]["value"],
        "signature": {"algorithm": "HMAC-SHA256", "key_id": "KNEO_SERV_SPEC_SIGNING_KEY"},
    }
    assert content["metadata"]["environment"] == "prod"
    valid = kneo("spec", "bundle", "verify", "out/b.json", "--json")
    assert valid.status == 0
    assert valid.json == {"valid": True, "digest_valid": True, "signature_valid": True, "errors": []}
    assert kneo("spec", "bundle", "inspect", "out/b.json").status == 0
    content["spec"]["agent"]["name"] = "other"
    Path("out/bad.json").write_text(json.dumps(content))
    bad = kneo("spec", "bundle", "verify", "out/bad.json", "--json")
    assert bad.status == 1
    assert (bad.json["valid"], bad.json["digest_valid"], len(bad.json["errors"])) == (False, False, 2)
    monkeypatch.setenv("OTHER", "another")
    assert kneo("spec", "bundle", "verify", "out/b.json", "--key-env", "OTHER").status == 1
    assert kneo("spec", "bundle", "verify", "out/b.json", "--key-env", "UNSET").status == 2
