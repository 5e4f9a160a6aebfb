"""Each run gets its share of the processors, in numeric libraries that are loaded or to come."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import threadpoolctl

from nbtasks import processors
from nbtasks.worker import threads
from nbtasks.worker.threads import VARIABLES, Threads


@pytest.fixture(autouse=True)
def eight(monkeypatch) -> Iterator[None]:
    """Eight processors and nobody's wish; afterwards all is as it was."""
    monkeypatch.setattr(processors, "usable", lambda: 8)
    monkeypatch.setattr(processors, "seen", lambda: 8)
    with threadpoolctl.threadpool_limits():
        before = dict(os.environ)
        for name in VARIABLES:
            os.environ.pop(name, None)
        yield
        os.environ.clear()
        os.environ.update(before)


def said() -> set[str | None]:
    return {os.environ.get(name) for name in VARIABLES}


def found() -> set[int]:
    """Return the numbers of threads of all libraries that are loaded."""
    np.ones(2) @ np.ones(2)
    return {library["num_threads"] for library in threadpoolctl.threadpool_info()}


@pytest.mark.parametrize(
    ("runs", "each"), [(2, "4"), (3, "2"), (5, "1"), (8, "1"), (100, "1"), (10**9, "1")]
)
def test_each_of_some_runs_has_its_share(runs: int, each: str):
    Threads().share(runs)

    assert said() == {each}


def test_who_is_alone_has_all_and_nothing_is_said():
    Threads().share(1)

    assert said() == {None}


def test_who_is_alone_has_no_more_than_the_quota_of_the_container(monkeypatch):
    monkeypatch.setattr(processors, "usable", lambda: 2)
    own = Threads()

    own.share(1)

    assert (said(), found()) == ({"2"}, {2})
    own.share(2)
    assert (said(), found()) == ({"1"}, {1})


def test_a_library_that_is_loaded_already_is_told_so():
    own = Threads()

    own.share(8)
    assert found() == {1}
    own.share(1)

    assert min(found()) > 1
    assert said() == {None}


@pytest.mark.parametrize("name", VARIABLES)
def test_what_users_have_set_stays(name: str, monkeypatch):
    own = Threads()
    monkeypatch.setenv(name, "3")

    own.share(8)

    assert said() == {"3", None}


def test_what_a_task_sets_later_stays():
    own = Threads()
    own.share(4)
    os.environ["OMP_NUM_THREADS"] = "7"

    own.share(8)

    assert said() == {"2", "7"}


def test_the_same_share_again_costs_nothing(monkeypatch):
    own = Threads()
    own.share(4)
    monkeypatch.setattr(threads, "_set", None)
    monkeypatch.setattr(own, "_limit", None)

    own.share(4)

    assert said() == {"2"}


def test_nobody_waits_for_libraries_that_are_not_there(monkeypatch):
    own = Threads()
    monkeypatch.setattr(threads, "PACKAGES", ("not_there",))
    monkeypatch.setattr(own, "_limit", None)

    own.share(8)

    assert said() == {"1"}
