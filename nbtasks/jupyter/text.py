"""The panel where there is only text: a line when a task's state changes, and what moves below.

    ✓ load('a.csv')  done  1.5 s                               lines that stay, as in a log
    ✕ load('b.csv')  failed  ValueError: bad header  (cell [3], line 12)  0.2 s
    ● train(lr=0.1)  ━━━━━━━━╸━━━━  63 %  epoch 12/20  3.2/s   drawn over, while the cell runs
    ↻ fetch('c')     attempt 2 of 6 in 0:07  ConnectionError

Where rich is installed it draws the part that moves, and what the cell prints stands above it.
Elsewhere, also in a file or a pipe, nothing moves, and progress is told in quarters: what the cell
prints would be written over a line that moves. In a script nobody asked for a panel, so nothing is
written: `%load_ext nbtasks` is what brings it, in IPython.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, TextIO

from nbtasks.jupyter import watch
from nbtasks.jupyter.rows import (
    WORDS,
    clock,
    duration,
    ended,
    explain,
    plural,
    printable,
    title,
    total_line,
)

if TYPE_CHECKING:
    from rich.console import Group

#: With more tasks than this, only what went wrong gets a line of its own.
FEW = 8

#: Open tasks that are drawn at once.
MOVING = 10

#: States that are worth a line even among many.
_NEWS = frozenset({"retrying", "failed", "expired", "cancelled"})

_COLOURS = {"done": 32, "failed": 31, "retrying": 33, "running": 36}
_STYLES = {"running": "cyan", "retrying": "yellow"}


class TextPanel:
    """Tell what becomes of tasks, on a terminal or in a file.

    Parameters
    ----------
    stream
        Where to write; by default whatever `sys.stdout` is at that moment.

    Notes
    -----
    Nothing is written between `pause()` and `resume()`: at a prompt, the terminal is the user's.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._watch = watch.Watch(self)
        self._told: dict[int, tuple[str, int]] = {}
        self._quarter = 0
        #: Index → row of those that are not over.
        self._open: dict[int, dict[str, Any]] = {}
        self._moving: RichLines | None = None
        self._paused = False
        #: Ids of tasks that another process has sent, of which nothing was told yet.
        self._attached: set[str] = set()
        self._lock = threading.RLock()

    def add(self, record: Any, called: tuple[str, str] | None = None) -> None:
        """Tell of this task from now on."""
        self._watch.add(record, called)
        if called is not None:
            self._attached.add(record.id)

    def pause(self) -> None:
        """Say what there is to say and be silent until `resume()`."""
        with self._lock:
            if self._attached:
                self._watch.ask()  # the cell that shows them ends at once
            over = self._watch.settle()
            self.flush()
            if self._moving is not None:
                self._moving.stop()
                self._moving = None
            self._tell_open()
            if over and len(self._watch.rows) > 1 and not self._paused:
                self._tell_total(self._watch.total())
            self._paused = True

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self.flush()

    def finish(self) -> bool:
        """Return whether all has been told that there is to tell."""
        with self._lock:
            return self._watch.settle()

    def flush(self) -> None:
        """Write what has changed."""
        with self._lock:
            if self._paused:
                return
            now = watch.now()
            rows = self._watch.paint(self._watch.look(now), now)
            self._open |= {row["i"]: row for row in rows}
            for row in rows:
                if row["final"]:
                    del self._open[row["i"]]
            counts = self._watch.total()
            self._move(counts)
            for row in rows:
                self._tell(row)
            self._tell_part(counts)

    # ------------------------------------------------------------------------ lines that stay

    def _tell_open(self) -> None:
        """Tell how those stand that go on; of what only waits, if somebody has asked for it."""
        for row in self._open.values():
            if row["id"] in self._attached:
                self._told.setdefault(row["i"], ("", 0))
            self._tell(row)
        if self._attached and len(self._watch.rows) > FEW:
            self._tell_total(self._watch.total())
        self._attached.clear()

    def _tell(self, row: Mapping[str, Any]) -> None:
        state, quarter = row["state"], int((row.get("fraction") or 0) * 4)
        before = self._told.get(row["i"], ("waiting", 0))
        step = (state, 0 if state != "running" or self._can_move() else quarter)
        drawn = self._moving is not None and not row["final"] and state not in _NEWS
        if step == before or drawn:
            return
        self._told[row["i"]] = step
        if len(self._watch.rows) <= FEW or state in _NEWS:
            self._line(state, row)

    def _line(self, state: str, row: Mapping[str, Any]) -> None:
        symbol, word = WORDS[state]
        took = duration(row["took"]) if row.get("took") is not None else ""
        parts = (title(row), word, explain(row, time.time(), self._watch.queue), took)
        said = printable("  ".join(filter(None, parts)))
        self._write(f"  {self._colour(state, symbol)} {said}")

    def _tell_part(self, counts: Mapping[str, Any]) -> None:
        """Say how many of many tasks are over, at each quarter."""
        number, over = counts["n"], ended(counts["counts"])
        quarter = over * 4 // number if number else 0
        if number > FEW and self._quarter < quarter < 4:
            self._tell_total(counts)
        self._quarter = max(self._quarter, quarter)

    def _tell_total(self, counts: Mapping[str, Any]) -> None:
        self._write(f"  {self._total(counts)}")

    @staticmethod
    def _total(counts: Mapping[str, Any]) -> str:
        return f"{plural(counts['n'])}: {total_line(counts['counts'])}"

    def _write(self, line: str) -> None:
        if self._moving is not None:
            self._moving.write(line)
        else:
            self._out.write(f"{line}\n")
            self._out.flush()

    def _colour(self, state: str, symbol: str) -> str:
        colour = _COLOURS.get(state) if self._is_terminal() else None
        return f"\033[{colour}m{symbol}\033[0m" if colour else symbol

    # ------------------------------------------------------------------------ what moves

    def _move(self, counts: Mapping[str, Any]) -> None:
        """Draw those that are not over, if that can be drawn over again."""
        if self._moving is None and self._open and self._can_move():
            self._moving = RichLines(self._stream)
        if self._moving is not None:
            self._moving.show(self._first_open(), self._watch.queue, self._below(counts))

    def _first_open(self) -> list[dict[str, Any]]:
        """Return a few rows, in the order of `WORDS`: those that run, then those that wait."""
        rows = (row for state in WORDS for row in self._open.values() if row["state"] == state)
        return list(islice(rows, MOVING))

    def _below(self, counts: Mapping[str, Any]) -> str:
        """Return what is said below a few rows of many tasks: how many there are."""
        hidden = len(self._open) - MOVING
        more = f"… and {hidden} more" if hidden > 0 else ""
        total = self._total(counts) if counts["n"] > FEW else ""
        return "  ".join(filter(None, (more, total)))

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stdout

    def _can_move(self) -> bool:
        """Whether something can be drawn over and over, and what the cell prints stands above."""
        return self._is_terminal() and self._has_rich

    @cached_property
    def _has_rich(self) -> bool:
        try:
            import rich.live  # noqa: F401
        except ImportError:
            return False
        return True

    def _is_terminal(self) -> bool:
        return self._out.isatty() and os.environ.get("TERM") != "dumb"


# ---------------------------------------------------------------------------------- what moves


class RichLines:
    """Open tasks with bars and countdowns, which rich lets tick in a thread of its own.

    That thread never waits for the panel: it draws the rows that it was given last.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._rows: list[dict[str, Any]] = []
        self._queue: Mapping[str, Any] | None = None
        self._below = ""
        self._screen: Screen
        Screen.add(self, stream)

    def show(self, rows: list[dict[str, Any]], queue: Mapping[str, Any] | None, below: str) -> None:
        self._rows, self._queue, self._below = rows, queue, below
        self._screen.live.refresh()

    def write(self, line: str) -> None:
        from rich.text import Text

        self._screen.console.print(Text.from_ansi(line), soft_wrap=True)

    def stop(self) -> None:
        self._screen.remove(self)

    def draw(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        now = time.time()
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(
            no_wrap=True, overflow="ellipsis", max_width=self._screen.console.width // 2
        )
        table.add_column()
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(justify="right", no_wrap=True)
        for row in self._rows:
            name = printable(f"  {WORDS[row['state']][0]} {title(row)}")
            why = printable(self._explain(row, now))
            style = _STYLES.get(row["state"], "")
            table.add_row(Text(name, style), _bar(row), Text(why), Text(_elapsed(row, now)))
        below = Text(f"  {self._below}", "dim", no_wrap=True, overflow="ellipsis")
        return Group(table, below) if self._below and self._rows else Group(table)

    def _explain(self, row: Mapping[str, Any], now: float) -> str:
        return "  ".join(filter(None, (explain(row, now, self._queue), *_speed(row, now))))


class Screen:
    """The part of a terminal that rich draws over: the panels of all cells, below one another.

    Two that draw by themselves would draw over each other.
    """

    _all: ClassVar[dict[TextIO | None, Screen]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, stream: TextIO | None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._stream = stream
        self._parts: list[RichLines] = []
        self.console = Console(file=stream, highlight=False)
        self.live = Live(
            get_renderable=self._draw,
            console=self.console,
            transient=True,
            refresh_per_second=4,
            # What the cell prints goes above; bars of the user's own are on stderr.
            redirect_stdout=stream is None,
            redirect_stderr=False,
        )

    @classmethod
    def add(cls, part: RichLines, stream: TextIO | None) -> None:
        """Draw this part, too, from now on."""
        with cls._lock:
            part._screen = screen = cls._all.get(stream) or cls(stream)
            screen.live.start()
            screen._parts.append(part)
            cls._all[stream] = screen

    def remove(self, part: RichLines) -> None:
        """Draw this part no more; with the last one all is as if nothing had been drawn."""
        with self._lock:
            self._parts.remove(part)
            if not self._parts:
                del self._all[self._stream]
                self.live.stop()

    def _draw(self) -> Group:
        from rich.console import Group

        return Group(*(part.draw() for part in list(self._parts)))


def _speed(row: Mapping[str, Any], now: float) -> list[str]:
    """Return how fast a task gets on and how long it will take, as far as that is known."""
    rate, end = row.get("rate"), row.get("done_at")
    left = "" if end is None or end <= now else f"{clock(end - now)} left"
    return [_rate(rate) if rate else "", left]


def _rate(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 999.5 else f"{rate:.3g}/s"


def _bar(row: Mapping[str, Any]) -> Any:
    from rich.progress_bar import ProgressBar

    share = row.get("fraction")
    if row["state"] != "running" or share is None:
        return ""
    return ProgressBar(total=1.0, completed=share, width=20, complete_style=_STYLES["running"])


def _elapsed(row: Mapping[str, Any], now: float) -> str:
    return clock(now - row["began"]) if row.get("began") else ""
