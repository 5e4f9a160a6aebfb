"""From what the broker told of a task to what a program asks for: values, errors, state messages.

Nothing here waits or talks to anybody: it reads a `Record`, the client's memory of one task.

A failure is loaded afresh each time somebody wants it. Were one exception object raised again and
again, every `get()` would lengthen its traceback, keep the frames of all callers alive, and let two
threads write into the same object.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nbtasks import exceptions
from nbtasks.core import states
from nbtasks.core.messages import Event
from nbtasks.wire import payloads, segments

if TYPE_CHECKING:
    from nbtasks.client.client import Record

#: Letters of a value that `history` shows.
SHOWN: Final = 120
#: Seconds in which the I/O thread must have kept an event's frames after it kept the event.
FRAMES_TIMEOUT: Final = 5.0


class Moment(NamedTuple):
    """One line of `AsyncResult.history`."""

    #: When, UTC.
    at: datetime
    #: 1 for the first run, one more for each retry or repetition.
    attempt: int
    #: `SUBMITTED`, `RUNNING` (a run began), `AGAIN` (it will be run once more), or a state.
    what: str
    #: Name of the worker, or empty.
    worker: str
    #: More about it, for people: the last line of a traceback, a short `repr` of the `meta`.
    detail: str


# ----------------------------------------------------------------------------- which event counts


def news(record: Record, after: int) -> Sequence[Event]:
    """Return the task's events after number `after`, in order."""
    events = record.events
    place = len(events)  # from the end: a task may have said a lot, and there be one more
    while place and events[place - 1].n > after:
        place -= 1
    return events[place:]


# What becomes of a run whose result is ignored is told, so that panels can show it, but not stored.
# What programs ask counts only what is kept, so that they see the same here as anywhere else.


def latest(record: Record, *, kept: bool = False) -> Event | None:
    """Return the state message that the task's present state comes from, or None."""
    for event in reversed(list(record.events)):
        if event.kind == "state" and (event.kept or not kept):
            return event
        if event.kind == "again":
            return None
    return None


def state_of(record: Record) -> str:
    """Return the task's present state, as far as it is kept."""
    last = latest(record)
    if last is None or last.kept:
        return record.state
    event = latest(record, kept=True)
    return states.PENDING if event is None else event.state


def present(record: Record) -> Event | None:
    """Return the event whose contents belong to the task's present state, or None.

    Mostly the one that decides; `update_state` may set another state than FAILURE afterwards.
    """
    decided, last = deciding(record, kept=True), latest(record, kept=True)
    return last if decided is None or (last is not None and last.n > decided.n) else decided


def deciding(record: Record, *, kept: bool = False) -> Event | None:
    """Return the event that holds what `get` gives; None when there is nothing to give.

    A task may have set its own SUCCESS or FAILURE by `update_state` before it ended; then its end
    says nothing, and the earlier message counts.
    """
    final = record.final
    if final is None or (final.state in states.READY_STATES and (final.kept or not kept)):
        return final
    event = latest(record, kept=kept)
    return event if event is not None and event.state in states.READY_STATES else None


def name_of(record: Record) -> str | None:
    """Return the task's name when this process has sent it, else None."""
    return record.call.name if record.call is not None else None


def children_of(record: Record) -> list[str]:
    """Return the ids of all tasks that the task has sent, in all its attempts, once each."""
    ids = (child for event in list(record.events) for child in event.children)
    return [child for child in dict.fromkeys(ids) if child != record.id]


# ----------------------------------------------------------------------------------------- values


def load(record: Record, event: Event) -> Any:
    """Return what an event carries: value, `meta` or exception.

    Raises
    ------
    DecodeError
        When the bytes mean nothing to this process.
    """
    buffers = _frames(record, event)
    if event.body or buffers:
        return payloads.loads(event.body, buffers, ours=True)
    if event.text:
        return _named(event.text)
    if event.state == states.STARTED:
        return {"pid": event.pid, "hostname": event.worker}
    return None


def size_of(record: Record, event: Event) -> int:
    """Return the bytes of what an event carries, wherever they are."""
    return len(event.body) + sum(map(segments.length, record.buffers.get(event.n, ())))


def _frames(record: Record, event: Event) -> Sequence[Any]:
    """Return an event's payload frames; the I/O thread may be just about to put them down."""
    if event.frames:
        deadline = time.monotonic() + FRAMES_TIMEOUT
        while event.n not in record.buffers and time.monotonic() < deadline:
            time.sleep(0.0005)
    return record.buffers.get(event.n, ())


def _named(text: str) -> BaseException:
    """Return the exception that the broker names: it never pickles, so it says class and args."""
    name, args = json.loads(text)
    kind = getattr(exceptions, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return exceptions.TaskError(f"{name}: {', '.join(map(str, args))}")
    return kind(*args)


def load_error(record: Record, event: Event, name: str | None) -> BaseException:
    """Return a fresh copy of the exception that a state message carries, ready to be raised.

    Class, arguments, cause and notes are those of the task; the text of its traceback is added as
    one more note.
    """
    try:
        value = load(record, event)
    except Exception as unreadable:
        value = unreadable.with_traceback(None)
    error = value if isinstance(value, BaseException) else Exception(value)
    if event.traceback:
        _explain(error, event.traceback, name or name_of(record) or record.id)
    return error


def traceback_of(record: Record, event: Event, name: str | None) -> str | None:
    """Return the text of a failure's traceback; of a run that was killed it is its last line."""
    if event.traceback or event.state not in (states.FAILURE, states.RETRY):
        return event.traceback or None
    reason = load_reason(record, event, name)
    return None if reason is None else "".join(traceback.format_exception_only(reason))


def load_reason(record: Record, event: Event, name: str | None) -> BaseException | None:
    """Return the same of a RETRY, FAILURE or REVOKED; None when `retry` was given no exception."""
    if event.state == states.RETRY and load(record, event) is None:
        return None
    return load_error(record, event, name)


def _explain(error: BaseException, text: str, name: str) -> None:
    """Add the remote traceback, once, in a form that shows the lines of the notebook's cells."""
    own = getattr(error, "__notes__", None)
    notes = [str(note) for note in own] if isinstance(own, list | tuple) else []
    lines = readable(_without_notes(text, notes)).rstrip().splitlines()
    note = "\n".join([f"\nRemote traceback of task {name}:", *("  " + line for line in lines)])
    # The note says it all, and better: Python knows nothing of cells of other processes.
    error.with_traceback(None)
    if note not in notes:
        # Not add_note: an exception that is a frozen dataclass would refuse it.
        BaseException.__setattr__(error, "__notes__", [*notes, note])
    if _shell() is not None:
        BaseException.__setattr__(error, "_render_traceback_", _Rendering())


def _without_notes(text: str, notes: Sequence[str]) -> str:
    """Return a traceback's text without the exception's notes, which come along by themselves."""
    text = text.rstrip()
    for note in reversed(notes):
        if not text.endswith(note.rstrip()):
            break
        text = text[: -len(note.rstrip())].rstrip() if note.rstrip() else text
    return text


# ----------------------------------------------------------------------- tracebacks in a notebook

_FRAME: Final = re.compile(r'^(\s*(?:\|\s*)*)File "([^"]+)", line (\d+)', re.MULTILINE)
_FOREIGN_CELL: Final = re.compile(r"[/\\]ipykernel_\d+[/\\]\d+\.py$|^<ipython-input-")


def readable(text: str) -> str:
    """Return a remote traceback's text with notebook cells named as the notebook names them.

    `File "/tmp/ipykernel_71/2804531.py", line 3, in load` becomes `Cell In[2], line 3, in load`.
    """
    name_cell = _cell_namer()

    def rename(found: re.Match[str]) -> str:
        indent, path, line = found.groups()
        cell = name_cell(path)
        if cell is None and _FOREIGN_CELL.search(path):
            cell = "Cell of another kernel"
        return found[0] if cell is None else f"{indent}{cell}, line {line}"

    return _FRAME.sub(rename, text)


def _shell() -> Any:
    """Return the IPython shell that this process is, or None; never loads IPython."""
    ipython = sys.modules.get("IPython")
    get = getattr(ipython, "get_ipython", None)
    return get() if get is not None else None


def _cell_namer() -> Callable[[str], str | None]:
    naming = getattr(getattr(_shell(), "compile", None), "format_code_name", None)

    def name_cell(path: str) -> str | None:
        found = naming(path) if naming is not None else None
        return " ".join(found) if found else None

    return name_cell


class _Rendering:
    """How IPython shows a task's error: the caller's own lines, then the remote traceback.

    It is set on the exception, where IPython looks for it. It holds neither the exception nor a
    frame, so it makes no circle that would keep the caller's variables alive.
    """

    __slots__ = ()

    def __call__(self) -> list[str]:
        error = self._shown()
        if error is None:
            return ["A task failed; its error is not at hand any more."]
        with contextlib.suppress(Exception):
            shell = _shell()
            own = _outside(error.__traceback__)
            lines = shell.InteractiveTB.structured_traceback(type(error), error, own)
            return [str(line) for line in lines]
        return traceback.format_exception(error)

    def _shown(self) -> BaseException | None:
        """Return the exception that is being shown, which is the one that carries this object."""
        last = getattr(sys, "last_value", None)
        for error in (sys.exc_info()[1], last, getattr(sys, "last_exc", None)):
            if error is not None and vars(error).get("_render_traceback_") is self:
                return error
        return None


def _outside(tb: TracebackType | None) -> TracebackType | None:
    """Return a traceback that ends where the caller's code meets ours."""
    kept: list[TracebackType] = []
    while tb is not None:
        if tb.tb_frame.f_globals.get("__name__", "").startswith("nbtasks."):
            break
        kept.append(tb)
        tb = tb.tb_next
    end: TracebackType | None = None
    for step in reversed(kept):
        end = TracebackType(end, step.tb_frame, step.tb_lasti, step.tb_lineno)
    return end


# --------------------------------------------------------------------------------- for onlookers


def moments(record: Record) -> Iterator[Moment]:
    """Tell a task's story, one moment for each attempt and state."""
    if record.call is not None:
        yield Moment(moment(record.created), 1, "SUBMITTED", "", record.call.summary)
    attempt = 1
    for event in list(record.events):
        if event.kind == "run":
            what, detail = "RUNNING", f"process {event.pid}"
        elif event.kind == "again":
            what, detail = "AGAIN", event.text
        elif event.kind == "state":
            what, detail = event.state, _detail(record, event)
        else:
            continue
        yield Moment(moment(event.at), attempt, what, event.worker, detail)
        if event.kind == "again" or event.state == states.RETRY:
            attempt += 1


def _detail(record: Record, event: Event) -> str:
    try:
        value = load(record, event)
    except Exception as error:
        value = error
    if isinstance(value, BaseException):
        text = traceback.format_exception_only(value)[0].strip()
    else:
        text = "" if value is None else _safe_repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr fails with {type(error).__name__}>"


def moment(at: float) -> datetime:
    """Return a time on the wall clock as an aware datetime, UTC."""
    return datetime.fromtimestamp(at, UTC)


def fraction(meta: Any) -> float | None:
    """Return how far a task has come, 0.0 to 1.0, as the `meta` of its state tells it.

    Understood are `progress`, in per cent, and `current` (or `done`, `n`, `completed`) of `total`,
    as in the panel.
    """
    if not isinstance(meta, Mapping):
        return None
    share = _number(meta.get("progress"))
    if share is not None:
        return min(1.0, max(0.0, share / 100))
    counts = (_number(meta.get(key)) for key in ("current", "done", "n", "completed"))
    done, total = next((count for count in counts if count is not None), None), meta.get("total")
    whole = _number(total)
    if done is None or not whole:
        return None
    return min(1.0, max(0.0, done / whole))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        return number if math.isfinite(number) else None
    return None
