"""``kneo doctor``: each test makes exactly one thing wrong."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders import build_run
from config_repo import ConfigRepo
from databases import Server
from oidc_issuer import OidcIssuer, running
from sqlalchemy import text

from kneo.cli.checks import Diagnosis, Level, Result, ok, run_checks
from kneo.cli.serve.doctor import examine
from kneo.clock import Clock, ManualClock, SystemClock
from kneo.digest import digest_of
from kneo.extensions.push.keys import VapidKey
from kneo.records.run import RunStatus
from kneo.sandbox.levels import HostLevel
from kneo.service.auth import key_digest
from kneo.store import audit, requests, runs
from kneo.store.engine import WORKER_LOCK, Store
from kneo.store.migrate import HEAD, open_store
from kneo.trust.keys import PrivateKey

OK, WARNING, ERROR = Level.OK, Level.WARNING, Level.ERROR
LONG = "k" * 24

Kneo = Callable[..., object]


class Installation:
    """An installation whose settings are variables of this process."""

    def __init__(self, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.url = url
        self._monkeypatch = monkeypatch
        self.set(KNEO_SERV_DATABASE_URL=url)

    def set(self, **variables: str) -> None:
        for name, value in variables.items():
            self._monkeypatch.setenv(name, value)

    def open(self, clock: Clock | None = None) -> Store:
        return open_store(self.url, clock or SystemClock())

    def check(self, name: str, *, host: str = "127.0.0.1", processes: int = 1, clock: Clock | None = None) -> Result:
        """Run all checks and return one."""
        return next(one for one in examine(host, processes, clock) if one.check == name)

    def level(self, name: str, **options: object) -> Level:
        return self.check(name, **options).level


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    return Installation(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", monkeypatch)


@pytest.fixture
def served(migrated_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """An installation on each kind of database."""
    return Installation(tmp_path, migrated_url, monkeypatch)


@pytest.fixture
def on_postgres(
    postgres_server: Server, _postgres_template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Installation]:
    name = postgres_server.create(_postgres_template)
    yield Installation(tmp_path, postgres_server.url(name), monkeypatch)
    postgres_server.drop(name)


def levels(results: Collection[Result], level: Level) -> set[str]:
    return {result.check for result in results if result.level is level}


def test_an_installation_that_works_has_no_error(served: Installation) -> None:
    served.set(KNEO_SERV_SERVICE_KEY=PrivateKey.generate().dump().decode())
    results = examine("127.0.0.1", 1)
    assert levels(results, ERROR) == set()
    assert levels(results, WARNING) == {"worker"}
    assert len(results) == 29


def test_the_page_has_every_check_in_order_and_its_commands_run(local: Installation, kneo: Kneo) -> None:
    local.open().close()
    local.set(KNEO_SERV_API_KEYS=f"ann:{LONG}:admin")
    page = (Path(__file__).parents[3] / "docs/operations/doctor.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [one.check for one in examine("127.0.0.1", 1)]
    [block] = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        assert kneo(*line.split()[1:]).status == 0


def test_the_command_prints_the_report_and_fails_on_errors_alone(local: Installation, kneo: Kneo) -> None:
    local.open().close()
    report = kneo("doctor", "--json")
    assert (report.status, report.json["status"]) == (0, "warning")
    assert {"check", "level", "message", "hint"} == set(report.json["checks"][0])
    failed = kneo("doctor", "--host", "0.0.0.0")
    assert failed.status == 1
    assert "✗ authentication" in failed.out
    assert "1 error, 1 warning, " in failed.out


def test_a_misspelt_variable_is_named_with_the_nearest_setting(local: Installation) -> None:
    assert local.level("variables") is OK
    local.set(KNEO_SERV_RETENTON_RUNS_DAYS="TOPSECRET")
    result = local.check("variables")
    assert result.level is WARNING
    assert "KNEO_SERV_RETENTON_RUNS_DAYS is not a setting" in result.message
    assert "KNEO_SERV_RETENTION_RUNS_DAYS" in result.message
    assert "TOPSECRET" not in f"{result.message}{result.hint}"


def test_nothing_is_changed_and_no_secret_is_printed(local: Installation, kneo: Kneo) -> None:
    local.set(
        KNEO_SERV_API_KEYS="ann:TOPSECRET-of-ann:admin;ben:TOP:viewer",
        KNEO_SERV_CHANNEL_OPS="slack:https://hooks.example/TOPSECRET",
        KNEO_SERV_DATA_KEYS="VE9QU0VDUkVUVE9QU0VDUkVUVE9QU0VDUkVUVE9QU0U=",
    )
    assert kneo("doctor").status == 0
    assert not list(local.folder.glob("*.sqlite*"))
    local.open().close()
    before = {path.name for path in local.folder.iterdir()}
    report = kneo("doctor", "--json")
    assert {path.name for path in local.folder.iterdir()} - before <= {"kneo.sqlite.worker.lock"}
    assert "TOP" not in report.out + report.err
    local.set(KNEO_SERV_DATABASE_URL="postgresql://kneo:TOPSECRET@127.0.0.1:1/kneo")
    report = kneo("doctor", "--json")
    assert (report.status, "TOPSECRET" in report.out + report.err) == (1, False)


@pytest.mark.parametrize(
    "variables",
    [
        {"KNEO_SERV_MAX_BODY_BYTES": "many"},
        {"KNEO_SERV_API_KEYS_FILE": "missing"},
        {"KNEO_SERV_DATA_KEYS": "short"},
        {"KNEO_SERV_RETENTION_USAGE_DAYS": "3"},
        {"KNEO_SERV_DISPATCH": "temporal"},
    ],
)
def test_settings_that_are_not_valid(local: Installation, variables: dict[str, str]) -> None:
    local.set(**variables)
    assert local.level("settings") is ERROR


def test_a_project_config_that_is_not_valid(local: Installation) -> None:
    (local.folder / "kneo_serv.yaml").write_text("nothing: here\n")
    assert local.level("settings") is ERROR


def test_a_missing_package(local: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    local.set(KNEO_SERV_OTEL_ENABLED="1")
    assert local.level("extras") is OK
    monkeypatch.setattr("kneo.cli.serve.doctor._is_installed", lambda module: module != "opentelemetry.sdk")
    found = local.check("extras")
    assert (found.level, found.hint) == (ERROR, "pip install 'kneo[telemetry]'")


def test_a_service_that_others_reach_without_keys(local: Installation) -> None:
    assert local.level("authentication", host="0.0.0.0") is ERROR
    local.set(KNEO_SERV_PUBLIC_URL="https://kneo.example.org")
    assert local.level("authentication") is ERROR
    local.set(KNEO_SERV_ALLOW_ANONYMOUS="1")
    assert local.level("authentication", host="0.0.0.0") is WARNING
    local.set(KNEO_SERV_API_KEYS=f"ann:{LONG}:admin")
    assert local.level("authentication", host="0.0.0.0") is OK
    issuer = {"ISSUER": "https://id.example.org", "AUDIENCE": "kneo", "ROLES": "ops=operator"}
    local.set(**{f"KNEO_SERV_OIDC_{name}": value for name, value in issuer.items()})
    assert local.check("authentication").message == "Requests need an API key or a token of https://id.example.org."


def test_a_check_that_fails_stops_no_other() -> None:
    def broken() -> Diagnosis:
        raise ZeroDivisionError("a secret")

    first, second = run_checks({"broken": broken, "works": lambda: ok("Fine.")})
    assert (first.level, second.level) == (ERROR, OK)
    assert "secret" not in first.message


def test_an_issuer_that_does_not_respond(local: Installation) -> None:
    assert local.level("issuer") is OK
    with running(OidcIssuer()) as issuer:
        local.set(KNEO_SERV_OIDC_ISSUER=issuer.url, KNEO_SERV_OIDC_AUDIENCE="kneo", KNEO_SERV_OIDC_ROLES="ops=operator")
        assert local.level("issuer") is OK
    assert local.level("issuer") is ERROR


def test_a_key_of_notifications_that_cannot_be_used(local: Installation) -> None:
    assert local.level("web_push") is OK
    local.set(
        KNEO_SERV_VAPID_PRIVATE_KEY=VapidKey.generate().pem.decode(), KNEO_SERV_VAPID_SUBJECT="mailto:a@b.example"
    )
    assert local.level("web_push") is OK
    local.set(KNEO_SERV_PUBLIC_URL="https://kneo.example.org")
    assert local.level("web_push") is OK
    local.set(KNEO_SERV_PUBLIC_URL="http://kneo.example.org")
    assert local.level("web_push") is WARNING
    local.set(KNEO_SERV_VAPID_PRIVATE_KEY="s3cret")
    assert local.level("web_push") is ERROR
    assert "s3cret" not in local.check("web_push").message


def test_api_keys_that_can_be_guessed_or_are_not_valid(local: Installation) -> None:
    local.set(KNEO_SERV_API_KEYS=f"ann:{LONG}:admin;ben:{key_digest('short')}:viewer")
    assert local.level("api_keys") is OK
    local.set(KNEO_SERV_API_KEYS=f"ann:{LONG[1:]}:admin")
    assert local.level("api_keys") is WARNING
    assert "ann" in local.check("api_keys").message
    local.set(KNEO_SERV_API_KEYS=f"ann:{LONG}:king")
    assert local.level("api_keys") is ERROR


def test_a_missing_key_of_a_model_provider(local: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    config = "project: {name: lab}\nsecrets: {provider_env: {openai: LAB_MODEL_KEY}}\n"
    (local.folder / "kneo_serv.yaml").write_text(config)
    assert local.level("model_keys") is WARNING
    monkeypatch.setenv("LAB_MODEL_KEY", "secret")
    assert local.level("model_keys") is OK


def test_a_full_disk(local: Installation) -> None:
    local.set(KNEO_SERV_HEALTH_FREE_BYTES=str(2**62))
    assert local.level("disk") is ERROR


def test_a_database_that_does_not_answer(local: Installation) -> None:
    local.set(KNEO_SERV_DATABASE_URL="postgresql://postgres@127.0.0.1:1/none")
    assert local.level("database") is ERROR


def test_a_database_of_another_program(served: Installation) -> None:
    with closing(served.open()) as store, store.write() as tx:
        tx.connection.execute(text("DROP TABLE alembic_version"))
    assert served.level("database") is ERROR


@pytest.mark.parametrize(("migrate", "level"), [("auto", WARNING), ("never", ERROR)])
def test_a_schema_that_has_to_be_migrated(served: Installation, migrate: str, level: Level) -> None:
    with closing(served.open()) as store, store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_0001'"))
    served.set(KNEO_SERV_MIGRATE=migrate)
    found = served.check("database")
    assert (found.level, HEAD in found.message) == (level, True)


@pytest.mark.parametrize(("compatible_from", "level"), [(HEAD, WARNING), ("kneo_9999", ERROR)])
def test_the_schema_of_a_newer_version(served: Installation, compatible_from: str, level: Level) -> None:
    with closing(served.open()) as store, store.write() as tx:
        tx.connection.execute(text("UPDATE alembic_version SET version_num = 'kneo_9999'"))
        tx.connection.execute(text("UPDATE schema_compatibility SET compatible_from = :v"), {"v": compatible_from})
    assert served.level("database") is level


def test_a_server_without_connections_for_all_processes(on_postgres: Installation) -> None:
    assert on_postgres.level("connections", processes=5) is OK
    found = on_postgres.check("connections", processes=50)
    assert found.level is ERROR
    assert "750" in found.message


def test_a_clock_that_differs_from_the_servers(on_postgres: Installation) -> None:
    assert on_postgres.level("clock") is OK
    off = ManualClock(SystemClock().now() + timedelta(minutes=5))
    assert on_postgres.level("clock", clock=off) is ERROR


def test_no_service_key_where_it_is_needed(on_postgres: Installation) -> None:
    assert on_postgres.level("service_key") is ERROR
    on_postgres.set(KNEO_SERV_SERVICE_KEY="no key")
    assert on_postgres.level("service_key") is ERROR


def test_another_service_key_than_that_of_the_newest_checkpoint(local: Installation, kneo: Kneo) -> None:
    with closing(local.open()) as store:
        store.transact(lambda tx: audit.record(tx, "run.created", actor="ann"))
        audit.seal(store)
    assert kneo("audit", "checkpoint").status == 0
    assert local.level("service_key") is OK
    local.set(KNEO_SERV_SERVICE_KEY=PrivateKey.generate().dump().decode())
    assert local.level("service_key") is ERROR


def test_records_without_a_code_of_the_service_key_are_counted(served: Installation, kneo: Kneo) -> None:
    key, former = PrivateKey.generate(), PrivateKey.generate()
    served.set(KNEO_SERV_SERVICE_KEY=key.dump().decode())
    for find in (lambda: key, lambda: former, lambda: None):
        with closing(open_store(served.url, SystemClock(), find)) as store:
            store.transact(lambda tx: runs.insert_run(tx, build_run(status=RunStatus.SUCCEEDED)))
            store.transact(lambda tx: requests.insert_request(tx, "hold", {}, "ann"))
    found = served.check("records")
    assert found.level is WARNING
    assert "4 records have no code of the service key, and are refused: " in found.message
    assert {"2 of runs", "2 of requests"} <= set(found.message.rpartition(": ")[2].rstrip(".").split(", "))
    assert "kneo maintenance adopt" in found.hint
    assert kneo("audit", "verify", "--json").json["unauthenticated_records"] == {"requests": 2, "runs": 2}
    shown = kneo("audit", "verify")
    assert (shown.status, "4 records have no code" in shown.out + shown.err) == (0, True)
    assert kneo("maintenance", "adopt", "--changed").status == 0
    assert served.level("records") is OK
    assert kneo("audit", "verify", "--json").json["unauthenticated_records"] == {}
    served.set(KNEO_SERV_RECORD_MACS="write")
    assert served.level("records") is WARNING


def test_no_worker_and_runs_that_wait_for_one(served: Installation) -> None:
    with closing(served.open()) as store:
        assert served.level("worker") is WARNING
        store.transact(lambda tx: runs.insert_run(tx, build_run(status=RunStatus.RUNNING)))
        assert served.level("worker") is ERROR
        with store.shared(WORKER_LOCK) as lock:
            assert lock
            assert served.level("worker", clock=ManualClock(datetime(2020, 1, 1, tzinfo=UTC))) is OK
            assert served.level("worker", clock=ManualClock(datetime(2050, 1, 1, tzinfo=UTC))) is WARNING


def test_a_worker_whose_machine_gives_less_than_an_environment_requires(
    followed: ConfigRepo, local: Installation, kneo: Kneo, monkeypatch: pytest.MonkeyPatch
) -> None:
    weak = HostLevel(level="process", facts="Landlock is off")
    monkeypatch.setattr("kneo.cli.serve.database_checks.host_level", lambda: weak)
    with closing(local.open()) as store, store.shared(WORKER_LOCK):
        assert local.level("worker") is OK
    followed.environment("dev", {"announce": "1.0.0"}, inlineSpecs=True, tools={"sandbox": {"required": "kernel"}})
    followed.commit("Require the level kernel")
    kneo("controller", "run", "--repo", followed.folder, "--once")
    with closing(local.open()) as store, store.shared(WORKER_LOCK):
        found = local.check("worker")
    assert found.level is WARNING
    assert found.message == "this machine gives sandboxes at level process, and dev requires kernel."
    assert "sandbox_unavailable" in found.hint


def test_a_run_during_which_workers_died(served: Installation) -> None:
    with closing(served.open()) as store:
        run = build_run(status=RunStatus.RUNNING)
        store.transact(lambda tx: runs.insert_run(tx, run))
        assert served.level("suspects") is OK
        for _ in range(2):
            store.transact(lambda tx: runs.acquire(tx, run.id, "claim"))
            store.transact(runs.clear_owners)
    found = served.check("suspects")
    assert (found.level, run.id in found.message) == (WARNING, True)


def test_audit_events_that_are_not_sealed(served: Installation) -> None:
    clock = ManualClock(datetime(2026, 1, 1, tzinfo=UTC))
    with closing(served.open(clock)) as store:
        store.transact(lambda tx: audit.record(tx, "run.created", actor="ann"))
        assert served.level("audit", clock=clock) is OK
        clock.advance(timedelta(minutes=2))
        assert served.level("audit", clock=clock) is ERROR
        audit.seal(store)
        assert served.level("audit", clock=clock) is OK


@pytest.fixture
def followed(local: Installation, kneo: Kneo, monkeypatch: pytest.MonkeyPatch) -> ConfigRepo:
    """The config repository that the controller has reconciled with the database; the code of its releases is there too."""
    repo = ConfigRepo(local.folder / "repo")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(repo.folder)
    repo.release("dev", "announce", "1.0.0")
    repo.commit("Release")
    local.set(KNEO_SERV_TRUST_ROOT=str(repo.pin))
    done = kneo("controller", "run", "--repo", repo.folder, "--once")
    assert done.status == 0, done.err
    return repo


def test_a_repository_that_is_reconciled(followed: ConfigRepo, local: Installation) -> None:
    results = examine("127.0.0.1", 1)
    assert levels(results, ERROR) == set()
    assert levels(results, WARNING) == {"worker", "controller"}


def test_a_trust_root_that_is_not_pinned_or_not_the_pinned_one(
    followed: ConfigRepo, local: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KNEO_SERV_TRUST_ROOT")
    assert local.level("trust_root") is WARNING
    local.set(KNEO_SERV_TRUST_ROOT=f"sha256:{'0' * 64}")
    assert local.level("trust_root") is ERROR


@pytest.mark.parametrize(("days", "level"), [(300, OK), (340, WARNING), (400, ERROR)])
def test_a_trust_root_that_expires(followed: ConfigRepo, local: Installation, days: int, level: Level) -> None:
    assert local.level("trust_root", clock=ManualClock(SystemClock().now() + timedelta(days=days))) is level


def test_no_trust_root_was_accepted(local: Installation) -> None:
    local.open().close()
    local.set(KNEO_SERV_TRUST_ROOT=f"sha256:{'0' * 64}")
    assert local.level("trust_root") is WARNING


def test_a_repository_whose_host_does_not_answer(followed: ConfigRepo, local: Installation) -> None:
    assert local.level("source") is OK
    shutil.move(followed.folder, local.folder / "elsewhere")
    assert local.level("source") is ERROR


def test_a_mirror_that_is_damaged(followed: ConfigRepo, local: Installation) -> None:
    [mirror] = (local.folder / "mirrors").glob("*.git")
    (mirror / "HEAD").write_text("nothing\n")
    assert local.level("source") is ERROR
    assert (mirror / "HEAD").read_text() == "nothing\n"


def test_a_refused_commit(followed: ConfigRepo, local: Installation, kneo: Kneo) -> None:
    followed.write("environments/trust.json", b"{}")
    followed.commit("Damage the trust root")
    kneo("controller", "run", "--repo", followed.folder, "--once")
    assert local.level("source") is WARNING


def test_a_channel_that_specs_notify_and_no_setting_has(local: Installation) -> None:
    with closing(local.open()) as store:
        spec = b'{"components": {"humans": {"editor": {"notify": ["Slack_Ops"]}}}}'
        store.transact(lambda tx: runs.insert_spec(tx, "sha256:" + "1" * 64, spec))
    found = local.check("channels")
    assert (found.level, "slack-ops" in found.message) == (WARNING, True)
    local.set(KNEO_SERV_CHANNEL_SLACK_OPS="slack:https://hooks.example/x")
    assert local.level("channels") is OK


WAITING = """
agent: {name: root, model: {provider: dummy, name: dummy}}
workflow: {type: sequential, steps: [{id: ask, kind: human, ref: ann}]}
components: {humans: {ann: {description: "Fine?"}}}
"""


def test_a_database_moves_to_postgresql_with_its_service_key(
    local: Installation, kneo: Kneo, postgres_url: str, tmp_path: Path
) -> None:
    page = (Path(__file__).parents[3] / "docs/operations/database.md").read_text()
    section = page[page.index("### Move from SQLite to PostgreSQL") : page.index("## Migrations")]
    (tmp_path / "spec.yaml").write_text(WAITING)
    paused = kneo("run", "spec.yaml", "--input", "x", "--json").json
    request = paused["metadata"]["pending_human_request"]["request_id"]
    assert kneo("human", "resume", paused["continuation_id"], "--request-id", request, "--approve").status == 0
    backup, restore = re.findall(r"`kneo (maintenance [a-z]+ kneo-backup\.sqlite)`", section)
    assert kneo(*backup.split()).status == 0

    local.set(KNEO_SERV_DATABASE_URL=postgres_url)
    assert kneo(*restore.split()).status == 0
    assert local.level("service_key") is ERROR
    assert kneo("task", "receipt", "key", "--json").json["error"] == "no_service_key"
    [key] = re.findall(r"a copy of \.kneo/(\S+)$", section, re.MULTILINE)
    [variable] = re.findall(r"^ *export (KNEO_SERV_SERVICE_KEY\w*)=", section, re.MULTILINE)
    local.set(**{variable: str(tmp_path / key)})
    assert local.level("service_key") is OK
    assert kneo("task", "receipt", "key").status == 0
    assert kneo("audit", "verify", "--json").json["signatures"] is True


def test_a_release_whose_code_a_worker_may_not_load(followed: ConfigRepo, local: Installation, kneo: Kneo) -> None:
    assert local.level("code") is OK
    source = followed.folder / "test_functions.py"

    local.set(KNEO_SERV_IMPORT_ALLOW="another_package")
    found = local.check("code")
    assert (found.level, "announce 1.0.0 in dev" in found.message) == (WARNING, True)
    assert "may not be named" in found.message

    local.set(KNEO_SERV_IMPORT_ALLOW="")
    written = source.read_text()
    for broken, why in (("def another(): pass", "has no function"), ("def :", "no Python"), (None, "may not be named")):
        source.unlink() if broken is None else source.write_text(broken)
        found = local.check("code")
        assert (found.level, why in found.message) == (WARNING, True), found.message
    source.write_text(f"raise SystemExit\n{written}")  # it is not executed
    assert local.level("code") is OK

    pins = {"test_functions": digest_of(b"what was reviewed")}
    followed.environment("dev", {"announce": "1.0.0"}, inlineSpecs=True, implementations=pins)
    followed.commit("Pin the code")
    kneo("controller", "run", "--repo", followed.folder, "--once")
    found = local.check("code")
    assert (found.level, "but its environment pins" in found.message) == (WARNING, True)
