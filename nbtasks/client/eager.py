"""Tasks that run here and now: `apply()`, and every call while `task_always_eager` is set.

The run itself is `nbtasks.life.run`, as in a worker. Retries follow at once, without their waits,
until the task has ended.
"""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nbtasks import context, life
from nbtasks.client import calls, models, options
from nbtasks.client.client import new_id
from nbtasks.client.eager_result import EagerResult, Ran
from nbtasks.context import Request, RetryPlan
from nbtasks.core import states
from nbtasks.core.messages import Options
from nbtasks.core.retry import merge_policy
from nbtasks.exceptions import TaskRevokedError
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

    def flush(self) -> None:
        pass


def apply(
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    throw: bool,
) -> EagerResult:
    """Run a task here until it has ended, and return its result."""
    task.__dict__.pop("_handlers", None)  # its class may have got some meanwhile
    if "shadow" not in given:
        given = {**given, "shadow": task.shadow_name(args, kwargs, given)}
    rare = _check(task, given)
    args = tuple(map(_without_sharing, args))
    kwargs = {name: _without_sharing(value) for name, value in kwargs.items()}
    request = _request(task, args, kwargs, given, rare)
    result, outcome = _run_to_the_end(task, request)
    frame = context.current_frame()
    if frame is not None and frame.task.trail and given.get("add_to_parent", True):
        frame.request._sent.append(result)
    if throw and outcome.state in states.PROPAGATE_STATES:
        raise outcome.value
    return result


def _run_to_the_end(task: Task, request: Request) -> tuple[EagerResult, life.Outcome]:
    """Run a task until no retry follows; those that it wants beside are tasks of their own."""
    children: list[AsyncResult] = []
    while True:
        channel = _Here()
        outcome = _run(task, request, channel)
        children += request.children
        for plan in channel.plans:
            children.append(_run_to_the_end(task, _beside(_next_request(request, plan)))[0])
        if outcome.plan is None:
            return _result(task, request, outcome, children), outcome
        request = _next_request(request, outcome.plan)


def _beside(request: Request) -> Request:
    """Make a retry a task of its own, child of the one that wanted it."""
    request.root_id, request.parent_id = request.root_id or request.id, request.id
    request.id = new_id()
    return request


def apply_instead(
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    throw: bool,
) -> EagerResult:
    """Run a task that was to be sent; its arguments are encoded and decoded all the same."""
    serializer = given.get("serializer") or task.serializer
    if models.must_be_dumped(task, serializer):
        args, kwargs = models.dumped(args, kwargs)
    body, buffers = payloads.dumps_arguments(
        args, kwargs, serializer, given.get("compression", task.compression), task
    )
    args, kwargs = payloads.loads(body, buffers)
    return apply(task, tuple(args), dict(kwargs), given, throw)


def _without_sharing(value: Any) -> Any:
    return value.value() if type(value) is Shared else value


def _check(task: Task, given: dict[str, Any]) -> Options:
    """Raise where an option cannot be used, as a call that is sent does; return the rare ones."""
    options.check_known("apply()", given)
    hard = options.limit_of("time_limit", task.time_limit)
    soft = options.limit_of("soft_time_limit", task.soft_time_limit)
    options.check_limits(soft, hard)
    rare = options.rare_options(given, hard, soft)
    merge_policy(given.get("retry_policy"))
    options.retries_of("retries", given.get("retries") or 0)
    if given.get("priority") is not None:
        options.priority_of(given["priority"])
    queue = given.get("queue") or given.get("routing_key")
    if queue is not None:
        options.queue_of(queue)
    return rare


def _run(task: Task, request: Request, channel: _Here) -> life.Outcome:
    if _is_too_late(request):
        return life.Outcome(states.REVOKED, TaskRevokedError("expired"))
    request._channel = channel
    return life.run(
        task,
        request,
        tuple(request.args),
        dict(request.kwargs),
        store=_store_nothing,
        clock=time.perf_counter,
    )


def _is_too_late(request: Request) -> bool:
    """Return whether the run, if it waited for its start, would begin after its latest one."""
    if request.expires is None:
        return False
    start = now().wall
    if request.eta is not None:
        start = max(start, datetime.fromisoformat(request.eta).timestamp())
    return start >= datetime.fromisoformat(request.expires).timestamp()


def _store_nothing(outcome: life.Outcome) -> None:
    pass


def _result(
    task: Task, request: Request, outcome: life.Outcome, children: list[AsyncResult]
) -> EagerResult:
    assert request.id is not None
    text = outcome.einfo.traceback if outcome.einfo is not None else None
    queue = request.delivery_info["routing_key"]
    shown = {"argsrepr": request.argsrepr, "kwargsrepr": request.kwargsrepr}
    ran = Ran(
        request.args,
        request.kwargs,
        request.retries,
        queue,
        tuple(children),
        group=request.group,
        parent=request.parent_id,
        called=(
            request.shadow or task.name,
            calls.summary_of(request.args, request.kwargs, shown),
        ),
    )
    return EagerResult(request.id, outcome.value, outcome.state, text, task.name, ran)


def _request(
    task: Task,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    given: dict[str, Any],
    rare: Options,
) -> Request:
    get = given.get
    frame = context.current_frame()
    outer = frame.request if frame is not None else Request()
    task_id = options.id_of(get("task_id"), get("idempotency_key"), task.name) or new_id()
    instant = now()
    start = options.start_of(get("countdown"), get("eta"), instant)
    end = options.end_of(given.get("expires", task.expires), instant.wall)
    ignored = task.ignore_result if rare.ignore_result is None else rare.ignore_result
    root, parent = (
        None if get(name) is None else options.text_of(name, given[name])
        for name in ("root_id", "parent_id")
    )
    return Request(
        id=task_id,
        task=task.name,
        root_id=root or outer.root_id or outer.id or task_id,
        parent_id=parent or outer.id,
        group=rare.group,
        group_index=rare.group_index,
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
            "priority": task.priority if get("priority") is None else given["priority"],
            "redelivered": False,
        },
        time_limit=options.limit_of("time_limit", get("time_limit") or task.time_limit),
        soft_time_limit=options.limit_of(
            "soft_time_limit", get("soft_time_limit") or task.soft_time_limit
        ),
        called_directly=False,
        is_eager=True,
        headers=dict(given["headers"]) if get("headers") else None,
        shadow=rare.shadow,
        argsrepr=rare.argsrepr,
        kwargsrepr=rare.kwargsrepr,
        reply_to=rare.reply_to,
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
    waited = now().wall + plan.countdown if plan.countdown is not None else None
    changes["eta"] = _iso(waited if plan.eta is None else plan.eta.timestamp())
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
    return datetime.fromtimestamp(at, UTC).isoformat()
