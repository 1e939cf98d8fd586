"""Sandboxes of specs and of environments: what they accept, how they are compared, and what widens them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from kneo.spec.diff import diff
from kneo.spec.diff.weakening import find_weakenings
from kneo.spec.environment import parse_environment
from kneo.spec.models.sandbox import Sandbox, excesses, widenings
from kneo.spec.models.spec import FunctionComponent, Spec, Tool
from kneo.spec.policy import SandboxLimits, SandboxRules
from kneo.spec.reading.load import load_tree


@pytest.mark.parametrize(
    "net",
    [
        "a.example", "*", "*:443", "a.example:0", "a.example:65536", "127.0.0.1:443", "[::1]:443", "2130706433:443", "0x7f.1:443",
        "127.1:443", "A.example:443", "https://a.example:443", "a..example:443", "*.*.example:443", "a.example:443/x", "-a:443",
    ],
)  # fmt: skip
def test_hosts_are_names_with_ports(net: str) -> None:
    with pytest.raises(ValidationError, match="is not host:port"):
        Sandbox(net=(net,))
    with pytest.raises(ValidationError, match="is not host:port"):
        SandboxLimits(net=(net,))


@pytest.mark.parametrize(
    "path",
    [
        "data",
        "/",
        "/data/",
        "/data//x",
        "/data/./x",
        "/data/../x",
        "/proc",
        "/proc/1",
        "/sys/x",
        "/dev/null",
        "/run/x",
        "",
    ],
)
@pytest.mark.parametrize("key", ["read", "write"])
def test_paths_are_full_and_canonical(path: str, key: str) -> None:
    with pytest.raises(ValidationError, match="is not a full path"):
        Sandbox.model_validate({key: [path]})
    if path.startswith("/data/"):
        with pytest.raises(ValidationError, match="is not a canonical full path"):
            SandboxLimits.model_validate({key: [path]})


@pytest.mark.parametrize(
    "env",
    [
        {"LD_PRELOAD": "x"}, {"PYTHONPATH": "x"}, {"HTTPS_PROXY": "x"}, {"no_proxy": "x"}, {"KNEO_SERV_X": "x"},
        {"A": "${KNEO_SERV_SERVICE_KEY}"}, {"A": "${OPENAI_API_KEY}"}, {"OPENAI_API_KEY": "x"}, {"A B": "x"},
    ],
)  # fmt: skip
def test_variables_give_no_keys_and_load_nothing(env: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="is not a variable that a sandbox may have"):
        Sandbox(env=env)


@pytest.mark.parametrize("memory", ["15Mi", "65Gi", "1G", "0Mi", "-1Mi", "99999Mi"])
def test_memory_has_bounds(memory: str) -> None:
    with pytest.raises(ValidationError):
        Sandbox(memory=memory)


def test_a_sandbox_adds_capabilities_and_removes_none() -> None:
    wide = Sandbox(net=("a.example:443",), read=("/data",), write=("/out",), processes=2)
    tool = Tool(description="x", implementation="a.b", capabilities=("privileged",), sandbox=wide)
    assert set(tool.all_capabilities) == {"privileged", "network", "filesystem_read", "filesystem_write", "shell"}
    function = FunctionComponent(implementation="a.b", capabilities=("shell",), sandbox=Sandbox())
    assert function.all_capabilities == ("shell",)


def test_each_field_that_is_widened_is_named() -> None:
    before = Sandbox(level="kernel")
    for change, words in {
        "level": ({"level": "process"}, "may run at a lower level than kernel"),
        "net": ({"net": ["a.example:443"]}, "may also reach a.example:443"),
        "read": ({"read": ["/data"]}, "may also read /data"),
        "write": ({"write": ["/data"]}, "may also change /data"),
        "env": ({"env": {"A": "${CRM_TOKEN}"}}, "may use the secret CRM_TOKEN"),
        "memory": ({"memory": "1Gi"}, "may use 1Gi of memory instead of 512Mi"),
        "cpu_seconds": ({"cpu_seconds": 61}, "may use 61 s of processor time instead of 60 s"),
        "processes": ({"processes": 2}, "may have 2 processes instead of 1"),
    }.items():
        after = before.model_copy(update=Sandbox.model_validate(words[0]).model_dump(exclude_unset=True))
        assert list(widenings(before, after)) == [(change, words[1])]
        if change != "level":
            assert list(widenings(after, before)) == []


@pytest.mark.parametrize(
    ("profile", "limits", "keys"),
    [
        ({"net": ["a.x.example:443"]}, {"net": ["*.x.example:443"]}, []),
        ({"net": ["*.a.x.example:443"]}, {"net": ["*.x.example:443"]}, []),
        ({"net": ["x.example:443", "a.x.example:80"]}, {"net": ["*.x.example:443"]}, ["net", "net"]),
        ({"net": ["*.example:443"]}, {"net": ["*.x.example:443"]}, ["net"]),
        ({"read": ["/data/in"]}, {"read": ["/data"]}, []),
        ({"read": ["/database"]}, {"read": ["/data"]}, ["read"]),
        ({"write": ["/data"]}, {"read": ["/data"]}, []),
        ({"write": ["/data"]}, {"read": ["/other"], "write": ["/data"]}, []),
        ({"write": ["/data"]}, {"write": []}, ["write"]),
        ({"env": {"A": "${CRM_TOKEN} ${X}"}}, {"secrets": ["CRM_*"]}, ["secrets"]),
        ({}, {"memory": "256Mi", "cpu_seconds": 30}, ["memory", "cpu_seconds"]),
        ({"processes": 4}, {"processes": 2}, ["processes"]),
        ({"net": ["a.example:443"], "read": ["/x"], "memory": "64Gi"}, {}, []),
    ],
)  # fmt: skip
def test_a_profile_beyond_the_limits_is_named(profile: dict, limits: dict, keys: list[str]) -> None:
    found = list(excesses(Sandbox.model_validate(profile), SandboxLimits.model_validate(limits)))
    assert [key for key, _ in found] == keys


@pytest.mark.parametrize(
    ("declared", "required", "trusted", "level"),
    [
        (None, "process", False, "process"), ("kernel", "process", False, "kernel"), ("none", "kernel", False, "kernel"),
        ("none", "process", True, "none"), (None, "kernel", True, "none"), ("kernel", "none", True, "kernel"),
        (None, "none", False, "none"),
    ],
)  # fmt: skip
def test_the_level_is_the_stronger_one_unless_trusted(declared, required, trusted: bool, level) -> None:
    rules = SandboxRules(required=required, trusted=("run",) if trusted else ())
    assert rules.level_of("run", declared) == level


def environment(sandbox: str) -> object:
    return parse_environment(
        f"""apiVersion: kneo/v1
kind: Environment
metadata: {{name: prod}}
spec:
  policy: {{}}
  signatures: {{threshold: 1, roles: [release]}}
  tools: {{sandbox: {sandbox}}}
  releases: []
""".encode(),
        file="prod.yaml",
    )


@pytest.mark.parametrize(
    ("before", "after", "keys"),
    [
        ("{required: kernel}", "{}", ["required"]),
        ("{}", "{required: none}", ["required"]),
        ("{}", "{required: kernel}", []),
        ("{}", "{trusted: [a]}", ["trusted"]),
        ("{trusted: [a]}", "{}", []),
        ("{limits: {net: ['a.example:443']}}", "{}", ["limits"]),
        ("{limits: {net: ['a.example:443']}}", "{limits: {net: ['a.example:443', 'b.example:443']}}", ["limits"]),
        ("{limits: {net: ['a.example:443']}}", "{limits: {net: []}}", []),
        ("{limits: {memory: 256Mi}}", "{limits: {memory: 1Gi}}", ["limits"]),
        ("{limits: {memory: 1Gi}}", "{limits: {memory: 256Mi}}", []),
        ("{limits: {processes: 2}}", "{limits: {processes: 3}}", ["limits"]),
        ("{limits: {secrets: ['A*']}}", "{limits: {secrets: ['*']}}", ["limits"]),
        ("{}", "{limits: {net: []}}", []),
    ],
)  # fmt: skip
def test_weaker_rules_of_an_environment_are_named(before: str, after: str, keys: list[str]) -> None:
    found = find_weakenings(environment(before), environment(after))
    assert [each.key for each in found] == [f"tools.sandbox.{key}" for key in keys]


def spec_with(sandbox: dict[str, object] | None) -> Spec:
    declared = {"sandbox": sandbox} if sandbox is not None else {}
    tool = {"description": "Adds up.", "implementation": "acme.total.run", **declared}
    tree = {
        "version": "v1",
        "agent": {"name": "root", "model": {"provider": "dummy", "name": "x"}, "tools": {"include": ["sum"]}},
        "tools": {"sum": tool},
        "components": {"functions": {"score": {"implementation": "acme.score.run", **declared}}},
        "mcp_servers": {"crm": {"transport": "stdio", "command": "/usr/bin/crm", **declared}},
    }
    found = load_tree(tree).spec
    assert found is not None
    return found


NET = {"net": ["a.example:443"]}


@pytest.mark.parametrize(
    ("before", "after", "severity", "words"),
    [
        (None, NET, "to check", "may also reach a.example:443"),
        ({}, NET, "to check", "may also reach a.example:443"),
        (NET, None, "minor", "may do less in its sandbox"),
        (NET, {}, "minor", "may do less in its sandbox"),
    ],
)
def test_reviewers_read_what_a_sandbox_adds(
    before: dict[str, object] | None, after: dict[str, object] | None, severity: str, words: str
) -> None:
    text = diff(spec_with(before), spec_with(after)).to_text()
    lines = [line for line in text.splitlines() if words in line]
    assert len(lines) == 3, text
    assert text.splitlines()[0] == f"3 {severity}"
