"""Figures that come as results are shown as pictures, also in a kernel that has drawn none itself.

How a figure is shown, matplotlib tells IPython when it begins to draw. Who only draws in tasks
would see its text until then. What matplotlib says wins, whenever it does.
"""

from __future__ import annotations

from typing import Any, Final

#: Module and name: nobody imports matplotlib for this.
FIGURE: Final = ("matplotlib.figure", "Figure")


def install(shell: Any) -> None:
    """Have IPython show figures as pictures."""
    _pictures(shell).for_type_by_name(*FIGURE, draw)


def uninstall(shell: Any) -> None:
    pictures = _pictures(shell)
    if pictures.deferred_printers.get(FIGURE) is draw:
        pictures.pop(".".join(FIGURE))


def _pictures(shell: Any) -> Any:
    return shell.display_formatter.formatters["image/png"]


def draw(figure: Any) -> Any:
    """Return a figure as PNG, as matplotlib itself has it in notebooks."""
    from IPython.core import pylabtools

    printed: Any = pylabtools.print_figure  # without types
    return printed(figure, "png")
