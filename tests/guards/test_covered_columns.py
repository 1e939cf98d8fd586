"""Which columns the message authentication codes of records cover.

A code covers columns in an order: one that is added to a covered table, or moved in it, makes the codes of all rows of earlier versions
invalid, and one that is not covered is what a person who can write to the database changes.
"""

from __future__ import annotations

import pytest

from kneo.digest import digest_of
from kneo.store import authenticated, oidc_people, runs, tasks
from kneo.store.tables import metadata

WITH_BODIES_OF_THEIR_OWN = {"runs", "tasks", "oidc_people", "audit_events"}
"""Tables whose codes cover more than columns, or another form of them."""

DIGESTS = {
    "agent_journal": "b10dd2375754",
    "approvals": "f21fb5384edb",
    "attestations": "14e77bcca1ca",
    "browser_sessions": "8530ebca7233",
    "bundles": "677082e6ab30",
    "canaries": "a9af28b75c73",
    "checkpoints": "9cd8aad14251",
    "environments": "7c3ff7af19c1",
    "grants": "27315ba5e943",
    "journal_entries": "3eba76f78c77",
    "pending_plans": "2e5490fd286f",
    "pending_releases": "b06fa15ab138",
    "project_metadata": "3a7dba9c3050",
    "promotions": "9c73522c8283",
    "qualified_bundles": "2888d55d7c2d",
    "requests": "8ac84a12a625",
    "session_messages": "70c209eee84d",
    "session_summaries": "71d98b390783",
    "sign_in_links": "49104b5f3183",
    "steps": "1f0deb359256",
    "task_links": "33ff9f90b14f",
    "trust_roots": "51bc44c674df",
}
"""The digest of the covered columns of each table. Put a new column of such a table into ``but``, with its reason; where it has to be
covered, put the digest here and describe in docs/operations/upgrade.md that records are adopted again."""

LEFT_OUT = {
    "runs": {
        *(
            "status",
            "visited_steps",
            "epoch",
            "owner",
            "signal_seq",
            "suspicion",
            "created_at",
            "updated_at",
            "started_at",
            "completed_at",
        ),
        *("step_count", "checkpoint_count", "trace_count", "session_id", "usage", "resume_at"),
    },
    "tasks": {"created_at", "updated_at", "restricted"},
    "oidc_people": {"person_key", "seen_at"},
}
"""Columns of runs, tasks and people that their codes do not cover: the status of a run that has not ended, what its driver writes
between two steps, and what lists and filters show. The restriction of a task is computed from its candidates."""


def test_every_table_with_codes_has_its_covered_columns() -> None:
    coded = {table.name for table in metadata.sorted_tables if authenticated.MAC in table.columns}
    assert coded == authenticated.COVERED.keys() | WITH_BODIES_OF_THEIR_OWN


@pytest.mark.parametrize("table", sorted(authenticated.COVERED))
def test_the_covered_columns_are_those_of_earlier_versions(table: str) -> None:
    covered = authenticated.COVERED[table]
    assert all(covered.but.values())
    assert set(covered.columns) | {*covered.but, authenticated.MAC} == set(metadata.tables[table].columns.keys())
    assert digest_of(" ".join(covered.columns).encode())[7:19] == DIGESTS.get(table), covered.columns


@pytest.mark.parametrize(
    ("table", "covered"),
    [
        (
            "runs",
            {*runs.COVERED_FIELDS, "bundle", "bundle_version", "bundle_digest", "revision", "promotion_id"}
            - {"release"},
        ),
        ("tasks", set(tasks.COVERED_FIELDS)),
        ("oidc_people", set(oidc_people.COVERED_FIELDS) - {"groups"}),
    ],
)
def test_every_other_column_is_known_not_to_be_covered(table: str, covered: set[str]) -> None:
    columns = set(metadata.tables[table].columns.keys()) - {authenticated.MAC}
    assert columns - covered == LEFT_OUT[table]
    assert covered <= columns
