"""One call: load it, run it, say what came of it. Main thread only.

    Assignment ─▶ expired? ─▶ definition here? ─▶ begin ─▶ load the call ─▶ life.run ────────┐
                                                                                             │
    outbox ◀── Done | Again ◀── cell: finished ◀── output flushed ◀── encode ◀── store ◀─────┘

With handlers, these run next, and the cell goes on to say that the call does: what is to end by a
limit is ended in them as well.

    Handling, Done | Again ─▶ wait until saved ─▶ handlers ─▶ cell: finished ─▶ Handling(over)

From `begin` on the call counts as begun: loading a function or an argument runs code of the user,
and if the process dies of it, the call is to blame.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, NoReturn

from nbtasks import exceptions, life
from nbtasks.context import Channel, Request, RetryPlan
from nbtasks.core import states
from nbtasks.core.messages import (
    Again,
    Call,
    Done,
    Fetch,
    Handling,
    Joining,
    Options,
    Policy,
    Prepared,
    Report,
    Started,
    Update,
)
from nbtasks.exceptions import NotRegistered, TaskRevokedError
from nbtasks.wire import payloads
from nbtasks.wire.cell import Cell
from nbtasks.wire.connection import now
from nbtasks.wire.memory import resident
from nbtasks.wire.pickling import Keep
from nbtasks.worker.capture import Capture, clean, clip
from nbtasks.worker.functions import Function, Functions
from nbtasks.worker.handover import Assignment, Buffer, Handover, Loaded
from nbtasks.worker.limits import SoftLimit, call_supervisor
from nbtasks.worker.threads import Threads

#: Seconds to wait until the broker has saved an outcome, before handlers run.
NOTED_WAIT = 5.0
#: Seconds to wait until the broker has saved an outcome that would be lost with this process.
KEEP_WAIT = 1.0
#: Seconds of loading arguments from which on a limited run's clock is set anew for the body.
LOADING = 0.005
#: Seconds to wait until a Started that arms a limit is on its way, before the body begins.
STARTED_WAIT = 5.0
#: Seconds that loading a function ahead of its first call may take.
PREPARING = 10.0
#: Seconds that a task which looks at itself waits until the broker has heard what it has told.
HEARD_WAIT = 2.0
#: Messages that may wait for the broker; a task that reports more waits too.
BACKLOG = 50_000

_NO_OPTIONS = Options()
_clock = time.perf_counter


class RunRequest(Request):
    """The request of a run in a worker."""

    called_directly = False

    # Written out, and without what is so by default: each call pays for each line.
    def __init__(
        self,
        assignment: Assignment,
        function: Function,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        channel: Channel,
    ) -> None:
        run = self._run = assignment.run
        call = run.call
        assert call is not None
        self._channel = channel
        self._sent = []
        self.origin = run.sender or None
        self.id = call.id
        self.task = function.name
        self.root_id = call.root or call.id
        self.args = args
        self.kwargs = kwargs
        self.time_limit = function.policy.time_limit
        self.soft_time_limit = function.soft_time_limit
        self.ignore_result = function.policy.ignore_result
        if call.parent:
            self.parent_id = call.parent
        if call.retries:
            self.retries = call.retries
        if call.options is not None:
            _add_options(self, call.options)

    @property
    def _call(self) -> Call:
        call = self._run.call
        assert call is not None
        return call

    # Worked out for who asks: to write a time takes a tenth of all that a short run does. (They can
    # be set as others can, which mypy does not see.)

    @cached_property
    def eta(self) -> str | None:  # type: ignore[override]
        """Earliest start, as ISO text with zone."""
        return _iso(self._call.eta)

    @cached_property
    def expires(self) -> str | None:  # type: ignore[override]
        """Latest start, as ISO text with zone."""
        return _iso(self._call.expires)

    @cached_property
    def delivery_info(self) -> dict[str, Any]:
        """How the call came here, in the words of AMQP."""
        call = self._call
        return {
            "exchange": "",
            "routing_key": call.queue,
            "priority": call.priority,
            "redelivered": self._run.redelivered,
        }


class Runner:
    """Runs calls, one at a time.

    Parameters
    ----------
    name
        Name of this worker.
    handover
        To the I/O thread.
    cell
        Where begun and finished calls are noted for the supervisor.
    keep
        What is to travel for a large piece of a result (`nbtasks.wire.segments`).
    """

    def __init__(
        self,
        name: str,
        handover: Handover,
        cell: Cell,
        functions: Functions,
        capture: Capture,
        limit: SoftLimit,
        keep: Keep = bytes,
    ) -> None:
        self._handover = handover
        self._cell = cell
        self._functions = functions
        self._capture = capture
        self._limit = limit
        self._keep_piece = keep
        self._threads = Threads()
        # The one that runs:
        self._assignment: Assignment
        self._ticket = 0
        self._request: Request = Request()
        self._function: Function
        self._soft = 0.0
        #: Who waits for other tasks in the running one, in all its threads.
        self._joins: set[object] = set()
        self._joins_lock = threading.Lock()
        #: Ticket of an outcome that found no room in the cell.
        self._unkept = 0
        #: Whether this is a process that a task has forked.
        self.forked = False
        RunRequest.hostname = name

    def run(self, assignment: Assignment) -> None:
        """Run a call and post its outcome.

        Raises
        ------
        SystemExit
            When the body raised it: this process is to end, and the task is lost.
        """
        self._assignment = assignment
        run = assignment.run
        ticket = self._ticket = run.ticket
        call = run.call
        assert call is not None
        if self._unkept:
            # The next call might be the death of us, and the last one shall not suffer for it.
            self._handover.wait_noted(self._unkept, KEEP_WAIT)
            self._unkept = 0
        if call.expires is not None and time.time() >= call.expires and not run.verdict:
            self._post_refusal(states.REVOKED, TaskRevokedError("expired"))
            return
        function = self._functions.get(call.definition)
        if function is None:
            try:
                policy = self._functions.policy(call)
            except NotRegistered as error:
                self._post_refusal(states.FAILURE, error)
                return
        else:
            policy = function.policy
        limited = _is_limited(policy, call) and not run.verdict
        # What a function wants that is found by its name is known once it is loaded.
        loading = function is None and (limited or not (call.definition or run.verdict))
        self._handover.loading = ticket if loading else 0
        self._threads.share(run.runs)
        self._cell.start(ticket)
        self._handover.begin(ticket)
        self._capture.begin(call.id)
        if (limited or policy.track_started) and not loading:
            self._tell_started(policy, call)
        try:
            self._run_begun(assignment, call, function, limited)
        finally:
            self._capture.end()

    def disown(self) -> None:
        """Leave the running call to the process that this one was forked from."""
        self.forked = True

    def _tell_started(self, policy: Policy, call: Call) -> None:
        self._handover.told = self._ticket
        found = None if call.definition else policy
        if found is not None:
            self._handover.found = (call.name, found)
        self._handover.post(Started(self._ticket, time.time(), found))
        if found is not None:
            # The broker judges of deaths by what it knows, and the body may be the death of us.
            self.flush()
        elif _is_limited(policy, call):
            self._handover.wait_sent(STARTED_WAIT)  # it keeps the time from when it knows
        else:
            self._handover.settle()

    def _run_begun(
        self, assignment: Assignment, call: Call, function: Function | None, limited: bool
    ) -> None:
        try:
            if function is None:
                function = self._load_function(call)
                if self._handover.loading:
                    # The clock starts here: imports of the function are not on it.
                    limited = _is_limited(function.policy, call)
                    self._handover.loading = 0
                    self._handover.began_at = time.monotonic()
                    self._tell_started(function.policy, call)
            args, kwargs = payloads.loads(call.body, assignment.buffers)
            if type(args) is not tuple:  # serializers other than pickle make a list of it
                args = tuple(args)
            request = RunRequest(assignment, function, args, kwargs, self)
            if limited:
                if time.monotonic() - self._handover.began_at > LOADING:
                    # The limit is for the body: imports that its arguments need are not its own.
                    self._tell_started(function.policy, call)
                self._limit_memory(function.policy, call)
        except BaseException as error:
            self._fail(error)
            return
        self._request = request
        self._function = function
        if assignment.run.verdict:
            name, facts = json.loads(assignment.run.verdict)
            self._begin_handlers(call.id)
            life.bereave(function.task, request, getattr(exceptions, name)(*facts), args, kwargs)
            self._post_outcome(Done(self._ticket, states.IGNORED, b"", at=time.time()))
            self._end_handlers()
            return
        wrap = None
        if request.soft_time_limit is not None:
            self._soft = request.soft_time_limit
            wrap = self._within_limit
        store = self._store
        outcome = life.run(
            function.task, request, args, kwargs, store=store, clock=_clock, wrap=wrap
        )
        if self._handover.handling is None:
            return
        if self.forked:
            end_child(outcome)  # a handler has returned twice
        self._end_handlers()

    def prepare(self, digest: bytes) -> None:
        """Load a function ahead of its first call.

        What goes wrong is for that call to tell, and it shall not wait for long.
        """
        with suppress(BaseException), self._limit.around(PREPARING):
            self._functions.prepare(digest)
        self._handover.prepares = b""
        self._handover.post(Prepared(digest))

    def _limit_memory(self, policy: Policy, call: Call) -> None:
        """Have the supervisor end this process if the body takes too much memory."""
        own = None if call.options is None else call.options.memory_limit
        limit = policy.memory_limit if own is None else own
        if limit is not None:
            self._cell.limit(self._ticket, resident(os.getpid()), limit)
            call_supervisor()

    def _load_function(self, call: Call) -> Function:
        try:
            return self._functions.load(call)
        except SystemExit as error:
            raise ImportError(
                f"A module that {call.name} needs called sys.exit({error.code!r}) when it was "
                f"imported. Guard that line with `if __name__ == '__main__':`."
            ) from error

    def _within_limit(self, body: Callable[[], Any]) -> Any:
        with self._limit.around(self._soft):
            return body()

    def globals_of_running(self) -> dict[str, Any]:
        """Return the globals of the function that runs, if it is one that has come by value."""
        function = getattr(self, "_function", None)
        body = None if function is None else inspect.unwrap(function.task.run)
        known: dict[str, Any] = getattr(body, "__globals__", {})
        return known if known.get("__name__") == "__main__" else {}

    # ------------------------------------------------------------------------------- outcomes

    def _store(self, outcome: life.Outcome) -> None:
        """Post the outcome of the running call; `EncodeError` if it cannot be.

        Handlers run when it is saved.
        """
        if self.forked:
            # The body has returned twice; the call is the other process's.
            end_child(outcome)
        close_figures()  # before the result is pickled, which may be one
        message = self._encode(outcome)
        if not life.has_handlers(self._function.task):
            self._post_outcome(message)
            return
        assert self._request.id is not None
        self._begin_handlers(self._request.id)
        self._post_outcome(message)
        self._handover.wait_noted(self._ticket, NOTED_WAIT)

    def _begin_handlers(self, task_id: str) -> None:
        handling = self._handover.handling = Handling(self._ticket, task_id)
        self._handover.post(handling)

    def _end_handlers(self) -> None:
        handling = self._handover.handling
        assert handling is not None
        self._handover.handling = None
        close_figures()
        self._end_joins()
        self._cell.finish(handling.ticket)
        self._handover.post(Handling(handling.ticket, handling.id, over=True))

    def _post_outcome(self, message: Done | Again | Loaded) -> None:
        if self._capture.pending:
            self._capture.flush()
        self._keep(message)
        handover, ticket = self._handover, self._ticket
        if handover.handling is None:
            self._cell.finish(ticket)
        handover.ended = ticket
        self._end_joins()
        handover.post(message)

    def _keep(self, message: Done | Again | Loaded) -> None:
        """Let an outcome outlive this process, which the next call may kill."""
        if isinstance(message, Loaded) or not self._cell.keep(message, self._handover.noted):
            self._unkept = self._ticket

    def _encode(self, outcome: life.Outcome) -> Done | Again | Loaded:
        state, einfo, request = outcome.state, outcome.einfo, self._request
        body: bytes = b""
        buffers: Sequence[Buffer] = ()
        if state == states.SUCCESS:
            if not request.ignore_result:
                function = self._function
                body, buffers = payloads.dumps(
                    outcome.value, function.serializer, function.compression, keep=self._keep_piece
                )
        elif state == states.RETRY:
            assert outcome.plan is not None
            return self._again(outcome.plan, outcome.value, einfo, outcome.runtime)
        elif isinstance(outcome.value, BaseException):
            body, buffers = payloads.dumps_exception(outcome.value)
        done = Done(
            self._ticket,
            state,
            body,
            len(buffers),
            "" if einfo is None else clean(clip(einfo.traceback)),
            outcome.runtime,
            time.time(),
            _ids_of(request) if request._sent else (),
        )
        return Loaded(done, buffers) if buffers else done

    def _again(
        self,
        plan: RetryPlan,
        reason: BaseException | None,
        einfo: life.ExceptionInfo | None,
        runtime: float,
        over: bool = True,
    ) -> Again | Loaded:
        call, buffers = self._next_call(plan, over)
        body, more = (
            payloads.dumps_exception(reason) if reason is not None else payloads.dumps(None)
        )
        frames = [*buffers, *more]
        again = Again(
            self._ticket,
            call,
            body,
            len(frames),
            clean(clip(einfo.traceback)) if einfo is not None else "",
            runtime,
            time.time(),
            _ids_of(self._request),
            over,
        )
        return Loaded(again, frames) if frames else again

    def _next_call(self, plan: RetryPlan, over: bool) -> tuple[Call, list[Buffer]]:
        """Return the running call as it shall run next."""
        call = self._assignment.run.call
        assert call is not None
        options = dict(plan.options)
        body, buffers = call.body, list(self._assignment.buffers)
        if plan.args is not None or plan.kwargs is not None:
            task = self._function.task
            body, fresh = payloads.dumps_arguments(
                self._request.args if plan.args is None else plan.args,
                self._request.kwargs if plan.kwargs is None else plan.kwargs,
                options.get("serializer") or task.serializer,
                options.get("compression") or task.compression,
                keep=self._keep_piece,
            )
            buffers = list(fresh)
        due, eta = _start_of(plan)
        return (
            Call(
                id=call.id if over else new_id(),
                definition=call.definition,
                name=call.name,
                body=body,
                frames=len(buffers),
                summary=call.summary,
                due=due,
                eta=eta,
                expires=options.get("expires", call.expires),
                priority=options.get("priority", call.priority),
                queue=options.get("queue") or call.queue,
                root=call.root if over else call.root or call.id,
                parent=call.parent if over else call.id,
                retries=plan.retries,
                options=_next_options(call.options, options),
            ),
            buffers,
        )

    def _fail(self, error: BaseException) -> None:
        """Post the failure of a call whose body could not even begin."""
        outcome = life.Outcome(states.FAILURE, error, life.ExceptionInfo(error))
        self._request = Request()
        self._post_outcome(self._encode(outcome))
        self._forgo_handlers()

    def _post_refusal(self, state: str, error: BaseException) -> None:
        """Post the end of a call that is not begun at all."""
        body, buffers = payloads.dumps_exception(error)
        done = Done(self._ticket, state, body, len(buffers), at=time.time())
        message = Loaded(done, buffers) if buffers else done
        self._keep(message)
        self._handover.ended = self._ticket
        self._handover.post(message)
        self._forgo_handlers()

    def _forgo_handlers(self) -> None:
        """Say that this worker is free, if it was given a call for its handlers only."""
        run = self._assignment.run
        if run.verdict and run.call is not None:
            self._handover.post(Handling(run.ticket, run.call.id, over=True))

    # -------------------------------------------------------------- what the running task says

    def report(self, state: str, meta: Any) -> None:
        """Make `state`, with `meta`, the state of the running task."""
        if isinstance(meta, BaseException):
            body, buffers = payloads.dumps_exception(meta)
        else:
            body, buffers = payloads.dumps(meta, keep=self._keep_piece)
        while len(self._handover.outbox) > BACKLOG:
            time.sleep(0.005)
        message: Report | Update
        if self._handover.ended == self._ticket:  # a handler says so: the broker knows the end
            assert self._request.id is not None
            message = Update(self._request.id, clean(state), body, len(buffers))
        else:
            message = Report(self._ticket, clean(state), body, len(buffers), time.time())
        self._handover.post(Loaded(message, buffers) if buffers else message)

    def again(
        self, plan: RetryPlan, reason: BaseException | None, einfo: life.ExceptionInfo | None
    ) -> None:
        """Retry beside this run, which goes on: a task of its own, child of this one."""
        message = self._again(plan, reason, einfo, 0.0, over=False)
        again = message.message if isinstance(message, Loaded) else message
        self._request._sent.append(again.call.id)
        self._handover.post(message)

    def cancelled(self) -> bool:
        """Return whether somebody wants the running task to end."""
        return self._handover.unwanted == self._ticket

    def join(self, who: object, over: bool) -> None:
        """Tell that the running task waits for other tasks, or does so no more."""
        if self.forked:
            return
        with self._joins_lock:
            is_over = self._handover.ended >= self._ticket and self._handover.handling is None
            if is_over and not over:  # a thread that a run has left does not speak for the next
                return
            before = bool(self._joins)
            (self._joins.discard if over else self._joins.add)(who)
            if before != bool(self._joins):
                said = Joining(self._ticket, over)
                self._handover.joining = None if over else said
                self._handover.post(said)

    def _end_joins(self) -> None:
        """Forget who waits: the body, or its handlers, are over, and the broker knows by that."""
        if self._joins:
            with self._joins_lock:
                self._joins.clear()
                self._handover.joining = None

    def flush(self) -> None:
        """Wait until the broker has heard what the running task has told, if there is one."""
        if self.forked:
            return
        # What the broker says of a definition that nobody has, it says after that.
        nobodys, echo = os.urandom(16), threading.Event()
        self._handover.echoes[nobodys] = echo
        try:
            self._handover.post(Fetch(nobodys))
            self._handover.settle()
            echo.wait(HEARD_WAIT)
        finally:
            del self._handover.echoes[nobodys]


def close_figures() -> None:
    """Close what pyplot holds open, as a notebook does at the end of each cell.

    Else the next task would draw into the same figure, and one that is a result would be open
    wherever it is loaded: a notebook would show it at once, and once more as the value of its cell.
    """
    pyplot = sys.modules.get("matplotlib._pylab_helpers")
    if pyplot is not None:
        with suppress(Exception):  # of a user's own canvas
            pyplot.Gcf.destroy_all()


def end_child(outcome: life.Outcome) -> NoReturn:
    """End a process that a task has forked, like a program at the end of its text."""
    if outcome.state == states.FAILURE:
        print(outcome.einfo, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(outcome.state == states.FAILURE))


def _is_limited(policy: Policy, call: Call) -> bool:
    """Return whether somebody outside ends the run when it takes too much."""
    options = call.options
    return not (
        policy.time_limit is None
        and policy.memory_limit is None
        and (options is None or (options.time_limit is None and options.memory_limit is None))
    )


def _ids_of(request: Request) -> tuple[str, ...]:
    """Return the ids of the tasks that a run has sent; what it ran by itself is not among them."""
    return tuple([sent for sent in request._sent if type(sent) is str])


def _start_of(plan: RetryPlan) -> tuple[float | None, float | None]:
    """Return earliest start on the boot clock (or None) and on the wall clock."""
    if plan.countdown is not None:
        instant = now()
        return instant.boot + plan.countdown, instant.wall + plan.countdown
    return None, None if plan.eta is None else plan.eta.timestamp()


def _iso(at: float | None) -> str | None:
    from datetime import UTC, datetime

    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _add_options(request: Request, options: Options) -> None:
    """Write a call's own options over those of its task."""
    request.group, request.group_index = options.group, options.group_index
    request.reply_to = options.reply_to
    request.origin = options.origin or request.origin
    request.shadow = options.shadow
    request.argsrepr, request.kwargsrepr = options.argsrepr, options.kwargsrepr
    if options.time_limit is not None:
        request.time_limit = options.time_limit
    if options.soft_time_limit is not None:
        request.soft_time_limit = options.soft_time_limit
    if options.ignore_result is not None:
        request.ignore_result = options.ignore_result
    if options.headers:
        request.headers = payloads.loads(options.headers, ours=True)


def _next_options(former: Options | None, changes: dict[str, Any]) -> Options | None:
    """Return a call's options with those that `retry` was given."""
    known = {name: changes[name] for name in Options.__struct_fields__ if name in changes}
    if "headers" in known:
        known["headers"] = _encode_headers(known["headers"])
    if not known:
        return former
    base = former or _NO_OPTIONS
    return Options(**{name: getattr(base, name) for name in Options.__struct_fields__} | known)


def _encode_headers(headers: Any) -> bytes:
    if not headers:
        return b""
    body, buffers = payloads.dumps(headers)
    return payloads.join(body, buffers) if buffers else body


def new_id() -> str:
    """Return a random task id."""
    return str(uuid.uuid4())
