"""The page: whole by itself, and true to the document."""

import re
from html.parser import HTMLParser

from loadgen.page import page
from loadgen.recorder import Recorder
from tests.loadgen.test_results import complete, seen, some


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, and keeps what is asked of elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None: ...

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return parser


def test_it_stands_alone_and_says_what_was_run() -> None:
    read = parsed(page(complete(seen(some))))
    assert read.links == []
    for part in (
        "loadgen run test",
        "test against sansio",
        "a warm-up and left out",
        "Failed: errors is 1",
        "first",
    ):
        assert part in read.text
    assert read.text.count("timeout") == 1


def test_its_charts_have_lines_of_what_was_seen() -> None:
    text = page(complete(seen(some)))
    titles = re.findall(r'aria-label="([^"]+)"', text)
    assert "Latency by percentile" in titles
    assert "Server: memory" in titles
    # Nobody measured it, so nothing is drawn.
    assert "Server: processor" not in titles
    assert all(len(path) > 8 for path in re.findall(r'<path d="([^"]*)"', text) if path)


def test_what_a_server_says_is_text_and_nothing_else() -> None:
    def malicious(recorder: Recorder) -> None:
        some(recorder)
        recorder.wrong("<script>alert(1)</script>", "<img src=x>", 3.0)
        recorder.failed("<b>reason</b>", 3.0)

    text = page(complete(seen(malicious), server="<i>server</i>"))
    parsed(text)
    for tag in ("<script", "<img", "<b>reason", "<i>server"):
        assert tag not in text
