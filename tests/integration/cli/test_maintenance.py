"""``kneo maintenance``, as an operator types it."""

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
    request = paused["metadata"]["pending_human_request"]["request_id"]
    done = kneo("human", "resume", paused["continuation_id"], "--request-id", request, "--approve", "--json")
    assert done.json["status"] == "succeeded"
    assert kneo("maintenance", "vacuum", "--json").json["bytes_after"] > 0
    assert kneo("maintenance", "prune", "--json").json["retention"]["runs"] == 0
