"""JSON Schemas of files, generated from the models, for completion and validation in editors.

The models accept more than their fields: short forms, aliases and references to files. The schemas include them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from kneo.spec.reading.inline import TEXT_KEYS

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_OTHER_SPELLINGS: Mapping[str, Mapping[str, str]] = {
    "Human": {"timeout": "timeout_seconds"},
    "Gate": {"timeout": "timeout_seconds"},
    "AnswerField": {"field_type": "type"},
}
"""Per model, keys that are read as another one."""

_DERIVED: Mapping[str, tuple[str, ...]] = {"SequentialWorkflow": ("type",)}
"""Per model, required keys that may be left out because the others say enough."""

_OTHER_WORDS: Mapping[tuple[str, str], str] = {("GroupChatWorkflow", "type"): "group_chat"}

_FILE_REFERENCE: Mapping[str, object] = {
    "type": "object",
    "description": "A text file in the folder of the spec.",
    "properties": {"file": {"type": "string"}},
    "required": ["file"],
    "additionalProperties": False,
}


class _Generator(GenerateJsonSchema):
    """A generator without titles, which repeat the key."""

    def field_title_should_be_set(self, schema: object) -> bool:  # noqa: ARG002 - decided for all of them
        return False


def json_schema(model: type[BaseModel], name: str) -> dict[str, object]:
    """Return the JSON Schema of a model.

    Args:
        model: What the file is checked against.
        name: The schema's own name, such as ``spec``.
    """
    generated = model.model_json_schema(by_alias=True, schema_generator=_Generator)
    defs = generated.get("$defs", {})
    for each, definition in {model.__name__: generated, **defs}.items():
        _accept_more(each, definition)
        if name == "spec":
            _accept_files(definition)
    for definition in defs.values():
        definition.pop("title", None)
    if name == "spec":
        defs["FileReference"] = dict(_FILE_REFERENCE)
    head: dict[str, object] = {"$schema": DIALECT, "$id": f"{name}.schema.json"}
    return {**head, **{key: value for key, value in generated.items() if key != "$defs"}, "$defs": defs}


def write_schema(schema: Mapping[str, object]) -> str:
    """Format a schema as it is kept in the repository."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _accept_more(name: str, definition: dict[str, object]) -> None:
    properties = definition.get("properties")
    if not isinstance(properties, dict):
        return
    for other, known in _OTHER_SPELLINGS.get(name, {}).items():
        properties[other] = {"description": f"The same as {known}.", "$ref": f"#/$defs/{name}/properties/{known}"}
    for key in _DERIVED.get(name, ()):
        required = definition.get("required")
        if isinstance(required, list):
            definition["required"] = [word for word in required if word != key]
    for (owner, key), word in _OTHER_WORDS.items():
        if owner == name:
            properties[key] = {"enum": [properties[key]["const"], word]}


def _accept_files(definition: Mapping[str, object]) -> None:
    properties = definition.get("properties")
    if isinstance(properties, dict):
        for key in sorted(TEXT_KEYS & properties.keys()):
            properties[key] = _text_or_file(properties[key])


def _text_or_file(schema: dict[str, object]) -> dict[str, object]:
    kinds = schema.get("anyOf")
    if isinstance(kinds, list):
        return {**schema, "anyOf": [*kinds, {"$ref": "#/$defs/FileReference"}]}
    about = {key: value for key, value in schema.items() if key in {"description", "default"}}
    rest = {key: value for key, value in schema.items() if key not in about}
    return {**about, "anyOf": [rest, {"$ref": "#/$defs/FileReference"}]}
