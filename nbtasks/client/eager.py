"""Tasks that run here and now: `apply()`, and every call while `task_always_eager` is set.

The run itself is `nbtasks.life.run`, as in a worker. Retries follow at once, without their waits,
until the task has ended.
"""

from __future__ import annotations

import platform
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from nbtasks import context, life
from nbtasks.client import options
from nbtasks.client.client import new_id
from nbtasks.client.eager_result import EagerResult, Ran
from nbtasks.context import Request, RetryPlan
from nbtasks.core import states
from nbtasks.core.retry import merge_policy
from nbtasks.wire import payloads
from nbtasks.wire.connection import now
from nbtasks.wire.shared import Shared

if TYPE_CHECKING:
    from nbtasks.client.base import Task
    from nbtasks.client.result import AsyncResult


class _Here:
    """The channel of a run that is its own outside: nobody listens, nobody can cancel."""

    def __init__(self) -> None:
        #: Retries that the task wanted beside its runs (`throw=False`).
        self.plans: list[RetryPlan] = []

    def report(self, state: str, meta: Any) -> None:
        pass

    def again(self, plan: RetryPlan, reason: BaseException | None, einfo: Any) -> None:
        self.plans.append(plan)

    def cancelled(self) -> bool:
        return False

    def join(self, who: object, over: bool) -> None:
        pass


def apply(
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    throw: bool,
) -> EagerResult:
    """Run a task here until it has ended, and return its result."""
    _check(task, given)
    args = tuple(map(_without_sharing, args))
    kwargs = {name: _without_sharing(value) for name, value in kwargs.items()}
    request = _request(task, args, kwargs, given)
    channel = _Here()
    outcome = _run(task, request, channel)
    waiting = deque(channel.plans)
    best, children = outcome, request.children
    while waiting or outcome.plan is not None:
        plan = outcome.plan or waiting.popleft()
        request = _next_request(request, plan)
        channel = _Here()
        outcome = _run(task, request, channel)
        waiting.extend(channel.plans)
        children += request.children
        if best.state != states.SUCCESS:  # a success is never overwritten
            best = outcome
    result = _result(task, request, best, children)
    frame = context.current_frame()
    if frame is not None and frame.task.trail and given.get("add_to_parent", True):
        frame.request._sent.append(result)
    if throw and best.state == states.FAILURE:
        raise best.value
    return result


def apply_instead(
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    throw: bool,
) -> EagerResult:
    """Run a task that was to be sent; its arguments are encoded and decoded all the same."""
    body, buffers = payloads.dumps_arguments(
        args,
        kwargs,
        given.get("serializer") or task.serializer,
        given.get("compression", task.compression),
        task,
    )
    args, kwargs = payloads.loads(body, buffers)
    return apply(task, tuple(args), dict(kwargs), given, throw)


def _without_sharing(value: Any) -> Any:
    return value.value() if type(value) is Shared else value


def _check(task: Task, given: dict[str, Any]) -> None:
    """Raise where an option cannot be used, as a call that is sent does."""
    options.check_known("apply()", given)
    hard = options.limit_of("time_limit", task.time_limit)
    soft = options.limit_of("soft_time_limit", task.soft_time_limit)
    options.check_limits(soft, hard)
    options.rare_options(given, hard, soft)
    merge_policy(given.get("retry_policy"))
    options.retries_of("retries", given.get("retries") or 0)
    if given.get("priority") is not None:
        options.priority_of(given["priority"])
    queue = given.get("queue") or given.get("routing_key")
    if queue is not None:
        options.queue_of(queue)


def _run(task: Task, request: Request, channel: _Here) -> life.Outcome:
    request._channel = channel
    return life.run(
        task,
        request,
        tuple(request.args),
        dict(request.kwargs),
        store=_store_nothing,
        clock=time.perf_counter,
    )


def _store_nothing(outcome: life.Outcome) -> None:
    pass


def _result(
    task: Task, request: Request, outcome: life.Outcome, children: list[AsyncResult]
) -> EagerResult:
    assert request.id is not None
    text = outcome.einfo.traceback if outcome.einfo is not None else None
    queue = request.delivery_info["routing_key"]
    ran = Ran(request.args, request.kwargs, request.retries, queue, tuple(children))
    return EagerResult(request.id, outcome.value, outcome.state, text, task.name, ran)


def _request(
    task: Task, args: tuple[Any, ...], kwargs: dict[str, Any], given: dict[str, Any]
) -> Request:
    get = given.get
    frame = context.current_frame()
    outer = frame.request if frame is not None else Request()
    task_id = options.id_of(get("task_id"), get("idempotency_key"), task.name) or new_id()
    instant = now()
    start = options.start_of(get("countdown"), get("eta"), instant)
    end = options.end_of(given.get("expires", task.expires), instant.wall)
    ignored = task.ignore_result if get("ignore_result") is None else given["ignore_result"]
    return Request(
        id=task_id,
        task=task.name,
        root_id=get("root_id") or outer.root_id or outer.id or task_id,
        parent_id=get("parent_id") or outer.id,
        group=get("group_id") or get("group"),
        group_index=get("group_index"),
        args=args,
        kwargs=kwargs,
        retries=get("retries") or 0,
        eta=_iso(start.eta),
        expires=_iso(end),
        hostname=platform.node(),
        origin=options.origin(),
        delivery_info={
            "is_eager": True,
            "exchange": get("exchange"),
            "routing_key": get("queue") or get("routing_key"),
            "priority": get("priority"),
            "redelivered": False,
        },
        time_limit=options.limit_of("time_limit", get("time_limit") or task.time_limit),
        soft_time_limit=options.limit_of(
            "soft_time_limit", get("soft_time_limit") or task.soft_time_limit
        ),
        called_directly=False,
        is_eager=True,
        headers=get("headers"),
        shadow=get("shadow"),
        argsrepr=get("argsrepr"),
        kwargsrepr=get("kwargsrepr"),
        reply_to=get("reply_to"),
        loglevel=get("loglevel"),
        logfile=get("logfile"),
        ignore_result=bool(ignored),
    )


def _next_request(request: Request, plan: RetryPlan) -> Request:
    """Return the request of the retry that follows a run."""
    fields = {name: value for name, value in vars(request).items() if not name.startswith("_")}
    args = request.args if plan.args is None else plan.args
    kwargs = request.kwargs if plan.kwargs is None else plan.kwargs
    changes = {name: plan.options[name] for name in _CHANGEABLE if name in plan.options}
    delivery = {"priority": "priority", "queue": "routing_key"}
    news = {delivery[name]: plan.options[name] for name in delivery if name in plan.options}
    changes["delivery_info"] = {**request.delivery_info, **news}
    if "expires" in plan.options:
        changes["expires"] = _iso(plan.options["expires"])
    return Request(**{**fields, **changes, "args": args, "kwargs": kwargs, "retries": plan.retries})


_CHANGEABLE = (
    "time_limit", "soft_time_limit", "headers", "shadow", "argsrepr", "kwargsrepr", "reply_to",
    "ignore_result",
)  # fmt: skip


def _iso(at: float | None) -> str | None:
    if at is None:
        return None
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat()
