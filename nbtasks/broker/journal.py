"""What is saved and not yet in its tables.

    Store.commit ── Changes ──▶ journal: one row a turn, on the disk with the commit
                       └──────▶ Backlog: the same in memory, each task once ──▶ tables, later

A row of its own for each change of each task would be more than half of all that a broker does. So
a turn is saved as one row: the rows that it changes, as they shall be. They reach their tables many
turns at once, and most tasks have begun and ended by then: each is written once instead of three
times. After a crash the journal is read, and all goes on as before; to write something twice does
no harm, as each row says how it shall be and the last one wins.

Knows no database.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

# A journal lives for seconds, but a bundle as long as results are kept: what these tuples say must
# be understood by later versions.

#: seq, id, function, client, accepted_at, parent, root, call.
CallRow = tuple[int, str, int, bytes, float, str, str, bytes]
#: seq, phase, state, n, worker, ticket, ended_at; then, where a task has anything special: client,
#: priority, queue, retries, deaths, due, due_at, eta, expires, wish, limit_at.
StateRow = tuple[Any, ...]
#: seq, n, event.
EventRow = tuple[int, int, bytes]
#: ticket, seq.
Pair = tuple[int, int]

#: Columns of a state that has nothing special.
USUAL: Final = 7


class Changes(msgspec.Struct, array_like=True):
    """What a turn changes, as rows.

    Stores of former versions hold it: whatever is added must have a default.
    """

    calls: list[CallRow] = []
    states: list[StateRow] = []
    events: list[EventRow] = []
    #: Worker → what it was given.
    given: dict[str, list[Pair]] = {}
    #: Worker → below which ticket that is over.
    cleared: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.calls or self.states or self.events or self.given or self.cleared)


class Entry:
    """What is to be written of one task."""

    __slots__ = ("call", "events", "since", "size", "state")

    def __init__(self, since: int) -> None:
        #: The turn of the first change that is not in the tables.
        self.since = since
        self.call: CallRow | None = None
        self.state: StateRow | None = None
        self.events: list[EventRow] = []
        #: Bytes of the calls and events that came for it.
        self.size = 0

    def only_event(self) -> bytes | None:
        """Return the one event of a task that ended with it and has nothing special, or None."""
        state, events = self.state, self.events
        if (
            state is not None
            and len(events) == 1
            and len(state) == USUAL
            and state[6] is not None
            and state[3] == events[0][1] == 1
        ):
            return events[0][2]
        return None


class Oldest(NamedTuple):
    """The part of a backlog that is to be written next."""

    entries: dict[int, Entry]
    #: The turns before this one are not needed any more, once that is written.
    before: int


class Backlog:
    """What is in the journal and not yet in its tables, the oldest first."""

    def __init__(self) -> None:
        #: By seq.
        self.entries: dict[int, Entry] = {}
        #: Worker → below which ticket what it was given is over, where the tables do not say so.
        self.cleared: dict[str, int] = {}
        #: Events that are rows of their own: of most tasks the only one is none.
        self._events = 0
        #: Bytes of the calls and events that came for those in it.
        self.size = 0
        #: Turn, worker and what it was given then.
        self._given: deque[tuple[int, str, list[Pair]]] = deque()
        #: As `cleared`, of all whose notes may still be here.
        self._over: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self.entries or self._given or self.cleared)

    def __len__(self) -> int:
        """Return how many rows are to be written, about."""
        return len(self.entries) + self._events

    def add(self, turn: int, changes: Changes) -> None:
        """Take in what a turn has changed."""
        entries = self.entries
        for row in changes.calls:
            entry = entries.get(row[0])
            if entry is None:
                entry = entries[row[0]] = Entry(turn)
            if entry.call is not None:  # that it comes again changes nothing else of it
                row = (*entry.call[:-1], row[-1])
            entry.call = row
            size = len(row[-1])
            entry.size += size
            self.size += size
        for state in changes.states:
            entry = entries.get(state[0])
            if entry is None:
                entry = entries[state[0]] = Entry(turn)
            entry.state = state
        for event in changes.events:
            entry = entries.get(event[0])
            if entry is None:
                entry = entries[event[0]] = Entry(turn)
            self._events += bool(entry.events)
            entry.events.append(event)
            size = len(event[2])
            entry.size += size
            self.size += size
        for worker, pairs in changes.given.items():
            self._given.append((turn, worker, pairs))
        self.cleared |= changes.cleared
        self._over |= changes.cleared

    def oldest(self, rows: int | None, coming: int) -> Oldest:
        """Return what is to be written next: all that began in some turns.

        So after a crash no call is found in the journal that had been written.

        Parameters
        ----------
        rows
            How many rows, about; None: all.
        coming
            The turn that comes next.
        """
        found: dict[int, Entry] = {}
        room = len(self) if rows is None else rows
        since = 0
        for seq, entry in self.entries.items():
            if room <= 0 and entry.since != since:
                return Oldest(found, entry.since)
            found[seq] = entry
            since = entry.since
            room -= max(1, len(entry.events))
        return Oldest(found, coming)

    def notes_before(self, turn: int) -> Iterator[tuple[str, list[Pair]]]:
        """Yield what workers were given before a turn, as far as it is not over."""
        for when, worker, pairs in self._given:
            if when >= turn:
                break
            if pairs[-1][0] >= self._over.get(worker, 0):
                yield worker, pairs

    def drop(self, written: Oldest) -> None:
        """Let go of what is in the tables now, notes and all."""
        for seq in written.entries:
            entry = self.entries.pop(seq)
            if len(entry.events) > 1:
                self._events -= len(entry.events) - 1
            self.size -= entry.size
        while self._given and self._given[0][0] < written.before:
            self._given.popleft()
        if not self._given:
            self._over.clear()
        self.cleared.clear()
