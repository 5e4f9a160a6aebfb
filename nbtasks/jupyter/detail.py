"""What folds out below a row: all that is known of one task.

It loads what a task was given and what it returned, and asks these objects what they are; that is
code of the user's, which may take its time or fail. So it is done in a thread of its own
(`NotebookPanel.detail`), or with a limit (`several`), and never for something large.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

from nbtasks.client import client, outcome
from nbtasks.client.listening import Facts
from nbtasks.core import states
from nbtasks.core.messages import Call, Event, Options
from nbtasks.core.tracebacks import error_in
from nbtasks.jupyter.rows import describe, duration, first_line, short_name, shorten

#: Letters of a call, and of a result.
LONG: Final = 2_000
#: Letters, and lines, of output; letters of a traceback.
LETTERS: Final = 20_000
LINES: Final = 200
#: Bytes of the largest payload that is loaded only to be looked at.
LOADED: Final = 1_000_000
#: Seconds that the broker gets to tell of a task that is not known here any more.
PATIENCE: Final = 3.0

#: What a terminal would do rather than show: colours and the like, links and titles.
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))|\x07")

Detail = dict[str, Any]


class Asked(NamedTuple):
    """A task of which more is to be told."""

    record: client.Record
    #: The call, when this process has sent it.
    call: Call | None
    #: The task's name and its arguments as text.
    called: tuple[str, str]


def fetch(here: client.Client, task_id: str) -> tuple[client.Record, Mapping[str, Any]]:
    """Return what the broker knows of a task that nothing is known of here; may wait.

    Raises
    ------
    OperationalError, TimeoutError
        When the broker does not say.
    """
    record = here.record(task_id)
    shown = here.ask("show", timeout=PATIENCE, id=task_id) or {}
    if shown.get("phase") == states.DONE:
        here.wait([record], PATIENCE)
    return record, shown


def tell(asked: Asked, shown: Mapping[str, Any] | None = None) -> Detail:
    """Return all that is known of a task.

    Parameters
    ----------
    asked
        Which.
    shown
        The broker's answer to `show`, for a task that this process has not sent.
    """
    record = asked.record
    event = outcome.deciding(record) or outcome.latest(record)
    return {
        "call": _call(asked),
        "facts": [[label, text] for label, text in _facts(asked, shown or {}) if text],
        "attempts": list(attempts(record)),
        "output": output(record.events),
        "traceback": _traceback(record, event),
        "result": _result(record),
    }


def several(asked: Mapping[int, Asked], patience: float) -> dict[int, Detail]:
    """Return what could be told of these tasks in so many seconds."""
    found: dict[int, Detail] = {}

    def tell_all() -> None:
        for index, each in asked.items():
            with suppress(Exception):  # whatever the user's classes raise
                found[index] = tell(each)

    thread = threading.Thread(target=tell_all, name="nbtasks-detail", daemon=True)
    thread.start()
    thread.join(patience)
    return dict(found)


# ------------------------------------------------------------------------------------------ facts


def _call(asked: Asked) -> str:
    """Return the call with its arguments in full; those that the caller has hidden stay so."""
    name, summary = asked.called
    call = asked.call
    options = (call and call.options) or Options()
    hidden = options.argsrepr is not None or options.kwargsrepr is not None
    if call is not None and "…" in summary and not hidden and len(call.body) <= LOADED:
        with suppress(Exception):  # arguments that cannot be loaded here
            args, kwargs = Facts(body=call.body).arguments()
            if args is not None:
                named = (f"{key}={said(value)}" for key, value in kwargs.items())
                summary = f"({', '.join([*map(said, args), *named])})"
    return shorten(f"{short_name(name)}{summary}", LONG)


def _facts(asked: Asked, shown: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    record, call = asked.record, asked.call
    known: Any = shown.get if call is None else lambda name: getattr(call, name, None)
    yield "id", record.id
    yield "task", asked.called[0]
    yield "queue", known("queue") or ""
    yield "priority", str(known("priority")) if known("priority") is not None else ""
    yield "sent", moment(record.created or shown.get("accepted_at"))
    yield "earliest start", moment(known("eta"))
    yield "latest start", moment(known("expires"))
    yield "worker", record.worker
    if record.final is not None:
        yield "ended", moment(record.ended_at)
        yield "took", duration(record.final.runtime) if record.final.runtime else ""


def moment(at: float | None) -> str:
    """Return a wall time as people read it, with the day unless that is today."""
    if not at:
        return ""
    then = datetime.fromtimestamp(at).astimezone()
    today = then.date() == datetime.fromtimestamp(time.time()).astimezone().date()
    return f"{then:%H:%M:%S %Z}" if today else f"{then:%Y-%m-%d %H:%M:%S %Z}"


# --------------------------------------------------------------------------------------- attempts

#: State → how an attempt ended.
_HOW: Final = {states.SUCCESS: "done", states.FAILURE: "failed", states.REVOKED: "cancelled"}


def attempts(record: client.Record) -> Iterator[dict[str, Any]]:
    """Yield each attempt of a task: when it began and ended, how, and why."""
    number, run = 0, None
    for event in list(record.events):
        if event.kind == "run":
            number, run = number + 1, event
        elif ended := _ending(record, event):
            if run is None and event.worker and event.state != states.REVOKED:
                number, run = number + 1, _body(event)
            elif run is not None and event.runtime:
                run = _body(event)  # what it loads before is not counted in its row, either
            if run is not None:
                yield {**_begun(number, run), "ended": event.at, "how": ended[0], "why": ended[1]}
            run = None
    if run is not None:
        yield {**_begun(number, run), "ended": None, "how": "running", "why": ""}


def _body(end: Event) -> Event:
    """Return where the task's own code began in a run, of which perhaps only the end is told."""
    return Event(end.id, end.n, end.at - end.runtime, "run", worker=end.worker)


def _begun(number: int, run: Event) -> dict[str, Any]:
    return {"n": number, "began": run.at, "worker": run.worker}


def _ending(record: client.Record, event: Event) -> tuple[str, str] | None:
    """Return how and why an event ended the attempt that was going on, or None."""
    if event.kind == "again":
        return ("put back" if event.text.startswith("rejected") else "lost"), event.text
    if event.kind == "state" and event.state == states.RETRY:
        return "retry", _why(record, event)
    if event.final:
        state = event.state or record.state
        return _HOW.get(state, "done"), "" if state == states.SUCCESS else _why(record, event)
    return None


def _why(record: client.Record, event: Event) -> str:
    with suppress(Exception):  # an exception whose class is not to be had here
        value = outcome.load(record, event)
        if isinstance(value, BaseException):
            return describe(value)
    return first_line(error_in(event.traceback))


# -------------------------------------------------------------------------- what came out of it


def output(events: Sequence[Event]) -> list[list[str]]:
    """Return the last lines of what a task printed and logged, with the stream of each part."""
    parts: list[list[str]] = []
    letters, lines = LETTERS, LINES
    for event in reversed([event for event in list(events) if event.kind == "output"]):
        text = "".join(plain(event.text).splitlines(keepends=True)[-lines:])[-letters:]
        letters, lines = letters - len(text), lines - text.count("\n")
        if parts and parts[-1][0] == event.state:
            parts[-1][1] = text + parts[-1][1]
        elif text:
            parts.append([event.state, text])
        if letters <= 0 or lines <= 0:
            break
    return parts[::-1]


def plain(text: str) -> str:
    """Return a text as a terminal would leave it: no colours, and what was drawn over is gone."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    lines = (line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n"))
    return "\n".join(_without_what_is_taken_back(line) for line in lines)


def _without_what_is_taken_back(line: str) -> str:
    """Return a line without the letters that are followed by as many steps back, as bars draw."""
    if "\b" not in line:
        return line
    kept: list[str] = []
    for letter in line:
        if letter != "\b":
            kept.append(letter)
        elif kept:
            kept.pop()
    return "".join(kept)


def _traceback(record: client.Record, event: Event | None) -> str:
    if event is None or not event.traceback:
        return ""
    text = outcome.readable(event.traceback).rstrip()
    return text if len(text) <= LETTERS else f"…{text[-LETTERS:]}"


def _result(record: client.Record) -> str:
    """Return the `repr` of what a task returned; nothing for None, which says nothing."""
    event = outcome.deciding(record)
    if event is None or event.state != states.SUCCESS:
        return ""
    size = outcome.size_of(record, event)
    if size > LOADED:
        return f"<{size / 1e6:,.0f} MB: result.get() loads it>"
    try:
        value = outcome.load(record, event)
    except Exception as error:
        return f"<cannot be loaded here: {describe(error)}>"
    return "" if value is None else shorten(said(value), LONG)


def said(value: object) -> str:
    """Return the `repr` of anything, whatever its class makes of that."""
    try:
        return str.__str__(repr(value))
    except Exception as error:
        return f"<{type(value).__name__} whose repr fails with {type(error).__name__}>"


def asked_of(rows: Iterable[Any]) -> dict[int, Asked]:
    """Return what is to be asked of rows whose records are at hand, by their index."""
    return {row.index: Asked(row.record, row.call, row.called) for row in rows}
