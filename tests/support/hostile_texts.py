"""Texts that attack the page that shows them, and a service in which every kind of person, agent and repository wrote one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import quote

import pytest
from config_house import RULES, House
from config_repo import ConfigRepo, announcement
from console_pages import HtmlPage
from kneo_process import eventually
from model_server import Call, Reply, model_server
from service_bench import DRAFT, Json, spec_of

from kneo.invisible import INVISIBLE

TEXTS: Mapping[str, str] = {
    "bidi": "\u202egnp.exe\u202c \u2066isolated\u2069",
    "zero-width": "a\u200bb\ufeff\u3164\U000e0041 c\ufe01\ufe02 d\u2800\u206a\U000e01f0",
    "ansi": "\x1b[31mred\x9b2J",
    "html": "</textarea></title><img src=x onerror=globalThis.attacked=1>\"'>",
    "script": "<script>globalThis.attacked=1</script> javascript:globalThis.attacked=1",
    "template": "{{ 123457*98765 }} {% raw %}",
}
"""The kinds of attacks."""

HOSTILE = " ".join(TEXTS.values())

PRINTED = " ".join(TEXTS[kind] for kind in ("html", "script", "template"))
"""Attacks for fields that refuse characters that cannot be printed."""

NAME = "<img src=x onerror=globalThis.attacked=1>"
"""An attack in a name, where names are checked."""

MARKS = (
    "⟨U+001B⟩",
    "⟨U+009B⟩",
    "⟨U+202E⟩",
    "⟨U+2066⟩",
    "⟨U+200B⟩",
    "⟨U+FEFF⟩",
    "⟨U+3164⟩",
    "⟨U+E0041⟩",
    "⟨U+FE02⟩",
    "⟨U+2800⟩",
    "⟨U+206A⟩",
    "⟨U+E01F0⟩",
)

_FIELDS = re.compile(r"<textarea[^>]*>.*?</textarea>|\svalue=\"[^\"]*\"", re.DOTALL)

_UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f\x7f-\x9f{INVISIBLE}]")


def check(page: HtmlPage, *, marks: bool, has_style: bool = False) -> None:
    """Check that a page shows hostile texts as texts.

    Args:
        page: The page.
        marks: Whether the text with characters that cannot be seen is on the page.
        has_style: Whether the page has its own stylesheet, which its content security policy names.
    """
    assert page.problems == (["an inline style"] if has_style else [])
    tags = {attributes[""] for attributes in page.attributes}
    assert not tags & {"img", "iframe", "object", "embed", "base"}
    assert not [attributes for attributes in page.attributes if attributes.get("href", "").startswith("javascript:")]
    assert str(123457 * 98765) not in page.html, "a template was evaluated"
    # A form field that is sent back has every character as it is.
    outside = _FIELDS.sub("", page.html)
    assert not _UNSEEN.findall(outside)
    assert "onerror=globalThis" in page.html, "the text is not on the page"
    if marks:
        missing = [mark for mark in MARKS if mark not in outside]
        assert not missing, missing


@dataclass(frozen=True)
class HostilePage:
    """A page that shows hostile texts.

    Attributes:
        path: The address of the page.
        marks: Whether a text with characters that cannot be seen is on the page.
        status: The status of the response.
        has_style: Whether the page has its own stylesheet.
    """

    path: str
    marks: bool = True
    status: int = 200
    has_style: bool = False


def prepare(repo: ConfigRepo) -> None:
    """Add an environment that runs specs of its callers."""
    people = {name: {"roles": ["reviewer"]} for name in ("reviewer", "approver", "admin", "service")}
    repo.environment("lab", {}, inlineSpecs=True, people=people)


def _start(house: House, *steps: Json, status: str = "paused", **human: object) -> Json:
    board = {"prompt": f"Send? {HOSTILE}", "title": f"Title {HOSTILE}", **human}
    spec = spec_of(*steps, humans={"board": board})
    run = house.bench.start(spec, input=HOSTILE, environment="lab")
    assert run["status"] == status, run
    return run


def _pages_of_tasks(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Open and decide tasks about hostile texts."""
    bench, inbox = house.bench, "/console/inbox"
    ask: Json = {"id": "ask", "kind": "human", "ref": "board"}
    fields = [{"name": "tone", "description": HOSTILE, "allowed_values": [HOSTILE, "dry"]}]
    opened = _start(house, DRAFT, ask, fields=fields)
    task = f"/human-tasks/{opened['continuation_id']}"
    bench.post(f"{task}/comments", {"text": HOSTILE}, role="reviewer")
    link = bench.post(f"{task}/links", {"person": "reviewer"}, role="service")
    chosen = _start(house, DRAFT, ask, options=[NAME, "support"], decisions=["selected", "rejected"])
    back = _start(house, {**DRAFT, "review": {"after": {"human": "board", "on_reject": "retry"}}})
    bench.answer(back, decision="rejected", feedback=HOSTILE[:90])
    (again,) = eventually(lambda: bench.get("/human-tasks", run_id=back["run_id"], status="open")["tasks"])
    decided = _start(house, DRAFT, ask, decisions=["approved", "edited", "rejected"])
    bench.answer(decided, decision="edited", content=HOSTILE[:90], comment=HOSTILE[-90:])
    yield "inbox", HostilePage(inbox)
    yield "form", HostilePage(f"{inbox}/{opened['continuation_id']}")
    yield "options", HostilePage(f"{inbox}/{chosen['continuation_id']}")
    yield "difference", HostilePage(f"{inbox}/{again['id']}")
    yield "whole text", HostilePage(f"{inbox}/{again['id']}?view=text")
    yield "receipt", HostilePage(f"{inbox}/{decided['continuation_id']}")
    yield "decided tasks", HostilePage(f"{inbox}?show=decided")
    yield "one-time link", HostilePage(str(link["path"]), has_style=True)


def _pages_of_runs(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Start a run that waits, and one that fails with a hostile message."""
    step = {"id": "ask", "kind": "human", "ref": "board"}
    run = f"/console/runs/{_start(house, DRAFT, step)['run_id']}"
    repeat = {"id": "repeat", "kind": "function", "ref": "repeat"}
    failed = f"/console/runs/{_start(house, DRAFT, repeat, status='failed')['run_id']}"
    yield "runs", HostilePage("/console/runs")
    yield "run", HostilePage(run)
    yield "step", HostilePage(f"{run}/steps/1")
    yield "fork", HostilePage(f"{run}/fork?step=draft", marks=False)
    yield "cancel", HostilePage(f"{run}/cancel")
    yield "failed run", HostilePage(failed)
    yield "search", HostilePage("/console/find?q=gnp.exe")


def _pages_of_tools(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Run agents whose models call a tool that no one declared, and one that a person has to approve."""
    bench, runs = house.bench, "/console/runs"
    first = Reply(f"I call {HOSTILE}", calls=[Call(NAME, {"text": HOSTILE})])
    script = [first, Reply(calls=[Call("pay", {"amount": HOSTILE})]), Reply(f"Paid {HOSTILE}")]
    with model_server(script) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", "key")
        patch.setenv("OPENAI_BASE_URL", server.openai_url)
        waits, goes_on = (_start_agent(house) for _ in range(2))
        bench.answer(goes_on, decision="approved")
        eventually(lambda: bench.get(f"/runs/{goes_on['run_id']}")["status"] == "succeeded")
    link = bench.post(f"/human-tasks/{waits['continuation_id']}/links", {"person": "reviewer"}, role="service")
    run = f"{runs}/{goes_on['run_id']}"
    yield "tool call", HostilePage(f"/console/inbox/{waits['continuation_id']}")
    yield "tool call by link", HostilePage(str(link["path"]), has_style=True)
    yield "run of an agent", HostilePage(run)
    yield "step of an agent", HostilePage(f"{run}/steps/1")
    yield "conversation", HostilePage(f"{run}/conversation")


def _start_agent(house: House) -> Json:
    amount = {"type": "string", "description": HOSTILE}
    pay = {
        "description": HOSTILE,
        "implementation": "lab_functions.pay",
        "parameters": {"type": "object", "properties": {"amount": amount}, "required": ["amount"]},
        "capabilities": ["privileged"],
        "review": {"before": {"human": "boss"}},
    }
    model = {"provider": "openai", "name": "m", "extra": {"api": "chat"}}
    spec = {
        "version": "v1",
        "agent": {"name": "teller", "model": model, "strategy": "react", "tools": ["pay"]},
        "workflow": {"type": "sequential", "name": "pay", "steps": [{"id": "work", "kind": "agent", "ref": "teller"}]},
        "tools": {"pay": pay},
        "components": {"humans": {"boss": {"prompt": f"Pay? {HOSTILE}"}}},
    }
    run = house.bench.start(spec, input=HOSTILE, environment="lab")
    assert run["status"] == "paused", run
    return run


def _pages_of_megabytes(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Open and decide tasks about a megabyte of attacks."""
    flood = {"id": "flood", "kind": "function", "ref": "flood"}
    ask: Json = {"id": "ask", "kind": "human", "ref": "board"}
    opened = _start(house, flood, ask, decisions=["approved", "edited", "rejected"])
    decided = _start(house, flood, ask)
    house.bench.answer(decided, decision="approved")
    link = house.bench.post(f"/human-tasks/{opened['continuation_id']}/links", {"person": "reviewer"}, role="service")
    run = f"/console/runs/{opened['run_id']}"
    yield "megabyte", HostilePage(f"/console/inbox/{opened['continuation_id']}")
    yield "receipt of a megabyte", HostilePage(f"/console/inbox/{decided['continuation_id']}")
    yield "megabyte by link", HostilePage(str(link["path"]), has_style=True)
    yield "run of a megabyte", HostilePage(run)
    yield "step of a megabyte", HostilePage(f"{run}/steps/1")


def _pages_of_files(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Commit files with hostile names, of which some are declarations, to a branch that is planned."""
    house.repo.git("checkout", "-q", "-b", "attack")
    names = f"{NAME}\u202e\u2066\u200b\ufeff\u3164\U000e0041c\ufe01\ufe02\x1b\x9b"
    for folder, text in (("environments", "apiVersion: kneo/v1\n"), ("bundles/announcement", "{}")):
        suffix = "yaml" if folder == "environments" else "dsse.json"
        (house.repo.folder / folder / f"{names}.{suffix}").write_text(text)
    house.repo.commit("Add files")
    house.repo.git("checkout", "-q", "main")
    yield "plan of hostile files", HostilePage("/console/plan?ref=attack", marks=False, status=400)
    yield "plan of an unknown ref", HostilePage(f"/console/plan?ref={quote(NAME)}", marks=False, status=400)


def _pages_of_releases(house: House) -> Iterator[tuple[str, HostilePage]]:
    """Sign a bundle whose spec is hostile in every text, and hold the release for a hostile reason."""
    house.version += 1
    version, prod = f"{house.version}.0.0", "/console/environments/prod"
    house.repo.release("dev", "announcement", version, hostile_spec())
    house.repo.environment("prod", {"announcement": version}, **RULES)
    house.repo.commit("Release")
    change = house.reconciled()
    hold = {"bundle": "announcement", "reason": f"Board {PRINTED}"}
    house.bench.post("/environments/prod/hold", hold, role="admin")
    yield "environments", HostilePage("/console/environments", marks=False)
    yield "environment", HostilePage(prod, marks=False)
    yield "release", HostilePage(f"{prod}/announcement", marks=False)
    yield "review", HostilePage(f"/console/promotions/{change['id']}", marks=False)
    yield "bundle diff", HostilePage(f"/console/bundles/announcement/diff?from=1.0.0&to={version}", marks=False)
    yield "audit", HostilePage("/console/audit", marks=False)
    yield "unknown name", HostilePage(f"/console/environments/{quote(NAME)}", marks=False, status=404)


def hostile_spec() -> Json:
    """Return the spec of the tour with hostile texts of each kind."""
    spec: Json = json.loads(json.dumps(announcement()))
    agents, humans = spec["components"]["agents"], spec["components"]["humans"]
    for agent in (spec["agent"], *agents.values()):
        agent.update(system_prompt=HOSTILE, description=HOSTILE)
    humans["editor"].update(description=HOSTILE, prompt=HOSTILE, title=HOSTILE)
    return spec


SOURCES = (_pages_of_tasks, _pages_of_runs, _pages_of_tools, _pages_of_megabytes, _pages_of_files, _pages_of_releases)


def hostile_pages(house: House) -> dict[str, HostilePage]:
    """Fill a service with hostile texts; return the pages that show them, by name."""
    return dict([page for pages in SOURCES for page in pages(house)])
