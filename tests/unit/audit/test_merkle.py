"""The tree against RFC 6962's own definition, and checkpoints against tampering."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kneo.errors import Invalid, KneoError, Untrusted
from kneo.records.audit import EMPTY_ROOT, Frontier, inclusion_proof, parent_of, root_of, verify_inclusion
from kneo.trust.checkpoint import make_checkpoint, read_checkpoint
from kneo.trust.keys import Algorithm, PrivateKey


def _leaf(number: int) -> str:
    return hashlib.sha256(b"\x00" + str(number).encode()).hexdigest()


def _mth(leaves: list[str]) -> str:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return parent_of(_mth(leaves[:k]), _mth(leaves[k:]))


def _node(leaves: list[str]):
    return lambda level, position: _mth(leaves[position << level : (position + 1) << level])


@given(st.integers(0, 70))
def test_roots_are_those_of_the_definition(size: int) -> None:
    leaves = [_leaf(number) for number in range(size)]
    growing = Frontier()
    for leaf in leaves:
        growing.add(leaf)
    assert growing.root() == _mth(leaves) == root_of(size, _node(leaves))


@given(st.data())
def test_a_proof_holds_for_its_leaf_and_place_and_for_no_other(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 70))
    index = data.draw(st.integers(0, size - 1))
    leaves = [_leaf(number) for number in range(size)]
    root, proof = _mth(leaves), inclusion_proof(index, size, _node(leaves))
    assert verify_inclusion(leaves[index], index, size, proof, root)
    other = data.draw(st.integers(0, 80))
    if other != index:
        assert not verify_inclusion(leaves[index], other, size, proof, root)
    assert not verify_inclusion(_leaf(1_000), index, size, proof, root)
    assert not verify_inclusion(leaves[index], index, size, (*proof, root), root)
    if proof:
        assert not verify_inclusion(leaves[index], index, size, proof[:-1], root)


@pytest.mark.parametrize("algorithm", list(Algorithm))
def test_a_checkpoint_says_who_signed_what(algorithm: Algorithm) -> None:
    key = PrivateKey.generate(algorithm)
    note = make_checkpoint("kneo.example/audit", 7, "ab" * 32, key)
    said = read_checkpoint(note, key.public)
    assert (said.origin, said.size, said.root) == ("kneo.example/audit", 7, "ab" * 32)
    with pytest.raises(Untrusted):
        read_checkpoint(note, PrivateKey.generate(algorithm).public)
    with pytest.raises(Untrusted):
        read_checkpoint(note.replace("\n7\n", "\n8\n"), key.public)


@given(st.text(max_size=300))
def test_rubbish_is_refused_as_rubbish(text: str) -> None:
    key = PrivateKey.generate()
    with pytest.raises(KneoError) as caught:
        read_checkpoint(text, key.public)
    assert isinstance(caught.value, Invalid | Untrusted)
