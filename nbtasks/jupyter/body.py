"""`%%task`: the body of a cell as a task.

    cell ── IPython: transform_cell ──▶ Python ── compile ──▶ def NAME(): ...; return LAST
                                                                │ its globals are the notebook's
                                                                ▼
                                                              a task without arguments, sent at once

The function has the file name that IPython gives a cell, so tracebacks find its lines.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import keyword
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from IPython.core.error import UsageError
from IPython.core.magic import Magics, cell_magic, magics_class

from nbtasks.client import task as tasks
from nbtasks.jupyter.names import read_first

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult

#: What a body without a name is called in panels and tracebacks.
UNNAMED = "cell"


@magics_class
class TaskMagics(Magics):
    """The magic of cells that are tasks."""

    @cell_magic
    def task(self, line: str, cell: str) -> AsyncResult | None:
        """Send the rest of the cell to a worker, as a task.

            %%task total
            rows = load("a.csv")
            sum(rows)

        The cell is done at once, and its panel shows how the task gets on. The value of the last
        expression is the result; a semicolon after it means none.

        NAME, here `total`, is the variable that will hold the AsyncResult: `total.get()` waits for
        the value. Without a name the AsyncResult is the value of the cell, that is `_`.

        What the body reads of the notebook (variables, functions, modules) travels along as it is
        now. What it assigns stays in the worker: to have it here, let it be the result. `await`
        can be used as in any cell; lines for IPython (`%`, `!`, `?`) cannot, as a worker is plain
        Python, nor can `import *`, as the body becomes a function. Options of a task, such as
        retries, are for functions under `@task`.
        """
        shell: Any = self.shell
        name = name_in(line)
        function = function_of(shell, name or UNNAMED, line, cell)
        result: AsyncResult = tasks.make(function, {}).delay()
        if not name:
            return result
        shell.user_ns[name] = result
        return None


def name_in(line: str) -> str:
    """Return the name that stands behind `%%task`, or nothing.

    Raises
    ------
    UsageError
        When something else stands there.
    """
    name = line.strip()
    if name and (not name.isidentifier() or keyword.iskeyword(name)):
        raise UsageError(
            f"%%task {name}: behind it stands at most the name of a variable for the AsyncResult, "
            f"such as %%task total. See %%task?"
        )
    return name


def function_of(shell: Any, name: str, line: str, cell: str) -> FunctionType:
    """Return a cell's body as a function without arguments, or a coroutine function.

    Parameters
    ----------
    shell
        The InteractiveShell, whose namespace is that of the function.
    name
        Of the function.
    line, cell
        What stands behind `%%task`, and below.

    Raises
    ------
    UsageError
        When there is nothing to be run, or something that only IPython can run.
    SyntaxError
        When it is no Python.
    """
    # With a first line in place of the magic's, lines have the numbers that they have in the cell.
    text: str = shell.transform_cell(f"# %%task {line}\n{cell}")
    number: int = shell.displayhook.prompt_count  # of the cell that runs, which its [ ] shows
    file: str = shell.compile.cache(text, number, f"%%task {line}\n{cell}")
    body: ast.Module = shell.compile.ast_parse(text, file)
    if not body.body:
        raise UsageError("%%task: there is nothing below it to be run. See %%task?")
    _refuse_ipython(body)
    with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
        # Not to be run: what is an error in a cell (a `return`) shall not be right in a body.
        as_cell: CodeType = shell.compile(body, file, "exec")
    read = read_first(body.body)
    last = body.body[-1]
    if isinstance(last, ast.Expr) and not shell.displayhook.semicolon_at_end_of_expression(text):
        body.body[-1] = ast.copy_location(ast.Return(last.value), last)
    head = "async def" if as_cell.co_flags & inspect.CO_COROUTINE else "def"
    namespace: dict[str, Any] = shell.user_global_ns
    plain = _define(shell, f"{head} {name}(): pass", body.body, file, namespace)
    code = plain.__code__
    given = {*code.co_varnames, *code.co_cellvars} & read & {*namespace, *vars(builtins)}
    if not given:
        return plain
    # Names that it assigns as well: in a function they are its own, and their values come so.
    parameters = ", ".join(f"{each}={each}" for each in sorted(given))
    return _define(shell, f"{head} {name}({parameters}): pass", body.body, file, namespace)


def _define(
    shell: Any, head: str, body: list[ast.stmt], file: str, namespace: dict[str, Any]
) -> FunctionType:
    """Return the function that a `def` with this body makes; the namespace does not get it."""
    module = ast.parse(head)
    [definition] = module.body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.body = body
    made: dict[str, FunctionType] = {}
    exec(shell.compile(module, file, "exec"), namespace, made)
    return made[definition.name]


def _refuse_ipython(body: ast.Module) -> None:
    """Raise UsageError for lines that IPython has turned into calls of its own."""
    for node in ast.walk(body):
        if isinstance(node, ast.Name) and node.id == "get_ipython":
            raise UsageError(
                f"%%task: line {node.lineno} of the cell is for IPython (%, ! or ?), and a worker "
                f"is plain Python. Put it into a cell of its own, or say it in Python: "
                f"subprocess.run(...) for a command."
            )
