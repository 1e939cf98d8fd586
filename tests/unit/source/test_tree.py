from __future__ import annotations

import pytest

from controller.source.limits import SourceLimits
from controller.source.snapshot import Blob
from controller.source.tree import check_modes, parse_tree
from kneo.errors import Invalid

ID = "a" * 40
LIMITS = SourceLimits()


def entry(path: str, mode: str = "100644", kind: str = "blob", size: str = "7") -> bytes:
    return f"{mode} {kind} {ID} {size:>7}\t{path}".encode() + b"\0"


def refusal(*entries: bytes) -> Invalid:
    with pytest.raises(Invalid) as refused:
        parse_tree(b"".join(entries), LIMITS)
    return refused.value


def test_a_listing_is_read_and_sorted() -> None:
    folder = entry("bundles", "040000", "tree", "-")
    tree = parse_tree(folder + entry("environments/b.yaml") + entry("bundles/a/1.json", size="0"), LIMITS)
    assert dict(tree.files) == {"bundles/a/1.json": Blob(ID, 0), "environments/b.yaml": Blob(ID, 7)}
    assert list(tree.files) == sorted(tree.files)
    assert tree.folders == (ID,)
    assert parse_tree(b"", LIMITS).files == {}


def test_approvals_and_versions_have_their_usual_names() -> None:
    names = (f"bundles/a/1.0.0+build.2.approvals/sha256:{'0' * 64}.dsse.json", "bundles/.gitkeep", "bundles/README.md")
    assert set(parse_tree(b"".join(map(entry, names)), LIMITS).files) == set(names)


@pytest.mark.parametrize(
    "path",
    ["bundles/../x", "bundles/./x", "bundles//x", "/bundles/x", "bundles/x/", "bundles/.git/config", "bundles/.GIT/x",
     "bundles/ä", "bundles/a b", "bundles/a\tb", "bundles/a\nb", "bundles/-x", "other/x", "../bundles/x", "bundles",
     "bundles/" + "d/" * 8 + "x", "bundles/" + "x" * 201, "bundles/a\\b", "bundles/con|x"],
)  # fmt: skip
def test_odd_paths_are_refused(path: str) -> None:
    assert refusal(entry(path)).code == "UnsafeTree"


@pytest.mark.parametrize(
    ("mode", "kind", "word"),
    [("120000", "blob", "symbolic link"), ("160000", "commit", "submodule"), ("100755", "blob", "executable"),
     ("100666", "blob", "100666"), ("040000", "blob", "040000"), ("100644", "tree", "mode")],
)  # fmt: skip
def test_only_plain_files_pass_and_the_message_says_what_it_was(mode: str, kind: str, word: str) -> None:
    refused = refusal(entry("bundles/x", mode, kind))
    assert refused.code == "UnsafeTree"
    assert word in refused.message
    assert refused.details["path"] == "bundles/x"


def test_names_that_are_one_name_elsewhere_are_refused() -> None:
    assert refusal(entry("bundles/a"), entry("bundles/a")).code == "UnsafeTree"
    assert refusal(entry("bundles/a"), entry("bundles/A")).code == "UnsafeTree"
    folder = ("040000", "tree", "-")
    assert refusal(entry("bundles/A", *folder), entry("bundles/a", *folder)).code == "UnsafeTree"


@pytest.mark.parametrize("size", ["-", "BAD", "1048577", "99999999999999999999"])
def test_what_is_too_large_or_missing_is_refused(size: str) -> None:
    assert refusal(entry("bundles/x", size=size)).code == "LimitExceeded"


def test_garbage_is_refused() -> None:
    assert refusal(b"garbage\0").code == "UnsafeTree"


def raw(mode: bytes, name: bytes = b"x") -> bytes:
    return mode + b" " + name + b"\0" + b"\1" * 20


def test_modes_are_checked_as_they_stand() -> None:
    check_modes([raw(b"100644") + raw(b"40000", b"folder"), b""])
    for mode in (b"100664", b"100666", b"0100644", b"040000", b"100755", b"120000", b"160000", b"", b"644"):
        with pytest.raises(Invalid) as refused:
            check_modes([raw(b"100644"), raw(b"100644") + raw(mode)])
        assert refused.value.code == "UnsafeTree"
    with pytest.raises(Invalid):
        check_modes([b"100644 no end"])
