"""The rows of a panel: what changes them beside events, and what is kept of them in the end."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from nbtasks.client.record import Record
from nbtasks.core.messages import Now
from nbtasks.jupyter import watch
from nbtasks.jupyter.outlook import Wants
from tests.jupyter.conftest import NOW, Told


class Drawn:
    def flush(self): ...


@pytest.fixture
def seen(here):
    return watch.Watch(Drawn())


@pytest.fixture
def follow(seen, here, submit):
    """Have a task submitted and followed."""

    def follow(*args: Any, **options: Any) -> Told:
        told = submit(*args, **options)
        here.records[told.record.id] = told.record
        seen.add(told.record)
        return told

    return follow


def look(seen, instant=NOW):
    return {row.index: row.state for row in seen.look(instant)}


def paint(seen, index):
    return seen.paint([seen.rows[index]], NOW)[0]


def answer(**told: Any) -> dict[str, Any]:
    nothing = {"workers": 2, "busy": 2, "queued": 0, "places": {}, "why": {}, "children": {}}
    return {**nothing, **told}


def learn(seen, here, told, named=None):
    seen.learn(here, told, seen.want(100) or Wants([], [], [], None), named or {})


def test_tasks_added_by_many_threads_at_once_have_a_row_each(seen, submit):
    records = [submit().record for _ in range(2_000)]
    threads = [
        threading.Thread(target=lambda part=records[n::4]: [seen.add(one) for one in part])
        for n in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [row.index for row in seen.rows] == list(range(2_000))
    assert {row.id for row in seen.rows} == {record.id for record in records}
    assert len(look(seen)) == 2_000


def test_what_waits_and_what_runs_is_asked_about(seen, follow):
    waiting, running = follow(), follow().begins()
    follow().succeeds()
    follow(due=NOW.boot + 60)
    look(seen)

    wants = seen.want(100)

    assert wants.waiting == [waiting.record.id]
    assert wants.parents == [running.record.id]
    assert wants.next == NOW.wall + 60


def test_nothing_is_asked_when_all_is_over(seen, follow):
    follow().succeeds()
    look(seen)

    assert seen.want(100) is None


def test_no_more_is_asked_than_there_is_room_for(seen, follow):
    for _ in range(5):
        follow()
    look(seen)

    assert len(seen.want(3).waiting) == 3


def test_the_place_in_the_queue_is_news_once(seen, here, follow):
    told = follow()
    look(seen)

    learn(seen, here, answer(places={told.record.id: 4}, queued=9))
    first, seen.news = seen.news, False
    learn(seen, here, answer(places={told.record.id: 4}, queued=9))

    assert seen.queue == {"workers": 2, "busy": 2, "queued": 9, "places": [[0, 4]]}
    assert (first, seen.news) == (True, False)


def test_why_a_task_waits_is_drawn(seen, here, follow):
    told = follow()
    look(seen)

    learn(seen, here, answer(why={told.record.id: "rate limit 10/m"}))

    assert look(seen) == {0: "waiting"}
    assert paint(seen, 0)["why"] == "rate limit 10/m"


def test_a_task_whose_time_has_come_waits_without_any_event(seen, follow, monkeypatch):
    follow(due=NOW.boot + 60)
    scheduled = look(seen)
    later = Now(NOW.wall + 61, NOW.boot + 61)
    monkeypatch.setattr(watch, "now", lambda: later)

    seen.want(100)

    assert (scheduled, look(seen, later)) == ({0: "scheduled"}, {0: "waiting"})


def test_a_task_told_to_run_now_waits_once_it_is_in_the_queue(seen, here, follow):
    told = follow(due=NOW.boot + 60)
    look(seen)
    seen.rows[0].hastened = True

    learn(seen, here, answer(places={told.record.id: 1}))

    assert look(seen) == {0: "waiting"}


# ------------------------------------------------------------------------------------- the tree


def test_tasks_sent_by_a_task_become_rows_below_it(seen, here, follow):
    parent = follow().begins()
    look(seen)

    learn(seen, here, answer(children={parent.record.id: [["child", "nb.part", "(1)"]]}))

    assert look(seen) == {1: "waiting"}
    row = paint(seen, 1)
    assert (row["parent"], row["name"], row["args"]) == (0, "part", "(1)")


def test_a_panel_is_over_only_when_what_its_tasks_sent_is(seen, here, follow):
    follow().begins().succeeds(children=("child",))
    look(seen)
    owing = seen.over

    wants = seen.want(100)
    seen.learn(here, answer(children={wants.parents[0]: [["child", "nb.part", "()"]]}), wants, {})
    look(seen)
    open_still = seen.over
    Told(here.records["child"]).begins().succeeds()
    look(seen)

    assert (owing, open_still, seen.over) == (False, False, True)


def test_a_child_that_never_reaches_the_broker_is_not_waited_for_long(
    seen, here, follow, monkeypatch
):
    follow().begins().succeeds(children=("lost",))
    look(seen)
    learn(seen, here, answer())
    owing = seen.over

    later = Now(NOW.wall + watch.GRACE + 1, NOW.boot + watch.GRACE + 1)
    monkeypatch.setattr(watch, "now", lambda: later)
    learn(seen, here, answer())

    assert (owing, seen.over) == (False, True)


def test_a_task_of_another_process_is_named_when_the_broker_has_said_how(seen, here):
    record = here.record("far")
    seen.add(record)
    Told(record).begins().succeeds()
    record.known = True
    look(seen)
    owing = seen.over

    learn(seen, here, answer(), named={"far": ("nb.far", "(7)")})

    assert (owing, seen.over) == (False, True)
    assert paint(seen, 0)["args"] == "(7)"


# ------------------------------------------------------------------------- when all is over


def test_a_panel_that_is_over_keeps_what_it_drew_and_no_result(seen, follow, here):
    told = follow().begins().succeeds(list(range(10_000)), runtime=2.0)
    look(seen)
    before = paint(seen, 0)
    kept = weakref.ref(told.record)

    seen.let_go()
    here.records.clear()
    del told
    gc.collect()

    assert kept() is None
    assert paint(seen, 0) == before
    assert seen.over


def test_a_record_that_its_user_holds_does_not_wake_the_panel_by_late_output(seen, follow):
    told = follow().fails(ValueError())
    look(seen)
    seen.let_go()

    told._tell("output", "stdout", text="from a handler")

    assert look(seen) == {}


def test_a_task_that_runs_once_more_is_live_again(seen, follow):
    told = follow().begins().fails(ValueError())
    look(seen)
    seen.let_go()

    told.runs_again("run again by hand").begins()

    assert look(seen) == {0: "running"}
    assert (seen.over, seen.counts["failed"]) == (False, 0)


def test_a_task_of_which_nothing_is_known_any_more_can_be_attended_to(seen, follow, here):
    told = follow().begins().fails(ValueError())
    look(seen)
    task_id = told.record.id
    seen.let_go()
    here.records.clear()
    del told
    gc.collect()

    seen.attend(seen.rows[0], here)
    again = Told(here.records[task_id])
    again.begins().fails(ValueError())
    replayed = look(seen)
    again.runs_again("run again by hand")

    assert replayed == {}
    assert look(seen) == {0: "waiting"}
    assert paint(seen, 0)["args"] == "('a.csv')"


def test_a_row_that_runs_again_just_when_it_is_let_go_of_stays_live(seen, follow, monkeypatch):
    told = follow().begins().fails(ValueError())
    look(seen)
    paint = seen.paint

    def slow_paint(rows, instant):
        painted = paint(rows, instant)
        told.runs_again("run again by hand")
        return painted

    monkeypatch.setattr(seen, "paint", slow_paint)
    seen.let_go()

    assert seen.rows[0].record is told.record
    assert look(seen) == {0: "waiting"}


def test_a_closed_panel_hears_nothing(seen, follow):
    held, let_go = follow(), follow().succeeds()
    look(seen)
    seen.close()

    held.begins()

    assert look(seen) == {}
    assert held.record.listeners == let_go.record.listeners == ()
    assert not held.record.waiters


def test_the_times_of_the_whole_outlive_the_records(seen, follow):
    follow().begins().succeeds(at=NOW.wall + 5)
    look(seen)
    before = seen.total()

    seen.let_go()

    assert seen.total() == before
    assert (before["began"], before["ended"]) == (NOW.wall, NOW.wall + 5)


def test_what_nobody_hears_of_any_more_is_followed_by_the_next_client(seen, follow, here):
    told = follow(due=NOW.boot + 60)
    look(seen)
    here.records.clear()  # its client was closed, and another one opened

    seen.want(100)
    again = here.records[told.record.id]
    still = look(seen)
    Told(again).begins()

    assert isinstance(again, Record)
    assert again is not told.record
    assert still == {}
    assert look(seen) == {0: "running"}


def test_a_rate_that_is_out_of_date_is_news(seen, follow, monkeypatch):
    tasks = [follow() for _ in range(20)]
    for second in range(6):
        instant = Now(NOW.wall + second, NOW.boot + second)
        monkeypatch.setattr(watch, "now", lambda instant=instant: instant)
        tasks.pop().begins().succeeds()
        tasks.pop().begins().succeeds()
        look(seen, instant)
        rate, left = (seen.total()[key] for key in ("rate", "left"))
    later = Now(NOW.wall + 60, NOW.boot + 60)
    monkeypatch.setattr(watch, "now", lambda: later)

    seen.want(100)

    assert rate == pytest.approx(2.0, rel=0.2)
    assert left == pytest.approx(len(tasks) / rate, rel=0.1)
    assert seen.news
    assert seen.total()["rate"] is None


class Sly(dict):
    """A mapping that cannot be read."""

    def get(self, key, default=None):
        raise RuntimeError


def test_a_row_that_cannot_be_read_does_not_take_the_others_along(seen, follow):
    sly, other = follow().begins(), follow().begins()
    sly.says("PROGRESS", Sly())
    other.says("PROGRESS", {"progress": 50})

    first, second = seen.paint(seen.look(NOW), NOW)

    assert (first["state"], first["text"]) == ("running", "")
    assert second["fraction"] == 0.5
