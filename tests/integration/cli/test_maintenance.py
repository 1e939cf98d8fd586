"""``kneo maintenance``, as an operator types it."""

import re
from pathlib import Path

import pytest

SPEC = """
agent: {name: root, model: {provider: dummy, name: dummy}}
workflow: {type: sequential, steps: [{id: ask, kind: human, ref: ann}]}
components: {humans: {ann: {description: "Fine?"}}}
"""


@pytest.fixture(autouse=True)
def database(tmp_path, database_url, monkeypatch):
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", database_url)


def test_a_run_that_waits_survives_its_database(kneo, tmp_path, monkeypatch):
    paused = kneo("run", "spec.yaml", "--input", "x", "--json").json
    copied = kneo("maintenance", "backup", "copy.sqlite", "--json")
    assert copied.status == 0, copied
    refused = kneo("maintenance", "restore", "copy.sqlite", "--json")
    assert (refused.status, refused.json["error"]) == (5, "store_not_empty")

    monkeypatch.setenv("KNEO_SERV_DATABASE_URL", f"sqlite:///{tmp_path}/other.sqlite")
    assert kneo("maintenance", "restore", "copy.sqlite", "--json").json["audit"] == copied.json["audit"]
    assert kneo("maintenance", "restore", "copy.sqlite", "--replace").status == 0
    assert kneo("maintenance", "adopt", "--json").status == 0  # the other database has another service key
    request = paused["metadata"]["pending_human_request"]["request_id"]
    done = kneo("human", "resume", paused["continuation_id"], "--request-id", request, "--approve", "--json")
    assert done.json["status"] == "succeeded"
    assert kneo("maintenance", "vacuum", "--json").json["bytes_after"] > 0
    assert kneo("maintenance", "prune", "--json").json["retention"]["runs"] == 0


def test_the_commands_of_the_upgrade_page_migrate_a_database_once(kneo, tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/operations/upgrade.md").read_text()
    blocks = re.findall(r"^ *```bash\n(.*?)^ *```$", page, re.MULTILINE | re.DOTALL)
    [block] = [each for each in blocks if "kneo maintenance migrate" in each]
    planned, done = [kneo(*line.split()[1:]) for line in block.splitlines()]
    assert (planned.status, "Would migrate the database from empty" in planned.out) == (0, True)
    assert (done.status, "Migrated the database from empty" in done.out) == (0, True)
    assert "nothing to migrate" in kneo("maintenance", "migrate").out
    monkeypatch.setenv("KNEO_SERV_MIGRATE", "never")
    assert kneo("run", "spec.yaml", "--input", "x", "--json").json["status"] == "paused"
