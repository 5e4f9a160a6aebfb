"""`python -m nbtasks.supervisor RUNTIME`: the parent of one cluster.

The order is the point: broker and workers are on their way before this process loads its own
sockets and messages, and it leaves the processors to them until the broker serves.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from nbtasks.supervisor.children import ENDING, Children
from nbtasks.supervisor.crew import Crew
from nbtasks.wire import locks

LOCK_FILE = "supervisor.lock"

#: Seconds to wait for the lock where nobody has handed it over: a process that was just killed
#: holds it for some milliseconds.
LOCK_WAIT = 2.0

#: Seconds that the children have for themselves at most, before this process loads the rest.
HEAD_START = 0.5

#: As `wire.connection` has it, which is too much to load here.
EXIT_BUSY = 75


def main(runtime: str, crew_class: type[Crew] = Crew) -> int:
    """Be the supervisor of `runtime` until told to stop; return the exit code."""
    os.umask(0o077)
    # Who is told to stop before it can listen, stops in an orderly way as soon as it can.
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    path = os.path.join(runtime, LOCK_FILE)
    lock = locks.inherit(path)
    if lock is None:
        lock = locks.acquire(path, LOCK_WAIT)
    if lock is None:
        print("Another supervisor holds this runtime directory.", flush=True)
        return EXIT_BUSY
    connection = os.path.join(runtime, "connection.json")
    former = changed_at(connection)
    crew = crew_class(runtime, Children())
    crew.start_broker()
    crew.read_settings()
    while len(crew.workers) < crew.wanted:
        crew.start_worker()
    crew.start_undertaker()
    end = time.monotonic() + HEAD_START
    while changed_at(connection) == former and not crew.children.anybody_died():
        if time.monotonic() > end:
            break
        time.sleep(0.005)

    from nbtasks.supervisor.supervise import Supervisor

    code = Supervisor(crew).serve()
    os.close(lock)
    return code


def changed_at(path: str) -> int:
    """Return when a file was written, nanoseconds; 0 when there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
