"""What a panel says of one task and of all of them: plain data, drawn by others.

`page/`, `static.py` and `text.py` draw the same dictionaries, so they say the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from nbtasks.core import states
from nbtasks.core.messages import Call, Event, Now
from nbtasks.core.tracebacks import error_in
from nbtasks.jupyter.pace import Pace

if TYPE_CHECKING:
    from nbtasks.client.record import Record

#: The state of a row → its symbol and its word. The order is that of the total line.
WORDS: Final[dict[str, tuple[str, str]]] = {
    "running": ("●", "running"),
    "retrying": ("↻", "retrying"),
    "waiting": ("○", "waiting"),
    "scheduled": ("◔", "scheduled"),
    "done": ("✓", "done"),
    "failed": ("✕", "failed"),
    "expired": ("⊘", "expired"),
    "cancelled": ("⊘", "cancelled"),
}

FINAL: Final = frozenset({"done", "failed", "expired", "cancelled"})

#: The most characters of a name, of arguments, and of a line that came from a task.
NAME_LIMIT: Final = 80
LINE_LIMIT: Final = 300

#: Keys of `meta` that are drawn as bar or text rather than as `key value`.
_DONE: Final = ("current", "done", "n", "completed")
_TEXT: Final = ("desc", "description", "message", "text", "status")

#: States whose names say no more than the word of the row does.
_PLAIN: Final = frozenset({"PROGRESS", states.STARTED, states.RECEIVED, states.PENDING})


#: Turns an event of a record into the value that it carries.
Load = Callable[[Any, Event], Any]


class Row:
    """One submitted task, as its panel draws it."""

    __slots__ = (
        *("_call", "_called", "_pace", "_queued", "expiry", "frozen", "hastened", "id", "index"),
        *("parent", "record", "start", "state", "why"),
    )

    def __init__(
        self,
        record: Record,
        index: int,
        called: tuple[str, str] | None = None,
        parent: int | None = None,
    ) -> None:
        self.id = record.id
        self.record = record
        self.index = index
        #: Index of the row of the task that has sent it; None where the cell has.
        self.parent = parent
        #: What it was when it was last looked at, a key of `WORDS`; at first nothing.
        self.state = ""
        #: Why it waits, where the broker has said more than that it waits.
        self.why = ""
        #: Wall times of its earliest and latest start, told by the broker where another process has
        #: sent the task.
        self.start: float | None = None
        self.expiry: float | None = None
        #: Whether somebody has asked to skip the wait.
        self.hastened = False
        #: What is drawn of it for good, once its record was let go.
        self.frozen: dict[str, Any] | None = None
        self._called = called
        self._call: Call | None = None
        #: Number of the last event when the broker said that it waits for a worker.
        self._queued = -1
        self._pace: Pace | None = None

    @property
    def call(self) -> Call | None:
        """The call, when this process has sent it."""
        return self.record.call or self._call

    @property
    def called(self) -> tuple[str, str]:
        """The task's name and its arguments as text."""
        call = self.call
        if call is None:
            return self._called or ("task", "")
        return (call.options and call.options.shadow) or call.name, call.summary

    @called.setter
    def called(self, called: tuple[str, str]) -> None:
        self._called = called

    @property
    def nameless(self) -> bool:
        """Whether nobody has said yet what was called."""
        return self._called is None and self.call is None

    @property
    def final(self) -> bool:
        if self.frozen is not None:
            return True
        return self.record.final is not None or self.record.error is not None

    @property
    def redo(self) -> bool:
        """Whether the broker would run it once more: it knows the task, which did not succeed."""
        if self.frozen is not None:
            return "redo" in self.frozen
        record = self.record
        ended = record.final is not None and record.error is None and not record.purged
        return ended and record.known is not False and record.state in states.PROPAGATE_STATES

    def queue(self) -> None:
        """Note that it waits for a worker, though its time may not have come (it was hastened)."""
        self._queued = self.record.n

    def freeze(self, drawn: dict[str, Any], nobody: Record) -> None:
        """Draw this for good, and hold a record that says nothing instead of the task's own."""
        self._called, self._call, self._pace = self.called, None, None
        self.record, self.frozen = nobody, drawn

    def thaw(self, record: Record) -> None:
        """Draw what this record says from now on."""
        self._call = self.call
        self.record, self.frozen = record, None

    def look(self, now: Now) -> str:
        """Return the row's state now."""
        self.state = self._state(now)
        return self.state

    def _state(self, now: Now) -> str:
        if self.frozen is not None:
            return str(self.frozen["state"])
        told = self.record
        if told.error is not None:
            return "failed"
        if told.final is not None:
            return self._ended()
        if told.running:
            return "running"
        if self._queued == told.n:
            return "waiting"
        later = (self.starts(now) or 0.0) > now.wall
        if told.state == states.RETRY:
            return "retrying" if later else "waiting"
        if told.state not in states.UNREADY_STATES or told.state == states.STARTED:
            return "running"
        return "scheduled" if later else "waiting"

    def _ended(self) -> str:
        event = self.record.state_event
        if self.record.state == states.FAILURE:
            return "failed"
        if self.record.state != states.REVOKED:
            return "done"
        # A worker's own word of it is a pickle, the broker's is text; both hold the word.
        late = event is not None and ("expired" in event.text or b"expired" in bytes(event.body))
        return "expired" if late else "cancelled"

    def starts(self, now: Now) -> float | None:
        """Return the wall time before which it will not run, or None."""
        told, call = self.record, self.call
        if told.due is not None:
            return now.wall + told.due - now.boot
        if told.state != states.PENDING:
            return None
        if call is None:
            return self.start
        return call.eta if call.due is None else now.wall + call.due - now.boot

    def paint(self, now: Now, load: Load) -> dict[str, Any]:
        """Return all that is drawn of the row; times are wall-clock seconds."""
        if self.frozen is not None:
            return self.frozen
        told, state = self.record, self._state(now)
        name, summary = self.called
        row: dict[str, Any] = {
            "i": self.index,
            "id": self.id,
            "name": shorten(short_name(name), NAME_LIMIT),
            "args": shorten(summary, NAME_LIMIT),
            "state": state,
            "final": state in FINAL,
        }
        if self.parent is not None:
            row["parent"] = self.parent
        if told.retries:
            row["attempt"] = told.retries + 1
        if state == "running":
            row["began"] = told.started_at
            row.update(self._progress(load))
        elif row["final"]:
            self._paint_end(row, load)
        else:
            self._paint_wait(row, now, load)
        return row

    def _paint_wait(self, row: dict[str, Any], now: Now, load: Load) -> None:
        told, call, state = self.record, self.call, row["state"]
        if state in ("scheduled", "retrying"):
            row["due"] = self.starts(now)
        if state == "retrying":
            row["error"] = self._error(load)
        elif expires := self.expiry if call is None else call.expires:
            row["expires"] = expires
        if state == "waiting":
            unknown = "the broker knows no such task" if told.known is False else ""
            why = self.why or first_line(told.reason) or (unknown if call is None else "")
            if why:
                row["why"] = why

    def _paint_end(self, row: dict[str, Any], load: Load) -> None:
        state = row["state"]
        if state == "failed":
            row["error"] = self._error(load)
            event = self.record.state_event
            where = where_of(event.traceback) if event is not None else ""
            if where:
                row["where"] = where
        elif state == "cancelled":
            row["text"] = self._why_cancelled(load)
        if self.redo:
            row["redo"] = True
        row["took"] = self._took()

    def _took(self) -> float | None:
        told = self.record
        if told.final is not None and told.final.runtime:
            return told.final.runtime
        if told.started_at is None or told.ended_at is None:
            return None
        return max(0.0, told.ended_at - told.started_at)

    def _value(self, load: Load) -> Any:
        event = self.record.state_event
        try:
            return load(self.record, event) if event is not None else None
        except Exception:  # the user's own class may refuse; the row must still be drawn
            return None

    def _progress(self, load: Load) -> dict[str, Any]:
        state = self.record.state
        if state in states.ALL_STATES:
            return {"fraction": None, "text": ""}
        meta = self._value(load)
        said = progress_of(meta)
        if state not in _PLAIN:
            said["text"] = " · ".join(filter(None, (shorten(state, 40), said["text"])))
        return {**said, **self._speed(meta)}

    def _speed(self, meta: Any) -> dict[str, float]:
        """Return how fast it gets on, and when it will be done, as far as that can be told."""
        event, began = self.record.state_event, self.record.started_at
        done, whole, counted = measure(meta)
        if event is None or began is None or done is None:
            return {}
        if self._pace is None or self._pace.began != began:
            self._pace = Pace(began)
        self._pace.learn(event.at, done)
        end = None if whole is None else self._pace.end(whole)
        speed = {} if end is None else {"done_at": round(end, 2)}
        if self._pace.rate and counted:
            speed["rate"] = float(f"{self._pace.rate:.3g}")
        return speed

    def _error(self, load: Load) -> str:
        if self.record.error is not None:
            return describe(self.record.error)
        value = self._value(load)
        if isinstance(value, BaseException):
            return describe(value)
        event = self.record.state_event
        return first_line(error_in(event.traceback)) if event else ""

    def _why_cancelled(self, load: Load) -> str:
        value = self._value(load)
        why = str(value) if isinstance(value, BaseException) else ""
        return "" if why == "revoked" else first_line(why)


# -------------------------------------------------------------------------------------- the total


def total(states_of: Mapping[str, int]) -> dict[str, Any]:
    """Return what is said of all rows together: how many in each state, in the order of `WORDS`."""
    counts = {state: states_of[state] for state in WORDS if states_of.get(state)}
    number = sum(counts.values())
    return {"n": number, "counts": counts, "open": number - ended(counts)}


def ended(counts: Mapping[str, int]) -> int:
    return sum(counts.get(state, 0) for state in FINAL)


def total_line(counts: Mapping[str, int]) -> str:
    """Return the counts as people read them: `3 running · 5 done`."""
    return " · ".join(f"{number} {WORDS[state][1]}" for state, number in counts.items())


def plural(number: int, noun: str = "task") -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ----------------------------------------------------------------------------------- single words


def progress_of(meta: Any) -> dict[str, Any]:
    """Read what a task said of its progress, whichever of the usual ways it said it in.

    Parameters
    ----------
    meta
        What was given to `update_state`: `{"progress": 50}` (percent), or `{"current": 5,
        "total": 10}` (also `done`, `n`, `completed`), with `desc` or `message` as text. Other keys
        are shown as they are.

    Returns
    -------
    dict
        `fraction` (0 to 1, or None) and `text`.

    Examples
    --------
    >>> progress_of({"current": 12, "total": 20, "desc": "epoch", "loss": 0.25})
    {'fraction': 0.6, 'text': 'epoch 12/20 · loss 0.25'}
    """
    if not isinstance(meta, Mapping):
        alone = meta is not None and not isinstance(meta, BaseException)
        return {"fraction": None, "text": first_line(_text(meta)) if alone else ""}
    left = dict(meta)
    fraction = _percent(left)
    counted, share = _counted(left)
    words = [first_line(str(left.pop(key))) for key in _TEXT if key in left]
    parts = [" ".join(filter(None, (*words, counted)))]
    parts += [f"{_text(key)} {_text(value)}" for key, value in left.items()]
    text = shorten(" · ".join(filter(None, parts)), LINE_LIMIT)
    return {"fraction": share if fraction is None else fraction, "text": text}


def measure(meta: Any) -> tuple[float | None, float | None, bool]:
    """Return how much is done, of how much, and whether that is counted or only per cent.

    >>> measure({"current": 5, "total": 10}), measure({"progress": 50}), measure("half")
    ((5.0, 10.0, True), (50.0, 100.0, False), (None, None, False))
    """
    if not isinstance(meta, Mapping):
        return None, None, False
    counts = (_number(meta.get(key)) for key in _DONE)
    done, whole = next((count for count in counts if count is not None), None), meta.get("total")
    if done is not None:
        return done, _number(whole) or None, True
    done = _number(meta.get("progress"))
    return done, None if done is None else 100.0, False


def _percent(left: dict[Any, Any]) -> float | None:
    value = _number(left.get("progress"))
    if value is None:
        return None
    del left["progress"]
    return min(1.0, max(0.0, value / 100))


def _counted(left: dict[Any, Any]) -> tuple[str, float | None]:
    """Take `current` and `total` out; return them as text and as a fraction."""
    key = next((key for key in _DONE if _number(left.get(key)) is not None), None)
    if key is None:
        return "", None
    done, whole = _number(left.pop(key)), _number(left.get("total"))
    assert done is not None
    if whole is None or whole <= 0:
        return _text(done), None
    del left["total"]
    return f"{_text(done)}/{_text(whole)}", min(1.0, max(0.0, done / whole))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _text(value: Any) -> str:
    """Return a short text of any value; numbers without noise."""
    if isinstance(value, float):
        return f"{value:.0f}" if 9_999.5 <= abs(value) < 1e15 else f"{value:.4g}"
    try:
        return shorten(first_line(str(value)), 60)
    except Exception:  # somebody's __str__
        return f"<{type(value).__name__}>"


def describe(error: BaseException) -> str:
    """Return an exception in one line, as the last line of a traceback has it."""
    name = type(error).__name__
    try:
        said = first_line(str(error))
    except Exception:  # somebody's __str__
        said = ""
    return f"{name}: {said}" if said else name


def first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return shorten(lines[0].strip(), LINE_LIMIT) if lines else ""


def shorten(text: str, limit: int) -> str:
    """Return as much of a text as is shown; all that tasks say in a line comes through here."""
    text = spell_out(text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def spell_out(text: str) -> str:
    r"""Return a text that can be sent and printed: half a character is neither.

    Names of files may hold such, and what was cut amid a character.

    >>> spell_out("half \ud83d")
    'half \\ud83d'
    """
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


#: What moves the cursor or turns the direction of writing round.
_CONTROLS = dict.fromkeys(
    [*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], " "
)


def printable(text: str) -> str:
    r"""Return a text that does nothing to a terminal but to be seen there.

    >>> printable("a\033[2Jb")
    'a [2Jb'
    """
    return text.translate(_CONTROLS)


#: A line of the notebook, as `nbtasks.client.outcome.readable` names it.
_CELL: Final = re.compile(r"Cell In\[(\d+)\], line (\d+)")

#: What the file of a cell is called in a traceback.
_CELL_FILES: Final = ("ipykernel_", "<ipython-input-")


def where_of(traceback: str) -> str:
    """Return the innermost line of this notebook in a remote traceback: `cell [3], line 12`."""
    if not any(name in traceback for name in _CELL_FILES):
        return ""
    from nbtasks.client import outcome  # late: it brings the module that unpickles

    found = _CELL.findall(outcome.readable(traceback))
    return "cell [{}], line {}".format(*found[-1]) if found else ""


@lru_cache(maxsize=1_000)
def short_name(name: str) -> str:
    """Return a task's name without the module, which nobody needs to read in each row.

    >>> short_name("analysis.files.count")
    'count'
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return name
    return name.rsplit(".", 1)[-1]


def duration(seconds: float) -> str:
    """Return a span of time as people read it.

    >>> duration(0.04), duration(7.12), duration(75), duration(3725)
    ('40 ms', '7.1 s', '1:15', '1:02:05')
    """
    if seconds < 0.0005:
        return "< 1 ms"
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return clock(seconds)


def clock(seconds: float) -> str:
    """Return a span of time as a clock shows it.

    >>> clock(7), clock(3725), clock(400_000)
    ('0:07', '1:02:05', '4 d 15 h')
    """
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def explain(row: Mapping[str, Any], now: float, queue: Mapping[str, Any] | None = None) -> str:
    """Say in words what a row's symbol does not: why it waits, how far it is, how it failed.

    Parameters
    ----------
    row
        As `Row.paint` gives it.
    now
        Wall time, seconds.
    queue
        What the broker said of its queue, as `Watch.queue` has it.
    """
    state = row["state"]
    expiry = f"expires in {clock(math.ceil(row['expires'] - now))}" if row.get("expires") else ""
    if state == "running":
        share = row.get("fraction")
        percent = "" if share is None else f"{math.floor(share * 100)} %"
        return "  ".join(filter(None, (percent, row.get("text", ""), attempt(row))))
    if state == "retrying":
        when = f"{attempt(row) or 'next attempt'} {until(row, now)}"
        return "  ".join(filter(None, (when, row.get("error", ""))))
    if state == "scheduled":
        return "  ".join(filter(None, (f"starts {until(row, now)}", expiry)))
    if state == "waiting":
        return "  ".join(filter(None, (why(row, queue), expiry)))
    where = f"({row['where']})" if row.get("where") else ""
    said = row.get("error") if state == "failed" else row.get("text")
    after = f"after {row['attempt']} attempts" if row.get("attempt") else ""
    return "  ".join(filter(None, (said, where, after)))


def until(row: Mapping[str, Any], now: float) -> str:
    """Say how long a row still waits for its time: `in 0:07`, or `now`."""
    seconds = (row.get("due") or 0.0) - now
    return f"in {clock(math.ceil(seconds))}" if seconds > 0 else "now"


def why(row: Mapping[str, Any], queue: Mapping[str, Any] | None) -> str:
    """Say why a row waits: what the broker said of it, else where it stands in the queue.

    >>> why({"i": 7}, {"workers": 2, "busy": 2, "queued": 9, "places": [[7, 4]]})
    '4th in the queue · all 2 workers busy'
    """
    if row.get("why") or queue is None:
        return str(row.get("why", ""))
    place = dict(queue["places"]).get(row["i"])
    return " · ".join(filter(None, (place_of(place), busy(queue["workers"], queue["busy"]))))


def place_of(number: int | None) -> str:
    """Return a place in the queue as people say it; None is one far behind.

    >>> place_of(1), place_of(2), place_of(11), place_of(23)
    ('next in the queue', '2nd in the queue', '11th in the queue', '23rd in the queue')
    """
    if number is None:
        return "in the queue"
    if number == 1:
        return "next in the queue"
    teen = number % 100 in (11, 12, 13)
    ending = "th" if teen else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending} in the queue"


def busy(workers: int, number: int) -> str:
    """Say that no worker is free, when so many of them are busy."""
    if workers == 0:
        return "no worker yet"
    if number < workers:
        return ""
    return "the only worker is busy" if workers == 1 else f"all {workers} workers busy"


def attempt(row: Mapping[str, Any]) -> str:
    """Return which attempt it is, for those that ran before: `attempt 2 of 6`."""
    if not row.get("attempt"):
        return ""
    of = f" of {row['attempts']}" if row.get("attempts") else ""
    return f"attempt {row['attempt']}{of}"


def title(row: Mapping[str, Any]) -> str:
    """Return the row's task as it was called: `count('ast.py')`."""
    return f"{row['name']}{row['args']}"
