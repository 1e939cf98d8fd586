"""Checks of a process: its settings, API keys, project and disk. None opens the database."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import urlsplit

from kneo.cli.doctor.report import Checks, Diagnosis, error, ok, warning
from kneo.errors import KneoError
from kneo.maintenance import RetentionPolicy
from kneo.project import read_config
from kneo.project.secrets import secret_inventory
from kneo.service.auth import configured, hash_keys
from kneo.service.head_check import check_reachable, is_loopback
from kneo.service.oidc.discovery import IssuerClient
from kneo.settings import Settings
from kneo.trust.sealing import DataKeys
from kneo.trust.web_push import VapidKey

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
        "extras": check_extras,
        "authentication": partial(check_authentication, host=host),
        "api_keys": check_api_keys,
        "issuer": check_issuer,
        "web_push": check_web_push,
        "model_keys": check_model_keys,
        "disk": check_disk,
    }
    return {name: partial(check, settings) for name, check in checks.items()}


def check_settings(settings: Settings) -> Diagnosis:
    """Check the settings that are parsed where they are used."""
    project = read_config(settings)
    RetentionPolicy.from_settings(settings.execution, project.retention if project else None)
    DataKeys.read(settings.data_keys)
    if settings.execution.dispatch == "temporal" and settings.database_url.startswith("sqlite"):
        return error(
            "KNEO_SERV_DISPATCH is temporal, which needs PostgreSQL.", "Set KNEO_SERV_DATABASE_URL or unset it."
        )
    where = f"project config {settings.project_config}" if project else "no project config"
    return ok(f"All settings are valid; {where}.")


def check_extras(settings: Settings) -> Diagnosis:
    """Check that the packages are installed which the settings need."""
    needed = {
        "postgres": ("psycopg", settings.database_url.startswith("postgresql")),
        "temporal": ("temporalio", settings.execution.dispatch == "temporal"),
        "telemetry": ("opentelemetry.sdk", settings.tracing.enabled),
    }
    missing = [extra for extra, (module, is_needed) in needed.items() if is_needed and not _is_installed(module)]
    if missing:
        return error(f"Packages are missing: {', '.join(missing)}.", f"pip install 'kneo[{','.join(missing)}]'")
    return ok("All packages that the settings need are installed.")


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
    if not settings.oidc.issuer:
        return ok("There is no OpenID Connect issuer.")
    try:
        found = IssuerClient(settings.oidc).discover()
    except KneoError as problem:
        return error(problem.message, problem.hint or "Correct KNEO_SERV_OIDC_ISSUER, or let this machine reach it.")
    return ok(f"{settings.oidc.issuer} publishes {len(found.keys)} keys.")


def check_web_push(settings: Settings) -> Diagnosis:
    """Check that the key of notifications in browsers can be used."""
    if not settings.push.private_key:
        return ok("There is no key for notifications in browsers.")
    key = VapidKey.load(settings.push.private_key)
    public = urlsplit(settings.public_url)
    if public.scheme != "https" and not is_loopback(public.hostname or "localhost"):
        hint = "Serve the console over https:// and set KNEO_SERV_PUBLIC_URL."
        return warning("Browsers subscribe only over https://, and KNEO_SERV_PUBLIC_URL is not such an address.", hint)
    return ok(f"Browsers can subscribe to notifications; the public key is {key.public}.")


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
