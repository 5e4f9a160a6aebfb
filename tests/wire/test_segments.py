"""Large pieces of values lie in files, are written once, and never change under anybody."""

from __future__ import annotations

import errno
import gc
import io
import mmap
import os
import resource
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtasks.exceptions import DecodeError, EncodeError
from nbtasks.wire import segments as segments_module
from nbtasks.wire.connection import Settings, write_settings
from nbtasks.wire.payloads import INLINE_LIMIT, Buffer, dumps, loads
from nbtasks.wire.segments import LARGE, Segments, name_in, opened
from tests.conftest import short_directory

REFERENCE = 32


@pytest.fixture
def folder(short_path: Path) -> Path:
    return short_path / "segments"


@pytest.fixture
def segments(folder: Path) -> Segments:
    return Segments(folder)


def piece(size: int = LARGE, seed: int = 1) -> bytearray:
    return bytearray(numpy.random.default_rng(seed).bytes(size))


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []


def links(folder: Path) -> list[int]:
    return [path.stat().st_nlink for path in files(folder)]


# ----------------------------------------------------------------------------------- there and back


def test_large_piece_comes_back_from_its_file(segments, folder):
    data = piece()

    frame = segments.keep(memoryview(data))

    assert len(frame) == REFERENCE
    assert [path.name for path in files(folder)] == [name_in(frame)]
    assert bytes(opened(frame)) == data
    assert segments_module.length(frame) == LARGE


def test_small_piece_is_copied(segments, folder):
    data = piece(LARGE - 1)

    frame = segments.keep(memoryview(data))

    assert frame == data
    assert opened(frame) is frame
    assert segments_module.length(frame) == LARGE - 1
    assert files(folder) == []


def test_what_becomes_of_the_array_afterwards_does_not_matter(segments):
    data = piece()
    before = bytes(data)

    frame = segments.keep(memoryview(data))
    data[0] ^= 1

    assert bytes(opened(frame)) == before


def test_receivers_do_not_see_what_one_of_them_writes(segments, folder):
    frame = segments.keep(memoryview(piece()))
    first, second = opened(frame), opened(frame)

    first[:4] = b"mine"

    assert bytes(second[:4]) == bytes(piece()[:4])
    assert files(folder)[0].read_bytes() == piece()


def test_mapped_piece_outlives_its_file(segments, folder):
    view = opened(segments.keep(memoryview(piece())))

    segments_module.remove(folder, segments_module.there(folder))

    assert files(folder) == []
    assert bytes(view) == piece()


@pytest.mark.parametrize(
    "value", [numpy.arange(400_000.0), b"x" * LARGE, "é" * LARGE, list(range(600_000))], ids=type
)
def test_values_of_all_kinds_travel_by_file(segments, folder, value):
    body, buffers = dumps(value, keep=segments.keep)

    assert [len(buffer) for buffer in buffers] == [REFERENCE]
    assert len(files(folder)) == 1
    back = loads(body, buffers)
    assert type(back) is type(value)
    assert (back == value).all() if isinstance(value, numpy.ndarray) else back == value


@pytest.mark.parametrize("serializer", ["json", "msgpack"])
def test_other_serializers_use_files_too(segments, serializer):
    body, buffers = dumps("é" * LARGE, serializer, keep=segments.keep)

    assert [len(buffer) for buffer in buffers] == [REFERENCE]
    assert loads(body, buffers) == "é" * LARGE


def test_compressed_value_lies_in_a_file_when_it_is_still_large(segments, folder):
    body, buffers = dumps(bytes(piece(2 * LARGE)), compression="gzip", keep=segments.keep)

    assert len(files(folder)) == 1
    assert loads(body, buffers) == piece(2 * LARGE)


def test_array_is_used_where_it_is_mapped_and_can_be_written_to(segments):
    array = numpy.arange(400_000.0)

    back = loads(*dumps(array, keep=segments.keep))

    base: Any = back
    while isinstance(base, numpy.ndarray):
        base = base.base
    assert isinstance(getattr(base, "obj", base), mmap.mmap)
    back += 1
    assert back.sum() == array.sum() + 400_000


def test_read_only_array_stays_read_only(segments):
    array = numpy.arange(400_000.0)
    array.flags.writeable = False

    assert not loads(*dumps(array, keep=segments.keep)).flags.writeable


def test_nothing_is_written_for_a_value_that_cannot_be_sent(segments, folder):
    with pytest.raises(EncodeError):
        dumps((numpy.arange(400_000.0), (n for n in [])), keep=segments.keep)

    assert files(folder) == []


# --------------------------------------------------------------------------------------------- once


def test_same_bytes_are_written_once(segments, folder):
    data = piece()

    frames = [segments.keep(memoryview(data)) for _ in range(50)]

    assert len({name_in(frame) for frame in frames}) == 50
    assert links(folder) == [50] * 50
    assert segments_module.size(folder) == LARGE
    assert all(bytes(opened(frame)) == data for frame in frames)


def test_equal_arrays_share_a_file(segments, folder):
    for _ in range(2):
        segments.keep(memoryview(piece()))

    assert links(folder) == [2, 2]


def test_pieces_that_are_sent_in_turn_are_written_once_though_they_look_the_same(segments, folder):
    pieces = [bytearray(LARGE) for _ in range(3)]
    for place, data in enumerate(pieces):
        data[place + 1] = 1

    for _ in range(10):
        frames = [segments.keep(memoryview(data)) for data in pieces]

    assert links(folder) == [10] * 30
    assert [bytes(opened(frame)) for frame in frames] == pieces
    assert segments_module.size(folder) == 3 * LARGE


def test_whole_numbers_do_not_look_the_same(segments, monkeypatch):
    compared = []
    monkeypatch.setattr(segments_module, "_is_same", lambda *_: compared.append(1))

    for array in (numpy.zeros(1 << 17), numpy.arange(1 << 17, dtype=float), numpy.arange(1 << 17)):
        segments.keep(memoryview(array).cast("B"))

    assert not compared


@given(place=st.integers(0, 2 * LARGE + 4), bit=st.integers(0, 7))
def test_change_of_any_bit_is_noticed(place, bit):
    with short_directory() as folder:
        segments, data = Segments(folder), piece(2 * LARGE + 5)
        first = segments.keep(memoryview(data))
        before = bytes(data)

        data[place] ^= 1 << bit
        second = segments.keep(memoryview(data))

        assert links(folder) == [1, 1]
        assert (bytes(opened(first)), bytes(opened(second))) == (before, data)


def test_longer_piece_with_the_same_beginning_is_another(segments, folder):
    data = bytes(2 * LARGE)

    segments.keep(memoryview(data)[:LARGE])
    segments.keep(memoryview(data))

    assert links(folder) == [1, 1]


def test_bytes_whose_file_was_freed_are_written_anew(segments, folder):
    data = piece()
    segments.keep(memoryview(data))
    segments_module.remove(folder, segments_module.there(folder))

    frame = segments.keep(memoryview(data))

    assert bytes(opened(frame)) == data


def test_file_that_somebody_has_cut_is_not_used_again(segments, folder):
    data = piece()
    segments.keep(memoryview(data))
    os.truncate(files(folder)[0], LARGE // 2)

    frame = segments.keep(memoryview(data))

    assert bytes(opened(frame)) == data


def test_file_system_without_links_gets_a_file_each(segments, folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    frames = [segments.keep(memoryview(piece())) for _ in range(2)]

    assert links(folder) == [1, 1]
    assert all(bytes(opened(frame)) == piece() for frame in frames)


def test_threads_may_send_at_the_same_time(segments, monkeypatch):
    monkeypatch.setattr(segments_module, "REMEMBERED", 2)
    pieces = [piece(seed=seed) for seed in range(4)]

    def send(place: int) -> bool:
        data = pieces[place % 4]
        return bytes(opened(segments.keep(memoryview(data)))) == data

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(send, range(400)))


def test_memory_of_what_was_written_is_bounded(segments, monkeypatch):
    monkeypatch.setattr(segments_module, "REMEMBERED", 3)

    for seed in range(5):
        segments.keep(memoryview(piece(seed=seed)))

    assert len(segments._known) == 3


# ------------------------------------------------------------------------------------ when it fails


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failed_or_interrupted_write_leaves_no_file(segments, folder, monkeypatch, error):
    class Failing(io.FileIO):
        def write(self, _: Any) -> int:
            raise error

    monkeypatch.setattr(
        segments_module, "open", lambda fd, *_, **__: Failing(fd, "wb"), raising=False
    )

    if isinstance(error, OSError):
        assert segments.keep(memoryview(piece())) == piece()
    else:
        with pytest.raises(KeyboardInterrupt):
            segments.keep(memoryview(piece()))

    assert files(folder) == []


@pytest.mark.parametrize("text", ["", "x" * (LARGE + INLINE_LIMIT)])
def test_interrupt_between_two_pieces_leaves_no_file(segments, folder, text):
    def interrupted(view: memoryview) -> Buffer:
        if len(files(folder)) == (2 if text else 1):
            raise KeyboardInterrupt
        return segments.keep(view)

    with pytest.raises(KeyboardInterrupt):
        dumps([numpy.zeros(LARGE), numpy.ones(LARGE), text], keep=interrupted)

    assert files(folder) == []


def test_place_that_cannot_be_used_does_not_matter(folder):
    folder.write_text("somebody's notes")

    frame = Segments(folder).keep(memoryview(piece()))

    assert frame == piece()
    assert folder.read_text() == "somebody's notes"


def test_link_that_leads_elsewhere_is_not_followed(folder, short_path):
    elsewhere = short_path / "elsewhere"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)

    frame = Segments(folder).keep(memoryview(piece()))

    assert frame == piece()
    assert files(elsewhere) == []


def test_piece_that_is_gone_says_so(segments, folder):
    frame = segments.keep(memoryview(piece()))
    segments_module.remove(folder, segments_module.there(folder))

    with pytest.raises(DecodeError, match=r"gone.*result_expires.*Send the task again"):
        opened(frame)


def test_file_that_is_merely_one_too_many_is_not_called_damaged(segments, monkeypatch):
    frame = segments.keep(memoryview(piece()))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        with pytest.raises(DecodeError, match="unharmed"):
            opened(frame)

    assert bytes(opened(frame)) == piece()


def test_damaged_file_says_so(segments, folder):
    frame = segments.keep(memoryview(piece()))
    os.truncate(files(folder)[0], 17)

    with pytest.raises(DecodeError, match=r"has not the 262144 bytes.*damaged"):
        opened(frame)


def put_a_link(path: Path) -> None:
    path.with_name("elsewhere").write_bytes(piece())
    path.symlink_to("elsewhere")


def put_a_folder(path: Path) -> None:
    path.mkdir()


def put_an_empty_file(path: Path) -> None:
    path.touch()


def put_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_a_file_of_another_user(path: Path) -> None:
    path.write_bytes(piece())
    os.chown(path, 54_321, 54_321)


@pytest.mark.parametrize(
    "put",
    [
        *(put_a_link, put_a_folder, put_an_empty_file, put_a_pipe),
        pytest.param(
            put_a_file_of_another_user,
            marks=pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away"),
        ),
    ],
)
def test_what_others_have_put_in_its_place_is_no_value(segments, folder, put):
    frame = segments.keep(memoryview(piece()))
    [path] = files(folder)
    path.unlink()
    put(path)

    with pytest.raises(DecodeError, match="cannot be read from"):
        opened(frame)


@given(st.integers(0, 2**64 - 1), st.binary(min_size=16, max_size=16))
def test_reference_to_what_was_never_written_is_a_decode_error(size, name):
    with short_directory() as place:
        segments = Segments(place / "segments")
        frame = bytes(segments.keep(memoryview(piece())))
        for forged in (frame[:8] + size.to_bytes(8, "big") + frame[16:], frame[:16] + name):
            with pytest.raises(DecodeError):
                opened(forged)


def test_reference_is_read_as_stores_of_version_3_have_it(segments, folder):
    """What lies in stores must be understood by every later version."""
    folder.mkdir()
    (folder / ("ab" * 16)).write_bytes(piece())

    assert opened(b"\0segment" + LARGE.to_bytes(8, "big") + b"\xab" * 16) == piece()


@pytest.mark.parametrize("frame", [b"", b"\0segment", b"\0segment" * 5, b"x" * REFERENCE])
def test_other_frames_are_no_references(frame):
    assert name_in(frame) is None
    assert opened(frame) is frame


# ---------------------------------------------------------------------------------------- around it


def test_files_are_ours_alone_whatever_the_umask(segments, folder):
    before = os.umask(0)
    try:
        segments.keep(memoryview(piece()))
    finally:
        os.umask(before)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(files(folder)[0].stat().st_mode) == 0o600


def test_descriptors_do_not_grow_with_pieces_in_use(segments, monkeypatch):
    monkeypatch.setattr(segments_module, "MOST_MAPPED", 5)
    frame = segments.keep(memoryview(piece()))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12, limits[1]))
    try:
        held = [opened(frame) for _ in range(40)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    assert all(bytes(view) == piece() for view in held)


def test_size_counts_each_file_once(segments, folder):
    for seed in (1, 1, 2):
        segments.keep(memoryview(piece(seed=seed)))

    assert segments_module.size(folder) == 2 * LARGE


def test_only_files_of_ours_are_seen(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("somebody's")
    (folder / ("a" * 32)).write_bytes(b"")

    assert segments_module.there(folder) == {"a" * 32}


def test_cluster_tells_where(short_path):
    data = short_path / "data"
    write_settings(short_path, Settings(data=str(data), workers=1))

    assert segments_module.of_cluster(short_path)._folder == data / "segments"


# ------------------------------------------------------------------------------------- held pieces


def test_held_piece_is_written_once_and_never_compared(segments, folder, monkeypatch):
    monkeypatch.setattr(segments_module, "_is_same", lambda *_: pytest.fail("compared"))
    held = segments.hold(memoryview(piece()))

    frames = [segments.keep(memoryview(held)) for _ in range(3)]

    assert len({path.stat().st_ino for path in files(folder)}) == 1
    assert len({name_in(frame) for frame in frames}) == 3
    assert all(bytes(opened(frame)) == piece() for frame in frames)


def test_reference_costs_what_was_written_for_it(segments):
    held = segments.hold(memoryview(piece(seed=2)))
    frames = [segments.keep(memoryview(data)) for data in (piece(), piece(), held, b"small")]

    assert [segments_module.cost(frame) for frame in frames] == [LARGE, 0, 0, len(b"small")]


def test_held_piece_outlives_its_own_name(segments, folder):
    held = segments.hold(memoryview(piece()))
    segments_module.remove(folder, segments_module.there(folder))

    frames = [segments.keep(memoryview(held)) for _ in range(3)]

    assert all(bytes(opened(frame)) == piece() for frame in frames)
    assert len({path.stat().st_ino for path in files(folder)}) == 1


def test_name_of_a_held_piece_goes_with_it(segments, folder):
    held = segments.hold(memoryview(piece()))
    frame = segments.keep(memoryview(held))
    assert len(files(folder)) == 2

    del held
    gc.collect()

    assert [path.name for path in files(folder)] == [name_in(frame)]


def test_small_piece_and_one_without_a_place_are_held_as_bytes(folder, segments):
    assert segments.hold(memoryview(b"small")) == b"small"
    folder.write_text("in the way")
    assert segments.hold(memoryview(piece())) == piece()
