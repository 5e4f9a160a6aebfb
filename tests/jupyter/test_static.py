"""The final picture, as HTML and as text."""

from __future__ import annotations

import re
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from types import MappingProxyType
from typing import NamedTuple

import pytest

from nbtasks.jupyter import static, watch
from tests.jupyter.conftest import NOW


class Drawn:
    def flush(self) -> None: ...


@pytest.fixture
def picture():
    """Draw tasks both ways."""

    def draw(*tasks, details=MappingProxyType({})):
        seen = watch.Watch(Drawn())
        for told in tasks:
            seen.add(told.record)
        seen.settle()
        painted = seen.paint(static.choose(seen.rows), NOW)
        told = (painted, seen.total(), NOW.wall)
        return static.html(*told, details), static.text(*told)

    return draw


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def test_of_many_rows_the_rest_folds_out_as_far_as_there_is_room():
    rows = [
        {"i": index, "name": "work", "args": f"({index})", "state": "done", "final": True}
        for index in range(400)
    ]
    total = {"n": 10_000, "open": 0, "counts": {"done": 10_000}}

    html = static.html(rows[:10], total, 0.0, {}, rows[10:310])

    assert '<summary class="m">… and 9990 more</summary>' in html
    assert all(f"work({index})" in html for index in range(310))
    assert "… and 9690 more" in html
    assert len(html.encode()) <= static.SIZE
    long = [{**row, "args": "(" + "x" * 1_000 + ")"} for row in rows]
    assert len(static.html(long[:10], total, 0.0, {}, long[10:310]).encode()) <= static.SIZE


def test_whatever_a_task_is_called_it_has_one_line_of_text(submit, picture):
    _, text = picture(submit("two\nlines\x1b[2J", "(\u202eone,\ntwo)").begins().succeeds())

    assert text.splitlines()[1:] == ["✓ two lines [2J( one, two)  done"]


def test_all_states_are_told_in_symbol_and_word(submit, picture):
    _, text = picture(
        submit().begins().succeeds(),
        submit(summary="('b.csv')").begins().fails(ValueError("bad header")),
        submit(summary="()").is_revoked("expired"),
    )

    assert text.splitlines() == [
        "nbtasks: 3 tasks: 1 done · 1 failed · 1 expired",
        "✓ load('a.csv')  done",
        "✕ load('b.csv')  failed: ValueError: bad header",
        "⊘ load()  expired",
    ]


def test_the_text_is_the_same_on_each_run(submit, picture):
    _, text = picture(submit().begins(at=NOW.wall - 3, pid=4711).succeeds(runtime=3.2))

    assert not re.search(r"id-|4711|3\.2|worker", text)


def test_what_came_from_a_task_is_escaped(submit, picture):
    evil = "<img src=x onerror=alert(1)>"

    html, _ = picture(submit(evil, f"('{evil}')").fails(ValueError(evil)))

    parser = Tags()
    parser.feed(html)
    assert "img" not in parser.tags
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") == 3


def test_the_html_is_one_section_that_a_test_of_notebooks_can_fold(submit, picture):
    html, _ = picture(submit().succeeds())

    assert re.fullmatch(r'(?s)<section class="nbtasks-static".*</section>', html)
    assert html.count("</section>") == 1


def test_no_empty_line_ends_the_html_where_a_notebook_became_markdown():
    text = "one\n\n    *two*\n \t\n\n& three\n"
    detail = {"traceback": text, "output": [["stdout", text]], "result": text, "call": text}

    html = static.html([row(0)], counted(row(0)), 50.0, {0: detail})

    assert not re.search(r"\n[ \t]*\n", html)
    assert unescape(html).count(text.strip()) == 4


def test_of_many_tasks_those_that_went_wrong_come_first(submit, picture):
    good = [submit(summary=f"({number})").succeeds() for number in range(100)]
    bad = submit(summary="('last')").fails(ValueError())

    html, text = picture(*good, bad)

    assert "load('last')  failed" in text
    assert text.splitlines()[-1] == f"… and {101 - static.SOME} more"
    assert html.count('class="row"') == static.SOME


def test_a_retried_success_says_how_many_attempts_it_took(submit, picture):
    told = submit().begins().retries(ValueError(), 1, 0.0).begins().succeeds(retries=1)

    assert "✓ load('a.csv')  done: after 2 attempts" in picture(told)[1]


def row(index, **fields):
    return {
        **{"i": index, "name": "load", "args": f"({index})", "state": "done", "final": True},
        **fields,
    }


def counted(*rows):
    counts = dict(Counter(each["state"] for each in rows))
    return {"n": len(rows), "counts": counts, "open": 0, "began": 10.0, "ended": 41.0}


def draw(*rows, details=MappingProxyType({})):
    return static.html(rows, counted(*rows), NOW.wall, details)


def test_a_failure_says_where_in_the_notebook_it_happened():
    wrong = row(0, state="failed", error="ValueError: bad", where="cell [3], line 12")

    assert "ValueError: bad  (cell [3], line 12)" in draw(wrong)
    assert "ValueError: bad  (cell [3], line 12)" in static.text([wrong], counted(wrong), 0.0)


def test_a_task_that_a_task_sent_stands_below_its_sender():
    rows = [row(0), row(1), row(2, parent=0), row(3, parent=2), row(4, parent=99)]

    text = static.text(rows, counted(*rows), 0.0)

    assert [line.partition("  done")[0] for line in text.splitlines()[1:]] == [
        "✓ load(0)",
        "  ✓ load(2)",
        "    ✓ load(3)",
        "✓ load(1)",
        "✓ load(4)",
    ]


def test_a_line_with_nothing_more_to_say_does_not_fold_out():
    assert "<details>" not in draw(row(0), details={0: {"call": "load(0)", "result": "42"}})


def test_a_short_result_stands_in_the_line_and_a_long_one_folds_out():
    short, long = "{'rows': 1200}", "[" + ", ".join(map(str, range(100))) + "]"

    html = draw(row(0), row(1), details={0: {"result": short}, 1: {"result": long}})

    assert f"<bdi><code>{short}</code></bdi>" in html
    assert html.count("<details>") == 1
    assert f"<b>result</b><pre>{long}</pre>" in html


def test_attempts_are_timed_from_the_first():
    attempts = [
        {"n": 1, "began": 100.0, "ended": 100.5, "how": "retry", "why": "OSError: refused"},
        {"n": 2, "began": 107.0, "ended": 107.2, "how": "done", "why": ""},
    ]

    html = draw(row(0), details={0: {"attempts": attempts}})

    lines = "1  +0:00  retry  after 0.5 s  OSError: refused\n2  +0:07  done  after 0.2 s"
    assert f"<pre>{lines}</pre>" in html


def test_traceback_output_and_call_fold_out_escaped():
    evil = "<script>alert(1)</script>"
    detail = {"traceback": evil, "output": [["stdout", evil], ["stderr", evil]], "call": evil}

    html = draw(row(0, state="failed", error="x"), details={0: detail})

    parser = Tags()
    parser.feed(html)
    assert "script" not in parser.tags
    assert html.count("&lt;script&gt;") == 4


@pytest.mark.parametrize("letter", ["x", "&", "<", "\U0001f600", "\n"])
def test_a_picture_stays_small_whatever_the_tasks_said(letter):
    much = letter * 20_000
    name = letter * 80
    rows = [
        row(i, state="failed", name=name, args=name, error=letter * 300, where="here")
        for i in range(static.ALL)
    ]
    detail = {"traceback": much + "\nValueError: the end", "output": [["stdout", much]]}
    detail |= {"result": much, "call": much}

    html = draw(*rows, details={each["i"]: detail for each in rows})

    assert len(html.encode()) <= static.SIZE
    assert html.count("ValueError: the end") == static.ALL


def test_one_long_traceback_has_all_the_room_that_the_others_leave():
    traceback = "\n".join(f"line {number}" for number in range(2_000))
    rows = [row(0, state="failed"), *(row(number) for number in range(1, 10))]

    html = draw(*rows, details={0: {"traceback": traceback}, 1: {"result": "x" * 500}})

    assert "line 1999</pre>" in html
    assert "<pre>…\nline " in html or "line 0\n" in html
    assert len(html) < static.SIZE


def test_no_time_of_day_and_no_worker_is_told():
    attempts = [
        {"n": n, "began": 1e9 + n, "ended": 1e9 + n + 1, "worker": "worker-7", "how": "retry"}
        for n in (1, 2)
    ]
    detail = {"attempts": attempts, "facts": [["id", "0123-4567"], ["sent", "12:31:02"]]}

    html = draw(row(0), details={0: detail})

    assert not re.search(r"worker-7|0123-4567|12:31|2001", html)


def test_of_many_tasks_failures_are_shown_before_those_that_were_cancelled():
    rows = [
        Seen(i, "failed" if i % 10 == 0 else "expired" if i == 9 else "cancelled")
        for i in range(30)
    ]

    chosen = static.choose(rows)

    assert len(chosen) == static.ALL
    assert [row.index for row in chosen] == [*range(19), 20]
    assert [row.index for row in chosen if row.state == "failed"] == [0, 10, 20]


class Seen(NamedTuple):
    index: int
    state: str


QUEUE = {"workers": 1, "busy": 1, "queued": 2, "places": [[0, 2]]}


def test_what_waits_says_why_in_html_and_in_text():
    waits = row(0, state="waiting", final=False, expires=NOW.wall + 200)
    line = "2nd in the queue · the only worker is busy"

    html = static.html([waits], counted(waits), NOW.wall, queue=QUEUE)
    text = static.text([waits], counted(waits), NOW.wall, QUEUE)

    assert f"{line}  expires in 3:20" in html
    assert text.endswith(f"waiting: {line}")
