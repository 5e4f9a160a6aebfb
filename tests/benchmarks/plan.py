"""What is measured, in which order, and how long each may take."""

from __future__ import annotations

import argparse
import signal

#: In the order in which a turn does them: memory is measured before large things come and go,
#: and what may leave a system in a bad way comes last.
WORKLOADS = (
    *("cold_start", "idle", "one_by_one", "map", "round_trip", "fsync", "progress", "timers"),
    *("backlog_1000", "backlog"),
    *("1_MB_in", "1_MB_out", "64_MB_in", "64_MB_out", "512_MB_in", "512_MB_out", "one_to_many"),
    "linear_algebra",
    *("recovery", "backlog_million"),
)

#: Takes minutes, and is large enough that one round says as much as three. In a fresh process.
ONCE = ("backlog_million",)

#: Concerns the disk, not a system, and is needed for a goal of ours only.
OURS_ONLY = ("fsync",)

#: Seconds to start a system, or to stop it.
START = 90

#: Seconds for one workload.
LIMIT = 300
LIMITS = {"backlog": 600, "backlog_million": 1800}


def limit(workload: str) -> int:
    return LIMITS.get(workload, LIMIT)


def positive(text: str) -> int:
    """Return a number of rounds, seconds or tasks, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def end_in_order() -> None:
    """Let SIGTERM, and SIGINT in the background too, end what was started: as Ctrl+C does."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
