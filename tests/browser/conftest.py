"""A browser, where this machine has one; each test that needs it states otherwise why it is skipped, and the command that helps."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from console_pages import Browser as PlainBrowser
from console_pages import signed_in
from service_bench import Bench, serving

from kneo.settings import Limits, process_environment

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

VARIABLE = "KNEO_TEST_BROWSER"

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
MACOS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)

INSTALL_BROWSER = "Install Chromium or Chrome (apt-get install -y chromium), or set KNEO_TEST_BROWSER to its path."
INSTALL_DRIVER = "Run .venv/bin/pip install -e '.[browser]'."

# A browser on a test machine asks nobody but the service under test.
ARGUMENTS = ("--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-sync")


def find_browser() -> Path | None:
    """Return the browser that the environment names, or the first one that is found."""
    named = process_environment(VARIABLE).get(VARIABLE)
    if named:
        assert Path(named).is_file(), f"{VARIABLE} names {named}, which does not exist."
        return Path(named)
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    return Path(found) if found else next((Path(path) for path in MACOS if Path(path).is_file()), None)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser process for the tests of a module; its driver has an event loop, which later modules must not meet."""
    path = find_browser()
    if path is None:
        pytest.skip(f"no browser was found. {INSTALL_BROWSER}")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        assert VARIABLE not in process_environment(VARIABLE), INSTALL_DRIVER
        pytest.skip(f"playwright is not installed. {INSTALL_DRIVER}")
    expect.set_options(timeout=120_000)
    # Chromium starts without its sandbox only: a container's root has none.
    root = ("--no-sandbox",) if os.geteuid() == 0 else ()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGUMENTS, *root])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def bench(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """One service for all tests of a module, on SQLite, with the usual limits."""
    folder = tmp_path_factory.mktemp("service")
    paths = [*sys.path]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "LIMITS", Limits())
        with serving(folder, f"sqlite:///{folder / 'kneo.sqlite'}") as made:
            yield made
    sys.path[:] = paths
    sys.modules.pop("lab_functions", None)


@pytest.fixture(scope="module")
def address(bench: Bench) -> str:
    """The address of the service; a module with a service of its own has its own."""
    return bench.url


@pytest.fixture
def visit(chromium: Browser, address: str) -> Iterator[Callable[..., Page]]:
    """Opens a page as a role, under the content security policy; fails when a page wrote into the browser's console.

    With ``refused`` the browser may note that the service refused a form of the page.
    """
    contexts: list[BrowserContext] = []
    messages: list[str] = []

    def open_page(role: str | None, path: str, *, refused: bool = False, **options: object) -> Page:
        context = chromium.new_context(base_url=address, **options)
        contexts.append(context)
        context.set_default_timeout(120_000)

        def note(message: ConsoleMessage) -> None:
            text = f"{message.type}: {message.text} {message.location['url']}"
            noted = REFUSED.fullmatch(text)
            if not (refused and noted and noted[2] == f"{address}{path}"):
                messages.append(text)

        context.on("console", note)
        context.on("weberror", lambda error: messages.append(str(error.error)))
        if role is not None:
            cookies = signed_in(address, role).client.cookies
            context.add_cookies([{"name": name, "value": value, "url": address} for name, value in cookies.items()])
        page = context.new_page()
        page.goto(path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    PlainBrowser.close_all()
    # The browser skips or aborts the animation between two pages where the next one is opened before it ends.
    assert [each for each in messages if not ANIMATION.search(each)] == []


ANIMATION = re.compile("Transition was (skipped|aborted)")
REFUSED = re.compile(
    r"error: Failed to load resource: the server responded with a status of (409|422) \([A-Za-z ]*\) (\S+)"
)

MODES = {
    "light": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
    "small phone": {"viewport": {"width": 320, "height": 740}, "is_mobile": True, "has_touch": True},
}

ON_A_PHONE = """() => {
    const name = each => `${each.tagName.toLowerCase()}.${each.className} ${each.textContent.trim().slice(0, 40)}`
    const shown = [...document.querySelectorAll("main *")].filter(each => each.checkVisibility())
    const box = each => (each.closest("label.choice, label.opt") || each).getBoundingClientRect()
    const inText = each => each.matches("a") && getComputedStyle(each).display === "inline"
    return [
        ...shown.filter(each => each.scrollWidth > each.clientWidth + 1 && getComputedStyle(each).overflowX === "auto")
            .map(each => `scrolls sideways: ${name(each)}`),
        ...shown.filter(each => each.matches("a, button, input, select, summary, textarea") && !inText(each))
            .filter(each => box(each).height < 24 || box(each).width < 24).map(each => `too small to touch: ${name(each)}`),
        ...shown.filter(each => each.matches("td.num") && !each.dataset.label).map(each => `number without label: ${name(each)}`),
    ]
}"""
"""Finds what a finger or an eye on a narrow screen stumbles over."""

AXE = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(params=MODES)
def problems_of(request: pytest.FixtureRequest, visit: Callable[..., Page]) -> Callable[..., list[object]]:
    """Returns what axe finds on pages, and which of them are wider than the screen: in light, in dark and on phones.

    With ``visible`` the pages are checked once an element is shown, where a script shows it.
    """

    def find(paths: list[str], visible: str = "") -> list[object]:
        from axe_playwright_python.sync_playwright import Axe

        # axe is evaluated in the page, which the policy forbids; the other tests keep the policy.
        page = visit("admin", paths[0], bypass_csp=True, **MODES[request.param])
        problems: list[object] = []
        for path in paths:
            shown = page.goto(path)
            assert shown is not None
            problems += [(path, shown.status)] if shown.status != 200 else []
            if visible:
                page.wait_for_selector(visible)
            found = Axe().run(page, options=AXE).response["violations"]
            problems += [(path, each["id"], [node["html"][:200] for node in each["nodes"]]) for each in found]
            wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            problems += [(path, f"{wide} px too wide")] if wide > 0 else []
            problems += [(path, each) for each in page.evaluate(ON_A_PHONE)] if "phone" in request.param else []
        return problems

    return find
