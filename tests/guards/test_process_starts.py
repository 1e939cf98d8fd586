"""Every program that Kneo starts gets an environment that Kneo has chosen, never its own."""

import ast
from pathlib import Path

KNEO = Path(__file__).parents[2] / "kneo"
STARTS = {"Popen", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell", "subprocess_exec"}


def starts(source: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in STARTS or ast.unparse(node.func) == "subprocess.run")
    ]


def test_a_program_starts_with_a_chosen_environment() -> None:
    found = {str(path.relative_to(KNEO)): starts(path.read_text()) for path in KNEO.rglob("*.py")}
    inheriting = {
        name for name, calls in found.items() for call in calls if "env" not in {each.arg for each in call.keywords}
    }
    assert inheriting == set()
    assert sum(map(len, found.values())) >= 6
