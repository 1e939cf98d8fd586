"""Render the Helm chart into ``deploy/kubernetes/base/kneo.yaml``, for installations by Kustomize.

    python scripts/render_chart.py

Needs the extra ``deploy-check``; no cluster and no helm command.
"""

from __future__ import annotations

import sys
from pathlib import Path

import helm_python

ROOT = Path(__file__).parents[1]
CHART = ROOT / "deploy" / "helm" / "kneo"
RENDERED = ROOT / "deploy" / "kubernetes" / "base" / "kneo.yaml"
HEAD = "# Rendered from deploy/helm/kneo by scripts/render_chart.py. Do not edit; patch it in an overlay as deploy/kubernetes/example does.\n"

VALUES = {
    "repository": {"url": "https://git.example.org/team/config.git", "trustRoot": f"sha256:{'0' * 64}"},
    "settings": {"KNEO_SERV_LOG_LEVEL": "INFO"},
}
"""Values that an overlay replaces."""


def rendered() -> str:
    """Return all objects of the chart, in the order of their files."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(VALUES, name="kneo", namespace="kneo")
    texts = [text.strip().removeprefix("---").strip() for path, text in sorted(files.items()) if path.endswith(".yaml")]
    return HEAD + "".join(f"---\n{text}\n" for text in texts if text)


if __name__ == "__main__":
    RENDERED.write_text(rendered())
    sys.stdout.write(f"{RENDERED} is up to date\n")
