"""The compose file: Compose reads it, every process can start, none has more than it needs."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from typing import Any

import pytest
from deploy_files import DEPLOY, compose, program

FOLDER = DEPLOY / "compose"
KNEO = ("migrate", "service", "worker", "controller")
ENV = {"KNEO_REPO": "https://git.example.org/config.git", "KNEO_TRUST_ROOT": f"sha256:{'0' * 64}"}


def resolved(**env: str) -> dict[str, object]:
    """Return the file as Compose reads it."""
    done = subprocess.run(
        [program("docker-compose"), "config", "--format", "json"],
        cwd=FOLDER,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def mounted(service: Mapping[str, Any]) -> set[str]:
    return {f"/run/secrets/{secret['source']}" for secret in service["secrets"]}


def unset(service: Mapping[str, Any]) -> set[str]:
    """Return the files of secrets whose variable the operator sets."""
    names = [name for name, value in service["environment"].items() if name.endswith("_FILE") and not value]
    return {f"/run/secrets/{name.removeprefix('KNEO_SERV_').removesuffix('_FILE').lower()}" for name in names}


def test_compose_reads_it_and_resolves_its_anchors() -> None:
    services = resolved(**ENV)["services"]
    assert set(services) == {*KNEO, "postgres", "caddy"}
    for name in KNEO:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["environment"]["KNEO_SERV_DATABASE_URL_FILE"] == "/run/secrets/database_url"
        assert services[name]["environment"]["KNEO_SERV_MIGRATE"] == "never"
        secrets = mounted(services[name])
        files = {value for key, value in services[name]["environment"].items() if key.endswith("_FILE") and value}
        # A secret without use can only leak.
        assert files | unset(services[name]) == secrets
    assert {name for name in KNEO if "/run/secrets/api_keys" in mounted(services[name])} == {"service"}
    assert mounted(services["migrate"]) == {"/run/secrets/database_url"}
    for name in ("service", "worker"):
        assert services[name]["deploy"]["replicas"] == 2
    assert "ports" not in services["service"]
    assert "KNEO_SERV_TRUSTED_PROXIES" not in services["worker"]["environment"]


@pytest.mark.parametrize("missing", ENV)
def test_compose_refuses_to_start_without_what_has_no_default(missing: str) -> None:
    with pytest.raises(AssertionError, match=missing):
        resolved(**{name: value for name, value in ENV.items() if name != missing})


def test_no_secret_stands_in_the_file_and_each_is_a_file() -> None:
    file = compose()
    assert all(secret["file"].startswith("./secrets/") for secret in file["secrets"].values())
    for service in file["services"].values():
        for name, value in service.get("environment", {}).items():
            if re.search(r"KEY|PASSWORD|TOKEN|SECRET|DATABASE_URL", name) and not name.endswith(("_FILE", "_DIR")):
                pytest.fail(f"{name}={value}")


def test_images_are_pinned_and_only_the_proxy_is_reachable() -> None:
    services = compose()["services"]
    for name in ("postgres", "caddy"):
        assert re.fullmatch(r"docker\.io/library/[a-z]+:[\w.-]+@sha256:[0-9a-f]{64}", services[name]["image"])
    assert [name for name, service in services.items() if "ports" in service] == ["caddy"]
    networks = compose()["networks"]
    assert networks["database"]["internal"] is True
    assert networks["proxy"]["internal"] is True
    # Forwarded headers are believed of this network alone; nothing but the proxy and the API servers is on it.
    assert networks["proxy"]["ipam"]["config"] == [
        {"subnet": services["service"]["environment"]["KNEO_SERV_TRUSTED_PROXIES"]}
    ]
    assert [name for name, service in services.items() if "proxy" in service.get("networks", ())] == [
        "service",
        "caddy",
    ]


def test_the_example_of_settings_has_what_the_file_reads() -> None:
    read = set(re.findall(r"\$\{(\w+)", (FOLDER / "compose.yaml").read_text()))
    named = set(re.findall(r"^#?(\w+)=", (FOLDER / ".env.example").read_text(), re.MULTILINE))
    assert named == read
