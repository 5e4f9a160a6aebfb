"""The functions that tasks run: each digest and name once, and the code that has come for it.

    a turn's calls ──── add ───▶ functions: digest, name ─┐ one key, which is all
    a turn's Defines ── write ─▶ its code, its policy ────┘ that a task's row holds
                                      │
                       whoever runs or checks a call ◀─ definition

A call may come before the code of its function, and a call by name may never have any: so either of
them makes the row. What is sent again gets a higher version, and a call by name the highest one.

All keys are in memory, as each call that comes and each task that is told of needs one of them. The
code is not: it is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from nbtasks.broker.database import Database
from nbtasks.broker.file import corrupt, decoder
from nbtasks.broker.rows import joined, parts
from nbtasks.core.messages import Define, Now
from nbtasks.core.turn import Buffers

#: Digest of the code (empty: called by name), and name of the task.
Names = tuple[bytes, str]

_ADD: Final = "INSERT INTO functions (digest, name, saved_at, version) VALUES (?, ?, ?, ?)"

#: The code of a function; its row may stand already, made by the first call.
_PUT: Final = """
INSERT INTO functions (digest, name, saved_at, version, definition) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest, name) DO UPDATE SET
    saved_at = excluded.saved_at, version = excluded.version, definition = excluded.definition
"""
_PUT_PAYLOAD: Final = (
    "INSERT INTO function_payloads (function, frame, part, data) VALUES (?, ?, ?, ?)"
)

_BY_DIGEST: Final = """
SELECT function, definition FROM functions
WHERE digest = ? AND definition IS NOT NULL ORDER BY version DESC LIMIT 1
"""
_BY_NAME: Final = """
SELECT function, digest FROM functions
WHERE name = ? AND definition IS NOT NULL ORDER BY version DESC LIMIT 1
"""
_PAYLOADS: Final = (
    "SELECT frame, data FROM function_payloads WHERE function = ? ORDER BY frame, part"
)

_OLD: Final = "SELECT function FROM functions WHERE saved_at < ?"
#: The last version of each name; what is known by its name only has no other.
_LAST: Final = """
SELECT function FROM functions AS mine WHERE definition IS NULL OR version = (
    SELECT max(version) FROM functions WHERE name = mine.name AND definition IS NOT NULL
)
"""


class Functions:
    """The functions of a store.

    Parameters
    ----------
    database
        The store's.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = decoder(database.path, Define)
        #: Those that this broker has saved or looked up.
        self._in_use: set[int] = set()
        self.load()

    def load(self) -> None:
        """Learn which there are: at the beginning, and when a transaction was taken back."""
        rows = self._db.all("SELECT digest, name, function FROM functions")
        #: Names → key of the function, and back.
        self.keys: dict[Names, int] = {(digest, name): key for digest, name, key in rows}
        self._names: dict[int, Names] = {key: names for names, key in self.keys.items()}
        #: The highest of all.
        self._version = int(self._db.value("SELECT ifnull(max(version), 0) FROM functions"))

    # ----------------------------------------------------------------------------------- saving

    def write(self, saved: Iterable[tuple[Define, Buffers]], now: Now) -> None:
        """Write the code of functions, in a transaction."""
        for define, buffers in saved:
            self._version += 1
            names = (define.digest, define.name)
            self._db.execute(_PUT, (*names, now.wall, self._version, self._encode(define)))
            function = int(
                self._db.value(
                    "SELECT function FROM functions WHERE digest = ? AND name = ?", names
                )
            )
            self._remember(names, function)
            self._db.execute("DELETE FROM function_payloads WHERE function = ?", (function,))
            self._db.executemany(_PUT_PAYLOAD, [(function, *part) for part in parts(buffers)])

    def add(self, digest: bytes, name: str, now: Now) -> int:
        """Make the row of a function whose code has not come (yet), and return its key."""
        function = self._db.execute(_ADD, (digest, name, now.wall, self._version)).lastrowid
        assert function is not None
        self._remember((digest, name), function)
        return function

    def _remember(self, names: Names, function: int) -> None:
        self.keys[names] = function
        self._names[function] = names
        self._in_use.add(function)

    # ---------------------------------------------------------------------------------- reading

    def names_of(self, function: int) -> Names:
        """Return digest and name of a function that a task refers to."""
        names = self._names.get(function)
        if names is None:
            why = f"a task refers to function {function}, which is not there"
            raise corrupt(self._db.path, why)
        return names

    def definition(self, digest: bytes) -> tuple[Define, tuple[bytes, ...]] | None:
        """Return a function's code with its payload frames, or None when it has never come."""
        rows = self._db.all(_BY_DIGEST, (digest,))
        if not rows:
            return None
        [(function, definition)] = rows
        self._in_use.add(function)
        frames = self._db.all(_PAYLOADS, (function,))
        return self._decode(definition), tuple(joined(frames).values())

    def definition_named(self, name: str) -> bytes | None:
        """Return the digest of the code that came last for a task's name, or None."""
        rows = self._db.all(_BY_NAME, (name,))
        if not rows:
            return None
        [(function, digest)] = rows
        self._in_use.add(function)
        return bytes(digest)

    # ----------------------------------------------------------------------------- housekeeping

    def expired(self, before: float) -> set[int]:
        """Return the functions that may go unless a task needs them.

        Of what this broker has saved or looked up, the last version of each name stays: it may be
        sent by that.

        Parameters
        ----------
        before
            Wall clock: what has come since then stays.
        """
        old = {function for (function,) in self._db.all(_OLD, (before,))}
        last = {function for (function,) in self._db.all(_LAST)}
        return old - (self._in_use & last)

    def drop(self, functions: set[int]) -> list[bytes]:
        """Drop some functions; return the digests of their codes."""
        if not functions:
            return []
        values = [(function,) for function in functions]
        with self._db.transaction("drop what has expired"):
            for table in ("function_payloads", "functions"):
                self._db.executemany(f"DELETE FROM {table} WHERE function = ?", values)
        self._in_use -= functions
        dropped = [self._names.pop(function) for function in functions]
        for names in dropped:
            del self.keys[names]
        return [digest for digest, _ in dropped if digest]
