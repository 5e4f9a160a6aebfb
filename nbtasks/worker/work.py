"""The main thread of a worker: take calls and run them, one at a time, until there are no more."""

from __future__ import annotations

import builtins
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from nbtasks import context
from nbtasks.wire.cell import Cell
from nbtasks.wire.connection import SEGMENTS, Settings
from nbtasks.wire.memory import resident
from nbtasks.wire.segments import Segments
from nbtasks.worker.handover import Preparation
from nbtasks.worker.process import Link

#: Seconds that a running thread may keep the interpreter to itself while the other one waits.
SWITCH = 0.000_5
#: Seconds that the ends of user threads and `atexit` functions may take.
LAST_ORDERS = 2.0
#: Seconds between two looks at the memory in use.
MEMORY_LOOK = 0.1


class Work:
    """Calls, one after the other."""

    def __init__(self, link: Link, runtime: Path, name: str, settings: Settings) -> None:
        from nbtasks.worker.capture import Capture
        from nbtasks.worker.functions import Functions
        from nbtasks.worker.limits import SoftLimit
        from nbtasks.worker.run import Runner

        self._handover = handover = link.handover
        self._most = settings.max_tasks_per_worker
        self._memory_limit = settings.memory_limit
        self._memory_at = 0.0
        #: Signals that a thread which forks lets through otherwise.
        self._held = threading.local()
        cells = runtime / "cells"
        cells.mkdir(mode=0o700, exist_ok=True)
        cell = Cell(cells / name)
        self._capture = capture = Capture(handover.post, handover.stir, cell.say)
        capture.log_path = str(runtime / "logs" / f"{name}.log")
        limit = SoftLimit(handover.stir)
        limit.install()
        capture.install()
        link.attend(cell, capture, limit)
        keep = Segments(Path(settings.data) / SEGMENTS).keep
        self._runner = Runner(name, handover, cell, Functions(handover), capture, limit, keep)
        context.of_process = self._runner
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._hold_signals,
                after_in_parent=self._let_signals_through,
                after_in_child=self._let_child_be,
            )

    def until_told(self) -> int:
        """Run calls until told to leave; return the exit code."""
        handover, run = self._handover, self._runner.run
        count = 0
        try:
            while (assignment := handover.take()) is not None:
                if isinstance(assignment, Preparation):
                    self._runner.prepare(assignment.digest)
                    continue
                run(assignment)
                count += 1
                if count == self._most or (self._memory_limit and self._is_too_big()):
                    handover.leave(orderly=True)
                    break
        except SystemExit as error:
            if self._runner.forked:
                os._exit(code_of(error))
            # The task is lost with this process, as its supervisor will say.
            handover.leave(orderly=False, timeout=LAST_ORDERS)
            raise
        return 0

    def find_in_main(self, name: str) -> Any:
        """Return what the running function knows by a name: the `__getattr__` of `__main__`.

        So `multiprocessing` can name functions and classes of a notebook, as it does there, to
        processes that it forks. Those that it starts anew would look for them in vain, so where it
        does that by default, and has forked none, the error is at the call.
        """
        if not name.startswith("__") and forks():
            known = self._runner.globals_of_running()
            if name in known:
                return known[name]
        raise AttributeError(f"module '__main__' has no attribute {name!r}", name=name)

    def _hold_signals(self) -> None:
        """Let no signal reach a process that a task forks, as long as it would ring here.

        A pool may end it as soon as it is there, and this worker would take that for its own end.
        """
        ours = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        self._held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, ours)

    def _let_signals_through(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._held.mask)

    def _let_child_be(self) -> None:
        """Make a process that a task forks an ordinary one, which ends by SIGTERM."""
        self._runner.disown()
        self._capture.disown()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._let_signals_through()

    def _is_too_big(self) -> bool:
        instant = time.monotonic()
        if instant - self._memory_at < MEMORY_LOOK:
            return False
        self._memory_at = instant
        return resident(os.getpid()) > (self._memory_limit or 0)


def serve(runtime: Path, name: str, queues: tuple[str, ...], settings: Settings) -> int:
    """Be a worker until told to leave; return the exit code.

    Raises
    ------
    SystemExit
        When a task raised it.
    """
    parent = detach_stdin()
    builtins.input = partial(ask, sys.stdin, input)
    sys.setswitchinterval(SWITCH)
    signal.signal(signal.SIGINT, _ignore)
    link = Link(runtime, name, queues, parent)
    # Hello is said while the rest is imported.
    link.start()
    work = Work(link, runtime, name, settings)
    become_main(settings, work.find_in_main)
    gc.collect()
    gc.freeze()
    code = 1
    try:
        code = work.until_told()
    except SystemExit as error:
        code = code_of(error)
        raise
    finally:
        bound_exit(code)
    return code


def code_of(error: SystemExit) -> int:
    """Return the exit code that is meant."""
    return error.code if isinstance(error.code, int) else int(error.code is not None)


def bound_exit(code: int) -> None:
    """Let the interpreter end in its own way, but not for ever: users' threads may not want to."""
    last = threading.Timer(LAST_ORDERS, os._exit, (code,))
    last.daemon = True
    last.start()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing; SIG_IGN would be inherited by all that tasks start."""


def detach_stdin() -> int | None:
    """Arrange to end with the supervisor; return the descriptor that says when it is gone.

    The pipe moves away from descriptor 0, where tasks would wait on it for input and child
    processes would inherit it.
    """
    from nbtasks.wire.parent import die_with_parent

    parent = die_with_parent()
    if parent is not None:
        parent = os.dup(parent)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return parent


def ask(nobody: Any, really: Callable[..., str], *prompt: object) -> str:
    """Stand in for `input`: of standard input, which is empty, it would say no more than that."""
    if sys.stdin is not nobody:
        return really(*prompt)  # the task has put something else there
    raise EOFError(
        "input() was called in a task, which runs where nobody can be asked. Ask before it is "
        "sent, and give it the answer as an argument."
    )


def forks() -> bool:
    """Return whether `multiprocessing` forks by default, or because it has been told to."""
    import multiprocessing

    method = multiprocessing.get_start_method(allow_none=True)
    if (method or multiprocessing.get_all_start_methods()[0]) == "fork":
        return True
    # As from Python 3.14 on. In a process that was forked this process itself says so.
    processes = [multiprocessing.current_process(), *multiprocessing.active_children()]
    return any(isinstance(one, multiprocessing.get_context("fork").Process) for one in processes)


def become_main(settings: Settings, find: Callable[[str], Any]) -> None:
    """Look to user code like the program that it comes from.

    Its modules are found where the kernel finds them, its files are open to whom the kernel's are
    (what we make ourselves says so with each file), and `__main__` is a bare module, where `find`
    finds names: what tasks see there, or what `multiprocessing` makes of it, must not be this
    program.
    """
    sys.modules["__main__"] = main = ModuleType("__main__")
    vars(main)["__getattr__"] = find
    if sys_path := settings.sys_path:
        sys.path[:] = [*sys_path, *(entry for entry in sys.path if entry not in sys_path)]
    if (umask := settings.extra.get("umask")) is not None:
        os.umask(umask)
