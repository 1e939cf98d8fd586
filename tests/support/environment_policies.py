"""Environments that differ in their policies alone."""

from __future__ import annotations

from dataclasses import replace

from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment
from kneo.spec.policy import PolicyFlags

_FILE = b"""{"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"},
"spec": {"policy": {}, "signatures": {"accept": ["dsse"], "roles": ["release"], "threshold": 1}}}"""
_BARE = parse_environment(_FILE, file="environments/prod.json")


def environment_with(policy: PolicyFlags) -> Environment:
    return replace(_BARE, spec=_BARE.spec.model_copy(update={"policy": policy}))
