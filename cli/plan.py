"""``kneo plan``: what a commit would change, in words. Needs no service and no secret."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.backend import Json
from cli.clone import MAIN, Clone
from cli.connection import JsonOption, ProfileOption, ServiceUrlOption
from cli.known_roots import KnownRoots
from cli.open_tasks import open_tasks, said_of
from controller.load import load
from controller.preview import Believing, compare
from controller.source.mirror import Mirror
from controller.source.snapshot import SourceSnapshot
from kneo.clock import SystemClock
from kneo.digest import Digest, parse_digest
from kneo.errors import NotFound
from kneo.settings import Settings, from_env
from kneo.trust.dsse import parse_envelope

CHANGES = 10
"""Exit status for ``--exit-code`` when there are changes."""

SHOWN_LINES = 40
"""Most lines of one changed text that are shown."""

Repo = Annotated[str, typer.Option("--repo", help="Config repository: a folder or an https or ssh URL.")]
Ref = Annotated[
    str | None, typer.Option("--ref", help="The commit to judge: a branch or a commit; else what is checked out.")
]
Base = Annotated[str | None, typer.Option("--base", help="What to compare with; else main, or the commit before.")]
Root = Annotated[str | None, typer.Option("--trust-root", help="Digest of the first trust root to believe.")]


def plan(
    repo: Repo = ".",
    ref: Ref = None,
    env: Annotated[str | None, typer.Option("--env", help="Only this environment.")] = None,
    base: Base = None,
    trust_root: Root = None,
    service_url: ServiceUrlOption = None,
    profile: ProfileOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a comment for a pull request.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help=f"Exit {CHANGES} when there are changes.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what a commit would change: releases, what their specs change, who has to agree.

    Where it takes an environment away, a service or a database beside it is asked which questions are open there.
    """
    settings = from_env()
    with tempfile.TemporaryDirectory(prefix="kneo-plan-") as folder:
        candidate, before = _snapshots(repo, ref, base, Path(folder))
        pin = _pin(repo, trust_root, settings, before or candidate)
        believing = Believing(pin, hmac_key=settings.spec_signing_key)
        answer = compare(candidate, before, believing, env, SystemClock().now())
    answer["base"] = before.revision if before is not None else None
    if env is not None and not answer["environments"] and "problem" not in answer:
        msg = f"{candidate.revision} declares no environment {env!r}."
        raise NotFound(msg, code="environment_not_found")
    for item in _environments(answer):
        if item.get("removed"):
            item["open_tasks"] = open_tasks(settings, str(item["name"]), service_url, profile)
    if markdown:
        typer.echo("\n".join(_markdown(answer)))
    else:
        render.emit(answer, as_json=as_json, text=lambda: render.text("\n".join(_lines(answer))))
    if exit_code and _has_changes(answer):
        raise typer.Exit(CHANGES)


def _snapshots(
    repo: str, ref: str | None, base: str | None, folder: Path
) -> tuple[SourceSnapshot, SourceSnapshot | None]:
    if not Path(repo).is_dir():
        mirror = Mirror(repo, ref or MAIN, folder)
        against = base or (MAIN if ref not in {None, MAIN} else None)
        return mirror.peek(ref or MAIN), mirror.peek(against) if against else None
    clone = Clone.find(Path(repo).resolve())
    commit = clone.resolve(ref or "HEAD")
    if commit is None:
        msg = f"{repo} has no commit {ref or 'HEAD'}."
        raise NotFound(msg, code="commit_not_found", hint="Commit first: a plan is about a commit.")
    mirror = Mirror(str(clone.root), MAIN, folder)
    against = _base_of(clone, commit, base)
    return mirror.peek(commit), mirror.peek(against) if against else None


def _base_of(clone: Clone, commit: str, base: str | None) -> str | None:
    if base is not None:
        found = clone.resolve(base)
        if found is None:
            msg = f"There is no commit {base[:100]}."
            raise NotFound(msg, code="commit_not_found", hint="In CI, fetch the whole history: fetch-depth: 0.")
        return found
    main = clone.resolve(f"refs/heads/{MAIN}")
    return main if main not in {None, commit} else clone.resolve(f"{commit}~1")


def _pin(repo: str, given: str | None, settings: Settings, first: SourceSnapshot) -> Digest:
    """Decide which first trust root to believe; a plan decides nothing, so the repository's own is better than none."""
    pin = parse_digest(given) if given else settings.trust_root
    if pin is None and Path(repo).is_dir():
        pin = KnownRoots(settings.known_roots_path).lookup(Clone.find(Path(repo).resolve()).root)
    if pin is not None:
        return pin
    roots = load(first).roots
    if not roots:
        msg = f"{first.revision} has no environments/trust.json."
        raise NotFound(msg, code="no_trust_root", hint="Is this a config repository? kneo init makes one.")
    pin = parse_envelope(roots[0]).digest
    render.warning(f"Nobody said which trust root to believe, so this plan believes the repository's own: {pin}")
    return pin


def _has_changes(answer: Json) -> bool:
    return any(item["actions"] or item["gates"] or item.get("removed") for item in _environments(answer))


def _environments(answer: Json) -> list[Json]:
    found = answer["environments"]
    assert isinstance(found, list)
    return found


def _rows(value: object) -> list[Json]:
    assert isinstance(value, list)
    return value


def _lines(answer: Json) -> Iterator[str]:
    yield f"{answer['revision']} against {answer['base'] or 'nothing'}"
    if "problem" in answer:
        yield f"  {answer['problem']}"
    for item in _environments(answer):
        yield f"\n{item['name']}"
        if "problem" in item:
            yield f"  {render.FAILED} {_problem(item)}"
        if item.get("removed"):
            yield f"  {render.CAREFUL} {said_of(item)}"
            continue
        if not item["actions"]:
            yield f"  {render.OPEN} no releases change"
        for action in _rows(item["actions"]):
            mark = render.DONE if action["allowed"] else render.CAREFUL
            yield f"  {mark} {_said(action)}"
            for change in _rows(action["diff"]):
                yield f"      {change['danger']}: {change['message']}"
                yield from (f"        {line}" for line in _texts(change))
        yield from (
            f"  {render.FAILED} {v['bundle']} {v['version']}: {v['reason']}: {v['message']}" for v in _bad(item)
        )
        for gate in _rows(item["gates"]):
            yield f"  {render.CAREFUL} {gate['bundle']} waits: {gate['reason']}: {gate['message']}{_who(gate)}"
        for added in _rows(item.get("added_gates", [])):
            yield f"  {render.DONE if added['steps'] else render.CAREFUL} {_asked(added)}"


def _asked(added: Json) -> str:
    """Say which steps an environment's own question stands around."""
    steps = added["steps"]
    assert isinstance(steps, dict)
    if not steps:
        return f"The gate {added['gate']} stands around no step of anything released here."
    told = "; ".join(f"{bundle}: {', '.join(paths)}" for bundle, paths in steps.items())
    return f"The gate {added['gate']} asks at {told}."


def _problem(item: Json) -> str:
    problem = item["problem"]
    assert isinstance(problem, dict)
    return f"{problem['reason']}: {problem['message']}"


def _bad(item: Json) -> list[Json]:
    return [verdict for verdict in _rows(item["verdicts"]) if not verdict["ok"]]


def _said(action: Json) -> str:
    moved = f"{action['from']} → {action['to']}" if action["from"] and action["to"] else action["to"] or action["from"]
    return f"{action['kind']} {action['bundle']} {moved}"


def _who(gate: Json) -> str:
    who = gate["who"]
    return f" Who can: {', '.join(map(str, who))}." if isinstance(who, list) and who else ""


def _markdown(answer: Json) -> Iterator[str]:
    yield f"### Kneo plan\n\n`{answer['revision']}` against `{answer['base'] or 'nothing'}`"
    if "problem" in answer:
        yield f"\n**Nothing would change:** {_escaped(answer['problem'])}"
    for item in _environments(answer):
        yield f"\n#### {_escaped(item['name'])}\n"
        if "problem" in item:
            yield f"**Stalled:** {_escaped(_problem(item))}\n"
        if item.get("removed"):
            yield f"- ⏳ {_escaped(said_of(item))}"
            continue
        if not item["actions"] and not _bad(item):
            yield "No releases change.\n"
        if item["actions"]:
            yield "| | bundle | from | to | signed by | |\n|---|---|---|---|---|---|"
        for action in _rows(item["actions"]):
            mark = "allowed" if action["allowed"] else "waits"
            cells = (action["kind"], action["bundle"], action["from"] or "", action["to"] or "", _names(action), mark)
            yield "| " + " | ".join(_escaped(cell) for cell in cells) + " |"
        yield from _changes(item)
        yield from (
            f"- ✗ **{_escaped(v['bundle'])} {_escaped(v['version'])}** {_escaped(v['message'])}" for v in _bad(item)
        )
        for gate in _rows(item["gates"]):
            yield f"- ⏳ **{_escaped(gate['bundle'])}** {_escaped(gate['reason'])}: {_escaped(gate['message'])}{_escaped(_who(gate))}"
        for added in _rows(item.get("added_gates", [])):
            yield f"- {'✓' if added['steps'] else '⚠'} {_escaped(_asked(added))}"


def _changes(item: Json) -> Iterator[str]:
    for action in _rows(item["actions"]):
        changes = _rows(action["diff"])
        if changes:
            yield f"\n<details><summary>{_escaped(action['bundle'])}: {len(changes)} changes</summary>\n"
            for change in changes:
                yield f"- {_escaped(change['danger'])}: {_escaped(change['message'])}"
                yield from (f"  - <code>{_escaped(line)}</code>" for line in _texts(change))
            yield "\n</details>\n"


def _texts(change: Json) -> list[str]:
    lines = change["lines"]
    return [str(line) for line in lines[:SHOWN_LINES]] if isinstance(lines, list) else []


def _names(action: Json) -> str:
    signers = action["signers"]
    return ", ".join(map(str, signers)) if isinstance(signers, list) else ""


def _escaped(value: object) -> str:
    """Keep what a pull request wrote from becoming markup, a mention or a cell border in our words."""
    text = render.plain(str(value)).replace("\n", " ")
    for letter, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "&#124;"), ("@", "&#64;"), ("`", "&#96;")):
        text = text.replace(letter, name)
    return "".join(f"\\{letter}" if letter in "*_[]" else letter for letter in text)
