"""Background tasks for Jupyter notebooks, with Celery's words.

    %load_ext nbtasks
    from nbtasks import task

    @task
    def add(x, y):
        return x + y

    result = add.delay(1, 2)      # runs in a worker, started by itself
    result.get()                  # 3

What is named in `__all__` is for users; all else may change on any day.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Public name → the module that defines it; loaded when first used.
_HOMES = {
    "AsyncResult": "nbtasks.client.result",
    "Cluster": "nbtasks.cluster",
    "EagerResult": "nbtasks.client.eager_result",
    "Executor": "nbtasks.client.executor",
    "GroupResult": "nbtasks.client.result_set",
    "ResultSet": "nbtasks.client.result_set",
    "Task": "nbtasks.client.task",
    "allow_join_result": "nbtasks.context",
    "cancelled": "nbtasks.context",
    "configure": "nbtasks.config",
    "connect": "nbtasks.cluster",
    "current_cluster": "nbtasks.cluster",
    "current_task": "nbtasks.context",
    "progress": "nbtasks.context",
    "register_task": "nbtasks.client.task",
    "send_task": "nbtasks.client.task",
    "share": "nbtasks.client.sharing",
    "shared_task": "nbtasks.client.task",
    "shutdown": "nbtasks.cluster",
    "start": "nbtasks.cluster",
    "task": "nbtasks.client.task",
    "track": "nbtasks.context",
}

__all__ = [
    "AsyncResult",
    "Cluster",
    "EagerResult",
    "Executor",
    "GroupResult",
    "ResultSet",
    "Task",
    "allow_join_result",
    "cancelled",
    "config",
    "configure",
    "connect",
    "current_cluster",
    "current_task",
    "exceptions",
    "progress",
    "register_task",
    "result",
    "send_task",
    "share",
    "shared_task",
    "shutdown",
    "start",
    "states",
    "task",
    "track",
]

if TYPE_CHECKING:
    from nbtasks import config, exceptions, result, states
    from nbtasks.client.eager_result import EagerResult
    from nbtasks.client.executor import Executor
    from nbtasks.client.result import AsyncResult
    from nbtasks.client.result_set import GroupResult, ResultSet
    from nbtasks.client.sharing import share
    from nbtasks.client.task import Task, register_task, send_task, shared_task, task
    from nbtasks.cluster import Cluster, connect, current_cluster, shutdown, start
    from nbtasks.config import configure
    from nbtasks.context import allow_join_result, cancelled, current_task, progress, track


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("config", "exceptions", "result", "states"):
        return importlib.import_module(f"nbtasks.{name}")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'nbtasks' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


def load_ipython_extension(ipython: Any) -> None:
    """Add panels, `%nbtasks` and `%%task` to this notebook; `%load_ext nbtasks` calls it."""
    from nbtasks.jupyter import magics

    magics.load(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Take both away again."""
    from nbtasks.jupyter import magics

    magics.unload(ipython)
