"""Serializers and compressions: which there are, by name and by content type.

    pickle, json, msgpack, yaml, raw             `register` adds others
    gzip, bzip2, lzma, zstd, brotli              `register_compression` adds others

What is added travels with the tasks that are sent afterwards, so that workers know it too.
"""

from __future__ import annotations

import base64
import bz2
import functools
import importlib
import json
import lzma
import sys
import uuid
import zlib
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from typing import Any, Final, NamedTuple, cast

from nbtasks.exceptions import ContentDisallowed, SerializerNotInstalled

#: Encodings of codecs that give bytes.
BINARY: Final = ("binary", "ascii-8bit")


class Codec(NamedTuple):
    """A serializer, or a compression."""

    name: str
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]
    content_type: str
    content_encoding: str = "binary"

    @property
    def is_text(self) -> bool:
        """Whether `decode` gets text rather than bytes."""
        return self.content_encoding not in BINARY


_serializers: Final[dict[str, Codec]] = {}
by_type: Final[dict[str, Codec]] = {}
_compressions: Final[dict[str, Codec]] = {}
compressions_by_type: Final[dict[str, Codec]] = {}
#: What `register` and `register_compression` added: it travels with each definition.
_custom: Final[dict[tuple[str, str], tuple[Codec, tuple[str, ...]]]] = {}
#: Content types that may be read; None: all that are registered.
accepted: frozenset[str] | None = None
#: Goes up whenever a codec is added or removed.
registrations = 0


def register(
    name: str,
    encode: Callable[[Any], Any],
    decode: Callable[[Any], Any],
    content_type: str,
    content_encoding: str = "utf-8",
) -> None:
    """Add a serializer, or replace one.

    Parameters
    ----------
    name
        What to say in `serializer=`.
    encode
        Given a value, returns text or bytes.
    decode
        Given what `encode` returned, returns the value.
    content_type
        Says what the bytes are, such as `application/x-mine`.
    content_encoding
        Encoding of text; `binary` when `decode` wants bytes.

    Raises
    ------
    TypeError, ValueError
        When a function or the encoding is none.

    Notes
    -----
    Workers need not import it: it travels with the tasks that are sent afterwards.
    """
    _check("register", encode=encode, decode=decode)
    if content_encoding not in BINARY:
        try:
            "".encode(content_encoding)
        except LookupError:
            raise ValueError(
                f"register() got content_encoding={content_encoding!r}, which Python does not "
                f"know. Give one such as 'utf-8', or 'binary' when decode wants bytes."
            ) from None
    codec = Codec(name, encode, decode, content_type, content_encoding)
    add(codec)
    _note(("serializer", name), codec, ())


def unregister(name: str) -> None:
    """Remove a serializer.

    Raises
    ------
    SerializerNotInstalled
        When there is none of that name.
    """
    codec = find_serializer(name)
    del _serializers[name]
    if by_type.get(codec.content_type) is codec:
        del by_type[codec.content_type]
    _note(("serializer", name), None, ())


def register_compression(
    encoder: Callable[[bytes], bytes],
    decoder: Callable[[bytes], bytes],
    content_type: str,
    aliases: Sequence[str] = (),
) -> None:
    """Add a compression, or replace one.

    Parameters
    ----------
    encoder, decoder
        From bytes to bytes, there and back.
    content_type
        Says what the bytes are; may be given in `compression=`.
    aliases
        Names to be given instead.
    """
    _check("register_compression", encoder=encoder, decoder=decoder)
    codec = Codec(aliases[0] if aliases else content_type, encoder, decoder, content_type)
    _add_compression(codec, tuple(aliases))
    _note(("compression", content_type), codec, tuple(aliases))


def _check(what: str, **functions: Any) -> None:
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(f"{what}() got {name}={function!r}, which is no function.")


def _note(key: tuple[str, str], codec: Codec | None, aliases: tuple[str, ...]) -> None:
    global registrations
    registrations += 1
    _custom.pop(key, None)
    if codec is not None:
        _custom[key] = (codec, aliases)


def add(codec: Codec) -> None:
    """Add a serializer that every process has."""
    _serializers[codec.name] = by_type[codec.content_type] = codec


def _add_compression(codec: Codec, aliases: tuple[str, ...]) -> None:
    for name in (codec.content_type, *aliases):
        _compressions[name] = codec
    compressions_by_type[codec.content_type] = codec


def registered() -> tuple[Any, ...]:
    """Return all that was added, for `register_all`."""
    return tuple((key[0], tuple(codec), aliases) for key, (codec, aliases) in _custom.items())


def register_all(rows: Iterable[Any]) -> None:
    """Add what another process has added."""
    for kind, codec, aliases in rows:
        if kind == "serializer":
            add(Codec(*codec))
        else:
            _add_compression(Codec(*codec), aliases)


def find_serializer(name: str) -> Codec:
    """Return the serializer of that name.

    Raises
    ------
    SerializerNotInstalled
        When there is none.
    """
    try:
        return _serializers[name]
    except (KeyError, TypeError):
        raise SerializerNotInstalled(
            f"There is no serializer {name!r}. There are: {', '.join(sorted(_serializers))}; "
            f"nbtasks.wire.payloads.register() adds others."
        ) from None


def find_compression(name: str) -> Codec:
    """Return the compression of that name.

    Raises
    ------
    SerializerNotInstalled
        When there is none.
    """
    try:
        return _compressions[name]
    except (KeyError, TypeError):
        names = sorted(name for name in _compressions if "/" not in name)
        raise SerializerNotInstalled(
            f"There is no compression {name!r}. There are: {', '.join(names)}; "
            f"nbtasks.wire.payloads.register_compression() adds others."
        ) from None


def accept(names: Iterable[str] | None) -> None:
    """Say which serializers may be read in this process.

    Parameters
    ----------
    names
        Names of serializers, or content types; None: all that are registered.
    """
    global accepted
    if names is None:
        accepted = None
    else:
        accepted = content_types(names)


def content_types(names: Iterable[str]) -> frozenset[str]:
    """Return the content types that names of serializers, or content types themselves, mean.

    Raises
    ------
    SerializerNotInstalled
        When there is no serializer of such a name.
    """
    return frozenset(name if "/" in name else find_serializer(name).content_type for name in names)


def check_accepted(content_type: str) -> None:
    """Raise when bytes of this kind may not be read here.

    Raises
    ------
    ContentDisallowed
        When their serializer is not known, or not accepted.
    """
    if content_type not in by_type:
        raise ContentDisallowed(
            f"The payload is of the kind {content_type!r}, which is not known here. Register its "
            f"serializer with nbtasks.wire.payloads.register() in this process too."
        )
    if accepted is not None and content_type not in accepted:
        raise ContentDisallowed(
            f"The payload is of the kind {content_type!r}, which is not accepted here. Accepted "
            f"are: {', '.join(sorted(accepted))}. Add its serializer to the setting "
            f"accept_content, or send with another one."
        )


@cache
def package(name: str, extra: str) -> Any:
    """Return a module of a package that is optional.

    Raises
    ------
    SerializerNotInstalled
        When it is not installed; it says how to.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SerializerNotInstalled(
            f"{extra} needs the package {name}, which the interpreter {sys.executable} cannot "
            f"import. Install it: {sys.executable} -m pip install 'nbtasks[{extra}]'."
        ) from error


# --- what json, msgpack and yaml do not know of themselves, as a word and a text


#: Ends a time in the hour that comes twice, when it is the second; ISO 8601 has no word for it.
_FOLDED: Final = "*"


def _to_text(value: Any) -> tuple[str, str] | None:
    if isinstance(value, datetime | time):
        word = "datetime" if isinstance(value, datetime) else "time"
        return word, value.isoformat() + _FOLDED * value.fold
    if isinstance(value, date):
        return "date", value.isoformat()
    if isinstance(value, Decimal | uuid.UUID):
        return "decimal" if isinstance(value, Decimal) else "uuid", str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes", base64.b64encode(value).decode()
    return None


def _unfold(kind: Any, text: str) -> Any:
    found = kind.fromisoformat(text.rstrip(_FOLDED))
    return found.replace(fold=1) if text.endswith(_FOLDED) else found


_FROM_TEXT: Final[dict[str, Callable[[str], Any]]] = {
    "datetime": functools.partial(_unfold, datetime),
    "date": date.fromisoformat,
    "time": functools.partial(_unfold, time),
    "decimal": Decimal,
    "uuid": uuid.UUID,
    "bytes": base64.b64decode,
}


def _refuse(value: Any) -> TypeError:
    if isinstance(value, int):
        return TypeError("it knows no integers of more than 64 bits")
    return TypeError(f"it knows no objects of type {type(value).__name__}")


_MARK: Final = "__nbtasks__"


def _json_default(value: Any) -> Any:
    known = _to_text(value)
    if known is not None:
        return {_MARK: known}
    if hasattr(type(value), "__json__"):
        return value.__json__()
    raise _refuse(value)


def _json_hook(found: dict[str, Any]) -> Any:
    if len(found) == 1 and _MARK in found:
        match found[_MARK]:
            case [str(word), str(text)] if word in _FROM_TEXT:
                return _FROM_TEXT[word](text)
    return found


def _json_encode(value: Any) -> str:
    return json.dumps(value, default=_json_default)


def _json_decode(text: str) -> Any:
    return json.loads(text, object_hook=_json_hook)


def _check_keys(value: Any) -> None:
    """Raise for keys that would come back as lists, which are no keys."""
    waiting, seen = [value], set()
    while waiting:
        found = waiting.pop()
        if not isinstance(found, dict | list | tuple) or id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, dict):
            if any(isinstance(key, tuple) for key in found):
                raise TypeError("it knows no tuples as keys")
            waiting.extend(found.values())
        else:
            waiting.extend(found)


_MSGPACK_CODE: Final = 1


def _msgpack_encode(value: Any) -> bytes:
    msgpack = package("msgpack", "msgpack")

    def default(other: Any) -> Any:
        known = _to_text(other)
        if known is not None:
            return msgpack.ExtType(_MSGPACK_CODE, "\0".join(known).encode())
        if hasattr(type(other), "__json__"):
            return other.__json__()
        raise _refuse(other)

    _check_keys(value)
    return bytes(msgpack.packb(value, default=default, use_bin_type=True))


def _msgpack_decode(data: bytes) -> Any:
    msgpack = package("msgpack", "msgpack")

    def hook(code: int, content: bytes) -> Any:
        if code != _MSGPACK_CODE:
            return msgpack.ExtType(code, content)
        word, _, text = content.decode().partition("\0")
        return _FROM_TEXT[word](text)

    return msgpack.unpackb(data, raw=False, strict_map_key=False, ext_hook=hook)


_YAML_TAG: Final = "!nbtasks/"


@cache
def _yaml_classes() -> tuple[type[Any], type[Any]]:
    """Return dumper and loader: yaml's safe ones, with our words added."""
    yaml = package("yaml", "yaml")

    def represent(dumper: Any, value: Any) -> Any:
        word, text = cast("tuple[str, str]", _to_text(value))
        return dumper.represent_scalar(_YAML_TAG + word, text)

    def represent_other(dumper: Any, value: Any) -> Any:
        if hasattr(type(value), "__json__"):
            return dumper.represent_data(value.__json__())
        raise _refuse(value)

    def construct(loader: Any, word: str, node: Any) -> Any:
        return _FROM_TEXT[word](loader.construct_scalar(node))

    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    loader = type("Loader", (yaml.SafeLoader,), {})
    for kind in (datetime, date, time, Decimal, uuid.UUID, bytes, bytearray):
        dumper.add_representer(kind, represent)  # type: ignore[attr-defined]
    dumper.add_representer(None, represent_other)  # type: ignore[attr-defined]
    loader.add_multi_constructor(_YAML_TAG, construct)  # type: ignore[attr-defined]
    return dumper, loader


def _yaml_encode(value: Any) -> str:
    _check_keys(value)
    dumper, _ = _yaml_classes()
    return cast(str, package("yaml", "yaml").dump(value, Dumper=dumper, sort_keys=False))


def _yaml_decode(text: str) -> Any:
    _, loader = _yaml_classes()
    return package("yaml", "yaml").load(text, Loader=loader)


def _raw_encode(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("it takes bytes only: it is for results, not for arguments")
    return bytes(value)


add(Codec("json", _json_encode, _json_decode, "application/json", "utf-8"))
add(Codec("msgpack", _msgpack_encode, _msgpack_decode, "application/x-msgpack"))
add(Codec("yaml", _yaml_encode, _yaml_decode, "application/x-yaml", "utf-8"))
add(Codec("raw", _raw_encode, bytes, "application/data"))


# --------------------------------------------------------------------------------- compressions


def _zstd_encode(data: bytes) -> bytes:
    return bytes(package("zstandard", "zstd").ZstdCompressor().compress(data))


def _zstd_decode(data: bytes) -> bytes:
    # Also of streams that do not say how long they are.
    return bytes(package("zstandard", "zstd").ZstdDecompressor().decompressobj().decompress(data))


def _brotli_encode(data: bytes) -> bytes:
    return bytes(package("brotli", "brotli").compress(data))


def _brotli_decode(data: bytes) -> bytes:
    return bytes(package("brotli", "brotli").decompress(data))


_add_compression(
    Codec("gzip", zlib.compress, zlib.decompress, "application/x-gzip"), ("gzip", "zlib")
)
_add_compression(
    Codec("bzip2", bz2.compress, bz2.decompress, "application/x-bz2"), ("bzip2", "bzip")
)
_add_compression(
    Codec("lzma", lzma.compress, lzma.decompress, "application/x-lzma"), ("lzma", "xz")
)
_add_compression(
    Codec("zstd", _zstd_encode, _zstd_decode, "application/zstd"), ("zstd", "zstandard")
)
_add_compression(
    Codec("brotli", _brotli_encode, _brotli_decode, "application/x-brotli"), ("brotli",)
)
