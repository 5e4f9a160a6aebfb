"""The worker as a broker meets it: a process that is told what to run and says what came of it."""

from __future__ import annotations

import json
import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbtasks import exceptions
from nbtasks.client.task import Task
from nbtasks.core.messages import (
    Again,
    Bye,
    Done,
    Fetch,
    Handling,
    Hello,
    Joining,
    Lacking,
    Noted,
    Output,
    Prepared,
    Recall,
    Refused,
    Report,
    Returned,
    Run,
    Started,
    Stop,
)
from nbtasks.wire import cell
from nbtasks.wire.connection import EXIT_CONFIG, Settings, boot, write_settings
from tests.living import SOON, Acts
from tests.worker.conftest import FakeBroker, WorkerProcess, change, task

pytestmark = pytest.mark.processes

Start = Callable[..., WorkerProcess]


@task
def add(x: int, y: int) -> int:
    return x + y


@task
def touch_and_wait(path: str, until: str) -> str:
    import os
    import time

    open(path, "w").close()
    while not os.path.exists(until):
        time.sleep(0.002)
    return path


# ------------------------------------------------------------------------------------- running


def test_worker_introduces_itself_with_its_queues(broker: FakeBroker, start_worker: Start) -> None:
    worker = start_worker("fast", "slow")

    hello = broker.welcome()

    assert (hello.role, hello.name, hello.pid) == ("worker", "worker-test", worker.pid)
    assert hello.queues == ("fast", "slow")
    assert hello.held == ()
    assert hello.python.split(".")[:2] == [str(part) for part in sys.version_info[:2]]


def test_call_runs_and_its_value_comes_back(broker: FakeBroker, worker: WorkerProcess) -> None:
    ticket = broker.submit(add, 2, 3)

    done = broker.done()

    assert (done.ticket, done.state, broker.value(done)) == (ticket, "SUCCESS", 5)
    assert 0 < done.runtime < 1
    assert abs(done.at - time.time()) < 5


def test_two_thousand_calls_run_in_order(broker: FakeBroker, worker: WorkerProcess) -> None:
    calls = [broker.call(add, n, 1) for n in range(3)]
    calls = [change(calls[n % 3], id=f"no-{n}") for n in range(2000)]

    tickets = broker.run(*calls)
    ended = [broker.next(Done) for _ in tickets]

    assert [done.ticket for done in ended] == tickets
    assert [broker.value(done) for done in ended] == [n % 3 + 1 for n in range(2000)]


def test_definition_is_fetched_once(broker: FakeBroker, worker: WorkerProcess) -> None:
    fetched = []
    listen = broker.next
    digest = broker.know(add)
    define, buffers = broker._definitions.pop(digest)

    broker.run(change(broker_call(broker, add, 1, 1), definition=digest))
    fetched.append(listen(Fetch))
    broker.say(define, buffers=buffers)
    broker.done()
    broker.run(change(broker_call(broker, add, 1, 2), definition=digest))
    broker.done()

    assert [fetch.digest for fetch in fetched] == [digest]
    assert broker.heard(Fetch) == []


def acting(act: Callable[..., Any], *args: Any) -> Task:
    """Return a task that does something when it is loaded."""
    mark = Acts(act, *args)

    @task
    def acting() -> str:
        return f"ran with {mark}"

    return acting


def hand_over(broker: FakeBroker, task: Task) -> None:
    """Give the worker a function that it has not asked for."""
    define, buffers = broker._definitions[broker.know(task)]
    broker.say(define, buffers=buffers)


def test_function_that_comes_unasked_is_loaded_ahead_and_once(
    broker: FakeBroker, worker: WorkerProcess, tmp_path: Path
) -> None:
    ahead = acting(os.mkdir, str(tmp_path / "made"))

    hand_over(broker, ahead)
    digest = broker.next(Prepared).digest
    assert (tmp_path / "made").exists()
    broker.submit(ahead)  # a second time it could not be made

    assert broker.value(broker.done()) == "ran with None"
    assert broker.heard(Fetch) == []
    hand_over(broker, ahead)  # as a new broker does
    assert broker.next(Prepared).digest == digest == broker.know(ahead)


def test_function_is_loaded_ahead_though_calls_are_called_back_meanwhile(
    broker: FakeBroker, worker: WorkerProcess, tmp_path: Path
) -> None:
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    broker.submit(touch_and_wait, str(begun), str(gate))
    broker.appear(begun)
    broker.forget()

    hand_over(broker, add)
    broker.say(Recall())
    broker.next(Returned)
    gate.touch()

    assert broker.next(Prepared).digest == broker.know(add)


@pytest.mark.parametrize("act", [(int, "no number"), (sys.exit, 3)])
def test_function_that_cannot_be_loaded_ahead_says_so_when_it_is_called(
    broker: FakeBroker, worker: WorkerProcess, act: tuple[Any, ...]
) -> None:
    ahead = acting(*act)

    hand_over(broker, ahead)
    broker.next(Prepared)
    broker.submit(add, 1, 2)
    assert broker.value(broker.done()) == 3
    broker.submit(ahead)

    assert broker.done().state == "FAILURE"


def test_function_that_takes_long_to_load_ahead_is_left_for_its_call(
    broker: FakeBroker, start_worker: Start
) -> None:
    start_worker(change="import nbtasks.worker.run; nbtasks.worker.run.PREPARING = 0.05")
    broker.welcome()

    hand_over(broker, acting(time.sleep, 10 * SOON))
    broker.next(Prepared)
    broker.submit(add, 1, 2)

    assert broker.value(broker.done()) == 3


@task(bind=True)
def look_at_itself(self: Any) -> float:
    import time

    began = time.monotonic()
    self.request._channel.flush()
    return time.monotonic() - began


def test_task_that_looks_at_itself_waits_until_the_broker_has_heard_it_and_not_without_end(
    broker: FakeBroker, start_worker: Start
) -> None:
    start_worker(change="import nbtasks.worker.run; nbtasks.worker.run.HEARD_WAIT = 0.3")
    broker.welcome()

    broker.submit(look_at_itself)
    late = broker.next(Fetch)
    assert broker.value(broker.done()) >= 0.3
    broker.submit(look_at_itself)
    broker.next(Fetch)
    broker.say(Lacking((late.digest,)))  # says nothing of what was told since
    assert broker.value(broker.done()) >= 0.3
    broker.submit(add, 1, 2)

    assert broker.value(broker.done()) == 3


@task(bind=True)
def leave_a_thread_that_joins(self: Any, begun: str, gate: str) -> None:
    import os
    import threading
    import time

    def join() -> None:
        while not os.path.exists(gate):
            time.sleep(0.002)
        channel.join(object(), over=False)
        open(begun, "w").close()

    channel = self.request._channel
    threading.Thread(target=join, daemon=True).start()


def test_thread_that_a_run_has_left_does_not_speak_for_the_worker(
    broker: FakeBroker, worker: WorkerProcess, tmp_path: Path
) -> None:
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    broker.submit(leave_a_thread_that_joins, str(begun), str(gate))
    broker.done()

    gate.touch()
    broker.appear(begun)
    broker.submit(add, 1, 2)

    assert broker.value(broker.done()) == 3
    assert broker.heard(Joining) == []


class JoiningTwice(Task):
    def on_success(self, *args: Any) -> None:
        self.request._channel.join("the handler", over=False)


@task(base=JoiningTwice, bind=True)
def join_and_leave(self: Any) -> None:
    self.request._channel.join("the body", over=False)


def test_handler_that_waits_says_so_though_something_of_the_body_still_waits(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    ticket = broker.submit(join_and_leave)

    first = broker.next(Joining)
    broker.done()
    second = broker.next(Joining)

    assert first == second == Joining(ticket)


def broker_call(broker: FakeBroker, task: Any, *args: Any) -> Any:
    """Make a call whose definition the broker then forgets, so that the test gives it out."""
    call = broker.call(task, *args)
    broker._definitions.pop(call.definition, None)
    return call


def test_large_values_travel_as_frames_of_their_own(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def much(n: int) -> bytes:
        return b"x" * n

    broker.submit(much, 1_000_000)

    done = broker.done()

    assert (done.body, done.frames) == (b"", 1)
    assert broker.value(done) == b"x" * 1_000_000


def test_large_arguments_arrive_and_may_be_changed(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    numpy = pytest.importorskip("numpy")
    from nbtasks.wire import payloads

    @task
    def fill(array: Any) -> float:
        array[:] = 2
        return float(array.sum())

    body, buffers = payloads.dumps_arguments((numpy.ones(100_000),), {})
    call = change(broker.call(fill, None), body=body, frames=len(buffers))
    broker.say(Run(1, call), buffers=buffers)

    assert broker.value(broker.done()) == 200_000


def test_request_says_what_the_call_says(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task(bind=True, soft_time_limit=50)
    def ask(self: Any, word: str) -> dict[str, Any]:
        names = (
            "id root_id parent_id args retries hostname eta expires delivery_info timelimit "
            "headers called_directly is_eager origin"
        )
        return {name: getattr(self.request, name) for name in names.split()}

    later = time.time() + 1000
    call = broker.call(ask, "w")
    call = change(
        call, retries=2, root="r", parent="p", eta=1.5, expires=later, queue="q", priority=7,
        options={"time_limit": 60.0, "headers": broker_headers({"who": "me"}), "origin": "1@h"},
    )  # fmt: skip
    broker.run(call, redelivered=True)

    assert broker.value(broker.done()) == {
        "id": call.id,
        "root_id": "r",
        "parent_id": "p",
        "args": ("w",),
        "retries": 2,
        "hostname": "worker-test",
        "eta": "1970-01-01T00:00:01.500000+00:00",
        "expires": iso(later),
        "delivery_info": {
            "exchange": "",
            "routing_key": "q",
            "priority": 7,
            "redelivered": True,
        },
        "timelimit": [60.0, 50],
        "headers": {"who": "me"},
        "called_directly": False,
        "is_eager": False,
        "origin": "1@h",
    }


def iso(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat()


def broker_headers(headers: dict[str, Any]) -> bytes:
    from nbtasks.wire import payloads

    return payloads.dumps(headers).body


def test_expired_call_is_revoked_without_running(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    mark = runtime / "ran"
    call = broker.call(touch_and_wait, str(mark), str(runtime))

    broker.run(change(call, expires=time.time() - 1))
    done = broker.done()

    assert done.state == "REVOKED"
    error = broker.value(done)
    assert isinstance(error, exceptions.TaskRevokedError)
    assert error.args == ("expired",)
    assert not mark.exists()


def test_task_known_by_name_only_is_imported(broker: FakeBroker, start_worker: Start) -> None:
    (broker_module := Path(os.environ["JUPYTER_DATA_DIR"])).mkdir(parents=True, exist_ok=True)
    folder = broker_module / "lib"
    folder.mkdir(exist_ok=True)
    (folder / "by_name_tasks.py").write_text(
        "from nbtasks.client.task import task\n@task\ndef double(x):\n    return 2 * x\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        start_worker()
    broker.welcome()

    call = broker.call(add, 21, 0)
    two = change(call, definition=b"", name="by_name_tasks.double", body=arguments(21))
    broker.run(two, change(two, id="other", name="by_name_tasks.half"))

    assert broker.value(broker.done()) == 42
    error = broker.value(broker.done())
    assert isinstance(error, exceptions.NotRegistered)
    assert "by_name_tasks.half" in str(error)


def arguments(*args: Any) -> bytes:
    from nbtasks.wire import payloads

    return payloads.dumps_arguments(args, {}).body


# ------------------------------------------------------------------------------------- failing


def test_traceback_that_nobody_can_read_is_told_by_its_ends(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def fail(n: int) -> None:
        raise ValueError(f"begins{n * 'x'}ends")

    broker.submit(fail, 10_000_000)

    done = broker.done()
    assert len(broker.value(done).args[0]) > 10_000_000
    assert len(done.traceback) < 300_000
    assert 'raise ValueError(f"begins' in done.traceback
    assert "characters are left out here" in done.traceback
    assert done.traceback.rstrip().endswith("ends")


def test_exception_comes_back_as_itself_with_its_traceback(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def fail(n: int) -> None:
        raise ValueError("no", n)

    broker.submit(fail, 3)

    done = broker.done()
    error = broker.value(done)
    assert done.state == "FAILURE"
    assert (type(error), error.args) == (ValueError, ("no", 3))
    assert 'raise ValueError("no", n)' in done.traceback
    assert "nbtasks/worker" not in done.traceback


def test_value_that_cannot_be_pickled_is_a_failure_that_says_so(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def lock() -> Any:
        import threading

        return threading.Lock()

    broker.submit(lock)

    done = broker.done()
    assert done.state == "FAILURE"
    assert isinstance(broker.value(done), exceptions.EncodeError)
    assert "lock" in str(broker.value(done))


def test_value_of_an_ignored_result_is_not_even_pickled(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def lock() -> Any:
        import threading

        return threading.Lock()

    broker.run(change(broker.call(lock), options={"ignore_result": True}))

    done = broker.done()
    assert (done.state, done.body) == ("SUCCESS", b"")


def test_function_that_the_broker_does_not_have_is_not_registered(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    broker.run(change(broker.call(add, 1, 2), definition=b"0123456789abcdef"))
    broker.next(Fetch)
    broker.say(Lacking((b"0123456789abcdef",)))

    done = broker.done()
    assert done.state == "FAILURE"
    assert isinstance(broker.value(done), exceptions.NotRegistered)


def test_call_has_not_begun_while_its_function_is_on_the_way(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    (before,) = broker.run(broker.call(add, 1, 2))
    broker.done()
    broker.run(change(broker.call(add, 1, 2), definition=b"0123456789abcdef"))
    broker.next(Fetch)

    worker.signal(signal.SIGKILL)
    worker.wait()

    reading = cell.read(runtime / "cells" / worker.name)
    assert reading is not None
    assert (reading.started, reading.finished) == (before, before)


def test_failed_import_names_the_module_and_the_interpreter(
    broker: FakeBroker, worker: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    absent = types.ModuleType("absent_module_of_test")
    absent.value = 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, absent.__name__, absent)
    absent.__spec__ = types.SimpleNamespace(name=absent.__name__)  # type: ignore[assignment]

    class Imported(Exception):
        pass

    Imported.__module__ = absent.__name__
    absent.Imported = Imported  # type: ignore[attr-defined]
    Imported.__qualname__ = "Imported"

    @task
    def use() -> Any:
        return Imported

    broker.submit(use)
    done = broker.done()

    assert done.state == "FAILURE"
    assert isinstance(broker.value(done), ImportError)
    assert "absent_module_of_test" in str(broker.value(done))
    assert sys.executable in str(broker.value(done))


def test_arguments_that_cannot_be_loaded_are_a_failure(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    call = broker.call(add, 1, 2)

    broker.run(change(call, body=b"\x80nonsense"), call)

    assert isinstance(broker.value(broker.done()), exceptions.DecodeError)
    assert broker.value(broker.done()) == 3


def test_system_exit_ends_the_process_with_that_code(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    @task
    def leave() -> None:
        print("last words")
        raise SystemExit(7)

    ticket = broker.submit(leave)

    assert broker.next(Output).text == "last words\n"
    assert worker.wait() == 7
    assert broker.heard(Done) == broker.heard(Bye) == []
    reading = cell.read(runtime / "cells" / "worker-test")
    assert reading is not None
    assert (reading.started, reading.finished) == (ticket, 0)


# ------------------------------------------------------------------------ retries and handlers


def test_retry_is_the_call_as_it_shall_run_next(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task(bind=True)
    def again(self: Any, n: int, word: str = "") -> None:
        raise self.retry(args=(n + 1,), kwargs={"word": "b"}, countdown=9, exc=KeyError("k"))

    call = change(broker.call(again, 1), retries=1, queue="q", priority=3)
    before = boot()
    (ticket,) = broker.run(call)

    message = broker.next(Again)
    broker.say(Noted(ticket))
    following = message.call
    assert (message.ticket, message.over) == (ticket, True)
    assert (following.id, following.retries, following.queue) == (call.id, 2, "q")
    assert following.priority == 3
    assert following.due is not None
    assert following.eta is not None
    assert 8.9 < following.due - before < 15
    assert abs(following.eta - time.time() - 9) < 5
    assert broker.value(following) == ((2,), {"word": "b"})
    assert "KeyError" in message.traceback


def test_retry_with_the_same_arguments_sends_the_same_bytes(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task(autoretry_for=(OSError,), default_retry_delay=5)
    def again(items: list[int]) -> None:
        items.append(1)
        raise OSError("down")

    call = broker.call(again, [0])
    broker.run(call)

    assert broker.next(Again).call.body == call.body


def test_retry_beside_the_run_lets_it_go_on(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task(bind=True)
    def both(self: Any) -> str:
        self.retry(throw=False, countdown=1)
        return "went on"

    (ticket,) = broker.run(call := broker.call(both))

    beside = broker.next(Again)
    done = broker.done()
    assert (beside.ticket, beside.over) == (ticket, False)
    assert beside.call.id != call.id
    assert (beside.call.parent, beside.call.root) == (call.id, call.id)
    assert broker.value(done) == "went on"
    assert beside.call.id in done.children


def test_handlers_run_only_when_the_outcome_is_saved(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    class Chatty(Task):
        def on_success(self, *facts: Any) -> None:
            print("saved", facts[0])

    Chatty.__module__ = "__main__"
    call = broker.call(task(lambda: 5, base=Chatty, name="chatty"))
    (ticket,) = broker.run(call)
    broker.next(Done)
    before = broker.heard(Output)

    broker.say(Noted(ticket))

    assert before == []
    output = broker.next(Output)
    assert (output.id, output.text) == (call.id, "saved 5\n")


def test_broker_and_cell_know_of_handlers_while_they_run(
    runtime: Path, start_worker: Start
) -> None:
    class Patient(Task):
        def on_success(self, *facts: Any) -> None:
            import time
            from pathlib import Path

            (Path(facts[0]) / "a").touch()
            while not (Path(facts[0]) / "b").exists():
                time.sleep(0.002)

    Patient.__module__ = "__main__"
    patient = task(lambda path: path, base=Patient, name="patient")
    with FakeBroker(runtime) as first:
        start_worker()
        first.welcome()
        call = first.call(patient, str(runtime))
        (ticket,) = first.run(call)
        told = first.next(Handling)
        first.done()
        first.appear(runtime / "a")

    with FakeBroker(runtime, b"broker-2") as second:
        second.welcome()
        again = second.next(Handling)
        reading = cell.read(runtime / "cells" / "worker-test")
        (runtime / "b").touch()
        over = second.next(Handling)

    assert told == again == Handling(ticket, call.id)
    assert reading is not None
    assert reading.running == ticket
    assert over == Handling(ticket, call.id, over=True)
    reading = cell.read(runtime / "cells" / "worker-test")
    assert reading is not None
    assert reading.running == 0


def test_handlers_of_a_killed_run_that_cannot_be_loaded_are_over(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    call = change(broker.call(add, 1, 2), body=b"nonsense")
    verdict = json.dumps(["TimeLimitExceeded", [1.0]])

    broker.say(Run(7, call, verdict=verdict))

    assert broker.next(Handling) == Handling(7, call.id, over=True)


# ------------------------------------------------------------------ what is told during a run


def test_started_is_told_of_a_long_call_only(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    broker.submit(add, 1, 2)
    broker.done()  # loading the function may have taken long enough
    broker.forget()
    broker.submit(add, 1, 2)
    broker.done()
    short = broker.heard(Started)

    began = time.time()
    ticket = broker.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    started = broker.next(Started)
    (runtime / "b").touch()

    assert short == []
    assert started.ticket == ticket
    assert began - 1 < started.at < time.time()
    assert broker.done().ticket == ticket


def test_started_of_a_call_with_a_hard_limit_is_told_before_its_body(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def hold(seconds: float) -> None:
        """Never let go of the interpreter."""
        import ctypes

        ctypes.PyDLL(None).usleep(int(seconds * 1e6))

    ticket = broker.run(change(broker.call(hold, 1.5), options={"time_limit": 9.0}))[0]
    sent = time.monotonic()

    started = broker.next(Started)

    assert started.ticket == ticket
    assert time.monotonic() - sent < 1.4
    broker.done()


def test_started_is_told_when_the_task_wants_to_be_tracked(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    call = broker.call(add, 1, 2)
    broker._definitions[call.definition] = (
        tracked(broker._definitions[call.definition][0]),
        broker._definitions[call.definition][1],
    )

    (ticket,) = broker.run(call)

    assert broker.next(Started).ticket == ticket
    broker.done()


def tracked(define: Any) -> Any:
    from nbtasks.core.messages import Define, Policy

    return Define(
        define.digest, define.name, Policy(track_started=True), define.body, define.frames
    )


def test_update_state_and_progress_are_reported_in_order(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task(bind=True)
    def steps(self: Any) -> None:
        from nbtasks.context import progress

        self.update_state(state="FIRST", meta={"a": 1})
        for n in range(1, 4):
            progress(n, 3)

    ticket = broker.submit(steps)
    broker.done()

    reports = broker.heard(Report)
    assert {report.ticket for report in reports} == {ticket}
    assert [report.state for report in reports] == ["FIRST"] + ["PROGRESS"] * 3
    assert broker.value(reports[0]) == {"a": 1}
    assert [broker.value(report)["current"] for report in reports[1:]] == [1, 2, 3]


def test_what_a_task_prints_and_logs_is_told_before_its_end(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def talk() -> None:
        import logging
        import sys

        print("out")
        print("err", file=sys.stderr)
        logging.getLogger("mine").info("said %s", "this")
        sys.stdout.buffer.write(b"bytes\n")

    (_,) = broker.run(call := broker.call(talk))
    broker.done()

    outputs = broker.heard(Output)
    assert {output.id for output in outputs} == {call.id}
    assert [(output.stream, output.text) for output in outputs] == [
        ("stdout", "out\n"),
        ("stderr", "err\n"),
        ("log", "INFO mine: said this\n"),
        ("stdout", "bytes\n"),
    ]


def test_output_is_told_while_the_task_runs(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    @task
    def talk(until: str) -> None:
        import os
        import time

        print("hello")
        while not os.path.exists(until):
            time.sleep(0.002)

    broker.submit(talk, str(runtime / "b"))

    assert broker.next(Output).text == "hello\n"
    (runtime / "b").touch()
    broker.done()


def test_progress_bar_of_tqdm_is_told(broker: FakeBroker, worker: WorkerProcess) -> None:
    pytest.importorskip("tqdm")

    @task
    def bar() -> None:
        from tqdm import tqdm

        for _ in tqdm(range(10), mininterval=0):
            pass

    broker.submit(bar)
    assert broker.done().state == "SUCCESS"

    text = "".join(output.text for output in broker.heard(Output))
    assert "100%" in text
    assert "10/10" in text


def test_output_outside_of_tasks_goes_to_the_log(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    @task
    def later(path: str) -> None:
        import threading
        import time

        def speak() -> None:
            time.sleep(0.1)
            print("afterwards")
            open(path, "w").close()

        threading.Thread(target=speak).start()

    broker.submit(later, str(runtime / "spoken"))
    broker.done()
    broker.appear(runtime / "spoken")

    assert broker.heard(Output) == []
    assert "afterwards" in worker.log.read_text()


def test_input_in_a_task_says_that_nobody_can_answer(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def ask() -> str:
        return input("name? ")

    broker.submit(ask)

    error = broker.value(broker.done())
    assert isinstance(error, EOFError)
    assert "give it the answer as an argument" in str(error)


def test_input_reads_what_a_task_has_put_there(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task
    def grade() -> str:
        import io
        import sys

        sys.stdin = io.StringIO("42\n")
        return input("? ")

    broker.submit(grade)

    assert broker.value(broker.done()) == "42"


def test_what_reads_standard_input_finds_its_end(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task
    def read() -> str:
        import sys

        return sys.stdin.read()

    broker.submit(read)

    assert broker.value(broker.done()) == ""


@pytest.mark.parametrize("default", ["fork", "spawn", "forkserver"])
def test_processes_that_a_task_forks_find_its_functions_in_main(
    broker: FakeBroker, worker: WorkerProcess, default: str
) -> None:
    space: dict[str, Any] = {"__name__": "__main__"}  # a notebook's
    code = """
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    class Point:
        def __init__(self, x):
            self.x = x

    def square(x):
        return Point(x * x)

    def squares(default):
        multiprocessing.set_start_method(default)
        fork = multiprocessing.get_context("fork")
        with fork.Pool(1) as pool:
            found = pool.map(square, range(3))
        with ProcessPoolExecutor(1, fork) as pool:
            found += pool.map(square, range(3))
        return [point.x for point in found if isinstance(point, Point)]

    def other():
        import __main__

        return hasattr(__main__, "square")
    """
    exec(textwrap.dedent(code), space)

    broker.submit(task(space["squares"]), default)
    found = broker.value(broker.done())
    broker.submit(task(space["other"]))

    assert found == [0, 1, 4, 0, 1, 4]
    assert broker.value(broker.done()) is False


def test_a_process_that_a_task_forks_may_be_ended_at_once(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    """As a pool does with those that it has no work for."""

    @task
    def burst() -> list[int]:
        import os
        import signal
        import time

        ends = []
        for _ in range(50):
            if (pid := os.fork()) == 0:
                time.sleep(10)
                os._exit(0)
            os.kill(pid, signal.SIGTERM)
            ends.append(os.WTERMSIG(os.waitpid(pid, 0)[1]))
        return ends

    broker.submit(burst)

    assert broker.value(broker.done()) == [signal.SIGTERM] * 50


# -------------------------------------------------------------------------------------- limits


def test_soft_limit_is_raised_in_the_body(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task
    def slow() -> str:
        import time

        from nbtasks.exceptions import SoftTimeLimitExceeded

        try:
            time.sleep(30)
        except SoftTimeLimitExceeded:
            return "cleaned up"
        return "too late"

    broker.run(change(broker.call(slow), options={"soft_time_limit": 0.05}))

    assert broker.value(broker.done()) == "cleaned up"


def test_soft_limit_ends_a_coroutine_where_it_waits(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task(soft_time_limit=0.05)
    async def slow() -> None:
        import asyncio

        await asyncio.sleep(30)

    broker.submit(slow)

    assert isinstance(broker.value(broker.done()), exceptions.SoftTimeLimitExceeded)


@pytest.mark.parametrize("way", ["ignore", "faulthandler", "block"])
def test_soft_limit_holds_after_a_task_that_took_its_signal(
    broker: FakeBroker, worker: WorkerProcess, way: str
) -> None:
    @task
    def take(way: str) -> None:
        import faulthandler
        import signal

        if way == "ignore":
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        elif way == "block":
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        else:
            faulthandler.register(signal.SIGUSR1)

    @task(soft_time_limit=0.05)
    def slow() -> None:
        import time

        time.sleep(30)

    broker.submit(take, way)
    broker.done()
    broker.submit(slow)

    assert isinstance(broker.value(broker.done()), exceptions.SoftTimeLimitExceeded)


def test_soft_limit_never_hits_the_next_task(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task
    def spin(seconds: float) -> str:
        import time

        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return "whole"

    limit = 0.02
    limited = broker.call(spin, limit)
    free = broker.call(spin, 0.005)
    broker.run(
        *(
            change(limited, id=f"l-{n}", options={"soft_time_limit": limit})
            if n % 2
            else change(free, id=f"f-{n}")
            for n in range(40)
        )
    )

    for n in range(40):
        done = broker.done()
        value = broker.value(done)
        assert value == "whole" or (n % 2 and isinstance(value, exceptions.SoftTimeLimitExceeded))


# -------------------------------------------------------------------------- recall, reconnect


def test_recall_gives_back_what_has_not_begun(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    call = broker.call(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    first, second, third = broker.run(call, broker.call(add, 1, 1), broker.call(add, 2, 2))
    broker.appear(runtime / "a")

    broker.say(Recall((first, third)))
    one = broker.next(Returned)
    broker.say(Recall())
    rest = broker.next(Returned)
    (runtime / "b").touch()

    assert one.tickets == (third,)
    assert rest.tickets == (second,)
    assert broker.done().ticket == first
    ticket = broker.submit(add, 3, 3)
    assert broker.done().ticket == ticket


def test_recall_of_the_running_call_lets_it_ask_whether_to_stop(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    @task
    def patient(path: str) -> str:
        import time

        from nbtasks.context import cancelled

        open(path, "w").close()
        while not cancelled():
            time.sleep(0.002)
        return "stopped early"

    ticket = broker.submit(patient, str(runtime / "a"))
    broker.appear(runtime / "a")
    broker.say(Recall((ticket,)))

    assert broker.value(broker.done()) == "stopped early"


def test_unconfirmed_outcomes_are_told_to_the_next_broker(
    runtime: Path, start_worker: Start
) -> None:
    with FakeBroker(runtime) as first:
        start_worker()
        first.welcome()
        one, two, three = first.run(*(first.call(add, n, n) for n in range(3)))
        first.next(Done)
        first.say(Noted(one))
        first.next(Done)
        first.next(Done)
        last = first.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
        waiting = first.submit(add, 5, 5)
        first.appear(runtime / "a")

    with FakeBroker(runtime, b"broker-2") as second:
        hello = second.welcome()
        told = [second.next(Done), second.next(Done)]
        (runtime / "b").touch()
        told += [second.next(Done), second.next(Done)]

    held = [(held.ticket, held.started) for held in hello.held]
    assert held == [(two, True), (three, True), (last, True), (waiting, False)]
    assert [done.ticket for done in told] == [two, three, last, waiting]
    assert second.value(told[3]) == 10


def test_outcomes_wait_while_there_is_no_broker(runtime: Path, start_worker: Start) -> None:
    with FakeBroker(runtime) as first:
        start_worker()
        first.welcome()
        ticket = first.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
        first.appear(runtime / "a")
    (runtime / "b").touch()
    end = time.monotonic() + 10
    while (reading := cell.read(runtime / "cells" / "worker-test")) is None or (
        reading.finished != ticket
    ):
        assert time.monotonic() < end
        time.sleep(0.002)

    with FakeBroker(runtime, b"broker-2") as second:
        second.welcome()

        assert second.next(Done).ticket == ticket


def test_worker_that_is_unknown_to_its_broker_says_hello_again(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    broker.say(Refused("hello"))

    assert broker.next(Hello).name == "worker-test"


def test_refused_worker_ends_and_says_why(broker: FakeBroker, start_worker: Start) -> None:
    worker = start_worker()
    broker.next(Hello)

    broker.say(Refused("unlike Python"))

    assert worker.wait() == EXIT_CONFIG
    assert "unlike Python" in worker.log.read_text()


# ------------------------------------------------------------------------------------- leaving


def test_worker_that_is_told_to_stop_finishes_and_gives_back_the_rest(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    call = broker.call(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    first, second = broker.run(call, broker.call(add, 1, 1))
    broker.appear(runtime / "a")

    broker.say(Stop())
    returned = broker.next(Returned)
    (runtime / "b").touch()
    done = broker.next(Done)
    early = broker.heard(Bye)
    broker.say(Noted(first))

    assert returned.tickets == (second,)
    assert done.ticket == first
    assert early == []
    assert broker.next(Bye) == Bye()
    assert worker.wait() == 0


def test_worker_retires_after_its_number_of_tasks(
    broker: FakeBroker, start_worker: Start, runtime: Path
) -> None:
    write_settings(runtime, Settings(data=str(runtime), workers=1, max_tasks_per_worker=2))
    worker = start_worker()
    broker.welcome()
    one, two, three = broker.run(*(broker.call(add, n, n) for n in range(3)))

    assert [broker.done().ticket, broker.done().ticket] == [one, two]
    assert broker.next(Returned).tickets == (three,)
    broker.next(Bye)
    assert worker.wait() == 0


def test_worker_that_has_grown_too_big_retires(
    broker: FakeBroker, start_worker: Start, runtime: Path
) -> None:
    write_settings(runtime, Settings(data=str(runtime), workers=1, memory_limit=1))
    worker = start_worker()
    broker.welcome()

    broker.submit(add, 1, 1)
    broker.done()

    broker.next(Bye)
    assert worker.wait() == 0


def test_idle_worker_obeys_sigterm_in_good_order(broker: FakeBroker, worker: WorkerProcess) -> None:
    broker.submit(add, 1, 1)
    broker.done()

    worker.signal(signal.SIGTERM)

    broker.next(Bye)
    assert worker.wait() == 0


def test_sigterm_ends_a_busy_worker_at_once(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    broker.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    broker.appear(runtime / "a")

    worker.signal(signal.SIGTERM)

    assert worker.wait(2) == 128 + signal.SIGTERM
    assert broker.heard(Bye) == []


def test_sigint_does_nothing(broker: FakeBroker, worker: WorkerProcess, runtime: Path) -> None:
    ticket = broker.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    broker.appear(runtime / "a")

    worker.signal(signal.SIGINT)
    (runtime / "b").touch()

    assert (broker.done().ticket, broker.submit(add, 1, 1)) == (ticket, ticket + 1)
    assert broker.done().state == "SUCCESS"


def test_worker_goes_when_its_supervisor_is_gone(
    broker: FakeBroker, worker: WorkerProcess, runtime: Path
) -> None:
    broker.submit(touch_and_wait, str(runtime / "a"), str(runtime / "b"))
    broker.appear(runtime / "a")

    worker.cut_lifeline()

    assert worker.wait(2) == -signal.SIGKILL


# ------------------------------------------------------------------------- what tasks may start


def test_process_that_a_task_forks_ends_by_sigterm_and_prints_to_the_log(
    broker: FakeBroker, worker: WorkerProcess
) -> None:
    @task
    def fork() -> int:
        import multiprocessing
        import warnings

        def child() -> None:
            import time

            print("from the child")
            ready.set()
            time.sleep(60)

        warnings.simplefilter("ignore")  # later Pythons warn of threads
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        process = context.Process(target=child)
        process.start()
        ready.wait()
        process.terminate()
        process.join(10)
        return process.exitcode

    broker.submit(fork)

    assert broker.value(broker.done()) == -signal.SIGTERM
    assert broker.heard(Output) == []
    assert "from the child" in worker.log.read_text()


def test_main_module_is_a_bare_one(broker: FakeBroker, worker: WorkerProcess) -> None:
    @task
    def look() -> list[str]:
        import sys

        return sorted(name for name in vars(sys.modules["__main__"]) if not name.startswith("_"))

    broker.submit(look)

    assert broker.value(broker.done()) == []


def test_modules_are_found_where_the_starter_of_the_cluster_finds_them(
    broker: FakeBroker, start_worker: Start, runtime: Path
) -> None:
    write_settings(runtime, Settings(data=str(runtime), workers=1, sys_path=("/of/the/kernel",)))
    start_worker()
    broker.welcome()

    @task
    def look() -> str:
        import sys

        return sys.path[0]

    broker.submit(look)

    assert broker.value(broker.done()) == "/of/the/kernel"
