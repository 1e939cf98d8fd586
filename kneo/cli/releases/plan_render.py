"""Text of a plan: for a terminal, and as a comment on a pull request."""

from __future__ import annotations

import json
from collections.abc import Iterator

from kneo.cli import render
from kneo.cli.connection import Json
from kneo.names import plain
from kneo.spec.diff import change_lines, change_markdown, fact_lines, fenced, shortened
from kneo.spec.diff.rules import WHOLE, shown_rule

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


def _trust_lines(answer: Json) -> Iterator[str]:
    """Return the changes of a trust root: roles, thresholds, keys and revocations."""
    trust = _trust(answer)
    if not trust["changed"]:
        return
    signed = ", ".join(map(str, trust["signed_by"])) if isinstance(trust["signed_by"], list) else ""
    yield f"The trust root changes: version {trust['from'] or 'none'} → {trust['to'] or 'none'}, signed by {signed or 'no key'}"
    for role in _rows(trust["roles"]):
        yield from (f"{name} gains the role {role['role']}" for name in role["gained"])  # type: ignore[attr-defined]
        yield from (f"{name} loses the role {role['role']}" for name in role["lost"])  # type: ignore[attr-defined]
        for what in ("threshold", "paths"):
            change = role[what]
            assert isinstance(change, dict)
            if change["from"] != change["to"]:
                yield f"The {what} of the role {role['role']}: {_value(change['from'])} → {_value(change['to'])}"
    for verb, keys in (("added", trust["keys_added"]), ("removed", trust["keys_removed"])):
        yield from (f"Key {verb}: {key['keyid']} of {key['principal']}" for key in _rows(keys))
    for item in _rows(trust["revoked"]):
        since = f", compromised since {item['compromised_since']}" if item["compromised_since"] else ""
        yield f"Key revoked: {item['keyid']} of {item['principal']} as of {item['at']}{since}: {item['reason']}"


def _policy_lines(item: Json, *, whole: bool) -> Iterator[tuple[bool, str, list[str]]]:
    """Return the changes of an environment's rules, each with whether it weakens protection, and the lines of long values."""
    command = WHOLE.replace("NAME", str(item["name"]))
    for change in sorted(_rows(item.get("policy", [])), key=lambda change: change["direction"] != "loosened"):
        loosened = change["direction"] == "loosened"
        verb = "weakens" if loosened else "tightens"
        lines = tuple(map(str, change["lines"])) if isinstance(change["lines"], list) else ()
        shown = lines if whole else shown_rule(lines, command)
        yield loosened, f"{str(change['message']).removesuffix('.')} ({verb} protection)", list(shown)
    windows = item.get("windows")
    if isinstance(windows, dict) and not windows["open"] and item["actions"]:
        yield True, f"Changes are not allowed until {windows['next_opening'] or 'the windows change'}.", []


def _value(value: object) -> str:
    return (
        json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) or value is None else str(value)
    )


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
    yield from (f"  {render.CAREFUL} {line}" for line in _trust_lines(answer))
    if "problem" in answer:
        yield f"  {render.FAILED} {_problem(answer)}"
    if unsigned := _unsigned(answer):
        yield f"  {render.FAILED} {unsigned}"
    for item in environments(answer):
        yield f"\n{item['name']}"
        yield from _environment_text(item, whole=whole)


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
        yield f"  {render.CAREFUL if loosened else render.DONE} {line}"
        yield from (f"        {each}" for each in lines)
    for action in _rows(item["actions"]):
        mark = render.DONE if action["allowed"] else render.CAREFUL
        yield f"  {mark} {_said(action, item)}"
        yield from (f"    {line}" for line in review_lines(action, whole=whole))
    yield from (f"  {render.FAILED} {v['bundle']} {v['version']}: {v['reason']}: {v['message']}" for v in _bad(item))
    for gate in _rows(item["gates"]):
        yield f"  {render.CAREFUL} {gate['bundle']} pending: {gate['reason']}: {gate['message']}{_who(gate)}"
    for added in _rows(item.get("added_gates", [])):
        yield f"  {render.DONE if added['steps'] else render.CAREFUL} {_asked(added)}"


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


def as_markdown(answer: Json) -> Iterator[str]:
    """Return a plan as the lines of a comment on a pull request."""
    yield MARKER
    yield "### Kneo plan\n"
    if _trust(answer)["changed"]:
        yield "#### ⚠ Trust root\n"
        yield from (f"- {_escaped(line)}" for line in _trust_lines(answer))
        yield ""
    yield _escaped(_compared(answer))
    if "problem" in answer:
        yield f"\n**Refused:** {_escaped(_problem(answer))}"
    if unsigned := _unsigned(answer):
        yield f"\n**Would not be followed:** {_escaped(unsigned)}"
    for item in environments(answer):
        yield f"\n#### {_escaped(item['name'])}\n"
        yield from _environment_markdown(item)


def _environment_markdown(item: Json) -> Iterator[str]:
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
        yield f"- {'⚠' if loosened else '✓'} {_escaped(line)}"
        yield from (f"  {each}" for each in (fenced(lines) if lines else ()))
    if _rows(item.get("policy", [])):
        yield ""
    yield from _table(item)
    yield from _changes_markdown(item)
    yield from (
        f"- ✗ **{_escaped(v['bundle'])} {_escaped(v['version'])}** {_escaped(v['message'])}" for v in _bad(item)
    )
    for gate in _rows(item["gates"]):
        line = f"{_escaped(gate['reason'])}: {_escaped(gate['message'])}{_escaped(_who(gate))}"
        yield f"- ⏳ **{_escaped(gate['bundle'])}** {line}"
    for added in _rows(item.get("added_gates", [])):
        yield f"- {'✓' if added['steps'] else '⚠'} {_escaped(_asked(added))}"


def _table(item: Json) -> Iterator[str]:
    if item["actions"]:
        yield "| | bundle | from | to | signed by | |\n|---|---|---|---|---|---|"
    for action in _rows(item["actions"]):
        mark = "allowed" if action["allowed"] else "pending"
        cells = (action["kind"], action["bundle"], action["from"] or "", action["to"] or "", _names(action), mark)
        yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _changes_markdown(item: Json) -> Iterator[str]:
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
            yield from change_markdown(changes, str(action["whole"]))
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
