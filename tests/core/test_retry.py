"""How long to wait: back-off, publish retry, rates."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtasks.core.retry import (
    backoff,
    exception_classes,
    merge_policy,
    parse_rate,
    publish_waits,
)


def waits(factor, maximum=600, count=5):
    return [backoff(retries, factor, maximum, None) for retries in range(count)]


def test_backoff_doubles_from_one_second():
    assert waits(True) == [1, 2, 4, 8, 16]


def test_a_number_is_the_first_wait():
    assert waits(3) == [3, 6, 12, 24, 48]


@pytest.mark.parametrize(("factor", "first"), [(2.7, 2), (0.25, 1), (1.0, 1)])
def test_the_first_wait_is_whole_seconds_and_at_least_one(factor, first):
    assert waits(factor, count=1) == [first]


def test_waits_stop_growing_at_the_ceiling():
    assert waits(True, maximum=5.9) == [1, 2, 4, 5, 5]


def test_a_great_many_retries_cost_no_great_numbers():
    assert backoff(10**9, True, 600, None) == 600


def test_jitter_draws_from_nothing_to_the_whole_wait():
    asked = []

    def highest(count):
        asked.append(count)
        return count - 1

    assert backoff(3, True, 600, highest) == 8
    assert asked == [9]


@given(
    retries=st.integers(0, 100),
    factor=st.floats(0, 1e6),
    maximum=st.integers(0, 10**6),
    seed=st.integers(),
)
def test_a_wait_is_never_below_zero_and_never_above_its_bounds(retries, factor, maximum, seed):
    whole = backoff(retries, factor, maximum, None)

    assert 0 <= backoff(retries, factor, maximum, random.Random(seed).randrange) <= whole
    assert whole <= maximum


@pytest.mark.parametrize(
    ("retries", "factor", "maximum"),
    [(0, "soon", 600), (0, 1, float("nan")), (0, 1, -1), (-1, 1, 600), (0, None, 600)],
)
def test_nonsense_is_refused_with_its_name(retries, factor, maximum):
    with pytest.raises(ValueError, match=r"retry_backoff|retries="):
        backoff(retries, factor, maximum, None)


# ------------------------------------------------------------------------------- publish retry


def test_publishing_is_retried_three_times_by_default():
    assert list(publish_waits()) == [0.0, 0.2, 0.4]


def test_waits_between_publishings_are_capped():
    waits = publish_waits({"max_retries": 5, "interval_start": 0.5, "interval_step": 0.3})

    assert list(waits) == pytest.approx([0.5, 0.8, 1.0, 1.0, 1.0])


def test_no_limit_means_for_ever():
    waits = publish_waits({"max_retries": None, "interval_step": 10})

    assert list(itertools.islice(waits, 1000))[-1] == 1.0


def test_policies_are_laid_over_each_other():
    merged = merge_policy({"max_retries": 9, "interval_max": 5}, {"max_retries": 1}, None)

    assert (merged["max_retries"], merged["interval_max"], merged["interval_start"]) == (1, 5, 0)


@pytest.mark.parametrize("policy", [{"max_retry": 3}, {"max_retries": -1}, {"interval_step": "x"}])
def test_a_policy_that_cannot_be_meant_is_refused(policy):
    with pytest.raises(ValueError, match="retry_policy"):
        publish_waits(policy)


# --------------------------------------------------------------------------------------- rates


@pytest.mark.parametrize(
    ("rate", "interval"),
    [
        (10, 0.1),
        ("10", 0.1),
        ("10/s", 0.1),
        ("10/m", 6.0),
        ("10/h", 360.0),
        ("0.5/s", 2.0),
        (None, 0.0),
        (0, 0.0),
        ("0/m", 0.0),
        ("", 0.0),
    ],
)
def test_a_rate_becomes_seconds_between_starts(rate, interval):
    assert parse_rate(rate) == pytest.approx(interval)


@pytest.mark.parametrize("rate", ["fast", "10/day", -1, "/m", float("inf"), "1/m/s", 1e-300])
def test_a_rate_that_is_none_is_refused(rate):
    with pytest.raises(ValueError, match="rate_limit="):
        parse_rate(rate)


# ------------------------------------------------------------------------- classes of exceptions


@pytest.mark.parametrize(
    ("value", "classes"),
    [
        (KeyError, (KeyError,)),
        ((KeyError, OSError), (KeyError, OSError)),
        ([KeyError], (KeyError,)),
        (False, ()),
        (None, ()),
        ((), ()),
    ],
)
def test_one_class_several_or_none_are_understood(value, classes):
    assert exception_classes("autoretry_for", value) == classes


@pytest.mark.parametrize("value", ["KeyError", (KeyError, 3), (KeyError(),), True])
def test_what_is_no_class_of_exceptions_is_refused(value):
    with pytest.raises(TypeError, match="autoretry_for="):
        exception_classes("autoretry_for", value)
