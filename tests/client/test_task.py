"""Tasks: how they are made, what a call of one says, what running one here does."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import inspect
import math
import pickle
import subprocess
import sys
import uuid
import warnings
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, Optional

import pydantic
import pytest

from nbtasks import config, context
from nbtasks.client import client as clients
from nbtasks.client import definitions, options
from nbtasks.client import task as making
from nbtasks.client.task import Task, register_task, send_task, shared_task, task
from nbtasks.context import Request
from nbtasks.core.messages import Now, Update
from nbtasks.exceptions import (
    AlwaysEagerIgnored,
    BrokerUnavailable,
    DuplicateTaskNameWarning,
    EncodeError,
    Ignore,
    ImproperlyConfigured,
    MaxRetriesExceededError,
    NaiveTimeWarning,
    OperationalError,
    Reject,
    Retry,
    TaskRevokedError,
)
from nbtasks.wire import payloads

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
NOW = Now(wall=NOON.timestamp(), boot=500.0)


class FakeClient:
    """Takes calls and sends nothing."""

    closed = False
    _forked = False

    def __init__(self):
        self.sent = []
        self.told = []
        self.unknown = set()
        self.settled = 0
        self.error = None

    def submit(self, call, buffers=(), define=None, **how):
        if self.error is not None:
            raise self.error
        self.sent.append(SimpleNamespace(call=call, buffers=buffers, define=define, how=how))
        return clients.Record(call.id, call=call, created=NOW.wall)

    def tell(self, *messages, buffers=()):
        self.told.extend(messages)

    def record(self, task_id):
        return clients.Record(task_id)

    def learn(self, record, timeout=None):
        record.known = record.id not in self.unknown

    def settle(self, timeout=None):
        self.settled = len(self.told)

    def drop(self, task_ids):
        pass

    @property
    def last(self):
        return self.sent[-1]

    @property
    def call(self):
        return self.last.call

    @property
    def arguments(self):
        """Arguments of the last call, as a worker would get them."""
        return payloads.loads(self.call.body, self.last.buffers)


@pytest.fixture(autouse=True)
def client(monkeypatch):
    """The client that tasks are sent through."""
    fake = FakeClient()
    monkeypatch.setattr(clients, "_current", fake)
    for module in ("calls", "eager", "retrying"):
        monkeypatch.setattr(f"nbtasks.client.{module}.now", lambda: NOW)
    return fake


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    """No settings, no tasks and no warnings of other tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(making, "tasks", {})
    monkeypatch.setattr(options, "_warned", set())
    config.reset()
    yield
    config.reset()


@pytest.fixture
def add():
    @task
    def add(x, y):
        """Add two things."""
        return x + y

    return add


def travelled(one: Task) -> Task:
    """Return a task as a worker gets it."""
    define, buffers = definitions.current(one)
    return payloads.load_definition(define.body, buffers)


class Steady:
    """A `run` context: the present run of some other task."""

    def __init__(self, **fields: Any):
        self.owner = SimpleNamespace(name="outer", trail=True)
        self.request = Request(id="p", called_directly=False, **fields)

    def __enter__(self):
        context.push(self.owner, self.request)
        return self

    def __exit__(self, *_):
        context.pop()


# ---------------------------------------------------------------------------------- making them


def test_the_decorator_works_bare_called_and_with_options():
    @task
    def one():
        return 1

    @task()
    def two():
        return 2

    @task(max_retries=9)
    def three():
        return 3

    assert [one(), two(), three()] == [1, 2, 3]
    assert (one.max_retries, three.max_retries) == (3, 9)


@pytest.mark.parametrize("wrong", [("name",), (3,), (print, print)])
def test_the_decorator_takes_the_function_alone(wrong):
    with pytest.raises(TypeError, match="Write @task"):
        task(*wrong)


def test_the_decorator_wants_something_that_can_be_called():
    with pytest.raises(TypeError, match="cannot be called"):
        task(name="x")(3)


def test_shared_task_is_the_same():
    @shared_task(name="lib.f")
    def f():
        return 1

    assert (f(), f.name) == (1, "lib.f")


def test_a_task_looks_like_its_function(add):
    assert isinstance(add, Task)
    assert (add.__name__, add.__doc__, add.__module__) == ("add", "Add two things.", __name__)
    assert add.__wrapped__(1, 2) == 3
    assert str(inspect.signature(add)) == "(x, y)"
    assert repr(add) == f"<@task: {add.name}>"


def test_the_signature_of_a_bound_task_is_what_callers_give():
    @task(bind=True)
    def f(self, x, y=2):
        return (self is f, x, y)

    assert str(inspect.signature(f)) == "(x, y=2)"
    assert f(1) == (True, 1, 2)


def test_unknown_options_become_attributes():
    @task(colour="red")
    def f():
        pass

    assert f.colour == "red"
    with pytest.raises(AttributeError, match="no attribute 'taste'"):
        _ = f.taste


def test_signatures_are_said_to_be_missing(add):
    assert not hasattr(add, "s")
    with pytest.raises(AttributeError, match="no 's' yet"):
        _ = add.s


def test_options_come_from_the_decorator_then_the_base_then_the_settings():
    class Base(Task):
        serializer = "json"
        max_retries = 7

    @task(base=Base, max_retries=1)
    def f():
        pass

    config.configure(task_serializer="yaml", task_time_limit=5)

    assert (f.max_retries, f.serializer, f.time_limit) == (1, "json", 5)
    assert f.acks_late is False


def test_a_base_must_be_a_class_of_tasks():
    with pytest.raises(TypeError, match=r"Derive it from nbtasks\.Task"):
        task(base=int)(print)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"rate_limit": "fast"}, ValueError),
        ({"autoretry_for": "KeyError"}, TypeError),
        ({"throws": (3,)}, TypeError),
        ({"retry_backoff": "x"}, ValueError),
        ({"priority": 10}, ValueError),
        ({"time_limit": 0}, ValueError),
        ({"memory_limit": "much"}, ValueError),
        ({"default_retry_delay": "soon"}, TypeError),
    ],
)
def test_options_that_cannot_be_meant_are_refused_at_once(wrong, error):
    with pytest.raises(error, match=next(iter(wrong)) if "memory_limit" not in wrong else "size"):
        task(**wrong)(lambda: None)


def test_anything_that_can_be_called_can_be_a_task():
    assert task(functools.partial(max, 1))(5) == 5
    assert task(len)("abc") == 3
    with pytest.raises(TypeError, match="bind=True needs a function"):
        task(bind=True)(functools.partial(max, 1))


def test_a_partial_is_called_as_what_it_is_a_part_of():
    assert task(functools.partial(functools.partial(max, 1), 2)).name == "builtins.max"


def test_a_direct_call_of_a_coroutine_function_gives_the_coroutine():
    @task
    async def f(x):
        return x

    assert asyncio.run(f(3)) == 3


def test_a_direct_call_of_a_coroutine_function_has_a_request_of_its_own():
    @task(bind=True)
    async def f(self, depth):
        await asyncio.sleep(0)
        seen = [(self.request.called_directly, self.request.args)]
        return seen + (await f(depth - 1) if depth else [])

    assert asyncio.run(f(1)) == [(True, (1,)), (True, (0,))]
    assert f.apply((1,)).get() == [(False, (1,)), (True, (0,))]


# ---------------------------------------------------------------------------------------- names


def named(module, qualname):
    def f():
        pass

    f.__module__, f.__qualname__ = module, qualname
    return task(f).name


def test_a_name_is_module_and_function():
    assert named("pkg.jobs", "add") == "pkg.jobs.add"


def test_nested_functions_of_one_name_have_names_of_their_own():
    assert named("pkg", "outer.<locals>.add") == "pkg.outer.add"
    assert named("pkg", "other.<locals>.add") == "pkg.other.add"


def test_what_a_notebook_defines_has_the_functions_name():
    assert named("__main__", "add") == "add"


def test_a_cell_that_is_run_again_replaces_its_task_silently():
    def cell(value):
        @task
        def f():
            return value

        return f

    cell(1)
    second = cell(2)

    assert making.tasks[second.name] is second


def test_two_functions_of_one_name_are_warned_of():
    task(name="same")(lambda: 1)

    def other():
        pass

    with pytest.warns(DuplicateTaskNameWarning, match="'same'"):
        task(name="same")(other)


@pytest.mark.parametrize(
    "make",
    [
        lambda name: task(name=name)(abs),
        lambda name: shared_task(name=name)(abs),
        lambda name: register_task(type("Other", (Task,), {"name": name})),
    ],
)
def test_the_warning_names_the_line_that_made_the_second(make):
    task(name="same")(len)

    with pytest.warns(DuplicateTaskNameWarning) as told:
        make("same")

    assert told[0].filename == __file__


# --------------------------------------------------------------------------- classes of tasks


def test_a_class_is_instantiated_once():
    class Count(Task):
        def __init__(self):
            self.calls = 0

        def run(self):
            self.calls += 1
            return self.calls

    count = register_task(Count)

    assert (count(), count()) == (1, 2)
    assert count.name.endswith("Count")
    assert making.tasks[count.name] is count


def test_an_instance_can_be_registered_as_it_is():
    class Scale(Task):
        name = "scale"

        def __init__(self, factor):
            self.factor = factor

        def run(self, x):
            return x * self.factor

    scale = register_task(Scale(3))

    assert (scale(2), scale.name) == (6, "scale")
    assert travelled(scale)(2) == 6


def test_a_class_without_a_body_says_so():
    class Bare(Task):
        pass

    with pytest.raises(NotImplementedError, match="Define a method run"):
        register_task(Bare)()


def test_only_tasks_can_be_registered():
    with pytest.raises(TypeError, match="for a function there is @task"):
        register_task(print)


def test_a_class_checks_arguments_against_run():
    class Add(Task):
        def run(self, x, y):
            return x + y

    add = register_task(Add)

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        add.delay(1)


# ------------------------------------------------------------------------------------- the call


def test_delay_sends_the_call_and_gives_its_result(add, client):
    result = add.delay(1, y=2)

    call = client.call
    assert client.arguments == ((1,), {"y": 2})
    assert (call.id, call.name, call.summary) == (result.id, add.name, "(1, y=2)")
    assert (call.priority, call.queue, call.retries, call.options) == (5, "default", 0, None)
    assert (call.due, call.eta, call.expires, call.root, call.parent) == (None, None, None, "", "")
    assert client.last.define[0].digest == call.definition
    assert client.last.how == {"retry": True, "policy": client.last.how["policy"]}


def test_an_argument_may_be_called_self(client):
    @task
    def describe(self, size):
        return self, size

    describe.delay(self="a", size=2)

    assert client.arguments == ((), {"self": "a", "size": 2})
    assert describe(self="a", size=2) == ("a", 2)


def test_ids_differ_and_are_uuids_of_version_4(add):
    ids = {add.delay(1, 2).id for _ in range(100)}

    assert len(ids) == 100
    assert {uuid.UUID(made).version for made in ids} == {4}


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((1,), {}, "missing 1 required positional argument: 'y'"),
        ((1, 2, 3), {}, r"add\(\) takes 2 positional arguments but 3 were given"),
        ((1,), {"z": 2}, "unexpected keyword argument 'z'"),
        ((1, 2), {"x": 3}, "multiple values for argument 'x'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_at_the_call(add, client, args, kwargs, text):
    with pytest.raises(TypeError, match=text):
        add.apply_async(args, kwargs)
    assert client.sent == []


def test_a_bound_task_does_not_count_itself(client):
    @task(bind=True)
    def f(self, x):
        pass

    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        f.delay(1, 2)
    f.delay(1)
    assert client.arguments == ((1,), {})


def test_without_typing_anything_is_sent(client):
    @task(typing=False)
    def f(x):
        pass

    f.delay(1, 2, 3)

    assert client.arguments == ((1, 2, 3), {})


def test_what_cannot_say_its_parameters_is_not_checked(client):
    task(name="max")(max).delay(1, 2)

    assert client.arguments == ((1, 2), {})


def test_two_positional_arguments_of_apply_async_are_met_with_a_hint(add):
    with pytest.raises(
        TypeError, match=r"must be a tuple or a list, not 4. Write apply_async\(\(4"
    ):
        add.apply_async(4, 6)
    with pytest.raises(TypeError, match=r"write delay\(4, 6\)"):
        add.apply_async((4,), 6)


def test_args_may_be_a_list_and_kwargs_may_be_missing(add, client):
    add.apply_async([1, 2])

    assert client.arguments == ((1, 2), {})


def test_an_argument_that_cannot_travel_fails_at_the_call_and_is_named(add, client):
    with pytest.raises(EncodeError, match="y"):
        add.delay(1, y=(n for n in "abc"))
    assert client.sent == []


def test_no_broker_is_an_operational_error(add, client):
    client.error = BrokerUnavailable("/run/broker.sock", 1.0)

    with pytest.raises(OperationalError):
        add.delay(1, 2)
    with pytest.raises(add.OperationalError):
        add.delay(1, 2)


def test_an_unknown_serializer_is_named(add, client):
    with pytest.raises(KeyError, match="nonesuch"):
        add.apply_async((1, 2), serializer="nonesuch")
    with pytest.raises(KeyError, match="nonesuch"):
        add.apply_async((1, 2), compression="nonesuch")
    assert client.sent == []


# ----------------------------------------------------------------------------------- its options


def test_an_unknown_option_is_refused_with_a_hint(add, client):
    with pytest.raises(TypeError, match=r"'countdwn'.*Did you mean 'countdown'"):
        add.apply_async((1, 2), countdwn=3)
    assert client.sent == []


@pytest.mark.parametrize("option", ["link", "link_error", "chord", "chain"])
def test_signatures_cannot_be_linked_yet(add, option):
    with pytest.raises(NotImplementedError, match="no signatures yet"):
        add.apply_async((1, 2), **{option: add})


def test_options_about_other_brokers_change_nothing(add, client):
    add.apply_async((1, 2), exchange="x", delivery_mode=2, producer=object())

    assert client.call.queue == "default"


def test_an_id_of_the_callers_own_is_checked_for_being_known(add, client):
    result = add.apply_async((1, 2), task_id="mine")

    assert result.id == client.call.id == "mine"
    assert client.last.how["check"]
    add.apply_async((1, 2), countdown=1)
    assert not client.last.how["check"]


def test_an_idempotency_key_is_an_id(add, client):
    @task
    def other(x, y):
        pass

    first = add.apply_async((1, 2), idempotency_key="order-7")

    assert client.last.how["check"]
    assert add.apply_async((1, 2), idempotency_key="order-7").id == first.id
    assert add.apply_async((1, 2), idempotency_key="order-8").id != first.id
    assert other.apply_async((1, 2), idempotency_key="order-7").id != first.id


def test_an_id_cannot_be_given_twice_or_be_empty(add):
    with pytest.raises(ValueError, match="Give one of them"):
        add.apply_async((1, 2), task_id="x", idempotency_key="y")
    with pytest.raises(ValueError, match="task_id is empty"):
        add.apply_async((1, 2), task_id="")


def test_rare_options_travel_in_a_part_of_their_own(add, client):
    add.apply_async(
        (1, 2),
        time_limit=9,
        soft_time_limit=5,
        memory_limit="1kB",
        headers={"user": "ann"},
        shadow="sum",
        ignore_result=True,
        group_id="g",
        group_index=0,
        reply_to="r",
    )

    found = client.call.options
    assert (found.time_limit, found.soft_time_limit, found.memory_limit) == (9, 5, 1000)
    assert payloads.loads(found.headers) == {"user": "ann"}
    assert (found.shadow, found.ignore_result, found.group, found.group_index) == (
        *("sum", True, "g", 0),
    )
    assert found.reply_to == "r"
    assert "@" in found.origin


def test_the_arguments_may_be_shown_otherwise(add, client):
    add.apply_async(("secret", 2), argsrepr="('***', 2)")
    assert client.call.summary == "('***', 2)"
    assert client.call.options.argsrepr == "('***', 2)"

    add.apply_async((1,), {"y": "secret"}, kwargsrepr="{'y': '***'}")
    assert client.call.summary == "(1, 'y': '***')"


def test_large_arguments_are_shown_by_their_beginning(add, client):
    add.delay(b"x" * 10_000, 2)

    shown, _, rest = client.call.summary.partition("…")
    assert shown.startswith("(b'xxx")
    assert rest == ", 2)"


def test_a_task_may_name_its_calls():
    @task(shadow_name=lambda self, args, kwargs, options: f"load {args[0]}")
    def load(path):
        pass

    assert load.shadow_name(("a.csv",), {}, {}) == "load a.csv"


def test_the_shadow_name_travels(client):
    class Named(Task):
        def shadow_name(self, args, kwargs, options):
            return f"load {args[0]}"

    @task(base=Named)
    def load(path):
        pass

    load.delay("a.csv")
    assert client.call.options.shadow == "load a.csv"
    load.apply_async(("a.csv",), shadow="other")
    assert client.call.options.shadow == "other"


def test_a_shadow_name_may_set_something_on_the_task(client):
    class Counted(Task):
        calls = 0

        def shadow_name(self, args, kwargs, options):
            self.calls += 1
            return f"call {self.calls}"

    @task(base=Counted)
    def load(path):
        pass

    for count in (1, 2):
        load.delay("a.csv")
        assert client.call.options.shadow == f"call {count}"


@pytest.mark.parametrize("priority", [-1, 10, 5.5, "high"])
def test_a_priority_is_a_whole_number_from_0_to_9(add, priority):
    with pytest.raises(ValueError, match=r"0 \(last\) to 9 \(first\)"):
        add.apply_async((1, 2), priority=priority)


def test_whole_numbers_may_be_numpys(client):
    numpy = pytest.importorskip("numpy")

    @task(max_retries=numpy.int64(2))
    def f():
        pass

    f.apply_async(priority=numpy.int64(7), retries=numpy.int32(1))

    assert (client.call.priority, client.call.retries) == (7, 1)
    assert client.last.define[0].policy.max_retries == 2


def test_queue_and_priority_come_from_call_task_and_settings(client):
    config.configure(task_default_queue="all", task_default_priority=3)

    @task(queue="slow", priority=7)
    def f():
        pass

    @task
    def g():
        pass

    f.delay()
    assert (client.call.queue, client.call.priority) == ("slow", 7)
    f.apply_async(queue="fast", priority=9)
    assert (client.call.queue, client.call.priority) == ("fast", 9)
    g.delay()
    assert (client.call.queue, client.call.priority) == ("all", 3)
    g.apply_async(routing_key="r")
    assert client.call.queue == "r"


def test_limits_that_contradict_each_other_are_refused_at_the_call(add, client):
    @task(soft_time_limit=9, time_limit=5)
    def f():
        pass

    with pytest.raises(ValueError, match="soft_time_limit=9 is more than time_limit=5"):
        f.delay()
    with pytest.raises(ValueError, match="soft_time_limit=3 is more than time_limit=2"):
        add.apply_async((1, 2), soft_time_limit=3, time_limit=2)
    with pytest.raises(ValueError, match="time_limit=-1 leaves no time"):
        add.apply_async((1, 2), time_limit=-1)
    assert client.sent == []


def test_an_ignored_result_is_known_to_be_ignored(client):
    @task(ignore_result=True)
    def f():
        pass

    assert f.delay().ignored
    assert not f.apply_async(ignore_result=False).ignored
    assert client.call.options.ignore_result is False


def test_publish_retry_is_told_to_the_client(add, client):
    add.apply_async((1, 2), retry=False)
    assert client.last.how["retry"] is False

    add.apply_async((1, 2), retry_policy={"max_retries": 9})
    assert client.last.how["policy"]["max_retries"] == 9
    assert client.last.how["policy"]["interval_step"] == 0.2

    with pytest.raises(ValueError, match="max_tries"):
        add.apply_async((1, 2), retry_policy={"max_tries": 9})


def test_confirm_is_told_to_the_client(add, client):
    add.apply_async((1, 2), confirm=True)

    assert client.last.how["confirm"]


def test_options_set_later_hold_from_the_next_call_on(add, client):
    add.delay(1, 2)
    add.priority = 8

    add.delay(1, 2)

    assert client.call.priority == 8
    del add.priority
    add.delay(1, 2)
    assert client.call.priority == 5


def test_options_that_a_base_gets_later_hold_from_the_next_call_on(client):
    class Base(Task):
        pass

    class Narrower(Base):
        pass

    @task(base=Narrower)
    def f():
        pass

    f.delay()
    Base.priority = 9
    Narrower.ignore_result = True

    result = f.delay()

    assert (client.call.priority, result.ignored) == (9, True)


def test_a_body_that_a_class_gets_later_says_what_it_takes(client):
    class Add(Task):
        def run(self, x):
            pass

    add = register_task(Add)
    add.delay(1)
    Add.run = lambda self, x, y: x + y

    with pytest.raises(TypeError, match="missing 1"):
        add.delay(1)


def test_apply_runs_handlers_that_a_base_gets_later():
    class Base(Task):
        pass

    @task(base=Base)
    def f():
        return 1

    f.apply()
    heard = []
    Base.on_success = lambda self, retval, *_: heard.append(retval)
    f.apply()

    assert heard == [1]


def test_headers_must_be_a_dict(add):
    with pytest.raises(TypeError, match="headers=3 is no mapping"):
        add.apply_async((1, 2), headers=3)


# ----------------------------------------------------------------------------------------- times


def test_a_countdown_is_kept_on_the_clock_that_nobody_sets(add, client):
    add.apply_async((1, 2), countdown=2.5)

    assert (client.call.due, client.call.eta) == (502.5, NOW.wall + 2.5)


@pytest.mark.parametrize("countdown", [0, -5, 0.0])
def test_a_countdown_that_is_over_means_at_once(add, client, countdown):
    add.apply_async((1, 2), countdown=countdown)

    assert client.call.due is None
    assert client.call.eta <= NOW.wall


@pytest.mark.parametrize("eta", [NOON + timedelta(hours=1), "2030-01-01T14:00:00+01:00"])
def test_an_eta_is_a_point_in_time_of_any_zone(add, client, eta):
    add.apply_async((1, 2), eta=eta)

    assert (client.call.due, client.call.eta) == (None, NOW.wall + 3600)


def test_an_eta_of_another_zone_is_the_same_instant(add, client):
    add.apply_async((1, 2), eta=NOON.astimezone(timezone(timedelta(hours=-7))))

    assert client.call.eta == NOW.wall


def test_countdown_wins_over_eta(add, client):
    add.apply_async((1, 2), countdown=1, eta=NOON + timedelta(days=1))

    assert client.call.due == 501.0


def test_a_time_without_zone_is_utc_and_warned_of_where_it_is_far_off(add, client):
    with pytest.warns(NaiveTimeWarning, match="eta has no time zone.*2030-01-01 13:00") as told:
        add.apply_async((1, 2), eta=datetime(2030, 1, 1, 13))
    with pytest.warns(NaiveTimeWarning, match="expires has no time zone"):
        add.apply_async((1, 2), expires=datetime(2030, 1, 1, 13))
    add.apply_async((1, 2), eta=datetime.now(UTC).replace(tzinfo=None))

    assert client.sent[0].call.eta == client.sent[1].call.expires == NOW.wall + 3600
    assert told[0].filename == __file__


def test_each_line_with_a_far_time_without_zone_is_warned_of_once(add):
    def send_three():
        for hour in range(3):
            add.apply_async((1, 2), eta=datetime(2030, 1, 1, hour))

    with pytest.warns(NaiveTimeWarning) as told:
        send_three()

    assert len(told) == 1


@pytest.mark.parametrize(
    ("expires", "seconds"),
    [(60, 60), (timedelta(minutes=1), 60), (NOON + timedelta(days=1), 86400), (0, 0), (-5, -5)],
)
def test_expires_is_counted_from_sending_or_a_point_in_time(add, client, expires, seconds):
    add.apply_async((1, 2), expires=expires, countdown=100)

    assert client.call.expires == NOW.wall + seconds


def test_the_tasks_own_expiry_is_a_default_that_a_call_can_clear(client):
    @task(expires=60)
    def f():
        pass

    f.delay()
    assert client.call.expires == NOW.wall + 60
    f.apply_async(expires=None)
    assert client.call.expires is None


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"eta": 10}, TypeError, "write countdown=10"),
        ({"eta": "tomorrow"}, ValueError, "ISO 8601"),
        ({"eta": object()}, TypeError, "is no point in time"),
        ({"countdown": "soon"}, TypeError, "countdown='soon' is no number"),
        ({"countdown": math.nan}, ValueError, "out of range"),
        ({"countdown": 1e12}, ValueError, "out of range"),
        ({"expires": object()}, TypeError, "is no number of seconds"),
    ],
)
def test_what_is_no_time_is_refused(add, client, wrong, error, text):
    with pytest.raises(error, match=text):
        add.apply_async((1, 2), **wrong)
    assert client.sent == []


# ----------------------------------------------------------------------------- parents, children


def test_a_task_sent_by_a_task_is_its_child(add, client):
    with Steady(root_id="r", delivery_info={"priority": 8}) as outer:
        result = add.delay(1, 2)

    assert (client.call.root, client.call.parent, client.call.priority) == ("r", "p", 8)
    assert outer.request.children == [result.id]


def test_the_first_task_is_the_root(add, client):
    with Steady():
        add.apply_async((1, 2), countdown=1)

    assert (client.call.root, client.call.parent, client.call.priority) == ("p", "p", 5)


def test_children_are_recorded_unless_task_or_call_say_no(add):
    with Steady() as outer:
        add.apply_async((1, 2), add_to_parent=False)
        outer.owner.trail = False
        add.delay(1, 2)

    assert outer.request.children == []


def test_own_priority_wins_over_the_parents(client):
    @task(priority=1)
    def f():
        pass

    with Steady(delivery_info={"priority": 8}):
        f.delay()

    assert client.call.priority == 1


# ------------------------------------------------------------------------------------- by name


def test_a_name_alone_can_be_sent(client):
    result = send_task("pkg.add", (1, 2), {"z": 3}, countdown=1)

    assert (client.call.name, client.call.definition, client.last.define) == ("pkg.add", b"", None)
    assert client.arguments == ((1, 2), {"z": 3})
    assert client.call.due == 501.0
    assert result.id == client.call.id


def test_a_name_that_is_known_here_is_sent_with_its_function(add, client):
    send_task(add.name, (1, 2))

    assert client.call.definition == client.last.define[0].digest


def test_a_name_is_sent_even_where_all_else_is_eager(client):
    config.configure(task_always_eager=True)

    with pytest.warns(AlwaysEagerIgnored):
        send_task("pkg.add")

    assert client.call.name == "pkg.add"


def test_a_name_must_be_text(add):
    with pytest.raises(TypeError, match="instead of a name"):
        send_task(add)


# ------------------------------------------------------------------------------- here and now


def test_apply_runs_here_with_a_request():
    @task(bind=True)
    def f(self, x):
        return self.request

    result = f.apply((1,), {}, task_id="mine", headers={"a": 1}, priority=3)

    request = result.get()
    assert (result.id, result.state, result.successful()) == ("mine", "SUCCESS", True)
    assert (request.id, request.root_id, request.parent_id) == ("mine", "mine", None)
    assert (request.is_eager, request.called_directly, request.retries) == (True, False, 0)
    assert request.delivery_info["is_eager"]
    assert request.delivery_info["priority"] == 3
    assert (request.args, request.kwargs, request.headers) == ((1,), {}, {"a": 1})


def test_apply_holds_the_error_unless_told_to_raise_it():
    @task
    def f():
        raise ValueError("bad")

    result = f.apply()

    assert (result.state, str(result.result)) == ("FAILURE", "bad")
    assert "ValueError: bad" in result.traceback
    with pytest.raises(ValueError, match="bad"):
        result.get()
    with pytest.raises(ValueError, match="bad"):
        f.apply(throw=True)
    config.configure(task_eager_propagates=True)
    with pytest.raises(ValueError, match="bad"):
        f.apply()


def test_apply_does_not_check_arguments_itself(add):
    assert add.apply((1,)).state == "FAILURE"


def test_apply_of_an_ignored_run_is_ignored():
    @task
    def f():
        raise Ignore

    assert f.apply().state == "IGNORED"


def test_apply_retries_at_once_until_it_ends():
    waits = []

    @task(bind=True, max_retries=5)
    def f(self):
        waits.append(self.request.retries)
        if self.request.retries < 3:
            raise self.retry(countdown=3600)
        return self.request.id

    result = f.apply(task_id="x")

    assert (result.get(), waits) == ("x", [0, 1, 2, 3])


def test_apply_ends_when_the_retries_do():
    @task(bind=True, autoretry_for=(ValueError,), retry_backoff=True)
    def f(self):
        raise ValueError(self.request.retries)

    result = f.apply()

    assert (result.state, result.result.args) == ("FAILURE", (3,))


def test_apply_retries_what_is_no_plain_exception_inside_of_ones_own_call_too():
    class Calling(Task):
        def __call__(self, *args):
            return super().__call__(*args)

    @task(base=Calling, bind=True, autoretry_for=(asyncio.CancelledError,))
    async def f(self):
        if not self.request.retries:
            raise asyncio.CancelledError
        return self.request.retries

    assert f.apply().get() == 1


def test_apply_retries_with_new_arguments():
    @task(bind=True)
    def f(self, url, mirror=None):
        if mirror is None:
            raise self.retry(kwargs={"mirror": "b"}, time_limit=7)
        return (url, mirror, self.request.time_limit)

    assert f.apply(("a",)).get() == ("a", "b", 7)


def test_apply_retries_with_a_new_expiry(client):
    @task(bind=True)
    def f(self):
        if not self.request.retries:
            raise self.retry(countdown=20, expires=60)
        return self.request.eta, self.request.expires

    eta, expires = f.apply().get()
    assert datetime.fromisoformat(eta).timestamp() == NOW.wall + 20
    assert datetime.fromisoformat(expires).timestamp() == NOW.wall + 60


@pytest.mark.parametrize("options", [{"expires": -1}, {"expires": 1, "countdown": 2}])
def test_apply_runs_nothing_that_is_too_late(add, options):
    result = add.apply((1, 2), **options)

    assert result.state == "REVOKED"
    with pytest.raises(TaskRevokedError, match="expired"):
        result.get()
    with pytest.raises(TaskRevokedError):
        add.apply((1, 2), throw=True, **options)


def test_apply_retries_nothing_that_would_be_too_late():
    @task(bind=True)
    def f(self):
        raise self.retry(countdown=20)

    assert f.apply(expires=10).state == "REVOKED"


def test_apply_shows_the_run_what_a_worker_shows_it():
    class Shadowed(Task):
        def shadow_name(self, args, kwargs, options):
            return f"f of {args[0]}"

    @task(base=Shadowed, bind=True, priority=7)
    def f(self, x):
        request = self.request
        return request.shadow, request.argsrepr, request.headers, request.delivery_info["priority"]

    assert f.apply((1,), argsrepr=("?",), headers={}).get() == ("f of 1", "('?',)", None, 7)


def test_apply_refuses_ids_that_are_no_text(add):
    with pytest.raises(TypeError, match="root_id=5"):
        add.apply((1, 2), root_id=5)


def test_apply_also_runs_a_retry_beside_the_run_and_success_stays():
    runs = []

    @task(bind=True)
    def f(self):
        runs.append(self.request.retries)
        if self.request.retries == 0:
            self.retry(throw=False)
            return "first"
        raise ValueError("second")

    assert f.apply().get() == "first"
    assert runs == [0, 1]


def test_apply_ends_as_the_run_itself_does_whatever_becomes_of_the_retry_beside():
    @task(bind=True)
    def f(self):
        if self.request.retries == 0:
            self.retry(throw=False)
            raise ValueError("first")
        return self.request.parent_id

    result = f.apply()

    assert result.state == "FAILURE"
    (child,) = result.children
    assert child.id != result.id
    assert child.get() == result.id


def test_result_of_apply_knows_the_run(add):
    @task(bind=True)
    def f(self, x, y=0):
        add.apply((x, self.request.retries))
        if self.request.retries < 2:
            self.retry(args=(x + 1,), countdown=60)

    result = f.apply((1,), {"y": 5}, queue="q")

    assert (result.args, result.kwargs, result.retries, result.queue) == ((3,), {"y": 5}, 2, "q")
    assert [child.get() for child in result.children] == [1, 3, 5]
    assert copy.copy(result).retries == pickle.loads(pickle.dumps(result)).retries == 2
    heard = []
    result.get(on_message=heard.append)
    assert (heard[0]["args"], heard[0]["retries"], len(heard[0]["children"])) == ((3,), 2, 3)


def test_message_of_apply_tells_group_and_parent(add):
    heard = []

    add.apply((1, 2), group_id="g", parent_id="p").get(on_message=heard.append)
    add.apply((1, 2)).get(on_message=heard.append)

    assert (heard[0]["group_id"], heard[0]["parent_id"]) == ("g", "p")
    assert not {"group_id", "parent_id"} & heard[1].keys()


def test_apply_inside_a_run_belongs_to_it(add):
    with Steady(root_id="r") as outer:
        result = task(bind=True)(
            lambda self: (self.request.root_id, self.request.parent_id)
        ).apply()

    assert result.get() == ("r", "p")
    assert outer.request.children == [result.id]


def test_apply_runs_coroutines_where_a_loop_is_running():
    @task(bind=True)
    async def f(self, x):
        await asyncio.sleep(0)
        return (x, self.request.is_eager)

    async def cell():
        return f.apply((1,))

    assert asyncio.run(cell()).get() == (1, True)


def test_apply_refuses_unknown_options(add):
    with pytest.raises(TypeError, match="Did you mean 'countdown'"):
        add.apply((1, 2), countdwn=1)


def test_always_eager_runs_here_after_a_journey_of_the_arguments(add, client):
    config.configure(task_always_eager=True)

    @task
    def change(numbers):
        numbers.append(3)
        return numbers

    own = [1, 2]

    assert add.delay(1, 2).get() == 3
    assert change.delay(own).get() == [1, 2, 3]
    assert own == [1, 2]
    assert client.sent == []
    with pytest.raises(EncodeError):
        change.delay(n for n in "abc")


def test_always_eager_may_propagate(client):
    config.configure(task_always_eager=True, task_eager_propagates=True)

    with pytest.raises(ZeroDivisionError):
        task(lambda: 1 / 0).delay()


# --------------------------------------------------------------------------------------- retry


class Attempt:
    """Call `retry` inside a run of a task, and look at what comes of it."""

    def __init__(self, one: Task, *args: Any, retries: int = 0, **kwargs: Any):
        self.task = one
        self.request = Request(
            id="1", args=args, kwargs=kwargs, retries=retries, called_directly=False
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Retry:
        context.push(self.task, self.request)
        try:
            with pytest.raises(Retry) as caught:
                self.task.retry(*args, **kwargs)
            return caught.value
        finally:
            context.pop()

    def plan(self, **kwargs: Any) -> Any:
        return self(**kwargs)._plan

    def error(self, *args: Any, **kwargs: Any) -> BaseException:
        context.push(self.task, self.request)
        try:
            self.task.retry(*args, **kwargs)
        except BaseException as error:
            return error
        finally:
            context.pop()
        raise AssertionError("retry() did not raise")


def test_retry_waits_the_default_delay(add):
    plan = Attempt(add, 1, 2).plan()

    assert (plan.countdown, plan.eta, plan.retries) == (180, None, 1)
    assert (plan.args, plan.kwargs, plan.options) == (None, None, {})


def test_retry_takes_countdown_or_eta_and_countdown_wins(add):
    attempt = Attempt(add, 1, 2)

    assert attempt.plan(countdown=0).countdown == 0
    assert attempt.plan(eta=NOON).eta == NOON
    assert attempt.plan(eta=NOON).countdown is None
    assert attempt.plan(eta=NOON, countdown=4).countdown == 4
    assert str(attempt(countdown=10, exc=ValueError("v"))) == "Retry in 10s: ValueError('v')"


def test_a_wait_that_is_a_timedelta_is_told_in_seconds():
    @task(bind=True)
    def f(self):
        with pytest.raises(Retry) as told:
            self.retry(countdown=timedelta(seconds=5))
        return told.value.when, str(told.value)

    assert f.apply().get() == (5.0, "Retry in 5.0s")


def test_the_limit_of_the_call_wins_for_that_call(add):
    assert isinstance(Attempt(add, retries=3).error(), MaxRetriesExceededError)
    assert Attempt(add, retries=3).plan(max_retries=4).retries == 4
    assert isinstance(Attempt(add, retries=1).error(max_retries=1), MaxRetriesExceededError)
    assert isinstance(Attempt(add).error(max_retries=0), MaxRetriesExceededError)
    assert isinstance(Attempt(add, retries=1).error(max_retries=1.5), MaxRetriesExceededError)
    assert add.max_retries == 3


def test_none_means_no_limit_only_on_the_task(add):
    add.max_retries = None

    assert Attempt(add, retries=10**6).plan().retries == 10**6 + 1
    add.max_retries = 3
    assert isinstance(Attempt(add, retries=3).error(max_retries=None), MaxRetriesExceededError)


def test_giving_up_tells_the_arguments(add):
    error = Attempt(add, 1, y=2, retries=3).error()

    assert f"Can't retry {add.name}[1] args:(1,) kwargs:{{'y': 2}}" in str(error)
    assert (error.task_args, error.task_kwargs) == ((1,), {"y": 2})


def test_giving_up_raises_the_given_exception_because_of_the_present_one(add):
    given = ValueError("gone")

    try:
        raise KeyError("why")
    except KeyError:
        error = Attempt(add, retries=3).error(exc=given)

    assert error is given
    assert isinstance(error.__cause__, KeyError)


def test_giving_up_inside_an_except_block_without_exc_is_still_max_retries(add):
    try:
        raise KeyError("why")
    except KeyError:
        assert isinstance(Attempt(add, retries=3).error(), MaxRetriesExceededError)


def test_a_task_may_have_its_own_word_for_giving_up():
    class Enough(MaxRetriesExceededError):
        pass

    @task(MaxRetriesExceededError=Enough, max_retries=0)
    def f():
        pass

    assert isinstance(Attempt(f).error(), Enough)


def test_retry_in_a_direct_call_raises_the_exception_or_retry(add):
    with pytest.raises(ValueError, match="v"):
        add.retry(exc=ValueError("v"))
    with pytest.raises(Retry, match="Task can be retried"):
        add.retry()


def test_retry_takes_a_class_of_exceptions(add):
    assert isinstance(Attempt(add)(exc=ValueError).exc, ValueError)


def test_new_arguments_replace_those_that_they_clash_with():
    @task
    def f(a, b=0, c=0):
        pass

    attempt = Attempt(f, 1, 2, c=3)

    assert attempt.plan(args=(7,))[:2] == ((7,), {"c": 3})
    assert attempt.plan(args=(7, 8, 9))[:2] == ((7, 8, 9), {})
    assert attempt.plan(kwargs={"b": 8})[:2] == ((1,), {"c": 3, "b": 8})
    assert attempt.plan(kwargs={"c": 9})[:2] == ((1, 2), {"c": 9})
    assert attempt.plan(args=(7,), kwargs={"b": 8})[:2] == ((7,), {"b": 8})


def test_new_arguments_that_do_not_fit_end_the_task(add):
    error = Attempt(add, 1, 2).error(args=(1, 2, 3))

    assert isinstance(error, Reject)
    assert isinstance(error.reason, TypeError)
    assert not error.requeue


def test_new_arguments_that_cannot_travel_end_the_task(add):
    error = Attempt(add, 1, 2).error(args=(1, (n for n in "abc")))

    assert isinstance(error.reason, EncodeError)


def test_options_of_a_retry_are_checked_and_made_plain(add):
    plan = Attempt(add, 1, 2).plan(
        expires=60, priority=9, queue="slow", time_limit=3, headers={"a": 1}, shadow="again"
    )

    assert plan.options == {
        "expires": NOW.wall + 60,
        "priority": 9,
        "queue": "slow",
        "time_limit": 3.0,
        "headers": {"a": 1},
        "shadow": "again",
    }
    assert Attempt(add).plan(expires=None).options == {"expires": None}
    assert isinstance(Attempt(add).error(prio=9), TypeError)
    assert isinstance(Attempt(add).error(priority=99), ValueError)


# -------------------------------------------------------------------------------- update_state


def test_update_state_reports_through_the_run(add):
    told = []
    channel = SimpleNamespace(report=lambda *facts: told.append(facts))
    context.push(add, Request(id="1", called_directly=False, _channel=channel))

    add.update_state(state="PROGRESS", meta={"progress": 50})
    add.update_state(task_id="1", state="HALF")
    add.update_state(meta=3)

    context.pop()
    assert told == [("PROGRESS", {"progress": 50}), ("HALF", None), ("PROGRESS", 3)]


def test_update_state_of_another_task_goes_to_the_broker(add, client):
    add.update_state("other", "PROGRESS", {"progress": 1})
    add.update_state("other", "FAILURE", ValueError("x"))

    first, second = client.told
    assert isinstance(first, Update)
    assert (first.id, first.state, payloads.loads(first.body)) == (
        *("other", "PROGRESS", {"progress": 1}),
    )
    assert str(payloads.loads(second.body)) == "x"
    assert client.settled == 2


def test_update_state_of_a_task_that_nobody_knows_is_an_error(add, client):
    client.unknown.add("lost")

    with pytest.raises(ValueError, match="knows no task 'lost'"):
        add.update_state("lost", "PROGRESS", {"progress": 1})

    assert client.told == []


def test_update_state_in_a_direct_call_has_no_id(add):
    with pytest.raises(ValueError, match="called directly, so it has no id"):
        add.update_state(state="PROGRESS")


@pytest.mark.parametrize("state", ["RETRY", "FAILURE", "REVOKED"])
def test_states_of_errors_need_an_exception(add, state):
    with pytest.raises(TypeError, match="needs an exception"):
        add.update_state("x", state, {"progress": 1})


def test_a_request_can_be_pushed_for_tests_of_bodies(add):
    add.push_request(id="7", retries=2)

    assert (add.request.id, add.request.retries) == ("7", 2)
    add.pop_request()
    assert add.request.id is None


# ------------------------------------------------------------------------------------ pydantic


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


def test_annotated_arguments_become_models_and_a_returned_model_plain_data():
    @task(pydantic=True)
    def mirror(point: Point, other: Point | None = None, factor=1) -> Point:
        assert isinstance(point, Point)
        assert other is None or isinstance(other, Point)
        return Point(x=-point.x * factor, y=point.y)

    assert mirror.apply(({"x": 3},)).get() == {"x": -3, "y": 0}
    assert mirror({"x": 3, "y": 1}, {"x": 0}, factor=2) == {"x": -6, "y": 1}


def test_optional_of_the_old_spelling_counts_and_unions_do_not():
    @task(pydantic=True)
    def f(a: Optional[Point], b: int | Point, c: list[Point]):  # noqa: UP045
        return type(a), type(b), type(c[0])

    assert f({"x": 1}, {"x": 1}, [{"x": 1}]) == (Point, dict, dict)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="there annotations are evaluated at once")
def test_annotations_that_name_nothing_do_no_harm():
    cell: dict[str, Any] = {"__name__": "__main__", "task": task, "Point": Point}
    text = "def f(point: Point, other: Nothing = None) -> Point: return point"
    exec(compile(text, "<cell>", "exec", dont_inherit=True), cell)
    plain, careful = task(cell["f"]), task(pydantic=True, name="careful")(cell["f"])

    there = travelled(plain)

    assert (there(1), there.apply((2,)).get()) == (1, 2)
    assert str(inspect.signature(plain)).startswith("(point: ")
    with pytest.raises(TypeError, match="positional arguments but"):
        plain.delay(1, 2, 3)
    assert careful({"x": 3}) == travelled(careful)({"x": 3}) == {"x": 3, "y": 0}


def test_an_argument_that_is_no_such_model_is_the_failure():
    @task(pydantic=True)
    def f(point: Point):
        pass

    assert isinstance(f.apply(({"x": "three"},)).result, pydantic.ValidationError)


def test_strictness_context_and_dumping_are_options():
    class Seen(pydantic.BaseModel):
        x: int

        @pydantic.field_validator("x")
        @classmethod
        def note(cls, value: int, info: pydantic.ValidationInfo) -> int:
            seen.update(info.context)
            return value

    seen: dict[str, Any] = {}

    def body(point) -> Seen:
        return point

    body.__annotations__.update({"point": Seen, "return": Seen})
    f = task(
        name="f",
        pydantic=True,
        pydantic_strict=True,
        pydantic_context={"a": 1},
        pydantic_dump_kwargs={"exclude": {"x"}},
    )(body)

    assert f({"x": 1}) == {}
    assert seen == {"a": 1, "celery_task_name": "f"}
    with pytest.raises(pydantic.ValidationError):
        f({"x": "1"})


def test_a_bound_coroutine_is_validated_too():
    @task(bind=True, pydantic=True)
    async def f(self, point: Point) -> Point:
        await asyncio.sleep(0)
        return Point(x=point.x + self.request.retries)

    assert f.apply(({"x": 3},)).get() == {"x": 3, "y": 0}


def test_models_given_by_the_caller_travel_in_every_serializer(client):
    @task(pydantic=True)
    def f(point: Point):
        pass

    f.delay(Point(x=1))
    assert client.arguments == ((Point(x=1),), {})
    f.apply_async((), {"point": Point(x=1)}, serializer="json")
    assert client.arguments[1] == {"point": {"x": 1, "y": 0}}


def test_models_travel_in_every_serializer_where_all_is_eager_and_in_a_retry():
    @task(pydantic=True, bind=True, serializer="json")
    def f(self, point: Point):
        if not self.request.retries:
            raise self.retry(args=(Point(x=2),), countdown=0)
        return point

    config.configure(task_always_eager=True)

    assert f.delay(Point(x=1)).get() == Point(x=2)


def test_without_pydantic_installed_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ImproperlyConfigured, match=r"nbtasks\[pydantic\]"):
        task(pydantic=True)(lambda: None)


# ------------------------------------------------------------------------------------ by value


def notebook(source: str, **names: Any) -> dict[str, Any]:
    """Run a cell."""
    scope: dict[str, Any] = {"__name__": "__main__", "task": task, "Task": Task, **names}
    exec(source, scope)
    return scope


def test_a_task_travels_with_function_options_and_attributes():
    cell = notebook(
        "@task(bind=True, max_retries=7, colour='red')\n"
        "def f(self, x):\n"
        "    'Doc.'\n"
        "    return (x, self.colour, self.mood)\n"
    )
    cell["f"].mood = "good"

    there = travelled(cell["f"])

    assert there(1) == (1, "red", "good")
    assert (there.name, there.max_retries, there.__doc__) == ("f", 7, "Doc.")
    assert there is not cell["f"]
    assert making.tasks["f"] is cell["f"]


def test_a_function_may_refer_to_its_own_task():
    cell = notebook("@task\ndef fact(n):\n    return 1 if n < 2 else n * fact(n - 1)\n")

    there = travelled(cell["fact"])

    assert there(5) == 120
    assert there.run.__globals__["fact"] is there


def test_pickles_of_the_standard_library_hold_a_task_too():
    cell = notebook("@task(max_retries=7)\ndef f(n):\n    return n and n + f(n - 1)\n")

    there = pickle.loads(pickle.dumps(cell["f"]))

    assert (there(3), there.name, there.max_retries) == (6, "f", 7)


def test_what_a_notebooks_settings_say_holds_in_the_worker_too(add):
    config.configure(task_soft_time_limit=9, task_serializer="json")

    there = travelled(add)

    config.reset()
    assert (there.soft_time_limit, there.serializer) == (9, "json")


BASE = """
made = []

class Base(Task):
    def __init__(self):
        self.connection = object()
        self.opened = open_()

    def on_failure(self, exc, *rest):
        f.seen = exc

@task(base=Base)
def f():
    return f.opened
"""


def test_the_bases_init_runs_once_where_the_task_is_used_and_what_it_made_stays_at_home():
    cell = notebook(
        "opened = []\ndef open_():\n    opened.append(1)\n    return len(opened)\n" + BASE
    )
    assert cell["f"]() == 1

    there = travelled(cell["f"])

    assert "opened" not in vars(there)
    assert there() == 2
    assert there() == 2
    assert there.connection is not cell["f"].connection


def test_a_connection_that_a_base_makes_when_it_is_needed_stays_at_home():
    cell = notebook(
        "import functools\n"
        "class Base(Task):\n"
        "    @functools.cached_property\n"
        "    def connection(self):\n"
        "        return object()\n"
        "@task(base=Base, bind=True)\n"
        "def f(self):\n"
        "    return self.connection\n"
    )
    here = cell["f"]()

    there = travelled(cell["f"])

    assert there() is there()
    assert there() is not here


def test_a_base_may_call_the_body_abstract():
    cell = notebook(
        "import abc\n"
        "class Base(Task, abc.ABC):\n"
        "    @abc.abstractmethod\n"
        "    def run(self):\n"
        "        ...\n"
        "@task(base=Base)\n"
        "def f():\n"
        "    return 1\n"
    )

    assert cell["f"]() == travelled(cell["f"])() == 1


def test_what_else_a_base_calls_abstract_must_be_there():
    class Base(Task, abc.ABC):
        @abc.abstractmethod
        def connect(self): ...

    with pytest.raises(TypeError, match="connect"):
        task(base=Base)(len)


def test_a_base_that_refers_to_its_task_travels():
    cell = notebook("def open_():\n    return 1\n" + BASE)

    there = travelled(cell["f"])
    there.run = lambda: 1 / 0

    assert there.apply().state == "FAILURE"
    # In one process a class that comes back is the class that went.
    assert isinstance(cell["f"].seen, ZeroDivisionError)


def test_a_class_of_tasks_is_made_anew_where_it_is_used():
    cell = notebook(
        "class Count(Task):\n"
        "    def __init__(self):\n"
        "        self.lock = lock()\n"
        "        self.calls = 0\n"
        "    def run(self):\n"
        "        self.calls += 1\n"
        "        return self.calls\n"
        "import threading\n"
        "lock = threading.Lock\n"
    )
    count = register_task(cell["Count"])
    count()
    count()

    there = travelled(count)

    assert [there.apply().get(), there()] == [1, 2]
    assert there.lock is not count.lock


def test_what_a_run_leaves_on_its_task_stays_in_its_process():
    @task(bind=True)
    def f(self):
        self.connection = (n for n in "abc")
        return self.colour

    f.colour = "red"
    f()

    there = travelled(f)

    assert "connection" not in vars(there)
    assert there() == "red"


def test_private_attributes_are_caches_and_stay_at_home(add):
    add._cache = (n for n in "abc")

    assert "_cache" not in vars(travelled(add))
    assert add._cache is not None


def test_an_attribute_that_was_taken_away_does_not_travel(add):
    add.colour = "red"
    del add.colour

    assert not hasattr(travelled(add), "colour")


def test_an_init_that_fails_fails_the_task_each_time():
    attempts = []

    class Base(Task):
        def __init__(self):
            attempts.append(1)
            if len(attempts) > 1:
                raise ConnectionError("no database")

    @task(base=Base)
    def f():
        return 1

    there = travelled(f)

    assert [str(there.apply().result) for _ in range(2)] == ["no database"] * 2


def test_a_pydantic_task_travels():
    cell = notebook(
        "@task(pydantic=True)\ndef f(point: Point) -> Point:\n    return point\n", Point=Point
    )

    assert travelled(cell["f"])({"x": 1}) == {"x": 1, "y": 0}


def test_a_task_that_travelled_can_be_sent_on(client):
    cell = notebook("@task(queue='slow')\ndef f(x):\n    return x\n")

    travelled(travelled(cell["f"])).delay(1)

    assert (client.call.name, client.call.queue) == ("f", "slow")


def test_a_cell_run_again_makes_new_calls_new_and_leaves_old_ones(client):
    source = "@task\ndef f():\n    return {}\n"
    first = notebook(source.format(1))["f"]
    first.delay()
    old = client.last.define
    notebook(source.format(2))["f"].delay()
    new = client.last.define

    assert payloads.load_definition(old[0].body, old[1])() == 1
    assert payloads.load_definition(new[0].body, new[1])() == 2


def test_no_warning_is_left_behind(add):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add.delay(1, 2)
        travelled(add)


ELSEWHERE = """
import sys
from nbtasks.wire import payloads
there = payloads.load_definition(sys.stdin.buffer.read())
print(there.apply((4,)).get(), there.apply((4,)).get(), there.apply((-1,)).state)
"""


def test_a_whole_cell_works_in_another_process():
    cell = notebook(
        "from __future__ import annotations\n"
        "import pydantic\n"
        "class Number(pydantic.BaseModel):\n"
        "    n: int\n"
        "class Base(Task):\n"
        "    opened = 0\n"
        "    def __init__(self):\n"
        "        self.opened = self.opened + 1\n"
        "    def on_failure(self, exc, *rest):\n"
        "        print(fact.name, 'failed:', exc)\n"
        "@task(base=Base, bind=True, pydantic=True)\n"
        "def fact(self, n, other: Number | None = None):\n"
        "    if n < 0:\n"
        "        raise ValueError(n)\n"
        "    assert self is fact and self.opened == 1\n"
        "    if other is None:\n"
        "        return self(n, {'n': 1})\n"
        "    assert type(other) is Number\n"
        "    return 1 if n < 2 else n * fact(n - 1, other)\n"
    )
    define, buffers = definitions.current(cell["fact"])

    ended = subprocess.run(
        [sys.executable, "-c", ELSEWHERE],
        input=define.body or buffers[0],
        capture_output=True,
        check=False,
    )

    assert ended.stderr == b""
    assert ended.stdout.decode().splitlines() == ["fact failed: -1", "24 24 FAILURE"]
