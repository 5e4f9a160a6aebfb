"""The command `nbtasks`, on real clusters without workers: what waits there, waits."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nbtasks
from nbtasks import cli
from nbtasks import cluster as clusters
from nbtasks.core.messages import Call

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command; return exit code, standard output and standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(words)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def cluster(make_cluster: Callable[..., nbtasks.Cluster]) -> nbtasks.Cluster:
    return make_cluster(workers=0)


@pytest.fixture
def run_there(run: Run, cluster: nbtasks.Cluster) -> Run:
    """Run a command about a cluster that has two tasks, as another process would."""
    for task_id, name in (("aaaa-1", "report.build"), ("bbbb-2", "report.send")):
        call = Call(task_id, b"", name, b"", summary="(3, lr=0.1)")
        cluster.client.submit(call, confirm=True)
    place = cluster.dir
    cluster.close()
    return lambda word, *words: run(word, "--dir", str(place), *words)


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line) for line in text.splitlines()]


# ------------------------------------------------------------------------------ understanding


def test_no_command_prints_help(run: Run) -> None:
    code, out, _ = run()

    assert code == 2
    assert "COMMAND" in out


@pytest.mark.parametrize("words", [["dance"], ["show"], ["list", "--limit", "x"]])
def test_nonsense_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(words)

    assert left.value.code == 2


@pytest.mark.parametrize("limit", ["0", "-1", "x", "1000001", str(2**63), str(10**22)])
def test_limit_that_makes_no_sense_is_answered_with_what_would(
    limit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["list", f"--limit={limit}"])

    assert left.value.code == 2
    assert f"{limit}: give a whole number, 1 to 1,000,000" in capsys.readouterr().err


def test_empty_folder_name_is_refused(run: Run) -> None:
    code, _, err = run("start", "--dir", "")

    assert code == 2
    assert "names no folder" in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])

    assert left.value.code == 0
    assert capsys.readouterr().out == f"nbtasks {nbtasks.__version__}\n"


def test_command_and_module_are_the_same() -> None:
    command = [sys.executable, "-m", "nbtasks", "--version"]

    assert subprocess.run(command, capture_output=True, check=True).stdout.startswith(b"nbtasks ")


def test_nothing_heavy_is_loaded_for_help() -> None:
    code = (
        "import sys; from nbtasks import cli; cli.main([]); "
        "print([m for m in ('zmq', 'msgspec', 'sqlite3', 'jupyter_core') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"


# ------------------------------------------------------------------------------ no cluster


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["list"],
        ["show", "x"],
        ["logs", "x"],
        ["cancel", "x"],
        ["retry", "x"],
        ["purge"],
    ],
)
def test_without_a_cluster_each_command_says_what_to_do(
    run: Run, short_path: Path, words: list[str]
) -> None:
    code, out, err = run(*words, "--dir", str(short_path))

    assert code == 1
    assert out == ""
    assert f"No cluster runs in {short_path}" in err
    assert "nbtasks start" in err


def test_without_a_cluster_it_says_of_which_folder_and_python(
    run: Run, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(short_path)

    _, _, err = run("status")

    assert f"for {short_path.resolve()} and {sys.executable} (others have theirs)" in err


def test_stop_without_a_cluster_is_fine(run: Run, short_path: Path) -> None:
    assert run("stop", "--dir", str(short_path)) == (0, "No cluster was running.\n", "")


@pytest.mark.parametrize("command", ["status", "start", "stop", "doctor"])
def test_folder_that_cannot_be_is_an_error_like_others(run: Run, command: str) -> None:
    code, _, err = run(command, "--dir", f"/tmp/{'a' * 300}")

    assert code == 1
    assert err.startswith("nbtasks: ")


@pytest.mark.parametrize("queues", ["", ",", "a,"])
def test_queue_without_a_name_is_refused(run: Run, short_path: Path, queues: str) -> None:
    code, _, err = run("start", "--dir", str(short_path), "--queues", queues)

    assert code == 2
    assert "a queue has a name" in err


def test_start_with_a_wrong_option_says_so(run: Run, short_path: Path) -> None:
    code, _, err = run("start", "--dir", str(short_path), "--workers", "-1")

    assert code == 2
    assert "workers=-1" in err


# ------------------------------------------------------------------------------ start and stop


def test_start_then_stop(
    run: Run, short_path: Path, make_cluster: Callable[..., nbtasks.Cluster]
) -> None:
    code, out, _ = run("start", "--dir", str(short_path), "--workers", "0")
    assert code == 0
    assert out.startswith(f"0 workers at work in {short_path}\nbroker ")

    make_cluster(workers=None, dir=short_path)
    code, out, _ = run("stop", "--dir", str(short_path))

    assert (code, out) == (0, "Stopped; its tasks are kept.\n")
    assert (short_path / "store.sqlite").exists()


def test_stop_with_purge_forgets_the_tasks(run_there: Run, cluster: nbtasks.Cluster) -> None:
    code, out, _ = run_there("stop", "--purge")

    assert (code, out) == (0, "Stopped; its tasks are forgotten.\n")
    assert not (cluster.dir / "store.sqlite").exists()


def test_stop_ends_a_cluster_whose_broker_hangs(run_there: Run, cluster: nbtasks.Cluster) -> None:
    os.kill(cluster.broker_pid, signal.SIGSTOP)

    code, _, _ = run_there("stop")

    assert code == 0


# ------------------------------------------------------------------------------ looking


def test_status_tells_processes_and_counts(run_there: Run, cluster: nbtasks.Cluster) -> None:
    code, out, err = run_there("status")

    told = dict(line[:2] for line in rows(out))
    assert (code, err) == (0, "")
    assert told["cluster"] == str(cluster.dir)
    assert told["broker"].startswith(f"process {cluster.broker_pid}, up ")
    assert told["open"] == "2 queued"
    assert told["states"] == "2 PENDING"
    assert told["workers"] == "0 of 0"


def test_status_as_json(run_there: Run, cluster: nbtasks.Cluster) -> None:
    status = json.loads(run_there("status", "--json")[1])

    assert status["broker_pid"] == cluster.broker_pid
    assert status["workers"] == []


def test_status_tells_that_workers_cannot_start(run_there: Run, cluster: nbtasks.Cluster) -> None:
    (cluster.dir / "trouble.txt").write_text("Workers cannot start: no module named numpy.")

    code, out, err = run_there("status")

    assert code == 1
    assert "workers" in out
    assert "no module named numpy" in err


def test_list_shows_the_newest_first(run_there: Run) -> None:
    _, out, _ = run_there("list")

    head, *tasks = rows(out)
    assert head == ["ID", "STATE", "SENT", "TOOK", "TASK"]
    assert [(task[0], task[1], task[4]) for task in tasks] == [
        ("bbbb-2", "PENDING (queued)", "report.send(3, lr=0.1)"),
        ("aaaa-1", "PENDING (queued)", "report.build(3, lr=0.1)"),
    ]


def test_list_of_a_state_and_with_a_limit(run_there: Run) -> None:
    assert run_there("list", "--state", "failure")[1] == "No tasks in state FAILURE.\n"
    assert run_there("list", "--state", "scheduled")[1] == "No tasks that are scheduled.\n"
    assert len(rows(run_there("list", "--state", "queued")[1])) == 3
    assert [row[0] for row in rows(run_there("list", "--limit", "1")[1])] == ["ID", "bbbb-2"]


def test_state_that_nothing_has_is_answered_with_the_one_that_may_be_meant(run_there: Run) -> None:
    code, out, err = run_there("list", "--state", "FAILUER")

    assert (code, out) == (2, "")
    assert "'FAILUER'" in err
    assert "Did you mean FAILURE?" in err


def test_list_as_json(run_there: Run) -> None:
    tasks = json.loads(run_there("list", "--json")[1])

    assert [task["id"] for task in tasks] == ["bbbb-2", "aaaa-1"]


def test_show_tells_one_task_also_by_the_beginning_of_its_id(run_there: Run) -> None:
    code, out, _ = run_there("show", "aaaa")

    told = dict(line[:2] for line in rows(out) if len(line) > 1)
    assert code == 0
    assert told["id"] == "aaaa-1"
    assert told["task"] == "report.build(3, lr=0.1)"
    assert told["queue"] == "default, priority 5"
    assert json.loads(run_there("show", "aaaa", "--json")[1])["name"] == "report.build"
    assert run_there("inspect", "aaaa")[1] == out


def test_show_of_an_unknown_task_says_where_to_look(run_there: Run) -> None:
    code, out, err = run_there("show", "zzz")

    assert (code, out) == (1, "")
    assert "no task 'zzz'" in err
    assert "nbtasks list" in err


def test_id_that_no_message_can_carry_is_an_error_like_others(run_there: Run) -> None:
    code, _, err = run_there("cancel", "\udcff")

    assert code == 2
    assert "must be text that UTF-8 can carry" in err


# ------------------------------------------------------------------------------ acting


def test_cancel_then_retry(run_there: Run) -> None:
    assert run_there("cancel", "aaaa")[:2] == (0, "aaaa-1 REVOKED\n")
    assert "REVOKED" in run_there("list", "--state", "revoked")[1]

    code, _, err = run_there("cancel", "aaaa")
    assert code == 1
    assert "over already: REVOKED" in err

    assert run_there("retry", "aaaa")[:2] == (0, "aaaa-1 runs again\n")
    assert "PENDING (queued)" in run_there("show", "aaaa")[1]


def test_one_unknown_id_does_not_keep_the_others_from_being_cancelled(run_there: Run) -> None:
    code, out, err = run_there("cancel", "zzz", "bbbb")

    assert code == 1
    assert out == "bbbb-2 REVOKED\n"
    assert "no task 'zzz'" in err


def test_retry_of_an_open_task_is_refused(run_there: Run) -> None:
    code, _, err = run_there("retry", "aaaa")

    assert code == 1
    assert "aaaa-1" in err


def test_purge_cancels_what_waits(run_there: Run) -> None:
    assert run_there("purge")[:2] == (0, "2 waiting tasks cancelled.\n")
    assert run_there("purge")[:2] == (0, "0 waiting tasks cancelled.\n")


# ------------------------------------------------------------------------------ what tasks say


class Told:
    """A cluster that knows one task."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.client = self

    def ask(self, what: str, **args: Any) -> Any:
        return self.task if what == "show" else [self.task]

    def close(self) -> None: ...


def test_logs_prints_the_output_and_show_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {
        "at": 1e9, "kind": "state", "state": "", "text": "", "worker": "w1", "traceback": "",
        "error": "",
    }  # fmt: skip
    task = {
        "id": "i", "name": "f", "summary": "(1)", "state": "FAILURE", "phase": "done",
        "queue": "q", "priority": 5, "retries": 1, "worker": "w1", "parent": "",
        "accepted_at": 1e9, "ended_at": 1e9 + 90, "took": 12.0,
        "events": [
            event | {"kind": "output", "state": "stdout", "text": "one\n"},
            event | {"kind": "output", "state": "log", "text": "two\n"},
            event | {"state": "REVOKED", "text": '["E", [""]]', "error": "E: expired"},
            event | {"state": "FAILURE", "traceback": "Traceback ...\nValueError: \033[2Jno\n"},
        ],
    }  # fmt: skip
    monkeypatch.setattr(clusters, "connect", lambda _: Told(task))

    assert run("logs", "i")[:2] == (0, "one\ntwo\n")
    out = run("show", "i")[1]
    assert "one" not in out
    assert ["REVOKED", "w1", "E: expired"] in [row[1:] for row in rows(out)]
    assert out.endswith("Traceback ...\nValueError:  [2Jno\n")
    assert "12.0 s" in run("list")[1]


def test_letter_that_the_output_cannot_show_is_spelt_out(cluster: nbtasks.Cluster) -> None:
    cluster.client.submit(Call("i", b"", "report.straße", b"", summary="()"), confirm=True)

    done = subprocess.run(
        [sys.executable, "-m", "nbtasks", "list", "--dir", str(cluster.dir)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert r"report.stra\xdfe()" in done.stdout
