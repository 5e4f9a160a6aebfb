"""Ended tasks, many to a row.

    Backlog ── entries ──▶ pack ┬─▶ bundles: what ended as most tasks do, some hundred to a row
                                └─▶ the rest, for the tables
    tables ◀── unpack ◀── whoever asks for one of them

Its row in the tables, and in each of their indices, is what a broker has most work with, and few
tasks are asked for once their clients have heard of them. So those that came and ended in company,
with one event and nothing special, are packed into one row. Whoever asks for one of them finds it
in the tables: all of its bundle is brought there first, for good.

So no question but those that count has to know of bundles. Nor has a change: whoever changes a task
that has ended has asked for it before, and where the disk was too full to bring it to the tables,
that is done when the change is to be written.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from nbtasks.broker.database import Database
from nbtasks.broker.file import decoder
from nbtasks.broker.journal import CallRow, Entry, StateRow
from nbtasks.broker.tables import PUT_PACKED

#: Tasks in a bundle: with fewer, rows are not dearer; with more, whoever asks for one waits.
FEWEST: Final = 32
MOST: Final = 512
#: Letters that the ids of a bundle have in common. All that one process gives begin with the same
#: 24 and count up from there: so nearly every id lies between those of one bundle only.
PREFIX: Final = 24

#: One task: its call, its state, its event.
PackedTask = tuple[CallRow, StateRow, bytes]
Packed = list[PackedTask]

_PUT: Final = """
INSERT INTO bundles (
    first, last, prefix, low, high, function, state, count, ended_first, ended_last, packed
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""

_BY_ID: Final = "SELECT bundle, low, high FROM bundles WHERE prefix = ? AND high >= ? AND low <= ?"


def _prefix(task_id: str) -> str:
    return task_id[:PREFIX]


class Bundles:
    """The bundles of a store.

    Parameters
    ----------
    database
        The store's.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = decoder(database.path, Packed, "a bundle")

    # --------------------------------------------------------------------------------- packing

    def pack(self, entries: Iterable[Entry], above: int) -> Iterator[Entry]:
        """Write what can be packed, in a transaction, and yield the rest.

        Parameters
        ----------
        entries
            What is to be written of some tasks.
        above
            The highest `seq` that has been written: what is not above it may have its row.
        """
        alike: defaultdict[tuple[str, int, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            call, state = entry.call, entry.state
            only = entry.only_event()
            # What another task has sent is asked for by that one's id.
            if call is None or state is None or only is None or call[0] <= above or call[5]:
                yield entry
                continue
            alike[_prefix(call[1]), call[2], state[2]].append(entry)
        for group in alike.values():
            if len(group) < FEWEST:
                yield from group
                continue
            for start in range(0, len(group), MOST):
                self._put(group[start : start + MOST])

    def _put(self, group: list[Entry]) -> None:
        packed: list[Any] = [(entry.call, entry.state, entry.events[0][2]) for entry in group]
        seqs = [call[0] for call, _, _ in packed]
        ids = [call[1] for call, _, _ in packed]
        ends = [state[6] for _, state, _ in packed]
        call, state, _ = packed[0]
        spans = min(seqs), max(seqs), _prefix(ids[0]), min(ids), max(ids)
        values = *spans, call[2], state[2], len(group), min(ends), max(ends)
        self._db.execute(_PUT, (*values, bytearray(self._encode(packed))))

    # -------------------------------------------------------------------------------- unpacking

    def unpack(self, bundles: Sequence[int]) -> None:
        """Bring all that is in some bundles to the tables."""
        if not bundles:
            return
        with self._db.transaction("save", news=False, joins=True):
            for number in bundles:
                rows = [(*call, *state[1:], event) for call, state, event in self._take(number)]
                self._db.executemany(PUT_PACKED, rows)

    def unpack_seqs(self, seqs: Iterable[int]) -> None:
        """Bring what may be one of these tasks to the tables."""
        where = "last >= ? AND first <= ?"
        found = {number for seq in seqs for number in self._where(where, (seq, seq))}
        self.unpack(sorted(found))

    def unpack_ids(self, task_ids: Iterable[str]) -> None:
        """Bring what may have one of these ids to the tables."""
        found: list[int] = []
        for prefix, some in groupby(sorted(task_ids), _prefix):
            ids = list(some)
            spans = self._db.all(_BY_ID, (prefix, ids[0], ids[-1]))
            for number, low, high in spans:
                first = bisect_left(ids, low)
                if first < len(ids) and ids[first] <= high:
                    found.append(number)
        self.unpack(found)

    def unpack_newest(
        self, order: str, limit: int, rows: str, values: Sequence[Any], state: str | None = None
    ) -> None:
        """Bring what may be among the newest tasks to the tables.

        Parameters
        ----------
        order
            What bundles are ordered by: `last` or `ended_last`.
        limit
            How many tasks; -1: all.
        rows, values
            The query, and what is bound in it, that tells what the tasks are ordered by that have
            rows already, newest first: with enough of them, nothing is to be done.
        state
            Only tasks in this state; None: all.
        """
        bundles = (
            f"SELECT bundle, count FROM bundles WHERE {order} >= ifnull(?, {order}) "
            f"AND state = ifnull(?, state) ORDER BY {order} DESC"
        )
        while True:
            lowest = None
            if limit > 0:
                lowest = self._db.value(f"{rows} LIMIT 1 OFFSET ?", (*values, limit - 1))
            some = self._first(self._db.all(bundles, (lowest, state)), limit)
            if not some:
                return
            self.unpack(some)

    @staticmethod
    def _first(bundles: Iterable[tuple[int, int]], limit: int) -> list[int]:
        """Return as many bundles, given with their counts, as hold `limit` tasks; -1: all."""
        found: list[int] = []
        room: float = math.inf if limit < 0 else limit
        for bundle, count in bundles:
            if room <= 0:
                break
            found.append(bundle)
            room -= count
        return found

    def unpack_expired(self, before: float) -> None:
        """Bring bundles of which a part only ended before a time to the tables."""
        self.unpack(self._where("ended_first < ? AND ended_last >= ?", (before, before)))

    def expired(self, before: float, limit: int) -> list[int]:
        """Return bundles that ended before a time, with about `limit` tasks."""
        query = "SELECT bundle, count FROM bundles WHERE ended_last < ? ORDER BY ended_last"
        return self._first(self._db.all(query, (before,)), max(limit, 0))

    def drop(self, bundles: Iterable[int]) -> list[int]:
        """Drop some bundles, in a transaction; return the `seq` of the tasks in them."""
        return [call[0] for number in bundles for call, _, _ in self._take(number)]

    def _where(self, condition: str, values: Sequence[Any]) -> list[int]:
        query = f"SELECT bundle FROM bundles WHERE {condition}"
        return [number for (number,) in self._db.all(query, values)]

    def _take(self, number: int) -> list[PackedTask]:
        """Return what is in a bundle, and drop that."""
        packed = self._db.value("SELECT packed FROM bundles WHERE bundle = ?", (number,))
        self._db.execute("DELETE FROM bundles WHERE bundle = ?", (number,))
        return self._decode(packed)
