"""Cells that more than one test runs, and where on the page to look."""

from __future__ import annotations

from playwright.sync_api import Locator

SET_UP = """\
%load_ext nbtasks
import time
import nbtasks
from nbtasks import task

cluster = nbtasks.start(workers=2)

@task
def steps(number, seconds=0.2):
    for _ in nbtasks.track(range(number)):
        time.sleep(seconds)
    return number
"""

PANEL = ".nbtasks-panel"
STATIC = ".nbtasks-static"


def row(cell: Locator, state: str, text: str = "") -> Locator:
    """Return the rows of a live panel that are in this state and say this."""
    return cell.locator(f"{PANEL} .nbtasks-row[data-state={state}]").filter(has_text=text)


def press(place: Locator, name: str) -> None:
    """Click a button (`Cancel`, `Run now`, ...) of a row or of a panel."""
    place.get_by_role("button", name=name).first.click()
