"""Which line of a traceback tells what went wrong: texts as Python writes them."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from nbtasks.core.tracebacks import error_in


def chained() -> None:
    try:
        raise KeyError("first")
    except KeyError as error:
        raise ValueError("second\nof two lines") from error


def in_a_group() -> None:
    raise ExceptionGroup("several", [ValueError("a\nb"), OSError("c")])


def with_a_note() -> None:
    error = ValueError("bad header")
    error.add_note("in a.csv")
    raise error


def without_a_first_line() -> None:
    raise AssertionError("\nArrays are not equal\n\nMismatched elements: 1 / 3")


@pytest.mark.parametrize(
    ("fail", "line"),
    [
        (chained, "ValueError: second"),
        (in_a_group, "ExceptionGroup: several (2 sub-exceptions)"),
        (with_a_note, "ValueError: bad header"),
        (lambda: compile("x =", "<cell>", "exec"), "SyntaxError: invalid syntax"),
        (without_a_first_line, "AssertionError: Arrays are not equal"),
    ],
)
def test_error_is_where_the_exception_is_named(fail: Callable[[], None], line: str) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        fail()

    assert error_in("".join(traceback.format_exception(caught.value))) == line


@pytest.mark.parametrize("text", ["", "ValueError: alone", "KeyboardInterrupt"])
def test_error_without_frames_is_found_too(text: str) -> None:
    assert error_in(text) == text
