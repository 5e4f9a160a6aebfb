"""Threads of numeric libraries in real workers: all for who is alone, a share for each of many."""

from __future__ import annotations

import os

import pytest

import nbtasks
from nbtasks import processors
from tests.living import SOON
from tests.tasks import wait_for


@nbtasks.task
def threads_of_numpy():
    import numpy  # noqa: F401
    import threadpoolctl

    return {library["num_threads"] for library in threadpoolctl.threadpool_info()}


@nbtasks.task
def variable():
    return os.environ.get("OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def nobodys_wish(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def test_threads_are_shared_out_among_those_that_run(make_cluster, short_path):
    make_cluster(workers=2)
    gate = short_path / "gate"

    alone = threads_of_numpy.delay().get(timeout=SOON)
    holding = wait_for.delay(str(gate))
    beside_another = {n for _ in range(3) for n in threads_of_numpy.delay().get(timeout=SOON)}
    gate.touch()
    holding.get(timeout=SOON)
    alone_again = {n for _ in range(3) for n in threads_of_numpy.delay().get(timeout=SOON)}

    assert alone == alone_again == {processors.usable()}
    assert beside_another == {max(1, processors.usable() // 2)}


def test_who_has_set_the_number_is_obeyed(make_cluster, monkeypatch, short_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    make_cluster(workers=2)
    gate = short_path / "gate"
    holding = wait_for.delay(str(gate))

    assert variable.delay().get(timeout=SOON) == "3"
    gate.touch()
    holding.get(timeout=SOON)
