"""Faults: processes that stand still, and processes that run code of the test's at their start."""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import nbtasks

_HEAD = """\
import sys
if {module!r} in sys.orig_argv:
"""


@contextlib.contextmanager
def changed(folder: Path, **changes: str) -> Iterator[None]:
    """Let processes that are started meanwhile run some code first.

    Parameters
    ----------
    folder
        Where to put what does that.
    **changes
        Code by kind of process: `broker`, `supervisor` or `worker`.
    """
    folder.mkdir()
    parts = (
        _HEAD.format(module=f"nbtasks.{kind}") + textwrap.indent(textwrap.dedent(code), "    ")
        for kind, code in changes.items()
    )
    (folder / "sitecustomize.py").write_text("\n".join(parts))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


@contextlib.contextmanager
def frozen(*pids: int) -> Iterator[None]:
    """Stop processes, in this order, and let them go on afterwards."""
    processes = [psutil.Process(pid) for pid in pids]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in reversed(processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


@contextlib.contextmanager
def deaf(cluster: nbtasks.Cluster) -> Iterator[None]:
    """Freeze the broker, and the supervisor, who would replace it."""
    with frozen(cluster.supervisor_pid, cluster.broker_pid):
        yield


def resident(pid: int | None = None) -> float:
    """Return the resident memory of a process, or of this one, MB."""
    return psutil.Process(pid or os.getpid()).memory_info().rss / 1e6
