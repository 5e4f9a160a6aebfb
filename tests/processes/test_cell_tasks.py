"""`%%task` in a real kernel, on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nbtasks import cluster as clusters
from tests.kernels import Kernel


@pytest.fixture
def kernel(short_path: Path) -> Iterator[Kernel]:
    """A kernel in which the extension is loaded and a cluster runs."""
    with Kernel("python3", short_path) as kernel:
        kernel.run(
            "%load_ext nbtasks\nimport nbtasks\n"
            "cluster = nbtasks.start(dir='c', workers=1)\nrows = [1, 2]\nimport math"
        )
        yield kernel
    clusters.stop(short_path / "c")


def test_cell_runs_in_a_worker_with_what_it_reads_of_the_notebook(kernel: Kernel) -> None:
    cell = kernel.send("%%task total\nrows = rows + [math.floor(3.5)]\nprint('there')\nsum(rows)")

    assert kernel.status(cell) == "ok"
    assert kernel.run("print(total.get(timeout=30), rows)") == "6 [1, 2]\n"
    assert kernel.printed(cell) == ""
    kernel.until(lambda: kernel.told("display_data", cell))


def test_cell_without_a_name_has_the_result_as_its_value(kernel: Kernel) -> None:
    cell = kernel.send("%%task\nimport asyncio\nawait asyncio.sleep(0)\nlen(rows)")

    assert kernel.status(cell) == "ok"
    assert kernel.run("print(type(_).__name__, _.get(timeout=30))") == "AsyncResult 2\n"


def test_failure_shows_the_lines_of_the_cell(kernel: Kernel) -> None:
    kernel.run("%%task share\ndef part(of):\n    return 1 / of\n\npart(0)")
    told = kernel.run("share.wait(timeout=30, propagate=False); print(share.traceback)")
    cell = kernel.send("share.get(timeout=30)")

    assert "line 5, in share\n    part(0)\n" in told
    assert "line 3, in part\n    return 1 / of\n" in told
    assert kernel.error(cell) == "ZeroDivisionError"
    shown = "".join(kernel.answers[cell]["content"]["traceback"])
    assert "Cell In[2], line 5, in share" in shown


def test_what_is_no_python_is_not_sent(kernel: Kernel) -> None:
    for text in ("x = = 1", "return 1"):
        assert kernel.error(kernel.send(f"%%task nothing\n{text}")) == "SyntaxError"

    assert kernel.run("print(cluster.client.ask('list'), 'nothing' in globals())") == "[] False\n"


def test_magic_is_gone_when_the_extension_is(kernel: Kernel) -> None:
    kernel.run("%unload_ext nbtasks")

    assert kernel.error(kernel.send("%%task total\n1")) == "UsageError"
