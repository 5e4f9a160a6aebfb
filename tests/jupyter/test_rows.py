"""Rows: the events of a task, as they are drawn."""

from __future__ import annotations

import json

import pytest

from nbtasks.jupyter import rows, watch
from nbtasks.jupyter.rows import Row
from tests.jupyter.conftest import NOW


def paint(told):
    return Row(told.record, 0).paint(NOW, watch.load)


def test_a_call_that_has_not_begun_waits(submit):
    row = paint(submit())

    assert (row["state"], row["final"]) == ("waiting", False)
    assert (row["name"], row["args"]) == ("load", "('a.csv')")


def test_a_countdown_is_counted_on_the_boot_clock_and_drawn_on_the_wall_clock(submit):
    row = paint(submit(due=NOW.boot + 72, eta=NOW.wall + 9_999, expires=NOW.wall + 300))

    assert (row["state"], row["due"]) == ("scheduled", NOW.wall + 72)
    assert row["expires"] == NOW.wall + 300


def test_an_eta_is_drawn_as_it_was_given(submit):
    assert paint(submit(eta=NOW.wall + 60))["due"] == NOW.wall + 60


def test_an_eta_in_the_past_waits_for_a_worker_only(submit):
    assert paint(submit(eta=NOW.wall - 60))["state"] == "waiting"


def test_a_run_shows_when_it_began(submit):
    row = paint(submit().begins(at=NOW.wall - 19))

    assert (row["state"], row["began"]) == ("running", NOW.wall - 19)
    assert row["fraction"] is None


def test_progress_is_drawn_as_fraction_and_text(submit):
    row = paint(submit().begins().says("PROGRESS", {"progress": 63, "desc": "epoch 12"}))

    assert (row["state"], row["fraction"], row["text"]) == ("running", 0.63, "epoch 12")


def test_a_state_of_the_tasks_own_is_named(submit):
    row = paint(submit().begins().says("DOWNLOADING", {"done": 3}))

    assert row["text"] == "DOWNLOADING · 3"


def test_a_retry_tells_the_next_attempt_its_time_and_the_reason(submit):
    told = submit().begins().retries(ConnectionError("refused"), 1, 7.0)

    row = paint(told)

    assert (row["state"], row["due"]) == ("retrying", NOW.wall + 7)
    assert row["attempt"] == 2
    assert row["error"] == "ConnectionError: refused"


def test_the_most_attempts_are_those_of_the_task(submit, monkeypatch):
    class Fetch:
        max_retries = 3
        retry_kwargs = {"max_retries": 5}  # noqa: RUF012

    class Drawn:
        def flush(self): ...

    monkeypatch.setattr(watch, "known_tasks", lambda: {"nb.load": Fetch})
    seen = watch.Watch(Drawn())
    seen.add(submit().retries(ValueError(), 1, 7.0).record)

    (row,) = seen.paint(seen.look(NOW), NOW)

    assert (row["attempt"], row["attempts"]) == (2, 6)


def test_the_attempt_after_a_retry_is_running_and_numbered(submit):
    told = submit().begins().retries(ConnectionError(), 1, 7.0).begins(retries=1)

    row = paint(told)

    assert (row["state"], row["attempt"]) == ("running", 2)


def test_a_success_says_how_long_it_took(submit):
    row = paint(submit().begins().succeeds(runtime=1.5))

    assert (row["state"], row["final"], row["took"]) == ("done", True, 1.5)


def test_a_failure_is_told_in_one_line(submit):
    row = paint(submit().begins().fails(ValueError("bad header\nand much more")))

    assert (row["state"], row["error"]) == ("failed", "ValueError: bad header")


def test_a_failure_that_cannot_be_unpickled_is_told_by_its_traceback(submit, monkeypatch):
    def refuse(record, event):
        raise ImportError("no module named colours")

    monkeypatch.setattr(watch, "load", refuse)

    row = paint(
        submit().fails(
            ValueError(), traceback="Traceback (most recent call last):\n  ...\nColourError: red"
        )
    )

    assert row["error"] == "ColourError: red"


def test_an_exception_whose_text_fails_is_still_named():
    class Awkward(Exception):
        def __str__(self):
            raise RuntimeError

    assert rows.describe(Awkward()) == "Awkward"


@pytest.mark.parametrize(
    ("why", "state", "text"),
    [
        ("expired", "expired", None),
        ("revoked", "cancelled", ""),
        ("terminated", "cancelled", "terminated"),
    ],
)
def test_an_end_by_revocation_says_which(submit, why, state, text):
    row = paint(submit().is_revoked(why))

    assert (row["state"], row.get("text")) == (state, text)


def test_a_refused_submission_is_a_failure(submit):
    told = submit()
    told.record.error = ValueError("unknown queue")

    row = paint(told)

    assert (row["state"], row["final"], row["error"]) == (
        "failed",
        True,
        "ValueError: unknown queue",
    )


def test_a_task_whose_worker_was_lost_waits_again_and_says_why(submit):
    row = paint(submit().begins().runs_again("worker-1 was killed by SIGKILL"))

    assert (row["state"], row["why"]) == ("waiting", "worker-1 was killed by SIGKILL")


def test_a_row_is_plain_data(submit):
    told = submit().begins().says("PROGRESS", {"current": 1, "total": 2, "loss": object()})

    assert json.loads(json.dumps(paint(told)))["fraction"] == 0.5


@pytest.mark.parametrize(
    ("meta", "fraction", "text"),
    [
        (None, None, ""),
        ("half way", None, "half way"),
        ({"progress": 50}, 0.5, ""),
        ({"progress": 250}, 1.0, ""),
        ({"progress": "many"}, None, "progress many"),
        ({"progress": float("nan")}, None, "progress nan"),
        ({"current": 1, "total": 4}, 0.25, "1/4"),
        ({"done": 3, "total": 0}, None, "3 · total 0"),
        ({"n": 5}, None, "5"),
        ({"n": 9_999.7, "loss": 9_999.2}, None, "10000 · loss 9999"),
        ({"n": 1e16, "total": 4e16}, 0.25, "1e+16/4e+16"),
        ({"current": True}, None, "current True"),
        ({"message": "a\nb", "lr": 0.123456}, None, "a · lr 0.1235"),
        (dict.fromkeys("abcdef", 1), None, "a 1 · b 1 · c 1 · d 1 · e 1 · f 1"),
    ],
)
def test_whatever_a_task_says_of_its_progress_can_be_drawn(meta, fraction, text):
    assert rows.progress_of(meta) == {"fraction": fraction, "text": text}


def test_long_names_and_arguments_are_cut(submit):
    row = paint(submit("n" * 500, "(" + "x" * 500 + ")"))

    assert len(row["name"]) == len(row["args"]) == rows.NAME_LIMIT


def test_a_name_that_is_no_python_name_stays_whole(submit):
    assert paint(submit("<img src=x.png>"))["name"] == "<img src=x.png>"


def test_the_total_counts_in_a_fixed_order():
    found = rows.total({"done": 5, "failed": 1, "running": 3, "waiting": 0})

    assert found["open"] == 3
    assert rows.total_line(found["counts"]) == "3 running · 5 done · 1 failed"


def test_progress_that_is_counted_has_a_rate_and_an_end(submit):
    told = submit().begins(at=NOW.wall - 4)
    row = Row(told.record, 0)
    told.says("PROGRESS", {"current": 8, "total": 20})

    painted = row.paint(NOW, watch.load)

    assert painted["rate"] == 2.0
    assert painted["done_at"] == NOW.wall + 6


def test_progress_in_per_cent_has_an_end_and_no_rate(submit):
    row = paint(submit().begins(at=NOW.wall - 10).says("PROGRESS", {"progress": 50}))

    assert row["done_at"] == NOW.wall + 10
    assert "rate" not in row


def test_progress_without_an_end_has_a_rate_only(submit):
    row = paint(submit().begins(at=NOW.wall - 10).says("PROGRESS", {"n": 5}))

    assert row["rate"] == 0.5
    assert "done_at" not in row


def test_the_speed_of_an_attempt_is_not_that_of_the_one_before(submit):
    told = submit().begins(at=NOW.wall - 100)
    row = Row(told.record, 0)
    told.says("PROGRESS", {"current": 1, "total": 10})
    row.paint(NOW, watch.load)
    told.retries(ValueError(), 1, 0.0).begins(at=NOW.wall - 1, retries=1)
    told.says("PROGRESS", {"current": 2, "total": 10})

    assert row.paint(NOW, watch.load)["rate"] == 2.0


def test_a_failure_names_the_innermost_line_of_the_notebook(submit, monkeypatch):
    read = "Cell In[3], line 7, in f\n  File x.py\nCell In[2], line 12, in g\nValueError: bad"
    monkeypatch.setattr("nbtasks.client.outcome.readable", lambda text: read)
    told = submit().begins().fails(ValueError("bad"), traceback='File "/tmp/ipykernel_7/8.py"')

    row = paint(told)

    assert row["where"] == "cell [2], line 12"
    assert rows.explain(row, NOW.wall) == "ValueError: bad  (cell [2], line 12)"


def test_a_failure_outside_the_notebook_names_no_line(submit):
    assert "where" not in paint(submit().fails(ValueError(), traceback='File "lib.py", line 3'))


@pytest.mark.parametrize(
    ("ends", "redo"),
    [
        (lambda told: told.fails(ValueError()), True),
        (lambda told: told.is_revoked("revoked"), True),
        (lambda told: told.is_revoked("expired"), True),
        (lambda told: told.succeeds(), False),
        (lambda told: told.begins(), False),
    ],
)
def test_what_ended_without_success_can_be_done_again(submit, ends, redo):
    assert paint(ends(submit())).get("redo", False) is redo


def test_a_submission_that_was_refused_cannot_be_done_again(submit):
    told = submit()
    told.record.error = ValueError("unknown queue")

    assert "redo" not in paint(told)


def test_a_retry_whose_time_has_come_waits_for_a_worker(submit):
    row = paint(submit().begins().retries(ConnectionError("refused"), 1, -1.0))

    assert (row["state"], row["attempt"]) == ("waiting", 2)


def test_what_the_broker_said_of_the_queue_holds_until_the_next_event(submit):
    told = submit(due=NOW.boot + 60)
    row = Row(told.record, 0)

    row.queue()
    hastened = row.look(NOW)
    told.begins().retries(ConnectionError(), 1, 60.0)

    assert (hastened, row.look(NOW)) == ("waiting", "retrying")


def test_a_task_sent_by_a_task_names_its_senders_row(submit):
    row = Row(submit().record, 3, None, parent=1)

    assert row.paint(NOW, watch.load)["parent"] == 1


# --------------------------------------------------------------------------------- half characters

HALF = "half \ud83d \udcff"


@pytest.mark.parametrize(
    "told",
    [
        lambda told: told.fails(ValueError(HALF)),
        lambda told: told.begins().says("PROGRESS", {"desc": HALF, HALF: HALF}),
        lambda told: told.begins().says("PROGRESS", HALF),
        lambda told: told.begins().retries(OSError(HALF), 1, 7.0),
    ],
)
def test_half_a_character_is_spelt_out(submit, told):
    row = paint(told(submit()))

    assert "half \\\\ud83d" in json.dumps(row)
    json.dumps(row, ensure_ascii=False).encode()


# ----------------------------------------------------------------------------------- said in words

QUEUE = {"workers": 2, "busy": 2, "queued": 9, "places": [[0, 4], [5, 1]]}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"state": "scheduled", "due": 72.0}, "starts in 1:12"),
        ({"state": "scheduled", "due": 72.0, "expires": 300}, "starts in 1:12  expires in 5:00"),
        ({"state": "scheduled", "due": 0.2, "expires": 7.2}, "starts in 0:01  expires in 0:08"),
        ({"state": "scheduled", "due": 0.0}, "starts now"),
        ({"state": "scheduled", "due": 400 * 86_400.0}, "starts in 400 d 0 h"),
        ({"state": "retrying", "due": 0.2, "attempt": 2}, "attempt 2 in 0:01"),
        ({"state": "retrying", "due": 7.0, "error": "E: x"}, "next attempt in 0:07  E: x"),
        ({"state": "running", "fraction": 0.999}, "99 %"),
        ({"state": "waiting"}, "4th in the queue · all 2 workers busy"),
        ({"state": "waiting", "i": 5}, "next in the queue · all 2 workers busy"),
        ({"state": "waiting", "i": 9}, "in the queue · all 2 workers busy"),
        ({"state": "waiting", "why": "at most 1/s", "expires": 7}, "at most 1/s  expires in 0:07"),
        ({"state": "failed", "error": "E: x", "attempt": 3}, "E: x  after 3 attempts"),
        ({"state": "done", "attempt": 2, "attempts": 4}, "after 2 attempts"),
    ],
)
def test_a_row_says_in_words_what_the_page_says(row, said):
    assert rows.explain({"i": 0, **row}, 0.0, QUEUE) == said


@pytest.mark.parametrize(
    ("workers", "busy", "said"),
    [
        (0, 0, "in the queue · no worker yet"),
        (1, 1, "in the queue · the only worker is busy"),
        (2, 1, "in the queue"),
    ],
)
def test_the_queue_says_whether_a_worker_is_free(workers, busy, said):
    queue = {"workers": workers, "busy": busy, "queued": 500, "places": []}

    assert rows.why({"i": 0}, queue) == said


def test_why_a_task_waits_is_unknown_before_the_broker_was_asked():
    assert rows.explain({"i": 0, "state": "waiting"}, 0.0) == ""
