"""The panel in a terminal and in a file."""

from __future__ import annotations

import io

from nbtasks.jupyter.panel import TextPanel


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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


def test_a_terminal_shows_progress_in_one_line_that_moves(submit):
    out, told = Terminal(), submit().begins()
    panel = TextPanel(out)
    panel.add(told.record)

    for percent in (10, 20):
        told.says("PROGRESS", {"progress": percent})
        panel.flush()
    told.succeeds()
    panel.flush()

    assert "10 %\r" in out.getvalue()
    assert out.getvalue().count("\n") == 2
    assert out.getvalue().rstrip().endswith("done  < 1 ms")


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
