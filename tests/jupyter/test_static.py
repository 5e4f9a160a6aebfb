"""The final picture, as HTML and as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from nbtasks.jupyter import static, watch
from tests.jupyter.conftest import NOW


class Drawn:
    def flush(self) -> None: ...


@pytest.fixture
def picture():
    """Draw tasks both ways."""

    def draw(*tasks):
        seen = watch.Watch(Drawn())
        for told in tasks:
            seen.add(told.record)
        seen.settle()
        painted = seen.paint(static.choose(seen.rows), NOW)
        told = (painted, seen.total(), NOW.wall)
        return static.html(*told), static.text(*told)

    return draw


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


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


def test_of_many_tasks_those_that_went_wrong_come_first(submit, picture):
    good = [submit(summary=f"({number})").succeeds() for number in range(100)]
    bad = submit(summary="('last')").fails(ValueError())

    html, text = picture(*good, bad)

    assert "load('last')  failed" in text
    assert text.splitlines()[-1] == f"… and {101 - static.SOME} more"
    assert html.count("<tr>") == static.SOME


def test_a_retried_success_says_how_many_attempts_it_took(submit, picture):
    told = submit().begins().retries(ValueError(), 1, 0.0).begins().succeeds(retries=1)

    assert "✓ load('a.csv')  done: after 2 attempts" in picture(told)[1]
