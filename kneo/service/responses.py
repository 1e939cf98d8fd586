"""What answers look like, for people and programs that read the description. Nothing is computed from these models.

Answers are supersets of the published ones, and may grow; what stands here as a field without a default is always there.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Map = dict[str, Any]


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", defer_build=True)


# ---- health -------------------------------------------------------------------------------------------------------


class Health(Answer):
    ok: bool
    service: str
    version: str = Field(description="The wire contract this service speaks.")
    build: str = Field(description="This package's version.")
    metadata: Map


# ---- hooks ------------------------------------------------------------------------------------------------------


class HookAccepted(Answer):
    accepted: bool
    duplicate: bool
