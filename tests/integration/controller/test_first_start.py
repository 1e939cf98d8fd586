"""A database that Git has not declared anything for yet runs nothing, as soon as Git is to decide. On both databases."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from config_repo import ConfigRepo
from controller_bench import Bench

from kneo.controller.loop import Controller
from kneo.digest import Digest
from kneo.errors import Forbidden, KneoError
from kneo.records.run import Run
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.service.readiness import Readiness
from kneo.settings import from_env
from kneo.spec.models.spec import Spec
from kneo.spec.reading.load import load_tree
from kneo.store.engine import Store


@pytest.fixture
def bench(store: Store, tmp_path: Path) -> Bench:
    return Bench(store, tmp_path)


def _read_spec(tree: Mapping[str, object]) -> Spec:
    spec = load_tree(dict(tree)).spec
    assert spec is not None
    return spec


def _start(bench: Bench, environment: str | None, *, pin: Digest | None = None) -> Run:
    starter = Starter(bench.store, _read_spec, pin=pin)
    return starter.start(
        StartRequest(input="x", requester="eve", environment=environment, spec=bench.repo.other_spec())
    )


def _ready(bench: Bench, *, pin: Digest | None = None) -> bool:
    variables = {} if pin is None else {"KNEO_SERV_TRUST_ROOT": pin}
    checks = Readiness(from_env(variables, bench.folder), bench.store, None, frozenset()).checks()
    assert set(checks) > {"source", "controller"}
    return bool(checks["source"]["ok"])


def _refused_everywhere(bench: Bench, *, pin: Digest | None = None) -> set[str | None]:
    """Check that no run starts; return the hints."""
    hints = set()
    for environment in ("prod", "dev", None):
        with pytest.raises(Forbidden) as refused:
            _start(bench, environment, pin=pin)
        assert refused.value.code == "bundle_not_approved"
        hints.add(refused.value.hint)
    assert not _ready(bench, pin=pin)
    return hints


def _another_root(bench: Bench) -> None:
    bench.repo = ConfigRepo(bench.folder / "another")


def _gone(bench: Bench) -> None:
    shutil.move(bench.repo.folder, bench.folder / "gone")


def _no_file_that_reads(bench: Bench) -> None:
    for name in ("dev", "prod"):
        bench.repo.write(f"environments/{name}.yaml", b"x: [\n")
    bench.repo.git("add", "-A")
    bench.repo.git("commit", "-q", "--amend", "--no-edit")


def _no_file(bench: Bench) -> None:
    for name in ("dev", "prod"):
        (bench.repo.folder / f"environments/{name}.yaml").unlink()
    bench.repo.git("commit", "-q", "-a", "--amend", "--no-edit")


@pytest.mark.parametrize("trouble", [_another_root, _gone, _no_file_that_reads, _no_file])
def test_a_first_commit_that_is_not_accepted_opens_nothing(bench: Bench, trouble: Callable[[Bench], None]) -> None:
    pin = bench.repo.pin
    reconciler = bench.reconciler(pin)
    trouble(bench)
    if trouble is _another_root:
        reconciler = bench.reconciler(pin)
    with contextlib.suppress(KneoError):
        Controller(bench.store, reconciler).run_once()
    bench.drop_lease()
    # A service of its own has no pin and no controller: the database says that there is one.
    # Pinned or not: the controller's use of the database is what decides, and unsetting a variable changes nothing.
    for hint in _refused_everywhere(bench) | _refused_everywhere(bench, pin=pin):
        assert "KNEO_SERV_TRUST_ROOT" not in str(hint)
        assert "KNEO_SERV_DATABASE_URL" in str(hint)


def test_a_pin_alone_closes_an_empty_database(bench: Bench) -> None:
    [hint] = _refused_everywhere(bench, pin=bench.repo.pin)
    assert "unset KNEO_SERV_TRUST_ROOT" in str(hint)


def test_a_controller_that_has_not_looked_yet_closes_an_empty_database(bench: Bench) -> None:
    bench.lease("somebody")
    bench.take_over("somebody")
    _refused_everywhere(bench)


def test_without_git_specs_run_as_they_come(bench: Bench) -> None:
    assert _start(bench, None).id
    assert _start(bench, "prod").id
    assert _ready(bench)


def test_the_first_accepted_commit_opens_what_it_declares(bench: Bench) -> None:
    bench.reconcile()
    assert _ready(bench)
    assert _ready(bench, pin=bench.repo.pin)
    assert _start(bench, "dev", pin=bench.repo.pin).id
    with pytest.raises(Forbidden):
        _start(bench, "prod")


def test_a_service_is_ready_for_people_who_approve_the_first_files(bench: Bench) -> None:
    bench.repo.environment("prod", {}, approvals={"required": 1})
    bench.repo.git("commit", "-q", "-a", "--amend", "--no-edit")
    assert bench.reconcile().outcomes["prod"].state == "AwaitingApproval"
    assert _ready(bench)
    with pytest.raises(Forbidden):
        _start(bench, "dev")


def test_a_trust_root_other_than_the_pinned_one_is_not_ready(bench: Bench) -> None:
    bench.reconcile()
    assert not _ready(bench, pin=ConfigRepo(bench.folder / "another").pin)
