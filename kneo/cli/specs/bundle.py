"""``kneo spec bundle``: sign, verify and inspect bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.files import write_whole
from kneo.cli.options import JsonOption
from kneo.cli.repository import ConfigRepository, find_repository
from kneo.cli.specs import bundle_check
from kneo.cli.specs.bundle_code import CollectedCode, collect_code, environments_without_code, print_warnings
from kneo.cli.specs.bundle_hmac import HMAC_KEY, inspect_hmac, is_hmac, secret_in, sign_hmac, verify_hmac
from kneo.cli.specs.keys import private_from, signing_key
from kneo.cli.specs.mcp import pin_tools
from kneo.cli.specs.signing import Place, SignedBundle, freeze, place_of, read_statement, sign_bundle, source_of
from kneo.cli.specs.trust_roots import TrustFiles
from kneo.clock import SystemClock
from kneo.digest import digest_of
from kneo.errors import NotFound, Untrusted, Usage
from kneo.settings import from_env
from kneo.spec.code import names_functions, text_of
from kneo.spec.models.spec import Spec
from kneo.trust.dsse import export_pae, export_sigstore
from kneo.trust.keys import SigningKey

app = typer.Typer(no_args_is_help=True)


BundleFile = Annotated[Path, typer.Argument(metavar="FILE", help="Bundle file.")]
TrustOption = Annotated[Path | None, typer.Option("--trust", help="Trust root file. Default: that of the repository.")]
PinOption = Annotated[str | None, typer.Option("--trust-root", help="Digest of the trust root to pin (sha256:…).")]
KeyEnvOption = Annotated[str, typer.Option("--key-env", help="Environment variable with the key.")]


@app.command("sign")
@examples("kneo spec bundle sign specs/hello.yaml --key ann.pem --approved-by ann -o bundles/hello/1.0.0.dsse.json")
def sign(
    spec: Annotated[Path, typer.Argument(metavar="SPEC", help="Spec file (YAML or JSON).")],
    *,
    approved_by: Annotated[str, typer.Option(help="Name of the signer.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Bundle file. bundles/NAME/VERSION.dsse.json also sets name and version."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            help="Environment that may run the bundle; repeatable. Default: every environment of the repository.",
        ),
    ] = None,
    key: Annotated[Path | None, typer.Option("--key", help="Private key file.")] = None,
    key_env: KeyEnvOption = HMAC_KEY,
    signer: Annotated[
        str | None,
        typer.Option(help="Command that signs its standard input, for a key in a key service; needs --public."),
    ] = None,
    public: Annotated[Path | None, typer.Option(help="Public key of --signer.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the bundle, if --output does not set it.")] = None,
    version: Annotated[str | None, typer.Option(help="Version of the bundle, if --output does not set it.")] = None,
    pinned: Annotated[
        bool,
        typer.Option(
            "--pin-tools",
            help="Ask the MCP servers of the spec, and sign what they say about each tool; a tool that says something else later is refused.",
        ),
    ] = False,
    without_code: Annotated[
        bool,
        typer.Option(
            "--no-code", help="Leave out the code of the spec's functions; most environments refuse such a bundle."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Build a bundle from a spec and the code that it names, and sign it.

    The key is a private key file (--key), a PEM text in an environment variable (--key-env) or a command of a key service
    (--signer with --public), which reads the bytes and writes the signature. Signing an existing bundle adds a signature.
    With any other text in the variable the command makes an HMAC bundle.
    """
    private = _signing_key(key, key_env, signer, public)
    if private is None:
        if pinned:
            msg = "--pin-tools needs a private key: bundles in the older HMAC format have no pins."
            raise Usage(msg, hint="Pass --key FILE.")
        sign_hmac(spec, output, approved_by, env, key_env, as_json=as_json)
        return
    here = find_repository(Path.cwd())
    place = place_of(output, name, version, here)
    environments = _environments(env, place, here)
    _warn_of_unknown_key(private, place.repository or here)
    settings = from_env()
    frozen = freeze(spec, environments, as_json=as_json)
    declared = Spec.model_validate(frozen)
    collected = CollectedCode(None) if without_code else collect_code(declared, settings.import_roots)
    print_warnings(collected.warnings)
    if without_code and names_functions(declared):
        _warn_of_missing_code(environments, place.repository or here)
    signed = sign_bundle(
        place,
        pin_tools(settings, frozen, _warn_of_changed_tool) if pinned else frozen,
        environments=environments,
        approved_by=approved_by,
        key=private,
        source=source_of(spec),
        now=SystemClock().now(),
        code=collected.code,
    )
    for path in signed.skipped:
        render.warning(f"{path} is not a bundle, and was ignored in the numbering of versions.")
    answer = {
        "output": str(signed.file),
        "digest": signed.statement.digest,
        "signature": {"algorithm": private.algorithm.value, "key_id": private.keyid},
        **bundle_check.facts_of(signed.statement),
        "signers": list(signed.signers),
        "added": signed.added,
        "warnings": [found.as_json() for found in collected.warnings],
    }
    render.emit(answer, as_json=as_json, text=lambda: _print_signed(signed, private))


@app.command("verify")
@examples("kneo spec bundle verify bundles/hello/1.0.0.dsse.json --env prod")
def verify(
    file: BundleFile,
    *,
    trust: TrustOption = None,
    trust_root: PinOption = None,
    env: Annotated[str | None, typer.Option("--env", help="Verify for this environment only.")] = None,
    key_env: KeyEnvOption = HMAC_KEY,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle and show each check. Exit status 3 if it is not trusted."""
    if is_hmac(file):
        verify_hmac(file, key_env, as_json=as_json)
        return
    account = _account(file, trust, trust_root, env)
    shown = account.shown
    failed = shown.failed
    answer = {
        "valid": account.valid,
        "digest_valid": shown.passed(bundle_check.SPEC_STEP),
        "signature_valid": shown.passed(bundle_check.SIGNATURES_STEP),
        "errors": [f"{failed.number}. {failed.title}: {failed.detail}"] if failed else [],
        "reason": failed.code if failed else None,
        **bundle_check.trust_facts(account),
        "environments": [
            {
                "name": each.environment,
                "valid": each.valid,
                "steps": [asdict(step) for step in each.steps],
            }
            for each in account.environments
        ],
    }
    render.emit(answer, as_json=as_json, text=lambda: bundle_check.print_account(account))
    if not account.valid:
        raise typer.Exit(Untrusted.exit_code)


@app.command("inspect")
@examples("kneo spec bundle inspect bundles/hello/1.0.0.dsse.json")
def inspect(
    file: BundleFile,
    *,
    trust: TrustOption = None,
    trust_root: PinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the content of a bundle and, if there is a trust root, its verification."""
    if is_hmac(file):
        inspect_hmac(file, as_json=as_json)
        return
    envelope, statement = read_statement(file)
    try:
        account = _account(file, trust, trust_root, None)
    except NotFound:
        account = None
    except Untrusted as error:
        render.warning(error.message, error.hint)
        account = None
    owners = {str(keyid): key.principal for keyid, key in account.trust.root.keys.items()} if account else {}
    signatures = [{"keyid": s.keyid, "principal": owners.get(s.keyid)} for s in envelope.signatures]
    answer = {
        "file": str(file),
        "digest": statement.digest,
        **bundle_check.facts_of(statement),
        "signatures": signatures,
        "valid": account.valid if account else None,
        "steps": [asdict(step) for step in account.shown.steps] if account else [],
        "spec": statement.predicate.spec,
    }

    def show() -> None:
        render.text(f"{file}\n  digest        {statement.digest}")
        bundle_check.print_facts(statement)
        for signature in signatures:
            owner = signature["principal"] or "an unknown person"
            render.text(f"  signed with   {signature['keyid']} of {owner}")
        if account:
            bundle_check.print_account(account)

    render.emit(answer, as_json=as_json, text=show)


@app.command("show")
@examples("kneo spec bundle show bundles/hello/1.0.0.dsse.json --code")
def show(
    file: BundleFile,
    *,
    with_code: Annotated[bool, typer.Option("--code", help="Print the files of the code, each with its path.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the files and packages that a bundle carries, without verification."""
    statement = read_statement(file)[1]
    code = statement.code
    answer = {**bundle_check.facts_of(statement), "code": bundle_check.code_facts(code)}
    if with_code and code is not None:
        answer["code"] = {"digest": code.digest, **code.as_json()}

    def show() -> None:
        if code is None:
            render.text(f"{file} has no code.")
            return
        render.text(f"code {code.digest}")
        for path, data in sorted(code.files.items()):
            render.text(f"  {path}  {len(data):,} bytes" if not with_code else f"\n--- {path} ({len(data):,} bytes)")
            if with_code:
                text = text_of(data)
                render.text(text if text is not None else f"(binary, {digest_of(data)})")
        for name, version in sorted(code.packages.items()):
            render.text(f"  package {name} {version}")

    render.emit(answer, as_json=as_json, text=show)


@app.command("export")
@examples("kneo spec bundle export bundles/hello/1.0.0.dsse.json --format pae --output exported")
def export(
    file: BundleFile,
    *,
    shape: Annotated[
        Literal["pae", "sigstore"],
        typer.Option("--format", help="pae: raw bytes for openssl. sigstore: Sigstore bundles."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Output folder; created if missing.")],
    trust: TrustOption = None,
    trust_root: PinOption = None,
    as_json: JsonOption = False,
) -> None:
    """Export the signatures for other tools."""
    envelope, _ = read_statement(file)
    try:
        chosen = bundle_check.choose_root(file, trust, trust_root, SystemClock().now())
        keys = [key.public for key in chosen.root.keys.values()]
    except NotFound:
        keys = []
    files = export_pae(envelope, keys) if shape == "pae" else export_sigstore(envelope)
    for name, data in files.items():
        write_whole(output / name, data)
    written = [str(output / name) for name in files]
    answer = {"format": shape, "digest": envelope.digest, "files": written}
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"Wrote {', '.join(written)}"))


# ---- signing ----------------------------------------------------------------------------------------------------


def _signing_key(file: Path | None, variable: str, signer: str | None, public: Path | None) -> SigningKey | None:
    given = signing_key(file, signer, public)
    if given is not None:
        return given
    content = secret_in(variable)
    if "-----BEGIN" in content:
        return private_from(content.encode(), where=variable)
    return None


def _environments(asked: Sequence[str] | None, place: Place, here: ConfigRepository | None) -> list[str]:
    """Return the environments of a bundle: from --env, from its present file, or all of the repository."""
    if asked:
        return sorted(set(asked))
    if place.file.exists():
        return list(read_statement(place.file)[1].predicate.environments)
    repository = place.repository or here
    found = repository.environment_names() if repository else []
    if not found:
        msg = "No environment is set, and there are no environment files here."
        raise Usage(msg, hint="Pass --env NAME, once for each environment.")
    return found


def _warn_of_unknown_key(key: SigningKey, repository: ConfigRepository | None) -> None:
    if repository is None or not repository.trust_file.is_file():
        return
    if key.keyid not in TrustFiles(repository.trust_file).read().newest.document.keys:
        msg = f"The key {key.keyid} is not in the trust root; its signature does not count yet."
        render.warning(msg, "A holder of a root key adds it: kneo trust add-key")


def _warn_of_missing_code(environments: Sequence[str], repository: ConfigRepository | None) -> None:
    refusing = ", ".join(environments_without_code(repository, environments))
    consequence = (
        f"{refusing} will refuse it" if refusing else "an environment with code: bundled, the default, refuses it"
    )
    render.warning(f"The bundle is signed without its code; {consequence}.", "Leave out --no-code.")


def _warn_of_changed_tool(tool: str, server: str) -> None:
    msg = f"The parameters of the tool {tool} are not those of the MCP server {server}."
    render.warning(msg, f"Unless you narrowed them, update the spec: kneo spec mcp pull SPEC {server}")


def _print_signed(signed: SignedBundle, key: SigningKey) -> None:
    predicate = signed.statement.predicate
    what = f"{predicate.name} {predicate.version}"
    if signed.added:
        render.success(f"Added your signature to {what}: {signed.file}")
    else:
        render.success(f"Signed {what} (number {predicate.seq}) for {', '.join(predicate.environments)}: {signed.file}")
    render.text(f"  digest  {signed.statement.digest}\n  key     {key.keyid}")
    render.text(
        f"  Next: declare it in environments/*.yaml as {{bundle: {predicate.name}, version: {predicate.version}}}"
    )


# ---- showing ----------------------------------------------------------------------------------------------------


def _account(file: Path, trust: Path | None, trust_root: str | None, env: str | None) -> bundle_check.Account:
    now = SystemClock().now()
    return bundle_check.check_bundle(file, bundle_check.choose_root(file, trust, trust_root, now), env, now)
