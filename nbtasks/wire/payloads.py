"""What users hand over ↔ bytes: the only file that pickles.

    dumps_arguments, dumps, dumps_exception     value → Payload(body, buffers)
    loads                                       body, buffers → value
    pickle_task, pack_definition                task → the body of a Define
    load_definition                             that body → task, in a worker

A payload is a body and further buffers, which are pickle's out-of-band buffers (arrays, mostly). A
body of over `INLINE_LIMIT` bytes becomes the first buffer, and the body is then empty. The sender
may have large buffers put into files (`keep`; see `segments`). The body of a plain pickle is just
that (its first byte is 0x80); any other begins with a header:

    0x01, length of the head (2 bytes), head: content type, encoding, compression
    0x02, then body and buffers in one piece, each after its length (8 bytes): see `join`

Atoms (numbers, text, None) and flat containers of them go through plain pickle, which takes half
a microsecond; everything else goes through cloudpickle, because plain pickle takes what was
defined in a notebook's `__main__` by reference, and fails in the worker.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import io
import linecache
import pickle
import reprlib
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

import cloudpickle

from nbtasks.core.messages import INLINE_LIMIT
from nbtasks.exceptions import (
    ContentDisallowed,
    DecodeError,
    EncodeError,
    SerializerNotInstalled,
    UnpickleableExceptionWrapper,
)
from nbtasks.wire import codecs, culprits, modules, segments
from nbtasks.wire.codecs import (
    Codec,
    accept,
    find_compression,
    find_serializer,
    register,
    register_compression,
    unregister,
)

__all__ = [
    "Buffer",
    "Payload",
    "accept",
    "digest",
    "dumps",
    "dumps_arguments",
    "dumps_exception",
    "join",
    "load_definition",
    "loads",
    "out_of_band",
    "register",
    "register_compression",
    "unregister",
]

Buffer = bytes | bytearray | memoryview
#: Marks memory that is to travel beside the pickle.
out_of_band: Final = pickle.PickleBuffer
#: What makes of a piece of memory something that does not change when the memory does.
Keep = Callable[[memoryview], Buffer]

#: Buffers of fewer bytes stay inside the pickle: a frame of their own would cost more.
OUT_OF_BAND: Final = 16 * 1024
#: Payload frames of one value at most.
MOST_BUFFERS: Final = 1024

_PICKLE: Final = "application/x-python-serialize"
_PLAIN: Final = 0x80  # what every pickle begins with
_HEADED: Final = 0x01
_JOINED: Final = 0x02

_ATOMS: Final = frozenset({int, float, str, bytes, bool, type(None)})
_all_atoms: Final = _ATOMS.issuperset
_plain_dumps: Final = pickle.dumps
_new: Final = tuple.__new__


class Payload(NamedTuple):
    """A value as bytes, the way a message wants it."""

    #: Empty when it is the first of the buffers.
    body: bytes
    buffers: list[Buffer]


# ------------------------------------------------------------------------------------ to bytes


def dumps_arguments(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    serializer: str = "pickle",
    compression: str | None = None,
    function: Callable[..., Any] | None = None,
    keep: Keep = bytes,
) -> Payload:
    """Return the arguments of a call as bytes; `loads` gives `(args, kwargs)` back.

    Parameters
    ----------
    args, kwargs
        The arguments.
    serializer, compression
        As in `dumps`.
    function
        What they are for: an error message then names the parameter.
    keep
        As in `dumps`.

    Raises
    ------
    EncodeError
        When an argument cannot be turned into bytes; it says which, and what to do.
    """
    # This is on the way of each call: the shortest of several forms that were measured.
    if serializer == "pickle" and not compression:
        for value in args:
            if type(value) not in _ATOMS:
                break
        else:
            if not kwargs or _ATOMS.issuperset(map(type, kwargs.values())):
                body = _plain_dumps((args, kwargs), 5)
                if len(body) <= INLINE_LIMIT:
                    return _new(Payload, (body, []))
                return _sized(body, [], keep)
    parts = functools.partial(_parts_of_arguments, function)
    return _dumps((args, kwargs), serializer, compression, keep, parts)


def _parts_of_arguments(function: Callable[..., Any] | None, value: Any) -> list[culprits.Part]:
    args, kwargs = value
    return culprits.arguments(args, kwargs, function)


def dumps(
    value: Any,
    serializer: str = "pickle",
    compression: str | None = None,
    *,
    keep: Keep = bytes,
) -> Payload:
    """Return a value as bytes.

    Parameters
    ----------
    value
        Anything that the serializer knows.
    serializer
        pickle, json, msgpack, yaml, raw, or one that was registered.
    compression
        gzip, bzip2, lzma, zstd, brotli, or one that was registered; None: none.
    keep
        What makes of the memory of an array what is to be sent, so that it does not matter what
        becomes of the array afterwards: a copy, or a reference to a file (`segments`).

    Raises
    ------
    EncodeError
        When it cannot be turned into bytes; it says which part of it, and what to do.
    SerializerNotInstalled
        When there is no serializer or compression of that name.
    """
    if serializer == "pickle" and not compression and (type(value) in _ATOMS or _is_flat(value)):
        body = _plain_dumps(value, 5)
        return _new(Payload, (body, [])) if len(body) <= INLINE_LIMIT else _sized(body, [], keep)
    return _dumps(value, serializer, compression, keep, None)


def _is_flat(value: Any) -> bool:
    """Return whether a value is a list, tuple or dict of atoms alone."""
    kind = type(value)
    if kind is dict:
        return _all_atoms(map(type, value)) and _all_atoms(map(type, value.values()))
    return (kind is list or kind is tuple) and _all_atoms(map(type, value))


def _dumps(
    value: Any,
    serializer: str,
    compression: str | None,
    keep: Keep,
    parts: culprits.Parts | None,
) -> Payload:
    packer = find_compression(compression) if compression else None
    if serializer == "pickle":
        if packer is None:
            pickled = _pickle_or_explain(value, parts, keep)
            return _sized(pickled.body, pickled.buffers, keep)
        data = _pickle_or_explain(value, parts).body
        content_type, encoding = _PICKLE, "binary"
    else:
        codec = find_serializer(serializer)
        content_type, encoding = codec.content_type, codec.content_encoding
        data = _encode(codec, value, parts)
    if packer is not None:
        data = packer.encode(data)
    head = "\n".join((content_type, encoding, packer.content_type if packer else "")).encode()
    body = b"".join((bytes((_HEADED,)), len(head).to_bytes(2, "big"), head, data))
    return _sized(body, [], keep)


def _sized(body: bytes, buffers: list[Buffer], keep: Keep = bytes) -> Payload:
    if len(body) <= INLINE_LIMIT:
        return Payload(body, buffers)
    first = body if keep is bytes else keep(memoryview(body))
    return Payload(b"", [first, *buffers])


def _encode(codec: Codec, value: Any, parts: culprits.Parts | None) -> bytes:
    try:
        data = codec.encode(value)
    except SerializerNotInstalled:
        raise
    except Exception as error:

        def works(part: Any) -> bool:
            codec.encode(part)
            return True

        raise EncodeError(
            culprits.explain(value, error, works, parts or culprits.of_data, verb=codec.name)
        ) from error
    if isinstance(data, str):
        data = data.encode(codec.content_encoding if codec.is_text else "utf-8")
    return bytes(data)


# ---------------------------------------------------------------------------------- from bytes


def loads(body: Buffer, buffers: Sequence[Buffer] = (), *, ours: bool = False) -> Any:
    """Return the value that a payload holds.

    Parameters
    ----------
    body, buffers
        What `dumps` returned.
    ours
        Whether nbtasks chose the serializer (a result, headers), so that `accept` does not matter.

    Raises
    ------
    DecodeError
        When the bytes cannot be read here.
    ContentDisallowed
        When nobody here knows how to read bytes of this kind, or they are not accepted.
    """
    if buffers or not body or body[0] == _JOINED:
        body, buffers = _opened(body, buffers)
    if body[0] == _PLAIN:
        if codecs.accepted is not None and not ours:
            codecs.check_accepted(_PICKLE)
        return _unpickle(body, buffers)
    if body[0] != _HEADED:
        raise DecodeError(
            f"The payload begins with byte {body[0]:#04x}, which no version of nbtasks writes. It "
            f"is damaged, or not nbtasks' at all."
        )
    length = int.from_bytes(body[1:3], "big")
    try:
        content_type, encoding, compression = bytes(body[3 : 3 + length]).decode().split("\n")
    except ValueError as error:
        raise DecodeError(f"The head of the payload is damaged: {error}.") from None
    codecs.check_accepted(content_type)
    data = bytes(body[3 + length :])
    if compression:
        data = _decompress(data, compression)
    return _decode(data, content_type, encoding, buffers)


def join(body: Buffer, buffers: Sequence[Buffer]) -> bytes:
    """Return a payload in one piece, for where no frames can travel; `loads` reads it."""
    if not buffers:
        return bytes(body)
    pieces: list[Buffer] = [bytes((_JOINED,))]
    for buffer in (body, *buffers):
        pieces += (memoryview(buffer).nbytes.to_bytes(8, "big"), buffer)
    return b"".join(pieces)


def _opened(body: Buffer, buffers: Sequence[Buffer]) -> tuple[Buffer, Sequence[Buffer]]:
    """Return body and buffers, wherever the body was."""
    if buffers:
        buffers = [segments.opened(buffer) for buffer in buffers]
        if not body:
            body, buffers = buffers[0], buffers[1:]
    if not body:
        raise DecodeError("There is nothing to read: the payload is empty.")
    return _part(body) if body[0] == _JOINED else (body, buffers)


def _part(joined: Buffer) -> tuple[Buffer, list[Buffer]]:
    view, place = memoryview(joined), 1
    found: list[Buffer] = []
    while place < len(view):
        length = int.from_bytes(view[place : place + 8], "big")
        place += 8 + length
        if place > len(view):
            raise DecodeError("The payload is damaged: it ends in the middle of a part.")
        found.append(view[place - length : place])
    if not found or bytes(found[0][:1]) == bytes((_JOINED,)):
        raise DecodeError("The payload is damaged: it has parts, but none of them is a body.")
    return found[0], found[1:]


def _decompress(data: bytes, content_type: str) -> bytes:
    codec = codecs.compressions_by_type.get(content_type)
    if codec is None:
        raise ContentDisallowed(
            f"The payload is compressed as {content_type!r}, which is not known here. Register "
            f"it with register_compression() in this process too."
        )
    try:
        return bytes(codec.decode(data))
    except SerializerNotInstalled:
        raise
    except Exception as error:
        raise DecodeError(
            f"The payload cannot be decompressed ({content_type}): {error}."
        ) from error


def _decode(data: bytes, content_type: str, encoding: str, buffers: Sequence[Buffer]) -> Any:
    if content_type == _PICKLE:
        return _unpickle(data, buffers)
    codec = codecs.by_type[content_type]
    try:
        return codec.decode(data.decode(encoding) if codec.is_text else data)
    except SerializerNotInstalled:
        raise
    except Exception as error:
        raise DecodeError(
            f"The payload is no valid {codec.name}: {type(error).__name__}: {error}."
        ) from error


def _unpickle(body: Buffer, buffers: Sequence[Buffer]) -> Any:
    modules.freshen()
    try:
        if not buffers:
            return pickle.loads(body)
        return pickle.loads(body, buffers=map(_writable, buffers))
    except Exception as error:
        raise DecodeError(_why_not_loaded(error, "A value")) from error


def _writable(buffer: Buffer) -> Buffer:
    """Return the buffer, or a copy that may be written to: arrays arrive as they were sent.

    Those that were read-only when they were sent are made so again by pickle itself.
    """
    if isinstance(buffer, bytes) or (isinstance(buffer, memoryview) and buffer.readonly):
        return bytearray(buffer)
    return buffer


def _why_not_loaded(error: BaseException, what: str) -> str:
    """Return what an error while unpickling means, and what to do."""
    text = f"{type(error).__name__}: {error}"
    failing = modules.importing(error)
    if failing is not None and not isinstance(error, ImportError):
        return (
            f"{what} needs the module {failing!r}, and importing it fails in the interpreter "
            f"{sys.executable}: {text}. Correct the module, or what it expects of its environment."
        )
    if isinstance(error, ImportError) and error.name:
        return _lacking_module(error.name, what, text)
    if isinstance(error, ImportError | AttributeError):
        return (
            f"{what} cannot be loaded by the interpreter {sys.executable}: {text}. The module that "
            f"it finds there differs from the one that the sender has: bring both to one version, "
            f"save the file, or define the name in the notebook."
        )
    return (
        f"{what} cannot be loaded by the interpreter {sys.executable}: {text}. The class of one of "
        f"its parts may not come back from pickling, or the libraries differ in version from the "
        f"sender's."
    )


def _lacking_module(name: str, what: str, text: str) -> str:
    top = name.partition(".")[0]
    return (
        f"{what} needs the module {name!r}, which the interpreter {sys.executable} cannot import: "
        f"{text}. If it is a package, install it there ({sys.executable} -m pip install {top}), or "
        f"start the cluster from the kernel that has it (%nbtasks stop, then send again). If it is "
        f"a file of your own, put it beside the notebook or add its folder to sys.path."
    )


# ----------------------------------------------------------------------------------- pickling


class Pickled(NamedTuple):
    """A pickle, and what it met on its way."""

    body: bytes
    buffers: list[Buffer]
    #: Names of the modules to which it refers.
    modules: frozenset[str]
    #: Code that it carries by value.
    codes: tuple[types.CodeType, ...]


#: Place of the file's name among the arguments of `types.CodeType`, in Python 3.11 and later.
_CODE_FILENAME: Final = 10


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """cloudpickle's, but for what is said at each method."""

    def __init__(self, file: io.BytesIO, buffer_callback: Callable[[Any], Any] | None) -> None:
        super().__init__(file, protocol=5, buffer_callback=buffer_callback)
        self.modules: set[str] = set()
        self.codes: list[types.CodeType] = []

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is types.FunctionType:
            return self._reduce_function(obj)
        if kind is types.CodeType:
            self.codes.append(obj)
            return self._reduce_code(obj)
        elif kind is types.ModuleType:
            self.modules.add(obj.__name__)
        elif issubclass(kind, type):
            return self._reduce_class(obj)
        elif kind in _NAMED and getattr(obj, "__module__", None) in ("__main__", None):
            return _NAMED[kind](obj)
        return super().reducer_override(obj)

    def _reduce_code(self, code: types.CodeType) -> Any:
        """Keep the name of the file, by which tracebacks find the lines of a notebook's cells.

        cloudpickle 3.1.3 puts "<dynamic-code>" in its place.
        """
        make, arguments = self.dispatch_table[types.CodeType](code)
        filename = _CODE_FILENAME
        return make, (*arguments[:filename], code.co_filename, *arguments[filename + 1 :])

    def _reduce_function(self, function: types.FunctionType) -> Any:
        """Take what a decorator hides in its module by reference too.

        Such a function (`@task` in a helper.py) is not what its module has under its name, so
        that cloudpickle would copy it, with all that it refers to, as it was when imported.
        """
        reduced = super().reducer_override(function)
        if reduced is not NotImplemented and not is_behind(function):
            return reduced
        self.modules.add(function.__module__)
        if reduced is NotImplemented:
            return reduced
        return _take_behind, (function.__module__, function.__qualname__)

    def _reduce_class(self, cls: type) -> Any:
        """Remember which classes were made here.

        When one of them comes back with a result, cloudpickle would overwrite its attributes and
        methods with those that the worker has.
        """
        reduced = super().reducer_override(cls)
        if reduced is NotImplemented:
            self.modules.add(cls.__module__)
        elif isinstance(reduced, tuple) and len(reduced) == 6:
            if cls not in _from_elsewhere:
                _made_here.add(cls)
            *others, state, _, _, set_state = reduced
            return (*others, (set_state, state), None, None, _set_class_state)
        return reduced


def _reduce_cached(cached: Any) -> tuple[Any, ...]:
    # The function is only put in afterwards, because it may refer to what caches it.
    parameters = cached.cache_parameters()
    return (
        _make_cached,
        (parameters["maxsize"], parameters["typed"]),
        cached.__wrapped__,
        None,
        None,
        _fill_cached,
    )


def _make_cached(maxsize: int | None, typed: bool) -> Any:
    inside: list[Callable[..., Any]] = []

    @functools.lru_cache(maxsize, typed)
    def cached(*args: Any, **kwargs: Any) -> Any:
        return inside[0](*args, **kwargs)

    cached._inside = inside  # type: ignore[attr-defined]
    return cached


def _fill_cached(cached: Any, function: Callable[..., Any]) -> None:
    inside = cached._inside
    functools.update_wrapper(cached, function)
    del cached._inside
    inside.append(function)


def _reduce_alias(alias: Any) -> tuple[Any, ...]:
    return _make_alias, (alias.__name__, alias.__value__, alias.__type_params__)


def _make_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


#: Things that say of themselves that their name is enough, which it is not in a notebook.
_NAMED: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    functools._lru_cache_wrapper: _reduce_cached,
    typing.NewType: lambda it: (typing.NewType, (it.__name__, it.__supertype__)),
    typing.ParamSpec: lambda it: (typing.ParamSpec, (it.__name__,)),
    typing.TypeVarTuple: lambda it: (typing.TypeVarTuple, (it.__name__,)),
}
if sys.version_info >= (3, 12):
    _NAMED[typing.TypeAliasType] = _reduce_alias

_made_here: Final[weakref.WeakSet[type]] = weakref.WeakSet()
_from_elsewhere: Final[weakref.WeakSet[type]] = weakref.WeakSet()
_trial = threading.local()


def _set_class_state(cls: type, state: tuple[Callable[[type, Any], Any], Any]) -> type:
    known = cls in _from_elsewhere
    if cls in _made_here or (known and getattr(_trial, "on", False)):
        return cls
    _from_elsewhere.add(cls)
    set_state, inner = state
    set_state(cls, inner)
    return cls


def is_behind(function: types.FunctionType) -> bool:
    """Whether an importable module has a decorated `function` under the name of it."""
    if function.__module__ in (None, "__main__") or "<" in function.__qualname__:
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    return found is not function and _unwrap(found, function) is function


def _unwrap(found: Any, wanted: Any = None) -> Any:
    """Follow `__wrapped__` to the function `wanted`, or to the end."""
    for _ in range(100):
        if found is wanted and found is not None:
            return found
        inner = getattr(found, "__wrapped__", None)
        if inner is None:
            break
        found = inner
    return found


def _take_behind(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return _unwrap(found)


def _pickle(value: Any, keep: Keep | None = None) -> Pickled:
    """Pickle by cloudpickle, with buffers of their own when it is said how to keep them."""
    views: list[memoryview] = []

    def stays_inside(buffer: pickle.PickleBuffer) -> bool:
        """Say whether the buffer shall stay inside the pickle."""
        try:
            view = buffer.raw()
        except BufferError:  # not contiguous
            return True
        if view.nbytes < OUT_OF_BAND or len(views) >= MOST_BUFFERS:
            return True
        views.append(view)
        return False

    file = io.BytesIO()
    pickler = _Pickler(file, stays_inside if keep else None)
    pickler.dump(value)
    # Only now: when the rest cannot be pickled, nothing has been put anywhere.
    buffers = [keep(view) for view in views] if keep else []
    return Pickled(file.getvalue(), buffers, frozenset(pickler.modules), tuple(pickler.codes))


def _pickle_or_explain(
    value: Any, parts: culprits.Parts | None, keep: Keep | None = None
) -> Pickled:
    try:
        return _pickle(value, keep)
    except Exception as error:
        text = culprits.explain(value, error, _can_be_pickled, parts or culprits.of_object)
        raise EncodeError(text) from error


def _can_be_pickled(value: Any) -> bool:
    _pickle(value)
    return True


# ---------------------------------------------------------------------------------- exceptions


class _Link(NamedTuple):
    """One exception of a chain; the others are named by their place in it."""

    #: Pickle of the exception alone, or empty.
    body: bytes
    #: Module, name and arguments of it, in case that its class cannot be loaded.
    module: str
    name: str
    args: tuple[str, ...]
    notes: tuple[str, ...]
    cause: int | None
    context: int | None
    suppress: bool
    #: Members of an exception group.
    members: tuple[int, ...] | None
    #: `str()` of it, in the same case.
    text: str = ""


#: Makes texts of arguments: whole ones as a rule, but no millions of letters.
_texts: Final = reprlib.Repr()
_texts.maxstring = _texts.maxother = _texts.maxlong = 2_000
_texts.maxlist = _texts.maxtuple = _texts.maxdict = _texts.maxset = _texts.maxfrozenset = 100

#: Letters of an exception's own text that travel when the exception itself cannot.
LONGEST_TEXT: Final = 10_000

#: Links of a chain that travel at most: a RecursionError may hang on hundreds.
MOST_LINKS: Final = 64


def dumps_exception(exception: BaseException) -> Payload:
    """Return an exception as bytes; `loads` gives it back as itself.

    Class, arguments, attributes, notes, `__cause__`, `__context__` and the members of a group
    travel. It is tried here whether each of them can be loaded again; one that cannot becomes an
    `UnpickleableExceptionWrapper` with its text. This never fails.
    """
    try:
        return _sized(pickle.dumps(_Chain(_links(exception)), 5), [])
    except Exception:
        wrapper = UnpickleableExceptionWrapper.from_exception(exception)
        return _sized(pickle.dumps(wrapper, 5), [])


class _Chain:
    """Pickles to the exception that its links make."""

    def __init__(self, links: list[_Link]) -> None:
        self.links = links

    def __reduce__(self) -> tuple[Any, ...]:
        return _join, (tuple(tuple(link) for link in self.links),)


def _links(first: BaseException) -> list[_Link]:
    found: list[BaseException] = [first]
    places = {id(first): 0}

    def place(exception: BaseException | None) -> int | None:
        if exception is None:
            return None
        if id(exception) not in places:
            if len(found) >= MOST_LINKS:
                return None
            places[id(exception)] = len(found)
            found.append(exception)
        return places[id(exception)]

    links = []
    for exception in found:  # it grows while we go
        members = None
        if isinstance(exception, BaseExceptionGroup):
            members = tuple(n for n in map(place, exception.exceptions) if n is not None)
        cause, context = place(exception.__cause__), place(exception.__context__)
        links.append(_link(exception, cause, context, members))
    return links


def _link(
    exception: BaseException,
    cause: int | None,
    context: int | None,
    members: tuple[int, ...] | None,
) -> _Link:
    kind = type(exception)
    notes = getattr(exception, "__notes__", ())
    return _Link(
        _alone(exception, members is not None),
        kind.__module__,
        kind.__name__,
        tuple(map(_texts.repr, exception.args)),
        tuple(str(note) for note in notes) if isinstance(notes, list | tuple) else (),
        cause,
        context,
        exception.__suppress_context__,
        members,
        _text_of(exception),
    )


def _text_of(exception: BaseException) -> str:
    try:
        return str(exception)[:LONGEST_TEXT]
    except Exception:
        return ""


def _alone(exception: BaseException, is_group: bool) -> bytes:
    """Return a pickle of the exception without its chain that can be loaded again, or nothing."""
    candidates: list[Callable[[], Any]] = [] if is_group else [lambda: exception]
    candidates += [lambda: _Bare(exception, {}), lambda: _Bare(exception, _texts_of(exception))]
    for candidate in candidates:
        try:
            body = _pickle(candidate()).body
            if _survives(exception, body, is_group):
                return body
        except Exception:
            continue
    return b""


def _survives(exception: BaseException, body: bytes, is_group: bool) -> bool:
    _trial.on = True
    try:
        copy = pickle.loads(body)
    finally:
        _trial.on = False
    if is_group:
        copy = copy([ValueError("stands for a member")])
    if type(copy) is not type(exception) or is_group:
        return type(copy) is type(exception)
    # Without arguments of its own (pydantic's are made in Rust) it is its text that counts.
    same = len(copy.args) == len(exception.args) or not exception.args
    return same and bool(str(copy) == str(exception))


class _Bare:
    """Pickles an exception by its parts, for classes whose `__init__` wants other things.

    Attributes in `instead` are replaced by what it says.
    """

    def __init__(self, exception: BaseException, instead: Mapping[str, str]) -> None:
        self.exception = exception
        self.instead = instead

    def __reduce__(self) -> tuple[Any, ...]:
        exception = self.exception
        attributes = {**exception.__dict__, **self.instead}
        if self.instead:
            names = ", ".join(map(repr, self.instead))
            note = f"(It cannot be pickled whole: texts stand for its attributes {names}.)"
            attributes["__notes__"] = [*attributes.get("__notes__", ()), note]
        slots = _slots_of(exception)
        if isinstance(exception, BaseExceptionGroup):
            parts = (type(exception), exception.message, attributes, slots)
            return _MakeGroup, parts
        return _make_bare, (type(exception), exception.args, attributes, slots)


#: Py_TPFLAGS_HEAPTYPE: the class was made by a class statement.
_HEAP_TYPE: Final = 1 << 9

#: Attributes of every exception, which travel by other ways or not at all.
_COMMON: Final = frozenset(
    {*vars(BaseException), *vars(BaseExceptionGroup), "__dict__", "__weakref__"}
)


def _slots_of(exception: BaseException) -> dict[str, Any]:
    """Return attributes that do not lie in `__dict__`: errno, filename, `__slots__` ..."""
    found: dict[str, Any] = {}
    for cls in type(exception).__mro__:
        for name, slot in vars(cls).items():
            is_slot = isinstance(slot, types.MemberDescriptorType | types.GetSetDescriptorType)
            if not is_slot or name in _COMMON or name in found:
                continue
            value = getattr(exception, name, None)
            # To OSError, None in a slot is not the same as nothing.
            if value is not None or (cls.__flags__ & _HEAP_TYPE and hasattr(exception, name)):
                found[name] = value
    return found


def _texts_of(exception: BaseException) -> dict[str, str]:
    """Return texts for those attributes that cannot be pickled."""
    instead = {}
    for name, value in exception.__dict__.items():
        try:
            _pickle(value)
        except Exception:
            instead[name] = f"{culprits.short_repr(value)} (its text: it cannot be pickled)"
    return instead


def _builtin_base(cls: type) -> type:
    """Return the class that decides how instances lie in memory."""
    while cls.__flags__ & _HEAP_TYPE:
        cls = cast(type, cls.__base__)
    return cls


def _make_bare(
    cls: type[BaseException],
    args: tuple[Any, ...],
    attributes: dict[str, Any],
    slots: dict[str, Any],
) -> BaseException:
    make: Any = _builtin_base(cls).__new__
    exception = cast(BaseException, make(cls))
    # Not the class's own __setattr__: a frozen dataclass would refuse.
    BaseException.__setattr__(exception, "args", args)
    _set_attributes(exception, attributes, slots)
    return exception


def _set_attributes(
    exception: BaseException, attributes: dict[str, Any], slots: dict[str, Any]
) -> None:
    exception.__dict__.update(attributes)
    for name, value in slots.items():
        try:
            BaseException.__setattr__(exception, name, value)
        except (AttributeError, TypeError):  # read-only: it follows from the arguments
            continue


class _MakeGroup:
    """Makes an exception group once its members are there."""

    def __init__(
        self,
        cls: type[BaseExceptionGroup[Any]],
        message: str,
        attributes: dict[str, Any],
        slots: dict[str, Any],
    ) -> None:
        self.cls, self.message, self.attributes, self.slots = cls, message, attributes, slots

    def __call__(self, members: list[BaseException]) -> BaseException:
        group = BaseExceptionGroup.__new__(self.cls, self.message, members)
        _set_attributes(group, self.attributes, self.slots)
        return group


def _join(rows: tuple[tuple[Any, ...], ...]) -> BaseException:
    """Make the exceptions of a chain and join them; the first is what is wanted."""
    links = [_Link(*row) for row in rows]
    made: dict[int, BaseException] = {}
    # Members come after their group, so the innermost are made first.
    for place in reversed(range(len(links))):
        made[place] = _make_link(links[place], made)
    for place, link in enumerate(links):
        cause = None if link.cause is None else made[link.cause]
        context = None if link.context is None else made[link.context]
        joints = {"__cause__": cause, "__context__": context, "__suppress_context__": link.suppress}
        for name, value in joints.items():
            BaseException.__setattr__(made[place], name, value)
    return made[0]


def _make_link(link: _Link, made: Mapping[int, BaseException]) -> BaseException:
    try:
        found = pickle.loads(link.body)
        if link.members is not None:
            found = found([made[member] for member in link.members])
        return cast(BaseException, found)
    except Exception:
        wrapper = UnpickleableExceptionWrapper(link.module, link.name, link.args, message=link.text)
        for note in link.notes:
            wrapper.add_note(note)
        return wrapper


# --------------------------------------------------------------------------------- definitions


def pickle_task(task: Any) -> Pickled:
    """Return a task, with all that it refers to, as a pickle.

    Raises
    ------
    EncodeError
        When something that its function refers to cannot be pickled; it says what.
    """
    value = (task, codecs.registered())
    return _pickle_or_explain(value, lambda _: culprits.of_task(task), bytes)


def _as_it_is(view: memoryview) -> memoryview:
    return view


def size_of(value: Any) -> int:
    """Return the bytes that a value takes in a pickle; 0 when it cannot be pickled."""
    try:
        pickled = _pickle(value, _as_it_is)
    except Exception:
        return 0
    return len(pickled.body) + sum(memoryview(buffer).nbytes for buffer in pickled.buffers)


def pack_definition(
    name: str,
    pickled: Pickled,
    folders: Sequence[str],
    sources: Mapping[str, str],
    local: Iterable[modules.Stamp],
) -> Payload:
    """Return what `load_definition` reads in a worker.

    Parameters
    ----------
    name
        The task's name, for error messages.
    pickled
        From `pickle_task`.
    folders
        Where the sender finds modules of its own, to be put on `sys.path`.
    sources
        Text of notebook cells by the file name that their code carries.
    local
        The modules of the sender's own to which the task refers, as they are on disk.
    """
    stamps = tuple(tuple(stamp) for stamp in local)
    # The task itself is a pickle in the pickle: the rest must be in place when it is loaded.
    outer = (name, tuple(folders), dict(sources), stamps, pickled.body)
    return _sized(pickle.dumps(outer, 5), pickled.buffers)


def load_definition(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """Return the task that a Define carries; for workers.

    Modules of the sender's own that have changed since they were imported here are imported
    anew, and the text of notebook cells is put where tracebacks look for it.

    Raises
    ------
    ImportError
        When a module cannot be imported here; it names the module and the interpreter.
    DecodeError
        When the bytes are not what they should be.
    """
    body, buffers = _opened(body, buffers)
    try:
        name, folders, sources, stamps, inner = pickle.loads(body)
    except Exception as error:
        raise DecodeError(f"The definition of a task cannot be read: {error}.") from error
    for filename, text in sources.items():
        # No modification time: linecache then keeps it, whatever lies on this disk.
        linecache.cache[filename] = (len(text), None, text.splitlines(True), filename)
    modules.prepare(folders, [modules.Stamp(*stamp) for stamp in stamps])
    try:
        task, registered = pickle.loads(inner, buffers=map(_writable, buffers))
    except Exception as error:
        text = _why_not_loaded(error, f"The task {name!r}")
        if isinstance(error, ImportError):
            raise ImportError(text, name=error.name, path=error.path) from error
        if isinstance(error, AttributeError) or modules.importing(error):
            raise ImportError(text) from error
        raise DecodeError(text) from error
    codecs.register_all(registered)
    return task


def digest(parts: Iterable[Buffer]) -> bytes:
    """Return 16 bytes that name these parts."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(memoryview(part).nbytes.to_bytes(8, "big"))
        state.update(part)
    return state.digest()


codecs.add(Codec("pickle", lambda value: _pickle(value).body, pickle.loads, _PICKLE))
