"""The Helm chart in deploy/helm and its rendering in deploy/kubernetes: rendered by Helm's own library, each object against its schema."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_files import DEPLOY, ROOT, library, program

CHART = DEPLOY / "helm" / "kneo"
OVERLAYS = DEPLOY / "kubernetes"
NEEDED = {"repository": {"url": "https://git.example.org/team/config.git", "trustRoot": f"sha256:{'a' * 64}"}}
EVERYTHING = {
    **NEEDED,
    "image": {"repository": "r.example.org/kneo", "tag": "1.2.3", "pullSecrets": [{"name": "pull"}]},
    "secrets": {"name": "mine", "models": "kneo-models", "git": "kneo-git"},
    "publicUrl": "https://kneo.example.org",
    "trustedProxies": ["10.0.0.0/8"],
    "settings": {"KNEO_SERV_LOG_LEVEL": "INFO"},
    "service": {"autoscaling": {"enabled": True}},
    "worker": {"autoscaling": {"enabled": True}},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecret": "kneo-tls", "annotations": {"a": "b"}},
    "networkPolicy": {"enabled": True},
    "monitoring": {"podMonitors": True, "rules": True, "dashboard": True, "metricsKeySecret": "scrape"},
}
VERSIONS = ("1.30", "1.34")
PROCESSES = ("service", "worker", "controller")

Values = Mapping[str, object]
Objects = dict[tuple[str, str], Any]


def render(values: Values) -> Objects:
    library("helm_python")
    import helm_python

    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(dict(values), name="kneo", namespace="kneo")
    texts = (text for path, text in files.items() if path.endswith(".yaml"))
    return {(one["kind"], one["metadata"]["name"]): one for text in texts for one in yaml.safe_load_all(text) if one}


def templates_of(objects: Objects) -> Iterator[tuple[str, Any]]:
    for (kind, name), one in objects.items():
        if kind in {"Deployment", "Job"}:
            yield name, one["spec"]["template"]


def variables(template: Any) -> dict[str, str]:
    return {each["name"]: each["value"] for each in template["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["least", "everything"])
def test_helm_finds_nothing_wrong(values: Values) -> None:
    library("helm_python")
    import helm_python

    report = helm_python.lint(CHART, dict(values))
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["least", "everything"])
def test_every_object_fits_the_schema_of_kubernetes(values: Values, version: str) -> None:
    library("kubernetes_validate")
    import kubernetes_validate

    checked = 0
    for one in render(values).values():
        # Objects of the Prometheus operator have schemas of their own.
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(one, version, strict=True)
            checked += 1
    assert checked >= 9


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repository": {}}, "repository"),
        ({"repository": {**NEEDED["repository"], "trustRoot": "sha256:short"}}, "trustRoot"),
        ({"repository": {**NEEDED["repository"], "url": "/srv/config"}}, "url"),
        ({"replicas": 3}, "replicas"),
        ({"service": {"replica": 3}}, "replica"),
        ({"settings": {"KNEO_SERV_API_KEYS": "ann:key:admin"}}, "KNEO_SERV_API_KEYS"),
        ({"settings": {"PATH": "/bin"}}, "PATH"),
        ({"publicUrl": "http://kneo.example.org"}, "publicUrl"),
        ({"trustedProxies": ["*"]}, "trustedProxies"),
    ],
)
def test_values_that_make_no_sense_are_refused(changes: Values, words: str) -> None:
    library("helm_python")
    import helm_python

    with pytest.raises(helm_python.HelmValuesError, match=words):
        render({**NEEDED, **changes})


@pytest.mark.parametrize("values", [NEEDED, EVERYTHING], ids=["least", "everything"])
def test_every_pod_fits_the_restricted_profile_and_mounts_what_it_names(values: Values) -> None:
    templates = dict(templates_of(render(values)))
    assert set(templates) == {f"kneo-{name}" for name in (*PROCESSES, "migrate")}
    for name, template in templates.items():
        pod, (container,) = template["spec"], template["spec"]["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["limits"]["memory"], name
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounts) == volumes
        for variable, value in variables(template).items():
            if variable.endswith(("_FILE", "_DIR")):
                assert any(value.startswith(path) for path in mounts.values()), variable
    assert templates["kneo-migrate"]["spec"]["serviceAccountName"] == "default"


def test_each_process_gets_the_secrets_that_it_needs() -> None:
    templates = dict(templates_of(render({**EVERYTHING, "worker": {"secrets": ["data-keys"]}})))
    keys = {
        name: {
            item["key"] for volume in template["spec"]["volumes"] for item in volume.get("secret", {}).get("items", ())
        }
        for name, template in templates.items()
    }
    assert keys == {
        "kneo-service": {"database-url", "service-key", "api-keys"},
        "kneo-worker": {"database-url", "service-key", "data-keys"},
        "kneo-controller": {"database-url", "service-key"},
        "kneo-migrate": {"database-url"},
    }
    for name, template in templates.items():
        files = {value for value in variables(template).values() if value.startswith("/run/kneo/")}
        assert files <= {f"/run/kneo/{key}" for key in keys[name]}


def test_probes_ports_selectors_and_budgets_match() -> None:
    objects = render(EVERYTHING)
    for name in PROCESSES:
        deployment = objects["Deployment", f"kneo-{name}"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        (port,) = container["ports"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == port["name"]
        for selecting in (deployment, objects["PodDisruptionBudget", f"kneo-{name}"]):
            assert selecting["spec"]["selector"]["matchLabels"].items() <= labels.items()
        # Requests and steps have their time to end: 10 s of a service, 30 s of a worker.
        grace = deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace >= {"service": 20, "worker": 45, "controller": 20}[name]
        assert variables(deployment["spec"]["template"])["KNEO_SERV_MIGRATE"] == "never"
        served = variables(deployment["spec"]["template"]).get("KNEO_SERV_METRICS_PORT", "8000")
        assert int(served) == port["containerPort"]
        monitored = objects["PodMonitor", "kneo"]["spec"]["selector"]
        assert monitored["matchLabels"].items() <= labels.items()
        assert labels["app.kubernetes.io/component"] in monitored["matchExpressions"][0]["values"]
    service = objects["Service", "kneo"]["spec"]
    assert service["selector"] == objects["Deployment", "kneo-service"]["spec"]["selector"]["matchLabels"]
    backend = objects["Ingress", "kneo"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "kneo", "port": {"name": service["ports"][0]["name"]}}
    for name in ("service", "worker"):
        scaler = objects["HorizontalPodAutoscaler", f"kneo-{name}"]["spec"]
        assert ("Deployment", scaler["scaleTargetRef"]["name"]) in objects
        assert "replicas" not in objects["Deployment", f"kneo-{name}"]["spec"]


def test_no_object_holds_a_secret_and_migrations_run_first() -> None:
    objects = render(EVERYTHING)
    assert not [name for kind, name in objects if kind == "Secret"]
    assert objects["Job", "kneo-migrate"]["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert variables(dict(templates_of(objects))["kneo-service"])["KNEO_SERV_TRUSTED_PROXIES"] == "10.0.0.0/8"


def test_alerts_and_dashboard_of_the_chart_are_those_of_deploy() -> None:
    for name in ("alerts.yaml", "dashboard.json"):
        assert (CHART / "files" / name).read_text() == (DEPLOY / "observability" / name).read_text()
    objects = render(EVERYTHING)
    alerts = yaml.safe_load((DEPLOY / "observability" / "alerts.yaml").read_text())
    assert objects["PrometheusRule", "kneo"]["spec"] == alerts
    dashboard = json.loads(objects["ConfigMap", "kneo-dashboard"]["data"]["kneo.json"])
    assert dashboard == json.loads((DEPLOY / "observability" / "dashboard.json").read_text())


def test_every_command_line_of_the_chart_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    from kneo.cli.main import run

    for _, template in templates_of(render(EVERYTHING)):
        arguments = template["spec"]["containers"][0]["args"]
        assert run([*map(str, arguments), "--help"]) == 0
        printed = capsys.readouterr().out
        assert [part for part in arguments if part.startswith("--") and part not in printed] == []


def test_the_rendering_for_kustomize_is_up_to_date() -> None:
    library("helm_python")
    import importlib.util

    spec = importlib.util.spec_from_file_location("render_chart", ROOT / "scripts" / "render_chart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.RENDERED.read_text() == module.rendered(), "run scripts/render_chart.py"


def test_kustomize_builds_the_example(tmp_path: Path) -> None:
    copied = tmp_path / "kubernetes"
    shutil.copytree(OVERLAYS, copied)
    for name in ("database-url", "service-key", "api-keys"):
        (copied / "example" / name).write_text("a secret")
    build = [program("kubectl"), "kustomize", copied / "example"]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    objects = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(done.stdout)}
    assert {one["metadata"].get("namespace") for one in objects.values()} == {"kneo"}
    templates = dict(templates_of(objects))
    names = {
        variable["name"] for template in templates.values() for variable in template["spec"]["containers"][0]["env"]
    }
    assert "KNEO_SERV_TRUST_ROOT" in names
    mounted = templates["kneo-service"]["spec"]["volumes"][0]["secret"]["secretName"]
    assert {"database-url", "service-key", "api-keys"} == set(objects["Secret", mounted]["data"])
