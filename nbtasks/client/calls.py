"""From a task and its arguments to a call on its way.

This is the hot path: what does not change from call to call is worked out once, in `Prepared`, and
a call without options touches little else. Loaded at the first call only, for it brings sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import is_
from typing import TYPE_CHECKING, Any

from nbtasks import context
from nbtasks.client import client as clients
from nbtasks.client import definitions, models, options
from nbtasks.client.arguments import cut, summarize
from nbtasks.client.client import new_id
from nbtasks.client.result import AsyncResult
from nbtasks.client.shape import users_classes
from nbtasks.core.messages import Call
from nbtasks.core.retry import merge_policy
from nbtasks.wire import codecs, payloads
from nbtasks.wire.connection import now

if TYPE_CHECKING:
    from nbtasks.client.base import Task
    from nbtasks.config import Settings

#: Bytes of arguments that make a short text whatever they are.
SMALL = 100

_NOTHING: Mapping[str, Any] = {}


class Prepared:
    """What holds for all calls of a task that name nothing else, until its options change.

    Raises
    ------
    ValueError
        When the task's limits contradict each other.
    """

    __slots__ = (
        "check", "compression", "default_priority", "dump_models", "expires", "ignored", "name",
        "policy", "priority", "queue", "retry", "said", "saying", "serializer",
        "settings", "shadowed", "soft_time_limit", "time_limit",
    )  # fmt: skip

    def __init__(self, task: Task, settings: Settings) -> None:
        self.settings = settings
        #: Names and values in the user's classes, which say more: as they are, and as they were.
        self.saying = [
            part for cls in users_classes(type(task)) for part in (vars(cls), vars(cls).values())
        ]
        self.said = [*chain.from_iterable(self.saying)]
        self.name: str = options.text_of("name", task.name)
        #: Raises TypeError when arguments do not fit; None: not wanted, or nobody can say.
        self.check = task._check if task.typing else None
        self.serializer: str = task.serializer
        self.compression: str | None = task.compression
        if task.result_serializer != "pickle":
            codecs.find_serializer(task.result_serializer)
        if task.result_compression is not None:
            codecs.find_compression(task.result_compression)
        self.ignored = bool(task.ignore_result)
        self.expires = task.expires
        #: Given on the task; None: that of the sending task, or the default.
        self.priority = None if task.priority is None else options.priority_of(task.priority)
        self.default_priority = settings.task_default_priority
        queue = task.queue or task.routing_key or settings.task_default_queue
        self.queue = options.queue_of(queue)
        self.retry = settings.task_publish_retry
        self.policy = merge_policy(settings.task_publish_retry_policy)
        self.time_limit = options.limit_of("time_limit", task.time_limit)
        self.soft_time_limit = options.limit_of("soft_time_limit", task.soft_time_limit)
        options.check_limits(self.soft_time_limit, self.time_limit)
        self.dump_models = models.must_be_dumped(task, self.serializer)
        self.shadowed = not hasattr(task.shadow_name, "does_nothing")

    def holds(self) -> bool:
        """Return whether the user's classes are as they were."""
        found = [*chain.from_iterable(self.saying)]
        return len(found) == len(self.said) and all(map(is_, found, self.said))


def send(
    task: Task,
    prepared: Prepared,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    *,
    known: bool = True,
) -> AsyncResult:
    """Send one call of a task, and return its result to be.

    Parameters
    ----------
    task, prepared
        Which, and what holds for all its calls. (Another thread, or its `shadow_name`, may set
        something on the task meanwhile, which then has nothing prepared.)
    args, kwargs
        With what; the arguments have been checked.
    given
        Options of the call.
    known
        Whether there is a function; otherwise there is a name only.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        When an option cannot be used.
    EncodeError
        When an argument cannot be sent.
    OperationalError
        When there is no broker.
    """
    if prepared.shadowed and "shadow" not in given:
        given = {**given, "shadow": task.shadow_name(args, kwargs, given)}
    frame = context.current_frame()
    priority = prepared.priority
    if frame is None:
        root = parent = ""
    else:
        request = frame.request
        parent = request.id or ""
        root = request.root_id or parent
        if priority is None:
            priority = (request.delivery_info or _NOTHING).get("priority")
    if priority is None:
        priority = prepared.default_priority
    if given or prepared.expires is not None:
        return _send_with_options(
            task, prepared, args, kwargs, given, known, frame, root, parent, priority
        )
    plain, named = models.dumped(args, kwargs) if prepared.dump_models else (args, kwargs)
    define = definitions.current(task) if known else None
    # Last: from here on there are files that somebody must hear of.
    body, buffers = payloads.dumps_arguments(
        plain, named, prepared.serializer, prepared.compression, task, clients.keep
    )
    call = Call(
        new_id(),
        b"" if define is None else define[0].digest,
        prepared.name,
        body,
        len(buffers),
        summarize(args, kwargs, not buffers and len(body) <= SMALL),
        None,
        None,
        None,
        priority,
        prepared.queue,
        root,
        parent,
    )
    record = clients.current().submit(
        call, buffers, define, retry=prepared.retry, policy=prepared.policy
    )
    if frame is not None and frame.task.trail:
        frame.request._sent.append(call.id)
    return AsyncResult._of(record, prepared.name, None, prepared.ignored)


def _send_with_options(
    task: Task,
    prepared: Prepared,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    known: bool,
    frame: context.Frame | None,
    root: str,
    parent: str,
    priority: int,
) -> AsyncResult:
    options.check_known("apply_async()", given)
    get = given.get
    instant = now()
    start = options.start_of(get("countdown"), get("eta"), instant)
    expires = options.end_of(given.get("expires", prepared.expires), instant.wall)
    if get("priority") is not None:
        priority = options.priority_of(given["priority"])
    task_id = options.id_of(get("task_id"), get("idempotency_key"), task.name)
    ignored = prepared.ignored if get("ignore_result") is None else bool(given["ignore_result"])
    policy = prepared.policy
    if get("retry_policy"):
        policy = merge_policy(policy, given["retry_policy"])
    rare = None
    if not options.RARE.isdisjoint(given):
        rare = options.rare_options(given, prepared.time_limit, prepared.soft_time_limit)
    serializer = get("serializer") or prepared.serializer
    plain = (args, kwargs)
    if models.must_be_dumped(task, serializer):
        plain = models.dumped(args, kwargs)
    retries = options.retries_of("retries", get("retries") or 0) or 0
    queue = options.queue_of(get("queue") or get("routing_key") or prepared.queue)
    if get("root_id") is not None:
        root = options.text_of("root_id", given["root_id"])
    if get("parent_id") is not None:
        parent = options.text_of("parent_id", given["parent_id"])
    summary = summary_of(args, kwargs, given)
    define = definitions.current(task) if known else None
    # Last: from here on there are files that somebody must hear of.
    body, buffers = payloads.dumps_arguments(
        *plain, serializer, given.get("compression", prepared.compression), task, clients.keep
    )
    call = Call(
        id=task_id or new_id(),
        definition=b"" if define is None else define[0].digest,
        name=task.name,
        body=body,
        frames=len(buffers),
        summary=summary,
        due=start.due,
        eta=start.eta,
        expires=expires,
        priority=priority,
        queue=queue,
        root=root,
        parent=parent,
        retries=retries,
        options=rare,
    )
    record = clients.current().submit(
        call,
        buffers,
        define,
        confirm=bool(get("confirm")),
        check=task_id is not None,
        retry=prepared.retry if get("retry") is None else bool(given["retry"]),
        policy=policy,
    )
    if frame is not None and frame.task.trail and given.get("add_to_parent", True):
        frame.request._sent.append(call.id)
    return AsyncResult._of(record, task.name, None, ignored)


def summary_of(args: tuple[Any, ...], kwargs: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return the arguments as text, or what the caller wants to be shown instead."""
    shown_args, shown_kwargs = given.get("argsrepr"), given.get("kwargsrepr")
    if shown_args is None and shown_kwargs is None:
        return summarize(args, kwargs)
    parts = [
        summarize(args, {})[1:-1] if shown_args is None else _bare(shown_args),
        summarize((), kwargs)[1:-1] if shown_kwargs is None else _bare(shown_kwargs),
    ]
    return cut(f"({', '.join(part for part in parts if part)})")


def _bare(text: str) -> str:
    """Return the text of a tuple or dict without its brackets."""
    text = str(text).strip()
    if text[:1] + text[-1:] in ("()", "[]", "{}"):
        text = text[1:-1]
    return text.strip().rstrip(",")
