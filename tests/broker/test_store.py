"""The store keeps what it was given, whatever happens to the process, the machine or the disk."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtasks.broker import boot as boot_module
from nbtasks.broker import bundles as bundles_module
from nbtasks.broker import database as database_module
from nbtasks.broker import file as file_module
from nbtasks.broker import rows as rows_module
from nbtasks.broker import store as store_module
from nbtasks.broker.database import VERSION
from nbtasks.broker.file import APPLICATION_ID
from nbtasks.broker.rows import SHORT_BODY
from nbtasks.broker.store import Store
from nbtasks.core.messages import Call, Event, Now, Options
from nbtasks.core.tasks import Task
from nbtasks.exceptions import ClusterError, StoreCorrupt, StoreError, StoreTooNew
from tests.broker.saves import (
    CLIENT,
    DIGEST,
    NOW,
    SaveCall,
    SaveCleared,
    SaveDefinition,
    SaveEmptied,
    SaveEvent,
    SaveForget,
    SaveGiven,
    SaveRevoked,
    SaveTask,
    accept,
    call_for,
    columns,
    commit,
    define,
    finish,
    later,
    says,
    task_for,
)

# ----------------------------------------------------------------------------------------- tasks


def test_accepted_task_is_found_with_all_that_was_said_of_it(store):
    task = accept(
        store, 1, priority=9, queue="gpu", parent="p", root="r", retries=2, due=5_010.0,
        eta=1_700_000_010.0, expires=1_700_000_060.0, summary="(1, 2)", options=Options(group="g"),
    )  # fmt: skip

    row = store.find("task-1")

    assert says(row) == columns(task)
    assert (row.summary, row.accepted_at, row.options) == ("(1, 2)", NOW.wall, Options(group="g"))
    assert (row.parent, row.root) == ("p", "r")


def test_unknown_id_is_not_found(store):
    assert store.find("nobody") is None
    assert store.finds(["nobody"]) == {}


def test_task_is_saved_as_it_is_when_the_turn_ends(store):
    call = call_for(1)
    task = task_for(1, call)
    saves = [SaveCall(1, call, CLIENT, NOW.wall), SaveTask(task), SaveTask(task)]
    task.phase, task.worker, task.ticket = "assigned", "worker-1", 7

    commit(store, saves, NOW)

    assert says(store.find("task-1")) == columns(task)


def test_each_column_of_a_saved_task_may_change(store):
    task = accept(store, 1)
    task.client, task.priority, task.queue = b"other", 0, "slow"
    task.phase, task.state, task.n = "running", "PROGRESS", 4
    task.retries, task.deaths, task.due, task.eta, task.expires = 1, 2, 5_001.0, 3.0, 4.0
    task.worker, task.ticket = "worker-2", 1 << 40
    task.wish, task.limit_at = "revoked", 5_002.0

    commit(store, [SaveTask(task)], NOW)

    assert says(store.find("task-1")) == columns(task)


def test_task_that_loses_what_was_special_loses_it_in_the_store(store):
    task = accept(store, 1, priority=9, queue="gpu", due=5_010.0, eta=1.0, expires=2.0, retries=1)
    task.priority, task.queue, task.retries = 5, "default", 0
    task.due = task.eta = task.expires = None

    commit(store, [SaveTask(task)], NOW)

    assert says(store.find("task-1")) == columns(task)


def test_call_alone_makes_a_queued_task(store):
    commit(store, [SaveCall(1, call_for(1, retries=3), CLIENT, NOW.wall)], NOW)

    row = store.find("task-1")

    assert (row.phase, row.state, row.retries, row.client) == ("queued", "PENDING", 3, CLIENT)


def test_task_without_a_row_stays_forgotten(store):
    commit(store, [SaveTask(task_for(1, call_for(1)))], NOW)

    assert store.find("task-1") is None


def test_open_tasks_come_in_order_and_ended_ones_do_not(store, monkeypatch):
    monkeypatch.setattr(store_module, "NAMED", 2)
    tasks = [accept(store, seq) for seq in range(1, 8)]
    finish(store, tasks[2])

    assert [row.seq for row in store.open_tasks(NOW)] == [1, 2, 4, 5, 6, 7]


def test_open_tasks_may_be_saved_while_they_are_read(store, monkeypatch):
    monkeypatch.setattr(store_module, "NAMED", 2)
    tasks = {seq: accept(store, seq) for seq in range(1, 6)}

    for row in store.open_tasks(NOW):
        finish(store, tasks[row.seq])

    assert list(store.open_tasks(NOW)) == []


def test_the_later_of_two_tasks_with_one_id_is_the_one_meant(store):
    accept(store, 1, id="twice")
    accept(store, 2, id="twice")

    assert store.find("twice").seq == 2
    assert store.finds(["twice"])["twice"].seq == 2


def test_many_tasks_are_found_at_once(store):
    commit(store, [SaveCall(seq, call_for(seq), CLIENT, 0.0) for seq in range(1, 2_501)], NOW)

    found = store.finds([f"task-{seq}" for seq in range(2, 3_001)])

    assert len(found) == 2_499
    assert len(store.calls(range(1, 3_001))) == 2_500


def test_run_again_by_hand_is_open_once_more(store):
    task = accept(store, 1)
    finish(store, task, "FAILURE")
    task.phase, task.state, task.ended_at = "queued", "PENDING", None

    commit(store, [SaveTask(task)], NOW)

    assert [says(row) for row in store.open_tasks(NOW)] == [columns(task)]


def test_run_again_by_hand_in_the_turn_that_it_came_and_ended_in_is_open(store):
    call = call_for(1)
    ended, again = task_for(1, call), task_for(1, call)
    ended.phase, ended.state, ended.n, ended.ended_at = "done", "REVOKED", 1, NOW.wall
    again.n = 2

    commit(store, [SaveCall(1, call, CLIENT, NOW.wall, (), ended), SaveTask(again)], NOW)

    assert [says(row) for row in store.open_tasks(NOW)] == [columns(again)]


def test_ended_task_without_a_time_ended_when_it_was_saved(store):
    task = accept(store, 1)
    task.phase = "done"

    commit(store, [SaveTask(task)], later(3))

    assert store.find("task-1").ended_at == NOW.wall + 3


def test_children_are_told_in_order(store):
    accept(store, 1)
    for seq in (2, 3):
        accept(store, seq, parent="task-1")

    assert store.children("task-1") == ["task-2", "task-3"]
    assert store.children("task-2") == []
    assert store.children("") == []


def test_children_are_told_with_names_and_arguments_and_not_without_end(store, monkeypatch):
    monkeypatch.setattr(store_module, "CHILDREN", 2)
    monkeypatch.setattr(store_module, "FAMILIES", 3)
    accept(store, 1, parent="p", summary="(1)", options=Options(shadow="shown"))
    for seq, parent in ((2, "p"), (3, "p"), (4, "q"), (5, "q")):
        accept(store, seq, parent=parent, summary=f"({seq})")

    assert store.children_of(["p", "none", "", "q"]) == {
        "p": [("task-1", "shown", "(1)"), ("task-2", "add", "(2)")],
        "q": [("task-4", "add", "(4)")],
    }


def test_ended_tasks_are_told_by_when_they_ended(store):
    tasks = [accept(store, seq) for seq in TASKS]
    for after, task in enumerate((tasks[2], tasks[0], tasks[3])):
        finish(store, task, now=later(after))

    assert [row.seq for row in store.ended(2)] == [4, 1]
    assert [row.seq for row in store.ended(9)] == [4, 1, 3]


def test_those_that_failed_lately_are_found_among_many(store, monkeypatch):
    monkeypatch.setattr(store_module, "LATELY", 4)
    for seq in range(6):
        finish(store, accept(store, seq + 1), ("SUCCESS", "FAILURE")[seq in (1, 3)], later(seq))

    assert [row.seq for row in store.ended(9, "FAILURE")] == [4]


def test_listing_is_newest_first_and_by_state_or_phase(store):
    for seq in range(1, 6):
        task = accept(store, seq, summary=f"({seq})")
        if seq % 2:
            finish(store, task)

    assert [row.summary for row in store.listing(None, 3)] == ["(5)", "(4)", "(3)"]
    assert [row.seq for row in store.listing("SUCCESS", 2)] == [5, 3]
    assert store.listing("NONSENSE", 2) == []
    assert [row.seq for row in store.listing(limit=2, over=True)] == [5, 3]


def held(store: Store) -> list[tuple[int, str, str, int]]:
    """Return who holds what, as a broker that is started now would be told."""
    return [(row.seq, row.phase, row.worker, row.ticket) for row in store.open_tasks(NOW)]


def test_note_of_what_was_given_is_told_with_the_open_tasks(store):
    for seq in (1, 2, 3):
        accept(store, seq)

    commit(store, [SaveGiven(1, "w1", 11), SaveGiven(3, "w2", 12), SaveGiven(2, "w1", 13)], NOW)

    assert held(store) == [
        (1, "assigned", "w1", 11),
        (2, "assigned", "w1", 13),
        (3, "assigned", "w2", 12),
    ]


def test_note_is_void_once_the_task_was_saved_under_its_ticket(store):
    task = accept(store, 1)
    commit(store, [SaveGiven(1, "w1", 11)], NOW)

    task.ticket = 11  # given back: it waits again
    commit(store, [SaveTask(task)], NOW)

    assert held(store) == [(1, "queued", "", 11)]
    commit(store, [SaveGiven(1, "w2", 15)], NOW)
    assert held(store) == [(1, "assigned", "w2", 15)]


def test_task_that_is_saved_in_the_same_turn_needs_no_note(store):
    task = accept(store, 1)
    task.phase, task.worker, task.ticket = "assigned", "w1", 11

    commit(store, [SaveGiven(1, "w1", 11), SaveTask(task)], NOW)
    store.settle()

    assert store._db.value("SELECT count(*) FROM given") == 0
    assert held(store) == [(1, "assigned", "w1", 11)]


def test_notes_go_when_a_worker_is_through_with_them(store):
    for seq in (1, 2):
        accept(store, seq)
    commit(store, [SaveGiven(1, "w1", 11)], NOW)
    commit(store, [SaveGiven(2, "w1", 12)], NOW)

    commit(store, [SaveCleared("w1", 12)], NOW)
    assert [seq for seq, phase, *_ in held(store) if phase == "assigned"] == [2]

    commit(store, [SaveCleared("w1", 13)], NOW)
    store.settle()
    assert store._db.value("SELECT count(*) FROM given") == 0


def test_counts_are_by_state(store):
    for seq in range(1, 6):
        task = accept(store, seq)
        if seq % 2:
            finish(store, task)

    assert store.counts() == {"SUCCESS": 3, "PENDING": 2}


def test_last_seq_is_the_highest(store, path, opened):
    assert store.last_seq() == 0
    accept(store, 41)
    store.close()

    assert opened(path).last_seq() == 41


# ------------------------------------------------------------------------------ calls and payloads


def test_call_comes_back_whole_with_its_frames(store):
    accept(store, 1, (b"big", b"", bytearray(b"array"), memoryview(b"view")), frames=4, body=b"")

    call, buffers = store.calls([1])[1]

    assert call == call_for(1, frames=4, body=b"")
    assert buffers == (b"big", b"", b"array", b"view")


def test_long_body_lies_beside_its_row(store):
    body = os.urandom(SHORT_BODY + 1)
    accept(store, 1, (b"frame",), body=body, frames=1)

    call, buffers = store.calls([1])[1]
    store.settle()
    [(in_row,)] = store._db.execute("SELECT length(call) FROM tasks").fetchall()

    assert (call.body, buffers) == (body, (b"frame",))
    assert in_row < 100


def test_call_by_another_name_than_its_task_keeps_its_own(store):
    call = call_for(1, name="shown", definition=b"")
    task = task_for(1, call_for(1))

    commit(store, [SaveCall(1, call, CLIENT, 0.0), SaveTask(task)], NOW)

    assert store.calls([1])[1][0] == call
    assert store.find("task-1").name == "add"


def test_retry_replaces_the_call_and_its_frames_but_not_the_time_of_acceptance(store):
    task = accept(store, 1, (b"a", b"b"), frames=2, body=b"")
    call = call_for(1, retries=1, frames=1, body=b"", due=5_002.0)
    task.retries, task.due, task.state = 1, 5_002.0, "RETRY"

    commit(store, [SaveCall(1, call, CLIENT, NOW.wall + 9, (b"c",)), SaveTask(task)], later(9))

    assert store.calls([1])[1] == (call, (b"c",))
    assert store.find("task-1").accepted_at == NOW.wall
    assert says(store.find("task-1")) == columns(task)


def test_retry_with_a_short_body_forgets_the_long_one(store):
    accept(store, 1, body=b"x" * (SHORT_BODY + 1))

    accept(store, 1, body=b"")

    assert store.calls([1])[1] == (call_for(1, body=b""), ())


def test_frame_that_is_too_long_for_sqlite_comes_back_in_one_piece(store, monkeypatch):
    monkeypatch.setattr(rows_module, "PART", 10)
    frames = (b"0123456789" * 3, b"short", b"x" * 11)
    accept(store, 1, frames, frames=3, body=b"")
    commit(store, [SaveDefinition(define(), frames)], NOW)

    assert store.calls([1])[1][1] == frames
    assert store.functions.definition(DIGEST)[1] == frames


def test_call_of_an_unknown_task_is_left_out(store):
    assert store.calls([5]) == {}


# ---------------------------------------------------------------------------------------- events


def test_events_are_told_in_order_after_a_number(store):
    task = accept(store, 1)
    events = [Event(task.id, n, NOW.wall, "output", "stdout", text=str(n)) for n in (1, 2, 3)]
    commit(store, [SaveEvent(1, event) for event in reversed(events)], NOW)

    assert store.events(1, 0) == [(event, ()) for event in events]
    assert store.events(1, 2) == [(events[2], ())]
    assert store.events(1, 3) == store.events(2, 0) == []


def test_events_bring_their_own_frames(store):
    accept(store, 1, (b"of the call",), frames=1, body=b"")
    first = Event("task-1", 1, 0.0, "state", "PROGRESS", frames=2)
    last = Event("task-1", 2, 0.0, "state", "SUCCESS", b"3", final=True)
    commit(store, [SaveEvent(1, first, (b"a", b"b")), SaveEvent(1, last)], NOW)

    assert store.events(1, 0) == [(first, (b"a", b"b")), (last, ())]
    assert store.calls([1])[1][1] == (b"of the call",)


def test_forgotten_task_leaves_nothing(store):
    task = accept(store, 1, (b"frame",), frames=1, body=b"")
    finish(store, task)
    other = accept(store, 2)

    commit(store, [SaveForget(1), SaveTask(task)], NOW)

    assert store.find("task-1") is None
    assert (store.calls([1]), store.events(1, 0)) == ({}, [])
    assert says(store.find("task-2")) == columns(other)
    assert store._db.execute("SELECT count(*) FROM payloads").fetchall() == [(0,)]


# ------------------------------------------------------------------------------------- functions


def test_function_is_kept_with_its_policy_and_frames(store, path, opened):
    commit(store, [SaveDefinition(define(), (b"f1", b"f2"))], NOW)
    store.close()

    assert opened(path).functions.definition(DIGEST) == (define(), (b"f1", b"f2"))


def test_unknown_function_is_none(store):
    assert store.functions.definition(b"?" * 16) is None
    assert store.functions.definition_named("add") is None


def test_name_means_the_code_that_came_last(store):
    old, new = b"o" * 16, b"n" * 16
    commit(store, [SaveDefinition(define(old)), SaveDefinition(define(new))], NOW)

    assert store.functions.definition_named("add") == new

    commit(store, [SaveDefinition(define(old))], later(-7_200))  # the clock was set back

    assert store.functions.definition_named("add") == old


def test_function_saved_again_has_its_new_frames_only(store):
    commit(store, [SaveDefinition(define(), (b"a", b"b"))], NOW)

    commit(store, [SaveDefinition(define(), (b"c",))], NOW)

    assert store.functions.definition(DIGEST)[1] == (b"c",)


def test_call_by_name_needs_no_code(store):
    accept(store, 1, definition=b"", name="tasks.elsewhere")

    row = store.find("task-1")

    assert (row.definition, row.name) == (b"", "tasks.elsewhere")
    assert store.functions.definition(b"") is None
    assert store.functions.definition_named("tasks.elsewhere") is None


def test_code_may_come_after_the_call(store):
    accept(store, 1)

    commit(store, [SaveDefinition(define())], NOW)

    assert store.functions.definition_named(store.find("task-1").name) == DIGEST


# ----------------------------------------------------------------------------------------- clocks


def test_step_of_the_wall_clock_moves_no_countdown(path, opened):
    first = opened(path)
    accept(first, 1, due=NOW.boot + 60)
    first.close()

    [row] = opened(path).open_tasks(Now(NOW.wall + 7_200, NOW.boot + 1))

    assert row.due == NOW.boot + 60


@pytest.mark.parametrize("second", ["another-boot", ""])
def test_countdown_goes_on_by_the_wall_clock_after_a_reboot(path, opened, monkeypatch, second):
    monkeypatch.setattr(store_module, "boot_id", lambda: "one-boot" if second else "")
    first = opened(path)
    accept(first, 1, due=NOW.boot + 60)
    accept(first, 2)
    first.close()
    monkeypatch.setattr(store_module, "boot_id", lambda: second)

    booted = Now(NOW.wall + 20, 3.0)
    with_due, without = opened(path).open_tasks(booted)

    assert with_due.due == pytest.approx(3.0 + 40)
    assert without.due is None


def test_countdown_saved_after_a_reboot_is_not_turned_again(path, opened, monkeypatch):
    monkeypatch.setattr(store_module, "boot_id", lambda: "one-boot")
    first = opened(path)
    accept(first, 1, due=NOW.boot + 60)
    first.close()
    monkeypatch.setattr(store_module, "boot_id", lambda: "another-boot")
    second = opened(path)
    booted = Now(NOW.wall + 20, 3.0)

    accept(second, 2, now=booted, due=booted.boot + 5)

    assert [row.due for row in second.open_tasks(booted)] == pytest.approx([43.0, 8.0])


def test_without_a_boot_id_a_clock_that_goes_on_is_that_of_the_same_boot(path, opened, monkeypatch):
    monkeypatch.setattr(store_module, "boot_id", lambda: "")
    first = opened(path)
    task = accept(first, 1)
    task.phase, task.worker, task.limit_at = "running", "w", NOW.boot + 10
    commit(first, [SaveTask(task)], NOW)
    accept(first, 2, due=NOW.boot + 60)
    first.close()

    later_by_steps = Now(NOW.wall - 7_200, NOW.boot + 1)  # somebody has set the wall clock
    running, waiting = opened(path).open_tasks(later_by_steps)

    assert running.limit_at == NOW.boot + 10
    assert waiting.due == NOW.boot + 60


@pytest.mark.parametrize("second", ["another-boot", ""])
def test_tickets_rise_over_a_reboot_and_after_it(path, opened, monkeypatch, second):
    monkeypatch.setattr(store_module, "boot_id", lambda: "one-boot" if second else "")
    store = opened(path)
    tickets = [store.first_ticket(NOW)]
    task = accept(store, 1)
    task.phase, task.worker, task.ticket = "assigned", "w", tickets[0] + 1_000
    commit(store, [SaveTask(task)], NOW)
    store.close()

    monkeypatch.setattr(store_module, "boot_id", lambda: second)
    booted = [Now(NOW.wall + 20 + seconds, 3.0 + seconds) for seconds in (0.0, 0.5, 60.0)]
    for instant in booted:
        store = opened(path)
        tickets.append(store.first_ticket(instant))
        if instant is booted[0]:  # from now on nothing tells of that ticket
            finish(store, task, now=instant)
        store.close()

    assert tickets[1] >= task.ticket
    assert tickets == sorted(set(tickets))


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has another one")
def test_machine_without_a_boot_id_has_none(monkeypatch, short_path):
    monkeypatch.setattr(boot_module, "_BOOT_ID", short_path / "nothing")

    assert boot_module.boot_id() == ""


# ------------------------------------------------------------------------------------ small things


def test_notes_are_kept_and_taken_once(store, path, opened):
    store.put("group", b"1")
    store.put("group", b"2")
    store.close()
    again = opened(path)

    assert again.peek("group") == b"2"
    assert again.take("group") == b"2"
    assert again.take("group") is again.peek("group") is None


def test_empty_turn_writes_nothing(store):
    before = changed(store)

    commit(store, [], NOW)

    assert changed(store) == before


# ----------------------------------------------------------------------------------------- expiry


def test_what_ended_long_ago_expires_in_bounded_batches(store):
    for seq in range(1, 8):
        finish(store, accept(store, seq), now=later(seq))
    accept(store, 8)

    assert store.expire(later(6).wall, 3) == 3
    assert [row.seq for row in store.listing(None, 10)] == [8, 7, 6, 5, 4]
    assert store.expire(later(6).wall, 3) == 2
    assert store.expire(later(6).wall, 3) == 0
    assert [row.seq for row in store.listing(None, 10)] == [8, 7, 6]
    assert store.events(1, 0) == []


def test_function_that_no_task_needs_expires(path, opened):
    first = opened(path)
    kept, gone, young = b"k" * 16, b"g" * 16, b"y" * 16
    commit(first, [SaveDefinition(define(kept)), SaveDefinition(define(gone), (b"f",))], NOW)
    commit(first, [SaveDefinition(define(young))], later(100))
    accept(first, 1, definition=kept)
    finish(first, accept(first, 2, definition=gone))
    first.close()
    second = opened(path)

    assert second.expire(later(50).wall, 100) == 1
    assert second.expire_functions(later(50).wall) == [gone]

    assert second.functions.definition(gone) is None
    assert second._db.execute("SELECT count(*) FROM function_payloads").fetchall() == [(0,)]
    assert second.functions.definition(kept) is not None
    assert second.functions.definition(young) is not None
    assert second.find("task-1").definition == kept


def test_of_what_this_broker_has_in_mind_the_last_versions_do_not_expire(path, opened):
    first = opened(path)
    looked_up = b"l" * 16
    commit(first, [SaveDefinition(define(looked_up))], NOW)
    first.close()
    second = opened(path)
    former, last = b"s" * 16, b"t" * 16
    for digest in (former, last):
        commit(second, [SaveDefinition(define(digest, "other"))], NOW)
    assert second.functions.definition(looked_up) is not None

    assert second.expire_functions(later(50).wall) == [former]

    assert second.functions.definition(looked_up) is not None
    assert second.functions.definition(former) is None
    assert second.functions.definition(last) is not None


def test_space_comes_back_after_expiry(store):
    for seq in range(1, 101):
        finish(store, accept(store, seq, (bytes(100_000),), frames=1, body=b""))
    store._db.checkpoint()
    full = store.size()

    while store.expire(later(1).wall, 20):
        pass
    while store.shrink():
        pass

    assert full > 10_000_000
    assert store.size() < 2_000_000


def test_emptied_call_leaves_its_row_and_gives_its_space_back(store):
    for seq in range(1, 101):
        accept(store, seq, (bytes(100_000),), frames=1, body=b"")

    commit(store, [SaveEmptied(seq) for seq in range(1, 101)], NOW)
    while store.shrink():
        pass

    assert store.find("task-7") is not None
    assert store.calls([7])[7][1] == ()
    assert store.size() < 2_000_000


def test_ids_revoked_early_are_kept_in_order_until_they_are_not(store, path, opened):
    commit(store, [SaveRevoked("b"), SaveRevoked("a"), SaveRevoked("c")], NOW)
    commit(store, [SaveRevoked("a", kept=False), SaveRevoked("b")], NOW)
    store.close()

    assert opened(path).revoked() == ["c", "b"]


# ------------------------------------------------------------------------------- any order of saves


#: Of the tasks that come and go by chance.
TASKS = range(1, 9)


@st.composite
def turns(draw: st.DrawFn) -> list[list[tuple[str, int, int]]]:
    """Some turns of (what, which task, a number)."""
    what = st.sampled_from(["call", "change", "usual", "event", "end", "over", "over", "forget"])
    save = st.tuples(what, st.sampled_from(TASKS), st.integers(0, 3))
    return draw(st.lists(st.lists(save, max_size=8), max_size=8))


class Model:
    """What the store must know, as plain dicts."""

    def __init__(self) -> None:
        self.tasks: dict[int, Task] = {}
        self.calls: dict[int, tuple[Call, tuple[bytes, ...]]] = {}
        self.events: dict[int, list[tuple[Event, tuple[bytes, ...]]]] = {}

    def saves(self, turn: list[tuple[str, int, int]]) -> list[Any]:
        """Make the saves of a turn, as the scheduler would, and remember what they mean."""
        saves: list[Any] = []
        for what, seq, number in turn:
            if what == "call":
                saves += self._call(seq, number)
            elif seq in self.tasks:
                saves += getattr(self, f"_{what}")(seq, self.tasks[seq], number)
            if what == "forget":
                break  # nothing is said of a task once it is forgotten
        return saves

    def _call(self, seq: int, number: int) -> list[Any]:
        buffers = tuple(bytes([n]) * n for n in range(number))
        body = b"x" * (0, 5, SHORT_BODY + 1, 0)[number]
        call = call_for(seq, body=body, frames=number, retries=number, priority=4 + number)
        task = self.tasks.get(seq)
        if task is None:  # nothing more is said of a new one
            task = self.tasks[seq] = task_for(seq, call)
            self.calls[seq] = call, buffers
            self.events[seq] = []
            return [SaveCall(seq, call, CLIENT, NOW.wall, buffers, task)]
        task.retries, task.priority, task.phase, task.ended_at = number, 4 + number, "queued", None
        self.calls[seq] = call, buffers
        return [SaveCall(seq, call, CLIENT, NOW.wall, buffers), SaveTask(task)]

    def _change(self, seq: int, task: Task, number: int) -> list[Any]:
        task.phase, task.ended_at = "running", None
        task.state, task.worker, task.ticket = f"S{number}", f"w{number}", number
        task.due, task.deaths = (None, 1.0, 2.0, 3.0)[number], number
        return [SaveTask(task)]

    def _usual(self, seq: int, task: Task, number: int) -> list[Any]:
        task.priority, task.queue, task.retries, task.deaths = 5, "default", 0, 0
        task.due = task.eta = task.expires = None
        return [SaveTask(task)]

    def _event(self, seq: int, task: Task, number: int) -> list[Any]:
        task.n += 1
        event = Event(task.id, task.n, 0.0, "state", f"S{number}", frames=number)
        buffers = tuple(bytes([n]) for n in range(number))
        self.events[seq].append((event, buffers))
        return [SaveEvent(seq, event, buffers), SaveTask(task)]

    def _end(self, seq: int, task: Task, number: int) -> list[Any]:
        task.phase, task.state, task.ended_at = "done", "SUCCESS", NOW.wall + number
        return [SaveTask(task)]

    def _over(self, seq: int, task: Task, number: int) -> list[Any]:
        """End as most tasks do: with one event, and nothing special."""
        saves = self._usual(seq, task, 0)
        if not task.n:
            saves += self._event(seq, task, 0)
        return [*saves, *self._end(seq, task, number)]

    def _forget(self, seq: int, task: Task, number: int) -> list[Any]:
        del self.tasks[seq], self.calls[seq], self.events[seq]
        return [SaveForget(seq)]

    def check(self, store: Store) -> None:
        """Hold the store against what it must know."""
        known = sorted(self.tasks)
        still_open = [seq for seq in known if self.tasks[seq].phase != "done"]
        assert [row.seq for row in store.open_tasks(NOW)] == still_open
        assert sum(store.counts().values()) == len(known)
        found = store.finds([f"task-{seq}" for seq in TASKS])
        assert {row.seq: says(row) for row in found.values()} == {
            seq: columns(self.tasks[seq]) for seq in known
        }
        assert store.calls(TASKS) == self.calls
        for seq in TASKS:
            assert store.events(seq, 0) == self.events.get(seq, [])
        assert sum(store.counts().values()) == len(known)


#: The most rows in the journal, what more of them is brought to their tables, how many after each
#: turn (-1: the store is read, and the journal empty), and how many tasks make a bundle.
paces = st.tuples(
    st.sampled_from([0, 3, 10_000]),
    st.integers(1, 3),
    st.sampled_from([-1, 0, 1, 3]),
    st.sampled_from([1, 2, 32]),
)


@settings(max_examples=150)
@given(turns(), st.integers(0, 8), paces)
def test_store_knows_what_it_was_told_also_after_a_crash_at_any_point(told, crash, pace):
    model = Model()
    with contextlib.ExitStack() as stack:
        backlog, stride, settles, fewest = pace
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(store_module, "BACKLOG", backlog)
        patch.setattr(store_module, "STRIDE", stride)
        patch.setattr(bundles_module, "FEWEST", fewest)
        patch.setattr(bundles_module, "MOST", 3)
        patch.setattr(bundles_module, "PREFIX", len("task-"))
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "store.sqlite"
        stores = [Store(path, "normal")]
        stack.callback(lambda: stores[-1].close())
        for number, turn in enumerate(told):
            commit(stores[-1], model.saves(turn), NOW)
            if settles < 0:
                model.check(stores[-1])
            elif settles:
                stores[-1].settle(settles)
            if number == crash:
                stores.append(Store(copy_of(path), "normal"))
                stores[0].close()
        model.check(stores[-1])


def in_tables(store: Store) -> int:
    return store._db.value("SELECT count(*) FROM tasks")


def changed(store: Store) -> int:
    return store._db._connection.total_changes


def in_journal(store: Store) -> int:
    return store._db.value("SELECT count(*) FROM journal")


def test_what_begins_and_ends_is_written_once_and_later(store):
    task = accept(store, 1)
    commit(store, [SaveGiven(1, "w1", 11)], NOW)
    event = finish(store, task)
    commit(store, [SaveCleared("w1", 12)], NOW)

    assert (in_journal(store), in_tables(store), store.behind) == (4, 0, True)
    before = store._db._connection.total_changes
    store.settle()

    assert (
        store._db._connection.total_changes - before == 1 + 4
    )  # one row written, the journal's dropped
    assert (in_journal(store), in_tables(store), store.behind) == (0, 1, False)
    assert says(store.find("task-1")) == columns(task)
    assert store.events(1) == [(event, ())]


def test_journal_goes_as_far_as_its_oldest_task_is_written(store):
    tasks = [accept(store, seq) for seq in (1, 2, 3)]
    finish(store, tasks[0])

    store.settle(1)

    assert (in_journal(store), in_tables(store)) == (3, 1)
    store.settle(1)
    assert (in_journal(store), in_tables(store)) == (2, 2)
    assert {row.id: row.state for row in store.listing()} == {
        "task-1": "SUCCESS", "task-2": "PENDING", "task-3": "PENDING",
    }  # fmt: skip


def test_note_outlives_the_journal(store, path, opened):
    accept(store, 1)
    commit(store, [SaveGiven(1, "w1", 11)], NOW)
    store.settle()

    [row] = opened(copy_of(path)).open_tasks(NOW)

    assert (row.phase, row.worker, row.ticket) == ("assigned", "w1", 11)


def test_journal_does_not_grow_without_end(store, monkeypatch):
    monkeypatch.setattr(store_module, "BACKLOG", 20)
    monkeypatch.setattr(store_module, "STRIDE", 5)
    task = accept(store, 1)
    for seq in range(2, 200):
        accept(store, seq)
        task.n += 1
        commit(store, [SaveEvent(1, Event(task.id, task.n, 0.0, "run")), SaveTask(task)], NOW)
        assert in_journal(store) < 60

    assert len(store.events(1)) == 198


def test_journal_does_not_hold_more_than_some_megabytes(store, monkeypatch):
    monkeypatch.setattr(store_module, "BACKLOG_BYTES", 10_000)
    for seq in range(1, 200):
        accept(store, seq, body=b"x" * SHORT_BODY)
        assert store._backlog.size < 15_000

    assert len(store.calls(range(1, 200))) == 199
    store.settle()
    assert store._backlog.size == 0


def test_long_event_is_not_written_twice(store):
    task = accept(store, 1)
    event = Event(task.id, 1, 0.0, "state", "SUCCESS", b"x" * (SHORT_BODY + 1), final=True)
    task.phase, task.state, task.n, task.ended_at = "done", "SUCCESS", 1, NOW.wall
    commit(store, [SaveEvent(1, event), SaveTask(task)], NOW)

    assert store._db.value("SELECT count(*) FROM events") == 1
    assert store._db.value("SELECT max(length(changes)) FROM journal") < 200
    assert store.events(1) == [(event, ())]
    assert says(store.find("task-1")) == columns(task)


def test_store_that_is_closed_has_no_journal(path, opened):
    first = opened(path)
    accept(first, 1)
    first.close()

    with contextlib.closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM journal").fetchall() == [(0,)]
        assert file.execute("SELECT id FROM tasks").fetchall() == [("task-1",)]


def test_full_disk_is_read_with_what_is_in_the_journal_only(store, monkeypatch):
    for seq in (1, 2, 3):
        accept(store, seq)

    def fail() -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store, "settle", fail)

    assert store.find("task-2").seq == 2
    assert store.counts() == {"PENDING": 3}
    assert [row.seq for row in store.open_tasks(NOW)] == [1, 2, 3]
    assert store.calls([3]) == {3: (call_for(3), ())}
    assert (in_journal(store), in_tables(store)) == (3, 0)


def test_full_disk_tells_the_end_that_is_in_the_journal_only(store, monkeypatch):
    task = accept(store, 1)
    event = Event("task-1", 1, NOW.wall, "state", "SUCCESS", b"value", final=True)
    task.phase, task.state, task.n, task.ended_at = "done", "SUCCESS", 1, NOW.wall
    commit(store, [SaveTask(task), SaveEvent(1, event)], NOW)

    def fail() -> None:
        raise StoreError("The disk is full.")

    monkeypatch.setattr(store, "settle", fail)

    assert store.events(1) == [(event, ())]
    assert in_tables(store) == 0


def copy_of(path: Path) -> Path:
    """Return a copy of a store that is open: what a crash would leave."""
    copy = path.with_name("copy.sqlite")
    for end in ("", "-wal"):
        shutil.copy(f"{path}{end}", f"{copy}{end}")
    return copy


@settings(max_examples=30)
@given(turns())
def test_saving_a_turn_twice_changes_nothing(told):
    model = Model()
    store = Store(Path("unused"), "none")
    for turn in told:
        saves = model.saves(turn)
        commit(store, saves, NOW)
        commit(store, saves, NOW)
    model.check(store)
    store.close()


@settings(max_examples=40)
@given(st.data())
def test_any_call_and_event_comes_back_as_it_was(data):
    body = st.binary(max_size=SHORT_BODY + 200)
    call = data.draw(
        st.builds(
            Call,
            id=st.text(min_size=1, max_size=40),
            definition=st.sampled_from([b"", DIGEST]),
            name=st.text(min_size=1, max_size=10),
            body=body,
            frames=st.just(0),
            summary=st.text(max_size=80),
            due=st.none() | st.floats(0, 1e9),
            priority=st.integers(0, 9),
            queue=st.text(max_size=10),
            root=st.text(max_size=10),
            parent=st.text(max_size=10),
            retries=st.integers(0, 2**31),
            options=st.none() | st.builds(Options, extra=st.dictionaries(st.text(), st.text())),
        )
    )
    event = Event(call.id, 1, 0.0, "state", text=call.summary, body=data.draw(body))
    store = Store(Path("unused"), "none")
    task = task_for(1, call)

    commit(store, [SaveCall(1, call, CLIENT, 0.0), SaveTask(task), SaveEvent(1, event)], NOW)

    assert store.calls([1]) == {1: (call, ())}
    assert says(store.find(call.id)) == columns(task)
    assert store.events(1, 0) == [(event, ())]
    store.close()


# ----------------------------------------------------------------------------------- whole or not


KILLED = """
import sys
from pathlib import Path
from tests.broker.saves import NOW, CLIENT, call_for, task_for
from nbtasks.broker.store import Store
from tests.broker.saves import SaveCall, SaveTask, commit

store = Store(Path(sys.argv[1]), "full")
for first in range(1, 1_000_000, 10):
    saves = []
    for seq in range(first, first + 10):
        call = call_for(seq, body=b"", frames=1)
        saves += [SaveCall(seq, call, CLIENT, 0.0, (b"y" * 5_000,)), SaveTask(task_for(seq, call))]
    commit(store, saves, NOW)
    print(first + 9, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL here")
@pytest.mark.parametrize("turns_before", [1, 17, 60])
def test_what_was_committed_survives_sigkill_and_turns_are_whole(path, opened, turns_before):
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with writer:
        for _ in range(turns_before):
            told = writer.stdout.readline()
        writer.kill()
        rest = writer.stdout.read()
    complete = [line for line in (told + rest).splitlines(keepends=True) if line.endswith("\n")]

    store = opened(path)
    kept = [row.seq for row in store.open_tasks(NOW)]

    assert len(kept) >= int(complete[-1])
    assert kept == list(range(1, len(kept) + 1))
    assert len(kept) % 10 == 0
    assert all(len(buffers[0]) == 5_000 for _, buffers in store.calls(kept).values())


def test_full_disk_takes_nothing_and_is_got_over(store):
    task = accept(store, 1)
    pages = store._db.value("PRAGMA page_count")
    store._db.execute(f"PRAGMA max_page_count = {pages + 5}")
    digest = b"n" * 16
    call = call_for(2, definition=digest, name="new")
    new = task_for(2, call)
    task.phase = "running"
    saves = [
        SaveTask(task),
        SaveDefinition(define(digest, "new")),
        SaveCall(2, call, CLIENT, NOW.wall, (bytes(1_000_000),)),
        SaveTask(new),
    ]

    with pytest.raises(StoreError, match=r"store\.sqlite.*full.*free some space"):
        commit(store, saves, NOW)

    assert store.find("task-1").phase == "queued"
    assert store.find("task-2") is None
    assert store.functions.definition_named("new") is None

    store._db.execute("PRAGMA max_page_count = 1000000")
    commit(store, saves, NOW)

    assert store.find("task-1").phase == "running"
    assert says(store.find("task-2")) == columns(new)
    assert store.functions.definition_named("new") == digest


def test_what_cannot_be_saved_is_an_error_and_spoils_nothing(store):
    task = accept(store, 1)
    task.priority = 2**64

    with pytest.raises(StoreError, match="could not save: can't serialize"):
        commit(store, [SaveTask(task)], NOW)

    task.priority = 1
    commit(store, [SaveTask(task)], NOW)
    assert store.find("task-1").priority == 1


def test_interrupted_turn_is_taken_back(store, monkeypatch):
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "_changes", interrupt)
    saves = [SaveCall(1, call_for(1), CLIENT, 0.0), SaveEvent(1, Event("task-1", 1, 0.0, "run"))]
    with pytest.raises(KeyboardInterrupt):
        commit(store, saves, NOW)
    monkeypatch.undo()

    assert store.find("task-1") is None
    commit(store, saves, NOW)
    assert store.find("task-1") is not None


# ---------------------------------------------------------------------------------------- the file


@pytest.mark.parametrize(("durability", "synced"), [("full", 1), ("normal", 0)])
def test_what_is_saved_is_synced_once_where_that_is_promised(
    path, opened, monkeypatch, durability, synced
):
    store = opened(path, durability)
    seen: list[str] = []
    monkeypatch.setattr(
        database_module, "_sync_data", lambda log: seen.append(os.readlink(f"/proc/self/fd/{log}"))
    )
    accept(store, 1)
    accept(store, 2)

    store.sync()
    store.sync()

    assert seen == [f"{path}-wal"] * synced


def test_damage_that_is_found_while_syncing_is_told_as_such(path, opened, monkeypatch):
    store = opened(path, "full")
    accept(store, 1)
    store._db._doubtful = True

    def fail() -> bool:
        raise StoreCorrupt("damaged")

    monkeypatch.setattr(store._db, "checkpoint", fail)
    with pytest.raises(StoreCorrupt):
        store.sync()


def test_disk_that_fails_is_told_and_not_believed_the_next_time(path, opened, monkeypatch):
    store = opened(path, "full")
    accept(store, 1)

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(database_module, "_sync_data", fail)
        with pytest.raises(StoreError, match=r"store\.sqlite could not be synced: .*output error"):
            store.sync()
    synced: list[int] = []
    monkeypatch.setattr(database_module, "_sync_data", synced.append)
    store.sync()

    # The system may have forgotten what it could not write: it is written once more, elsewhere.
    assert database_module.log_of(path).stat().st_size == 0
    assert synced == []
    accept(store, 2)
    store.sync()
    assert len(synced) == 1


def test_what_a_killed_broker_has_left_is_synced_by_the_next_one(path, opened, monkeypatch):
    first = opened(path, "full")
    accept(first, 1)
    copy = path.with_name("killed") / path.name  # as it stands, with its log
    copy.parent.mkdir(mode=0o700)
    for file in (path, database_module.log_of(path)):
        shutil.copy(file, copy.parent)
    synced: list[int] = []
    monkeypatch.setattr(database_module, "_sync_data", synced.append)

    second = opened(copy, "full")
    second.sync()

    assert second.find("task-1") is not None
    assert len(synced) == 1


def test_store_lets_sqlite_sync_before_checkpoints_only(store):
    assert store._db.value("PRAGMA synchronous") == 1
    assert store._db.value("PRAGMA journal_mode") == "wal"
    assert store._db.value("PRAGMA auto_vacuum") == 2
    assert store._db.value("PRAGMA mmap_size") == 0


def test_durability_none_leaves_no_file(path, opened):
    store = opened(path, "none")
    task = accept(store, 1)

    assert says(store.find("task-1")) == columns(task)
    assert store.size() > 0
    store._db.checkpoint()
    assert list(path.parent.iterdir()) == []


def test_unknown_durability_names_the_known_ones(path):
    with pytest.raises(ValueError, match=r"'fast' is not known.*'full', 'normal', 'none'"):
        Store(path, "fast")


def test_store_keeps_its_name(path, opened):
    first = opened(path)
    first.close()

    assert opened(path).name == first.name
    assert re.fullmatch("[0-9a-f]{32}", first.name)


def test_file_tells_whose_it_is_and_its_version(store, path):
    header = path.read_bytes()[:100]

    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == VERSION


@pytest.mark.skipif(os.name == "nt", reason="Windows has no modes")
@pytest.mark.parametrize("former", [None, 0o644])
def test_nobody_else_may_read_the_files(path, opened, former):
    mask = os.umask(0)
    try:
        if former is not None:
            path.touch()
            path.chmod(former)
        store = opened(path)
        accept(store, 1)
    finally:
        os.umask(mask)

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}

    assert modes == {"store.sqlite": 0o600, "store.sqlite-wal": 0o600}


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_way_to_a_new_store_is_on_the_disk_where_that_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durability: str
):
    synced: list[Path] = []
    monkeypatch.setattr(file_module, "sync", synced.append)
    path = tmp_path / "new" / "store.sqlite"
    path.parent.mkdir()

    for _ in range(2):
        Store(path, durability).close()

    assert synced == (list(path.parents) if durability == "full" else [])


def test_second_broker_on_the_file_is_refused(store, path, monkeypatch):
    monkeypatch.setattr(database_module, "LOCK_TIMEOUT", 0.01)
    task = accept(store, 1)

    with pytest.raises(StoreError, match=r"store\.sqlite is in use.*nbtasks stop"):
        Store(path, "full")

    assert says(store.find("task-1")) == columns(task)


def test_closing_twice_is_no_error(store):
    store.close()
    store.close()


def test_newer_store_is_refused_and_kept(path, opened):
    opened(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
    before = path.read_bytes()

    with pytest.raises(StoreTooNew) as caught:
        Store(path, "full")

    text = str(caught.value)
    assert str(path) in text
    assert f"version {VERSION + 1}" in text
    assert f"up to version {VERSION}" in text
    assert "pip install -U nbtasks" in text
    assert path.read_bytes() == before
    assert isinstance(caught.value, ClusterError)


def test_newer_version_that_is_still_in_the_log_is_seen(path, opened):
    opened(path).close()
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA user_version = {VERSION + 1}")
        other.commit()
        copy = copy_of(path)

    with pytest.raises(StoreTooNew):
        Store(copy, "full")


@pytest.mark.parametrize(
    "content", [b"garbage", b"garbage " * 1_000, b"SQLite format 3\0", bytes(8192)]
)
def test_file_that_is_no_database_is_refused_and_kept(path, content):
    path.write_bytes(content)

    with pytest.raises(StoreCorrupt, match=r"store\.sqlite cannot be read.*left as it is|as it is"):
        Store(path, "full")

    assert path.read_bytes() == content
    assert [file.name for file in path.parent.iterdir()] == ["store.sqlite"]


def test_damaged_store_is_refused_and_kept(path, opened):
    store = opened(path)
    commit(store, [SaveCall(seq, call_for(seq), CLIENT, 0.0) for seq in range(1, 500)], NOW)
    store.close()
    content = path.read_bytes()
    damaged = content[:100] + b"\xff" * 20_000 + content[20_100:]
    path.write_bytes(damaged)

    with pytest.raises(StoreCorrupt, match=r"store\.sqlite"):
        Store(path, "full")

    assert path.read_bytes() == damaged


def test_damage_met_later_is_told_with_the_file(path, opened):
    store = opened(path)
    commit(store, [SaveCall(seq, call_for(seq), CLIENT, 0.0) for seq in range(1, 5_000)], NOW)
    [(page,)] = store._db.execute(
        "SELECT rootpage FROM sqlite_master WHERE name = 'tasks'"
    ).fetchall()
    store.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)

    with pytest.raises(StoreCorrupt, match=r"store\.sqlite"):
        opened(path).find("task-1")


@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.find("task-1"),
        lambda store: store.calls([1]),
        lambda store: store.children_of(["p"]),
    ],
    ids=["find", "calls", "children_of"],
)
def test_task_whose_function_is_not_there_is_damage(store, ask):
    accept(store, 1, parent="p")
    store.settle()
    store._db.execute("UPDATE tasks SET function = 7")

    with pytest.raises(StoreCorrupt, match="function 7, which is not there"):
        ask(store)


def test_database_of_another_program_is_refused_and_kept(path):
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE birds (name)")
        other.commit()
    path.chmod(0o640)
    before = path.read_bytes()

    with pytest.raises(StoreCorrupt, match="not one of nbtasks"):
        Store(path, "full")

    assert path.read_bytes() == before
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_directory_in_the_place_of_the_file_is_told(path):
    path.mkdir()

    with pytest.raises(StoreError, match=r"store\.sqlite cannot be written.*start\(dir="):
        Store(path, "full")


def test_directory_that_is_not_there_is_told(short_path):
    with pytest.raises(StoreError, match="No such file"):
        Store(short_path / "nowhere" / "store.sqlite", "full")


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write everywhere"
)
def test_file_that_we_may_not_write_is_told(path, opened):
    opened(path).close()
    path.chmod(0o400)

    with pytest.raises(StoreError, match="Permission denied"):
        Store(path, "full")


# -------------------------------------------------------------------------------------- migrations


def with_second_version(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    (directory / "second.sql").write_text(script, encoding="utf-8")
    scripts = (*database_module.MIGRATIONS, str(directory / "second.sql"))
    monkeypatch.setattr(database_module, "MIGRATIONS", scripts)
    monkeypatch.setattr(database_module, "VERSION", VERSION + 1)


def test_older_store_is_brought_up_and_keeps_what_it_knows(path, opened, monkeypatch, short_path):
    first = opened(path)
    task = accept(first, 1)
    first.close()
    with_second_version(monkeypatch, short_path, "-- a; comment\nCREATE TABLE extra (x);\n")

    second = opened(path)

    assert second._db.value("PRAGMA user_version") == VERSION + 1
    assert second._db.value("SELECT count(*) FROM extra") == 0
    assert second.name == first.name
    assert says(second.find("task-1")) == columns(task)


def test_migration_that_fails_leaves_the_store_at_its_version(
    path, opened, monkeypatch, short_path
):
    first = opened(path)
    task = accept(first, 1)
    first.close()
    with monkeypatch.context() as patch:
        with_second_version(patch, short_path, "CREATE TABLE extra (x);\nNONSENSE;\n")
        with pytest.raises(StoreError, match="syntax error"):
            Store(path, "full")

    again = opened(path)

    assert again._db.value("PRAGMA user_version") == VERSION
    assert again._db.all("SELECT * FROM sqlite_master WHERE name = 'extra'") == []
    assert says(again.find("task-1")) == columns(task)


def test_process_killed_between_making_the_file_and_the_tables_does_no_harm(path, opened):
    with contextlib.closing(sqlite3.connect(path)) as half:
        half.execute("PRAGMA journal_mode = WAL")

    store = opened(path)

    assert says(store.find(accept(store, 1).id))["seq"] == 1


#: A line of the schema that makes a column.
COLUMN = re.compile(r"^    [a-z_]+ +(?:TEXT|BLOB|INTEGER|REAL)\b.*$", re.MULTILINE)


def test_each_column_of_the_schema_says_what_it_is():
    schema = Path(database_module.__file__).with_name("schema.sql").read_text(encoding="utf-8")

    assert len(re.findall(COLUMN, schema)) > 40
    assert [line for line in re.findall(COLUMN, schema) if "--" not in line] == []


# ------------------------------------------------------------------------------------------ frugal


def plan(store: Store, query: str) -> str:
    return " ".join(row[3] for row in store._db.all(f"EXPLAIN QUERY PLAN {query}"))


@pytest.mark.parametrize(
    ("query", "index"),
    [
        ("SELECT * FROM tasks WHERE id = 'x' ORDER BY seq DESC LIMIT 1", "tasks_by_id"),
        ("SELECT * FROM tasks WHERE ended_at IS NULL AND seq > 5 ORDER BY seq", "tasks_by_end"),
        ("SELECT seq FROM tasks WHERE ended_at < 5 ORDER BY ended_at, seq", "tasks_by_end"),
        ("SELECT id FROM tasks WHERE parent = 'x' AND parent != ''", "tasks_by_parent"),
        (
            "SELECT id FROM tasks WHERE parent = 'x' AND parent != '' ORDER BY seq LIMIT 9",
            "tasks_by_parent",
        ),
        (
            "SELECT seq FROM tasks WHERE ended_at IS NOT NULL "
            "ORDER BY ended_at DESC, seq DESC LIMIT 9",
            "COVERING INDEX tasks_by_end",
        ),
        ("SELECT state, count(*) FROM tasks GROUP BY state", "COVERING INDEX tasks_by_end"),
        ("SELECT DISTINCT function FROM tasks", "COVERING INDEX tasks_by_end"),
        ("SELECT state, count FROM bundles", "COVERING INDEX bundles_by_end"),
        ("SELECT function FROM bundles", "COVERING INDEX bundles_by_end"),
        ("SELECT max(last) FROM bundles", "bundles_by_seq"),
        ("SELECT bundle FROM bundles WHERE last >= 5 AND first <= 5", "bundles_by_seq"),
        (
            "SELECT bundle FROM bundles WHERE prefix = 'x' AND low <= 'xb' AND high >= 'xa'",
            "COVERING INDEX bundles_by_id",
        ),
        (
            "SELECT bundle, count FROM bundles WHERE ended_last >= 5 ORDER BY ended_last DESC",
            "COVERING INDEX bundles_by_end",
        ),
    ],
)
def test_frequent_questions_have_an_index(store, query, index):
    found = plan(store, query)

    assert index in found
    if "COVERING" not in index:
        assert "SCAN" not in found
    if "ORDER BY" in query:
        assert "TEMP B-TREE" not in found


def test_queued_task_takes_less_than_300_bytes_of_disk(store):
    count = 5_000
    for first in range(0, count, 100):
        saves: list[Any] = []
        for seq in range(first, first + 100):
            call = call_for(seq, id=f"6a974c1e-7af0-ebb0-8d2c-{seq:012x}", body=b"\x80\x05" * 10)
            saves += [SaveCall(seq, call, bytes(16), NOW.wall), SaveTask(task_for(seq, call))]
        commit(store, saves, NOW)
    store.settle()

    used = store._db.value("PRAGMA page_count") - store._db.value("PRAGMA freelist_count")
    assert used * store._db.value("PRAGMA page_size") / count < 300


def test_rows_are_rows_of_the_scheduler(store):
    accept(store, 1)
    row = store.find("task-1")

    assert isinstance(row, msgspec.Struct)
    row.phase = "running"  # what the scheduler's protocol allows
