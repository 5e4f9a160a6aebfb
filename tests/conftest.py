"""What all tests share: a clean environment, short directories, and real clusters that end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from hypothesis import settings as hypothesis_settings

if TYPE_CHECKING:
    from nbtasks.cluster import Cluster

#: Every process that a test starts, however deep, carries this variable of ours.
MARK = "NBT_TEST_MARK"

#: Seconds within which processes that were told to go must be gone.
GONE = 10.0

# A shell has what it runs in the background ignore interrupts, and tests send some.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples at each run, so that it is the change that fails and not the day; `./dev chaos`
# seeks new ones.
hypothesis_settings.register_profile("default", deadline=None, derandomize=True)
hypothesis_settings.register_profile("seek", deadline=None)
hypothesis_settings.load_profile("default")


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """Make a directory whose path leaves room for a socket's name (about 100 bytes in all)."""
    base = "/tmp" if os.access("/tmp", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="nbt-", dir=base))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory of this test's own, with a short path."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """Keep the clusters, settings and kernels of whoever runs the tests out of them."""
    with short_directory() as path, pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("NBTASKS_"):
                patch.delenv(name)
        patch.setenv("JUPYTER_RUNTIME_DIR", str(path / "r"))
        patch.setenv("JUPYTER_DATA_DIR", str(path / "d"))
        patch.setenv("JUPYTER_CONFIG_DIR", str(path / "c"))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        patch.setenv("IPYTHONDIR", str(path / "i"))
        patch.setenv(MARK, secrets.token_hex(8))
        yield
        left = end_all(our_processes())
        assert not left, f"left running by one of the tests: {left}"


@pytest.fixture(autouse=True)
def _no_hook_left() -> Iterator[None]:
    """Take away what a test has hooked into the client: it would see the next tests' tasks."""

    def hooks() -> list[Any]:
        client = sys.modules.get("nbtasks.client.client")
        return client.submitted_hooks if client else []

    before = list(hooks())
    yield
    hooks()[:] = before


# ------------------------------------------------------------------------------ no process left


def our_processes() -> list[psutil.Process]:
    """Return all processes but this one that carry this session's mark, orphans included."""
    mark, found = os.environ[MARK], []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def end_all(processes: list[psutil.Process], *, patience: float = GONE) -> list[str]:
    """Wait until these processes are gone; kill the rest and say which these were."""
    _, left = psutil.wait_procs(processes, timeout=patience)
    stories = [describe(process) for process in left]
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=GONE)
    return stories


def describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid} {process.status()}: {' '.join(process.cmdline())}"
    except psutil.Error:
        return f"{process.pid}"


@contextlib.contextmanager
def nothing_left_running() -> Iterator[None]:
    """End and report whatever process is there afterwards that was not there before."""
    before = {process.pid for process in our_processes()}
    yield
    left = end_all([process for process in our_processes() if process.pid not in before])
    assert not left, f"left running: {left}"


def starts_processes(request: pytest.FixtureRequest) -> bool:
    asked = {"processes", "browser"} & {mark.name for mark in request.node.iter_markers()}
    return bool(asked) or "make_cluster" in request.fixturenames


@pytest.fixture(autouse=True)
def _no_process_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a process behind; the next one shall not meet it."""
    if not starts_processes(request):
        yield
        return
    with nothing_left_running():
        yield


# ------------------------------------------------------------------------------------- clusters


@pytest.fixture
def make_cluster(_no_process_left: None, short_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Start clusters, each in a directory of its own unless `dir` is given; all end afterwards.

    The last one started is the one that tasks are sent to.
    """
    import nbtasks

    clusters: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        if "dir" not in options:
            options["dir"] = short_path / str(len(clusters))
        cluster = nbtasks.start(**{"workers": 2, **options})
        clusters.append(cluster)
        return cluster

    yield make

    for cluster in reversed(clusters):
        cluster.shutdown()


@pytest.fixture
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    """A real broker and two workers, gone when the test is over."""
    return make_cluster()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by place: what lies in tests/processes and tests/browser starts processes."""
    for item in items:
        if "processes" in item.path.parts:
            item.add_marker(pytest.mark.processes)
        if sys.platform == "win32" and item.get_closest_marker("processes"):
            item.add_marker(pytest.mark.skip(reason="written for POSIX"))
