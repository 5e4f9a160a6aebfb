"""The panel's half in the kernel: a snapshot for whoever comes late, differences for the rest.

The front end listens in `initialize()`. A difference is numbered; one that does not follow the
last is a sign that something was missed, and the front end asks for the snapshot. The snapshot is
made when it is asked for (a page that is reloaded asks, too), never kept.

A snapshot says which difference was the last before it. So that this is true, whoever makes and
sends one holds the source's lock, and so does whoever sends a difference.
"""

from __future__ import annotations

import contextlib
import pathlib
import secrets
import threading
from collections.abc import Mapping
from typing import Any, Protocol

import anywidget
import traitlets

PAGE = pathlib.Path(__file__).parent / "page"
STYLE = PAGE / "panel.css"

#: The files of the page's half, which are one ES module when they are joined in this order.
FILES = ("feed", "view", "row", "words", "elements", "notebook")


def module() -> str:
    """Return the page's half."""
    return "\n".join((PAGE / f"{name}.js").read_text("utf-8") for name in FILES)


class Source(Protocol):
    """What a widget shows, and what is done about its clicks."""

    lock: threading.RLock

    def snapshot(self) -> dict[str, Any]: ...

    def picture(self) -> dict[str, str]: ...

    def hear(self, said: Mapping[str, Any], widget: PanelWidget) -> None: ...


def _snapshot(_: object, widget: PanelWidget) -> dict[str, Any]:
    return widget.current()


class PanelWidget(anywidget.AnyWidget):
    """Draws what its source says and hands clicks back; decides nothing."""

    _esm = module()
    _css = STYLE

    #: Filled whenever the state of this widget is sent.
    snapshot = traitlets.Dict().tag(sync=True, to_json=_snapshot)

    def __init__(self, source: Source) -> None:
        self._source = source
        self._sent = 0
        # Known before the first state is sent, which tells it to the page: there a widget is not
        # told its own id.
        self._id = secrets.token_hex(16)
        super().__init__(model_id=self._id)
        self.on_msg(self._heard)

    def __repr__(self) -> str:
        return self._source.picture()["text/plain"]

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the live view, with what is read where there is no kernel or no script."""
        view, metadata = super()._repr_mimebundle_(**kwargs) or ({}, {})
        return {**view, **self._source.picture()}, metadata

    def current(self) -> dict[str, Any]:
        with self._source.lock:
            return {**self._source.snapshot(), "seq": self._sent, "model": self._id}

    def tell(self, difference: Mapping[str, Any]) -> None:
        """Send rows that changed."""
        with self._source.lock:
            self._sent += 1
            self.send({**difference, "kind": "rows", "seq": self._sent})

    def tell_all(self) -> None:
        """Send the snapshot."""
        with self._source.lock:
            self.send({**self.current(), "kind": "snapshot"})

    def send_state(self, key: Any = None) -> None:
        """Send the state to a page that asks for it (it was reloaded)."""
        with self._source.lock:
            super().send_state(key)

    def close(self) -> None:
        """Close, with the layout that every widget opens for itself."""
        if self.comm is not None:
            self.layout.close()
        super().close()

    def _send(self, msg: Any, buffers: Any = None) -> None:
        """Send, and leave it to the page which shell hears the next click.

        ipykernel 7.4 has the shell that has last sent hear it, though that may be a subshell that
        is gone: after a page is reloaded, each click would be lost.
        """
        super()._send(msg, buffers)
        with contextlib.suppress(AttributeError):
            del self.comm._reply_subshell_id

    def _heard(self, widget: object, content: Any, buffers: object) -> None:
        if isinstance(content, dict):
            self._source.hear(content, self)
