"""Tasks that more than one file of tests sends."""

from __future__ import annotations

import time
from pathlib import Path

import nbtasks
from tests.living import note


@nbtasks.task
def add(x, y):
    return x + y


@nbtasks.task
def enter(ledger, number):
    """Write a line into a ledger that no part of the cluster knows of."""
    note(ledger, number)
    return number


@nbtasks.task
def wait_for(gate):
    while not Path(gate).exists():
        time.sleep(0.005)
    return "seen"


@nbtasks.task
def echo(value):
    return value


@nbtasks.task
def length(blob):
    return len(blob)
