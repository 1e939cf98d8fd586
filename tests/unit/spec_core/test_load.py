import json

import pytest

from kneo.spec.documents import warning
from kneo.spec.modules import RuleContext
from kneo.spec.reading.load import SourceFile, load_spec, load_tree, resolve
from kneo.spec.reading.normalize import normalize

SPEC = b"""\
version: v1
agent:
  name: root
  model: small
  strategy: react
  tools: [search]
  policies: {tool: {allow: [search], deny: [rm], network: true, filesystem: false}}
workflow:
  type: graph
  start: a
  nodes: {a: {id: a, kind: function, ref: f, review: {before: boss, after: true}}}
  edges: [{from: a, to: a, condition: {not: {type: always}}}]
components:
  functions: {f: {implementation: m.f}}
  workflows: {w: [root, {id: r, kind: router, selector: f, choices: [{id: x, kind: steps, steps: [root]}]}]}
  humans: {boss: {timeout: 2d, fields: [{name: n, field_type: int}]}}
"""


def test_everything_short_is_written_out():
    tree = load_spec(SPEC, file="s.yaml").tree
    assert tree["agent"] == {
        "name": "root",
        "model": {"provider": "default", "name": "small"},
        "strategy": {"type": "react"},
        "tools": {
            "include": ["search"],
            "permissions": {
                "allow_network": True,
                "allow_filesystem_read": False,
                "allow_filesystem_write": False,
                "allowed_tools": ["search"],
                "denied_tools": ["rm"],
            },
        },
        "defaults": {},
    }
    assert tree["workflow"]["max_steps"] == 50
    assert tree["workflow"]["nodes"]["a"]["review"] == {"before": {"human": "boss"}, "after": {}}
    assert tree["workflow"]["edges"][0]["condition"] == {"type": "not", "condition": {"type": "always"}}
    router = tree["components"]["workflows"]["w"]["steps"][1]
    assert router["selector"] == {"function": "f"}
    assert router["choices"]["x"]["steps"][0]["steps"] == [{"id": "root", "kind": "agent", "ref": "root"}]
    assert tree["components"]["humans"]["boss"] == {"timeout_seconds": "2d", "fields": [{"name": "n", "type": "int"}]}
    assert normalize(tree) == tree


def test_the_stricter_permission_wins():
    text = b"agent: {name: a, tools: {include: [x], permissions: {allow_shell: false, allow_network: true, allowed_tools: [x, y]}}, "
    text += b"policies: {tool: {shell: true, network: false, allow: [y, z]}}}"
    assert load_spec(text, file="s.yaml").tree["agent"]["tools"]["permissions"] == {
        "allow_shell": False,
        "allow_network": False,
        "allowed_tools": ["y"],
    }


def test_overlays_then_overrides_and_positions_in_the_file_that_counts():
    loaded = load_spec(
        b"agent: {name: a}\nworkflow: {steps: [{id: x, kind: agent, ref: a}]}\n",
        file="base.yaml",
        overlays=[
            SourceFile("prod.yaml", b"\nagent:\n  model: {provider: p, name: n, temperatur: 1}\n"),
            SourceFile("e.yaml", b""),
        ],
        overrides={"agent": {"name": "b"}},
    )
    assert loaded.tree["agent"]["name"] == "b"
    [found] = loaded.diagnostics
    assert (found.file, found.line, found.column) == ("prod.yaml", 3, 33)
    assert found.suggestion == "Did you mean temperature?"
    assert loaded.spec is None


def test_what_cannot_be_read_is_one_finding():
    loaded = load_spec(b"agent: {name: a}", file="s.yaml", overlays=[SourceFile("o.yaml", b"a: [")])
    [found] = loaded.diagnostics
    assert (found.code, found.file, found.line) == ("E_SCHEMA", "o.yaml", 2)
    assert not loaded.valid
    assert load_spec(b"", file="s.yaml").diagnostics[0].message == "A spec is a map, not nothing."
    assert load_spec(b"version: v2", file="s.yaml").diagnostics[0].path_text == "version"


def test_values_without_a_reader_are_bounded_too():
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert "deep" in load_tree({"agent": deep}).diagnostics[0].message
    assert "deep" in load_spec(b"agent: {name: a}", file="s", overrides={"x": deep}).diagnostics[0].message
    assert (
        "keys and values"
        in load_tree({"agent": {"name": "a"}, "metadata": {"x": [0] * 2_000_000}}).diagnostics[0].message
    )


def test_rules_see_the_spec_and_their_findings_get_places():
    def rules(spec, context):
        assert context.environment == "prod"
        return (warning("W_X", spec.agent.name, ("agent", "name")),)

    loaded = load_spec(b"agent:\n  name: a\n", file="s.yaml", rules=rules, context=RuleContext(environment="prod"))
    assert loaded.valid
    assert [(d.code, d.line, d.column) for d in loaded.diagnostics] == [("W_X", 2, 9)]


class Folder:
    """Files in memory."""

    def __init__(self, files):
        self.files = files

    def text(self, path):
        return self.files.get(path)

    def names(self, path):
        inside = [name.removeprefix(path + "/") for name in self.files if name.startswith(path + "/")]
        return tuple(sorted(name for name in inside if "/" not in name)) or None


FILES = Folder(
    {
        "prompts/p.md": "You are kind.\n",
        "skill.md": "Just text.",
        "big/SKILL.md": "---\nname: big\ndescription: From the front matter.\ntools: [search]\n---\n\nDo this.\n",
        "big/skill.yaml": "description: From the file beside it.\n",
        "big/table.csv": "a,b\n",
        "bad/SKILL.md": "---\n[\n---\nx",
    }
)
WITH_FILES = b"""\
agent:
  name: a
  system_prompt: {file: prompts/p.md}
skills: {one: {source: skill.md}, two: {source: big}, own: {content: here}}
"""


def test_files_are_taken_in():
    loaded = load_spec(WITH_FILES, file="s.yaml", files=FILES)
    assert loaded.spec.agent.system_prompt == "You are kind.\n"
    assert loaded.spec.skills["two"].source == "big", "skills are taken in by resolve"
    resolved = resolve(loaded, FILES)
    assert resolved.valid
    assert resolved.tree["skills"] == {
        "one": {"content": "Just text."},
        "two": {
            "description": "From the front matter.",
            "tools": ["search"],
            "content": "Do this.\n",
            "resources": {"table.csv": "a,b\n"},
        },
        "own": {"content": "here"},
    }
    assert resolve(resolved, FILES).tree == resolved.tree


def test_files_that_cannot_be_read_are_findings_with_a_place():
    loaded = load_spec(b"agent:\n  name: a\n  system_prompt: {file: ../x}\n", file="s.yaml", files=FILES)
    assert [(d.code, d.path_text, d.line, d.column) for d in loaded.diagnostics] == [
        ("E_FILE_REF", "agent.system_prompt.file", 3, 25)
    ]
    assert load_spec(b"agent: {name: a, system_prompt: {file: x}}", file="s").diagnostics[0].code == "E_SCHEMA"
    text = b"agent: {name: a}\nskills: {n: {source: nowhere}, b: {source: bad}}\n"
    found = resolve(load_spec(text, file="s.yaml"), FILES).diagnostics
    assert [(d.code, d.path_text) for d in found] == [
        ("E_SKILL_SOURCE", "skills.n.source"),
        ("E_SKILL_SOURCE", "skills.b.source"),
    ]


def test_findings_point_into_short_forms():
    text = b"""\
agent:
  name: a
  tools:
    - one
    - 2
  policies: {tool: {shell: maybe}}
workflow:
  - a
  - {id: x, kind: condition, when: {any_of: [{type: never}, {type: nevr}]}, steps: [a]}
components: {humans: {h: {timeout: soon, fields: [{name: n, field_type: number}]}}}
"""
    found = {d.path_text: (d.line, d.column) for d in load_spec(text, file="s.yaml").diagnostics}
    assert found == {
        "agent.tools.include[1]": (5, 7),
        "agent.tools.permissions.allow_shell": (6, 28),
        "workflow.steps[1].when.conditions[1].type": (9, 68),
        "components.humans.h.timeout_seconds": (10, 36),
        "components.humans.h.fields[0].type": (10, 73),
    }


@pytest.mark.parametrize("kind", [{"agent": 1}, ["agent"], [[]], {}, 7, None, True])
def test_a_kind_of_step_that_is_no_text_is_a_finding_with_a_place(kind):
    step = f"{{id: x, kind: {json.dumps(kind)}, steps: []}}"
    text = f"agent: {{name: root}}\nworkflow:\n  - {step}\n  - {{id: l, kind: loop, steps: [{step}]}}\n"
    loaded = load_spec(text.encode(), file="s.yaml")
    assert not loaded.valid
    assert {(found.line, found.file) for found in loaded.diagnostics} >= {(3, "s.yaml"), (4, "s.yaml")}
