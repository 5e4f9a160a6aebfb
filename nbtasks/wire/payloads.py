"""What users hand over ↔ bytes.

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
import linecache
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from nbtasks.core.messages import INLINE_LIMIT
from nbtasks.exceptions import (
    ClusterError,
    ContentDisallowed,
    DecodeError,
    EncodeError,
    ForkedError,
    OperationalError,
    SerializerNotInstalled,
)
from nbtasks.wire import codecs, culprits, failures, modules, pickling, segments
from nbtasks.wire.codecs import (
    Codec,
    accept,
    find_compression,
    find_serializer,
    register,
    register_compression,
    unregister,
)
from nbtasks.wire.pickling import Buffer, Keep, Pickled

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

#: Marks memory that is to travel beside the pickle.
out_of_band: Final = pickle.PickleBuffer

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
    buffers: Sequence[Buffer]


#: What most tasks return.
_NONE: Final = Payload(pickle.dumps(None, 5), ())


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
    plain = serializer == "pickle" and not compression
    if plain and value is None:
        return _NONE
    if plain and (type(value) in _ATOMS or _is_flat(value)):
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
            return _pickled(value, keep, parts)
        data = _pickle_or_explain(value, parts).body
        content_type, encoding = _PICKLE, "binary"
    else:
        codec = find_serializer(serializer)
        content_type, encoding = codec.content_type, codec.content_encoding
        data = _encode(codec, value, parts)
    if packer is not None:
        data = _compress(packer, data)
    head = "\n".join((content_type, encoding, packer.content_type if packer else "")).encode()
    body = b"".join((bytes((_HEADED,)), len(head).to_bytes(2, "big"), head, data))
    return _sized(body, [], keep)


def _pickled(value: Any, keep: Keep, parts: culprits.Parts | None) -> Payload:
    """Return a pickle of which all pieces are kept or, after an interrupt, none."""
    kept: list[Buffer] = []

    def keep_and_note(view: memoryview) -> Buffer:
        kept.append(keep(view))
        return kept[-1]

    try:
        pickled = _pickle_or_explain(value, parts, keep_and_note)
        return _sized(pickled.body, pickled.buffers, bytes if keep is bytes else keep_and_note)
    except BaseException:
        segments.withdraw(kept)
        raise


def _compress(packer: Codec, data: bytes) -> bytes:
    try:
        packed = packer.encode(data)
        return bytes(memoryview(packed))
    except SerializerNotInstalled:
        raise
    except Exception as error:
        raise EncodeError(
            f"The compression {packer.name!r} has failed: {type(error).__name__}: {error}. Give "
            f"compression=None, or correct its encoder, which must return bytes."
        ) from error


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
    if isinstance(data, str) and codec.is_text:
        return data.encode(codec.content_encoding)
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    wanted = "text or bytes" if codec.is_text else "bytes (its content_encoding is 'binary')"
    raise EncodeError(
        f"The serializer {codec.name!r} has returned {type(data).__name__} instead of {wanted}. "
        f"Correct its encode function, or register it with another content_encoding."
    )


def _pickle_or_explain(
    value: Any, parts: culprits.Parts | None, keep: Keep | None = None
) -> Pickled:
    try:
        return pickling.dump(value, keep)
    except (ClusterError, ForkedError, OperationalError):
        raise  # there is no place for its large pieces: the value is not to blame
    except Exception as error:
        text = culprits.explain(value, error, _can_be_pickled, parts or culprits.of_object)
        raise EncodeError(text) from error


def _can_be_pickled(value: Any) -> bool:
    pickling.dump(value)
    return True


def dumps_exception(exception: BaseException) -> Payload:
    """Return an exception as bytes; `loads` gives it back as itself.

    Class, arguments, attributes, notes, `__cause__`, `__context__` and the members of a group
    travel. Of one that cannot be loaded again an `UnpickleableExceptionWrapper` with its text
    comes. This never fails.
    """
    return _sized(failures.dumps(exception), [])


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
        pickled = pickling.dump(value, _as_it_is)
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


codecs.add(Codec("pickle", lambda value: pickling.dump(value).body, pickle.loads, _PICKLE))


# Pickles in the stores of former versions look for these here.
_make_cached, _fill_cached = pickling.make_cached, pickling.fill_cached
_make_alias, _set_class_state = pickling.make_alias, pickling.set_class_state
_take_behind = pickling.take_behind
_join, _make_bare, _MakeGroup = failures.join, failures.make_bare, failures.MakeGroup
