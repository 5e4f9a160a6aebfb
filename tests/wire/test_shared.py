"""A shared value arrives as itself, whatever it is and wherever it stands among arguments."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy
import pandas
import pytest

from nbtasks.exceptions import EncodeError
from nbtasks.wire.payloads import dumps_arguments, loads
from nbtasks.wire.segments import Segments, there
from nbtasks.wire.shared import Shared

ARRAY = numpy.arange(100_000.0)


@pytest.fixture
def segments(short_path: Path) -> Segments:
    return Segments(short_path / "segments")


def travelled(value, segments):
    body, frames = dumps_arguments((value,), {}, keep=segments.keep)
    [arrived], _ = loads(body, frames)
    return arrived


@pytest.mark.parametrize("value", [ARRAY, 5, "text", [1, "é" * 500_000], {"a": ARRAY, "b": None}])
def test_value_arrives_as_it_was_shared(segments, value):
    arrived = travelled(Shared(value, segments), segments)

    numpy.testing.assert_equal(arrived, value)


def test_later_changes_are_not_seen(segments):
    array = ARRAY.copy()
    shared = Shared(array, segments)

    array[0] = -1.0

    assert travelled(shared, segments)[0] == 0.0


def test_receiver_may_write_and_nobody_else_sees_it(segments):
    shared = Shared(ARRAY, segments)
    first, second = travelled(shared, segments), travelled(shared, segments)

    first += 1

    assert (second == ARRAY).all()
    assert (travelled(shared, segments) == ARRAY).all()


def test_frame_inside_of_other_arguments(segments):
    frame = pandas.DataFrame({"a": ARRAY, "b": ARRAY * 2})

    arrived = travelled({"x": [Shared(frame, segments)]}, segments)

    pandas.testing.assert_frame_equal(arrived["x"][0], frame)


def test_memory_is_written_once(segments, short_path):
    shared = Shared(ARRAY, segments)

    held = [dumps_arguments((shared, n), {}, keep=segments.keep) for n in range(20)]

    folder = short_path / "segments"
    assert len(held) == 20
    assert len({(folder / name).stat().st_ino for name in there(folder)}) == 1


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_others_may_pickle_it_too(segments, protocol):
    arrived = pickle.loads(pickle.dumps(Shared(ARRAY, segments), protocol))

    arrived += 1
    assert (arrived == ARRAY + 1).all()


def test_what_cannot_be_pickled_is_named(segments):
    with pytest.raises(EncodeError, match="generator"):
        Shared((n for n in range(3)), segments)


def test_it_says_what_it_is(segments):
    assert repr(Shared(ARRAY, segments)).startswith("<Shared ndarray, 800,")
