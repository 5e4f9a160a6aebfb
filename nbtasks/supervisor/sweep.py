"""End what workers have started and left behind, whatever session it has gone into.

    python -P launch.py nbtasks.supervisor.sweep SUPERVISOR

All that a cluster starts, however deep, carries two variables in its environment: which supervisor
it comes from, and which worker. That is how the children of the dead are told from those of the
living; who is whose child in the process table is lost as soon as somebody between them ends.

Who ends them when the supervisor itself is killed? The *undertaker*: a shell that does nothing but
wait for the end of its standard input, which is the end of the supervisor, and then becomes the
command above. Whoever kills a supervisor to stop a cluster runs it as well: the undertaker may
stand still. And when both are killed, the next supervisor ends what is left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress

#: Environment variables: the pid of the supervisor, and the name of the worker.
SUPERVISOR, WORKER = "NBTASKS_PARENT", "NBTASKS_WORKER"
#: Another one that workers have: the runtime directory of the cluster.
RUNTIME = "NBTASKS_RUNTIME"


def undertaker_command(supervisor: int) -> list[str]:
    """Return the command line of the undertaker of this supervisor."""
    from nbtasks.supervisor.children import module_command

    sweeper = module_command("nbtasks.supervisor.sweep", str(supervisor))
    return ["/bin/sh", "-c", 'read -r _; exec "$@"', "undertaker", *sweeper]


def end_all(variable: str, value: str) -> None:
    """Kill all our processes, but this one, that carry a variable of this value."""
    _end(lambda environment: environment.get(variable) == value)


def end_left_over(runtime: str) -> None:
    """Kill what workers of former supervisors of this runtime directory have left behind."""
    # Another cluster that a task has started carries the first, but none of the others.
    _end(
        lambda environment: (
            environment.get(RUNTIME) == runtime
            and WORKER in environment
            and environment.get(SUPERVISOR) != str(os.getpid())
        )
    )


def _end(is_meant: Callable[[dict[str, str]], bool]) -> None:
    import psutil

    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and is_meant(process.environ()):
                process.kill()


if __name__ == "__main__":
    end_all(SUPERVISOR, sys.argv[1])
