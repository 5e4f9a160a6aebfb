"""Figures that come as results, in IPython's own formatters."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure

from nbtasks.jupyter import figures


@pytest.fixture
def shell():
    return SimpleNamespace(display_formatter=DisplayFormatter())


@pytest.fixture
def figure():
    made = Figure()
    made.subplots().plot([1, 3, 2])
    return pickle.loads(pickle.dumps(made))


def shown(shell, figure):
    return shell.display_formatter.format(figure)[0].get("image/png", b"")


def test_a_figure_is_shown_as_a_picture(shell, figure):
    assert not shown(shell, figure)

    figures.install(shell)

    assert shown(shell, figure)[:4] == b"\x89PNG"


@pytest.mark.parametrize("first", ["matplotlib", "nbtasks"])
def test_what_matplotlib_says_wins(shell, figure, first):
    def own(figure):
        return b"as matplotlib likes it"

    if first == "nbtasks":
        figures.install(shell)
    shell.display_formatter.formatters["image/png"].for_type(Figure, own)
    if first == "matplotlib":
        figures.install(shell)

    assert shown(shell, figure) == b"as matplotlib likes it"
    figures.uninstall(shell)
    assert shown(shell, figure) == b"as matplotlib likes it"


def test_uninstalling_leaves_nothing_behind(shell, figure):
    figures.install(shell)

    figures.uninstall(shell)

    assert not shown(shell, figure)
