"""What a task prints and logs becomes messages; what anything else prints stays in the log.

    print, tqdm ──▶ Stream ──┬──▶ pending ── flush ──▶ Output messages
    logging ────▶ TaskLog ───┤
                             ├──▶ the cell, where the last words outlive the process
                             └──▶ the worker's log file, when no task runs

The I/O thread flushes now and then, the main thread before a run is over.

Descriptors 1 and 2 are not touched: what C libraries and child processes write goes to the log.
"""

from __future__ import annotations

import io
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from nbtasks.core.messages import Output

STDOUT, STDERR, LOG = "stdout", "stderr", "log"

#: Bytes of one Output message, at most.
CHUNK = 64 * 1024
#: Characters of one run that are told; the rest goes to the worker's log.
RUN_LIMIT = 8 * 1024 * 1024

#: Characters of a traceback that are told: what is said of many calls at once must fit a message.
TEXT_LIMIT = 256 * 1024

#: A progress bar draws its line again and again: what is overwritten need not travel.
_OVERWRITTEN = re.compile(r"[^\n]*\r(?=[^\r\n])")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Capture:
    """Collects what the running task says.

    Parameters
    ----------
    post
        Takes the messages, in order.
    stir
        Called when there is something to flush and was nothing before.
    keep
        Takes each text at once: what is pending dies with the process.
    """

    def __init__(
        self,
        post: Callable[[Output], None],
        stir: Callable[[], None],
        keep: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._post = post
        self._stir = stir
        self._keep = keep
        #: (task id, stream, text)
        self.pending: deque[tuple[str, str, str]] = deque()
        self.log_path = ""
        self._task_id: str | None = None
        self._lock = threading.Lock()
        self._size = 0
        self._told = 0

    def install(self) -> None:
        """Stand between the program and its standard streams, from now on."""
        for name in (STDOUT, STDERR):
            original = getattr(sys, name)
            if isinstance(original, io.TextIOWrapper):
                original.reconfigure(line_buffering=True, errors="backslashreplace")
            setattr(sys, name, Stream(self, name, original))
        _install_logging(self)

    def begin(self, task_id: str) -> None:
        """Take all that is said from now on for this task's."""
        self._task_id = task_id
        self._told = 0

    def end(self) -> None:
        """Let what is said from now on go to the log."""
        self._task_id = None
        if self.pending:
            self.flush()

    def disown(self) -> None:
        """Leave the running task to the process that this one was forked from."""
        self._lock = threading.Lock()
        self._task_id = None
        self.pending.clear()

    def take(self, stream: str, text: str) -> int:
        """Take a piece of text; return how many of its characters have found a place."""
        task_id = self._task_id
        if task_id is None:
            return 0
        self._keep(text)
        room = RUN_LIMIT - self._told
        if room < 0:
            return 0
        taken = min(len(text), room)
        self._told += len(text)
        if taken < len(text):
            notice = f"{RUN_LIMIT} characters were printed; the rest is in {self.log_path}"
            text = f"{text[:taken]}\n[{notice}]\n"
        nothing_before = not self.pending
        self.pending.append((task_id, stream, text))
        self._size += len(text)
        if self._size >= CHUNK:
            self.flush()
        elif nothing_before:
            self._stir()
        return taken

    def flush(self) -> None:
        """Post all that was said so far."""
        with self._lock:
            at = time.time()
            owner: tuple[str, str] | None = None
            parts: list[str] = []
            self._size = 0
            while self.pending:
                task_id, stream, text = self.pending.popleft()
                if (task_id, stream) != owner:
                    self._post_all(owner, parts, at)
                    owner, parts = (task_id, stream), []
                parts.append(text)
            self._post_all(owner, parts, at)

    def _post_all(self, owner: tuple[str, str] | None, parts: list[str], at: float) -> None:
        if owner is None:
            return
        text = clean("".join(parts))
        if "\r" in text:
            text = _OVERWRITTEN.sub("\r", text)
        size = CHUNK if text.isascii() else CHUNK // 4
        for start in range(0, len(text), size):
            self._post(Output(owner[0], owner[1], text[start : start + size], at))


class Stream(io.TextIOBase):
    """Stands for `sys.stdout` or `sys.stderr`."""

    def __init__(self, capture: Capture, name: str, original: Any) -> None:
        self._capture = capture
        self.name = name
        self._original = original
        self.buffer = _Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    @property
    def errors(self) -> str:  # type: ignore[override]
        return "backslashreplace"

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        taken = self._capture.take(self.name, text) if text else 0
        if taken < len(text) and self._original is not None:
            self._original.write(text[taken:])
        return len(text)

    def flush(self) -> None:
        if self._original is not None:
            self._original.flush()

    def fileno(self) -> int:
        if self._original is None:
            raise io.UnsupportedOperation("fileno")
        return int(self._original.fileno())

    def reconfigure(self, **options: Any) -> None:
        """Accept and ignore: programs set encoding and buffering of their streams here."""


class _Bytes(io.RawIOBase):
    """The stream's `buffer`, for programs that print bytes."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data).cast("B")
        self._stream.write(bytes(view).decode("utf-8", "backslashreplace"))
        return len(view)


def _install_logging(capture: Capture) -> None:
    import logging

    class TaskLog(logging.Handler):
        """Gives log records to the running task; outside of one, to the worker's log."""

        def emit(self, record: logging.LogRecord) -> None:
            try:
                text = self.format(record) + "\n"
                taken = capture.take(LOG, text)
                if taken < len(text):
                    sys.stderr.write(text[taken:])
            except Exception:
                self.handleError(record)

    handler = TaskLog()
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    if root.level == logging.WARNING:
        root.setLevel(logging.INFO)


def clean(text: str) -> str:
    """Return the text with whatever UTF-8 cannot carry spelled out."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode()


def clip(text: str) -> str:
    """Return what people can read of a text: if it is very long, its two ends."""
    left_out = len(text) - TEXT_LIMIT
    if left_out <= 0:
        return text
    half = TEXT_LIMIT // 2
    return f"{text[:half]}\n[{left_out:,} characters are left out here]\n{text[-half:]}"
