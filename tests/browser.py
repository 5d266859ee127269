# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium for tests, driven by Playwright.

Screenshots are kept in the folder that SVIT_TEST_SCREENSHOTS names, or in the test's own.
"""

import os
import shutil
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_CHROMIUM = [
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium (Debian: apt-get install chromium)"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
]


@contextmanager
def open_page():
    """Give a page, which notes in `foreign` what it asks of others than this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        page.foreign = []
        page.on("request", lambda request: is_own(request.url) or page.foreign.append(request.url))
        try:
            yield page
        finally:
            browser.close()


def is_own(url):
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def keep_screenshot(page, tmp_path, name):
    folder = Path(os.environ.get("SVIT_TEST_SCREENSHOTS", tmp_path / "screenshots"))
    page.screenshot(path=folder / f"{name}.png", full_page=True)
