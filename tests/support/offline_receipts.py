"""Signed receipts as a person keeps them: downloaded through a browser, verified on a machine that has neither the service nor its database."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from kneo_process import PATIENCE_SECONDS, Machine

if TYPE_CHECKING:
    from playwright.sync_api import Page

Json = dict[str, object]

TRUST = Path("environments/trust.json")


class Verifier:
    """A machine with the public key of a service, and with the trust root of a config repository where there is one."""

    command = ("task", "receipt", "verify")

    def __init__(self, folder: Path, address: str, repository: Path | None = None, pin: str = "") -> None:
        variables = {"KNEO_SERV_TRUST_ROOT": pin} if pin else {}
        self.machine = Machine(folder, f"sqlite:///{folder / 'no-database.sqlite'}", **variables)
        key = httpx.get(
            f"{address}/v1/receipts/key", headers={"Authorization": "Bearer admin-key"}, timeout=PATIENCE_SECONDS
        )
        assert key.status_code == 200, key.text
        (folder / "service.pem").write_text(key.json()["key"])
        self.options = ["--key", "service.pem"]
        if repository is not None:
            shutil.copytree(repository / TRUST.parent, folder / TRUST.parent)
            self.options += ["--trust", str(TRUST)]

    def download(self, page: Page) -> Json:
        """Download the signed receipt that a page links, with the session of its browser; return the verified item."""
        address = page.get_attribute("[data-receipt] a:text-is('Signed receipt (JSON)')", "href")
        assert address is not None
        response = page.request.get(address)
        assert response.status == 200, response.text()
        assert response.headers["content-disposition"].startswith("attachment")
        return self.verify(json.loads(response.body()))

    def verify(self, receipt: Mapping[str, object]) -> Json:
        """Verify a receipt offline; return the verified item."""
        verdict = self._verdict(receipt, expect=0)
        assert verdict["valid"] is True
        items = verdict["receipts"]
        assert isinstance(items, list)
        (item,) = items
        return item

    def refuse(self, receipt: Mapping[str, object]) -> set[str]:
        """Return the fields of a receipt that offline verification refuses."""
        problems = self._verdict(receipt, expect=3)["problems"]
        assert isinstance(problems, list)
        return {problem["field"] for problem in problems}

    def _verdict(self, receipt: Mapping[str, object], *, expect: int) -> Json:
        (self.machine.folder / "receipt.json").write_text(json.dumps(receipt))
        return self.machine.json(*self.command, "receipt.json", *self.options, expect=expect)


class PromotionVerifier(Verifier):
    """A machine that verifies receipts of promotions, with the environment files of the config repository."""

    command = ("promotion", "receipt", "verify")
