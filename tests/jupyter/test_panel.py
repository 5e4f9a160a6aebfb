"""What a panel does: rows out, clicks in, and what is left of it. Widget and cluster are fakes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from typing import Any

import pytest

import nbtasks
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.result import AsyncResult
from nbtasks.core.messages import Hasten, Redo, Revoke
from nbtasks.jupyter import cells, detail, outlook, panel, watch
from tests.jupyter.conftest import NOW


@pytest.fixture
def sent(shell, page, send):
    """Run a cell that sends so many tasks; return its panel and them."""

    def make(number=1, **options):
        told = []
        shell.run(lambda: told.extend(send(**options) for _ in range(number)))
        shown = cells._cells._latest.panel
        shown.flush()
        return shown, told

    return make


def eventually(condition: Callable[[], Any], patience: float = 10.0) -> None:
    """Wait for what a thread does."""
    done = threading.Event()
    for _ in range(int(patience / 0.01)):
        if condition():
            return
        done.wait(0.01)
    raise AssertionError("it did not happen in time")


def test_only_rows_that_changed_are_sent(sent):
    shown, told = sent(2)

    told[1].begins()
    shown.flush()

    difference = shown._widget.told[-1]
    assert [row["i"] for row in difference["rows"]] == [1]
    assert difference["total"]["counts"] == {"running": 1, "waiting": 1}


def test_nothing_is_sent_when_nothing_has_changed(sent):
    shown, _ = sent(2)
    before = len(shown._widget.told)

    shown.flush()

    assert len(shown._widget.told) == before


def test_what_the_broker_said_of_the_queue_is_sent_once(sent, here):
    shown, told = sent(1)
    seen = shown._watch
    answer = {"workers": 1, "busy": 1, "queued": 3, "why": {}, "children": {}}
    answer["places"] = {told[0].record.id: 3}

    for _ in range(2):
        seen.learn(here, answer, seen.want(9), {})
        shown.flush()

    assert [each["queue"] and each["queue"]["places"] for each in shown._widget.told] == [
        None,
        [[0, 3]],
    ]


def test_many_rows_are_sent_in_parts_and_none_is_left_out(sent, monkeypatch):
    monkeypatch.setattr(panel, "PART", 10)
    shown, told = sent(35)
    while shown._backlog:
        shown.flush()
    shown._widget.told.clear()

    for each in told:
        each.begins()
    shown.flush()
    told[0].succeeds()
    while shown._backlog:
        shown.flush()

    parts = [[row["i"] for row in message["rows"]] for message in shown._widget.told]
    assert parts == [list(range(10)), list(range(10, 20)), list(range(20, 30)), [*range(30, 35), 0]]
    assert shown._widget.told[0]["total"]["counts"] == {"running": 35}


def test_what_was_left_to_send_is_sent_after_the_end_as_well(sent, monkeypatch):
    monkeypatch.setattr(panel, "PART", 10)
    shown, told = sent(25)
    for each in told:
        each.succeeds()
    shown.flush()
    still = shown._still

    while shown._backlog:
        shown.flush()

    assert still
    assert shown._still
    latest = {row["i"]: row["state"] for each in shown._widget.told for row in each["rows"]}
    assert latest == dict.fromkeys(range(25), "done")


def test_rows_beyond_the_limit_are_only_counted(sent, monkeypatch):
    monkeypatch.setattr(watch, "LIMIT", 3)
    shown, _ = sent(5)

    snapshot = shown.snapshot()

    assert len(snapshot["rows"]) == 3
    assert snapshot["total"]["n"] == 5


def test_the_snapshot_says_what_to_type_in_a_shell(sent):
    shown, _ = sent()

    assert shown.snapshot()["cli"] == "nbtasks cancel --terminate --dir '/run/nb tasks' {id}"


def test_without_anywidget_the_html_itself_is_kept_up_to_date(sent, page, monkeypatch):
    monkeypatch.setattr(panel, "new_widget", lambda source: None)
    shown, told = sent()

    told[0].begins()
    shown.flush()

    assert panel.WIDGET_MIME not in page[0][2]
    assert "running" in page[-1][2]["text/html"]


# ------------------------------------------------------------------------------------- clicks


def test_cancel_revokes_what_is_open_and_nothing_else(sent, here):
    shown, told = sent(3)
    told[0].succeeds()

    shown._widget.click("cancel", rows=None, ask=1)

    assert here.told == [Revoke((told[1].record.id, told[2].record.id), terminate=True)]
    assert shown._widget.sent == [{"kind": "heard", "ask": 1}]


def test_run_now_hastens_what_waits_for_a_time(sent, here):
    shown, (waiting, late) = sent(2, due=NOW.boot + 60)
    waiting.begins()
    shown.flush()

    shown._widget.click("hasten", rows=[0, 1], ask=2)

    assert here.told == [Hasten((late.record.id,))]
    assert late.record.id in shown._watch.want(9).waiting


def test_retry_has_a_failed_task_run_once_more_and_brings_the_panel_back(sent, here, page):
    shown, (told,) = sent()
    told.begins().fails(ValueError("bad"))
    shown.flush()
    still = page[-1][2]

    shown._widget.click("retry", rows=[0], ask=3)
    told.runs_again("run again by hand").begins()
    shown.flush()
    live = page[-1][2]
    told.succeeds()
    shown.flush()

    assert here.told == [Redo((told.record.id,))]
    assert here.followed == [told.record]
    assert "failed" in still["text/plain"]
    assert live[panel.WIDGET_MIME]["model_id"] == "model"
    assert "1 done" in page[-1][2]["text/plain"]
    assert panel.WIDGET_MIME not in page[-1][2]


def test_a_click_while_there_is_no_cluster_is_heard_and_does_nothing(sent, here, monkeypatch):
    shown, _ = sent()
    monkeypatch.setattr("nbtasks.client.client._clients", [])

    shown._widget.click("cancel", rows=[0], ask=4)

    assert shown._widget.sent == [{"kind": "heard", "ask": 4}]


@pytest.mark.parametrize("rows", [[], [7], ["0"], [-1]])
def test_a_click_for_rows_that_are_not_there_does_nothing(sent, here, rows):
    shown, _ = sent()

    shown._widget.click("cancel", rows=rows, ask=5)

    assert here.told == []


# ------------------------------------------------------------------------------------- details


def details(shown):
    return [said["detail"] for said in shown._widget.sent if said["kind"] == "detail"]


def test_a_detail_is_told_when_it_is_asked_for(sent):
    shown, (told,) = sent()
    told.begins()._tell("output", "stdout", text="halfway\n")

    shown._widget.click("detail", i=0)

    eventually(lambda: details(shown))
    assert details(shown)[0]["output"] == [["stdout", "halfway\n"]]


def test_the_detail_of_a_task_that_was_let_go_of_is_fetched(sent, here):
    shown, (told,) = sent()
    task_id = told.record.id
    told.begins().succeeds(41)
    shown.flush()
    here.records.clear()
    del told
    gc.collect()

    def show(id: str) -> dict[str, Any]:
        return {"phase": "open", "name": "nb.load", "queue": "default", "accepted_at": NOW.wall}

    here.answers["show"] = show
    shown._widget.click("detail", i=0)

    eventually(lambda: details(shown))
    (told_of,) = details(shown)
    assert told_of["call"] == "load('a.csv')"
    assert ["id", task_id] in told_of["facts"]
    assert ["queue", "default"] in told_of["facts"]


def test_a_detail_that_cannot_be_had_says_why(sent, here):
    shown, (told,) = sent()
    told.succeeds()
    shown.flush()
    here.records.clear()
    del told
    gc.collect()

    def away(id: str) -> None:
        raise TimeoutError("the broker is away")

    here.answers["show"] = away
    shown._widget.click("detail", i=0)

    eventually(lambda: details(shown))
    assert ["not told", "the broker is away"] in details(shown)[0]["facts"]


def test_a_detail_asked_for_while_it_is_gathered_is_told_once_more(sent, monkeypatch):
    shown, _ = sent()
    gathering, go_on = threading.Event(), threading.Event()
    tell = detail.tell

    def slow(*args):
        gathering.set()
        assert go_on.wait(10)
        return tell(*args)

    monkeypatch.setattr(detail, "tell", slow)
    shown._widget.click("detail", i=0)
    assert gathering.wait(10)
    for _ in range(5):
        shown._widget.click("detail", i=0)
    go_on.set()

    eventually(lambda: not shown._gathered)
    assert len(details(shown)) == 2


# ------------------------------------------------------------------------ when all is over


def test_a_page_that_comes_back_finds_the_end_and_is_given_the_picture(sent, page):
    shown, (told,) = sent()
    told.begins().succeeds()
    shown.flush()

    snapshot = shown.snapshot()
    shown._widget.click("picture")

    assert snapshot["total"]["open"] == 0
    assert snapshot["rows"][0]["state"] == "done"
    assert not shown._widget.closed
    final = page[-1][2]
    told = {"html": final["text/html"], "text": final["text/plain"]}
    assert shown._widget.sent == [{"kind": "picture", **told}]


def test_a_picture_that_is_asked_for_too_early_comes_when_all_is_over(sent):
    shown, (told,) = sent()
    shown._widget.click("picture")
    early = list(shown._widget.sent)

    told.succeeds()
    shown.flush()

    assert early == []
    assert [said["kind"] for said in shown._widget.sent] == ["picture"]


def test_the_picture_holds_what_folds_out(sent, page):
    shown, (told,) = sent()
    told.begins()._tell("output", "stdout", text="so far so good\n")
    told.fails(ValueError("bad"), traceback="Traceback:\nValueError: bad")
    shown.flush()

    assert "so far so good" in page[-1][2]["text/html"]


class Slow:
    """A value that takes its time to say what it is."""

    def __init__(self) -> None:
        self.id = 0

    def __repr__(self) -> str:
        asleep.wait(10)
        return "Slow()"


asleep = threading.Event()


def test_a_result_that_takes_its_time_does_not_hold_the_picture_up(sent, page, monkeypatch):
    asleep.clear()
    monkeypatch.setattr(panel, "PATIENCE", 0.05)
    shown, told = sent(2)
    told[0].succeeds("quick")
    told[1].succeeds(Slow())

    shown.flush()
    asleep.set()

    assert "2 done" in page[-1][2]["text/plain"]
    assert "quick" in page[-1][2]["text/html"]


def test_a_picture_that_could_not_be_put_there_is_put_there_later(sent, page, monkeypatch):
    shown, (told,) = sent()
    told.succeeds()
    with monkeypatch.context() as patched:
        patched.setattr(shown, "_publish", lambda bundle: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            shown.flush()

    shown.flush()

    assert panel.WIDGET_MIME not in page[-1][2]
    assert "1 done" in page[-1][2]["text/plain"]


def test_failures_behind_cancelled_tasks_are_in_the_picture_with_their_tracebacks(sent, page):
    shown, told = sent(30)
    for number, each in enumerate(told):
        if number < 27:
            each.is_revoked("revoked")
        else:
            each.begins().fails(ValueError("bad"), traceback=f"in line {number}\nValueError: bad")
    while not shown._still:
        shown.flush()

    final = page[-1][2]
    assert final["text/plain"].count("failed: ValueError: bad") == 3
    assert all(f"in line {number}\n" in final["text/html"] for number in (27, 28, 29))


# ------------------------------------------------------------- widgets that the user puts somewhere


@pytest.fixture
def result_of():
    return lambda told: AsyncResult._of(told.record)


def text_of(shown) -> str:
    return shown._repr_mimebundle_()["text/plain"]


@pytest.fixture
def without_widgets(monkeypatch):
    monkeypatch.setattr(panel, "new_widget", lambda source: None)


@pytest.mark.usefixtures("without_widgets")
def test_where_there_are_no_widgets_a_picture_shows_how_things_stand(send, result_of, here):
    told = send()
    shown = result_of(told).widget()
    told.begins()
    running = text_of(shown)

    told.succeeds()

    assert running == "nbtasks: 1 task: 1 running\n● load('a.csv')  running"
    assert repr(shown) == text_of(shown) == "nbtasks: 1 task: 1 done\n✓ load('a.csv')  done"
    assert shown._repr_html_().startswith('<section class="nbtasks-static">')
    assert set(shown._repr_mimebundle_()) == {"text/plain", "text/html"}


@pytest.mark.usefixtures("without_widgets")
@pytest.mark.parametrize(
    ("ended", "said"),
    [
        ((4, "SUCCESS", None), "✓ add  done"),
        (
            (
                ValueError("no"),
                "FAILURE",
                "Traceback (most recent call last):\nValueError: no \ud83d",
            ),
            "✕ add  failed: ValueError: no \\ud83d",
        ),
    ],
)
def test_a_task_that_ran_here_is_shown_as_it_ended(here, ended, said):
    shown = EagerResult("1", *ended, name="add").widget()

    assert text_of(shown).splitlines()[1] == said
    assert here.told == []
    assert "1" not in here.records


@pytest.mark.usefixtures("without_widgets")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "✓ add(1, y=2)  done"),
        ({"argsrepr": "(***)", "shadow": "sum"}, "✓ sum(***, y=2)  done"),
    ],
)
def test_a_task_that_ran_here_is_shown_as_it_was_called(here, options, said):
    @nbtasks.task(name="nb.add")
    def add(x, y):
        return x + y

    shown = add.apply((1,), {"y": 2}, **options).widget()

    assert text_of(shown).splitlines()[1] == said


def test_a_task_that_ran_here_keeps_its_traceback_and_cannot_be_run_again(here, page):
    loose = panel.LoosePanel()
    widget = loose.put([EagerResult("1", ValueError("no"), "FAILURE", "in line 7\nValueError: no")])
    loose.flush()
    gc.collect()

    widget.click("detail", i=0)

    eventually(lambda: widget.sent)
    assert widget.sent[0]["detail"]["traceback"] == "in line 7\nValueError: no"
    assert "redo" not in loose.snapshot()["rows"][0]


@pytest.mark.usefixtures("without_widgets")
def test_a_widget_starts_no_cluster_and_says_that_none_runs(submit, result_of, monkeypatch):
    monkeypatch.setattr("nbtasks.client.client._clients", [])
    monkeypatch.setattr("nbtasks.client.client.current", lambda: pytest.fail("it starts one"))
    monkeypatch.setattr("nbtasks.cluster.is_running", lambda place: False)

    unknown, sent = AsyncResult("x").widget(), result_of(submit()).widget()

    assert text_of(unknown).splitlines()[1] == f"○ task  waiting: {panel.NO_CLUSTER}"
    assert text_of(sent).splitlines()[1] == f"○ load('a.csv')  waiting: {panel.NO_CLUSTER}"


@pytest.mark.usefixtures("without_widgets")
def test_a_widget_of_another_process_task_asks_how_it_stands(here, monkeypatch):
    monkeypatch.setattr(outlook.Outlook, "_run", lambda self: None)
    monkeypatch.setattr(watch, "outlook", outlook.Outlook())
    here.record("x").known = True
    here.answers["show"] = lambda id: {"name": "nb.load", "summary": "(7)"}
    here.answers["outlook"] = lambda ids, parents: {
        **{"workers": 1, "busy": 1, "queued": 1, "why": {}, "children": {}},
        **{"places": {}, "starts": {"x": NOW.wall + 100}, "expires": {"x": NOW.wall + 150}},
    }

    shown = AsyncResult("x").widget()

    assert text_of(shown).splitlines()[1] == "◔ load(7)  scheduled"
    assert "starts in 1:40" in shown._repr_html_()
    assert "expires in 2:30" in shown._repr_html_()
