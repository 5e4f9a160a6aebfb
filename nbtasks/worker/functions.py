"""The functions that this worker can run: loaded once, kept while they are in use."""

from __future__ import annotations

import importlib
import queue
import sys
from collections import OrderedDict
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from nbtasks.core.messages import Call, Define, Fetch, Policy
from nbtasks.exceptions import NotRegistered
from nbtasks.wire import payloads
from nbtasks.worker.handover import Handover, Reply

#: Functions that are kept loaded.
KEPT = 256
#: Seconds after which a definition is asked for again.
PATIENCE = 2.0


class Function:
    """A task that can be run, and what must be known to run it."""

    __slots__ = (
        *("name", "policy", "soft_time_limit", "task"),
        *("compression", "serializer"),
    )

    def __init__(self, task: Any, policy: Policy) -> None:
        self.task = task
        self.policy = policy
        self.name: str = task.name
        limit = getattr(task, "soft_time_limit", None)
        #: Seconds.
        self.soft_time_limit: float | None = (
            limit.total_seconds() if isinstance(limit, timedelta) else limit
        )
        #: Of its values.
        self.serializer: str = getattr(task, "result_serializer", None) or "pickle"
        self.compression: str | None = getattr(task, "result_compression", None)


class Functions:
    """Definitions by digest, and the functions that came of them. Main thread only."""

    def __init__(self, handover: Handover, load: Callable[..., Any] | None = None) -> None:
        self._handover = handover
        self._load = load or payloads.load_definition
        self._loaded: OrderedDict[bytes, Function] = OrderedDict()
        self._fetched: dict[bytes, Reply] = {}
        #: The one that was used last: calls of one function come in rows.
        self._last: tuple[bytes, Function | None] = (b"", None)

    def get(self, digest: bytes) -> Function | None:
        """Return a function that is loaded already, or None."""
        last, function = self._last
        if last == digest:
            return function
        function = self._loaded.get(digest)
        if function is not None:
            self._loaded.move_to_end(digest)
            self._last = (digest, function)
        return function

    def policy(self, call: Call) -> Policy:
        """Return the policy of a call's function, waiting until its definition is here.

        No code of the user runs here.

        Raises
        ------
        NotRegistered
            When the broker does not have the definition either.
        """
        digest = call.definition
        if not digest:
            return Policy()
        if digest in self._loaded:
            return self._loaded[digest].policy
        define = self._definition(digest)
        if define is None:
            self._drop(digest)
            raise NotRegistered(
                f"The broker does not hold the function of {call.name!r} any more, so the worker "
                f"cannot run it. The store may have been purged since the call. Call it again."
            )
        return define.policy

    def _definition(self, digest: bytes) -> Define | None:
        """Return the definition of a function, waiting until it is here; None: there is none."""
        while digest not in self._fetched:
            try:
                reply = self._handover.replies.get(timeout=PATIENCE)
            except queue.Empty:
                self._handover.asked.add(digest)
                self._handover.post(Fetch(digest))
            else:
                self._fetched[reply.digest] = reply
        return self._fetched[digest].define

    def load(self, call: Call) -> Function:
        """Return the function of a call whose policy is known; this runs code of the user."""
        digest = call.definition
        if not digest:
            task = find_by_name(call.name)
            return Function(task, task._policy())
        return self._load_fetched(digest)

    def prepare(self, digest: bytes) -> None:
        """Load a function whose definition has come unasked; this runs code of the user."""
        if digest not in self._loaded and self._definition(digest) is not None:
            self._load_fetched(digest)

    def _load_fetched(self, digest: bytes) -> Function:
        reply = self._fetched[digest]
        assert reply.define is not None
        task = self._load(reply.define.body, reply.buffers)
        function = self._loaded[digest] = Function(task, reply.define.policy)
        del self._fetched[digest]
        while len(self._loaded) > KEPT:
            self._drop(next(iter(self._loaded)))
        while len(self._fetched) > KEPT:
            self._drop(next(iter(self._fetched)))
        return function

    def _drop(self, digest: bytes) -> None:
        self._loaded.pop(digest, None)
        self._fetched.pop(digest, None)
        self._handover.asked.discard(digest)


def find_by_name(name: str) -> Any:
    """Return the task of this name, from the module that its name begins with.

    Raises
    ------
    NotRegistered
        When there is no such module, or no such task in it.
    ImportError
        When the module is there but cannot be imported.
    """
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = _import(".".join(parts[:length]))
        if module is not None:
            task = _task_in(module, name, parts[length:])
            if task is not None:
                return task
            break
    raise NotRegistered(name)


def _import(name: str) -> Any:
    """Return a module, or None when there is none of that name."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None)
        if isinstance(error, ModuleNotFoundError) and missing is not None:
            if name == missing or name.startswith(f"{missing}."):
                return None
        raise ImportError(
            f"The worker cannot import the module {name}: {error}. It runs {sys.executable}. "
            f"Install what is missing for this interpreter, or send the function itself with "
            f"task.delay(...).",
            name=name,
        ) from error


def _task_in(module: Any, name: str, path: list[str]) -> Any:
    found = module
    for part in path:
        found = getattr(found, part, None)
    candidates = [found, *vars(module).values()]
    for candidate in candidates:
        is_named = getattr(candidate, "name", None) == name and not isinstance(candidate, type)
        if is_named and callable(getattr(candidate, "run", None)):
            return candidate
    return None
