"""Start, find, scale and stop a cluster.

    start() ── start.lock ──▶ does anybody hold supervisor.lock?
                                no:  take it, write settings.json, start a supervisor that has it
                                yes: the options given must be the ones it runs with
            ── wait until connection.json names a living broker, or failed.txt says why not
            ── Client: nothing is sent before the broker has said Welcome

A cluster belongs to nobody: it outlives the kernel that started it, other kernels attach to it,
and it goes when it is told to or when it has been idle. One that was stopped leaves no
connection.json behind; one that died does, and a client that finds it so revives it.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nbtasks import start_options
from nbtasks.exceptions import (
    BrokerUnavailable,
    ClusterError,
    ForkedError,
    NotPermitted,
)
from nbtasks.place import (
    RUNTIME_VARIABLE,
    START_LOCK,
    Place,
    forget_store,
    is_running,
    place_of,
    prepare,
)
from nbtasks.start_options import Options
from nbtasks.wire import locks
from nbtasks.wire.connection import (
    CONNECTION_FILE,
    FAILED_FILE,
    SOCKET_FILE,
    SUPERVISOR_LOCK,
    Connection,
    Settings,
    prepare_directory,
    read_connection,
    write_settings,
)
from nbtasks.wire.parent import alive, has_word

if TYPE_CHECKING:
    from nbtasks.client.client import Client

#: Set in all that a cluster starts, however deep: what it belongs to.
MARKS: Final = frozenset({"NBTASKS_PARENT", "NBTASKS_WORKER"})

#: Seconds for a broker to serve; a loaded machine needs longer than the 0.3 s of a quiet one.
START_TIMEOUT: Final = 20.0

#: Seconds for all processes to end in an orderly way, after which the supervisor is killed.
STOP_TIMEOUT: Final = 3.5

#: Seconds to take a free lock: whoever looks at it holds it for a moment.
_GLANCE: Final = 1.0

_PAUSE: Final = 0.002


# ------------------------------------------------------------------------------ the public words


def start(
    workers: int | None = None,
    dir: str | os.PathLike[str] | None = None,
    durability: str | None = None,
    transport: str | None = None,
    queues: str | Sequence[str] | Mapping[str, int] | None = None,
    max_tasks_per_worker: int | None = None,
    memory_limit: int | str | None = None,
    idle_timeout: float | None = None,
) -> Cluster:
    """Start the cluster of a folder, or attach to the one that runs there.

    Options that are not given never matter to a cluster that runs already; for a new one they come
    from the settings (`nbtasks.configure`).

    Parameters
    ----------
    workers
        How many worker processes; by default one for each processor that we may use, two at least;
        in a container its quota of processor time counts.
    dir
        Folder for all files of the cluster, made if need be and closed to other users; one that is
        open to them and holds other things is refused. By default there is one cluster for each
        user, folder and interpreter, with its files under Jupyter's runtime and data directories.
    durability
        When a task counts as accepted: `"full"` (it is on the disk; default), `"normal"` (it is in
        the store; the last moments before a power cut may be lost) or `"none"` (in memory only).
    transport
        `"ipc"` (default) or `"tcp"` (this machine only, encrypted; where ipc does not exist).
    queues
        Queues that the workers serve; by default all. A mapping gives queues workers of their own:
        `{"gpu": 1, "default": 3}`.
    max_tasks_per_worker
        Replace a worker after so many tasks.
    memory_limit
        Replace a worker that has grown beyond this: bytes, or text such as `"2GB"`.
    idle_timeout
        Seconds without a client and without open tasks after which the cluster goes; default 600.
        `float("inf")`: it never goes by itself.

    Returns
    -------
    Cluster
        From now on the one that tasks are sent to. It can be used in a `with` block.

    Raises
    ------
    ClusterError
        When it cannot be started; the text says why and what to do.
    ImproperlyConfigured
        When an option is wrong, or the running cluster has another value for it.

    Examples
    --------
    >>> with nbtasks.start(workers=2, dir="/tmp/example") as cluster:  # doctest: +SKIP
    ...     print(cluster.endpoint)
    ipc:///tmp/example/broker.sock
    """
    options = start_options.check(
        workers,
        durability,
        transport,
        queues,
        max_tasks_per_worker,
        memory_limit,
        idle_timeout,
    )
    with _opening:
        place = place_of(dir)
        known = _known_at(place)
        if known is not None:
            start_options.compare(place, options)
            return _make_current(known)
        return _make_current(_open(place, options, dir is not None))


def connect(dir: str | os.PathLike[str] | None = None) -> Cluster:
    """Attach to the cluster that runs in a folder; never start one.

    Parameters
    ----------
    dir
        As for `start`.

    Raises
    ------
    BrokerUnavailable
        When none runs there.
    ClusterError
        When it cannot be told how it was started.
    """
    with _opening:
        place = place_of(dir)
        known = _known_at(place)
        if known is not None:
            return _make_current(known)
        end = time.monotonic() + START_TIMEOUT
        if not is_running(place) or not _await_broker(place.runtime, None, "", end):
            whose = ""
            if dir is None and place.runtime != place.data and RUNTIME_VARIABLE not in os.environ:
                whose = f", the place for {os.getcwd()} and {sys.executable} (others have theirs)"
            raise BrokerUnavailable(
                f"No cluster runs in {place.runtime}{whose}. It was never started, or has stopped. "
                f"Start one with nbtasks.start() or %nbtasks start (in a notebook) or "
                f"`nbtasks start` (in a shell)."
            )
        start_options.settings_in(place.runtime)  # or it cannot be told where large values lie
        return _make_current(Cluster(place, dir is not None))


def shutdown(purge: bool = False) -> None:
    """Stop the current cluster, or else the one of this folder if it runs.

    Parameters
    ----------
    purge
        Also delete all tasks and results: open ones never run, and `get` of one is an
        OperationalError. Otherwise they are kept, and what is open goes on at the next start.
    """
    if _current is not None:
        _current.shutdown(purge=purge)
    else:
        stop(None, purge=purge)


def stop(dir: str | os.PathLike[str] | None, purge: bool = False) -> bool:
    """Stop the cluster of a folder without connecting to it, so also one that does not answer.

    Returns
    -------
    bool
        Whether one was running.
    """
    return _stop_at(place_of(dir), purge)


def current_cluster() -> Cluster | None:
    """Return the cluster that tasks are sent to, or None when none was started or found yet."""
    return _current


class Cluster:
    """A running broker, its workers and their supervisor. Made by `start` and `connect`.

    Attributes
    ----------
    dir : Path
        Folder of its sockets, logs and, unless Jupyter's directories are used, of its store.
    """

    def __init__(self, place: Place, named: bool = False) -> None:
        from nbtasks.client.client import Client

        self._place = place
        #: Whether it was asked for by its folder: then only whoever names it again means it.
        self._named = named
        self._client = Client(place.runtime, revive=self._revive)
        #: Whether this connection was closed; whether the cluster was stopped through it.
        self._closed = self._stopped = False
        _clusters[place.runtime] = self

    @property
    def dir(self) -> Path:
        return self._place.runtime

    @property
    def client(self) -> Client:
        """The connection of this process to the broker."""
        return self._client

    @property
    def running(self) -> bool:
        """Whether it can be used: not shut down nor just stopping, and its supervisor lives."""
        return (
            not self._closed
            and not self._client.closed
            and not self._client.failed
            and is_running(self._place)
            and (self.dir / CONNECTION_FILE).exists()
        )

    @property
    def endpoint(self) -> str:
        """Address of the broker's socket."""
        return self._connection().endpoint

    @property
    def broker_pid(self) -> int:
        return self._connection().broker_pid

    @property
    def supervisor_pid(self) -> int:
        return self._connection().supervisor_pid

    @property
    def settings(self) -> Settings:
        """What it was started with (and scaled to)."""
        return start_options.settings_in(self.dir)

    def worker_pids(self, timeout: float = 10.0) -> list[int]:
        """Return the process numbers of the workers.

        Workers that are just starting are waited for, `timeout` seconds at most.
        """
        end = time.monotonic() + timeout
        while True:
            pids = [worker["pid"] for worker in self.status(timeout)["workers"]]
            if len(pids) >= self.settings.workers or time.monotonic() > end:
                return pids
            time.sleep(0.01)

    def status(self, timeout: float = 10.0) -> dict[str, Any]:
        """Return what the broker says of itself, its workers and its tasks.

        Parameters
        ----------
        timeout
            Seconds to wait for its answer.
        """
        answer: dict[str, Any] = self._client.ask("status", timeout=timeout)
        return answer

    def scale(self, workers: int, timeout: float = 10.0) -> None:
        """Have so many workers. Surplus ones finish what they run first.

        Parameters
        ----------
        workers
            0 or more.
        timeout
            Seconds to wait for broker and supervisor.

        Raises
        ------
        TimeoutError
            When the broker does not answer in time.
        BrokerUnavailable
            When there is no cluster any more.
        ClusterError
            When the supervisor does not obey in time.
        """
        count = start_options.count("workers", workers, least=0, call="scale")
        assert count is not None
        from nbtasks.core.messages import Scale

        end = time.monotonic() + timeout
        self.status(timeout)  # or there is nobody to tell
        self._client.tell(Scale(count))
        while self.settings.workers != count:
            if time.monotonic() > end:
                raise ClusterError(
                    f"The supervisor of {self.dir} has not scaled to {count} workers within "
                    f"{timeout:g} s. Its log is {self.dir / 'logs' / 'supervisor.log'}."
                )
            time.sleep(_PAUSE)

    def shutdown(self, purge: bool = False) -> None:
        """Stop all processes of the cluster, within some three seconds.

        Parameters
        ----------
        purge
            Also delete all tasks and results: open ones never run, and `get` of one is an
            OperationalError. Otherwise they are kept, and what is open goes on at the next start.

        Raises
        ------
        ForkedError
            In a child made by fork: the cluster is its parent's.
        """
        if self._client.forked:
            raise ForkedError()
        if self._stopped and not purge:
            return
        with _opening:
            self._let_go(purge)
            _stop_at(self._place, purge)
            # Not before: one that was interrupted shall be able to be told again.
            self._stopped = True
            _drop(self)

    def close(self) -> None:
        """Let go of the connection; the cluster goes on."""
        self._let_go()
        _drop(self)

    def _let_go(self, purge: bool = False) -> None:
        from nbtasks.client import waiting

        if purge:
            self._client.bury()
        if self._named:
            waiting.remember_home(self._client)
        self._client.close()
        self._closed = True  # one whose farewell was interrupted is still there, and in use

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._client.forked:  # a child that ends in here takes nothing from its parent
            self.shutdown()

    def __repr__(self) -> str:
        if self._closed:
            return f"<Cluster {self.dir}: stopped>"
        with suppress(ClusterError):
            settings = self.settings
            return f"<Cluster {self.dir}: {settings.workers} workers, {settings.durability}>"
        return f"<Cluster {self.dir}>"

    def _connection(self) -> Connection:
        connection = read_connection(self._place.runtime)
        if connection is None:
            raise BrokerUnavailable(
                f"The cluster in {self.dir} was stopped. Start it again with nbtasks.start()."
            )
        return connection

    def _revive(self) -> None:
        """Start the cluster again: the client has found that nobody is left of it."""
        if read_connection(self.dir) is None and not is_running(self._place):
            raise _shut_down(self.dir)
        _ensure(self._place, Options(), former=self.settings)


# -------------------------------------------------------------------- the clusters of this process

_clusters: dict[Path, Cluster] = {}
_current: Cluster | None = None
_opening = threading.RLock()


def _after_fork() -> None:
    """In a child: the thread that may have held the lock stayed with the parent."""
    global _opening
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _make_current(cluster: Cluster) -> Cluster:
    global _current
    from nbtasks.client.client import set_current

    _current = cluster
    set_current(cluster.client)
    return cluster


def _known_at(place: Place) -> Cluster | None:
    """Return the connection that this process has to the cluster of a place, if it can be used."""
    known = _clusters.get(place.runtime)
    if known is None or known.running:
        return known
    if known.client.failed:
        known.close()
    return None


def _drop(cluster: Cluster) -> None:
    global _current
    if _clusters.get(cluster.dir) is cluster:
        del _clusters[cluster.dir]
    if _current is cluster:
        _current = None


def default_client() -> Client:
    """Return the client that tasks are sent through where nobody has started a cluster."""
    cluster = _current
    if cluster is None or not cluster.running:
        cluster = connect() if RUNTIME_VARIABLE in os.environ else start()
    return cluster.client


# ---------------------------------------------------------------------------------- the processes


class _Supervisor(subprocess.Popen[bytes]):
    """A process that is meant to outlive us; so nobody shall warn that it does."""

    def __del__(self) -> None:
        """Keep silent."""


#: Supervisors that this process has started: their parent must take note of their end.
_started: dict[Path, _Supervisor] = {}


def _open(place: Place, options: Options, named: bool) -> Cluster:
    """Return a connection to the cluster of a place, which is started if need be.

    One that was idle may begin to stop just before it hears of us; then it is started anew.
    """
    while True:
        _ensure(place, options)
        try:
            cluster = Cluster(place, named)
        except BrokerUnavailable:
            if (place.runtime / CONNECTION_FILE).exists():
                raise
        else:
            if cluster.running:
                return cluster
            cluster.close()


def _ensure(place: Place, options: Options, former: Settings | None = None) -> None:
    """See to it that a broker serves; start a supervisor if there is none.

    With the settings of a cluster that died it is only revived: not when it was stopped meanwhile.
    """
    end = time.monotonic() + START_TIMEOUT
    prepare(place)
    runtime = place.runtime
    with _hold(runtime / START_LOCK):
        while True:
            process, offset, instance = None, 0, ""
            lock = _take(runtime / SUPERVISOR_LOCK)
            if lock is not None:
                try:
                    connection = read_connection(runtime)
                    if connection is not None:
                        instance = connection.instance
                    elif former is not None:
                        raise _shut_down(runtime)
                    (runtime / FAILED_FILE).unlink(missing_ok=True)
                    write_settings(runtime, former or start_options.settings_for(place, options))
                    offset = _size_of(_log(runtime, "supervisor"))
                    process = _spawn(runtime, lock)
                finally:
                    os.close(lock)
                _import_client()
            if _await_broker(runtime, process, instance, end, offset):
                if process is None:
                    start_options.compare(place, options)
                return


def _shut_down(runtime: Path) -> ClusterError:
    """Return why a cluster that has left no connection file is not started again by itself."""
    try:
        return ClusterError((runtime / FAILED_FILE).read_text())
    except FileNotFoundError:
        return ClusterError(
            f"The cluster in {runtime} was shut down. What was open goes on when it is "
            f"started again: nbtasks.start()."
        )


def _take(path: Path) -> int | None:
    """Return a descriptor that holds the supervisor's lock, or None: there is one already."""
    return None if locks.is_held(path) else locks.hold(path, _GLANCE)


def _spawn(runtime: Path, lock: int) -> _Supervisor:
    """Start the supervisor, in a session of its own: Jupyter signals whole groups.

    It is given the lock, so that from its first moment on everybody knows of it: one whose starter
    is interrupted or killed can neither be overlooked by another start nor by a stop.
    """
    _reap(runtime)
    if not sys.executable:
        raise ClusterError(
            "This Python does not know its own executable (sys.executable is empty), so no worker "
            "can be started with it. Run the code in an ordinary interpreter."
        )
    prepare_directory(runtime / "logs")
    log = os.open(_log(runtime, "supervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = _Supervisor(
            _command("nbtasks.supervisor", runtime),
            stdin=lock,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # One that a task starts is no part of the cluster that the task runs in.
            env={name: value for name, value in os.environ.items() if name not in MARKS},
        )
    finally:
        os.close(log)
    _started[runtime] = process
    return process


def _command(module: str, *arguments: object) -> list[str]:
    """Return the command line that runs a module of nbtasks as a process of its own."""
    launcher = Path(__file__).with_name("supervisor") / "launch.py"
    return [sys.executable, "-P", str(launcher), module, *map(str, arguments)]


def _import_client() -> None:
    """Load the client while the other processes are loading their part."""
    import nbtasks.client.client  # noqa: F401


def _await_broker(
    runtime: Path, process: _Supervisor | None, former: str, end: float, offset: int = 0
) -> bool:
    """Wait until a broker serves; return False when there is no supervisor any more.

    Raises
    ------
    ClusterError
        When there will be none; with the reason.
    """
    while True:
        connection = read_connection(runtime)
        if connection is not None and connection.instance != former:
            if alive(connection.broker_pid):
                return True
        code = process.poll() if process is not None else None
        with suppress(FileNotFoundError):
            reason = (runtime / FAILED_FILE).read_text().strip()
            if reason or time.monotonic() > end:
                _await_exit(process)
                raise ClusterError(
                    f"The cluster in {runtime} cannot be started. {reason}\n"
                    f"Put this right and start it again, or give another place: start(dir=...)."
                )
        if code is not None:
            raise ClusterError(_story(runtime, f"The supervisor ended with code {code}", offset))
        if process is None and not locks.is_held(runtime / SUPERVISOR_LOCK):
            return False
        if time.monotonic() > end:
            raise ClusterError(
                _story(runtime, f"No broker was ready within {START_TIMEOUT:g} s", offset)
            )
        time.sleep(_PAUSE)


def _await_exit(process: _Supervisor | None) -> None:
    """Let a supervisor that has given up end, so that nothing is left of it."""
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)


def _story(runtime: Path, what: str, offset: int) -> str:
    """Return what happened, the last lines of the logs, and what to do."""
    told = [f"{what}, so the cluster in {runtime} is not there."]
    for name, start in (("supervisor", offset), ("broker", 0)):
        path = _log(runtime, name)
        with suppress(OSError):
            lines = path.read_text("utf-8", "replace")[start:].rstrip().splitlines()[-12:]
            if lines:
                told += [f"The last lines of {path}:", *(f"    {line}" for line in lines)]
    told.append("`nbtasks doctor` looks for the cause; or give another place: start(dir=...).")
    return "\n".join(told)


def _stop_at(place: Place, purge: bool) -> bool:
    """Stop what runs at a place; return whether anything did."""
    with _opening:
        known = _clusters.get(place.runtime)
        if known is not None:
            known._let_go(purge)
        running = is_there = False
        # From Python 3.14 on `is_dir()` says no as well where nobody can tell.
        with suppress(FileNotFoundError, NotADirectoryError):
            is_there = stat.S_ISDIR(place.runtime.stat().st_mode)
        if is_there:
            with _hold(place.runtime / START_LOCK):
                running = is_running(place)
                _stop_supervisor(place.runtime)
                if purge:
                    forget_store(place)
        if known is not None:
            _drop(known)
        return running


def _stop_supervisor(runtime: Path) -> None:
    """End the supervisor, and with it all its children; return when it is gone."""
    lock = runtime / SUPERVISOR_LOCK
    told: dict[int, int] = {}
    began = time.monotonic()
    while locks.is_held(lock):
        pid = locks.holder(lock) or _named_in_connection(runtime)
        number: int = signal.SIGKILL if time.monotonic() - began > STOP_TIMEOUT else signal.SIGTERM
        if pid and told.get(pid) != number:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            told[pid] = number
        if time.monotonic() - began > 2 * STOP_TIMEOUT:
            which = f"process {pid}" if pid else f"whose number is not in {lock}"
            remedy = f"kill -9 {pid}" if pid else f"`fuser {lock}` tells its number"
            raise ClusterError(
                f"The supervisor ({which}) of {runtime} does not end. End it by hand: {remedy}."
            )
        time.sleep(_PAUSE)
    # One that had to be killed has left them, and clients shall know that this end was meant.
    for name in (CONNECTION_FILE, SOCKET_FILE):
        (runtime / name).unlink(missing_ok=True)
    for pid, number in told.items():
        if number == signal.SIGKILL:
            subprocess.run(_command("nbtasks.supervisor.sweep", pid), check=False)
    _reap(runtime)


def _named_in_connection(runtime: Path) -> int:
    """Return the supervisor's number that the broker has written, if it still is one, or 0."""
    connection = read_connection(runtime)
    if connection is None or not has_word(connection.supervisor_pid, str(runtime)):
        return 0
    return connection.supervisor_pid


def _reap(runtime: Path) -> None:
    """Take note of the end of a supervisor that we started, so that it does not stay a zombie."""
    process = _started.pop(runtime, None)
    if process is not None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


# ------------------------------------------------------------------------------- locks and logs


@contextmanager
def _hold(path: Path) -> Iterator[None]:
    """Hold a lock between processes; wait for it as long as a start or a stop may take."""
    patience = START_TIMEOUT + 2 * STOP_TIMEOUT
    try:
        descriptor = locks.acquire(path, patience)
    except OSError as error:
        raise NotPermitted(
            f"nbtasks cannot make {path}: {error.strerror}. Its files must lie where you may "
            f"write. Give another place with start(dir=...) or NBTASKS_DIR."
        ) from error
    if descriptor is None:
        raise ClusterError(
            f"Another process (pid {locks.holder(path)}) has been starting or stopping this "
            f"cluster for a long time: it holds {path}. End it, if it is stuck."
        )
    try:
        yield
    finally:
        os.close(descriptor)


def _log(runtime: Path, name: str) -> Path:
    return runtime / "logs" / f"{name}.log"


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
