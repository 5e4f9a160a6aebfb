"""Figures of matplotlib: each task begins with none, and one that is a result is like any value."""

from __future__ import annotations

import pytest
from matplotlib import pyplot

import nbtasks
from tests.living import SOON


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    pyplot.switch_backend("agg")


@pytest.fixture
def alone(make_cluster):
    return make_cluster(workers=1)


@nbtasks.task
def lines_after_drawing():
    pyplot.plot([1, 2, 3])
    return len(pyplot.gca().lines), pyplot.get_fignums()


@nbtasks.task
def draw_and_fail():
    pyplot.plot([1, 2])
    raise ValueError("it fails")


class Drawing(nbtasks.Task):
    def on_success(self, retval, task_id, args, kwargs):
        pyplot.plot([3, 4])


@nbtasks.task(base=Drawing)
def drawn_by_handler():
    return len(pyplot.get_fignums())


@nbtasks.task
def draw(values):
    figure, axes = pyplot.subplots()
    axes.plot(values)
    return figure


@pytest.mark.usefixtures("alone")
def test_no_task_draws_into_the_figure_of_another():
    assert [lines_after_drawing.delay().get(timeout=SOON) for _ in range(3)] == [(1, [1])] * 3

    assert isinstance(draw_and_fail.delay().get(timeout=SOON, propagate=False), ValueError)
    assert lines_after_drawing.delay().get(timeout=SOON) == (1, [1])

    assert [drawn_by_handler.delay().get(timeout=SOON) for _ in range(2)] == [0, 0]
    assert lines_after_drawing.delay().get(timeout=SOON) == (1, [1])


@pytest.mark.usefixtures("alone")
def test_a_figure_that_is_a_result_is_drawn_and_not_open(tmp_path):
    figure = draw.delay([1.0, 3.0]).get(timeout=SOON)

    assert pyplot.get_fignums() == []  # a notebook shows those that are open by itself
    (line,) = figure.axes[0].lines
    assert list(line.get_ydata()) == [1.0, 3.0]
    figure.savefig(tmp_path / "figure.png")


def test_figures_of_the_caller_stay_open():
    mine = pyplot.figure()
    try:
        assert lines_after_drawing.apply().get() == (1, [mine.number])
        assert pyplot.get_fignums() == [mine.number]
    finally:
        pyplot.close("all")
