import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kneo.clock import SystemClock
from kneo.errors import Untrusted
from kneo.trust.dsse import parse_envelope, serialise, sign
from kneo.trust.keys import PrivateKey
from kneo.trust.root import TRUST_ROOT_TYPE, verify_chain

Kneo = Callable[..., Any]
FILE = "environments/trust.json"


@pytest.fixture
def keys(kneo: Kneo, tmp_path: Path) -> dict[str, str]:
    """A key each for three people, and the repository whose root ann began."""
    made = {}
    for name in ("ann", "bob", "eve"):
        made[name] = kneo("keys", "generate", "-o", f"{name}.pem", "--json").json["keyid"]
    assert kneo("trust", "init", "--key", "ann.pem", "--principal", "ann", "--file", FILE).status == 0
    return made


def show(kneo: Kneo) -> dict[str, Any]:
    answer = kneo("trust", "show", "--json")
    assert answer.status == 0, answer.err
    return answer.json


def chain(folder: Path) -> list[bytes]:
    earlier = sorted((folder / "environments/roots").glob("*.json"), key=lambda p: int(p.stem))
    return [p.read_bytes() for p in [*earlier, folder / FILE]]


def test_a_first_root(kneo: Kneo, keys: dict[str, str]):
    root = show(kneo)
    assert {"version", "digest", "roles", "keys", "expires", "revoked"} <= root.keys()
    assert (root["version"], root["complete"], root["revoked"]) == (1, True, [])
    assert root["first"] == root["digest"]
    assert root["roles"] == {
        "root": {"keys": [keys["ann"]], "threshold": 1},
        "release": {"keys": [keys["ann"]], "threshold": 1, "paths": ["*"]},
        "approver": {"keys": [keys["ann"]], "threshold": 1},
    }
    assert root["keys"][keys["ann"]]["principal"] == "ann"


def test_a_root_is_begun_once(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    before = (tmp_path / FILE).read_bytes()
    assert kneo("trust", "init", "--key", "bob.pem", "--file", FILE).status == 5
    assert (tmp_path / FILE).read_bytes() == before


def test_each_change_is_a_version_that_follows_from_the_first(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    pin = show(kneo)["digest"]
    add = ["trust", "add-key", "bob.pem", "--principal", "bob", "--role", "release", "--role", "approver"]
    assert kneo(*add, "--key", "ann.pem").status == 0
    assert kneo("trust", "set-role", "release", "--threshold", "2", "--key", "ann.pem").status == 0
    root = show(kneo)
    assert (root["version"], root["complete"], root["first"]) == (3, True, pin)
    assert root["roles"]["release"]["threshold"] == 2
    assert sorted(p.name for p in (tmp_path / "environments/roots").iterdir()) == ["1.json", "2.json"]
    verified = verify_chain(pin, chain(tmp_path), SystemClock().now())
    assert verified.version == 3
    assert verified.digest == root["digest"]


def test_found_from_a_folder_below(kneo: Kneo, keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "specs").mkdir()
    monkeypatch.chdir(tmp_path / "specs")
    assert show(kneo)["version"] == 1
    monkeypatch.chdir("/")
    assert kneo("trust", "show").status == 4


def test_two_people_sign_one_after_the_other(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    kneo("trust", "add-key", "bob.pem", "--principal", "bob", "--role", "root", "--key", "ann.pem")
    kneo("trust", "set-role", "root", "--threshold", "2", "--key", "ann.pem", "--key", "bob.pem")
    assert show(kneo)["complete"] is True
    begun = kneo("trust", "add-key", "eve.pem", "--principal", "eve", "--role", "release", "--key", "ann.pem", "--json")
    assert begun.json["complete"] is False
    assert begun.json["version"] == 4
    assert "kneo trust sign" in kneo("trust", "show").err
    signed = kneo("trust", "sign", "--key", "bob.pem", "--json")
    assert signed.json["complete"] is True
    assert signed.json["digest"] == begun.json["digest"]
    verify_chain(signed.json["first"], chain(tmp_path), SystemClock().now())


@pytest.mark.parametrize("name", ["b\u043eb", "ev\u3164e"], ids=["mixed scripts", "a letter that is not seen"])
def test_a_name_written_into_a_draft_by_hand_is_checked(kneo: Kneo, keys: dict[str, str], tmp_path: Path, name: str):
    kneo("trust", "add-key", "bob.pem", "--principal", "bob", "--role", "root", "--key", "ann.pem")
    kneo("trust", "set-role", "root", "--threshold", "2", "--key", "ann.pem", "--key", "bob.pem")
    kneo("trust", "add-key", "eve.pem", "--principal", "eve", "--role", "release", "--key", "ann.pem")
    draft = parse_envelope((tmp_path / FILE).read_bytes())
    ann = PrivateKey.load((tmp_path / "ann.pem").read_bytes())
    for principal, status in ((name, 1), ("erin", 0)):
        edited = draft.payload.replace(b'"principal":"eve"', f'"principal":"{principal}"'.encode())
        (tmp_path / FILE).write_bytes(serialise(sign(TRUST_ROOT_TYPE, edited, ann)))
        before = (tmp_path / FILE).read_bytes()
        done = kneo("trust", "sign", "--key", "bob.pem")
        assert done.status == status, done.err
        assert ((tmp_path / FILE).read_bytes() == before) == bool(status)


def test_a_draft_is_changed_in_place(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    kneo("trust", "add-key", "bob.pem", "--principal", "bob", "--role", "root", "--key", "ann.pem")
    kneo("trust", "set-role", "root", "--threshold", "2", "--key", "ann.pem", "--key", "bob.pem")
    kneo("trust", "add-key", "eve.pem", "--principal", "eve", "--role", "release", "--key", "ann.pem")
    again = kneo("trust", "remove-key", keys["eve"][7:20], "--key", "bob.pem", "--key", "ann.pem", "--json")
    assert (again.json["version"], again.json["complete"]) == (4, True)
    assert keys["eve"] not in again.json["keys"]
    assert len(chain(tmp_path)) == 4


def test_whose_signature_counts_for_nothing_does_not_sign(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    before = (tmp_path / FILE).read_bytes()
    for call in (["sign"], ["add-key", "bob.pem", "--principal", "bob", "--role", "release"]):
        refused = kneo("trust", *call, "--key", "eve.pem")
        assert refused.status == 3
        assert keys["eve"] in refused.err
    assert (tmp_path / FILE).read_bytes() == before
    assert not (tmp_path / "environments/roots").exists()


def test_revoking_and_locking_everybody_out(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    refused = kneo("trust", "revoke", keys["ann"], "--reason", "lost", "--key", "ann.pem")
    assert refused.status == 1
    assert show(kneo)["version"] == 1
    kneo("trust", "add-key", "bob.pem", "--principal", "bob", "--role", "root", "--key", "ann.pem")
    since = "2026-11-01T00:00:00Z"
    by = ["--key", "ann.pem", "--key", "bob.pem"]
    revoked = kneo("trust", "revoke", "ann.pem", "--reason", "lost", "--compromised-since", since, *by, "--json")
    assert revoked.status == 0, revoked.err
    assert [(r["keyid"], r["reason"]) for r in revoked.json["revoked"]] == [(keys["ann"], "lost")]
    assert revoked.json["revoked"][0]["compromisedSince"].startswith("2026-11-01")
    assert revoked.json["complete"] is True
    assert "lost" in kneo("trust", "show").out


def test_renewing(kneo: Kneo, keys: dict[str, str]):
    before = show(kneo)
    renewed = kneo("trust", "sign", "--expires", "730d", "--key", "ann.pem", "--json").json
    assert renewed["version"] == 2
    assert renewed["expires"] > before["expires"]
    assert renewed["roles"] == before["roles"]


def test_keys_are_found_by_id_prefix_or_file_and_never_guessed(kneo: Kneo, keys: dict[str, str]):
    for name in ("sha256:", keys["ann"][:12], "no-such-key", keys["bob"]):
        assert kneo("trust", "remove-key", name, "--key", "ann.pem").status == 4


def test_a_new_role_signs_where_it_is_told(kneo: Kneo, keys: dict[str, str]):
    add = ["trust", "add-key", "bob.pem", "--principal", "bob", "--role", "team-a", "--key", "ann.pem", "--json"]
    assert kneo(*add, "--path", "bundles/team-a-*/*").json["roles"]["team-a"]["paths"] == ["bundles/team-a-*/*"]


def test_what_is_no_root(kneo: Kneo, keys: dict[str, str], tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps({"payloadType": "text/plain", "payload": "eA==", "signatures": []}))
    assert kneo("trust", "show").status == 1
    (tmp_path / FILE).write_text("{")
    shown = kneo("trust", "show", "--json")
    assert shown.status == 1
    assert shown.json["error"] == "Malformed"


def test_usage(kneo: Kneo, keys: dict[str, str]):
    assert kneo("trust", "set-role", "release", "--key", "ann.pem").status == 2
    assert kneo("trust", "sign").status == 2
    assert kneo("trust", "sign", "--expires", "soon", "--key", "ann.pem").status == 1


def test_a_change_names_the_files_to_commit_and_a_missing_one_is_named(
    kneo: Kneo, keys: dict[str, str], tmp_path: Path
):
    pin = show(kneo)["digest"]
    add = ["trust", "add-key", "bob.pem", "--principal", "bob", "--role", "release", "--key", "ann.pem"]
    earlier = tmp_path / "environments/roots/1.json"
    assert kneo(*add, "--json").json["commit"] == [str(tmp_path / FILE), str(earlier)]
    told = kneo("trust", "sign", "--expires", "30d", "--key", "ann.pem")
    assert f"Commit together: {tmp_path / FILE} {tmp_path / 'environments/roots/2.json'}" in told.out
    envelopes, now = chain(tmp_path), SystemClock().now()
    with pytest.raises(Untrusted) as refused:
        verify_chain(pin, envelopes[2:], now)
    assert "environments/roots/1.json and no environments/roots/2.json" in refused.value.message
    assert "do not pin another root" in (refused.value.hint or "")
    with pytest.raises(Untrusted) as refused:
        verify_chain(pin, [envelopes[0], envelopes[2]], now)
    assert "environments/roots/2.json" in (refused.value.hint or "")


def test_since_when_a_key_was_compromised_is_shown(kneo: Kneo, keys: dict[str, str]):
    add = ["trust", "add-key", "bob.pem", "--principal", "bob", "--role", "release", "--key", "ann.pem"]
    assert kneo(*add).status == 0
    revoke = ["trust", "revoke", "bob.pem", "--reason", "stolen", "--compromised-since", "2026-01-02T03:04:05Z"]
    assert kneo(*revoke, "--key", "ann.pem").status == 0
    assert "(compromised since 2026-01-02T03:04:05" in kneo("trust", "show").out
