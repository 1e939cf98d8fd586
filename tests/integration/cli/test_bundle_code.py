"""The code of a bundle: what signing collects from a project, and what it refuses."""

import importlib.machinery
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from kneo_process import Machine

from kneo.cli.specs.bundle_code import CollectedCode, collect_code
from kneo.digest import digest_of_json
from kneo.errors import Invalid
from kneo.spec.code import MAX_CODE_BYTES, MAX_FILES, BundleCode, read_code
from kneo.spec.models.spec import Spec
from kneo.trust.keys import PrivateKey

Files = dict[str, str | bytes]

SPEC = {
    "version": "v1",
    "agent": {"name": "a", "model": {"provider": "dummy", "name": "dummy"}},
    "components": {"functions": {"f": {"implementation": "acme.render.invoice"}}},
}


@pytest.fixture
def project(tmp_path: Path) -> Callable[[Files], Path]:
    def write(files: Files) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


def _collect(root: Path, **code: list[str]) -> CollectedCode:
    return collect_code(Spec.model_validate({**SPEC, "code": code}), [root])


def _refused(root: Path, **code: list[str]) -> Invalid:
    with pytest.raises(Invalid) as refused:
        _collect(root, **code)
    return refused.value


PLAIN: Files = {
    "acme/__init__.py": "",
    "acme/render.py": "from acme import money\n\n\ndef invoice(text: str) -> str:\n    from acme.late import shout\n    return shout(text)\n",
    "acme/money.py": "import acme.render\n",
    "acme/late.py": "import yaml\n\n\ndef shout(text):\n    return text.upper()\r\n",
    "acme/unused.py": "",
    "other.py": "",
}


def test_the_code_is_what_the_functions_import_lazily_and_in_cycles_too(project: Callable[[Files], Path]) -> None:
    code = _collect(project(PLAIN)).code
    assert code is not None
    assert list(code.as_json()["files"]) == ["acme/__init__.py", "acme/late.py", "acme/money.py", "acme/render.py"]  # type: ignore[call-overload]
    assert code.files["acme/late.py"].endswith(b"\r\n")
    assert list(code.packages) == ["PyYAML"]
    assert code.digest == digest_of_json(code.as_json())


def test_the_same_tree_has_the_same_code(project: Callable[[Files], Path]) -> None:
    root = project(PLAIN)
    first, second = _collect(root).code, _collect(root).code
    assert first is not None
    assert second is not None
    assert json.dumps(first.as_json()) == json.dumps(second.as_json())


def test_patterns_include_data_and_exclude_modules(project: Callable[[Files], Path]) -> None:
    root = project({**PLAIN, "acme/templates/a.html": "<p>", "acme/logo.bin": b"\xff\x00"})
    code = _collect(root, include=["acme/templates/*.html", "acme/*.bin"], exclude=["acme/money.py"]).code
    assert code is not None
    assert {"acme/templates/a.html", "acme/logo.bin"} < code.files.keys()
    assert "acme/money.py" not in code.files
    assert code.as_json()["files"]["acme/logo.bin"] == {"base64": "/wA="}  # type: ignore[index]


def test_a_spec_without_functions_has_no_code(tmp_path: Path) -> None:
    assert collect_code(Spec.model_validate({**SPEC, "components": {}}), [tmp_path]).code is None


def test_an_import_by_a_computed_name_is_a_warning_with_its_line(project: Callable[[Files], Path]) -> None:
    source = "import importlib\n\n\ndef invoice(text):\n    return importlib.import_module(text)\n"
    (found,) = _collect(project({"acme/render.py": source})).warnings
    assert (found.code, found.file, found.line) == ("W_CODE_DYNAMIC", "acme/render.py", 5)


def test_an_import_by_a_stated_name_is_followed(project: Callable[[Files], Path]) -> None:
    source = "import importlib\nlate = importlib.import_module('acme.late')\n"
    collected = _collect(project({"acme/render.py": source, "acme/late.py": ""}))
    assert collected.code is not None
    assert "acme/late.py" in collected.code.files
    assert not collected.warnings


def test_code_beyond_the_limits_names_the_largest_files(project: Callable[[Files], Path]) -> None:
    large = _refused(project({**PLAIN, "acme/late.py": "#" * (MAX_CODE_BYTES + 1)}))
    assert large.code == "E_CODE_SIZE"
    assert "acme/late.py (524,289 bytes)" in large.message
    with pytest.raises(Invalid, match=f"{MAX_FILES + 1} files"):
        BundleCode({f"f{number}": b"" for number in range(MAX_FILES + 1)}, {})


@pytest.mark.parametrize("pattern", ["../*.py", "/etc/passwd", "acme/../../x"])
def test_patterns_stay_below_the_project(project: Callable[[Files], Path], pattern: str) -> None:
    assert _refused(project(PLAIN), include=[pattern]).code == "E_CODE_OUTSIDE"


@pytest.mark.parametrize("target", ["late.py", "/etc/hostname"])
def test_links_are_refused_inside_the_project_too(project: Callable[[Files], Path], target: str) -> None:
    root = project(PLAIN)
    (root / "acme/linked.py").symlink_to(target)
    assert _refused(root, include=["acme/linked.py"]).code == "E_CODE_OUTSIDE"
    (root / "acme/money.py").unlink()
    (root / "acme/money.py").symlink_to(target)
    assert _refused(root).code == "E_CODE_OUTSIDE"


def test_a_module_elsewhere_is_refused(tmp_path: Path) -> None:
    assert _refused(tmp_path).code == "E_CODE_OUTSIDE"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (".env", "A=b"),
        ("acme/key.pem", ""),
        ("acme/id_rsa", ""),
        ("acme/notes.txt", "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----"),
        ("acme/conf.py", "\nAPI_KEY = 'sk-abcdefghijklmnop1234'\n"),
        ("acme/conf.py", "password = 'hunter2hunter2'\n"),
    ],
)
def test_keys_are_refused(project: Callable[[Files], Path], name: str, content: str) -> None:
    refused = _refused(project({**PLAIN, name: content}), include=[name])
    assert refused.code == "E_CODE_SECRET"
    assert name in refused.message


def test_code_that_names_secrets_is_accepted(project: Callable[[Files], Path]) -> None:
    source = "import os\ntoken = os.environ['CRM_TOKEN']\npassword_field = 'password'\nURL = 'https://sk-static.example/token'\n"
    assert _collect(project({"acme/render.py": source})).code is not None


def test_an_extension_module_is_refused_and_the_way_out_named(project: Callable[[Files], Path]) -> None:
    fast = "acme/late" + importlib.machinery.EXTENSION_SUFFIXES[0]
    refused = _refused(project({**PLAIN, fast: b"\x7fELF"}))
    assert (refused.code, refused.details["file"]) == ("E_CODE_BINARY", fast)
    assert "package" in str(refused.hint)


@pytest.mark.parametrize(
    ("files", "code"),
    [
        ({"../x.py": {"text": ""}}, "E_CODE_OUTSIDE"),
        ({"/x.py": {"text": ""}}, "E_CODE_OUTSIDE"),
        ({"a": {"text": ""}, "a/b.py": {"text": ""}}, "E_CODE_OUTSIDE"),
        ({"x.so": {"base64": "/wA="}}, "E_CODE_BINARY"),
        ({"x.py": {"base64": "/w=="}}, "E_CODE_BINARY"),
        ({"x.py": {"base64": "eA=="}}, "Malformed"),
        ({"x.py": {"text": "", "base64": ""}}, "Malformed"),
        ({"x.py": "x"}, "Malformed"),
        ({"x.py": {"text": "#" * (MAX_CODE_BYTES + 1)}}, "E_CODE_SIZE"),
    ],
)
def test_a_payload_is_held_to_the_same_limits(files: object, code: str) -> None:
    with pytest.raises(Invalid) as refused:
        read_code({"files": files, "packages": {}}, file="bundle")
    assert refused.value.code == code


def _sign(machine: Machine, *options: str, expect: int = 0) -> str:
    root = machine.folder
    command = ["spec", "bundle", "sign", "spec.yaml", "--name", "a", "--version", "1.0.0", "--env", "dev", "--json"]
    paths = ["--approved-by", "ann", "--key", str(root / "keys/ann.pem"), "-o", "a.dsse.json"]
    done = machine.kneo(*command, *paths, *options, expect=expect)
    return done.stdout + done.stderr if expect else done.stdout


def test_signing_adds_the_code_and_show_prints_it(project: Callable[[Files], Path]) -> None:
    root = project({**PLAIN, "spec.yaml": json.dumps(SPEC), "keys/ann.pem": PrivateKey.generate().dump(None)})
    machine = Machine(root, "")
    signed = json.loads(_sign(machine))["code"]
    assert signed["files"] == 4
    shown = machine.json("spec", "bundle", "show", "a.dsse.json", "--code")["code"]
    assert isinstance(shown, dict)
    assert shown["files"]["acme/late.py"]["text"] == PLAIN["acme/late.py"]
    assert shown["digest"] == signed["digest"]
    (root / "acme/money.py").write_text("x = 1\n")
    assert "its code differs" in _sign(machine, expect=5)


def test_no_code_leaves_it_out(project: Callable[[Files], Path]) -> None:
    root = project({**PLAIN, "spec.yaml": json.dumps(SPEC), "keys/ann.pem": PrivateKey.generate().dump(None)})
    assert json.loads(_sign(Machine(root, ""), "--no-code"))["code"] is None
