"""Alerts and dashboard: each metric is one that the code exposes, each expression parses, each alert has a runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from deploy_files import DEPLOY, ROOT, library, program
from engine import Engine
from prometheus_client import REGISTRY

from kneo.cli.serve.worker import WorkerMetrics
from kneo.clock import SystemClock
from kneo.controller import metrics as controller_metrics
from kneo.runtime.engine.assemble import LockedWorker, worker_on
from kneo.service.events import Streams
from kneo.service.metrics import Metrics
from kneo.store.engine import WORKER_LOCK
from kneo.store.migrate import open_store

FOLDER = DEPLOY / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"][0]["rules"]
PANELS = json.loads((FOLDER / "dashboard.json").read_text())["panels"]
RUNBOOKS = (ROOT / "docs" / "operations" / "runbooks.md").read_text()
NAME = re.compile(r"\bkneo_\w+")


def expressions() -> Iterator[str]:
    yield from (alert["expr"] for alert in ALERTS)
    yield from (target["expr"] for panel in PANELS for target in panel["targets"])


@pytest.fixture
def exposed(migrated_file: Callable[[str], Path], tmp_path: Path) -> set[str]:
    """Return the names of all samples that services, workers and controllers expose."""
    assert controller_metrics.READY is not None
    store = open_store(f"sqlite:///{migrated_file('kneo.sqlite')}", SystemClock())
    try:
        with store.shared(WORKER_LOCK) as lock:
            engine = Engine(store, tmp_path / "code", "")
            worker = LockedWorker(lock, lambda beat: worker_on(store, engine.driver(), concurrency=1, beat=beat))
            service = Metrics(store, Streams(1, 1, 1.0)).registry
            families = [*service.collect(), *REGISTRY.collect(), *WorkerMetrics(worker).collect()]
    finally:
        store.close()
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return {f"{family.name}{ending}" for family in families for ending in endings.get(family.type, ("",))}


def test_every_metric_is_exposed_under_this_name(exposed: set[str]) -> None:
    named = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(named) > 20
    assert named - exposed == set()


@pytest.mark.parametrize("expression", [*expressions()])
def test_every_expression_parses(expression: str) -> None:
    library("promql_parser")
    from promql_parser import parse

    parse(expression)


def test_an_alert_of_a_gauge_that_several_processes_expose_aggregates_them() -> None:
    for alert in ALERTS:
        assert re.search(r"\b(max|min|sum|absent)\b", alert["expr"]), alert["alert"]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert {alert["alert"] for alert in ALERTS} == set(re.findall(r"^## (\w+)$", RUNBOOKS, re.MULTILINE))
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/operations/runbooks.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in {"critical", "warning"}
        section = RUNBOOKS.split(f"## {alert['alert']}\n")[1].split("\n## ")[0]
        assert alert["annotations"]["summary"] in section
        assert "**Do.**" in section


def test_prometheus_accepts_the_alerts() -> None:
    check = [program("promtool"), "check", "rules", FOLDER / "alerts.yaml"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_panels_of_the_dashboard_have_ids_and_places_of_their_own() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS}) == len(PANELS)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
