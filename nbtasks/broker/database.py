"""An SQLite file of ours: opened, recognised, brought to our version; transactions, and syncs.

What stands in the tables is for `store` to know.

* The lock on the file is kept from opening to closing. A second broker is refused instead of
  writing beside the first.
* A file that is damaged, foreign or newer is refused before anything is written to it.
* A commit survives the death of any process. SQLite syncs before it moves the write-ahead log to
  the file; whoever needs more calls `sync`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from nbtasks.broker.file import (
    APPLICATION_ID,
    check_header,
    close_to_others,
    corrupt,
    error_of,
    log_of,
    make_private,
    too_new,
)
from nbtasks.exceptions import StoreCorrupt, StoreError
from nbtasks.wire.connection import sync

#: SQL files, in order; the first makes version 1 of an empty file, each later one the next version.
MIGRATIONS: Final = ("schema.sql", *(f"schema_{number}.sql" for number in range(2, 7)))
VERSION: Final = len(MIGRATIONS)

#: "none" is a store in memory.
DURABILITY: Final = ("full", "normal", "none")
#: Bytes of SQLite's page cache.
CACHE: Final = 2 * 1024 * 1024
#: Pages in the write-ahead log after which they are moved to the file.
CHECKPOINT: Final = 2_000
#: Bytes of the log's file that are kept between checkpoints.
LOG_LIMIT: Final = 16 * 1024 * 1024
#: Seconds to wait for the lock at opening: a process just killed holds it a little longer.
LOCK_TIMEOUT: Final = 5.0
#: Pages that are given back to the file system at once.
SHRINK: Final = 1_000

#: Data only, where the system makes a difference: that a file was written to is no news.
_sync_data = getattr(os, "fdatasync", os.fsync)


class Database:
    """The file of a store, and the connection to it.

    Parameters
    ----------
    path
        The file; it is made, for us only, when it is not there.
    durability
        As of the store.
    """

    def __init__(self, path: Path, durability: str) -> None:
        if durability not in DURABILITY:
            known = ", ".join(repr(name) for name in DURABILITY)
            raise ValueError(f"durability {durability!r} is not known: give one of {known}.")
        self.path = path
        self.durability = durability
        #: Whether something was saved that a loss of power could take back; a former process may
        #: not have come to see to that.
        self.unsynced = True
        #: Whether the disk has failed on the log. The system may take for written what it could not
        #: write, so that the next attempt succeeds and means nothing.
        self._doubtful = False
        #: Descriptor of the write-ahead log.
        self._log: int | None = None
        self._shrinking = False
        self._connection = self._open()
        self.execute = self._connection.execute
        self.executemany = self._connection.executemany
        try:
            self._set_up()
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------------------------- opening

    def _open(self) -> sqlite3.Connection:
        where = ":memory:"
        if self.durability != "none":
            make_private(self.path, self.durability == "full")
            check_header(self.path, VERSION)
            where = os.fspath(self.path)
        try:
            return sqlite3.connect(
                where, timeout=LOCK_TIMEOUT, isolation_level=None, cached_statements=64
            )
        except sqlite3.Error as error:
            raise error_of(self.path, "be opened", error) from error

    def _set_up(self) -> None:
        """Look whose file it is, and only then make it ready."""
        with self.errors("be opened"):
            self.execute("PRAGMA locking_mode = EXCLUSIVE")
            version = self._recognise()
            if version == 0:
                self.execute("PRAGMA auto_vacuum = INCREMENTAL")
            if self.durability != "none":
                close_to_others(self.path)
                self.execute("PRAGMA journal_mode = WAL")
            for setting in (
                "synchronous = NORMAL",  # the rest is for `sync`
                f"cache_size = -{CACHE // 1024}",
                f"wal_autocheckpoint = {CHECKPOINT}",
                f"journal_size_limit = {LOG_LIMIT}",
                "mmap_size = 0",
                "temp_store = MEMORY",
                "secure_delete = FAST",
            ):
                self.execute(f"PRAGMA {setting}")
            if version < VERSION:
                self._migrate(version)

    def _recognise(self) -> int:
        """Return the file's version, 0 when it is empty."""
        version = int(self.value("PRAGMA user_version"))
        application = self.value("PRAGMA application_id")
        tables = self.value("SELECT count(*) FROM sqlite_master")
        if application == APPLICATION_ID and version > VERSION:
            raise too_new(self.path, version, VERSION)
        if application != APPLICATION_ID and (application or version or tables):
            raise corrupt(self.path, "it is an SQLite database, but not one of nbtasks")
        return version

    def _migrate(self, version: int) -> None:
        """Bring the file to our version, each step and its record in one transaction."""
        for number, name in enumerate(MIGRATIONS[version:], version + 1):
            script = (Path(__file__).parent / name).read_text(encoding="utf-8")
            with self.transaction("be brought to the present version"):
                for statement in _statements(script):
                    self.execute(statement)
                if number == 1:
                    self.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                    self.set_meta("name", secrets.token_hex(16))
                self.execute(f"PRAGMA user_version = {number}")
        self.checkpoint()  # so that the file's own header tells its version

    # ------------------------------------------------------------------------------- mechanics

    @contextlib.contextmanager
    def errors(self, doing: str) -> Iterator[None]:
        """Say our errors for SQLite's in the block."""
        try:
            yield
        except (sqlite3.Error, struct.error, OverflowError, UnicodeError) as error:
            raise error_of(self.path, doing, error) from error

    @contextlib.contextmanager
    def transaction(self, doing: str, news: bool = True, joins: bool = False) -> Iterator[None]:
        """Do all of the block or nothing.

        Parameters
        ----------
        doing
            What could not be done, in an error.
        news
            Whether it saves anything that the file does not hold already, in another place: only
            that must be synced.
        joins
            Whether it is a part of the transaction that is open, if there is one.
        """
        with self.errors(doing):
            if joins and self.in_transaction():
                yield
                return
            self.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.execute("COMMIT")
                self.unsynced |= news
            except BaseException:
                if self.in_transaction():
                    self.execute("ROLLBACK")
                raise

    def in_transaction(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._connection.in_transaction

    def all(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        with self.errors("be read"):
            return self.execute(query, values).fetchall()

    def value(self, query: str, values: Sequence[Any] = ()) -> Any:
        """Return the first column of the first row, or None."""
        with self.errors("be read"):
            cursor = self.execute(query, values)
            row = cursor.fetchone()
            cursor.close()
            return None if row is None else row[0]

    def meta(self, key: str) -> str:
        """Return what the file says of itself under a key, or nothing."""
        value = self.value("SELECT value FROM meta WHERE key = ?", (key,))
        return "" if value is None else str(value)

    def set_meta(self, key: str, value: str) -> None:
        """Let the file say something of itself; in a transaction."""
        self.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))

    def sync(self) -> None:
        """Let what is saved survive a loss of power, if that is promised.

        SQLite would do so at each commit (`synchronous = FULL`); this waits for it once, and later.

        Raises
        ------
        StoreError
            When the disk fails; it may be tried again.
        """
        if not self.unsynced or self.durability != "full":
            return
        try:
            if self._log is None:
                self._log = os.open(log_of(self.path), os.O_RDWR)
                sync(self.path.parent)
            if self._doubtful:
                # All of it is written once more, elsewhere.
                if not self.checkpoint():
                    raise StoreError("somebody else reads the file, so its log cannot be emptied")
            else:
                _sync_data(self._log)
        except StoreCorrupt:
            raise
        except (OSError, StoreError) as error:
            self._doubtful = True
            raise StoreError(
                f"The store {self.path} could not be synced: {error}. What was saved last may not "
                f"survive a loss of power, so nobody is told of it until it can. Look at the disk."
            ) from error
        self.unsynced = self._doubtful = False

    def shrink(self) -> bool:
        """Give some unused pages back to the file system; return whether there are more.

        A few stay: they are soon used again.
        """
        free = self.value("PRAGMA freelist_count")
        more = bool(free > SHRINK // 4 + self.value("PRAGMA page_count") // 8)
        if more:
            self.vacuum(SHRINK)
        elif self._shrinking:
            self.checkpoint()  # the file ends where its log says only now
        self._shrinking = more
        return more

    def vacuum(self, pages: int) -> None:
        """Give so many unused pages back."""
        # The one statement that must be stepped without giving rows, which `execute` does not do.
        with self.errors("be made smaller"):
            self._connection.executescript(f"PRAGMA incremental_vacuum({pages})")

    def checkpoint(self) -> bool:
        """Move all of the write-ahead log into the file and empty it; for quiet moments.

        Return whether nobody stood in the way.
        """
        with self.errors("be tidied up"):
            [(busy, _, _)] = self.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return not busy

    def size(self) -> int:
        """Return the bytes that it takes, its log included."""
        if self.durability == "none":
            return int(self.value("PRAGMA page_count") * self.value("PRAGMA page_size"))
        files = (self.path, log_of(self.path))
        return sum(file.stat().st_size for file in files if file.exists())

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()
        if self._log is not None:
            os.close(self._log)
            self._log = None


# --------------------------------------------------------------------------------------- helpers


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of an SQL script."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
