"""What a notebook is promised when its kernel is interrupted, restarted or killed: real kernels."""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import nbtasks
from nbtasks.result import AsyncResult
from tests.kernels import NAMES, PATIENCE, Kernel, skip_unless_installed, write_kernelspecs
from tests.living import SOON, entries, eventually

Measure = Callable[..., None]

#: What the first cell of a notebook does.
NOTEBOOK = """
%load_ext nbtasks
import asyncio, os, signal, time
import nbtasks

cluster = nbtasks.start(dir="c", workers=2)

@nbtasks.task
def enter(number, gate=None):
    interrupts = []
    signal.signal(signal.SIGINT, lambda *_: interrupts.append(1))
    with open("ledger", "a") as file:
        file.write(f"{number}\\n")
    while gate and not os.path.exists(gate):
        time.sleep(0.005)
    return number, len(interrupts)

enter.delay(0).get(timeout=30)
"""


class Notebook(Kernel):
    """A kernel whose number one knows, and that can be restarted."""

    @property
    def pid(self) -> int:
        return int(self.run("import os; print(os.getpid())"))

    def begin(self, code: str) -> str:
        """Start a cell and wait until it runs."""
        cell = self.send(f"print('begun')\n{code}")
        self.until_printed(cell, "begun")
        return cell

    def restart(self, *, gracefully: bool) -> None:
        self._manager.restart_kernel(now=not gracefully)
        self.client.wait_for_ready(timeout=PATIENCE)

    def sent(self, code: str) -> list[str]:
        """Run a cell that sends tasks into `results`, and return their ids."""
        return self.run(f"{code}\nprint(*(result.id for result in results))").split()


@pytest.fixture(params=NAMES)
def kernel(request: pytest.FixtureRequest) -> str:
    """The name of each kind of kernel in turn."""
    skip_unless_installed(request.param)
    write_kernelspecs(Path(os.environ["JUPYTER_DATA_DIR"]))
    return str(request.param)


@pytest.fixture
def cluster(short_path: Path) -> Iterator[Callable[[], nbtasks.Cluster]]:
    """Attach to the cluster that a notebook has started; it ends with the test."""
    clusters: list[nbtasks.Cluster] = []

    def attach() -> nbtasks.Cluster:
        clusters.append(nbtasks.connect(short_path / "c"))
        return clusters[-1]

    yield attach
    nbtasks.cluster.stop(short_path / "c")


#: Ways to wait for tasks in a cell.
WAITS = ("results[0].get()", "nbtasks.ResultSet(results).get()", "await results[1]")

PATIENT = """
try:
    print("begun")
    {wait}
except (KeyboardInterrupt, asyncio.CancelledError):
    print("over at", time.monotonic())
"""


def interrupted(notebook: Notebook, wait: str) -> float:
    """Return the seconds from an interrupt of a cell that waits to the next line of its code.

    What the kernel does with an exception afterwards, to print it in colours, is not ours.
    """
    cell = notebook.send(PATIENT.format(wait=wait))
    notebook.until_printed(cell, "begun")  # the next line may not have begun yet
    asked = notebook.interrupt(cell)
    assert notebook.status(cell) == "ok"
    return float(notebook.printed(cell).split("over at")[1].split()[0]) - asked


def values_of(ids: list[str]) -> list[tuple[int, int]]:
    return [AsyncResult(task_id).get(timeout=SOON) for task_id in ids]


def test_interrupt_gives_control_back_and_no_task_hears_of_it(
    kernel: str, short_path: Path, cluster, measure: Measure
):
    with Notebook(kernel, short_path) as notebook:
        notebook.run(NOTEBOOK)
        ids = notebook.sent("results = [enter.delay(n, 'gate') for n in (1, 2)]")
        workers = sorted(cluster().worker_pids())
        eventually(lambda: entries(short_path / "ledger")[2])
        own_group = os.getpgid(notebook.pid)
        assert own_group not in map(os.getpgid, [*workers, cluster().broker_pid])

        seconds = [interrupted(notebook, wait) for wait in WAITS]
        os.killpg(own_group, signal.SIGINT)  # an idle one is hit, too
        cell = notebook.begin("results[0].get()")
        notebook.interrupt(cell)
        assert notebook.error(cell) == "KeyboardInterrupt"

        (short_path / "gate").touch()
        values = values_of(ids)
        assert sorted(cluster().worker_pids()) == workers
    assert entries(short_path / "ledger") == {0: 1, 1: 1, 2: 1}
    assert [number for number, _ in values] == [1, 2]
    measure(
        "P12",
        f"{kernel}: control back after an interrupt",
        statistics.median(seconds),
        most=0.3,
        unit="s",
    )
    heard = sum(interrupts for _, interrupts in values)
    measure("P12", f"{kernel}: interrupts that workers have seen", heard, most=0)


@pytest.mark.parametrize("gracefully", [True, False], ids=["restarted", "killed"])
def test_restart_of_the_kernel_loses_and_repeats_nothing(
    short_path: Path, cluster, measure: Measure, gracefully
):
    with Notebook("python3", short_path) as notebook:
        notebook.run(NOTEBOOK)
        ids = notebook.sent(
            "results = [enter.delay(n, 'gate') for n in range(1, 100)]\n"
            "results.append(enter.apply_async((100,), countdown=0.5, confirm=True))\n"
            "assert all(result.accepted for result in results)"
        )
        pid, broker = notebook.pid, cluster().broker_pid

        notebook.restart(gracefully=gracefully)
        assert notebook.pid != pid
        notebook.run(f"import nbtasks; nbtasks.start(dir='c'); ids = {ids}")
        (short_path / "gate").touch()
        got = notebook.run("print([nbtasks.AsyncResult(i).get(timeout=30)[0] for i in ids])")

    runs = entries(short_path / "ledger")
    how = "restart" if gracefully else "SIGKILL"
    assert cluster().broker_pid == broker
    measure(
        "P12", f"results lost by a {how} of the kernel", got != f"{list(range(1, 101))}\n", most=0
    )
    measure("P12", f"tasks repeated by a {how} of the kernel", sum(runs.values()) - 101, most=0)


def test_two_kernels_share_one_broker(short_path: Path, cluster, measure: Measure):
    with Notebook("python3", short_path) as one, Notebook("python3", short_path) as other:
        one.run(NOTEBOOK)
        other.run(NOTEBOOK)
        pids = {notebook.run("print(cluster.broker_pid)") for notebook in (one, other)}
        ids = one.sent("results = [enter.delay(n) for n in range(1, 50)]")
        others = other.sent("results = [enter.delay(n) for n in range(50, 100)]")
        got = [
            notebook.run(f"print(*(nbtasks.AsyncResult(i).get(timeout=30)[0] for i in {told}))")
            for notebook, told in ((one, others), (other, ids))
        ]
        psutil.Process(one.pid).kill()
        assert other.run("print(enter.delay(100).get(timeout=30))") == "(100, 0)\n"

    assert [list(map(int, line.split())) for line in got] == [[*range(50, 100)], [*range(1, 50)]]
    assert sum(entries(short_path / "ledger").values()) == 102
    cluster()
    measure("P12", "brokers of two kernels", len(pids), most=1)
