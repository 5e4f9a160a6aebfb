"""What a benchmark run says: medians, ratios, what is missing and why, the goals; text and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks import picture

#: system → workload → figure → what each round measured.
Figures = dict[str, dict[str, dict[str, list[float]]]]
#: system → workload → why there is no figure, one text a round.
Gaps = dict[str, dict[str, list[str]]]

NOT_OFFERED = "not offered"

OURS = "nbtasks"


class Row(NamedTuple):
    """One line of the tables, and one field of the picture."""

    title: str
    workload: str
    figure: str
    pattern: str
    #: Whether more is better.
    floor: bool = False


ROWS = (
    Row("no-ops one by one, 1/s", "one_by_one", "rate", "{:,.0f}", True),
    Row("CPU s for 1,000 no-ops", "one_by_one", "cpu", "{:.3f}"),
    Row("map of 100,000, 1/s", "map", "rate", "{:,.0f}", True),
    Row("round trip median, ms", "round_trip", "median", "{:.2f}"),
    Row("round trip p99, ms", "round_trip", "p99", "{:.2f}"),
    Row("cold start, s", "cold_start", "seconds", "{:.2f}"),
    Row("1 MB in, GB/s", "1_MB_in", "gigabytes_per_second", "{:.2f}", True),
    Row("1 MB out, GB/s", "1_MB_out", "gigabytes_per_second", "{:.2f}", True),
    Row("64 MB in, GB/s", "64_MB_in", "gigabytes_per_second", "{:.2f}", True),
    Row("64 MB out, GB/s", "64_MB_out", "gigabytes_per_second", "{:.2f}", True),
    Row("512 MB in, GB/s", "512_MB_in", "gigabytes_per_second", "{:.2f}", True),
    Row("512 MB out, GB/s", "512_MB_out", "gigabytes_per_second", "{:.2f}", True),
    Row("200 MB to 50 tasks, s", "one_to_many", "seconds", "{:.2f}"),
    Row("8 tasks of linear algebra, s", "linear_algebra", "seconds", "{:.2f}"),
    Row("  one alone, s", "linear_algebra", "alone", "{:.2f}"),
    Row("100,000 queued, bytes each", "backlog", "bytes_with_caller", "{:,.0f}"),
    Row("  the caller left out", "backlog", "bytes", "{:,.0f}"),
    Row("  CPU s for 1,000", "backlog", "cpu", "{:.3f}"),
    Row("1,000,000 queued, bytes each", "backlog_million", "bytes_with_caller", "{:,.0f}"),
    Row("  the caller left out", "backlog_million", "bytes", "{:,.0f}"),
    Row("  CPU s for 1,000", "backlog_million", "cpu", "{:.3f}"),
    Row("10,000 timers, p99 late, ms", "timers", "p99", "{:,.0f}"),
    Row("progress messages, 1/s", "progress", "rate", "{:,.0f}", True),
    Row("killed, runs again after, s", "recovery", "seconds", "{:.3f}"),
    Row("idle, MB of memory", "idle", "megabytes", "{:,.0f}"),
    Row("idle, % of a core", "idle", "percent", "{:.2f}"),
)

#: Names that are too long to head a narrow column.
SHORT = {
    "ProcessPoolExecutor": "PPExecutor",
    "multiprocessing.Pool": "mp.Pool",
    "dask.distributed": "dask",
    "raw pyzmq relay": "raw relay",
}

#: Systems side by side in one table.
ABREAST = 4


def middle(figures: Figures, system: str, workload: str, figure: str) -> float | None:
    """Return the median of the rounds, or None where there is nothing."""
    values = figures.get(system, {}).get(workload, {}).get(figure)
    return statistics.median(values) if values else None


# ------------------------------------------------------------------------------------- the tables


def medians(figures: Figures, gaps: Gaps) -> list[str]:
    """Return lines with the medians, and the least and the most of the rounds."""
    lines = ["Medians (least–most)"]
    for block in blocks(list(figures)):
        lines += ["", f"{'':30}" + "".join(f"{name:>27}" for name in block)]
        for row in ROWS:
            cells = [cell(figures, gaps, name, row) for name in block]
            if any(cells):
                lines.append(f"{row.title:30}" + "".join(f"{text:>27}" for text in cells))
    return lines


def blocks(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), ABREAST):
        yield names[start : start + ABREAST]


def cell(figures: Figures, gaps: Gaps, system: str, row: Row) -> str:
    values = figures.get(system, {}).get(row.workload, {}).get(row.figure)
    if values:
        texts = [row.pattern.format(pick(values)) for pick in (min, statistics.median, max)]
        least, median, most = texts
        return median if least == most else f"{median} ({least}–{most})"
    reasons = gaps.get(system, {}).get(row.workload)
    if reasons:
        return NOT_OFFERED if reasons[0] == NOT_OFFERED else "failed"
    return ""


def ratios(figures: Figures) -> list[str]:
    """Return lines that say how many times better we are than each peer, whatever better means."""
    peers = [name for name in figures if name != OURS]
    heads = [SHORT.get(name, name.split()[0]) for name in peers]
    lines = ["How many times better nbtasks is (below 1: worse)", ""]
    lines.append(f"{'':30}" + "".join(f"{head:>12}" for head in heads))
    for row in ROWS:
        factors = [better(figures, peer, row) for peer in peers]
        if any(factors):
            texts = [f"{factor:.3g}" if factor else "–" for factor in factors]
            lines.append(f"{row.title:30}" + "".join(f"{text:>12}" for text in texts))
    return lines


def better(figures: Figures, peer: str, row: Row) -> float | None:
    mine = middle(figures, OURS, row.workload, row.figure)
    theirs = middle(figures, peer, row.workload, row.figure)
    # Neither a queue in the caller (0 bytes elsewhere) nor a clock's tick makes a ratio.
    if not mine or not theirs or min(mine, theirs) <= 0:
        return None
    return mine / theirs if row.floor else theirs / mine


def remarks(figures: Figures, gaps: Gaps, left_out: dict[str, str]) -> list[str]:
    """Return what a reader must know: who is left out, what failed, who was given less to do."""
    lines = [f"{name} is left out: it {reason}" for name, reason in left_out.items()]
    for system, workloads in gaps.items():
        for workload, reasons in workloads.items():
            troubles = [reason for reason in reasons if reason != NOT_OFFERED]
            if troubles:
                lines.append(f"{system}, {workload}, {len(troubles)} x: {troubles[0]}")
    for workload, whole in (("map", 100_000), ("backlog", 100_000), ("backlog_million", 1_000_000)):
        fewer = {name: middle(figures, name, workload, "number") for name in figures}
        told = [
            f"{name} {number:,.0f}" for name, number in fewer.items() if number and number < whole
        ]
        if told:
            lines.append(f"{workload}: instead of {whole:,}: {', '.join(told)}")
    return lines


# ---------------------------------------------------------------------------------- files, picture


def write(
    folder: Path,
    about: dict[str, Any],
    figures: Figures,
    gaps: Gaps,
    goals: Iterable[dict[str, Any]],
    lines: list[str],
) -> None:
    """Write figures.json, report.txt and picture.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = {**about, "figures": figures, "gaps": gaps, "goals": list(goals)}
    (folder / "figures.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    (folder / "report.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "picture.svg").write_text(picture.draw(fields(figures), OURS), encoding="utf-8")


def fields(figures: Figures) -> list[picture.Field]:
    """Return what the picture shows: each row that at least two systems have figures for."""
    found = []
    for row in ROWS:
        if row.title.startswith(" "):
            continue
        spans = {
            name: picture.Span(min(values), statistics.median(values), max(values))
            for name, workloads in figures.items()
            if (values := workloads.get(row.workload, {}).get(row.figure))
        }
        if len(spans) > 1:
            found.append(picture.Field(row.title, row.pattern, row.floor, spans))
    return found
