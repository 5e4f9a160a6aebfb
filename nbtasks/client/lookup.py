"""What people type to name tasks, looked up: a part of an id, a state, a phase."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from nbtasks.core.states import ALL_STATES, PHASES

if TYPE_CHECKING:
    from nbtasks.client.client import Client

#: Tasks among which a part of an id is looked up.
RECENT: Final = 2_000
#: More tasks than any store has.
ALL: Final = 10_000_000


class Wanted(NamedTuple):
    """Which tasks are meant; None: all."""

    state: str | None = None
    phase: str | None = None

    def __str__(self) -> str:
        if self.state is not None:
            return f" in state {self.state}"
        return "" if self.phase is None else f" that are {self.phase}"


ALL_TASKS: Final = Wanted()


def find(client: Client, text: str) -> dict[str, Any] | None:
    """Return what the broker shows of the task of that id, or the only one that it is a part of.

    The beginning, or the end: those that one kernel has sent begin alike.
    """
    task: dict[str, Any] | None = client.ask("show", id=text)
    if task is None and text:
        recent = client.ask("list", limit=RECENT)
        known = [each["id"] for each in recent]
        ids = [each for each in known if each.startswith(text) or each.endswith(text)]
        if len(ids) == 1:
            task = client.ask("show", id=ids[0])
    return task


def named(client: Client, word: str) -> Wanted:
    """Return what is meant by a word: a state or a phase.

    Raises
    ------
    ValueError
        When it means none; the text says which there are.
    """
    if word.upper() in ALL_STATES:
        return Wanted(state=word.upper())
    if word.lower() in PHASES:
        return Wanted(phase=word.lower())
    custom = client.ask("status")["states"]
    for state in (word, word.upper()):
        if state in custom:
            return Wanted(state)
    known = {state.upper(): state for state in (*ALL_STATES, *PHASES, *custom)}
    near = difflib.get_close_matches(word.upper(), known, 1)
    hint = f" Did you mean {known[near[0]]}?" if near else ""
    raise ValueError(
        f"No task is in a state {word!r}, and it is none that tasks have by themselves.{hint} "
        f"These are {', '.join(sorted(ALL_STATES))}; phases can be named, too: {', '.join(PHASES)}."
    )


def latest(
    client: Client, limit: int, wanted: Wanted = ALL_TASKS, took: bool = False
) -> list[dict[str, Any]]:
    """Return the latest tasks, newest first.

    Parameters
    ----------
    limit
        How many at most.
    wanted
        Which.
    took
        Whether to tell how long their runs took.
    """
    tasks: list[dict[str, Any]] = client.ask(
        "list", state=wanted.state, phase=wanted.phase, limit=limit, took=took
    )
    return tasks
