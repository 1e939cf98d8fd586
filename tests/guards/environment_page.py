"""Write ``docs/reference/environment-file.md`` from the model of environment files and the rules for weaker ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kneo.spec.diff.weakening import WEAKER_CHANGES, find_weakenings
from kneo.spec.environment import parse_environment
from kneo.spec.models.environment import Environment, EnvironmentFile

HEAD = """\
# The environment file

`environments/<name>.yaml` declares one environment: its releases, its people, and the rules that a release must satisfy. The file is not
signed. The repository's review guards it, and the controller compares each new version with the version in force.

**A change that weakens the rules needs approval.** It waits for `approvals.required` people with a role of `approvals.roles`, by the file in
force, and is approved with `kneo approve ENV --policy` or in the console. The column "weaker" names the changes that wait. All other changes of a
key pass at once: they tighten the rules or do not concern them. A first environment file, `inlineSpecs: true` and `retired` wait too, and so do rules
under which the author of a standing rejection could not decide. `releases` and `suspend` are not rules: releases pass the gates of this page, and a person who can merge can suspend an environment.

`kneo plan` shows each change with its direction. The [JSON Schema](../../schemas/environment.schema.json) checks the file in an editor.
"""

STOP = ("Gate", "Human")
"""Models with a page of their own."""

GUIDES = {"Gate": "[gate](../guides/people/gates.md)", "Human": "[human](../guides/people/tasks.md)"}


@dataclass(frozen=True)
class Pair:
    """A pair of values of one key, the second of them weaker."""

    strict: object
    weak: object


DENY, OTHER = {"deny": "Fri 16:00 - Mon 08:00"}, {"allow": "* 06:00 - 20:00"}
PIN, GATE = "sha256:" + "0" * 64, {"name": "pay", "match": {"tools": ["pay"]}, "before": {"human": "cfo"}}
EVIDENCE = {
    "name": "support",
    "suite": {"name": "support", "digest": PIN},
    "signers": {"role": "evaluator"},
    "require": [{"metric": "pass_rate", "atLeast": 0.95}],
}
RECORDINGS = {"use": ["rehearsal"]}
PEOPLE = {"cfo": {"description": "May it pay?"}}

CALLS = {"tools": ["refund"], "when": "args.amount > 100"}
RULE = {"who": {"groups": ["payments"]}, "may": ["viewer"]}

PAIRS: Mapping[str, Pair] = {
    "inlineSpecs": Pair(False, True),
    "access": Pair([RULE], [RULE, {"who": {"users": ["ann"]}, "may": ["viewer"]}]),
    "admins": Pair(False, True),
    "quotas.running": Pair(10, 50),
    "quotas.queued": Pair(100, 1000),
    "quotas.requests_per_minute": Pair(60, 600),
    "quotas.stored": Pair("900Mi", "1Gi"),
    "people.<name>.groups": Pair([], ["editors"]),
    "people.<name>.roles": Pair([], ["approver"]),
    "people.<name>.slack": Pair(None, "T0123ABCD/U0456EFGH"),
    "promoteFrom": Pair("staging", None),
    "policy.enabled": Pair(True, False),
    "policy.fail_on_warnings": Pair(True, False),
    "policy.blocked_diagnostic_codes": Pair(["W_MODEL"], []),
    "policy.require_human_review": Pair(True, False),
    "policy.require_tool_permissions": Pair(True, False),
    "policy.deny_unrestricted_tools": Pair(True, False),
    "policy.require_guardrails": Pair(True, False),
    "signatures.accept": Pair(["dsse"], ["dsse", "hmac-v1"]),
    "signatures.roles": Pair(["release"], ["release", "ci"]),
    "signatures.threshold": Pair(2, 1),
    "approvals.required": Pair(2, 1),
    "approvals.roles": Pair(["approver"], ["approver", "dev"]),
    "approvals.exclude": Pair(["bundle_signer", "author"], ["author"]),
    "approvals.expires": Pair("1d", "7d"),
    "approvals.signed": Pair(True, False),
    "questions.approvals": Pair(2, 1),
    "questions.exclude": Pair(["requester"], []),
    "questions.denyOnTimeout": Pair(["approve"], []),
    "questions.context": Pair("none", "calls"),
    "questions.receipt": Pair("signed_by_reviewer", "signed"),
    "questions.via": Pair([], ["slack"]),
    "humans": Pair(PEOPLE, {"cfo": {"description": "Pay?"}}),
    "gates": Pair([GATE], []),
    "windows": Pair([DENY], [OTHER]),
    "soak": Pair("24h", "1h"),
    "evidence": Pair([EVIDENCE], []),
    "recordings": Pair(None, RECORDINGS),
    "recordings.redact": Pair("personal", "secrets"),
    "recordings.maxAge": Pair("7d", "30d"),
    "prune.maxPercent": Pair(10, 20),
    "atomic": Pair(True, False),
    "models.allow": Pair([{"provider": "openai"}], None),
    "models.connections": Pair({}, {"openai": {"base_url": "https://gateway.example"}}),
    "models.hosts": Pair([], ["models.example"]),
    "models.limits": Pair([{"provider": "openai", "concurrency": 1}], [{"provider": "openai", "concurrency": 2}]),
    "models.budgets": Pair([{"per": "run", "tokens": 1}], [{"per": "run", "tokens": 2}]),
    "models.prices": Pair({"small": {"input": 2, "output": 2}}, {"small": {"input": 1, "output": 1}}),
    "tools.deny": Pair(["shell*", CALLS], ["shell*"]),
    "tools.unattended": Pair([], [CALLS]),
    "grants": Pair([], [{"tools": ["refund"], "uses": 10, "expires": "30d"}]),
    "tools.allow": Pair(["mail"], None),
    "tools.sandbox.required": Pair("kernel", "process"),
    "tools.sandbox.trusted": Pair([], ["render"]),
    "tools.sandbox.limits": Pair({"cpu_seconds": 30}, {"cpu_seconds": 60}),
    "tools.inside": Pair([], ["crm.internal:443"]),
    "tools.mcp.commands": Pair([], ["/usr/bin/crm"]),
    "tools.mcp.hosts": Pair(["crm.example"], None),
    "tools.mcp.pinned": Pair(True, False),
    "implementations.<name>": Pair(PIN, None),
    "protocols.a2a": Pair([], ["research-agent"]),
    "protocols.mcp": Pair([], ["research-agent"]),
    "protocols.calls": Pair([], [{"bundle": "payments", "tools": ["lookup"]}]),
    "code": Pair("bundled", "pinned"),
    "packages": Pair("same", "recorded"),
    "allowSelf": Pair(False, True),
}


BOTH_WAYS = frozenset({"windows", "humans", "models.connections"})
"""Keys whose changes cannot be compared: each of them counts as weaker."""


def environment_page(generated: str) -> str:
    assert PAIRS.keys() == WEAKER_CHANGES.keys(), "each rule has an example here"
    for path, pair in PAIRS.items():
        strict, weak = _environment(path, pair.strict), _environment(path, pair.weak)
        found = {each.key for each in find_weakenings(strict, weak)}
        assert found == {path}, f"{path}: {WEAKER_CHANGES[path]} is not found as weaker, but {found}"
        assert not find_weakenings(weak, strict) or path in BOTH_WAYS, f"{path}: the other direction is weaker too"
    schema = EnvironmentFile.model_json_schema(by_alias=True)
    rows = list(_rows(schema["$defs"]["EnvironmentSpec"], schema["$defs"], ""))
    unknown = WEAKER_CHANGES.keys() - {path for path, *_ in rows}
    assert not unknown, f"not in the model: {unknown}"
    table = [
        f"| `{path}` | {kind} | {default} | {WEAKER_CHANGES.get(path, '')} | {meaning} |"
        for path, kind, default, meaning in rows
    ]
    return "\n".join(
        [
            generated,
            "",
            HEAD,
            "```yaml",
            "apiVersion: kneo/v1",
            "kind: Environment",
            "metadata: {name: prod}",
            "spec:",
            "  # the keys below",
            "```",
            "",
            "| key below `spec` | type | default | weaker | meaning |",
            "|---|---|---|---|---|",
            *table,
            "",
        ]
    )


def _environment(path: str, value: object) -> Environment:
    spec: dict = {
        "policy": {"require_guardrails": True},
        "signatures": {"roles": ["release"], "threshold": 1},
        "approvals": {"required": 1},
        "people": {"ann": {}},
        "humans": PEOPLE,
        "gates": [GATE],
        "models": {"budgets": [{"per": "day", "cost": 1}]} if path == "models.prices" else {},
        "promoteFrom": "staging",
        "access": [RULE],
        **({"recordings": RECORDINGS} if path.startswith("recordings.") else {}),
    }
    spec = copy.deepcopy(spec)
    *parents, last = ["ann" if key == "<name>" else key for key in path.split(".")]
    node = spec
    for key in parents:
        node = node.setdefault(key, {})
    if value is None:
        node.pop(last, None)
    else:
        node[last] = value
    tree = {"apiVersion": "kneo/v1", "kind": "Environment", "metadata": {"name": "prod"}, "spec": spec}
    return parse_environment(json.dumps(tree).encode(), file="environments/prod.json")


def _rows(model: dict, models: dict, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yield path, type, default and meaning of each key, through nested models."""
    for name, field in model["properties"].items():
        path = f"{prefix}{name}"
        required = name in model.get("required", ())
        meaning = field.get("description") or _model(field, models).get("description", "")
        yield path, _type(field), "**required**" if required else _default(field), meaning.replace("|", "\\|")
        for part in (field, *field.get("anyOf", ())):
            if "items" in part:
                inner, below = part["items"], f"{path}[]"
            elif isinstance(part.get("additionalProperties"), dict):
                inner, below = part["additionalProperties"], f"{path}.<name>"
                if "$ref" not in inner:
                    yield below, _type(inner), "", ""
            else:
                inner, below = part, path
            if "$ref" in inner and inner["$ref"].rpartition("/")[2] not in STOP:
                yield from _rows(_model(inner, models), models, f"{below}.")


def _model(field: dict, models: dict) -> dict:
    return models.get(field.get("$ref", "").rpartition("/")[2], {})


def _type(field: dict) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return GUIDES.get(name, "map")
    if "anyOf" in field:
        kinds = [_type(part) for part in field["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    if isinstance(field.get("additionalProperties"), dict):
        return f"map of {_type(field['additionalProperties'])}"
    if field.get("pattern", "").endswith("[smhd]$"):
        return "duration"
    return {"string": "text", "boolean": "`true` or `false`", "integer": "number"}.get(field.get("type", ""), "any")


def _default(field: dict) -> str:
    default = field.get("default")
    if default is None or default in ({}, []) or isinstance(default, dict):
        return ""
    if _type(field) == "duration":
        return {"PT0S": "`0s`", "P7D": "`7d`"}.get(default, f"`{default}`")
    return f"`{json.dumps(default) if not isinstance(default, str) else default}`"
