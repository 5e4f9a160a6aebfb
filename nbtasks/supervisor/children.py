"""The operating system's side of the supervisor: start processes, hear of their ends, end them.

Only `os` and what the interpreter has loaded anyway is imported here: the children are on their way
before the supervisor itself has loaded its sockets and messages.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

#: Bytes after which a log starts afresh (the last one is kept as `.old`).
LOG_LIMIT = 4 * 1024 * 1024

#: Signals by which somebody wants a process to end.
ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)


class Child:
    """A process of ours."""

    def __init__(self, pid: int, name: str, log: str) -> None:
        self.pid = pid
        self.name = name
        self.log = log


Kind = TypeVar("Kind", bound=Child)


class Exit(NamedTuple):
    """The end of a child."""

    child: Child
    #: Exit code, or minus the signal's number.
    code: int
    #: Peak resident memory, bytes (0: not known).
    peak_memory: int


class News(NamedTuple):
    """What became of the children since the last look."""

    exits: list[Exit]
    stopped: list[Child]
    continued: list[Child]


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command line that runs a module of nbtasks as a process of its own."""
    launcher = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.py")
    return [sys.executable, "-P", launcher, module, *arguments]


def open_log(path: str) -> int:
    """Return a descriptor that appends to the log at `path`."""
    try:
        if os.stat(path).st_size > LOG_LIMIT:
            os.replace(path, f"{path}.old")
    except FileNotFoundError:
        pass
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)


def tail(path: str, lines: int = 12, limit: int = 4000) -> str:
    """Return the last lines of a log, or an empty text when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


class Children:
    """All processes that this one has started and that are not gone yet.

    Each is in a session, and so in a process group, of its own. The standard input of each is the
    reading end of a pipe whose writing end only we hold: it ends when we do, however we do.
    """

    def __init__(self) -> None:
        self._alive: dict[int, Child] = {}
        self._lifeline, self._held = os.pipe()

    def spawn(
        self,
        name: str,
        command: list[str],
        env: Mapping[str, str],
        log: str,
        kind: type[Kind],
    ) -> Kind:
        """Start a process whose output goes to `log`."""
        output = open_log(log)
        try:
            pid = os.posix_spawn(
                command[0],
                command,
                env,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, self._lifeline, 0),
                    (os.POSIX_SPAWN_DUP2, output, 1),
                    (os.POSIX_SPAWN_DUP2, output, 2),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=ENDING,
            )
        finally:
            os.close(output)
        child = kind(pid, name, log)
        self._alive[pid] = child
        return child

    def alive(self, child: Child) -> bool:
        return self._alive.get(child.pid) is child

    def reap(self) -> News:
        """Take note of all that ended, stopped or went on; never waits."""
        news = News([], [], [])
        while True:
            try:
                self._sweep_dying()
                pid, status, usage = os.wait4(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return news
            if pid == 0:
                return news
            child = self._alive.get(pid)
            if child is None:
                continue  # an orphan of a dead worker that came to us
            if os.WIFSTOPPED(status):
                news.stopped.append(child)
            elif os.WIFCONTINUED(status):
                news.continued.append(child)
            else:
                del self._alive[pid]
                unit = 1 if sys.platform == "darwin" else 1024
                code = os.waitstatus_to_exitcode(status)
                news.exits.append(Exit(child, code, usage.ru_maxrss * unit))

    def _sweep_dying(self) -> None:
        """End what the next dead child left in its process group, while its number is still its."""
        if not hasattr(os, "waitid"):
            return
        dying = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if dying is not None and dying.si_pid in self._alive:
            _signal_group(dying.si_pid, signal.SIGKILL)

    def freeze(self, child: Child) -> None:
        """Stop the child and wait (for 50 ms at most) until it does stand still."""
        os.kill(child.pid, signal.SIGSTOP)
        if not hasattr(os, "waitid"):
            return
        for _ in range(50):
            flags = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
            if os.waitid(os.P_PID, child.pid, flags) is not None:
                return
            time.sleep(0.001)

    def kill(self, child: Child, number: int) -> None:
        """Send a signal to the child and all that it started in its own session."""
        if self.alive(child) and not _signal_group(child.pid, number):
            # Between its start and its setsid() a child has no group of its own yet.
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def anybody_died(self) -> bool:
        """Return whether there is an end to be taken note of."""
        if not hasattr(os, "waitid"):
            return False
        return os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def orphans(self) -> bool:
        """Return whether we have children that we did not start: what dead workers left behind."""
        if not hasattr(os, "waitid"):
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return False
        return True

    def close(self) -> None:
        """Let go of the pipe: whoever is left ends by itself."""
        os.close(self._held)
        os.close(self._lifeline)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal to a process group; say whether there is one that may be sent to."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS forbids a group of zombies
        return False
    return True
