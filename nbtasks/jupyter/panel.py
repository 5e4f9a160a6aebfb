"""Panels: which cell sent which tasks, and what stands under that cell.

    submit ──▶ client.submitted_hooks ──▶ Cells: the cell that runs in this context
                                            │ its first task: display, once
                                            ▼
                                          NotebookPanel (a kernel) or TextPanel (a terminal)
                                            │ flusher thread: rows that changed
                                            ▼
                                          widget ──▶ panel.js

A cell is known at submission, by a context variable that is set when the cell begins, so a task
that an `async` function sends later still belongs to the cell that started it. When a cell has
run and all its tasks are over, the widget is replaced by the picture of `nbtasks.jupyter.static`,
which stays in the saved notebook. From another thread than the cell's we write to our own widget
and display only: a `print` there would land under whichever cell runs by then.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from nbtasks.client import client
from nbtasks.jupyter import static, watch
from nbtasks.jupyter.rows import WORDS, Row
from nbtasks.jupyter.text import TextPanel

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult
    from nbtasks.jupyter.widget import PanelWidget

__all__ = ["NotebookPanel", "TextPanel", "install", "uninstall", "widget"]

log = logging.getLogger("nbtasks.jupyter")

#: Rows that a live panel draws; the rest is counted.
LIMIT = 200

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"


class NotebookPanel:
    """One panel under one cell of a notebook.

    Parameters
    ----------
    over
        Called, by whichever thread draws, when all tasks are over and the panel is not final.
    """

    def __init__(self, over: Callable[[], None] = lambda: None) -> None:
        self._over = over
        self._watch = watch.Watch(self)
        self._display = f"nbtasks-{secrets.token_hex(8)}"
        self._widget: PanelWidget | None = None
        #: Whether something of ours stands under the cell already.
        self._shown = False
        #: Whether what stands there is the final picture.
        self._still = False
        self._lock = threading.RLock()

    def add(self, record: Any) -> None:
        """Show this task; the first one makes the panel appear."""
        self._watch.add(record)
        if not self._shown or self._still:
            with self._lock:
                self._open()

    # ------------------------------------------------------------------------ what is drawn

    def snapshot(self) -> dict[str, Any]:
        """Return all that is drawn, for a view that knows nothing yet."""
        return {**self._frame(self._watch.rows), "words": WORDS}

    def _frame(self, rows: Iterable[Row], limit: int | None = None) -> dict[str, Any]:
        now = watch.now()
        last = LIMIT if limit is None else limit
        drawn = self._watch.paint([row for row in rows if row.index < last], now)
        return {"now": now.wall, "rows": drawn, "total": self._watch.total()}

    def flush(self) -> None:
        """Send the rows that changed."""
        self._send()
        if self._watch.over and not self._still:
            self._over()

    def _send(self) -> None:
        with self._lock:
            changed = self._watch.look(watch.now())
            if not changed or self._still:
                return
            if self._widget is not None:
                self._widget.tell(self._frame(changed))
            elif self._shown:
                self._publish(self._picture())

    def finish(self) -> bool:
        """Leave the final picture when all tasks are over; return whether they are."""
        with self._lock:
            if not self._watch.settle():
                return False
            self._send()
            if not self._still:
                self._still = True
                self._publish(self._picture())
                self._close()
            return True

    def drop(self) -> None:
        """Stop drawing: the cell was run again, and its output is gone."""
        with self._lock:
            self._still = True
            self._close()

    # ------------------------------------------------------------------------ what is displayed

    def _open(self) -> None:
        if self._shown and not self._still:
            return
        self._still = False
        self._widget = new_widget(self)
        self._watch.settle()
        bundle = self._picture()
        if self._widget is not None:
            view = {"model_id": self._widget.model_id, "version_major": 2, "version_minor": 0}
            bundle[WIDGET_MIME] = view
        self._publish(bundle)

    def _close(self) -> None:
        if self._widget is not None:
            self._widget.close()
            self._widget = None

    def _picture(self) -> dict[str, Any]:
        frame = self._frame(static.choose(self._watch.rows), len(self._watch.rows))
        told = (frame["rows"], frame["total"], frame["now"])
        return {"text/plain": static.text(*told), "text/html": static.html(*told)}

    def _publish(self, bundle: dict[str, Any]) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": self._display}
        publish: Any = publish_display_data
        publish(bundle, transient=transient, update=self._shown)
        self._shown = True

    # ------------------------------------------------------------------------ buttons

    def cancel(self, indices: list[int] | None) -> None:
        """Revoke these tasks, or all that are open. The rows change when the events arrive."""
        from nbtasks.client.result import AsyncResult

        for task_id in self._watch.open_ids(indices):
            AsyncResult(task_id).revoke(terminate=True)


class SinglePanel(NotebookPanel):
    """A panel that is nobody's but the user's, who puts it where he likes."""

    def put(self, result: AsyncResult) -> PanelWidget:
        """Follow the task and return the widget that shows it."""
        self._widget = new_widget(self)
        if self._widget is None:
            raise ImportError(
                "A widget needs the packages anywidget and ipywidgets, and they cannot be imported "
                "here. Install them with: pip install anywidget"
            )
        record = client.current().record(result.id)
        if record.call is None:
            args = ", ".join(map(repr, result.args or ()))
            self._watch.add(record, (result.name or "task", f"({args})"))
        else:
            self._watch.add(record)
        self._shown = True
        return self._widget


def widget(result: AsyncResult) -> PanelWidget:
    """Return a widget that shows one task, live, wherever it is put."""
    return SinglePanel().put(result)


def load_widget() -> type[PanelWidget] | None:
    """Return the widget's class, or None where the packages for it are missing."""
    try:
        from nbtasks.jupyter.widget import PanelWidget
    except ImportError:
        log.info("anywidget cannot be imported: panels are shown without buttons.")
        return None
    return PanelWidget


def new_widget(panel: NotebookPanel) -> PanelWidget | None:
    """Return a widget, or None where there can be none: then HTML must do."""
    kind = load_widget()
    return None if kind is None else kind(panel)


# ----------------------------------------------------------------------------------------- cells


class Cell:
    """One run of a cell."""

    __slots__ = ("depth", "key", "panel", "request", "running")

    def __init__(self, request: str | None, key: str | None) -> None:
        #: The id of the front end's request to run it.
        self.request = request
        #: The cell's id in the notebook, where the front end tells it.
        self.key = key
        #: How many cells run inside it just now (`%run`, `get_ipython().run_cell`).
        self.depth = 0
        self.panel: NotebookPanel | TextPanel | None = None
        self.running = True


class Cells:
    """Bind each submitted task to the cell that sent it."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._current: ContextVar[Cell | None] = ContextVar("nbtasks_cell", default=None)
        #: The cell that ran last, for threads: they do not inherit the context.
        self._latest: Cell | None = None
        #: Cells whose panels are not final yet.
        self._open: dict[int, Cell] = {}

    def install(self) -> None:
        if getattr(self._shell, "kernel", None) is not None:
            load_widget()  # now, not when the first task is sent
        self._shell.events.register("pre_run_cell", self.begin)
        self._shell.events.register("post_run_cell", self.end)
        client.submitted_hooks.append(self.submitted)
        self.begin()  # the cell that loads the extension may send tasks, too

    def uninstall(self) -> None:
        client.submitted_hooks.remove(self.submitted)
        self._shell.events.unregister("pre_run_cell", self.begin)
        self._shell.events.unregister("post_run_cell", self.end)

    # IPython hands its ExecutionInfo and ExecutionResult over; nothing of them is needed.

    def begin(self, info: object = None) -> None:
        """Note that a cell begins (pre_run_cell)."""
        cell, outer = Cell(*self._request()), self._latest
        if outer is not None and outer.running and outer.request == cell.request:
            outer.depth += 1
            return
        self._current.set(cell)
        self._latest = cell
        self._drop_older(cell)
        for text in self._texts():
            text.resume()

    def end(self, result: object = None) -> None:
        """Note that a cell is over, and leave the final pictures that are due (post_run_cell)."""
        cell = self._latest
        if cell is not None and cell.depth:
            cell.depth -= 1
            return
        if cell is not None:
            cell.running = False
        for text in self._texts():
            text.pause()
        for each in list(self._open.values()):
            self.settle(each)

    def submitted(self, record: Any) -> None:
        """Take a task in (a hook of the client; called in the submitting thread)."""
        cell = self._current.get() or self._latest
        if cell is None:
            return
        try:
            if cell.panel is None:
                cell.panel = self._new_panel(cell)
            cell.panel.add(record)
        except Exception:  # the task was sent; that it cannot be drawn is no reason to fail
            log.exception("The panel of this cell cannot be shown.")
        self._open[id(cell)] = cell

    def settle(self, cell: Cell) -> None:
        """Make the panel of a cell that is over final, if its tasks are."""
        if cell.running or cell.panel is None:
            return
        if cell.panel.finish():
            self._open.pop(id(cell), None)

    def _texts(self) -> list[TextPanel]:
        panels = [cell.panel for cell in self._open.values()]
        return [panel for panel in panels if isinstance(panel, TextPanel)]

    def _new_panel(self, cell: Cell) -> NotebookPanel | TextPanel:
        if getattr(self._shell, "kernel", None) is not None:
            return NotebookPanel(over=lambda: self.settle(cell))
        return TextPanel()

    def _request(self) -> tuple[str | None, str | None]:
        """Return the ids of the request that runs now and of its cell, as far as they are told."""
        kernel: Any = getattr(self._shell, "kernel", None)
        try:
            parent = kernel.get_parent()
            return parent["header"]["msg_id"], parent["metadata"].get("cellId")
        except (AttributeError, KeyError, TypeError, LookupError):
            return None, None

    def _drop_older(self, cell: Cell) -> None:
        """Let go of the panels of earlier runs of the same cell: the front end has cleared them."""
        for number, other in list(self._open.items()):
            if cell.key is not None and other.key == cell.key:
                del self._open[number]
                if isinstance(other.panel, NotebookPanel):
                    other.panel.drop()


_cells: Cells | None = None


def install(shell: Any) -> None:
    """Show panels for whatever cells of this IPython send from now on (once a shell)."""
    global _cells
    if _cells is None:
        _cells = Cells(shell)
        _cells.install()


def uninstall() -> None:
    global _cells
    if _cells is not None:
        _cells.uninstall()
        _cells = None
