"""Where a cluster's processes find each other: the runtime directory and the files there.

RUNTIME/settings.json     what the cluster was started with (written by whoever starts it)
RUNTIME/connection.json   who is serving now (written by the broker once it is bound)
RUNTIME/failed.txt        why the broker will not serve, when no restart can mend it
RUNTIME/broker.sock       the broker's socket
RUNTIME/cells/NAME        what worker NAME is doing (`nbtasks.wire.cell`)
RUNTIME/logs/*.log        what the processes print

DATA/store.sqlite         what must not be forgotten
DATA/segments/NAME        large pieces of arguments and results (`nbtasks.wire.segments`)
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from nbtasks.core.messages import PROTOCOL_VERSION, Now
from nbtasks.exceptions import ClusterError

SETTINGS_FILE = "settings.json"
CONNECTION_FILE = "connection.json"
FAILED_FILE = "failed.txt"
SOCKET_FILE = "broker.sock"
STORE_FILE = "store.sqlite"
SEGMENTS = "segments"
SUPERVISOR_LOCK = "supervisor.lock"

#: What lies in a cluster's directory, and of what kind it must be.
OUR_FILES: dict[str, Callable[[int], bool]] = {
    **dict.fromkeys((SETTINGS_FILE, CONNECTION_FILE, FAILED_FILE, STORE_FILE), stat.S_ISREG),
    **dict.fromkeys((f"{STORE_FILE}-wal", f"{STORE_FILE}-shm", SUPERVISOR_LOCK), stat.S_ISREG),
    **dict.fromkeys(("start.lock", "broker.lock", "trouble.txt"), stat.S_ISREG),
    **dict.fromkeys(("logs", "cells", SEGMENTS), stat.S_ISDIR),
    SOCKET_FILE: stat.S_ISSOCK,
}

#: Exit code of a supervisor or broker that found another one at work (sysexits.h: EX_TEMPFAIL).
EXIT_BUSY = 75

#: Exit code of a broker that a restart will not mend (sysexits.h: EX_CONFIG).
EXIT_CONFIG = 78

#: Bytes that a socket's path may have (sockaddr_un.sun_path less the closing 0).
SOCKET_PATH_LIMIT = 103 if sys.platform == "darwin" else 107

if hasattr(time, "CLOCK_BOOTTIME"):

    def boot() -> float:
        """Return seconds since the machine started, suspended time included."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:

    def boot() -> float:
        """Return seconds on a clock that nobody can set."""
        return time.monotonic()


def now() -> Now:
    """Return this instant on both clocks."""
    return Now(time.time(), boot())


def umask() -> int:
    """Return the umask of this process, and leave it as it is."""
    # Where the system does not tell, it must be set to be read; what another thread makes in that
    # moment is closed to others rather than open.
    with suppress(OSError), open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a cluster was started with."""

    #: Directory of the store.
    data: str
    workers: int
    durability: str = "full"
    transport: str = "ipc"
    #: Queues that every worker serves; empty means all. As a mapping: queue → workers of its own.
    queues: tuple[str, ...] = ()
    queue_workers: dict[str, int] = {}
    max_tasks_per_worker: int | None = None
    #: Resident bytes of one worker, or None.
    memory_limit: int | None = None
    #: Seconds without clients and without open tasks after which the cluster goes.
    idle_timeout: float = 600.0
    #: Seconds that results are kept.
    result_expires: float | None = 86_400.0
    #: `sys.path` of whoever started the cluster.
    sys_path: tuple[str, ...] = ()
    #: Anything later versions add.
    extra: dict[str, Any] = {}


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """Who is serving now."""

    protocol: int = PROTOCOL_VERSION
    #: Random name of this run of the broker, hexadecimal.
    instance: str
    endpoint: str
    broker_pid: int
    supervisor_pid: int
    #: Wall time at which the broker began to serve.
    started_at: float
    #: CURVE keys (Z85) where the transport is tcp: the broker's public one, and the pair that
    #: clients of this cluster use. The file is readable by its owner only.
    server_key: str = ""
    client_public: str = ""
    client_secret: str = ""
    #: Kept for the next run of the broker, so that its peers need no new keys.
    server_secret: str = ""


def prepare_directory(path: Path) -> Path:
    """Make `path` a directory that only we can enter, and return it.

    Raises
    ------
    ClusterError
        When it cannot be made, or `check_directory` finds it unsafe.
    """
    try:
        _make_directory(path)
    except OSError as error:
        if not (isinstance(error, FileExistsError) and os.path.lexists(path)):
            raise _unusable(path, error) from error
    if check_directory(path).st_mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:
            raise ClusterError(
                f"{path} can be entered by other users and nbtasks may not close it: {error}. "
                f"Give another dir."
            ) from error
    return path


def _make_directory(path: Path) -> None:
    """Make a directory for us alone; on the way there, whatever the umask, others cannot write."""
    if not path.parent.exists():
        for folder in reversed([folder for folder in path.parents if not folder.exists()]):
            folder.mkdir(mode=0o755, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)


def sync(path: Path) -> None:
    """Let a file, or the names in a folder, survive a loss of power.

    Links are not followed. What names a folder has cannot be synced on Windows.
    """
    if os.name == "nt" and path.is_dir():
        return
    flags = os.O_RDWR if os.name == "nt" else os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_directory(path: Path) -> os.stat_result:
    """Return the status of a directory that is ours, with nothing in it that others have put there.

    Raises
    ------
    ClusterError
        When it is not there, is a symbolic link, or somebody else owns it, the way to it, or one
        of our files in it.
    """
    try:
        status = path.lstat()
        stranger = _squatter(path)
    except OSError as error:
        raise _unusable(path, error) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ClusterError(
            f"{path} is not a directory (or is a symbolic link), so nbtasks will not put its files "
            f"there. A link could lead to somebody else's place. Remove it, or give another dir."
        )
    if stranger is not None:
        raise ClusterError(
            f"{stranger} belongs to user {stranger.lstat().st_uid}, not to you, so nbtasks will "
            f"not put its files into {path}. Whoever owns it could run code as you. Give another "
            f"dir."
        )
    for name, is_right in OUR_FILES.items():
        with suppress(FileNotFoundError):
            if not is_right((path / name).lstat().st_mode):
                raise ClusterError(
                    f"{path / name} is in the way: nbtasks has a file of its own by that name and "
                    f"of another kind. Move it away, or give another dir."
                )
    return status


def _squatter(path: Path) -> Path | None:
    """Return what somebody else has put there: the directory, the way to it, a file of ours."""
    if not hasattr(os, "getuid"):
        return None
    ours = os.getuid()
    for place in (path, *(path / name for name in OUR_FILES)):
        with suppress(FileNotFoundError, NotADirectoryError):
            if place.lstat().st_uid != ours:
                return place
    for place in path.parents:
        # In a place like /tmp, anybody may have been there first.
        if place.parent.stat().st_mode & stat.S_IWOTH and place.lstat().st_uid not in (ours, 0):
            return place
    return None


def _unusable(path: Path, error: OSError) -> ClusterError:
    return ClusterError(
        f"nbtasks cannot use the directory {path}: {error.strerror or error}. "
        f"Its files must lie where you may write. "
        f"Give another place with start(dir=...) or NBTASKS_DIR."
    )


def check_socket_path(runtime: Path) -> Path:
    """Return the path of the broker's socket.

    Raises
    ------
    ClusterError
        When the path is longer than the system takes.
    """
    path = runtime / SOCKET_FILE
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_LIMIT:
        raise ClusterError(
            f"The socket's path {path} has {length} bytes; the system takes {SOCKET_PATH_LIMIT} at "
            f"most. Sockets must lie on short paths. Give a shorter dir, for instance "
            f"start(dir='/tmp/nbtasks-{os.environ.get('USER', 'me')}')."
        )
    return path


def write_private(path: Path, data: bytes) -> None:
    """Write a file that only we can read, in one step."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:  # a full disk, for one
        temporary.unlink(missing_ok=True)
        raise


def write_settings(runtime: Path, settings: Settings) -> None:
    write_private(runtime / SETTINGS_FILE, msgspec.json.encode(settings))


def read_settings(runtime: Path) -> Settings:
    return msgspec.json.decode((runtime / SETTINGS_FILE).read_bytes(), type=Settings)


def protocols(runtime: Path) -> tuple[int, int] | None:
    """Return the protocol's version of the broker there and ours; None where none is told."""
    try:
        said = msgspec.json.decode((runtime / CONNECTION_FILE).read_bytes())
        return int(said["protocol"]), PROTOCOL_VERSION
    except (OSError, msgspec.MsgspecError, ValueError, TypeError, KeyError):
        return None


def write_connection(runtime: Path, connection: Connection) -> None:
    write_private(runtime / CONNECTION_FILE, msgspec.json.encode(connection))


def read_connection(runtime: Path) -> Connection | None:
    """Return what the last broker wrote, or None when there is nothing to be read."""
    try:
        return msgspec.json.decode((runtime / CONNECTION_FILE).read_bytes(), type=Connection)
    except (OSError, msgspec.MsgspecError):
        return None
