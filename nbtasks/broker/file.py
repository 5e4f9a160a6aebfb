"""The file of a store: made for us alone, and looked at before SQLite touches it.

And what is said when it cannot be used: a file that is damaged, newer or another program's is
refused by name and left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from nbtasks.exceptions import StoreCorrupt, StoreError, StoreTooNew
from nbtasks.wire.connection import sync

_T = TypeVar("_T")

#: `application_id` of our files: "nbts".
APPLICATION_ID: Final = 0x6E627473

_HEADER: Final = 100
_MAGIC: Final = b"SQLite format 3\0"


def make_private(path: Path, durable: bool) -> None:
    """Make the file, for us only, when it is not there; SQLite gives its log the same mode.

    The way to it shall survive a loss of power, too: SQLite cares for its own directory only, and
    that may be as new as the file.
    """
    try:
        is_new = not path.exists()
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        for folder in path.resolve().parents if is_new and durable else ():
            with contextlib.suppress(PermissionError):  # made by others, so not just now
                sync(folder)
    except OSError as error:
        raise StoreError(
            f"The store {path} cannot be written: {error.strerror or error}. nbtasks keeps what it "
            f"must not forget there. Make the file and its directory writable for you, or give "
            f"another place with start(dir=...)."
        ) from error


def close_to_others(path: Path) -> None:
    for file in (path, log_of(path)):
        with contextlib.suppress(OSError):
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def check_header(path: Path, newest: int) -> None:
    """Refuse what is not ours, or newer, by its first bytes, before SQLite touches it."""
    with path.open("rb") as file:
        header = file.read(_HEADER)
    if not header:
        return
    if len(header) < _HEADER or not header.startswith(_MAGIC):
        raise corrupt(path, "it is not an SQLite database")
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if application == APPLICATION_ID and version > newest:
        raise too_new(path, version, newest)


def corrupt(path: Path, why: object) -> StoreCorrupt:
    return StoreCorrupt(
        f"The store {path} cannot be read: {why}. The file may be damaged, or belong to another "
        f"program; it was left as it is. Restore a copy of it, or move it away (with its -wal, if "
        f"there is one): the next start makes a new, empty store."
    )


def too_new(path: Path, version: int, newest: int) -> StoreTooNew:
    return StoreTooNew(
        f"The store {path} has version {version}, this nbtasks knows up to version {newest}. A "
        f"later nbtasks has written it, and it was left as it is. Upgrade with `pip install -U "
        f"nbtasks`, or use another store with start(dir=...)."
    )


def decoder(path: Path, kind: type[_T], name: str = "") -> Callable[[bytes | bytearray], _T]:
    """Return a function that reads what the store holds as msgpack.

    Parameters
    ----------
    path
        The store.
    kind, name
        What it is to be, and how that is called in errors: by default, as the class.
    """
    decode = msgspec.msgpack.Decoder(kind).decode
    name = name or f"a {kind.__name__}"

    def read(data: bytes | bytearray) -> _T:
        try:
            return decode(data)
        except (msgspec.MsgspecError, ValueError, TypeError) as error:
            raise corrupt(path, f"where {name} should be, {error}") from error

    return read


def is_damage(error: Exception) -> bool:
    """Return whether an error of SQLite, or of reading a row, comes from a damaged file."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Text that is no UTF-8; a blob that is not what we wrote.
        return isinstance(error, (sqlite3.OperationalError, struct.error))
    damage = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return code & 0xFF in damage or code == sqlite3.SQLITE_IOERR_SHORT_READ


def error_of(path: Path, doing: str, error: Exception) -> StoreError:
    """Return our error for one of SQLite's."""
    if is_damage(error):
        return corrupt(path, error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreError(
            f"The store {path} is in use: {error}. Another process, perhaps another broker or a "
            f"database tool, has it open. Stop that (nbtasks stop), or use another dir."
        )
    hint = (
        "The disk (or a quota) is full: free some space, and it goes on by itself."
        if code == sqlite3.SQLITE_FULL
        else "Look at the disk and at the rights of the file and its directory."
    )
    return StoreError(
        f"The store {path} could not {doing}: {error}. What was saved before is safe, of this "
        f"nothing was. {hint}"
    )
