"""How results hang together: what every kind of result can do, and the tree that they make."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from nbtasks import exceptions

#: Called with `(task_id, value)`.
Callback = Callable[[str, Any], object]
#: Called with one state message.
Listener = Callable[[dict[str, Any]], object]


class ResultBase:
    """What all results have in common."""

    __slots__ = ()

    #: The result that this one follows in a chain, or None.
    parent: ResultBase | None

    # Members that a tree of results needs; all kinds of results have them.

    def ready(self) -> bool:
        """Say whether it is over."""
        raise NotImplementedError

    def get(self, timeout: float | None = None, propagate: bool = True, **kwargs: Any) -> Any:
        """Wait, and return the value."""
        raise NotImplementedError

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, in the form that `result_from_tuple` reads."""
        raise NotImplementedError

    def forget(self) -> None:
        """Delete what is stored."""
        raise NotImplementedError

    def maybe_throw(self, propagate: bool = True, callback: Callback | None = None) -> Any:
        """Raise if it has ended in an error."""
        raise NotImplementedError

    @property
    def children(self) -> list[Any] | None:
        """Results of what was sent from here."""
        raise NotImplementedError


class Family(ResultBase):
    """The members of a result that walk the tree: downwards to what its task has sent, and back."""

    __slots__ = ()

    #: Id of the task.
    id: str

    def iterdeps(
        self, intermediate: bool = False
    ) -> Iterator[tuple[ResultBase | None, ResultBase]]:
        """Walk the tree of this task and all that it has sent, breadth first.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.

        Yields
        ------
        tuple
            `(parent, result)`; the first parent is None.

        Raises
        ------
        nbtasks.exceptions.IncompleteStream
            When a task is not over yet, unless `intermediate`.
        """
        waiting: deque[tuple[ResultBase | None, ResultBase]] = deque([(None, self)])
        while waiting:
            parent, node = waiting.popleft()
            yield parent, node
            if node.ready():
                waiting.extend((node, child) for child in node.children or ())
            elif not intermediate:
                raise exceptions.IncompleteStream(
                    f"{node} is not over yet, so the tasks that it sends are not all known. Wait "
                    f"for it with get(), or pass intermediate=True to see what there is."
                )

    def collect(
        self, intermediate: bool = False, **kwargs: Any
    ) -> Iterator[tuple[ResultBase, Any]]:
        """Wait for this task, then for all that it has sent, and so on.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.
        **kwargs
            Given to each `get`.

        Yields
        ------
        tuple
            `(result, value)`, breadth first.
        """
        for _, node in self.iterdeps(intermediate=intermediate):
            yield node, node.get(**kwargs)

    def get_leaf(self) -> Any:
        """Wait for the whole tree, and return the value of the last task in it."""
        value = None
        for _, node in self.iterdeps():
            value = node.get()
        return value

    @property
    def graph(self) -> dict[ResultBase, list[ResultBase]]:
        """The tree as a mapping of each result to those that its task has sent."""
        return self.build_graph()

    def build_graph(
        self, intermediate: bool = False, formatter: Any = None
    ) -> dict[ResultBase, list[ResultBase]]:
        """Return the tree as a mapping of each result to those that its task has sent.

        Parameters
        ----------
        intermediate
            Whether to pass over tasks that are not over yet.
        formatter
            Taken for the sake of Celery's signature; not used.
        """
        graph: dict[ResultBase, list[ResultBase]] = {}
        for parent, node in self.iterdeps(intermediate=intermediate):
            graph.setdefault(node, [])
            if parent is not None:
                graph[parent].append(node)
        return graph

    def as_tuple(self) -> tuple[Any, Any]:
        """Return ids only, `((id, parent or None), None)`; `result_from_tuple` reverses it."""
        return (self.id, self.parent and self.parent.as_tuple()), None

    def as_list(self) -> list[str]:
        """Return the ids from this result back to the first of the chain."""
        ids, node = [], self.parent
        while node is not None:
            ids.append(getattr(node, "id", None))
            node = node.parent
        return [self.id, *(id for id in ids if id)]

    def _parents(self) -> list[ResultBase]:
        """Return the results before this one in the chain, the first step first."""
        found: list[ResultBase] = []
        node = self.parent
        while node is not None:
            found.append(node)
            node = node.parent
        return found[::-1]
