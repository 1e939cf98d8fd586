"""Bundles in the older HMAC format, signed and checked as the published tool does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from kneo.cli import render
from kneo.cli.files import write_whole
from kneo.cli.project import open_project
from kneo.cli.repository import read_bundle
from kneo.cli.specs.signing import freeze_as_written
from kneo.clock import SystemClock
from kneo.errors import Invalid, Usage
from kneo.settings import process_environment
from kneo.spec.reading.reader import read_json
from kneo.trust.hmac_bundle import KIND, check_hmac_bundle, sign_hmac_bundle

HMAC_KEY = "KNEO_SERV_SPEC_SIGNING_KEY"
"""Default environment variable of the key."""


def secret_in(variable: str) -> str:
    """Return the key in an environment variable; empty when it is not set."""
    return process_environment(variable).get(variable, "")


def is_hmac(file: Path) -> bool:
    """Return whether a file is a bundle in this format."""
    try:
        value = read_json(read_bundle(file), file=str(file)).value
    except Invalid:
        return False  # the verification reports the error
    return isinstance(value, dict) and (value.get("kind") == KIND or ("signature" in value and "spec" in value))


def sign_hmac(
    spec: Path, output: Path | None, approved_by: str, env: Sequence[str] | None, variable: str, *, as_json: bool
) -> None:
    """Sign an HMAC bundle and print the result."""
    secret = secret_in(variable)
    if not secret:
        msg = f"There is no key: pass --key or set {variable}."
        raise Usage(msg, hint="Create a key: kneo keys generate")
    if output is None or (env and len(env) > 1):
        msg = "An HMAC bundle needs --output, and is for one environment at most."
        raise Usage(msg, hint="Use --key to sign for several.")
    environment = open_project(env[0] if env else None).environment
    data = sign_hmac_bundle(
        freeze_as_written(spec, environment, as_json=as_json),
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
    named = signature if isinstance(signature, dict) else {}
    return {
        "digest": digest.get("value") if isinstance(digest, dict) else None,
        "signature": {"algorithm": named.get("algorithm"), "key_id": named.get("key_id")},
    }


def verify_hmac(file: Path, variable: str, *, as_json: bool) -> None:
    """Check an HMAC bundle and print the result in the published format."""
    secret = secret_in(variable)
    if not secret:
        msg = f"{file} is an HMAC bundle, and {variable} is not set."
        raise Usage(msg, hint="Name the variable of the key with --key-env.")
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


def inspect_hmac(file: Path, *, as_json: bool) -> None:
    """Print the content of an HMAC bundle."""
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
        render.text(f"{file}: an HMAC bundle. Everyone with the key to check it can also make it.")
        metadata = fields.get("metadata")
        for name, item in (metadata if isinstance(metadata, dict) else {}).items():
            render.text(f"  {name.replace('_', ' ')}  {item}")
        render.text(f"  digest  {answer['digest']}")

    render.emit(answer, as_json=as_json, text=show)
