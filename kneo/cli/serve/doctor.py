"""``kneo doctor``, and the checks of a process: settings, API keys, project, disk. None opens the database."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, cast
from urllib.parse import urlsplit

import typer

from kneo.agents.tools.kinds import BACKEND_KINDS
from kneo.cli import render
from kneo.cli.checks import CHECKS, Checks, Diagnosis, Level, Result, error, ok, run_checks, warning, worst
from kneo.cli.checks import as_json as report_as_json
from kneo.cli.commands import EXTENSIONS, examples
from kneo.cli.options import JsonOption
from kneo.cli.serve.database_checks import check_schema, database_checks
from kneo.cli.serve.evidence_checks import check_suites
from kneo.clock import Clock, SystemClock
from kneo.distribution import install_extra
from kneo.errors import Invalid, KneoError
from kneo.extension_points import import_target, list_extensions, list_points
from kneo.maintenance import RetentionPolicy
from kneo.notify.channel_kinds import CHANNEL_KINDS
from kneo.process_protection import find_weaknesses, protect_process
from kneo.project import read_config
from kneo.project.secrets import secret_inventory
from kneo.runtime.engine.dispatchers import DISPATCHERS, find_dispatcher
from kneo.sandbox.levels import host_level
from kneo.service.auth import configured, hash_keys
from kneo.service.callers import check_reachable, is_loopback
from kneo.service.console.parts import CONSOLE_PARTS
from kneo.service.mounts import MOUNTS
from kneo.service.sign_in_providers import SIGN_IN_PROVIDERS, find_provider
from kneo.settings import Settings, from_env, is_secret_variable, unknown_variables
from kneo.spec.models.providers import PROVIDER_VARIABLES
from kneo.store.migrate import open_store
from kneo.store.service_key import find_service_key
from kneo.trust.sealing import DataKeys


@examples("kneo doctor", "kneo doctor --host 0.0.0.0 --processes 6 --json")
def doctor(
    host: Annotated[str, typer.Option("--host", help="Address that the API server listens at.")] = "127.0.0.1",
    processes: Annotated[
        int, typer.Option("--processes", min=1, max=10_000, help="Processes of Kneo that use the database.")
    ] = 1,
    as_json: JsonOption = False,
) -> int:
    """Check this installation: settings, database, keys, workers, repository.

    Run it with the settings of a service, worker or controller. Nothing is changed, and no secret is printed. The exit status
    is 1 where a check ended with an error.
    """
    results = examine(host, processes)
    render.emit(report_as_json(results), as_json=as_json, text=lambda: _show(results))
    return 1 if worst(results) is Level.ERROR else 0


def examine(host: str, processes: int, clock: Clock | None = None) -> tuple[Result, ...]:
    """Run all checks with the settings of this process."""
    clock = clock or SystemClock()
    try:
        settings = from_env()
    except Invalid as error:
        return (Result("settings", Level.ERROR, error.message, error.hint or "Correct the variable."),)
    results = run_checks(
        {
            **process_checks(settings, host),
            "database": lambda: check_schema(settings, clock),
        }
    )
    return results + _examine_database(settings, processes, clock, results[-1])


def _examine_database(settings: Settings, processes: int, clock: Clock, schema: Result) -> tuple[Result, ...]:
    """Run the checks of a database that this version can use as it is."""
    url = settings.database_url
    if schema.level is Level.ERROR or not (
        url.startswith("postgresql") or Path(url.removeprefix("sqlite:///")).exists()
    ):
        return ()
    try:
        find_key = partial(find_service_key, settings)
        with closing(open_store(settings.database_url, clock, find_key, migrates=False)) as store:
            return run_checks(database_checks(settings, store, processes))
    except Invalid:
        return ()  # Empty or to be migrated, as the check of the database reports.


MARKS = {Level.OK: render.DONE, Level.WARNING: render.CAREFUL, Level.ERROR: render.FAILED}


def _show(results: tuple[Result, ...]) -> None:
    for result in results:
        render.line(MARKS[result.level], f"{result.check}: {result.message}")
        if result.hint:
            render.text(f"    {result.hint}")
    errors, warnings, good = (
        sum(result.level is level for result in results) for level in (Level.ERROR, Level.WARNING, Level.OK)
    )
    render.text(f"\n{render.count(errors, 'error')}, {render.count(warnings, 'warning')}, {good} ok")


MIN_KEY_CHARS = 24
"""Characters of an API key below which it can be guessed."""


def process_checks(settings: Settings, host: str) -> Checks:
    """Return the checks of a process.

    Args:
        settings: The settings of the process.
        host: The address that its API server listens at.
    """
    checks: Mapping[str, Callable[[Settings], Diagnosis]] = {
        "settings": check_settings,
        "variables": check_variables,
        "process": check_process,
        "sandbox": check_sandbox,
        "extras": check_extras,
        "extensions": check_extensions,
        "authentication": partial(check_authentication, host=host),
        "api_keys": check_api_keys,
        "issuer": check_issuer,
        **_added_checks(),
        "model_keys": check_model_keys,
        "suites": check_suites,
        "disk": check_disk,
    }
    return {name: partial(check, settings) for name, check in checks.items()}


def _added_checks() -> Mapping[str, Callable[[Settings], Diagnosis]]:
    """Return the checks of extensions; ``extensions`` reports those that cannot be loaded."""
    usable = {each.name for each, problem in CHECKS.check().items() if not problem}
    found = {name: import_target(CHECKS.load(name).function) for name in CHECKS.names() if name in usable}
    return {
        name.replace("-", "_"): cast("Callable[[Settings], Diagnosis]", function) for name, function in found.items()
    }


def check_settings(settings: Settings) -> Diagnosis:
    """Check the settings that are parsed where they are used."""
    project = read_config(settings)
    RetentionPolicy.from_settings(settings.execution, project.retention if project else None)
    DataKeys.read(settings.data_keys)
    find_dispatcher(settings, sqlite=settings.database_url.startswith("sqlite"))
    where = f"project config {settings.project_config}" if project else "no project config"
    return ok(f"All settings are valid; {where}.")


def check_variables(_settings: Settings) -> Diagnosis:
    """Check that a setting reads each variable with Kneo's prefix."""
    unknown = unknown_variables()
    if unknown:
        return warning(" ".join(unknown), "Correct or unset them.")
    return ok("A setting reads every KNEO_SERV_ variable.")


def check_process(_settings: Settings) -> Diagnosis:
    """Check that no program which a process of Kneo starts can read the secrets of that process."""
    protect_process()  # as every process of Kneo does when it starts
    weaknesses = tuple(find_weaknesses(_is_secret))
    if weaknesses:
        return warning(" ".join(weaknesses), "See docs/operations/secrets.md for what to change.")
    return ok("Programs that Kneo starts cannot read its memory, its environment or its open files.")


def check_sandbox(settings: Settings) -> Diagnosis:
    """Check which level of sandboxes this machine gives."""
    host = host_level()
    if not host.gives(settings.agents.sandbox):
        hint = "Run on Linux 6.2 or newer with landlock in lsm=, and allow seccomp and landlock_* in outer filters."
        return error(
            f"KNEO_SERV_TOOLS_SANDBOX is {settings.agents.sandbox}; this machine gives {host.level}: {host.facts}.",
            hint,
        )
    if not host.gives("kernel"):
        return ok(f"{host.level}: {host.facts}.")
    raised = " Environments can set tools.sandbox.required to kernel." if settings.agents.sandbox != "kernel" else ""
    return ok(f"kernel: {host.facts}.{raised}")


def _is_secret(variable: str) -> bool:
    return is_secret_variable(variable) or variable in PROVIDER_VARIABLES.values()


def check_extras(settings: Settings) -> Diagnosis:
    """Check that the packages are installed which the settings need."""
    needed = {
        "postgres": ("psycopg", settings.database_url.startswith("postgresql")),
        "telemetry": ("opentelemetry.sdk", settings.tracing.enabled),
    }
    missing = [extra for extra, (module, is_needed) in needed.items() if is_needed and not _is_installed(module)]
    if missing:
        return error(f"Packages are missing: {', '.join(missing)}.", install_extra(*missing))
    return ok("All packages that the settings need are installed.")


POINTS = (EXTENSIONS, DISPATCHERS, MOUNTS, CHANNEL_KINDS, CHECKS, CONSOLE_PARTS, SIGN_IN_PROVIDERS, BACKEND_KINDS)
"""The extension points of Kneo."""


def check_extensions(_settings: Settings) -> Diagnosis:
    """Check that every installed extension can be loaded, and list them by their packages."""
    checked = {extension: problem for point in POINTS for extension, problem in point.check().items()}
    if problems := dict.fromkeys(problem for problem in checked.values() if problem):
        return error(" ".join(problems), "Install what the package needs, or uninstall it.")
    names: dict[str, list[str]] = {}
    for each in checked:
        names.setdefault(each.distribution, []).append(f"{each.name} ({each.point})")
    found = "; ".join(f"{distribution}: {', '.join(sorted(added))}" for distribution, added in sorted(names.items()))
    if unknown := sorted(set(list_points()) - {point.name for point in POINTS}):
        packages = sorted({each.distribution for point in unknown for each in list_extensions(point)})
        hint = f"Install versions that fit this one of: {', '.join(packages)}."
        return warning(f"Kneo has no extension points {', '.join(unknown)}. Installed: {found}.", hint)
    return ok(f"Installed: {found}." if found else "No extension is installed.")


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def check_authentication(settings: Settings, host: str) -> Diagnosis:
    """Check that a service which other machines reach requires API keys."""
    check_reachable(settings, host)
    public = urlsplit(settings.public_url).hostname or "localhost"
    if settings.auth_enabled:
        accepted = ["an API key"] if settings.api_keys or settings.admin_api_key else []
        accepted += [f"a token of {settings.oidc.issuer}"] if settings.oidc.issuer else []
        if not accepted:
            hint = "Set KNEO_SERV_API_KEYS or KNEO_SERV_OIDC_ISSUER."
            return error("KNEO_SERV_AUTH_ENABLED is on, and no credential exists: the service does not start.", hint)
        return ok(f"Requests need {' or '.join(accepted)}.")
    if settings.http.anonymous:
        hint = "Set KNEO_SERV_API_KEYS or KNEO_SERV_OIDC_ISSUER, and unset KNEO_SERV_ALLOW_ANONYMOUS."
        return warning("KNEO_SERV_ALLOW_ANONYMOUS gives every caller all permissions.", hint)
    if not is_loopback(public):
        hint = "Set KNEO_SERV_API_KEYS or KNEO_SERV_OIDC_ISSUER."
        return error(f"KNEO_SERV_PUBLIC_URL names {public}, and the service there has no API keys.", hint)
    return ok("There are no API keys; only this machine reaches the service.")


def check_api_keys(settings: Settings) -> Diagnosis:
    """Check that API keys are valid, and long enough not to be guessed."""
    config = configured(settings)
    owners = hash_keys(config)
    short = [one.name for one in config.api_keys if not one.key.startswith("sha256:") and len(one.key) < MIN_KEY_CHARS]
    if short:
        hint = "Replace them: kneo keys api-key NAME --role ROLE."
        return warning(f"API keys shorter than {MIN_KEY_CHARS} characters belong to: {', '.join(short[:20])}.", hint)
    return ok(f"{len(owners)} API keys are valid." if owners else "There are no API keys.")


def check_issuer(settings: Settings) -> Diagnosis:
    """Check that the issuer of tokens responds, with keys that can be used."""
    provider = find_provider(settings.oidc)
    if provider is None:
        return ok("There is no OpenID Connect issuer.")
    try:
        return ok(provider.check(settings.oidc))
    except KneoError as problem:
        return error(problem.message, problem.hint or "Correct KNEO_SERV_OIDC_ISSUER, or let this machine reach it.")


def check_model_keys(settings: Settings) -> Diagnosis:
    """Check that the project's model providers have their keys."""
    project = read_config(settings)
    providers = project.secrets.provider_env if project else {}
    if not providers:
        return ok("The project names no keys of model providers.")
    entries = secret_inventory(project, providers=providers, service_tokens=False, folder=settings.secrets_dir)[
        "providers"
    ]
    missing = [entry.env_var for entry in entries.values() if not entry.present]
    if missing:
        hint = "Set them for the workers, or remove the providers from secrets.provider_env of the project."
        return warning(f"Keys of model providers are missing here: {', '.join(missing)}.", hint)
    return ok(f"{len(entries)} keys of model providers are set.")


def check_disk(settings: Settings) -> Diagnosis:
    """Check the free space of the state folder."""
    folder = next(path for path in (settings.state_dir, *settings.state_dir.absolute().parents) if path.is_dir())
    free, least = shutil.disk_usage(folder).free, settings.http.health_free_bytes
    if free < least:
        hint = "Free space, or prune old data: kneo maintenance prune."
        return error(f"{folder} has {free // 2**20} MiB left; /readyz needs {least // 2**20}.", hint)
    return ok(f"{folder} has {free // 2**20} MiB left.")
