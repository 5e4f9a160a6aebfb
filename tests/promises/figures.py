"""What is promised, what was measured: one table at the end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

#: The promises in one line each, as the README has them.
PROMISES = {
    "P1": "no accepted task lost, no result lost or changed, one end each, whoever is killed",
    "P2": "the death of a worker is seen at once",
    "P3": "the broker is soon back",
    "P4": "power loss: accepted means on the disk",
    "P5": "bounded repetition",
    "P6": "one result over many runs",
    "P7": "the same id or key is the same task",
    "P8": "a task that kills its workers is given up, and harms nobody else",
    "P9": "timers: never early, hardly late, through any crash and any step of the clock",
    "P10": "a hard time limit holds",
    "P11": "no orphans",
    "P12": "interrupts and restarts of the kernel",
    "P13": "no call hangs",
    "P14": "overload is a wait or an exception, never silence",
    "P15": "a full disk",
    "P16": "no store is destroyed",
    "P17": "durable throughput",
    "P18": "nobody else gets in",
    "P19": "the broker never unpickles",
    "P20": "hostile bytes",
    "P21": "no leak",
}


class Figure(NamedTuple):
    """One thing that was measured."""

    promise: str
    what: str
    #: What is promised, as a bound: `most` or `least`.
    asked: float
    measured: float
    unit: str
    #: Whether `asked` is a floor rather than a ceiling.
    floor: bool = False

    @property
    def held(self) -> bool:
        return self.measured >= self.asked if self.floor else self.measured <= self.asked

    def line(self) -> str:
        sign = ">=" if self.floor else "<="
        asked = f"{sign} {number(self.asked)} {self.unit}".rstrip()
        measured = f"{number(self.measured)} {self.unit}".rstrip()
        verdict = "held" if self.held else "BROKEN"
        return f"{self.promise:4} {self.what:62} {asked:>16} {measured:>16}  {verdict}"


def best_of(tries: int, most: float, once: Callable[[], float]) -> float:
    """Return the least of some measurements; the first that is good enough is the last.

    For what the machine's other work can only make longer.
    """
    found: list[float] = []
    while len(found) < tries and not (found and found[-1] <= most):
        found.append(once())
    return min(found)


def number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.3g}"


def table(figures: Iterable[Figure]) -> list[str]:
    """Return the lines of the table, in the order of the promises."""
    head = f"{'':4} {'what':62} {'asked':>16} {'measured':>16}"
    ordered = sorted(figures, key=lambda figure: (int(figure.promise[1:]), figure.what))
    return [head, *(figure.line() for figure in ordered)]


def write(path: Path, figures: Iterable[Figure], seed: int) -> None:
    """Keep the figures for whoever wants to compare runs."""
    rows = [{**figure._asdict(), "held": figure.held} for figure in figures]
    path.write_text(json.dumps({"seed": seed, "figures": rows}, indent=1))
