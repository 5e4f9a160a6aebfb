"""What `start` is asked for: checked, compared with a running cluster, made into settings."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from nbtasks import config, processors
from nbtasks.exceptions import ClusterError, ImproperlyConfigured, SerializerNotInstalled
from nbtasks.place import Place
from nbtasks.wire import codecs
from nbtasks.wire.connection import SETTINGS_FILE, Settings, read_settings, umask

#: Seconds of a hundred years.
_CENTURY: Final = 3.156e9

#: What `core.messages.Workers` takes.
MOST_WORKERS: Final = 10_000


class Options(NamedTuple):
    """What was asked of `start`; None: not said."""

    workers: int | None = None
    durability: str | None = None
    transport: str | None = None
    queues: tuple[str, ...] | None = None
    queue_workers: dict[str, int] | None = None
    max_tasks_per_worker: int | None = None
    memory_limit: int | None = None
    idle_timeout: float | None = None


def check(
    workers: int | None,
    durability: str | None,
    transport: str | None,
    queues: str | Sequence[str] | Mapping[str, int] | None,
    max_tasks_per_worker: int | None,
    memory_limit: int | str | None,
    idle_timeout: float | None,
) -> Options:
    """Return the options that were given, or raise ImproperlyConfigured."""
    names: tuple[str, ...] | None = None
    own: dict[str, int] | None = None
    if isinstance(queues, Mapping):
        own = {str(queue): count(f"queues[{queue!r}]", n) or 0 for queue, n in queues.items()}
        workers = sum(own.values()) if workers is None else workers
    elif isinstance(queues, Iterable):
        names = (queues,) if isinstance(queues, str) else tuple(map(str, queues))
    elif queues is not None:
        raise ImproperlyConfigured(
            f"start(queues={queues!r}) cannot be: it says which queues the workers serve. Give a "
            f"name, several in a list, or a mapping of names to numbers of workers."
        )
    if "" in (names or own or ()):
        raise ImproperlyConfigured(
            f"start(queues={queues!r}) cannot be: a queue has a name, and one of these has none. "
            f"It may come from a variable that is not set. Leave queues away to serve all."
        )
    total = count("workers", workers, least=0)
    if own and total is not None and total < sum(own.values()):
        raise ImproperlyConfigured(
            f"start(workers={total}) is too few for queues={own}, which need "
            f"{sum(own.values())}. Raise workers, or leave it away."
        )
    return Options(
        total,
        _choice("durability", durability, ("full", "normal", "none")),
        _choice("transport", transport, ("ipc", "tcp")),
        names,
        own,
        count("max_tasks_per_worker", max_tasks_per_worker),
        _size(memory_limit),
        _idle(idle_timeout),
    )


def count(name: str, value: int | None, least: int = 1, call: str = "start") -> int | None:
    """Return an option that is a number of processes or tasks, or raise ImproperlyConfigured."""
    if value is None:
        return None
    if isinstance(value, config.WHOLE) and value >= least and value is not True:
        if name == "workers" and value > MOST_WORKERS:
            raise ImproperlyConfigured(
                f"{call}(workers={value}) cannot be: a cluster has {MOST_WORKERS} workers at most, "
                f"and a machine serves well about as many as it has processors."
            )
        return int(value)
    raise ImproperlyConfigured(
        f"{call}({name}={value!r}) cannot be: it is a number of processes or tasks. "
        f"Give a whole number, {least} or more."
    )


def _choice(name: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    if value is None or value in choices:
        return value
    raise ImproperlyConfigured(
        f"start({name}={value!r}) cannot be. Give one of {', '.join(map(repr, choices))}."
    )


def _idle(seconds: float | None) -> float | None:
    """Return for how long a cluster may be idle; JSON has no infinity, so a century is for ever."""
    if seconds is None:
        return None
    if isinstance(seconds, (int, float)) and seconds is not True and seconds >= 0:  # nor NaN
        return float(min(seconds, _CENTURY))
    raise ImproperlyConfigured(
        f"start(idle_timeout={seconds!r}) cannot be: it is for how long a cluster may be idle. "
        f"Give a number of seconds, 0 or more; float('inf') means that it never goes by itself."
    )


def _size(memory_limit: int | str | None) -> int | None:
    try:
        return None if memory_limit is None else config.parse_size(memory_limit)
    except ValueError as error:
        raise ImproperlyConfigured(f"start(memory_limit={memory_limit!r}): {error}") from None


def settings_for(place: Place, options: Options) -> Settings:
    """Return what a new cluster is started with."""
    ours = config.settings()
    kibibytes = ours.worker_max_memory_per_child
    limit = options.memory_limit or (kibibytes * 1024 if kibibytes else None)
    workers = options.workers
    return Settings(
        data=str(place.data),
        workers=workers if workers is not None else ours.worker_concurrency or _enough(),
        durability=options.durability or ours.durability,
        transport=options.transport or ours.transport,
        queues=options.queues or (),
        queue_workers=options.queue_workers or {},
        max_tasks_per_worker=options.max_tasks_per_worker or ours.worker_max_tasks_per_child,
        memory_limit=limit,
        idle_timeout=600.0 if options.idle_timeout is None else options.idle_timeout,
        result_expires=ours.result_expires or None,
        # Import passes over anything but text; whoever puts a Path there means its text.
        sys_path=tuple(os.fsdecode(p) for p in sys.path if isinstance(p, (str, os.PathLike))),
        extra={
            "umask": umask(),
            "python": sys.executable,
            "accept_content": _content_types(ours.accept_content),
            "task_default_queue": ours.task_default_queue,
        },
    )


def _enough() -> int:
    """Return one worker a processor, two at least: one long task shall not block all."""
    return max(2, processors.usable())


def _content_types(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return what `accept_content` means; workers do not know yet what was registered here."""
    try:
        return None if names is None else tuple(sorted(codecs.content_types(names)))
    except SerializerNotInstalled as error:
        raise ImproperlyConfigured(f"accept_content: {error}") from None


#: Option → what to do instead of a second start with another value.
_REMEDIES: Final = {"workers": "cluster.scale({value})"}


def compare(place: Place, options: Options) -> None:
    """Raise ImproperlyConfigured when the running cluster has another value for an option."""
    running = settings_in(place.runtime)
    for name, value in options._asdict().items():
        present = getattr(running, name)
        if value is None or value == present:
            continue
        shown = "queues" if name == "queue_workers" else name
        remedy = _REMEDIES.get(name, "").format(value=value)
        raise ImproperlyConfigured(
            f"The cluster in {place.runtime} runs with {shown}={present!r}, so "
            f"start({shown}={value!r}) cannot be done. "
            + (f"Use {remedy}; or stop it" if remedy else "Stop it")
            + " first, its tasks are kept: nbtasks.shutdown(), or `nbtasks stop` in a shell. "
            "Or leave the option away to use it as it is."
        )


def settings_in(runtime: Path) -> Settings:
    """Return what the cluster that runs in a directory was started with."""
    try:
        return read_settings(runtime)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"A cluster runs in {runtime}, but its {SETTINGS_FILE} cannot be read: {error}. "
            f"It may be of another version of nbtasks. Stop it with `nbtasks stop`, start it again."
        ) from error
