"""kneo-dash 0.8.0 in a headless browser: every page, and everything that its buttons do to runs and tasks.

The dashboard's own server is started here, in its own environment, as its documentation says; it asks our service with
kneo-client 1.2.0. A page counts as rendered when no request behind it failed and nothing on it says that something did.
"""

from __future__ import annotations

import atexit
import json
import sys
import tempfile
import time
from pathlib import Path

from kneo_client.core import Profile, SyncTransport
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parent))
from checks import run_checks
from served import free_port, serve, until

PATIENCE = 240
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)

OPEN: dict[str, object] = {}
"""The dashboard and the browser: started by the first check, used by all."""


def house(scene):
    """Start the dashboard and the browser once."""
    if not OPEN:
        folder = Path(tempfile.mkdtemp(prefix="kneo-dash-"))
        port = free_port()
        variables = {
            "KNEO_URL": scene.url,
            "KNEO_API_KEY": scene.keys["admin"],
            "KNEO_DASH_DEV_MODE": "true",
            "KNEO_DASH_DB_URL": f"sqlite:///{folder / 'dash.db'}",
        }
        command = [sys.executable, "-m", "uvicorn", "kneo_dash.app:app", "--port", str(port), "--log-level", "warning"]
        OPEN["url"] = serve(command, variables, folder, port)
        OPEN["browser"] = _browser(scene, folder)
        atexit.register(OPEN["browser"].quit)
    return OPEN["browser"]


def _browser(scene, folder):
    options = ChromeOptions()
    options.binary_location = scene.browser
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return Chrome(options=options, service=ChromeService(scene.chromedriver))


def platform(scene, method, path, body=None):
    """Ask our service past the dashboard."""
    with SyncTransport(Profile(name="s", url=scene.url, api_key=scene.keys["admin"])) as transport:
        return transport.request(method, path, json=body).json()


def start(scene, name, text="hello"):
    return platform(scene, "POST", "/v1/runs", {"input": text, "spec": scene.specs[name]})


def visit(scene, path, *, responds):
    """Open a page, wait for a text, and fail if anything behind or on it went wrong."""
    browser = house(scene)
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(f"{OPEN['url']}{path}")
    see(browser, responds)
    settle(browser)
    return browser


def see(browser, text):
    WebDriverWait(browser, PATIENCE).until(
        lambda it: text.lower() in it.find_element(By.TAG_NAME, "body").text.lower(), f"{text!r} does not appear"
    )


def settle(browser):
    """Wait until nothing is loading, then look for whatever failed."""
    WebDriverWait(browser, PATIENCE).until(
        lambda it: not it.find_elements(By.CSS_SELECTOR, "[aria-busy=true]"), "the page keeps loading"
    )
    nothing_failed(browser)
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe, severe
    alerts = browser.find_elements(By.CSS_SELECTOR, "[role=alert], .banner.warn, .banner.err")
    said = [found.text for found in alerts if found.text]
    assert not said, said


def failed_requests(browser):
    """Every answer of the dashboard's server since the last look that was an error."""
    found = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.responseReceived":
            answer = message["params"]["response"]
            if answer["status"] >= 400:
                found.append((answer["status"], answer["url"]))
    return found


def nothing_failed(browser):
    failed = failed_requests(browser)
    assert not failed, failed


def press(browser, text, *, within=None):
    """Press the button with this label."""

    def find(_):
        place = within() if within is not None else browser
        buttons = place.find_elements(By.TAG_NAME, "button")
        return next((each for each in buttons if text.lower() in each.text.lower() and each.is_enabled()), None)

    button = WebDriverWait(browser, PATIENCE).until(find, f"no button {text!r}")
    browser.execute_script("arguments[0].click()", button)


def status(scene, run_id, expected):
    until(lambda: platform(scene, "GET", f"/v1/runs/{run_id}")["status"] == expected, f"{run_id} is not {expected}")


# ---- pages ----------------------------------------------------------------------------------------------------------


def check_overview(scene):
    start(scene, "reviewed")
    visit(scene, "/overview", responds="overview")


def check_runs(scene):
    run = start(scene, "plain")
    visit(scene, "/runs", responds=run["run_id"][:12])


def check_runs_by_status_and_error(scene):
    run = start(scene, "broken")
    visit(scene, "/runs?status=failed", responds=run["run_id"][:12])
    visit(scene, "/errors", responds="broken")


def check_every_tab_of_a_run(scene):
    run = start(scene, "reviewed", "tabs")
    browser = visit(scene, f"/runs/{run['run_id']}", responds=run["run_id"][:12])
    tabs = [tab.text for tab in browser.find_elements(By.CSS_SELECTOR, "[role=tab], .tabs button, .tabs a") if tab.text]
    assert len(tabs) >= 5, tabs
    for name in tabs:
        for tab in browser.find_elements(By.CSS_SELECTOR, "[role=tab], .tabs button, .tabs a"):
            if tab.text == name:
                browser.execute_script("arguments[0].click()", tab)
                break
        settle(browser)


def check_two_runs_are_compared(scene):
    first, second = start(scene, "plain"), start(scene, "broken")
    visit(scene, f"/compare?a={first['run_id']}&b={second['run_id']}", responds="compare")


def check_human_tasks(scene):
    run = start(scene, "reviewed", "queue")
    visit(scene, "/human-tasks", responds="approve the draft?")
    visit(scene, f"/human-tasks/{run['continuation_id']}", responds="DRAFT<queue>")


def check_health(scene):
    visit(scene, "/health", responds="run_state_store")


def check_audit(scene):
    start(scene, "plain")
    visit(scene, "/audit", responds="run.created")


def check_credentials(scene):
    visit(scene, "/credentials", responds="KNEO_SERV_API_KEYS")


def check_policies(scene):
    platform(scene, "PUT", "/v1/policies/environment/dashboard", {"require_guardrails": False})
    browser = visit(scene, "/policies", responds="dashboard")
    press(browser, "dashboard")
    press(browser, "Preview")
    settle(browser)
    press(browser, "Apply")
    settle(browser)


def check_a_session(scene):
    body = {"input": "x", "spec": scene.specs["plain"], "session_id": "dash-session"}
    run = platform(scene, "POST", "/v1/runs", body)
    visit(scene, "/sessions/dash-session", responds=run["run_id"][:12])


def check_settings(scene):
    visit(scene, "/settings", responds="settings")


# ---- what buttons do ------------------------------------------------------------------------------------------------


def row_of(browser, run_id):
    """The row of the queue that shows this run."""

    def look():
        rows = browser.find_elements(By.TAG_NAME, "tr")
        return next(
            (row for row in rows if run_id in row.get_attribute("innerHTML")), browser.find_element(By.TAG_NAME, "nav")
        )

    return look


def check_a_task_is_approved_in_the_queue(scene):
    run = start(scene, "reviewed", "approve me")
    browser = visit(scene, "/human-tasks", responds=run["run_id"][:12])
    press(browser, "Approve", within=row_of(browser, run["run_id"]))
    status(scene, run["run_id"], "completed")
    nothing_failed(browser)


def check_a_task_is_rejected_in_the_queue_and_nothing_is_published(scene):
    run = start(scene, "reviewed", "reject me")
    browser = visit(scene, "/human-tasks", responds=run["run_id"][:12])
    press(browser, "Reject", within=row_of(browser, run["run_id"]))
    status(scene, run["run_id"], "cancelled")
    assert "reject me" not in Path(scene.folder, "published.txt").read_text()
    nothing_failed(browser)


def check_a_task_is_approved_on_its_page(scene):
    run = start(scene, "reviewed", "details")
    browser = visit(scene, f"/human-tasks/{run['continuation_id']}", responds="resume run")
    press(browser, "Resume run")
    status(scene, run["run_id"], "completed")


def check_a_run_is_stopped(scene):
    run = start(scene, "reviewed", "stop me")
    browser = visit(scene, f"/runs/{run['run_id']}", responds="stop")
    press(browser, "Stop")
    status(scene, run["run_id"], "cancelled")
    nothing_failed(browser)


def check_a_failed_run_is_continued(scene):
    run = start(scene, "fails_once", f"dash {time.monotonic()}")
    assert run["status"] == "failed"
    browser = visit(scene, f"/runs/{run['run_id']}", responds="recover")
    press(browser, "Recover")
    button = WebDriverWait(browser, PATIENCE).until(
        lambda it: it.find_elements(By.CSS_SELECTOR, "button[title^='Continue this run']"), "no button to continue"
    )
    browser.execute_script("arguments[0].click()", button[0])
    status(scene, run["run_id"], "completed")
    nothing_failed(browser)


def check_a_spec_is_launched(scene):
    browser = visit(scene, "/launch", responds="launch")
    first = browser.find_element(By.CSS_SELECTOR, "textarea[placeholder*='workflow']")
    _fill(browser, first, json.dumps(scene.specs["reviewed"]))
    press(browser, "Load")
    see(browser, "what this agent is")
    press(browser, "Deploy")
    see(browser, "ready to run")
    _fill(browser, browser.find_element(By.CSS_SELECTOR, "textarea[placeholder^='input text']"), "launched here")
    _fill(browser, browser.find_element(By.CSS_SELECTOR, "[aria-label^='Type the environment']"), "RUN")
    press(browser, "Run in")
    WebDriverWait(browser, PATIENCE).until(lambda it: "/runs/" in it.current_url, "it did not go to the run")
    nothing_failed(browser)
    status(scene, browser.current_url.rsplit("/", 1)[1], "blocked")


def _fill(browser, element, text):
    """Type into a field that the page's framework watches."""
    kind = "HTMLTextAreaElement" if element.tag_name == "textarea" else "HTMLInputElement"
    browser.execute_script(
        f"Object.getOwnPropertyDescriptor({kind}.prototype, 'value').set.call(arguments[0], arguments[1]);"
        "arguments[0].dispatchEvent(new Event('input', {bubbles: true}));",
        element,
        text,
    )


if __name__ == "__main__":
    run_checks(globals())
