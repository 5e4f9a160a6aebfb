"""%nbtasks: its words, on a cluster that is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from IPython.core.error import UsageError

import nbtasks
from nbtasks.core.messages import Hasten, Revoke
from nbtasks.exceptions import BrokerUnavailable, ImproperlyConfigured
from nbtasks.jupyter.magics import NONE_RUNS, Commands, event_text, when

TASK = {
    "id": "a-1",
    "name": "nb.load",
    "state": "PENDING",
    "phase": "queued",
    "summary": "('a.csv')",
    "queue": "default",
    "priority": 5,
    "retries": 0,
    "worker": "",
    "parent": "",
    "accepted_at": 1_000_000.0,
    "ended_at": None,
    "children": [],
    "starts": None,
    "eta": None,
    "expires": None,
    "events": [],
}
ENDED = {**TASK, "id": "a-2", "state": "FAILURE", "phase": "done", "ended_at": 1_000_001.5}
LATER = {**TASK, "id": "a-3", "phase": "scheduled", "starts": 1_000_060.0, "expires": 1_000_090.0}


class Client:
    """A client that knows three tasks, the last of which is too old for a list."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def ask(self, what: str, **args: Any) -> Any:
        tasks = [TASK, ENDED]
        if what == "list":
            tasks = [task for task in tasks if args.get("state") in (None, task["state"])]
            return [task for task in tasks if args.get("phase") in (None, task["phase"])]
        if what == "status":
            return {"states": {"PENDING": 1, "FAILURE": 1, "Halfway": 1}}
        if what == "show":
            return next((task for task in [*tasks, LATER] if task["id"] == args["id"]), None)
        assert what == "purge"
        return 3

    def tell(self, *messages: Any) -> None:
        self.told.extend(messages)


class Cluster:
    def __init__(self) -> None:
        self.client = Client()
        self.running = True
        self.workers = 2

    @property
    def settings(self) -> Any:
        return SimpleNamespace(workers=self.workers)

    def worker_pids(self) -> list[int]:
        return list(range(self.workers))

    def scale(self, workers: int) -> None:
        if workers > 10_000:
            raise ImproperlyConfigured(f"scale(workers={workers}) cannot be: 10000 at most.")
        self.workers = workers

    def status(self) -> dict[str, Any]:
        worker = {"name": "worker-1", "pid": 12, "queues": [], "held": 1, "running": ["a-1"]}
        return {
            "broker_pid": 10,
            "supervisor_pid": 11,
            "uptime": 75.0,
            "durability": "full",
            "store": "/data/store.sqlite",
            "store_failing": False,
            "wanted": 1,
            "states": {"PENDING": 1, "FAILURE": 1},
            "workers": [worker],
        }


class Clusters:
    """Where a cluster may run."""

    def __init__(self) -> None:
        self.cluster: Cluster | None = None

    def current_cluster(self) -> Any:
        return self.cluster

    def start(self, workers: int | None = None) -> Any:
        self.cluster = Cluster()
        self.cluster.workers = workers or 2
        return self.cluster

    def connect(self) -> Any:
        if self.cluster is None:
            raise BrokerUnavailable("none")
        return self.cluster

    def shutdown(self, purge: bool = False) -> None:
        self.cluster = None


@pytest.fixture
def clusters():
    return Clusters()


@pytest.fixture
def running(clusters):
    clusters.start()
    return clusters


@pytest.mark.parametrize("line", ["", "status", "stop", "list", "show a-1", "cancel all", "purge"])
def test_no_word_but_start_starts_a_cluster(clusters, line):
    assert Commands(clusters).run(line) == NONE_RUNS
    assert clusters.cluster is None


def test_start_says_how_many_workers_run(clusters):
    assert Commands(clusters).run("start 4") == "A broker and 4 workers are running."


def test_start_beside_a_running_cluster_says_how_to_change_it(running):
    with pytest.raises(UsageError, match=r"2 workers runs here already. %nbtasks scale 1 "):
        Commands(running).run("start 1")

    assert Commands(running).run("start 2") == "A broker and 2 workers are running."


def test_start_keeps_the_cluster_that_the_notebook_has(running):
    """One that it has started in a folder of its own, say: `start()` would open another."""
    its_own = running.cluster

    Commands(running).run("start")

    assert running.cluster is its_own


def test_number_of_workers_that_cannot_be_is_told_in_a_line(running):
    with pytest.raises(UsageError, match="10000 at most"):
        Commands(running).run("scale 99999")


def test_status_tells_broker_workers_and_tasks(running):
    text = Commands(running).run("")

    assert "pid 10" in text
    assert "worker-1  pid 12  runs a-1" in text
    assert "1 PENDING, 1 FAILURE" in text


def test_stop_says_that_nothing_is_lost(running):
    assert "kept" in Commands(running).run("stop")
    assert running.cluster is None


def test_scale_changes_the_number_of_workers(running):
    assert Commands(running).run("scale 1").startswith("1 worker from now on")
    assert running.cluster.workers == 1


def test_list_has_a_line_a_task(running):
    lines = Commands(running).run("list").splitlines()

    assert lines[0].split() == ["a-1", "PENDING", "(queued)", "load('a.csv')"]
    assert lines[1].split() == ["a-2", "FAILURE", "load('a.csv')"]


def test_list_takes_a_state_in_any_case(running):
    assert Commands(running).run("list failure").split()[0] == "a-2"
    assert Commands(running).run("list RETRY") == "There are no tasks in state RETRY."
    assert Commands(running).run("list Halfway") == "There are no tasks in state Halfway."


def test_list_takes_a_phase(running):
    assert Commands(running).run("list queued").split()[0] == "a-1"
    assert Commands(running).run("list scheduled") == "There are no tasks that are scheduled."


def test_list_of_a_state_that_nothing_has_says_which_may_be_meant(running):
    with pytest.raises(UsageError, match="Did you mean FAILURE"):
        Commands(running).run("list FAILUER")


def test_who_asks_for_help_is_told_where_it_is(running):
    assert "at most one state or phase" in Commands(running).run("list --help")


@pytest.mark.parametrize("word", ["help", "-h", "--help"])
def test_who_asks_for_help_alone_is_told_the_words(clusters, word):
    assert Commands(clusters).run(word).startswith("%nbtasks takes one of these: status, start,")


def test_show_tells_the_task(running):
    text = Commands(running).run("show a-2")

    assert text.startswith("load('a.csv')")
    assert "after 1.5 s" in text


def test_beginning_of_an_id_will_do_when_only_one_task_has_it(running, monkeypatch):
    monkeypatch.setitem(TASK, "id", "b-1")

    assert "  id         b-1" in Commands(running).run("show b").splitlines()
    assert Commands(running).run("cancel b") == "1 task cancelled."
    assert running.cluster.client.told == [Revoke(("b-1",), terminate=True)]


def test_show_tells_when_a_task_starts_and_when_it_is_too_late(running):
    lines = Commands(running).run("show a-3").splitlines()

    assert f"  earliest   {when(1_000_060.0)}" in lines
    assert f"  latest     {when(1_000_090.0)}" in lines


def test_event_is_told_with_its_error_or_the_end_of_its_output():
    event = {"at": 0.0, "kind": "state", "state": "FAILURE", "worker": "", "text": "", "error": ""}

    assert event_text({**event, "error": "ValueError: no"}).endswith("FAILURE  ValueError: no")
    assert event_text({**event, "kind": "output", "text": "one\ntwo\n"}).endswith("  two")


def test_show_of_an_unknown_task_says_so(running):
    assert "knows no task 'zz'" in Commands(running).run("show zz")


def test_cancel_revokes_by_id(running):
    assert Commands(running).run("cancel a-1") == "1 task cancelled."
    assert running.cluster.client.told == [Revoke(("a-1",), terminate=True)]


def test_cancel_all_leaves_alone_what_is_over(running):
    Commands(running).run("cancel all")

    assert running.cluster.client.told == [Revoke(("a-1",), terminate=True)]


def test_cancel_says_what_it_could_not_cancel_and_does_the_rest(running):
    said = Commands(running).run("cancel a-2 zz a-1 a-1").splitlines()

    assert said[0] == "1 task cancelled."
    assert "knows no task 'zz'" in said[1]
    assert said[2] == "a-2 is over already: FAILURE."
    assert running.cluster.client.told == [Revoke(("a-1",), terminate=True)]


@pytest.fixture
def retried(monkeypatch):
    """Ids of tasks that were told to run again; only what failed does."""
    ids: list[str] = []

    def retry(result):
        if result.id != ENDED["id"]:
            raise ValueError(f"{result.id} was purged.")
        ids.append(result.id)

    monkeypatch.setattr("nbtasks.client.result.AsyncResult.retry", retry)
    return ids


def test_retry_runs_what_failed_once_more(running, retried):
    assert Commands(running).run("retry a-2") == "1 task will run once more."
    assert retried == ["a-2"]


def test_retry_says_what_cannot_run_again_and_does_the_rest(running, retried):
    said = Commands(running).run("retry a-1 zz a-2").splitlines()

    assert said[0] == "1 task will run once more."
    assert "knows no task 'zz'" in said[1]
    assert said[2] == "a-1 was purged."
    assert retried == ["a-2"]


def test_run_starts_what_waits_for_its_time(running):
    assert "1 task will start" in Commands(running).run("run a-3")
    assert running.cluster.client.told == [Hasten(("a-3",))]


def test_run_of_a_task_that_waits_for_a_worker_says_so(running):
    assert "does not wait for a time" in Commands(running).run("run a-1")
    assert not running.cluster.client.told


@pytest.mark.parametrize("word", ["retry", "run"])
def test_retry_and_run_of_an_unknown_task_say_so(running, word):
    assert "knows no task 'zz'" in Commands(running).run(f"{word} zz")
    assert not running.cluster.client.told


def test_purge_says_how_many(running):
    assert Commands(running).run("purge") == "3 tasks that had not begun will not run."


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("statsu", "no command 'statsu'. Did you mean status?"),
        ("frobnicate", "There are: status, start, stop"),
        ("scale", "takes the number of workers"),
        ("scale many", "whole number, 0 or more"),
        ("start 0", "whole number, 1 or more"),
        ("stop it now", "takes no more words"),
        ("cancel", "ids of tasks, or the word all"),
        ("retry", "ids of tasks"),
        ("run", "ids of tasks that wait"),
        ("show 'a", "Close the quotation mark"),
    ],
)
def test_nonsense_is_answered_with_what_would_make_sense(running, line, says):
    with pytest.raises(UsageError, match=says):
        Commands(running).run(line)


def test_the_magic_prints_what_its_command_returns(capsys, monkeypatch, running):
    from nbtasks.jupyter import magics

    monkeypatch.setattr(nbtasks, "cluster", running, raising=False)
    magics.NbtasksMagics(None).nbtasks("purge")

    assert capsys.readouterr().out == "3 tasks that had not begun will not run.\n"
    assert "%nbtasks scale N" in magics.NbtasksMagics.nbtasks.__doc__
