"""What a controller does when there is nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from controller_bench import Bench

from kneo.controller import loop
from kneo.controller.loop import Controller
from kneo.store.engine import Store


def test_an_idle_controller_tidies_its_mirror(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, now = Bench(store, tmp_path), 1_000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    monkeypatch.setattr("kneo.controller.source.mirror.PACKS", 3)
    controller = Controller(bench.store, bench.reconciler())
    packs = []
    for turn in range(4):
        if turn < 3:
            bench.repo.release("prod", "mail", f"1.{turn}.0")
        now += 3_600
        controller._turn()
        packs.append(len(list(tmp_path.glob("mirrors/*.git/objects/pack/*.pack"))))
    assert packs == [1, 2, 3, 1]
    assert bench.served() == {"mail": "1.2.0"}
    bench.repo.release("prod", "mail", "1.3.0")
    now += 3_600
    controller._turn()
    assert bench.served() == {"mail": "1.3.0"}


def test_whoever_is_done_leaves_nothing_running(store: Store, tmp_path: Path) -> None:
    bench = Bench(store, tmp_path)
    reconciler = bench.reconciler()
    reconciler.reconcile(bench.lease())
    reading = reconciler.mirror._objects._talk
    assert reading is not None
    process = reading._process
    assert process.poll() is None
    del reading, reconciler
    assert process.poll() is not None
