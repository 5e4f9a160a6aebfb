"""Cells: which of them sent which tasks, and so where each panel stands.

    submit ──▶ client.submitted_hooks ──▶ Cells: the cell that runs in this context
                                            │ its first task: display, once
                                            ▼
                                          NotebookPanel (a kernel) or TextPanel (a terminal)

A cell is known at submission, by a context variable that is set when the cell begins, so a task
that an `async` function sends later still belongs to the cell that started it. Panels that are over
are kept for pages that come back, until there are too many or their cell runs again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from nbtasks.client import client
from nbtasks.exceptions import OperationalError, TimeoutError
from nbtasks.jupyter.panel import NotebookPanel, followed, load_widget
from nbtasks.jupyter.text import TextPanel

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult

log = logging.getLogger("nbtasks.jupyter")

#: Panels that are over, and rows of these, that are kept.
PANELS: Final = 200
ROWS: Final = 50_000

#: Seconds that the broker gets to tell of a task before its panel appears.
PATIENCE: Final = 0.3

#: What is shown as a panel when it is the value of a cell.
SHOWN: Final = ("nbtasks.client.result", "AsyncResult")


class Cell:
    """One run of a cell."""

    __slots__ = ("depth", "key", "panel", "request", "running", "shown")

    def __init__(self, request: str | None, key: str | None) -> None:
        #: The id of the front end's request to run it.
        self.request = request
        #: The cell's id in the notebook, where the front end tells it.
        self.key = key
        #: How many cells run inside it just now (`%run`, `get_ipython().run_cell`).
        self.depth = 0
        self.panel: NotebookPanel | TextPanel | None = None
        #: Panels of results that this cell has displayed.
        self.shown: list[NotebookPanel] = []
        self.running = True

    @property
    def panels(self) -> Iterator[NotebookPanel | TextPanel]:
        if self.panel is not None:
            yield self.panel
        yield from self.shown

    @property
    def size(self) -> int:
        """Number of rows."""
        return sum(panel.size for panel in self.panels if isinstance(panel, NotebookPanel))

    def close(self) -> None:
        for panel in self.panels:
            if isinstance(panel, NotebookPanel):
                panel.close()


class Cells:
    """Bind each submitted task to the cell that sent it."""

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._current: ContextVar[Cell | None] = ContextVar("nbtasks_cell", default=None)
        #: The cell that ran last, for threads: they do not inherit the context.
        self._latest: Cell | None = None
        #: Cells whose panels are not final yet, and those whose panels are, oldest first.
        self._open: dict[int, Cell] = {}
        self._kept: dict[int, Cell] = {}
        #: Held while a cell gets its panel: threads may send its first tasks at the same moment.
        self._lock = threading.Lock()

    @property
    def _in_kernel(self) -> bool:
        return getattr(self._shell, "kernel", None) is not None

    def install(self) -> None:
        if self._in_kernel:
            load_widget()  # now, not when the first task is sent
            self._formatter.for_type_by_name(*SHOWN, self.show)
        self._shell.events.register("pre_run_cell", self.begin)
        self._shell.events.register("post_run_cell", self.end)
        client.submitted_hooks.append(self.submitted)
        self.begin()  # the cell that loads the extension may send tasks, too
        if self._latest is not None:
            # A terminal does not say whether there is one: IPython may only be starting. Were it
            # taken for one, it would have no end, and all others would be inside it.
            self._latest.running = self._in_kernel

    def uninstall(self) -> None:
        client.submitted_hooks.remove(self.submitted)
        self._shell.events.unregister("pre_run_cell", self.begin)
        self._shell.events.unregister("post_run_cell", self.end)
        if self._in_kernel:
            self._formatter.pop(".".join(SHOWN), None)
        for cell in [*self._open.values(), *self._kept.values()]:
            cell.close()

    @property
    def _formatter(self) -> Any:
        return self._shell.display_formatter.ipython_display_formatter

    # IPython hands its ExecutionInfo and ExecutionResult over; nothing of them is needed.

    def begin(self, info: object = None) -> None:
        """Note that a cell begins (pre_run_cell)."""
        cell, outer = Cell(*self._request()), self._latest
        if outer is not None and outer.running and outer.request == cell.request:
            outer.depth += 1
            return
        self._current.set(cell)
        self._latest = cell
        self._close_older(cell)
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

    def submitted(self, record: client.Record, called: tuple[str, str] | None = None) -> None:
        """Take a task in (a hook of the client; called in the submitting thread).

        Parameters
        ----------
        record
            What the client knows of it.
        called
            Its name and its arguments as text, where another process has sent it.
        """
        cell = self._current.get() or self._latest
        if cell is None:
            return
        try:
            with self._lock:
                if cell.panel is None:
                    cell.panel = self._new_panel(cell)
            cell.panel.add(record, called)
        except Exception:  # the task was sent; that it cannot be drawn is no reason to fail
            log.exception("The panel of this cell cannot be shown.")
        self._hold(cell)

    def show(self, result: AsyncResult) -> None:
        """Display a result as a panel of its own.

        Raises
        ------
        NotImplementedError
            When its text says as much: its task is in the cell's panel, or there is no cluster.
            IPython takes that as the word to show the text.
        """
        cell, record = self._current.get() or self._latest, record_of(result)
        if cell is None or record is None:
            raise NotImplementedError
        if isinstance(cell.panel, NotebookPanel) and result.id in cell.panel:
            raise NotImplementedError
        panel = NotebookPanel(over=lambda: self.settle(cell))
        panel.add(record)
        cell.shown.append(panel)
        self._hold(cell)

    def settle(self, cell: Cell) -> None:
        """Make the panels of a cell that is over final, those whose tasks are over."""
        if cell.running:
            return
        finished = [panel.finish() for panel in cell.panels]
        if all(finished) and self._open.pop(id(cell), None) is not None:
            self._keep(cell)

    def _hold(self, cell: Cell) -> None:
        self._kept.pop(id(cell), None)
        self._open[id(cell)] = cell

    def _keep(self, cell: Cell) -> None:
        """Keep a cell whose panels are final, and let the oldest ones go."""
        if cell.size:
            self._kept[id(cell)] = cell
        cells = list(self._kept.values())
        number, rows = len(cells), sum(each.size for each in cells)
        for each in cells[:-1]:
            if number <= PANELS and rows <= ROWS:
                break
            number, rows = number - 1, rows - each.size
            self._kept.pop(id(each), None)
            each.close()

    def _texts(self) -> list[TextPanel]:
        panels = [cell.panel for cell in self._open.values()]
        return [panel for panel in panels if isinstance(panel, TextPanel)]

    def _new_panel(self, cell: Cell) -> NotebookPanel | TextPanel:
        return NotebookPanel(over=lambda: self.settle(cell)) if self._in_kernel else TextPanel()

    def _request(self) -> tuple[str | None, str | None]:
        """Return the ids of the request that runs now and of its cell, as far as they are told."""
        kernel: Any = getattr(self._shell, "kernel", None)
        try:
            parent = kernel.get_parent()
            return parent["header"]["msg_id"], parent["metadata"].get("cellId")
        except (AttributeError, KeyError, TypeError, LookupError):
            return None, None

    def _close_older(self, cell: Cell) -> None:
        """Let go of the panels of earlier runs of the same cell: the front end has cleared them."""
        for cells in (self._open, self._kept):
            for number, other in list(cells.items()):
                if cell.key is not None and other.key == cell.key:
                    del cells[number]
                    other.close()


def record_of(result: AsyncResult) -> client.Record | None:
    """Return what is known of a result's task, or None; no cluster is started for that."""
    from nbtasks.client.eager_result import EagerResult

    here = next(reversed(client.open_clients()), None)
    if here is None or isinstance(result, EagerResult):
        return None
    record = result._record
    try:
        record = followed(result, here)
        here.learn(record, PATIENCE)
    except TimeoutError:
        log.debug("The broker has not told of task %s yet.", result.id)
    except OperationalError:
        return None
    return record


_cells: Cells | None = None


def install(shell: Any) -> None:
    """Show panels for whatever cells of this IPython send from now on (once a shell)."""
    global _cells
    if _cells is None:
        _cells = Cells(shell)
        _cells.install()


def attach(record: client.Record, called: tuple[str, str]) -> None:
    """Show a task in the panel of the cell that runs, whoever has sent it."""
    if _cells is not None:
        _cells.submitted(record, called)


def uninstall() -> None:
    global _cells
    if _cells is not None:
        _cells.uninstall()
        _cells = None
