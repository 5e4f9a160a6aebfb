"""What a caller may ask of a result, against a client that has no broker."""

from __future__ import annotations

import asyncio
import builtins
import copy
import functools
import gc
import itertools
import pickle
import subprocess
import sys
import threading
import time
import traceback
import uuid
import weakref
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nbtasks import context, exceptions
from nbtasks.client import outcome, waiting
from nbtasks.client.callbacks import Callbacks, callbacks
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.record import Record
from nbtasks.client.result import AsyncResult
from nbtasks.client.result_set import GroupResult, ResultSet, result_from_tuple
from nbtasks.core.messages import Event, Forget, Hasten, Redo, Revoke
from tests.client.fakes import FakeClient

#: Seconds within which another thread must have done its part.
SOON = 5.0

REMOTE = """Traceback (most recent call last):
  File "/tmp/ipykernel_71/2804531.py", line 3, in load
    raise ValueError("bad header")
ValueError: bad header
"""


class Broken(ValueError):
    """An error of the user's own."""

    def __init__(self, message, code):
        super().__init__(message, code)
        self.code = code


@pytest.fixture
def client(monkeypatch):
    fake = FakeClient()
    monkeypatch.setattr(waiting, "client", lambda: fake)
    monkeypatch.setattr(waiting, "open_clients", lambda: [fake])
    return fake


@pytest.fixture
def record(client):
    return client.send()


@pytest.fixture
def task(record):
    return AsyncResult._of(record, task_name="demo.add")


@pytest.fixture
def in_a_task():
    context.push(None, context.Request(id="outer", called_directly=False))
    yield
    context.pop()


class Gathered(list):
    """A callback that remembers what it was called with, in whichever thread."""

    def __init__(self):
        super().__init__()
        self._called = threading.Semaphore(0)

    def __call__(self, *args):
        self.append(args[0] if len(args) == 1 else args)
        self._called.release()

    def wait(self, count=1):
        for _ in range(count):
            assert self._called.acquire(timeout=SOON), f"only {list(self)}"
        return self


# ------------------------------------------------------------------------------ identity, copies


def test_result_without_an_id_is_refused():
    with pytest.raises(ValueError, match="needs the id of a task, not None"):
        AsyncResult(None)


def test_results_are_equal_when_their_ids_are_and_equal_to_the_id_itself():
    one, same, other = AsyncResult("a"), AsyncResult("a"), AsyncResult("b")

    assert one == same == "a"
    assert one != other
    assert one != 1
    assert {one, same, other} == {"a", "b"}
    assert len({one, "a"}) == 1


def test_result_shows_its_id():
    one = AsyncResult("a")

    assert (str(one), repr(one), one.task_id, one.id) == ("a", "<AsyncResult: a>", "a", "a")


def test_result_pickles_to_id_name_and_parent():
    one = AsyncResult("b", task_name="demo.add", parent=AsyncResult("a"))
    one.ignored = True

    twin = pickle.loads(pickle.dumps(one))

    assert (twin, twin.parent, twin._name, twin.ignored) == ("b", "a", "demo.add", True)


def test_copy_knows_what_the_original_knows(client, record, task):
    client.succeed(record, 3)

    assert copy.copy(task).get() == 3
    assert copy.copy(task) == task


def test_pickled_result_is_small(client, record, task):
    client.succeed(record, "x" * 100_000)

    assert len(pickle.dumps(task)) < 200


def test_making_a_result_is_cheap(record):
    of, count, best = AsyncResult._of, 20_000, 1.0

    for _ in range(5):
        began = time.perf_counter()
        for _ in range(count):
            of(record, "demo.add")
        best = min(best, (time.perf_counter() - began) / count)

    assert best < 2e-6  # 0.3 microseconds where nothing else runs
    assert not hasattr(of(record), "__dict__")


# ------------------------------------------------------------------------------- state and value


def test_task_that_was_just_sent_is_pending(task):
    assert (task.state, task.status, task.result, task.traceback) == (
        "PENDING",
        "PENDING",
        None,
        None,
    )
    assert not task.ready()
    assert not task.successful()
    assert not task.failed()
    assert task.accepted
    assert task.date_done is None


def test_states_follow_what_happens(client, record, task):
    client.happen(record, "run", worker="w1@host", pid=7)
    assert task.state == "PENDING"  # not tracked

    client.happen(record, state="STARTED", worker="w1@host", pid=7)
    assert (task.state, task.info) == ("STARTED", {"pid": 7, "hostname": "w1@host"})

    client.happen(record, state="PROGRESS", value={"current": 1, "total": 4})
    assert (task.state, task.info, task.progress) == ("PROGRESS", {"current": 1, "total": 4}, 0.25)

    client.succeed(record, [1, 2], worker="w1@host")
    assert (task.state, task.info, task.progress) == ("SUCCESS", [1, 2], 1.0)
    assert task.ready()
    assert task.successful()
    assert not task.failed()
    assert task.date_done == datetime(1970, 1, 1, 0, 16, 44, tzinfo=UTC)


def test_state_of_a_task_that_waits_for_its_retry(client, record, task):
    client.happen(
        record, state="RETRY", value=ConnectionError("refused"), traceback=REMOTE, retries=1
    )

    assert (task.state, task.retries, task.ready()) == ("RETRY", 1, False)
    assert isinstance(task.result, ConnectionError)
    assert task.traceback == REMOTE


def test_revoked_task_is_ready_but_neither_successful_nor_failed(client, record, task):
    client.end_by_broker(record, "REVOKED", "TaskRevokedError", "expired")

    assert task.ready()
    assert not task.successful()
    assert not task.failed()
    assert isinstance(task.result, exceptions.TaskRevokedError)
    with pytest.raises(exceptions.TaskRevokedError, match="expired"):
        task.get()


def test_value_is_the_same_object_each_time(client, record, task):
    client.succeed(record, [1, 2])

    assert task.get() is task.get() is task.result


def test_none_is_a_value_too(client, record, task):
    client.succeed(record, None)

    assert task.get(timeout=0) is None
    assert task.successful()


def test_large_value_that_travelled_as_a_frame_is_read(client, record, task):
    event = client.succeed(record, None)
    record.buffers = {event.n: (pickle.dumps(["large"]),)}

    assert task.get() == ["large"]


def test_state_of_a_task_of_another_process_is_asked_for(client):
    client.elsewhere["theirs"] = [
        Event("theirs", 1, 5.0, "run", worker="w1@host"),
        Event("theirs", 2, 6.0, "state", "SUCCESS", pickle.dumps(3), final=True, retries=2),
    ]
    theirs = AsyncResult("theirs")

    assert (theirs.state, theirs.get(), theirs.retries) == ("SUCCESS", 3, 2)
    assert (theirs.worker, theirs.accepted) == ("w1@host", True)


def test_open_task_is_looked_up_again_when_its_client_was_closed(client, record, task, monkeypatch):
    later = FakeClient()
    again = later.record(record.id)
    monkeypatch.setattr(waiting, "client", lambda: later)
    monkeypatch.setattr(waiting, "open_clients", lambda: [later])
    later.scenes.append(lambda: later.succeed(again, 3))

    assert task.get(timeout=SOON) == 3


def test_task_is_asked_for_where_it_was_sent_though_another_cluster_is_the_present_one(
    client, record, task, monkeypatch
):
    other = FakeClient()
    monkeypatch.setattr(waiting, "client", lambda: other)
    monkeypatch.setattr(waiting, "open_clients", lambda: [other, client])
    client.scenes.append(lambda: client.succeed(record, 3))

    task.revoke()

    assert (task.get(timeout=SOON), len(client.told), other.told) == (3, 1, [])


def test_unknown_id_is_pending_and_does_not_exist(client):
    client.answers["show"] = lambda id: None
    unknown = AsyncResult("mistyped")

    assert (unknown.state, unknown.retries, unknown.name, unknown.args) == (
        "PENDING",
        None,
        None,
        None,
    )
    assert not unknown.exists()
    with pytest.raises(exceptions.TimeoutError, match="knows no task 'mistyped'"):
        unknown.get(timeout=0)


def test_waiting_without_end_for_an_unknown_id_warns(client):
    unknown = AsyncResult("mistyped")
    assert unknown.state == "PENDING"
    record = client.record("mistyped")
    client.scenes.append(lambda: client.succeed(record, 1))

    with pytest.warns(exceptions.CeleryWarning, match="may be mistyped"):
        assert unknown.get() == 1


# ------------------------------------------------------------------------------------------- get


def test_get_waits_for_the_value(client, record, task):
    client.scenes.append(lambda: client.happen(record, state="RETRY", value=ValueError()))
    client.scenes.append(lambda: client.succeed(record, 3))

    def soon():
        client.happen(record, state="PROGRESS", value=1)
        client.succeed(record, 3)

    timer = threading.Timer(0.05, soon)
    timer.start()

    assert task.get(timeout=SOON) == 3
    timer.join()


def test_timeout_is_exact_and_leaves_the_task_alone(client, record, task):
    began = time.monotonic()

    with pytest.raises(
        exceptions.TimeoutError, match=r"demo\.add\[task-1\] was not ready within 0\.2 s"
    ):
        task.get(timeout=0.2)

    assert 0.2 <= time.monotonic() - began < 0.3
    client.succeed(record, 3)
    assert task.get(timeout=0.2) == 3


def test_timeout_error_is_also_the_builtin_one(task):
    assert task.TimeoutError is exceptions.TimeoutError

    with pytest.raises(builtins.TimeoutError):
        task.get(timeout=0)


def test_get_with_no_time_at_all_gives_the_value_of_a_task_that_is_over_elsewhere(client):
    client.elsewhere["theirs"] = [
        Event("theirs", 1, 6.0, "state", "SUCCESS", pickle.dumps(3), final=True)
    ]

    assert AsyncResult("theirs").get(timeout=0) == 3


def test_set_with_no_time_at_all_gives_the_values_of_tasks_that_are_over_elsewhere(client):
    client.elsewhere["theirs"] = [
        Event("theirs", 1, 6.0, "state", "SUCCESS", pickle.dumps(3), final=True)
    ]

    assert ResultSet([AsyncResult("theirs")]).get(timeout=0) == [3]


def test_set_names_a_member_that_nobody_knows(client):
    with pytest.raises(exceptions.TimeoutError, match="knows no task 'nix'"):
        ResultSet([AsyncResult("nix")]).get(timeout=0)


def test_propagate_false_returns_the_exception(client, record, task):
    client.fail(record, Broken("bad header", 5))

    error = task.get(propagate=False)

    assert type(error) is Broken
    assert (error.args, error.code) == (("bad header", 5), 5)


def test_callback_gets_id_and_value_before_get_returns(client, record, task):
    client.succeed(record, 3)
    called = Gathered()

    assert task.get(callback=called) == 3
    assert called == [("task-1", 3)]


def test_callback_is_not_called_when_the_error_is_raised(client, record, task):
    client.fail(record, ValueError("x"))
    called = Gathered()

    with pytest.raises(ValueError, match="x"):
        task.get(callback=called)

    assert called == []


def test_on_interval_is_called_while_waiting(client, record, task, monkeypatch):
    monkeypatch.setattr(waiting, "BEAT", 0.02)
    called = []

    def tick():
        called.append(time.monotonic())
        if len(called) == 3:
            client.succeed(record, 1)

    assert task.get(on_interval=tick) == 1
    assert len(called) == 3
    assert all(later - earlier >= 0.019 for earlier, later in itertools.pairwise(called))


def test_error_of_a_parent_is_raised_at_once(client, record):
    first = client.send("first")
    client.fail(first, KeyError("first step"))
    last = AsyncResult._of(record, parent=AsyncResult._of(first))

    with pytest.raises(KeyError, match="first step"):
        last.get()
    with pytest.raises(exceptions.TimeoutError):
        last.get(timeout=0, follow_parents=False)


def test_error_of_a_parent_is_raised_while_waiting(client, record, monkeypatch):
    monkeypatch.setattr(waiting, "BEAT", 0.02)
    first = client.send("first")
    last = AsyncResult._of(record, parent=AsyncResult._of(first))
    client.scenes.append(lambda: client.fail(first, KeyError("first step")))

    with pytest.raises(KeyError, match="first step"):
        last.get(timeout=SOON)


def test_error_of_a_member_of_the_header_is_raised(client, record):
    member = client.send("member")
    client.fail(member, KeyError("member"))
    header = GroupResult("g", [AsyncResult._of(member)])

    with pytest.raises(KeyError, match="member"):
        AsyncResult._of(record, parent=header).get()


def test_ignored_result_gives_none_without_waiting(client, record):
    ignored = AsyncResult._of(record, ignored=True)

    assert (ignored.ignored, ignored.get(), ignored.ready()) == (True, None, False)


def test_task_that_raised_ignore_gives_none(client, record, task):
    client.happen(record, state="IGNORED", final=True)

    assert (task.state, task.ignored, task.ready(), task.get()) == ("IGNORED", True, True, None)
    assert not task.successful()
    assert not task.failed()


def test_task_that_raised_ignore_after_a_state_of_its_own_gives_none(client, record, task):
    client.happen(record, state="CHECKED", value={"pages": 3})
    client.happen(record, "end", final=True)

    assert (task.state, task.info, task.get(timeout=0)) == ("CHECKED", {"pages": 3}, None)


def test_success_that_the_task_stored_itself_counts(client, record, task):
    client.happen(record, state="SUCCESS", value="mine", final=True)
    client.happen(record, "end", value="returned", final=True)

    assert (task.state, task.get(), task.result) == ("SUCCESS", "mine", "mine")


def test_waiting_ends_with_an_error_when_the_cluster_is_gone(client, task):
    def die():
        client.gone = True

    client.scenes.append(die)

    with pytest.raises(exceptions.BrokerUnavailable):
        task.get()


def test_refused_task_raises_why(client, record, task):
    record.error = exceptions.OperationalError("refused")

    with pytest.raises(exceptions.OperationalError, match="refused"):
        task.get()
    with pytest.raises(exceptions.OperationalError):
        task.maybe_throw()


def test_maybe_throw_does_not_wait(client, record, task):
    assert task.maybe_throw() is None

    client.fail(record, ValueError("x"))

    with pytest.raises(ValueError, match="x"):
        task.maybe_throw()
    assert isinstance(task.maybe_reraise(propagate=False), ValueError)


# ------------------------------------------------------------------------------- inside a task


@pytest.mark.usefixtures("in_a_task")
def test_get_inside_a_task_is_refused(client, record, task):
    client.succeed(record, 3)

    with pytest.raises(RuntimeError, match="allow_join_result"):
        task.get()
    with pytest.raises(RuntimeError, match="allow_join_result"):
        ResultSet([task]).get()
    with pytest.raises(RuntimeError, match="allow_join_result"):
        asyncio.run(_await(task))


@pytest.mark.usefixtures("in_a_task")
def test_get_inside_a_task_may_be_allowed(client, record, task):
    client.succeed(record, 3)

    with context.allow_join_result():
        assert task.get() == 3
        assert ResultSet([task]).get() == [3]
    assert task.get(disable_sync_subtasks=False) == 3


# -------------------------------------------------------------------------------- remote errors


def test_error_is_itself_with_cause_and_notes_and_the_remote_traceback(client, record, task):
    original = Broken("bad header", 5)
    original.__cause__ = KeyError("cause")
    original.add_note("while reading b.csv")
    client.fail(record, original, traceback=REMOTE + "while reading b.csv\n")

    with pytest.raises(Broken) as raised:
        task.get()

    error = raised.value
    assert type(error) is Broken
    assert (error.args, error.code) == (("bad header", 5), 5)
    assert isinstance(error.__cause__, KeyError)
    own, remote = error.__notes__
    assert own == "while reading b.csv"
    assert "Remote traceback of task demo.add" in remote
    assert 'raise ValueError("bad header")' in remote
    assert "while reading" not in remote  # the note is there already
    assert task.traceback.startswith("Traceback")


def test_each_get_raises_a_fresh_error_with_one_note_and_a_short_traceback(client, record, task):
    client.fail(record, ValueError("x"), traceback=REMOTE)
    seen = []

    for _ in range(5):
        with pytest.raises(ValueError, match="x") as raised:
            task.get()
        seen.append(raised.value)

    assert len({id(error) for error in seen}) == 5
    assert {len(error.__notes__) for error in seen} == {1}
    assert len({len(traceback.extract_tb(error.__traceback__)) for error in seen}) == 1


def test_threads_that_get_the_same_failure_do_not_meet_in_one_error(client, record, task):
    client.fail(record, ValueError("x"), traceback=REMOTE)
    seen, together = [], threading.Barrier(4)

    def get():
        together.wait(SOON)
        for _ in range(50):
            try:
                task.get()
            except ValueError as error:
                seen.append((len(error.__notes__), len(traceback.extract_tb(error.__traceback__))))

    threads = [threading.Thread(target=get) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)

    assert len(seen) == 200
    assert len(set(seen)) == 1


def test_error_keeps_no_frame_of_the_caller_alive(client, record, task):
    client.fail(record, ValueError("x"), traceback=REMOTE)

    class Large:
        pass

    def ask():
        large = Large()
        watched.append(weakref.ref(large))
        try:
            task.get()
        except ValueError:
            return

    watched = []
    gc.disable()
    try:
        ask()
        assert watched[0]() is None
    finally:
        gc.enable()


def test_note_of_an_error_that_came_through_two_tasks_is_there_once_for_each(client):
    inner, outer = client.send("inner", name="inner"), client.send("outer", name="outer")
    client.fail(inner, ValueError("x"), traceback=REMOTE)
    with pytest.raises(ValueError, match="x") as raised:
        AsyncResult._of(inner).get()
    text = "".join(traceback.format_exception(raised.value))

    client.fail(outer, raised.value, traceback=text)
    with pytest.raises(ValueError, match="x") as raised:
        AsyncResult._of(outer).get()

    shown = "".join(traceback.format_exception(raised.value))
    assert shown.count("Remote traceback of task inner") == 1
    assert shown.count("Remote traceback of task outer") == 1


def test_error_that_refuses_attributes_still_gets_its_note(client, record, task, monkeypatch):
    client.fail(record, ValueError("x"), traceback=REMOTE)
    monkeypatch.setattr(outcome, "load", lambda *_: Frozen("x"))

    with pytest.raises(Frozen) as raised:
        task.get()

    assert "Remote traceback" in raised.value.__notes__[0]


class Frozen(Exception):
    def __setattr__(self, name, value):
        raise AttributeError(f"{name} is frozen")


def test_cells_are_named_as_the_notebook_names_them(monkeypatch):
    class Compile:
        def format_code_name(self, path):
            return ("Cell", "In[2]") if path.endswith("2804531.py") else None

    class Shell:
        compile = Compile()

    monkeypatch.setattr(outcome, "_shell", Shell)

    text = outcome.readable(REMOTE)
    other = outcome.readable(
        '  File "/tmp/ipykernel_9/11.py", line 1, in f\n  File "/a.py", line 2'
    )

    assert "  Cell In[2], line 3, in load\n" in text
    assert other == '  Cell of another kernel, line 1, in f\n  File "/a.py", line 2'


IN_IPYTHON = """
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
from nbtasks.client import result, waiting
from tests.client.fakes import FakeClient
from tests.client.test_result import REMOTE

config = Config()
config.HistoryManager.enabled = False
shell = InteractiveShell.instance(config=config, colors="nocolor")
client = FakeClient()
waiting.client, waiting.open_clients = lambda: client, lambda: [client]
record = client.send()
client.fail(record, ValueError("bad header"), traceback=REMOTE)
shell.user_ns["task"] = result.AsyncResult._of(record, "load")
shell.run_cell("x = 1\\ntask.get()")
shell.run_cell("try: task.get()\\nexcept ValueError as error: raise KeyError(1) from error")
shell.run_line_magic("tb", "")
"""


def test_ipython_shows_the_callers_lines_and_the_remote_ones_but_none_of_ours():
    pytest.importorskip("IPython")

    ran = subprocess.run(
        [sys.executable, "-c", IN_IPYTHON],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )

    direct, _, chained = ran.stdout.partition("1 try: task.get()")
    assert "----> 2 task.get()" in direct, ran.stderr
    assert "client/result.py" not in direct
    assert direct.count("ValueError: bad header") == 2  # as itself, and in the remote text
    assert direct.count("Remote traceback of task load") == 1
    assert "Cell of another kernel, line 3, in load" in direct
    assert "KeyError: 1" in chained
    assert chained.count("Remote traceback of task load") == 2  # the cell, and %tb


def test_error_of_this_very_process_is_not_decorated_where_there_is_no_ipython(
    client, record, task
):
    client.fail(record, ValueError("x"), traceback=REMOTE)

    assert "_render_traceback_" not in vars(task.result)


def test_failure_that_cannot_be_loaded_says_so_and_shows_the_remote_traceback(client, record, task):
    event = Event(
        "task-1", 1, 5.0, "state", "FAILURE", b"\x80nonsense", traceback=REMOTE, final=True
    )
    record.note(event)

    with pytest.raises(Exception) as raised:  # noqa: PT011 (which one is the codec's business)
        task.get()

    assert "bad header" in raised.value.__notes__[-1]


def test_failure_that_holds_no_exception_is_raised_as_one(client, record, task):
    client.happen(record, state="FAILURE", value={"reason": "x"}, final=True)

    with pytest.raises(Exception, match="reason"):
        task.get()


# ------------------------------------------------------------------------------------ on_message


def test_on_message_tells_each_state_in_order_with_all_keys(client):
    record = client.send(
        args=(4, 6), kwargs={"z": 1}, queue="io", parent="boss", options={"group": "g1"}
    )
    task = AsyncResult._of(record)
    messages = []
    client.happen(record, "run", worker="w1@host")
    client.happen(record, state="PROGRESS", value={"progress": 50}, worker="w1@host")
    client.scenes.append(
        lambda: client.succeed(record, 11, worker="w1@host", children=("kid",), at=1_000.0)
    )

    assert task.get(on_message=messages.append) == 11

    fixed = {
        "task_id": record.id,
        "traceback": None,
        "worker": "w1@host",
        "retries": 0,
        "name": "demo.add",
        "args": (4, 6),
        "kwargs": {"z": 1},
        "queue": "io",
        "group_id": "g1",
        "parent_id": "boss",
    }
    assert messages == [
        {
            **fixed,
            "status": "PROGRESS",
            "result": {"progress": 50},
            "children": [],
            "date_done": None,
        },
        {
            **fixed,
            "status": "SUCCESS",
            "result": 11,
            "children": [(("kid", None), None)],
            "date_done": "1970-01-01T00:16:40+00:00",
        },
    ]


def test_on_message_is_replayed_for_a_task_that_is_over(client, record, task):
    client.answers["show"] = lambda id: None
    client.happen(record, state="PROGRESS", value=1)
    client.happen(
        record, state="RETRY", value=ConnectionError("refused"), traceback=REMOTE, retries=1
    )
    client.happen(record, "output", state="stdout", text="hello")
    client.fail(record, ValueError("x"), traceback=REMOTE, retries=1)
    messages = []

    task.get(on_message=messages.append, propagate=False)

    assert [message["status"] for message in messages] == ["PROGRESS", "RETRY", "FAILURE"]
    assert [type(message["result"]) for message in messages] == [int, ConnectionError, ValueError]
    assert [message["traceback"] for message in messages] == [None, REMOTE, REMOTE]
    assert [message["retries"] for message in messages] == [0, 1, 1]
    assert "group_id" not in messages[0]


def test_on_message_hears_nothing_of_other_tasks(client, record, task):
    other = client.send()
    messages = []
    client.scenes.append(lambda: client.succeed(other, 1))
    client.scenes.append(lambda: client.succeed(record, 2))

    with pytest.raises(exceptions.TimeoutError):
        task.get(timeout=0.01, on_message=messages.append)
    task.get(on_message=messages.append)

    assert [message["task_id"] for message in messages] == [record.id]


def test_on_message_hears_the_last_state_even_when_it_comes_with_the_end(client, record, task):
    def all_at_once():
        for step in range(100):
            client.happen(record, state="PROGRESS", value=step)
        client.succeed(record, "end")

    client.scenes.append(all_at_once)
    messages = []

    task.get(on_message=messages.append)

    assert [message["result"] for message in messages] == [*range(100), "end"]


def test_on_message_hears_soon_what_came_while_it_was_called(client, record, task):
    messages, told = [], []

    def hear(message):
        messages.append(message["status"])
        if message["status"] == "A":
            client.happen(record, state="B")

    def end():
        told.extend(messages)
        client.succeed(record)

    client.scenes += [lambda: client.happen(record, state="A"), end]

    task.get(on_message=hear)

    assert told == ["A", "B"]
    assert messages == ["A", "B", "SUCCESS"]


def test_on_message_tells_of_a_task_of_another_process_with_all_keys(client):
    client.elsewhere["theirs"] = [
        Event("theirs", 1, 6.0, "state", "SUCCESS", pickle.dumps(3), final=True, worker="w1@host")
    ]
    client.answers["show"] = lambda id: {
        "name": "demo.theirs",
        "queue": "default",
        "parent": "",
        "options": {},
        "body": pickle.dumps(((1,), {})),
        "buffers": [],
    }
    messages = []
    theirs = AsyncResult("theirs")

    assert theirs.get(on_message=messages.append, timeout=0) == 3

    assert messages[0]["name"] == theirs.name == "demo.theirs"
    assert (messages[0]["args"], theirs.args, theirs.kwargs, theirs.queue) == (
        (1,),
        (1,),
        {},
        "default",
    )


@pytest.mark.parametrize(("timeout", "asked"), [(None, 10.0), (3, 3.0), (0, 1.0)])
def test_on_message_waits_for_large_arguments_as_long_as_get(client, timeout, asked):
    record = client.send(frames=1, args=(b"large",))
    client.succeed(record, 3)
    heard, patience = [], []

    def ask(what, *, timeout, **args):
        patience.append(timeout)
        raise exceptions.TimeoutError("no answer")

    client.ask = ask

    assert AsyncResult._of(record).get(timeout=timeout, on_message=heard.append) == 3
    assert [(message["name"], message["queue"]) for message in heard] == [("demo.add", "default")]
    assert patience == [pytest.approx(asked, abs=0.5)]


def test_error_in_on_message_is_the_callers(client, record, task):
    client.succeed(record, 1)

    with pytest.raises(ZeroDivisionError):
        task.get(on_message=lambda body: 1 / 0)


def test_listener_hears_all_states_without_get(client, record, task):
    heard = Gathered()
    client.happen(record, state="PROGRESS", value=1)

    stop = task.listen(heard)
    client.happen(record, state="PROGRESS", value=2)
    heard.wait(2)
    stop()
    client.succeed(record, 3)
    callbacks.post(lambda: heard("after"))
    heard.wait()

    assert [message["result"] for message in heard[:2]] == [1, 2]
    assert heard[2:] == ["after"]


def test_listener_hears_all_in_order_also_what_comes_as_it_begins(
    client, record, task, monkeypatch
):
    listen, heard = Record.listen, Gathered()
    for step in range(3):
        client.happen(record, state="PROGRESS", value=step)

    def listen_amid_news(record, listener):
        listen(record, listener)
        client.happen(record, state="PROGRESS", value=3)

    monkeypatch.setattr(Record, "listen", listen_amid_news)
    task.listen(heard)
    heard.wait(4)

    assert [message["result"] for message in heard] == [0, 1, 2, 3]


def test_listener_that_stops_amid_messages_hears_no_more(client, record, task):
    heard, gate = Gathered(), threading.Event()
    for step in range(3):
        client.happen(record, state="PROGRESS", value=step)

    def hear(message):
        heard(message["result"])
        stop()

    callbacks.post(gate.wait)
    stop = task.listen(hear)
    gate.set()
    callbacks.post(lambda: heard("after"))

    assert heard.wait(2) == [0, "after"]


def test_listener_that_fails_hears_the_rest(client, record, task, caplog):
    heard = Gathered()
    for step in range(3):
        client.happen(record, state="PROGRESS", value=step)

    def hear(message):
        heard(message["result"])
        assert message["result"]

    task.listen(hear)

    assert heard.wait(3) == [0, 1, 2]
    assert "AssertionError" in caplog.text


# ------------------------------------------------------------------------------------------ then


def test_then_fires_though_nobody_waits(client, record, task):
    called = Gathered()

    assert task.then(called) is task
    client.succeed(record, 3)

    assert called.wait() == [task]


def test_then_fires_for_a_task_that_is_over_and_for_a_failure(client, record, task):
    client.fail(record, ValueError("x"))
    called = Gathered()

    task.on_ready.then(called)

    assert called.wait()[0].failed()
    assert task.on_ready.ready


def test_then_fires_though_another_was_interrupted(client, record, task, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    client.succeed(record, 1)
    first, second = Gathered(), Gathered()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            task.then(first)

    task.then(second)

    assert second.wait()[0] is task
    assert first == [task]


def test_then_may_wait_for_other_tasks(client, record, task):
    other = client.send()
    called = Gathered()
    task.then(lambda _: called(AsyncResult._of(other).get(timeout=SOON)))

    client.succeed(record, 1)
    client.succeed(other, 2)

    assert called.wait() == [2]


def test_error_in_a_callback_goes_to_on_error(client, record, task):
    client.succeed(record, 1)
    caught = Gathered()

    task.then(lambda _: 1 / 0, caught)

    assert isinstance(caught.wait()[0], ZeroDivisionError)


def test_error_in_a_callback_without_on_error_is_logged_and_others_are_called(
    client, record, task, caplog
):
    client.succeed(record, 1)
    called = Gathered()

    task.then(lambda _: 1 / 0).then(called)
    called.wait()

    assert "callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit])
def test_callback_that_raises_whatever_keeps_no_other_from_being_called(error, caplog):
    called = Gathered()

    def leave():
        raise error

    callbacks.post(leave)
    callbacks.post(lambda: called("after"))

    assert called.wait() == ["after"]
    assert error.__name__ in caplog.text


def test_callbacks_are_called_after_an_interrupt_kept_their_thread_from_starting(monkeypatch):
    called, posted = Gathered(), Callbacks()

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            posted.post(lambda: called("first"))
    posted.post(lambda: called("second"))

    assert called.wait(2) == ["first", "second"]


def test_weak_callback_goes_with_its_result(client, record):
    called = Gathered()
    AsyncResult._of(record).then(called, weak=True)
    gc.collect()

    client.succeed(record, 1)
    callbacks.post(lambda: called("after"))

    assert called.wait() == ["after"]


def test_callback_thread_goes_when_there_is_nothing_to_call():
    called = Gathered()

    callbacks.post(lambda: called(threading.current_thread()))
    thread = called.wait()[0]
    thread.join(SOON)

    assert not thread.is_alive()


# ----------------------------------------------------------------------------------------- await


async def _await(awaitable):
    return await awaitable


def test_result_can_be_awaited_while_the_loop_goes_on(client, record, task):
    async def main():
        waiting = asyncio.ensure_future(_await(task))
        await asyncio.sleep(0)
        threading.Thread(target=client.succeed, args=(record, 3)).start()
        return await asyncio.wait_for(waiting, SOON)

    assert asyncio.run(main()) == 3


def test_awaited_failure_is_raised(client, record, task):
    client.fail(record, ValueError("x"), traceback=REMOTE)

    with pytest.raises(ValueError, match="x") as raised:
        asyncio.run(_await(task))

    assert len(raised.value.__notes__) == 1


def test_giving_up_on_an_awaited_result_leaves_the_task_alone(client, record, task):
    async def main():
        with pytest.raises(builtins.TimeoutError):
            await asyncio.wait_for(task, 0.01)

    asyncio.run(main())
    client.succeed(record, 3)  # wakes a loop that is closed

    assert task.get() == 3


def test_awaiting_ends_when_the_cluster_is_gone(client, record, task, monkeypatch):
    monkeypatch.setattr(waiting, "BEAT", 0.02)
    client.gone = True

    with pytest.raises(exceptions.BrokerUnavailable):
        asyncio.run(_await(task))


def test_set_of_results_can_be_awaited(client):
    records = [client.send() for _ in range(3)]
    for value, record in enumerate(records):
        client.succeed(record, value)

    assert asyncio.run(_await(ResultSet(map(AsyncResult._of, records)))) == [0, 1, 2]


def test_awaited_set_raises_the_first_error_without_waiting_for_the_rest(client, records, members):
    client.fail(records[2], KeyError("third"))

    with pytest.raises(KeyError, match="third"):
        asyncio.run(_await(members))
    assert not members.ready()


# --------------------------------------------------------------------------------------- control


def test_revoke_tells_the_broker(client, task):
    task.revoke()
    task.revoke(terminate=True, signal="kill")
    task.revoke(terminate=True, signal=2)
    task.cancel()
    task.revoke(True, "SIGINT")

    assert client.told == [
        Revoke(("task-1",), False, "SIGTERM"),
        Revoke(("task-1",), True, "SIGKILL"),
        Revoke(("task-1",), True, "SIGINT"),
        Revoke(("task-1",), True, "SIGTERM"),
        Revoke(("task-1",), True, "SIGINT"),
    ]


def test_revoking_an_id_asks_for_nothing(client):
    AsyncResult("theirs").revoke()

    assert client._records == {}


def test_unknown_signal_is_refused_where_it_is_named(client, task):
    with pytest.raises(ValueError, match="no signal 'SIGNONSENSE'"):
        task.revoke(terminate=True, signal="SIGNONSENSE")

    assert client.told == []


def test_revoke_can_wait_until_the_task_is_over(client, record, task):
    client.scenes.append(
        lambda: client.end_by_broker(record, "REVOKED", "TaskRevokedError", "revoked")
    )

    task.revoke(wait=True)

    assert task.state == "REVOKED"


def test_revoke_waits_no_longer_than_it_may(client, task):
    with pytest.raises(exceptions.TimeoutError):
        task.revoke(wait=True, timeout=0.01)


def test_revoking_by_stamps_says_that_there_are_none(task):
    with pytest.raises(NotImplementedError, match="no stamps"):
        task.revoke_by_stamped_headers({"team": "a"})


def test_failed_task_is_run_again_and_is_pending_at_once(client, record, task):
    client.fail(record, ValueError("x"))
    tell = client.tell

    def redo(*messages):
        tell(*messages)
        if isinstance(messages[0], Redo):
            threading.Thread(
                target=client.happen, args=(record, "again"), kwargs={"text": "by hand"}
            ).start()

    client.tell = redo

    assert task.retry() is task
    assert (task.state, task.ready(), task.result) == ("PENDING", False, None)
    client.succeed(record, 3)
    assert task.get() == 3
    assert client.told == [("follow", "task-1"), Redo(("task-1",))]


def test_task_that_waits_for_its_retry_is_run_now(client, record, task):
    client.happen(record, state="RETRY", value=ValueError("x"))

    task.retry()

    assert client.told == [Hasten(("task-1",))]


@pytest.mark.parametrize("state", ["SUCCESS", "PROGRESS"])
def test_task_that_has_not_failed_is_not_run_again(client, record, task, state):
    client.happen(record, state=state, final=state == "SUCCESS")

    with pytest.raises(ValueError, match=f"is {state}, so it cannot be run again"):
        task.retry()


def test_retry_that_the_broker_does_not_confirm_is_an_error(client, record, task):
    client.fail(record, ValueError("x"))

    with pytest.raises(exceptions.TimeoutError, match=r"did not confirm within 0\.01 s"):
        task.retry(timeout=0.01)


def test_retry_of_what_was_forgotten_waits_for_nobody(client, record, task):
    client.fail(record, ValueError("x"))
    client.scenes.append(lambda: setattr(record, "known", False))

    with pytest.raises(ValueError, match="forgotten"):
        task.retry(timeout=None)


@pytest.mark.parametrize("timeout", [float("nan"), "3"])
def test_time_out_that_is_no_number_of_seconds_is_refused_before_anything_is_told(
    client, record, task, timeout
):
    client.fail(record, ValueError("x"))

    for call in (
        task.retry,
        functools.partial(task.revoke, wait=True),
        functools.partial(task.cancel, wait=True),
        functools.partial(ResultSet([task]).cancel, wait=True),
    ):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            call(timeout=timeout)
    assert client.told == []


def test_time_outs_of_retry_are_those_of_get(client, record, task):
    client.fail(record, ValueError("x"))

    with pytest.raises(exceptions.TimeoutError, match=r"did not confirm within 0\.01 s"):
        task.retry(timeout=timedelta(seconds=0.01))
    client.scenes.append(lambda: client.happen(record, "again"))
    task.retry(timeout=float("inf"))


def test_error_that_many_meet_is_raised_afresh_each_time(client, record, task):
    record.error = exceptions.BrokerUnavailable("deleted")
    record.error.__cause__ = KeyError("why")
    record.home = Path("elsewhere")
    client.drop([record.id])
    client.runtime = Path("here")
    met = []

    for call in (task.get, task.exists) * 3:
        with pytest.raises(exceptions.BrokerUnavailable, match="deleted") as told:
            call()
        assert told.value.__cause__ is record.error.__cause__
        met.append(told.value)

    assert len({id(error) for error in (record.error, *met)}) == 7
    assert record.error.__traceback__ is None


def test_forgotten_result_is_pending_and_so_are_its_parents(client):
    first, last = client.send("first"), client.send("last")
    client.succeed(first, 1)
    client.succeed(last, 2)
    task = AsyncResult._of(last, parent=AsyncResult._of(first))
    assert task.get() == 2

    task.forget()

    assert client.told == [Forget(("first",)), Forget(("last",))]
    assert (task.state, task.result, task.parent.state) == ("PENDING", None, "PENDING")


def test_open_task_is_not_forgotten(client, record, task):
    task.forget()
    client.succeed(record, 3)

    assert client.told == []
    assert task.get() == 3


# --------------------------------------------------------------------------- what else is known


def test_facts_of_a_task_that_was_sent_here(client, task):
    record = client.send(args=(1, 2), kwargs={"z": 3}, queue="io")
    task = AsyncResult._of(record)

    assert (task.name, task.args, task.kwargs, task.queue) == ("demo.add", (1, 2), {"z": 3}, "io")
    assert (task.worker, task.retries) == (None, 0)


def test_logs_are_what_was_printed_in_order(client, record, task):
    client.happen(record, "output", state="stdout", text="one\n")
    client.happen(record, "output", state="stderr", text="two\n")
    client.happen(record, "output", state="stdout", text="three\n")

    assert task.logs() == "one\ntwo\nthree\n"
    assert task.logs("stdout") == "one\nthree\n"
    with pytest.raises(ValueError, match="no stream 'out'"):
        task.logs("out")


def test_history_tells_attempts_and_states_with_their_times(client, record, task):
    client.happen(record, "run", worker="w1@host", pid=7)
    client.happen(record, state="RETRY", value=ConnectionError("refused"), traceback=REMOTE)
    client.happen(record, "run", worker="w2@host", pid=8)
    client.happen(record, "output", state="stdout", text="one\n")
    client.happen(record, "again", text="worker was killed by SIGKILL (9)")
    client.happen(record, "run", worker="w2@host", pid=9)
    client.succeed(record, list(range(1000)), worker="w2@host")

    story = task.history

    assert [(moment.attempt, moment.what) for moment in story] == [
        (1, "SUBMITTED"),
        (1, "RUNNING"),
        (1, "RETRY"),
        (2, "RUNNING"),
        (2, "AGAIN"),
        (3, "RUNNING"),
        (3, "SUCCESS"),
    ]
    assert story[2].detail == "ConnectionError: refused"
    assert story[4].detail == "worker was killed by SIGKILL (9)"
    assert len(story[-1].detail) == outcome.SHOWN
    assert all(moment.at.tzinfo is UTC for moment in story)
    assert [moment.at for moment in story] == sorted(moment.at for moment in story)


@pytest.mark.parametrize(
    ("meta", "share"),
    [
        ({"progress": 50}, 0.5),
        ({"progress": 250}, 1.0),
        ({"current": 3, "total": 4}, 0.75),
        ({"done": 3, "total": 4}, 0.75),
        ({"current": 0.1, "total": 100, "progress": 0.1}, 0.001),
        ({"current": 3}, None),
        ({"current": 3, "total": 0}, None),
        ({"progress": True}, None),
        ({"progress": "half"}, None),
        ("half", None),
        (None, None),
    ],
)
def test_progress_is_read_as_the_panel_reads_it(meta, share):
    assert outcome.fraction(meta) == share


def test_progress_is_that_of_the_present_attempt(client, record, task):
    assert task.progress is None
    client.happen(record, state="PROGRESS", value={"progress": 50})
    assert task.progress == 0.5

    client.happen(record, "again", text="lost")

    assert task.progress is None


def test_progress_of_a_failure_is_how_far_it_came(client, record, task):
    client.happen(record, state="PROGRESS", value={"progress": 50})
    client.fail(record, ValueError("x"))

    assert task.progress == 0.5


def test_widget_is_made_by_the_notebook_part(task, monkeypatch):
    monkeypatch.setattr("nbtasks.jupyter.panel.widget", lambda result: ("widget of", result))

    assert task.widget() == ("widget of", task)


# ------------------------------------------------------------------------------- the family tree


@pytest.fixture
def family(client):
    """A task with two children, the first of which has one of its own."""
    records = {name: client.send(name) for name in ("root", "a", "b", "leaf")}
    client.succeed(records["root"], 0, children=("a", "b"))
    client.succeed(records["a"], 1, children=("leaf",))
    client.succeed(records["b"], 2)
    client.succeed(records["leaf"], 3)
    return AsyncResult._of(records["root"])


def test_children_are_those_of_all_attempts_but_never_the_task_itself(client, record, task):
    assert task.children is None
    client.happen(record, state="RETRY", value=ValueError(), children=("a", "task-1"))
    client.succeed(record, 1, children=("a", "b"))

    assert task.children == ["a", "b"]


def test_task_without_children_has_an_empty_list_when_it_is_over(client, record, task):
    client.succeed(record, 1)

    assert task.children == []


def test_collect_walks_the_tree_breadth_first(family):
    assert [(str(node), value) for node, value in family.collect()] == [
        ("root", 0),
        ("a", 1),
        ("b", 2),
        ("leaf", 3),
    ]
    assert family.get_leaf() == 3


def test_collect_waits_for_each_task(client):
    root, child = client.send("root"), client.send("child")
    client.scenes.append(lambda: client.succeed(root, 1, children=("child",)))
    client.scenes.append(lambda: client.succeed(child, 2))

    assert [value for _, value in AsyncResult._of(root).collect()] == [1, 2]


def test_graph_maps_each_result_to_those_that_its_task_has_sent(family):
    assert family.graph == {"root": ["a", "b"], "a": ["leaf"], "b": [], "leaf": []}


def test_unfinished_tree_is_an_incomplete_stream(task):
    with pytest.raises(exceptions.IncompleteStream, match="not over yet"):
        list(task.iterdeps())
    assert list(task.iterdeps(intermediate=True)) == [(None, task)]


def test_tuple_of_ids_leads_back_to_the_result():
    first = AsyncResult("first")
    header = GroupResult("g", [AsyncResult("m1"), AsyncResult("m2")], parent=first)
    last = AsyncResult("last", parent=header)

    assert last.as_tuple() == (
        ("last", (("g", (("first", None), None)), [(("m1", None), None), (("m2", None), None)])),
        None,
    )
    again = result_from_tuple(last.as_tuple())
    assert (again, again.parent, again.parent.parent) == (last, header, first)
    assert last.as_list() == ["last", "g", "first"]
    assert result_from_tuple(["a", None]) == "a"
    assert result_from_tuple(last) is last


# --------------------------------------------------------------------------------------- the set


@pytest.fixture
def records(client):
    return [client.send(f"m{number}") for number in range(3)]


@pytest.fixture
def members(records):
    return ResultSet(AsyncResult._of(record) for record in records)


def test_set_gives_values_in_the_order_of_its_members(client, records, members):
    def end():
        for number in (2, 0, 1):
            client.succeed(records[number], number * 10)

    client.scenes.append(end)

    assert members.get(timeout=SOON) == [0, 10, 20]
    assert members.join() == members.join_native() == [0, 10, 20]


def test_set_raises_the_first_error_without_waiting_for_the_rest(client, records, members):
    client.scenes.append(lambda: client.fail(records[2], KeyError("third")))

    with pytest.raises(KeyError, match="third"):
        members.get(timeout=SOON)
    assert not members.ready()


def test_set_puts_errors_in_their_places_when_asked_not_to_raise(client, records, members):
    client.succeed(records[0], 0)
    client.fail(records[1], KeyError("second"))
    client.end_by_broker(records[2], "REVOKED", "TaskRevokedError", "expired")

    zero, second, third = members.get(propagate=False)

    assert zero == 0
    assert isinstance(second, KeyError)
    assert isinstance(third, exceptions.TaskRevokedError)


def test_set_calls_back_as_members_complete_and_gives_no_list(client, records, members):
    called = []
    client.scenes.append(lambda: client.succeed(records[1], "b"))
    client.scenes.append(lambda: client.succeed(records[0], "a"))
    client.scenes.append(lambda: client.succeed(records[2], "c"))

    assert members.get(callback=lambda *told: called.append(told)) is None
    assert called == [("m1", "b"), ("m0", "a"), ("m2", "c")]


def test_set_tells_the_messages_of_all_members_and_of_each_in_order(client, records, members):
    for record in records:
        client.happen(record, state="PROGRESS", value=1)
        client.succeed(record, 2)
    messages = []

    members.get(on_message=messages.append)

    for number in range(3):
        told = [body["result"] for body in messages if body["task_id"] == f"m{number}"]
        assert told == [1, 2]


def test_timeout_of_a_set_is_for_all_together_and_exact(client, records, members):
    client.succeed(records[0], 0)
    began = time.monotonic()

    with pytest.raises(exceptions.TimeoutError, match=r"2 of 3 tasks were not ready within 0\.2 s"):
        members.get(timeout=0.2)

    assert 0.2 <= time.monotonic() - began < 0.3


def test_waits_that_are_given_up_leave_nothing_behind(client, records, members):
    async def wait_briefly(awaitable):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaitable, 0.01)

    for _ in range(3):
        with pytest.raises(exceptions.TimeoutError):
            members.get(timeout=0.01)
        asyncio.run(wait_briefly(members))
        asyncio.run(wait_briefly(members[0]))

    assert [record.waiters for record in records] == [(), (), ()]


def test_on_interval_of_a_set_is_called(client, records, members, monkeypatch):
    monkeypatch.setattr(waiting, "BEAT", 0.02)
    called = []

    with pytest.raises(exceptions.TimeoutError):
        members.get(timeout=0.2, on_interval=lambda: called.append(1))

    assert 3 <= len(called) <= 11


def test_set_yields_members_as_they_complete(client, records, members):
    client.scenes.append(lambda: client.succeed(records[1], "b"))
    client.scenes.append(lambda: client.fail(records[0], ValueError("x")))
    client.scenes.append(lambda: client.succeed(records[2], "c"))

    found = [(task_id, body["status"]) for task_id, body in members.iter_native()]

    assert found == [("m1", "SUCCESS"), ("m0", "FAILURE"), ("m2", "SUCCESS")]


def test_states_of_a_set(client, records, members):
    assert members.waiting()
    assert not members.ready()
    assert not members.successful()
    assert not members.failed()

    client.succeed(records[0], 1)
    client.fail(records[1], ValueError("x"))
    assert (members.completed_count(), members.failed(), members.waiting()) == (1, True, True)
    with pytest.raises(ValueError, match="x"):
        members.maybe_throw()

    client.succeed(records[2], 1)
    assert members.ready()
    assert not members.successful()
    assert members.progress == pytest.approx(2 / 3)


def test_set_is_a_list_of_distinct_results():
    a, b = AsyncResult("a"), AsyncResult("b")
    results = ResultSet([a])

    results.add(b)
    results.add(AsyncResult("a"))
    results.update([b, AsyncResult("c")])
    assert (list(results), len(results), results[0]) == (["a", "b", "c"], 3, a)

    results.remove("a")
    results.discard("a")
    with pytest.raises(KeyError):
        results.remove(a)
    assert results == ResultSet([b, AsyncResult("c")])
    assert repr(results) == "<ResultSet: [b, c]>"

    results.clear()
    assert list(results) == []
    assert results.get() == []


def test_set_may_hold_sets_when_others_are_added():
    inner = ResultSet([AsyncResult("a")])
    results = ResultSet([inner])

    results.update([AsyncResult("b"), ResultSet([AsyncResult("a")])])

    assert list(results) == [inner, "b"]


def test_set_is_revoked_with_one_message(client, members):
    members.revoke(terminate=True, signal="SIGKILL")
    members.cancel()
    members.revoke(True)

    assert client.told == [
        Revoke(("m0", "m1", "m2"), True, "SIGKILL"),
        Revoke(("m0", "m1", "m2"), True, "SIGTERM"),
        Revoke(("m0", "m1", "m2"), True, "SIGTERM"),
    ]


def test_set_is_forgotten_with_one_message(client, records, members):
    for record in records[:2]:
        client.succeed(record, 1)

    members.forget()

    assert client.told == [Forget(("m0", "m1"))]
    assert [member.state for member in members] == ["PENDING"] * 3


def test_then_of_a_set_fires_when_all_members_are_over(client, records, members):
    called = Gathered()
    members.then(called)

    client.succeed(records[2], 1)
    client.succeed(records[0], 1)
    assert called == []
    client.fail(records[1], ValueError("x"))

    assert called.wait()[0] is members


def test_then_of_a_set_fires_when_very_many_members_were_over_already(client):
    records = [client.send() for _ in range(sys.getrecursionlimit())]
    for record in records:
        client.succeed(record, 1)
    called = Gathered()

    ResultSet(map(AsyncResult._of, records)).then(called)

    assert len(called.wait()) == 1


def test_set_of_what_is_over_by_nature_gives_its_values(client, records):
    ignored = AsyncResult._of(records[0], ignored=True)
    eager = EagerResult("e", 5, "SUCCESS")
    called = []

    assert ResultSet([eager, ignored]).get() == [5, None]
    ResultSet([eager, ignored]).get(callback=lambda *told: called.append(told))
    assert called == [("e", 5), ("m0", None)]


def test_set_tells_the_messages_of_members_that_have_run_here(client, records):
    client.succeed(records[0], 0)
    eager, sent = EagerResult("e", 5, "SUCCESS"), AsyncResult._of(records[0])
    heard = []

    ResultSet([sent, ResultSet([eager])]).get(on_message=heard.append)

    assert [body["task_id"] for body in heard] == ["e", "m0"]


def test_set_within_a_set_gives_a_list_within_the_list(client, records):
    for number, record in enumerate(records):
        client.succeed(record, number)
    one, two, three = map(AsyncResult._of, records)
    called = []

    nested = ResultSet([GroupResult("g", [one, two]), three])

    assert nested.get() == [[0, 1], 2]
    nested.get(callback=lambda *told: called.append(told))
    assert called == [("m2", 2), ("g", [0, 1])]


def test_error_within_a_nested_set_is_raised_at_once(client, records):
    client.fail(records[1], KeyError("deep"))
    one, two, three = map(AsyncResult._of, records)

    with pytest.raises(KeyError, match="deep"):
        ResultSet([GroupResult("g", [one, two]), three]).get(timeout=SOON)


def test_set_may_hold_the_same_task_twice(client, records):
    client.scenes.append(lambda: client.succeed(records[0], 7))
    twice = [AsyncResult._of(records[0]), AsyncResult._of(records[0])]

    assert ResultSet(twice).get(timeout=SOON) == [7, 7]


def test_large_set_is_gathered_quickly(client):
    records = [client.send() for _ in range(5_000)]
    results = ResultSet(map(AsyncResult._of, records))
    client.scenes.append(lambda: [client.succeed(record, 1) for record in records])
    began = time.monotonic()

    assert sum(results.get()) == 5_000
    assert time.monotonic() - began < SOON


# -------------------------------------------------------------------------------------- the group


def test_group_shows_its_id_and_members():
    group = GroupResult("g", [AsyncResult("a"), AsyncResult("b")])

    assert (repr(group), str(group), group.children) == ("<GroupResult: g [a, b]>", "g", ["a", "b"])
    assert group == "g"
    assert group == GroupResult("g", [AsyncResult("a"), AsyncResult("b")])
    assert group != GroupResult("g", [AsyncResult("a")])
    assert hash(group) == hash("g")


def test_group_is_true_when_it_has_an_id_or_members():
    assert GroupResult("g")
    assert GroupResult(None, [AsyncResult("a")])
    assert not GroupResult()


def test_group_pickles_to_its_ids():
    group = GroupResult("g", [AsyncResult("a")], parent=AsyncResult("p"))

    twin = pickle.loads(pickle.dumps(group))

    assert (twin, twin.parent) == (group, "p")


def test_saved_group_is_restored_until_it_is_deleted(client):
    kept = {}
    client.answers["put"] = lambda key, value: kept.__setitem__(key, value)
    client.answers["peek"] = lambda key: kept.get(key)
    client.answers["take"] = lambda key: kept.pop(key, None)
    group = GroupResult("g", [AsyncResult("a"), AsyncResult("b")], parent=AsyncResult("p"))

    group.save()

    assert GroupResult.restore("g") == GroupResult.restore("g") == group
    assert GroupResult.restore("g").parent == "p"
    group.delete()
    assert GroupResult.restore("g") is None


def test_group_may_have_a_uuid_for_an_id(client):
    kept = {}
    client.answers["put"] = lambda key, value: kept.__setitem__(key, value)
    client.answers["peek"] = lambda key: kept.get(key)
    own = uuid.uuid4()

    GroupResult(own, [AsyncResult("a")]).save()

    assert GroupResult.restore(own).id == str(own)


def test_group_without_an_id_cannot_be_saved(client):
    with pytest.raises(ValueError, match="without an id cannot be saved"):
        GroupResult(None, [AsyncResult("a")]).save()


def test_group_with_a_result_that_is_not_stored_cannot_be_saved(client):
    inner = ResultSet([EagerResult("1", 4, "SUCCESS")])
    with pytest.raises(ValueError, match=r"results of apply\(\) cannot be saved"):
        GroupResult("g", [AsyncResult("a"), inner]).save()


# ------------------------------------------------------------------------------------ eager runs


def test_eager_result_is_always_ready():
    eager = EagerResult("1", 4, "SUCCESS", name="demo.add")
    called = Gathered()

    assert eager.get(timeout=0, callback=called) == eager.result == 4
    assert called == [("1", 4)]
    assert eager.ready()
    assert eager.successful()
    assert (eager.name, eager.args, eager.children, eager.traceback) == ("demo.add", None, [], None)
    assert repr(eager) == "<EagerResult: 1>"
    assert eager.date_done.tzinfo is UTC
    assert asyncio.run(_await(eager)) == 4


def test_eager_failure_raises_the_very_exception_with_a_traceback_that_does_not_grow():
    def body():
        raise ValueError("x")

    try:
        body()
    except ValueError as error:
        held = error
    eager = EagerResult("1", held, "FAILURE", REMOTE)
    lengths = set()

    for _ in range(3):
        with pytest.raises(ValueError, match="x") as raised:
            eager.get()
        assert raised.value is held
        lengths.add(len(traceback.extract_tb(held.__traceback__)))

    assert len(lengths) == 1
    assert eager.get(propagate=False) is held
    assert (eager.failed(), eager.traceback) == (True, REMOTE)


def test_set_revokes_its_eager_members_too(client, record, task):
    eager, nested = EagerResult("1", 4, "SUCCESS"), EagerResult("2", 4, "SUCCESS")

    ResultSet([eager, task, ResultSet([nested])]).revoke()

    assert (eager.state, nested.state) == ("REVOKED", "REVOKED")
    assert client.told == [Revoke((task.id,), False, "SIGTERM")]


def test_revoked_eager_result_raises_that():
    eager = EagerResult("1", 4, "SUCCESS")

    eager.revoke()

    assert eager.state == "REVOKED"
    with pytest.raises(exceptions.TaskRevokedError):
        eager.get()


def test_eager_result_tells_its_one_message():
    eager = EagerResult("1", 4, "SUCCESS", name="demo.add")
    messages, listened, called = [], [], []

    eager.get(on_message=messages.append)
    eager.listen(listened.append)
    eager.then(called.append)

    assert messages == listened
    assert (messages[0]["status"], messages[0]["result"]) == ("SUCCESS", 4)
    assert called == [eager]


def test_eager_result_needs_no_cluster(monkeypatch):
    monkeypatch.setattr(waiting, "client", lambda: pytest.fail("asked for the cluster"))
    eager = EagerResult("1", 4, "SUCCESS")

    eager.forget()
    eager.get()

    assert (eager.exists(), eager.accepted, eager.logs(), eager.ignored) == (False, True, "", False)
    assert (eager.progress, eager.retries, eager.worker, eager.queue) == (1.0, None, None, None)
    assert len(eager.history) == 1
    assert ResultSet([eager]).get() == [4]
    for twin in (copy.copy(eager), pickle.loads(pickle.dumps(eager))):
        assert (twin.get(), twin.date_done) == (4, eager.date_done)
    with pytest.raises(ValueError, match="cannot be run again"):
        eager.retry()


def test_joining_inside_tasks_is_allowed_where_celery_has_the_words_for_it():
    from nbtasks import result

    assert result.allow_join_result is context.allow_join_result
    assert result.denied_join_result is context.denied_join_result


@pytest.mark.usefixtures("in_a_task")
def test_eager_result_may_be_had_inside_a_task():
    assert EagerResult("1", 4, "SUCCESS").get() == 4


# ----------------------------------------------------------------------------- what cannot be meant


@pytest.mark.parametrize("timeout", ["1", float("nan"), object()])
def test_timeout_that_is_none_is_refused(task, timeout):
    for waits in (task, ResultSet([task])):
        with pytest.raises((TypeError, ValueError), match="timeout="):
            waits.get(timeout=timeout)


def test_timeout_may_be_a_timedelta_or_without_end(client, record, task):
    with pytest.raises(exceptions.TimeoutError, match=r"within 0\.01 s"):
        task.get(timeout=timedelta(seconds=0.01))

    client.succeed(record, 4)

    assert task.get(timeout=float("inf")) == 4


def test_what_is_no_function_is_not_called_later(task):
    for waits in (task, ResultSet([task])):
        for name in ("on_message", "callback", "on_interval"):
            with pytest.raises(TypeError, match=f"{name}=5 cannot be called"):
                waits.get(**{name: 5})
        with pytest.raises(TypeError, match="callback=5 cannot be called"):
            waits.then(5)
    with pytest.raises(TypeError, match="listener=5 cannot be called"):
        task.listen(5)


def test_set_of_results_is_not_one_of_ids():
    with pytest.raises(TypeError, match=r"Give AsyncResult\('some-id'\)"):
        ResultSet(["some-id"])


def test_signal_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"no signal 5\.5"):
        waiting.signal_name(5.5)


def test_notes_that_are_none_do_not_hide_the_error(client, record, task):
    error = ValueError("it")
    error.__notes__ = 5
    client.fail(record, error, traceback="Traceback")

    with pytest.raises(ValueError, match="it"):
        task.get()
