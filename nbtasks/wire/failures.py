"""An exception as a pickle that can be loaded elsewhere, with its chain; this never fails.

exception ─ _links ─▶ one _Link each ─ pickle ─▶ join ─▶ the exception, its causes, its group
                         body: a pickle that was loaded here for trial, or empty:
                         then an UnpickleableExceptionWrapper tells what it was
"""

from __future__ import annotations

import pickle
import re
import reprlib
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, cast

from nbtasks.exceptions import UnpickleableExceptionWrapper
from nbtasks.wire import culprits, pickling


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


def dumps(exception: BaseException) -> bytes:
    """Return a pickle of an exception that gives it back as itself.

    Class, arguments, attributes, notes, `__cause__`, `__context__` and the members of a group
    travel. It is tried here whether each of them can be loaded again; one that cannot becomes an
    `UnpickleableExceptionWrapper` with its text. This never fails.
    """
    try:
        return pickle.dumps(_Chain(_links(exception)), 5)
    except Exception:
        kind = type(exception)
        wrapper = UnpickleableExceptionWrapper(
            kind.__module__, kind.__name__, (), message=_text_of(exception)
        )
        return pickle.dumps(wrapper, 5)


class _Chain:
    """Pickles to the exception that its links make."""

    def __init__(self, links: list[_Link]) -> None:
        self.links = links

    def __reduce__(self) -> tuple[Any, ...]:
        return join, (tuple(tuple(link) for link in self.links),)


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
    notes = vars(exception).get("__notes__", ())
    return _Link(
        _alone(exception, members is not None),
        kind.__module__,
        kind.__name__,
        tuple(map(_texts.repr, _args_of(exception))),
        tuple(str(note) for note in notes) if isinstance(notes, list | tuple) else (),
        cause,
        context,
        exception.__suppress_context__,
        members,
        _text_of(exception),
    )


def _args_of(exception: BaseException) -> tuple[Any, ...]:
    """Return the arguments, whatever the class has made of that name."""
    args: tuple[Any, ...] = BaseException.args.__get__(exception)  # type: ignore[attr-defined]
    return args


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
            body = pickling.dump(candidate()).body
            if _survives(exception, body, is_group):
                return body
        except Exception:
            continue
    return b""


def _survives(exception: BaseException, body: bytes, is_group: bool) -> bool:
    with pickling.trial():
        copy = pickle.loads(body)
    if is_group:
        copy = copy(list(cast("BaseExceptionGroup[Any]", exception).exceptions))
    if type(copy) is not type(exception) or is_group:
        return type(copy) is type(exception)
    # Without arguments of its own (pydantic's are made in Rust) it is its text that counts.
    own = _args_of(exception)
    same = len(_args_of(copy)) == len(own) or not own
    return same and _alike(_text_of(copy), _text_of(exception))


#: Where an object lies in memory, as its `repr` tells it.
_ADDRESS: Final = re.compile(r"\b0x[0-9a-f]+", re.IGNORECASE)


def _alike(one: str, other: str) -> bool:
    """Say whether two texts differ by nothing but what no copy keeps: addresses, sets' order."""
    return one == other or sorted(_ADDRESS.sub("", one)) == sorted(_ADDRESS.sub("", other))


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
            return MakeGroup, parts
        return make_bare, (type(exception), exception.args, attributes, slots)


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
            pickling.dump(value)
        except Exception:
            instead[name] = f"{culprits.short_repr(value)} (its text: it cannot be pickled)"
    return instead


def _builtin_base(cls: type) -> type:
    """Return the class that decides how instances lie in memory."""
    while cls.__flags__ & _HEAP_TYPE:
        cls = cast(type, cls.__base__)
    return cls


def make_bare(
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


class MakeGroup:
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


def join(rows: tuple[tuple[Any, ...], ...]) -> BaseException:
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
        if link.notes and "__notes__" not in vars(found):  # a `__reduce__` may forget them
            BaseException.__setattr__(found, "__notes__", list(link.notes))
        return cast(BaseException, found)
    except Exception:
        wrapper = UnpickleableExceptionWrapper(link.module, link.name, link.args, message=link.text)
        for note in link.notes:
            wrapper.add_note(note)
        return wrapper
