"""Text of a plan: for a terminal, and as a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from kneo.cli import render
from kneo.cli.backend import Json
from kneo.names import plain
from kneo.spec.coverage.calls import call_words, served_words
from kneo.spec.diff import COMMENTED_CHARS, change_lines, change_markdown, fact_lines, fenced, shortened
from kneo.spec.diff.rules import WHOLE, shown_rule
from kneo.spec.diff.texts import bounded_comment

MARKER = "<!-- kneo-plan -->"
"""First line of the comment on a pull request, by which the check finds its own comment again."""

ENDS = "The environment is retired: its releases end and no run starts there."


def environments(answer: Json) -> list[Json]:
    """Return the environments of a plan."""
    items = answer["environments"]
    assert isinstance(items, list)
    return items


def is_refused(answer: Json) -> bool:
    """Return whether the commit would be refused or would stall an environment."""
    return bool("problem" in answer or _unsigned(answer)) or any(
        "problem" in item or _bad(item) for item in environments(answer)
    )


def has_changes(answer: Json) -> bool:
    """Return whether the commit would change trust, rules, releases or pending changes."""
    return _trust(answer)["changed"] is True or any(
        item["actions"] or item["gates"] or item.get("policy") or item.get("removed") or item.get("new")
        for item in environments(answer)
    )


def _trust(answer: Json) -> Json:
    trust = answer["trust"]
    assert isinstance(trust, dict)
    return trust


def _trust_lines(answer: Json) -> Iterator[tuple[bool, str]]:
    """Return the changes of a trust root, each with whether it weakens protection."""
    trust = _trust(answer)
    if not trust["changed"]:
        return
    signed = ", ".join(map(str, trust["signed_by"])) if isinstance(trust["signed_by"], list) else ""
    version = f"from version {trust['from'] or 'none'} to {trust['to'] or 'none'}"
    yield True, f"The trust root changes {version}, signed by {signed or 'no key'}"
    for change in _rows(trust["changes"]):
        yield change["direction"] == "loosened", _directed(change)


def _directed(change: Json) -> str:
    """Return the sentence about a change of rules, with its direction."""
    verb = "weakens" if change["direction"] == "loosened" else "tightens"
    return f"{str(change['message']).removesuffix('.')} ({verb} protection)"


def _policy_lines(item: Json, *, whole: bool) -> Iterator[tuple[bool, str, list[str]]]:
    """Return the changes of an environment's rules, each with whether it weakens protection, and the lines of long values."""
    command = WHOLE.replace("NAME", str(item["name"]))
    for change in sorted(_rows(item.get("policy", [])), key=lambda change: change["direction"] != "loosened"):
        loosened = change["direction"] == "loosened"
        lines = tuple(map(str, change["lines"])) if isinstance(change["lines"], list) else ()
        shown = lines if whole else shown_rule(lines, command)
        yield loosened, _directed(change), list(shown)
    windows = item.get("windows")
    if isinstance(windows, dict) and not windows["open"] and item["actions"]:
        yield True, f"Changes are not allowed until {windows['next_opening'] or 'the windows change'}.", []


def _compared(answer: Json) -> str:
    source = answer.get("source")
    if not isinstance(source, dict) or source["kind"] == "git":
        return f"{answer['revision']} against {answer['base'] or 'nothing'} (compared with Git alone)"
    where = "the database" if source["kind"] == "database" else f"the service {source['address']}"
    return f"{answer['revision']} against {answer['base'] or 'nothing'} (compared with what {where} serves)"


def _rows(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value


def as_text(answer: Json, *, whole: bool = False) -> Iterator[str]:
    """Return a plan as lines for a terminal, long texts shortened or whole."""
    yield _compared(answer)
    yield from (f"  {_mark(loosened)} {line}" for loosened, line in _trust_lines(answer))
    if "problem" in answer:
        yield f"  {render.FAILED} {_problem(answer)}"
    if unsigned := _unsigned(answer):
        yield f"  {render.FAILED} {unsigned}"
    for item in environments(answer):
        yield f"\n{item['name']}"
        yield from _environment_text(item, whole=whole)


def _mark(loosened: bool) -> str:
    return render.CAREFUL if loosened else render.DONE


def _environment_text(item: Json, *, whole: bool) -> Iterator[str]:
    if "problem" in item:
        yield f"  {render.FAILED} {_problem(item)}"
    if item.get("removed"):
        yield f"  {render.CAREFUL} {open_tasks_text(item)}"
        return
    if item.get("retired"):
        yield f"  {render.CAREFUL} {ENDS} {open_tasks_text(item)}"
    if not item["actions"]:
        yield f"  {render.OPEN} no releases change"
    for loosened, line, lines in _policy_lines(item, whole=whole):
        yield f"  {_mark(loosened)} {line}"
        yield from (f"        {each}" for each in lines)
    for action in _rows(item["actions"]):
        mark = render.DONE if action["allowed"] else render.CAREFUL
        yield f"  {mark} {_said(action, item)}"
        yield from (f"    {line}" for line in review_lines(action, whole=whole))
        if ended := _texts(action.get("ends_grants", [])):
            yield f"    {render.CAREFUL} ends the grants {', '.join(ended)}"
    yield from (f"  {render.FAILED} {v['bundle']} {v['version']}: {v['reason']}: {v['message']}" for v in _bad(item))
    for gate in _rows(item["gates"]):
        yield f"  {render.CAREFUL} {gate['bundle']} pending: {gate['reason']}: {gate['message']}{_who(gate)}"
    for added in _rows(item.get("added_gates", [])):
        yield f"  {render.DONE if added['steps'] else render.CAREFUL} {_asked(added)}"
    yield from (f"  {render.DONE} {_call(call)}" for call in _rows(item.get("calls", [])))
    yield from (f"  {render.DONE} {_served(call)}" for call in _rows(item.get("served_calls", [])))
    yield from (f"  {render.CAREFUL} {warning}" for warning in _texts(item.get("warnings", [])))


def _unsigned(answer: Json) -> str | None:
    """Return the problem of the commits' own signatures, where the trust root requires signed commits."""
    commits = answer["commits"]
    if not isinstance(commits, dict) or commits["ok"]:
        return None
    return f"{commits['reason']}: {commits['message']} A signed merge commit covers the commits it merges."


def _asked(added: Json) -> str:
    """Return the steps that an environment's own gate applies to."""
    steps = added["steps"]
    assert isinstance(steps, dict)
    if not steps:
        return f"The gate {added['gate']} applies to no step of the releases here."
    steps_text = "; ".join(f"{bundle}: {', '.join(paths)}" for bundle, paths in steps.items())
    return f"The gate {added['gate']} asks at {steps_text}."


def _call(call: Json) -> str:
    return f"{call['bundle']}: {call_words(call)}"


def _served(call: Json) -> str:
    return f"{call['bundle']}: {served_words(call)}"


def _texts(value: object) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else []


def _problem(item: Json) -> str:
    problem = item["problem"]
    assert isinstance(problem, dict)
    return f"{problem['reason']}: {problem['message']}"


def _bad(item: Json) -> list[Json]:
    return [verdict for verdict in _rows(item["verdicts"]) if not verdict["ok"]]


def review_lines(action: Json, *, whole: bool) -> Iterator[str]:
    """Return what an approver of a release reads: the facts of a first version, or the changes of a later one."""
    yield from (fact_lines if is_first(action) else change_lines)(_changes(action, whole=whole))


def _changes(action: Json, *, whole: bool) -> list[Json]:
    changes = _rows(action["diff"])
    return changes if whole else [shortened(change, str(action["whole"])) for change in changes]


def is_first(action: Json) -> bool:
    """Return whether an action brings the first version of a bundle."""
    return action["from"] is None and action["to"] is not None


def _said(action: Json, item: Json) -> str:
    signed = f", signed by {_names(action)}" if _names(action) else ""
    if is_first(action):
        return f"{action['bundle']} {action['to']} is new in {item['name']}{signed}"
    moved = f"{action['from']} → {action['to']}" if action["to"] else action["from"]
    return f"{action['kind']} {action['bundle']} {moved}{signed}"


def _who(gate: Json) -> str:
    who = gate["who"]
    return f" Who can: {', '.join(map(str, who))}." if isinstance(who, list) and who else ""


def as_markdown(answer: Json) -> str:
    """Return a plan as a comment on a pull request."""
    commit = str(answer["revision"]).rpartition(":")[2]
    return bounded_comment(_markdown(answer), f"kneo plan --whole --ref {commit}")


def _markdown(answer: Json) -> Iterator[str]:
    yield MARKER
    yield "### Kneo plan\n"
    if _trust(answer)["changed"]:
        yield "#### ⚠ Trust root\n"
        yield from (f"- {_sign(loosened)} {_escaped(line)}" for loosened, line in _trust_lines(answer))
        yield ""
    yield _escaped(_compared(answer))
    if "problem" in answer:
        yield f"\n**Refused:** {_escaped(_problem(answer))}"
    if unsigned := _unsigned(answer):
        yield f"\n**Would not be followed:** {_escaped(unsigned)}"
    changed = sum(bool(action["diff"]) for item in environments(answer) for action in _rows(item["actions"]))
    most = COMMENTED_CHARS // max(changed, 1)
    for item in environments(answer):
        yield f"\n#### {_escaped(item['name'])}\n"
        yield from _environment_markdown(item, most)


def _sign(loosened: bool) -> str:
    return "⚠" if loosened else "✓"


def _environment_markdown(item: Json, most: int) -> Iterator[str]:
    if "problem" in item:
        yield f"**Stalled:** {_escaped(_problem(item))}\n"
    if item.get("removed"):
        yield f"- ⏳ {_escaped(open_tasks_text(item))}"
        return
    if item.get("retired"):
        yield f"{_escaped(f'{ENDS} {open_tasks_text(item)}')}\n"
    if not item["actions"] and not _bad(item):
        yield "No releases change.\n"
    for loosened, line, lines in _policy_lines(item, whole=False):
        yield f"- {_sign(loosened)} {_escaped(line)}"
        yield from (f"  {each}" for each in (fenced(lines) if lines else ()))
    if _rows(item.get("policy", [])):
        yield ""
    yield from _table(item)
    yield from _changes_markdown(item, most)
    yield from (
        f"- ✗ **{_escaped(v['bundle'])} {_escaped(v['version'])}** {_escaped(v['message'])}" for v in _bad(item)
    )
    for gate in _rows(item["gates"]):
        line = f"{_escaped(gate['reason'])}: {_escaped(gate['message'])}{_escaped(_who(gate))}"
        yield f"- ⏳ **{_escaped(gate['bundle'])}** {line}"
    for added in _rows(item.get("added_gates", [])):
        yield f"- {'✓' if added['steps'] else '⚠'} {_escaped(_asked(added))}"
    yield from (f"- {_escaped(_call(call))}" for call in _rows(item.get("calls", [])))
    yield from (f"- {_escaped(_served(call))}" for call in _rows(item.get("served_calls", [])))
    yield from (f"- ⚠ {_escaped(warning)}" for warning in _texts(item.get("warnings", [])))


def _table(item: Json) -> Iterator[str]:
    if item["actions"]:
        yield "| | bundle | from | to | signed by | |\n|---|---|---|---|---|---|"
    for action in _rows(item["actions"]):
        mark = "allowed" if action["allowed"] else "pending"
        cells = (action["kind"], action["bundle"], action["from"] or "", action["to"] or "", _names(action), mark)
        yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _changes_markdown(item: Json, most: int) -> Iterator[str]:
    for action in _rows(item["actions"]):
        changes = _changes(action, whole=False)
        if changes and is_first(action):
            yield f"\n**{_escaped(_said(action, item))}**\n"
            yield from fenced(list(fact_lines(changes)), "text")
            yield ""
        elif changes:
            high = sum(change["danger"] == "high" for change in changes)
            count = render.count(len(changes), "change") + (f", {high} to check" if high else "")
            yield f"\n<details{' open' if high else ''}><summary>{_escaped(action['bundle'])}: {count}</summary>\n"
            yield from change_markdown(changes, str(action["whole"]), most)
            yield "\n</details>\n"


def _names(action: Json) -> str:
    signers = action["signers"]
    return ", ".join(map(str, signers)) if isinstance(signers, list) else ""


def _escaped(value: object) -> str:
    """Escape a text of a pull request, so that it cannot become markup, a mention or a cell border."""
    text = plain(str(value)).replace("\n", " ")
    for letter, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("@", "&#64;"), ("`", "&#96;")):
        text = text.replace(letter, name)
    return "".join(f"\\{letter}" if letter in "*_[]" else letter for letter in text)


def open_tasks_text(item: Json) -> str:
    """Return the open tasks of an environment in a plan, as text."""
    known = item.get("open_tasks")
    if not isinstance(known, dict):
        return "Its open tasks are unknown here. Pass --service-url URL to list them."
    count, first = int(str(known["count"])), known["first"]
    if not count:
        return "It has no open tasks."
    named = ", ".join(f"{task['continuation_id']} ({task['workflow_name']}: {task['key']})" for task in first)
    more = f" and {count - len(first)} more" if count > len(first) else ""
    return f"{count} open: {named}{more}. They can still be decided; each run keeps the bundle it was started with."
