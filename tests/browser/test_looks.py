"""What both pages look like on small and large screens, in dark and light, and what keeps them safe."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser.figures import Feed, figures
from tests.browser.server import PageServer, page_server

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.slow

PHONE = (320, 640)
LEAST_CONTRAST = 4.5
"""WCAG 2.2, 1.4.3, for text of common size."""
TEXTS = {
    "/": ("#about", "#link", ".turn.mine .text", ".turn.mine h2", ".turn:not(.mine) .text", "#send", "#keys"),
    "/dashboard": (".card h2", ".big", "dt", "dd", "#alert-list li", ".chart p", ".foot", "td", "#link"),
}
COLORS = """
const shown = document.querySelector(arguments[0]);
const isClear = (element) => getComputedStyle(element).backgroundColor === "rgba(0, 0, 0, 0)";
let behind = shown;
while (behind && isClear(behind)) behind = behind.parentElement;
return [getComputedStyle(shown).color, getComputedStyle(behind ?? document.body).backgroundColor];
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    with page_server(tmp_path) as running:
        yield running


def luminance(color: str) -> float:
    """Relative luminance of `rgb(...)`, as WCAG 2.2 defines it."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(page: "Page", css: str) -> float:
    lights = sorted(luminance(color) for color in page.script(COLORS, css))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


@contextlib.contextmanager
def show(page: "Page", tmp_path: Path, path: str) -> Iterator[None]:
    """The page at `path` with all that may be on it."""
    with Feed(figures()).running() as feed:
        settings = {"PERSONA_SERVER_PUBLIC_URL": feed.url} if path == "/dashboard" else {}
        with page_server(tmp_path, **settings) as server:
            page.open(server.pages + path)
            if path == "/":
                page.say("A" * 300)
                page.until_answered()
            else:
                page.until_text("#connections-open", "212")
            yield


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_a_phone_shows_it_without_scrolling_sideways(path: str, tmp_path: Path, page: "Page") -> None:
    page.resize(*PHONE)
    with show(page, tmp_path, path):
        assert page.script("return innerWidth") == PHONE[0]
        assert page.script("return document.documentElement.scrollWidth") <= PHONE[0]
        # Nor is anything cut off that cannot be scrolled to.
        for shown in page.all("body button, body select, body textarea, body h2, body dd"):
            if shown.is_displayed():
                assert shown.rect["x"] >= 0
                assert shown.rect["x"] + shown.rect["width"] <= PHONE[0] + 1, shown.text
        for button in page.all("button"):
            if button.is_displayed():
                # Large enough for a thumb.
                assert button.rect["height"] >= 44, button.text


@pytest.mark.parametrize("path", ["/", "/dashboard"])
def test_it_can_be_read_in_dark_and_light(path: str, tmp_path: Path, page: "Page") -> None:
    with show(page, tmp_path, path):
        backgrounds = []
        for scheme in ("light", "dark"):
            page.prefer(scheme)
            backgrounds.append(luminance(page.script(COLORS, "body")[1]))
            for css in TEXTS[path]:
                assert contrast(page, css) >= LEAST_CONTRAST, (scheme, css)
        assert backgrounds[0] > 0.8
        assert backgrounds[1] < 0.05


def test_the_browser_runs_nothing_that_is_no_file_of_ours(server: PageServer, page: "Page") -> None:
    """The policy is in force, and what it forbids would be seen by every other test here."""
    page.open(server.pages)
    page.until_ready()
    assert page.complaints() == []
    page.script(
        "const made = document.createElement('p'); made.setAttribute('style', 'color: red');"
        "document.body.append(made)"
    )
    page.until(lambda: any("Content Security Policy" in line for line in page.complaints()))
    refused = page.script(
        "try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name }; return ''"
    )
    assert refused == "TypeError"
    page.complaints()


def test_nothing_is_loaded_from_elsewhere(server: PageServer, page: "Page") -> None:
    for path in ("/", "/dashboard"):
        page.open(server.pages + path)
        page.until_text("#link", "Connected")
        loaded = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
        assert loaded
        assert {name for name in loaded if not name.startswith(server.pages)} == set()
