"""``kneo trust``: edit and sign the next trust root."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.repository.layout import TRUST_PATH, find_repository
from cli.specs.keys import load_private, load_public
from cli.specs.trust_roots import RootChain, TrustFiles
from kneo.clock import SystemClock, isoformat, parse_duration, parse_time
from kneo.errors import NotFound, Untrusted, Usage
from kneo.trust.root import ROOT_ROLE, RootDocument
from kneo.trust.root_edit import EVERYTHING, add_key, remove_key, revoke_key, set_expiry, set_role

app = typer.Typer()

DEFAULT_LIFE = "365d"
MIN_PREFIX = 8
"""Shortest beginning of a key id that is accepted for it, in hex digits."""

File = Annotated[Path | None, typer.Option("--file", help="The trust root; found from here when left out.")]
Keys = Annotated[list[Path], typer.Option("--key", help="Private key to sign the new version with; repeatable.")]
Life = Annotated[str | None, typer.Option("--expires", help="From now until it admits nothing new, such as 365d.")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer as JSON.")]
KeyName = Annotated[str, typer.Argument(metavar="KEY", help="A key id, its first digits, or a PEM file.")]


@app.command("init")
def init(
    *,
    key: Annotated[Path, typer.Option("--key", help="Private key of the first person; it gets every role.")],
    principal: Annotated[str, typer.Option(help="Whose key that is.")] = "owner",
    file: File = None,
    expires: Annotated[str, typer.Option("--expires", help="From now until it admits nothing new.")] = DEFAULT_LIFE,
    as_json: AsJson = False,
) -> None:
    """Begin a trust root: version 1, with one key for the roles root, release and approver."""
    files = _files(file)
    files.begin(load_private(key), principal, SystemClock().now() + parse_duration(expires))
    _answer(files, as_json=as_json)


@app.command()
def show(*, file: File = None, as_json: AsJson = False) -> None:
    """Show whose keys count for what, until when, and whether every signature is there."""
    _answer(_files(file), as_json=as_json)


@app.command("add-key")
def add(
    public: Annotated[Path, typer.Argument(metavar="PEM", help="The new key; its public half is enough.")],
    *,
    principal: Annotated[str, typer.Option(help="Whose key it is.")],
    role: Annotated[list[str], typer.Option("--role", help="What it may do: root, release, approver; repeatable.")],
    key: Keys,
    path: Annotated[
        list[str] | None, typer.Option("--path", help="Which files a new role may sign, such as bundles/team-*/*.")
    ] = None,
    file: File = None,
    expires: Life = None,
    as_json: AsJson = False,
) -> None:
    """Give a person's key to roles. A role that does not exist yet begins with a threshold of one."""
    new = load_public(public)

    def change(document: RootDocument) -> RootDocument:
        changed = add_key(document, new, principal=principal, roles=role)
        for name in role:
            if path:
                changed = set_role(changed, name, paths=path)
            elif name not in document.roles and name != ROOT_ROLE:
                changed = set_role(changed, name, paths=EVERYTHING)
        return changed

    _edit(file, change, key, expires, as_json=as_json)


@app.command("remove-key")
def remove(
    name: KeyName,
    *,
    key: Keys,
    role: Annotated[list[str] | None, typer.Option("--role", help="Only from this role; repeatable.")] = None,
    file: File = None,
    expires: Life = None,
    as_json: AsJson = False,
) -> None:
    """Take a key away. What it signed stops counting; revoke it to keep what was signed while it was good."""
    _edit(file, lambda d: remove_key(d, _find_key(d, name), roles=role), key, expires, as_json=as_json)


@app.command()
def revoke(
    name: KeyName,
    *,
    reason: Annotated[str, typer.Option(help="Why, for people.")],
    key: Keys,
    at: Annotated[str | None, typer.Option(help="From when on it vouches for nothing new; now when left out.")] = None,
    compromised_since: Annotated[
        str | None, typer.Option(help="From when on nothing it signed counts, though it was seen before.")
    ] = None,
    file: File = None,
    expires: Life = None,
    as_json: AsJson = False,
) -> None:
    """Say that a key vouches for nothing from a moment on. What was seen before stays valid."""
    moment = parse_time(at) if at else SystemClock().now()
    since = parse_time(compromised_since) if compromised_since else None

    def change(document: RootDocument) -> RootDocument:
        return revoke_key(document, _find_key(document, name), at=moment, reason=reason, compromised_since=since)

    _edit(file, change, key, expires, as_json=as_json)


@app.command("set-role")
def change_role(
    role: Annotated[str, typer.Argument(help="Which role.")],
    *,
    key: Keys,
    threshold: Annotated[int | None, typer.Option(help="How many different people must sign.")] = None,
    path: Annotated[list[str] | None, typer.Option("--path", help="Which files it may sign; repeatable.")] = None,
    file: File = None,
    expires: Life = None,
    as_json: AsJson = False,
) -> None:
    """Change how many people of a role must sign, or what they may sign."""
    if threshold is None and not path:
        msg = "There is nothing to change."
        raise Usage(msg, hint="Give --threshold, --path, or both.")
    _edit(file, lambda d: set_role(d, role, threshold=threshold, paths=path), key, expires, as_json=as_json)


@app.command()
def sign(
    *,
    key: Keys,
    expires: Annotated[
        str | None, typer.Option("--expires", help="Begin the next version, which lasts this long from now.")
    ] = None,
    file: File = None,
    as_json: AsJson = False,
) -> None:
    """Add signatures to the present trust root, or renew it with --expires."""
    if expires:
        _edit(file, lambda document: document, key, expires, as_json=as_json)
        return
    files = _files(file)
    files.sign([load_private(path) for path in key])
    _answer(files, as_json=as_json, edited=True)


def _edit(
    file: Path | None,
    change: Callable[[RootDocument], RootDocument],
    keys: Sequence[Path],
    expires: str | None,
    *,
    as_json: bool,
) -> None:
    now = SystemClock().now()

    def change_all(document: RootDocument) -> RootDocument:
        return change(set_expiry(document, now + parse_duration(expires)) if expires else document)

    files = _files(file)
    files.edit(change_all, [load_private(path) for path in keys], now)
    _answer(files, as_json=as_json, edited=True)


def _find_key(document: RootDocument, name: str) -> str:
    if Path(name).is_file():
        return load_public(Path(name)).keyid
    digits = name.removeprefix("sha256:")
    found = [k for k in document.keys if k.removeprefix("sha256:").startswith(digits)]
    if len(digits) < MIN_PREFIX or len(found) != 1:
        what = "No key" if not found else "More than one key"
        msg = f"{what} of the trust root is called {name!r}."
        raise NotFound(
            msg, hint=f"Give the id, at least {MIN_PREFIX} of its digits, or a PEM file; see kneo trust show."
        )
    return found[0]


def _files(file: Path | None) -> TrustFiles:
    repository = find_repository(Path.cwd())
    return TrustFiles(file or (repository.trust_file if repository else TRUST_PATH))


def _answer(files: TrustFiles, *, as_json: bool, edited: bool = False) -> None:
    chain = files.read()
    missing = chain.missing(SystemClock().now())
    document = chain.newest.document
    view = document.model_dump(mode="json", by_alias=True, exclude_none=True)
    value = {
        "version": document.version,
        "digest": chain.newest.digest,
        "first": chain.first,
        "expires": view["expires"],
        "complete": missing is None,
        "roles": view["roles"],
        "keys": view["keys"],
        "revoked": view["revoked"],
    }
    commit = [str(path) for path in files.files_of(chain)]
    if edited:
        value["commit"] = commit

    def show() -> None:
        _print(files.file, chain, missing)
        if edited:
            render.text(f"\nCommit together: {' '.join(commit)}")

    render.emit(value, as_json=as_json, text=show)


def _print(file: Path, chain: RootChain, missing: Untrusted | None) -> None:
    document = chain.newest.document
    render.text(
        f"{file}\n  version  {document.version}\n  digest   {chain.newest.digest}\n"
        f"  pin      {chain.first} (the first root; what a controller is given)\n"
        f"  expires  {isoformat(document.expires)}"
    )
    rows = [
        [name, role.threshold, document.keys[keyid].principal, f"{keyid[:19]}…", " ".join(role.paths or ())]
        for name, role in sorted(document.roles.items())
        for keyid in role.keys
    ]
    render.table("", ["Role", "Needs", "Person", "Key", "May sign"], rows)
    for revocation in document.revoked:
        owner = document.keys[revocation.keyid].principal if revocation.keyid in document.keys else "?"
        when = isoformat(revocation.at)
        since = revocation.compromised_since
        others = f" (compromised since {isoformat(since)})" if since is not None else ""
        render.text(f"  revoked  {revocation.keyid[:19]}… of {owner} from {when}{others}: {revocation.reason}")
    if missing is None:
        render.success("Every signature that it needs is there.")
    else:
        render.warning(missing.message, missing.hint)
