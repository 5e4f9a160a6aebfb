"""`nbtasks top`: its page as plain data, and the command in a terminal of its own."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks import cli, top
from nbtasks.core.messages import Call

NOW = 1_000_000.0

WORKER = {"name": "worker-1", "pid": 7, "queues": [], "held": 0, "running": [], "current": None}
TASK = {
    "id": "i", "name": "nb.load", "summary": "('a.csv')", "state": "SUCCESS", "phase": "done",
    "retries": 0, "ended_at": NOW - 75, "error": "",
}  # fmt: skip


def look(**changes: Any) -> top.Look:
    status = {
        "uptime": 60.0, "wanted": 1, "clients": 1, "phases": {}, "states": {},
        "queues": {}, "workers": [WORKER], "store_failing": False,
    }  # fmt: skip
    activity = {"retrying": 0, "next": [], "failed": [], "ended": []}
    more = {"processes": {}, "rates": ()}
    for name, value in changes.items():
        next(part for part in (status, activity, more) if name in part)[name] = value
    return top.Look(NOW, "/here", status, activity, more["processes"], more["rates"])


def lines(seen: top.Look, height: int = 1_000, width: int | None = None) -> list[str]:
    return top.draw(top.page(seen, height), width, colours=False)


# ------------------------------------------------------------------------------------ the page


def test_quiet_cluster_says_that_there_is_nothing() -> None:
    first, second, *rest = lines(look())

    assert first.startswith("nbtasks  /here  up 1:00  1 worker, 0 busy")
    assert second == "no tasks"
    assert rest == [
        "",
        "WORKER    PID  MEMORY  CPU  FOR  TASK",
        "worker-1    7                    idle",
    ]


def test_counts_are_told_in_the_words_of_the_panel() -> None:
    seen = look(
        phases={"running": 2, "assigned": 1, "queued": 1_000, "waiting": 1, "scheduled": 5},
        states={"SUCCESS": 9, "IGNORED": 1, "FAILURE": 3, "REVOKED": 4, "PENDING": 1_009},
        retrying=2,
    )

    assert lines(seen)[1] == (
        "● 2 running  ↻ 2 retrying  ○ 1,002 waiting  ◔ 3 scheduled  "
        "✓ 10 done  ✕ 3 failed  ⊘ 4 cancelled or expired"
    )


def test_worker_shows_what_it_runs_and_what_it_takes() -> None:
    current = {"id": "i", "name": "nb.train", "summary": "(lr=0.1)", "began": NOW - 19}
    seen = look(workers=[WORKER | {"current": current}], processes={7: (85_000_000, 0.99)})

    assert lines(seen)[-1] == "worker-1    7   85 MB  99 %  0:19  ● train(lr=0.1)"


def test_queue_that_nobody_serves_is_said_to_be_so() -> None:
    seen = look(workers=[WORKER | {"queues": ["default"]}], queues={"gpu": 3, "default": 1_200})

    assert lines(seen)[-3:] == [
        "QUEUE    WAITING  SERVED BY",
        "default    1,200  1 worker",
        "gpu            3  nobody",
    ]


def test_what_comes_what_failed_and_what_ended_stand_in_this_order() -> None:
    seen = look(
        next=[
            TASK | {"state": "RETRY", "retries": 1, "starts": NOW + 7, "error": "OSError: refused"},
            TASK | {"state": "PENDING", "starts": NOW + 72},
        ],
        failed=[TASK | {"state": "FAILURE", "error": "ValueError: bad\nheader"}],
        ended=[
            TASK | {"state": "FAILURE"},
            TASK | {"state": "REVOKED", "error": "TaskRevokedError: expired"},
            TASK | {"state": "REVOKED", "error": "TaskRevokedError: revoked"},
            TASK | {"ended_at": NOW + 0.1},
        ],
    )

    assert lines(seen)[-7:] == [
        "TASK             WHEN               WHY",
        "↻ load('a.csv')  attempt 2 in 0:07  OSError: refused",
        "◔ load('a.csv')  starts in 1:12",
        "✕ load('a.csv')  1:15 ago           ValueError: bad header",
        "⊘ load('a.csv')  1:15 ago           expired",
        "⊘ load('a.csv')  1:15 ago           cancelled",
        "✓ load('a.csv')  0:00 ago",
    ]


def test_rate_has_a_chart() -> None:
    assert lines(look(rates=(0.0, 5.0, 10.0)))[2] == "10.0 tasks/s  ▁▄█"


def test_full_disk_is_told() -> None:
    assert "cannot be written" in lines(look(store_failing=True))[2]


@pytest.mark.parametrize("height", range(2, 40))
def test_page_is_never_higher_than_the_terminal(height: int) -> None:
    seen = look(workers=[WORKER] * 9, queues=dict.fromkeys("abcdef", 1), ended=[TASK] * 9)

    assert len(lines(seen, height)) <= height


def test_many_workers_do_not_hide_what_failed() -> None:
    seen = look(workers=[WORKER] * 64, failed=[TASK | {"state": "FAILURE", "error": "OSError"}])

    drawn = lines(seen, 24)

    assert "… 56 more" in drawn
    assert drawn[-1].endswith("OSError")


@pytest.mark.parametrize("width", [1, 20, 79])
@pytest.mark.parametrize("has_rich", [True, False])
def test_line_is_never_wider_than_the_terminal(
    width: int, has_rich: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if has_rich:
        pytest.importorskip("rich")
    else:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    current = {"id": "i", "name": "train", "summary": f"({'x' * 500})", "began": NOW}
    seen = look(workers=[WORKER | {"current": current}], failed=[TASK | {"error": "e" * 300}])

    drawn = top.draw(top.page(seen), width, colours=True)

    assert max(len(re.sub(r"\033\[[\d;]*m", "", line)) for line in drawn) <= width


def test_name_of_a_task_does_nothing_to_the_terminal() -> None:
    seen = look(failed=[TASK | {"name": "a\033[2Jb", "state": "FAILURE", "error": "x\x07\ny"}])

    assert lines(seen)[-1] == "✕ a [2Jb('a.csv')  1:15 ago  x y"


@pytest.mark.parametrize("width", [1, 30, 60])
def test_what_to_do_without_a_cluster_is_not_cut_off(width: int) -> None:
    trouble = "No cluster runs in /here. `nbtasks start`, or a first task, starts one."

    drawn = top._fitted(None, trouble, width, 200)

    plain = [re.sub(r"\033\[[\d;]*m", "", line) for line in drawn]
    assert max(map(len, plain)) <= width
    assert "".join(plain).replace(" ", "").startswith(trouble.replace(" ", ""))


def test_both_ways_of_drawing_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    seen = look(queues={"gpu": 3}, ended=[TASK], rates=(1.0, 2.0))
    with_rich = top.draw(top.page(seen), 100, colours=True)
    monkeypatch.setitem(sys.modules, "rich.console", None)

    plain = top.draw(top.page(seen), 100, colours=True)

    def words(drawn: list[str]) -> list[str]:
        return [re.sub(r"\033\[[\d;]*m", "", line).rstrip() for line in drawn]

    assert words(plain) == words(with_rich)


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def cluster(make_cluster: Callable[..., nbtasks.Cluster]) -> nbtasks.Cluster:
    started = make_cluster(workers=1)
    for queue in ("default", "gpu"):
        call = Call(f"id-{queue}", b"", "nb.nobody_has_sent_this", b"", queue=queue)
        started.client.submit(call, confirm=True)
    return started


def test_once_prints_one_page(cluster: nbtasks.Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["top", "--once", "--dir", str(cluster.dir)]) == 0

    out = capsys.readouterr().out
    assert out.startswith(f"nbtasks  {cluster.dir}  up 0:0")
    assert "\033" not in out


def test_without_a_cluster_once_says_what_to_do(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["top", "--once", "--dir", str(short_path)]) == 1

    assert f"No cluster runs in {short_path}. `nbtasks start`" in capsys.readouterr().err


@pytest.mark.parametrize("interval", ["0", "nan", "-1", "x"])
def test_interval_that_makes_no_sense_is_a_usage_error(
    interval: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["top", "--interval", interval])

    assert left.value.code == 2
    assert f"{interval}: give 0.1 to 3600 seconds" in capsys.readouterr().err


class Terminal:
    """`nbtasks top` in a terminal, and what it has written there."""

    def __init__(self, place: Path, rows: int = 24) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(rows)
        self.before = termios.tcgetattr(theirs)
        words = [sys.executable, "-m", "nbtasks", "top", "--dir", str(place), "--interval", "0.1"]
        variables = {**os.environ, "TERM": "xterm", "COLUMNS": "", "LINES": ""}
        self.process = subprocess.Popen(
            words, stdin=theirs, stdout=theirs, stderr=theirs, env=variables, start_new_session=True
        )
        self._theirs = theirs

    def resize(self, rows: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("4H", rows, 100, 0, 0))

    def until(self, condition: Callable[[str], object], seconds: float = 20.0) -> str:
        """Read on until what was written since the last time satisfies; return it."""
        fresh, deadline = "", time.monotonic() + seconds
        os.set_blocking(self.ours, False)
        while not condition(fresh):
            assert time.monotonic() < deadline, f"it did not come; there was: {fresh!r}"
            with contextlib.suppress(BlockingIOError):
                fresh += os.read(self.ours, 65536).decode(errors="replace")
            time.sleep(0.01)
        return fresh

    def leave(self, keys: bytes = b"q") -> int:
        os.write(self.ours, keys)
        return self.process.wait(10)

    def is_as_before(self) -> bool:
        self.until(lambda fresh: fresh.endswith("\033[?25h\033[?1049l"))
        return termios.tcgetattr(self._theirs) == self.before

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        os.close(self.ours)


@pytest.fixture
def terminal(cluster: nbtasks.Cluster) -> Iterator[Terminal]:
    opened = Terminal(cluster.dir)
    yield opened
    opened.close()


def test_page_is_drawn_over_itself_until_q_is_pressed(terminal: Terminal) -> None:
    drawn = terminal.until(lambda fresh: fresh.count("\033[H") > 3)

    assert drawn.startswith("\033[?1049h\033[?25l")
    assert "worker-" in drawn
    assert "q leaves" in drawn
    assert terminal.leave() == 0
    assert terminal.is_as_before()


def test_ctrl_c_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.until(lambda fresh: "worker-" in fresh)
    terminal.process.send_signal(signal.SIGINT)

    assert terminal.process.wait(10) == 0
    assert terminal.is_as_before()


def test_being_terminated_gives_the_terminal_back(terminal: Terminal) -> None:
    terminal.until(lambda fresh: "worker-" in fresh)
    terminal.process.terminate()

    assert terminal.process.wait(10) == 128 + signal.SIGTERM
    assert terminal.is_as_before()


def test_page_follows_the_size_of_the_terminal(terminal: Terminal) -> None:
    terminal.until(lambda fresh: "worker-" in fresh)
    terminal.resize(6)

    terminal.until(lambda fresh: any(0 < p.count("\r\n") <= 5 for p in fresh.split("\033[H")[1:-1]))
    assert terminal.leave() == 0


def test_broker_that_is_away_is_said_to_be_and_waited_for(
    terminal: Terminal, cluster: nbtasks.Cluster
) -> None:
    terminal.until(lambda fresh: "worker-" in fresh)
    frozen = [cluster.supervisor_pid, cluster.broker_pid]  # the supervisor would replace the broker
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)

    away = terminal.until(lambda fresh: "trying again" in fresh)

    assert "worker-" in away  # what was seen last stays
    for pid in reversed(frozen):
        os.kill(pid, signal.SIGCONT)
    terminal.until(lambda fresh: "trying again" not in fresh.rsplit("\033[H", 1)[-1] and fresh)
    assert terminal.leave() == 0


def test_cluster_that_is_started_later_is_waited_for(
    short_path: Path, make_cluster: Callable[..., nbtasks.Cluster]
) -> None:
    terminal = Terminal(short_path)
    try:
        terminal.until(lambda fresh: "No cluster runs" in fresh)
        first = make_cluster(workers=1, dir=short_path)
        terminal.until(lambda fresh: "worker-" in fresh)
        first.shutdown()
        terminal.until(lambda fresh: "No cluster runs" in fresh)
        make_cluster(workers=1, dir=short_path)
        terminal.until(lambda fresh: "worker-" in fresh.rsplit("\033[H", 1)[-1])
        assert terminal.leave() == 0
    finally:
        terminal.close()
