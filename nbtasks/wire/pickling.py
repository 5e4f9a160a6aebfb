"""cloudpickle, but for what a notebook and its workers need otherwise.

What `__main__` and notebook cells define travels by value, as cloudpickle has it; functions that a
decorator hides in an importable module go by reference, as do methods of an instance that it hides
(`from random import random`); code keeps the names of its cells, caches and named types of a
notebook arrive as what they are, and a class that comes back to where it was made is left as it is
there.
"""

from __future__ import annotations

import abc
import contextlib
import dis
import enum
import functools
import importlib
import inspect
import io
import pickle
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import cloudpickle

from nbtasks.wire import declared, modules

Buffer = bytes | bytearray | memoryview
#: What makes of a piece of memory something that does not change when the memory does.
Keep = Callable[[memoryview], Buffer]

#: Buffers of fewer bytes stay inside the pickle: a frame of their own would cost more.
OUT_OF_BAND: Final = 16 * 1024
#: Payload frames of one value at most.
MOST_BUFFERS: Final = 1024


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
        #: Type parameters of aliases → the alias and their place in it.
        self._owners: dict[Any, tuple[Any, int]] = {}

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
        elif kind.__name__ in _ARRAYS and kind.__module__.partition(".")[0] == "numpy":
            return _reduce_array(obj)
        elif kind is functools.cached_property:
            # Up to Python 3.11 it holds a lock. The name is told to it when its class is made only.
            return kind, (obj.func,), {"attrname": obj.attrname}
        elif kind is functools.singledispatchmethod:
            # From Python 3.13 on it has a cache, which its class makes.
            state = {name: value for name, value in vars(obj).items() if name != "_method_cache"}
            return kind, (obj.func,), state
        elif kind in _MANAGERS and hasattr(obj, "func"):
            # One that decorates makes another for each call. Entered ones have no `func` any more.
            return kind, (obj.func, obj.args, obj.kwds)
        elif kind in _METHODS and (home := home_of(obj)):
            return getattr, (sys.modules[home], obj.__name__)
        elif kind is functools._lru_cache_wrapper and (steps := steps_behind(obj)):
            return self._reduce_behind(obj, steps)
        elif kind in declared.PARAMETERS and declared.is_declared(obj):
            owner = self._owners.get(obj)
            return (declared.parameter_of, owner) if owner else declared.reduce_parameter(obj)
        elif kind in _NAMED and getattr(obj, "__module__", None) in ("__main__", None, __name__):
            return _NAMED[kind](obj)
        elif kind is _ALIAS and obj.__module__ in ("__main__", None):
            for place, parameter in enumerate(obj.__type_params__):
                self._owners[parameter] = obj, place
            return declared.reduce_alias(obj)
        elif kind is typing.ForwardRef and sys.version_info >= (3, 14):
            return declared.reduce_reference(obj)
        elif hasattr(kind, "_by_value_for_nbtasks") and _is_task(kind):
            return obj._by_value_for_nbtasks()
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
        if reduced is NotImplemented:
            self.modules.add(function.__module__)
            return reduced
        steps = steps_behind(function)
        if steps:
            return self._reduce_behind(function, steps)
        return _reduce_dispatcher(function) if is_dispatcher(function) else reduced

    def _reduce_behind(self, function: Any, steps: int) -> Any:
        self.modules.add(function.__module__)
        return take_behind, (function.__module__, function.__qualname__, steps)

    def _dynamic_function_reduce(self, function: types.FunctionType) -> Any:
        """Take along what the bodies of classes in a function read, too.

        cloudpickle looks only for what is certainly global. In such a body any name may be.
        """
        like = function
        if sys.version_info >= (3, 14):
            like = declared.with_annotations(function)
        reduced = super()._dynamic_function_reduce(like)
        _, slots = reduced[2]
        if parameters := getattr(function, "__type_params__", ()):
            slots["__type_params__"] = parameters
        known = function.__globals__
        read = (name for name in global_names(function.__code__) if name in known)
        slots["__globals__"].update((name, known[name]) for name in read)
        return reduced

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
            make, parts, state, _, _, set_state = reduced
            if sys.version_info >= (3, 14):  # where cloudpickle leaves them out
                state[0].pop("__annotations_cache__", None)
                if (annotations := declared.annotations_of_class(cls)) is not None:
                    state[0]["__annotations__"] = annotations
            if issubclass(cls, enum.Enum):
                *parts, state, more = _parts_of_enum(cls, *parts, state)
            else:
                parts, more = _parts_of_class(cls, *parts), {}
            return make, tuple(parts), (set_state, state, more), None, None, set_class_state
        return reduced


# cloudpickle 3.1.3 takes of a class what its metaclass does not make by itself, but for these:


def _parts_of_class(
    cls: type, made_by: Any, name: str, bases: Any, namespace: dict[str, Any], *more: Any
) -> tuple[Any, ...]:
    """Add slots and the names of the classes around it."""
    namespace["__qualname__"] = cls.__qualname__
    # Other metaclasses make their own, as named tuples do.
    if "__slots__" in vars(cls) and type(cls) in _PLAIN and not issubclass(cls, tuple):
        namespace["__slots__"] = vars(cls)["__slots__"]
    if typing.is_typeddict(cls) and bases == (dict,):  # up to Python 3.11 it forgets its base
        bases = (typing.TypedDict,)
    return made_by, name, bases, namespace, *more


def _parts_of_enum(cls: Any, bases: Any, name: str, qualname: str, _: Any, *rest: Any) -> list[Any]:
    """Add aliases, combined flags, and what the members have for attributes."""
    *more, (attributes, slots) = rest
    members = cls.__members__
    values = {name: member._value_ for name, member in members.items()}
    attributes = {name: value for name, value in attributes.items() if name not in members}
    # Not what each process computes for itself.
    everything = [item for base in cls.__mro__ for item in vars(base).items()]
    left = _OF_ENUM.union(key for key, value in everything if is_cached(value))
    details = {
        name: {key: value for key, value in vars(member).items() if key not in left}
        for name, member in members.items()
    }
    return [bases, name, qualname, values, *more, (attributes, slots), details]


def is_cached(attribute: Any) -> bool:
    return isinstance(attribute, functools.cached_property)


_PLAIN: Final = frozenset({type, abc.ABCMeta})
#: What `enum` itself sets on a member.
_OF_ENUM: Final = frozenset({"_value_", "_name_", "_sort_order_", "_inverted_", "__objclass__"})


#: What is about a global; and how the body of a class reads what may be one.
_GLOBAL_OPS: Final = frozenset({"LOAD_GLOBAL", "STORE_GLOBAL", "DELETE_GLOBAL"})
_JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_CLASS_OPS: Final = frozenset({"LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"})


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> tuple[str, ...]:
    """Return the globals that a function may read or write, those of functions in it included."""
    names: dict[str, None] = {}
    # In the body of a class `@value.setter` reads no global; what one branch binds may be one.
    bound: set[str] = set()
    joint = 0
    for instruction in dis.get_instructions(code):
        op, name = instruction.opname, instruction.argval
        if instruction.opcode in _JUMPS:
            joint = max(joint, name)
        elif op == "STORE_NAME" and instruction.offset >= joint:
            bound.add(name)
        elif op == "DELETE_NAME":
            bound.discard(name)
        elif op in _GLOBAL_OPS or (op in _CLASS_OPS and name not in bound):
            names[name] = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(dict.fromkeys(global_names(constant)))
    return tuple(names)


#: Arrays of which numpy itself makes bytes inside the pickle: these kinds, and all of times.
_ARRAYS: Final = frozenset({"ndarray", "memmap", "recarray", "matrix", "chararray"})


#: What `contextlib.contextmanager` and its sibling make: they hold a generator.
_MANAGERS: Final = frozenset(
    {contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager}
)


#: Functions that may belong to an instance.
_METHODS: Final = frozenset({types.MethodType, types.BuiltinFunctionType})


def _is_task(kind: type) -> bool:
    """Make sure; the class of a class may say that it has whatever is asked for."""
    return any("_by_value_for_nbtasks" in vars(base) for base in kind.__mro__)


def _reduce_array(array: Any) -> Any:
    """Let the memory of an array lie beside the pickle, where numpy knows no way to that."""
    kind = type(array)
    plain = array if kind.__name__ == "ndarray" else array.view(kind.__mro__[1])
    if array.dtype.kind in "mM":
        return type(plain).view, (plain.view("i8"), array.dtype)
    return NotImplemented if plain is array else (type(plain).view, (plain, kind))


def is_dispatcher(function: types.FunctionType) -> bool:
    """Return whether `functools.singledispatch` has made a function."""
    return function.__code__ is _dispatcher.__code__


_dispatcher: Final[Any] = functools.singledispatch(is_dispatcher)
#: What functools sets on what it makes of a function.
_OF_FUNCTOOLS: Final = frozenset(vars(_dispatcher)) | frozenset(
    vars(functools.lru_cache(is_dispatcher))
)


def set_on(made: Any) -> dict[str, Any]:
    """Return the attributes that users have set on what functools made of a function."""
    return {name: value for name, value in vars(made).items() if name not in _OF_FUNCTOOLS}


# In these the functions are only put in afterwards, because they may refer to what holds them.


def _reduce_dispatcher(dispatcher: Any) -> tuple[Any, ...]:
    state = (dict(dispatcher.registry), dispatcher.__wrapped__, set_on(dispatcher))
    return make_dispatcher, (dispatcher.__name__,), state, None, None, fill_dispatcher


def make_dispatcher(name: str) -> Any:
    def function(_: Any) -> None: ...

    function.__name__ = name
    return functools.singledispatch(function)


def fill_dispatcher(dispatcher: Any, state: tuple[dict[type, Any], Any, dict[str, Any]]) -> None:
    registry, function, attributes = state
    for cls, implementation in registry.items():
        dispatcher.register(cls, implementation)
    functools.update_wrapper(dispatcher, function)
    vars(dispatcher).update(attributes)


def _reduce_cached(cached: Any) -> tuple[Any, ...]:
    parameters = cached.cache_parameters()
    return (
        make_cached,
        (parameters["maxsize"], parameters["typed"]),
        (cached.__wrapped__, set_on(cached)),
        None,
        None,
        fill_cached,
    )


def make_cached(maxsize: int | None, typed: bool) -> Any:
    inside: list[Callable[..., Any]] = []

    @functools.lru_cache(maxsize, typed)
    def cached(*args: Any, **kwargs: Any) -> Any:
        return inside[0](*args, **kwargs)

    cached._inside = inside  # type: ignore[attr-defined]
    return cached


def fill_cached(cached: Any, state: Any) -> None:
    # Former versions gave no attributes.
    function, attributes = state if isinstance(state, tuple) else (state, {})
    inside = cached._inside
    functools.update_wrapper(cached, function)
    vars(cached).update(attributes)
    del cached._inside
    inside.append(function)


def make_type(make: Callable[..., Any], *arguments: Any) -> Any:
    """Make a named type that is the notebook's there, too, so that it can come back."""
    made = make(*arguments)
    made.__module__ = "__main__"
    return made


def make_alias(name: str, value: Any, parameters: tuple[Any, ...]) -> Any:
    # Former versions made an alias so, which cannot name itself.
    return typing.TypeAliasType(name, value, type_params=parameters)  # type: ignore[attr-defined]


#: Things that say of themselves that their name is enough, which it is not in a notebook.
_NAMED: Final[dict[type, Callable[[Any], tuple[Any, ...]]]] = {
    functools._lru_cache_wrapper: _reduce_cached,
    typing.NewType: lambda it: (make_type, (typing.NewType, it.__name__, it.__supertype__)),
    typing.ParamSpec: lambda it: (make_type, (typing.ParamSpec, it.__name__)),
    typing.TypeVarTuple: lambda it: (make_type, (typing.TypeVarTuple, it.__name__)),
}
#: The class of `type Json = ...`; there is none before Python 3.12.
_ALIAS: Final = getattr(typing, "TypeAliasType", None)

_made_here: Final[weakref.WeakSet[type]] = weakref.WeakSet()
#: With the names of the attributes that they came with last.
_from_elsewhere: Final[weakref.WeakKeyDictionary[type, frozenset[str]]] = (
    weakref.WeakKeyDictionary()
)
_trial = threading.local()

#: Decorators, one above the other, that are looked behind.
_MOST_STEPS: Final = 100


@contextlib.contextmanager
def trial() -> Iterator[None]:
    """Load in this block what is then thrown away: classes stay as they are."""
    _trial.on = True
    try:
        yield
    finally:
        _trial.on = False


def set_class_state(cls: Any, state: tuple[Any, ...]) -> Any:
    known = cls in _from_elsewhere
    if cls in _made_here or (known and getattr(_trial, "on", False)):
        return cls
    set_state, inner, *more = state  # former versions gave no more
    names = frozenset(inner[0])
    for name in _from_elsewhere.get(cls, names) - names:  # taken away there
        with contextlib.suppress(AttributeError):
            delattr(cls, name)
    _from_elsewhere[cls] = names
    set_state(cls, inner)
    for details in more:
        for name, attributes in details.items():
            own = vars(cls[name])
            for key in own.keys() - attributes.keys() - _OF_ENUM:  # taken away there
                del own[key]
            own.update(attributes)
    return cls


def steps_behind(function: Any) -> int:
    """Return how many decorators hide `function` in the importable module that has it; 0: none."""
    if function.__module__ in (None, "__main__") or "<" in function.__qualname__:
        return 0
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = inspect.getattr_static(found, name, None)
    for steps in range(_MOST_STEPS):
        if found is function:
            return steps
        found = getattr(found, "__wrapped__", None)
        if found is None:
            break
    return 0


def home_of(method: Any) -> str:
    """Return the installed module that has this very method of an instance; empty: none has.

    By value, `random.random` would take along the state of its generator, and all workers would
    draw the same numbers.
    """
    name = getattr(method, "__name__", "")
    for home in (type(method.__self__).__module__, getattr(method, "__module__", None)):
        if not isinstance(home, str) or home in ("builtins", "__main__"):
            continue
        found = getattr(sys.modules.get(home), "__dict__", {}).get(name)
        if found is method and not modules.is_local_module(home):
            return home
    return ""


def take_behind(module: str, qualname: str, steps: int = _MOST_STEPS) -> Any:
    # Former versions gave no steps, and meant what is behind all decorators.
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = inspect.getattr_static(found, name)
    for _ in range(steps):
        found = getattr(found, "__wrapped__", found)
    return found


def dump(value: Any, keep: Keep | None = None) -> Pickled:
    """Return a pickle of a value, with buffers of their own when it is said how to keep them."""
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


def enclosed(value: Any) -> tuple[Callable[..., Any], tuple[bytes]]:
    """Return how any pickle holds what only ours can: as a pickle inside of it."""
    return pickle.loads, (dump(value).body,)
