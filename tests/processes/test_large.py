"""Large arguments and results of real tasks: through files, once, and gone when not needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pandas
import pyarrow
import pytest

import nbtasks
from nbtasks.client.client import UNACCEPTED_BYTES
from nbtasks.core.messages import Hasten
from nbtasks.result import AsyncResult
from nbtasks.wire import segments
from tests.living import SOON, eventually, family, kill, run, said
from tests.promises.faults import deaf

SIZE = 500_000
ARRAY = numpy.arange(float(SIZE))


def address_of(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def mapped_from(address: int) -> str:
    """Return which file is mapped at an address of this process, or nothing."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, path = line.split(maxsplit=5) if line.count(" ") > 5 else [line.split()[0], ""]
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= address < last:
            return path.strip()
    return ""


@nbtasks.task
def where_is(array):
    """Return the file from which an argument is mapped, and its sum."""
    return mapped_from(address_of(array)), float(array.sum())


@nbtasks.task
def where_is_frame(frame, column):
    return mapped_from(address_of(frame[column].to_numpy())), float(frame[column].sum())


@nbtasks.task
def where_is_table(table, column):
    data = table[column].chunk(0).buffers()[1]
    return mapped_from(data.address), table[column].to_pylist()[-1]


@nbtasks.task
def double(array):
    array *= 2
    return array


@nbtasks.task
def total(array, gate=None):
    while gate is not None and not Path(gate).exists():
        time.sleep(0.005)
    return float(array.sum())


@nbtasks.task(autoretry_for=(ConnectionError,), default_retry_delay=0, max_retries=3)
def at_last(array, path):
    if not Path(path).exists():
        Path(path).touch()
        raise ConnectionError("refused")
    return float(array.sum())


@nbtasks.task
def unless_missing(array, path):
    Path(path).read_text()
    return float(array.sum())


@nbtasks.task(acks_late=True)
def survives(array, marker):
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(array.sum())


@nbtasks.task
def sends_on(array):
    return total.delay(array * 2).id


@nbtasks.task(memory_limit="100MB")
def looks_or_writes(array, write):
    if write:
        for start in range(0, len(array), 100_000):
            array[start : start + 100_000] += 1
            time.sleep(0.001)
    return float(array.sum())


@nbtasks.task(bind=True)
def reports(self, array):
    self.update_state(state="PROGRESS", meta={"partial": array})
    return None


def files(cluster: Any) -> list[Path]:
    folder = Path(cluster.settings.data) / "segments"
    return sorted(folder.iterdir()) if folder.exists() else []


def hasten(result: Any) -> None:
    nbtasks.current_cluster().client.tell(Hasten((result.id,)))


def no_files(cluster: Any) -> bool:
    return eventually(lambda: not files(cluster))


# ------------------------------------------------------------------------------------------- mapped


def test_array_is_mapped_by_the_worker_and_its_result_by_the_caller(cluster):
    path, there = where_is.delay(ARRAY).get(timeout=SOON)
    back = double.delay(ARRAY).get(timeout=SOON)

    assert Path(path).parent == Path(cluster.settings.data) / "segments"
    assert there == ARRAY.sum()
    assert Path(mapped_from(address_of(back))).parent == Path(path).parent
    assert (back == ARRAY * 2).all()
    assert back.flags.writeable


def test_columns_of_a_pandas_frame_are_mapped(cluster):
    frame = pandas.DataFrame({"a": ARRAY, "b": ARRAY.astype("int64")})

    path, there = where_is_frame.delay(frame, "b").get(timeout=SOON)

    assert "/segments/" in path
    assert there == ARRAY.sum()


def test_columns_of_an_arrow_table_are_mapped(cluster):
    table = pyarrow.table({"a": ARRAY})

    path, last = where_is_table.delay(table, "a").get(timeout=SOON)

    assert "/segments/" in path
    assert last == SIZE - 1


def test_memory_limit_counts_what_a_task_writes_and_not_what_it_is_given(cluster):
    large = numpy.ones(40_000_000)

    assert looks_or_writes.delay(large, False).get(timeout=SOON) == 40_000_000
    with pytest.raises(nbtasks.exceptions.MemoryLimitExceeded):
        looks_or_writes.delay(large, True).get(timeout=SOON)


def test_text_and_lists_come_back_as_they_were(cluster):
    value = {"text": "é" * 2_000_000, "list": list(range(600_000))}

    assert echo.delay(value).get(timeout=SOON) == value


@nbtasks.task
def echo(value):
    return value


def test_over_tcp_it_is_the_same(make_cluster):
    make_cluster(transport="tcp")

    path, there = where_is.delay(ARRAY).get(timeout=SOON)

    assert "/segments/" in path
    assert there == ARRAY.sum()


def test_meta_of_a_running_task_may_be_large(cluster):
    seen = []
    result = reports.delay(ARRAY)

    result.get(timeout=SOON, on_message=seen.append)

    [partial] = [m["result"]["partial"] for m in seen if m["status"] == "PROGRESS"]
    assert (partial == ARRAY).all()


# --------------------------------------------------------------------------------------------- once


def test_object_that_fifty_tasks_use_is_written_once(cluster):
    gate = cluster.dir / "gate"

    results = [total.delay(ARRAY, gate) for _ in range(50)]

    written = files(cluster)
    assert len(written) == 50
    assert len({path.stat().st_ino for path in written}) == 1
    gate.touch()
    assert [result.get(timeout=SOON) for result in results] == [ARRAY.sum()] * 50
    no_files(cluster)


def test_each_call_gets_the_array_as_it_was_then(cluster):
    array = ARRAY.copy()

    results = []
    for _ in range(5):
        results.append(total.delay(array))
        array[SIZE // 2] += 1

    values = [result.get(timeout=SOON) for result in results]
    assert values == [ARRAY.sum() + n for n in range(5)]


def test_what_one_task_writes_no_other_sees(cluster):
    results = [double.delay(ARRAY) for _ in range(4)]

    assert all((result.get(timeout=SOON) == ARRAY * 2).all() for result in results)
    assert ARRAY[-1] == SIZE - 1


def test_shared_value_reaches_each_task_and_goes_with_the_last(cluster):
    gate = cluster.dir / "gate"
    shared = nbtasks.share({"array": ARRAY})

    results = [first_of.delay(shared, gate) for _ in range(10)]

    assert len({path.stat().st_ino for path in files(cluster)}) == 1
    gate.touch()
    assert [result.get(timeout=SOON) for result in results] == [ARRAY.sum()] * 10
    del shared
    no_files(cluster)


def test_calls_with_a_value_that_is_written_already_wait_for_nothing(cluster):
    shared = nbtasks.share(numpy.zeros(UNACCEPTED_BYTES // 8))

    with deaf(cluster):
        results = [total.delay(shared) for _ in range(10)]
        assert len(results) == 10

    assert [result.get(timeout=SOON) for result in results] == [0.0] * 10


def test_shared_value_outlives_the_broker(cluster):
    shared = nbtasks.share(ARRAY)
    assert total.delay(shared).get(timeout=SOON) == ARRAY.sum()

    kill(cluster.broker_pid)

    assert total.delay(shared).get(timeout=SOON) == ARRAY.sum()


@nbtasks.task
def first_of(shared, gate):
    return total.run(shared["array"], gate)


# ------------------------------------------------------------------------------------- kept as long


def test_arguments_go_after_success_and_results_when_forgotten(cluster):
    result = double.delay(ARRAY)
    back = result.get(timeout=SOON)

    [left] = eventually(lambda: files(cluster) if len(files(cluster)) == 1 else [])
    assert left.stat().st_size >= ARRAY.nbytes
    result.forget()

    no_files(cluster)
    assert (back == ARRAY * 2).all()


def test_purge_gives_the_room_back(cluster):
    gate = cluster.dir / "gate"
    running = [total.delay(ARRAY, gate) for _ in range(2)]
    waiting = [total.apply_async((ARRAY,), countdown=3600) for _ in range(5)]
    eventually(lambda: all(result.accepted for result in waiting))
    eventually(lambda: cluster.status()["phases"].get("running") == 2)

    cluster.client.ask("purge")

    gate.touch()
    assert [result.get(timeout=SOON) for result in running] == [ARRAY.sum()] * 2
    no_files(cluster)


def test_retry_by_itself_has_the_same_argument(cluster, short_path):
    result = at_last.delay(ARRAY, short_path / "tried")

    assert result.get(timeout=SOON) == ARRAY.sum()
    assert result.retries == 1
    no_files(cluster)


def test_failed_task_can_be_repeated_with_its_argument(cluster, short_path):
    path = short_path / "missing"
    result = unless_missing.delay(ARRAY, path)
    with pytest.raises(FileNotFoundError):
        result.get(timeout=SOON)
    assert len(files(cluster)) == 1

    path.touch()
    result.retry()

    assert result.get(timeout=SOON) == ARRAY.sum()
    no_files(cluster)


def test_worker_that_dies_leaves_the_argument_to_the_next(cluster, short_path):
    result = survives.delay(ARRAY, short_path / "died")

    assert result.get(timeout=SOON) == ARRAY.sum()
    no_files(cluster)


def test_task_sends_on_what_it_has_made(cluster):
    child = sends_on.delay(ARRAY).get(timeout=SOON)

    assert AsyncResult(child).get(timeout=SOON) == 2 * ARRAY.sum()
    no_files(cluster)


def test_broker_that_dies_loses_nothing(cluster):
    gate = cluster.dir / "gate"
    results = [total.delay(ARRAY + n, gate) for n in range(6)]
    eventually(lambda: all(result.accepted for result in results))

    kill(cluster.broker_pid)
    gate.touch()

    values = [result.get(timeout=SOON) for result in results]
    assert values == [(ARRAY + n).sum() for n in range(6)]
    no_files(cluster)


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_cluster_that_dies_keeps_arguments_and_results(make_cluster, short_path, durability):
    place = short_path / "c"
    cluster = make_cluster(dir=place, durability=durability)
    done = double.delay(ARRAY)
    done.get(timeout=SOON)
    waiting = total.apply_async((ARRAY,), countdown=3600)
    eventually(lambda: waiting.accepted)
    kill(*family(cluster))
    cluster.shutdown()

    make_cluster(dir=place)
    again = AsyncResult(waiting.id)
    hasten(again)

    assert again.get(timeout=SOON) == ARRAY.sum()
    assert (AsyncResult(done.id).get(timeout=SOON) == ARRAY * 2).all()


def test_other_process_reads_the_result(cluster):
    result = double.delay(ARRAY)
    result.get(timeout=SOON)

    code = """
        import sys, nbtasks
        cluster = nbtasks.connect(dir=sys.argv[1])
        print(nbtasks.AsyncResult(sys.argv[2]).get(timeout=20).sum())
    """
    assert float(said(run(code, cluster.dir, result.id))) == 2 * ARRAY.sum()


def test_store_in_memory_uses_files_as_well(make_cluster):
    cluster = make_cluster(durability="none")

    assert (double.delay(ARRAY).get(timeout=SOON) == ARRAY * 2).all()
    assert len(eventually(lambda: files(cluster))) >= 1


# ------------------------------------------------------------------------------------ when it fails


def test_without_a_place_for_files_it_goes_through_the_broker(cluster):
    eventually(lambda: len(cluster.worker_pids()) == 2 and cluster.status()["supervisor_pid"])
    assert echo.delay(1).get(timeout=SOON) == 1
    folder = Path(cluster.settings.data) / "segments"
    folder.write_text("in the way")

    assert (double.delay(ARRAY).get(timeout=SOON) == ARRAY * 2).all()
    assert folder.read_text() == "in the way"


def test_argument_whose_file_somebody_removed_fails_with_a_word(cluster):
    result = total.apply_async((ARRAY,), countdown=3600)
    eventually(lambda: result.accepted)
    segments.remove(files(cluster)[0].parent, [path.name for path in files(cluster)])

    hasten(result)

    with pytest.raises(nbtasks.exceptions.DecodeError, match=r"gone.*Send the task again"):
        result.get(timeout=SOON)
    assert total.delay(ARRAY).get(timeout=SOON) == ARRAY.sum()


def test_thousand_results_in_hand_hold_few_descriptors(cluster):
    before = len(os.listdir("/proc/self/fd"))

    held = [r.get(timeout=SOON) for r in [double.delay(ARRAY[:140_000]) for _ in range(300)]]

    assert all(array[-1] == 2 * 139_999 for array in held)
    assert len(os.listdir("/proc/self/fd")) - before <= segments.MOST_MAPPED + 20


def test_nothing_is_left_of_many(cluster, make_cluster: Callable[..., Any]):
    def descriptors(pid: int) -> int:
        return len(os.listdir(f"/proc/{pid}/fd"))

    for _ in range(2):
        total.delay(ARRAY).get(timeout=SOON)
    before = {pid: descriptors(pid) for pid in (os.getpid(), *family(cluster))}

    results = [double.delay(ARRAY + n) for n in range(100)]
    assert [r.get(timeout=SOON)[0] for r in results] == [2 * n for n in range(100)]
    for result in results:
        result.forget()

    no_files(cluster)
    grown = {pid: descriptors(pid) - count for pid, count in before.items()}
    assert max(grown.values()) <= 4, grown


def test_purging_the_cluster_leaves_no_file(make_cluster, short_path):
    cluster = make_cluster(dir=short_path / "c")
    assert double.delay(ARRAY).get(timeout=SOON)[1] == 2.0
    assert files(cluster)

    cluster.shutdown(purge=True)

    assert files(cluster) == []


def test_call_that_was_known_already_leaves_no_file(cluster):
    results = [total.apply_async((ARRAY,), idempotency_key="once", confirm=True) for _ in range(3)]

    assert results[0].get(timeout=SOON) == ARRAY.sum()
    again = total.apply_async((ARRAY,), idempotency_key="once", confirm=True)
    assert again.get(timeout=SOON) == ARRAY.sum()
    no_files(cluster)


def written(cluster: Any) -> int:
    """Return how many files there are, each counted once."""
    return len({path.stat().st_ino for path in files(cluster)})


def test_call_with_an_impossible_option_leaves_no_file(cluster):
    for impossible in ({"queue": 5}, {"retries": "many"}, {"root_id": 5}):
        with pytest.raises((TypeError, ValueError)):
            total.apply_async((ARRAY,), **impossible)

    assert files(cluster) == []


def test_value_of_many_pieces_is_written_once(cluster):
    pieces = [numpy.arange(70_000.0) + n for n in range(80)]

    results = [total.apply_async((pieces,), countdown=3600, confirm=True) for _ in range(3)]

    assert (len(files(cluster)), written(cluster)) == (240, 80)
    for result in results:
        result.revoke()
        result.forget()


def test_what_a_long_task_holds_is_not_written_again_for_short_ones(cluster):
    gate = cluster.dir / "gate"
    long = total.delay(ARRAY, gate)
    eventually(lambda: files(cluster))

    for _ in range(3):
        quick = total.apply_async((ARRAY,), countdown=3600, confirm=True)
        assert (len(files(cluster)), written(cluster)) == (2, 1)
        hasten(quick)
        assert quick.get(timeout=SOON) == ARRAY.sum()
        eventually(lambda: len(files(cluster)) == 1)
    gate.touch()
    assert long.get(timeout=SOON) == ARRAY.sum()


@nbtasks.task
def where_are_times(array):
    return mapped_from(address_of(array)), type(array).__name__, str(array.dtype), str(array[-1])


def test_times_and_files_are_mapped_too(cluster, short_path):
    times = numpy.arange("2020-01-01", "2022-01-01", dtype="M8[m]")
    spans = (times - times[0]).astype(">m8[s]")
    numpy.save(short_path / "file.npy", ARRAY)
    file = numpy.load(short_path / "file.npy", mmap_mode="r")

    for array in (times, spans, file):
        told = where_are_times.delay(array).get(timeout=SOON)

        assert told[0].split(" ")[0].startswith(str(cluster.dir))
        assert told[1:] == (type(array).__name__, str(array.dtype), str(array[-1]))

    frame = pandas.DataFrame({"when": times})
    path, last = where_is_times.delay(frame).get(timeout=SOON)
    assert path
    assert last == frame["when"].iloc[-1]


@nbtasks.task
def where_is_times(frame):
    return mapped_from(address_of(frame["when"].to_numpy())), frame["when"].iloc[-1]


def test_shared_value_can_be_used_here_as_well(cluster):
    assert total.apply((nbtasks.share(ARRAY),)).get() == ARRAY.sum()
