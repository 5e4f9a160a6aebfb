"""What the project has set itself (a ratio in one run, or a figure), and whether it was met."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.benchmarks.report import OURS, Figures, middle

EXECUTOR, POOL = "ProcessPoolExecutor", "multiprocessing.Pool"
DASK, RAY, CELERY = "dask.distributed", "ray", "celery + redis"

#: By how much a task among a million may cost more than one among a thousand.
FLAT = 1.2


class Goal(NamedTuple):
    """One goal, and what was measured; None when the run has not measured both sides."""

    what: str
    measured: float | None
    limit: float
    #: Whether more is better.
    floor: bool
    unit: str = "x"

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        good = self.measured >= self.limit if self.floor else self.measured <= self.limit
        return "met" if good else "MISSED"

    def line(self) -> str:
        measured = "–" if self.measured is None else f"{self.measured:.3g} {self.unit}"
        limit = f"{'>=' if self.floor else '<='} {self.limit:.3g} {self.unit}"
        return f"{self.what:<56} {measured:>12}   {limit:<14} {self.verdict}"

    def facts(self) -> dict[str, Any]:
        return {**self._asdict(), "verdict": self.verdict}


def goals(figures: Figures) -> list[Goal]:
    """Return all goals, also those of which a side was not measured."""
    return [*against_peers(figures), *round_trip(figures), *alone(figures), *growth(figures)]


#: What, workload, figure, peer, limit, whether more is better.
RATIOS = (
    ("no-ops one by one: rate", "one_by_one", "rate", EXECUTOR, 5, True),
    ("no-ops one by one: rate", "one_by_one", "rate", POOL, 1.5, True),
    ("no-ops one by one: rate", "one_by_one", "rate", DASK, 60, True),
    ("no-ops one by one: rate", "one_by_one", "rate", CELERY, 60, True),
    ("CPU for 1,000 tasks", "one_by_one", "cpu", EXECUTOR, 1 / 3, False),
    ("map of 100,000: rate", "map", "rate", EXECUTOR, 0.7, True),
    ("64 MB in: rate", "64_MB_in", "gigabytes_per_second", RAY, 1, True),
    ("64 MB out: rate", "64_MB_out", "gigabytes_per_second", RAY, 1, True),
    ("200 MB to 50 tasks: time", "one_to_many", "seconds", RAY, 2, False),
    ("progress messages: rate", "progress", "rate", DASK, 2, True),
    ("cold start: time", "cold_start", "seconds", CELERY, 1, False),
)

#: What, workload, figure, limit, unit; less is better.
FIGURES = (
    ("cold start, import to first result", "cold_start", "seconds", 0.5, "s"),
    ("1,000,000 queued: memory of the broker each", "backlog_million", "bytes", 400, "bytes"),
    ("10,000 timers at one instant: p99 late", "timers", "p99", 100, "ms"),
    ("worker killed: runs again after", "recovery", "seconds", 0.1, "s"),
    ("idle cluster: memory", "idle", "megabytes", 120, "MB"),
    ("idle cluster: part of a core", "idle", "percent", 0.1, "%"),
)


def against_peers(figures: Figures) -> Iterator[Goal]:
    for what, workload, figure, peer, limit, floor in RATIOS:
        mine = middle(figures, OURS, workload, figure)
        theirs = middle(figures, peer, workload, figure)
        yield Goal(f"{what}, against {peer}", over(mine, theirs), limit, floor)


def round_trip(figures: Figures) -> Iterator[Goal]:
    """What a journey takes: against peers that keep nothing, and against what the disk takes."""
    full = middle(figures, OURS, "round_trip", "median")
    normal = middle(figures, OURS, "round_trip_normal", "median")
    fsync = middle(figures, OURS, "fsync", "median")
    for peer, limit in ((EXECUTOR, 2.5), (CELERY, 1 / 3)):
        theirs = middle(figures, peer, "round_trip", "median")
        yield Goal(f'round trip "normal", against {peer}', over(normal, theirs), limit, False)
    with_disk = None if normal is None or fsync is None else normal + 2 * fsync
    yield Goal('round trip "full", against "normal" + 2 fsync', over(full, with_disk), 1, False)


def alone(figures: Figures) -> Iterator[Goal]:
    for what, workload, figure, limit, unit in FIGURES:
        yield Goal(what, middle(figures, OURS, workload, figure), limit, False, unit)


def growth(figures: Figures) -> Iterator[Goal]:
    many = middle(figures, OURS, "backlog_million", "cpu")
    few = middle(figures, OURS, "backlog_1000", "cpu")
    yield Goal("1,000,000 queued: CPU a task, against 1,000", over(many, few), FLAT, False)


def over(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below
