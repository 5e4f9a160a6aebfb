"""What people type, looked up among the tasks of a broker that is none."""

from __future__ import annotations

from typing import Any

import pytest

from nbtasks.client import lookup
from nbtasks.client.lookup import Wanted

TASKS = [
    {"id": "bb-2", "state": "Halfway", "phase": "running"},
    {"id": "ab-1", "state": "PENDING", "phase": "queued"},
    {"id": "aa-0", "state": "PENDING", "phase": "scheduled"},
]


class Client:
    def ask(self, what: str, **args: Any) -> Any:
        if what == "status":
            return {"states": {"Halfway": 1, "PENDING": 2}}
        if what == "show":
            return next((task for task in TASKS if task["id"] == args["id"]), None)
        found = [task for task in TASKS if args.get("state") in (None, task["state"])]
        found = [task for task in found if args.get("phase") in (None, task["phase"])]
        return found[: args["limit"]]


@pytest.fixture
def client() -> Any:
    return Client()


@pytest.mark.parametrize(
    ("text", "task_id"),
    [
        *(("ab-1", "ab-1"), ("bb", "bb-2"), ("aa", "aa-0"), ("-1", "ab-1"), ("0", "aa-0")),
        *(("a", None), ("x", None), ("", None)),
    ],
)
def test_task_is_found_by_as_much_of_its_id_as_only_it_has(
    client: Any, text: str, task_id: str | None
) -> None:
    found = lookup.find(client, text)

    assert (found and found["id"]) == task_id


@pytest.mark.parametrize(
    ("word", "wanted"),
    [
        ("failure", Wanted(state="FAILURE")),
        ("Halfway", Wanted(state="Halfway")),
        ("Queued", Wanted(phase="queued")),
    ],
)
def test_word_means_a_state_or_a_phase(client: Any, word: str, wanted: Wanted) -> None:
    assert lookup.named(client, word) == wanted


@pytest.mark.parametrize(("word", "meant"), [("FAILUER", "FAILURE"), ("halfwya", "Halfway")])
def test_word_that_means_nothing_is_answered_with_what_is_near(
    client: Any, word: str, meant: str
) -> None:
    with pytest.raises(ValueError, match=rf"'{word}'.* Did you mean {meant}\?.*queued"):
        lookup.named(client, word)


def test_latest_tasks_are_those_of_a_state_or_of_a_phase(client: Any) -> None:
    def ids(*args: Any) -> list[str]:
        return [task["id"] for task in lookup.latest(client, *args)]

    assert ids(2) == ["bb-2", "ab-1"]
    assert ids(9, Wanted(state="PENDING")) == ["ab-1", "aa-0"]
    assert ids(1, Wanted(phase="scheduled")) == ["aa-0"]
