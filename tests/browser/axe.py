"""axe-core: what of a page cannot be used by everybody, as far as a program can tell."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from playwright.sync_api import Page

#: The script alone is taken from the package; there is nothing else that we need of it.
SCRIPT = files("axe_playwright_python") / "axe.min.js"


def violations(page: Page, selector: str) -> list[str]:
    """Return what axe-core finds wrong in this part of the page, a line for each element."""
    if not page.evaluate("() => 'axe' in window"):
        page.evaluate(SCRIPT.read_text(encoding="utf-8"))
    found: dict[str, Any] = page.evaluate("(selector) => axe.run(selector)", selector)
    assert found["passes"], f"axe-core has looked at nothing: is there no {selector}?"
    return [
        f"{rule['id']}: {node['html']}: {node['failureSummary']}"
        for rule in found["violations"]
        for node in rule["nodes"]
    ]
