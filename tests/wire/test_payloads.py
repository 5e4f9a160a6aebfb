from __future__ import annotations

import base64
import json
import math
import pickle
import subprocess
import sys
import threading
import types
import zlib
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtasks.core.messages import INLINE_LIMIT
from nbtasks.exceptions import (
    ClusterError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ForkedError,
    OperationalError,
    SerializerNotInstalled,
    UnpickleableExceptionWrapper,
)
from nbtasks.wire import codecs, payloads, pickling
from nbtasks.wire.payloads import (
    dumps,
    dumps_arguments,
    dumps_exception,
    join,
    loads,
    register,
    register_compression,
    unregister,
)

SERIALIZERS = ["pickle", "json", "msgpack", "yaml"]
COMPRESSIONS = [
    *(None, "gzip", "zlib", "bzip2", "bzip", "lzma", "xz"),
    *("zstd", "zstandard", "brotli"),
]


def round_trip(value: Any, serializer: str = "pickle", compression: str | None = None) -> Any:
    return loads(*dumps(value, serializer, compression))


def through_wire(payload: payloads.Payload) -> Any:
    """Load a payload as a receiver has it: in memory that he cannot write to."""
    return loads(bytes(payload.body), [bytes(buffer) for buffer in payload.buffers])


# -------------------------------------------------------------------------------- what comes back

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])
atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts
    | st.binary(max_size=40)
    | st.datetimes(timezones=zones)
    | st.dates()
    | st.times()
    | st.decimals(allow_nan=False)
    | st.uuids()
)
plain_data = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=10,
)


@given(plain_data, st.sampled_from(SERIALIZERS), st.sampled_from(COMPRESSIONS))
def test_plain_data_comes_back_from_every_serializer_and_compression(
    value, serializer, compression
):
    assert round_trip(value, serializer, compression) == value


@given(plain_data, st.sampled_from(SERIALIZERS))
def test_types_come_back_as_they_were(value, serializer):
    back = round_trip(value, serializer)

    assert type(back) is type(value)
    assert repr(back) == repr(value)


@given(st.binary(max_size=200), st.sampled_from(COMPRESSIONS))
def test_raw_bytes_come_back_as_they_were(value, compression):
    assert round_trip(value, "raw", compression) == value


@given(
    st.lists(atoms, max_size=4).map(tuple),
    st.dictionaries(texts, atoms, max_size=3),
    st.sampled_from(COMPRESSIONS),
)
def test_arguments_come_back_as_tuple_and_dict(args, kwargs, compression):
    payload = dumps_arguments(args, kwargs, "pickle", compression)

    assert through_wire(payload) == (args, kwargs)


@given(st.lists(st.integers(0, 60_000), max_size=5), st.integers(0, 70_000))
def test_arrays_come_back_whatever_their_sizes(sizes, length):
    value = {"arrays": [numpy.arange(size, dtype="u1") for size in sizes], "text": "x" * length}

    back = through_wire(dumps(value))

    assert back["text"] == value["text"]
    assert all(map(numpy.array_equal, back["arrays"], value["arrays"]))


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_tuples_become_lists_outside_of_pickle(serializer):
    assert round_trip((1, (2, 3)), serializer) == [1, [2, 3]]


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_object_that_says_what_it_is_in_json_is_taken_at_its_word(serializer):
    class Point:
        def __json__(self) -> dict[str, int]:
            return {"x": 1}

    assert round_trip([Point()], serializer) == [{"x": 1}]


def test_json_turns_keys_into_text():
    assert round_trip({1: "one"}, "json") == {"1": "one"}


# ------------------------------------------------------------------------------- bodies, buffers


def test_plain_pickle_has_no_header():
    assert dumps({"a": 1}).body[0] == 0x80
    assert dumps_arguments((1, "a"), {}).body[0] == 0x80


def test_body_of_limit_size_stays_inline():
    overhead = len(dumps("x" * 1000).body) - 1000

    at_limit = dumps("x" * (INLINE_LIMIT - overhead))
    above = dumps("x" * (INLINE_LIMIT - overhead + 1))

    assert (len(at_limit.body), at_limit.buffers) == (INLINE_LIMIT, [])
    assert above.body == b""
    assert len(above.buffers) == 1


@pytest.mark.parametrize("make", [dumps, lambda value: dumps_arguments((value,), {})])
def test_large_body_is_the_first_buffer(make):
    payload = make("x" * 100_000)

    assert payload.body == b""
    assert len(payload.buffers) == 1
    assert "x" * 100_000 in str(loads(*payload))


def test_large_array_travels_beside_the_body_and_small_one_inside():
    payload = dumps([numpy.zeros(100_000), numpy.zeros(10)])

    assert [len(buffer) for buffer in payload.buffers] == [800_000]
    assert len(payload.body) < 1_000


def test_array_is_sent_as_it_was_at_the_call():
    array = numpy.zeros(100_000)

    payload = dumps(array)
    array += 1

    assert loads(*payload).sum() == 0


def test_array_is_not_copied_when_the_caller_promises_to_send_it_first():
    array = numpy.zeros(100_000)

    payload = dumps(array, keep=lambda view: view)
    array += 1

    assert loads(*payload).sum() == 100_000


def test_array_can_be_written_to_after_the_journey():
    back = through_wire(dumps(numpy.zeros(100_000)))

    back += 1

    assert back.sum() == 100_000


def test_writable_memory_is_used_without_a_copy():
    payload = dumps(numpy.zeros(100_000))
    memory = bytearray(payload.buffers[0])

    back = loads(payload.body, [memory])
    memory[:8] = numpy.ones(1).tobytes()

    assert back[0] == 1


def test_read_only_array_stays_read_only():
    array = numpy.zeros(100_000)
    array.flags.writeable = False

    assert not through_wire(dumps(array)).flags.writeable


def test_compressed_array_travels_in_one_piece():
    payload = dumps(numpy.zeros(100_000), "pickle", "gzip")

    assert payload.buffers == []
    assert loads(*payload).shape == (100_000,)


def test_payload_in_one_piece_is_read_like_any_other():
    value = {"array": numpy.arange(100_000), "text": "x"}

    joined = join(*dumps(value))

    assert isinstance(joined, bytes)
    assert numpy.array_equal(loads(joined)["array"], value["array"])
    assert loads(join(*dumps(5))) == 5


def test_body_may_be_a_view_of_memory():
    for payload in (dumps([1, 2]), dumps([1, 2], "json", "gzip")):
        assert loads(memoryview(payload.body)) == [1, 2]


# ---------------------------------------------------------------------------------- not readable


def test_serializer_that_nobody_knows_is_refused_by_name():
    with pytest.raises(SerializerNotInstalled, match=r"no serializer 'jsn'.*json, msgpack"):
        dumps(1, "jsn")


def test_compression_that_nobody_knows_is_refused_by_name():
    with pytest.raises(SerializerNotInstalled, match=r"no compression 'rar'.*brotli, bzip"):
        dumps_arguments((1,), {}, "pickle", "rar")


def test_function_takes_along_what_bodies_of_its_classes_read():
    namespace: dict[str, Any] = {"limit": 3, "lock": threading.Lock(), "wide": 9}
    lines = ("class Box:", "    most: int = limit", "    lock = 5", "    shut = lock")
    lines += ("    if most > 3:", "        wide = 1", "    width = wide")
    text = "\n    ".join([*lines, "return Box.most, Box.shut, Box.width"])
    exec(f"def box():\n    {text}", {**namespace, "__name__": "__main__"}, namespace)

    box = round_trip(namespace["box"])

    assert box() == (3, 5, 9)


def test_code_keeps_the_name_of_its_file():
    """Tracebacks find the lines of a notebook's cells by it; some cloudpickles leave it out."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile("def outer():\n    return lambda: 1\n", "a cell", "exec"), names)

    outer = round_trip(names["outer"])

    assert {outer.__code__.co_filename, outer().__code__.co_filename} == {"a cell"}


@pytest.mark.parametrize(
    "body", [b"", b"\x80", b"\x80\x05garbage", b"hello", b"\x01", b"\x01\xff\xff"]
)
def test_damaged_bytes_are_a_decode_error(body):
    with pytest.raises((DecodeError, ContentDisallowed)):
        loads(body)


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_but_decode_errors(garbage):
    for body in (b"\x01" + garbage, b"\x02" + garbage):
        try:
            loads(body)
        except (DecodeError, ContentDisallowed):
            pass


@pytest.mark.parametrize("serializer", ["json", "msgpack", "yaml"])
def test_text_that_is_cut_off_is_a_decode_error(serializer):
    body = dumps({"key": ["value", ": [\n"]}, serializer).body

    with pytest.raises(DecodeError, match=serializer):
        loads(body[:-3])


def test_compressed_bytes_that_are_cut_off_are_a_decode_error():
    with pytest.raises(DecodeError, match="decompressed"):
        loads(dumps("x" * 100, "json", "gzip").body[:-5])


def test_kind_of_bytes_that_nobody_knows_is_disallowed():
    register("mine", str, int, "application/x-mine")
    body = dumps(5, "mine").body
    unregister("mine")

    with pytest.raises(ContentDisallowed, match="application/x-mine"):
        loads(body)


@pytest.fixture
def only_json():
    payloads.accept(["json"])
    yield
    payloads.accept(None)


@pytest.mark.usefixtures("only_json")
def test_serializer_that_is_not_accepted_is_disallowed():
    assert round_trip([1], "json") == [1]
    for payload in (dumps([1]), dumps([1], "pickle", "gzip"), dumps([1], "yaml")):
        with pytest.raises(ContentDisallowed, match="accept_content"):
            loads(*payload)


# -------------------------------------------------------------------------------- one's own codecs


@pytest.fixture
def registered():
    register(
        "reversed",
        lambda value: json.dumps(value)[::-1],
        lambda text: json.loads(text[::-1]),
        "application/x-reversed",
    )
    register_compression(
        lambda data: data[::-1], lambda data: data[::-1], "application/x-mirror", ["mirror"]
    )
    yield
    unregister("reversed")


@pytest.mark.usefixtures("registered")
def test_registered_serializer_and_compression_are_used():
    payload = dumps([1, "é"], "reversed", "mirror")

    assert loads(*payload) == [1, "é"]
    assert b"application/x-reversed" in payload.body


def test_serializer_of_bytes_gets_bytes():
    register(
        "doubled", lambda value: value * 2, lambda data: data[: len(data) // 2], "x/d", "binary"
    )

    assert round_trip(b"ab", "doubled") == b"ab"
    unregister("doubled")


def test_missing_package_is_named_with_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "msgpack", None)
    codecs.package.cache_clear()

    with pytest.raises(SerializerNotInstalled, match=r"pip install 'nbtasks\[msgpack\]'"):
        dumps(1, "msgpack")


# -------------------------------------------------------------------------------------- culprits


class Session:
    def __init__(self) -> None:
        self.name = "session"
        self.lock = threading.Lock()


def error_of(*args: Any, serializer: str = "pickle", function: Any = None, **kwargs: Any) -> str:
    with pytest.raises(EncodeError) as caught:
        dumps_arguments(args, kwargs, serializer, None, function)
    return str(caught.value)


@pytest.mark.parametrize("error", [ClusterError("x"), ForkedError(), OperationalError("x")])
def test_value_is_not_blamed_when_there_is_no_place_for_its_pieces(error):
    def refuse(_: memoryview) -> bytes:
        raise error

    with pytest.raises(type(error)) as caught:
        dumps(numpy.zeros(100_000), keep=refuse)

    assert caught.value is error


def test_unpicklable_argument_is_named():
    def fit(data, lock): ...

    text = error_of([1], threading.Lock(), function=fit)

    assert text.startswith("Argument 2 ('lock'), a _thread.lock, cannot be pickled: ")
    assert "give what is needed to make it there instead" in text


def test_unpicklable_keyword_argument_is_named():
    assert error_of(1, lock=threading.Lock()).startswith("Argument 'lock', a _thread.lock")


def test_culprit_deep_inside_is_found():
    text = error_of({"sessions": [1, "a", Session()]})

    assert "item 'sessions' → item 2 → attribute 'lock', a _thread.lock" in text


def test_culprit_among_many_is_found():
    values = list(range(5_000))
    values[4_321] = threading.Lock()

    assert "item 4321, a _thread.lock" in error_of(values)


def test_culprit_in_a_closure_is_found():
    lock = threading.Lock()

    def body():
        return lock

    assert "the variable 'lock' of the function 'body', a _thread.lock" in error_of(body)


def test_culprit_among_the_globals_of_a_function_is_found():
    namespace: dict[str, Any] = {"lock": threading.Lock(), "__name__": "__main__"}
    exec("def inner(): return lock\ndef outer(): return inner()", namespace)

    text = error_of(namespace["outer"])

    assert "the global 'inner' of the function 'outer' → the global 'lock'" in text


def test_culprit_in_a_class_of_the_notebook_is_found():
    namespace: dict[str, Any] = {"lock": threading.Lock(), "__name__": "__main__"}
    exec("class Box:\n    shared = lock", namespace)

    assert "attribute 'shared' of the class 'Box'" in error_of(namespace["Box"]())


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda: (n for n in range(3)), "Give a list of what it yields"),
        (lambda: open(sys.executable, "rb"), "Give the path"),
        (lambda: sys._getframe(), "Give its text"),
    ],
)
def test_advice_fits_the_culprit(make, advice):
    culprit = make()

    text = error_of(culprit)

    assert advice in text
    getattr(culprit, "close", lambda: None)()


def test_value_that_refers_to_itself_too_deeply_says_so():
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    text = error_of(nested)

    assert "nested too deeply" in text
    assert "Make it flatter" in text


def test_what_json_does_not_know_is_named():
    def fit(data): ...

    text = error_of({"a": [1, {2}]}, serializer="json", function=fit)

    assert text.startswith(
        "Argument 1 ('data') → item 'a' → item 1, a set, cannot be written as json"
    )
    assert "serializer='pickle'" in text


def test_raw_serializer_takes_bytes_only():
    with pytest.raises(EncodeError, match="Send bytes, or use another serializer"):
        dumps("text", "raw")


# ------------------------------------------------------------------------------------ exceptions


class TwoArguments(Exception):
    """Pickles, but cannot be loaded in the usual way."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class Plain:
    """Its repr tells where it lies in memory."""


class WithSlots(OSError):
    __slots__ = ("extra",)

    def __init__(self, extra: str) -> None:
        super().__init__(2, "not there", "file.txt")
        self.extra = extra


def travel(exception: BaseException) -> BaseException:
    back = loads(*dumps_exception(exception))
    assert isinstance(back, BaseException)
    return back


@pytest.mark.parametrize(
    "exception",
    [
        ValueError("v", 1),
        KeyError("k"),
        OSError(2, "not there", "file.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        json.JSONDecodeError("bad", "doc", 1),
        subprocess.CalledProcessError(1, ["ls"], b"out"),
    ],
)
def test_exception_arrives_as_itself(exception):
    back = travel(exception)

    assert type(back) is type(exception)
    assert back.args == exception.args
    assert str(back) == str(exception)
    assert back.__dict__ == exception.__dict__


def test_exception_whose_init_wants_other_arguments_arrives_as_itself():
    back = travel(TwoArguments(404, "gone"))

    assert type(back) is TwoArguments
    assert (str(back), back.code) == ("404: gone", 404)


@pytest.mark.parametrize("argument", [Plain(), lambda: 7], ids=["object", "function"])
def test_exception_whose_text_tells_an_address_arrives_as_itself(argument):
    back = travel(ValueError("this", argument))

    assert type(back) is ValueError
    assert type(back.args[1]) is type(argument)


def test_exception_whose_text_tells_a_set_in_another_order_arrives_as_itself():
    shrunk = {1, *range(0, 4096, 8)}
    shrunk.difference_update(range(64, 4096, 8))  # it lies in a wider table than its copies
    assert str(shrunk) != str(pickle.loads(pickle.dumps(shrunk)))

    back = travel(KeyError(shrunk))

    assert type(back) is KeyError
    assert back.args == (shrunk,)


def test_attributes_in_slots_and_of_builtin_bases_arrive():
    back = travel(WithSlots("more"))

    assert type(back) is WithSlots
    assert (back.errno, back.filename, back.extra) == (2, "file.txt", "more")


def test_cause_context_and_notes_arrive():
    try:
        try:
            try:
                raise KeyError("deep")
            except KeyError:
                raise ValueError("middle")  # noqa: B904 (its context is what is tested)
        except ValueError as error:
            raise TwoArguments(1, "top") from error
    except TwoArguments as error:
        error.add_note("a note")
        back = travel(error)

    assert back.__notes__ == ["a note"]
    assert isinstance(back.__cause__, ValueError)
    assert back.__cause__ is back.__context__
    assert back.__suppress_context__
    assert isinstance(back.__cause__.__context__, KeyError)
    assert not back.__cause__.__suppress_context__


class Reduced(Exception):
    """Pickles in its own way, without its notes."""

    def __reduce__(self):
        return Reduced, self.args


def test_notes_arrive_though_the_class_pickles_without_them():
    error = Reduced("v")
    error.add_note("a note")

    assert travel(error).__notes__ == ["a note"]


def test_chain_that_bites_its_own_tail_arrives():
    first, second = ValueError(1), ValueError(2)
    first.__context__, second.__context__ = second, first

    back = travel(first)

    assert back.__context__.__context__ is back


def test_very_long_chain_is_cut():
    last: BaseException | None = None
    for n in range(1_000):
        error = ValueError(n)
        error.__context__ = last
        last = error

    back = travel(last)

    assert back.args == (999,)


def test_group_arrives_with_its_members_and_their_causes():
    member = ValueError("v")
    member.__cause__ = KeyError("k")
    group = ExceptionGroup("all", [member, ExceptionGroup("inner", [TwoArguments(1, "x")])])
    group.add_note("noted")

    back = travel(group)

    assert isinstance(back, ExceptionGroup)
    assert (back.message, back.__notes__) == ("all", ["noted"])
    assert isinstance(back.exceptions[0].__cause__, KeyError)
    assert type(back.exceptions[1].exceptions[0]) is TwoArguments


def test_group_with_members_that_are_no_plain_exceptions_arrives():
    back = travel(BaseExceptionGroup("all", [KeyboardInterrupt(), ValueError("v")]))

    assert type(back) is BaseExceptionGroup
    assert [type(member) for member in back.exceptions] == [KeyboardInterrupt, ValueError]


def test_group_class_of_ones_own_arrives():
    class Failures(ExceptionGroup):
        def __new__(cls, errors, where):
            self = super().__new__(cls, f"in {where}", errors)
            self.where = where
            return self

    back = travel(Failures([ValueError(1)], "here"))

    assert type(back).__name__ == "Failures"
    assert back.where == "here"
    assert back.exceptions[0].args == (1,)


def test_exception_with_unpicklable_arguments_arrives_as_text():
    error = ValueError("held by", threading.Lock())
    error.add_note("a note")
    error.__cause__ = KeyError("k")

    back = travel(error)

    assert isinstance(back, UnpickleableExceptionWrapper)
    assert back.exc_cls_name == "ValueError"
    assert "held by" in str(back)
    assert "could not be carried back" in str(back)
    assert back.__notes__ == ["a note"]
    assert isinstance(back.__cause__, KeyError)


def test_exception_with_unpicklable_attribute_keeps_its_class():
    error = ValueError("v")
    error.session = Session()
    error.code = 5

    back = travel(error)

    assert type(back) is ValueError
    assert back.code == 5
    assert "its text: it cannot be pickled" in back.session


def test_exception_that_fails_at_everything_still_arrives():
    class Vicious(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

        __repr__ = __str__

        def __reduce__(self) -> Any:
            raise RuntimeError("no pickle")

    back = travel(Vicious(Vicious()))

    assert isinstance(back, BaseException)


def test_class_that_cannot_be_loaded_there_arrives_as_text():
    module = types.ModuleType("only_here")
    exec("class Odd(Exception): pass", module.__dict__)
    sys.modules["only_here"] = module
    try:
        payload = dumps_exception(module.Odd("why"))
    finally:
        del sys.modules["only_here"]

    back = loads(*payload)

    assert isinstance(back, UnpickleableExceptionWrapper)
    assert (back.exc_module, back.exc_cls_name) == ("only_here", "Odd")
    assert "why" in str(back)


# --------------------------------------------------------------------------- across real processes

SENDER = """
import functools, sys, typing
import numpy
from nbtasks.wire.payloads import *
from nbtasks.wire import codecs, payloads, pickling

class Point:
    scale = 10
    def __init__(self, x): self.x = x
    def scaled(self): return self.x * self.scale * FACTOR

class Trouble(Exception):
    def __init__(self, a, b):
        super().__init__(a)
        self.b = b

FACTOR = 3
Meters = typing.NewType("Meters", int)

@functools.lru_cache(maxsize=None)
def fib(n: Meters) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)

payload = {expression}
sys.stdout.buffer.write(join(*payload))
"""

RECEIVER = """
import sys
from nbtasks.wire.payloads import *
value = loads(sys.stdin.buffer.read())
{action}
"""


def python(program: str, data: bytes = b"") -> bytes:
    answer = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, check=False
    )
    assert answer.returncode == 0, answer.stderr.decode()
    return answer.stdout


@pytest.mark.parametrize(
    ("expression", "action", "expected"),
    [
        ("dumps_arguments((Point(2),), {})", "print(value[0][0].scaled())", "60"),
        ("dumps([Point])", "print(value[0](1).scaled())", "30"),
        ("dumps({'f': lambda x: Point(x).scaled()})", "print(value['f'](1))", "30"),
        ("dumps(fib)", "print(value(50), value.cache_info().misses)", "12586269025 51"),
        ("dumps(Meters)", "print(value(5))", "5"),
        (
            "dumps_exception(Trouble(1, 2))",
            "print(type(value).__name__, value.args, value.b)",
            "Trouble (1,) 2",
        ),
        ("dumps(numpy.arange(100000))", "value += 1; print(value[-1])", "100000"),
    ],
)
def test_what_main_defines_travels_by_value(expression, action, expected):
    sent = python(SENDER.replace("{expression}", expression))

    assert python(RECEIVER.replace("{action}", action), sent).decode().strip() == expected


CLASSES = """
import enum, functools, sys, threading, typing
from nbtasks.wire.payloads import *

class Slotted:
    __slots__ = ("__hidden", "free")
    def __init__(self): self.__hidden = 4
    def hidden(self): return self.__hidden
class Planet(enum.Enum):
    EARTH = 3, 6
    HOME = 3, 6
    MARS = 1, 3
    def __init__(self, mass, radius): self.density = mass / radius
    @functools.cached_property
    def lock(self): return threading.Lock()
Planet.MARS.lock
class Right(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3
    NONE = 0
class Outer:
    class Inner: pass
class Options(typing.TypedDict): a: int
class More(Options, total=False): b: int
Odd = typing.TypedDict("Odd", {"a b": int})
Meters = typing.NewType("Meters", int)
Given, Many = typing.ParamSpec("Given"), typing.TypeVarTuple("Many")
class Generic(typing.Generic[Given]): length: Meters

sys.stdout.buffer.write(join(*dumps({expression})))
"""

AGAIN = """
import sys
from nbtasks.wire.payloads import *
sys.stdout.buffer.write(join(*dumps(loads(sys.stdin.buffer.read()))))
"""


@pytest.mark.parametrize(
    ("expression", "action", "expected"),
    [
        (
            "Slotted()",
            "print(value.hidden(), hasattr(value, '__dict__'), type(value).free.__name__)",
            "4 False free",
        ),
        ("Planet", "print(value['HOME'], value.HOME.density)", "Planet.EARTH 0.5"),
        (
            "Right",
            "print(value['NONE'], value.BOTH, *value)",
            "Right.NONE Right.BOTH Right.READ Right.WRITE",
        ),
        ("Outer.Inner", "print(value.__qualname__)", "Outer.Inner"),
        ("More", "print(*value.__required_keys__, *value.__optional_keys__)", "a b"),
        ("Odd", "print(value.__annotations__)", "{'a b': <class 'int'>}"),
        ("[Meters, Given, Many]", "print(*{it.__module__ for it in value})", "__main__"),
        ("Generic", "print(value.__annotations__['length'])", "__main__.Meters"),
    ],
)
def test_class_of_the_notebook_arrives_as_it_is_and_can_be_sent_on(expression, action, expected):
    sent = python(CLASSES.replace("{expression}", expression))
    once = python(RECEIVER.replace("{action}", action), sent)
    twice = python(RECEIVER.replace("{action}", action), python(AGAIN, sent))

    assert once.decode().strip() == twice.decode().strip() == expected


def test_value_whose_module_is_missing_says_which_and_where(tmp_path):
    (tmp_path / "only_there.py").write_text("class Thing: pass")
    program = f"import sys; sys.path.append({str(tmp_path)!r}); import only_there\n"
    sent = python(program + SENDER.replace("{expression}", "dumps(only_there.Thing())"))

    with pytest.raises(DecodeError) as caught:
        loads(sent)

    assert "'only_there'" in str(caught.value)
    assert sys.executable in str(caught.value)
    assert "pip install only_there" in str(caught.value)


def test_class_of_this_process_is_not_overwritten_when_it_comes_back():
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Point:\n    scale = 1\n    def get(self): return self.scale", namespace)
    point_class = namespace["Point"]
    method = point_class.__dict__["get"]
    sent = join(*dumps([point_class()]))
    program = "import sys\nfrom nbtasks.wire.payloads import *\n"
    program += "value = loads(sys.stdin.buffer.read()); type(value[0]).scale = 7\n"
    program += "sys.stdout.buffer.write(join(*dumps(value)))"

    back = loads(python(program, sent))

    assert type(back[0]) is point_class
    assert point_class.scale == 1
    assert point_class.__dict__["get"] is method


# ------------------------------------------------------------------------------ former versions

#: `dumps_exception` of a group with a note and a cause, as payloads.py alone made it (b85, zlib).
FORMER = (
    "c-n=KPfNov7{=FWWeQG2y!V#&V8xxp>)1RLbMQJ!NVm|{)uc2jx`VJw{R6rA?i2b&Ogf7SLz7$H=Xsysla;&"
    "va5~M=r#w+qE@b$Sl`JgiG8c3vLA&HmWE|eXAKtIrb<+7qe?V^Nf?b!QDy&KOk}Atp#?7cddYrOCWrDY3?WF"
    "KzuHGkPno}tWfw?Oc+(HO{S@jM|5$K~y#FnG76s3<S3SxMM0OPmFsX?Elo`2!VDmi1VHvna73{8#8w#JW)Uc"
    "0LSqfi@)4H_4US+v-^bD%Q$4fky{SQHtfmDLb+@hjdu+1x9Wd%h+2c%0=73pExMpS1u{SMPGcnQ3JIVt%+yr"
    "kw%kJ!Ez0t2);Gi5YU?4PviZpx~vc5`F?65w_I"
)


def test_what_a_former_version_pickled_can_still_be_loaded():
    group = loads(zlib.decompress(base64.b85decode(FORMER)))

    (member,) = group.exceptions
    assert (str(group), repr(member)) == ("g (1 sub-exception)", "KeyError('a')")
    assert member.__notes__ == ["n"]
    assert isinstance(member.__cause__, FileNotFoundError)


def test_functions_and_classes_of_a_former_version_find_their_makers():
    makers = ("make_cached", "fill_cached", "make_alias", "set_class_state", "take_behind")

    for name in makers:
        assert getattr(payloads, f"_{name}") is getattr(pickling, name)


# -------------------------------------------------------------------------------------- digests


def test_digest_tells_apart_what_joins_to_the_same_bytes():
    assert payloads.digest([b"ab", b"c"]) != payloads.digest([b"a", b"bc"])
    assert len(payloads.digest([])) == 16


def test_atoms_of_every_kind_take_the_short_way():
    args = (1, 2.5, "a", b"b", True, None, -(2**70), math.inf)

    assert loads(*dumps_arguments(args, {"k": "v"})) == (args, {"k": "v"})


@pytest.mark.parametrize("value", [{"progress": 50, "of": "it"}, [1, None], ("a", 2.5), {}, ()])
def test_flat_containers_of_atoms_take_the_short_way_too(value, monkeypatch):
    monkeypatch.setattr(pickling, "dump", None)

    assert round_trip(value) == value


def test_what_lies_in_a_container_still_travels_by_value():
    class Local:
        pass

    for value in ([Local()], (Local(),), {"it": Local()}, {Local(): 1}, [[Local()]]):
        assert type(round_trip(value)) is type(value)


def test_subclasses_of_atoms_keep_their_class():
    class Text(str):
        pass

    args, _ = loads(*dumps_arguments((Text("x"),), {}))

    assert type(args[0]) is Text


@pytest.mark.parametrize(
    "value", [Decimal("1.50"), Fraction(1, 3), UUID(int=5), date(2020, 1, 1), time(1), {1, 2}]
)
def test_pickle_takes_the_rest(value):
    assert round_trip([value, datetime(2020, 1, 1, tzinfo=UTC)])[0] == value


# -------------------------------------------------------------------------- what codecs do wrong


def test_key_that_json_does_not_know_is_named_once():
    with pytest.raises(EncodeError) as caught:
        dumps_arguments(({(1, 2): 3},), {}, "json")

    assert str(caught.value).count("(1, 2)") == 1


@pytest.mark.parametrize("serializer", ["msgpack", "yaml"])
def test_tuples_as_keys_are_refused_where_they_would_not_come_back(serializer):
    with pytest.raises(EncodeError, match="no tuples as keys"):
        dumps({"a": [{(1, 2): 3}]}, serializer)


def test_msgpack_says_how_large_numbers_may_be():
    with pytest.raises(EncodeError, match="no integers of more than 64 bits"):
        dumps(2**80, "msgpack")


@pytest.fixture
def registering():
    yield
    codecs._serializers.pop("mine", None)
    codecs._custom.clear()


@pytest.mark.usefixtures("registering")
@pytest.mark.parametrize(
    ("encode", "encoding", "said"),
    [
        (lambda value: 5, "utf-8", "has returned int instead of text or bytes"),
        (lambda value: None, "binary", "has returned NoneType instead of bytes"),
        (repr, "binary", "has returned str instead of bytes"),
    ],
)
def test_serializer_that_gives_something_else_is_named(encode, encoding, said):
    register("mine", encode, eval, "application/x-mine", encoding)

    with pytest.raises(EncodeError, match=said):
        dumps([1], "mine")


@pytest.mark.usefixtures("registering")
def test_compression_that_fails_is_named():
    register_compression(lambda data: "text", bytes, "application/x-bad", ("bad",))

    with pytest.raises(EncodeError, match="The compression 'bad' has failed"):
        dumps([1], "pickle", "bad")
    codecs._compressions.pop("bad")
    codecs._compressions.pop("application/x-bad")


def test_what_is_no_function_or_encoding_cannot_be_registered():
    with pytest.raises(TypeError, match="encode=5, which is no function"):
        register("mine", 5, eval, "application/x-mine")
    with pytest.raises(TypeError, match="decoder=None, which is no function"):
        register_compression(bytes, None, "application/x-mine")
    with pytest.raises(ValueError, match="content_encoding='latin-99'"):
        register("mine", repr, eval, "application/x-mine", "latin-99")


class NoArgs(Exception):
    @property
    def args(self):
        raise RuntimeError("no arguments")


class NoText(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def test_exceptions_without_arguments_or_text_arrive_as_something():
    assert isinstance(loads(*dumps_exception(NoText(1))), NoText)
    assert isinstance(loads(*dumps_exception(NoArgs(1))), (NoArgs, UnpickleableExceptionWrapper))


# --------------------------------------------------------------------------------- kinds of arrays


@pytest.mark.parametrize(
    "array",
    [
        numpy.arange("2020-01-01", "2021-01-01", dtype="M8[m]"),
        numpy.arange(100_000).astype(">m8[s]"),
        numpy.asfortranarray(numpy.arange(90_000).reshape(300, 300).astype("M8[D]")),
        numpy.arange(100_000).astype("M8[D]")[::2],
        numpy.array(["NaT"], dtype="M8[s]"),
        numpy.array(5, dtype="m8[s]"),
        numpy.empty((0, 3), dtype="M8[s]"),
    ],
)
def test_times_travel_beside_the_pickle(array):
    body, buffers = dumps(array)

    assert len(body) < 1_000
    assert len(buffers) == (array.nbytes >= 16 * 1024)
    back = loads(body, buffers)
    assert back.dtype == array.dtype
    assert back.flags.f_contiguous == array.flags.f_contiguous or array.base is not None
    numpy.testing.assert_array_equal(back, array)


def test_mapped_array_travels_beside_the_pickle(tmp_path):
    numpy.save(tmp_path / "it.npy", numpy.arange(10_000.0))
    array = numpy.load(tmp_path / "it.npy", mmap_mode="r")

    body, buffers = dumps(array)

    back = loads(body, buffers)
    assert (len(body) < 1_000, len(buffers)) == (True, 1)
    assert type(back) is numpy.memmap
    numpy.testing.assert_array_equal(back, array)


@pytest.mark.filterwarnings("ignore:The chararray class is deprecated")  # since numpy 2.5
@pytest.mark.parametrize(
    "make",
    [
        lambda: numpy.arange(10_000.0).reshape(100, 100).view(numpy.matrix),
        lambda: numpy.rec.fromarrays([numpy.arange(10_000), numpy.arange(10_000.0)], names="a,b"),
        lambda: numpy.char.array(["abc"] * 10_000),
        lambda: numpy.rec.array([(1, "a")] * 10, dtype=[("n", "i4"), ("s", "O")]),
    ],
)
def test_other_kinds_of_arrays_travel_beside_the_pickle_as_well(make):
    array = make()

    body, buffers = dumps(array)

    assert len(buffers) == (not array.dtype.hasobject)
    back = loads(body, buffers)
    assert (type(back), back.dtype, back.dtype.type) == (type(array), array.dtype, array.dtype.type)
    numpy.testing.assert_array_equal(back, array)
