"""What a running function may ask: its request, progress, whether it is cancelled."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace

import pytest

from nbtasks import context
from nbtasks.context import Request


class Outside:
    """A channel that remembers."""

    def __init__(self):
        self.reports = []
        self.wanted = True

    def report(self, state, meta):
        self.reports.append((state, meta))

    def cancelled(self):
        return not self.wanted


@pytest.fixture
def outside():
    return Outside()


@pytest.fixture
def running(outside):
    """A run of a task, on this thread."""
    task = SimpleNamespace(name="crunch")
    request = Request(id="1", called_directly=False, _channel=outside)
    context.push(task, request)
    yield request
    context.pop()


def metas(outside):
    return [meta for _, meta in outside.reports]


# --------------------------------------------------------------------------------- the request


def test_a_request_has_the_values_of_a_direct_call_by_default():
    request = Request()

    assert request.called_directly
    assert (request.id, request.retries, request.is_eager) == (None, 0, False)
    assert request.children == []


def test_a_request_answers_get_and_derived_fields():
    request = Request(id="1", time_limit=9, soft_time_limit=5)

    assert request.get("id") == request.correlation_id == "1"
    assert request.get("colour", "red") == "red"
    assert request.timelimit == [9, 5]


def test_children_are_not_shared_between_requests():
    one, other = Request(), Request()

    one.children.append("x")

    assert other.children == []


# ------------------------------------------------------------------------------------ the stack


def test_outside_tasks_there_is_no_current_one():
    assert context.current_task() is None
    assert context.current_request() is None
    assert not context.task_join_will_block()


def test_a_direct_call_inside_a_run_has_a_request_of_its_own(running):
    inner = SimpleNamespace(name="parse")

    context.push(inner, Request())

    assert context.current_task() is inner
    assert context.current_request().called_directly
    assert context.current_run() is running
    context.pop()
    assert context.current_request() is running


def test_a_task_finds_its_run_by_name_too(running):
    imported_again = SimpleNamespace(name="crunch")

    assert context.request_of(imported_again) is running
    assert context.request_of(SimpleNamespace(name="other")) is None


def test_another_thread_sees_no_run(running):
    seen = []
    thread = threading.Thread(target=lambda: seen.append(context.current_request()))

    thread.start()
    thread.join()

    assert seen == [None]


def test_a_coroutine_sees_the_run_that_started_it_and_no_other_coroutines(running):
    async def look(name):
        context.push(SimpleNamespace(name=name), Request(id=name))
        await asyncio.sleep(0)
        found = context.current_request().id
        context.pop()
        return found, context.current_request()

    async def both():
        return await asyncio.gather(look("a"), look("b"))

    assert asyncio.run(both()) == [("a", running), ("b", running)]


def test_waiting_inside_a_task_is_refused_unless_allowed(running):
    assert context.task_join_will_block()
    with context.allow_join_result():
        assert not context.task_join_will_block()
        with context.denied_join_result():
            assert context.task_join_will_block()
    assert context.task_join_will_block()


def test_waiting_inside_an_eager_run_is_not_refused(running):
    running.is_eager = True

    assert not context.task_join_will_block()


# ------------------------------------------------------------------------------------- progress


def test_progress_outside_tasks_does_nothing():
    context.progress(1, 2)

    assert list(context.track(iter("ab"))) == ["a", "b"]
    assert not context.cancelled()


def test_progress_tells_how_much_of_what(running, outside):
    context.progress(1, 4, message="reading")

    assert outside.reports == [
        ("PROGRESS", {"current": 1, "total": 4, "progress": 25.0, "message": "reading"})
    ]


def test_progress_without_a_total_tells_the_count(running, outside):
    context.progress(7)

    assert metas(outside) == [{"current": 7}]


def test_every_step_of_a_few_is_told(running, outside):
    assert list(context.track("abc")) == ["a", "b", "c"]

    assert [meta["current"] for meta in metas(outside)] == [0, 1, 2, 3]
    assert metas(outside)[-1]["progress"] == 100.0


def test_of_very_many_steps_a_thousand_are_told_and_the_last(running, outside):
    for _ in context.track(range(100_001)):
        pass

    assert 900 < len(outside.reports) < 1100
    assert metas(outside)[-1]["current"] == 100_001


def test_a_new_message_is_told_however_small_the_step(running, outside):
    context.progress(1, 10**6, message="a")
    context.progress(2, 10**6, message="b")

    assert [meta["message"] for meta in metas(outside)] == ["a", "b"]


def test_what_cannot_be_compared_is_told(running, outside):
    class Vague:
        def __eq__(self, other):
            raise ValueError("ambiguous")

        __hash__ = None

    context.progress(1, 10**6, value=Vague())
    context.progress(2, 10**6, value=Vague())

    assert len(outside.reports) == 2


def test_a_direct_call_inside_a_run_tells_that_runs_progress(running, outside):
    context.push(SimpleNamespace(name="parse"), Request())

    context.progress(1, 2)

    context.pop()
    assert len(outside.reports) == 1


def test_a_total_of_zero_is_no_trouble(running, outside):
    assert list(context.track([])) == []

    assert metas(outside) == [{"current": 0, "total": 0}]


def test_a_run_may_ask_whether_it_is_still_wanted(running, outside):
    assert not context.cancelled()

    outside.wanted = False

    assert context.cancelled()


def test_request_shows_its_public_fields_only():
    request = Request(id="1", retries=2, _channel=object())

    assert repr(request) == "<Request: children=[], id='1', retries=2>"
