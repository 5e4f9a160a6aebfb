"""What calls and events carry: payload frames in rows, and the files that some of those refer to.

    a turn's calls, events ── write ─▶ payloads: a row for each frame ── of_calls, of_events ─▶
                                          │
                                          │ a large piece has a reference there, of 32 bytes
                                          ▼
    senders, workers ── segments ─▶ DATA/segments/3f9c... ─▶ unlinked: once its row has gone,
                                                             or when nobody has ever spoken of it

Frames lie apart from the rows of tasks, which change often, and nobody here looks into them. Files
are written and read by others. Here they are only unlinked, and not before the disk knows that no
row needs them any more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from nbtasks.broker.database import Database
from nbtasks.broker.rows import SHORT_BODY, call_payloads, joined, parts
from nbtasks.core.states import DONE, PROPAGATE_STATES
from nbtasks.core.turn import Turn
from nbtasks.wire import segments
from nbtasks.wire.connection import SEGMENTS
from nbtasks.wire.parent import alive

#: Times that a file without a row is seen before it goes.
SWEEPS: Final = 3

_PUT: Final = "INSERT OR REPLACE INTO payloads (seq, n, frame, part, data) VALUES (?, ?, ?, ?, ?)"

#: References to files, which have an index of their own; which calls have some.
_FILES: Final = "SELECT data FROM payloads INDEXED BY payloads_by_file WHERE length(data) <= 32"
_FILES_OF_TASK: Final = f"{_FILES} AND seq = ?"
_FILES_OF_CALL: Final = f"{_FILES_OF_TASK} AND n = 0"
_WITH_FILES: Final = f"{_FILES} AND n = 0".replace("data", "DISTINCT seq", 1)

_OF_EVENTS: Final = """
SELECT n, frame, data FROM payloads WHERE seq = ? AND n > ? AND n <= ? ORDER BY n, frame, part
"""

#: Frame → its data.
Frames = dict[int, bytes]


class Payloads:
    """The payloads of a store's tasks.

    Parameters
    ----------
    database
        The store's; the files lie beside it.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._folder = database.path.parent / SEGMENTS
        #: Files that are not needed once the present transaction is through; those of them that a
        #: call had before it got others.
        self._spare: set[str] = set()
        self._former: set[str] = set()
        #: Files that are not needed once the disk has what was saved.
        self.freed: set[str] = set()
        #: The same, once the disk has the files that took their place, too: for whoever knows that.
        self.replaced: set[str] = set()
        #: Files that no row referred to → how often in a row `sweep` has seen that.
        self._suspects: dict[str, int] = {}
        #: Those of them whose writers were dead when `sweep_after_dead` looked last.
        self._orphans: set[str] = set()
        self.load()

    def load(self) -> None:
        """Learn what is there: at the beginning, and when a transaction was taken back."""
        #: Tasks whose calls have large pieces in files.
        self._large: set[int] = {seq for (seq,) in self._db.all(_WITH_FILES)}

    # ----------------------------------------------------------------------------------- saving

    def write(self, turn: Turn, top: int) -> None:
        """Write what calls and events carry, and drop what nobody needs any more; in a transaction.

        Parameters
        ----------
        top
            The highest `seq` that had come before: up to it, a call is a task's next one.
        """
        if self._large:
            self._let_go_of_arguments(turn)
        self._put(turn, top)
        if turn.unwanted:
            self._refuse(turn.unwanted)
        if turn.emptied:
            self._empty(turn.emptied)

    def _put(self, turn: Turn, top: int) -> None:
        """Write what calls and events carry; what calls carried before goes."""
        others, self._spare = self._spare, set()
        self._empty(seq for seq in turn.calls if seq <= top)
        self._former, self._spare = self._spare, others
        rows = [
            part
            for new in turn.calls.values()
            if new.buffers or len(new.call.body) > SHORT_BODY
            for part in call_payloads(new)
        ]
        rows += [
            (seq, event.n, *part)
            for seq, event, buffers in turn.events
            if buffers
            for part in parts(buffers)
        ]
        if rows:
            self._db.executemany(_PUT, rows)
        for seq, n, _, _, data in rows:
            if name := segments.name_in(data):
                self._former.discard(name)  # it may have been that of the call before
                if n == 0:
                    self._large.add(seq)

    def _empty(self, seqs: Iterable[int]) -> None:
        """Drop what calls carry."""
        for seq in seqs:
            self._let_go(_FILES_OF_CALL, (seq,))
            self._db.execute("DELETE FROM payloads WHERE seq = ? AND n = 0", (seq,))

    def drop(self, seqs: Collection[int]) -> None:
        """Drop all that these tasks carry, in a transaction."""
        values = [(seq,) for seq in seqs]
        for value in values:
            self._let_go(_FILES_OF_TASK, value)
        self._db.executemany("DELETE FROM payloads WHERE seq = ?", values)
        self._large.difference_update(seqs)

    # ---------------------------------------------------------------------------------- reading

    def of_calls(self, seqs: Sequence[int]) -> dict[int, Frames]:
        """Return what the calls of some tasks carry, at most as many as one query names."""
        marks = ",".join("?" * len(seqs))
        query = (
            f"SELECT seq, frame, data FROM payloads WHERE seq IN ({marks}) AND n = 0 "
            f"ORDER BY seq, frame, part"
        )
        return _gathered(self._db.all(query, seqs))

    def of_events(self, seq: int, after: int, last: int) -> dict[int, Frames]:
        """Return what a task's events after one number and up to another carry."""
        return _gathered(self._db.all(_OF_EVENTS, (seq, after, last)))

    # ------------------------------------------------------------------------ files not needed

    @contextlib.contextmanager
    def unlinking(self) -> Iterator[None]:
        """Free the files that are not needed any more when the block is through, if it is.

        They go once the disk knows that nobody needs them: until then a loss of power would bring
        back rows that do.
        """
        self._spare.clear()
        self._former.clear()
        yield
        self.freed |= self._spare
        self.replaced |= self._former
        if self._db.durability != "full":
            segments.remove(self._folder, self.freed | self.replaced)
            self.freed.clear()
            self.replaced.clear()

    def unlink_freed(self) -> None:
        """Unlink what is not needed, now that the disk has what was saved."""
        segments.remove(self._folder, self.freed)
        self.freed.clear()

    def _refuse(self, frames: Iterable[Any]) -> None:
        """Let go of files of calls that were known already, if no row refers to them."""
        for frame in frames:
            name = segments.name_in(frame)
            if name and self._db.value(f"{_FILES} AND data = ? LIMIT 1", (bytes(frame),)) is None:
                self._spare.add(name)

    def _let_go(self, query: str, values: Sequence[Any]) -> None:
        """Note the files of rows that go."""
        for (data,) in self._db.execute(query, values):
            if name := segments.name_in(data):
                self._spare.add(name)

    def _let_go_of_arguments(self, turn: Turn) -> None:
        """Note the files of calls that will never be run again: they have not failed."""
        for seq in self._large.intersection(turn.tasks):
            task = turn.tasks[seq]
            if task.phase == DONE and task.state not in PROPAGATE_STATES:
                self._let_go(_FILES_OF_CALL, (seq,))
                self._large.discard(seq)

    # -------------------------------------------------------------------- files never spoken of

    def sweep(self, before: float = 0.0) -> None:
        """Unlink the files that no row has referred to at three sweeps in a row.

        Whoever wrote them has never spoken of them. At the first sweep they might
        be on their way, and the second may come at once when all have stood still in between (a
        machine that slept), so call it with some minutes in between.

        Parameters
        ----------
        before
            Wall clock: what is older goes at the first sweep. Few brokers live for three.
        """
        seen = {name: self._suspects.get(name, 0) + 1 for name in self._unheard_of()}
        gone = {name for name, times in seen.items() if times >= SWEEPS}
        gone |= segments.older(self._folder, seen, before)
        segments.remove(self._folder, gone)
        self._suspects = {name: times for name, times in seen.items() if name not in gone}

    def sweep_after_dead(self) -> bool:
        """Unlink the files that no row refers to and whose writers are dead, at a second look.

        At the first one, what the dead have said last may not have been read yet: call it again
        after some seconds.

        Returns
        -------
        bool
            Whether there are some that will go at the next look.
        """
        dead = {name for name in self._unheard_of() if not alive(segments.writer(name))}
        gone = dead & self._orphans
        segments.remove(self._folder, gone)
        self._orphans = dead - gone
        return bool(self._orphans)

    def _unheard_of(self) -> set[str]:
        """Return the names of the files that no row refers to."""
        there = segments.there(self._folder)
        if there:
            there.difference_update(segments.name_in(data) for (data,) in self._db.all(_FILES))
        return there

    def size_of_files(self) -> int:
        """Return the bytes that the files take."""
        return segments.size(self._folder)


def _gathered(rows: Iterable[tuple[int, int, bytes]]) -> dict[int, Frames]:
    """Return what belongs to each number of (number, frame, data), in order of frame and part."""
    found: dict[int, list[tuple[int, bytes]]] = {}
    for number, frame, data in rows:
        found.setdefault(number, []).append((frame, data))
    return {number: joined(frames) for number, frames in found.items()}
