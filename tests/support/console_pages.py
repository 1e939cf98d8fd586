"""Pages of the console as a browser without script reads them: forms, labels, links."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import ClassVar

import httpx

VOID = frozenset({"input", "meta", "link", "br", "img", "hr", "path", "rect", "line", "circle", "wbr"})


@dataclass
class HtmlForm:
    """A form with the values that it holds."""

    action: str
    method: str
    fields: list[tuple[str, str]] = field(default_factory=list)

    def values(self, **changes: str) -> dict[str, str]:
        return {**dict(self.fields), **changes}


class HtmlPage(HTMLParser):
    """A parsed page, and what is wrong with its markup."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.forms: list[HtmlForm] = []
        self.links: list[str] = []
        self.ids: Counter[str] = Counter()
        self.headings: Counter[str] = Counter()
        self.problems: list[str] = []
        self.attributes: list[dict[str, str]] = []
        self._labels: set[str] = set()
        self._controls: list[tuple[str, str, bool]] = []
        self._open: list[str] = []
        self._area: tuple[str, list[str]] | None = None
        self._select: str | None = None
        self.feed(html)
        self.close()
        for name, identity, is_labelled in self._controls:
            if not is_labelled and identity not in self._labels:
                self.problems.append(f"{name} has no label")
        self.problems += [f"the id {name} is used {number} times" for name, number in self.ids.items() if number > 1]
        if self._open:
            self.problems.append(f"not closed: {self._open}")
        if self.headings["h1"] != 1:
            self.problems.append(f"{self.headings['h1']} h1")

    def handle_starttag(self, tag: str, pairs: list[tuple[str, str | None]]) -> None:
        attrs = {name: value or "" for name, value in pairs}
        self.attributes.append({"": tag, **attrs})
        self.headings[tag] += tag.startswith("h")
        if tag not in VOID:
            self._open.append(tag)
        if "id" in attrs:
            self.ids[attrs["id"]] += 1
        self.problems += [f"{tag} has {name}" for name in attrs if name == "style" or name.startswith("on")]
        if tag == "style" or (tag == "script" and "src" not in attrs):
            self.problems.append(f"an inline {tag}")
        if tag == "form":
            self.forms.append(HtmlForm(attrs.get("action", ""), attrs.get("method", "get")))
        if tag == "a" and "href" in attrs:
            self.links.append(attrs["href"])
        if tag == "label" and "for" in attrs:
            self._labels.add(attrs["for"])
        self._control(tag, attrs)

    def _control(self, tag: str, attrs: dict[str, str]) -> None:
        kind = attrs.get("type", "text")
        if tag == "option" and self._select and ("selected" in attrs or self._select not in dict(self._fields())):
            self._fields().append((self._select, attrs.get("value", "")))
        if tag not in {"input", "select", "textarea"}:
            return
        name = attrs.get("name", "")
        if kind != "hidden":
            labelled = "label" in self._open or "aria-label" in attrs or "aria-labelledby" in attrs
            self._controls.append((name, attrs.get("id", ""), labelled))
        if tag == "textarea":
            self._area = (name, [])
        elif tag == "select":
            self._select = name
        elif self.forms and (kind not in {"radio", "checkbox"} or "checked" in attrs):
            self._fields().append((name, attrs.get("value", "on" if kind == "checkbox" else "")))

    def _fields(self) -> list[tuple[str, str]]:
        return self.forms[-1].fields if self.forms else []

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            self._area[1].append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._area is not None:
            name, parts = self._area
            # A browser drops the first line break of a textarea.
            self._fields().append((name, "".join(parts).removeprefix("\n")))
            self._area = None
        if tag == "select":
            self._select = None
        if tag in VOID:
            return
        if self._open and self._open[-1] == tag:
            self._open.pop()
        else:
            self.problems.append(f"</{tag}> closes {self._open[-1:]}")

    def form(self, ending: str) -> HtmlForm:
        """Return the form whose action ends like this."""
        found = [form for form in self.forms if form.action.partition("?")[0].endswith(ending)]
        assert len(found) == 1, [form.action for form in self.forms]
        return found[0]

    def having(self, attribute: str) -> list[dict[str, str]]:
        """Return the attributes of the elements that have this one."""
        return [attrs for attrs in self.attributes if attribute in attrs]

    @property
    def text(self) -> str:
        """The text, without tags."""
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", self.html))


class Browser:
    """A browser without script: cookies, links and forms."""

    opened: ClassVar[list[Browser]] = []

    def __init__(self, url: str) -> None:
        self.client = httpx.Client(base_url=url, timeout=240)
        self.opened.append(self)

    @classmethod
    def close_all(cls) -> None:
        while cls.opened:
            cls.opened.pop().client.close()

    def get(self, path: str, *, expect: int = 200, **headers: str) -> HtmlPage:
        response = self.client.get(path, headers=headers)
        assert response.status_code == expect, response.text[:2000]
        return checked(response)

    def post(self, path: str, values: dict[str, object], *, expect: int = 303, **headers: str) -> httpx.Response:
        response = self.client.post(path, data=values, headers={"sec-fetch-site": "same-origin", **headers})
        assert response.status_code == expect, response.text[:2000]
        if expect != 303:
            checked(response)
        return response

    def sign_in(self, key: str) -> Browser:
        self.post("/console/login", {"key": key})
        return self


_cookies: dict[tuple[str, str], httpx.Cookies] = {}


def signed_in(url: str, role: str) -> Browser:
    """Open a browser that is signed in with the key of a role; each signs in once, because sign-ins are limited."""
    browser = Browser(url)
    if (url, role) not in _cookies:
        browser.sign_in(f"{role}-key")
        _cookies[url, role] = browser.client.cookies
    browser.client.cookies = httpx.Cookies(_cookies[url, role])
    return browser


def checked(response: httpx.Response) -> HtmlPage:
    """Return a page after the checks that every page passes."""
    page = HtmlPage(response.text)
    assert page.problems == [], (page.problems, response.text[:3000])
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert response.headers["referrer-policy"] == "same-origin"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    return page
