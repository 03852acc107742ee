"""One browser for all tests of a file; each test begins on an empty page without any memory of others."""

from collections.abc import Iterator
from importlib.util import find_spec
from shutil import which
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.browser.page import Page

MISSING = [
    *([] if which("chromium") else ["chromium"]),
    *([] if which("chromedriver") else ["chromedriver (Debian's chromium-driver)"]),
    *([] if find_spec("selenium") else ["selenium (the extra `browser`)"]),
]


@pytest.fixture(scope="module")
def chromium_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Page"]:
    if MISSING:
        pytest.skip(f"no browser to look at the pages with: there is no {' and no '.join(MISSING)}")
    from tests.browser.page import chromium

    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(chromium_page: "Page") -> Iterator["Page"]:
    """A page that must not have complained in the end, of the security policy or anything else."""
    chromium_page.prefer("light")
    chromium_page.resize(1280, 800)
    chromium_page.complaints()
    yield chromium_page
    complaints = chromium_page.complaints()
    # Storage belongs to an origin, and every server has a port of its own, so none is left over.
    chromium_page.open("about:blank")
    assert complaints == []
