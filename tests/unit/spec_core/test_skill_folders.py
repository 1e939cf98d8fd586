"""Folders of skills: ``SKILL.md`` with its resources, as other tools write them."""

from __future__ import annotations

from pathlib import Path

from kneo.project.files import SpecFiles
from kneo.spec.reading.inline import MAX_SKILL_DEPTH, MAX_SKILL_FILES, Inlined, inline_skills


def inlined(folder: Path) -> Inlined:
    return inline_skills({"skills": {"refunds": {"source": "refunds"}}}, SpecFiles(folder, folder))


def write(folder: Path, **files: str | bytes) -> None:
    for name, content in files.items():
        path = folder / "refunds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


FRONT = "---\r\nname: refunds\r\ndescription: How to refund.\r\nlicense: MIT\r\nallowed-tools: Bash(rm:*)\r\n---\r\n"


def test_a_folder_is_taken_in_with_the_folders_inside_it(tmp_path: Path) -> None:
    write(tmp_path, **{"SKILL.md": f"{FRONT}\r\nCheck first.\r\n", "references/law.md": "Law.", "scripts/x.py": "1"})
    found = inlined(tmp_path)
    assert found.findings == ()
    assert found.tree["skills"] == {
        "refunds": {
            "description": "How to refund.",
            "content": "Check first.\n",
            "resources": {"references/law.md": "Law.", "scripts/x.py": "1"},
        }
    }


def test_files_that_are_no_text_are_left_out_and_reported(tmp_path: Path) -> None:
    write(tmp_path, **{"SKILL.md": "Be brief.", "assets/logo.png": b"\x89PNG\0", "a.md": "a"})
    found = inlined(tmp_path)
    assert [finding.code for finding in found.findings] == ["W_SKILL_RESOURCE"]
    assert "refunds/assets/logo.png" in found.findings[0].message
    assert found.tree["skills"]["refunds"]["resources"] == {"a.md": "a"}


def test_hidden_files_links_to_elsewhere_and_deep_folders_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "secret").write_text("secret")
    deep = "/".join("abcdefgh"[: MAX_SKILL_DEPTH + 1])
    write(tmp_path / "project", **{"SKILL.md": "Be brief.", ".git/config": "x", "a/.env": "x", f"{deep}/deep.md": "x"})
    (tmp_path / "project" / "refunds" / "link.md").symlink_to(tmp_path / "secret")
    (tmp_path / "project" / "refunds" / "folder").symlink_to(tmp_path)
    found = inlined(tmp_path / "project")
    assert "resources" not in found.tree["skills"]["refunds"]
    assert [finding.message.split(" ")[0] for finding in found.findings] == ["refunds/link.md"]


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, **{"SKILL.md": "Be brief.", **{f"more/{n}.md": "x" for n in range(MAX_SKILL_FILES)}})
    found = inlined(tmp_path)
    assert [finding.code for finding in found.findings] == ["E_SKILL_SOURCE"]
