"""Environment files and trust roots that should not be followed, each brought by a commit of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest
import yaml
from siege import SIGNATURES, Attempts, Siege

from kneo.records.release import ConditionType
from kneo.store.engine import Store
from kneo.trust.dsse import Envelope, parse_envelope, serialise, sign
from kneo.trust.root import TRUST_ROOT_TYPE, RootDocument, root_payload
from kneo.trust.root_edit import add_key, next_root, set_role

RULES = Attempts()
ROOTS = Attempts()


@pytest.fixture(scope="module")
def siege(shared_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Siege:
    return Siege(shared_store, tmp_path_factory.mktemp("siege"))


# ---- environment files -----------------------------------------------------------------------------------------------


def _prod(siege: Siege, text: str | bytes) -> None:
    siege.repo.write("environments/prod.yaml", text if isinstance(text, bytes) else text.encode())


def _spec(siege: Siege, change: Callable[[dict[str, object]], object]) -> None:
    rules = siege.rules()
    change(rules["spec"])  # type: ignore[arg-type]
    _prod(siege, yaml.safe_dump(rules))


@RULES.refused("PolicyInvalid")
def thirty_thousand_brackets(siege: Siege) -> None:
    _prod(siege, "[" * 30_000)


@RULES.refused("PolicyInvalid")
def a_billion_laughs(siege: Siege) -> None:
    levels = "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9))
    _prod(siege, f"a: &a [x, x, x]\n{levels}")


@RULES.refused("PolicyInvalid")
def an_object_to_be_made_while_reading(siege: Siege) -> None:
    siege.edit("prod", lambda text: text + "x: !!python/object/apply:os.system ['true']\n")


@RULES.refused("PolicyInvalid")
def a_key_given_twice(siege: Siege) -> None:
    siege.edit("prod", lambda text: text + "  signatures: {accept: [dsse], roles: [release], threshold: 1}\n")


@RULES.refused("PolicyInvalid")
def a_second_document_behind_the_first(siege: Siege) -> None:
    siege.edit("prod", lambda text: f"{text}---\n{text}")


@RULES.refused("PolicyInvalid")
def bytes_that_are_no_text(siege: Siege) -> None:
    _prod(siege, b"\xff\xfe" + b"\x00a" * 20)


@RULES.refused("BundleNotFound")
def no_as_the_name_of_a_country(siege: Siege) -> None:
    siege.edit("prod", lambda text: text.replace("bundle: mail", "bundle: no"))


@RULES.refused("PolicyInvalid")
def a_version_that_is_a_number(siege: Siege) -> None:
    siege.edit("prod", lambda text: text.replace("version: 1.1.0", "version: 1.10"))


@RULES.refused("PolicyInvalid")
def the_file_of_another_environment(siege: Siege) -> None:
    shutil.copy(siege.repo.folder / "environments/dev.yaml", siege.repo.folder / "environments/prod.yaml")


@RULES.refused("PolicyInvalid")
def two_files_for_one_environment(siege: Siege) -> None:
    shutil.copy(siege.repo.folder / "environments/prod.yaml", siege.repo.folder / "environments/prod.yml")


@RULES.refused("PolicyInvalid")
def no_signature_asked_for(siege: Siege) -> None:
    _spec(siege, lambda spec: spec.update(signatures={**SIGNATURES, "threshold": 0}))


@RULES.refused("PolicyInvalid")
def nobody_who_has_to_sign(siege: Siege) -> None:
    _spec(siege, lambda spec: spec.update(signatures={**SIGNATURES, "roles": []}))


@RULES.refused("PolicyInvalid")
def no_policy(siege: Siege) -> None:
    _spec(siege, lambda spec: spec.pop("policy"))


@RULES.refused("PolicyInvalid")
def one_bundle_in_two_versions(siege: Siege) -> None:
    _spec(siege, lambda spec: spec["releases"].append({"bundle": "mail", "version": "1.0.0"}))  # type: ignore[attr-defined]


@RULES.refused("PolicyInvalid")
def a_path_for_a_name(siege: Siege) -> None:
    _spec(siege, lambda spec: spec["releases"].append({"bundle": "../environments", "version": "trust"}))  # type: ignore[attr-defined]


@RULES.refused("PolicyInvalid")
def a_word_nobody_knows(siege: Siege) -> None:
    _spec(siege, lambda spec: spec.update(trustMe=True))


@RULES.refused("EnvironmentRemoved")
def no_file_any_more(siege: Siege) -> None:
    (siege.repo.folder / "environments/prod.yaml").unlink()


@RULES.refused("MassPruneBlocked")
def nothing_to_serve_any_more(siege: Siege) -> None:
    _spec(siege, lambda spec: spec.update(releases=[]))


@pytest.mark.parametrize("name", RULES)
def test_rules_are_refused_for_the_right_reason_and_nothing_changes(siege: Siege, name: str) -> None:
    reason, environment, attempt = RULES[name]
    assert siege.withstand(attempt, reason, environment).outcomes["dev"].state == "Ready"


# ---- trust roots -----------------------------------------------------------------------------------------------------


def _root(siege: Siege, envelope: Envelope) -> None:
    """Bring this as the next trust root, with the present one among the earlier ones, as is usual."""
    present = siege.repo.folder / "environments/trust.json"
    siege.repo.write(f"environments/roots/{siege.repo.root.version}.json", present.read_bytes())
    siege.repo.write("environments/trust.json", serialise(envelope))


def _with_mallory(siege: Siege) -> RootDocument:
    document = siege.repo.root
    for role in ("root", "release"):
        document = add_key(document, siege.repo.stranger.public, principal="mallory", roles=[role])
    return document


@ROOTS.refused("SignatureInvalid")
def signed_by_the_one_it_lets_in(siege: Siege) -> None:
    _root(siege, sign(TRUST_ROOT_TYPE, root_payload(next_root(_with_mallory(siege))), siege.repo.stranger))


@ROOTS.refused("SignatureInvalid")
def signed_by_somebody_of_another_role(siege: Siege) -> None:
    _root(siege, sign(TRUST_ROOT_TYPE, root_payload(next_root(_with_mallory(siege))), siege.bob))


@ROOTS.refused("ThresholdNotMet")
def two_asked_for_and_one_signed(siege: Siege) -> None:
    document = set_role(_with_mallory(siege), "root", threshold=2)
    _root(siege, sign(TRUST_ROOT_TYPE, root_payload(next_root(document)), siege.repo.key))


@ROOTS.refused("SignatureInvalid")
def the_present_one_changed_by_a_byte(siege: Siege) -> None:
    path = siege.repo.folder / "environments/trust.json"
    present = parse_envelope(path.read_bytes())
    changed = present.payload.replace(b'"principal":"ann"', b'"principal":"ana"')
    assert changed != present.payload
    path.write_bytes(serialise(Envelope(TRUST_ROOT_TYPE, changed, present.signatures)))


def _named(siege: Siege, principal: str) -> None:
    document = next_root(add_key(siege.repo.root, siege.repo.stranger.public, principal="mallory", roles=["release"]))
    keyid = siege.repo.stranger.keyid
    renamed = document.keys[keyid].model_copy(update={"principal": principal})
    edited = document.model_copy(update={"keys": {**document.keys, keyid: renamed}})
    _root(siege, sign(TRUST_ROOT_TYPE, root_payload(edited), siege.repo.key))


@ROOTS.refused("invalid_name")
def a_person_with_a_name_of_mixed_scripts(siege: Siege) -> None:
    _named(siege, "b\u043eb")


@ROOTS.refused("Malformed")
def a_person_with_a_letter_that_is_not_seen(siege: Siege) -> None:
    _named(siege, "mal\u3164lory")


@ROOTS.refused("RollbackDetected")
def an_earlier_one_brought_back(siege: Siege) -> None:
    folder = siege.repo.folder / "environments"
    earlier = siege.repo.root.version - 1
    shutil.copy(folder / f"roots/{earlier}.json", folder / "trust.json")
    (folder / f"roots/{earlier}.json").unlink()


@ROOTS.refused("RollbackDetected")
def a_version_left_out(siege: Siege) -> None:
    _root(siege, sign(TRUST_ROOT_TYPE, root_payload(next_root(next_root(siege.repo.root))), siege.repo.key))


@ROOTS.refused("RootNotPinned")
def another_beginning(siege: Siege) -> None:
    folder = siege.repo.folder / "environments"
    shutil.rmtree(folder / "roots")
    first = siege.repo.root.model_copy(update={"version": 1})
    siege.repo.write("environments/trust.json", serialise(sign(TRUST_ROOT_TYPE, root_payload(first), siege.repo.key)))


@ROOTS.refused("Malformed")
def signed_as_something_else(siege: Siege) -> None:
    _root(siege, sign("application/json", root_payload(next_root(siege.repo.root)), siege.repo.key))


@ROOTS.refused("RootNotPinned")
def none_at_all(siege: Siege) -> None:
    shutil.rmtree(siege.repo.folder / "environments/roots")
    (siege.repo.folder / "environments/trust.json").unlink()


@pytest.mark.parametrize("name", ROOTS)
def test_a_root_is_refused_for_the_right_reason_and_nothing_changes(siege: Siege, name: str) -> None:
    reason, _, attempt = ROOTS[name]
    before = siege.served()
    outcomes = siege.attempt(attempt).outcomes
    assert {outcome.state for outcome in outcomes.values()} == {reason}
    for environment in outcomes:
        assert siege.told(environment) == {reason}
        assert siege.bench.condition(ConditionType.SOURCE_VERIFIED, environment) == (False, reason)
    assert siege.served() == before
