"""The state of a session: a map that steps read and change, kept with the run of each change.

A step that is repeated after an answer or a crash begins with the state that it began with before. Steps at the same time keep
each other's changes of other keys.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping

from kneo.digest import digest_of
from kneo.errors import Usage
from kneo.sdk.host import RunSnapshot
from kneo.sdk.workflow.types import Json
from kneo.store.engine import Store
from kneo.store.history import JournalEntry, record_entry

STATE = "session_state"
"""The key of the state at the start of a run, and the name of the journal entries with the changes of its steps."""

MAX_CHARS = 1_000_000
"""Characters of JSON in a state, and in a change of it."""


def encode_state(state: object) -> str:
    """Encode a state as JSON.

    Raises:
        Usage: ``not_json`` or ``too_large``: it cannot be stored with the run.
    """
    try:
        text = json.dumps(state, ensure_ascii=False, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        msg = f"The session_state cannot be stored with its run: {error}"
        raise Usage(msg, code="not_json", hint="Keep it to texts, numbers, lists and maps.") from error
    if len(text) > MAX_CHARS:
        msg = f"The session_state has {len(text)} characters of JSON; the limit is {MAX_CHARS}."
        raise Usage(msg, code="too_large", hint="Store large values elsewhere, and keep their names.")
    return text


def read_state(snapshot: RunSnapshot, without: str | None = None) -> Json:
    """Return the state of a run: that of its start with the changes of its steps.

    Args:
        snapshot: The run.
        without: The location of a step whose own changes are left out.
    """
    begun = snapshot.caller_metadata.get(STATE)
    state: Json = copy.deepcopy(dict(begun)) if isinstance(begun, Mapping) else {}
    for entry in snapshot.journal:
        if entry.name == STATE and not (without is not None and is_change(entry, without)):
            change = json.loads(entry.value)
            state |= change["set"]
            for key in change["deleted"]:
                state.pop(key, None)
    return state


def is_change(entry: JournalEntry, location: str) -> bool:
    """Return whether a journal entry is the change of the step at a location."""
    return entry.name == STATE and entry.location == location


def record_change(store: Store, run_id: str, location: str, before: Json, after: Json) -> None:
    """Record what a step changed; a repeated step replaces its earlier change.

    Raises:
        Usage: as ``encode_state``.
    """
    after = json.loads(encode_state(after))
    changed = {key: value for key, value in after.items() if key not in before or before[key] != value}
    deleted = sorted(before.keys() - after.keys())
    value = encode_state({"set": changed, "deleted": deleted})
    digest = digest_of(value.encode())
    store.transact(lambda tx: record_entry(tx, run_id, location, STATE, input_digest=digest, value=value))
