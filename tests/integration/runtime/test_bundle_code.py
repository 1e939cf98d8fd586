"""What a release runs is the code of its bundle, whatever stands in folders around it."""

import asyncio
import multiprocessing
import os
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from config_repo import ConfigRepo, announcement
from engine import level_sandboxes

from kneo import registry
from kneo.clock import ManualClock, SystemClock
from kneo.controller.reconcile import Reconciler
from kneo.controller.source.mirror import Mirror
from kneo.controller.stages.report import Stalled
from kneo.digest import Digest, digest_of
from kneo.errors import Untrusted
from kneo.records.run import Run, RunStatus
from kneo.runtime.engine.programs import ProgramLoader
from kneo.runtime.engine.start import Starter, StartRequest
from kneo.runtime.engine.wait import find_run
from kneo.runtime.engine.worker import Driver
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.code_store import CodeStore
from kneo.runtime.steps.executor import Executor
from kneo.spec.code import BundleCode, RunCode
from kneo.spec.models.spec import Spec
from kneo.store import history, requests
from kneo.store.engine import Store
from kneo.store.requests import Lease

RENDER = """
import os, sys
from pathlib import Path
from acme.money import euros

def invoice(text):
    from acme.late import shout
    return shout(f"{euros(text)} {Path(__file__).with_name('note.txt').read_text()}")

def where(text):
    try:
        import speedups
    except ImportError:
        speedups = None
    return repr((speedups is None, os.getcwd() in sys.path, "site_ran" in os.environ or hasattr(sys, "site_ran")))
"""

FILES = {
    "acme/__init__.py": "",
    "acme/render.py": RENDER,
    "acme/money.py": "def euros(text):\n    return f'{text} EUR'\n",
    "acme/late.py": "def shout(text):\n    return text.upper()\n",
    "acme/note.txt": "paid",
}


def spec_of(function: str = "invoice") -> dict[str, object]:
    workflow = {"type": "sequential", "steps": [{"id": "render", "kind": "function", "ref": "render"}]}
    components = {"functions": {"render": {"implementation": f"acme.render.{function}"}}}
    return announcement(workflow=workflow, components=components) | {"code": {"include": ["acme/*.txt"]}}


AT_ONCE = 4


class World:
    """A config repository with code, a database with its releases, and workers on it."""

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.repo = ConfigRepo(folder / "repo")
        for name, text in FILES.items():
            self.repo.write(name, text.encode())
        with store.write() as tx:
            fence = requests.take_lease(tx, "controller", "me", timedelta(minutes=5))
        assert fence is not None
        self._lease = Lease("controller", "me", fence)
        self.state = folder / "state" / "code"
        self.executor = self.worker(folder / "empty")

    def worker(self, root: Path) -> Executor:
        """Return what executes steps on a machine with this project folder."""
        root.mkdir(exist_ok=True)
        code = CodeLoader((root,), (), CodeStore(self.state, self.read))
        return Executor(code, level_sandboxes(code, "process"))

    def read(self, bundle: Digest) -> BundleCode:
        with self.store.read() as tx:
            return registry.accepted_code(tx, bundle)

    def release(
        self, name: str, version: str, function: str = "invoice", *, with_code: bool = True, **rules: object
    ) -> object:
        self.repo.bundle(name, version, spec_of(function), with_code=with_code)
        self.repo.environment("prod", {name: version}, **{"code": "bundled", **rules})
        self.repo.commit(f"Release {name} {version}")
        mirror = Mirror(str(self.repo.folder), "main", self.folder / "mirrors")
        return Reconciler(self.store, mirror, self.repo.pin).reconcile(self._lease).outcomes["prod"]

    def start(self, bundle: str, text: str = "7") -> Run:
        order = StartRequest(input=text, requester="bob", bundle=bundle, environment="prod")
        return Starter(self.store, Spec.model_validate, pin=self.repo.pin).start(order)

    def drive(self, *runs: Run, executor: Executor | None = None) -> list[Run]:
        driver = Driver(self.store, ProgramLoader(self.store), executor or self.worker(self.folder / "empty"))

        async def work() -> None:
            waiting = iter(runs)

            async def one_after_the_other() -> None:
                for run in waiting:
                    await driver.drive(run.id)

            await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
            await driver._deps.executor.close()

        asyncio.run(work())
        return [find_run(self.store, run.id) for run in runs]

    def run(self, bundle: str, text: str = "7", executor: Executor | None = None) -> Run:
        (done,) = self.drive(self.start(bundle, text), executor=executor)
        return done

    @property
    def laid_out(self) -> Path:
        (folder,) = (each for each in self.state.iterdir() if not each.name.startswith("."))
        return folder


@pytest.fixture
def world(store: Store, tmp_path: Path) -> World:
    assert isinstance(store.clock, ManualClock)
    store.clock.advance(SystemClock().now() - store.clock.now())
    return World(store, tmp_path)


def error_of(run: Run) -> str:
    assert run.error is not None
    return run.error.type


@pytest.mark.both_databases
def test_a_worker_without_a_repository_runs_a_release(world: World) -> None:
    world.release("mail", "1.0.0")
    shutil.rmtree(world.repo.folder)
    done = world.run("mail")
    assert (done.status, done.output_text) == (RunStatus.SUCCEEDED, "7 EUR PAID")
    with world.store.read() as tx:
        (step,) = history.list_steps(tx, done.id)
    assert step.facts["code"] == {"digest": f"sha256:{world.laid_out.name}", "source": "bundle"}
    assert step.code_digest == digest_of(RENDER.encode())


def test_an_edit_in_the_project_changes_nothing(world: World) -> None:
    world.release("mail", "1.0.0")
    for name in ("acme/money.py", "acme/late.py", "acme/render.py"):
        world.repo.write(name, b"raise RuntimeError('edited')")
    world.repo.write("acme.py", b"raise RuntimeError('shadow')")
    assert world.run("mail", executor=world.worker(world.repo.folder)).output_text == "7 EUR PAID"


def test_no_other_folder_adds_to_the_imports(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world.release("mail", "1.0.0", "where")
    other = tmp_path / "other"
    other.mkdir()
    for folder in (other, world.repo.folder):
        (folder / "speedups.py").write_text("")
        (folder / "sitecustomize.py").write_text("import sys; sys.site_ran = True")
        (folder / "more.pth").write_text("import sys; sys.site_ran = True")
        (folder / "acme").mkdir(exist_ok=True)
        (folder / "acme" / "render.py").write_text("raise RuntimeError('second package')")
    monkeypatch.setenv("PYTHONPATH", f"{other}{os.pathsep}{world.repo.folder}")
    monkeypatch.setenv("PYTHONSTARTUP", str(other / "sitecustomize.py"))
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    monkeypatch.chdir(world.repo.folder)
    assert world.run("mail", executor=world.worker(world.repo.folder)).output_text == "(True, False, False)"


@pytest.mark.both_databases
def test_two_releases_of_one_module_run_at_once(world: World) -> None:
    pipe = world.folder / "pipe"
    os.mkfifo(pipe)

    def write(currency: str, mode: str) -> None:
        # Opening a pipe waits for its other end, which the other release opens.
        text = f"def euros(text):\n    open({str(pipe)!r}, {mode!r}).close()\n    return f'{{text}} {currency}'\n"
        world.repo.write("acme/money.py", text.encode())

    write("EUR", "w")
    world.release("mail", "1.0.0")
    first = world.start("mail")
    write("USD", "r")
    world.release("mail", "1.1.0")
    second = world.start("mail")
    assert [run.output_text for run in world.drive(second, first)] == ["7 USD PAID", "7 EUR PAID"]


@pytest.mark.parametrize("change", ["edit", "same", "add", "remove", "link", "shadow"])
def test_a_changed_folder_is_refused_by_name(world: World, change: str) -> None:
    world.release("mail", "1.0.0")
    assert world.run("mail").status is RunStatus.SUCCEEDED
    file = world.laid_out / "acme" / "late.py"
    for each in (world.laid_out, world.laid_out / "acme", file):
        each.chmod(0o755)
    seen, text = file.stat(), file.read_text()
    match change:
        case "edit":
            file.write_text(text + "#")
        case "same":
            file.write_text(text.replace("upper", "lower"))
            os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        case "add":
            (world.laid_out / "acme" / "more.py").write_text("")
        case "remove":
            file.unlink()
        case "link":
            file.rename(world.folder / "late.py")
            file.symlink_to(world.folder / "late.py")
        case "shadow":
            (world.laid_out / "json.py").write_text("raise RuntimeError")
    done = world.run("mail")
    assert (done.status, error_of(done)) == (RunStatus.FAILED, "code_tampered")


def test_a_change_while_a_process_is_kept_is_found_at_the_next_call(world: World) -> None:
    world.release("mail", "1.0.0")
    first, second = world.start("mail"), world.start("mail")
    driver = Driver(world.store, ProgramLoader(world.store), world.executor)

    async def work() -> None:
        await driver.drive(first.id)
        world.laid_out.chmod(0o755)
        (world.laid_out / "speedups.py").write_text("")
        await driver.drive(second.id)
        await world.executor.close()

    asyncio.run(work())
    assert error_of(find_run(world.store, second.id)) == "code_tampered"


def test_a_deleted_folder_is_laid_out_again(world: World) -> None:
    world.release("mail", "1.0.0")
    world.run("mail")
    shutil.rmtree(world.laid_out)
    assert world.run("mail").output_text == "7 EUR PAID"


def test_a_bundle_without_code_is_not_released(world: World) -> None:
    outcome = world.release("mail", "1.0.0", with_code=False)
    assert isinstance(outcome, Stalled)
    assert outcome.reason == "CodeMissing"


def test_pins_or_any_accept_a_bundle_without_code(world: World) -> None:
    assert isinstance(world.release("mail", "1.0.0", with_code=False, code="pinned"), Stalled)
    pins = {"acme.render": "sha256:" + "1" * 64}
    for version in ("1.1.0", "1.2.0"):  # new rules hold from the next commit on
        outcome = world.release("mail", version, with_code=False, code="pinned", implementations=pins)
    assert not isinstance(outcome, Stalled)


def test_a_release_from_before_is_refused_where_a_run_starts(world: World) -> None:
    world.release("mail", "1.0.0", with_code=False, code="any")
    world.repo.environment("prod", {"mail": "1.0.0"}, code="bundled")
    world.repo.commit("Tighten")
    mirror = Mirror(str(world.repo.folder), "main", world.folder / "mirrors")
    Reconciler(world.store, mirror, world.repo.pin).reconcile(world._lease)
    with pytest.raises(Untrusted) as refused:
        world.start("mail")
    assert refused.value.code == "CodeMissing"


def test_other_packages_are_refused_where_they_must_be_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.repo.write("acme/late.py", b"import yaml\n\ndef shout(text):\n    return text.upper()\n")
    world.release("mail", "1.0.0", packages="same")
    assert world.run("mail").status is RunStatus.SUCCEEDED
    monkeypatch.setattr("kneo.runtime.steps.code_store.version", lambda _: "0.0.1")
    assert error_of(world.run("mail")) == "package_differs"


def _lay_out(root: Path, code: BundleCode) -> None:
    CodeStore(root, lambda _: code).open(RunCode({}, code.digest, code.digest), starts=True)


def test_a_process_killed_while_it_lays_out_leaves_nothing_half_done(tmp_path: Path) -> None:
    code = BundleCode({f"acme/m{number}.py": b"#" * 2_000 for number in range(200)}, {})
    fork = multiprocessing.get_context("spawn")
    for wait in (0.3, 0.35, 0.4, 0.45):
        child = fork.Process(target=_lay_out, args=(tmp_path, code))
        child.start()
        child.join(wait)
        child.kill()
        child.join()
    _lay_out(tmp_path, code)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".lock", code.digest.removeprefix("sha256:")]
