"""Every key of the language, the positions of gates, and what a mistake is told."""

import pytest

from kneo.spec.lint import check
from kneo.spec.models.spec import Spec
from kneo.spec.models.workflow import ConditionStep, LeafStep, LoopStep, RouterStep
from kneo.spec.reading.load import load_spec
from kneo.spec.reading.reader import read_yaml
from kneo.spec.reading.validate import check_model

AGENT = "agent: {name: a}\n"


def spec(text, head=AGENT):
    document = read_yaml((head + text).encode(), file="f.yaml")
    checked = check_model(Spec, document.value, [document])
    assert isinstance(checked, Spec), checked
    return checked


def finding(text, head=AGENT):
    document = read_yaml((head + text).encode(), file="f.yaml")
    checked = check_model(Spec, document.value, [document])
    assert isinstance(checked, tuple), "nothing was found"
    return checked[0]


EVERY_KEY = """\
version: v1
metadata: {team: x}
agent:
  name: root
  description: d
  system_prompt: p
  model:
    {provider: openai, name: m, temperature: 1, max_tokens: 5, timeout_seconds: 6, token_budget: 7, extra: {base_url: u}}
  strategy: {type: plan-act, max_iterations: 3, stop_on_tool_error: true, parallel_tool_calls: false}
  runtime_preferences:
    preferred_mode: bridge
    fallback_mode: native
    allowed_modes: [bridge, native, adapter]
    native_provider: openai
    adapter_ref: x
    bridge_provider: y
  history: {max: 3}
  memory:
    policy: sliding_window
    max_messages: 4
    preserve_system_messages: true
    summarizer: {ref: s}
    retriever: {ref: r}
    top_k: 5
  guardrails:
    input: [{id: i, type: keyword, mode: middleware, action: block, target: t, config: {keywords: [x]}}]
    output: [{id: o, type: regex, config: {patterns: [x]}}]
    tool: [{id: t, type: function, ref: f}]
    workflow: [{id: w, type: agent, ref: a, action: redact}]
  tools:
    include: [t]
    exclude: [u]
    permissions:
      allow_network: true
      allow_filesystem_read: false
      allow_filesystem_write: null
      allow_shell: false
      allowed_domains: [example.org]
      denied_domains: [example.com]
      allowed_tools: [t]
      denied_tools: [u]
  skills: [s]
  middleware: [m]
  defaults: {append_mode: auto}
  as_agent: w
  policies: {tool: {allow: [t], deny: [], network: false, filesystem: false, shell: false}}
workflow:
  type: graph
  name: n
  description: d
  start: a
  max_steps: 7
  nodes:
    a:
      id: a
      kind: function
      ref: f
      enabled: true
      on_error: fallback
      fallback_ref: b
      max_retries: 2
      timeout_seconds: 5
      save_as: v
      review: {before: true, after: editors, error: {options: [retry, skip, stop]}}
    b: {id: b, kind: human, ref: h}
  edges:
    - {from: a, to: b, label: l, condition: {type: not, condition: {type: variable_equals, key: v, value: 1}}}
    - {from: b, to: a, condition: {any_of: [{type: output_contains, value: x, case_sensitive: true}]}}
components:
  agents: {c: {name: c, model: short, strategy: react, tools: [t]}}
  workflows:
    concurrent: {type: concurrent, participants: [{id: x, kind: agent, ref: c}], max_iterations: 3}
    handoff:
      {type: handoff, participants: [c], selector: {type: round_robin, sequence: [c]}, max_iterations: 3}
    chat: {type: group_chat, participants: [c], rounds: 2, max_iterations: 3}
    row: {type: sequential, steps: [c, {id: g, kind: guardrail, ref: c}, {id: w, kind: workflow, ref: chat}]}
    list: [c]
  functions:
    f: {implementation: m.f, description: d, input_schema: {type: string}, output_schema: {}, capabilities: [network]}
  humans:
    h:
      description: d
      assignee: ann@example.org
      timeout_seconds: 86400
      on_timeout: escalate
      request_type: selection
      options: [a, b]
      default_option: a
      context: {k: v}
      response_role: user
tools:
  t: {description: d, parameters: {type: object}, implementation: m.t, capabilities: [shell], always_ask: true}
  m: {description: d, mcp: {server: s, name: n}, review: {before: {human: ops, decisions: [approved, edited]}}}
  a: {description: d, agent: c, review: {external: {human: dba}}}
skills: {s: {source: ./s, description: d}}
policies: {project_defaults: {}}
mcp_servers:
  stdio: {transport: stdio, command: c, args: [a], env: {K: v}, cwd: /}
  http: {transport: http, url: "https://example.org", headers: {h: v}, timeout: 3, max_response_bytes: 9, verify: false}
  sse:
    transport: sse
    sse_url: u
    message_url: u
    sse_read_timeout: 3.5
    ca_bundle: c
    client_cert: c
    client_key: k
    client_key_ref: R
"""


def test_every_key_is_read():
    whole = spec(EVERY_KEY, head="")
    assert whole.agent.tools.permissions.allow_filesystem_write is None
    assert whole.workflow.nodes["a"].review.after.human == "editors"
    assert whole.components.workflows["list"].steps[0].ref == "c"
    assert whole.components.workflows["chat"].type == "group-chat"
    assert whole.workflow.edges[1].condition.conditions[0].case_sensitive


def test_containers():
    steps = spec("""\
workflow:
  - {id: s, kind: steps, steps: [{id: x, kind: function, ref: f}]}
  - {id: p, kind: parallel, steps: [{id: y, kind: function, ref: f}], save_as: both}
  - {id: c, kind: condition, when: {type: always}, steps: [x], else: [y], review: {before: {on_reject: else}}}
  - {id: l, kind: loop, steps: [x], until: {type: output_contains, value: ok}, review: {each: {on_reject: retry}}}
  - id: r
    kind: router
    selector: [{when: {type: always}, choice: quick}]
    choices: {quick: {description: d, steps: [x]}}
    review: {route: {prompt: Which way?, multiple: false}}
  - {id: named, kind: router, selector: pick, choices: [{id: deep, description: d, kind: function, ref: f}]}
""").workflow.steps
    assert isinstance(steps[2], ConditionStep)
    assert steps[2].otherwise[0].ref == "y"
    assert isinstance(steps[3], LoopStep)
    assert steps[3].max_iterations == 10
    assert isinstance(steps[4], RouterStep)
    assert steps[4].selector.conditions[0].choice == "quick"
    assert steps[5].selector.function == "pick"
    assert steps[5].choices["deep"].description == "d"
    assert isinstance(steps[5].choices["deep"].steps[0], LeafStep)


def test_times_are_seconds_however_they_are_written():
    human = spec("components: {humans: {h: {timeout: 2d, remind: [1h, 30], due: 8h}}}").components.humans["h"]
    assert (human.timeout_seconds, human.remind, human.due) == (172_800, (3600, 30), 28_800)


@pytest.mark.parametrize("value", ["0", "-1", "0s", "'0h'"])
@pytest.mark.parametrize(
    "place",
    [
        "components: {humans: {h: {timeout_seconds: VALUE, on_timeout: reject}}}",
        "components: {humans: {h: {due: VALUE}}}",
        "components: {humans: {h: {remind: [1h, VALUE]}}}",
        "components: {humans: {h: {escalate: [{after: VALUE, to: ann}]}}}",
        "workflow: [{id: a, kind: agent, ref: root, timeout_seconds: VALUE}]",
        "workflow: [{id: a, kind: agent, ref: root, review: {before: {timeout: VALUE}}}]",
        "agent: {name: root, model: {provider: dummy, name: dummy, timeout_seconds: VALUE}}",
    ],
)
def test_a_time_of_nothing_or_less_is_refused(place: str, value: str):
    whole = place if place.startswith("agent") else f"agent: {{name: root}}\n{place}"
    loaded = load_spec(whole.replace("VALUE", value).encode(), file="s.yaml", rules=check)
    assert [found.code for found in loaded.diagnostics if found.severity == "error"] == ["E_SCHEMA"]


def test_the_least_times_are_taken():
    human = spec("components: {humans: {h: {timeout: 1, due: 1s, remind: [1]}}}").components.humans["h"]
    assert (human.timeout_seconds, human.due, human.remind) == (1, 1, (1,))


@pytest.mark.parametrize(
    ("text", "code", "path", "place", "words"),
    [
        ("agents: {}", "E_SCHEMA", "agents", (2, 1), "Did you mean agent?"),
        ("tools: {t: {}}", "E_SCHEMA", "tools.t.description", (2, 12), "required"),
        ("tools: {t: {description: 5}}", "E_SCHEMA", "tools.t.description", (2, 26), "text, not a number"),
        ("workflow: {type: seq, steps: []}", "E_SCHEMA", "workflow.type", (2, 18), "sequential"),
        ("workflow: {name: x}", "E_SCHEMA", "workflow.type", (2, 11), "type is required"),
        ("workflow: [{id: a, kind: agnt, ref: x}]", "E_SCHEMA", "workflow.steps[0].kind", (2, 11), "mean agent?"),
        ("workflow: {steps: [3]}", "E_SCHEMA", "workflow.steps[0]", (2, 20), "steps[0] must be a map"),
        ("workflow: {steps: [{id: a, kind: agent}]}", "E_SCHEMA", "workflow.steps[0].ref", (2, 20), "required"),
        (
            "workflow: {steps: [{id: a, kind: agent, ref: x, review: {before: {human: {promt: x}}}}]}",
            "E_SCHEMA", "workflow.steps[0].review.before.human.promt", (2, 75), "Did you mean prompt?",
        ),
        (
            "workflow: {steps: [{id: a, kind: human, ref: x, review: {before: true}}]}",
            "E_REVIEW_POSITION", "workflow.steps[0].review.before", (2, 66), "question itself",
        ),
        (
            "workflow: {steps: [{id: a, kind: agent, ref: x, review: {each: true}}]}",
            "E_REVIEW_POSITION", "workflow.steps[0].review.each", (2, 64), "before, after, error",
        ),
        (
            "workflow: {steps: [{id: a, kind: agent, ref: x, review: {}}]}",
            "E_REVIEW_EMPTY", "workflow.steps[0].review", (2, 57), "no position",
        ),
        (
            "workflow: {steps: [{id: a, kind: agent, ref: x, review: {before: {on_reject: retry}}}]}",
            "E_REVIEW_REJECT", "workflow.steps[0].review.before.on_reject", (2, 78), "would run what was rejected",
        ),
        (
            "workflow: {steps: [{id: a, kind: agent, ref: x, review: {after: {on_reject: else}}}]}",
            "E_REVIEW_REJECT", "workflow.steps[0].review.after.on_reject", (2, 77), "needs a condition",
        ),
        (
            "workflow: {steps: [{id: r, kind: router, choices: [{id: a, kind: agent, ref: b}, {id: a}]}]}",
            "E_STEP_DUPLICATE_ID", "workflow.steps[0].choices[1].id", (2, 87), "Two choices",
        ),
        ("tools: {t: {description: d, review: {after: true}}}", "E_REVIEW_POSITION", "tools.t.review.after", (2, 45), ""),
        (
            "components: {agents: {b: {name: b, guardrails: {input: [x]}}}}",
            "E_GUARDRAIL_FIELDS", "components.agents.b.guardrails.input[0]", (2, 57), "id and type",
        ),
        ("components: {humans: {h: {on_timeout: no}}}", "E_SCHEMA", "components.humans.h.on_timeout", (2, 39), "escalate"),
        ("components: {humans: {h: {decisions: []}}}", "E_SCHEMA", "components.humans.h.decisions", (2, 38), "at least 1"),
        ("components: {humans: {h: {timeout: 5y}}}", "E_SCHEMA", "components.humans.h.timeout_seconds", (2, 26), "duration"),
        ("skills: {s: {}}", "E_SCHEMA", "skills.s.source", (2, 13), "source"),
        ("components: []", "E_SCHEMA", "components", (2, 13), "must be a map, not a list"),
    ],
)  # fmt: skip
def test_mistakes(text, code, path, place, words):
    found = finding(text)
    assert (found.code, found.path_text, (found.line, found.column)) == (code, path, place)
    assert words in f"{found.message} {found.suggestion}"


def test_a_root_that_is_no_map():
    assert finding("- a\n", head="").message == "the file must be a map, not a list."
    assert finding("agent: x\n", head="").path_text == "agent"


def test_findings_are_bounded():
    document = read_yaml(b"agent: {name: a}\n" + b"".join(b"k%d: 1\n" % n for n in range(5000)), file="f")
    assert len(check_model(Spec, document.value, [document])) == 50


def test_a_spec_does_not_change():
    with pytest.raises(Exception, match="frozen"):
        spec("").agent.name = "b"
