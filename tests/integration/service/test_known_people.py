"""A service with API keys: nobody decides in the name of a person whom nothing declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from service_bench import PUBLISH, Bench, Json, spec_of

from kneo.cli.compose import make_starter
from kneo.errors import Invalid
from kneo.service.app import create_app
from kneo.service.auth import APIKeyRecord, AuthConfig, configured, keyring
from kneo.settings import from_env
from kneo.store import project_metadata

GATE: Json = {"id": "approve", "kind": "human", "ref": "board"}
INVENTED = "mallory@evil.test"


def asked(bench: Bench, **human: object) -> Json:
    board = {"description": "Release?", "candidates": {"exclude": ["requester"]}, **human}
    run = bench.start(spec_of(GATE, PUBLISH, humans={"board": board}), role="service")
    assert run["status"] == "paused"
    return run


WAYS: dict[str, Callable[[Json], tuple[str, Json]]] = {
    "assign": lambda run: (f"/human-tasks/{run['continuation_id']}/assign", {"to": "NAME"}),
    "delegate": lambda run: (f"/human-tasks/{run['continuation_id']}/delegate", {"to": "NAME"}),
    "link": lambda run: (f"/human-tasks/{run['continuation_id']}/links", {"person": "NAME"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_invented_person_gets_nothing(bench: Bench, way: str) -> None:
    run = asked(bench)
    path, order = WAYS[way](run)
    order = dict.fromkeys(order, INVENTED)
    refused = bench.post(path, order, role="admin", expect=422)
    assert (refused["error"], refused["detail"]["person"]) == ("unknown_person", INVENTED)
    assert bench.post(path, dict.fromkeys(order, "Approver"), role="admin")


@pytest.mark.parametrize("way", WAYS)
def test_who_started_the_run_chooses_nobody_to_answer_it(bench: Bench, way: str) -> None:
    """The requester has every scope for it, the right to make links for others included."""
    run = asked(bench)
    path, order = WAYS[way](run)
    refused = bench.post(path, dict.fromkeys(order, "approver"), role="service", expect=403)
    assert refused["error"] == "separation_of_duties"
    assert bench.get(f"/human-tasks/{run['continuation_id']}")["status"] == "open"
    assert bench.answer(run, role="approver")["status"] == "succeeded"


def test_a_service_that_starts_says_whom_its_keys_are_for(bench: Bench) -> None:
    def known() -> set[str]:
        with bench.store.read() as tx:
            return set(project_metadata.read_key_names(tx).values())

    before = known()
    assert {"admin", "approver"} <= before
    for keys, names in (("Ann:k1:viewer", {"Ann"}), ("", set())):
        settings = replace(bench.settings, api_keys=keys, admin_api_key="", auth_enabled=bool(keys))
        create_app(settings, bench.store, make_starter(settings, bench.store, executes=lambda: True))
        assert known() == names
    create_app(bench.settings, bench.store, make_starter(bench.settings, bench.store, executes=lambda: True))
    assert known() == before


@pytest.mark.parametrize("name", ["ann\u202e", "\u0430nn", "a\nb", "a" * 201])
def test_a_key_is_for_a_person_with_a_readable_name(name: str) -> None:
    with pytest.raises(Invalid) as caught:
        keyring(AuthConfig(enabled=True, api_keys=(APIKeyRecord(name, "k", ("viewer",)),)))
    assert caught.value.code == "invalid_name"


def test_two_keys_of_one_person_have_one_spelling() -> None:
    def ring(first: str, second: str) -> frozenset[str]:
        records = tuple(APIKeyRecord(name, f"k{number}", ("viewer",)) for number, name in enumerate((first, second)))
        return keyring(AuthConfig(enabled=True, api_keys=records)).names

    assert ring("ann", "ann") == {"ann"}
    with pytest.raises(Invalid, match="two spellings"):
        ring("ann", "Ann")


def test_entries_of_a_file_of_keys_stand_on_lines_too() -> None:
    ring = configured(
        from_env({"KNEO_SERV_API_KEYS": "ann:k1:operator\r\nbob:k2:approver;\ncid:k3:runs:read,runs:write\n"})
    )
    assert [(each.name, each.key, (*each.roles, *each.scopes)) for each in ring.api_keys] == [
        ("ann", "k1", ("operator",)),
        ("bob", "k2", ("approver",)),
        ("cid", "k3", ("runs:read", "runs:write")),
    ]


@pytest.mark.parametrize("separator", [",", " ", "|", "\x0b"])
def test_a_wrong_separator_of_entries_shows_no_key(separator: str) -> None:
    keys = separator.join(["ann:kneo_Secret-1:operator", "bob:kneo_Secret-2:approver"])
    with pytest.raises(Invalid, match="ann has an unknown role or scope") as refused:
        keyring(configured(from_env({"KNEO_SERV_API_KEYS": keys})))
    assert "Secret" not in f"{refused.value} {refused.value.hint}"
