"""Take the pictures of the web console in the README: ``make console-pictures``.

The pictures show the demo: the review of a release to prod, and the task of a run. They need Playwright and a browser.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Page, sync_playwright

from examples import demo as demo_
from examples.demo import NAME, Demo
from kneo.cli import render
from kneo.settings import process_environment

IMAGES = Path("docs/images")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
WIDTH, HEIGHT = 1280, 800


def take(page: Page, images: Path, name: str) -> None:
    """Save what the window shows."""
    images.mkdir(parents=True, exist_ok=True)
    page.wait_for_load_state("networkidle")
    page.screenshot(path=images / f"{name}.png")
    render.success(f"Wrote {images / name}.png")


def take_all(images: Path, browser: str) -> None:
    """Run the demo up to a release that waits, and on to a task; take a picture of each."""
    # Chromium starts without its sandbox only where the user is root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        (Path(folder) / "home").mkdir()
        demo = Demo(Path(folder).resolve())
        demo_.declare(demo)
        with demo.up():
            demo.wait_for(reason="AwaitingApproval")
            window = playwright.chromium.launch(executable_path=browser, args=arguments)
            page = window.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(demo.sign_in_link("ann"))
            page.goto(f"{demo.url}/console/environments/prod/{NAME}")
            take(page, images, "console-release")
            words = ("--key", "../acme-keys/approver.pem", "--service-url", demo.url)
            demo.kneo("approve", f"prod/{NAME}@1.1.0", *words, who="ann", cwd="acme", quiet=True)
            demo.wait_for("1.1.0")
            demo.kneo("run", "--bundle", NAME, "--env", "prod", *_INPUT, "--service-url", demo.url, quiet=True)
            page.goto(f"{demo.url}/console/inbox")
            page.click("[data-task]")
            page.check("input[name=decision][value=approved]")
            take(page, images, "console-task")


_INPUT = ("--input", "The office is closed on Friday. The support line stays open until noon.")


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
