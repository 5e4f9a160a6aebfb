"""The final picture: what a saved notebook shows where no kernel and no script runs.

A table that reads well with no style at all (GitHub strips it), and one small style sheet for all
others. It carries no id, no pid and no time of day.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nbtasks.jupyter.rows import (
    WORDS,
    Row,
    attempt,
    duration,
    explain,
    plural,
    title,
    total_line,
)

#: A picture shows all of so many rows ...
ALL = 20
#: ... of more only so many, those first that did not succeed. The rest is told in one line.
SOME = 10

#: Columns at which a line of text ends.
WIDTH = 100

STYLE = """
.nbtasks-static{font:13px/20px var(--jp-ui-font-family,system-ui,sans-serif);padding:4px 0;
color:var(--jp-ui-font-color1,inherit);--g:#1a7f37;--r:#c0222c;--b:#0b62c4;--y:#8f5f00;--m:#59636e}
[data-jp-theme-light=false] .nbtasks-static{--g:#56d364;--r:#ff8b84;--b:#6cb6ff;--y:#e3b341;
--m:#a0aab5}
.nbtasks-static p{margin:0 0 4px!important;font-size:13px}
.nbtasks-static table{margin:0!important;border:0;border-collapse:collapse;font-size:13px}
.nbtasks-static tr{background:none!important;border:0}
.nbtasks-static td{padding:2px 14px 2px 0!important;border:0;text-align:left!important;
vertical-align:top;overflow-wrap:anywhere}
.nbtasks-static td:first-child{padding-right:8px!important}
.nbtasks-static td:nth-child(n+3):nth-child(-n+4){white-space:nowrap}
.nbtasks-static td.m{text-align:right!important}
.nbtasks-static code{padding:0!important;background:none!important;color:inherit!important;
font-size:12.5px!important}
.nbtasks-static .done{color:var(--g)}.nbtasks-static .failed{color:var(--r)}
.nbtasks-static .running{color:var(--b)}.nbtasks-static .retrying{color:var(--y)}
.nbtasks-static .m{color:var(--m);font-variant-numeric:tabular-nums}
""".replace("\n", "")


def choose(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that a picture shows, in order."""
    if len(rows) <= ALL:
        return list(rows)
    wrong = [row for row in rows if row.state in ("failed", "expired", "cancelled")][:ALL]
    others = (row for row in rows if row.state not in ("failed", "expired", "cancelled"))
    more = itertools.islice(others, max(0, SOME - len(wrong)))
    return sorted([*wrong, *more], key=lambda row: row.index)


def html(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], now: float) -> str:
    """Return the picture as HTML; everything that came from a task is escaped."""
    counts = escape(total_line(total["counts"]))
    head = f'<p><b>{plural(total["n"])}</b>&ensp;<span class="m">{counts}</span></p>'
    lines = "".join(_html_row(row, now) for row in rows)
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
        f'<td class="m">{escape(_took(row))}</td>',
        f"<td>{escape(_said(row, now))}</td>",
    )
    return f"<tr>{''.join(cells)}</tr>"


def text(rows: Sequence[Mapping[str, Any]], total: Mapping[str, Any], now: float) -> str:
    """Return the picture as plain text, without spans of time: it is the same on each run."""
    head = f"nbtasks: {plural(total['n'])}: {total_line(total['counts'])}"
    more = _more(rows, total)
    lines = [_text_row(row, now) for row in rows]
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
    hidden = total["n"] - len(rows)
    return f"… and {hidden} more" if hidden > 0 else ""
