"""What changes between two specs, wherever they are: files, commits, bundles of both kinds."""

from pathlib import Path

import pytest

from kneo.cli.clone import Clone

BEFORE = """\
agent:
  name: root
  system_prompt: {file: prompts/root.md}
  tools: {include: [search], permissions: {allow_network: true, allowed_domains: [a.example]}}
  skills: [brief]
workflow:
  type: sequential
  steps:
    - {id: ask, kind: human, ref: boss}
    - {id: work, kind: agent, ref: root}
tools: {search: {description: Finds pages., implementation: app.search}}
skills: {brief: {source: skills/brief}}
components: {humans: {boss: {description: May it go on?}}}
"""
AFTER = BEFORE.replace("a.example", "a.example, b.example").replace("    - {id: ask, kind: human, ref: boss}\n", "")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "root.md").write_text("Be kind.\n")
    (tmp_path / "skills" / "brief").mkdir(parents=True)
    (tmp_path / "skills" / "brief" / "SKILL.md").write_text("---\nname: brief\n---\nBe brief.\n")
    (tmp_path / "app.py").write_text("def search(arguments): ...\n")
    (tmp_path / "old.yaml").write_text(BEFORE)
    (tmp_path / "new.yaml").write_text(AFTER)
    return tmp_path


def said(answer) -> list[tuple[str, str]]:
    return [(change["danger"], change["area"]) for change in answer.json["changes"]]


def test_two_files_in_three_shapes(folder, kneo):
    answer = kneo("spec", "diff", "old.yaml", "new.yaml", "--json")
    assert answer.status == 0
    assert (answer.json["from"], answer.json["to"], answer.json["new"]) == ("old.yaml", "new.yaml", False)
    assert ("high", "domains") in said(answer)
    assert any(danger == "high" for danger, area in said(answer) if area in {"gates", "humans", "steps"})
    assert "b.example" in kneo("spec", "diff", "old.yaml", "new.yaml").out
    assert "- " in kneo("spec", "diff", "old.yaml", "new.yaml", "--markdown").out
    assert kneo("spec", "diff", "old.yaml", "old.yaml").out == "no changes\n"


def test_a_file_of_a_commit_is_read_with_what_was_beside_it(folder, kneo):
    clone = Clone.create(folder)
    clone.commit([folder], "Begin", plain=True)
    (folder / "prompts" / "root.md").write_text("Be quick.\n")
    (folder / "skills" / "brief" / "SKILL.md").write_text("---\nname: brief\n---\nBe loud.\n")
    answer = kneo("spec", "diff", "HEAD:old.yaml", "old.yaml", "--json")
    assert said(answer) == [("medium", "prompts"), ("medium", "prompts")]
    lines = [line for change in answer.json["changes"] for line in change["lines"]]
    assert "-Be kind." in lines
    assert "+Be quick." in lines
    assert "+Be loud." in lines
    assert kneo("spec", "diff", "HEAD:old.yaml", "main:old.yaml").out == "no changes\n"
    clone.close()


def test_a_commit_or_a_path_that_is_not_there(folder, kneo):
    assert kneo("spec", "diff", "HEAD:old.yaml", "new.yaml").status == 4
    clone = Clone.create(folder)
    clone.commit([folder / "old.yaml"], "Begin", plain=True)
    for name in ("HEAD:new.yaml", "HEAD~1:old.yaml", "nowhere:old.yaml", "--help:old.yaml", "HEAD:skills"):
        refused = kneo("spec", "diff", "--json", "old.yaml", "--", name) if name[0] == "-" else None
        refused = refused or kneo("spec", "diff", "old.yaml", name, "--json")
        assert refused.status == 4, name
    assert kneo("spec", "diff", "old.yaml", "gone.yaml").status == 4
    clone.close()


def test_bundles_of_both_kinds(folder, kneo, monkeypatch):
    assert kneo("keys", "generate", "--output", "key.pem").status == 0
    sign = ("spec", "bundle", "sign", "old.yaml", "--approved-by", "ann", "--env", "dev")
    out = Path("bundles/desk/1.0.0.dsse.json")
    signed = kneo(*sign, "--key", "key.pem", "--name", "desk", "--version", "1.0.0", "--output", out)
    assert signed.status == 0, signed
    monkeypatch.setenv("KNEO_SERV_SPEC_SIGNING_KEY", "x" * 40)
    assert kneo(*sign, "--output", "old.json").status == 0
    for bundle in (str(out), "old.json"):
        assert kneo("spec", "diff", bundle, "old.yaml").out == "no changes\n"
        answer = kneo("spec", "diff", bundle, "new.yaml", "--json")
        assert ("high", "domains") in said(answer)
    clone = Clone.create(folder)
    clone.commit([folder / "bundles"], "Sign", plain=True)
    assert kneo("spec", "diff", f"HEAD:{out}", "old.yaml").out == "no changes\n"
    clone.close()


def test_a_spec_of_the_wrong_shape_is_named_with_its_line(folder, kneo):
    (folder / "bad.yaml").write_text("agent:\n  nmae: root\n")
    refused = kneo("spec", "diff", "old.yaml", "bad.yaml", "--json")
    assert refused.status == 1
    assert "bad.yaml:" in refused.json["message"]
    assert refused.json["diagnostics"]
    (folder / "list.json").write_text("{broken")
    assert kneo("spec", "diff", "list.json", "old.yaml").status == 1


def test_a_spec_with_findings_can_be_compared(folder, kneo):
    (folder / "loose.yaml").write_text(BEFORE.replace("kind: agent, ref: root", "kind: agent, ref: ghost"))
    assert kneo("spec", "diff", "loose.yaml", "old.yaml").status == 0
