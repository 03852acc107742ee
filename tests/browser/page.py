"""A page in a headless Chromium, as somebody who uses it sees it."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select

from tests.browser.server import wait_until

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
UNREACHABLE = ("net::ERR_", "WebSocket connection to", "the server responded with a status of 503")
"""What the console says of a server that is away; a page can do nothing about it."""


@attrs.frozen
class Page:
    """One tab."""

    driver: Any

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        """What is in the element, whether it is in view or not."""
        return str(self.script("return document.querySelector(arguments[0]).textContent", css))

    def texts(self, css: str) -> list[str]:
        """The same of all elements, taken in one moment."""
        return list(
            self.script("return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", css)
        )

    def script(self, code: str, *arguments: Any) -> Any:
        return self.driver.execute_script(code, *arguments)

    def until(self, condition: Callable[[], Any], why: str = "", *, within_s: float = 20.0) -> Any:
        return wait_until(condition, within_s=within_s, why=why)

    def until_text(self, css: str, text: str, *, within_s: float = 20.0) -> None:
        self.until(lambda: text in self.text(css), f"{css} does not say {text!r}", within_s=within_s)

    def until_ready(self) -> None:
        """The chat page is connected and has a persona."""
        self.until(lambda: self.find("#send").is_enabled() or self.find("#stop").is_displayed(), "not ready")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key by its name in selenium's `Keys`, on whatever has the focus."""
        actions = webdriver.ActionChains(self.driver)
        code = getattr(Keys, key)
        if shift:
            actions.key_down(Keys.SHIFT).send_keys(code).key_up(Keys.SHIFT)
        else:
            actions.send_keys(code)
        actions.perform()

    def write(self, text: str) -> None:
        """Type `text` on whatever has the focus."""
        webdriver.ActionChains(self.driver).send_keys(text).perform()

    def choose(self, css: str, label: str) -> None:
        """The entry of a list that says so."""
        Select(self.find(css)).select_by_visible_text(label)

    def say(self, line: str) -> None:
        self.until_ready()
        self.find("#line").send_keys(line, Keys.ENTER)

    @property
    def answers(self) -> list[str]:
        """What the persona has said, as far as it is there."""
        return self.texts(".turn:not(.mine) .text")

    def until_answered(self, count: int = 1) -> None:
        """So many answers are there, and whole."""
        self.until(
            lambda: (
                len(self.texts(".turn:not(.mine):not(.running) .text")) == count
                and not self.find("#stop").is_displayed()
            ),
            f"there are not {count} answers but {self.answers}",
        )

    def resize(self, width: int, height: int) -> None:
        """Of what is seen. A window cannot be made as narrow as a phone."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )

    def prefer(self, scheme: str) -> None:
        """Dark or light."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def complaints(self) -> list[str]:
        """What the console has against the page itself, since it was last asked."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "WARNING")
            and not any(words in entry["message"] for words in UNREACHABLE)
        ]


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Page]:
    """A browser of its own, with a profile that is new."""
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_page_load_timeout(30)
        driver.set_script_timeout(30)
        yield Page(driver)
    finally:
        driver.quit()
