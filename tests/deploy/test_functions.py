"""The functions of specs in production: each page says where they live, and what the page of systemd says makes a worker find them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from kneo_process import Machine

PAGES = Path(__file__).parents[2] / "docs" / "install"
SPEC = {
    "version": "v1",
    "agent": {"name": "root", "model": {"provider": "dummy", "name": "dummy"}},
    "workflow": {"type": "sequential", "steps": [{"id": "pay", "kind": "function", "ref": "pay"}]},
    "components": {"functions": {"pay": {"implementation": "shop_functions.pay"}}},
}


@pytest.mark.parametrize("name", ["systemd", "compose", "kubernetes", "image"])
def test_each_deployment_says_where_the_functions_of_specs_live(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert "## Functions of specs" in page
    assert "README.md#install-the-functions-of-specs" in page
    assert f"{name}.md#functions-of-specs" in (PAGES / "README.md").read_text()


class Started(Machine):
    """Processes that start as an operator starts them: Python reads PYTHONPATH when it starts."""

    begin = staticmethod(subprocess.Popen)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Started(tmp_path / "machine", f"sqlite:///{tmp_path / 'kneo.sqlite'}")
    yield made
    made.stop()


def test_a_worker_executes_functions_that_the_service_does_not_have(machine: Machine, tmp_path: Path) -> None:
    page = (PAGES / "systemd.md").read_text()
    [block] = [each for each in re.findall(r"```ini\n(.*?)```", page, re.DOTALL) if "PYTHONPATH" in each]
    settings = dict(line.split("=", 1) for line in block.splitlines())
    folder = tmp_path / "functions"
    folder.mkdir()
    (folder / f"{settings['KNEO_SERV_IMPORT_ALLOW']}.py").write_text("def pay(text):\n    return f'paid {text}'\n")
    service = machine.start("service", "serve", "--port", "0", "--workers", "0")
    machine.env |= settings | {"PYTHONPATH": str(folder)}
    machine.start("worker", answers=False)
    run = service.post("/runs", {"input": "5", "spec": SPEC})
    assert (run["status"], run["output_text"]) == ("succeeded", "paid 5"), run
