"""Check a file of environment variables before it is deployed.

    python scripts/validate_staging_env.py --env-file deploy/production.env

Prints one line for each error and exits with 1 where there is one. No value of a variable is printed. Needs Kneo installed: the settings
are read as a process would read them.
"""

from __future__ import annotations

import argparse
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from kneo.errors import KneoError
from kneo.settings import from_env

MAX_BYTES = 262_144
MIN_KEY_CHARS = 24
ROLES = ("operator", "reviewer", "viewer")
LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)")
PLACEHOLDER = re.compile(r"replace[-_]|change[-_]?me|<[^>]+>|\bOP_TOKEN\b|\bDB_PASSWORD\b", re.IGNORECASE)
CONTENT = ("KNEO_SERV_OTEL_RECORD_ARGUMENTS", "KNEO_SERV_OTEL_RECORD_RESULTS")
TRUE = {"1", "true", "yes", "on"}


def read(path: Path) -> tuple[dict[str, str], list[str]]:
    """Return the variables of a file, and the problems of its lines."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        return {}, [f"{path} is larger than {MAX_BYTES} bytes"]
    values: dict[str, str] = {}
    problems = []
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None:
            problems.append(f"line {number} is not NAME=VALUE")
        elif match[1] in values:
            problems.append(f"line {number}: {match[1]} is set twice")
        else:
            values[match[1]] = _unquoted(match[2].strip())
    return values, problems


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) >= 2 and text[0] == text[-1] and text[0] in "'\"" else text


def problems_of(env: Mapping[str, str], *, records_content: bool = False) -> Iterator[str]:
    """Yield what is wrong with the variables of a deployment.

    Args:
        env: The variables.
        records_content: Whether contents may be part of traces.
    """
    yield from (f"{name} still has a placeholder" for name, value in env.items() if PLACEHOLDER.search(value))
    yield from _keys(env)
    if not _has(env, "KNEO_SERV_DATABASE_URL"):
        yield "KNEO_SERV_DATABASE_URL (or KNEO_SERV_DATABASE_URL_FILE) is missing: the service would use a SQLite file"
    elif env.get("KNEO_SERV_DATABASE_URL", "postgres").startswith("sqlite"):
        yield "KNEO_SERV_DATABASE_URL names a SQLite file, which one machine alone can use"
    elif not _has(env, "KNEO_SERV_SERVICE_KEY"):
        yield "KNEO_SERV_SERVICE_KEY (or KNEO_SERV_SERVICE_KEY_FILE) is missing: nothing could sign receipts"
    for name in CONTENT:
        if env.get(name, "").lower() in TRUE and not records_content:
            yield f"{name} puts contents into traces; pass --allow-recorded-content where that was agreed"
    if env.get("KNEO_SERV_ALLOW_ANONYMOUS", "").lower() in TRUE:
        yield "KNEO_SERV_ALLOW_ANONYMOUS gives every caller every right"
    try:
        # A file may exist on the machine of the deployment alone.
        from_env({name: value for name, value in env.items() if not name.endswith("_FILE")}, Path("/"))
    except KneoError as error:
        yield error.message if not PLACEHOLDER.search(" ".join(env.values())) else error.message.partition(", not ")[0]


def _has(env: Mapping[str, str], name: str) -> bool:
    return bool(env.get(name, "").strip() or env.get(f"{name}_FILE", "").strip())


def _keys(env: Mapping[str, str]) -> Iterator[str]:
    """Yield the problems of the API keys."""
    if not _has(env, "KNEO_SERV_API_KEYS"):
        yield "KNEO_SERV_API_KEYS (or KNEO_SERV_API_KEYS_FILE) is missing"
        return
    if env.get("KNEO_SERV_API_KEYS_FILE"):
        return
    entries = [entry.strip().split(":") for entry in env["KNEO_SERV_API_KEYS"].split(";") if entry.strip()]
    roles: set[str] = set()
    seen: set[str] = set()
    for position, entry in enumerate(entries, start=1):
        if len(entry) not in {3, 4} or (len(entry) == 4 and entry[1] != "sha256"):
            yield f"KNEO_SERV_API_KEYS: entry {position} is not name:key:role or name:sha256:digest:role"
            continue
        roles.update(entry[-1].split(","))
        key = entry[-2]
        if len(key) < MIN_KEY_CHARS:
            yield f"KNEO_SERV_API_KEYS: the key of {entry[0]} is shorter than {MIN_KEY_CHARS} characters"
        if key in seen:
            yield f"KNEO_SERV_API_KEYS: the key of {entry[0]} is also that of another name"
        seen.add(key)
    missing = [role for role in ROLES if role not in roles]
    if missing:
        yield f"KNEO_SERV_API_KEYS has no key with the role {', '.join(missing)}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-file", required=True, type=Path, help="file of NAME=VALUE lines")
    parser.add_argument("--allow-recorded-content", action="store_true", help="traces may carry inputs and outputs")
    chosen = parser.parse_args(arguments)
    try:
        env, problems = read(chosen.env_file)
        mode = chosen.env_file.stat().st_mode
    except OSError as error:
        sys.stderr.write(f"{chosen.env_file} cannot be read: {error.strerror}\n")
        return 1
    problems += problems_of(env, records_content=chosen.allow_recorded_content)
    if mode & (stat.S_IRWXG | stat.S_IRWXO) and not str(chosen.env_file).endswith(".example"):
        problems.append(f"{chosen.env_file} can be read by others: chmod 600 {chosen.env_file}")
    for problem in problems:
        sys.stdout.write(f"ERROR  {problem}\n")
    if not problems:
        sys.stdout.write(f"{chosen.env_file}: no problems found\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
