"""What is accepted stays: through crashes, loss of power, full disks, damage, and upgrades."""

from __future__ import annotations

import contextlib
import gzip
import os
import random
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks.broker import database as database_module
from nbtasks.broker.store import Store
from nbtasks.client.client import Client, new_id
from nbtasks.core.messages import Call, Event, Hasten
from nbtasks.exceptions import ClusterError, StoreError, TaskRevokedError, TimeLimitExceeded
from nbtasks.wire import segments
from nbtasks.wire.connection import STORE_FILE
from nbtasks.wire.parent import alive
from tests.broker.saves import SaveCall, SaveDefinition, SaveEvent, SaveTask, commit
from tests.broker.test_store import CLIENT, NOW, call_for, copy_of, define, task_for
from tests.core.test_crashes import Dying, check, story
from tests.living import SOON, entries, eventually, kill, run, said
from tests.promises.figures import best_of
from tests.promises.peers import DEFINE, DIGEST, Broker
from tests.promises.stores import make
from tests.tasks import add, echo, enter, length, wait_for

MakeCluster = Callable[..., nbtasks.Cluster]
Measure = Callable[..., None]

STORES = Path(make.__file__).parent


@pytest.fixture
def ledger(short_path: Path) -> str:
    return str(short_path / "ledger")


# ------------------------------------------------------------------------------------- P1: crashes


def test_nothing_is_lost_wherever_the_broker_dies(full: bool, rng: random.Random, measure: Measure):
    deaths = broken = 0
    for _ in range(3_000 if full else 50):
        world = Dying(rng.getrandbits(32), workers=2)
        story(world)
        deaths += world.deaths
        try:
            check(world)
        except AssertionError:
            broken += 1

    assert deaths
    measure(
        "P1", f"stories spoilt by {deaths:,} deaths of the broker (rules alone)", broken, most=0
    )


# ------------------------------------------------------------------------------------ P3: recovery


def seconds_until_served(cluster: nbtasks.Cluster) -> float:
    """Kill the broker; return the seconds until the next one has answered."""
    kill(cluster.broker_pid)
    began = time.perf_counter()
    cluster.client.ask("status", timeout=SOON)
    return time.perf_counter() - began


def test_broker_is_soon_back_and_work_goes_on(
    cluster: nbtasks.Cluster, full: bool, measure: Measure, short_path: Path
):
    gate = short_path / "gate"
    running = wait_for.delay(gate)
    eventually(lambda: cluster.status()["phases"].get("running"))

    for number, most in [(10_000, 1.0), (100_000, 3.0)][: 2 if full else 1]:
        for _ in range(number - sum(cluster.status()["phases"].values())):
            add.apply_async((1, 2), countdown=3_600)
        assert cluster.client.flush(SOON)
        took = best_of(5, most, lambda: seconds_until_served(cluster))
        measure("P3", f"broker back with {number:,} open tasks", took, most=most, unit="s")

    gate.touch()
    assert running.get(timeout=SOON) == "seen"
    measure("P3", "deaths of the broker seen by running work", running.result != "seen", most=0)


# ------------------------------------------------------------------------------ P4: loss of power

#: What is written down: a client's call comes in, the disk is told to keep it, we say yes.
_TRACED = "trace=recvfrom,recvmsg,read,sendto,sendmsg,write,fdatasync,fsync"


@contextlib.contextmanager
def traced(pid: int, file: Path) -> Iterator[None]:
    """Write down the system calls of a process, in order over all its threads."""
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "4096", "-e", _TRACED, "-o", file, "-p", str(pid)],
        stderr=subprocess.PIPE,
    )
    assert strace.stderr is not None
    try:
        if b"attached" not in strace.stderr.readline():
            pytest.skip("strace may not look at other processes here")
        yield
    finally:
        strace.send_signal(signal.SIGINT)  # so it lets go; the process lives on
        strace.communicate(timeout=SOON)


def syncs_before_acceptance(trace: str, task_id: str) -> int:
    """Return how often the disk was made to keep what it has between a call and our yes to it."""
    after_receipt = trace.partition(task_id)[2]
    until_acceptance, found, _ = after_receipt.partition("Accepted")
    assert found, "the acceptance was not seen"
    return len(
        re.findall(r"(?:fdatasync|fsync)(?:\(\d+<[^>]*>\)| resumed>\)) += 0", until_acceptance)
    )


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_accepted_means_on_the_disk(make_cluster: MakeCluster, measure: Measure, short_path: Path):
    for durability in ("full", "normal"):
        cluster = make_cluster(workers=1, durability=durability)
        add.delay(1, 2).get(timeout=SOON)  # the function is known from now on
        ids = [f"traced-{durability}-{number}" for number in range(5)]
        with traced(cluster.broker_pid, short_path / "trace"):
            for task_id in ids:
                # Nobody works on it, so that nothing else is saved between receipt and yes.
                add.apply_async((1, 2), task_id=task_id, countdown=60, confirm=True)
        trace = (short_path / "trace").read_text()
        counts = [syncs_before_acceptance(trace, task_id) for task_id in ids]
        if durability == "full":
            measure("P4", "fdatasync between receipt and acceptance (full)", min(counts), least=1)
        else:
            measure("P4", "fdatasync in the way of acceptance (normal)", max(counts), most=0)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_large_arguments_are_on_the_disk_before_acceptance(
    make_cluster: MakeCluster, measure: Measure, short_path: Path
):
    cluster = make_cluster(dir=short_path / "c", workers=1)
    add.delay(1, 2).get(timeout=SOON)
    trace = short_path / "trace"
    with traced(cluster.broker_pid, trace):
        for number in range(3):
            data = os.urandom(300_000)
            add.apply_async((data, 2), task_id=f"traced-{number}", countdown=60, confirm=True)

    folder = cluster.dir / "segments"
    names = segments.there(folder)
    lacking, of_file = 0, set()
    for number in range(3):
        after_receipt = trace.read_text().partition(f"traced-{number}")[2]
        synced = set(re.findall(r"fsync\(\d+<([^>]+)>", after_receipt.partition("Accepted")[0]))
        lacking += len({str(folder), str(folder.parent)} - synced)
        of_file |= synced & {str(folder / name) for name in names}
    what = "large arguments: file, folder or way not yet on the disk when accepted"
    measure("P4", what, lacking + len(names) - len(of_file), most=0)
    assert len(names) == 3


def test_without_durability_there_is_no_file_and_the_client_is_told(
    make_cluster: MakeCluster, measure: Measure
):
    cluster = make_cluster(workers=1, durability="none")
    result = add.apply_async((1, 2), countdown=60, confirm=True)

    assert not (cluster.dir / STORE_FILE).exists()
    kill(cluster.broker_pid)
    with pytest.raises(nbtasks.exceptions.OperationalError, match="not durable"):
        result.get(timeout=SOON)
    measure("P4", "files of a store that was asked to keep none", len(stores_in(cluster)), most=0)


def stores_in(cluster: nbtasks.Cluster) -> list[Path]:
    return list(cluster.dir.glob("*.sqlite*"))


# ------------------------------------------------------------------------------ P7: the same task


def test_same_key_is_one_task_though_the_broker_dies_between_the_sendings(
    cluster: nbtasks.Cluster, full: bool, rng: random.Random, ledger: str, measure: Measure
):
    keys = range(400 if full else 60)
    for _ in range(3):
        for key in rng.sample(keys, len(keys)):
            enter.apply_async((ledger, key), idempotency_key=f"key-{key}")
            if rng.random() < 3 / len(keys):
                kill(cluster.broker_pid)
    results = [enter.apply_async((ledger, key), idempotency_key=f"key-{key}") for key in keys]

    assert [result.get(timeout=SOON) for result in results] == list(keys)
    runs = entries(ledger)
    measure("P7", "keys without a run", len(set(keys) - set(runs)), most=0)
    measure("P7", "runs too many of a key", sum(runs.values()) - len(runs), most=0)


#: A broker that has saved what it was sent and dies before it can say so.
DIES_BEFORE_ITS_YES = """
import os
from nbtasks.broker import server

post = server.Server._post

def die(self, mail, absent=()):
    said = [getattr(each, "message", None) for letters in mail.values() for each in letters]
    if any(type(message).__name__ == "Accepted" for message in said):
        os._exit(1)
    post(self, mail, absent)

server.Server._post = die
"""


def test_acknowledgement_that_is_lost_makes_no_second_task(short_path: Path, measure: Measure):
    broker = Broker(short_path / "c", before=DIES_BEFORE_ITS_YES)
    client = Client(broker.runtime)
    record = client.submit(Call(new_id(), DIGEST, "f", b"x"), (), DEFINE)
    broker.process.wait(SOON)
    broker.kill()  # nothing is left but its descriptors
    with contextlib.closing(Store(broker.runtime / STORE_FILE, "full")) as store:
        saved = len(store.listing())
    assert (saved, record.accepted) == (1, False)

    broker.before = ""
    broker.start()
    eventually(lambda: record.accepted)

    measure("P7", "tasks of a call whose acknowledgement was lost", len(client.ask("list")), most=1)
    client.close()
    broker.close()


# --------------------------------------------------------------------------------- P15: full disk


class Disk:
    """A place that can be filled up and emptied."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def fill(self, cluster: nbtasks.Cluster) -> None:
        with (self.place / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (65_536, 4_096, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def free(self, cluster: nbtasks.Cluster) -> None:
        (self.place / "filler").unlink()


class Quota(Disk):
    """A limit on the size of the broker's files, where nobody may mount anything."""

    def fill(self, cluster: nbtasks.Cluster) -> None:
        self._limit(cluster, 100_000)

    def free(self, cluster: nbtasks.Cluster) -> None:
        self._limit(cluster, resource.RLIM_INFINITY)

    def _limit(self, cluster: nbtasks.Cluster, size: int) -> None:
        hard = resource.RLIM_INFINITY
        resource.prlimit(cluster.broker_pid, resource.RLIMIT_FSIZE, (size, hard))


@pytest.fixture(params=["tmpfs", "limit"])
def disk(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Disk]:
    place = short_path / "disk"
    place.mkdir(mode=0o700)
    if request.param == "limit":
        yield Quota(place)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=700", "nbtasks-test", place]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("nobody may mount a small disk here")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


BLOB = bytes(300_000)


@nbtasks.task(acks_late=True)
def late_length(data):
    """Return the length, also where a worker dies that is just at it."""
    return len(data)


def test_full_disk_is_waited_for(disk: Disk, make_cluster: MakeCluster, measure: Measure):
    cluster = make_cluster(dir=disk.place / "c")
    before = add.delay(1, 2)
    before.get(timeout=SOON)

    disk.fill(cluster)
    results = [late_length.delay(BLOB) for _ in range(60)]
    eventually(lambda: cluster.status()["store_failing"])
    told = {result.id for result in results if result.accepted}
    kill(cluster.worker_pids()[0])  # its replacement finds no room either
    time.sleep(1.0)  # the client says it again and again

    # Reads work: what was saved is told, to those who come now as well.
    assert cluster.client.ask("show", id=before.id)["state"] == "SUCCESS"
    assert said(run(READ, cluster.dir, before.id)) == "3\n"
    saved = {row["id"] for row in cluster.client.ask("list", limit=1_000)}
    false = {result.id for result in results if result.accepted} - saved
    measure(
        "P15", "tasks accepted and not saved on a full disk", len(false | (told - saved)), most=0
    )

    pids = cluster.supervisor_pid, cluster.broker_pid
    if not isinstance(disk, Quota):
        kill(cluster.broker_pid)  # the next one cannot even write down that it is there
        time.sleep(1.0)
        pids = cluster.supervisor_pid, 0
    disk.free(cluster)
    began = time.perf_counter()
    values = [result.get(timeout=SOON) for result in results]
    measure("P15", "results after the disk had room again", len(values), least=60)
    measure("P15", "until all had run then", time.perf_counter() - began, most=10.0, unit="s")
    restarted = (cluster.supervisor_pid, pids[1] and cluster.broker_pid) != pids
    measure("P15", "restarts that this took", restarted, most=0)
    assert values == [len(BLOB)] * 60


def test_runs_end_that_must_though_the_disk_is_full(disk: Disk, make_cluster: MakeCluster):
    cluster = make_cluster(dir=disk.place / "c")
    limited = wait_for.apply_async((disk.place / "never",), time_limit=2.0)
    revoked = wait_for.delay(disk.place / "never")
    eventually(lambda: cluster.status()["phases"].get("running") == 2)
    pids = set(cluster.worker_pids())

    disk.fill(cluster)
    late_length.delay(BLOB)
    eventually(lambda: cluster.status()["store_failing"])
    revoked.revoke(terminate=True)
    eventually(lambda: not any(map(alive, pids)))

    disk.free(cluster)
    with pytest.raises(TimeLimitExceeded):
        limited.get(timeout=SOON)
    with pytest.raises(TaskRevokedError, match="terminated"):
        revoked.get(timeout=SOON)


READ = """
import sys
import nbtasks

nbtasks.connect(sys.argv[1])
print(nbtasks.AsyncResult(sys.argv[2]).get(timeout=20))
"""


# ------------------------------------------------------------------------- P16: a store is precious


def some_store(path: Path, turns: int = 40) -> None:
    """Make a store: each turn saves three tasks, with an event and a payload."""
    store = Store(path, "normal")
    commit(store, [SaveDefinition(define(), (b"f" * 5_000,))], NOW)
    for turn in range(turns):
        saves: list[Any] = []
        for seq in range(3 * turn + 1, 3 * turn + 4):
            call = call_for(seq, frames=1, body=b"")
            task = task_for(seq, call)
            event = Event(task.id, 1, NOW.wall, "output", "stdout", text="x" * 50)
            saves.append(SaveCall(seq, call, CLIENT, NOW.wall, (b"y" * 2_000,)))
            saves += [SaveTask(task), SaveEvent(seq, event)]
        commit(store, saves, NOW)
    copy_of(path)  # as a crash leaves it, with its log
    store.close()


def read_all(path: Path) -> int:
    """Read all that a broker would ever read; return how many tasks there are."""
    store = Store(path, "full")
    try:
        rows = list(store.open_tasks(NOW))
        store.calls(row.seq for row in rows)
        for row in rows:
            store.events(row.seq, 0)
            store.find(row.id)
            store.functions.definition(row.definition)
        store.counts()
        store.listing(None, 1_000)
        return len(rows)
    finally:
        store.close()


def test_log_that_is_cut_or_spoilt_anywhere_opens_at_an_earlier_point(
    short_path: Path, full: bool, rng: random.Random, measure: Measure
):
    some_store(short_path / STORE_FILE)
    whole, log = short_path / "copy.sqlite", short_path / "copy.sqlite-wal"
    content = log.read_bytes()
    assert len(content) > 100_000
    torn = 0
    points = set()
    for number in range(600 if full else 60):
        path = short_path / f"cut-{number}.sqlite"
        shutil.copy(whole, path)
        cut = rng.randrange(len(content))
        spoilt = content[:cut] if number % 2 else content[:cut] + b"?" + content[cut + 1 :]
        path.with_name(f"{path.name}-wal").write_bytes(spoilt)
        tasks = read_all(path)
        points.add(tasks)
        torn += tasks % 3 != 0
        path.unlink()
    assert len(points) > 5
    measure("P16", "logs cut at random that opened with half a turn", torn, most=0)


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Return a file as something else may have left it."""
    start = rng.randrange(len(content))
    end = min(start + rng.choice([1, 16, 512, 4096, 20_000]), len(content))
    return rng.choice([
        lambda: content[:start],
        lambda: content[:start] + rng.randbytes(end - start) + content[end:],
        lambda: content[:start] + bytes(end - start) + content[end:],
        lambda: content[end:],
    ])()  # fmt: skip


def test_damaged_store_is_read_or_refused_by_name_and_kept(
    short_path: Path, full: bool, rng: random.Random, measure: Measure
):
    path = short_path / STORE_FILE
    some_store(path)
    content = path.read_bytes()
    refused = wrong = changed = 0
    for _ in range(3_000 if full else 150):
        damaged = spoilt(content, rng)
        path.write_bytes(damaged)
        try:
            read_all(path)
        except StoreError as error:
            refused += 1
            wrong += str(path) not in str(error)
            changed += path.read_bytes() != damaged
        except Exception as error:
            raise AssertionError(f"not a word of ours: {error!r}") from error
        for file in short_path.glob(f"{STORE_FILE}?*"):
            file.unlink()
    assert refused
    measure("P16", "damaged stores refused without their name", wrong, most=0)
    measure("P16", "damaged stores changed by being refused", changed, most=0)


def test_damage_that_is_met_later_stops_the_cluster_with_a_word(
    make_cluster: MakeCluster, short_path: Path
):
    cluster = make_cluster(dir=short_path / "c", workers=1)
    for number in range(2_000):
        add.apply_async((number, number), countdown=3_600)
    cluster.client.flush(SOON)
    cluster.shutdown()
    path = short_path / "c" / STORE_FILE
    content = path.read_bytes()
    path.write_bytes(content[:20_000] + b"?" * (len(content) - 20_000))
    damaged = path.read_bytes()

    with pytest.raises(ClusterError, match=re.escape(str(path))):
        make_cluster(dir=short_path / "c")

    assert path.read_bytes() == damaged


def test_readers_of_the_file_neither_stop_the_broker_nor_let_its_log_grow(
    make_cluster: MakeCluster, full: bool, measure: Measure
):
    cluster = make_cluster(workers=1)
    path = cluster.dir / STORE_FILE
    add.delay(1, 2).get(timeout=SOON)
    reader = run(PEEP, path)
    eventually(lambda: reader.poll() is None and reader.stdout.readline())

    rounds = 30 if full else 6
    for _ in range(rounds):
        for number in range(500):
            add.apply_async((number, 1), countdown=3_600)
        length.delay(bytes(1_000_000)).get(timeout=SOON)
        assert cluster.client.flush(SOON)
    log = path.with_name(f"{path.name}-wal").stat().st_size
    took = best_of(5, 1.0, lambda: seconds_until_served(cluster))
    reader.kill()
    reader.communicate()

    # SQLite keeps what the log once needed: a checkpoint each 8 MB, plus the turn under way.
    measure("P16", "bytes of the log while somebody reads the file", log, most=20e6, unit="B")
    measure("P16", "broker back while somebody reads the file", took, most=1.0, unit="s")


#: Somebody with a database tool: reads, again and again, and waits for each lock.
PEEP = """
import sqlite3, sys, time
print("here", flush=True)
while True:
    time.sleep(0.01)
    try:
        with sqlite3.connect(sys.argv[1], timeout=1.0) as store:
            store.execute("SELECT count(*) FROM tasks").fetchall()
        store.close()
    except sqlite3.OperationalError:
        pass
"""


def test_reader_that_was_first_is_waited_for(
    make_cluster: MakeCluster, short_path: Path, measure: Measure
):
    cluster = make_cluster(dir=short_path / "c", workers=1)
    result = add.apply_async((1, 2), countdown=1.0, confirm=True)
    cluster.shutdown()
    with contextlib.closing(sqlite3.connect(short_path / "c" / STORE_FILE)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM tasks").fetchall()
        leaves = threading.Timer(2.0, reader.interrupt)
        starting = threading.Thread(target=make_cluster, kwargs={"dir": short_path / "c"})
        starting.start()
        time.sleep(1.5)
        assert starting.is_alive()
        reader.rollback()
        leaves.cancel()
    starting.join(SOON)

    assert nbtasks.AsyncResult(result.id).get(timeout=SOON) == 3
    measure("P16", "tasks lost to a reader that was there first", 0, most=0)


# ------------------------------------------------------------------------------ P17: durable speed


def accepted_a_second(client: Client, number: int) -> float:
    calls = [Call(new_id(), DIGEST, "f", b"x" * 40) for _ in range(number)]
    began = time.perf_counter()
    for call in calls:
        client.submit(call, (), DEFINE)
    assert client.flush(SOON)
    return number / (time.perf_counter() - began)


def test_durable_throughput(short_path: Path, full: bool, measure: Measure):
    if not full:
        pytest.skip("speed is measured with --full only")
    broker = Broker(short_path / "c")
    client = Client(broker.runtime)
    best = max(accepted_a_second(client, 30_000) for _ in range(3))
    client.close()
    broker.close()

    measure("P17", 'tasks accepted in "full"', best, least=10_000, unit="1/s")


# ------------------------------------------------------------------------------- space comes back


@contextlib.contextmanager
def results_kept(seconds: float | None) -> Iterator[None]:
    """Let clusters that are started meanwhile keep results for so long; None: for ever."""
    before = nbtasks.config.settings().result_expires
    nbtasks.configure(result_expires=seconds)
    try:
        yield
    finally:
        nbtasks.configure(result_expires=before)


def size_of(cluster: nbtasks.Cluster) -> int:
    large = segments.size(cluster.dir / "segments")
    return large + sum(file.stat().st_size for file in stores_in(cluster))


@pytest.mark.parametrize("size", [200_000, 1_000_000], ids=["in the store", "in files"])
def test_purge_and_expiry_give_disk_space_back(
    make_cluster: MakeCluster, short_path: Path, size: int, measure: Measure
):
    with results_kept(10.0):
        expiring = make_cluster(dir=short_path / "e")
    for result in [echo.delay(os.urandom(size)) for _ in range(100)]:
        result.get(timeout=SOON)
    expired = size_of(expiring)

    purged = make_cluster(dir=short_path / "p")
    for _ in range(100):
        length.apply_async((os.urandom(size),), countdown=3_600)
    assert purged.client.flush(SOON)
    before = size_of(purged)
    assert purged.client.ask("purge") == 100

    assert min(expired, before) > 100 * size
    eventually(lambda: size_of(purged) < before / 10 and size_of(expiring) < expired / 10)
    what = f"of {100 * size / 1e6:.0f} MB"
    measure("P21", f"{what} of calls, purged", size_of(purged), most=before / 10, unit="B")
    measure("P21", f"{what} of results, expired", size_of(expiring), most=expired / 10, unit="B")


# -------------------------------------------------------------------------------- revoked too early


def test_task_that_is_revoked_before_it_is_sent_does_not_run(
    cluster: nbtasks.Cluster, ledger: str, measure: Measure
):
    nbtasks.AsyncResult("early").revoke()
    cluster.status()  # the order has arrived: the broker takes one word after the other
    kill(cluster.broker_pid)
    result = enter.apply_async((ledger, 1), task_id="early")

    with pytest.raises(nbtasks.exceptions.TaskRevokedError):
        result.get(timeout=SOON)
    measure("P1", "runs of a task revoked before it was sent", len(entries(ledger)), most=0)


# ----------------------------------------------------------------------------------------- upgrade


@pytest.mark.parametrize("kept", sorted(STORES.glob("*.gz")), ids=lambda path: path.name[:9])
def test_store_of_an_earlier_version_goes_on(
    kept: Path, make_cluster: MakeCluster, short_path: Path, measure: Measure
):
    place = short_path / "c"
    place.mkdir(mode=0o700)
    (place / STORE_FILE).write_bytes(gzip.decompress(kept.read_bytes()))

    with results_kept(None):  # these are from long ago
        cluster = make_cluster(dir=place, workers=3)
    cluster.client.tell(Hasten(("eta", "countdown", "retrying")))
    version = int(re.findall(r"\d+", kept.name)[0])
    company = make.COMPANY if version >= 6 else ()
    results = {name: nbtasks.AsyncResult(name) for name in (*make.ENDED, *make.OPEN, *company)}
    for result in results.values():
        result.get(timeout=SOON, propagate=False)

    wanted = make.ENDED | make.OPEN | dict.fromkeys(company, "SUCCESS")
    unlike = {name for name, result in results.items() if result.state != wanted[name]}
    assert unlike == set()
    assert results["large"].get() == "> " + "a" * make.LARGE
    assert results["queued"].get() == "> " + "c" * make.LARGE
    assert results["printed"].logs().strip() == "'shown'"
    assert [results[name].get() for name in company] == ["> a"] * len(company)
    assert isinstance(results["failed"].result, TypeError)
    assert isinstance(results["revoked"].result, nbtasks.exceptions.TaskRevokedError)
    assert cluster.client.ask("peek", key="note") == b"kept"
    measure("P16", f"tasks of a store of {kept.name[:9]} that went wrong", len(unlike), most=0)


def test_there_is_a_kept_store_of_each_version():
    versions = {int(re.findall(r"\d+", path.name)[0]) for path in STORES.glob("*.gz")}

    assert versions == set(range(1, database_module.VERSION + 1))
