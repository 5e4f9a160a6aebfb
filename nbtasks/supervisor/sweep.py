"""End what workers have started and left behind, whatever session it has gone into.

    python -P launch.py nbtasks.supervisor.sweep SUPERVISOR

All that a cluster starts, however deep, carries two variables in its environment: which supervisor
it comes from, and which worker. That is how the children of the dead are told from those of the
living; who is whose child in the process table is lost as soon as somebody between them ends.

Who ends them when the supervisor itself is killed? The *undertaker*: a shell that does nothing but
wait for the end of its standard input, which is the end of the supervisor, and then becomes the
command above.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

#: Environment variables: the pid of the supervisor, and the name of the worker.
SUPERVISOR, WORKER = "NBTASKS_PARENT", "NBTASKS_WORKER"


def undertaker_command(supervisor: int) -> list[str]:
    """Return the command line of the undertaker of this supervisor."""
    from nbtasks.supervisor.children import module_command

    sweeper = module_command("nbtasks.supervisor.sweep", str(supervisor))
    return ["/bin/sh", "-c", 'read -r _; exec "$@"', "undertaker", *sweeper]


def end_all(variable: str, value: str) -> None:
    """Kill all our processes, but this one, that carry a variable of this value."""
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(variable) == value:
                process.kill()


if __name__ == "__main__":
    end_all(SUPERVISOR, sys.argv[1])
