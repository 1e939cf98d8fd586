"""Commands on project settings, server profiles and the inventory of credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kneo.api.credentials import list_credentials
from kneo.cli import render
from kneo.cli.commands import examples
from kneo.cli.connection import ServiceOptions
from kneo.cli.files import write_whole
from kneo.cli.options import JsonOption
from kneo.cli.profiles import Profile, Profiles, check_url, load_profiles, save_profiles
from kneo.cli.project import open_project
from kneo.cli.specs.spec import EnvOption, resolve_spec
from kneo.errors import Conflict
from kneo.project.secrets import secret_inventory
from kneo.redaction import REDACTED
from kneo.settings import from_env
from kneo.spec.project import ProjectConfig, parse_project, render_project
from kneo.spec.reading.yaml import write_yaml

app = typer.Typer(no_args_is_help=True)
profile_app = typer.Typer(help="Manage server profiles. API keys are never printed.", no_args_is_help=True)
app.add_typer(profile_app, name="profile")

CONFIG_FILE = Path(".kneo/config.yaml")

LIKELY_SPECS = ("examples/research_agent.yaml", "specs/agent.yaml", "agent.yaml")
"""Candidates for the default spec of a new project; the first that exists is used."""

SpecOption = Annotated[Path | None, typer.Option("--spec", help="Default: the project's spec.")]


@app.command()
@examples("kneo config show", "kneo config show --json")
def show(*, as_json: JsonOption = False) -> None:
    """Show the project's config."""
    project = open_project()
    if project.config is None:
        render.warning("No project config found in this folder or above.", "Create one: kneo config init")
        if as_json:
            render.print_json({})
        return
    content = project.config.model_dump(mode="json")
    content["service"]["headers"] = dict.fromkeys(project.config.service.headers, REDACTED)
    render.emit(content, as_json=as_json, text=lambda: render.text(write_yaml(content).rstrip("\n")))


@app.command()
@examples("kneo config init", "kneo config init --name acme")
def init(
    *,
    name: Annotated[str, typer.Option("--name", help="The project's name.")] = "kneo-serv-project",
    force: Annotated[bool, typer.Option("--force", help="Replace an existing config.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Create a project config in .kneo/config.yaml."""
    root = Path.cwd()
    path = root / CONFIG_FILE
    if path.exists() and not force:
        message = f"{CONFIG_FILE} already exists."
        raise Conflict(message, hint="To replace it: --force", file=str(path))
    spec = next((each for each in LIKELY_SPECS if (root / each).is_file()), None)
    text = render_project(name, spec, _overlays_of(root, spec)).encode()
    config = parse_project(text, file=str(CONFIG_FILE))
    write_whole(path, text)
    for folder in (config.local.artifact_path, config.local.log_path, config.local.cache_path):
        (root / folder).mkdir(parents=True, exist_ok=True)
    answer = {"path": str(path), "name": name, "default_spec": spec}
    render.emit(
        answer, as_json=as_json, text=lambda: render.success(f"Created the config of project {name}: {CONFIG_FILE}")
    )


@app.command("resolve")
@examples("kneo config resolve", "kneo config resolve --env prod --json")
def resolve_project(*, env: EnvOption = None, spec: SpecOption = None, as_json: JsonOption = False) -> None:
    """Show the environment, spec, overlays and folders that commands use."""
    project = open_project(env)
    config = project.config or ProjectConfig.model_validate({"project": {"name": project.root.name or "project"}})
    default = config.specs.default_spec
    chosen = project.cwd / spec if spec is not None else project.root / default if default is not None else None
    overlays = project.overlay_paths(chosen)
    answer = {
        "root_dir": str(project.root),
        "config_path": _text(project.settings.project_config),
        "environment": project.environment,
        "spec_path": _text(chosen),
        "overlay_paths": [str(path) for path in overlays if path.is_file()],
        "state_path": str(project.root / config.local.state_path),
        "artifact_path": str(project.root / config.local.artifact_path),
        "log_path": str(project.root / config.local.log_path),
        "cache_path": str(project.root / config.local.cache_path),
        "service_url": config.service.default_url,
        "has_config": project.config is not None,
        "secrets": config.secrets.model_dump(mode="json"),
    }
    render.emit(answer, as_json=as_json, text=lambda: render.text(write_yaml(answer).rstrip("\n")))
    for missing in (path for path in overlays if not path.is_file()):
        render.warning(f"The overlay {project.shown(missing)} does not exist and is left out.")


@app.command()
@examples("kneo config secrets", "kneo config secrets --env prod")
def secrets(*, env: EnvOption = None, as_json: JsonOption = False) -> None:
    """Show which secrets are set. Values are never read."""
    inventory = secret_inventory(open_project(env).config, folder=from_env().secrets_dir)

    def show_table() -> None:
        rows = [[entry.name, entry.env_var, entry.status] for group in inventory.values() for entry in group.values()]
        render.table("Secrets", ["Name", "Variable", "Status"], rows)

    render.emit(inventory, as_json=as_json, text=show_table)


@app.command("render-spec")
@examples("kneo config render-spec --output rendered.yaml", "kneo config render-spec --env prod --output -")
def render_spec(
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write; - for standard output.")],
    env: EnvOption = None,
    spec: SpecOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the project's spec with the overlays and defaults of an environment."""
    resolve_spec(spec, output=output, env=env, as_json=as_json)


@profile_app.command("set")
@examples(
    "kneo config profile set acme --service-url https://kneo.example.com --api-key KEY",
    "kneo config profile set local --service-url http://127.0.0.1:8000 --no-activate",
)
def set_profile(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    *,
    service_url: Annotated[str, typer.Option("--service-url", help="The service's address.")],
    api_key: Annotated[str | None, typer.Option("--api-key", help="API key of the service.")] = None,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="Use the profile by default.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Save the address and key of a server as a profile."""
    path = from_env().profiles_path
    profile = Profile(check_url(service_url), api_key or None)
    saved = load_profiles(path).with_profile(name, profile, activate=activate)
    save_profiles(path, saved)
    _answer(saved, name, as_json=as_json, message=f"Saved the profile {name}")


@profile_app.command("use")
@examples("kneo config profile use acme", "kneo config profile use acme --json")
def use_profile(name: Annotated[str, typer.Argument(metavar="NAME")], *, as_json: JsonOption = False) -> None:
    """Use a profile by default."""
    path = from_env().profiles_path
    saved = load_profiles(path).using(name)
    save_profiles(path, saved)
    _answer(saved, name, as_json=as_json, message=f"Using the profile {name}")


@profile_app.command("list")
@examples("kneo config profile list", "kneo config profile list --json")
def list_profiles(*, as_json: JsonOption = False) -> None:
    """List the saved profiles."""
    path = from_env().profiles_path
    saved = load_profiles(path)
    listed = [_described(saved, name) for name in sorted(saved.profiles)]
    answer = {"active": saved.active, "profiles": listed, "path": str(path)}

    def show_table() -> None:
        if not listed:
            render.text(f"No profiles found in {path}.")
            return
        rows = [
            ["→" if entry["name"] == saved.active else "", entry["name"], entry["service_url"], entry["authenticated"]]
            for entry in listed
        ]
        render.table("Profiles", ["", "Name", "Service", "Has a key"], rows)

    render.emit(answer, as_json=as_json, text=show_table)


@profile_app.command("show")
@examples("kneo config profile show", "kneo config profile show acme")
def show_profile(
    argument: Annotated[str | None, typer.Argument(metavar="NAME")] = None,
    *,
    name: Annotated[str | None, typer.Option("--name", help="Default: the active profile.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show one profile."""
    saved = load_profiles(from_env().profiles_path)
    chosen = name or argument or saved.active
    if chosen is None:
        render.warning("No profile is active.", "Activate one: kneo config profile use NAME")
        raise typer.Exit(1)
    saved.get(chosen)
    _answer(saved, chosen, as_json=as_json, message=f"The profile {chosen}")


@profile_app.command("delete")
@examples("kneo config profile delete acme", "kneo config profile delete acme --json")
def delete_profile(name: Annotated[str, typer.Argument(metavar="NAME")], *, as_json: JsonOption = False) -> None:
    """Delete a profile."""
    path = from_env().profiles_path
    saved = load_profiles(path)
    known = name in saved.profiles
    if known:
        save_profiles(path, saved.without(name))
    words = f"Deleted the profile {name}." if known else f"There was no profile {name}."
    render.emit({"name": name, "deleted": known}, as_json=as_json, text=lambda: render.success(words))


@examples("kneo credentials", "kneo credentials --provider openai --service-url https://kneo.example.com")
def credentials(
    providers: Annotated[list[str], typer.Option("--provider", help="Only this provider; repeatable.")] = [],  # noqa: B006 - it is read by the framework and never changed
    extras: Annotated[list[str], typer.Option("--extra", help="Name of another secret; repeatable.")] = [],  # noqa: B006 - so is it
    service_tokens: Annotated[
        bool, typer.Option("--service-tokens/--no-service-tokens", help="Whether to name the service's own keys.")
    ] = True,
    *,
    options: ServiceOptions,
) -> None:
    """Show which credentials are set where runs execute. Values are never read."""
    answer = options.call(list_credentials, providers, extras, include_service_tokens=service_tokens)
    rows = [
        [group, name, entry.env_var, "set" if entry.present else "missing"]
        for group, entries in answer.inventory.items()
        for name, entry in entries.items()
    ]
    render.emit(answer, as_json=options.as_json, text=lambda: render.table("", ["Kind", "Name", "Variable", ""], rows))


def _overlays_of(root: Path, spec: str | None) -> dict[str, list[str]]:
    if spec is None:
        return {}
    path = Path(spec)
    named = {env: path.with_name(f"{path.stem}.{env}{path.suffix}") for env in ("dev", "staging", "prod")}
    return {env: [overlay.as_posix()] for env, overlay in named.items() if (root / overlay).is_file()}


def _described(saved: Profiles, name: str) -> dict[str, object]:
    profile = saved.get(name)
    return {"name": name, "service_url": profile.service_url, "authenticated": profile.api_key is not None}


def _answer(saved: Profiles, name: str, *, as_json: bool, message: str) -> None:
    answer = _described(saved, name)
    key = "with a key" if answer["authenticated"] else "without a key"
    render.emit(answer, as_json=as_json, text=lambda: render.success(f"{message}: {answer['service_url']}, {key}."))


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
