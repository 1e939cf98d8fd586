"""Whole answers of the commands about specs: what the newest published tool says, ours says too; it may say more."""

import json

import pytest
from conformance.spec.corpus import COMMANDS, HERE, lay_out, read_case, without_sentences
from conformance.spec.test_against_published import ONLY_OURS

from kneo.cli.main import run

RECORDED = json.loads((HERE / "recorded" / "commands.json").read_text())


def missing(theirs, ours, path=""):
    """Yield where ours does not say what theirs does."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key, value in theirs.items():
            inner = f"{path}.{key}" if path else key
            if key in ours:
                yield from missing(value, ours[key], inner)
            else:
                yield f"{inner} is missing"
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for one, other in zip(theirs, ours, strict=True):
            yield from missing(one, other, f"{path}[]")
    elif theirs != ours:
        yield f"{path}: {theirs!r} there, {ours!r} here"


def ours_only(value):
    """Yield the findings whose codes are only ours."""
    if isinstance(value, dict):
        if value.get("code") in ONLY_OURS:
            yield value
        value = list(value.values())
    for each in value if isinstance(value, list) else ():
        yield from ours_only(each)


def without_ours(value, found):
    """Leave these findings out, and out of what is counted."""
    if isinstance(value, dict):
        counted = {"warning_count", "diagnostic_count"}
        number = len({(each["code"], each["path"]) for each in found})
        return {key: inner - number if key in counted else without_ours(inner, found) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_ours(each, found) for each in value if each not in found]
    return value


@pytest.mark.parametrize(("verb", "name"), [(verb, name) for verb, names in COMMANDS.items() for name in names])
def test_ours_says_all_that_theirs_says(verb, name, tmp_path, monkeypatch, capsys):
    case = read_case(HERE / "cases" / f"{name}.yaml")
    kept = RECORDED[f"{verb} {name}"]
    assert kept["digest"] == case.digest, "record it again"
    lay_out(case, tmp_path)
    monkeypatch.chdir(tmp_path)
    for variable in ("KNEO_ENV", "KNEO_PROJECT_CONFIG", "KNEO_SERV_IMPORT_ALLOW"):
        monkeypatch.delenv(variable, raising=False)
    status = run(["spec", verb, case.file, "--json"])
    ours = without_sentences(json.loads(capsys.readouterr().out))
    found = list(ours_only(ours))
    differ = ["clean: True there, False here"] if verb == "lint" and kept["answer"].get("clean") and found else []
    assert list(missing(kept["answer"], without_ours(ours, found))) == differ
    assert status == (1 if differ else kept["status"])
