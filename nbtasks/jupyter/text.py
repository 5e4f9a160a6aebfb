"""The panel where there is only text: a line when a task's state changes, and a line that moves.

In a terminal the last line shows how far things are and is drawn over again; written to a file or
a pipe it is left out, and progress is told in quarters.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, TextIO

from nbtasks.jupyter import watch
from nbtasks.jupyter.rows import (
    WORDS,
    duration,
    ended,
    explain,
    plural,
    title,
    total_line,
)

#: With more tasks than this, only what went wrong gets a line of its own.
FEW = 8

#: States that are worth a line even among many.
_NEWS = frozenset({"retrying", "failed", "expired", "cancelled"})

_COLOURS = {"done": 32, "failed": 31, "retrying": 33, "running": 36}


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
        self._moving = False
        self._paused = False
        self._lock = threading.RLock()

    def add(self, record: Any) -> None:
        """Tell of this task from now on."""
        self._watch.add(record)

    def pause(self) -> None:
        """Say what there is to say and be silent until `resume()`."""
        with self._lock:
            over = self._watch.settle()
            self.flush()
            if over and len(self._watch.rows) > 1 and not self._paused:
                self._tell_total(self._watch.total())
            self._clear()
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
            for row in rows:
                self._tell(row)
            self._tell_part(self._watch.total())
            self._move([row for row in rows if not row["final"]])

    # ------------------------------------------------------------------------ lines that stay

    def _tell(self, row: Mapping[str, Any]) -> None:
        state, quarter = row["state"], int((row.get("fraction") or 0) * 4)
        before = self._told.get(row["i"], ("waiting", 0))
        step = (state, 0 if self._is_terminal() or state != "running" else quarter)
        if step == before:
            return
        self._told[row["i"]] = step
        if len(self._watch.rows) <= FEW or state in _NEWS:
            self._line(state, row)

    def _line(self, state: str, row: Mapping[str, Any]) -> None:
        symbol, word = WORDS[state]
        took = duration(row["took"]) if row.get("took") is not None else ""
        parts = (title(row), word, explain(row, time.time()), took)
        self._write(f"  {self._colour(state, symbol)} {'  '.join(filter(None, parts))}\n")

    def _tell_part(self, counts: Mapping[str, Any]) -> None:
        """Say how many of many tasks are over, at each quarter."""
        number, over = counts["n"], ended(counts["counts"])
        quarter = over * 4 // number if number else 0
        if number > FEW and self._quarter < quarter < 4:
            self._tell_total(counts)
        self._quarter = max(self._quarter, quarter)

    def _tell_total(self, counts: Mapping[str, Any]) -> None:
        self._write(f"  {plural(counts['n'])}: {total_line(counts['counts'])}\n")

    # ------------------------------------------------------------------------ the line that moves

    def _move(self, rows: list[dict[str, Any]]) -> None:
        running = [row for row in rows if row["state"] == "running"]
        if not running or not self._is_terminal():
            return
        row = running[-1]
        text = f"  {WORDS['running'][0]} {title(row)}  {explain(row, time.time())}"
        width = shutil.get_terminal_size().columns - 1
        self._write(f"{text[:width]}\r")
        self._moving = True

    def _clear(self) -> None:
        if self._moving:
            self._moving = False
            self._out.write("\r\033[K")

    def _write(self, text: str) -> None:
        self._clear()
        self._out.write(text)
        self._out.flush()

    def _colour(self, state: str, symbol: str) -> str:
        colour = _COLOURS.get(state) if self._is_terminal() else None
        return f"\033[{colour}m{symbol}\033[0m" if colour else symbol

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stdout

    def _is_terminal(self) -> bool:
        return self._out.isatty()
