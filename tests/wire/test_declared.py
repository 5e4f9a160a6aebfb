"""What later versions of Python let notebooks declare, sent by value to another process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from nbtasks.wire import declared, pickling
from nbtasks.wire.payloads import dumps, join, loads

PROGRAM = """
import sys
from nbtasks.wire.payloads import *
f = loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(join(*dumps(f())))
"""


def run(cell: str) -> dict[str, Any]:
    """Run a cell of a notebook, and return its namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    # Without the `from __future__` of this file.
    exec(compile(textwrap.dedent(cell), "<cell>", "exec", dont_inherit=True), namespace)
    return namespace


def there(function: Callable[[], Any]) -> Any:
    """Return what a function gives in another process."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        input=join(*dumps(function)),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return loads(done.stdout)


def since(*version: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        sys.version_info < version, reason=f"Python {'.'.join(map(str, version))} brought it"
    )


# ------------------------------------------------------------------------------ bodies of classes


def test_comprehensions_in_the_body_of_a_class_find_globals():
    cell = run("""
        N = 3
        ROWS = [1, 2]

        def f():
            class Table:
                cells = [N * row for row in ROWS]
                width = {row: N for row in ROWS}
                deep = [[N + row for _ in ROWS] for row in ROWS]
                later = [(lambda: N)() for _ in ROWS]
                if cells[0] > 5:
                    N = 1
                kept = N
            return Table.cells, Table.width, Table.deep, Table.later, Table.kept
    """)

    assert there(cell["f"]) == cell["f"]()


@since(3, 12)
def test_generic_classes_and_functions_in_a_function_find_globals():
    cell = run("""
        N = 3
        Base = int

        def f():
            class Box[T: Base](Base):
                n = N
                class Inner[U]:
                    n = N
                    def get[V](self, given: V = N) -> tuple[T, U, V]:
                        return given + N
            def get[T: Base](given: T = N) -> T:
                return given + N
            type Row = list[Base]
            bounds = [it.__type_params__[0].__bound__ for it in (Box, get)]
            return Box.n, Box.Inner.n, Box.Inner().get(), get(), Row.__value__, bounds
    """)

    assert there(cell["f"]) == (3, 3, 6, 6, list[int], [int, int])


# --------------------------------------------------------------------------------------- aliases


@since(3, 12)
def test_alias_may_name_itself():
    cell = run("""
        type Json = int | list[Json]
        type Even = tuple[Odd]
        type Odd = list[Even]

        def f(given: Json = 1) -> Json:
            inner = Json.__value__.__args__[1].__args__[0]
            return inner is Json, Odd.__value__.__args__[0] is Even, str(Even.__value__), str(Json)
    """)

    assert there(cell["f"]) == (True, True, "tuple[Odd]", "Json")


@since(3, 12)
def test_alias_with_parameters_may_name_itself_and_them():
    cell = run("""
        type Tree[T: int, *Ts, **P] = tuple[T, list[Tree[T, *Ts, P]]]

        def f():
            first, rest, parameters = Tree.__type_params__
            value = Tree.__value__
            return value.__args__[0] is first, first.__bound__, str(value), str(Tree[int, str, []])
    """)

    assert there(cell["f"]) == cell["f"]()


# -------------------------------------------------------------------------------- type parameters


@since(3, 12)
def test_functions_keep_their_type_parameters():
    cell = run("""
        from collections.abc import Callable

        def twice[**P, R: int | str](f: Callable[P, R], *rest: *tuple[int]) -> Callable[P, R]:
            return lambda *args, **kwargs: f(*args, **kwargs) * 2

        def pick[T: (int, str), *Ts](one: T, *others: *Ts) -> tuple[T, *Ts]:
            return one, *others

        @twice
        def shout(text: str) -> str:
            return text

        def f():
            first, _ = pick.__type_params__
            return (
                shout("a"), pick(1, "b"), first.__constraints__, first.__infer_variance__,
                str(twice.__type_params__), twice.__type_params__[1].__bound__,
                pick.__annotations__["one"] is first,
            )
    """)

    assert there(cell["f"]) == cell["f"]()


@since(3, 12)
def test_type_parameter_may_be_bound_by_what_has_it():
    cell = run("""
        class Node[T: Node]:
            def child(self) -> T | None:
                return None

        def f():
            bound = Node.__type_params__[0].__bound__
            return bound is Node, Node[Node]().child(), Node.__parameters__ == Node.__type_params__
    """)

    assert there(cell["f"]) == (True, None, True)


@since(3, 13)
def test_type_parameters_keep_their_defaults():
    cell = run("""
        class Pair[A, B = str]:
            pass

        def f():
            return str(Pair[int].__args__), Pair.__type_params__[1].__default__
    """)

    assert there(cell["f"]) == ("(<class 'int'>, <class 'str'>)", str)


def test_type_parameter_of_typing_itself_goes_by_reference():
    from typing import AnyStr

    assert not declared.is_declared(AnyStr)
    assert loads(*dumps([AnyStr]))[0] is AnyStr


# ------------------------------------------------------------------------------------ annotations


def test_classes_keep_their_annotations():
    """Nobody has asked for them before, and Python 3.14 has not made them yet."""
    cell = run("""
        from dataclasses import dataclass
        from typing import NamedTuple, TypedDict, get_type_hints

        class Plain:
            x: int
            y: "str" = "a"

        @dataclass
        class Point:
            x: int

        class Pair(NamedTuple):
            x: int

        class Row(TypedDict):
            x: int

        def f():
            hints = [get_type_hints(cls) for cls in (Plain, Point, Pair, Row)]
            return hints, dataclass(Plain)(5).x
    """)
    size = [len(vars(cell[name])) for name in ("Plain", "Point")]

    assert there(cell["f"]) == ([{"x": int, "y": str}, *[{"x": int}] * 3], 5)

    assert [len(vars(cell[name])) for name in ("Plain", "Point")] == size


@since(3, 14)
def test_annotations_that_were_asked_for_or_changed_are_those_that_travel():
    cell = run("""
        class Asked:
            x: int

        class Changed:
            x: int

        def f():
            return Asked.__annotations__, Changed.__annotations__
    """)
    unasked = pickling.dump(cell["Asked"]).body
    _ = cell["Asked"].__annotations__
    cell["Changed"].__annotations__["x"] = str

    assert pickling.dump(cell["Asked"]).body == unasked
    assert there(cell["f"]) == ({"x": int}, {"x": str})


@since(3, 14)
def test_annotations_may_name_what_comes_below_or_nothing_at_all():
    cell = run("""
        from dataclasses import dataclass, fields
        from typing import TYPE_CHECKING, get_type_hints

        if TYPE_CHECKING:
            import frames

        @dataclass
        class Node:
            value: int
            next: Node | None = None
            other: list[Nothing] | None = None

        def helper(node: Node, frame: frames.Frame | None = None, n: int = 3, *, k=4) -> Later:
            "Doc."
            return Later, n + k

        helper.mood = "good"

        class Later:
            def me(self, frame: frames.Frame) -> Later:
                return self

        def f(frame: frames.Frame = 5):
            found = helper.__annotations__

            return (
                Node(1, Node(2)) == Node(1, Node(2)), [field.name for field in fields(Node)],
                Node.__annotations__["next"] == Node | None, helper(None) == (Later, 7),
                found["node"] is Node, found["n"], found["return"] is Later, found["frame"],
                helper.mood, helper.__doc__, helper.__qualname__, frame,
                Later.me.__annotations__["return"] is Later,
            )
    """)

    given = there(cell["f"])

    assert given[:7] == (True, ["value", "next", "other"], True, True, True, int, True)
    assert "frames" in str(given[7])
    assert given[8:] == ("good", "Doc.", "helper", 5, True)


@since(3, 14)
def test_values_of_a_class_that_names_itself_can_be_sent():
    cell = run("""
        from dataclasses import dataclass

        @dataclass
        class Node:
            next: Node | None = None

        node = Node(Node())

        def f():
            return node
    """)

    assert str(there(cell["f"])) == str(cell["node"])


# ---------------------------------------------------------------------------------- other syntax


def test_groups_of_exceptions_are_caught_by_global_names():
    cell = run("""
        Wrong = ValueError

        def f():
            try:
                raise ExceptionGroup("g", [Wrong("a"), KeyError("b")])
            except* Wrong as group:
                first = str(group.exceptions[0])
            except* KeyError as group:
                second = repr(group.exceptions[0])
            return first, second
    """)

    assert there(cell["f"]) == ("a", "KeyError('b')")


@since(3, 12)
def test_nested_texts_find_globals():
    cell = run("""
        names = {"a": 1}

        def f():
            return f"{names["a"]} {f"{names["a"]:>{names["a"]}}"}"
    """)

    assert there(cell["f"]) == "1 1"


@since(3, 14)
def test_templates_travel():
    cell = run("""
        name = "n"
        made = t"hello {name!r:>3}"

        def f():
            return made.values, t"{name}".values
    """)

    assert there(cell["f"]) == (("n",), ("n",))
