"""Several results that are waited for together: `ResultSet`, `GroupResult`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Self

from nbtasks import context, exceptions
from nbtasks.client import waiting
from nbtasks.client.callbacks import callbacks
from nbtasks.client.eager_result import EagerResult
from nbtasks.client.family import Callback, Listener, ResultBase
from nbtasks.client.listening import Messages
from nbtasks.client.options import text_of
from nbtasks.client.result import AsyncResult
from nbtasks.client.waiting import OnReady
from nbtasks.core import states
from nbtasks.core.messages import Revoke

if TYPE_CHECKING:
    from nbtasks.client.client import Record


class ResultSet(ResultBase):
    """Several results that are asked and waited for together.

    Parameters
    ----------
    results
        The members, in order.
    app, **kwargs
        Taken for the sake of Celery's signature; not used.

    Examples
    --------
    >>> results = ResultSet([EagerResult("a", 1, "SUCCESS"), EagerResult("b", 2, "SUCCESS")])
    >>> results.get(), results.completed_count()
    ([1, 2], 2)
    """

    #: Many results can be waited for at once.
    supports_native_join = True

    def __init__(self, results: Iterable[Any], app: Any = None, **kwargs: Any) -> None:
        #: The members, in order.
        self.results: list[Any] = list(results)
        for member in self.results:
            if isinstance(member, str):
                raise TypeError(
                    f"A set of results got the text {member!r}, which is none. Give "
                    f"AsyncResult({member!r})."
                )
        self.parent: ResultBase | None = None

    # ------------------------------------------------------------------------------- as a list

    def add(self, result: ResultBase) -> None:
        """Add a member, unless it is one already."""
        if result not in self.results:
            self.results.append(result)

    def remove(self, result: ResultBase | str) -> None:
        """Remove a member, given as a result or by id.

        Raises
        ------
        KeyError
            When it is no member.
        """
        try:
            self.results.remove(result)
        except ValueError:
            raise KeyError(result) from None

    def discard(self, result: ResultBase | str) -> None:
        """Remove a member if it is one."""
        with contextlib.suppress(KeyError):
            self.remove(result)

    def update(self, results: Iterable[ResultBase]) -> None:
        """Add several members."""
        known = {member for member in self.results if not isinstance(member, ResultSet)}
        for result in results:
            if isinstance(result, ResultSet):  # it cannot be hashed
                self.add(result)
            elif result not in known:
                known.add(result)
                self.results.append(result)

    def clear(self) -> None:
        """Remove all members."""
        self.results.clear()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.results)

    def __getitem__(self, index: Any) -> Any:
        return self.results[index]

    def __len__(self) -> int:
        return len(self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ResultSet):
            return self.results == other.results
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]  # members come and go

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: [{', '.join(map(_id_of, self.results))}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.results,)

    # ---------------------------------------------------------------------------------- states

    def _followed(self) -> list[Any]:
        """Return the members; the broker is asked of all of them before the first is looked at."""
        for leaf in self._leaves():
            leaf._follow()
        return self.results

    def _everyone(self) -> Iterator[AsyncResult]:
        """Yield all members, those of sets among the members, too."""
        for member in self.results:
            if isinstance(member, ResultSet):
                yield from member._everyone()
            else:
                yield member

    def _leaves(self) -> Iterator[AsyncResult]:
        """Yield all members that run in workers."""
        return (member for member in self._everyone() if not isinstance(member, EagerResult))

    def ready(self) -> bool:
        """Say whether all members are over."""
        return all(member.ready() for member in self._followed())

    def waiting(self) -> bool:
        """Say whether any member is not over yet."""
        return not self.ready()

    def successful(self) -> bool:
        """Say whether all members ended in SUCCESS."""
        return all(member.successful() for member in self._followed())

    def failed(self) -> bool:
        """Say whether any member ended in FAILURE."""
        return any(member.failed() for member in self._followed())

    def completed_count(self) -> int:
        """Return how many members have ended in SUCCESS so far."""
        return sum(member.successful() for member in self._followed())

    @property
    def progress(self) -> float | None:
        """Mean of the members' progress, 0.0 to 1.0; those that have not said count as 0."""
        shares = [member.progress or 0.0 for member in self._followed()]
        return sum(shares) / len(shares) if shares else None

    @property
    def children(self) -> list[Any] | None:
        """The members."""
        return self.results

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise the error of the first member that has one by now; does not wait."""
        __tracebackhide__ = True
        for member in self._followed():
            member.maybe_throw(propagate=propagate, callback=callback)

    maybe_reraise = maybe_throw

    def widget(self) -> Any:
        """Return one widget that shows all members, live; where there is no notebook, as text."""
        # By name: notebooks are built upon clients, not the other way round.
        return importlib.import_module("nbtasks.jupyter.panel").widget(*self._everyone())

    # --------------------------------------------------------------------------------- control

    def forget(self) -> None:
        """Delete the results of all members that are over."""
        waiting.forget(list(self._leaves()))

    def revoke(
        self,
        terminate: bool = False,
        signal: str | int = "SIGTERM",
        wait: bool = False,
        timeout: float | None = None,
        connection: Any = None,
    ) -> None:
        """Revoke all members, with one message; the arguments are those of `AsyncResult.revoke`."""
        timeout = waiting.seconds_of(timeout)
        for client, leaves in waiting.by_client(self._leaves()).items():
            ids = tuple(leaf.id for leaf in leaves)
            client.tell(Revoke(ids, terminate, waiting.signal_name(signal)))
        for member in self._everyone():
            if isinstance(member, EagerResult):
                member.revoke()
        if wait:
            _Gathering(self, timeout).run()

    def cancel(self, wait: bool = False, timeout: float | None = None) -> None:
        """Do not run the members, or end those that are running."""
        self.revoke(terminate=True, wait=wait, timeout=timeout)

    # --------------------------------------------------------------------------------- waiting

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        interval: float = 0.5,
        callback: Callback | None = None,
        no_ack: bool = True,
        on_message: Listener | None = None,
        disable_sync_subtasks: bool = True,
        on_interval: Callable[[], object] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Wait for all members, and return their values in the members' order.

        Parameters
        ----------
        timeout
            Seconds to wait at most, for all together.
        propagate
            Whether the first error met is raised, without waiting for the rest; otherwise
            exceptions stand in the list in place of values.
        callback
            Called with `(task_id, value)` for each member as it completes; then there is no list.
        on_message
            Called with each state message of each member; see `AsyncResult.get`.
        disable_sync_subtasks
            Whether waiting inside a task is refused.
        on_interval
            Called without arguments about each second of waiting.
        interval, no_ack, **kwargs
            Taken for the sake of Celery's signature; nothing is polled here.

        Returns
        -------
        list or None
            The values; None with a `callback`.

        Raises
        ------
        nbtasks.exceptions.TimeoutError
            When time is up; it is a builtin TimeoutError, too.
        RuntimeError
            When called inside a task, unless that is allowed.
        """
        __tracebackhide__ = True
        if disable_sync_subtasks and context.task_join_will_block():
            raise waiting.refusal("A set of results")
        gathering = _Gathering(self, timeout, propagate, callback, on_message, on_interval)
        gathering.run()
        if callback is not None:
            return None
        return [
            member.get(propagate=propagate, follow_parents=False, disable_sync_subtasks=False)
            for member in self.results
        ]

    join = get
    join_native = get

    def iter_native(
        self,
        timeout: float | None = None,
        interval: float = 0.5,
        no_ack: bool = True,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield `(task_id, {"status": ..., "result": ...})` of each member as it completes.

        Parameters
        ----------
        timeout
            Seconds to wait at most, for all together.
        on_message, on_interval
            See `get`.
        interval, no_ack
            Taken for the sake of Celery's signature; nothing is polled here.
        """
        gathering = _Gathering(self, timeout, False, None, on_message, on_interval)
        for member in gathering.completed():
            yield (
                member.id,
                {"task_id": member.id, "status": member.state, "result": member.result},
            )

    def __await__(self) -> Generator[Any, None, list[Any]]:
        """Wait for all members without blocking the event loop; the first error met is raised."""
        return self._arrive().__await__()

    async def _arrive(self) -> list[Any]:
        # Members that are over but not yet looked at; the I/O thread appends.
        arrived: deque[AsyncResult] = deque()
        waiters = []
        try:
            for leaf in self._leaves():
                if not leaf.ignored:
                    waiter = leaf._when_over(functools.partial(arrived.append, leaf))
                    waiters.append((leaf._follow(), waiter))
            return [await self._arrived(member, arrived) for member in self.results]
        finally:
            for record, waiter in waiters:
                record.remove_waiter(waiter)

    async def _arrived(self, member: Any, arrived: deque[AsyncResult]) -> Any:
        """Return the value of a member, or raise the first error met meanwhile."""
        import asyncio

        _throw(arrived)
        record = getattr(member, "_record", None)
        wait = member
        if record is None or not record.over:  # else a future would only cost time
            wait = asyncio.ensure_future(member)
            try:
                while not (await asyncio.wait([wait], timeout=waiting.SLICE))[0]:
                    _throw(arrived)
            finally:
                wait.cancel()
        return await wait

    def then(
        self,
        callback: Callable[[Self], object],
        on_error: Callable[[Exception], object] | None = None,
        weak: bool = False,
    ) -> Self:
        """Call a function with this set once all members are over; nobody needs to wait.

        Parameters
        ----------
        callback
            Called with this set, in a thread of its own.
        on_error
            Called with the exception that `callback` raised; without it the exception is logged.
        weak
            Whether the callback is dropped when nobody else holds this set any more.
        """
        waiting.check_callable("callback", callback)
        hold: Callable[[], Self | None] = weakref.ref(self) if weak else lambda: self
        left = deque(self._leaves())

        def call() -> None:
            result = hold()
            if result is not None:
                waiting.call_back(callback, result, on_error)

        # A chain of waits rather than a counter: no lock, and the order of ends does not matter.
        def advance() -> None:
            while left:
                leaf = left.popleft()
                if not leaf._follow().over:  # else it would call us from within itself
                    leaf._when_over(advance)
                    return
            callbacks.post(call)

        callbacks.post(advance)
        return self

    @property
    def on_ready(self) -> OnReady:
        """Celery's promise of this set: `on_ready.then(callback)`."""
        return OnReady(self)


def _throw(arrived: deque[AsyncResult]) -> None:
    """Raise the first error among members that are over."""
    while arrived:
        arrived.popleft().maybe_throw()


class _Gathering:
    """One wait for the members of a set: who is over, what was told, when time is up."""

    def __init__(
        self,
        results: ResultSet,
        timeout: float | None,
        propagate: bool = False,
        callback: Callback | None = None,
        on_message: Listener | None = None,
        on_interval: Callable[[], object] | None = None,
    ) -> None:
        timeout = waiting.seconds_of(timeout)
        waiting.check_given(callback=callback, on_message=on_message, on_interval=on_interval)
        self._members = results.results
        self._timeout = timeout
        self._deadline = None if timeout is None else time.monotonic() + timeout
        self._propagate = propagate
        self._callback = callback
        self._beat = waiting.Beat(on_interval)
        leaves = [leaf for leaf in results._leaves() if not leaf.ignored]
        self._messages: list[tuple[Record, Messages]] = []
        #: The same of members that `apply()` has run: they tell all at once.
        self._eager: list[Callable[[], object]] = []
        if on_message is not None:
            self._messages = [
                (leaf._follow(), Messages(leaf, on_message, timeout)) for leaf in leaves
            ]
            self._eager = [
                functools.partial(one.listen, on_message)
                for one in results._everyone()
                if isinstance(one, EagerResult)
            ]
        #: Members that are over but not yet looked at; the I/O thread appends.
        self._arrived: deque[AsyncResult] = deque()
        self._open = {id(leaf): leaf for leaf in leaves}
        #: What says so of each.
        self._waiters: list[tuple[Record, Any]] = []
        #: The same in order. The last one that is open is waited for: it is likely to end late.
        self._order = list(self._open.values())
        self._direct = {id(member) for member in self._members}

    def run(self) -> None:
        """Wait for all; raise the first error met, and call back for each."""
        __tracebackhide__ = True
        with context.joining():  # once, rather than at each pause
            for member in self.completed():
                if self._propagate or self._callback is not None:
                    member.maybe_throw(self._propagate, self._callback)

    def completed(self) -> Iterator[Any]:
        """Yield the members as they complete."""
        __tracebackhide__ = True
        for tell in self._eager:
            tell()
        yield from (member for member in self._members if self._is_over_by_nature(member))
        try:
            self._watch()
            while True:
                self._tell()
                yield from self._newly_over()
                if not self._open:
                    break
                with context.joining():
                    self._pause()
        finally:
            if self._open:  # whoever gives up now may ask again, many times
                for record, waiter in self._waiters:
                    record.remove_waiter(waiter)
        for member in self._members:
            if isinstance(member, ResultSet):
                yield _Nested(member)

    @staticmethod
    def _is_over_by_nature(member: Any) -> bool:
        return isinstance(member, EagerResult) or bool(getattr(member, "ignored", False))

    def _watch(self) -> None:
        """Have each member reported when it is over."""
        records = [(leaf, leaf._follow()) for leaf in self._open.values()]
        at_once = self._timeout is not None and self._timeout <= 0
        for leaf, record in records:
            if at_once:
                leaf._learned()
            if record.over:
                self._arrived.append(leaf)
            else:
                waiter = leaf._when_over(functools.partial(self._arrived.append, leaf))
                self._waiters.append((record, waiter))

    def _newly_over(self) -> Iterator[AsyncResult]:
        """Return those that are over since the last look, in the order in which they ended."""
        found: list[AsyncResult] = []
        while self._arrived:
            leaf = self._arrived.popleft()
            if self._open.pop(id(leaf), None) is not None:
                found.append(leaf)
        found.sort(key=_ended_at)
        # Members of a nested set come as one, when all are over; their errors count at once.
        return (leaf for leaf in found if id(leaf) in self._direct or self._fails(leaf))

    def _fails(self, leaf: AsyncResult) -> bool:
        return self._propagate and leaf.state in states.PROPAGATE_STATES

    def _tell(self) -> None:
        for record, messages in self._messages:
            if record.n > messages.seen:
                messages.tell(record)

    def _pause(self) -> None:
        """Wait until something may have changed."""
        __tracebackhide__ = True
        left = None if self._deadline is None else self._deadline - time.monotonic()
        if left is not None and left <= 0:
            raise self._late()
        left = self._beat.next(left)
        while id(self._order[-1]) not in self._open:
            self._order.pop()
        # One that is open is enough to wait for: what else arrives is looked at each slice.
        record = self._order[-1]._follow()
        pause = waiting.SLICE if left is None else min(left, waiting.SLICE)
        waiting.client_of(record).wait([record], pause)

    def _late(self) -> exceptions.TimeoutError:
        unknown = (leaf for leaf in self._open.values() if leaf._follow().known is False)
        lost = next(unknown, None)
        if lost is not None:
            advice = lost._unknown()
        else:
            advice = "They go on: call get() again to wait longer, or cancel()."
        return exceptions.TimeoutError(
            f"{len(self._open)} of {len(self._members)} tasks were not ready within "
            f"{self._timeout:g} s. {advice}"
        )


class _Nested:
    """A set that is a member of a set, as the one thing that its callback sees."""

    def __init__(self, results: ResultSet) -> None:
        self._results = results
        self.id = _id_of(results)
        self.state = states.SUCCESS if results.successful() else states.FAILURE

    @property
    def result(self) -> Any:
        return self._results.get(propagate=False, disable_sync_subtasks=False)

    def maybe_throw(self, propagate: bool, callback: Callback | None) -> None:
        if callback is not None:
            value = self._results.get(propagate=propagate, disable_sync_subtasks=False)
            callback(self.id, value)


def _ended_at(leaf: AsyncResult) -> float:
    final = leaf._follow().final
    return final.at if final is not None else 0.0


def _id_of(result: Any) -> str:
    return str(getattr(result, "id", None) or result)


class GroupResult(ResultSet):
    """The results of a group: a set with an id that can be saved.

    Parameters
    ----------
    id
        Id of the group.
    results
        The members, in order.
    parent
        Result of the step before the group in a chain.
    **kwargs
        Taken for the sake of Celery's signature; not used.
    """

    def __init__(
        self,
        id: str | None = None,
        results: Iterable[Any] | None = None,
        parent: ResultBase | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(results or ())
        #: Id of the group.
        self.id = None if id is None else text_of("id", str(id))
        self.parent = parent

    def save(self, backend: Any = None) -> None:
        """Keep the group in the cluster's store, so that `restore` finds it in any process.

        Parameters
        ----------
        backend
            Taken for the sake of Celery's signature; not used.

        Raises
        ------
        ValueError
            When it has no id, or a member whose result is kept by nobody but itself.
        """
        if any(isinstance(member, EagerResult) for member in self._everyone()):
            raise ValueError(
                "A group with results of apply() cannot be saved: they are not in the store. "
                "Send its tasks with delay() or apply_async()."
            )
        value = json.dumps(self.as_tuple()).encode()
        waiting.client().ask("put", key=self._key(self.id), value=value)

    def delete(self, backend: Any = None) -> None:
        """Remove the group from the store; the members' results stay."""
        waiting.client().ask("take", key=self._key(self.id))

    @classmethod
    def restore(cls, id: str, backend: Any = None, app: Any = None) -> Self | None:
        """Return a group that was saved, or None when there is none of this id.

        Parameters
        ----------
        id
            Id of the group.
        backend, app
            Taken for the sake of Celery's signature; not used.
        """
        value = waiting.client().ask("peek", key=cls._key(id))
        if value is None:
            return None
        found = result_from_tuple(json.loads(value))
        return cls(found.id, found.results, found.parent)

    @staticmethod
    def _key(id: str | None) -> str:
        if not id:
            raise ValueError(
                "A group without an id cannot be saved or restored: nobody could ask for it. "
                "Give it one: GroupResult(id, results)."
            )
        return f"group:{id}"

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, `((id, parent or None), [members])`; `result_from_tuple` reverses it."""
        parent = self.parent and self.parent.as_tuple()
        return (self.id, parent), [member.as_tuple() for member in self.results]

    def forget(self) -> None:
        """Delete the results of all members that are over, and the group itself."""
        super().forget()
        if self.parent is not None:
            self.parent.forget()
        if self.id:
            self.delete()

    def __bool__(self) -> bool:
        return bool(self.id or self.results)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, GroupResult):
            return (self.id, self.results, self.parent) == (other.id, other.results, other.parent)
        if isinstance(other, str):
            return self.id == other
        return super().__eq__(other)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.id)

    def __str__(self) -> str:
        return self.id or repr(self)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.id} [{', '.join(map(_id_of, self.results))}]>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.id, self.results, self.parent)


def result_from_tuple(r: Any, app: Any = None) -> Any:
    """Return the result that `as_tuple` took apart.

    Parameters
    ----------
    r
        What `as_tuple` returned, tuples or lists; results pass through.
    app
        Taken for the sake of Celery's signature; not used.

    Examples
    --------
    >>> result_from_tuple((("b", (("a", None), None)), None)).parent
    <AsyncResult: a>
    """
    if not isinstance(r, (list, tuple)):
        return r
    head, members = r
    id, parent = head if isinstance(head, (list, tuple)) else (head, None)
    parent = result_from_tuple(parent) if parent else None
    if members is None:
        return AsyncResult(id, parent=parent)
    return GroupResult(id, [result_from_tuple(member) for member in members], parent=parent)
