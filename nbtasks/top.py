"""`nbtasks top`: the cluster live, in a terminal.

    broker ◀─ status, activity ─ Watch ─▶ Look ─▶ page: lines and tables ─▶ plain or with rich
                                                     ▲ keys, size ── Screen ◀──────┘

Only asks: it starts nothing, and a cluster that goes away is waited for.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import textwrap
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from nbtasks.jupyter.rows import WORDS, clock, plural, printable, short_name, shorten

if TYPE_CHECKING:
    from nbtasks.client.client import Client

#: Seconds that the broker may take to answer before it is said to be away.
PATIENCE = 2.0
#: An answer may take this share of the broker's time, no more: of a million tasks it is dear.
SHARE = 0.05
#: Seconds over which rates are taken, and how many of them the little chart has.
SPAN = 5.0
CHART = 30
#: Tasks of each kind that are shown at most.
SOME = 10
#: Characters of a task and its arguments at most.
CALLED = 48
#: Seconds between two looks at keys and size.
BLINK = 0.1

BARS = "▁▂▃▄▅▆▇█"

#: Style → its codes of ANSI. `rich` knows the same names.
STYLES = {
    "": "",
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}

STATE_STYLES = {"running": "cyan", "retrying": "yellow", "done": "green", "failed": "red"}


# ------------------------------------------------------------------------------------ looking


class Look(NamedTuple):
    """What was seen at one moment."""

    #: Wall clock.
    at: float
    place: str
    #: Answers of the broker.
    status: Mapping[str, Any]
    activity: Mapping[str, Any]
    #: Pid → (resident bytes, share of one processor since the last look or None).
    processes: Mapping[int, tuple[int, float | None]]
    #: Tasks that ended a second, oldest first; the last is the present rate.
    rates: Sequence[float]


class Away(Exception):
    """There is nobody to ask just now; the text says so."""


class Watch:
    """Ask one cluster again and again.

    Parameters
    ----------
    dir
        As for `nbtasks.connect`.
    """

    def __init__(self, dir: str | None) -> None:
        from nbtasks import place as places

        self._place = places.place_of(dir)
        self._client: Client | None = None
        self._processes: dict[int, Any] = {}
        #: (monotonic seconds, tasks ended so far) of the looks of the last `SPAN` seconds.
        self._ended: deque[tuple[float, int]] = deque()
        self._rates: deque[float] = deque(maxlen=CHART)
        #: Seconds that the last answers took.
        self.took = 0.0

    def look(self) -> Look:
        """Ask.

        Raises
        ------
        Away
            When no cluster runs there, or its broker does not answer.
        """
        from nbtasks.exceptions import ClusterError, OperationalError

        client = self._connect()
        began = time.monotonic()
        try:
            status = client.ask("status", timeout=PATIENCE)
            activity = client.ask("activity", timeout=PATIENCE)
        except (ClusterError, OperationalError, TimeoutError) as error:
            if client.closed or not self._is_running():
                self.close()
            raise Away(f"The broker does not answer; trying again. ({error})") from error
        self.took = time.monotonic() - began
        self._note_rate(status["states"])
        pids = [worker["pid"] for worker in status["workers"]]
        place = str(self._place.runtime)
        return Look(time.time(), place, status, activity, self._measure(pids), tuple(self._rates))

    def _connect(self) -> Client:
        from nbtasks.client.client import Client

        if self._client is None:
            if not self._is_running():
                raise Away(
                    f"No cluster runs in {self._place.runtime}. `nbtasks start`, or the first "
                    f"task of a notebook there, starts one."
                )
            self._client = Client(self._place.runtime)
        return self._client

    def _is_running(self) -> bool:
        from nbtasks import place as places

        return places.is_running(self._place)

    def close(self) -> None:
        """Let go of the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close(0)

    def _note_rate(self, states: Mapping[str, int]) -> None:
        now, ended = time.monotonic(), sum(_ended(states).values())
        self._ended.append((now, ended))
        while self._ended[0][0] < now - SPAN and len(self._ended) > 2:
            self._ended.popleft()
        then, before = self._ended[0]
        if now > then:
            # Results that were dropped in between make the count smaller.
            self._rates.append(max(0.0, (ended - before) / (now - then)))

    def _measure(self, pids: Iterable[int]) -> dict[int, tuple[int, float | None]]:
        import psutil

        found: dict[int, tuple[int, float | None]] = {}
        known, self._processes = self._processes, {}
        for pid in pids:
            with suppress(psutil.Error):
                process = known.get(pid) or psutil.Process(pid)
                share = process.cpu_percent() / 100
                found[pid] = process.memory_info().rss, share if pid in known else None
                self._processes[pid] = process
        return found


def _ended(states: Mapping[str, int]) -> dict[str, int]:
    """Return row state → how many, of the tasks that are over."""
    return {
        "done": states.get("SUCCESS", 0) + states.get("IGNORED", 0),
        "failed": states.get("FAILURE", 0),
        "cancelled": states.get("REVOKED", 0),
    }


# ------------------------------------------------------------------------------------ the page


class Cell(NamedTuple):
    """A piece of text in one style."""

    text: str
    style: str = ""


class Table(NamedTuple):
    """Columns side by side; those whose head begins with `>` stand to the right."""

    head: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]


#: A line of text, or a table with an empty line before it.
Block: TypeAlias = "tuple[Cell, ...] | Table"


def page(look: Look, height: int = 1_000) -> list[Block]:
    """Return what is drawn of a look.

    Parameters
    ----------
    look
        What was seen.
    height
        Lines at most.
    """
    status = look.status
    retrying = look.activity["retrying"]
    blocks: list[Block] = [_cluster_line(look), _counts_line(status, retrying)]
    if look.rates:
        blocks.append(_rate_line(look.rates))
    if status.get("store_failing"):
        text = "The store cannot be written: is the disk full? Nothing new is accepted."
        blocks.append((Cell(text, "red"),))
    left = height - len(blocks)
    # Many workers shall not hide what failed: all but the last get half of what is left.
    for table, share in ((_workers(look), 2), (_queues(status), 2), (_latest(look), 1)):
        room = left // share - 2  # an empty line, and the head
        if table.rows and room > 0:
            blocks.append(_cut(table, room))
            left -= min(len(table.rows), room) + 2
    return blocks


def _cut(table: Table, room: int) -> Table:
    """Return a table of no more than so many rows, the last of which says what is left out."""
    if len(table.rows) <= room:
        return table
    more = Cell(f"… {len(table.rows) - room + 1} more", "dim")
    blank = (Cell(""),) * (len(table.head) - 1)
    return Table(table.head, [*table.rows[: room - 1], (more, *blank)])


def _cluster_line(look: Look) -> tuple[Cell, ...]:
    status = look.status
    present, wanted = len(status["workers"]), status["wanted"]
    busy = sum(worker["current"] is not None for worker in status["workers"])
    workers = plural(present, "worker") if present == wanted else f"{present} of {wanted} workers"
    return (
        Cell("nbtasks", "bold"),
        Cell(look.place),
        Cell(f"up {clock(status['uptime'])}", "dim"),
        Cell(f"{workers}, {busy} busy", "" if present >= wanted else "yellow"),
        Cell(time.strftime("%H:%M:%S", time.localtime(look.at)), "dim"),
    )


def _counts_line(status: Mapping[str, Any], retrying: int) -> tuple[Cell, ...]:
    phases = status["phases"]
    counts = {
        "running": phases.get("running", 0),
        "retrying": retrying,
        "waiting": sum(phases.get(phase, 0) for phase in ("queued", "assigned", "waiting")),
        "scheduled": phases.get("scheduled", 0) - retrying,
        **_ended(status["states"]),
    }
    words = {state: word for state, (_, word) in WORDS.items()}
    words["cancelled"] = "cancelled or expired"  # the broker counts them together
    cells = [
        Cell(f"{WORDS[state][0]} {count:,} {words[state]}", STATE_STYLES.get(state, ""))
        for state, count in counts.items()
        if count
    ]
    return tuple(cells) or (Cell("no tasks", "dim"),)


def _rate_line(rates: Sequence[float]) -> tuple[Cell, ...]:
    top = max(*rates, 1e-9, 0.0)
    bars = "".join(BARS[min(int(rate / top * 7.99), 7)] for rate in rates)
    return Cell(f"{rates[-1]:,.1f} tasks/s"), Cell(bars, "dim")


def _workers(look: Look) -> Table:
    return Table(
        ("WORKER", ">PID", ">MEMORY", ">CPU", ">FOR", "TASK"),
        [_worker(worker, look) for worker in look.status["workers"]],
    )


def _worker(worker: Mapping[str, Any], look: Look) -> tuple[Cell, ...]:
    memory, share = look.processes.get(worker["pid"], (0, None))
    current = worker["current"]
    return (
        Cell(worker["name"]),
        Cell(str(worker["pid"]), "dim"),
        Cell(f"{memory / 1e6:,.0f} MB" if memory else ""),
        Cell("" if share is None else f"{share * 100:.0f} %"),
        Cell("" if current is None else clock(max(0.0, look.at - current["began"]))),
        Cell("idle", "dim") if current is None else _call("running", current),
    )


def _queues(status: Mapping[str, Any]) -> Table:
    rows = [
        (Cell(queue), Cell(f"{count:,}"), _served(queue, status["workers"]))
        for queue, count in sorted(status["queues"].items())
    ]
    return Table(("QUEUE", ">WAITING", "SERVED BY"), rows)


def _served(queue: str, workers: Iterable[Mapping[str, Any]]) -> Cell:
    count = sum(not worker["queues"] or queue in worker["queues"] for worker in workers)
    return Cell(plural(count, "worker")) if count else Cell("nobody", "yellow")


def _latest(look: Look) -> Table:
    """Return what will start by the clock, what has failed, and what else has ended."""
    activity = look.activity
    ended = (task for task in activity["ended"] if task["state"] != "FAILURE")
    rows = [_coming(task, look.at) for task in activity["next"][:SOME]]
    for over in (activity["failed"], ended):
        rows += [_over(task, look.at) for task in islice(over, SOME)]
    return Table(("TASK", "WHEN", "WHY"), rows)


def _coming(task: Mapping[str, Any], now: float) -> tuple[Cell, ...]:
    left = clock(max(0.0, task["starts"] - now))
    if task["state"] != "RETRY":
        return _call("scheduled", task), Cell(f"starts in {left}"), Cell("")
    when = f"attempt {task['retries'] + 1} in {left}"
    return _call("retrying", task), Cell(when), Cell(task["error"])


def _over(task: Mapping[str, Any], now: float) -> tuple[Cell, ...]:
    state = {"FAILURE": "failed", "REVOKED": "cancelled"}.get(task["state"], "done")
    when, why = f"{clock(now - task['ended_at'])} ago", task["error"]
    if state == "cancelled":  # TaskRevokedError: expired, terminated, purged, revoked
        why = why.partition(": ")[2].replace("revoked", "cancelled")
    return _call(state, task), Cell(when, "dim"), Cell(why)


def _call(state: str, task: Mapping[str, Any]) -> Cell:
    called = f"{short_name(task.get('shown', task['name']))}{task['summary'] or '()'}"
    return Cell(f"{WORDS[state][0]} {shorten(called, CALLED)}", STATE_STYLES.get(state, ""))


# ------------------------------------------------------------------------------------ drawing


def draw(blocks: Sequence[Block], width: int | None, colours: bool) -> list[str]:
    """Return a page as lines of text.

    Parameters
    ----------
    blocks
        What `page` returned.
    width
        Columns of the terminal; None: nothing is cut.
    colours
        Whether it is for a terminal; then `rich` draws it where that is installed.
    """
    if colours and width is not None:
        with suppress(ImportError):
            return _draw_rich(blocks, width)
    lines: list[str] = []
    for block in blocks:
        if isinstance(block, Table):
            lines += ["", *_draw_table(block, width, colours)]
        else:
            lines.append(_join(block, [len(cell.text) for cell in block], width, colours))
    return lines


def _draw_table(table: Table, width: int | None, colours: bool) -> list[str]:
    head = tuple(Cell(name.lstrip(">"), "dim") for name in table.head)
    rows = [head, *(tuple(_one_line(cell) for cell in row) for row in table.rows)]
    widths = [
        max(len(row[i].text) for row in rows) * (-1 if name.startswith(">") else 1)
        for i, name in enumerate(table.head)
    ]
    return [_join(row, widths, width, colours) for row in rows]


def _join(cells: Sequence[Cell], widths: Sequence[int], width: int | None, colours: bool) -> str:
    """Return one line; a width below 0 puts the text to the right."""
    line, used = "", 0
    for cell, wanted in zip(cells, widths, strict=True):
        text = cell.text.rjust(-wanted) if wanted < 0 else cell.text.ljust(wanted)
        if cell is cells[-1]:
            text = text.rstrip()
        if width is not None and used + len(text) > width:
            text = f"{text[: max(0, width - used - 1)]}…" if width > used else ""
        code = STYLES[cell.style] if colours else ""
        line += f"\033[{code}m{text}\033[0m  " if code and text else f"{text}  "
        used += len(text) + 2
    return line.rstrip()


def _one_line(cell: Cell) -> Cell:
    return Cell(" ".join(printable(cell.text).split()), cell.style)


def _draw_rich(blocks: Sequence[Block], width: int) -> list[str]:
    """Draw with rich, which knows how wide characters are and what the terminal can show."""
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(width=width, force_terminal=True, highlight=False, legacy_windows=False)
    with console.capture() as drawn:
        for block in blocks:
            if not isinstance(block, Table):
                line = Text("  ").join(Text(cell.text, cell.style) for cell in block)
                console.print(line, no_wrap=True, overflow="ellipsis")
                continue
            table = RichTable(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
            for name in block.head:
                side: Any = "right" if name.startswith(">") else "left"
                table.add_column(name.lstrip(">"), justify=side, no_wrap=True, overflow="ellipsis")
            for row in block.rows:
                table.add_row(*(Text(_one_line(cell).text, cell.style) for cell in row))
            console.print()
            console.print(table)
    return drawn.get().splitlines()


# ----------------------------------------------------------------------------------- the terminal


class Screen:
    """The terminal while we have it: a page of its own, no cursor, keys at once.

    What was there before comes back at the end, however that comes.
    """

    def __init__(self) -> None:
        self._modes: list[Any] | None = None
        self._former: Any = None

    def __enter__(self) -> Screen:
        # Left to itself this signal would leave the terminal as it is now.
        self._former = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        with suppress(ImportError):  # Windows: no keys, but Ctrl-C
            import termios

            if sys.stdin.isatty():
                self._modes = termios.tcgetattr(sys.stdin)
                self._read_keys_at_once()
        sys.stdout.write("\033[?1049h\033[?25l")
        return self

    def _read_keys_at_once(self) -> None:
        import termios

        modes = termios.tcgetattr(sys.stdin)
        modes[3] &= ~(termios.ICANON | termios.ECHO)
        modes[6][termios.VSUSP] = b"\0"  # Ctrl-Z would leave the shell on our page
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, modes)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # it may be closed
            sys.stdout.write("\033[?25h\033[?1049l")
            sys.stdout.flush()
        if self._modes is not None:
            import termios

            with suppress(OSError, termios.error):
                termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._modes)
        signal.signal(signal.SIGTERM, self._former)

    def show(self, lines: Sequence[str]) -> None:
        """Draw over what is there; nothing flickers, as nothing is cleared before."""
        sys.stdout.write("\033[H" + "\033[K\r\n".join(lines) + "\033[K\033[J")
        sys.stdout.flush()

    def left(self, seconds: float) -> bool:
        """Return whether somebody wants to leave within this time."""
        if self._modes is None:
            time.sleep(seconds)
            return False
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(ready) and os.read(sys.stdin.fileno(), 64) in (
            b"q",
            b"Q",
            b"\x03",
            b"\x04",
            b"",
        )


def run(dir: str | None, once: bool = False, interval: float = 1.0) -> int:
    """Show a cluster until somebody leaves; return the exit code.

    Parameters
    ----------
    dir
        As for `nbtasks.connect`.
    once
        Print one page and leave, as is also done where there is no terminal.
    interval
        Seconds between two looks, at least.
    """
    watch = Watch(dir)
    try:
        if once or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            return _print(watch)
        with suppress(KeyboardInterrupt), Screen() as screen:
            _follow(watch, screen, interval)
        return 0
    finally:
        watch.close()


def _print(watch: Watch) -> int:
    try:
        blocks = page(watch.look())
    except Away as away:
        print(f"nbtasks: {away}", file=sys.stderr)
        return 1
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(draw(blocks, width, colours=width is not None and has_colours())))
    return 0


def _follow(watch: Watch, screen: Screen, interval: float) -> None:
    seen: Look | None = None
    while True:
        trouble = ""
        try:
            seen = watch.look()
        except Away as away:
            trouble = str(away)
        until = time.monotonic() + max(interval, watch.took / SHARE)
        size = None
        while (left := until - time.monotonic()) > 0:
            if size != (size := shutil.get_terminal_size()):
                screen.show(_fitted(seen, trouble, *size))
            if screen.left(min(left, BLINK)):
                return


def _fitted(seen: Look | None, trouble: str, width: int, height: int) -> list[str]:
    """Return the lines of a page that has just this size."""
    said = textwrap.wrap(trouble, max(width, 1), break_on_hyphens=False)
    news: list[Block] = [(Cell(line, "red"),) for line in said]
    foot: Block = (Cell("q leaves", "dim"),)
    blocks = [] if seen is None else page(seen, height - len(news) - 2)
    lines = draw([*news, *blocks], width, has_colours())
    return [*lines[: height - 2], "", *draw([foot], width, has_colours())]


def has_colours() -> bool:
    """Whether colours are wanted (no-color.org)."""
    return not os.environ.get("NO_COLOR")
