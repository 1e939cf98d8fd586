"""Functions of specs in sandboxes: their level, their profile, what an environment limits, and what is recorded."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from engine import open_sandboxes

from kneo.agents.sandboxes import SandboxHost
from kneo.agents.secrets import CallSecrets
from kneo.digest import digest_of
from kneo.errors import Forbidden, KneoError
from kneo.function_context import StepContext, step_context_as_json
from kneo.runtime.steps.code import CodeLoader
from kneo.runtime.steps.sandboxes import Called, FunctionUse
from kneo.sandbox.levels import host_level
from kneo.sandbox.processes import ChildFailed
from kneo.spec.code import RunCode
from kneo.spec.coverage.sandboxes import CodePart
from kneo.spec.models.sandbox import Sandbox
from kneo.spec.models.spec import FunctionComponent
from kneo.spec.policy import SandboxRules, ToolRules

pytestmark = pytest.mark.skipif(not host_level().gives("kernel"), reason=host_level().facts)

SOURCE = """
import os
from kneo.tools import ToolContext
IMPORTED = os.getpid()

def where(text): return [os.getpid(), IMPORTED]
def read(text): return open(text).read()
def token(text): return os.environ["TOKEN"]
def fails(text): raise ValueError(os.environ["TOKEN"])
def forges(text):
    print('{"code_digest": "sha256:0", "sandbox": {"level": "none"}}')
    return {"code_digest": "sha256:0", "facts": {"sandbox": {"level": "none"}}}
"""

CONTEXT = StepContext(run_id="r", step_id="s", attempt=1, idempotency_key="k")


def call(
    folder: Path,
    function: str,
    text: str = "",
    rules: SandboxRules | None = None,
    own: tuple[Path, ...] = (),
    **sandbox: object,
) -> Called | None:
    module = f"own_{digest_of(str(folder).encode())[-12:]}"
    (folder / f"{module}.py").write_text(SOURCE)
    host = SandboxHost(own=own, code=(folder,))
    sandboxes = open_sandboxes(
        CodeLoader((folder,), ()), ToolRules(sandbox=rules or SandboxRules()), {"CRM_TOKEN": "secret-of-the-crm"}, host
    )
    part = CodePart(name="score", sandbox=Sandbox.model_validate(sandbox))
    use = FunctionUse(part=part, implementation=f"{module}.{function}", environment="prod", code=RunCode())
    request = {"text": text, "context": step_context_as_json(CONTEXT)}

    async def main() -> Called | None:
        try:
            return await sandboxes.call(use, request, CallSecrets())
        finally:
            await sandboxes.close()

    found = asyncio.run(main())
    assert module not in sys.modules
    return found


@pytest.mark.parametrize("level", ["process", "kernel"])
def test_the_module_is_imported_in_another_process(tmp_path: Path, level: str) -> None:
    called = call(tmp_path, "where", level=level)
    assert called is not None
    found = called.answer["value"]
    assert isinstance(found, list)
    assert len({os.getpid(), *found}) == 3
    assert called.facts["sandbox"]["level"] == level  # type: ignore[index]


def test_a_trusted_function_may_run_in_the_worker(tmp_path: Path) -> None:
    assert call(tmp_path, "where", rules=SandboxRules(required="kernel", trusted=("score",))) is None
    assert call(tmp_path, "where", rules=SandboxRules(required="none")) is None
    assert call(tmp_path, "where", rules=SandboxRules(required="process"), level="none") is not None


def test_an_environment_requires_a_level(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    assert call(tmp_path, "read", str(file)) is not None
    with pytest.raises(ChildFailed, match="Permission denied"):
        call(tmp_path, "read", str(file), SandboxRules(required="kernel"))
    called = call(tmp_path, "read", str(file), SandboxRules(required="kernel"), read=[str(file)])
    assert called is not None
    assert called.answer["value"] == "content"


def test_a_profile_beyond_the_limits_is_refused(tmp_path: Path) -> None:
    rules = SandboxRules.model_validate({"limits": {"net": ["*.example:443"]}})
    with pytest.raises(Forbidden) as refused:
        call(tmp_path, "where", "", rules, net=["api.test:443"])
    assert refused.value.code == "sandbox_exceeds"
    assert (
        refused.value.message == "score may reach api.test:443, which prod does not permit (tools.sandbox.limits.net)."
    )


@pytest.mark.parametrize("level", ["none", None])
def test_no_profile_beyond_the_limits_is_called_by_the_thread_of_the_run(tmp_path: Path, level: str | None) -> None:
    rules = SandboxRules.model_validate({"required": "none", "limits": {"net": ["*.example:443"]}})
    sandboxes = open_sandboxes(CodeLoader((tmp_path,), ()), ToolRules(sandbox=rules), {}, SandboxHost())

    def is_plain(**sandbox: object) -> bool:
        function = FunctionComponent.model_validate(
            {"implementation": "own.where", "sandbox": {"level": level, **sandbox}}
        )
        part = CodePart(name="score", sandbox=function.sandbox)
        return sandboxes.is_plain(part, [part], "prod")

    assert is_plain()
    assert is_plain(net=["a.example:443"])
    assert not is_plain(env={"TOKEN": "secret:CRM_TOKEN"})
    with pytest.raises(Forbidden) as refused:
        is_plain(net=["api.test:443"])
    assert refused.value.code == "sandbox_exceeds"


def test_files_of_kneo_and_code_are_never_given(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    for declared, words in (
        ({"read": [str(state)]}, "holds files of Kneo"),
        ({"read": [str(state / "service.key")]}, "holds files of Kneo"),
        ({"read": [str(tmp_path)]}, "holds files of Kneo"),
        ({"write": [str(tmp_path / "acme")]}, "holds code"),
    ):
        with pytest.raises(Forbidden, match=words) as refused:
            call(tmp_path, "where", "", None, (state,), level="kernel", **declared)
        assert refused.value.code == "sandbox_path_denied"


def test_a_secret_is_given_and_hidden_in_results_and_errors(tmp_path: Path) -> None:
    called = call(tmp_path, "token", env={"TOKEN": "${CRM_TOKEN}"})
    assert called is not None
    assert "secret-of-the-crm" not in str(called.answer)
    with pytest.raises(ChildFailed) as failed:
        call(tmp_path, "fails", env={"TOKEN": "Bearer ${CRM_TOKEN}"})
    assert "secret-of-the-crm" not in str(failed.value)
    with pytest.raises(KneoError) as missing:
        call(tmp_path, "token", env={"TOKEN": "${OTHER}"})
    assert missing.value.code == "secret_missing"


def test_a_function_forges_its_result_and_no_fact(tmp_path: Path) -> None:
    called = call(tmp_path, "forges", level="kernel")
    assert called is not None
    assert called.code_digest == digest_of(SOURCE.encode())
    assert called.facts["sandbox"]["level"] == "kernel"  # type: ignore[index]
