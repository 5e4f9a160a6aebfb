"""The panel in a terminal and in a file."""

from __future__ import annotations

import io
import re
import sys

import pytest

from nbtasks.jupyter import outlook, text, watch
from nbtasks.jupyter.text import RichLines, Screen, TextPanel
from tests.jupyter.conftest import NOW


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("rich", "rich.live"):
        monkeypatch.setitem(sys.modules, module, None)


def words(written: str) -> list[str]:
    """Return the lines that were written, without the codes that colour and move."""
    return [line.rstrip() for line in re.sub(r"\033\[[?\d;]*\w|\r", "", written).split("\n")]


def test_each_change_of_state_is_a_line(submit):
    out, told = io.StringIO(), submit()
    panel = TextPanel(out)
    panel.add(told.record)

    panel.flush()
    told.begins()
    panel.flush()
    told.succeeds(runtime=1.5)
    panel.flush()

    assert out.getvalue().splitlines() == [
        "  ● load('a.csv')  running",
        "  ✓ load('a.csv')  done  1.5 s",
    ]


def test_nothing_is_said_twice(submit):
    out, told = io.StringIO(), submit().begins()
    panel = TextPanel(out)
    panel.add(told.record)

    panel.flush()
    told.says("PROGRESS", {"progress": 1})
    panel.flush()

    assert len(out.getvalue().splitlines()) == 1


def test_a_file_is_told_of_progress_in_quarters(submit):
    out, told = io.StringIO(), submit().begins()
    panel = TextPanel(out)
    panel.add(told.record)

    for percent in range(0, 100, 5):
        told.says("PROGRESS", {"progress": percent})
        panel.flush()

    assert [line[-4:] for line in out.getvalue().splitlines()] == [" 0 %", "25 %", "50 %", "75 %"]


@pytest.mark.usefixtures("without_rich")
def test_without_rich_nothing_moves_that_the_cell_would_write_over(submit):
    out, told = Terminal(), submit().begins()
    panel = TextPanel(out)
    panel.add(told.record)

    for percent in (10, 20, 60):
        told.says("PROGRESS", {"progress": percent})
        panel.flush()

    assert [line[-4:] for line in words(out.getvalue())[:-1]] == ["10 %", "60 %"]
    assert not re.search(r"\r|\033\[K", out.getvalue())


@pytest.mark.usefixtures("without_rich")
def test_what_a_task_says_does_nothing_to_the_terminal(submit):
    out, told = Terminal(), submit("\033[2Jload").begins()
    panel = TextPanel(out)
    panel.add(told.record)

    told.says("PROGRESS", {"message": "\033]0;title\x07"})
    panel.flush()

    assert "\033[2J" not in out.getvalue()
    assert "\033]" not in out.getvalue()


# ------------------------------------------------------------------------------- with rich


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """Return what rich draws of a panel on a terminal at this moment; its clock stands still."""
    pytest.importorskip("rich")
    monkeypatch.setenv("COLUMNS", "100")
    panels = []

    def draw(panel: TextPanel) -> list[str]:
        panels.append(panel)
        panel.flush()
        moving = panel._moving
        assert isinstance(moving, RichLines)
        out = panel._out
        assert isinstance(out, Terminal)
        before = len(out.getvalue())
        moving._screen.live.refresh()
        return [line for line in words(out.getvalue()[before:]) if line]

    yield draw

    for panel in panels:
        panel.pause()


def test_rich_draws_those_that_are_open_with_what_the_panel_says(submit, drawn):
    panel = TextPanel(Terminal())
    running = submit("nb.train", "(lr=0.1)").begins(at=NOW.wall - 19)
    running.says("PROGRESS", {"current": 12, "total": 20, "desc": "epoch"})
    fast = submit("nb.read", "()").begins(at=NOW.wall - 1)
    fast.says("PROGRESS", {"current": 2_500_000})
    retrying = submit("nb.fetch").retries(ConnectionError("refused"), 1, 7)
    waiting = submit("nb.crunch", "(7)")
    later = submit("nb.report", "()", eta=NOW.wall + 72)
    for told in (later, waiting, retrying, running, fast, submit().succeeds()):
        panel.add(told.record)
    panel._watch.queue = {"workers": 2, "busy": 2, "places": [[1, 4]]}

    lines = drawn(panel)

    bar = "━" * 12
    assert [re.sub(r" {2,}", "  ", line) for line in lines] == [
        f"  ● train(lr=0.1)  {bar}╺{'━' * 7}  60 %  epoch 12/20  0.632/s  0:13 left  0:19",
        "  ● read()  2500000  2,500,000/s  0:01",
        "  ↻ fetch('a.csv')  attempt 2 in 0:07  ConnectionError: refused",
        "  ○ crunch(7)  4th in the queue · all 2 workers busy",
        "  ◔ report()  starts in 1:12",
    ]


def test_rich_counts_down_without_any_news(submit, drawn, monkeypatch):
    panel = TextPanel(Terminal())
    panel.add(submit(eta=NOW.wall + 72).record)
    assert "starts in 1:12" in drawn(panel)[0]

    monkeypatch.setattr(text.time, "time", lambda: NOW.wall + 70)

    assert "starts in 0:02" in drawn(panel)[0]


def test_rich_leaves_nothing_behind_but_the_lines_that_stay(submit, drawn):
    out = Terminal()
    panel, told = TextPanel(out), submit().begins()
    panel.add(told.record)
    drawn(panel)

    told.succeeds(runtime=1.5)
    panel.pause()

    assert panel._moving is None
    assert "✓ load('a.csv')  done  1.5 s" in words(out.getvalue())[-2]
    assert words(out.getvalue())[-1] == ""
    assert out.getvalue().rstrip().endswith("\033[?25h")  # the cursor is back


def test_what_goes_on_has_a_line_that_stays_only_when_rich_is_gone(submit, drawn):
    out = Terminal()
    panel, told = TextPanel(out), submit().begins()
    panel.add(told.record)

    drawn(panel)
    assert "running" not in out.getvalue()

    panel.pause()
    assert words(out.getvalue())[-2].endswith("  ● load('a.csv')  running")


def test_what_a_task_is_called_is_never_taken_for_markup(submit, drawn):
    out = Terminal()
    panel, told = TextPanel(out), submit("nb.load", "('[bold red]x[/]')").begins()
    panel.add(told.record)

    assert "load('[bold red]x[/]')" in drawn(panel)[0]

    told.succeeds()
    panel.pause()
    assert "load('[bold red]x[/]')" in words(out.getvalue())[-2]


def test_of_many_tasks_only_what_went_wrong_has_a_line(submit):
    out = io.StringIO()
    panel = TextPanel(out)
    for number in range(100):
        told = submit(summary=f"({number})")
        panel.add(told.record)
        told.fails(ValueError("no")) if number == 7 else told.succeeds()

    panel.pause()

    assert out.getvalue().splitlines() == [
        "  ✕ load(7)  failed  ValueError: no",
        "  100 tasks: 99 done · 1 failed",
    ]


def test_between_cells_the_terminal_is_left_alone(submit):
    out, told = io.StringIO(), submit().begins()
    panel = TextPanel(out)
    panel.add(told.record)

    panel.pause()
    said = out.getvalue()
    told.succeeds()
    panel.flush()
    assert out.getvalue() == said

    panel.resume()
    assert "done" in out.getvalue()


def test_what_ended_within_a_cell_is_told_before_the_next_one(submit):
    out, told = io.StringIO(), submit()
    panel = TextPanel(out)
    panel.add(told.record)
    told.record.listeners = ()  # the client's thread has not got round to it
    told.succeeds()

    panel.pause()

    assert "done" in out.getvalue()


def test_a_failure_says_after_how_many_attempts(submit):
    out, told = io.StringIO(), submit().begins().retries(OSError("no"), 1, 0.0)
    panel = TextPanel(out)
    panel.add(told.record)

    told.begins().fails(OSError("no"), retries=1, runtime=1)
    panel.pause()

    assert out.getvalue() == "  ✕ load('a.csv')  failed  OSError: no  after 2 attempts  1.0 s\n"


def test_half_a_character_does_not_silence_the_tasks_after_it(submit):
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, "utf-8")
    panel = TextPanel(out)
    for told in (submit().fails(OSError("half \udcff")), submit().succeeds(runtime=1)):
        panel.add(told.record)

    panel.pause()

    assert raw.getvalue().decode().splitlines() == [
        "  ✕ load('a.csv')  failed  OSError: half \\udcff",
        "  ✓ load('a.csv')  done  1.0 s",
        "  2 tasks: 1 done · 1 failed",
    ]


def test_rich_says_how_many_tasks_there_are_besides_those_that_it_draws(submit, drawn):
    panel = TextPanel(Terminal())
    for number in range(14):
        told = submit(summary=f"({number})")
        panel.add(told.begins().record if number < 2 else told.record)

    lines = drawn(panel)

    assert len(lines) == text.MOVING + 1
    assert lines[-1] == "  … and 4 more  14 tasks: 2 running · 12 waiting"


def test_panels_of_several_cells_stand_below_one_another(submit, drawn):
    out = Terminal()
    first, second = TextPanel(out), TextPanel(out)
    first.add(submit().begins().record)
    second.add(submit(summary="('b.csv')").begins().record)

    drawn(first)
    both = drawn(second)
    first.pause()
    one = drawn(second)

    assert [line.split()[1] for line in both] == ["load('a.csv')", "load('b.csv')"]
    assert [line.split()[1] for line in one] == ["load('b.csv')"]


# ------------------------------------------------------------- what another process has sent


@pytest.fixture
def broker(monkeypatch, here):
    """What the broker answers, and the panel asks it itself."""
    monkeypatch.setattr(outlook.Outlook, "_run", lambda self: None)
    monkeypatch.setattr(watch, "outlook", outlook.Outlook())
    answer = {"workers": 1, "busy": 1, "queued": 1, "places": {}, "why": {}, "children": {}}
    here.answers["outlook"] = lambda ids, parents: answer
    return answer


def test_a_task_that_is_attached_is_told_at_once_however_it_stands(here, broker):
    out = io.StringIO()
    panel = TextPanel(out)
    broker["starts"] = {"late": NOW.wall + 100}
    broker["places"] = {"next": 1}
    for task_id in ("late", "next"):
        panel.add(here.record(task_id), ("nb.load", f"({task_id!r})"))

    panel.pause()
    said = out.getvalue()
    panel.resume()
    panel.pause()

    assert said.splitlines() == [
        "  ◔ load('late')  scheduled  starts in 1:40",
        "  ○ load('next')  waiting  next in the queue · the only worker is busy",
    ]
    assert out.getvalue() == said


def test_of_many_tasks_that_are_attached_the_number_is_told(here, broker):
    out = io.StringIO()
    panel = TextPanel(out)
    for number in range(20):
        panel.add(here.record(f"{number}"), ("nb.load", "()"))

    panel.pause()

    assert out.getvalue() == "  20 tasks: 20 waiting\n"


def test_screen_that_could_not_be_opened_spoils_no_later_one(monkeypatch):
    live = pytest.importorskip("rich.live")
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(live.Live, "start", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            RichLines(stream)

    lines = RichLines(stream)
    lines.show([], None, "all is well")
    lines.stop()

    assert stream not in Screen._all
