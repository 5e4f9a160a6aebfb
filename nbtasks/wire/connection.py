"""Where a cluster's processes find each other: the runtime directory and its two files.

RUNTIME/settings.json     what the cluster was started with (written by whoever starts it)
RUNTIME/connection.json   who is serving now (written by the broker once it is bound)
RUNTIME/failed.txt        why the broker will not serve, when no restart can mend it
RUNTIME/broker.sock       the broker's socket
RUNTIME/cells/NAME        what worker NAME is doing (`nbtasks.wire.cell`)
RUNTIME/logs/*.log        what the processes print
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
import time
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
        When it cannot be made, is a symbolic link, or belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise ClusterError(
            f"nbtasks cannot use the directory {path}: {error.strerror or error}. "
            f"Its files must lie where you may write. "
            f"Give another place with start(dir=...) or NBTASKS_DIR."
        ) from error
    if not stat.S_ISDIR(status.st_mode):
        raise ClusterError(
            f"{path} is not a directory (or is a symbolic link), so nbtasks will not put its files "
            f"there. A link could lead to somebody else's place. Remove it, or give another dir."
        )
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise ClusterError(
            f"{path} belongs to user {status.st_uid}, not to you, so nbtasks will not put its "
            f"files there. Whoever owns the directory could run code as you. Give another dir."
        )
    if status.st_mode & 0o077:
        try:
            path.chmod(0o700)
        except OSError as error:
            raise ClusterError(
                f"{path} can be entered by other users and nbtasks may not close it: {error}. "
                f"Give another dir."
            ) from error
    return path


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
    with open(descriptor, "wb") as file:
        file.write(data)
    temporary.replace(path)


def write_settings(runtime: Path, settings: Settings) -> None:
    write_private(runtime / SETTINGS_FILE, msgspec.json.encode(settings))


def read_settings(runtime: Path) -> Settings:
    return msgspec.json.decode((runtime / SETTINGS_FILE).read_bytes(), type=Settings)


def write_connection(runtime: Path, connection: Connection) -> None:
    write_private(runtime / CONNECTION_FILE, msgspec.json.encode(connection))


def read_connection(runtime: Path) -> Connection | None:
    """Return what the last broker wrote, or None when there is nothing to be read."""
    try:
        return msgspec.json.decode((runtime / CONNECTION_FILE).read_bytes(), type=Connection)
    except (OSError, msgspec.MsgspecError):
        return None
