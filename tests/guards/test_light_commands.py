"""What a command does not need, it does not import: that is what makes it quick to start, on every machine."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kneo.settings import process_environment

SERVING = {"fastapi", "uvicorn", "kneo.service.app"}
FOLLOWING = {"kneo.controller", "watchdog"}
EXECUTING = {"kneo.runtime.engine.worker", "kneo.runtime.interpreter.program", "kneo.runtime.engine.start"}
SPECS = {"kneo.spec.models", "kneo.spec.lint"}
RARELY = {"alembic", "git", "httpx", "jsonschema", "re2", "rich"}

LOOKING = (
    ["runs", "list", "--json"],
    ["human", "list", "--json"],
    ["human", "summary", "--json"],
    ["status", "--json"],
)

NOT_NEEDED = {
    "help": ((["--help"],), SERVING | FOLLOWING | EXECUTING | RARELY | {"pydantic", "sqlalchemy", "cryptography"}),
    "looking": (LOOKING, SERVING | FOLLOWING | EXECUTING | SPECS | RARELY),
    "running": ((["run", "--bundle", "none", "--env", "dev", "--input", "x"],), SERVING | FOLLOWING | RARELY),
    "worker": ((["worker", "--help"],), SERVING | FOLLOWING | RARELY),
    "controller": ((["controller", "--help"],), SERVING | {"git", "rich"}),
    "service": ((["service", "--help"],), FOLLOWING | {"alembic", "git", "rich"}),
    "signing": ((["spec", "bundle", "sign", "--help"],), SERVING | FOLLOWING | EXECUTING | {"sqlalchemy", "httpx"}),
}


@pytest.mark.parametrize("kind", NOT_NEEDED)
def test_a_command_imports_nothing_that_it_does_not_need(kind: str, migrated_file: Callable[[str], Path]):
    commands, unwanted = NOT_NEEDED[kind]
    code = (
        "import sys\nfrom kneo.cli.main import run\n"
        f"for command in {commands!r}: run(command)\n"
        "print('\\n'.join(['@', *sorted(sys.modules)]))\n"
    )
    database = migrated_file("kneo.sqlite")
    environment = {
        "PATH": process_environment("PATH")["PATH"],
        "HOME": str(database.parent),
        "KNEO_SERV_DATABASE_URL": f"sqlite:///{database}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path.cwd(), capture_output=True, text=True, check=True
    )
    imported = set(done.stdout.rpartition("@\n")[2].split())
    assert "kneo.cli.main" in imported
    assert imported & unwanted == set(), done.stderr


def test_a_module_of_tools_does_not_import_the_engine() -> None:
    code = "import sys, kneo.sdk.tools, kneo.tools; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & (SERVING | FOLLOWING | EXECUTING | RARELY | {"sqlalchemy", "kneo.embed"}) == set()
