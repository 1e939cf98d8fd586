"""The schemas of all kinds of files, and the folder of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kneo.spec.schemas import json_schema, write_schema

if TYPE_CHECKING:
    from pydantic import BaseModel


def kinds() -> Mapping[str, type[BaseModel]]:
    """Return the model of each kind of file."""
    from kneo.spec.models.answers import AnswersFile
    from kneo.spec.models.environment import EnvironmentFile
    from kneo.spec.models.spec import Spec
    from kneo.spec.project import ProjectConfig
    from kneo.trust.answer import SignedAnswer
    from kneo.trust.receipt import Receipt
    from kneo.trust.root import RootDocument
    from kneo.trust.statement import ApprovalPredicate, BundlePredicate

    return {
        "spec": Spec,
        "environment": EnvironmentFile,
        "project": ProjectConfig,
        "answers": AnswersFile,
        "trust-root": RootDocument,
        "bundle": BundlePredicate,
        "approval": ApprovalPredicate,
        "receipt": Receipt,
        "signed-answer": SignedAnswer,
    }


def rendered() -> Mapping[str, str]:
    """Return every schema's text by the name of its file."""
    return {f"{kind}.schema.json": write_schema(json_schema(model, kind)) for kind, model in kinds().items()}
