"""Take the pictures of the web console in the documentation: ``make console-pictures``.

The pictures show the agent of the demo: the inbox, a first and a later release to prod, the question about a tool call, and the run;
each on a desktop, in dark and on a phone. They need Playwright and a browser.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, sync_playwright

from examples import demo_agent
from examples.demo import CHAIR, NAME, TABLE, Demo, start
from kneo.cli import render
from kneo.settings import process_environment

IMAGES = Path("docs/images")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
DESKTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)
MODES = ("", "dark", "phone")
"""The endings of the names of pictures; the first one has none."""

FIRST = "returns"
"""The bundle whose first version waits for an approval: the agent under another name."""


class Pictures:
    """The windows of one person, and the folder of the pictures.

    Args:
        browser: The browser.
        demo: The demo, with its server up.
        person: The person.
        images: The folder.
    """

    def __init__(self, browser: Browser, demo: Demo, person: str, images: Path) -> None:
        images.mkdir(parents=True, exist_ok=True)
        self._images, self._url = images, demo.url
        self._pages: Mapping[str, Page] = {mode: _window(browser, mode).new_page() for mode in MODES}
        for page in self._pages.values():
            page.goto(demo.sign_in_link(person))

    def take(self, name: str, path: str, *, choose: str = "") -> None:
        """Take the pictures of a page below the console; with ``choose`` after a decision is chosen in its form."""
        for mode, page in self._pages.items():
            page.goto(f"{self._url}/console{path}")
            if choose:
                page.check(f"input[name=decision][value={choose}]")
                page.evaluate("scrollTo(0, 0)")
            page.wait_for_load_state("networkidle")
            file = self._images / f"{name}{'-' if mode else ''}{mode}.png"
            page.screenshot(path=file, caret="hide", clip={"x": 0, "y": 0, **_shown(page, mode)})
            render.success(f"Wrote {file}")


def _shown(page: Page, mode: str) -> ViewportSize:
    """Return the part of a window with content; on a phone all of it, because the navigation is at its bottom."""
    if mode == "phone":
        return PHONE
    bottom = page.evaluate("document.querySelector('main').lastElementChild.getBoundingClientRect().bottom")
    return ViewportSize(width=DESKTOP["width"], height=min(DESKTOP["height"], round(bottom) + 32))


def _window(browser: Browser, mode: str) -> BrowserContext:
    if mode == "phone":
        return browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, reduced_motion="reduce")
    return browser.new_context(
        viewport=DESKTOP, color_scheme="dark" if mode == "dark" else "light", reduced_motion="reduce"
    )


def declare(demo: Demo) -> None:
    """Declare the first version of one bundle and a later one of another in prod; both wait for an approval."""
    words = ("init", "acme", "--template", "agent", "--principal", "bob", "--approver", "ann")
    demo.kneo(*words, "--model", demo_agent.SCRIPTED, cwd=".")
    acme = demo.folder / "acme"
    spec = (acme / f"specs/{NAME}.yaml").read_text()
    (acme / f"specs/{NAME}.yaml").write_text(
        spec.replace("args.euros > 100", "args.euros > 50").replace(
            "and at most once.", "and at most once. Be friendly."
        )
    )
    (acme / f"specs/{FIRST}.yaml").write_text(spec.replace(f"name: {NAME}", f"name: {FIRST}"))
    for name, version in ((NAME, "1.1.0"), (FIRST, "1.0.0")):
        signed = ("--output", f"bundles/{name}/{version}.dsse.json", "--approved-by", "bob")
        demo.kneo("spec", "bundle", "sign", f"specs/{name}.yaml", *signed, "--key", "../acme-keys/release.pem")
    prod = acme / "environments/prod.yaml"
    declared = f"    - {{bundle: {NAME}, version: 1.0.0}}\n"
    later = f"    - {{bundle: {NAME}, version: 1.1.0}}\n    - {{bundle: {FIRST}, version: 1.0.0}}\n"
    prod.write_text(prod.read_text().replace(declared, later))
    demo.commit("Release support 1.1.0 and returns 1.0.0 to prod")


def take_all(images: Path, browser: str) -> None:
    """Run the demo up to each page, and take its pictures."""
    # Chromium starts without its sandbox only where the user is root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name).resolve()
        (folder / "home").mkdir()
        demo = Demo(folder)
        declare(demo)
        with demo_agent.model_variables(demo_agent.SCRIPTED) as demo.variables, demo.up():
            demo.wait_for(reason="AwaitingApproval")
            window = playwright.chromium.launch(executable_path=browser, args=arguments)
            pictures = Pictures(window, demo, "ann", images)
            pictures.take("console-release", f"/environments/prod/{NAME}")
            pictures.take("console-first-release", f"/environments/prod/{FIRST}")
            run = start(demo, CHAIR)
            start(demo, TABLE)
            pictures.take("console-inbox", "/inbox")
            pictures.take("console-task", f"/inbox/{run['continuation_id']}", choose="approved")
            edited = json.dumps({"order": 8, "euros": 100})
            demo.answer("task", "decide", str(run["continuation_id"]), "--edit", edited, who="ann")
            Pictures(window, demo, "bob", images).take("console-run", f"/runs/{run['run_id']}")


def main() -> None:
    """Take the pictures into docs/images, or into the folder that is named."""
    named = process_environment("KNEO_TEST_BROWSER").get("KNEO_TEST_BROWSER")
    browser = named or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        render.failure("No browser was found. Install Chromium or Chrome, or set KNEO_TEST_BROWSER to its path.")
        raise SystemExit(1)
    take_all(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES, browser)


if __name__ == "__main__":
    main()
