"""The panel on an empty page, with a fake model in the kernel's place: no Jupyter, and fast."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from playwright.sync_api import Browser, Locator, Page, Route

from nbtasks.jupyter import widget
from nbtasks.jupyter.rows import FINAL, WORDS
from tests.browser import chromium

#: Never looked up: all of it is answered by `_answer`. Notifications and clipboard want https.
ORIGIN = "https://panel.test"

#: What time it is for the kernel, whatever the page's clock says.
NOW = 1_790_000_000.0

CLI = "nbtasks cancel --terminate --dir /home/me/project/.nbtasks {id}"

HTML = f"""<!doctype html>
<html lang="en">
<head>
<title>A notebook</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{ORIGIN}/panel.css">
<style>
  body {{ margin: 12px; background: #fff; color: #1f2328; font-family: sans-serif }}
  body[data-jp-theme-light=true] {{
    --jp-ui-font-color1: rgba(0, 0, 0, 0.87); --jp-layout-color0: #fff;
    --jp-ui-font-family: "Liberation Sans", sans-serif; --jp-code-font-family: monospace }}
  body[data-jp-theme-light=false] {{
    --jp-ui-font-color1: rgba(255, 255, 255, 1); --jp-layout-color0: #111;
    --jp-ui-font-family: "Liberation Sans", sans-serif; --jp-code-font-family: monospace;
    background: #111 }}
</style>
</head>
<body data-jp-theme-light="true"><main id="main"></main></body>
</html>"""

#: What a panel needs of a widget's model, and of the page around it.
HARNESS = f"""async () => {{
  window.model = {{
    sent: [], traits: {{ snapshot: {{}} }}, listeners: {{}},
    get(name) {{ return this.traits[name] }},
    on(name, call) {{ (this.listeners[name] ||= new Set()).add(call) }},
    off(name, call) {{ this.listeners[name]?.delete(call) }},
    send(message) {{ this.sent.push(message) }},
    fire(name, message) {{ for (const call of this.listeners[name] || []) call(message) }},
  }};
  window.say = (message) => window.model.fire("msg:custom", message);
  const {{ default: make }} = await import("{ORIGIN}/panel.js");
  window.open_panel = async (snapshot, manager) => {{
    window.model.traits.snapshot = snapshot;
    window.model.widget_manager = manager;
    window.widget = await make();
    window.widget.initialize({{ model: window.model }});
    window.views = [];
    window.add_view();
  }};
  window.add_view = () => {{
    const el = document.createElement("div");
    document.getElementById("main").append(el);
    window.views.push(window.widget.render({{ model: window.model, el }}));
    return el;
  }};
}}"""


def row(index: int, state: str = "waiting", **more: Any) -> dict[str, Any]:
    """Return a row as the kernel paints it."""
    return {
        "i": index,
        "id": f"{index:08x}-2f60-4c4f-9d8e-3f5b8a6c1d2e",
        "name": "work",
        "args": f"({index})",
        "state": state,
        "final": state in FINAL,
        **more,
    }


class Panel:
    """A panel in a page, and the kernel that feeds it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.rows: dict[int, dict[str, Any]] = {}
        self.more: dict[str, Any] = {}
        self.root = page.locator(".nbtasks-panel").first
        self._seq = itertools.count(1)
        self._paused = False
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on(
            "console",
            lambda line: self.errors.append(line.text) if line.type == "error" else None,
        )

    def open(
        self, rows: Iterable[dict[str, Any]] = (), *, manager: str = "undefined", **more: Any
    ) -> Panel:
        """Show a panel of these rows; `more` is what a total has besides the counts."""
        self.page.goto(f"{ORIGIN}/")
        self.page.evaluate(HARNESS)
        self.more = {"began": NOW - 31, "ended": None, **more}
        self._note(rows)
        snapshot = {"seq": 0, **self.frame(list(self.rows.values())), "words": WORDS, "cli": CLI}
        snapshot["model"] = "ours"
        self.page.evaluate(f"(snapshot) => open_panel(snapshot, {manager})", snapshot)
        return self

    def pause(self) -> None:
        """Let time pass only in `page.clock.run_for`; the clock must have been installed."""
        self.page.clock.pause_at(NOW + 60)
        self._paused = True

    def tell(self, *rows: dict[str, Any], **more: Any) -> None:
        """Have the kernel say that these rows have changed."""
        self._note(rows)
        queue = {"queue": more.pop("queue")} if "queue" in more else {}
        self.more.update(more)
        self.say({"kind": "rows", "seq": next(self._seq), **self.frame(rows), **queue})

    def lose(self, *rows: dict[str, Any]) -> None:
        """Have a message of the kernel not arrive."""
        self._note(rows)
        next(self._seq)

    def answer(self, index: int, **detail: Any) -> None:
        """Have the kernel say what is below a row."""
        empty = {"call": "", "facts": [], "attempts": [], "output": [], "traceback": ""}
        self.say({"kind": "detail", "i": index, "detail": {**empty, "result": "", **detail}})

    def tell_all(self) -> None:
        """Have the kernel answer with the snapshot."""
        frame = self.frame(list(self.rows.values()))
        self.say({"kind": "snapshot", "seq": next(self._seq) - 1, **frame})

    def say(self, message: dict[str, Any]) -> None:
        self.page.evaluate("(message) => say(message)", message)
        if self._paused:
            self.page.clock.run_for(20)

    def hear(self, click: dict[str, Any]) -> None:
        """Have the kernel say that it has taken a click."""
        self.say({"kind": "heard", "ask": click["ask"]})

    def sent(self, kind: str) -> list[dict[str, Any]]:
        """Return what the page has sent of this kind."""
        sent: list[dict[str, Any]] = self.page.evaluate("() => model.sent")
        return [message for message in sent if message["kind"] == kind]

    def wait_for_sent(self, kind: str, count: int = 1) -> dict[str, Any]:
        """Wait until the page has sent so many of this kind; return the last."""
        count_sent = f"model.sent.filter((each) => each.kind === {json.dumps(kind)}).length"
        self.page.wait_for_function(f"() => {count_sent} >= {count}")
        return self.sent(kind)[-1]

    def row(self, position: int) -> Locator:
        """Return the row at this position among those that are shown."""
        return self.root.locator(f".nbtasks-row[aria-posinset='{position + 1}']")

    def button(self, name: str) -> Locator:
        return self.root.get_by_role("button", name=name, exact=True)

    def unfold(self, position: int) -> Locator:
        """Open a row, and return what is below it."""
        self.row(position).locator(".nbtasks-toggle").click()
        return self.row(position).locator(".nbtasks-fold")

    def _note(self, rows: Iterable[dict[str, Any]]) -> None:
        self.rows.update({each["i"]: each for each in rows})

    def frame(self, rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
        counts = Counter(each["state"] for each in self.rows.values())
        total = {
            "n": len(self.rows),
            "open": sum(number for state, number in counts.items() if state not in FINAL),
            "counts": {state: counts[state] for state in WORDS if counts[state]},
            **self.more,
        }
        return {"now": NOW, "rows": list(rows), "total": total}


@contextlib.contextmanager
def panel_page(browser: Browser, **options: Any) -> Iterator[Page]:
    """Open an empty page that can load the panel, and nothing else."""
    looks = {"viewport": {"width": 1000, "height": 700}, "device_scale_factor": 1, **options}
    with chromium.page(browser, **looks) as page:
        page.route("**/*", _answer)
        yield page


def _answer(route: Route) -> None:
    name = route.request.url.removeprefix(f"{ORIGIN}/")
    if name == "":
        route.fulfill(body=HTML, content_type="text/html; charset=utf-8")
    elif name in {"panel.js", "panel.css"}:
        kind = "text/javascript" if name.endswith("js") else "text/css"
        body = widget.module() if kind == "text/javascript" else widget.STYLE.read_text("utf-8")
        route.fulfill(body=body, content_type=f"{kind}; charset=utf-8")
    else:
        route.abort()
