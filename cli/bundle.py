"""``kneo spec bundle``: freeze a spec and vouch for it; check who vouched for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli import render
from cli.bundle_check import Account, check_bundle, choose_root, known_keys
from cli.files import write_whole
from cli.keys import load_private, private_from
from cli.project import open_project
from cli.repository import ConfigRepository, find_repository, read_bundle
from cli.signing import Place, SignedBundle, place_of, read_statement, sign_bundle, source_of
from cli.spec_check import Checked, check, require_usable
from kneo.clock import SystemClock, isoformat
from kneo.digest import Digest, digest_of_json, parse_digest
from kneo.errors import Conflict, Invalid, NotFound, Untrusted, Usage
from kneo.settings import from_env, process_environment
from kneo.spec.diagnostics import Severity
from kneo.spec.reader import read_json
from kneo.trust.export import export_pae, export_sigstore
from kneo.trust.hmac_bundle import KIND, check_hmac_bundle, sign_hmac_bundle
from kneo.trust.keys import PrivateKey
from kneo.trust.statement import BundleStatement

app = typer.Typer(help="Freeze specs into signed bundles, and check who vouched for what.", no_args_is_help=True)

HMAC_KEY = "KNEO_SERV_SPEC_SIGNING_KEY"


class Shape(StrEnum):
    PAE = "pae"
    SIGSTORE = "sigstore"


BundleFile = Annotated[Path, typer.Argument(metavar="FILE", help="A bundle.")]
TrustOption = Annotated[Path | None, typer.Option("--trust", help="The trust root; the repository's when left out.")]
PinOption = Annotated[str | None, typer.Option("--trust-root", help="Digest of the first trust root, from elsewhere.")]
KeyEnvOption = Annotated[str, typer.Option("--key-env", help="Environment variable that holds a key.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("sign")
def sign(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="A YAML or JSON file.")],
    *,
    approved_by: Annotated[str, typer.Option(help="Who says that this may run.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="bundles/NAME/VERSION.dsse.json says name and version too.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="Where it may run; repeatable. Left out: every environment here.")
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Your private key.")] = None,
    key_env: KeyEnvOption = HMAC_KEY,
    name: Annotated[str | None, typer.Option(help="The bundle's name, where --output does not say it.")] = None,
    version: Annotated[str | None, typer.Option(help="The version, where --output does not say it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Freeze a spec as it is meant for its environments, and sign it.

    With a private key (--key, or a PEM text in the variable of --key-env) this makes a bundle that says who signed.
    Signing a file that is there already adds a signature. With any other text in the variable it makes an HMAC bundle.
    """
    private = _private_key(key, key_env)
    if private is None:
        _sign_hmac(spec, output, approved_by, env, key_env, as_json=as_json)
        return
    here = find_repository(Path.cwd())
    place = place_of(output, name, version, here)
    environments = _environments(env, place, here)
    checked = _check_for(spec, environments, as_json=as_json)
    signed = sign_bundle(
        place,
        _one_tree(checked, environments),
        environments=environments,
        approved_by=approved_by,
        key=private,
        source=source_of(spec),
        now=SystemClock().now(),
    )
    answer = {
        "output": str(signed.file),
        "digest": signed.statement.digest,
        "signature": {"algorithm": private.algorithm.value, "key_id": private.keyid},
        **_facts(signed.statement),
        "signers": list(signed.signers),
        "added": signed.added,
    }
    render.emit(answer, as_json=as_json, text=lambda: _print_signed(signed, private))


@app.command("verify")
def verify(
    file: BundleFile,
    *,
    trust: TrustOption = None,
    trust_root: PinOption = None,
    env: Annotated[str | None, typer.Option("--env", help="Judge it for this environment only.")] = None,
    key_env: KeyEnvOption = HMAC_KEY,
    as_json: JsonOption = False,
) -> None:
    """Go through the verification step by step. Exits 3 when nobody trusted vouches for it."""
    if _is_hmac(file):
        _verify_hmac(file, key_env, as_json=as_json)
        return
    account = _account(file, trust, trust_root, env)
    told = account.told
    code = next((step.code for step in told.steps if step.passed is False), None)
    errors = [f"{step.number}. {step.title}: {step.detail}" for step in told.steps if step.passed is False]
    answer = {
        "valid": account.valid,
        "digest_valid": _passed(told.steps, 6),
        "signature_valid": _passed(told.steps, 4),
        "errors": errors,
        "reason": code,
        **_trust_facts(account),
        "environments": [
            {"name": each.environment, "valid": each.valid, "steps": [_step_facts(step) for step in each.steps]}
            for each in account.environments
        ],
    }
    render.emit(answer, as_json=as_json, text=lambda: _print_account(account))
    if not account.valid:
        raise typer.Exit(Untrusted.exit_code)


@app.command("inspect")
def inspect(
    file: BundleFile,
    *,
    trust: TrustOption = None,
    trust_root: PinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a bundle says, and, where there is a trust root, how its verification goes. Decides nothing."""
    if _is_hmac(file):
        _inspect_hmac(file, as_json=as_json)
        return
    envelope, statement = read_statement(file)
    try:
        account = _account(file, trust, trust_root, None)
    except NotFound:
        account = None
    owners = {str(keyid): key.principal for keyid, key in account.believed.root.keys.items()} if account else {}
    signatures = [{"keyid": s.keyid, "principal": owners.get(s.keyid)} for s in envelope.signatures]
    answer = {
        "file": str(file),
        "digest": statement.digest,
        **_facts(statement),
        "signatures": signatures,
        "valid": account.valid if account else None,
        "steps": [_step_facts(step) for step in account.told.steps] if account else [],
        "spec": statement.predicate.spec,
    }

    def show() -> None:
        render.text(f"{file}\n  digest  {statement.digest}")
        for label, value in _facts(statement).items():
            shown = ", ".join(value) if isinstance(value, list) else value
            render.text(f"  {label.replace('_', ' ')}  {shown}")
        for signature in signatures:
            whose = signature["principal"] or "nobody known"
            render.text(f"  signed with {signature['keyid']} of {whose}")
        if account:
            _print_account(account)

    render.emit(answer, as_json=as_json, text=show)


@app.command("export")
def export(
    file: BundleFile,
    *,
    shape: Annotated[Shape, typer.Option("--format", help="Raw bytes for openssl, or Sigstore bundles.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="A folder; it is made.")],
    trust: TrustOption = None,
    trust_root: PinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the signatures in forms that other tools check."""
    envelope, _ = read_statement(file)
    try:
        settings, pin = from_env(), parse_digest(trust_root) if trust_root else None
        keys = known_keys(choose_root(file, trust, pin, settings, SystemClock().now()))
    except NotFound:
        keys = []
    files = export_pae(envelope, keys) if shape is Shape.PAE else export_sigstore(envelope)
    for name, data in files.items():
        write_whole(output / name, data)
    written = [str(output / name) for name in files]
    answer = {"format": shape.value, "digest": envelope.digest, "files": written}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Wrote {', '.join(written)}"))


# ---- signing ----------------------------------------------------------------------------------------------------


def _private_key(file: Path | None, variable: str) -> PrivateKey | None:
    if file is not None:
        return load_private(file)
    content = _secret(variable)
    if "-----BEGIN" in content:
        return private_from(content.encode(), where=variable)
    return None


def _secret(variable: str) -> str:
    return process_environment(variable).get(variable, "")


def _environments(asked: Sequence[str] | None, place: Place, here: ConfigRepository | None) -> list[str]:
    """Where a bundle may run: what was asked for, what its present file says, or every environment there is."""
    if asked:
        return sorted(set(asked))
    if place.file.exists():
        return list(read_statement(place.file)[1].predicate.environments)
    repository = place.repository or here
    found = repository.environment_names() if repository else []
    if not found:
        msg = "Where may this bundle run? There are no environment files here."
        raise Usage(msg, hint="Say --env NAME, once for each environment.")
    return found


def _check_for(spec: Path, environments: Sequence[str], *, as_json: bool) -> Mapping[str, Checked]:
    """Check a spec as each environment sees it. Errors end the command, warnings are printed."""
    checked: dict[str, Checked] = {}
    warned: set[tuple[str, str | None]] = set()
    for environment in environments:
        result = check(open_project(environment), spec)
        require_usable(result, as_json=as_json)
        checked[environment] = result
        found = [f for f in result.findings if f.severity is Severity.WARNING and (f.code, f.path_text) not in warned]
        warned.update((f.code, f.path_text) for f in found)
        for finding in found:
            where = f"{finding.file}:{finding.line}: " if finding.file else ""
            render.warning(f"{where}{finding.code}: {finding.message}", finding.suggestion)
    return checked


def _one_tree(checked: Mapping[str, Checked], environments: Sequence[str]) -> Mapping[str, object]:
    """The one spec that a bundle carries, for all of its environments.

    A project's defaults write the environment's name into ``metadata``; a bundle for several has no one name to write.
    """
    trees = {name: checked[name].file.loaded.tree for name in environments}
    if len(trees) > 1:
        trees = {name: _without_environment(tree) for name, tree in trees.items()}
    first = environments[0]
    for name in environments[1:]:
        if digest_of_json(trees[name]) != digest_of_json(trees[first]):
            msg = f"The spec is not the same in {first} and {name}: their overlays or defaults differ."
            raise Conflict(msg, hint=f"Sign a version for each: --env {first}, and another with --env {name}.")
    return trees[first]


def _without_environment(tree: Mapping[str, object]) -> dict[str, object]:
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict) or "environment" not in metadata:
        return dict(tree)
    return {**tree, "metadata": {key: value for key, value in metadata.items() if key != "environment"}}


def _print_signed(signed: SignedBundle, key: PrivateKey) -> None:
    predicate = signed.statement.predicate
    what = f"{predicate.name} {predicate.version}"
    if signed.added:
        render.success(f"Added your signature to {what}: {signed.file}")
    else:
        render.success(f"Signed {what} (number {predicate.seq}) for {', '.join(predicate.environments)}: {signed.file}")
    render.text(f"  digest  {signed.statement.digest}\n  key     {key.keyid}")
    render.text(f"  Next: name it in environments/*.yaml as {{bundle: {predicate.name}, version: {predicate.version}}}")


# ---- showing ----------------------------------------------------------------------------------------------------


def _account(file: Path, trust: Path | None, trust_root: str | None, env: str | None) -> Account:
    now = SystemClock().now()
    pin: Digest | None = parse_digest(trust_root) if trust_root else None
    believed = choose_root(file, trust, pin, from_env(), now)
    return check_bundle(file, believed, env, now)


def _facts(statement: BundleStatement) -> dict[str, object]:
    predicate = statement.predicate
    source = predicate.source.model_dump(mode="json", exclude_none=True) if predicate.source else None
    return {
        "name": predicate.name,
        "version": predicate.version,
        "seq": predicate.seq,
        "prev": predicate.prev,
        "environments": list(predicate.environments),
        "approved_by": predicate.approved_by,
        "issued_at": isoformat(predicate.issued_at),
        "expires_at": isoformat(predicate.expires_at) if predicate.expires_at else None,
        "spec_digest": predicate.spec_digest,
        "source": source,
    }


def _trust_facts(account: Account) -> dict[str, object]:
    believed = account.believed
    return {
        "path": account.path,
        "trust_root": {
            "file": str(believed.file),
            "version": believed.root.version,
            "digest": believed.root.digest,
            "first": believed.pin,
            "pinned": believed.pinned_by is not None,
            "pinned_by": believed.pinned_by,
            "expired": believed.root.expired_at(SystemClock().now()),
        },
    }


def _step_facts(step: object) -> dict[str, object]:
    fields = ("number", "title", "passed", "detail", "code")
    return {name: getattr(step, name) for name in fields}


def _passed(steps: Sequence[object], number: int) -> bool:
    return getattr(steps[number - 1], "passed", None) is True


def _print_account(account: Account) -> None:
    believed = account.believed
    if believed.pinned_by:
        render.success(f"Trust root version {believed.root.version} follows from {believed.pin}")
        render.text(f"  pinned by {believed.pinned_by}")
    else:
        render.warning(
            f"THE TRUST ROOT ITSELF WAS NOT PINNED: {believed.file} vouches for itself, which proves nothing.",
            "Get the first root's digest from its keeper and pass --trust-root sha256:…",
        )
    if believed.root.expired_at(SystemClock().now()):
        render.warning(f"The trust root expired at {isoformat(believed.root.expires)}: nothing new is admitted.")
    render.text(f"For {account.told.environment}:")
    marks = {True: render.DONE, False: render.FAILED, None: render.OPEN}
    for step in account.told.steps:
        code = f"{step.code}: " if step.code else ""
        render.line(marks[step.passed], f"{step.number:>2} {step.title}: {code}{step.detail}")
    for each in account.environments:
        if each is not account.told:
            render.line(marks[each.valid], f"   For {each.environment}")


# ---- the HMAC format --------------------------------------------------------------------------------------------


def _is_hmac(file: Path) -> bool:
    try:
        value = read_json(read_bundle(file), file=str(file)).value
    except Invalid:
        return False  # the verification says what is wrong with it
    return isinstance(value, dict) and (value.get("kind") == KIND or ("signature" in value and "spec" in value))


def _sign_hmac(
    spec: Path, output: Path | None, approved_by: str, env: Sequence[str] | None, variable: str, *, as_json: bool
) -> None:
    secret = _secret(variable)
    if not secret:
        msg = f"There is no key: --key was not given, and {variable} is not set."
        raise Usage(msg, hint="kneo keys generate makes one for --key.")
    if output is None or (env and len(env) > 1):
        msg = "An HMAC bundle needs --output, and is for one environment at most."
        raise Usage(msg, hint="Use --key to sign for several.")
    project = open_project(env[0] if env else None)
    checked = _check_for(spec, [project.environment], as_json=as_json)[project.environment]
    data = sign_hmac_bundle(
        checked.file.loaded.tree,
        approved_by=approved_by,
        environment=env[0] if env else None,
        created_at=SystemClock().now(),
        key=secret,
        key_id=variable,
    )
    write_whole(output, data)
    answer = {"output": str(output), **_hmac_facts(data, output)}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Signed {spec} with {variable}: {output}"))


def _hmac_facts(data: bytes, file: Path) -> dict[str, object]:
    value = read_json(data, file=str(file)).value
    fields = value if isinstance(value, dict) else {}
    digest, signature = fields.get("digest"), fields.get("signature")
    said = signature if isinstance(signature, dict) else {}
    return {
        "digest": digest.get("value") if isinstance(digest, dict) else None,
        "signature": {"algorithm": said.get("algorithm"), "key_id": said.get("key_id")},
    }


def _verify_hmac(file: Path, variable: str, *, as_json: bool) -> None:
    secret = _secret(variable)
    if not secret:
        msg = f"{file} is an HMAC bundle, and {variable} is not set."
        raise Usage(msg, hint="Name the variable that holds its key with --key-env.")
    report = check_hmac_bundle(read_bundle(file), secret, file=str(file))
    answer = {
        "valid": report.valid,
        "digest_valid": report.digest_valid,
        "signature_valid": report.signature_valid,
        "errors": list(report.errors),
    }

    def show() -> None:
        render.line(render.DONE if report.digest_valid else render.FAILED, " 1 The digest is that of the spec")
        render.line(render.DONE if report.signature_valid else render.FAILED, f" 2 The HMAC is made with {variable}")
        for error in report.errors:
            render.text(f"  {error}")

    render.emit(answer, as_json=as_json, text=show)
    if not report.valid:
        raise typer.Exit(Invalid.exit_code)


def _inspect_hmac(file: Path, *, as_json: bool) -> None:
    data = read_bundle(file)
    value = read_json(data, file=str(file)).value
    fields = value if isinstance(value, dict) else {}
    answer = {
        "file": str(file),
        **_hmac_facts(data, file),
        "metadata": fields.get("metadata"),
        "spec": fields.get("spec"),
    }

    def show() -> None:
        render.text(f"{file}: an HMAC bundle; whoever can check it can also make it.")
        metadata = fields.get("metadata")
        for name, said in (metadata if isinstance(metadata, dict) else {}).items():
            render.text(f"  {name.replace('_', ' ')}  {said}")
        render.text(f"  digest  {answer['digest']}")

    render.emit(answer, as_json=as_json, text=show)
