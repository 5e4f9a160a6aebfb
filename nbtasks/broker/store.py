"""What a cluster must not forget: one SQLite file, written by the broker alone.

    Scheduler ── Turn ─▶ Store.commit ─▶ one transaction a turn ─▶ store.sqlite-wal ─▶ store.sqlite
                                                          (`sync` in "full")   (checkpoints)

* All saves of a turn become one transaction, so a state, its event and the acknowledgement that
  follows cannot part. A task that changed several times in a turn is written once, as it is at the
  end; saving the same turn again, after a full disk, changes nothing.
* What is committed survives the death of any process. That it survives a loss of power too is for
  whoever waits to be told: `sync` is called before, and not before a call is given to a worker.
* The rows that change often are small: long bodies and buffers lie in tables of their own.
* What a turn changes of tasks is saved as one row of a journal, and brought to the tables later
  (`journal`); whoever reads finds it there.
* Tasks that ended in company, as most do, lie many to a row until one is asked for (`bundles`).
* What tasks run and what they carry lies in tables of its own (`functions`, `payloads`), large
  pieces in files beside them.

The tables and their units are in `schema.sql`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from nbtasks.broker.boot import boot_id
from nbtasks.broker.bundles import Bundles
from nbtasks.broker.database import Database
from nbtasks.broker.file import corrupt, decoder
from nbtasks.broker.functions import Functions
from nbtasks.broker.journal import Backlog, CallRow, Changes, Oldest
from nbtasks.broker.payloads import Payloads
from nbtasks.broker.rows import (
    BODY,
    SHORT_BODY,
    TaskRow,
    is_as_new,
    pack_given,
    shown_name,
    state_row,
    unpack_given,
    without_known,
)
from nbtasks.broker.tables import PUT_EVENT, statements
from nbtasks.core.messages import Call, Event, Now
from nbtasks.core.states import ASSIGNED
from nbtasks.core.turn import Turn
from nbtasks.exceptions import StoreCorrupt, StoreError

#: Values that one query names (SQLite before 3.32 takes 999).
NAMED: Final = 999
#: Ended tasks among which those that ended in some state are looked for.
LATELY: Final = 1_000
#: Children that are told of one task, and of all tasks of one question.
CHILDREN: Final = 1_000
FAMILIES: Final = 5_000
#: Rows that may be in the journal and not yet in their tables (to write them takes some tenths of a
#: second, and whoever asks about tasks may have to wait for that), and the bytes of them. A task
#: that ends while it is still there costs half as much as others.
BACKLOG: Final = 32_000
BACKLOG_BYTES: Final = 16 * 1024 * 1024
#: Rows that are brought there at once, when there are too many.
STRIDE: Final = 1_000


# ------------------------------------------------------------------------------------------ SQL

_COLUMNS = (
    "seq, function, id, client, priority, queue, phase, state, n, retries, deaths, due, eta, "
    "expires, worker, ticket, ended_at, wish, limit_at, parent, root, accepted_at, call"
)

_PUT_TURN = "INSERT INTO journal (turn, changes) VALUES (?, ?)"

_ENDS = "SELECT ended_at FROM tasks WHERE ended_at IS NOT NULL ORDER BY ended_at DESC"
_ENDED = f"""
SELECT {_COLUMNS} FROM tasks WHERE seq IN (
    SELECT seq FROM (
        SELECT seq, state FROM tasks INDEXED BY tasks_by_end WHERE ended_at IS NOT NULL
        ORDER BY ended_at DESC, seq DESC LIMIT ?
    ) WHERE state = ifnull(?, state) LIMIT ?
) ORDER BY ended_at DESC, seq DESC
"""

#: What counts tasks looks into bundles, too.
_COUNTS = """
SELECT state, sum(count) FROM (
    SELECT state, count(*) AS count FROM tasks INDEXED BY tasks_by_end GROUP BY state
    UNION ALL SELECT state, count FROM bundles
) GROUP BY state
"""
_LAST_SEQ = """
SELECT max((SELECT ifnull(max(seq), 0) FROM tasks), (SELECT ifnull(max(last), 0) FROM bundles))
"""
_USED_FUNCTIONS = """
SELECT function FROM tasks INDEXED BY tasks_by_end UNION SELECT function FROM bundles
"""

_CHILDREN = """
SELECT id, function, call FROM tasks WHERE parent = ? AND parent != '' ORDER BY seq LIMIT ?
"""

#: After another boot the boot clock starts anew: what `due` means now, by the wall clock. What was
#: running is so no more.
_TURN_CLOCK = """
UPDATE tasks SET due = due_at - ?, limit_at = NULL
WHERE ended_at IS NULL AND (due IS NOT NULL OR limit_at IS NOT NULL)
"""


# --------------------------------------------------------------------------------------- helpers


def _ticks(now: Now) -> int:
    """Return a number that rises faster than tickets are given, until the next boot."""
    return int(now.boot * 1000) << 12


def _in_parcels(values: Iterable[Any]) -> Iterator[tuple[list[Any], str]]:
    """Yield some of the values, and the SQL that stands for them after IN."""
    rest = list(values)
    for start in range(0, len(rest), NAMED):
        some = rest[start : start + NAMED]
        yield some, f"({','.join('?' * len(some))})"


# ----------------------------------------------------------------------------------------- store


class Store:
    """The cluster's memory on disk.

    Parameters
    ----------
    path
        The file; it is made, for us only, when it is not there.
    durability
        "full": what is committed survives a loss of power. "normal": it survives the death of any
        process; power may take the last moments. "none": in memory, gone with the process.

    Raises
    ------
    StoreTooNew
        When a later version of nbtasks has written the file.
    StoreCorrupt
        When the file is damaged, or no store.
    StoreError
        When it cannot be opened or written.
    """

    def __init__(self, path: Path, durability: str) -> None:
        self.path = path
        self._encode = msgspec.msgpack.Encoder().encode
        self._call = decoder(path, Call)
        self._event = decoder(path, Event)
        #: Whether tasks have gone since functions were last looked through.
        self._tasks_gone = True
        self._clock_set = False
        #: What is in the journal only, and the number of the turn that comes next.
        self._backlog = Backlog()
        self._turn = 1
        self._db = Database(path, durability)
        try:
            #: Random name of this store.
            self.name = self._db.meta("name")
            self._bundles = Bundles(self._db)
            self._take_up_journal()
            self._top = self.last_seq()
            #: What tasks run, and what they carry.
            self.functions = Functions(self._db)
            self.payloads = Payloads(self._db)
        except BaseException:
            self._db.close()
            raise

    def _set_clock(self, now: Now) -> None:
        """After another boot, say again on the new boot clock what is due when."""
        if self._clock_set:
            return
        present = boot_id()
        is_new = present != self._db.meta("boot_id")
        # A clock that went back has begun anew.
        is_new |= now.boot < self._number("boot_clock", math.inf)
        if is_new:
            self.settle()
            offset = max(0, self._last_ticket() - _ticks(now))
            with self._db.transaction("save"):
                self._db.execute(_TURN_CLOCK, (now.wall - now.boot,))
                self._db.set_meta("boot_id", present)
                self._db.set_meta("boot_clock", str(now.boot))
                self._db.set_meta("ticket_offset", str(offset))
        elif not present:
            with self._db.transaction("save"):
                self._db.set_meta("boot_clock", str(now.boot))
        self._clock_set = True

    # --------------------------------------------------------------------------------- saving

    def commit(self, turn: Turn, now: Now) -> None:
        """Save a turn: all of it, or nothing.

        Raises
        ------
        StoreError
            When it cannot be written. Nothing was; the same turn may be tried again.
        """
        if not turn.saves:
            return
        self._set_clock(now)
        if turn.forgotten:
            self.settle()
            turn.leave_out_forgotten()
        try:
            with self.payloads.unlinking(), self._db.transaction("save"):
                changes = self._write(turn, now)
                written = self._write_excess()
        except BaseException:
            # Keys may have been given by what was taken back, and files let go of.
            self.functions.load()
            self.payloads.load()
            raise
        if written is not None:
            self._backlog.drop(written)
        self._backlog.add(self._turn, changes)
        self._turn += 1
        if turn.calls:
            self._top = max(self._top, *turn.calls)
        if turn.forgotten:
            self._tasks_gone = True

    def _write(self, turn: Turn, now: Now) -> Changes:
        """Write a turn; return what of it is in the journal only."""
        if turn.definitions:
            self.functions.write(turn.definitions, now)
        self.payloads.write(turn, self._top)
        if turn.forgotten:
            self._bundles.unpack_seqs(turn.forgotten)
            self._delete(turn.forgotten)
        for task_id, kept in turn.revoked.items():
            self._db.execute("DELETE FROM revoked WHERE id = ?", (task_id,))
            if kept:
                self._db.execute("INSERT INTO revoked (id) VALUES (?)", (task_id,))
        changes = self._changes(turn, now)
        if changes:
            self._db.execute(_PUT_TURN, (self._turn, bytearray(self._encode(changes))))
        return changes

    def _changes(self, turn: Turn, now: Now) -> Changes:
        """Return the rows that a turn changes."""
        calls: list[CallRow] = []
        tasks, keys, encode = turn.tasks, self.functions.keys, self._encode
        for seq, new in turn.calls.items():
            call, task = new.call, new.task
            if not is_as_new(task):
                # Who ended in this turn and shall run again is another object by now.
                tasks.setdefault(seq, task)
            function = keys.get((task.definition, task.name))
            if function is None:
                function = self.functions.add(task.definition, task.name, now)
            calls.append((
                seq, task.id, function, task.client, new.accepted_at, call.parent, call.root,
                encode(without_known(call, task)),
            ))  # fmt: skip
        # Not what their rows say already, and not what is over.
        given = {
            worker: notes
            for worker, pairs in turn.given.items()
            if (notes := [pair for pair in pairs if pair[1] not in tasks])
        }
        states = [state_row(task, now) for task in tasks.values()]
        events = [(seq, event.n, encode(event)) for seq, event, _ in turn.events]
        if turn.events and max([len(event[-1]) for event in events]) > SHORT_BODY:
            # What is long is not written twice.
            self._put(PUT_EVENT, [event for event in events if len(event[-1]) > SHORT_BODY])
            events = [event for event in events if len(event[-1]) <= SHORT_BODY]
        return Changes(calls, states, events, given, turn.cleared)

    def sync(self) -> None:
        """Let what is saved survive a loss of power, if that is promised.

        Raises
        ------
        StoreError
            When the disk fails; it may be tried again.
        """
        self._db.sync()
        self.payloads.unlink_freed()

    # -------------------------------------------------------------- from the journal to the tables

    @property
    def behind(self) -> bool:
        """Whether something is in the journal that is not yet in its tables, or to be unlinked."""
        return bool(self._backlog or self.payloads.freed)

    def settle(self, rows: int | None = None) -> None:
        """Bring what is in the journal into its tables.

        Parameters
        ----------
        rows
            How many rows of them at most, about; None: all.
        """
        if self._backlog:
            with self._db.transaction("save", news=False):
                written = self._write_oldest(rows)
            self._backlog.drop(written)

    def _write_oldest(self, rows: int | None) -> Oldest:
        """Write what is longest in the journal, and drop it there; return what it was."""
        oldest = self._backlog.oldest(rows, self._turn)
        entries, above = oldest.entries, self._db.value(_LAST_SEQ)
        # Whoever changes a task that has ended has asked for it, so it has its row; but where the
        # disk was full meanwhile, it could be read only.
        changed = {seq for seq, entry in entries.items() if entry.call is None or seq <= above}
        self._bundles.unpack_seqs(self._without_rows(changed))
        for statement, values in statements(self._bundles.pack(entries.values(), above)):
            self._put(statement, values)
        for worker, pairs in self._backlog.notes_before(oldest.before):
            self._db.execute(
                "INSERT INTO given (worker, last, pairs) VALUES (?, ?, ?)",
                (worker, pairs[-1][0], pack_given(pairs)),
            )
        cleared = list(self._backlog.cleared.items())
        self._put("DELETE FROM given WHERE worker = ? AND last < ?", cleared)
        self._db.execute("DELETE FROM journal WHERE turn < ?", (oldest.before,))
        return oldest

    def _write_excess(self) -> Oldest | None:
        """Write some of what is longest in the journal if there is too much in it."""
        if self._backlog.size > BACKLOG_BYTES:
            return self._write_oldest(None)
        excess = len(self._backlog) - BACKLOG
        return self._write_oldest(excess + STRIDE) if excess > 0 else None

    def _take_up_journal(self) -> None:
        decode = decoder(self.path, Changes)
        for turn, changes in self._db.all("SELECT turn, changes FROM journal ORDER BY turn"):
            self._backlog.add(turn, decode(changes))
            self._turn = turn + 1

    def _read(
        self, query: str, values: Sequence[Any] = (), unpack: Callable[[], None] | None = None
    ) -> list[Any]:
        """Return the rows of a query about tasks: what is in the journal counts as well.

        Parameters
        ----------
        query, values
            The SQL, and what is bound in it.
        unpack
            Brings what it asks for out of the bundles; None: none of that lies there.
        """
        try:
            self.settle()
            if unpack is not None:
                unpack()
        except StoreCorrupt:
            raise
        except StoreError:
            return self._read_ahead(query, values, unpack)
        return self._db.all(query, values)

    def _read_ahead(
        self, query: str, values: Sequence[Any], unpack: Callable[[], None] | None
    ) -> list[Any]:
        """Read on a full disk: what is elsewhere is in the tables, in memory, as long."""
        with self._db.errors("be read"):
            self._db.execute("PRAGMA cache_spill = OFF")
            self._db.execute("BEGIN")
            try:
                self._write_oldest(None)
                if unpack is not None:
                    unpack()
                return self._db.execute(query, values).fetchall()
            finally:
                self._db.execute("ROLLBACK")
                self._db.execute("PRAGMA cache_spill = ON")

    def _given(self) -> dict[int, tuple[int, str]]:
        """Return seq → (ticket, worker) of the last note on each task."""
        found: dict[int, tuple[int, str]] = {}
        with self._db.errors("be read"):
            for worker, blob in self._read("SELECT worker, pairs FROM given"):
                for ticket, seq in unpack_given(blob):
                    found[seq] = max(found.get(seq, (0, "")), (ticket, worker))
        return found

    def _put(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            self._db.executemany(statement, rows)

    def _without_rows(self, seqs: set[int]) -> set[int]:
        """Return those of some tasks that have no row."""
        there: set[int] = set()
        for some, marks in _in_parcels(seqs):
            rows = self._db.all(f"SELECT seq FROM tasks WHERE seq IN {marks}", some)
            there.update(seq for (seq,) in rows)
        return seqs - there

    def _delete(self, seqs: Collection[int]) -> None:
        """Drop tasks that lie in the tables, with all that is theirs."""
        self.payloads.drop(seqs)
        values = [(seq,) for seq in seqs]
        for table in ("events", "tasks"):
            self._db.executemany(f"DELETE FROM {table} WHERE seq = ?", values)

    # --------------------------------------------------------------------------------- reading

    def open_tasks(self, now: Now) -> Iterator[TaskRow]:
        """Yield the tasks that have not ended, in order of acceptance, a parcel at a time.

        Parameters
        ----------
        now
            The present instant: after another boot of the machine, what is due is told on its new
            boot clock.
        """
        self._set_clock(now)
        # In parcels, so that no cursor stays open while the caller saves.
        query = (
            f"SELECT {_COLUMNS} FROM tasks WHERE ended_at IS NULL AND seq > ? ORDER BY seq LIMIT ?"
        )
        given = self._given()
        last = -1
        while rows := self._read(query, (last, NAMED)):
            last = rows[-1][0]
            for row in map(self._row, rows):
                ticket, worker = given.get(row.seq, (0, ""))
                if ticket > row.ticket:
                    row.phase, row.worker, row.ticket = ASSIGNED, worker, ticket
                yield row

    def find(self, task_id: str) -> TaskRow | None:
        """Return a task by its id, open or ended, or None."""
        query = f"SELECT {_COLUMNS} FROM tasks WHERE id = ? ORDER BY seq DESC LIMIT 1"
        rows = self._read(query, (task_id,), partial(self._bundles.unpack_ids, [task_id]))
        return self._row(rows[0]) if rows else None

    def finds(self, task_ids: Iterable[str]) -> dict[str, TaskRow]:
        """Return the tasks of these ids, as far as they are known."""
        found = {}
        for some, marks in _in_parcels(task_ids):
            query = f"SELECT {_COLUMNS} FROM tasks WHERE id IN {marks} ORDER BY seq"
            unpack = partial(self._bundles.unpack_ids, some)
            for row in map(self._row, self._read(query, some, unpack)):
                found[row.id] = row
        return found

    def _row(self, columns: Sequence[Any]) -> TaskRow:
        seq, function, task_id, *middle, parent, root, accepted_at, call = columns
        digest, name = self.functions.names_of(function)
        read = self._call(call)
        lasting: list[Any] = [seq, task_id, digest, name, *middle, read.options]
        return TaskRow(*[*lasting, parent, root, accepted_at, read.summary])

    def calls(self, seqs: Iterable[int]) -> dict[int, tuple[Call, tuple[bytes, ...]]]:
        """Return the calls of these tasks with their payload frames."""
        found: dict[int, tuple[Call, tuple[bytes, ...]]] = {}
        entries = self._backlog.entries
        for some, marks in _in_parcels(seqs):
            query = f"SELECT seq, id, function, call FROM tasks WHERE seq IN {marks}"
            read = {seq: self._whole(*rest) for seq, *rest in self._db.all(query, some)}
            for seq in entries.keys() & set(some):
                if row := entries[seq].call:
                    read[seq] = self._whole(row[1], row[2], row[-1])
            if over := set(some) - read.keys():
                rows = self._read(query, some, partial(self._bundles.unpack_seqs, over))
                read |= {seq: self._whole(*rest) for seq, *rest in rows if seq in over}
            apart = [seq for seq, call in read.items() if call.frames or not call.body]
            frames = self.payloads.of_calls(apart) if apart else {}
            for seq, call in read.items():
                own = frames.get(seq, {})
                body = own.pop(BODY, None)
                whole = call if body is None else replace(call, body=body)
                found[seq] = whole, tuple(own.values())
        return found

    def _whole(self, task_id: str, function: int, call: bytes | bytearray) -> Call:
        """Return a call as it was before `without_known`, but for a long body."""
        read = self._call(call)
        if read.name or read.definition:
            return replace(read, id=task_id)
        digest, name = self.functions.names_of(function)
        return replace(read, id=task_id, definition=digest, name=name)

    def events(
        self, seq: int, after: int = 0, most: int | None = None
    ) -> list[tuple[Event, tuple[bytes, ...]]]:
        """Return what happened to a task after event number `after`, with payload frames.

        As `bare_events`.
        """
        events = self.bare_events(seq, after, most)
        if not any(event.frames for event in events):
            return [(event, ()) for event in events]
        frames = self.payloads.of_events(seq, max(after, 0), events[-1].n)
        return [(event, tuple(frames.get(event.n, {}).values())) for event in events]

    def bare_events(self, seq: int, after: int = 0, most: int | None = None) -> list[Event]:
        """Return what happened to a task after event number `after`, without payload frames.

        Parameters
        ----------
        most
            How many events, about; None: all.
        """
        query = "SELECT event FROM events WHERE seq = ? AND n > ? ORDER BY n LIMIT ?"
        limit = -1 if most is None else most
        events = [self._event(data) for (data,) in self._read(query, (seq, after, limit))]
        if after < 1 and not (events and events[0].n == 1):
            # Not from the table itself: on a full disk the journal's events are not there.
            query = "SELECT only_event FROM tasks WHERE seq = ?"
            for (only,) in self._read(query, (seq,), partial(self._bundles.unpack_seqs, [seq])):
                if only is not None:
                    events.insert(0, self._event(only))
        return events

    def children(self, task_id: str) -> list[str]:
        """Return the ids of the tasks that a task sent, in order."""
        if not task_id:
            return []
        rows = self._read(
            "SELECT id FROM tasks WHERE parent = ? AND parent != '' ORDER BY seq", (task_id,)
        )
        return [child for (child,) in rows]

    def children_of(self, parents: Iterable[str]) -> dict[str, list[tuple[str, str, str]]]:
        """Return parent → (id, name, summary) of the tasks that it sent, in order.

        At most `CHILDREN` of one, and `FAMILIES` in all.
        """
        found: dict[str, list[tuple[str, str, str]]] = {}
        room = FAMILIES
        for parent in filter(None, parents):
            rows = self._read(_CHILDREN, (parent, min(CHILDREN, room)))
            if rows:
                found[parent] = [self._child(*row) for row in rows]
                room -= len(rows)
        return found

    def _child(self, task_id: str, function: int, call: bytes) -> tuple[str, str, str]:
        read = self._call(call)
        _, name = self.functions.names_of(function)
        return task_id, shown_name(name, read.options), read.summary

    def listing(
        self, state: str | None = None, limit: int = 100, over: bool = False
    ) -> list[TaskRow]:
        """Return tasks, newest first.

        Parameters
        ----------
        state
            Only those in this state; None: all.
        limit
            How many at most.
        over
            Only those that have ended, whatever their state.
        """
        which, values = "tasks", []
        if state is not None:
            which, values = "tasks INDEXED BY tasks_by_end WHERE state = ?", [state]
        elif over:
            which = "tasks WHERE ended_at IS NOT NULL"
        newest = f"SELECT seq FROM {which} ORDER BY seq DESC"
        unpack = partial(self._bundles.unpack_newest, "last", limit, newest, values, state)
        query = f"SELECT {_COLUMNS} FROM tasks WHERE seq IN ({newest} LIMIT ?) ORDER BY seq DESC"
        return [self._row(row) for row in self._read(query, (*values, limit), unpack)]

    def ended(self, limit: int, state: str | None = None) -> list[TaskRow]:
        """Return the tasks that ended last, newest first.

        Parameters
        ----------
        limit
            How many at most.
        state
            Only those in this state, of the last `LATELY` that ended, not counting what lies in
            bundles in other states; None: all.
        """
        most = limit if state is None else LATELY
        unpack = partial(self._bundles.unpack_newest, "ended_last", most, _ENDS, (), state)
        return [self._row(row) for row in self._read(_ENDED, (LATELY, state, limit), unpack)]

    def counts(self) -> dict[str, int]:
        """Return how many tasks are in each state."""
        return dict(self._read(_COUNTS))

    def revoked(self) -> list[str]:
        """Return the ids that were revoked before their calls came, oldest first."""
        return [task_id for (task_id,) in self._db.all("SELECT id FROM revoked ORDER BY rowid")]

    def last_seq(self) -> int:
        """Return the highest `seq` of a task, 0 when there is none."""
        [(seq,)] = self._read(_LAST_SEQ)
        return int(seq)

    def first_ticket(self, now: Now) -> int:
        """Return above which number a broker's tickets start: above all of former ones'.

        Even if one lived for a few milliseconds only, or before a reboot.

        Parameters
        ----------
        now
            The present instant.
        """
        self._set_clock(now)
        return int(self._number("ticket_offset", 0)) + _ticks(now)

    def _number(self, key: str, default: float) -> float:
        """Return a number that the file says of itself."""
        said = self._db.meta(key)
        try:
            number = float(said) if said else default
        except ValueError:
            number = math.nan
        if said and not math.isfinite(number):
            raise corrupt(self.path, f"its {key} is no number")
        return number

    def _last_ticket(self) -> int:
        """Return the highest ticket of a note or of an open task, 0 when there is none."""
        [(ticket,)] = self._read(
            "SELECT max((SELECT ifnull(max(last), 0) FROM given), "
            "(SELECT ifnull(max(ticket), 0) FROM tasks WHERE ended_at IS NULL))"
        )
        return int(ticket)

    # ------------------------------------------------------------------------------- small things

    def put(self, key: str, value: bytes) -> None:
        """Keep a small thing under a name."""
        with self._db.transaction("save"):
            self._db.execute("INSERT OR REPLACE INTO notes (key, data) VALUES (?, ?)", (key, value))

    def peek(self, key: str) -> bytes | None:
        """Return what is kept under a name, or None."""
        value = self._db.value("SELECT data FROM notes WHERE key = ?", (key,))
        return None if value is None else bytes(value)

    def take(self, key: str) -> bytes | None:
        """Return what is kept under a name, or None, and keep it no longer."""
        value = self.peek(key)
        if value is not None:
            with self._db.transaction("save"):
                self._db.execute("DELETE FROM notes WHERE key = ?", (key,))
        return value

    # ------------------------------------------------------------------------------- housekeeping

    def expire(self, before: float, limit: int = 1_000) -> int:
        """Drop tasks that ended before a time; return how many that were.

        Parameters
        ----------
        before
            Wall clock.
        limit
            How many tasks, about; call again while it returns as many, or more.
        """
        query = "SELECT seq FROM tasks WHERE ended_at < ? ORDER BY ended_at, seq LIMIT ?"
        unpack = partial(self._bundles.unpack_expired, before)
        seqs = [seq for (seq,) in self._read(query, (before, limit), unpack)]
        bundles = self._bundles.expired(before, limit - len(seqs))
        if seqs or bundles:
            with self.payloads.unlinking(), self._db.transaction("drop what has expired"):
                seqs += self._bundles.drop(bundles)
                self._delete(seqs)
            self._tasks_gone = True
        return len(seqs)

    def expire_functions(self, before: float) -> list[bytes]:
        """Drop functions that no task needs any more; return the digests of their codes.

        Call it while all that was accepted is saved.

        Parameters
        ----------
        before
            As of `Functions.expired`, which tells what stays even so.
        """
        if not self._tasks_gone:
            return []
        spare = self.functions.expired(before)
        if spare:
            spare.difference_update(function for (function,) in self._read(_USED_FUNCTIONS))
        self._tasks_gone = False
        return self.functions.drop(spare)

    def shrink(self) -> bool:
        """Give some unused pages back to the file system; return whether there are more."""
        return self._db.shrink()

    def size(self) -> int:
        """Return the bytes that the store takes, its log and large pieces included."""
        return self.payloads.size_of_files() + self._db.size()

    def close(self) -> None:
        """Let go of the file."""
        with contextlib.suppress(StoreError):  # the journal is kept
            self.settle()
            self.sync()
        self._db.close()
