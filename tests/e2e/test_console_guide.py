"""The console guide: `kneo up` prints a link that signs in, and a command makes another one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import httpx
import pytest
from console_pages import Browser
from kneo_process import Machine, eventually

LINK = re.compile(r"(http://\S+)(/console/link/\S+)")


@pytest.mark.e2e
def test_kneo_up_prints_a_link_that_signs_in_once(tmp_path: Path) -> None:
    keys = {"KNEO_SERV_ADMIN_API_KEY": "root-key", "KNEO_SERV_API_KEYS": "ann:ann-key:approver"}
    machine = Machine(tmp_path, f"sqlite:///{tmp_path / 'kneo.sqlite'}", **keys)
    try:
        process = machine.up()
        found = eventually(lambda: LINK.search("".join(process.printed)))
        assert found[1] == process.url
        browser = Browser(process.url)
        assert browser.client.get(found[2]).headers["location"] == "/console/"
        assert "admin" in browser.get("/console/inbox").text
        assert httpx.get(found[1] + found[2], timeout=240).status_code == 401
        made = machine.kneo("service", "sign-in-link", "--person", "ann", "--address", process.url).stdout
        again = LINK.search(made)
        assert again is not None
        browser.client.cookies.clear()
        assert browser.client.get(again[2]).status_code == 303
        assert "ann" in browser.get("/console/inbox").text
        stated = machine.kneo("service", "sign-in-link", "--person", "ann", "--address", process.url, "--json").stdout
        assert json.loads(stated)["url"].startswith(f"{process.url}/console/link/")
        machine.kneo("service", "sign-in-link", "--person", "nobody", expect=4)
        assert found[2] not in process.log.read_text(), "the access log shows no token"
    finally:
        Browser.close_all()
        machine.stop()
