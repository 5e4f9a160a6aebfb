"""What a benchmark run says: a table of ratios, the goals, a picture, JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

#: system → workload → figure → what each round measured.
Figures = dict[str, dict[str, dict[str, list[float]]]]

OURS = "nbtasks"
EXECUTOR, POOL = "ProcessPoolExecutor", "multiprocessing.Pool"
DASK, RAY, CELERY = "dask.distributed", "ray", "celery + redis"


class Row(NamedTuple):
    """One line of the table."""

    title: str
    workload: str
    figure: str
    pattern: str


ROWS = (
    Row("no-ops, one by one, a second", "one_by_one", "rate", "{:,.0f}"),
    Row("  CPU seconds for 1,000", "one_by_one", "cpu", "{:.3f}"),
    Row("map of 100,000, a second", "map", "rate", "{:,.0f}"),
    Row("round trip, median, ms", "round_trip", "median", "{:.2f}"),
    Row("  99th percentile, ms", "round_trip", "p99", "{:.2f}"),
    Row("cold start to first result, s", "cold_start", "seconds", "{:.2f}"),
    Row("1 MB in, GB/s", "1_MB_in", "gigabytes_per_second", "{:.2f}"),
    Row("1 MB out, GB/s", "1_MB_out", "gigabytes_per_second", "{:.2f}"),
    Row("64 MB in, GB/s", "64_MB_in", "gigabytes_per_second", "{:.2f}"),
    Row("64 MB out, GB/s", "64_MB_out", "gigabytes_per_second", "{:.2f}"),
    Row("512 MB in, GB/s", "512_MB_in", "gigabytes_per_second", "{:.2f}"),
    Row("512 MB out, GB/s", "512_MB_out", "gigabytes_per_second", "{:.2f}"),
    Row("200 MB to 50 tasks, s", "one_to_many", "seconds", "{:.2f}"),
    Row("100,000 queued: bytes each", "backlog", "bytes", "{:,.0f}"),
    Row("10,000 timers: p99 late, ms", "timers", "p99", "{:,.0f}"),
    Row("progress messages a second", "progress", "rate", "{:,.0f}"),
    Row("killed, runs again after, s", "recovery", "seconds", "{:.3f}"),
)

#: Systems side by side in one table.
ABREAST = 4


class Goal(NamedTuple):
    """A figure that the project has set itself, and what was measured."""

    what: str
    measured: float
    limit: float
    #: Whether more is better.
    floor: bool
    unit: str = "x"

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.floor else self.measured <= self.limit

    def line(self) -> str:
        sign = ">=" if self.floor else "<="
        return (
            f"{self.what:<58} {self.measured:>10.3g} {self.unit:<6} {sign} {self.limit:.3g} "
            f"{self.unit:<6} {'met' if self.met else 'MISSED'}"
        )


def middle(figures: Figures, system: str, workload: str, figure: str) -> float | None:
    """Return the median of the rounds, or None where there is nothing."""
    values = figures.get(system, {}).get(workload, {}).get(figure)
    return statistics.median(values) if values else None


def table(figures: Figures) -> list[str]:
    """Return the lines of the tables: medians, and the least and the most of the rounds."""
    names = list(figures)
    lines: list[str] = []
    for start in range(0, len(names), ABREAST):
        block = names[start : start + ABREAST]
        lines += ["", f"{'':32}" + "".join(f"{name:>26}" for name in block)]
        for row in ROWS:
            cells = [cell(figures, name, row) for name in block]
            if any(cells):
                lines.append(f"{row.title:32}" + "".join(f"{text or '-':>26}" for text in cells))
    return lines


def cell(figures: Figures, system: str, row: Row) -> str:
    values = figures[system].get(row.workload, {}).get(row.figure)
    if not values:
        return ""
    least, median, most = (
        row.pattern.format(value) for value in (min(values), statistics.median(values), max(values))
    )
    return median if least == most else f"{median} ({least}–{most})"


# ------------------------------------------------------------------------------------- the goals


def goals(figures: Figures) -> list[Goal]:
    """Return the goals of which both sides were measured."""

    def ratio(what: str, workload: str, figure: str, peer: str, limit: float, floor: bool) -> None:
        mine = middle(figures, OURS, workload, figure)
        theirs = middle(figures, peer, workload.removesuffix("_normal"), figure)
        if mine is not None and theirs:
            found.append(Goal(f"{what} against {peer}", mine / theirs, limit, floor))

    def alone(what: str, workload: str, figure: str, limit: float, unit: str) -> None:
        mine = middle(figures, OURS, workload, figure)
        if mine is not None:
            found.append(Goal(what, mine, limit, False, unit))

    found: list[Goal] = []
    ratio("no-ops one by one: rate", "one_by_one", "rate", EXECUTOR, 5, True)
    ratio("no-ops one by one: rate", "one_by_one", "rate", POOL, 1.5, True)
    ratio("no-ops one by one: rate", "one_by_one", "rate", DASK, 60, True)
    ratio("no-ops one by one: rate", "one_by_one", "rate", CELERY, 60, True)
    ratio("no-ops one by one: CPU", "one_by_one", "cpu", EXECUTOR, 1 / 3, False)
    ratio("map: rate", "map", "rate", EXECUTOR, 0.7, True)
    ratio("round trip, normal", "round_trip_normal", "median", EXECUTOR, 2.5, False)
    ratio("round trip, normal", "round_trip_normal", "median", CELERY, 1 / 3, False)
    ratio("64 MB in", "64_MB_in", "gigabytes_per_second", RAY, 1, True)
    ratio("64 MB out", "64_MB_out", "gigabytes_per_second", RAY, 1, True)
    ratio("200 MB to 50 tasks: time", "one_to_many", "seconds", RAY, 2, False)
    ratio("progress messages: rate", "progress", "rate", DASK, 2, True)
    ratio("cold start", "cold_start", "seconds", CELERY, 1, False)
    alone("cold start", "cold_start", "seconds", 0.5, "s")
    alone("1,000,000 queued: memory each", "backlog_million", "bytes", 400, "bytes")
    alone("10,000 timers at one instant: p99 late", "timers", "p99", 100, "ms")
    alone("worker killed: runs again after", "recovery", "seconds", 0.1, "s")
    return found


# ----------------------------------------------------------------------------------- files, picture


def write(
    folder: Path,
    machine: dict[str, Any],
    figures: Figures,
    goals: Iterable[Goal],
    left_out: dict[str, str],
) -> None:
    """Write figures.json and rates.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    told = [{**goal._asdict(), "met": goal.met} for goal in goals]
    whole = {"machine": machine, "figures": figures, "goals": told, "left_out": left_out}
    (folder / "figures.json").write_text(json.dumps(whole, indent=1) + "\n")
    rates = {name: middle(figures, name, "one_by_one", "rate") for name in figures}
    (folder / "rates.svg").write_text(bars({name: rate for name, rate in rates.items() if rate}))


def bars(rates: dict[str, float]) -> str:
    """Draw rates as bars on a logarithmic scale, the fastest first."""
    import math

    ordered = sorted(rates.items(), key=lambda pair: -pair[1])
    top = math.log10(max(rates.values(), default=10))
    rows = []
    for place, (name, rate) in enumerate(ordered):
        y, width = 34 + 26 * place, max(2.0, 420 * math.log10(max(rate, 10)) / top)
        colour = "#0b62c4" if name == OURS else "#8b95a1"
        rows.append(
            f'<text x="170" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect x="180" y="{y}" width="{width:.0f}" height="18" rx="2" fill="{colour}"/>'
            f'<text x="{188 + width:.0f}" y="{y + 13}">{rate:,.0f}</text>'
        )
    height = 44 + 26 * len(ordered)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" '
        f'font-family="system-ui,sans-serif" font-size="13"><rect width="720" height="{height}" '
        f'fill="#fff"/><text x="180" y="20">no-ops a second, one by one (logarithmic)</text>'
        f"{''.join(rows)}</svg>\n"
    )
