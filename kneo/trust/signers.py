"""Whose signatures are on an envelope, and how many people that is.

A threshold counts people, each once. A person with two keys is one, a key that signed twice is one, and a key listed
under a second name is one, because keys are told apart by their material. What a signature says about its key is only
where to look first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from kneo.names import person_key
from kneo.trust.dsse import Envelope, Signature
from kneo.trust.keys import KeyId, PublicKey


@dataclass(frozen=True)
class TrustedKey:
    """A public key and whose it is, as the trust root says."""

    public: PublicKey
    principal: str


@dataclass(frozen=True, order=True)
class Signer:
    """Somebody whose signature was checked."""

    principal: str
    keyid: KeyId


def find_signers(envelope: Envelope, keys: Mapping[KeyId, TrustedKey]) -> tuple[Signer, ...]:
    """Say which of these keys signed what the envelope carries; each key once, sorted by person.

    Costs at most one verification per signature and key; the envelope's parser bounds the one and the trust root's
    the other.
    """
    signed = envelope.signed_bytes
    found: dict[KeyId, TrustedKey] = {}
    for signature in envelope.signatures:
        for key in _hinted_first(signature, keys):
            if key.public.keyid not in found and key.public.verify(signed, signature.sig):
                found[key.public.keyid] = key
                break
    return tuple(sorted(Signer(key.principal, keyid) for keyid, key in found.items()))


def people(signers: Iterable[Signer]) -> frozenset[str]:
    """The distinct people among these signers. Every key has one owner, so this never exceeds the distinct keys."""
    return frozenset(signer.principal for signer in signers)


def folded(principal: str) -> str:
    """Spell a name so that one person spelled two ways is one person."""
    return person_key(principal)


def is_same(one: str, other: str) -> bool:
    """Say whether two names are those of one person."""
    return folded(one) == folded(other)


def _hinted_first(signature: Signature, keys: Mapping[KeyId, TrustedKey]) -> Iterator[TrustedKey]:
    hinted = keys.get(KeyId(signature.keyid))
    if hinted is not None:
        yield hinted
    yield from (key for key in keys.values() if key is not hinted)
