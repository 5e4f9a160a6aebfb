"""Which statement brings which change into the tables. Knows no database.

Most tasks have nothing special: to name that in the statement costs a third less than to bind it.
Python's sqlite3 binds None and bytes dearly: for each it raises an error and drops it. So None
stands in the statement as well, and where it counts a bytearray is bound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

from nbtasks.broker.journal import USUAL, CallRow, Entry
from nbtasks.core.messages import DEFAULT_PRIORITY, DEFAULT_QUEUE
from nbtasks.core.states import PENDING, QUEUED

#: What most tasks have in: priority, queue, retries, deaths, due, due_at, eta, expires, wish,
#: limit_at.
_USUAL_REST: Final = (DEFAULT_PRIORITY, DEFAULT_QUEUE, 0, 0, None, None, None, None, "", None)
_USUAL: Final = f"{DEFAULT_PRIORITY}, '{DEFAULT_QUEUE}', 0, 0, NULL, NULL, NULL, NULL, '', NULL"

_INSERT: Final = """
INSERT INTO tasks (
    seq, id, function, client, accepted_at, parent, root, call, phase, state, n, worker, ticket,
    ended_at, only_event,
    priority, queue, retries, deaths, due, due_at, eta, expires, wish, limit_at
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {end}, {rest})
"""
#: A new call, or the same task's next one; what cannot change is left as it was.
_PUT_CALL: Final = f"""
{_INSERT}
ON CONFLICT (seq) DO UPDATE SET
    client = excluded.client, phase = excluded.phase, state = excluded.state, n = excluded.n,
    worker = excluded.worker, ticket = excluded.ticket, ended_at = excluded.ended_at,
    only_event = ifnull(excluded.only_event, only_event),
    call = excluded.call, priority = excluded.priority, queue = excluded.queue,
    retries = excluded.retries, deaths = excluded.deaths, due = excluded.due,
    due_at = excluded.due_at, eta = excluded.eta, expires = excluded.expires,
    wish = excluded.wish, limit_at = excluded.limit_at
"""
_PUT_NEW_CALL: Final = _PUT_CALL.replace(
    "?, ?, ?, ?, ?, {end}, {rest}", f"'{QUEUED}', '{PENDING}', 0, '', 0, NULL, NULL, {_USUAL}"
)
_PUT_OPEN_CALL: Final = _PUT_CALL.format(end="NULL, NULL", rest=_USUAL)
_PUT_ENDED_CALL: Final = _PUT_CALL.format(end="?, ?", rest=_USUAL)
#: The same, out of a bundle: a row that is there is newer.
PUT_PACKED: Final = f"{_INSERT.format(end='?, ?', rest=_USUAL)} ON CONFLICT (seq) DO NOTHING"
_PUT_ANY_CALL: Final = _PUT_CALL.format(end="?, NULL", rest=", ".join("?" * 10))

#: A task that has its row. One that was forgotten in the meantime stays so.
_PUT_USUAL_STATE: Final = f"""
UPDATE tasks SET
    (phase, state, n, worker, ticket, ended_at,
     priority, queue, retries, deaths, due, due_at, eta, expires, wish, limit_at)
    = (?, ?, ?, ?, ?, ?, {_USUAL})
WHERE seq = ?
"""
_PUT_ANY_STATE: Final = f"""
UPDATE tasks SET
    (phase, state, n, worker, ticket, ended_at, client,
     priority, queue, retries, deaths, due, due_at, eta, expires, wish, limit_at)
    = ({", ".join("?" * 17)})
WHERE seq = ?
"""
#: A task that ends with its first event and nothing special, as most do: one row instead of two.
_PUT_END: Final = f"""
UPDATE tasks SET
    (phase, state, n, worker, ticket, ended_at, only_event,
     priority, queue, retries, deaths, due, due_at, eta, expires, wish, limit_at)
    = (?, ?, ?, ?, ?, ?, ?, {_USUAL})
WHERE seq = ?
"""

#: One thing that happened to a task.
PUT_EVENT: Final = "INSERT OR REPLACE INTO events (seq, n, event) VALUES (?, ?, ?)"


def statements(entries: Iterable[Entry]) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
    """Yield the statements that write these entries, each with its rows."""
    rows: dict[str, list[tuple[Any, ...]]] = {}
    for entry in entries:
        call = None if entry.call is None else _bound(entry.call)
        state, only = entry.state, entry.only_event()
        if only is None:
            told = [(seq, n, bytearray(event)) for seq, n, event in entry.events]
            rows.setdefault(PUT_EVENT, []).extend(told)
        if state is None:
            if call is not None:
                rows.setdefault(_PUT_NEW_CALL, []).append(call)
            continue
        usual = len(state) == USUAL
        if call is None:
            if only is not None:
                statement, row = _PUT_END, (*state[1:], bytearray(only), state[0])
            else:
                statement = _PUT_USUAL_STATE if usual else _PUT_ANY_STATE
                row = (*state[1:], state[0])
        elif only is not None:
            statement, row = _PUT_ENDED_CALL, (*call, *state[1:], bytearray(only))
        elif usual and state[6] is None:
            statement, row = _PUT_OPEN_CALL, (*call, *state[1:6])
        else:
            client, *rest = state[7:] or (call[3], *_USUAL_REST)
            statement, row = _PUT_ANY_CALL, (*call[:3], client, *call[4:], *state[1:7], *rest)
        rows.setdefault(statement, []).append(row)
    yield from rows.items()


def _bound(call: CallRow) -> tuple[Any, ...]:
    seq, task_id, function, client, accepted_at, parent, root, packed = call
    blobs = bytearray(client), bytearray(packed)
    return seq, task_id, function, blobs[0], accepted_at, parent, root, blobs[1]
