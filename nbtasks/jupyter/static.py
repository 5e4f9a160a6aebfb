"""The final picture: what a saved notebook shows where no kernel and no script runs.

One line a task, as its panel had it; a line that has more to say folds out (`<details>`). It reads
well with no style at all (GitHub and untrusted notebooks strip it), and one small style sheet gives
all others the panel's columns. It carries no id, no pid and no time of day.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from types import MappingProxyType
from typing import Any, Final

from nbtasks.jupyter.rows import (
    WORDS,
    Row,
    clock,
    duration,
    explain,
    plural,
    printable,
    shorten,
    title,
    total_line,
    why,
)

#: A picture shows all of so many rows ...
ALL: Final = 20
#: ... of more only so many, those first that did not succeed; failures before all others. The rest
#: folds out of one line ...
SOME: Final = 10
#: ... as many of them as this, and as there is room for.
REST: Final = 300

#: Columns at which a line of text ends.
WIDTH: Final = 100

#: Bytes of HTML that one picture may have: notebooks are mailed, and kept in version control.
SIZE: Final = 100_000
#: Bytes that the longest character takes: `&amp;`, or the end of an empty line.
LONGEST: Final = 5

#: The end of a line that is empty.
_EMPTY: Final = re.compile(r"(?<=\n)([ \t]*)\n")

#: Letters of a result that are shown in its line; a longer one folds out.
VALUE: Final = 60

#: Steps to the right that tasks sent by tasks sent by tasks get at most.
DEEPEST: Final = 8

#: What must be seen, the worst first.
WRONG: Final = ("failed", "expired", "cancelled")

STYLE: Final = """
.nbtasks-static{font:13px/20px var(--jp-ui-font-family,system-ui,sans-serif);max-width:72rem;
padding:4px 0;color:var(--jp-ui-font-color1,inherit);font-variant-numeric:tabular-nums;
--g:#1a7f37;--r:#c0222c;--b:#0b62c4;--y:#8f5f00;--m:#59636e;--l:#d8dee4;--k:#f3f5f7}
:is([data-jp-theme-light=false],.vscode-dark) .nbtasks-static{--g:#56d364;--r:#ff8b84;--b:#6cb6ff;
--y:#e3b341;--m:#a0aab5;--l:#3a4048;--k:#22272e}
.nbtasks-static .head{display:flex;gap:14px;flex-wrap:wrap;padding:0 0 6px}
.nbtasks-static .head b{font-weight:600}
.nbtasks-static .head .m{margin-left:auto}
.nbtasks-static .bar{display:flex;height:4px;margin:0 0 8px;border-radius:2px;overflow:hidden;
background:var(--l)}
.nbtasks-static .bar span{background:currentColor}
.nbtasks-static .row{display:grid;padding:4px 0;align-items:baseline;column-gap:10px;
border-top:1px solid var(--l);
grid-template-columns:10px 16px minmax(9em,28%) 5em 3.9em minmax(0,1fr) auto}
.nbtasks-static .row::before{content:"";color:var(--m);font-size:10px}
.nbtasks-static summary{cursor:pointer}
.nbtasks-static summary.row::-webkit-details-marker{display:none}
.nbtasks-static summary.row::before{content:"\\25B8"}
.nbtasks-static [open]>summary.row::before{content:"\\25BE"}
.nbtasks-static summary.row:hover{background:var(--k)}
.nbtasks-static summary:focus-visible{outline:2px solid var(--b);outline-offset:-2px}
.nbtasks-static .row>*{overflow-wrap:anywhere;min-width:0;text-align:left}
.nbtasks-static .row .time{text-align:right;white-space:nowrap}
.nbtasks-static code,.nbtasks-static pre{padding:0!important;background:none!important;
color:inherit!important;
font:12.5px/20px var(--jp-code-font-family,ui-monospace,monospace)!important}
.nbtasks-static .more{margin:0 0 8px 36px;padding:2px 0 2px 12px;border-left:2px solid var(--l)}
.nbtasks-static .more pre{margin:0 0 6px!important;white-space:pre-wrap;overflow-wrap:anywhere;
word-break:normal}
.nbtasks-static .more b{display:block;font-weight:600;color:var(--m)}
.nbtasks-static .done{color:var(--g)}.nbtasks-static .failed{color:var(--r)}
.nbtasks-static .running{color:var(--b)}.nbtasks-static .retrying{color:var(--y)}
.nbtasks-static :is(.m,.waiting,.scheduled,.expired,.cancelled){color:var(--m)}
@media(max-width:700px){.nbtasks-static .row{grid-template-columns:10px 16px 1fr 5em 3.9em}
.nbtasks-static .row>:nth-child(n+5){grid-column:3/-1}}
""".replace("\n", "")


def choose(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that a picture shows, in order."""
    if len(rows) <= ALL:
        return list(rows)
    worst = sorted(
        (row for row in rows if row.state in WRONG), key=lambda row: WRONG.index(row.state)
    )
    wrong = worst[:ALL]
    others = (row for row in rows if row.state not in WRONG)
    more = itertools.islice(others, max(0, SOME - len(wrong)))
    return sorted([*wrong, *more], key=lambda row: row.index)


def rest(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that fold out below those that a picture shows, in order."""
    shown = {row.index for row in choose(rows)}
    return list(itertools.islice((row for row in rows if row.index not in shown), REST))


def tree(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield each row with its depth: a task that a task has sent comes below its sender."""
    known = {row["i"] for row in rows}
    below: dict[int | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        sender = row.get("parent")
        below.setdefault(sender if sender in known else None, []).append(row)
    stack = [(row, 0) for row in reversed(below.get(None, []))]
    while stack:
        row, depth = stack.pop()
        yield row, min(depth, DEEPEST)
        stack.extend((child, depth + 1) for child in reversed(below.get(row["i"], [])))


# ------------------------------------------------------------------------------------ as HTML


def html(
    rows: Sequence[Mapping[str, Any]],
    total: Mapping[str, Any],
    now: float,
    details: Mapping[int, Mapping[str, Any]] = MappingProxyType({}),
    others: Sequence[Mapping[str, Any]] = (),
    queue: Mapping[str, Any] | None = None,
) -> str:
    """Return the picture as HTML; everything that came from a task is escaped.

    Parameters
    ----------
    rows, total
        As `nbtasks.jupyter.rows` paints them.
    now
        Wall time, seconds.
    details
        Index of a row → what its fold-out holds, as `nbtasks.jupyter.detail` tells it.
    others
        Rows that fold out below these.
    queue
        What the broker said of its queue, as `Watch.queue` has it.
    """
    lines = [
        _Line(row, depth, explain(row, now, queue), details.get(row["i"], {}))
        for row, depth in tree(rows)
    ]
    room = SIZE - sum(line.size for line in lines) - len(STYLE) - 1_000
    drawn = []
    for left, line in zip(range(len(lines), 0, -1), lines, strict=True):
        more = line.fold_out(max(0, room) // left)
        room -= _size(more)
        drawn.append(line.html(more))
    parts = (_head(total), *drawn, _rest(others, total["n"] - len(rows), now, room))
    return f'<section class="nbtasks-static"><style>{STYLE}</style>{"".join(parts)}</section>'


def _rest(others: Sequence[Mapping[str, Any]], hidden: int, now: float, room: int) -> str:
    """Return the line for the rows that are not shown; those that there is room for fold out."""
    if hidden <= 0:
        return ""
    drawn = []
    for row in others:
        line = _Line(row, 0, explain(row, now), {}).html("")
        room -= _size(line)
        if room < 0:
            break
        drawn.append(line)
    if not drawn:
        return f'<div class="m">… and {hidden} more</div>'
    left = hidden - len(drawn)
    tail = f'<div class="m">… and {left} more</div>' if left else ""
    summary = f'<summary class="m">… and {hidden} more</summary>'
    return f"<details>{summary}{''.join(drawn)}{tail}</details>"


def _head(total: Mapping[str, Any]) -> str:
    if total["n"] == 1:
        return ""
    began, ended = total.get("began"), total.get("ended")
    counts = f"<span>{escape(total_line(total['counts']))}</span>"
    took = f' <span class="m">{duration(ended - began)}</span>' if began and ended else ""
    bar = "".join(
        f'<span class="{state}" style="flex:{number}"></span>'
        for state, number in total["counts"].items()
    )
    head = f"<b>{plural(total['n'])}</b> {counts}{took}"
    return f'<div class="head">{head}</div><div class="bar">{bar}</div>'


class _Line:
    """One task: its line, and what folds out below it."""

    def __init__(
        self, row: Mapping[str, Any], depth: int, said: str, detail: Mapping[str, Any]
    ) -> None:
        self._detail = detail
        self._title = title(row)
        result = detail.get("result") or ""
        self._value = "" if len(result) > VALUE or "\n" in result else result
        self._line = self._draw(row, depth, said)

    @property
    def size(self) -> int:
        return _size(self._line) + 200

    def _draw(self, row: Mapping[str, Any], depth: int, said: str) -> str:
        state = row["state"]
        symbol, word = WORDS[state]
        branch = "\u2003" * (depth - 1) + "└ " if depth else ""
        value = f"<code>{escape(self._value, quote=False)}</code>" if self._value else ""
        said = escape(said, quote=False)
        cells = (
            f'<span class="{state}">{symbol}</span>',
            f"<bdi>{branch}<code>{_escape(self._title)}</code></bdi>",
            f'<span class="{state}">{word}</span>',
            f'<span class="m time">{escape(_took(row))}</span>',
            f"<bdi>{' · '.join(filter(None, (said, value)))}</bdi>",
        )
        return " ".join(cells)

    def html(self, more: str) -> str:
        if not more:
            return f'<div class="row">{self._line}</div>'
        return f'<details><summary class="row">{self._line}</summary>{more}</details>'

    def fold_out(self, room: int) -> str:
        """Return what folds out, in so many bytes; the traceback's end is the last to go."""
        detail = self._detail
        traceback = _section("traceback", detail.get("traceback", ""), room // 2, end=True)
        room -= _size(traceback)
        attempts = _section("attempts", "\n".join(_attempts(detail)), room // 2)
        room -= _size(attempts)
        output = "".join(said for _, said in detail.get("output", ()))
        output = _section("output", output, room // 2, end=True)
        room -= _size(output)
        result = "" if self._value else _section("result", detail.get("result") or "", room // 2)
        call = detail.get("call") or ""
        call = _section("call", "" if call == self._title else call, room - _size(result))
        parts = "".join((call, attempts, output, traceback, result))
        return f'<div class="more">{parts}</div>' if parts else ""


def _attempts(detail: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each attempt, where there was more than one, timed from the first."""
    attempts = detail.get("attempts", ())
    if len(attempts) < 2:
        return
    first = attempts[0].get("began")
    for each in attempts:
        began, ended = each.get("began"), each.get("ended")
        parts = [f"{each['n']}"]
        if began is not None and first is not None:
            parts.append(f"+{clock(began - first)}")
        parts.append(each["how"])
        if began is not None and ended is not None:
            parts.append(f"after {duration(max(0.0, ended - began))}")
        yield "  ".join(parts) + (f"  {each['why']}" if each.get("why") else "")


def _section(name: str, text: str, room: int, *, end: bool = False) -> str:
    """Return a part of a fold-out in so many bytes: the beginning of a text, or its end."""
    before, after = f"<b>{name}</b><pre>", "</pre>"
    room -= len(before) + len(after) + 10
    text = text.strip("\n")
    if not text or room < 100:
        return ""
    text = _end(text, room) if end else shorten(text, max(1, room // LONGEST))
    return f"{before}{_escape(text)}{after}"


def _end(text: str, room: int) -> str:
    """Return the last lines of a text, as many as fit into so many bytes of HTML."""
    kept = text
    while (size := _size(_escape(kept))) > room:
        kept = kept[len(kept) - len(kept) * room // size :]
    if kept == text:
        return text
    _, newline, whole = kept.partition("\n")
    return f"…\n{whole if newline else kept}"


def _escape(text: str) -> str:
    """Return a text of several lines as HTML without an empty one.

    In Markdown, which nbconvert makes of notebooks, such a line would be the end of what is HTML.
    """
    return _EMPTY.sub(r"\1&#10;", escape(text, quote=False))


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


# ------------------------------------------------------------------------------------ as text


def text(
    rows: Sequence[Mapping[str, Any]],
    total: Mapping[str, Any],
    now: float,
    queue: Mapping[str, Any] | None = None,
) -> str:
    """Return the picture as plain text, without spans of time: in the end always the same."""
    head = f"nbtasks: {plural(total['n'])}: {total_line(total['counts'])}"
    more = _more(rows, total)
    lines = [_text_row(row, depth, now, queue) for row, depth in tree(rows)]
    return "\n".join([head, *lines, *([more] if more else [])])


def _text_row(
    row: Mapping[str, Any], depth: int, now: float, queue: Mapping[str, Any] | None
) -> str:
    symbol, word = WORDS[row["state"]]
    said = explain(row, now) if row["final"] else why(row, queue) if word == "waiting" else ""
    line = f"{'  ' * depth}{symbol} {title(row)}  {word}{': ' if said else ''}{said}"
    return shorten(printable(line), WIDTH)


# ------------------------------------------------------------------------------------ of both


def _took(row: Mapping[str, Any]) -> str:
    return "" if row.get("took") is None else duration(row["took"])


def _more(rows: Sequence[object], total: Mapping[str, Any]) -> str:
    """Return the line for the rows that are not drawn, or nothing."""
    hidden = total["n"] - len(rows)
    return f"… and {hidden} more" if hidden > 0 else ""
