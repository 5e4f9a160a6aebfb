"""Make a store with every kind of row in it, to be kept for later versions of nbtasks.

    python -m tests.promises.stores.make

It writes version_N.sqlite.gz beside this file: once for each version of the schema, after the last
change to it; the stores of earlier versions stay as they are. All functions are the standard
library's, so that any Python can run them. The cluster is killed in the midst of its work: what a
crash leaves is what is kept.
"""

from __future__ import annotations

import contextlib
import datetime
import filecmp
import gzip
import os
import platform
import pprint
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import nbtasks
from nbtasks.broker.bundles import FEWEST
from nbtasks.broker.questions import LATEST
from nbtasks.client import definitions
from nbtasks.core.messages import Call, Options
from nbtasks.wire.connection import STORE_FILE
from nbtasks.wire.payloads import dumps_arguments
from tests.living import eventually, family, kill

HERE = Path(__file__).parent
#: The one state of each task that is over when the cluster dies.
ENDED = {
    "succeeded": "SUCCESS",
    "printed": "SUCCESS",
    "large": "SUCCESS",
    "paced": "SUCCESS",
    "failed": "FAILURE",
    "revoked": "REVOKED",
}
#: How each task that is open then will end (once its wait is cut short).
OPEN = {
    "eta": "SUCCESS",
    "countdown": "SUCCESS",
    "retrying": "FAILURE",
    "running": "FAILURE",
    "running late": "SUCCESS",
    # Nobody can say whether they had begun: the workers' own notes are not kept with the store.
    "assigned": "FAILURE",
    "noted": "FAILURE",
    "queued": "SUCCESS",
    "waiting": "SUCCESS",
    "by name": "FAILURE",
}
#: Tasks that have come and ended in company lie many to a row, since version 6 of the schema. How
#: the first letters of ids must be alike for that is for `bundles` to say.
COMPANY = tuple(f"one of those in company {number:03d}" for number in range(200))
#: A time that no test will see.
FAR = datetime.datetime(2095, 1, 1, tzinfo=datetime.UTC)
#: More bytes than lie in a message.
LARGE = 40_000

# An option of its own makes the first definition a large one.
indent = nbtasks.task(name="indent", remark="x" * LARGE)(textwrap.indent)
show = nbtasks.task(name="show")(pprint.pprint)
compare = nbtasks.task(
    name="compare", autoretry_for=(FileNotFoundError,), max_retries=1, default_retry_delay=3600
)(filecmp.cmp)
paced = nbtasks.task(name="paced", rate_limit="1/s")(textwrap.indent)
run = nbtasks.task(name="run")(subprocess.call)
run_late = nbtasks.task(name="run_late", acks_late=True)(subprocess.call)


def status(task_id: str) -> tuple[str, str]:
    """Return phase and state."""
    told = nbtasks.current_cluster().client.ask("show", id=task_id) or {}
    return told.get("phase", ""), told.get("state", "")


def end_some() -> None:
    """Leave one task of each ending."""
    indent.apply_async(("a", "> "), task_id="succeeded")
    show.apply_async(("shown",), task_id="printed")
    indent.apply_async(("a" * LARGE, "> "), task_id="large")
    indent.apply_async(("a", 5), task_id="failed")
    revoked = indent.apply_async(("a", "> "), task_id="revoked", countdown=3600)
    eventually(lambda: status("failed") == ("done", "FAILURE"))
    revoked.revoke()
    eventually(lambda: status("revoked") == ("done", "REVOKED"))


def end_in_company() -> None:
    """Leave tasks of the usual kind, some of which lie in one row."""
    indent.delay("a", "> ").get(timeout=10)
    results = [indent.apply_async(("a", "> "), task_id=task_id) for task_id in COMPANY]
    for result in results:
        result.get(timeout=10)
    for _ in range(LATEST):  # or `status` would ask for some of the company
        indent.delay("a", "> ").get(timeout=10)


def leave_some_open(cluster: nbtasks.Cluster) -> None:
    """Leave one task of each phase, with all that a row may say."""
    indent.apply_async(
        ("a", "> "), task_id="eta", eta=FAR, expires=FAR + datetime.timedelta(1), priority=0
    )
    indent.apply_async(("b" * 2_000, "> "), task_id="countdown", countdown=3600)
    compare.apply_async(("/no/such/file", "/no/such/file"), task_id="retrying")
    eventually(lambda: status("retrying") == ("scheduled", "RETRY"))
    run.apply_async((["sleep", "600"],), task_id="running", time_limit=900)
    run_late.apply_async((["sleep", "3"],), task_id="running late")
    names = ("running", "running late")
    eventually(lambda: all(status(name)[0] == "running" for name in names))
    nbtasks.AsyncResult("running").revoke()  # a wish: it has begun
    give_to_the_frozen(cluster)


def give_to_the_frozen(cluster: nbtasks.Cluster) -> None:
    """Leave tasks that were given to workers and have not begun.

    One says so in its row. Of the other only a note says so: it had to wait, for its rate limit.
    """
    paced.apply_async(("a", "> "), task_id="paced")
    eventually(lambda: status("paced") == ("done", "SUCCESS"))
    for worker in cluster.status()["workers"]:
        if not worker["held"]:
            os.kill(worker["pid"], signal.SIGSTOP)
    indent.apply_async(("a", "> "), task_id="assigned")
    paced.apply_async(("a", "> "), task_id="noted")
    eventually(lambda: (status("assigned")[0], held(cluster)) == ("assigned", 4))


def held(cluster: nbtasks.Cluster) -> int:
    return sum(worker["held"] for worker in cluster.status()["workers"])


def queue_some(cluster: nbtasks.Cluster) -> None:
    """Leave tasks that wait for a worker, and one that waits for them."""
    indent.apply_async(
        ("c" * LARGE, "> "), task_id="queued", priority=9, queue="other", parent_id="succeeded",
        root_id="succeeded", headers={"x": 1},
    )  # fmt: skip
    body, buffers = dumps_arguments(("a", "> "), {})
    define = definitions.current(indent)
    options = Options(needs=("queued", "succeeded"))
    waiting = Call("waiting", define[0].digest, "indent", body, len(buffers), options=options)
    cluster.client.submit(waiting, buffers, define)
    by_name = Call("by name", b"", "nobody.knows", body, len(buffers))
    cluster.client.submit(by_name, buffers, confirm=True)
    cluster.client.ask("put", key="note", value=b"kept")


def snapshot(place: Path) -> bytes:
    """Return the store that a killed cluster has left, as one file that tells nothing of us."""
    with contextlib.closing(sqlite3.connect(place / STORE_FILE)) as store:
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        [(company,)] = store.execute("SELECT ifnull(max(count), 0) FROM bundles")
        assert company >= FEWEST, "they came apart: try again"
    content = (place / STORE_FILE).read_bytes()
    # Of equal length, or the rows' lengths would not be right any more.
    for ours in (str(HERE.parents[2]), sys.base_prefix, platform.node()):
        content = content.replace(ours.encode(), b"/somewhere"[: len(ours)].ljust(len(ours), b"_"))
    return content


def main() -> None:
    place = Path(tempfile.mkdtemp(prefix="nbt-"))
    cluster = nbtasks.start(workers=4, dir=place)
    try:
        cluster.worker_pids()
        end_in_company()
        end_some()
        leave_some_open(cluster)
        everybody = family(cluster)
        queue_some(cluster)  # in the journal only
        kill(*everybody)
        time.sleep(0.5)
        content = snapshot(place)
    finally:
        cluster.shutdown()
        shutil.rmtree(place)
    version = int.from_bytes(content[60:64], "big")
    path = HERE / f"version_{version}.sqlite.gz"
    path.write_bytes(gzip.compress(content, mtime=0))
    print(f"{path.name}: {len(content)} bytes, {path.stat().st_size} compressed")


if __name__ == "__main__":
    main()
