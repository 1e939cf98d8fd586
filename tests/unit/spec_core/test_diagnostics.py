from kneo.spec.documents import (
    Severity,
    Unreadable,
    as_github,
    as_sarif,
    as_text,
    error,
    format_path,
    has_errors,
    locate,
    unreadable,
    warning,
)
from kneo.spec.reading.reader import read_json, read_yaml

BASE = read_yaml(b"workflow:\n  steps:\n    - {id: a, ref: x}\n", file="spec.yaml")
OVERLAY = read_yaml(b"workflow:\n  name: other\n", file="prod.yaml")
PATH = ("workflow", "steps", 0, "ref")


def test_a_path_reads_as_people_write_it():
    assert format_path(PATH) == "workflow.steps[0].ref"
    assert format_path(()) == ""


def test_the_last_file_that_says_it_is_the_place():
    found = locate(error("E_X", "m", PATH), [BASE, OVERLAY])
    assert (found.file, found.line, found.column) == ("spec.yaml", 3, 20)
    found = locate(error("E_X", "m", ("workflow", "name")), [BASE, OVERLAY])
    assert (found.file, found.line, found.column) == ("prod.yaml", 2, 9)
    assert locate(found, [BASE]) is found


def test_json_form_is_the_published_shape_and_the_position():
    found = locate(error("E_TOOL_REF", "m", PATH, suggestion="s", aliases=("E_UNKNOWN_TOOL",)), [BASE])
    assert found.as_json() == {
        "code": "E_TOOL_REF",
        "severity": "error",
        "message": "m",
        "path": "workflow.steps[0].ref",
        "suggestion": "s",
        "file": "spec.yaml",
        "line": 3,
        "column": 20,
        "aliases": ["E_UNKNOWN_TOOL"],
    }
    assert "aliases" not in warning("W_X", "m").as_json()


def test_text_shows_the_line_with_a_caret():
    found = locate(error("E_X", "This is wrong.", PATH, suggestion="Do that."), [BASE])
    assert as_text(found, {"spec.yaml": BASE.text}).splitlines() == [
        "spec.yaml:3:20: error E_X: This is wrong.",
        "    3 |     - {id: a, ref: x}",
        "      |                    ^",
        "    at workflow.steps[0].ref",
        "    → Do that.",
    ]
    assert as_text(warning("W_X", "m"), {}) == "warning W_X: m"


def test_text_shows_nothing_that_could_drive_a_terminal():
    hostile = read_json(b'{"a": "\xc2\x9b31m\xe2\x80\xae"}', file="f")
    shown = as_text(locate(error("E_X", "m", ("a",)), [hostile]), {"f": hostile.text})
    assert "\x9b" not in shown
    assert "\u202e" not in shown


def test_github_annotations_escape_what_the_format_uses():
    found = locate(warning("W_X", "100%\nnext", PATH), [read_yaml(BASE.text.encode(), file="a,b:c.yaml")])
    expected = "::warning file=a%2Cb%3Ac.yaml,line=3,col=20,title=W_X::100%25%0Anext (at workflow.steps[0].ref)\n"
    assert as_github([found]) == expected


def test_sarif_names_each_rule_once():
    one, two = (locate(error("E_X", "m", PATH), [BASE]) for _ in range(2))
    run = as_sarif([one, two, warning("W_Y", "w")], tool_version="1")["runs"][0]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["E_X", "W_Y"]
    assert run["results"][0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 20}
    assert run["results"][2]["locations"] == []
    assert run["results"][2]["level"] == "warning"


def test_a_refusal_to_read_is_a_finding_in_the_same_place():
    found = unreadable(Unreadable("Not this.", file="f", line=2, column=3, hint="That."))
    assert (found.severity, found.file, found.line, found.column) == (Severity.ERROR, "f", 2, 3)
    assert (found.message, found.suggestion) == ("Not this.", "That.")
    assert has_errors([warning("W_X", "m"), found])
    assert not has_errors([warning("W_X", "m")])
