"""Hold the arrows between the parts of nbtasks: who may import whom, and which file may use what.

The operating system parts broker, workers, supervisor and client, so the code does: they meet only
in `core` (the rules and the words) and in `wire` (how words travel). The tables below are the
design's; a change to one of them is a change of the design and says why.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "nbtasks"

#: area → areas of nbtasks that it may import, itself apart. An area is a folder or a top module.
ARROWS: dict[str, set[str]] = {
    "exceptions": set(),
    "config": {"exceptions"},
    "context": {"exceptions"},
    "core": {"exceptions"},
    # One run of a task is the same in a worker and in `apply()`.
    "life": {"context", "exceptions", "core"},
    "states": {"core"},
    "wire": {"core", "exceptions"},
    "broker": {"wire", "core", "exceptions"},
    "worker": {"life", "wire", "core", "context", "exceptions", "processors"},
    "supervisor": {"wire", "core", "config", "exceptions"},
    # config: Celery's task_* settings are read where a call is made.
    "client": {"life", "wire", "core", "config", "context", "exceptions"},
    "result": {"client", "context"},
    "engines": {"wire", "core", "exceptions"},
    "simulation": {"core"},
    "place": {"wire", "config", "exceptions"},
    "processors": set(),
    "start_options": {"place", "processors", "wire", "config", "exceptions"},
    "cluster": {"start_options", "place", "client", "wire", "core", "config", "exceptions"},
    "jupyter": {"cluster", "client", "core", "exceptions"},
    # __init__: for `nbtasks --version`.
    # jupyter: as for top.
    "cli": {
        *("__init__", "cluster", "client", "simulation", "config", "context", "exceptions"),
        *("place", "top", "jupyter"),
    },
    # jupyter: the words and symbols of the panel (rows.py), which needs no notebook.
    "top": {"cluster", "place", "client", "exceptions", "jupyter"},
    "__main__": {"cli"},
    # The door: it only knows where each public name is.
    "__init__": {
        *("cluster", "client", "config", "context", "core", "exceptions"),
        *("jupyter", "result", "simulation", "states"),
    },
}

#: Arrows that point against the table, each inside a function, each with its reason.
LAZY: dict[tuple[str, str], str] = {
    ("client/result.py", "jupyter"): "result.widget() is the one word for the panel of a task",
    ("client/client.py", "cluster"): "the first call finds or starts the cluster",
    ("context.py", "result"): "request.children are results, made when somebody looks at them",
}

#: third-party or guarded standard module → the only files (or folders) that may import it.
HOMES: dict[str, set[str]] = {
    "zmq": {
        *("wire/sockets.py", "broker/server.py", "worker/process.py"),
        *("client/link.py", "supervisor/"),
    },
    # file.py says what is wrong with a store in SQLite's own words.
    "sqlite3": {"broker/database.py", "broker/file.py"},
    "cloudpickle": {"wire/pickling.py"},
    "pickle": {"wire/payloads.py", "wire/pickling.py", "wire/failures.py"},
    "msgpack": {"wire/payloads.py"},
    "yaml": {"wire/payloads.py"},
    "zstandard": {"wire/payloads.py"},
    "brotli": {"wire/payloads.py"},
    # Of what is made anew for each run, a struct is the cheapest kind.
    "msgspec": {
        *("core/", "wire/", "broker/", "worker/handover.py"),
        *("config.py", "context.py", "life.py", "simulation.py"),
    },
    # Where the system cannot be told to end a child with its parent, the child has to look.
    # `nbtasks top` shows the memory and the processor that each worker takes.
    "psutil": {"supervisor/", "wire/memory.py", "wire/parent.py", "top.py"},
    # Not required: used where it is installed.
    "rich": {"top.py", "jupyter/text.py"},
    "fcntl": {"wire/locks.py"},
    "msvcrt": {"wire/locks.py"},
    "ipywidgets": {"jupyter/"},
    "anywidget": {"jupyter/"},
    "IPython": {"jupyter/"},
    "ipykernel": {"jupyter/"},
    "traitlets": {"jupyter/"},
    "distributed": {"engines/dask.py"},
}

#: What the rules must not touch: whoever tests them says what time it is.
IMPURE = {
    *("asyncio", "datetime", "multiprocessing", "os", "random", "secrets", "selectors", "socket"),
    *("sqlite3", "subprocess", "threading", "time", "uuid", "pathlib", "tempfile", "signal"),
}

#: What `import nbtasks` must not load: a notebook's first cell is not the place to wait.
HEAVY = {
    *("IPython", "anywidget", "ipykernel", "ipywidgets", "jupyter_core", "numpy", "pandas"),
    *("psutil", "pydantic", "sqlite3", "zmq"),
}


class Import(NamedTuple):
    """One import of one module by one file."""

    file: str
    line: int
    module: str
    #: Whether it is done when the file is loaded, not later inside a function.
    eager: bool

    def __str__(self) -> str:
        return f"nbtasks/{self.file}:{self.line} imports {self.module}"


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def dotted(path: Path) -> str:
    parts = ["nbtasks", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(path): path for path in files()}


def area(module: str) -> str:
    """Return the part of nbtasks to which one of its modules belongs."""
    first = module.removeprefix("nbtasks").lstrip(".").split(".")[0]
    return first or "__init__"


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imported(node: ast.Import | ast.ImportFrom, package: list[str]) -> Iterator[str]:
    """Name the modules that a statement imports, as exactly as a file can know."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = package[: len(package) - node.level + 1] if node.level else []
    module = ".".join([*base, *([node.module] if node.module else [])])
    names = [f"{module}.{alias.name}" for alias in node.names]
    yield from dict.fromkeys(name if name in MODULES else module for name in names)


def walk(node: ast.AST, eager: bool, typing_too: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child) and not typing_too:
            continue
        yield child, eager
        inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from walk(child, eager and not inside, typing_too)


def imports_of(path: Path, *, typing_too: bool = True) -> list[Import]:
    package = dotted(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return [
        Import(relative(path), node.lineno, module, eager)
        for node, eager in walk(tree, True, typing_too)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in imported(node, package)
    ]


def every_import() -> list[Import]:
    return [found for path in files() for found in imports_of(path)]


def at_home(file: str, homes: set[str]) -> bool:
    return any(file == home or (home.endswith("/") and file.startswith(home)) for home in homes)


def allowed(found: Import) -> bool:
    here = area(dotted(PACKAGE / found.file))
    there = area(found.module)
    if there == here or there in ARROWS.get(here, set()):
        return True
    return (found.file, there) in LAZY and not found.eager


@pytest.mark.parametrize("path", files(), ids=relative)
def test_file_imports_only_the_parts_that_its_own_part_may_know(path):
    own = area(dotted(path))
    assert own in ARROWS, f"{own} is not in the table of arrows: add it, with its reason"

    wrong = [
        str(found)
        for found in imports_of(path)
        if found.module.split(".")[0] == "nbtasks" and not allowed(found)
    ]

    assert not wrong


def test_nobody_inside_comes_in_by_the_front_door():
    """`from nbtasks import task` inside the package would load, or wait for, everything."""
    wrong = [
        str(found)
        for found in every_import()
        if found.module == "nbtasks" and found.file not in {"__init__.py", "cli.py"}
    ]

    assert not wrong


@pytest.mark.parametrize("module", sorted(HOMES))
def test_library_is_imported_only_where_it_is_at_home(module):
    wrong = [
        str(found)
        for found in every_import()
        if found.module.split(".")[0] == module and not at_home(found.file, HOMES[module])
    ]

    assert not wrong


def test_the_broker_never_meets_the_module_that_unpickles():
    wrong = [
        str(found)
        for found in every_import()
        if found.file.startswith(("broker/", "supervisor/"))
        and found.module.startswith("nbtasks.wire.payloads")
    ]

    assert not wrong


def test_the_rules_touch_no_clock_file_socket_thread_or_chance():
    wrong = [
        str(found)
        for found in every_import()
        if found.file.startswith("core/") and found.module.split(".")[0] in IMPURE
    ]

    assert not wrong


def test_no_module_needs_itself_to_be_loaded():
    graph = {
        dotted(path): {
            found.module
            for found in imports_of(path, typing_too=False)
            if found.eager and found.module in MODULES
        }
        for path in files()
    }

    assert not circle_in(graph)


def circle_in(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle, in order, or nothing."""
    done: set[str] = set()

    def visit(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module not in done:
            for further in sorted(graph.get(module, ())):
                if circle := visit(further, [*way, module]):
                    return circle
            done.add(module)
        return []

    return next((circle for module in sorted(graph) if (circle := visit(module, []))), [])


def test_a_circle_would_be_found():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def loaded_by(statement: str) -> set[str]:
    """Return the modules that a fresh interpreter has loaded after `statement`."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    return set(json.loads(answer.stdout))


def test_import_nbtasks_loads_nothing_heavy():
    assert not loaded_by("import nbtasks") & HEAVY


def test_decorating_a_function_loads_no_socket_and_no_widget():
    statement = "import nbtasks\n@nbtasks.task\ndef add(x, y): return x + y"

    assert not loaded_by(statement) & {"IPython", "anywidget", "ipywidgets", "numpy", "sqlite3"}


def test_broker_process_loads_no_pickle_of_users_and_no_widget():
    assert not loaded_by("import nbtasks.broker.server") & {
        *("cloudpickle", "IPython", "ipywidgets", "anywidget", "numpy", "nbtasks.wire.payloads"),
    }


def test_worker_process_loads_no_client_before_a_task_needs_one():
    assert "sqlite3" not in loaded_by("import nbtasks.worker.process")
    assert not loaded_by("import nbtasks.worker.process") & {"IPython", "ipywidgets", "anywidget"}


def test_every_public_name_can_be_had():
    program = (
        "import nbtasks\n"
        "missing = [name for name in nbtasks.__all__ if not hasattr(nbtasks, name)]\n"
        "assert not missing, missing\n"
        "assert set(nbtasks.__all__) <= set(dir(nbtasks))"
    )

    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)


def test_settings_can_be_looked_up_before_anything_else():
    program = "import nbtasks; nbtasks.config.Settings"  # as the README has it, under help()

    subprocess.run([sys.executable, "-c", program], check=True, cwd=PACKAGE.parent)
