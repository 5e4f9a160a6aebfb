from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbtasks import config
from nbtasks.client import definitions
from nbtasks.client.definitions import current
from nbtasks.client.reach import Reach
from nbtasks.core.messages import Define, Policy
from nbtasks.exceptions import EncodeError, LargeGlobalWarning
from nbtasks.wire import modules, payloads
from nbtasks.wire.payloads import load_definition
from nbtasks.wire.segments import Segments
from nbtasks.wire.shared import Shared


class Notebook(dict[str, Any]):
    """A namespace in which cells are run, as in a kernel."""

    def __init__(self) -> None:
        super().__init__(__name__="__main__")
        self.run("from nbtasks import task, Task")

    def run(self, cell: str) -> None:
        exec(compile(textwrap.dedent(cell), "<cell>", "exec"), self)

    def define(self, name: str = "f") -> Define:
        return current(self[name])[0]

    def load(self, name: str = "f") -> Any:
        define, buffers = current(self[name])
        return load_definition(define.body, buffers)


@pytest.fixture
def notebook() -> Iterator[Notebook]:
    definitions.forget()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # all tests call their task f
        yield Notebook()
    definitions.forget()
    config.reset()


@pytest.fixture
def count_pickles(monkeypatch) -> Callable[[], int]:
    """Say how often a task was pickled."""
    calls = []
    original = payloads.pickle_task

    def counted(task: Any) -> Any:
        calls.append(task)
        return original(task)

    monkeypatch.setattr(payloads, "pickle_task", counted)
    return lambda: len(calls)


# ------------------------------------------------------------------------------- what is shipped


def test_function_travels_with_its_globals(notebook):
    notebook.run(
        """
        import math
        K = 3
        def helper(x): return math.sqrt(x) * K
        @task
        def f(x): return helper(x)
        """
    )

    assert notebook.load()(16) == 12.0


def test_task_that_calls_itself_travels(notebook):
    notebook.run(
        """
        @task
        def f(n): return 1 if n == 0 else n * f(n - 1)
        """
    )

    assert notebook.load()(5) == 120


def test_tasks_that_call_each_other_travel(notebook):
    notebook.run(
        """
        @task
        def f(n): return True if n == 0 else g(n - 1)
        @task
        def g(n): return False if n == 0 else f(n - 1)
        """
    )

    assert notebook.load()(10) is True
    assert notebook.load("g")(10) is False


def test_base_class_of_the_notebook_travels(notebook):
    notebook.run(
        """
        class Base(Task):
            colour = "red"
            def paint(self): return self.colour * TIMES
        TIMES = 2
        @task(bind=True, base=Base)
        def f(self): return self.paint()
        """
    )

    assert notebook.load()() == "redred"


def test_recursive_cached_function_travels(notebook):
    notebook.run(
        """
        import functools
        @functools.cache
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @task
        def f(n): return fib(n)
        """
    )

    assert notebook.load()(60) == 1548008755920


def test_attributes_of_a_cached_function_travel(notebook, count_pickles):
    notebook.run(
        """
        import functools
        @functools.lru_cache
        def scaled(x): return x * scaled.factor
        scaled.factor = 3
        @task
        def f(x): return scaled(x)
        """
    )
    assert notebook.load()(2) == 6
    notebook.define()
    assert count_pickles() == 1

    notebook.run("scaled.factor = 4")

    assert notebook.load()(2) == 8


def test_function_that_looks_at_the_class_of_its_argument_travels(notebook, count_pickles):
    notebook.run(
        """
        import functools
        @functools.singledispatch
        def show(x):
            "Show it."
            return show.other
        @show.register(list)
        def _(x): return [show(item) for item in x]
        show.other = "?"
        @task
        def f(x): return show(x)
        @task
        def g(): return show.__name__, show.__doc__, show.registry[list] is show.dispatch(list)
        """
    )
    assert notebook.load()([1, [2]]) == ["?", ["?"]]
    assert notebook.load("g")() == ("show", "Show it.", True)
    notebook.define()
    assert count_pickles() == 2

    notebook.run("show.register(int, lambda x: OFFSET + x); OFFSET = 1")
    assert notebook.load()([1, [2.5]]) == [2, ["?"]]
    notebook.run("OFFSET = 2; show.other = '!'")

    assert notebook.load()([1, [2.5]]) == [3, ["!"]]
    with pytest.raises(TypeError, match="show requires at least 1"):
        notebook.load("g").__wrapped__.__globals__["show"]()


def test_method_that_looks_at_the_class_of_its_argument_travels(notebook):
    notebook.run(
        """
        import functools
        class Shower:
            @functools.singledispatchmethod
            def show(self, x): return "?"
            @show.register(int)
            def _(self, x): return x + 1
        @task
        def f(x): return Shower().show(x)
        """
    )

    assert notebook.load()(1) == 2
    assert notebook.load()("a") == "?"


def test_culprit_among_what_is_done_with_a_class_is_named(notebook):
    notebook.run(
        """
        import functools, threading
        lock = threading.Lock()
        @functools.singledispatch
        def show(x): pass
        @show.register(int)
        def _(x): return lock
        @task
        def f(x): return show(x)
        """
    )

    with pytest.raises(EncodeError, match="'show' does with int → the global 'lock'"):
        notebook.define()


def test_context_manager_that_decorates_travels(notebook):
    notebook.run(
        """
        import contextlib
        entered = []
        @contextlib.contextmanager
        def noting(word):
            entered.append(word)
            yield
        @task
        @noting("hello")
        def f(): return entered
        """
    )
    there = notebook.load()

    assert [list(there()), list(there())] == [["hello"], ["hello"] * 2]


def test_context_manager_that_is_entered_is_named(notebook):
    notebook.run(
        """
        import contextlib
        manager = contextlib.contextmanager(lambda: (_ for _ in "a"))()
        manager.__enter__()
        @task
        def f(): return manager
        """
    )

    with pytest.raises(EncodeError, match="'manager'"):
        notebook.define()


def test_large_array_among_the_globals_travels_beside_the_body(notebook):
    notebook.run(
        """
        import numpy
        data = numpy.ones(100_000)
        @task
        def f(): return data.sum()
        """
    )

    define, buffers = current(notebook["f"])

    assert (define.frames, len(buffers)) == (1, 1)
    assert notebook.load()() == 100_000


@pytest.mark.parametrize(
    ("module", "name"),
    [("random", "random"), ("random", "shuffle"), ("numpy.random", "rand")],
)
def test_method_of_an_instance_that_a_module_hides_is_taken_from_there(
    notebook, count_pickles, module, name
):
    notebook.run(f"import {module} as module\nfrom {module} import {name}")
    notebook.run(f"@task\ndef f(): return {name} is module.{name}")

    assert notebook.load()()
    assert notebook.define() is notebook.define()
    assert count_pickles() == 1


def test_method_of_ones_own_instance_takes_its_state_along(notebook):
    notebook.run("import random\ndraw = random.Random(7).random\n@task\ndef f(): return draw()")

    assert notebook.load()() == notebook["draw"]()


def test_shared_value_among_the_globals_is_pickled_once(notebook, count_pickles, short_path):
    notebook["data"] = Shared(list(range(100_000)), Segments(short_path / "segments"))
    notebook.run("@task\ndef f(): return data[-1]")

    first, same = current(notebook["f"]), current(notebook["f"])

    assert same is first
    assert count_pickles() == 1
    assert notebook.load()() == 99_999


def test_body_over_the_limit_is_the_first_frame(notebook):
    notebook.run("text = 'x' * 100_000\n@task\ndef f(): return len(text)")

    define, buffers = current(notebook["f"])

    assert (define.body, define.frames, len(buffers)) == (b"", 1, 1)
    assert notebook.load()() == 100_000


def test_unpicklable_global_is_named(notebook):
    notebook.run(
        """
        import threading
        lock = threading.Lock()
        def careful(): return lock
        @task
        def f(): return careful()
        """
    )

    with pytest.raises(EncodeError) as caught:
        current(notebook["f"])

    text = "The global 'careful' of the function 'f' → the global 'lock' of the function 'careful'"
    assert str(caught.value).startswith(f"{text}, a _thread.lock, cannot be pickled")


def test_serializer_of_ones_own_travels_with_the_task(notebook):
    payloads.register("mine", lambda value: str(value), lambda text: int(text), "x/mine")
    try:
        notebook.run("@task(serializer='mine')\ndef f(): pass")
        define, buffers = current(notebook["f"])
        body = payloads.dumps(5, "mine").body
    finally:
        payloads.unregister("mine")

    load_definition(define.body, buffers)

    assert payloads.loads(body) == 5
    payloads.unregister("mine")


# ------------------------------------------------------------------------------ what has changed


PLAIN = """
import math, os.path
from collections import OrderedDict
NUMBER, TEXT, PAIR, LIST, DICT = 1, "a", (1, (2, 3)), [1, [2]], {"k": [1]}
class Base:
    LEVEL = 1
    def level(self): return self.LEVEL
class Shape(Base):
    SIDES = 4
    @staticmethod
    def area(x): return x * NUMBER
    @property
    def sides(self): return self.SIDES
def inner(x, step=LIST): return x + len(TEXT)
def outer():
    cell = 5
    def closure(x): return inner(x) + cell
    return closure
closure = outer()
class TaskBase(Task):
    flavour = "sweet"
@task(base=TaskBase)
def other(x): return x
@task(bind=True, base=TaskBase)
def f(self, x=NUMBER):
    return math.pi, PAIR, LIST, DICT, Shape, closure, inner, other, os.path.join, print, OrderedDict
"""

CHANGES = {
    "a global is rebound": "NUMBER = 2",
    "a global is rebound to an equal value of another type": "NUMBER = True",
    "a list is appended to": "LIST.append(3)",
    "an inner list is changed": "LIST[1][0] = 3",
    "a dict gets a key": "DICT['new'] = 1",
    "a value in a dict changes": "DICT['k'].append(2)",
    "a key in a dict is renamed": "DICT['k2'] = DICT.pop('k')",
    "a helper is defined anew": "def inner(x, step=LIST): return x",
    "the code of a helper is replaced": "inner.__code__ = (lambda x, step: 0).__code__",
    "a default is replaced": "inner.__defaults__ = (5,)",
    "a helper gets an attribute": "inner.calls = 1",
    "a closure cell is changed": "closure.__closure__[0].cell_contents = 6",
    "an attribute of a class changes": "Shape.SIDES = 5",
    "an attribute of a base class changes": "Base.LEVEL = 2",
    "a method is replaced": "Shape.area = staticmethod(lambda x: x)",
    "a class gets a method": "Shape.new = lambda self: 1",
    "a class is defined anew": "class Shape(Base): pass",
    "a base class of the task changes": "TaskBase.flavour = 'sour'",
    "an option of the task changes": "f.max_retries = 7",
    "an option of a task that it names changes": "other.max_retries = 7",
    "a task that it names is defined anew": "@task(base=TaskBase)\ndef other(x): return x + 1",
    "a builtin is hidden": "print = len",
    "a global becomes an array": "import numpy\nPAIR = numpy.zeros(3)",
    "the function's own code changes": "f.__wrapped__.__code__ = (lambda self, x: 1).__code__",
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_is_seen(notebook, change):
    notebook.run(PLAIN)
    before = notebook.define().digest

    notebook.run(change)

    assert notebook.define().digest != before


def test_nothing_is_pickled_again_as_long_as_nothing_changes(notebook, count_pickles):
    notebook.run(PLAIN)
    first = current(notebook["f"])

    notebook.run("unrelated = 1")
    again = [current(notebook["f"]) for _ in range(3)]

    assert all(definition is first for definition in again)
    assert count_pickles() == 1


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_change_is_pickled_once(notebook, count_pickles, change):
    notebook.run(PLAIN)
    notebook.define()

    notebook.run(change)
    for _ in range(3):
        notebook.define()

    assert count_pickles() == 2 or Reach(notebook["f"]).volatile


#: What never changes itself, and holds what may: `held` is rebuilt from nothing but it.
HOLDERS = {
    "a method that C has wrapped": "held = (many := [1]).__contains__",
    "the call of a function": "held = (lambda: many).__call__; many = [1]",
    "a generic type": "class C: many = [1]\nheld, many = list[C], C.many",
    "a generic type of typing": "class C: many = [1]\nheld, many = typing.List[C], C.many",
    "a union": "class C: many = [1]\nheld, many = C | int, C.many",
    "an optional type": "class C: many = [1]\nheld, many = typing.Optional[C], C.many",
    "an annotated type": "many = [1]; held = typing.Annotated[int, many]",
    "a new type": "class C: many = [1]\nheld, many = typing.NewType('held', C), C.many",
    "a type variable": "class C: many = [1]\nheld, many = typing.TypeVar('held', bound=C), C.many",
    "a slice": "many = [1]; held = slice(many)",
    "a signature": "many = [1]\ndef g(x=many): pass\nheld = inspect.signature(g)",
    "an attribute of a partial": "held = partial(max); held.many = many = [1]",
    "an annotation": "class C: many = [1]\nmany = C.many\ndef held(x): pass\n"
    "held.__annotations__ = {'x': C}",  # this file's are text
    "a field": "many = [1]\n@dataclass\nclass held:\n  x: int = field(metadata={1: many})",
}


@pytest.mark.parametrize("held", HOLDERS.values(), ids=HOLDERS)
def test_change_of_what_is_held_is_seen(notebook, count_pickles, held):
    notebook.run("import inspect, typing\nfrom functools import partial")
    notebook.run("from dataclasses import dataclass, field")
    notebook.run(held)
    notebook.run("@task\ndef f(): return held")
    before = notebook.define().digest
    assert (notebook.define().digest, count_pickles()) == (before, 1)

    notebook.run("many.append(2)")

    assert notebook.define().digest != before


@pytest.mark.parametrize(
    "change",
    ["Planet.EARTH.mass = 7", "Planet.EARTH.moons = 1", "Planet.EARTH.many.append(1)"],
)
def test_change_of_a_member_of_an_enumeration_is_seen(notebook, change):
    notebook.run(
        """
        import enum
        class Planet(enum.Enum):
            EARTH = 3
            def __init__(self, mass): self.mass, self.many = mass, []
        @task
        def f(): return vars(Planet.EARTH)
        """
    )
    before = notebook.define().digest
    assert notebook.define().digest == before

    notebook.run(change)

    assert notebook.define().digest != before


@pytest.mark.parametrize(
    "annotation",
    ["collections.abc.Callable[[int], str]", "Point", "collections.abc.Sequence[Point]"],
)
def test_ordinary_annotation_costs_no_pickling_at_each_call(notebook, count_pickles, annotation):
    notebook.run("import collections.abc, typing")
    notebook.run("class Point(typing.NamedTuple):\n  x: int")
    notebook.run("@task\ndef f(x): return Point")
    notebook.run(f"f.run.__annotations__['x'] = {annotation}")  # this file's are text

    definitions = [notebook.define() for _ in range(3)]

    assert all(definition is definitions[0] for definition in definitions)
    assert count_pickles() == 1


def test_scalar_with_fields_may_change(notebook):
    notebook.run("import numpy\nrow = numpy.zeros(1, [('x', int)])[0]\n@task\ndef f(): return row")
    before = notebook.define().digest

    notebook.run("row['x'] = 1")

    assert notebook.define().digest != before


def test_class_that_is_registered_later_is_seen(notebook, count_pickles):
    notebook.run("import abc\nclass A(abc.ABC): pass\nclass B: pass")
    notebook.run("@task\ndef f(): return issubclass(B, A)")
    before = notebook.define().digest
    assert (notebook.define().digest, count_pickles()) == (before, 1)

    notebook.run("A.register(B)")

    assert notebook.define().digest != before
    assert notebook.load()()


def test_change_taken_back_gives_the_same_digest(notebook):
    notebook.run(PLAIN)
    before = notebook.define().digest

    notebook.run("LIST.append(3); NUMBER = 2")
    between = notebook.define().digest
    notebook.run("LIST.pop(); NUMBER = 1")

    assert before != between
    assert notebook.define().digest == before


def test_object_that_may_change_without_a_trace_is_pickled_each_time(notebook, count_pickles):
    notebook.run(
        """
        class Config: pass
        config = Config()
        config.rate = 1
        @task
        def f(): return config.rate
        """
    )
    first = current(notebook["f"])
    same = current(notebook["f"])

    notebook.run("config.rate = 2")
    changed = current(notebook["f"])

    assert same is first
    assert changed[0].digest != first[0].digest
    assert count_pickles() == 3


def test_array_that_is_written_to_is_seen(notebook):
    notebook.run("import numpy\ndata = numpy.zeros(50_000)\n@task\ndef f(): return data")
    before = notebook.define().digest

    notebook.run("data[7] = 1")

    assert notebook.define().digest != before
    assert notebook.load()()[7] == 1


def test_array_that_is_deleted_is_let_go(notebook):
    notebook.run("import numpy\ndata = numpy.zeros(50_000)\n@task\ndef f(): return data")
    notebook.define()
    there = weakref.ref(notebook["data"])

    notebook.run("del data")

    assert there() is None


def test_task_that_reaches_what_changes_without_a_trace_may_cease_to(notebook, count_pickles):
    notebook.run("import numpy\ndata = numpy.zeros(9)\n@task\ndef f(): return data")
    notebook.define()

    notebook.run("data = 1")
    assert notebook.load()() == 1
    before = count_pickles()
    notebook.define()

    assert count_pickles() == before


def test_name_that_comes_later_is_seen(notebook):
    notebook.run("@task\ndef f(): return later()")
    before = notebook.define().digest

    notebook.run("def later(): return 5")

    assert notebook.define().digest != before
    assert notebook.load()() == 5


def test_name_that_goes_is_seen(notebook):
    notebook.run("K = 1\n@task\ndef f(): return K")
    before = notebook.define().digest

    notebook.run("del K")

    assert notebook.define().digest != before


def test_cell_run_again_unchanged_gives_the_same_digest(notebook):
    cell = "@task\ndef f(x): return [g * 2 for g in range(x)]"
    notebook.run(cell)
    before = notebook.define().digest

    notebook.run(cell)

    assert notebook.define().digest == before


def test_cell_run_again_changed_gives_another_digest(notebook):
    notebook.run("@task\ndef f(x): return 1")
    before = notebook.define().digest

    notebook.run("@task\ndef f(x): return 2")

    assert notebook.define().digest != before


def test_digest_does_not_depend_on_what_was_kept(notebook):
    notebook.run(PLAIN)
    before = notebook.define().digest

    definitions.forget()

    assert notebook.define().digest == before


def test_change_of_settings_is_seen(notebook):
    notebook.run("@task\ndef f(): pass")
    before = notebook.define()

    config.configure(task_acks_late=True)

    assert notebook.define().policy.acks_late
    assert notebook.define().digest != before.digest


def test_task_that_is_gone_is_forgotten(notebook):
    notebook.run("@task\ndef f(): pass")
    notebook.define()
    from nbtasks.client.task import tasks

    del notebook["f"], tasks["f"]

    assert not definitions._known


def test_two_tasks_of_one_name_keep_their_own_definitions(notebook):
    notebook.run("@task\ndef f(): return 1")
    first = notebook["f"]
    notebook.run("@task\ndef f(): return 2")

    digests = {current(first)[0].digest, notebook.define().digest}

    assert len(digests) == 2
    assert load_definition(*(current(first)[0].body, current(first)[1]))() == 1


def test_functions_of_the_library_are_not_walked(notebook):
    notebook.run(
        """
        import json, numpy, math
        from functools import partial, reduce
        from numpy import sin
        from datetime import timedelta
        from pathlib import Path
        import re, logging
        STEP, HERE, DIGITS = timedelta(1), Path("x"), re.compile("[0-9]+")
        log = logging.getLogger("x")
        add = partial(max, 1)
        @task
        def f(): return json.dumps, numpy, sin, STEP, HERE, DIGITS, log, add, reduce, math.sin
        """
    )

    reach = Reach(notebook["f"])

    assert not reach.volatile
    assert len(reach.functions) == 1


def test_long_list_is_pickled_rather_than_compared(notebook):
    notebook.run("data = list(range(100_000))\n@task\ndef f(): return data")

    assert Reach(notebook["f"]).volatile


# ----------------------------------------------------------------------------------- the policy


class Options:
    """A task as far as its policy goes."""

    def __init__(self, **options: Any) -> None:
        self.__dict__.update(options)


def test_policy_of_a_task_without_options_is_the_default():
    assert definitions.policy_of(Options()) == Policy()


def test_policy_follows_the_options():
    policy = definitions.policy_of(
        Options(
            rate_limit="10/m",
            acks_late=True,
            acks_on_failure_or_timeout=False,
            acks_on_timeout=True,
            retry_on_worker_lost=True,
            max_retries=None,
            ignore_result=True,
            store_errors_even_if_ignored=True,
            time_limit=5,
            memory_limit="300MB",
            track_started=True,
        )
    )

    assert policy == Policy(
        interval=6.0,
        acks_late=True,
        acks_on_failure=False,
        acks_on_timeout=True,
        retry_on_worker_lost=True,
        max_retries=None,
        ignore_result=True,
        store_errors_even_if_ignored=True,
        time_limit=5.0,
        memory_limit=300_000_000,
        track_started=True,
    )


@pytest.mark.parametrize(
    ("option", "value"), [("rate_limit", "often"), ("time_limit", 0), ("memory_limit", "much")]
)
def test_option_that_cannot_be_used_is_an_error_at_the_call(option, value):
    with pytest.raises(ValueError, match=repr(value)):
        definitions.policy_of(Options(**{option: value}))


# -------------------------------------------------------------------------------- large globals


def test_large_global_is_named_once(notebook):
    notebook.run(
        """
        import numpy
        small = 1
        table = numpy.zeros(2_000_000)
        @task
        def f(): return table[small]
        """
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        current(notebook["f"])
        notebook.run("table[0] = 1")
        current(notebook["f"])

    found = [warning for warning in caught if warning.category is LargeGlobalWarning]
    assert len(found) == 1
    assert "'f' names the global 'table', so 16 MB travel" in str(found[0].message)
    assert found[0].filename == __file__


# ------------------------------------------------------------------------------- local modules


def test_own_files_are_local_and_installed_ones_are_not(tmp_path):
    assert modules.is_local(str(tmp_path / "helper.py"))
    assert modules.is_local(__file__)
    # On some systems math is built in and has no file.
    compiled = getattr(math, "__file__", None)
    for installed in (os.__file__, pytest.__file__, definitions.__file__, compiled, None):
        assert not modules.is_local(installed)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder beside the notebook, from which modules are imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def test_local_modules_are_followed_through_their_imports(folder):
    (folder / "pack").mkdir()
    texts = {
        "one.py": "import two, json\nfrom pack.three import x\n",
        "two.py": "def lazy():\n    import four\n",
        "four.py": "try:\n    from five import (a,  # why\n        b)\nexcept ImportError: pass\n",
        "five.py": "a = b = 1",
        "pack/__init__.py": "",
        "pack/three.py": "from . import six\nfrom .seven import y as x\n",
        "pack/six.py": "import os; import one",
        "pack/seven.py": "y = 1",
        "unused.py": "",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)

    stamps = modules.stamps(["one", "json", "nowhere"])

    names = ["five", "four", "one", "pack", "pack.seven", "pack.six", "pack.three", "two"]
    assert [stamp.name for stamp in stamps] == names
    assert {stamp.is_package for stamp in stamps if stamp.name == "pack"} == {True}


def test_edit_of_a_local_module_gives_another_digest(folder, notebook, count_pickles):
    (folder / "helper_a.py").write_text("import helper_b\ndef g(): return helper_b.VALUE\n")
    (folder / "helper_b.py").write_text("VALUE = 1\n")
    notebook.run("import helper_a\n@task\ndef f(): return helper_a.g()")
    digests = [notebook.define().digest, notebook.define().digest]

    (folder / "helper_b.py").write_text("VALUE = 2\n")
    digests.append(notebook.define().digest)
    (folder / "helper_b.py").write_text("VALUE = 1\n")
    digests.append(notebook.define().digest)

    assert digests[0] == digests[1] == digests[3] != digests[2]


def test_module_that_is_imported_in_the_body_counts(folder, notebook):
    (folder / "helper_c.py").write_text("VALUE = 1\n")
    notebook.run("@task\ndef f():\n    import helper_c\n    return helper_c.VALUE")
    before = notebook.define().digest

    (folder / "helper_c.py").write_text("VALUE = 2\n")

    assert notebook.define().digest != before


def test_old_file_is_looked_at_by_stat_only(folder, notebook, monkeypatch):
    path = folder / "helper_d.py"
    path.write_text("VALUE = 1\n")
    long_ago = time.time() - 100
    os.utime(path, (long_ago, long_ago))
    notebook.run("import helper_d\n@task\ndef f(): return helper_d.VALUE")
    first = current(notebook["f"])
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("a file was opened"))

    assert current(notebook["f"]) is first


def test_edit_of_an_old_file_shows_at_the_next_call(folder, notebook):
    path, other = folder / "helper_e.py", folder / "other.txt"
    for file, value in ((path, 1), (other, 3)):
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (time.time() - 100,) * 2)
    notebook.run("import helper_e\n@task\ndef f(): return helper_e.VALUE")
    digests = [notebook.define().digest, notebook.define().digest]

    path.write_text("VALUE = 2\n")
    digests.append(notebook.define().digest)
    other.replace(path)
    digests.append(notebook.define().digest)
    path.unlink()
    digests.append(notebook.define().digest)

    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


@pytest.fixture
def looked(folder, monkeypatch):
    """Return files, and a function that asks about them so many microseconds after the last time.

    It tells whether that took a look.
    """
    path = folder / "helper_g.py"
    path.write_text("VALUE = 1\n")
    os.utime(path, (time.time() - 100,) * 2)
    clock, looks, stat = [0], [], os.stat

    def look(path, **how):
        looks.append(path)
        return stat(path, **how)

    monkeypatch.setattr("nbtasks.wire.modules.time.perf_counter_ns", lambda: clock[0])
    monkeypatch.setattr("nbtasks.wire.modules.time.thread_time_ns", lambda: clock[0])
    monkeypatch.setattr("nbtasks.wire.modules.os.stat", look)
    files = modules.Files(modules.stamps(["helper_g"]))

    def asked_after(microseconds):
        clock[0] += microseconds * 1000
        before = len(looks)
        assert files.unchanged()
        return len(looks) > before

    asked_after(1_000_000)
    asked_after(1_000_000)
    return asked_after


def test_row_of_quick_calls_looks_at_files_now_and_then(looked):
    looks = [looked(20) for _ in range(1000)]

    assert 30 <= sum(looks) <= 50  # in 20 ms


def test_call_after_a_pause_in_which_a_file_could_be_edited_looks_at_it(looked):
    assert not looked(20)
    assert looked(60)
    assert not looked(20)
    assert looked(60)


@pytest.mark.parametrize("change", ["importlib.reload(helper_f)", "del sys.modules['helper_f']"])
def test_function_that_its_module_does_not_have_any_more_is_pickled_again(
    folder, notebook, count_pickles, change
):
    (folder / "helper_f.py").write_text("def g(): return 1\n")
    notebook.run("import helper_f, importlib, sys\nfrom helper_f import g")
    notebook.run("@task\ndef f(): return g()")
    notebook.define()
    before = count_pickles()

    notebook.run(change)
    notebook.define()

    assert count_pickles() == before + 1


# --------------------------------------------------------------- real kernels, real workers

PROCESS = '''
import base64, json, linecache, sys, traceback
from nbtasks.client import definitions
from nbtasks.wire import payloads

def cell(text):
    """Run a cell as ipykernel does: its text is in memory only."""
    name = f"/tmp/ipykernel_1/{abs(hash(text))}.py"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    exec(compile(text, name, "exec"), globals())

def call(name, args):
    define, buffers = definitions.current(globals()[name])
    args = payloads.join(*payloads.dumps_arguments(eval(args), {}))
    return define.digest, payloads.join(define.body, buffers), args

loaded = {}

def work(digest, definition, args):
    try:
        if digest not in loaded:
            loaded[digest] = payloads.load_definition(definition)
        args, kwargs = payloads.loads(args)
        value = loaded[digest](*args, **kwargs)
        return payloads.join(*payloads.dumps(value)), ""
    except BaseException as error:
        return payloads.join(*payloads.dumps_exception(error)), traceback.format_exc()

def show(value, text):
    value = payloads.loads(value)
    globals()["_"] = value
    return f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else repr(value)

for line in sys.stdin:
    what, *args = json.loads(line)
    args = [base64.b64decode(a[1]) if isinstance(a, list) else a for a in args]
    try:
        answer = globals()[what](*args)
    except BaseException:
        answer = ("error", traceback.format_exc())
    if not isinstance(answer, tuple):
        answer = (answer,)
    answer = [["b", base64.b64encode(a).decode()] if isinstance(a, bytes) else a for a in answer]
    print(json.dumps(answer), flush=True)
'''


class Process:
    """An interpreter that plays a kernel or a worker."""

    def __init__(self, folder: Path) -> None:
        program = folder / ".process.py"
        program.write_text(f"import sys; sys.path[0] = ''\n{PROCESS}")
        self.popen = subprocess.Popen(
            [sys.executable, str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(definitions.__file__).parents[2])},
        )

    def __call__(self, what: str, *args: Any) -> list[Any]:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.write(json.dumps([what, *args]) + "\n")
        self.popen.stdin.flush()
        answer = json.loads(self.popen.stdout.readline())
        assert answer[:1] != ["error"], answer[1]
        return answer

    def end(self) -> None:
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.popen.stdin.close()
        self.popen.wait(10)
        self.popen.stdout.close()


class Pair:
    """A kernel and a worker, each an interpreter of its own, in two folders."""

    def __init__(self, kernel: Process, worker: Process) -> None:
        self.kernel = kernel
        self.worker = worker
        #: Text of the last remote traceback.
        self.traceback = ""

    def cell(self, text: str) -> None:
        self.kernel("cell", textwrap.dedent(text))

    def send(self, name: str, args: str = "()") -> list[Any]:
        return self.kernel("call", name, args)

    def run(self, sent: list[Any]) -> str:
        value, self.traceback = self.worker("work", *sent)
        return str(self.kernel("show", value, "")[0])

    def call(self, name: str, args: str = "()") -> str:
        return self.run(self.send(name, args))


@pytest.fixture
def pair(tmp_path) -> Iterator[Pair]:
    for name in ("kernel", "worker"):
        (tmp_path / name).mkdir()
    kernel, worker = Process(tmp_path / "kernel"), Process(tmp_path / "worker")
    found = Pair(kernel, worker)
    found.cell("from nbtasks import task, Task")
    yield found
    kernel.end()
    worker.end()


@pytest.fixture
def beside(tmp_path, pair) -> Path:
    """The folder of the notebook."""
    return tmp_path / "kernel"


def test_classes_of_the_notebook_go_there_and_back(pair):
    pair.cell(
        """
        class Point:
            made = 0
            def __init__(self, x): self.x = x
        @task
        def move(point, by): return isinstance(point, Point), Point(point.x + by)
        """
    )

    pair.call("move", "(Point(1), 2)")
    pair.cell("assert _[0] is True and type(_[1]) is Point and _[1].x == 3")


def test_exceptions_of_the_notebook_come_back_with_the_lines_of_their_cell(pair):
    pair.cell(
        """
        class Trouble(Exception): pass
        @task
        def f(x):
            raise Trouble(x)  # this very line
        """
    )

    assert pair.call("f", "(5,)") == "Trouble: 5"
    assert "raise Trouble(x)  # this very line" in pair.traceback
    pair.cell("assert type(_) is Trouble")


def test_worker_runs_a_local_module_as_it_is_on_disk_at_the_call(pair, beside):
    helper = beside / "helper.py"
    helper.write_text("def value(): return 1\n")
    pair.cell("import helper\n@task\ndef f(): return helper.value()")
    answers = [pair.call("f")]

    for n in range(2, 6):  # of the same length, within the same second
        helper.write_text(f"def value(): return {n}\n")
        answers.append(pair.call("f"))

    assert answers == ["1", "2", "3", "4", "5"]


def test_worker_runs_what_a_local_module_imports_as_it_is_on_disk(pair, beside):
    (beside / "pack").mkdir()
    (beside / "pack/__init__.py").write_text("from .inner import value\n")
    (beside / "pack/inner.py").write_text("from . import deep\ndef value(): return deep.N\n")
    (beside / "pack/deep.py").write_text("N = 1\n")
    pair.cell("from pack import value\n@task\ndef f(): return value()")
    answers = [pair.call("f")]

    (beside / "pack/deep.py").write_text("N = 2\n")
    answers.append(pair.call("f"))

    assert answers == ["1", "2"]


def test_edit_seen_through_one_task_reaches_the_module_of_another(pair, beside):
    (beside / "common.py").write_text("N = 1\n")
    (beside / "first.py").write_text("import common\ndef get(): return common.N\n")
    (beside / "second.py").write_text("from common import N\ndef get(): return N\n")
    pair.cell("import first, second\n@task\ndef f(): return first.get()")
    pair.cell("@task\ndef g(): return second.get()")
    answers = [pair.call("f"), pair.call("g")]

    (beside / "common.py").write_text("N = 2\n")
    answers += [pair.call("f"), pair.call("g")]

    assert answers == ["1", "1", "2", "2"]


def test_function_of_a_local_module_as_an_argument_is_as_it_is_on_disk(pair, beside):
    (beside / "helper.py").write_text("def value(): return 1\n")
    pair.cell("import helper\n@task\ndef apply(function): return function()")
    answers = [pair.call("apply", "(helper.value,)")]

    (beside / "helper.py").write_text("def value(): return 2\n")
    answers.append(pair.call("apply", "(helper.value,)"))

    assert answers == ["1", "2"]


def test_module_imported_in_the_body_is_as_it_is_on_disk(pair, beside):
    (beside / "helper.py").write_text("N = 1\n")
    pair.cell("@task\ndef f():\n    import helper\n    return helper.N")
    answers = [pair.call("f")]

    (beside / "helper.py").write_text("N = 2\n")
    answers.append(pair.call("f"))

    assert answers == ["1", "2"]


def test_task_of_a_local_module_runs_as_it_is_on_disk(pair, beside):
    text = "import threading\nfrom nbtasks import task\nlock = threading.Lock()\n"
    text += "@task\ndef work(x):\n    with lock: return x + {n}\n"
    (beside / "jobs.py").write_text(text.format(n=1))
    pair.cell("import jobs; from jobs import work")
    answers = [pair.call("work", "(1,)")]

    (beside / "jobs.py").write_text(text.format(n=2))
    answers.append(pair.call("work", "(1,)"))

    assert answers == ["2", "3"]


def test_task_of_a_local_module_keeps_the_decorators_below_it(pair, beside):
    (beside / "doubling.py").write_text(
        textwrap.dedent(
            """
            import functools
            from nbtasks import task

            def twice(function):
                @functools.wraps(function)
                def doubled(*args):
                    return 2 * function(*args)
                return doubled

            @task
            @twice
            @twice
            def four_times(x): return x

            class Doubling:
                @staticmethod
                @task
                @twice
                def double(x): return x

            @task
            @functools.cache
            @twice
            def double_once(x): return x
            """
        )
    )
    pair.cell("from doubling import Doubling, double_once, four_times; double = Doubling.double")

    assert pair.call("four_times", "(1,)") == "4"
    assert pair.call("double", "(1,)") == "2"
    assert pair.call("double_once", "(1,)") == "2"


def test_queued_call_keeps_the_code_that_it_was_sent_with(pair):
    pair.cell("@task\ndef f(): return 1")
    queued = pair.send("f")
    pair.cell("@task\ndef f(): return 2")

    assert [pair.call("f"), pair.run(queued)] == ["2", "1"]


def test_globals_are_as_they_were_at_the_call(pair):
    pair.cell("seen = [1]\n@task\ndef f(): return seen")
    sent = [pair.send("f")]
    pair.cell("seen.append(2)")
    sent.append(pair.send("f"))
    pair.cell("seen = []")
    sent.append(pair.send("f"))

    assert [pair.run(call) for call in sent] == ["[1]", "[1, 2]", "[]"]


def test_missing_module_is_named_with_the_interpreter(pair, beside):
    (beside / "gone.py").write_text("def value(): return 1\n")
    pair.cell("import gone\n@task\ndef f(): return gone.value()")
    sent = pair.send("f")
    (beside / "gone.py").unlink()

    answer = pair.run(sent)

    assert answer.startswith("ImportError: The task 'f' needs the module 'gone', which the interp")
    assert sys.executable in answer
    assert "pip install gone" in answer


def test_module_that_fails_while_it_is_imported_is_an_import_error(pair, beside):
    (beside / "shaky.py").write_text("def value(): return 1\n")
    pair.cell("import shaky\n@task\ndef f(): return shaky.value()")
    (beside / "shaky.py").write_text("raise ValueError('not today')\n")

    answer = pair.call("f")

    assert answer.startswith("ImportError: The task 'f' needs the module 'shaky', and importing it")
    assert "ValueError: not today" in answer


def test_function_that_is_gone_from_its_module_is_an_import_error(pair, beside):
    (beside / "helper.py").write_text("def value(): return 1\n")
    pair.cell("from helper import value\n@task\ndef f(): return value()")
    (beside / "helper.py").write_text("def other(): return 1\n")

    answer = pair.call("f")

    assert answer.startswith("ImportError: The task 'f' cannot be loaded")
    assert "value" in answer


def test_cached_bytecode_of_an_earlier_edit_is_not_believed(pair, beside):
    helper = beside / "helper.py"
    helper.write_text("def value(): return 1\n")
    pair.cell("import helper\n@task\ndef f(): return helper.value()")
    edited = time.time() - 50
    # As if Python had compiled a first text, and it was edited within the same second.
    os.utime(helper, (edited, edited))
    subprocess.run(
        [sys.executable, "-c", "import helper"],
        cwd=beside,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        check=True,
    )
    for cached in (beside / "__pycache__").glob("helper*.pyc"):
        os.utime(cached, (edited + 0.5, edited + 0.5))
    helper.write_text("def value(): return 2\n")
    os.utime(helper, (edited, edited))

    assert pair.call("f") == "2"
