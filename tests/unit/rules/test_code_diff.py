"""The changes of a bundle's code, as people review them."""

from kneo.spec.code import BundleCode
from kneo.spec.diff import Danger, compare_specs
from kneo.spec.diff.code import CODE

SPEC = {"version": "v1", "agent": {"name": "a", "model": {"provider": "dummy", "name": "dummy"}}}
OLD = BundleCode({"a.py": b"x = 1\ny = 2\n", "gone.py": b"", "logo.png": b"\xff\x00"}, {"httpx": "0.28.0", "yaml": "6"})
NEW = BundleCode({"a.py": b"x = 1\ny = 3\n", "new.py": b"z = 1\n", "logo.png": b"\xff\x01"}, {"httpx": "0.28.1"})


def test_each_file_has_its_whole_difference_and_is_never_minor() -> None:
    found = {each.path: each for each in compare_specs(SPEC, SPEC, code=(OLD, NEW)).changes if each.path != CODE}
    assert list(found["code.a.py"].lines[1:]) == [" x = 1", "-y = 2", "+y = 3", " "]
    assert found["code.new.py"].message == "The file new.py is new (6 bytes)."
    assert "+z = 1" in found["code.new.py"].lines
    assert "is removed" in found["code.gone.py"].message
    assert found["code.logo.png"].danger is Danger.HIGH
    assert "sha256:" in found["code.logo.png"].message
    assert all(each.danger >= Danger.MEDIUM for each in found.values())


def test_packages_are_named_with_their_versions() -> None:
    text = compare_specs(SPEC, SPEC, code=(OLD, NEW)).to_text()
    assert "The package httpx changes from 0.28.0 to 0.28.1." in text
    assert "The package yaml is not used any more." in text


def test_a_cut_file_is_to_check_and_names_the_command() -> None:
    long = BundleCode({"a.py": b"".join(b"line %d\n" % number for number in range(100))}, {})
    found = compare_specs(SPEC, SPEC, code=(BundleCode({}, {}), long), command="kneo spec diff --whole A B")
    (change,) = found.changes
    assert change.danger is Danger.HIGH
    assert "more lines: kneo spec diff --whole A B" in found.to_text()
    assert "line 99" in found.to_text(whole=True)
    assert "line 99" in str(found.as_json())


def test_code_that_leaves_the_bundle_is_to_check() -> None:
    (change, *_) = compare_specs(SPEC, SPEC, code=(OLD, None)).changes
    assert (change.danger, change.area) == (Danger.HIGH, CODE)


def test_a_first_version_names_its_files_and_shows_them_on_demand() -> None:
    found = compare_specs(None, SPEC, code=(None, NEW), command="kneo spec diff --whole A")
    assert "3 files, 3 lines, 20 bytes, packages httpx 0.28.1; all of it: kneo spec diff --whole A" in " ".join(
        found.to_text().split()
    )
    assert "+y = 3" not in found.to_text()
    assert "+y = 3" in found.to_text(whole=True)


def test_the_same_code_is_no_change() -> None:
    assert not compare_specs(SPEC, SPEC, code=(OLD, OLD))
