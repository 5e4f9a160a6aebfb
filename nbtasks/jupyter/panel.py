"""Panels: what is shown of some tasks, live, and what is left of them in the end.

    client's I/O thread ─▶ Watch: rows that changed ─▶ flusher thread ─▶ widget ─▶ page/
    main or subshell thread ◀──────────── clicks: cancel, run now, retry, details ◀────┘

A panel under a cell ends as the picture of `nbtasks.jupyter.static`, which stays in the saved
notebook. Its widget lives on: a page that was closed meanwhile finds there how all ended, and asks
for the picture. When a task is told to run again, the panel is live again.

From another thread than the cell's we write to our own widget and display only: a `print` there
would land under whichever cell runs by then. Nothing here waits for the broker but the thread that
gathers a detail.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import shlex
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from nbtasks.client import client, waiting
from nbtasks.client.eager_result import EagerResult
from nbtasks.core.messages import Event, Hasten, Redo, Revoke
from nbtasks.exceptions import BrokerUnavailable, OperationalError, TimeoutError
from nbtasks.jupyter import static, watch
from nbtasks.jupyter.outlook import client_at, client_of
from nbtasks.jupyter.rows import WORDS, Row, first_line, spell_out

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult
    from nbtasks.jupyter.detail import Detail
    from nbtasks.jupyter.widget import PanelWidget

log = logging.getLogger("nbtasks.jupyter")

WIDGET_MIME: Final = "application/vnd.jupyter.widget-view+json"

#: Rows in one message: the page draws in between, and so does the kernel's user.
PART: Final = 1_000

#: Seconds that the results of a panel that is over may take to say what they are.
PATIENCE: Final = 2.0

#: Seconds that the broker gets to tell of tasks before they are shown.
TOLD_WITHIN: Final = 0.3

#: Why a task waits that nothing is known of.
NO_CLUSTER: Final = "no cluster runs here: start one, then call widget() again"

#: What a button says → the rows that it is for, and what the broker is told of them.
ACTS: Final[dict[str, tuple[Callable[[Row], bool], Callable[[tuple[str, ...]], Any]]]] = {
    "cancel": (lambda row: not row.final, lambda ids: Revoke(ids, terminate=True)),
    "hasten": (lambda row: row.state in ("scheduled", "retrying"), Hasten),
    "retry": (lambda row: row.redo, Redo),
}


class Panel:
    """Some tasks and the widget that shows them."""

    def __init__(self) -> None:
        #: Held while rows are painted and sent, so that a snapshot and the differences fit.
        self.lock = threading.RLock()
        self._watch = watch.Watch(self)
        self._widget: PanelWidget | None = None
        self._closed = False
        #: Indices of rows that changed and were not sent yet, in the order in which they did.
        self._backlog: dict[int, None] = {}
        #: Index of a row whose detail is being gathered → whether it was asked for once more.
        self._gathered: dict[int, bool] = {}

    def __contains__(self, task_id: object) -> bool:
        return task_id in self._watch

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self._watch.rows)

    def close(self) -> None:
        """Draw nothing more."""
        with self.lock:
            self._closed = True
            self._watch.close()
            if self._widget is not None:
                self._widget.close()
                self._widget = None

    # ------------------------------------------------------------------------ what is drawn

    def snapshot(self) -> dict[str, Any]:
        """Return all that is drawn, for a view that knows nothing yet."""
        with self.lock:
            return {**self._frame(self._watch.rows), "words": WORDS, "cli": self._cli()}

    def picture(self) -> dict[str, str]:
        """Return how the tasks stand now, as text and as HTML that need no kernel."""
        with self.lock:
            self._watch.settle()
            return self._picture(static.choose(self._watch.rows))

    def _picture(
        self,
        chosen: Sequence[Row],
        details: Mapping[int, Detail] = MappingProxyType({}),
        others: Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, str]:
        frame = self._frame(chosen)
        rows, total, now, queue = (frame[key] for key in ("rows", "total", "now", "queue"))
        return {
            "text/plain": static.text(rows, total, now, queue),
            "text/html": static.html(rows, total, now, details, others, queue),
        }

    def _frame(self, rows: Iterable[Row]) -> dict[str, Any]:
        instant = watch.now()
        drawn = self._watch.paint([row for row in rows if row.index < watch.LIMIT], instant)
        return {
            "now": instant.wall,
            "rows": drawn,
            "total": self._watch.total(),
            "queue": self._watch.queue,
        }

    def _cli(self) -> str:
        """Return what to type in a shell to cancel a task, its id left open."""
        home = self._watch.home
        place = "" if home is None else f"--dir {shlex.quote(str(home))} "
        return f"nbtasks cancel --terminate {place}{{id}}"

    def flush(self) -> None:
        """Send the rows that changed."""
        with self.lock:
            if not self._closed:
                self._send()
                if self._watch.over:
                    self._watch.let_go()

    def _send(self) -> None:
        changed = self._watch.look(watch.now())
        self._backlog |= dict.fromkeys(row.index for row in changed if row.index < watch.LIMIT)
        if not (changed or self._backlog or self._watch.news):
            return
        self._watch.news = False
        part = list(itertools.islice(self._backlog, PART))
        for index in part:
            del self._backlog[index]
        self._show([self._watch.rows[index] for index in part], bool(changed))
        if self._backlog:
            watch.flusher.wake(self)

    def _show(self, part: Sequence[Row], changed: bool) -> None:
        """Send these rows; `changed`: something happened, they are not only left from before."""
        if self._widget is not None:
            self._widget.tell(self._frame(part))

    # ------------------------------------------------------------------------ what is asked

    def hear(self, said: Mapping[str, Any], widget: PanelWidget) -> None:
        """Do what the page asks for: on the main thread or a subshell's, and never waiting."""
        kind = said.get("kind")
        if kind in ACTS:
            widget.send({"kind": "heard", "ask": said.get("ask")})
            self._act(kind, said.get("rows"))
        elif kind == "snapshot":
            widget.tell_all()
        elif kind == "detail":
            self._gather(said.get("i"), widget)

    def _act(self, kind: str, indices: Any) -> None:
        """Have the broker do something; the rows change when the events arrive."""
        applies, message = ACTS[kind]
        rows = self._watch.rows
        chosen = list(rows) if indices is None else [row for row in rows if row.index in indices]
        orders: dict[client.Client, list[Row]] = defaultdict(list)
        for row in chosen:
            here = client_of(row.record, self._watch.home) if applies(row) else None
            if here is not None:
                orders[here].append(row)
        for here, several in orders.items():
            for row in several:
                if kind == "retry":
                    self._watch.attend(row, here)
                row.hastened = row.hastened or kind == "hasten"
            here.tell(message(tuple(row.id for row in several)))

    def _gather(self, index: Any, widget: PanelWidget) -> None:
        if not isinstance(index, int) or not 0 <= index < self.size:
            return
        with self.lock:
            busy = index in self._gathered
            self._gathered[index] = True
        if not busy:
            threading.Thread(
                target=self._tell_detail, args=(index, widget), name="nbtasks-detail", daemon=True
            ).start()

    def _tell_detail(self, index: int, widget: PanelWidget) -> None:
        while True:
            with self.lock:
                if not self._gathered[index]:
                    del self._gathered[index]
                    return
                self._gathered[index] = False
            told = self._detail(self._watch.rows[index])
            widget.send({"kind": "detail", "i": index, "detail": told})

    def _detail(self, row: Row) -> Detail:
        from nbtasks.jupyter import detail  # late: most panels are never asked

        record = self._watch.held(row)
        here = client_at(self._watch.home) if record is None or row.call is None else None
        shown: Mapping[str, Any] = {}
        try:
            if here is not None:
                record, shown = detail.fetch(here, row.id)
            asked = detail.Asked(record or client.Record(row.id), row.call, row.called)
            return detail.tell(asked, shown)
        except Exception as error:  # the broker is away, or the user's classes raise
            log.debug("The detail of task %s cannot be told: %s", row.id, error)
            told = detail.tell(detail.Asked(client.Record(row.id), None, row.called))
            told["facts"].append(["not told", first_line(str(error))])
            return told


class NotebookPanel(Panel):
    """One panel under one cell of a notebook.

    Parameters
    ----------
    over
        Called, by whichever thread draws, when all tasks are over and the panel is not final.
    """

    def __init__(self, over: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._over = over
        self._display = f"nbtasks-{secrets.token_hex(8)}"
        #: Whether something of ours stands under the cell already.
        self._shown = False
        #: Whether what stands there is the final picture, and that.
        self._still = False
        self._final: dict[str, str] = {}
        self._details: dict[int, Detail] = {}
        #: Whether a page asked for the picture before there was one.
        self._awaited = False

    def add(self, record: client.Record, called: tuple[str, str] | None = None) -> None:
        """Show this task; the first one makes the panel appear."""
        self._watch.add(record, called)
        if not self._shown or self._still:
            with self.lock:
                self._open()

    def flush(self) -> None:
        """Send the rows that changed; leave the final picture when all tasks are over."""
        with self.lock:
            if self._closed:
                return
            self._send()
            due = self._watch.over and not self._still
        if due:
            self._over()

    def _show(self, part: Sequence[Row], changed: bool) -> None:
        if changed:
            self._open()
        super()._show(part, changed)
        if self._widget is None and changed:
            self._publish(self.picture())

    def finish(self) -> bool:
        """Leave the final picture when all tasks are over; return whether they are."""
        with self.lock:
            if self._closed:
                return True
            if not self._watch.settle():
                return False
            self._send()
            if not self._still:
                self._final = self._final_picture()
                self._publish(self._final)
                self._still = True
                self._watch.let_go()
                if self._awaited and self._widget is not None:
                    self._tell_picture(self._widget)
            return True

    # ------------------------------------------------------------------------ what is displayed

    def _open(self) -> None:
        if self._shown and not self._still:
            return
        self._still = False
        if self._widget is None:
            self._widget = new_widget(self)
        bundle: dict[str, Any] = {**self.picture()}
        if self._widget is not None:
            view = {"model_id": self._widget.model_id, "version_major": 2, "version_minor": 0}
            bundle[WIDGET_MIME] = view
        self._publish(bundle)

    def _final_picture(self) -> dict[str, str]:
        chosen = static.choose(self._watch.rows)
        self._details.update(self._told(chosen))
        others = self._frame(static.rest(self._watch.rows))["rows"]
        return self._picture(chosen, self._details, others)

    def _told(self, rows: Iterable[Row]) -> dict[int, Detail]:
        from nbtasks.jupyter import detail

        return detail.several(detail.asked_of(row for row in rows if row.frozen is None), PATIENCE)

    def _publish(self, bundle: Mapping[str, Any]) -> None:
        from IPython.display import publish_display_data

        transient = {"display_id": self._display}
        publish: Any = publish_display_data
        publish(bundle, transient=transient, update=self._shown)
        self._shown = True

    def hear(self, said: Mapping[str, Any], widget: PanelWidget) -> None:
        if said.get("kind") != "picture":
            super().hear(said, widget)
        elif self._still:
            self._tell_picture(widget)
        else:
            self._awaited = True

    def _tell_picture(self, widget: PanelWidget) -> None:
        told = {"html": self._final["text/html"], "text": self._final["text/plain"]}
        widget.send({"kind": "picture", **told})


class LoosePanel(Panel):
    """A panel that is nobody's but the user's, who puts its widget where he likes."""

    def __init__(self) -> None:
        super().__init__()
        #: Of tasks that ran here: no broker could tell of them once more.
        self._eager: list[client.Record] = []

    def put(self, results: Iterable[AsyncResult]) -> PanelWidget | Picture:
        """Follow these tasks and return what shows them."""
        here = find_client()
        with self.lock:
            for result in results:
                self._add(result, here)
            self._learn(here)
            self._watch.settle()
        self._widget = new_widget(self)
        return Picture(self) if self._widget is None else self._widget

    def _add(self, result: AsyncResult, here: client.Client | None) -> None:
        if isinstance(result, EagerResult):
            self._eager.append(eager_record(result))
            self._watch.add(self._eager[-1], result._ran.called or (result.name or "task", ""))
            return
        known = result._record or client.Record(result.id)
        self._watch.add(known if here is None else followed(result, here))

    def _learn(self, here: client.Client | None) -> None:
        """Have the first picture say what the broker knows of what another process has sent."""
        foreign = [row for row in self._watch.rows if row.call is None and not row.final]
        if here is None:
            for row in self._watch.rows:
                row.why = NO_CLUSTER
        elif foreign:
            with suppress(TimeoutError, OperationalError):  # then it is told when it is known
                here.learn(foreign[-1].record, TOLD_WITHIN)  # it answers in order
                self._watch.ask()


class Picture:
    """What stands for a widget where there can be none: how its tasks stand when it is shown."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel

    def __repr__(self) -> str:
        return self._panel.picture()["text/plain"]

    def _repr_html_(self) -> str:
        return self._panel.picture()["text/html"]

    def _repr_mimebundle_(self, **kwargs: object) -> dict[str, str]:
        return self._panel.picture()


def widget(*results: AsyncResult) -> PanelWidget | Picture:
    """Return what shows tasks wherever it is put: live, where the packages for that are."""
    return LoosePanel().put(results)


def find_client() -> client.Client | None:
    """Return the connection to the cluster that runs; never start one."""
    if not client.open_clients():
        from nbtasks import cluster  # late: what only draws panels does not need it

        with suppress(BrokerUnavailable):
            return cluster.connect().client
    return next(reversed(client.open_clients()), None)


def followed(result: AsyncResult, here: client.Client) -> client.Record:
    """Return what is known of a result's task; from now on somebody hears of it."""
    record = result._record
    return here.record(result.id) if record is None or waiting.is_orphan(record) else record


def eager_record(result: EagerResult) -> client.Record:
    """Return a record of a task that ran here and now, without its value, which the user has."""
    at = result.date_done.timestamp() if result.date_done is not None else 0.0
    traceback = spell_out(result.traceback or "")
    end = Event(result.id, 1, at, "state", result.state, traceback=traceback, final=True)
    record = client.Record(result.id, known=False)
    record.note(end)
    return record


def load_widget() -> type[PanelWidget] | None:
    """Return the widget's class, or None where the packages for it are missing."""
    try:
        from nbtasks.jupyter.widget import PanelWidget
    except ImportError:
        log.info("anywidget cannot be imported: panels are shown without buttons.")
        return None
    return PanelWidget


def new_widget(panel: Panel) -> PanelWidget | None:
    """Return a widget, or None where there can be none: then HTML must do."""
    kind = load_widget()
    return None if kind is None else kind(panel)
