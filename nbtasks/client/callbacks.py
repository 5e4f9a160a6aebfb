"""Run what users hang on results: in order, away from the thread that owns the socket.

    I/O thread ── post(function) ──▶ deque ──▶ callback thread ── function()

A callback may send tasks and wait for others; in the I/O thread that would wait for itself. The
thread lives only while there is something to call, so nothing is left behind in an idle kernel.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult

log = logging.getLogger("nbtasks")


class Callbacks:
    """Call functions one after the other in a thread that comes and goes.

    Read and written by any thread, under `_lock`; the functions are called without it.
    """

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None

    def post(self, function: Callable[[], object]) -> None:
        """Call `function` soon; what it raises is logged."""
        with self._lock:
            self._waiting.append(function)
            # One that was never started, as after an interrupt right here, calls nobody.
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="nbtasks-callbacks", daemon=True)
                with suppress(RuntimeError):  # the interpreter is going; nobody waits for it now
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                function = self._waiting.popleft()
            try:
                function()
            except BaseException:  # also a CancelledError out of `get`: others want to be called
                log.exception("A callback of a task's result failed; the result itself is fine.")


#: Those of users, in this process.
callbacks = Callbacks()
#: Ours, of futures and maps: what users hang on results may wait for those.
settling = Callbacks()
#: Those of users, of futures: they may wait for other futures.
finishing = Callbacks()


def when_over(result: AsyncResult, function: Callable[[AsyncResult], object]) -> None:
    """Call a function of ours once a task is over."""
    result._when_over(lambda: settling.post(partial(function, result)))


if hasattr(os, "register_at_fork"):
    # The thread does not exist in the child, and its lock may be held for ever.
    for each in (callbacks, settling, finishing):
        os.register_at_fork(after_in_child=each._reset)
