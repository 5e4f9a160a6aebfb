from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtasks.client.task import task
from nbtasks.core.messages import Call, Define, Fetch, Policy
from nbtasks.exceptions import NotRegistered
from nbtasks.worker import functions as module
from nbtasks.worker.functions import Functions, find_by_name
from nbtasks.worker.handover import Handover, Reply


def call(digest: bytes) -> Call:
    return Call("id", digest, "t", b"")


@task
def nothing() -> None:
    pass


class Loader:
    """Counts what is loaded; the body of a definition is its name."""

    def __init__(self) -> None:
        self.loaded: list[bytes] = []

    def __call__(self, body: bytes, buffers: Any) -> Any:
        self.loaded.append(body)
        if body == b"broken":
            raise ImportError("no such thing")
        return nothing


@pytest.fixture
def handover() -> Handover:
    return Handover(lambda: None)


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def functions(handover: Handover, loader: Loader) -> Functions:
    return Functions(handover, loader)


def send(handover: Handover, name: bytes) -> None:
    handover.asked.add(name)
    handover.replies.put(Reply(name, Define(name, "t", Policy(), name), ()))


def load(functions: Functions, handover: Handover, name: bytes) -> None:
    if functions.get(name) is None:
        send(handover, name)
        functions.policy(call(name))
        functions.load(call(name))


def test_function_is_loaded_once(functions: Functions, handover: Handover, loader: Loader) -> None:
    load(functions, handover, b"a")
    load(functions, handover, b"b")
    load(functions, handover, b"a")

    assert loader.loaded == [b"a", b"b"]


def test_functions_that_were_not_used_for_long_are_dropped(
    functions: Functions, handover: Handover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT", 2)

    for name in (b"a", b"b", b"a", b"c"):
        load(functions, handover, name)

    assert [functions.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    assert handover.asked == {b"a", b"c"}


def test_function_that_failed_to_load_is_tried_again(
    functions: Functions, handover: Handover, loader: Loader
) -> None:
    send(handover, b"broken")
    for _ in range(2):
        functions.policy(call(b"broken"))
        with pytest.raises(ImportError):
            functions.load(call(b"broken"))

    assert loader.loaded == [b"broken"] * 2


def test_definition_that_does_not_come_is_asked_for_again(
    functions: Functions, handover: Handover, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.001)
    posted: list[Any] = []

    def post(item: Any) -> None:
        posted.append(item)
        send(handover, b"late")

    monkeypatch.setattr(handover, "post", post)

    assert functions.policy(call(b"late")) == Policy()
    assert posted == [Fetch(b"late")]


def test_function_that_the_broker_lacks_is_asked_for_with_the_next_call(
    functions: Functions, handover: Handover
) -> None:
    handover.asked.add(b"x")
    handover.replies.put(Reply(b"x", None, ()))

    with pytest.raises(NotRegistered, match="does not hold"):
        functions.policy(call(b"x"))

    assert handover.asked == set()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


TASKS = """
from nbtasks.client.task import task

@task
def one(): ...

@task(name="of_lib.other.name")
def two(): ...
"""


def test_task_is_found_by_the_name_of_its_module(library: Path) -> None:
    (library / "of_lib.py").write_text(TASKS)

    assert find_by_name("of_lib.one").__name__ == "one"
    assert find_by_name("of_lib.other.name").__name__ == "two"


@pytest.mark.parametrize("name", ["of_lib.none", "no_such_module_here.f", "plain"])
def test_unknown_name_is_not_registered(library: Path, name: str) -> None:
    (library / "of_lib.py").write_text(TASKS)

    with pytest.raises(NotRegistered, match=name):
        find_by_name(name)


def test_module_that_cannot_be_imported_says_so(library: Path) -> None:
    (library / "bad_lib.py").write_text("import absent_thing_of_test\n")

    with pytest.raises(ImportError, match=r"bad_lib.*absent_thing_of_test") as caught:
        find_by_name("bad_lib.f")

    assert sys.executable in str(caught.value)
