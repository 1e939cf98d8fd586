import subprocess
from pathlib import Path

import pytest

from kneo.cli.clone import Clone
from kneo.errors import Invalid, NotFound


@pytest.fixture(autouse=True)
def _no_identity(monkeypatch: pytest.MonkeyPatch, home: Path):
    """A machine where git was never set up."""
    for name in ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path):
    made = Clone.create(tmp_path / "config")
    yield made
    made.close()


def test_first_commit_on_main_without_any_identity(clone: Clone, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "user.useConfigOnly")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    (clone.root / "a").write_text("1")
    assert clone.head() is None
    commit = clone.commit([clone.root / "a"], "Begin", plain=True)
    assert commit == clone.head() == git(clone.root, "rev-parse", "main")
    assert git(clone.root, "log", "-1", "--format=%an %ae %s") == "kneo kneo@localhost Begin"
    assert clone.branch() == "main"


def test_the_operators_identity_counts(clone: Clone):
    git(clone.root, "config", "user.name", "Ann")
    git(clone.root, "config", "user.email", "ann@example.com")
    (clone.root / "a").write_text("1")
    clone.commit([clone.root / "a"], "Begin")
    assert git(clone.root, "log", "-1", "--format=%an %ae") == "Ann ann@example.com"


def test_only_named_files_are_committed(clone: Clone):
    for name in ("a", "b"):
        (clone.root / name).write_text("1")
    git(clone.root, "add", "b")
    clone.commit([clone.root / "a"], "Begin")
    assert git(clone.root, "ls-tree", "--name-only", "HEAD") == "a"
    with pytest.raises(Invalid):
        clone.commit([clone.root / "a"], "Nothing new")


def test_dirty(clone: Clone):
    path = clone.root / "a"
    path.write_text("1")
    assert clone.is_dirty(path), "a new file counts when it is asked for"
    assert not clone.is_dirty()
    clone.commit([path], "Begin")
    assert not clone.is_dirty(path)
    path.write_text("2")
    assert clone.is_dirty(path)
    assert clone.is_dirty()
    assert not clone.is_dirty(clone.root / "other")


def test_found_from_a_folder_below_and_nowhere_else(clone: Clone, tmp_path: Path):
    below = clone.root / "x" / "y"
    below.mkdir(parents=True)
    found = Clone.find(below)
    assert found.root == clone.root
    found.close()
    with pytest.raises(NotFound):
        Clone.find(tmp_path)
    git(tmp_path, "init", "--bare", "--quiet", "bare.git")
    with pytest.raises(Invalid):
        Clone.find(tmp_path / "bare.git")


def test_a_calling_hooks_variables_do_not_lead_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    git(tmp_path, "init", "--quiet", "outer")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "outer" / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "outer" / ".git" / "index"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path / "outer"))
    made = Clone.create(tmp_path / "inner")
    (made.root / "a").write_text("1")
    made.commit([made.root / "a"], "Begin")
    assert made.root == tmp_path / "inner"
    assert git(tmp_path / "inner", "ls-tree", "--name-only", "HEAD") == "a"
    assert git(tmp_path / "outer", "status", "--porcelain") == ""
    made.close()


def test_branches_and_pushing(clone: Clone, tmp_path: Path):
    git(tmp_path, "init", "--bare", "--quiet", "hub.git")
    (clone.root / "a").write_text("1")
    clone.commit([clone.root / "a"], "Begin")
    clone.switch("promote-x")
    assert clone.branch() == "promote-x"
    assert clone.origin() is None
    git(clone.root, "remote", "add", "origin", str(tmp_path / "hub.git"))
    clone.push("promote-x")
    assert git(tmp_path / "hub.git", "rev-parse", "promote-x") == clone.head()
    clone.switch("main")
    assert clone.branch() == "main"


def test_credentials_never_leave_the_address(clone: Clone):
    git(clone.root, "remote", "add", "origin", "https://ann:token@git.example.com/team/config.git")
    assert clone.origin() == "https://git.example.com/team/config.git"
