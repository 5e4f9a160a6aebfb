"""Tasks that end in company lie many to a row, and nobody who asks for one can tell."""

from __future__ import annotations

import shutil
import sys
from typing import Any

import pytest

from nbtasks.broker import store as store_module
from nbtasks.broker.bundles import FEWEST, MOST
from nbtasks.broker.store import Store
from nbtasks.core.messages import Event, Now
from nbtasks.core.tasks import Task
from nbtasks.exceptions import StoreCorrupt, StoreError
from tests.broker import saves
from tests.broker.saves import (
    CLIENT,
    DIGEST,
    NOW,
    SaveCall,
    SaveDefinition,
    SaveEvent,
    SaveForget,
    SaveTask,
    accept,
    call_for,
    columns,
    commit,
    define,
    finish,
    later,
    says,
)

MANY = FEWEST + 8


def id_of(seq: int, client: int = 0) -> str:
    """Return an id as one process gives them, one after the other."""
    return f"{client:08x}-9d0e-4f1a-8b2c-{seq:012x}"


def run(store: Store, seq: int, state: str = "SUCCESS", now: Now = NOW, **fields: Any) -> Task:
    """Have a task come and end."""
    task = accept(store, seq, now=now, **{"id": id_of(seq), **fields})
    finish(store, task, state, now)
    return task


def packed(store: Store) -> list[int]:
    """Return how many tasks are in each bundle."""
    return [count for (count,) in store._db.all("SELECT count FROM bundles ORDER BY bundle")]


def in_rows(store: Store) -> int:
    return store._db.value("SELECT count(*) FROM tasks")


@pytest.fixture
def tasks(store) -> list[Task]:
    """Many tasks that have come and ended in company, one after the other."""
    tasks = [run(store, seq, now=later(seq)) for seq in range(1, MANY + 1)]
    store.settle()
    assert (packed(store), in_rows(store)) == ([MANY], 0)
    return tasks


# --------------------------------------------------------------------------------------- packing


def test_many_that_ended_in_company_are_one_row(store, tasks):
    assert store.counts() == {"SUCCESS": MANY}
    assert store.last_seq() == MANY
    assert list(store.open_tasks(NOW)) == []
    assert packed(store) == [MANY]  # to count them is not to ask for one


def test_few_are_rows_of_their_own(store):
    for seq in range(1, FEWEST):
        run(store, seq)

    store.settle()

    assert (packed(store), in_rows(store)) == ([], FEWEST - 1)


def test_bundle_is_not_larger_than_one_may_wait_for(store):
    for seq in range(1, MOST + FEWEST + 1):
        run(store, seq)

    store.settle()

    assert packed(store) == [MOST, FEWEST]


def test_only_what_is_alike_is_in_one_bundle(store):
    for seq in range(1, 4 * FEWEST + 1):
        kind = seq % 4
        if kind == 0:
            run(store, seq)
        elif kind == 1:
            run(store, seq, "FAILURE")
        elif kind == 2:
            run(store, seq, definition=b"x" * 16)
        else:
            run(store, seq, id=id_of(seq, client=3))

    store.settle()

    assert packed(store) == [FEWEST] * 4
    assert store.counts() == {"SUCCESS": 3 * FEWEST, "FAILURE": FEWEST}


def test_what_is_special_has_its_own_row(store):
    for seq in range(1, MANY + 1):
        run(store, seq)
    open_one = accept(store, 101, id=id_of(101))
    chatty = accept(store, 102, id=id_of(102))
    said = Event(chatty.id, 1, NOW.wall, "output", "stdout", text="hello")
    chatty.n = 1
    commit(store, [SaveEvent(102, said), SaveTask(chatty)], NOW)
    finish(store, chatty)
    run(store, 103, parent=id_of(1))
    urgent = accept(store, 104, id=id_of(104), priority=9)
    finish(store, urgent)

    store.settle()

    assert packed(store) == [MANY]
    assert in_rows(store) == 4
    assert store.children(id_of(1)) == [id_of(103)]
    assert [row.seq for row in store.open_tasks(NOW)] == [open_one.seq]


def test_what_has_its_row_keeps_it(store):
    tasks = [accept(store, seq, id=id_of(seq)) for seq in range(1, MANY + 1)]
    store.settle()
    for seq, task in enumerate(tasks, 1):
        commit(store, [SaveCall(seq, call_for(seq, id=task.id), CLIENT, NOW.wall)], NOW)
        finish(store, task)

    store.settle()

    assert (packed(store), in_rows(store)) == ([], MANY)
    assert list(store.open_tasks(NOW)) == []


# ------------------------------------------------------------------------------------- unpacking


def test_one_that_is_asked_for_is_found_with_all_that_was_said_of_it(store, tasks):
    task = tasks[4]

    assert says(store.find(task.id)) == columns(task)
    assert store.calls([5]) == {5: (call_for(5, id=task.id), ())}
    [(event, buffers)] = store.events(5)
    assert (event.id, event.n, event.state, event.body, buffers) == (
        *(task.id, 1, "SUCCESS", b"3", ()),
    )
    assert (packed(store), in_rows(store)) == ([], MANY)
    assert store.counts() == {"SUCCESS": MANY}


def test_events_and_calls_are_found_by_number(store, tasks):
    assert [event.n for event, _ in store.events(7)] == [1]
    assert store.events(MANY + 1) == []


def test_calls_are_found_by_number(store, tasks):
    found = store.calls([7, 8, MANY + 1])

    assert found == {seq: (call_for(seq, id=id_of(seq)), ()) for seq in (7, 8)}


def test_only_the_bundle_that_may_hold_an_id_is_unpacked(store, tasks):
    for seq in range(MANY + 1, 2 * MANY + 1):
        run(store, seq)
    store.settle()

    assert store.find(id_of(2 * MANY + 1)) is None
    assert store.find("of my own") is None
    assert packed(store) == [MANY, MANY]

    assert store.finds([id_of(MANY + 3), id_of(MANY + 9), "unknown"]).keys() == {
        id_of(MANY + 3),
        id_of(MANY + 9),
    }
    assert packed(store) == [MANY]


def test_what_lies_between_two_ids_stays_packed(store, tasks):
    early, late = accept(store, MANY + 1, id=id_of(0)), accept(store, MANY + 2, id=id_of(10_000))

    assert store.finds([late.id, early.id]).keys() == {early.id, late.id}
    assert packed(store) == [MANY]


def test_payload_of_what_is_packed_stays_and_goes_with_it(store):
    for seq in range(1, MANY + 1):
        task = accept(store, seq, (b"frame",), id=id_of(seq), frames=1)
        finish(store, task, now=later(seq))
    store.settle()
    assert packed(store) == [MANY]

    assert store.expire(later(MANY).wall, 1_000) == MANY - 1

    assert store.calls([MANY])[MANY][1] == (b"frame",)
    assert store._db.value("SELECT count(*) FROM payloads") == 1


@pytest.mark.parametrize("limit", [1, MANY - 1, MANY + 3, 1_000])
def test_newest_are_told_as_if_all_had_rows(store, tasks, limit):
    for seq in range(MANY + 1, 2 * MANY + 1):
        run(store, seq, "FAILURE", now=later(-seq))
    store.settle()
    accept(store, 2 * MANY + 1)
    newest = range(2 * MANY + 1, 0, -1)
    by_end = [*range(MANY, 0, -1), *range(MANY + 1, 2 * MANY + 1)]

    assert [row.seq for row in store.listing(None, limit)] == list(newest)[:limit]
    assert [row.seq for row in store.listing(limit=limit, over=True)] == list(newest)[1:][:limit]
    assert [row.seq for row in store.listing("SUCCESS", limit)] == by_end[:MANY][:limit]
    assert [row.seq for row in store.ended(limit)] == by_end[:limit]


def test_newest_are_unpacked_once(store, tasks, monkeypatch):
    monkeypatch.setattr(store_module, "LATELY", MANY)
    for seq in range(MANY + 1, 2 * MANY + 1):
        run(store, seq, now=later(seq))
    store.settle()

    for _ in range(2):
        assert [row.seq for row in store.ended(3)] == [2 * MANY - after for after in range(3)]
        assert packed(store) == [MANY]
        assert len(store.listing("SUCCESS", 10)) == 10
        assert packed(store) == [MANY]


def test_without_a_limit_all_are_listed(store, tasks):
    assert [row.seq for row in store.listing(limit=-1)] == list(range(MANY, 0, -1))


def test_one_runs_again_by_hand(store, tasks):
    row = store.find(id_of(3))
    task = tasks[2]
    task.phase, task.state, task.ended_at = "queued", "PENDING", None
    commit(store, [SaveTask(task)], NOW)
    store.settle()

    assert row is not None
    assert [row.seq for row in store.open_tasks(NOW)] == [3]
    assert store.counts() == {"SUCCESS": MANY - 1, "PENDING": 1}

    event = finish(store, task, "FAILURE")
    assert says(store.find(task.id)) == columns(task)
    assert [event.n for event, _ in store.events(3)] == [1, event.n]


def test_what_is_forgotten_leaves_nothing(store, tasks):
    commit(store, [SaveForget(3), SaveForget(4)], NOW)

    assert store.finds([id_of(3), id_of(4)]) == {}
    assert (store.events(3), store.calls([3])) == ([], {})
    assert store.counts() == {"SUCCESS": MANY - 2}


# --------------------------------------------------------------------------- expiry, disks, crashes


def test_what_ended_before_a_time_expires_and_nothing_else(store, tasks):
    assert store.expire(later(10).wall, 1_000) == 9
    assert store.expire(later(10).wall, 1_000) == 0
    assert sorted(store.finds(id_of(seq) for seq in range(1, MANY + 1))) == [
        id_of(seq) for seq in range(10, MANY + 1)
    ]


def test_bundles_expire_whole(store, tasks):
    for seq in range(MANY + 1, 3 * MANY + 1):
        run(store, seq, now=later(1_000 + seq))
        if seq == 2 * MANY:
            store.settle()
    store.settle()

    assert store.expire(later(MANY + 1).wall, 5) == MANY  # one at least, though there are more
    assert (packed(store), in_rows(store)) == ([MANY, MANY], 0)
    assert store.counts() == {"SUCCESS": 2 * MANY}


def test_function_of_what_is_packed_is_needed(path, opened):
    first = opened(path)
    commit(first, [SaveDefinition(define())], NOW)
    for seq in range(1, MANY + 1):
        run(first, seq, now=later(seq))
    first.close()
    second = opened(path)
    second._tasks_gone = True

    assert packed(second) == [MANY]
    assert second.expire_functions(later(50).wall) == []
    assert second.expire(later(MANY + 1).wall, 1_000) == MANY
    assert second.expire_functions(later(50).wall) == [DIGEST]


def test_store_that_is_opened_again_knows_what_is_packed(path, opened, store, tasks):
    store.close()
    again = opened(path)

    assert again.last_seq() == MANY
    assert says(again.find(id_of(MANY))) == columns(tasks[-1])


@pytest.mark.parametrize("settled", [True, False])
def test_full_disk_is_read_with_what_is_packed(store, monkeypatch, settled):
    tasks = [run(store, seq) for seq in range(1, MANY + 1)]
    if settled:
        store.settle()

    def fail(*_: object) -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store, "settle", fail)

    assert says(store.find(id_of(3))) == columns(tasks[2])
    assert [event.n for event, _ in store.events(5)] == [1]
    assert store.counts() == {"SUCCESS": MANY}
    assert store.last_seq() == MANY
    assert [row.seq for row in store.listing(None, 2)] == [MANY, MANY - 1]
    assert packed(store) == ([MANY] if settled else [])


@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits of files there")
def test_what_is_packed_is_read_on_a_full_disk(store, tasks):
    import resource

    store._db.checkpoint()
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, former[1]))
    try:
        assert says(store.find(id_of(3))) == columns(tasks[2])
        assert packed(store) == [MANY]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)

    assert says(store.find(id_of(3))) == columns(tasks[2])
    assert packed(store) == []


def test_unpacking_saves_nothing_new(store, tasks):
    store._db.unsynced = False

    store.find(id_of(3))

    assert packed(store) == []
    assert not store._db.unsynced


def test_damaged_bundle_is_told_as_such(store, tasks):
    store._db.execute("UPDATE bundles SET packed = x'00'")

    with pytest.raises(StoreCorrupt, match="a bundle should be"):
        store.find(id_of(3))


def test_change_of_what_was_read_on_a_full_disk_is_not_lost(store, tasks, monkeypatch):
    def fail(*_: object) -> None:
        raise StoreError("The disk is full.")

    with monkeypatch.context() as full:
        full.setattr(store, "settle", fail)
        assert says(store.find(id_of(3))) == columns(tasks[2])
    assert packed(store) == [MANY]

    task = tasks[2]
    task.phase, task.state, task.ended_at = "queued", "PENDING", None
    commit(store, [SaveTask(task)], NOW)

    assert [row.seq for row in store.open_tasks(NOW)] == [3]
    event = finish(store, task, "FAILURE")
    assert says(store.find(task.id)) == columns(task)
    assert [event.n for event, _ in store.events(3)] == [1, event.n]
    assert store.counts() == {"SUCCESS": MANY - 1, "FAILURE": 1}


@pytest.mark.parametrize("rows", [1, MANY, MANY + FEWEST // 2])
def test_what_is_packed_is_not_found_in_the_journal_after_a_crash(store, path, opened, rows):
    for first in (1, MANY + 2):
        tasks = {
            seq: saves.task_for(seq, call_for(seq, id=id_of(seq)))
            for seq in range(first, first + MANY)
        }
        calls = [
            SaveCall(seq, call_for(seq, id=task.id), CLIENT, NOW.wall, (), task)
            for seq, task in tasks.items()
        ]
        commit(store, calls, NOW)
        ends: list[Any] = []
        for seq, task in tasks.items():
            task.phase, task.state, task.n, task.ended_at = "done", "SUCCESS", 1, NOW.wall
            event = Event(task.id, 1, NOW.wall, "state", "SUCCESS", b"3", final=True)
            ends += [SaveEvent(seq, event), SaveTask(task)]
        # Turns under load bring new calls and ends.
        commit(store, [*ends, SaveCall(first + MANY, call_for(first + MANY), CLIENT, 0.0)], NOW)

    store.settle(rows)

    copy = path.with_name("copy.sqlite")
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{copy}{end}")
    again = opened(copy)
    assert again.counts() == {"SUCCESS": 2 * MANY, "PENDING": 2}
    assert again.last_seq() == 2 * MANY + 2
    assert [event.n for event, _ in again.events(3)] == [1]
    assert says(again.find(id_of(2 * MANY))) == columns(tasks[2 * MANY])
    assert again.counts() == {"SUCCESS": 2 * MANY, "PENDING": 2}


def test_who_asks_for_failures_leaves_successes_packed(store, tasks):
    for seq in range(MANY + 1, 2 * MANY + 1):
        run(store, seq, "FAILURE", now=later(seq))
    store.settle()

    assert [row.seq for row in store.ended(2, "FAILURE")] == [2 * MANY, 2 * MANY - 1]
    assert packed(store) == [MANY]
    assert len(store.ended(30)) == 30
    assert packed(store) == [MANY]
