"""The command `nbtasks`: look after the cluster of a folder from a shell.

Each command is a function `_name(options)` that returns the exit code: 0 for done, 1 for "could
not", with the reason and what to do on standard error; argparse itself leaves with 2 when the
command line makes no sense. Nothing heavy is loaded before a command needs it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from nbtasks.client.result import AsyncResult
    from nbtasks.cluster import Cluster
    from nbtasks.place import Place

#: Free bytes below which `doctor` warns.
LITTLE_DISK = 500 * 1024**2

#: Tasks that `list` can show.
MOST_LISTED = 1_000_000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments
        The words after `nbtasks`; by default those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 1 not done, 2 not understood.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # somebody else's, or none
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 2
    from nbtasks import exceptions

    try:
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except exceptions.ImproperlyConfigured as error:
        return _complain(str(error), 2)
    except (exceptions.ClusterError, exceptions.OperationalError, TimeoutError) as error:
        return _complain(str(error), 1)
    except exceptions.EncodeError as error:
        return _complain(str(error), 2)
    except BrokenPipeError:
        # `nbtasks list | head`: whoever read has enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a place where nobody lets us in, or that cannot be
        return _complain(str(error))
    except KeyboardInterrupt:
        return 130


def _complain(text: str, code: int = 1) -> int:
    print(f"nbtasks: {text}", file=sys.stderr)
    return code


# --------------------------------------------------------------------------------- the command line


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbtasks",
        description="Look after the background tasks of a folder.",
        epilog="Without --dir a command is about the cluster of the present folder and this "
        "Python, the one that a notebook here uses.",
    )
    parser.add_argument("--version", action="version", version=f"nbtasks {_version()}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    def command(name: str, run: Any, text: str, *aliases: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, aliases=aliases)
        added.set_defaults(run=run)
        added.add_argument("--dir", help="folder of the cluster's files")
        return added

    start = command("start", _start, "Start a broker and workers, or say that they run.")
    start.add_argument("--workers", type=int, metavar="N", help="worker processes")
    start.add_argument("--durability", choices=("full", "normal", "none"))
    start.add_argument(
        "--queues", metavar="Q,Q", help="queues that the workers serve, by default all"
    )
    stop = command("stop", _stop, "Stop broker and workers; tasks and results are kept.")
    stop.add_argument(
        "--purge",
        action="store_true",
        help="also delete all tasks and results; what is open never runs",
    )
    _json(command("status", _status, "Say what runs and how many tasks there are."))
    listed = command("list", _list, "List the tasks, newest first.")
    listed.add_argument(
        "--state", metavar="S", help="only those in this state or phase, such as FAILURE or queued"
    )
    listed.add_argument("--limit", type=_limit, default=20, metavar="N", help="at most (20)")
    _json(listed)
    show = command("show", _show, "Tell all that is known of one task.", "inspect")
    show.add_argument("id", help="its id, or the beginning or end of it")
    _json(show)
    logs = command("logs", _logs, "Print what a task printed and logged.")
    logs.add_argument("id", help="its id, or the beginning or end of it")
    cancel = command("cancel", _cancel, "Do not run these tasks.")
    cancel.add_argument("ids", nargs="+", metavar="ID")
    cancel.add_argument("--terminate", action="store_true", help="also end those that run")
    retry = command("retry", _retry, "Run tasks again that failed or were cancelled.")
    retry.add_argument("ids", nargs="+", metavar="ID")
    command("purge", _purge, "Cancel all tasks that wait; those that run go on.")
    top = command("top", _top, "Show what runs, what waits and what failed, live; q leaves.")
    top.add_argument("--once", action="store_true", help="print it once, as into a pipe")
    top.add_argument(
        "--interval", type=_interval, default=1.0, metavar="S", help="seconds between looks (1)"
    )
    command("doctor", _doctor, "Look for what is wrong, and say what to do.")
    return parser


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _interval(text: str) -> float:
    with suppress(ValueError):
        if 0.1 <= (seconds := float(text)) <= 3600:
            return seconds
    raise argparse.ArgumentTypeError(f"{text}: give 0.1 to 3600 seconds")


def _limit(text: str) -> int:
    with suppress(ValueError):
        if 1 <= (limit := int(text)) <= MOST_LISTED:
            return limit
    raise argparse.ArgumentTypeError(f"{text}: give a whole number, 1 to {MOST_LISTED:,}")


def _version() -> str:
    # Not `from nbtasks import ...`: the package's door would wait for everything behind it.
    return str(vars(sys.modules["nbtasks"])["__version__"])


# ------------------------------------------------------------------------------------ the commands


def _start(options: argparse.Namespace) -> int:
    from nbtasks import cluster
    from nbtasks.jupyter.rows import plural

    # What the workers shall find by import is what a notebook in this folder would, not what
    # lies beside this command.
    sys.path[:1] = [""]
    queues = options.queues and [name.strip() for name in options.queues.split(",")]
    running = cluster.start(
        workers=options.workers, dir=options.dir, durability=options.durability, queues=queues
    )
    try:
        settings = running.settings
        print(f"{plural(settings.workers, 'worker')} at work in {running.dir}")
        print(f"broker {running.broker_pid}, supervisor {running.supervisor_pid}")
    finally:
        running.close()
    return 0


def _stop(options: argparse.Namespace) -> int:
    from nbtasks import cluster

    stopped = cluster.stop(options.dir, purge=options.purge)
    kept = "its tasks are forgotten" if options.purge else "its tasks are kept"
    print(f"Stopped; {kept}." if stopped else "No cluster was running.")
    return 0


def _status(options: argparse.Namespace) -> int:
    with _Connected(options) as cluster:
        status = cluster.status()
        if options.json:
            return _print_json(status | {"dir": str(cluster.dir)})
        phases = ", ".join(f"{count} {phase}" for phase, count in status["phases"].items() if count)
        states = ", ".join(f"{count} {state}" for state, count in status["states"].items() if count)
        _print_pairs(
            [
                ("cluster", cluster.dir),
                ("broker", f"process {status['broker_pid']}, up {_seconds(status['uptime'])}"),
                ("supervisor", f"process {status['supervisor_pid']}"),
                ("store", f"{status['store']}, durability {status['durability']}"),
                ("clients", status["clients"]),
                ("open", phases or "no tasks"),
                ("states", states or "no tasks"),
                ("workers", f"{len(status['workers'])} of {status['wanted']}"),
            ]
        )
        if status["workers"]:
            print()
            _print_table(
                ("WORKER", "PID", "QUEUES", "HELD", "RUNNING"),
                [
                    (
                        worker["name"],
                        worker["pid"],
                        ",".join(worker["queues"]) or "all",
                        worker["held"],
                        " ".join(worker["running"]) or "-",
                    )
                    for worker in status["workers"]
                ],
            )
        trouble = _text(cluster.dir / "trouble.txt")
        if trouble:
            return _complain(trouble)
    return 0


def _list(options: argparse.Namespace) -> int:
    from nbtasks.client import lookup

    with _Connected(options) as cluster:
        try:
            wanted = (
                lookup.named(cluster.client, options.state) if options.state else lookup.ALL_TASKS
            )
        except ValueError as error:
            return _complain(str(error), 2)
        tasks = lookup.latest(cluster.client, options.limit, wanted, took=True)
        if options.json:
            return _print_json(tasks)
        if not tasks:
            print(f"No tasks{wanted}.")
            return 0
        _print_table(
            ("ID", "STATE", "SENT", "TOOK", "TASK"),
            [
                (
                    task["id"],
                    _state(task),
                    _clock(task["accepted_at"]),
                    _took(task),
                    _call(task),
                )
                for task in tasks
            ],
        )
        if len(tasks) == options.limit < MOST_LISTED:
            more = min(options.limit * 10, MOST_LISTED)
            print(f"There may be more: --limit {more}", file=sys.stderr)
    return 0


def _show(options: argparse.Namespace) -> int:
    from nbtasks.client.lookup import find
    from nbtasks.jupyter.rows import printable

    with _Connected(options) as cluster:
        task = find(cluster.client, options.id)
        if task is None:
            return _unknown(options.id)
        if options.json:
            return _print_json(task)
        _print_pairs(
            [
                ("id", task["id"]),
                ("task", _call(task)),
                ("state", _state(task)),
                ("queue", f"{task['queue']}, priority {task['priority']}"),
                ("retries", task["retries"]),
                ("worker", task["worker"] or "-"),
                ("parent", task["parent"] or "-"),
                ("sent", _moment(task["accepted_at"])),
                ("earliest", _moment(task.get("starts") or task.get("eta"))),
                ("latest", _moment(task.get("expires"))),
                ("ended", _moment(task["ended_at"])),
            ]
        )
        events = [event for event in task.get("events", ()) if event["kind"] != "output"]
        if events:
            print()
            _print_table(
                ("TIME", "EVENT", "WORKER", "WHAT"),
                [
                    (
                        _clock(event["at"]),
                        event["state"] or event["kind"],
                        event["worker"] or "-",
                        event["error"] or event["text"],
                    )
                    for event in events
                ],
            )
        tracebacks = [event["traceback"] for event in events if event["traceback"]]
        if tracebacks:
            print("\n" + "\n".join(map(printable, tracebacks[-1].rstrip().split("\n"))))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from nbtasks.client.lookup import find

    with _Connected(options) as cluster:
        task = find(cluster.client, options.id)
        if task is None:
            return _unknown(options.id)
        for event in task.get("events", ()):
            if event["kind"] == "output":
                sys.stdout.write(event["text"])
    return 0


def _cancel(options: argparse.Namespace) -> int:
    with _Connected(options) as cluster:
        code = 0
        for task, result in _results(cluster, options.ids):
            if task is None or result is None:
                code = 1
            elif task["ended_at"] is not None:
                code = _complain(f"{task['id']} is over already: {task['state']}.")
            elif task["phase"] == "running" and not options.terminate:
                code = _complain(
                    f"{task['id']} is running; only --terminate ends it (and its process)."
                )
            else:
                result.revoke(terminate=options.terminate, wait=True, timeout=5.0)
                print(f"{task['id']} {result.state}")
        return code


def _retry(options: argparse.Namespace) -> int:
    with _Connected(options) as cluster:
        code = 0
        for task, result in _results(cluster, options.ids):
            if task is None or result is None:
                code = 1
                continue
            try:
                result.retry()
            except ValueError as error:
                code = _complain(str(error))
            else:
                print(f"{task['id']} runs again")
        return code


def _purge(options: argparse.Namespace) -> int:
    from nbtasks.jupyter.rows import plural

    with _Connected(options) as cluster:
        print(f"{plural(cluster.client.ask('purge'), 'waiting task')} cancelled.")
    return 0


def _top(options: argparse.Namespace) -> int:
    from nbtasks import top

    return top.run(options.dir, options.once, options.interval)


class _Connected:
    """The cluster that a command is about, and the end of the connection to it."""

    def __init__(self, options: argparse.Namespace) -> None:
        from nbtasks import cluster

        self.cluster = cluster.connect(options.dir)

    def __enter__(self) -> Cluster:
        return self.cluster

    def __exit__(self, *_: object) -> None:
        self.cluster.close()


def _unknown(text: str) -> int:
    return _complain(
        f"There is no task {text!r}. Its result may have expired, or the id is of another cluster, "
        f"or is a part of several. `nbtasks list` shows the ids."
    )


def _results(
    cluster: Cluster, ids: Iterable[str]
) -> Iterable[tuple[dict[str, Any] | None, AsyncResult | None]]:
    from nbtasks.client.lookup import find
    from nbtasks.client.result import AsyncResult

    for text in ids:
        task = find(cluster.client, text)
        if task is None:
            _unknown(text)
            yield None, None
        else:
            yield task, AsyncResult(task["id"])


# ------------------------------------------------------------------------------------------ doctor


class Finding(NamedTuple):
    """One thing that was looked at."""

    #: ok, note or bad
    mark: str
    what: str
    #: What to do; empty when nothing.
    advice: str = ""


def _doctor(options: argparse.Namespace) -> int:
    from nbtasks import exceptions
    from nbtasks import place as places

    findings = [_look_at_versions()]
    place = places.place_of(options.dir)
    running = places.is_running(place)
    findings += _look_at_places(place)
    findings += _look_at_disk(place)
    findings += _look_at_files(place, running)
    findings += _look_at_processes(place, running)
    if running:
        try:
            findings += _look_at_cluster(options, place)
        except (exceptions.ClusterError, exceptions.OperationalError, TimeoutError) as error:
            log = place.runtime / "logs" / "broker.log"
            findings.append(
                Finding(
                    "bad",
                    f"The broker does not answer: {error}",
                    f"Read {log}; then `nbtasks stop` and start again.",
                )
            )
    else:
        findings.append(Finding("ok", "No cluster runs here; the first task will start one."))
    for finding in findings:
        print(f"{finding.mark:5}{finding.what}")
        if finding.advice:
            print(f"     → {finding.advice}")
    return 1 if any(finding.mark == "bad" for finding in findings) else 0


def _look_at_versions() -> Finding:
    from importlib.metadata import PackageNotFoundError, version

    found = []
    for package in ("nbtasks", "pyzmq", "msgspec", "cloudpickle"):
        with suppress(PackageNotFoundError):
            found.append(f"{package} {version(package)}")
    python = ".".join(map(str, sys.version_info[:3]))
    return Finding("ok", f"Python {python} ({sys.executable}), {', '.join(found)}")


def _look_at_places(place: Place) -> Iterable[Finding]:
    from nbtasks import exceptions
    from nbtasks import place as places

    try:
        places.check_socket_path(place.runtime)
    except exceptions.ClusterError as error:
        yield Finding("bad", str(error))
    for name, path in (("runtime files", place.runtime), ("store", place.data)):
        try:
            status = path.lstat()
        except FileNotFoundError:
            yield Finding("ok", f"{name}: {path} (not there yet)")
            continue
        try:
            places.check_directory(path)
        except exceptions.ClusterError as error:
            yield Finding("bad", f"{name}: {error}")
            continue
        if status.st_mode & 0o077 or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            yield Finding(
                "bad",
                f"{name}: {path} has mode {status.st_mode & 0o777:o}",
                f"chmod 700 {path}",
            )
        else:
            yield Finding("ok", f"{name}: {path}")
        for file in sorted(path / file for file in places.OUR_FILES):
            if file.exists() and file.stat().st_mode & 0o077:
                wanted = 700 if file.is_dir() else 600
                yield Finding("bad", f"{file} is open to other users", f"chmod {wanted} {file}")


def _look_at_disk(place: Place) -> Iterable[Finding]:
    from nbtasks import place as places

    path = next(p for p in (place.data, *place.data.parents) if p.exists())
    free = shutil.disk_usage(path).free
    if free < LITTLE_DISK:
        yield Finding(
            "bad",
            f"Only {free / 1e6:.0f} MB are free where the store is ({path}).",
            "Make room; nothing is accepted while the store cannot be written.",
        )
    else:
        yield Finding("ok", f"{free / 1e9:.1f} GB are free for the store")
    store, large = places.bytes_kept(place)
    yield Finding(
        "ok",
        f"The store takes {store / 1e6:.1f} MB, large arguments and results {large / 1e6:.1f} MB",
    )


def _look_at_files(place: Place, running: bool) -> Iterable[Finding]:
    failed = _text(place.runtime / "failed.txt")
    if failed and not running:
        yield Finding("bad", f"The last start failed. {failed}", "Put this right, start again.")
    trouble = _text(place.runtime / "trouble.txt")
    if trouble and running:
        yield Finding("bad", trouble, "Put this right; workers are tried again by themselves.")
    if not running and (place.runtime / "connection.json").exists():
        yield Finding(
            "note",
            "The last cluster here was killed; its files were left over.",
            "Nothing to do: the next start takes up what was open.",
        )


def _look_at_processes(place: Place, running: bool) -> Iterable[Finding]:
    """Look for processes of this cluster that have no supervisor any more."""
    import subprocess

    if running:
        return
    try:
        table = subprocess.run(
            ["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        yield Finding("note", "Processes cannot be listed (no `ps`).")
        return
    runtime = str(place.runtime)
    for line in table.splitlines():
        pid, _, command = line.strip().partition(" ")
        words = command.split()
        if runtime in words and any(word.startswith("nbtasks.") for word in words):
            yield Finding("bad", f"Process {pid} was left over: {command}", f"kill -9 {pid}")


def _look_at_cluster(options: argparse.Namespace, place: Place) -> Iterable[Finding]:
    from nbtasks import place as places

    versions = places.protocols(place.runtime)
    if versions is not None and versions[0] != versions[1]:
        yield Finding(
            "bad",
            f"The cluster speaks version {versions[0]} of the protocol, this nbtasks {versions[1]}",
            "`nbtasks stop` and start again; what is open is kept.",
        )
        return
    with _Connected(options) as cluster:
        began = time.perf_counter()
        status = cluster.status()
        took = (time.perf_counter() - began) * 1000
        yield Finding("ok", f"The broker answers after {took:.1f} ms")
        present, wanted = len(status["workers"]), status["wanted"]
        if present < wanted:
            yield Finding(
                "note",
                f"{present} of {wanted} workers are there",
                f"If it stays so, read {cluster.dir / 'logs'}.",
            )
        else:
            yield Finding("ok", f"{present} workers are there")
        if status.get("store_failing"):
            yield Finding(
                "bad",
                "The store cannot be written; nothing is accepted.",
                f"Make room on the disk of {status['store']}; it goes on by itself.",
            )
        python = cluster.settings.extra.get("python", sys.executable)
        if python != sys.executable:
            yield Finding(
                "note",
                f"The cluster was started with {python}",
                "Use that interpreter, or `nbtasks stop` and start it with this one.",
            )


# ------------------------------------------------------------------------------------------ output


def _print_json(value: Any) -> int:
    def plain(strange: Any) -> Any:
        return None if isinstance(strange, bytes) else str(strange)

    print(json.dumps(value, indent=2, default=plain))
    return 0


def _print_pairs(pairs: Sequence[tuple[str, Any]]) -> None:
    from nbtasks.jupyter.rows import printable

    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name:{width}}  {printable(str(value))}")


def _print_table(head: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Print aligned columns; on a terminal the last one is cut at its edge."""
    lines = [head, *(tuple(_one_line(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    edge = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in lines:
        padded = [f"{cell:{width}}" for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*padded, line[-1]])[:edge].rstrip())


def _one_line(cell: Any) -> str:
    """Return a text that does nothing to the terminal: names and messages are the tasks'."""
    from nbtasks.jupyter.rows import printable

    return " ".join(printable(str(cell)).split())


def _call(task: dict[str, Any]) -> str:
    return f"{task.get('shown', task['name'])}{task['summary'] or '()'}"


def _state(task: dict[str, Any]) -> str:
    """Return the state, and where that says little the phase."""
    open_ = task["ended_at"] is None
    return f"{task['state']} ({task['phase']})" if open_ and task["phase"] else str(task["state"])


def _took(task: dict[str, Any]) -> str:
    return "-" if task["took"] is None else _seconds(task["took"])


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _clock(wall: float | None) -> str:
    """Return the time of day, and before today the day."""
    if not wall:
        return "-"
    then, today = time.localtime(wall), time.localtime()
    same_day = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M", then)


def _moment(wall: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall)) if wall else "-"


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
