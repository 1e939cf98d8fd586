"""Plain values as YAML that this project's reader, and any other, reads back as the same values."""

from __future__ import annotations

import re

import yaml

# Text that looks like a number to a YAML 1.2 reader but not to the dumper, which speaks 1.1 and would not quote it.
_NUMBER_LIKE = re.compile(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?|0[ox][0-9a-fA-F]+")

_ESCAPED = re.compile("[^\t\n\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
"""Line breaks that only some readers know, and what is not printable."""


class _Dumper(yaml.SafeDumper):
    """Writes shared parts out each time, texts of several lines as blocks, and number-like texts in quotes."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - the reader takes no aliases at all
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=_style(value))


def _style(value: str) -> str | None:
    if _ESCAPED.search(value):
        return '"'
    if _NUMBER_LIKE.fullmatch(value):
        return "'"
    return "|" if "\n" in value else None


_Dumper.add_representer(str, _text)


def write_yaml(value: object) -> str:
    """Spell a plain value as YAML, keys in their order."""
    written: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120, indent=2)
    return written
