"""What folds out below a row."""

from __future__ import annotations

import pickle

import pytest

from nbtasks.client.record import Record
from nbtasks.core.messages import Call, Options
from nbtasks.jupyter import detail
from tests.jupyter.conftest import NOW, Told


def tell(told, shown=None):
    call = told.record.call
    called = (call.name, call.summary) if call else ("nb.far", "(7)")
    return detail.tell(detail.Asked(told.record, call, called), shown)


def facts(told, shown=None):
    return dict(tell(told, shown)["facts"])


def call_of(args, kwargs, summary, **more):
    body = pickle.dumps((args, kwargs))
    return Told(Record("a", call=Call("a", b"", "nb.load", body, summary=summary, **more)))


# ---------------------------------------------------------------------------------- call and facts


def test_a_short_call_is_told_as_it_is(submit):
    assert tell(submit())["call"] == "load('a.csv')"


def test_arguments_that_were_cut_are_told_in_full():
    told = call_of(("x" * 300,), {"lr": 0.1}, "('xxx…")

    assert tell(told)["call"] == f"load('{'x' * 300}', lr=0.1)"


def test_a_call_has_an_end_however_long_it_is():
    told = call_of(("x" * 10_000,), {}, "('xxx…")

    assert len(tell(told)["call"]) == detail.LONG


@pytest.mark.parametrize("hidden", ["argsrepr", "kwargsrepr"])
def test_arguments_that_the_caller_has_hidden_stay_hidden(hidden):
    secret = ("secret",), {"key": "secret"}
    told = call_of(*secret, "(…)", options=Options(**{hidden: "(…)"}))

    assert tell(told)["call"] == "load(…)"


def test_arguments_that_cannot_be_loaded_stay_short():
    told = Told(Record("a", call=Call("a", b"", "nb.load", b"no pickle", summary="(x…")))

    assert tell(told)["call"] == "load(x…"


def test_facts_are_those_of_the_call(submit):
    known = facts(submit(queue="gpu", priority=9, expires=NOW.wall + 60).begins())

    assert (known["task"], known["queue"], known["priority"]) == ("nb.load", "gpu", "9")
    assert known["worker"] == "worker-1"
    assert "latest start" in known
    assert "ended" not in known


def test_the_lowest_priority_is_told(submit):
    assert facts(submit(priority=0))["priority"] == "0"


def test_facts_of_a_task_of_another_process_are_the_brokers():
    shown = {"queue": "gpu", "priority": 3, "accepted_at": NOW.wall, "eta": None}

    known = facts(Told(Record("far")), shown)

    assert (known["id"], known["task"], known["queue"]) == ("far", "nb.far", "gpu")
    assert "sent" in known


# ---------------------------------------------------------------------------------------- attempts


def test_each_attempt_is_told_with_its_end_and_the_reason(submit):
    told = submit().begins(at=NOW.wall)
    told.retries(ConnectionError("refused"), 1, 7.0)
    told.begins(at=NOW.wall + 7).runs_again("worker was killed by SIGKILL")
    told.begins(at=NOW.wall + 9).succeeds(at=NOW.wall + 10)

    attempts = tell(told)["attempts"]

    assert [(each["n"], each["how"], each["why"]) for each in attempts] == [
        (1, "retry", "ConnectionError: refused"),
        (2, "lost", "worker was killed by SIGKILL"),
        (3, "done", ""),
    ]
    assert [each["began"] for each in attempts] == [NOW.wall, NOW.wall + 7, NOW.wall + 9]
    assert attempts[2]["ended"] == NOW.wall + 10


def test_an_attempt_takes_as_long_as_its_row_says(submit):
    told = submit().begins(at=NOW.wall).succeeds(at=NOW.wall + 10, runtime=4.0)

    (attempt,) = tell(told)["attempts"]

    assert attempt["ended"] - attempt["began"] == 4.0


def test_an_attempt_that_goes_on_has_no_end(submit):
    (attempt,) = tell(submit().begins())["attempts"]

    assert (attempt["how"], attempt["ended"]) == ("running", None)


@pytest.mark.parametrize(
    ("end", "how", "why"),
    [
        (lambda told: told.fails(ValueError("bad")), "failed", "ValueError: bad"),
        (lambda told: told.is_revoked("terminated"), "cancelled", "TaskRevokedError: terminated"),
        (lambda told: told._tell("end", final=True), "done", ""),
    ],
)
def test_the_last_attempt_ends_as_its_task(submit, end, how, why):
    (attempt,) = tell(end(submit().begins()))["attempts"]

    assert (attempt["how"], attempt["why"]) == (how, why)


def test_a_task_that_was_done_again_by_hand_has_one_more_attempt(submit):
    told = submit().begins().fails(ValueError()).runs_again("run again by hand").begins()

    assert [each["how"] for each in tell(told)["attempts"]] == ["failed", "running"]


def test_a_task_that_never_began_had_no_attempt(submit):
    assert tell(submit().is_revoked("revoked"))["attempts"] == []


# ---------------------------------------------------------------------------------- what came of it


def printed(told, *parts):
    for stream, text in parts:
        told._tell("output", stream, text=text)
    return tell(told)["output"]


def test_output_keeps_its_order_and_its_streams(submit):
    parts = (("stdout", "a\n"), ("stdout", "b\n"), ("stderr", "c\n"), ("stdout", "d\n"))

    assert printed(submit(), *parts) == [
        ["stdout", "a\nb\n"],
        ["stderr", "c\n"],
        ["stdout", "d\n"],
    ]


def test_of_much_output_the_last_lines_are_told(submit):
    ((_, text),) = printed(submit(), *(("stdout", f"{number}\n") for number in range(1_000)))

    assert text.splitlines() == [str(number) for number in range(800, 1_000)]


def test_of_long_lines_the_last_letters_are_told(submit):
    ((_, text),) = printed(submit(), ("stdout", "x" * 100_000))

    assert len(text) == detail.LETTERS


def test_a_bar_that_was_drawn_over_and_over_is_there_once(submit):
    text = "\r 10%\r 50%\r\x1b[32m100%\x1b[0m\r\n"

    assert printed(submit(), ("stderr", text)) == [["stderr", "100%\n"]]


def test_of_links_only_the_words_are_told(submit):
    text = "\x1b]8;id=1;http://x.org\x1b\\here\x1b]8;;\x1b\\ \x1b]0;title\x07and there\n"

    assert printed(submit(), ("stdout", text)) == [["stdout", "here and there\n"]]


def test_what_is_taken_back_letter_by_letter_is_gone(submit):
    text = "1/9 [.]" + "\b" * 7 + "9/9 [=]\n"

    assert printed(submit(), ("stdout", text)) == [["stdout", "9/9 [=]\n"]]


def test_a_traceback_is_told(submit):
    told = submit().fails(ValueError("bad"), traceback="Traceback\nValueError: bad\n")

    assert tell(told)["traceback"] == "Traceback\nValueError: bad"


def test_of_a_long_traceback_the_end_is_told(submit):
    told = submit().fails(ValueError("bad"), traceback="x" * 50_000 + "ValueError: bad")

    text = tell(told)["traceback"]

    assert text.endswith("ValueError: bad")
    assert len(text) == detail.LETTERS + 1


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Strange:
    def __repr__(self):
        return 7


class Unloadable:
    def __reduce__(self):
        return refuse, ()


def refuse():
    raise ImportError("no module named colours")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (41, "41"),
        ({"a": [1, 2]}, "{'a': [1, 2]}"),
        (None, ""),
        (Hostile(), "<Hostile whose repr fails with RuntimeError>"),
        (Strange(), "<Strange whose repr fails with TypeError>"),
    ],
)
def test_a_result_is_told_whatever_its_class_makes_of_that(submit, value, text):
    assert tell(submit().begins().succeeds(value))["result"] == text


def test_a_result_that_cannot_be_loaded_says_why(submit):
    result = tell(submit().begins().succeeds(Unloadable()))["result"]

    assert result.startswith("<cannot be loaded here: ")
    assert "no module named colours" in result


def test_a_long_result_is_cut(submit):
    assert len(tell(submit().succeeds("x" * 9_000))["result"]) == detail.LONG


def test_a_large_result_is_not_loaded(submit, monkeypatch):
    told = submit().succeeds(b"x" * 3_000_000)
    monkeypatch.setattr("nbtasks.client.outcome.load", refuse)

    assert tell(told)["result"] == "<3 MB: result.get() loads it>"


def test_a_task_that_failed_has_no_result(submit):
    assert tell(submit().fails(ValueError()))["result"] == ""


def test_of_several_those_are_told_that_are_told_in_time(submit):
    told = {index: submit().succeeds(index) for index in (1, 2)}
    asked = {
        index: detail.Asked(each.record, each.record.call, ("f", "()"))
        for index, each in told.items()
    }

    assert {index: each["result"] for index, each in detail.several(asked, 5.0).items()} == {
        1: "1",
        2: "2",
    }
