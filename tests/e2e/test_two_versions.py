"""An upgrade and a way back without a failed request: processes of two versions on one PostgreSQL database, under load.

The later version is this one with one more migration. All processes have ``KNEO_SERV_MIGRATE=never``; ``kneo maintenance migrate`` of
the later version migrates the database while the earlier one uses it. ``make upgrade-check`` does it from earlier versions of the
history, with more processes and runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from kneo_process import Machine
from upgrade.deployment import ProgramMachine
from upgrade.update import VARIABLES, RollingUpdate, Size, UpdateResult, stopping

import kneo
from kneo.store.migrate import COMPATIBLE_FROM, HEAD

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]

LATER = "kneo_9999"
MIGRATION = f'''
"""One more table, column and index."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "{LATER}", "{HEAD}"


def upgrade() -> None:
    op.create_table("later_things", sa.Column("name", sa.String(40), primary_key=True))
    for table in ("runs", "tasks", "audit_events"):
        op.add_column(table, sa.Column("later", sa.Integer(), nullable=False, server_default="0"))
    op.create_index("ix_later_runs", "runs", ["later"])
'''

SMALL = Size(services=1, workers=1, users=2, runs=3)


def check(result: UpdateResult) -> None:
    """Check that nothing failed, was lost or was doubled, and that the update had work to lose."""
    assert result.violations == []
    assert len(result.evidence.runs) == len(result.evidence.started) >= 3 * SMALL.runs
    assert result.receipts == len(result.evidence.tasks) == len(result.evidence.sent)
    assert result.decided_later > 0


def test_a_database_in_use_is_upgraded_and_taken_back_without_a_failed_request(
    tmp_path: Path, postgres_url: str
) -> None:
    program = tmp_path / "program"
    shutil.copytree(Path(kneo.__file__).parent, program / "kneo", ignore=shutil.ignore_patterns("__pycache__"))
    store = program / "kneo" / "store"
    source = (store / "migrate.py").read_text()
    assert f'\nHEAD = "{HEAD}"' in source
    (store / "migrate.py").write_text(source.replace(f'\nHEAD = "{HEAD}"', f'\nHEAD = "{LATER}"'))
    (store / "migrations" / "versions" / f"{LATER}_later.py").write_text(MIGRATION)
    earlier = Machine(tmp_path / "earlier", postgres_url, **VARIABLES)
    later = ProgramMachine(tmp_path / "later", postgres_url, program, **VARIABLES)
    assert "schema_too_old" in str(earlier.json("runs", "list", expect=1))
    with stopping(earlier, later):
        result = RollingUpdate(earlier, later, tmp_path / "code", SMALL).go()
        check(result)
        assert (result.migrated, result.went_back) == ((HEAD, LATER), True)
        planned = earlier.json("maintenance", "migrate", "--dry-run")
        assert planned == {"from": LATER, "to": LATER, "migrations": {}, "compatible_from": COMPATIBLE_FROM}
