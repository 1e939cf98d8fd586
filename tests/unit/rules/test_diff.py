"""What an approver reads, change by change."""

import copy
import re

import pytest

from kneo.spec.diff import Danger, diff
from kneo.spec.models.spec import Spec

PLAIN: dict = {
    "agent": {
        "name": "desk",
        "system_prompt": "Be kind.\nBe brief.",
        "model": {"provider": "openai", "name": "small"},
        "tools": {
            "include": ["search"],
            "permissions": {"allow_network": True, "allowed_domains": ["a.example"], "denied_tools": ["pay"]},
        },
        "guardrails": {"input": [{"id": "words", "type": "keyword", "config": {"keywords": ["x"]}}]},
    },
    "workflow": {
        "type": "sequential",
        "steps": [
            {
                "id": "draft",
                "kind": "agent",
                "ref": "desk",
                "review": {"after": {"human": "boss", "on_reject": "stop"}},
            },
            {"id": "approve", "kind": "human", "ref": "boss"},
            {"id": "publish", "kind": "function", "ref": "publish"},
        ],
    },
    "tools": {
        "search": {"description": "Finds pages.", "implementation": "app.search"},
        "fetch": {"description": "Fetches a page.", "http": {"url": "https://a.example"}},
        "paint": {"description": "Paints.", "a2a": {"url": "https://a.example"}},
        "crm": {
            "description": "Finds people.",
            "mcp": {"server": "files", "pin": {"description": "Finds.", "schema_digest": f"sha256:{'0' * 64}"}},
        },
    },
    "components": {
        "functions": {"publish": {"implementation": "app.publish", "capabilities": ["network"]}},
        "humans": {
            "boss": {
                "description": "May it go out?",
                "candidates": {"roles": ["lead"], "exclude": ["requester"]},
                "quorum": {"approvals": 2},
            }
        },
    },
    "mcp_servers": {"files": {"transport": "stdio", "command": "serve-files", "env": {"MODE": "ro"}}},
}

GONE = object()


def changed(path: str, value: object) -> dict:
    """Return the spec with one place changed; numbers are positions in lists."""
    tree = copy.deepcopy(PLAIN)
    *way, last = path.split("/")
    here = tree
    for key in way:
        here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
    key = int(last) if isinstance(here, list) else last
    if value is GONE:
        del here[key]
    elif isinstance(here, list) and key == len(here):
        here.append(value)
    else:
        here[key] = value
    return tree


def changes(old: dict | None, new: dict) -> list[tuple[Danger, str, str]]:
    before = None if old is None else Spec.model_validate(old)
    return [(c.danger, c.area, c.message) for c in diff(before, Spec.model_validate(new)).changes]


PERMISSIONS = "agent/tools/permissions"
BOSS = "components/humans/boss"


@pytest.mark.parametrize(
    ("path", "value", "danger", "area", "message"),
    [
        ("agent/system_prompt", "Be kind.", "MEDIUM", "prompts", "The prompt of the root agent changes."),
        ("agent/model/name", "big", "MEDIUM", "models", "Model.name of the root agent changes from 'small' to 'big'."),
        (
            "agent/model/extra",
            {"base_url": "http://x"},
            "HIGH",
            "models",
            "The address that the root agent sends everything to is 'http://x'.",
        ),
        ("agent/model/extra", {"api_key_ref": "K"}, "MEDIUM", "models", "The model setting api_key_ref of the root agent is 'K'."),
        ("agent/tools/include/1", "pay", "HIGH", "tools", "The root agent gets the tool pay."),
        ("agent/tools/include/0", GONE, "LOW", "tools", "The root agent no longer has the tool search."),
        (PERMISSIONS, GONE, "HIGH", "permissions", "The root agent no longer states what its tools may do."),
        (f"{PERMISSIONS}/allow_shell", True, "HIGH", "permissions", "The tools of the root agent may run shell commands."),
        (f"{PERMISSIONS}/allow_network", False, "LOW", "permissions", "The tools of the root agent may no longer use the network."),
        (f"{PERMISSIONS}/allowed_domains/1", "b.example", "HIGH", "domains", "The tools of the root agent may reach b.example."),
        (
            f"{PERMISSIONS}/allowed_domains",
            [],
            "HIGH",
            "domains",
            "The tools of the root agent may reach any host; a.example was one of those they were held to.",
        ),
        (f"{PERMISSIONS}/denied_tools", [], "HIGH", "permissions", "The tool pay is no longer denied to the root agent."),
        (f"{PERMISSIONS}/allowed_tools", ["search"], "LOW", "permissions", "The tool search may be called by the root agent."),
        ("agent/guardrails/input/0", GONE, "HIGH", "guardrails", "The root agent loses the input guardrail words."),
        ("agent/guardrails/input/0/action", "warn", "HIGH", "guardrails", "Guardrails.input.words.action of the root agent is 'warn'."),
        ("workflow/steps/1", GONE, "HIGH", "gates", "The question approve, which asks boss, is gone."),
        ("workflow/steps/1/enabled", False, "HIGH", "gates", "The question approve is no longer asked."),
        ("workflow/steps/0/review", GONE, "HIGH", "gates", "The question after the step draft is no longer asked."),
        (
            "workflow/steps/0/review/after/on_reject",
            "continue",
            "HIGH",
            "gates",
            "On_reject of the question after the step draft changes from 'stop' to 'continue'.",
        ),
        ("workflow/steps/2/review", {"before": True}, "MEDIUM", "gates", "The question before the step publish is asked from now on: it asks role reviewer."),
        ("workflow/steps/2/ref", "send", "MEDIUM", "steps", "Ref of the step publish changes from 'publish' to 'send'."),
        ("workflow/steps/2/on_error", "continue", "HIGH", "steps", "On_error of the step publish is 'continue'."),
        ("workflow/steps/3", {"id": "end", "kind": "agent", "ref": "desk"}, "MEDIUM", "steps", "The step end is new: 'agent desk'."),
        ("tools/search/implementation", "app.other", "HIGH", "tools", "Implementation of the tool search changes from 'app.search' to 'app.other'."),
        ("tools/search/description", "Finds.", "MEDIUM", "prompts", "The description of the tool search changes."),
        ("tools/crm/description", "Finds everybody.", "MEDIUM", "prompts", "The description of the tool crm changes."),
        ("tools/crm/mcp/pin/description", "Sends.", "HIGH", "prompts", "The server's description of the tool crm changes."),
        ("tools/crm/mcp/pin/schema_digest", f"sha256:{'1' * 64}", "HIGH", "tools", f"The server's schema of the tool crm changes from 'sha256:{'0' * 64}' to 'sha256:{'1' * 64}'."),
        ("tools/crm/mcp/pin", GONE, "HIGH", "tools", "The tool crm is no longer held to what its MCP server says about it."),
        ("tools/search/capabilities", ["shell"], "HIGH", "permissions", "The tool search declares shell."),
        (
            "components/functions/publish/capabilities",
            [],
            "HIGH",
            "permissions",
            "The function publish no longer declares network: its calls need no approval for it.",
        ),
        (f"{BOSS}/candidates/exclude", [], "HIGH", "humans", "requester is no longer excluded from the human boss."),
        (f"{BOSS}/candidates/roles/1", "staff", "HIGH", "humans", "The role staff may now decide at the human boss."),
        (f"{BOSS}/candidates/roles", [], "HIGH", "humans", "The role lead may no longer decide at the human boss."),
        (f"{BOSS}/quorum/approvals", 1, "HIGH", "humans", "Quorum.approvals of the human boss changes from 2 to 1."),
        (f"{BOSS}/quorum/approvals", 3, "LOW", "humans", "Quorum.approvals of the human boss changes from 2 to 3."),
        (f"{BOSS}/receipt", "signed_by_reviewer", "LOW", "humans", "Receipt of the human boss is 'signed_by_reviewer'."),
        (f"{BOSS}/receipt", "none", "HIGH", "humans", "Receipt of the human boss is 'none'."),
        (f"{BOSS}/on_timeout", "approve", "HIGH", "humans", "On_timeout of the human boss is 'approve'."),
        ("mcp_servers/files/command", "serve-all", "HIGH", "mcp", "Command of the MCP server files changes from 'serve-files' to 'serve-all'."),
        ("mcp_servers/files/env/MODE", "rw", "HIGH", "mcp", "Env.MODE of the MCP server files changes; its value may be a secret and is not shown."),
        ("metadata", {"team": "a"}, "LOW", "other", "Metadata is {'team': 'a'}."),
        ("tools/search/effects", False, "HIGH", "tools", "Effects of the tool search is false."),
        ("tools/search/effects", True, "LOW", "tools", "Effects of the tool search is true."),
        ("tools/search/on_interrupted", "repeat", "HIGH", "tools", "On_interrupted of the tool search is 'repeat'."),
        ("tools/search/output", "untrusted", "LOW", "tools", "Output of the tool search is 'untrusted'."),
        ("tools/search/output", "trusted", "HIGH", "tools", "Output of the tool search is 'trusted'."),
        ("tools/search/returns", {"type": "object"}, "MEDIUM", "tools", "Returns of the tool search is {'type': 'object'}."),
        ("tools/search/timeout_seconds", 5, "MEDIUM", "tools", "Timeout_seconds of the tool search is 5."),
        ("tools/fetch/http/url", "https://b.example", "HIGH", "tools", "Http.url of the tool fetch changes from 'https://a.example' to 'https://b.example'."),
        ("tools/paint/a2a/url", "https://b.example", "HIGH", "tools", "A2a.url of the tool paint changes from 'https://a.example' to 'https://b.example'."),
        ("tools/fetch/http/body", {"a": 1}, "HIGH", "tools", "Http.body of the tool fetch is {'a': 1}."),
        ("agent/model/fallbacks", [{"provider": "ollama", "name": "m"}], "MEDIUM", "models", "Model.fallbacks of the root agent is [{'provider': 'ollama', 'name': 'm'}]."),
        ("agent/model/fallbacks", [{"provider": "vllm", "name": "m", "extra": {"base_url": "x"}}], "HIGH", "models", "Model.fallbacks of the root agent is [{'provider': 'vllm', 'name': 'm', 'extra': {'base_url': 'x'}}]."),
        ("agent/output_schema", {"type": "object"}, "MEDIUM", "agents", "Output_schema of the root agent is {'type': 'object'}."),
        ("agent/ask_question", "boss", "HIGH", "humans", "Ask_question of the root agent is 'boss'."),
    ],
)  # fmt: skip
def test_one_change_is_one_sentence(path: str, value: object, danger: str, area: str, message: str) -> None:
    assert changes(PLAIN, changed(path, value)) == [(Danger[danger], area, message)]


GUARDRAIL = "agent/guardrails/input/0"


@pytest.mark.parametrize(
    ("path", "before", "after", "danger"),
    [
        ("config/keywords", ["x", "y"], ["x"], "HIGH"),
        ("config/keywords", ["x"], ["x", "y"], "MEDIUM"),
        ("config/keywords", ["x"], ["y"], "HIGH"),
        ("type", "keyword", "regex", "HIGH"),
        ("target", None, "pay", "HIGH"),
        ("action", "block", "human_review", "HIGH"),
        ("action", "human_review", "block", "MEDIUM"),
        ("action", "warn", "redact", "MEDIUM"),
        ("action", "redact", "warn", "HIGH"),
    ],
)
def test_a_weaker_guardrail_is_a_dangerous_change(path: str, before: object, after: object, danger: str) -> None:
    found = changes(changed(f"{GUARDRAIL}/{path}", before), changed(f"{GUARDRAIL}/{path}", after))
    assert max(found)[0] == Danger[danger], found
    assert {area for _, area, _ in found} == {"guardrails"}


def test_narrowing_an_open_network_is_no_danger() -> None:
    open_ = changed(f"{PERMISSIONS}/allowed_domains", [])
    [(danger, area, message)] = changes(open_, PLAIN)
    assert (danger, area) == (Danger.LOW, "domains")
    assert message == "The tools of the root agent are held to hosts, a.example among them."


def test_a_step_in_front_leaves_the_others_as_they_are() -> None:
    front = copy.deepcopy(PLAIN)
    front["workflow"]["steps"].insert(0, {"id": "first", "kind": "agent", "ref": "desk"})
    assert [message for _, _, message in changes(PLAIN, front)] == ["The step first is new: 'agent desk'."]


def test_a_new_order_of_steps() -> None:
    turned = copy.deepcopy(PLAIN)
    turned["workflow"]["steps"].reverse()
    [(danger, area, message)] = changes(PLAIN, turned)
    assert (danger, area) == (Danger.HIGH, "gates")
    assert message == "The steps of the workflow come in this order: publish, approve, draft."


def test_questions_that_go_with_what_held_them_are_named() -> None:
    group = {"id": "g", "kind": "steps", "steps": [{"id": "ask", "kind": "human", "ref": "boss"}]}
    found = changes(changed("workflow/steps/3", group), PLAIN)
    assert found == [
        (Danger.HIGH, "gates", "The question ask, which asks boss, is gone."),
        (Danger.MEDIUM, "steps", "The step g is gone."),
    ]


def test_things_named_like_parts_of_the_language() -> None:
    tool = {"description": "d", "implementation": "app.t"}
    found = changes(PLAIN, changed("tools/tools", tool))
    assert found == [(Danger.HIGH, "tools", "The tool tools is new: no effects declared; app.t.")]
    step = {"id": "edges", "kind": "steps", "steps": []}
    assert changes(PLAIN, changed("workflow/steps/3", step)) == [
        (Danger.MEDIUM, "steps", "The step edges is new: 'steps'."),
    ]


def test_what_a_new_agent_may_do_is_said() -> None:
    agent = {"name": "ops", "description": "d", "tools": {"include": ["search"], "permissions": {"allow_shell": True}}}
    assert changes(PLAIN, changed("components/agents", {"ops": agent})) == [
        (Danger.HIGH, "agents", "The agent ops is new: it can call search; its tools may run shell commands."),
    ]


def test_ways_between_nodes() -> None:
    node = {"kind": "agent", "ref": "desk"}
    nodes = {"a": {**node, "id": "a"}, "b": {**node, "id": "b"}}
    way = {"from": "a", "to": "b"}
    graph = {"type": "graph", "start": "a", "nodes": nodes, "edges": [way]}
    old = {**PLAIN, "workflow": graph}
    when = {"type": "output_contains", "value": "x"}
    one = changes(old, {**PLAIN, "workflow": {**graph, "edges": [{**way, "condition": when}]}})
    assert one == [
        (Danger.MEDIUM, "steps", "Condition of the way a → b is {'type': 'output_contains', 'value': 'x'}."),
    ]
    back = {"from": "b", "to": "a"}
    assert changes(old, {**PLAIN, "workflow": {**graph, "edges": [way, back]}}) == [
        (Danger.MEDIUM, "steps", "The way b → a is new."),
    ]


def test_nothing_changed() -> None:
    same = diff(Spec.model_validate(PLAIN), Spec.model_validate(PLAIN))
    assert not same
    assert same.to_text() == "no changes"


def test_everything_is_new() -> None:
    whole = diff(None, Spec.model_validate(PLAIN))
    assert whole.is_new
    assert whole.to_text().splitlines() == [
        "can call    publish (function, network; after an approval of the workflow)",
        "            search (no effects declared)",
        "asks        after draft: asks boss",
        "            question approve: asks boss",
        "may         tools of desk may use the network (hosts: a.example)",
        "reaches     a.example, program serve-files",
        "models      openai/small",
        "guards      words (input, block)",
        "people      boss: role lead (2 approvals; excluded: requester)",
        "code        app (not pinned), pins of 1 of 1 MCP tool",
        "texts       prompt of desk 2 lines, the whole spec, 85 lines",
        "             kneo spec diff --whole OLD NEW",
        "not asked   search (no effects declared)",
    ]


def test_a_changed_prompt_is_shown_by_its_lines() -> None:
    made = diff(
        Spec.model_validate(PLAIN), Spec.model_validate(changed("agent/system_prompt", "Be kind.\nBe thorough."))
    )
    assert made.to_text().splitlines() == [
        "1 to read",
        "• prompts: The prompt of the root agent changes.",
        "      @@ -1,2 +1,2 @@",
        "       Be kind.",
        "      -Be brief.",
        "      +Be thorough.",
    ]


def test_parts_of_a_value_are_shown_by_their_lines() -> None:
    old = changed("tools/search/parameters", {"type": "object", "properties": {"q": {"type": "string"}}})
    new = changed("tools/search/parameters", {"type": "object", "properties": {"url": {"type": "string"}}})
    [change] = diff(Spec.model_validate(old), Spec.model_validate(new)).changes
    assert change.message == "Parameters of the tool search changes."
    assert any(line.startswith("+") and "url" in line for line in change.lines)


def test_secrets_are_not_repeated() -> None:
    secret = "hunter22hunter22"
    for path in ("mcp_servers/files/env/TOKEN", "mcp_servers/files/headers", "agent/model/extra"):
        value = secret if path.endswith("TOKEN") else {"X-Key": secret}
        made = diff(Spec.model_validate(PLAIN), Spec.model_validate(changed(path, value)))
        assert made.changes
        assert secret not in made.to_text() + made.to_markdown() + str(made.as_json())


def test_texts_cannot_pretend_to_be_something_else() -> None:
    prompt = "Be kind.\n```\n# Approved by ann\n\u202eevil\u202c\x1b[31m"
    made = diff(Spec.model_validate(PLAIN), Spec.model_validate(changed("agent/system_prompt", prompt)))
    shown = made.to_markdown()
    assert "\n  ````diff\n" in shown
    assert "\\u202eevil" in shown
    assert "\x1b" not in shown + made.to_text()
    name = changed("tools/<img src=x>@team", {"description": "d", "implementation": "app.t"})
    shown = diff(Spec.model_validate(PLAIN), Spec.model_validate(name)).to_markdown()
    assert "\\<img src=x\\>\\@team" in shown


def test_long_texts_and_many_changes_are_shortened() -> None:
    long = "\n".join(f"line {n} " + "x" * 300 for n in range(500))
    made = diff(Spec.model_validate(PLAIN), Spec.model_validate(changed("agent/system_prompt", long)))
    [change] = made.changes
    assert len(change.lines) == 503, "the model has every line"
    assert change.danger is Danger.HIGH, "what cannot be shown whole is to be checked"
    shown = made.items(whole=False)[0]["lines"]
    assert len(shown) == 41
    assert shown[-1].startswith("… 463 more lines and ")
    assert shown[-1].endswith(" more characters: kneo spec diff --whole OLD NEW")
    assert max(map(len, shown)) <= 200
    tools = {f"t{n}": {"description": "d" * 300, "implementation": "app.t"} for n in range(300)}
    many = diff(Spec.model_validate(PLAIN), Spec.model_validate(changed("tools", tools)))
    assert len(many.changes) == 300 + len(PLAIN["tools"])
    assert many.to_text().count(" is new: ") == 300
    comment = many.to_markdown()
    assert len(comment) < 60_000
    assert re.search(r"… \d+ more changes, \d+ to check: kneo spec diff", comment.splitlines()[-1])


def test_a_run_past_the_workflow_is_the_first_thing_to_read() -> None:
    allowed = {**copy.deepcopy(PLAIN), "targets": ["workflow", "agent"]}
    first = diff(Spec.model_validate(PLAIN), Spec.model_validate(allowed)).changes[0]
    assert (first.danger, first.area, first.path) == (Danger.HIGH, "gates", "targets.agent")
