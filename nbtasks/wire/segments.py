"""Large pieces of values: files of the cluster that receivers map, instead of bytes on the wire.

    sender    keep(view) ──▶ DATA/segments/3f9c...    written once, then linked
                   │
                   └─▶ reference (32 bytes), which travels and is stored in place of the piece
                                       │
    receiver                 opened(reference) ──▶ the file, mapped

* The mapping is copied on write: what a receiver does to its array is its own affair.
* Each reference has a file name of its own. The same bytes sent again get a second name for the
  same file (a hard link), so it is the file system that counts who needs them, and to free is to
  unlink.
* The broker never reads a file. It has the disk keep it before it accepts the call that refers to
  it (`broker.disk`). It unlinks a name together with the row that held it, and what no row has ever
  held: whoever wrote that died before the broker heard of it. So a name tells whose it is.
* Where a file cannot be made (a full disk, for one), the piece travels as any small one does.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import re
import secrets
import stat
import struct
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

from nbtasks.exceptions import ClusterError, DecodeError
from nbtasks.wire.connection import SEGMENTS, Settings, prepare_directory, read_settings

log = logging.getLogger("nbtasks")

Buffer = bytes | bytearray | memoryview

#: Pieces from this size on (bytes) go into files.
LARGE: Final = 256 * 1024
#: Files that this process has written and may link to.
REMEMBERED: Final = 4_096
#: Names of one piece that are remembered: the newest may be freed before an older one.
NAMES: Final = 64
#: Bytes of a piece by which it is recognised before it is compared.
SAMPLES: Final = 256
#: Pieces that look the same and differ, of which files are remembered: each may be compared.
ALIKE: Final = 4
#: Bytes that are compared at once: few enough to stay near the processor.
COMPARED: Final = 1024 * 1024
#: Bytes that are written at once: an interrupt has to wait for no more.
WRITTEN: Final = 32 * 1024 * 1024
#: Mapped files of a process: each holds a descriptor. Further ones are read.
MOST_MAPPED: Final = 256

#: No other payload frame is as short as a reference.
_REFERENCE: Final = struct.Struct(">8sQ16s")
_MAGIC: Final = b"\0segment"
_NAME: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)

#: Where this process looks for what a reference names.
_folders: dict[Path, None] = {}
_mapped: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


class Reference(bytes):
    """Travels in place of a piece.

    Parameters
    ----------
    name
        Of the file.
    size
        Bytes of the piece.
    written
        Bytes that were written for it: none where a file held the piece already.
    """

    written: int

    def __new__(cls, name: str, size: int, written: int = 0) -> Reference:
        """Put it into the bytes that travel."""
        made = super().__new__(cls, _REFERENCE.pack(_MAGIC, size, bytes.fromhex(name)))
        made.written = written
        return made


class Segments:
    """The folder of a cluster, for a process that sends.

    Parameters
    ----------
    folder
        It is made when there is something to put into it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        #: What a piece looks like at a glance → for each that looks so, names of its file.
        self._known: dict[tuple[int, bytes], deque[deque[str]]] = {}
        #: What `hold` has written, mapped read-only → name of a file that still holds it.
        self._held: weakref.WeakKeyDictionary[mmap.mmap, str] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        _folders[folder] = None

    def keep(self, view: memoryview) -> Buffer:
        """Return what is to travel for a piece: a reference, or a copy of what is not large."""
        return self._in_file(view, self._refer)

    def hold(self, view: memoryview) -> Buffer:
        """Return a piece as it is now, for `keep` to send again and again without a look at it.

        The file's name is ours for as long as somebody has what is returned.
        """
        return self._in_file(view, self._map)

    def _in_file(self, view: memoryview, put: Callable[[memoryview], Buffer]) -> Buffer:
        """Put a piece into a file, or copy it where it is not large or there is no place."""
        if view.nbytes < LARGE:
            return bytes(view)
        try:
            return put(view)
        except (OSError, ClusterError) as error:
            log.warning("cannot put %d bytes into %s: %s", view.nbytes, self._folder, error)
            return bytes(view)

    def _refer(self, view: memoryview) -> Buffer:
        return self._put_held(view) or self._put(view)

    def _map(self, view: memoryview) -> Buffer:
        name = _new_name()
        path = self._folder / name
        self._write(name, view)
        with path.open("rb") as file:
            held = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._held[held] = name
        weakref.finalize(held, _remove_own, path, os.getpid())
        return memoryview(held)

    def _put_held(self, view: memoryview) -> Reference | None:
        """Give a piece that `hold` has written one more name; None when it is no such."""
        mapping = mapping_of(view)
        known = None if mapping is None else self._held.get(mapping)
        if mapping is None or known is None:
            return None
        name = _new_name()
        try:
            (self._folder / name).hardlink_to(self._folder / known)
        except OSError:  # swept away, or a file system without links
            self._write(name, view)
            self._held[mapping] = name
            return Reference(name, view.nbytes, view.nbytes)
        return Reference(name, view.nbytes)

    def _put(self, view: memoryview) -> Reference:
        look = (view.nbytes, _glance(view))
        with self._lock:
            alike = deque(filter(None, self._known.pop(look, ())), ALIKE)
        name = _new_name()
        known = next((known for known in reversed(alike) if self._link(known, name, view)), None)
        written = 0 if known else view.nbytes
        if known is None:
            self._write(name, view)
            known = deque(maxlen=NAMES)
            alike.append(known)
        known.append(name)
        with self._lock:
            self._known[look] = alike
            if len(self._known) > REMEMBERED:
                del self._known[next(iter(self._known))]
        return Reference(name, view.nbytes, written)

    def _link(self, known: deque[str], name: str, view: memoryview) -> bool:
        """Give a file one more name if it (still) holds these bytes; return whether it does."""
        path = self._folder / name
        while known:
            try:
                path.hardlink_to(self._folder / known[-1])
                break
            except OSError:  # freed meanwhile, or a file system without links
                known.pop()
        else:
            return False
        with contextlib.suppress(OSError):
            if _is_same(path, view):
                return True
        path.unlink()
        return False

    def _write(self, name: str, view: memoryview) -> None:
        prepare_directory(self._folder)
        path = self._folder / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags, 0o600), "wb", buffering=0) as file:
            try:
                written = 0
                while written < view.nbytes:
                    written += file.write(view[written : written + WRITTEN])
            except BaseException:  # an interrupt, too
                path.unlink()
                raise


def mapping_of(view: memoryview) -> mmap.mmap | None:
    """Return the mapped file that a view shows, or None."""
    source = view.obj
    while isinstance(source, memoryview):
        source = source.obj
    return source if isinstance(source, mmap.mmap) else None


def of_cluster(runtime: Path) -> Segments:
    """Return the segments of the cluster whose runtime directory that is."""
    try:
        settings = read_settings(runtime)
    except FileNotFoundError:
        settings = Settings(data=str(runtime), workers=1)
    return Segments(Path(settings.data) / SEGMENTS)


def withdraw(frames: Iterable[Buffer]) -> None:
    """Unlink what this process has kept for frames that will not travel after all."""
    names = list(filter(None, map(name_in, frames)))
    for folder in list(_folders):
        remove(folder, names)


def _new_name() -> str:
    """Return a name that nobody else takes, and that tells who has taken it (`writer`)."""
    return secrets.token_hex(12) + f"{os.getpid():08x}"


def _glance(view: memoryview) -> bytes:
    """Return some bytes of a large piece.

    An odd number apart: among numbers of eight bytes it would else be always the same one of the
    eight, which may be zero in all of them.
    """
    return view[:: view.nbytes // SAMPLES | 1].tobytes()


def _remove_own(path: Path, pid: int) -> None:
    """Remove a file that this process, and none that it was forked from, has written."""
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            path.unlink()


def _is_same(path: Path, view: memoryview) -> bool:
    # A bytearray is compared by memcmp, a memoryview item by item.
    piece = bytearray(COMPARED)
    with path.open("rb", buffering=0) as file:
        for start in range(0, view.nbytes, COMPARED):
            read = file.readinto(piece)
            if (piece if read == COMPARED else piece[:read]) != view[start : start + COMPARED]:
                return False
        return not file.read(1)


# -------------------------------------------------------------------------------------- receiving


def name_in(frame: Buffer) -> str | None:
    """Return the name of the file that a payload frame refers to; None where it is no reference."""
    if len(frame) != _REFERENCE.size or bytes(frame[: len(_MAGIC)]) != _MAGIC:
        return None
    return bytes(frame[-16:]).hex()


def length(frame: Buffer) -> int:
    """Return the bytes of a payload frame, wherever they are."""
    if name_in(frame) is None:
        return memoryview(frame).nbytes
    return int(_REFERENCE.unpack(frame)[1])


def cost(frame: Buffer) -> int:
    """Return the bytes that a payload frame has taken of memory or disk, for whoever sends it."""
    return frame.written if isinstance(frame, Reference) else memoryview(frame).nbytes


def opened(frame: Buffer) -> Buffer:
    """Return the bytes that a payload frame stands for.

    Raises
    ------
    DecodeError
        When they lie in a file that is not there any more, or damaged.
    """
    name = name_in(frame)
    if name is None:
        return frame
    size = length(frame)
    for folder in list(_folders):
        with contextlib.suppress(FileNotFoundError), _open(folder / name) as file:
            if os.fstat(file.fileno()).st_size != size or not size:
                raise _unreadable(folder / name, f"it has not the {size} bytes that were written")
            if len(_mapped) >= min(MOST_MAPPED, _descriptors() // 4):
                return bytearray(file.read())
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            _mapped.add(mapped)
            return memoryview(mapped)
    raise DecodeError(
        f"A part of the value is gone: its {size} bytes lay in a file of the cluster ({name}). "
        f"Arguments are kept until their task has succeeded, results until they are forgotten or "
        f"expire (result_expires), and both until the cluster is purged. Send the task again."
    )


@cache
def _descriptors() -> int:
    """Return how many descriptors this process may have."""
    try:
        import resource
    except ImportError:  # not on Windows, where there are enough
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft < 0 else soft


def _open(path: Path) -> BinaryIO:
    """Open a file of ours to read: neither a link, nor what waits for a writer, nor another's."""
    try:
        file = open(path, "rb", buffering=0, opener=_without_following)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise DecodeError(
                f"A part of the value cannot be read from {path}: {error.strerror}. The file is "
                f"unharmed. Close files that are not needed any more, and try again."
            ) from error
        raise _unreadable(path, error.strerror or str(error)) from error
    status = os.fstat(file.fileno())
    if stat.S_ISREG(status.st_mode) and (os.name == "nt" or status.st_uid == os.getuid()):
        return file
    file.close()
    raise _unreadable(path, "it is not a file of yours")


def _without_following(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _unreadable(path: Path, why: str) -> DecodeError:
    return DecodeError(
        f"A part of the value cannot be read from {path}: {why}. The file is damaged, or something "
        f"other than nbtasks has put it there. Send the task again."
    )


# ---------------------------------------------------------------------------------- for the broker


def there(folder: Path) -> set[str]:
    """Return the names of the files in a folder; none where there is no folder, or no way in."""
    try:
        return {name for name in os.listdir(folder) if _NAME.fullmatch(name)}
    except OSError:
        return set()


def writer(name: str) -> int:
    """Return the pid of the process that has written a file, or linked it."""
    return int(name[-8:], 16)


def older(folder: Path, names: Iterable[str], before: float) -> set[str]:
    """Return those that were last written or linked before a time (wall clock)."""
    found = set()
    for name in names:
        with contextlib.suppress(OSError):
            if (folder / name).stat().st_ctime < before:
                found.add(name)
    return found


def remove(folder: Path, names: Iterable[str]) -> None:
    """Unlink files; what nobody else has linked or mapped gives its room back."""
    for name in names:
        try:
            (folder / name).unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s: %s", folder / name, error)


def size(folder: Path) -> int:
    """Return the bytes that the files of a folder take."""
    found: dict[tuple[int, int], int] = {}
    for name in there(folder):
        with contextlib.suppress(OSError):
            status = (folder / name).stat()
            found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())
