"""What the broker is told of a task: its function with all that it refers to, and its policy.

`current(task)` gives the `Define` of a task as it is now. Most calls find that nothing has changed
since the last one:

    unchanged?  settings, serializers   by identity
                local modules           by stat of their files (`wire.modules`)
                what the task reaches   by identity (`client.reach`)
       │ yes → the same Define as before
       │ no, or it reaches something that may change without a trace (it is *volatile*)
    pickled     the same bytes as before → the same Define
       │ no
    packed      with the text of notebook cells and the stamps of local modules; its digest names it
"""

from __future__ import annotations

import linecache
import os
import types
import warnings
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, Final

from nbtasks import config, life
from nbtasks.client import options
from nbtasks.client.reach import Reach, imports_of
from nbtasks.core.messages import Define, Policy
from nbtasks.core.retry import parse_rate
from nbtasks.exceptions import LargeGlobalWarning
from nbtasks.wire import codecs, modules, payloads
from nbtasks.wire.pickling import Buffer, Pickled

#: Bytes of a definition above which it is said what makes it large.
LARGE: Final = 10_000_000
#: Definitions that are kept; a cell that is run again and again leaves old ones behind.
KEPT: Final = 512
#: Characters of one notebook cell that travel for tracebacks.
MOST_SOURCE: Final = 1_000_000

Definition = tuple[Define, list[Buffer]]


class _Known:
    """A definition, and what must be unchanged for it to hold."""

    __slots__ = ("definition", "files", "pickled", "reach", "registrations", "settings", "task")

    def __init__(
        self,
        task: weakref.ref[Any],
        definition: Definition,
        pickled: Pickled,
        reach: Reach,
        files: modules.Files,
        settings: config.Settings,
        registrations: int,
    ) -> None:
        self.task = task
        self.definition = definition
        self.pickled = pickled
        self.reach = reach
        self.files = files
        self.settings = settings
        self.registrations = registrations


#: By id of the task.
_known: Final[dict[int, _Known]] = {}
#: Tasks and globals that were said to be large.
_warned: Final[set[tuple[str, str]]] = set()


def current(task: Any) -> Definition:
    """Return what to tell the broker of a task, and the payload frames of it.

    Parameters
    ----------
    task
        A task, as it is at this moment: its function, the globals that it names, and the files of
        the user's own modules.

    Raises
    ------
    EncodeError
        When something that its function refers to cannot be pickled; it says what.
    ValueError
        When an option of it, such as `rate_limit`, cannot be used.
    """
    known = _known.get(id(task))
    if (
        known is None
        or known.settings is not config.settings()
        or known.registrations != codecs.registrations
        or known.task() is not task
        or not known.reach.unchanged()
    ):
        return _define(task, known, Reach(task))
    if known.reach.volatile or not known.files.unchanged():
        return _define(task, known, known.reach)
    return known.definition


def _define(task: Any, known: _Known | None, reach: Reach) -> Definition:
    settings, registrations = config.settings(), codecs.registrations
    pickled = payloads.pickle_task(task)
    policy = policy_of(task)
    name: str = task.name
    if (
        known is not None
        and known.task() is task
        and pickled.body == known.pickled.body
        and pickled.buffers == known.pickled.buffers
        and known.definition[0].policy == policy
        and known.definition[0].name == name
        and known.registrations == registrations
        and known.files.unchanged()
    ):
        known.reach, known.settings = reach, settings
        return known.definition
    if known is not None and reach is known.reach and reach.volatile:
        reach = Reach(task)
        if not reach.volatile:  # any more: what holds from now on is pickled after the walk
            return _define(task, known, reach)
    definition, files = _pack(task, pickled, policy)
    _warn_if_large(task, reach, pickled)
    _keep(
        task, _Known(_reference(task), definition, pickled, reach, files, settings, registrations)
    )
    return definition


def _pack(task: Any, pickled: Pickled, policy: Policy) -> tuple[Definition, modules.Files]:
    imported = {name for code in pickled.codes for name in imports_of(code)}
    stamps = modules.stamps(pickled.modules | imported)
    payload = payloads.pack_definition(
        task.name, pickled, modules.folders(), sources_of(pickled.codes), stamps
    )
    head = f"{task.name}\n{policy}".encode("utf-8", "surrogatepass")
    digest = payloads.digest((head, payload.body, *payload.buffers))
    define = Define(digest, task.name, policy, payload.body, len(payload.buffers))
    return (define, list(payload.buffers)), modules.Files(stamps)


def _reference(task: Any) -> weakref.ref[Any]:
    place = id(task)

    # The dict is bound here, since a module's names are gone before its tasks at the very end.
    def forget(_: weakref.ref[Any], known: dict[int, _Known] = _known) -> None:
        known.pop(place, None)

    return weakref.ref(task, forget)


def _keep(task: Any, known: _Known) -> None:
    _known.pop(id(task), None)
    _known[id(task)] = known
    while len(_known) > KEPT:
        _known.pop(next(iter(_known)), None)


# ---------------------------------------------------------------------------------- the policy


def policy_of(task: Any) -> Policy:
    """Return what the broker must know of a task to schedule its calls.

    Raises
    ------
    ValueError
        When an option cannot be used.
    """
    settings = config.settings()

    def option(name: str, default: Any) -> Any:
        value = getattr(task, name, None)
        return default if value is None else value

    both = option("acks_on_failure_or_timeout", settings.task_acks_on_failure_or_timeout)
    return Policy(
        interval=parse_rate(option("rate_limit", settings.task_default_rate_limit)),
        acks_late=bool(option("acks_late", settings.task_acks_late)),
        acks_on_failure=bool(option("acks_on_failure", both)),
        acks_on_timeout=bool(option("acks_on_timeout", both)),
        retry_on_worker_lost=bool(option("retry_on_worker_lost", False)),
        # None is a value here: without end.
        max_retries=options.retries_of("max_retries", getattr(task, "max_retries", 3)),
        ignore_result=bool(option("ignore_result", settings.task_ignore_result)),
        store_errors_even_if_ignored=bool(
            option("store_errors_even_if_ignored", settings.task_store_errors_even_if_ignored)
        ),
        time_limit=options.limit_of("time_limit", option("time_limit", settings.task_time_limit)),
        memory_limit=options.memory_of(option("memory_limit", settings.task_memory_limit)),
        track_started=bool(option("track_started", settings.task_track_started)),
        # None says nothing: what `acks_late` promises holds.
        reject_on_worker_lost=option("reject_on_worker_lost", None) is not False,
        handlers=life.hears_of_failure(task),
    )


# ----------------------------------------------------------------------------- text of the cells


def sources_of(codes: Iterable[types.CodeType]) -> dict[str, str]:
    """Return the text of notebook cells by the file name that their code carries.

    Files that are on the disk need not travel; a kernel's temporary file is in memory only.
    """
    found: dict[str, str] = {}
    for filename in dict.fromkeys(code.co_filename for code in codes):
        if not _is_cell(filename) and os.path.isfile(filename):
            continue
        text = "".join(linecache.getlines(filename))
        if text and len(text) <= MOST_SOURCE:
            found[filename] = text
    return found


def _is_cell(filename: str) -> bool:
    return os.path.basename(os.path.dirname(filename)).startswith("ipykernel_")


# -------------------------------------------------------------------------------- large globals


def _warn_if_large(task: Any, reach: Reach, pickled: Pickled) -> None:
    if _total(pickled) <= LARGE:
        return
    sizes: dict[tuple[str, str], int] = {}
    for function, names in reach.functions:
        for name in names:
            sizes[name, function.__name__] = _size(function.__globals__[name])
    for (name, owner), size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size <= LARGE or (task.name, name) in _warned:
            continue
        _warned.add((task.name, name))
        warnings.warn(
            f"The function {owner!r} names the global {name!r}, so {size / 1e6:.0f} MB travel "
            f"with the task {task.name!r}, and again whenever it has changed. Pass it as an "
            f"argument, or load it in the task. (This is said once.)",
            LargeGlobalWarning,
            stacklevel=options.levels_up(),
        )


def _total(pickled: Pickled) -> int:
    return len(pickled.body) + sum(len(buffer) for buffer in pickled.buffers)


def _size(value: Any) -> int:
    if isinstance(value, types.ModuleType | types.FunctionType | type):
        return 0
    return payloads.size_of(value)


def forget() -> None:
    """Forget all definitions and warnings; for tests."""
    _known.clear()
    _warned.clear()


__all__: Sequence[str] = ("current", "forget", "policy_of", "sources_of")
