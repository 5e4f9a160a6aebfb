"""Bad input: each gives an error that says what, why, and what to do; and nothing is lost."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks import task
from nbtasks.core.messages import Revoke
from nbtasks.exceptions import (
    BrokerUnavailable,
    ClusterError,
    DecodeError,
    EncodeError,
    ImproperlyConfigured,
    NotRegistered,
    SerializerNotInstalled,
)
from tests.conftest import nothing_left_running, short_directory

#: Seconds within which something that takes milliseconds must have happened on a busy machine.
SOON = 30.0


@pytest.fixture(scope="module", autouse=True)
def _no_process_left() -> Iterator[None]:
    """As in all tests, but for the file: the tests share a cluster."""
    with nothing_left_running():
        yield


@pytest.fixture(scope="module", autouse=True)
def cluster(_no_process_left: None) -> Iterator[nbtasks.Cluster]:
    with short_directory() as path, nbtasks.start(workers=1, dir=path) as cluster:
        yield cluster


@task
def add(x, y):
    return x + y


@task
def echo(*args, **kwargs):
    return args, kwargs


@pytest.fixture
def nothing_sent(cluster: nbtasks.Cluster) -> Iterator[None]:
    """The broker knows no more tasks afterwards than before, and everything goes on."""
    before = known(cluster)
    yield
    assert known(cluster) == before
    assert add.delay(1, 2).get(timeout=SOON) == 3


def known(cluster: nbtasks.Cluster) -> set[str]:
    return {row["id"] for row in cluster.client.ask("list", limit=100_000)}


def script(code: str, *, check: bool = True, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0 or not check, done.stderr
    return done


# ------------------------------------------------------------------------------ wrong arguments


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: add.delay(1), "y"),
        (lambda: add.delay(1, 2, 3), "3"),
        (lambda: add.delay(1, z=2), "z"),
        (lambda: add.apply_async(4, 6), r"apply_async\(\(4"),
        (lambda: add.apply_async("ab"), "tuple or a list"),
        (lambda: add.apply_async((1, 2), [3]), "dict"),
        (lambda: add.apply_async((1, 2), countdwon=3), "Did you mean 'countdown'"),
        (lambda: add.apply_async((1, 2), headers=["a"]), "dict"),
        (lambda: add.apply_async((1, 2), queue=3), "queue"),
        (lambda: add.apply_async((1, 2), retry_policy={"max_retry": 3}), "max_retries"),
        (lambda: nbtasks.send_task(add), "name"),
        (lambda: nbtasks.send_task(""), "name"),
    ],
)
def test_arguments_that_do_not_fit_are_a_type_error_that_says_how(call, text):
    with pytest.raises((TypeError, ValueError), match=text):
        call()


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"priority": 10}, "0 .* to 9"),
        ({"priority": "high"}, "0 .* to 9"),
        ({"priority": -1}, "0 .* to 9"),
        ({"time_limit": 0}, "time_limit"),
        ({"time_limit": -1}, "time_limit"),
        ({"soft_time_limit": 5, "time_limit": 1}, "soft_time_limit"),
        ({"memory_limit": "lots"}, "memory"),
        ({"group_index": 2**70}, "group_index"),
        ({"task_id": ""}, "task_id"),
        ({"task_id": "x", "idempotency_key": "y"}, "idempotency_key"),
        ({"headers": {"h": b"x" * 100_000}}, "headers"),
        ({"retry_policy": {"max_retries": "many"}}, "max_retries"),
    ],
)
def test_values_that_cannot_be_used_are_refused_at_the_call(option, text):
    with pytest.raises((TypeError, ValueError), match=text):
        add.apply_async((1, 2), **option)


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    "options",
    [
        {"rate_limit": "often"},
        {"rate_limit": "10/week"},
        {"autoretry_for": ("KeyError",)},
        {"throws": 3},
        {"retry_backoff": "fast"},
        {"priority": 11},
        {"time_limit": "long"},
        {"soft_time_limit": -1},
        {"memory_limit": "lots"},
        {"default_retry_delay": "soon"},
        {"base": dict},
        {"max_retries": "few"},
        {"max_retries": -1},
        {"expires": "tomorrow"},
        {"serializer": "morse"},
        {"compression": "squeeze"},
        {"queue": 3},
        {"name": 3},
    ],
    ids=str,
)
def test_options_that_cannot_be_meant_are_refused_at_the_latest_at_the_call(options):
    (name,) = options

    with pytest.raises((TypeError, ValueError, LookupError, SerializerNotInstalled)) as caught:
        task(**options)(lambda: None).delay()

    text = str(caught.value)
    assert name in text or str(options[name]).strip("(),'") in text


HALF = "half a \ud800"


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    "call",
    [
        lambda: add.apply_async((1, 2), task_id=HALF),
        lambda: add.apply_async((1, 2), queue=HALF),
        lambda: add.apply_async((1, 2), root_id=3),
        lambda: add.apply_async((1, 2), parent_id=HALF),
        lambda: add.apply_async((1, 2), group_id=["g"]),
        lambda: add.apply_async((1, 2), group_index="first"),
        lambda: add.apply_async((1, 2), retries="two"),
        lambda: add.apply_async((1, 2), retries=-1),
        lambda: task(name=HALF)(lambda: None),
        lambda: task(name="x")(lambda: None).update_state("id", state=3),
        lambda: task(name="x")(lambda: None).update_state("id", state=HALF),
        lambda: task(name="x")(lambda: None).update_state(HALF, state="X"),
        lambda: nbtasks.send_task(HALF),
        lambda: nbtasks.AsyncResult(HALF),
        lambda: nbtasks.AsyncResult("id").revoke(signal="SIGNOTHING"),
    ],
)
def test_what_no_message_can_carry_is_refused_before_it_is_sent(call):
    with pytest.raises((TypeError, ValueError)):
        call()


@pytest.mark.parametrize(
    "say",
    [
        lambda client: client.ask("show", id=HALF),
        lambda client: client.ask("list", limit=10**22),
        lambda client: client.tell(Revoke((HALF,))),
        lambda client: client.record(HALF),
    ],
)
def test_what_cannot_be_encoded_is_refused_to_its_caller_and_the_client_goes_on(cluster, say):
    with pytest.raises(EncodeError, match="cannot be sent to the broker"):
        say(cluster.client)

    assert cluster.client.ask("status")
    assert HALF not in cluster.client._records.open


def test_texts_that_are_only_shown_may_be_anything():
    class Odd:
        def __repr__(self):
            return HALF

    result = echo.apply_async((Odd(),), shadow=3, argsrepr=HALF, kwargsrepr=Odd(), reply_to=4)
    more = [echo.delay(Odd(), HALF, **{HALF: 1}), echo.apply_async((Odd(),), ignore_result="no")]

    assert result.get(timeout=SOON)
    assert more[0].get(timeout=SOON)[0][1] == HALF
    assert more[1].get(timeout=SOON) is None


@pytest.mark.parametrize("name", ["max_retries", "rate_limit", "memory_limit", "time_limit"])
def test_an_option_that_is_spoilt_later_is_refused_at_the_call(name):
    spoilt = task(name=f"spoilt.{name}")(lambda: None)
    setattr(spoilt, name, "nonsense")

    with pytest.raises((TypeError, ValueError), match="nonsense"):
        spoilt.delay()

    assert add.delay(1, 2).get(timeout=SOON) == 3


def test_an_option_that_is_spoilt_in_the_class_is_refused_at_the_call_too():
    class Spoilt(nbtasks.Task):
        max_retries = float("inf")

    fine = task(base=Spoilt, name="fine")(lambda: 1)

    assert fine.delay().get(timeout=SOON) == 1


# -------------------------------------------------------------------------------------- bad times


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize(
    ("option", "text"),
    [
        ({"eta": 10}, "countdown=10"),
        ({"eta": "tomorrow"}, "ISO 8601"),
        ({"eta": date(2030, 1, 1)}, "datetime"),
        ({"eta": timedelta(hours=1)}, "datetime"),
        ({"countdown": "3"}, "number of seconds"),
        ({"countdown": float("nan")}, "out of range"),
        ({"countdown": float("inf")}, "out of range"),
        ({"countdown": 1e30}, "out of range"),
        ({"countdown": [1]}, "number of seconds"),
        ({"expires": "soon"}, "ISO 8601"),
        ({"expires": float("inf")}, "out of range"),
        ({"expires": object()}, "expires"),
    ],
    ids=str,
)
def test_what_is_no_time_is_refused_with_a_hint(option, text):
    with pytest.raises((TypeError, ValueError), match=text):
        add.apply_async((1, 2), **option)


# -------------------------------------------------------------------------- serializers and such


@pytest.mark.usefixtures("nothing_sent")
def test_an_unknown_serializer_names_those_that_there_are():
    with pytest.raises(SerializerNotInstalled, match=r"morse.*json.*pickle"):
        add.apply_async((1, 2), serializer="morse")


@pytest.mark.usefixtures("nothing_sent")
def test_an_unknown_compression_is_a_key_error_that_names_those_that_there_are():
    with pytest.raises(KeyError, match=r"squeeze.*gzip"):
        add.apply_async((1, 2), compression="squeeze")


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("value", [{1, 2}, object(), add, 1j], ids=lambda v: type(v).__name__)
def test_what_json_does_not_carry_is_an_encode_error_at_the_call(value):
    with pytest.raises(EncodeError, match="json"):
        echo.apply_async((value,), serializer="json")


# ----------------------------------------------------------------------------- unpicklable things


class Model:
    def __init__(self) -> None:
        self.weights = [1, 2, 3]
        self.guard = threading.Lock()


def numbers() -> Iterator[int]:
    yield 1


UNPICKLABLE: list[Any] = [threading.Lock(), numbers(), sys.stdout, sqlite3.connect(":memory:")]


@pytest.fixture(scope="module", autouse=True)
def _closed() -> Iterator[None]:
    yield
    UNPICKLABLE[-1].close()


@pytest.mark.usefixtures("nothing_sent")
@pytest.mark.parametrize("thing", UNPICKLABLE, ids=lambda thing: type(thing).__name__)
def test_an_argument_that_cannot_be_pickled_is_named_with_its_type(thing):
    with pytest.raises(EncodeError) as caught:
        echo.delay(1, "two", thing)
    assert type(thing).__name__ in str(caught.value)
    assert "Argument 3" in str(caught.value)

    with pytest.raises(EncodeError, match="stream"):
        echo.delay(1, stream=thing)


@pytest.mark.usefixtures("nothing_sent")
def test_the_culprit_is_named_however_deep_it_lies():
    with pytest.raises(EncodeError, match=r"(?s)guard.*lock"):
        echo.delay(1, {"models": [Model()]})


@pytest.mark.usefixtures("nothing_sent")
def test_a_function_that_refers_to_something_unpicklable_names_it():
    lock = threading.Lock()

    @task
    def guarded():
        with lock:
            return 1

    with pytest.raises(EncodeError, match=r"(?s)lock"):
        guarded.delay()


def test_a_value_that_cannot_be_pickled_is_the_failure_of_the_task():
    @task
    def give():
        return {"fine": 1, "model": Model()}

    result = give.delay()

    with pytest.raises(EncodeError, match=r"(?s)guard.*lock"):
        result.get(timeout=SOON)
    assert result.state == "FAILURE"


def test_a_state_that_cannot_be_pickled_is_the_failure_of_the_task():
    @task(bind=True)
    def tell(self):
        self.update_state(state="PROGRESS", meta=threading.Lock())

    with pytest.raises(EncodeError, match="lock"):
        tell.delay().get(timeout=SOON)


def test_an_argument_that_cannot_be_loaded_is_the_failure_of_the_task():
    class Bomb:
        def __reduce__(self):
            return int, ("no number",)

    result = echo.delay(Bomb())

    with pytest.raises(Exception, match="no number"):
        result.get(timeout=SOON)
    assert result.state == "FAILURE"
    assert add.delay(1, 2).get(timeout=SOON) == 3


def test_a_serializer_that_is_not_accepted_fails_the_task_and_nobody_waits(short_path):
    code = f"""
        import nbtasks
        with nbtasks.start(workers=1, dir={str(short_path / "c")!r}):
            @nbtasks.task(bind=True, serializer="json")
            def echo(self, value):
                return value, self.request.headers
            print(echo.apply_async(("taken",), headers=dict(h=1)).get(timeout=30))
            try:
                print(echo.apply_async((1,), serializer="yaml").get(timeout=30))
            except nbtasks.exceptions.ContentDisallowed as error:
                print("ContentDisallowed:", error)
    """
    said = script(code, NBTASKS_ACCEPT_CONTENT="json").stdout

    assert "('taken', {'h': 1})" in said
    assert "ContentDisallowed" in said
    assert "yaml" in said


# --------------------------------------------------------------------------- workers and modules


def test_a_worker_that_cannot_import_a_module_names_it_and_the_interpreter(monkeypatch):
    ghost = types.ModuleType("ghost_of_this_process")
    monkeypatch.setitem(sys.modules, "ghost_of_this_process", ghost)

    @task
    def haunted():
        return ghost

    @task
    def importing():
        import no_such_module_anywhere

        return no_such_module_anywhere

    with pytest.raises(ImportError, match="ghost_of_this_process") as caught:
        haunted.delay().get(timeout=SOON)
    assert sys.executable in str(caught.value)
    assert caught.value.name == "ghost_of_this_process"
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        importing.delay().get(timeout=SOON)


def test_a_class_of_a_module_that_the_worker_lacks_names_module_and_interpreter(
    short_path, monkeypatch
):
    (short_path / "vanishing_module.py").write_text("class Thing:\n    pass\n")
    monkeypatch.syspath_prepend(str(short_path))
    import vanishing_module  # type: ignore[import-not-found]

    thing = vanishing_module.Thing()
    (short_path / "vanishing_module.py").unlink()
    result = echo.delay(thing)

    try:
        with pytest.raises(DecodeError) as caught:
            result.get(timeout=SOON)
    finally:
        del sys.modules["vanishing_module"]
    assert "vanishing_module" in str(caught.value)
    assert sys.executable in str(caught.value)
    assert isinstance(caught.value.__cause__, ImportError)


def test_a_local_module_that_fails_to_import_is_quoted(short_path, monkeypatch):
    path = short_path / "breaking_module.py"
    path.write_text("def f():\n    return 1\n")
    monkeypatch.syspath_prepend(str(short_path))
    import breaking_module  # type: ignore[import-not-found]

    @task
    def use():
        return breaking_module.f()

    assert use.delay().get(timeout=SOON) == 1
    path.write_text("def f():\n    return 2\nraise RuntimeError('half written')\n")
    os.utime(path, ns=(time.time_ns(), time.time_ns() + 10**9))
    try:
        error = use.delay().get(timeout=SOON, propagate=False)
    finally:
        del sys.modules["breaking_module"]

    assert isinstance(error, ImportError | RuntimeError)
    assert "half written" in "".join([str(error), *getattr(error, "__notes__", [])])


def test_a_name_that_nobody_knows_says_what_to_do():
    with pytest.raises(NotRegistered, match=r"no_package\.no_task") as caught:
        nbtasks.send_task("no_package.no_task").get(timeout=SOON)

    assert len(str(caught.value)) > 40


# --------------------------------------------------------------------------------------- results


def test_an_id_of_nothing_is_pending_and_get_says_that_it_is_unknown():
    result = nbtasks.AsyncResult("no such id")

    assert result.state == "PENDING"
    assert not result.exists()
    with pytest.raises(nbtasks.exceptions.TimeoutError, match="no such id"):
        result.get(timeout=0.01)


@pytest.mark.parametrize("id", [None, ""])
def test_no_id_is_a_value_error(id):
    with pytest.raises(ValueError, match="id"):
        nbtasks.AsyncResult(id)


# --------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"task_serialiser": "json"}, "task_serializer"),
        ({"task_default_priority": 12}, "task_default_priority"),
        ({"task_time_limit": -1}, "task_time_limit"),
        ({"durability": "very"}, "durability"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused_and_nothing_is_changed(setting, text):
    before = nbtasks.config.settings()

    with pytest.raises(ImproperlyConfigured, match=text):
        nbtasks.configure(**setting)

    assert nbtasks.config.settings() == before


# --------------------------------------------------------------------------------------- clusters


def test_a_second_start_with_other_options_changes_nothing(cluster):
    waiting = add.apply_async((1, 2), countdown=3600)

    with pytest.raises(ImproperlyConfigured, match=r"(?s)workers=1.*workers=3.*scale\(3\)"):
        nbtasks.start(workers=3, dir=cluster.dir)
    with pytest.raises(ImproperlyConfigured, match="durability"):
        nbtasks.start(durability="none", dir=cluster.dir)

    assert add.delay(1, 2).get(timeout=SOON) == 3
    assert waiting.exists()
    assert len(cluster.worker_pids()) == 1
    waiting.revoke()


@pytest.fixture
def place(short_path: Path, cluster: nbtasks.Cluster) -> Iterator[Path]:
    """A folder for a cluster of the test's own; afterwards calls go to the shared one again."""
    yield short_path / "own"
    nbtasks.start(dir=cluster.dir)


def test_a_store_of_a_newer_version_is_refused_and_its_tasks_are_kept(place):
    with nbtasks.start(workers=1, dir=place):
        result = add.apply_async((20, 22), countdown=0.5)
        add.delay(1, 1).get(timeout=SOON)
    store = place / "store.sqlite"
    with contextlib.closing(sqlite3.connect(store)) as database:
        (version,) = database.execute("PRAGMA user_version").fetchone()
        database.execute(f"PRAGMA user_version = {version + 1}")

    with pytest.raises(ClusterError, match=rf"(?s)version {version + 1}"):
        nbtasks.start(workers=1, dir=place)

    with contextlib.closing(sqlite3.connect(store)) as database:
        database.execute(f"PRAGMA user_version = {version}")
    with nbtasks.start(workers=1, dir=place):
        assert nbtasks.AsyncResult(result.id).get(timeout=SOON) == 42


def test_a_folder_that_may_not_be_written_is_refused(place):
    if os.getuid() == 0:
        place = Path("/proc/own")
    else:
        place.mkdir(0o500)

    with pytest.raises(ClusterError, match=r"dir"):
        nbtasks.start(workers=1, dir=place)


def test_a_path_that_is_too_long_for_a_socket_is_refused_with_both_lengths(place):
    long = place.parent / ("x" * 120)

    with pytest.raises(ClusterError) as caught:
        nbtasks.start(workers=1, dir=long)

    assert str(len(str(long / "broker.sock"))) in str(caught.value)
    assert not long.exists()


def test_connect_without_a_cluster_says_how_to_start_one(place):
    with pytest.raises(BrokerUnavailable, match="start"):
        nbtasks.connect(place)
    assert not place.exists()


def test_a_fork_is_told_to_connect_anew(cluster):
    add.delay(1, 2).get(timeout=SOON)
    code = f"""
        import os, sys, warnings
        warnings.simplefilter("ignore")
        import nbtasks
        nbtasks.connect({str(cluster.dir)!r})
        @nbtasks.task
        def add(x, y):
            return x + y
        assert add.delay(1, 2).get(timeout=30) == 3
        if pid := os.fork():
            sys.exit(os.waitpid(pid, 0)[1])
        try:
            add.delay(1, 2)
        except RuntimeError as error:
            print(type(error).__name__, error, flush=True)
        os._exit(0)
    """
    said = script(code).stdout

    assert "ForkedError" in said
    assert "fork" in said


def test_serializers_that_workers_accept_are_known_where_they_are_registered(
    make_cluster, short_path, monkeypatch
):
    from nbtasks import config
    from nbtasks.wire import codecs, payloads

    monkeypatch.setattr(config, "_configured", {})
    nbtasks.configure(accept_content=["nope"])
    with pytest.raises(ImproperlyConfigured, match="no serializer 'nope'"):
        make_cluster(dir=short_path / "a")
    payloads.register("mine", repr, eval, "application/x-mine")
    try:
        nbtasks.configure(accept_content=["json", "mine"])
        make_cluster(dir=short_path / "b")
        assert add.apply_async((1, 2), serializer="json").get(timeout=30) == 3
        assert add.apply_async((1, 2), serializer="mine").get(timeout=30) == 3
        with pytest.raises(nbtasks.exceptions.ContentDisallowed):
            add.apply_async((1, 2), serializer="pickle").get(timeout=30)
    finally:
        payloads.unregister("mine")
        codecs._custom.clear()
        config.reset()
