"""What goes between a page and its kernels, and how long the page could not answer.

Noted in the page itself, so that the times are those of the messages and not of the test.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from playwright.sync_api import Page

#: Runs before any other script of a page. Frames are those of v1.kernel.websocket.jupyter.org: a
#: count, so many places (all 64 bits, little-endian), then channel, header, parent, ... at these.
SCRIPT = """
(() => {
  const seen = { frames: [], long: [], painted: null };
  window.nbtasksTraffic = seen;
  const text = (view, from, to) => new TextDecoder().decode(view.buffer.slice(from, to));
  const read = (data) => {
    if (typeof data === "string") return JSON.parse(data).header;
    const view = new DataView(data.buffer || data);
    const at = (n) => Number(view.getBigUint64(8 * n + 8, true));
    return JSON.parse(text(view, at(1), at(2)));
  };
  const note = (way, data) => {
    const size = data.length || data.byteLength;
    seen.frames.push([Date.now() / 1000, way, read(data).msg_type, size]);
  };
  window.WebSocket = class extends WebSocket {
    constructor(...args) {
      super(...args);
      this.ours = String(args[0]).includes("/api/kernels/");
      if (this.ours) this.addEventListener("message", (event) => note("in", event.data));
    }
    send(data) {
      if (this.ours) note("out", data);
      super.send(data);
    }
  };
  const observer = new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) seen.long.push(entry.duration);
  });
  observer.observe({ type: "longtask", buffered: true });
  const look = () => {
    if (document.querySelector(".nbtasks-row")) seen.painted = Date.now() / 1000;
    else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})();
"""


@dataclass(frozen=True)
class Frame:
    """One message."""

    #: Seconds since the epoch.
    at: float
    #: `in` or `out`, as the page sees it.
    way: str
    #: Jupyter's `msg_type`.
    kind: str
    #: Bytes.
    size: int


@dataclass(frozen=True)
class Traffic:
    frames: list[Frame]
    #: Milliseconds of each task that kept the page from answering for more than 50.
    long: list[float]
    #: When the first row of a panel was in the page, or None.
    painted: float | None

    def since(self, at: float) -> Traffic:
        return replace(self, frames=[frame for frame in self.frames if frame.at >= at])

    def comms(self, way: str) -> list[Frame]:
        """Return the messages of widgets."""
        return [each for each in self.frames if each.way == way and each.kind == "comm_msg"]

    def busiest_second(self) -> int:
        """Return how many messages of widgets came in within the fullest second."""
        return max(Counter(int(each.at) for each in self.comms("in")).values(), default=0)


def of(page: Page) -> Traffic:
    seen = page.evaluate("() => window.nbtasksTraffic")
    return Traffic([Frame(*each) for each in seen["frames"]], seen["long"], seen["painted"])
