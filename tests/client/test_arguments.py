"""Arguments of a call: the check against the signature, and the short text."""

from __future__ import annotations

import functools
import inspect
import time
from decimal import Decimal
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtasks.client.arguments import SUMMARY, make_check, merge_for_retry, summarize

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


# ------------------------------------------------------------------------------------ the check


def plain(a, b, c=0): ...
def positional_only(a, b=0, /, c=0): ...
def named_only(a, *, b, c=0): ...
def starred(a, *rest, b=0, **more): ...
def everything(a, /, b=0, *rest, c, d=0, **more): ...
def nothing(): ...


CALLS = [
    ((), {}),
    ((1,), {}),
    ((1, 2), {}),
    ((1, 2, 3), {}),
    ((1, 2, 3, 4), {}),
    ((1,), {"b": 2}),
    ((1,), {"c": 2}),
    ((1, 2), {"a": 2}),
    ((), {"a": 1, "b": 2}),
    ((1,), {"x": 2}),
    ((1, 2), {"b": 2, "c": 3}),
]


@pytest.mark.parametrize(
    "function", [plain, positional_only, named_only, starred, everything, nothing]
)
@pytest.mark.parametrize(("args", "kwargs"), CALLS)
def test_the_check_says_just_what_the_call_would_say(function, args, kwargs):
    check = make_check(function, function.__name__, bound=False)

    def said(callable_):
        try:
            callable_(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return None

    assert said(check) == said(function)


def test_a_bound_functions_first_parameter_is_not_the_callers():
    check = make_check(lambda self, x: None, "f", bound=True)

    check(1)
    with pytest.raises(TypeError, match=r"f\(\) missing 1 required positional argument: 'x'"):
        check()


@pytest.mark.parametrize("function", [nothing, lambda *, x=0: None, lambda **more: None])
def test_a_bound_function_that_cannot_take_the_task_cannot_be_called(function):
    check = make_check(function, "f", bound=True)

    with pytest.raises(TypeError, match=r"f\(\) has no parameter for the task itself"):
        check()


def test_a_bound_function_that_takes_all_in_one_takes_all():
    make_check(lambda *args: None, "f", bound=True)(1, 2, 3)


def gives_one(function):
    @functools.wraps(function)
    def with_one(*args, **kwargs):
        return function(1, *args, **kwargs)

    return with_one


def test_callers_need_not_give_what_a_decorator_gives():
    make_check(gives_one(plain), "plain", bound=False)(2)
    make_check(gives_one(plain), "plain", bound=True)(2)


def test_a_cache_takes_what_it_wraps():
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        make_check(functools.lru_cache(plain), "plain", bound=False)()


def test_what_cannot_be_inspected_is_not_checked():
    assert make_check(dict.fromkeys, "f", bound=False) is None or callable(
        make_check(dict.fromkeys, "f", bound=False)
    )
    assert make_check(max, "max", bound=False) is None


# ------------------------------------------------------------------------------------- the text


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "()"),
        ((3,), {}, "(3)"),
        ((3,), {"lr": 0.1}, "(3, lr=0.1)"),
        (("a.csv", None, True), {}, "('a.csv', None, True)"),
        (([1, 2], (3,), {4}, {"a": 1}), {}, "([1, 2], (3,), {4}, {'a': 1})"),
        ((list(range(100)),), {}, "([0, 1, 2, 3, …])"),
        (([[1, 2], {}],), {}, "([[…], {}])"),
        ((Decimal("1.5"), PurePosixPath("/a")), {}, "(1.5, PurePosixPath('/a'))"),
        ((len, int), {}, "(len, int)"),
        ((object(),), {}, "(<object>)"),
    ],
)
@pytest.mark.parametrize("small", [False, True])
def test_arguments_are_shown_short(args, kwargs, text, small):
    assert summarize(args, kwargs, small) == text


def test_numbers_that_take_long_to_write_are_not_written():
    assert summarize((2**200,), {}) == "(<int of 201 bits>)"


def test_arrays_are_shown_by_their_shape():
    numpy = pytest.importorskip("numpy")

    assert summarize((numpy.zeros((3, 4)), numpy.float64(2.5)), {}) == "(<ndarray 3×4>, 2.5)"


def test_strange_objects_do_no_harm():
    class Strange:
        def __repr__(self):
            raise RuntimeError("no repr")

        def __getattr__(self, name):
            raise RuntimeError("no attributes")

        __hash__ = None

    assert summarize((Strange(),), {"x": [Strange()]}).startswith("(")


def test_much_is_shown_as_quickly_as_little():
    began = time.perf_counter()

    summarize((list(range(10**6)), "x" * 10**7, {n: n for n in range(10**5)}, 10**10**6), {})

    assert time.perf_counter() - began < 2.0  # nearly all of it to make them


@given(args=st.lists(values, max_size=8), kwargs=st.dictionaries(st.text(), values, max_size=4))
def test_the_text_is_never_long(args, kwargs):
    text = summarize(tuple(args), kwargs)

    assert len(text) <= SUMMARY
    assert text.startswith("(")
    assert text.endswith(")")


# ---------------------------------------------------------------------------------------- retry


def merged(function, old, args, kwargs):
    return merge_for_retry(inspect.signature(function), old, args, kwargs)


def test_without_new_arguments_all_stays():
    assert merged(plain, ((1,), {"b": 2}), None, None) == ((1,), {"b": 2})


def test_what_stands_in_star_args_keeps_its_place():
    old = ((1, 2, 3), {})

    assert merged(starred, old, None, {"b": 5}) == ((1, 2, 3), {"b": 5})


def test_a_name_given_anew_pushes_the_old_positions_into_names():
    assert merged(plain, ((1, 2, 3), {}), None, {"b": 9}) == ((1,), {"b": 9, "c": 3})


def test_positional_only_parameters_are_never_named():
    old = ((1, 2), {"c": 3})

    assert merged(positional_only, old, (7,), None) == ((7,), {"c": 3})
    assert merged(positional_only, old, None, {"c": 4}) == ((1, 2), {"c": 4})
    assert merged(positional_only, old, (7, 8, 9), None) == ((7, 8, 9), {})


def test_without_a_signature_nothing_clashes():
    assert merge_for_retry(None, ((1,), {"b": 2}), (5,), None) == ((5,), {"b": 2})
