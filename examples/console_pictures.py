"""Take the pictures of the web console in the documentation: ``make console-pictures``.

The pictures show the demo: the inbox, a first and a later release to prod, the question about a tool call, and the run of its agent;
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

from examples import demo as demo_
from examples import demo_agent
from examples.demo import NAME, Demo
from kneo.cli import render
from kneo.settings import process_environment

IMAGES = Path("docs/images")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
DESKTOP, PHONE = ViewportSize(width=1280, height=800), ViewportSize(width=390, height=844)
MODES = ("", "dark", "phone")
"""The endings of the names of pictures; the first one has none."""

AGENT = "clerk"


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


def declare_agent(demo: Demo) -> None:
    """Declare the first version of the demo's agent in prod, which waits for an approval."""
    acme, spec = demo.folder / "acme", f"specs/{AGENT}.yaml"
    demo_agent.write_spec(acme / spec)
    (acme / "payments.py").write_text(demo_agent.TOOL)
    signed = (
        "--output",
        f"bundles/{AGENT}/1.0.0.dsse.json",
        "--approved-by",
        "bob",
        "--key",
        "../acme-keys/release.pem",
    )
    demo.kneo("spec", "bundle", "sign", spec, *signed, cwd="acme")
    prod = acme / "environments/prod.yaml"
    released = f"    - {{bundle: {NAME}, version: 1.1.0}}\n"
    prod.write_text(prod.read_text().replace(released, f"{released}    - {{bundle: {AGENT}, version: 1.0.0}}\n"))
    demo.git("add", "-A")
    demo.git("commit", "-m", f"Release {AGENT} 1.0.0 to prod")


def approve(demo: Demo, release: str, version: str) -> None:
    """Approve a release to prod as ann, and wait until it is there."""
    words = ("--key", "../acme-keys/approver.pem", "--service-url", demo.url)
    demo.kneo("approve", f"prod/{release}@{version}", *words, who="ann", cwd="acme", quiet=True)
    demo.wait_for(version)


def start(demo: Demo, release: str, text: str) -> dict[str, str]:
    """Start a run in prod up to its question."""
    words = ("--bundle", release, "--env", "prod", "--input", text, "--service-url", demo.url, "--json")
    run: dict[str, str] = json.loads(demo.kneo("run", *words, quiet=True))
    return run


def take_all(images: Path, browser: str) -> None:
    """Run the demo up to each page, and take its pictures."""
    # Chromium starts without its sandbox only where the user is root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name).resolve()
        (folder / "home").mkdir()
        demo = Demo(folder)
        demo_.declare(demo)
        declare_agent(demo)
        demo_agent.write_script(folder)
        with demo_agent.model_variables(folder, "") as demo.variables, demo.up():
            demo.wait_for(reason="AwaitingApproval")
            window = playwright.chromium.launch(executable_path=browser, args=arguments)
            pictures = Pictures(window, demo, "ann", images)
            pictures.take("console-release", f"/environments/prod/{NAME}")
            pictures.take("console-first-release", f"/environments/prod/{AGENT}")
            approve(demo, AGENT, "1.0.0")
            run = start(demo, AGENT, demo_agent.INPUT)
            start(demo, AGENT, "Invoice 8 of Bolt Ltd, please pay.")
            pictures.take("console-inbox", "/inbox")
            pictures.take("console-task", f"/inbox/{run['continuation_id']}", choose="approved")
            edited = json.dumps({"to": "Bolt Ltd", "amount": 100})
            words = ("--edit", edited, "--service-url", demo.url)
            demo.kneo("task", "decide", run["continuation_id"], *words, who="ann", quiet=True)
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
