"""The addresses of the project in its wheel: those of the repository that builds it, as the release workflow names it."""

from __future__ import annotations

import os

from hatchling.metadata.plugin.interface import MetadataHookInterface


class ProjectUrls(MetadataHookInterface):
    """Sets ``Project-URL`` from ``KNEO_BUILD_REPOSITORY``, as ``https://HOST/OWNER/NAME``; without it there are none."""

    def update(self, metadata: dict[str, object]) -> None:
        repository = os.environ.get("KNEO_BUILD_REPOSITORY", "").rstrip("/")  # noqa: TID251 - the build reads no settings
        if not repository:
            metadata["urls"] = {}
            return
        if not repository.startswith("https://"):
            msg = f"KNEO_BUILD_REPOSITORY must begin with https://, not {repository[:60]!r}."
            raise ValueError(msg)
        metadata["urls"] = {
            "Source": repository,
            "Documentation": f"{repository}/tree/main/docs",
            "Changelog": f"{repository}/blob/main/CHANGELOG.md",
            "Issues": f"{repository}/issues",
        }
