"""One run of a task: what it ends as, which handlers run, in which order, and what they get."""

from __future__ import annotations

import asyncio
import logging
import pickle
import sys
import threading
import time
import traceback
from types import SimpleNamespace

import pytest

from nbtasks import context, life
from nbtasks.client.task import Task
from nbtasks.context import Request
from nbtasks.exceptions import (
    EncodeError,
    Ignore,
    MaxRetriesExceededError,
    Reject,
    Retry,
    SoftTimeLimitExceeded,
)


class Told(Task):
    """A task that notes what happens to it."""

    name = "told"

    def __init__(self):
        self.story = []

    def before_start(self, task_id, args, kwargs):
        self.story.append(("before_start", task_id, args, kwargs))

    def on_success(self, retval, task_id, args, kwargs):
        self.story.append(("on_success", retval, task_id, args, kwargs))

    def on_retry(self, exc, task_id, args, kwargs, einfo):
        self.story.append(("on_retry", exc, task_id, args, kwargs, einfo))

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        self.story.append(("on_failure", exc, task_id, args, kwargs, einfo))

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        self.story.append(("after_return", status, retval, task_id, args, kwargs, einfo))

    @property
    def words(self):
        return [entry[0] for entry in self.story]


class Clock:
    """Two seconds pass between any two looks at it."""

    now = 100.0

    def __call__(self):
        self.now += 2.0
        return self.now


def told(body, **options):
    """Return a task with a body, and with options as class attributes."""
    attributes = {"run": body, **options}
    return type("Made", (Told,), attributes)()


def begin(task, *args, retries=0, store=None, wrap=None, eager=False, channel=None, **kwargs):
    """Run a task as a worker would."""
    request = Request(
        id="1",
        args=args,
        kwargs=kwargs,
        retries=retries,
        called_directly=False,
        is_eager=eager,
        _channel=channel,
    )
    story = getattr(task, "story", [])

    def note(outcome):
        story.append(("store", outcome.state))

    return life.run(task, request, args, kwargs, store=store or note, clock=Clock(), wrap=wrap)


def fail(*_):
    raise ValueError("bad header")


# -------------------------------------------------------------------------- how it may end


def test_a_value_is_a_success_with_its_handlers_in_order():
    task = told(lambda self, x, y: x + y)

    outcome = begin(task, 1, y=2)

    assert (outcome.state, outcome.value, outcome.einfo) == ("SUCCESS", 3, None)
    assert task.story == [
        ("before_start", "1", (1,), {"y": 2}),
        ("store", "SUCCESS"),
        ("on_success", 3, "1", (1,), {"y": 2}),
        ("after_return", "SUCCESS", 3, "1", (1,), {"y": 2}, None),
    ]


def test_an_exception_is_a_failure_whose_handlers_get_the_exception_itself():
    task = told(fail)

    outcome = begin(task, 7)

    assert outcome.state == "FAILURE"
    assert task.words == ["before_start", "store", "on_failure", "after_return"]
    _, exc, task_id, args, kwargs, einfo = task.story[2]
    assert exc is outcome.value
    assert (task_id, args, kwargs) == ("1", (7,), {})
    assert einfo.exception is exc
    assert einfo.type is ValueError
    assert task.story[3] == ("after_return", "FAILURE", exc, "1", (7,), {}, einfo)


def test_the_runtime_is_that_of_the_body():
    assert begin(told(lambda self: None)).runtime == 2.0
    assert begin(told(fail)).runtime == 2.0


def test_an_error_before_the_start_is_the_failure_and_the_body_is_not_run():
    task = told(lambda self: pytest.fail("the body ran"))
    task.before_start = fail

    outcome = begin(task)

    assert (outcome.state, str(outcome.value)) == ("FAILURE", "bad header")
    assert task.words == ["store", "on_failure", "after_return"]


def test_an_error_before_the_start_is_not_retried():
    task = told(lambda self: None, autoretry_for=(ValueError,))
    task.before_start = fail

    assert begin(task).state == "FAILURE"


def test_ignore_ends_without_handlers():
    def body(self):
        raise Ignore("not today")

    task = told(body)

    outcome = begin(task)

    assert outcome.state == "IGNORED"
    assert task.words == ["before_start", "store"]


@pytest.mark.parametrize(
    ("requeue", "late", "state"),
    [
        (True, True, "REQUEUE"),
        (True, False, "FAILURE"),
        (False, True, "FAILURE"),
        (False, False, "FAILURE"),
    ],
)
def test_reject_goes_back_only_when_it_asks_for_that_and_is_acked_late(requeue, late, state):
    def body(self):
        raise Reject("full", requeue=requeue)

    task = told(body, acks_late=late)

    outcome = begin(task)

    assert outcome.state == state
    assert task.words == ["before_start", "store"]
    if state == "FAILURE":
        assert isinstance(outcome.value, Reject)


def test_an_eager_run_is_never_requeued():
    def body(self):
        raise Reject("full", requeue=True)

    assert begin(told(body, acks_late=True), eager=True).state == "FAILURE"


def test_system_exit_is_a_lost_process_and_no_outcome():
    def body(self):
        sys.exit(3)

    task = told(body)

    with pytest.raises(SystemExit, match="3"):
        begin(task)
    assert task.words == ["before_start"]
    assert context.current_task() is None


def test_a_keyboard_interrupt_is_the_users_own_only_where_the_user_is():
    def body(self):
        raise KeyboardInterrupt

    assert begin(told(body)).state == "FAILURE"
    with pytest.raises(KeyboardInterrupt):
        begin(told(body), eager=True)


def test_a_value_that_cannot_be_told_is_a_failure_after_all():
    stored = []

    def store(outcome):
        stored.append(outcome.state)
        if outcome.state == "SUCCESS":
            raise EncodeError("a lock cannot be pickled")

    task = told(lambda self: object())

    outcome = begin(task, store=store)

    assert stored == ["SUCCESS", "FAILURE"]
    assert isinstance(outcome.value, EncodeError)
    assert task.words == ["before_start", "on_failure", "after_return"]


# ------------------------------------------------------------------------------------- retries


def test_retry_ends_the_run_with_a_plan_and_without_after_return():
    reason = ValueError("503")

    def body(self):
        raise self.retry(exc=reason, countdown=5)

    task = told(body)

    outcome = begin(task)

    assert outcome.state == "RETRY"
    assert outcome.value is reason
    assert (outcome.plan.countdown, outcome.plan.retries, outcome.plan.args) == (5.0, 1, None)
    assert task.words == ["before_start", "store", "on_retry"]
    _, exc, _, _, _, einfo = task.story[2]
    assert exc is reason
    assert isinstance(einfo.exception, Retry)
    assert einfo.exception.when == 5


def test_a_retry_raised_by_hand_is_a_retry_too():
    def body(self):
        raise Retry("later", exc=ValueError("v"), when=7)

    outcome = begin(told(body))

    assert outcome.state == "RETRY"
    assert (outcome.plan.countdown, str(outcome.value)) == (7.0, "v")
    assert str(outcome.einfo.exception) == "later"


def test_a_retry_raised_by_hand_is_counted():
    def body(self):
        raise Retry(when=7)

    outcome = begin(told(body, max_retries=2), retries=2)

    assert outcome.state == "FAILURE"
    assert isinstance(outcome.value, MaxRetriesExceededError)


def test_running_out_of_retries_is_a_failure():
    def body(self):
        try:
            fail()
        except ValueError as error:
            raise self.retry(exc=error) from None

    task = told(body, max_retries=3)

    outcome = begin(task, retries=3)

    assert isinstance(outcome.value, ValueError)
    assert task.words == ["before_start", "store", "on_failure", "after_return"]


def test_a_retry_beside_the_run_is_told_to_the_channel_and_the_run_goes_on():
    told_of = []
    channel = SimpleNamespace(again=lambda *facts: told_of.append(facts))

    def body(self):
        self.retry(exc=ValueError("v"), countdown=1, throw=False)
        return "done"

    outcome = begin(told(body), channel=channel)

    assert outcome.value == "done"
    ((plan, reason, einfo),) = told_of
    assert (plan.countdown, str(reason)) == (1.0, "v")
    assert isinstance(einfo.exception, Retry)


def test_raising_a_retry_that_is_on_its_way_does_not_send_it_twice():
    channel = SimpleNamespace(again=lambda *facts: None)

    def body(self):
        raise self.retry(throw=False)

    assert begin(told(body), channel=channel).state == "IGNORED"


# ----------------------------------------------------------------------------------- autoretry


def test_a_listed_exception_is_retried_by_itself():
    outcome = begin(told(fail, autoretry_for=(ValueError,)))

    assert outcome.state == "RETRY"
    assert str(outcome.value) == "bad header"
    assert outcome.plan.countdown == 180


def test_a_single_class_will_do_and_subclasses_count():
    assert begin(told(fail, autoretry_for=Exception)).state == "RETRY"
    assert begin(told(fail, autoretry_for=[KeyError])).state == "FAILURE"
    assert begin(told(fail, autoretry_for=False)).state == "FAILURE"


def test_exceptions_from_the_list_win():
    task = told(fail, autoretry_for=(Exception,), dont_autoretry_for=ValueError)

    assert begin(task).state == "FAILURE"


@pytest.mark.parametrize("said", [Ignore, Reject])
def test_what_is_said_on_purpose_is_not_retried(said):
    def body(self):
        raise said("so")

    assert begin(told(body, autoretry_for=(Exception,))).state != "RETRY"


def test_giving_up_raises_the_original_exception():
    task = told(fail, autoretry_for=(ValueError,), max_retries=2)

    outcome = begin(task, retries=2)

    assert (outcome.state, type(outcome.value)) == ("FAILURE", ValueError)


def test_retry_kwargs_decide_for_that_retry():
    task = told(fail, autoretry_for=(ValueError,), retry_kwargs={"countdown": 4, "max_retries": 7})

    assert begin(task, retries=6).plan.countdown == 4
    assert begin(task, retries=7).state == "FAILURE"
    assert task.max_retries == 3


def test_backoff_overrides_the_countdown_of_retry_kwargs_and_leaves_them_alone():
    kwargs = {"countdown": 4}
    task = told(
        fail,
        autoretry_for=(ValueError,),
        retry_kwargs=kwargs,
        retry_backoff=3,
        retry_jitter=False,
        max_retries=None,
    )

    assert [begin(task, retries=n).plan.countdown for n in (0, 1, 2, 20)] == [3, 6, 12, 600]
    assert kwargs == {"countdown": 4}


def test_jitter_stays_below_the_backoff():
    task = told(fail, autoretry_for=(ValueError,), retry_backoff=True, max_retries=None)

    drawn = {begin(task, retries=2).plan.countdown for _ in range(100)}

    assert drawn <= {0, 1, 2, 3, 4}
    assert len(drawn) > 1


# ------------------------------------------------------------------------------ around the body


def test_limits_are_put_around_before_start_and_body_alone():
    def wrap(body):
        task.story.append(("limit",))
        value = body()
        task.story.append(("no limit",))
        return value

    task = told(lambda self: 1)

    begin(task, wrap=wrap)

    assert task.words == [
        *("limit", "before_start", "no limit"),
        *("store", "on_success", "after_return"),
    ]


def test_the_request_is_there_from_first_to_last():
    seen = []

    class Watching(Told):
        def before_start(self, *_):
            seen.append(self.request.id)

        def run(self):
            seen.append(self.request.id)

        def after_return(self, *_):
            seen.append(self.request.id)

    begin(Watching())

    assert seen == ["1", "1", "1"]
    assert context.current_request() is None


def test_an_overridden_call_is_what_runs_and_may_call_the_original():
    class Loud(Told):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs) * 2

        def run(self, x):
            return (x, self.request.id)

    assert begin(Loud(), 3).value == (3, "1") * 2


def test_autoretry_inside_of_ones_own_call_holds_in_each_thread():
    class Waiting(Task):
        name = "waiting"
        autoretry_for = ValueError
        default_retry_delay = 0

        def __call__(self, gate):
            gate.wait(10)
            return super().__call__(gate)

        def run(self, gate):
            if not self.request.retries:
                raise ValueError
            return "retried"

    task, gate, results = Waiting(), threading.Event(), []
    other = threading.Thread(target=lambda: results.append(task.apply((gate,))))
    other.start()
    while "run" not in vars(task):
        time.sleep(0.001)
    passed = threading.Event()
    passed.set()
    results.append(task.apply((passed,)))
    gate.set()
    other.join()

    assert [result.get() for result in results] == ["retried", "retried"]
    assert "run" not in vars(task)


def test_a_run_that_was_set_on_the_task_stays_there():
    class Calling(Task):
        name = "calling"
        autoretry_for = ValueError

        def __call__(self):
            return super().__call__()

    task = Calling()
    task.run = lambda: 1

    assert [task.apply().get(), task.apply().get()] == [1, 1]


def test_a_task_that_calls_itself_makes_a_direct_call():
    def body(self, n):
        return [] if n == 0 else [self.request.called_directly, *self(n - 1)]

    assert begin(told(body), 2).value == [False, True]


# ------------------------------------------------------------------------------------- handlers


def test_a_failing_handler_changes_nothing_and_is_logged(caplog):
    task = told(lambda self: 1)
    task.on_success = fail

    outcome = begin(task)

    assert outcome.state == "SUCCESS"
    assert task.words == ["before_start", "store", "after_return"]
    assert "on_success of the task told[1] failed" in caplog.text


def test_a_failing_handler_of_an_eager_run_is_raised():
    task = told(lambda self: 1)
    task.on_success = fail

    with pytest.raises(ValueError, match="bad header"):
        begin(task, eager=True)
    assert context.current_task() is None


def test_handlers_may_be_coroutines():
    class Slow(Told):
        async def on_success(self, retval, *_):
            await asyncio.sleep(0)
            self.story.append(("awaited", retval))

        def run(self):
            return 5

    task = Slow()

    begin(task)

    assert ("awaited", 5) in task.story


def test_it_is_known_whether_a_task_has_handlers():
    class Bare(Task):
        def run(self):
            pass

    class Starting(Bare):
        def before_start(self, *_):
            pass

    class Failing(Bare):
        def on_failure(self, *_):
            pass

    assert not life.has_handlers(Bare())
    assert not life.has_handlers(Starting())
    assert life.has_handlers(Failing())


# ---------------------------------------------------------------------------------- coroutines


def test_a_coroutine_is_run_to_its_end():
    async def body(self, x):
        await asyncio.sleep(0)
        return (x, self.request.id)

    assert begin(told(body), 1).value == (1, "1")


def test_a_coroutine_may_retry():
    async def body(self):
        await asyncio.sleep(0)
        raise self.retry(countdown=1)

    assert begin(told(body)).state == "RETRY"


def test_a_cancelled_coroutine_is_a_failure():
    async def body(self):
        asyncio.current_task().cancel()
        await asyncio.sleep(1)

    outcome = begin(told(body))

    assert isinstance(outcome.value, asyncio.CancelledError)


def test_a_coroutine_can_be_run_where_a_loop_is_running():
    async def body(self):
        await asyncio.sleep(0)
        return self.request.id

    async def cell():
        return begin(told(body), eager=True)

    assert asyncio.run(cell()).value == "1"


def with_sleeping_loop_interrupted(body):
    """Call the body; the soft limit is raised once its event loop has nothing to do but wait."""
    original = asyncio.BaseEventLoop._run_once
    turns = []

    def run_once(loop):
        turns.append(loop)
        if len(turns) == 2:  # in the first one, the body has come to its first wait
            raise SoftTimeLimitExceeded(1.0)
        original(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "_run_once", run_once)
        return body()


def test_a_soft_limit_that_hits_the_sleeping_loop_reaches_the_body():
    caught = []

    async def body(self):
        try:
            await asyncio.Event().wait()
        except SoftTimeLimitExceeded as limit:
            caught.append(limit)
            return "cleaned up"

    outcome = begin(told(body), wrap=with_sleeping_loop_interrupted)

    assert outcome.value == "cleaned up"
    assert len(caught) == 1


def test_a_soft_limit_that_nobody_catches_is_the_failure():
    async def body(self):
        await asyncio.Event().wait()

    outcome = begin(told(body), wrap=with_sleeping_loop_interrupted)

    assert isinstance(outcome.value, SoftTimeLimitExceeded)


# ---------------------------------------------------------------------------------- tracebacks


def test_the_traceback_begins_in_the_users_code():
    outcome = begin(told(fail))

    text = outcome.einfo.traceback
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'raise ValueError("bad header")' in text
    assert text.rstrip().endswith("ValueError: bad header")
    assert "nbtasks/life.py" not in text
    assert traceback.extract_tb(outcome.einfo.tb)[0].name == "fail"
    assert str(outcome.einfo) == text


def test_wrong_arguments_need_no_lines_of_ours():
    text = begin(told(lambda self, x: x)).einfo.traceback

    assert "nbtasks/life.py" not in text
    assert "missing 1 required positional argument: 'x'" in text


def test_a_retry_shows_why_and_not_how():
    def body(self):
        try:
            fail()
        except ValueError as error:
            self.retry(exc=error, countdown=1)

    text = begin(told(body)).einfo.traceback

    assert "bad header" in text
    assert "During handling of the above exception" in text
    assert "Retry in 1s" in text
    assert "client/base.py" not in text


def test_an_exception_whose_text_cannot_be_had_is_shown_all_the_same():
    class Mute(Exception):
        def __str__(self):
            raise RuntimeError("no words")

    def body(self):
        raise Mute

    assert "Mute" in begin(told(body)).einfo.traceback


def test_exception_info_travels_as_text():
    info = begin(told(fail)).einfo

    again = pickle.loads(pickle.dumps(info))

    assert again.traceback == info.traceback
    assert (again.type, again.tb) == (ValueError, None)


# ------------------------------------------------------------------------------------------ log


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.records = []

    def emit(self, record):
        self.records.append(record)


@pytest.fixture
def records():
    handler = Records()
    life.runs.addHandler(handler)
    life.runs.setLevel(logging.INFO)
    yield handler.records
    life.runs.removeHandler(handler)
    life.runs.setLevel(logging.NOTSET)


def test_expected_exceptions_are_logged_without_a_traceback(records):
    begin(told(fail, throws=(ValueError,)))

    (record,) = records
    assert record.levelno == logging.INFO
    assert "Traceback" not in record.getMessage()


def test_unexpected_exceptions_are_logged_with_it(records):
    begin(told(fail, throws=KeyError))

    (record,) = records
    assert record.levelno == logging.ERROR
    assert "Traceback" in record.getMessage()


def test_success_is_logged_with_a_short_text_of_the_value(records):
    begin(told(lambda self: list(range(1000)), resultrepr_maxsize=12))

    (record,) = records
    assert record.getMessage() == "Task told[1] succeeded in 2.000 s: [0, 1, 2, 3…"


def test_eager_failures_are_seen_where_they_are_and_not_logged(records):
    begin(told(fail), eager=True)

    assert records == []
