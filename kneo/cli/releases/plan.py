"""``kneo plan``: what a commit would change. Needs no service and no secret."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from kneo.api.environments import get_source, list_environments
from kneo.api.release_views import EnvironmentView, ReleaseView
from kneo.api.tasks import list_human_tasks
from kneo.cli import render
from kneo.cli.backend import Json
from kneo.cli.clone import MAIN, Clone
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions, backend, choose
from kneo.cli.releases.plan_render import as_markdown, as_text, environments, has_changes, is_refused
from kneo.cli.repository import KnownRoots
from kneo.clock import SystemClock
from kneo.controller.preview import LiveRegistry, compare
from kneo.controller.source.mirror import Mirror
from kneo.controller.source.snapshot import SourceSnapshot
from kneo.controller.stages.load import load
from kneo.controller.stages.verify import TrustConfig
from kneo.digest import Digest, parse_digest
from kneo.errors import KneoError, NotFound
from kneo.records.release import Release
from kneo.settings import Settings, from_env
from kneo.trust.dsse import parse_envelope

CHANGES = 10
"""Exit status for ``--exit-code`` when there are changes."""

Repo = Annotated[str, typer.Option("--repo", help="Config repository: a folder or an https or ssh URL.")]
Ref = Annotated[str | None, typer.Option("--ref", help="Branch or commit to plan; default: the checked-out commit.")]
Base = Annotated[
    str | None, typer.Option("--base", help="Commit to compare with; default: main, or the previous commit.")
]
Root = Annotated[str | None, typer.Option("--trust-root", help="Digest of the trust root to pin (sha256:…).")]


@examples("kneo plan", "kneo plan --repo . --ref my-branch --env prod --exit-code")
def plan(
    repo: Repo = ".",
    ref: Ref = None,
    env: Annotated[str | None, typer.Option("--env", help="Only this environment.")] = None,
    base: Base = None,
    trust_root: Root = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a comment for a pull request.")] = False,
    whole: Annotated[
        bool, typer.Option("--whole", help="Print every line of long texts, and of first versions.")
    ] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help=f"Exit {CHANGES} when there are changes.")] = False,
    *,
    options: ServiceOptions,
) -> None:
    """Preview what a commit would change, and which approvals it needs.

    The plan covers the trust root, rules, releases and their spec changes. It compares with the releases of a service or
    database where there is one and --base is not given; else with Git alone. Exit status 1 if the commit would be refused
    or would stall an environment.
    """
    settings = from_env()
    with tempfile.TemporaryDirectory(prefix="kneo-plan-") as folder:
        source = PlanBase()
        if base is None:
            source = find_base(settings, options.service_url, options.profile, lambda commit: _is_here(repo, commit))
        mirror, candidate, before = _snapshots(settings, repo, ref, base or source.commit, Path(folder))
        followed = [*mirror.history(None, before.commit), before] if before is not None else []
        pin = _pin(repo, trust_root, settings, before or candidate)
        trust = TrustConfig(pin, hmac_key=settings.spec_signing_key)
        answer = compare(candidate, followed, mirror.since, trust, env, SystemClock().now(), source.live)
    answer["base"] = before.revision if before is not None else None
    answer["source"] = source.as_json()
    answer["ok"], answer["changes"] = not is_refused(answer), has_changes(answer)
    if env is not None and not answer["environments"] and "problem" not in answer:
        msg = f"{candidate.revision} declares no environment {env!r}."
        raise NotFound(msg, code="environment_not_found")
    for item in environments(answer):
        if item.get("removed") or item.get("retired"):
            item["open_tasks"] = open_tasks(settings, str(item["name"]), options.service_url, options.profile)
    if markdown:
        render.text(as_markdown(answer))
    else:
        render.emit(answer, as_json=options.as_json, text=lambda: render.text("\n".join(as_text(answer, whole=whole))))
    if not answer["ok"]:
        raise typer.Exit(1)
    if exit_code and answer["changes"]:
        raise typer.Exit(CHANGES)


def _is_here(repo: str, commit: str) -> bool:
    return not Path(repo).is_dir() or Clone.find(Path(repo).resolve()).resolve(commit) is not None


def _snapshots(
    settings: Settings, repo: str, ref: str | None, base: str | None, folder: Path
) -> tuple[Mirror, SourceSnapshot, SourceSnapshot | None]:
    if not Path(repo).is_dir():
        mirror = Mirror(repo, ref or MAIN, folder, settings.git)
        against = base or (MAIN if ref not in {None, MAIN} else None)
        return mirror, mirror.peek(ref or MAIN), mirror.peek(against) if against else None
    clone = Clone.find(Path(repo).resolve())
    commit = clone.resolve(ref or "HEAD")
    if commit is None:
        msg = f"{repo} has no commit {ref or 'HEAD'}."
        raise NotFound(msg, code="commit_not_found", hint="Commit first: a plan compares commits.")
    mirror = Mirror(str(clone.root), MAIN, folder, settings.git)
    against = _base_of(clone, commit, base)
    return mirror, mirror.peek(commit), mirror.peek(against) if against else None


def _base_of(clone: Clone, commit: str, base: str | None) -> str | None:
    if base is not None:
        commit_id = clone.resolve(base)
        if commit_id is None:
            msg = f"There is no commit {base[:100]}."
            raise NotFound(msg, code="commit_not_found", hint="In CI, fetch the whole history: fetch-depth: 0.")
        return commit_id
    main = clone.resolve(f"refs/heads/{MAIN}")
    return main if main not in {None, commit} else clone.resolve(f"{commit}~1")


def _pin(repo: str, option: str | None, settings: Settings, first: SourceSnapshot) -> Digest:
    """Return the pinned trust root; without a pin, the repository's own, because a plan changes nothing."""
    pin = parse_digest(option) if option else settings.trust_root
    if pin is None and Path(repo).is_dir():
        pin = KnownRoots(settings.known_roots_path).lookup(Clone.find(Path(repo).resolve()).root)
    if pin is not None:
        return pin
    roots = load(first).roots
    if not roots:
        msg = f"{first.revision} has no environments/trust.json."
        raise NotFound(msg, code="no_trust_root", hint="Is this a config repository? kneo init makes one.")
    pin = parse_envelope(roots[0]).digest
    render.warning(
        f"No trust root is pinned; this plan uses the repository's own: {pin}. To pin it: --trust-root {pin}"
    )
    return pin


@dataclass(frozen=True)
class PlanBase:
    """What a plan compares with.

    Args:
        kind: ``git``, ``database`` or ``service``.
        address: Of the service; None for the others.
        commit: The commit that the registry accepted last.
        live: What the registry says.
    """

    kind: str = "git"
    address: str | None = None
    commit: str | None = None
    live: LiveRegistry = field(default_factory=LiveRegistry)

    def as_json(self) -> Json:
        return {"kind": self.kind, "address": self.address, "commit": self.commit}


def find_base(
    settings: Settings, service_url: str | None, profile: str | None, has_commit: Callable[[str], bool]
) -> PlanBase:
    """Read the releases, holds and suspensions of the service or database of this command.

    Args:
        settings: This process's settings.
        service_url: The address of a service.
        profile: The name of a profile.
        has_commit: Whether the repository has a commit; the registry of another repository is not comparable.

    Raises:
        KneoError: the given service or profile is not available.
    """
    address = choose(settings, service_url, profile)
    if address is None and not has_database(settings):
        return PlanBase()
    kind = "database" if address is None else "service"
    try:
        with backend(service_url, profile, existing=True) as service:
            commit = service.call(get_source).accepted_commit
            environments = service.call(list_environments).environments
    except NotFound:
        return PlanBase()
    except KneoError as error:
        if service_url is not None or profile is not None:
            raise
        render.warning(f"The {kind} is not available, so this plan compares with Git alone: {error.message}")
        return PlanBase()
    if commit is None or not has_commit(commit):
        render.warning(f"The {kind} has no commit of this repository, so this plan compares with Git alone.")
        return PlanBase()
    return PlanBase(kind, address.url if address is not None else None, commit, _live(environments))


def _live(environments: Sequence[EnvironmentView]) -> LiveRegistry:
    return LiveRegistry(
        {item.name: {one.bundle: _release(item.name, one) for one in item.releases} for item in environments},
        {item.name: {one.bundle: one for one in item.holds} for item in environments},
        {item.name: item.suspension for item in environments if item.suspension is not None},
        {item.name: item.policy_digest for item in environments if item.policy_digest},
    )


def _release(environment: str, item: ReleaseView) -> Release:
    return Release(environment=environment, promotion_id="", **vars(item))


SHOWN = 5
"""Open tasks that are listed by name; the others are counted."""


def open_tasks(settings: Settings, environment: str, service_url: str | None, profile: str | None) -> Json | None:
    """Return the number of the open tasks of an environment, and the first of them.

    Returns:
        ``count`` and ``first``; ``None`` without a service and a database: a plan needs neither.
    """
    try:
        if choose(settings, service_url, profile) is None and not has_database(settings):
            return None
        with backend(service_url, profile) as opened:
            page = opened.call(list_human_tasks, environment=environment, limit=SHOWN)
    except KneoError as error:
        render.warning(f"The open tasks of {environment} cannot be read: {error.message}")
        return None
    names = ("continuation_id", "run_id", "workflow_name", "key")
    return {"count": page.total, "first": [{name: getattr(task, name) for name in names} for task in page.tasks]}


def has_database(settings: Settings) -> bool:
    """Return whether there is a database. A SQLite file is not created for reading."""
    scheme, _, path = settings.database_url.partition(":///")
    return scheme != "sqlite" or Path(path).is_file()
