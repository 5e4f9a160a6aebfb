"""`%nbtasks`: the cluster from within a notebook, and what `%load_ext nbtasks` does."""

from __future__ import annotations

import difflib
import shlex
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from IPython.core.error import UsageError
from IPython.core.magic import Magics, line_magic, magics_class

from nbtasks.client import lookup
from nbtasks.core.messages import Hasten, Revoke
from nbtasks.core.states import DONE, SCHEDULED
from nbtasks.exceptions import BrokerUnavailable, EncodeError, ImproperlyConfigured, TimeoutError
from nbtasks.jupyter import cells, figures, pump
from nbtasks.jupyter.body import TaskMagics
from nbtasks.jupyter.rows import clock, duration, first_line, plural, printable, short_name, shorten

if TYPE_CHECKING:
    from nbtasks.client.client import Client
    from nbtasks.cluster import Cluster

#: Tasks that `list` shows.
LISTED = 20

NONE_RUNS = "No cluster runs here. The first task that you send starts one, or %nbtasks start."


class Clusters(Protocol):
    """What the commands need of `nbtasks.cluster`."""

    def start(self, workers: int | None = None) -> Cluster: ...

    def connect(self) -> Cluster: ...

    def shutdown(self, purge: bool = False) -> None: ...

    def current_cluster(self) -> Cluster | None: ...


class Commands:
    """What can follow `%nbtasks`; each method that begins with `do_` is one word.

    A method returns the text to be shown. Its parameters are the words that may follow.
    """

    def __init__(self, clusters: Clusters) -> None:
        self._clusters = clusters

    def run(self, line: str) -> str:
        """Carry out one line.

        Raises
        ------
        UsageError
            When it makes no sense; the text says what would.
        """
        try:
            word, *rest = shlex.split(line) or ["status"]
        except ValueError as error:
            raise UsageError(f"%nbtasks {line}: {error}. Close the quotation mark.") from None
        if word in HELP:
            return f"%nbtasks takes one of these: {', '.join(USES)}. {MORE_HELP}"
        command: Callable[..., str] | None = getattr(self, f"do_{word}", None)
        if command is None:
            raise UsageError(unknown(word))
        if not HELP.isdisjoint(rest):
            return f"%nbtasks {word} takes {USES[word]}. {MORE_HELP}"
        try:
            return command(*rest)
        except (ImproperlyConfigured, EncodeError) as error:
            raise UsageError(f"%nbtasks {line}: {error}") from None
        except BrokerUnavailable:
            if self._find() is not None:
                raise
            return NONE_RUNS
        except TypeError as error:
            if "positional argument" not in str(error):
                raise
            raise UsageError(f"%nbtasks {word} takes {USES[word]}. See %nbtasks?") from None

    def _find(self) -> Cluster | None:
        """Return the cluster if one runs; never start one."""
        found = self._clusters.current_cluster()
        if found is not None and found.running:
            return found
        try:
            return self._clusters.connect()
        except BrokerUnavailable:
            return None

    def _need(self) -> Cluster:
        found = self._find()
        if found is None:
            raise BrokerUnavailable(NONE_RUNS)
        return found

    def _look_up(self, task_ids: Iterable[str]) -> tuple[list[dict[str, Any]], list[str]]:
        """Return the tasks of these ids, each once, and what to say of ids that nobody knows."""
        client = self._need().client
        found = {task_id: lookup.find(client, task_id) for task_id in task_ids}
        tasks = {task["id"]: task for task in found.values() if task is not None}
        unknown = [unknown_task(task_id) for task_id, task in found.items() if task is None]
        return list(tasks.values()), unknown

    # ------------------------------------------------------------------------ the cluster

    def do_status(self) -> str:
        found = self._find()
        return NONE_RUNS if found is None else status_text(found.status())

    def do_start(self, workers: str | None = None) -> str:
        count = None if workers is None else number(workers, "start", least=1)
        running = self._find()
        if running is not None and count not in (None, running.settings.workers):
            raise UsageError(
                f"%nbtasks start {workers}: a cluster of "
                f"{plural(running.settings.workers, 'worker')} runs here already. "
                f"%nbtasks scale {workers} changes their number."
            )
        # Not another one: the notebook may have started its own in a folder that it named.
        found = running or self._clusters.start(workers=count)
        return f"A broker and {plural(len(found.worker_pids()), 'worker')} are running."

    def do_stop(self) -> str:
        if self._find() is None:
            return NONE_RUNS
        self._clusters.shutdown()
        return "Stopped. Tasks and results are kept; what is open goes on at the next start."

    def do_scale(self, workers: str) -> str:
        count = number(workers, "scale", least=0)
        self._need().scale(count)
        return f"{plural(count, 'worker')} from now on; surplus ones finish what they run first."

    # ------------------------------------------------------------------------ its tasks

    def do_list(self, word: str | None = None) -> str:
        client = self._need().client
        try:
            wanted = lookup.named(client, word) if word else lookup.ALL_TASKS
        except ValueError as error:
            raise UsageError(f"%nbtasks list {word}: {error}") from None
        tasks = lookup.latest(client, LISTED, wanted)
        return list_text(tasks) if tasks else f"There are no tasks{wanted}."

    def do_show(self, task_id: str) -> str:
        task = lookup.find(self._need().client, task_id)
        return show_text(task) if task else unknown_task(task_id)

    def do_attach(self, *task_ids: str) -> str:
        client = self._need().client
        tasks, unknown = self._look_up(task_ids)
        if not task_ids:
            tasks = open_tasks(client)[::-1]
        ids = {task["id"] for task in tasks}
        for task in tasks:
            if task["parent"] not in ids:  # the others come below the task that has sent them
                cells.attach(
                    client.record(task["id"]), (task.get("shown", task["name"]), task["summary"])
                )
        return "\n".join(unknown) if tasks or unknown else "No task is open."

    def do_cancel(self, *task_ids: str) -> str:
        if not task_ids:
            raise UsageError("%nbtasks cancel takes ids of tasks, or the word all. See %nbtasks?")
        client = self._need().client
        tasks, said = (open_tasks(client), []) if task_ids == ("all",) else self._look_up(task_ids)
        said += [
            f"{task['id']} is over already: {task['state']}."
            for task in tasks
            if task["phase"] == DONE
        ]
        open_ids = tuple(task["id"] for task in tasks if task["phase"] != DONE)
        if open_ids:
            client.tell(Revoke(open_ids, terminate=True))
            said.insert(0, f"{plural(len(open_ids))} cancelled.")
        return "\n".join(said) or "No task is open."

    def do_retry(self, *task_ids: str) -> str:
        if not task_ids:
            raise UsageError("%nbtasks retry takes ids of tasks. See %nbtasks?")
        from nbtasks.client.result import AsyncResult

        tasks, said = self._look_up(task_ids)
        again = 0
        for task in tasks:
            try:
                AsyncResult(task["id"]).retry()
            except (ValueError, TimeoutError) as error:
                said.append(str(error))
            else:
                again += 1
        if again:
            said.insert(0, f"{plural(again)} will run once more.")
        return "\n".join(said)

    def do_run(self, *task_ids: str) -> str:
        if not task_ids:
            raise UsageError("%nbtasks run takes ids of tasks that wait. See %nbtasks?")
        tasks, said = self._look_up(task_ids)
        said += [
            f"{task['id']} is {state_text(task)}: it does not wait for a time."
            for task in tasks
            if task["phase"] != SCHEDULED
        ]
        waiting = tuple(task["id"] for task in tasks if task["phase"] == SCHEDULED)
        if waiting:
            self._need().client.tell(Hasten(waiting))
            said.insert(0, f"{plural(len(waiting))} will start as soon as a worker is free.")
        return "\n".join(said)

    def do_purge(self) -> str:
        count = self._need().client.ask("purge")
        return f"{plural(count)} that had not begun will not run."


def open_tasks(client: Client) -> list[dict[str, Any]]:
    """Return the tasks that are not over, newest first."""
    return [task for task in lookup.latest(client, lookup.ALL) if task["phase"] != DONE]


#: What people type to be told what may follow a word.
HELP = frozenset({"-h", "--help", "help"})
MORE_HELP = "%nbtasks? tells what each word does."

#: word → what may follow it.
USES = {
    "status": "no more words",
    "start": "at most the number of workers",
    "stop": "no more words",
    "scale": "the number of workers",
    "list": "at most one state or phase, such as FAILURE or queued",
    "show": "the id of one task, or its beginning or end",
    "attach": "ids of tasks, or nothing for all that are open",
    "cancel": "ids of tasks, or the word all",
    "retry": "ids of tasks",
    "run": "ids of tasks",
    "purge": "no more words",
}


def unknown(word: str) -> str:
    near = difflib.get_close_matches(word, USES, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    words = ", ".join(USES)
    return f"%nbtasks has no command {word!r}.{hint} There are: {words}. See %nbtasks?"


def unknown_task(task_id: str) -> str:
    return (
        f"The broker knows no task {task_id!r}, or several with this in their ids. "
        f"%nbtasks list shows those that it knows."
    )


def number(word: str, command: str, least: int) -> int:
    if not word.isdecimal() or int(word) < least:
        raise UsageError(
            f"%nbtasks {command} {word}: the number of workers must be a whole number, "
            f"{least} or more."
        )
    return int(word)


# ----------------------------------------------------------------------------------------- texts


def status_text(status: Mapping[str, Any]) -> str:
    workers = status["workers"]
    busy = sum(bool(worker["running"]) for worker in workers)
    lines = [
        f"broker      pid {status['broker_pid']}, up for {clock(status['uptime'])}, "
        f"durability {status['durability']}",
        f"supervisor  pid {status['supervisor_pid']}",
        f"workers     {len(workers)} of {status['wanted']}, {busy} busy",
    ]
    lines += [f"            {worker_text(worker)}" for worker in workers]
    states = ", ".join(f"{count} {state}" for state, count in status["states"].items() if count)
    lines.append(f"tasks       {states or 'none'}")
    lines.append(f"store       {status['store']}")
    if status.get("store_failing"):
        lines.append("            CANNOT BE WRITTEN: is the disk full? Nothing new is accepted.")
    return "\n".join(lines)


def worker_text(worker: Mapping[str, Any]) -> str:
    queues = f"  queues {', '.join(worker['queues'])}" if worker["queues"] else ""
    running = f"  runs {worker['running'][0]}" if worker["running"] else ""
    return f"{worker['name']}  pid {worker['pid']}{queues}{running}"


def list_text(tasks: list[dict[str, Any]]) -> str:
    lines = [
        f"{task['id']:36}  {state_text(task):20}  {shorten(call_text(task), 60)}" for task in tasks
    ]
    more = [f"(the latest {LISTED})"] if len(tasks) == LISTED else []
    return "\n".join([*lines, *more])


def show_text(task: Mapping[str, Any]) -> str:
    lines = [
        call_text(task),
        f"  id         {task['id']}",
        f"  state      {state_text(task)}",
        f"  queue      {task['queue']}, priority {task['priority']}",
    ]
    if task["retries"]:
        lines.append(f"  retries    {task['retries']}")
    if task["worker"]:
        lines.append(f"  worker     {task['worker']}")
    lines.append(f"  submitted  {when(task['accepted_at'])}")
    if task["phase"] != DONE:
        times = {"earliest": task["starts"] or task["eta"], "latest": task["expires"]}
        lines += [f"  {name:9}  {when(at)}" for name, at in times.items() if at]
    if task["ended_at"]:
        took = duration(max(0.0, task["ended_at"] - task["accepted_at"]))
        lines.append(f"  ended      {when(task['ended_at'])}, after {took}")
    if task["children"]:
        lines.append(f"  children   {', '.join(task['children'])}")
    lines += [f"    {event_text(event)}" for event in task["events"]]
    return "\n".join(lines)


def call_text(task: Mapping[str, Any]) -> str:
    return f"{short_name(task.get('shown', task['name']))}{task['summary'] or '()'}"


def state_text(task: Mapping[str, Any]) -> str:
    """Return state and phase; the phase says more only while the task is open."""
    return task["state"] if task["phase"] == "done" else f"{task['state']} ({task['phase']})"


def event_text(event: Mapping[str, Any]) -> str:
    what = {"run": f"began on {event['worker']}", "again": f"runs again: {event['text']}"}
    said = what.get(event["kind"], event["state"])
    detail = event["error"]
    if event["kind"] == "output":
        detail = event["text"].rstrip().rpartition("\n")[2]
    return f"{when(event['at'])}  {said}  {first_line(detail)}".rstrip()


def when(at: float) -> str:
    date = datetime.fromtimestamp(at).astimezone()
    today = date.date() == datetime.fromtimestamp(time.time()).astimezone().date()
    return f"{date:%H:%M:%S}" if today else f"{date:%Y-%m-%d %H:%M:%S}"


# -------------------------------------------------------------------------------------- IPython


@magics_class
class NbtasksMagics(Magics):
    """The magic that steers."""

    @line_magic
    def nbtasks(self, line: str) -> None:
        """See to the broker, the workers and the tasks of this notebook.

        Nothing needs to be started: the first task that you send starts a broker and workers, or
        finds those that are running. They go on when the notebook is closed, and end by themselves
        ten minutes after the last kernel is gone and the last task is over.

            %nbtasks                status
            %nbtasks status         what runs, what waits, and where the store is
            %nbtasks start [N]      start a broker and N workers (else one a processor, or two)
            %nbtasks stop           stop them; tasks and results are kept
            %nbtasks scale N        have N workers from now on
            %nbtasks list [STATE]   the latest tasks, or those in a state or phase: list FAILURE
            %nbtasks show ID        what became of one task, step by step
            %nbtasks attach [ID]    show tasks under this cell, live: those that are open, or these
            %nbtasks cancel ID      cancel a task, also when it is running; several ids, or: all
            %nbtasks retry ID       run tasks once more that failed or were cancelled
            %nbtasks run ID         start tasks now that wait for their time, or for a retry
            %nbtasks purge          cancel all tasks that have not begun

        The beginning or end of an id will do. `%%task` runs a cell as a task.
        """
        from nbtasks import cluster  # late: what only draws panels does not need it

        text = Commands(cluster).run(line)
        if text:  # a panel says it all
            print("\n".join(map(printable, text.split("\n"))))


def load(shell: Any) -> None:
    """Add the magics and the panels to an IPython shell; the cluster starts with the first call."""
    shell.register_magics(NbtasksMagics, TaskMagics)
    cells.install(shell)
    if getattr(shell, "kernel", None) is not None:
        figures.install(shell)
        pump.install(shell)


def unload(shell: Any) -> None:
    pump.uninstall()
    cells.uninstall()
    if getattr(shell, "kernel", None) is not None:
        figures.uninstall(shell)
    shell.magics_manager.magics["line"].pop("nbtasks", None)
    shell.magics_manager.magics["cell"].pop("task", None)
