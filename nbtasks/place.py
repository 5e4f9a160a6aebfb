"""Where a cluster's files are, what may lie there, and whether somebody is at work."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from nbtasks import config
from nbtasks.exceptions import ClusterError, ImproperlyConfigured, NotPermitted
from nbtasks.wire import locks, segments
from nbtasks.wire.connection import OUR_FILES as OUR_FILES
from nbtasks.wire.connection import (
    SEGMENTS,
    STORE_FILE,
    SUPERVISOR_LOCK,
    prepare_directory,
    read_settings,
)
from nbtasks.wire.connection import check_directory as check_directory
from nbtasks.wire.connection import check_socket_path as check_socket_path
from nbtasks.wire.connection import protocols as protocols

#: Set in workers: the runtime directory of their own cluster.
RUNTIME_VARIABLE: Final = "NBTASKS_RUNTIME"

#: Held while a cluster is started or stopped.
START_LOCK: Final = "start.lock"


class Place(NamedTuple):
    """Where a cluster's files are."""

    #: Sockets, locks, logs.
    runtime: Path
    #: The store.
    data: Path


def bytes_kept(place: Place) -> tuple[int, int]:
    """Return the bytes of the store on the disk, and of the large arguments and results beside."""
    files = (path for path in place.data.glob(f"{STORE_FILE}*") if path.is_file())
    return sum(path.stat().st_size for path in files), segments.size(place.data / SEGMENTS)


# ---------------------------------------------------------------------------------- finding it


def place_of(dir: str | os.PathLike[str] | None) -> Place:
    """Return where the files are of the cluster that is meant."""
    own = os.environ.get(RUNTIME_VARIABLE)
    dir = dir if dir is not None else own or config.settings().dir
    if dir is None:
        return _default_place()
    runtime = _absolute(dir)
    with suppress(OSError, ValueError):
        # Somebody named the runtime directory of a default cluster, whose store is elsewhere.
        data = Path(read_settings(runtime).data)
        if data.name == runtime.name and data.parent.name == runtime.parent.name == "nbtasks":
            return Place(runtime, data)
    return Place(runtime, runtime)


def _absolute(dir: str | os.PathLike[str]) -> Path:
    try:
        text = os.fsdecode(dir)
        text.encode()  # as in all that is written down of it
    except (TypeError, UnicodeEncodeError):
        text = "\0"
    if "\0" in text:
        raise ImproperlyConfigured(
            f"start(dir={dir!r}) cannot be: it is the folder of a cluster's files. "
            f"Give its path, as text (that UTF-8 can carry) or a Path."
        )
    if not text:
        raise ImproperlyConfigured(
            "dir='' names no folder: it may come from a variable that is not set. Name the folder, "
            "'.' for the present one; or leave dir away for this folder's own cluster."
        )
    text = os.path.expanduser(text)
    return Path(os.path.normpath(text if os.path.isabs(text) else os.path.join(_folder(), text)))


def _folder() -> str:
    """Return the folder that this process works in."""
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise ClusterError(
            "The folder that this process works in was removed, so nbtasks cannot tell where its "
            "cluster is. Go to another one, with os.chdir(...), or give an absolute path: "
            "start(dir=...)."
        ) from error


def _default_place() -> Place:
    """Return the place of this user's cluster for this folder and this interpreter."""
    from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

    about = "\0".join((_folder(), sys.prefix, sys.executable))
    name = hashlib.blake2b(os.fsencode(about), digest_size=6).hexdigest()
    runtime = Path(jupyter_runtime_dir()) / "nbtasks" / name
    try:
        check_socket_path(runtime)
    except ClusterError:
        # A long home directory is nobody's fault; the store stays where it belongs.
        short = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/nbtasks-{os.getuid()}"
        runtime = Path(short) / "nbtasks" / name
    return Place(runtime, Path(jupyter_data_dir()) / "nbtasks" / name)


# -------------------------------------------------------------------------- what lies there


def prepare(place: Place) -> None:
    """Make the directories, or raise an error that says why they cannot be."""
    check_socket_path(place.runtime)
    folders = dict.fromkeys((place.runtime, place.data))
    for path in folders:
        _check_ours_to_close(path)
        prepare_directory(path)
    inner = (place.runtime / "logs", place.runtime / "cells", place.data / SEGMENTS)
    files = (place.runtime / name for name in (START_LOCK, SUPERVISOR_LOCK, "broker.lock"))
    for path in (*folders, *inner, *files):
        needed = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, needed):
            raise NotPermitted(
                f"nbtasks may not write into {path}. Its files must lie where you may write. "
                f"Let yourself in (chmod u+rwX {path}), or give another place with "
                f"start(dir=...) or NBTASKS_DIR."
            )


def _check_ours_to_close(path: Path) -> None:
    """Raise ClusterError for a folder that others may enter and where more than our files lie.

    It would be closed to them, and whoever has put the rest there may not want that.
    """
    if not os.path.isdir(path) or not check_directory(path).st_mode & 0o077:
        return
    # Ours with a dot are those that are just being written.
    others = [
        name for name in os.listdir(path) if not name.lstrip(".").startswith(tuple(OUR_FILES))
    ]
    if others:
        raise ClusterError(
            f"{path} is open to other users, and there are other things in it than a cluster's "
            f"files ({min(others)}, for one). nbtasks needs a folder that only you can enter, and "
            f"will not close this one. Give one inside it, dir={str(path / 'nbtasks')!r}; or, if "
            f"it is for you alone, close it yourself: chmod 700 {path}."
        )


def forget_store(place: Place) -> None:
    """Remove the store and what refers to it. The start lock is held and nobody is at work."""
    for path in place.data.glob(f"{STORE_FILE}*"):
        path.unlink()
    segments.remove(place.data / SEGMENTS, segments.there(place.data / SEGMENTS))
    for path in (place.runtime / "cells").glob("*"):
        path.unlink()


def is_running(place: Place) -> bool:
    """Return whether a supervisor is at work there."""
    return locks.is_held(place.runtime / SUPERVISOR_LOCK)
