"""`%%task`: what becomes of a cell's body, in a shell of IPython's own."""

from __future__ import annotations

import asyncio
import inspect
import linecache
import textwrap
import traceback
from types import FunctionType
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from nbtasks.jupyter.body import TaskMagics, function_of, name_in


@pytest.fixture(scope="module")
def shell() -> InteractiveShell:
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell(config=config)


@pytest.fixture
def body(shell: InteractiveShell) -> Any:
    """Make a function of a cell's body, where the notebook has these variables."""

    def make(cell: str, **variables: Any) -> FunctionType:
        shell.reset()
        shell.push(variables)
        return function_of(shell, "total", "total", textwrap.dedent(cell))

    return make


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("x = 2\nx * 3\n", 6),
        ("x = 2\nx * 3;\n", None),
        ("x = 2\nx * 3;  # said\n", None),
        ("x = 2\n", None),
        ("'alone'", "alone"),
        ("if True:\n    5\n", None),
    ],
)
def test_value_is_that_of_the_last_expression(body: Any, cell: str, value: Any) -> None:
    assert body(cell)() == value


def test_names_of_the_notebook_are_read_as_globals(body: Any) -> None:
    function = body("y = [factor * n for n in range(3)]\ny", factor=2)

    assert function() == [0, 2, 4]
    assert not inspect.signature(function).parameters


def test_names_that_are_assigned_stay_where_they_are(body: Any, shell: InteractiveShell) -> None:
    function = body("rows = rows + [3]\nsum(rows)", rows=[1, 2])

    assert (function(), function()) == (6, 6)
    assert shell.user_ns["rows"] == [1, 2]
    assert "total" not in shell.user_ns


def test_former_value_of_a_name_that_is_assigned_first_is_not_needed(body: Any) -> None:
    assert not inspect.signature(body("frame = 1\nframe", frame=open)).parameters


def test_name_of_a_builtin_can_be_assigned(body: Any) -> None:
    assert body("max = max(3, 4)\nmax")() == 4


def test_functions_of_the_body_see_its_names(body: Any) -> None:
    cell = """
        def fib(n):
            return n if n < 2 else fib(n - 1) + fib(n - 2)

        fib(count)
    """

    assert body(cell, count=10)() == 55


def test_body_that_awaits_is_a_coroutine_function(body: Any) -> None:
    function = body("import asyncio\nawait asyncio.sleep(0)\n[x async for x in rows()]", rows=rows)

    assert inspect.iscoroutinefunction(function)
    assert asyncio.run(function()) == [1]


async def rows() -> Any:
    yield 1


def test_traceback_shows_the_lines_of_the_cell(body: Any, shell: InteractiveShell) -> None:
    function = body("\n\nx = 0\n1 / x\n")

    with pytest.raises(ZeroDivisionError) as caught:
        function()

    frame = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert (frame.lineno, frame.line, frame.name) == (5, "1 / x", "total")
    assert shell.compile.format_code_name(frame.filename) is not None
    assert linecache.getline(frame.filename, 1) == "# %%task total\n"


@pytest.mark.parametrize(
    ("cell", "text", "line"),
    [
        ("x = 1\nx = = 2", "invalid syntax", 3),
        ("x = 1\nreturn x", "'return' outside function", 3),
        ("yield 1", "outside function", 2),
        ("from math import *", "import \\* only allowed at module level", 2),
    ],
)
def test_what_is_no_python_is_a_syntax_error_in_its_line(
    body: Any, cell: str, text: str, line: int
) -> None:
    with pytest.raises(SyntaxError, match=text) as caught:
        body(cell)

    assert caught.value.lineno == line


@pytest.mark.parametrize(
    "cell", ["x = 1\n!ls", "x = 1\n%pip list", "x = 1\nfiles = !ls", "x = 1\nx?"]
)
def test_what_only_ipython_can_run_is_refused_with_its_line(body: Any, cell: str) -> None:
    with pytest.raises(UsageError, match="line 3 of the cell is for IPython"):
        body(cell)


def test_magic_of_a_cell_in_a_cell_is_refused(body: Any) -> None:
    with pytest.raises(UsageError, match="is for IPython"):
        body("get_ipython().run_cell_magic('time', '', '1')")


@pytest.mark.parametrize("cell", ["", "\n", "# nothing but this\n"])
def test_nothing_to_run_is_said_to_be_nothing(body: Any, cell: str) -> None:
    with pytest.raises(UsageError, match="nothing below it"):
        body(cell)


@pytest.mark.parametrize("line", ["a b", "1st", "name=total", "class", "--help"])
def test_what_is_no_name_is_refused(line: str) -> None:
    with pytest.raises(UsageError, match="at most the name of a variable"):
        name_in(line)


def test_result_goes_to_the_name_or_is_the_value_of_the_cell(
    shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Made:
        def delay(self) -> str:
            return "the result"

    monkeypatch.setattr("nbtasks.client.task.make", lambda function, options: Made())
    magics = TaskMagics(shell)
    shell.reset()

    assert magics.task("total", "1") is None
    assert shell.user_ns["total"] == "the result"
    assert magics.task("", "1") == "the result"
