"""What a run is refused for at its start: sandboxes that an environment does not permit, or that this machine cannot give."""

from __future__ import annotations

from pathlib import Path

import pytest

from kneo.agents.sandboxes import SandboxHost, check_sandboxes
from kneo.errors import Forbidden
from kneo.sandbox.levels import HostLevel
from kneo.settings import from_env
from kneo.spec.models.spec import Spec
from kneo.spec.policy import SandboxRules

LANDLOCK_OFF = HostLevel(level="process", facts="Landlock is off (lsm= lacks landlock)")
ABLE = HostLevel(level="kernel", facts="Landlock ABI 7")


def spec(**sandbox: object) -> Spec:
    render = {"description": "Renders.", "implementation": "acme.render", "sandbox": sandbox}
    return Spec.model_validate({"version": "v1", "agent": {"name": "root"}, "tools": {"render": render}})


def refused(
    checked: Spec,
    rules: dict[str, object] | None = None,
    host: SandboxHost | None = None,
    *,
    here: bool = True,
) -> tuple[str, str] | None:
    host = host or SandboxHost(level=lambda: ABLE)
    found = SandboxRules.model_validate(rules) if rules is not None else None
    try:
        check_sandboxes(checked, found, "prod", host, here=here)
    except Forbidden as error:
        return error.code, error.message
    return None


def test_a_run_is_refused_where_its_machine_cannot_give_a_level() -> None:
    host = SandboxHost(level=lambda: LANDLOCK_OFF)
    assert refused(spec(level="kernel"), {}, host) == (
        "sandbox_unavailable",
        "render needs a sandbox at level kernel, which this machine cannot give: Landlock is off (lsm= lacks landlock).",
    )
    assert refused(spec(), {"required": "kernel"}, host) is not None
    assert refused(spec(), {}, host) is None
    assert refused(spec(level="kernel"), {}, host, here=False) is None  # the machine that executes it checks its level


def test_a_run_is_refused_that_may_do_more_than_its_environment_permits() -> None:
    limits = {"limits": {"net": ["crm.example:443"]}}
    message = "render may reach api.example:443, which prod does not permit (tools.sandbox.limits.net)."
    for here in (True, False):
        assert refused(spec(net=["api.example:443"]), limits, here=here) == ("sandbox_exceeds", message)
    assert refused(spec(net=["crm.example:443"]), limits) is None


def test_what_runs_outside_sandboxes_is_trusted_or_refused_where_kernel_is_required() -> None:
    tree = {"version": "v1", "agent": {"name": "root"}, "tools": {"shout": {"description": "Shouts."}}}
    checked = Spec.model_validate(tree)
    message = "shout is registered by the program and runs in the worker; prod requires kernel."
    assert refused(checked, {"required": "kernel"}) == ("sandbox_trusted", message)
    assert refused(checked, {"required": "kernel", "trusted": ["shout"]}) is None
    assert refused(checked, {}) is None


def test_runs_without_an_environment_have_the_level_of_the_operator(tmp_path: Path) -> None:
    settings = from_env({"KNEO_SERV_TOOLS_SANDBOX": "kernel"}, tmp_path)
    host = SandboxHost.of(settings)
    assert host.operator.required == "kernel"
    assert SandboxHost.of(from_env({}, tmp_path)).operator.required == "process"


@pytest.mark.parametrize(
    "path", [".kneo", ".kneo/kneo_runs.sqlite", "keys/service.pem", "keys", "secrets/CRM_TOKEN", "secrets", "."]
)
def test_no_sandbox_is_given_files_of_kneo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("KNEO_SERV_SERVICE_KEY_FILE", str(tmp_path / "keys" / "service.pem"))
    monkeypatch.setenv("KNEO_SERV_SECRETS_DIR", str(tmp_path / "secrets"))
    settings = from_env({"KNEO_SERV_SECRETS_DIR": str(tmp_path / "secrets")}, tmp_path)
    found = refused(spec(read=[str(tmp_path / path)]), {}, SandboxHost.of(settings))
    assert found is not None
    assert found[0] == "sandbox_path_denied"
    assert found[1].endswith("which holds files of Kneo.")
    assert refused(spec(read=[str(tmp_path / "data")]), {}, SandboxHost.of(settings)) is None
    assert refused(spec(write=[str(tmp_path / "acme")]), {}, SandboxHost.of(settings)) is not None  # holds code
