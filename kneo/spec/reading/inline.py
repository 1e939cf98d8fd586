"""Inlining of files and texts: a spec that is signed and run needs no other file.

``system_prompt: {file: prompts/research.md}`` is replaced by the text of the file, in every field with a text for
people or models. A skill's ``source`` becomes its content. Files come from a :class:`Files`, which decides which paths
may be read.

``{{ variables.NAME }}`` in a system prompt is a text of ``Spec.variables``, ``{{ skills.NAME }}`` the content of a skill,
``{{ tools.NAME }}`` the description of a tool. Anything else in braces is text: a system prompt never has a value of a run. A
text that is put in has no placeholders of its own, so that a spec is the same however often it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Protocol

from kneo.spec.base import MAX_TEXT, quote
from kneo.spec.documents import Diagnostic, Path, Unreadable, error, warning
from kneo.spec.reading.reader import read

TEXT_KEYS = frozenset({"system_prompt", "description", "prompt", "title", "content"})
"""Keys whose value may be a reference to a file."""

MAX_SKILL_FILES = 100
MAX_SKILL_DEPTH = 4
"""Folders inside the folder of a skill that files can be in."""

_INSTRUCTIONS = ("SKILL.md", "skill.md", "README.md")
_ABOUT = ("skill.yaml", "skill.yml", "skill.json")


class Files(Protocol):
    """The files that a spec can refer to."""

    def text(self, path: str) -> str | None:
        """Return a file's text; None where there is no such file, it may not be read, or it is not text."""
        ...

    def names(self, path: str) -> tuple[str, ...] | None:
        """Return the paths of the files below a folder, relative to it; None where there is no such folder."""
        ...


class NoFiles:
    """No files at all."""

    def text(self, path: str) -> str | None:  # noqa: ARG002 - there are no files
        return None

    def names(self, path: str) -> tuple[str, ...] | None:  # noqa: ARG002 - there are no files
        return None


@dataclass(frozen=True, slots=True)
class Inlined:
    """A spec with its files inlined, and the findings about files that could not be read."""

    tree: dict[str, object]
    findings: tuple[Diagnostic, ...] = ()


def inline_texts(tree: Mapping[str, object], files: Files) -> Inlined:
    """Replace every ``{file: …}`` by the text of the file."""
    findings: list[Diagnostic] = []
    inlined = _texts(dict(tree), (), files, findings)
    return Inlined(inlined if isinstance(inlined, dict) else dict(tree), tuple(findings))


def _texts(value: object, path: Path, files: Files, findings: list[Diagnostic]) -> object:
    if isinstance(value, list):
        return [_texts(item, (*path, index), files, findings) for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    return {
        key: _text(inner, (*path, key), files, findings)
        if key in TEXT_KEYS and isinstance(inner, dict) and inner.keys() == {"file"}
        else _texts(inner, (*path, key), files, findings)
        for key, inner in value.items()
    }


def _text(reference: dict[str, object], path: Path, files: Files, findings: list[Diagnostic]) -> object:
    name = reference["file"]
    text = files.text(name) if isinstance(name, str) else None
    if text is None:
        message = f"The file {quote(name)} cannot be read from here."
        suggestion = "Name a text file in the folder of the spec."
        findings.append(error("E_FILE_REF", message, (*path, "file"), suggestion=suggestion))
        return ""
    return text


def inline_skills(tree: Mapping[str, object], files: Files) -> Inlined:
    """Replace every skill's source by its content."""
    skills = tree.get("skills")
    if not isinstance(skills, dict):
        return Inlined(dict(tree))
    findings: list[Diagnostic] = []
    inlined: dict[str, object] = {}
    for name, skill in skills.items():
        source = skill.get("source") if isinstance(skill, dict) else None
        if not isinstance(source, str):
            inlined[name] = skill
            continue
        try:
            inlined[name], left_out = _skill(skill, source, files)
        except (Unreadable, LookupError) as problem:
            message = f"The skill {quote(source)} cannot be read from here. {problem.args[0]}"
            findings.append(error("E_SKILL_SOURCE", message, ("skills", name, "source")))
            inlined[name] = skill
            continue
        for file in left_out:
            message = f"{source}/{file} is not a text of at most {MAX_TEXT} characters; agents cannot read it."
            hint = "Move it out of the skill's folder."
            findings.append(warning("W_SKILL_RESOURCE", message, ("skills", name, "source"), suggestion=hint))
    return Inlined({**tree, "skills": inlined}, tuple(findings))


def _skill(skill: Mapping[str, object], source: str, files: Files) -> tuple[dict[str, object], tuple[str, ...]]:
    """Return a skill with its content, and the files that are no resources because they are not text."""
    names = files.names(source)
    if names is None:
        text = files.text(source)
        if text is None:
            message = "The folder of the spec has no such file or folder."
            raise LookupError(message)
        about, content = _front_matter(text, source)
        resources: dict[str, str | None] = {}
    else:
        about, content, resources = _folder(source, names, files)
    texts = {name: text for name, text in resources.items() if text is not None}
    fields: dict[str, object] = {key: about[key] for key in ("description", "tools") if about.get(key) is not None}
    fields |= {key: value for key, value in skill.items() if key != "source" and value is not None}
    whole = {**fields, "content": content, **({"resources": texts} if texts else {})}
    return whole, tuple(name for name in resources if name not in texts)


def _folder(
    source: str, names: tuple[str, ...], files: Files
) -> tuple[Mapping[str, object], str, dict[str, str | None]]:
    """Read a folder of the Agent Skills format: ``SKILL.md`` and its resources, also those in folders of its own."""
    names = tuple(sorted(name for name in names if _is_resource(name)))
    main = next((name for name in _INSTRUCTIONS if name in names), None)
    text = files.text(str(PurePosixPath(source, main))) if main is not None else None
    if main is None or text is None:
        message = f"The folder has none of {', '.join(_INSTRUCTIONS)}."
        raise LookupError(message)
    if len(names) > MAX_SKILL_FILES:
        message = f"The folder has more than {MAX_SKILL_FILES} files."
        raise LookupError(message)
    front, content = _front_matter(text, f"{source}/{main}")
    about = {**dict(_about(source, names, files)), **front}
    others = (name for name in names if name != main and name not in _ABOUT)
    return about, content, {name: files.text(str(PurePosixPath(source, name))) for name in others}


def _is_resource(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return len(parts) <= MAX_SKILL_DEPTH + 1 and not any(part.startswith(".") for part in parts)


def _about(source: str, names: tuple[str, ...], files: Files) -> Iterator[tuple[str, object]]:
    name = next((name for name in _ABOUT if name in names), None)
    text = files.text(str(PurePosixPath(source, name))) if name is not None else None
    if name is not None and text is not None:
        value = read(text.encode(), file=f"{source}/{name}").value
        if isinstance(value, dict):
            yield from value.items()


def _front_matter(text: str, file: str) -> tuple[Mapping[str, object], str]:
    """Split the YAML between two lines of ``---`` from the text after it."""
    text = text.replace("\r\n", "\n")
    if not text.startswith("---\n"):
        return {}, text
    head, mark, body = text[4:].partition("\n---\n")
    if not mark:
        return {}, text
    value = read(head.encode(), file=f"{file}.yaml").value
    return (value if isinstance(value, dict) else {}), body.lstrip("\n")


MAX_PLACEHOLDERS = 100
"""Placeholders in one system prompt."""

_TEXTS: Mapping[str, str | None] = {"variables": None, "skills": "content", "tools": "description"}
"""The parts of a spec that a prompt can name, and the field that has the text; a variable is the text itself."""

_PLACEHOLDER = re.compile(r"\{\{[ \t]*(variables|skills|tools)\.([^\s{}]{1,200})[ \t]*\}\}")
_OTHER = re.compile(r"\{\{[ \t]*([A-Za-z_][\w.]{0,200})[ \t]*\}\}")


def fill_prompts(tree: Mapping[str, object]) -> Inlined:
    """Replace the placeholders of every system prompt. Those of a skill whose source is not inlined yet are left."""
    findings: list[Diagnostic] = []
    filled = dict(tree)
    if isinstance(root := tree.get("agent"), dict):
        filled["agent"] = _agent(root, ("agent",), tree, findings)
    components = tree.get("components")
    agents = components.get("agents") if isinstance(components, dict) else None
    if isinstance(components, dict) and isinstance(agents, dict):
        path = ("components", "agents")
        inner = {name: _agent(agent, (*path, name), tree, findings) for name, agent in agents.items()}
        filled["components"] = {**components, "agents": inner}
    return Inlined(filled, tuple(findings))


def _agent(agent: object, path: Path, tree: Mapping[str, object], findings: list[Diagnostic]) -> object:
    prompt = agent.get("system_prompt") if isinstance(agent, dict) else None
    if not isinstance(agent, dict) or not isinstance(prompt, str) or "{{" not in prompt:
        return agent
    filling = _Filling(tree, (*path, "system_prompt"), findings)
    return {**agent, "system_prompt": filling.filled(prompt)}


@dataclass(frozen=True)
class _Filling:
    """The replacement of the placeholders of one prompt."""

    tree: Mapping[str, object]
    path: Path
    findings: list[Diagnostic]

    def filled(self, prompt: str) -> str:
        found = list(_PLACEHOLDER.finditer(prompt))
        if len(found) > MAX_PLACEHOLDERS:
            self._report(f"The prompt has more than {MAX_PLACEHOLDERS} placeholders.", "Write the texts out.")
            return prompt
        self.findings.extend(self._literal(prompt))
        texts = {
            whole: self._text(part, name) for whole, part, name in dict.fromkeys((m[0], m[1], m[2]) for m in found)
        }
        filled = _PLACEHOLDER.sub(lambda each: each[0] if texts[each[0]] is None else str(texts[each[0]]), prompt)
        kept = [each[0] for each in found if texts[each[0]] is None]
        if [each[0] for each in _PLACEHOLDER.finditer(filled)] != kept:
            self._report("The texts that are put in form a placeholder with those around them.", "Write the text out.")
        return filled

    def _literal(self, prompt: str) -> Iterator[Diagnostic]:
        for name in dict.fromkeys(found[1] for found in _OTHER.finditer(prompt)):
            if name.partition(".")[0] not in _TEXTS:
                message = (
                    f"{{{{ {name} }}}} is sent to the model as it is written: a system prompt has no values of a run."
                )
                hint = "Declare the text under variables and write {{ variables.NAME }}, or take out the braces."
                yield warning("W_PROMPT_PLACEHOLDER", message, self.path, suggestion=hint)

    def _text(self, part: str, name: str) -> str | None:
        """Return the text of a placeholder; ``None`` where it is left as it is."""
        declared = self.tree.get(part)
        value = declared.get(name) if isinstance(declared, dict) else None
        field = _TEXTS[part]
        if isinstance(value, dict) and field is not None:
            if part == "skills" and "source" in value:
                return None
            value = value.get(field)
        if not isinstance(value, str):
            self._report(f"The prompt names {part}.{name}, which has no text.", f"Declare {quote(name)} under {part}.")
        elif _PLACEHOLDER.search(value) or _OTHER.search(value):
            self._report(
                f"The text of {part}.{name} has braces of its own, which are not replaced.", "Write the text out."
            )
        else:
            return value
        return None

    def _report(self, message: str, hint: str) -> None:
        self.findings.append(error("E_PROMPT_PLACEHOLDER", message, self.path, suggestion=hint))
