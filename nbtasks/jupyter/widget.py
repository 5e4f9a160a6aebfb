"""The panel's half in the kernel: a snapshot for whoever comes late, differences for the rest.

The front end listens in `initialize()`. A difference is numbered; one that does not follow the
last is a sign that something was missed, and the front end asks for the snapshot. The snapshot is
made when it is asked for (a page that is reloaded asks, too), never kept.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any, Protocol

import anywidget
import traitlets

HERE = pathlib.Path(__file__).parent


class Source(Protocol):
    """What a widget shows, and what its buttons do."""

    def snapshot(self) -> dict[str, Any]: ...

    def cancel(self, indices: list[int] | None) -> None: ...


def _snapshot(_: object, widget: PanelWidget) -> dict[str, Any]:
    return widget.current()


class PanelWidget(anywidget.AnyWidget):
    """Draws what its source says and hands clicks back; decides nothing."""

    _esm = HERE / "panel.js"
    _css = HERE / "panel.css"

    #: Filled whenever the state of this widget is sent.
    snapshot = traitlets.Dict().tag(sync=True, to_json=_snapshot)

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sent = 0
        super().__init__()
        self.on_msg(self._heard)

    def current(self) -> dict[str, Any]:
        return {**self._source.snapshot(), "seq": self._sent}

    def tell(self, difference: Mapping[str, Any]) -> None:
        """Send rows that changed."""
        self._sent += 1
        self.send({**difference, "kind": "rows", "seq": self._sent})

    def _heard(self, widget: object, content: Any, buffers: object) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "snapshot":
            self.send({**self.current(), "kind": "snapshot"})
        elif kind == "cancel":
            rows = content.get("rows")
            self._source.cancel([int(i) for i in rows] if isinstance(rows, list) else None)
            self.send({"kind": "heard", "rows": rows})
