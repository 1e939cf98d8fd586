"""What a person reads before approving a release: every face shows each change, or counts what it leaves out."""

from __future__ import annotations

import copy
import gzip
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from config_repo import ConfigRepo, announcement
from console_in_process import page_at
from console_load import declare
from kneo_process import Machine

from kneo.api.promotions import kept_plan
from kneo.api.release_views import PendingPromotionView, PromotionDetailView
from kneo.cli.releases.plan_render import as_markdown, as_text
from kneo.cli.releases.subjects import Subject, review
from kneo.digest import Digest
from kneo.records.release import PendingPlan
from kneo.spec.diff import SpecDiff, bounded_changes, diff, whole_command
from kneo.spec.models.spec import Spec
from kneo.store import releases
from kneo.store.engine import Store

Tree = dict[str, Any]

SUPPORT: Tree = {
    "agent": {
        "name": "support",
        "system_prompt": "\n".join(f"Rule {number}: be kind to customer {number}." for number in range(14)),
        "model": {"provider": "openai", "name": "gpt-5-mini", "token_budget": 20_000},
        "tools": {
            "include": ["refund", "lookup_order", "crm.customer"],
            "permissions": {"allow_network": True, "allowed_domains": ["crm.example"], "denied_tools": ["pay"]},
        },
        "guardrails": {
            "input": [{"id": "cards", "type": "regex", "action": "redact", "config": {"patterns": ["[0-9]{16}"]}}],
            "output": [{"id": "promises", "type": "keyword", "config": {"keywords": ["guarantee"]}}],
        },
    },
    "workflow": {
        "type": "sequential",
        "steps": [
            {"id": "answer", "kind": "agent", "ref": "support", "review": {"after": {"human": "lead"}}},
            {"id": "close", "kind": "function", "ref": "close"},
        ],
    },
    "tools": {
        "refund": {
            "description": "Refund an order.",
            "implementation": "shop_tools.refund",
            "capabilities": ["privileged"],
            "parameters": {"type": "object", "properties": {"euros": {"type": "number", "maximum": 100}}},
            "review": {
                "before": {"human": "finance", "when": {"not": {"type": "metadata_equals", "key": "euros", "value": 0}}}
            },
        },
        "lookup_order": {"description": "Find an order.", "implementation": "shop_tools.lookup_order"},
        "crm.customer": {
            "description": "Find a customer.",
            "mcp": {"server": "crm", "pin": {"description": "Finds.", "schema_digest": f"sha256:{'0' * 64}"}},
        },
    },
    "mcp_servers": {"crm": {"transport": "http", "url": "https://crm.example/mcp", "headers": {"X-Team": "one"}}},
    "components": {
        "functions": {"close": {"implementation": "shop_tools.close"}},
        "humans": {
            "finance": {"candidates": {"users": ["ann", "carol"], "exclude": ["requester"]}, "timeout_seconds": 60},
            "lead": {"candidates": {"roles": ["lead"]}, "quorum": {"approvals": 2}},
        },
    },
}

GONE = object()

LONG_PLAN_BYTES = 25_000
"""Bytes of a compressed page with a hundred changes, as in the budgets of pages."""

LONG = "\n".join(f"Sentence {number} of a long text." for number in range(2_600))

PROMPT = "agent/system_prompt"


def changed(path: str, value: object, old: Tree = SUPPORT) -> Tree:
    """Return the spec with one place changed; numbers are positions in lists."""
    tree = copy.deepcopy(old)
    *way, last = path.split("/")
    here: Any = tree
    for key in way:
        here = here[int(key)] if isinstance(here, list) else here.setdefault(key, {})
    key: Any = int(last) if isinstance(here, list) else last
    if value is GONE:
        del here[key]
    elif isinstance(here, list) and key == len(here):
        here.append(value)
    else:
        here[key] = value
    return tree


def in_text(at: int, new: str, length: int = 2_600) -> tuple[Tree, Tree]:
    """Return two specs that differ in one line of a long prompt."""
    lines = LONG.split("\n")[:length]
    return changed(PROMPT, "\n".join(lines)), changed(PROMPT, "\n".join([*lines[:at], new, *lines[at + 1 :]]))


def in_line(before: str, after: str) -> tuple[Tree, Tree]:
    return changed(PROMPT, before), changed(PROMPT, after)


def one(path: str, value: object) -> tuple[Tree, Tree]:
    return SUPPORT, changed(path, value)


TEXTS = {
    "first line": (in_text(0, "Pay everybody."), "Pay everybody."),
    "after the 40th line": (in_text(45, "Pay everybody."), "Pay everybody."),
    "after the 200th line": (in_text(333, "Pay everybody."), "Pay everybody."),
    "after the 2,000th line": (in_text(2_345, "Pay everybody."), "Pay everybody."),
    "last line": (in_text(2_599, "Pay everybody."), "Pay everybody."),
    "after the 200th character": (in_line("a" * 300 + "no", "a" * 300 + "Pay everybody."), "Pay everybody."),
    "after the 20,000th character": (in_line("ab " * 9_000 + "no", "ab " * 9_000 + "Pay all."), "Pay all."),
    "middle of a line": (in_line("x" * 900 + "no" + "y" * 900, "x" * 900 + "YES" + "y" * 900), "YES"),
    "first character": (in_line("Never" + " pay" * 200, "Always" + " pay" * 200), "Always"),
    "a long insertion": (in_line("a" * 500, "a" * 250 + "Pay. " * 100 + "a" * 250), "Pay. Pay."),
    "all lines": ((changed(PROMPT, LONG), changed(PROMPT, LONG.replace("Sentence", "Order"))), "Order 0 of"),
    "line end": (in_line("Be kind.\nBe brief.", "Be kind.\r\nBe brief."), "\\u000d"),
    "last line end": (in_line("Be kind.", "Be kind.\n"), "@@ -1,1 +1,2 @@"),
    "space at the end": (in_line("Be kind.", "Be kind. "), "⟨U+0020⟩"),
    "tab for spaces": (in_line("Be        kind.", "Be\tkind."), "\\u0009"),
    "no-break space": (in_line("Be kind.", "Be\u00a0kind."), "\\u00a0"),
    "a letter of another script": (in_line("pay a.example", "pay \u0430.example"), "⟨U+0430⟩"),
    "a composed letter": (in_line("caf\u00e9", "cafe\u0301"), "⟨U+0301⟩"),
    "an escape that was text": (in_line("a\\u200bb", "a\u200bb"), "⟨U+200B⟩"),
}

INVISIBLE = {
    "soft hyphen": "\u00ad",
    "grapheme joiner": "\u034f",
    "hangul filler": "\u115f",
    "khmer vowel": "\u17b4",
    "mongolian selector": "\u180b",
    "zero-width space": "\u200b",
    "joiner": "\u200d",
    "right-to-left mark": "\u200f",
    "line separator": "\u2028",
    "right-to-left override": "\u202e",
    "word joiner": "\u2060",
    "isolate": "\u2067",
    "deprecated format": "\u206a",
    "empty braille": "\u2800",
    "halfwidth filler": "\uffa0",
    "variation selector": "\ufe0f",
    "byte order mark": "\ufeff",
    "reserved special": "\ufff0",
    "annotation": "\ufff9",
    "musical format": "\U0001d173",
    "tag": "\U000e0041",
    "reserved tag": "\U000e0080",
    "variation selector supplement": "\U000e0100",
    "reserved plane": "\U000e01f0",
}

FIELDS = {
    "model": (one("agent/model/name", "gpt-9"), "'gpt-9'"),
    "model address": (one("agent/model/extra", {"base_url": "https://evil.example"}), "evil.example"),
    "model setting": (one("agent/model/extra", {"proxy": "https://evil.example"}), "not shown"),
    "tool included": (one("agent/tools/include/3", "pay"), "gets the tool pay"),
    "host": (one("agent/tools/permissions/allowed_domains/1", "evil.example"), "may reach evil.example"),
    "shell": (one("agent/tools/permissions/allow_shell", True), "run shell commands"),
    "denied tool": (one("agent/tools/permissions/denied_tools", []), "pay is no longer denied"),
    "guardrail removed": (one("agent/guardrails/output/0", GONE), "loses the output guardrail promises"),
    "guardrail added": (one("agent/guardrails/input/1", {"id": "pii", "type": "keyword", "config": {"keywords": ["a"]}}), "gets the guardrail pii (input, block)"),
    "guardrail pattern": (one("agent/guardrails/input/0/config/patterns", ["x"]), "[0-9]{16}"),
    "maximum": (one("tools/refund/parameters/properties/euros/maximum", 10_000), "from 100 to 10000"),
    "maximum removed": (one("tools/refund/parameters/properties/euros", {"type": "number"}), "the maximum of euros is gone"),
    "gate removed": (one("tools/refund/review", GONE), "is no longer asked"),
    "gate condition": (one("tools/refund/review/before/when", {"type": "never"}), "never"),
    "gate after a step removed": (one("workflow/steps/0/review", GONE), "is no longer asked"),
    "human": (one("components/humans/finance/candidates/users/2", "eve"), "eve may now decide"),
    "excluded": (one("components/humans/finance/candidates/exclude", []), "requester is no longer excluded"),
    "quorum": (one("components/humans/lead/quorum/approvals", 1), "from 2 to 1"),
    "silence approves": (one("components/humans/finance/on_timeout", "approve"), "'approve'"),
    "code": (one("tools/refund/implementation", "evil.refund"), "evil.refund"),
    "function code": (one("components/functions/close/implementation", "evil.close"), "evil.close"),
    "server": (one("mcp_servers/crm/url", "https://evil.example/" + "a" * 200), "evil.example"),
    "server header": (one("mcp_servers/crm/headers/X-Team", "two"), "not shown"),
    "pin": (one("tools/crm.customer/mcp/pin/schema_digest", f"sha256:{'1' * 64}"), "1" * 64),
    "new tool": (one("tools/pay", {"description": "Pay.", "http": {"url": "https://pay.example", "method": "POST"}}), "no gate asks about a call"),
    "new agent": (one("components/agents", {"ops": {"name": "ops", "tools": {"include": ["refund"], "permissions": {"allow_shell": True}}}}), "may run shell commands"),
    "new step": (one("workflow/steps/2", {"id": "pay", "kind": "function", "ref": "close"}), "The step pay is new: 'function close'"),
    "step order": ((SUPPORT, changed("workflow/steps", SUPPORT["workflow"]["steps"][::-1])), "come in this order: close, answer"),
    "past the workflow": (one("targets", ["workflow", "agent"]), "past the gates of the workflow"),
    "metadata": (one("metadata", {"note": "x" * 100_000}), "note:"),
}  # fmt: skip

CASES: dict[str, tuple[tuple[Tree, Tree], str]] = TEXTS | FIELDS
for name, letter in INVISIBLE.items():
    escaped = json.dumps(letter)[1:-1]
    CASES[name] = (in_line("Be kind.", f"Be{letter} kind."), escaped)


PAGE_WORDS = {("page", "@@ -1,1 +1,2 @@"): "Line 1 before, lines 1 to 2 now"}
"""A page has words for the place of a change."""


def plain_markdown(text: str) -> str:
    return re.sub(r"\\([^u])", r"\1", text)


def faces(store: Store, found: SpecDiff) -> dict[str, str]:
    """Return what each face shows of a change from 1.0.0 to 1.1.0."""
    command = whole_command("support", "1.0.0", "1.1.0")
    action = {
        "kind": "promote",
        "bundle": "support",
        "from": "1.0.0",
        "to": "1.1.0",
        "signers": ["bob"],
        "allowed": False,
        "diff": found.items(whole=True),
        "whole": command,
    }
    environment = {"name": "prod", "actions": [action], "verdicts": [], "gates": []}
    plan = {
        "revision": "r",
        "base": "b",
        "commits": None,
        "trust": {"changed": False},
        "environments": [environment],
    }
    shown, more = bounded_changes(found)
    content = {
        "from_version": "1.0.0",
        "signers": ["bob"],
        "summary": found.summary,
        "changes": [each.as_json() for each in shown],
        "more": more,
        "rules": [],
        "weakened": [],
    }
    with store.write() as tx:
        pending = releases.pending(tx, "prod")[0]
        releases.put_plan(tx, PendingPlan(id=pending.id, environment="prod", base=None, content=content))
    page = page_at(store, f"/promotions/{pending.id}")
    assert "@@" not in page
    text = html.unescape(re.sub(r"<[^>]*>", "", page))
    detail = kept_plan(Digest("sha256:" + "0" * 64), content, command, whole=True)
    values = {**vars(pending), "bundle": "support", "version": "1.1.0", "environment": "prod"}
    item = PendingPromotionView(**values)  # type: ignore[arg-type]
    view = PromotionDetailView(promotion=item, serving=None, plan=detail, decisions=[], may_answer=None)  # type: ignore[arg-type]
    digest = Digest("sha256:" + "0" * 64)
    subject = Subject(environment="prod", name="support", digest=digest, policy_digest=digest)
    return {
        "terminal": "\n".join(as_text(plan)),
        "markdown": plain_markdown(as_markdown(plan)),
        "json": json.dumps(found.items(whole=True), ensure_ascii=False).replace("\\\\", "\\"),
        "page": text,
        "approve": "\n".join(review(subject, item, view, spec=False).lines),
        "whole": found.to_text(whole=True),
    }


@pytest.fixture(scope="module")
def pending_store(shared_store: Store) -> Store:
    with shared_store.write() as tx:
        declare(tx)
    return shared_store


@pytest.mark.parametrize("case", CASES)
def test_every_face_shows_each_change_or_counts_what_it_leaves_out(
    case: str, pending_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (old, new), mark = CASES[case]
    found = diff(Spec.model_validate(old), Spec.model_validate(new), command=whole_command("support", "1.0.0", "1.1.0"))
    assert found.changes
    shown = faces(pending_store, found)
    missing = [face for face, text in shown.items() if PAGE_WORDS.get((face, mark), mark) not in text]
    assert missing == [], f"{mark!r} is not in {missing}"
    for change in found.changes:
        for lines in (change.lines, found.items(whole=False)[found.changes.index(change)]["lines"]):
            removed = {line[1:] for line in lines if line.startswith("-")}
            assert not removed & {line[1:] for line in lines if line.startswith("+")}, (
                "a removed line looks like an added one"
            )
    if found.is_cut:
        note = re.compile(
            r"… [\d,]+ more (line|character)s?( and [\d,]+ more characters?)?: "
            r"kneo spec diff --whole bundles/(support|refund-0)/1\.0\.0\.dsse\.json bundles/(support/1\.1\.0|refund-0/2\.0\.0)\.dsse\.json"
        )
        assert [face for face in ("terminal", "markdown", "page", "approve") if not note.search(shown[face])] == []


def test_the_table_has_each_kind_of_change() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("case", ["a long insertion", "all lines", "metadata"])
def test_a_change_that_is_not_shown_whole_is_to_be_checked(case: str) -> None:
    (old, new), _ = CASES[case]
    [change] = diff(Spec.model_validate(old), Spec.model_validate(new)).changes
    assert change.danger.name == "HIGH"


def large() -> tuple[Spec, Spec]:
    """Return two specs with 300 changes, one of them in each line of a prompt of 2,000 lines."""
    functions = {f"f{number}": {"implementation": f"app.f{number}"} for number in range(299)}
    old = changed("components/functions", {**SUPPORT["components"]["functions"], **functions})
    new = copy.deepcopy(old)
    for number in range(299):
        new["components"]["functions"][f"f{number}"]["implementation"] = f"evil.f{number}"
    old["agent"]["system_prompt"] = "\n".join(f"Old line {number}" for number in range(2_000))
    new["agent"]["system_prompt"] = "\n".join(f"New line {number}" for number in range(2_000))
    return Spec.model_validate(old), Spec.model_validate(new)


def test_each_of_many_changes_is_reached_from_the_page(
    pending_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = diff(*large(), command=whole_command("support", "1.0.0", "1.1.0"))
    assert len(found.changes) == 300
    faces(pending_store, found)
    with pending_store.read() as tx:
        pending = releases.pending(tx, "prod")[0]
    seen: list[str] = []
    address = f"/promotions/{pending.id}"
    for start in (0, 100, 200):
        page = page_at(pending_store, f"{address}?from={start}")
        assert f"{address}?whole=1" in page
        assert len(gzip.compress(page.encode(), 5)) < LONG_PLAN_BYTES
        for other in {0, 100, 200} - {start}:
            assert f"{address}?from={other}" in page
        seen += re.findall(r"evil\.f\d+", page)
    assert len(set(seen)) == 299
    whole = "".join(page_at(pending_store, f"{address}?from={start}&whole=1") for start in (0, 100, 200))
    assert [n for n in range(2_000) if f"New line {n}<" not in whole] == []


def a_plan(**environment: object) -> dict[str, object]:
    """Return a plan of one environment."""
    item = {"name": "prod", "actions": [], "verdicts": [], "gates": [], **environment}
    return {
        "revision": "next@sha1:1f2e3d",
        "base": "b",
        "commits": None,
        "trust": {"changed": False},
        "environments": [item],
    }


def refused(message: str) -> dict[str, object]:
    return {"ok": False, "bundle": "mail", "version": "1.0.0", "reason": "Refused", "message": message}


LONG_PLANS = {
    "a long message": {"verdicts": [refused("word " * 40_000)]},
    "many messages": {"verdicts": [refused(f"{number} is refused") for number in range(5_000)]},
    "many gates": {"gates": [{"bundle": "m", "reason": "r", "message": f"gate {n}", "who": ["ann"]} for n in range(5_000)]},
    "long rules": {
        "policy": [
            {
                "field": "gates",
                "direction": "loosened",
                "message": f"The gate {number} is gone.",
                "lines": [f"-line {line} of {number}" for line in range(39)],
            }
            for number in range(300)
        ]
    },
}  # fmt: skip


@pytest.mark.parametrize("case", LONG_PLANS)
def test_a_comment_is_as_long_as_forges_accept_and_counts_the_rest(case: str) -> None:
    comment = as_markdown(a_plan(**LONG_PLANS[case]))
    assert len(comment) <= 65_536
    assert re.fullmatch(
        r"‼ … [\d,]+ more lines? with [\d,]+ characters: `kneo plan --whole --ref 1f2e3d`", comment.splitlines()[-1]
    )
    assert sum(line.strip().startswith("```") for line in comment.splitlines()) % 2 == 0, "an open fence hides the note"
    assert comment.count("<details") == comment.count("</details>")


def test_a_comment_of_several_releases_shows_the_first_changes_of_each() -> None:
    changes = [{"danger": "high", "area": "tools", "message": "m" * 100, "path": "p", "lines": []} for _ in range(400)]
    action = {"kind": "promote", "from": "1.0.0", "to": "1.1.0", "signers": [], "allowed": False, "diff": changes}
    actions = [{**action, "bundle": f"bundle{number}", "whole": "kneo spec diff"} for number in range(3)]
    comment = as_markdown(a_plan(actions=actions))
    assert len(comment) <= 65_536
    for number in range(3):
        assert f"bundle{number}: 400 changes, 400 to check" in comment
    assert comment.count(" more changes, ") == 3


def test_a_text_from_outside_is_no_command_of_a_runner_in_a_comment() -> None:
    comment = as_markdown(a_plan(verdicts=[refused("one\n::add-mask::two\x1b[2J")], name="prod\n::error::x"))
    assert "\x1b" not in comment
    assert not [line for line in comment.splitlines() if line.lstrip().startswith("::")]


# ---- a first version ----------------------------------------------------------------------------------------------


@pytest.fixture
def first(tmp_path: Path) -> tuple[ConfigRepo, Machine]:
    """A config repository whose next commit releases the support agent to prod for the first time."""
    repo = ConfigRepo(tmp_path / "repo")
    people = {"ann": {"groups": ["finance"]}, "carol": {"groups": ["finance"]}, "bob": {"roles": ["approver", "lead"]}}
    rules = {"people": people, "approvals": {"required": 1}, "models": {"budgets": [{"per": "run", "cost": 2}]}}
    repo.environment("prod", {}, **rules)
    repo.commit("Rules of prod")
    spec = changed("components/humans/finance/candidates", {"groups": ["finance"], "exclude": ["requester"]})
    spec["version"] = "v1"
    gates = {
        "refund": {"human": "finance"},
        "lookup_order": {"human": "lead", "when": {"type": "metadata_equals", "key": "id", "value": 7}},
    }
    for name, gate in gates.items():
        spec["tools"][name]["review"] = {"before": gate}
    repo.bundle("support", "1.0.0", spec)
    repo.environment("prod", {"support": "1.0.0"}, **rules)
    repo.commit("Release support to prod")
    return repo, Machine(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'kneo.sqlite'}")


def test_the_first_review_is_one_screen_with_every_gate(first: tuple[ConfigRepo, Machine]) -> None:
    repo, machine = first
    plan = ("plan", "--repo", str(repo.folder), "--trust-root", repo.pin, "--base", "HEAD~1", "--env", "prod")
    shown = machine.kneo(*plan).stdout
    review = shown[shown.index("support 1.0.0 is new in prod, signed by ann") :].splitlines()
    commands = [line for line in review if "kneo spec diff --whole bundles/support/1.0.0.dsse.json" in line]
    assert len(commands) == 1
    assert len(shown.splitlines()) <= 40
    assert [line for line in review[:-2] if len(line) > 80] == []
    words = " ".join(shown.split())
    for fact in (
        "refund (privileged; asks finance)",
        "lookup_order (no effects declared; asks lead when args.id is 7)",
        "after answer: asks lead",
        "reaches     crm.example",
        "openai/gpt-5-mini (at most 20,000 tokens a run)",
        "at most 2.00 of cost a run",
        "cards (input, redact), promises (output, block)",
        "finance: ann, carol (1 approval; excluded: requester; fail after 60 s)",
        "lead: bob (2 approvals)",
        "shop_tools (not pinned), pins of 1 of 1 MCP tool",
        "not asked lookup_order, crm.customer (no effects declared)",
    ):
        assert " ".join(fact.split()) in words, shown
    markdown = machine.kneo(*plan, "--markdown").stdout
    for line in review[1 : review.index(commands[0])]:
        assert line.strip() in markdown
    whole = machine.kneo(*plan, "--whole").stdout
    assert "Rule 13: be kind to customer 13." not in shown
    assert "Rule 13: be kind to customer 13." in whole


def test_what_was_not_shown_is_not_approved_and_unread_is_recorded(tmp_path: Path) -> None:
    repo, machine = (
        ConfigRepo(tmp_path / "repo"),
        Machine(tmp_path / "work", f"sqlite:///{tmp_path / 'work' / 'k.sqlite'}"),
    )
    key = machine.folder / "bob.pem"
    key.write_bytes(repo.person("bob", "approver").dump())
    key.chmod(0o600)
    repo.commit("Trust bob")
    rules = {"people": {"bob": {"roles": ["approver"]}}, "approvals": {"required": 1}}
    once = ("controller", "run", "--once", "--repo", str(repo.folder), "--trust-root", repo.pin)
    repo.release("prod", "mail", "1.0.0", announcement())
    machine.kneo(*once)
    writer = {"name": "writer", "model": {"provider": "dummy", "name": "dummy"}}

    def release(version: str, prompt: str) -> None:
        spec = announcement()
        spec["agent"] = writer | {"system_prompt": prompt}
        repo.bundle("mail", version, spec)
        repo.environment("prod", {"mail": version}, **rules)
        repo.commit(f"Release {version}")
        machine.kneo(*once, expect=1)

    release("1.1.0", LONG)
    approve = ("approve", "prod/mail@1.1.0", "--key", str(key))
    refused = machine.kneo(*approve, expect=2).stderr
    assert "more lines and" in refused or "more lines: kneo spec diff --whole" in refused
    assert "was left out above" in refused
    assert "Nothing was signed" in refused
    shown = machine.kneo(*approve, "--whole")
    assert "Sentence 2599 of a long text." in shown.stderr
    assert [one["metadata"].get("unread") for one in approvals(machine)] == [None]
    machine.kneo(*once)
    release("1.2.0", LONG.replace("Sentence", "Order"))
    machine.kneo("approve", "prod/mail", "--key", str(key), "--yes")
    assert [one["metadata"].get("unread") for one in approvals(machine)] == [True, None]


def approvals(machine: Machine) -> list[Tree]:
    """Return the audit events of approvals, newest first."""
    events: list[Tree] = machine.json("audit", "list", "--type", "release.approved")["events"]
    return sorted(events, key=lambda event: -int(event["seq"]))
