"""The system's Chromium: one for all tests of this folder, an untouched page for each."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tests.conftest import MARK

#: Seconds that anything in a page may take; the machine may be slow and busy.
PATIENCE = 60.0

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: No sandbox: it refuses to work for root. Nothing but this machine is ever looked up.
FLAGS = [
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--disable-gpu", "--disable-quic", "--disable-sync", "--hide-scrollbars", "--no-first-run"),
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
]


def chromium() -> str | None:
    """Return the path of the system's Chromium, or None."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def running() -> Iterator[Browser]:
    """Yield a Chromium that has never seen anything."""
    # Without the tests' mark: its processes come and go as it likes, and end when it is closed.
    unmarked = {name: value for name, value in os.environ.items() if name != MARK}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=FLAGS, env=unmarked)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def page(browser: Browser, **options: Any) -> Iterator[Page]:
    """Yield an empty page with a profile of its own; `options` are those of `new_context`."""
    looks = {"viewport": {"width": 1100, "height": 800}, "device_scale_factor": 2, **options}
    with browser.new_context(**looks) as context:
        context.set_default_timeout(PATIENCE * 1000)
        yield context.new_page()
