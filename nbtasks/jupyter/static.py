"""The final picture: what a saved notebook shows where no kernel and no script runs.

A table that reads well with no style at all (GitHub strips it), and one small style sheet for all
others. It carries no id, no pid and no time of day.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nbtasks.jupyter.rows import (
    WORDS,
    attempt,
    duration,
    ended,
    explain,
    plural,
    title,
    total_line,
)

#: Rows of a picture; the rest is told in one line.
LIMIT = 200

#: Columns at which a line of text ends.
WIDTH = 100

STYLE = """
.nbtasks-static{font:13px/1.5 var(--jp-ui-font-family,system-ui,sans-serif);padding:2px 0;
color:var(--jp-ui-font-color1,inherit);--g:#1a7f37;--r:#c0222c;--b:#0b62c4;--y:#8f5f00;--m:#59636e}
[data-jp-theme-light=false] .nbtasks-static{--g:#56d364;--r:#ff8b84;--b:#6cb6ff;--y:#e3b341;
--m:#a0aab5}
.nbtasks-static p{margin:0 0 4px;font-size:13px}.nbtasks-static table{border-collapse:collapse;
margin:0;font-size:13px;table-layout:auto}
.nbtasks-static tr,.nbtasks-static tr:nth-child(even){background:none}
.nbtasks-static td{padding:2px 18px 2px 0;border:0;text-align:left;vertical-align:baseline;
max-width:52em;overflow-wrap:anywhere}
.nbtasks-static td:first-child{padding-right:8px}
.nbtasks-static td:last-child{text-align:right;white-space:nowrap}
.nbtasks-static code{font-size:12px;background:none;padding:0;color:inherit}
.nbtasks-static .done{color:var(--g)}.nbtasks-static .failed{color:var(--r)}
.nbtasks-static .running{color:var(--b)}.nbtasks-static .retrying{color:var(--y)}
.nbtasks-static .m{color:var(--m);font-variant-numeric:tabular-nums}
""".replace("\n", "")


def html(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], now: float) -> str:
    """Return the picture as HTML; everything that came from a task is escaped."""
    head = f"<p><b>{plural(total['n'])}</b> {escape(total_line(total['counts']))}</p>"
    lines = "".join(_html_row(row, now) for row in rows[:LIMIT])
    more = _more(rows, total)
    tail = f"<p>{escape(more)}</p>" if more else ""
    table = f"<table>{lines}</table>" if lines else ""
    show_head = head if total["n"] != 1 else ""
    return (
        f'<section class="nbtasks-static"><style>{STYLE}</style>{show_head}{table}{tail}</section>'
    )


def _html_row(row: Mapping[str, Any], now: float) -> str:
    symbol, word = WORDS[row["state"]]
    state = row["state"]
    cells = (
        f'<td class="{state}">{symbol}</td>',
        f"<td><code>{escape(title(row))}</code></td>",
        f'<td class="{state}">{word}</td>',
        f"<td>{escape(_said(row, now))}</td>",
        f'<td class="m">{escape(_took(row))}</td>',
    )
    return f"<tr>{''.join(cells)}</tr>"


def text(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], now: float) -> str:
    """Return the picture as plain text, without spans of time: it is the same on each run."""
    head = f"nbtasks: {plural(total['n'])}: {total_line(total['counts'])}"
    more = _more(rows, total)
    lines = [_text_row(row, now) for row in rows[:LIMIT]]
    return "\n".join([head, *lines, *([more] if more else [])])


def _text_row(row: Mapping[str, Any], now: float) -> str:
    symbol, word = WORDS[row["state"]]
    said = _said(row, now) if row["final"] else ""
    line = f"{symbol} {title(row)}  {word}{': ' if said else ''}{said}"
    return line if len(line) <= WIDTH else line[: WIDTH - 1] + "…"


def _said(row: Mapping[str, Any], now: float) -> str:
    parts = [explain(row, now)]
    if row["final"] and row.get("attempt"):
        parts.append(f"after {attempt(row).partition(' of ')[0].replace('attempt ', '')} attempts")
    return "  ".join(filter(None, parts))


def _took(row: Mapping[str, Any]) -> str:
    return "" if row.get("took") is None else duration(row["took"])


def _more(rows: Sequence[object], total: Mapping[str, Any]) -> str:
    """Return the line for the rows that are not drawn, or nothing."""
    hidden = total["n"] - min(len(rows), LIMIT)
    if hidden <= 0:
        return ""
    done = "" if ended(total["counts"]) == total["n"] else ", see the counts above"
    return f"… and {hidden} more{done}"
