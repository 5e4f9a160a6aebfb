"""The limits of a run, as far as they are kept here rather than from outside.

The soft time limit is an exception in the running body, and never in the next one. The I/O thread
keeps the time. When it is over, it sends the main thread a signal, whose handler
looks at the clock again and raises only if the body that runs *then* is over its limit: a signal
that comes too late does nothing. Where there are no signals between threads, the exception is put
into the main thread directly.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from nbtasks.exceptions import SoftTimeLimitExceeded

_SIGNAL = getattr(signal, "SIGUSR1", None)
#: By which the supervisor is asked to look at the cells; nobody else minds it.
_LOOK = getattr(signal, "SIGURG", None)


def call_supervisor() -> None:
    """Ask the supervisor to see to a memory limit that has just been written into the cell."""
    if _LOOK is not None:
        with suppress(OSError):  # it has just gone, and we shall follow
            os.kill(os.getppid(), _LOOK)


class SoftLimit:
    """The soft time limit of whatever runs on the main thread.

    Parameters
    ----------
    stir
        Lets the I/O thread look at `pending` again.
    """

    def __init__(self, stir: Callable[[], None]) -> None:
        self._stir = stir
        self._main = threading.main_thread().ident or 0
        self._seconds = 0.0
        #: Monotonic seconds, or None when nothing with a limit runs; written by the main thread.
        self._deadline: float | None = None
        #: The deadline that the I/O thread has acted upon.
        self._fired: float | None = None

    def install(self) -> None:
        """Be ready; call it on the main thread."""
        if _SIGNAL is not None:
            signal.signal(_SIGNAL, self._on_signal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (_SIGNAL,))

    @contextmanager
    def around(self, seconds: float) -> Iterator[None]:
        """Raise SoftTimeLimitExceeded in this block when it lasts longer than `seconds`."""
        # Anew each time: an earlier task may have taken the signal for itself, and where it did so
        # by faulthandler, Python does not even know.
        self.install()
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._stir()
        try:
            yield
        finally:
            self._deadline = None
            if _SIGNAL is None:
                _put_into(self._main, None)

    def pending(self) -> float | None:
        """Return when there is something to do (monotonic seconds), or None; for the I/O thread."""
        deadline = self._deadline
        return None if deadline == self._fired else deadline

    def fire_if_due(self, instant: float) -> None:
        """Tell the main thread if its time is over; for the I/O thread."""
        deadline = self.pending()
        if deadline is None or deadline > instant:
            return
        self._fired = deadline
        if _SIGNAL is None:
            _put_into(self._main, SoftTimeLimitExceeded)
        else:
            signal.pthread_kill(self._main, _SIGNAL)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        deadline = self._deadline
        if deadline is not None and time.monotonic() >= deadline:
            self._deadline = None
            raise SoftTimeLimitExceeded(self._seconds)


def _put_into(thread: int, error: type[BaseException] | None) -> None:
    import ctypes

    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), None if error is None else ctypes.py_object(error)
    )
