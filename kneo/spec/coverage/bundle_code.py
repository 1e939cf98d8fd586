"""The rule of an environment for the code of a bundle. Pure."""

from __future__ import annotations

from kneo.errors import Untrusted
from kneo.spec.code import INPROCESS
from kneo.spec.models.environment import Environment
from kneo.spec.models.spec import Spec


def check_code(spec: Spec, has_code: bool, environment: Environment, bundle: str) -> None:
    """Check that an environment accepts where the functions of a bundle come from.

    Functions of the program that starts a run are the program's, and need no code.

    Raises:
        Untrusted: ``CodeMissing``.
    """
    rules = environment.spec
    modules = {each.rpartition(".")[0] for each in spec.implementations() if not each.startswith(INPROCESS)}
    modules -= rules.implementations.keys() if rules.code == "pinned" else set()
    missing = sorted(modules) or sorted(script.path for script in spec.scripts())
    if has_code or not missing or rules.code == "any":
        return
    pinned = ", and implementations does not pin it" if rules.code == "pinned" else ""
    names = "functions of " if modules else ""
    msg = f"{bundle} names {names}{missing[0]}, and carries no code{pinned}; {environment.name} accepts no other code."
    hint = "Sign it again as a new version, with its code: kneo spec bundle sign SPEC --key KEY --approved-by NAME -o bundles/NAME/VERSION.dsse.json"
    raise Untrusted(msg, code="CodeMissing", hint=hint)
