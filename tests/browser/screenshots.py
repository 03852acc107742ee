"""The pictures of both pages in docs/: `python -m tests.browser.screenshots docs`.

The chat is a real one with the scripted stand-in. The dashboard's figures are made up, and its clock is
fast, so that the charts have a past of some minutes within seconds.
"""

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.browser.figures import Feed, figures
from tests.browser.page import chromium
from tests.browser.server import page_server

if TYPE_CHECKING:
    from tests.browser.page import Page

FASTER = 20
HASTE = f"const now = performance.now.bind(performance); performance.now = () => now() * {FASTER};"
SECONDS = 16
FRAME_S = 0.05
LINES = ("Hello, Aria!", "Do you know a song about the sea?")


def chat(page: "Page", folder: Path, target: Path) -> None:
    fast = {"PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S": "0", "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "100"}
    with page_server(folder, **fast) as server:
        page.resize(900, 720)
        page.open(server.pages)
        for count, line in enumerate(LINES, start=1):
            page.say(line)
            page.until_answered(count)
        page.driver.save_screenshot(str(target / "chat.png"))


def dashboard(page: "Page", folder: Path, target: Path) -> None:
    feed = Feed(figures(), every_s=FRAME_S)
    with feed.running(), page_server(folder, PERSONA_SERVER_PUBLIC_URL=feed.url) as server:
        page.resize(1280, 1000)
        page.prefer("dark")
        page.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": HASTE})
        page.open(f"{server.pages}/dashboard")
        start = time.monotonic()
        while (passed := time.monotonic() - start) < SECONDS:
            wave = math.sin(passed) + math.sin(passed * 2.7) / 3 + math.sin(passed * 11) / 8
            now = figures()
            now["connections"]["open"] = round(212 + 60 * wave)
            now["requests"]["per_second"] = 83.4 + 30 * wave
            now["requests"]["latency_s"]["p95"] = 0.0474 * (1 + abs(wave) ** 3 / 2)
            now["memory"]["resident_bytes"] = 150_000_000 + 3e6 * passed
            now["model"]["queued"] = max(0, round(18 + 16 * wave))
            now["errors"] = {"rate_limited": 61, "overloaded": 33, "llm_unavailable": 4}
            feed.figures = now
            time.sleep(FRAME_S)
        page.driver.save_screenshot(str(target / "dashboard.png"))


def main() -> None:
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, chromium(Path(folder, "profile")) as page:
        page.prefer("light")
        chat(page, Path(folder, "chat"), target)
        dashboard(page, Path(folder, "dashboard"), target)


if __name__ == "__main__":
    main()
