from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import pytest

from kneo.controller.source.git import SourceLimits
from kneo.controller.source.snapshot import Blob, Folder, all_files, our_folders, parse_folder, read_folders
from kneo.errors import Invalid

ID = "a" * 40
LIMITS = SourceLimits()

Nested = Mapping[str, "Nested | str"]


def entry(name: str, mode: str = "100644", oid: str = ID) -> bytes:
    return f"{mode} {name}".encode() + b"\0" + bytes.fromhex(oid)


def refusal(*entries: bytes, path: str = "bundles") -> Invalid:
    with pytest.raises(Invalid) as refused:
        parse_folder(path, b"".join(entries))
    return refused.value


class Objects:
    """A repository in memory that remembers what was asked of it."""

    def __init__(self) -> None:
        self.stored: dict[str, bytes] = {}
        self.read: list[str] = []
        self.sized: list[str] = []
        self._trees: dict[int, tuple[Nested, str]] = {}

    def tree(self, files: Nested) -> str:
        # A folder that stands in many places is written once, as git does; else a small bomb would go off right here.
        if id(files) not in self._trees:
            content = b""
            for name, value in files.items():
                if isinstance(value, str):
                    content += entry(name, oid=self._keep(b"blob " + value.encode()))
                else:
                    content += entry(name, "40000", self.tree(value))
            self._trees[id(files)] = (files, self._keep(content))
        return self._trees[id(files)][1]

    def _keep(self, content: bytes) -> str:
        oid = hashlib.sha1(content).hexdigest()
        self.stored[oid] = content
        return oid

    def trees(self, ids: Sequence[str]) -> list[bytes]:
        self.read += ids
        return [self.stored[oid] for oid in ids]

    def sizes(self, ids: Sequence[str]) -> list[int]:
        self.sized += ids
        return [len(self.stored[oid]) - 5 for oid in ids]


def look(objects: Objects, files: Nested, known: Mapping[str, Folder] | None = None) -> dict[str, Folder]:
    return read_folders({"bundles": objects.tree(files)}, known or {}, objects, LIMITS)


def test_everything_below_a_folder_is_found_and_sorted() -> None:
    objects = Objects()
    found = all_files(
        look(objects, {"b": {"1.json": "one", "1.approvals": {"k.json": "yes"}}, "a": {"1.json": ""}}), LIMITS
    )
    assert {path: blob.size for path, blob in found.items()} == {
        "bundles/a/1.json": 0,
        "bundles/b/1.approvals/k.json": 3,
        "bundles/b/1.json": 3,
    }
    assert list(found) == sorted(found)
    assert all_files({}, LIMITS) == {}


def test_only_folders_that_changed_are_read_again() -> None:
    objects = Objects()
    before: dict[str, dict[str, str]] = {name: {"1.json": name} for name in "abcdef"}
    known = look(objects, before)
    objects.read, objects.sized = [], []
    after = before | {"c": {"1.json": "c", "2.json": "new"}}
    again = look(objects, after, known)
    assert len(objects.read) == 2
    assert len(objects.sized) == 1
    assert set(all_files(again, LIMITS)) - set(all_files(known, LIMITS)) == {"bundles/c/2.json"}
    assert again["bundles"].files == look(Objects(), after)["bundles"].files


def test_a_folder_known_under_another_path_is_judged_anew() -> None:
    objects = Objects()
    deep: Nested = {"d": {"d": {"d": {"d": {"d": {"x": "x"}}}}}}
    known = look(objects, deep)
    assert look(objects, {"d": deep}, known)
    with pytest.raises(Invalid):
        look(objects, {"d": {"d": deep}}, known)


def test_our_folders_are_found_and_others_are_nobodys_business() -> None:
    root = entry("README.md") + entry("bundles", "40000") + entry("link", "120000") + entry("Bundles", "160000")
    assert our_folders(root) == {"bundles": ID}
    assert our_folders(b"") == {}
    for mode, word in (("100644", "folder"), ("120000", "symbolic link"), ("160000", "submodule")):
        with pytest.raises(Invalid) as refused:
            our_folders(entry("environments", mode))
        assert refused.value.code == "UnsafeTree"
        assert word in refused.value.message
    with pytest.raises(Invalid):
        our_folders(entry("bundles", "40000") * 2)


def test_approvals_and_versions_have_their_usual_names() -> None:
    names = (f"sha256:{'0' * 64}.dsse.json", "1.0.0+build.2.dsse.json", ".gitkeep", "README.md")
    assert set(parse_folder("bundles/a", b"".join(map(entry, names))).files) == {f"bundles/a/{name}" for name in names}


@pytest.mark.parametrize(
    "name",
    ["..", ".", "a/b", "a/../../x", ".git", ".GIT", "ä", "a b", "a\tb", "a\nb", "-x", "x" * 201, "a\\b", "con|x"],
)  # fmt: skip
def test_odd_names_are_refused(name: str) -> None:
    assert refusal(entry(name)).code == "UnsafeTree"
    assert refusal(entry(name, "40000")).code == "UnsafeTree"


def test_long_paths_and_deep_folders_are_refused() -> None:
    assert refusal(entry("x"), path="bundles/" + "d" * 199 + "/" + "e" * 199).code == "UnsafeTree"
    assert refusal(entry("x"), path="bundles" + "/d" * 7).code == "UnsafeTree"
    assert parse_folder("bundles" + "/d" * 6, entry("x")).files


@pytest.mark.parametrize(
    ("mode", "word"),
    [("120000", "symbolic link"), ("160000", "submodule"), ("100755", "executable"), ("100666", "100666"),
     ("100664", "100664"), ("0100644", "0100644"), ("040000", "040000"), ("644", "644")],
)  # fmt: skip
def test_only_plain_files_pass_and_the_message_says_what_it_was(mode: str, word: str) -> None:
    refused = refusal(entry("good"), entry("x", mode))
    assert refused.code == "UnsafeTree"
    assert word in refused.message
    assert refused.details["path"] == "bundles/x"


def test_names_that_are_one_name_elsewhere_are_refused() -> None:
    assert "twice" in refusal(entry("a"), entry("a")).message
    assert "twice" in refusal(entry("a"), entry("a", "40000")).message
    assert "case" in refusal(entry("a"), entry("A")).message
    assert "case" in refusal(entry("A", "40000"), entry("a", "40000")).message


def test_what_is_too_large_is_refused_and_named() -> None:
    with pytest.raises(Invalid) as refused:
        look(Objects(), {"a": {"1.json": "x" * (LIMITS.blob_bytes + 1)}})
    assert refused.value.code == "LimitExceeded"
    assert "bundles/a/1.json" in refused.value.message
    assert look(Objects(), {"a": {"1.json": "x" * LIMITS.blob_bytes}})["bundles"].files == {
        "bundles/a/1.json": Blob(hashlib.sha1(b"blob " + b"x" * LIMITS.blob_bytes).hexdigest(), LIMITS.blob_bytes)
    }


def test_folders_that_multiply_are_refused_before_they_are_read() -> None:
    objects = Objects()
    bomb: Nested = {f"{number}": "x" for number in range(30)}
    for _ in range(4):
        bomb = {f"{number}": bomb for number in range(30)}
    with pytest.raises(Invalid) as refused:
        look(objects, bomb)
    assert refused.value.code == "LimitExceeded"
    assert len(objects.read) < LIMITS.files


@pytest.mark.parametrize(
    "content", [b"garbage", b"100644 x", b"100644 x\0short", b" x\0" + b"\1" * 20, b"abc x\0" + b"\1" * 20]
)
def test_garbage_is_refused(content: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        parse_folder("bundles", entry("good") + content)
    assert refused.value.code == "UnsafeTree"
