"""What a task reaches, as it was; and whether it still is.

Pickling a function takes a hundred microseconds, looking whether it must be done takes one or two.
So when a task is pickled, everything that it reaches is walked once and noted:

    the function        code, defaults, closure cells, attributes, and every global it names, the
                        absent ones included, for they may come
    plain values        an immutable one is noted by identity; rebinding the name shows. What it
                        holds (a union, a slice, a signature) is walked
    list, dict, set     the members by identity, and walked, as long as there are not too many
    classes, functions  of a notebook: walked (annotations are not compared); of modules: by
                        reference, so identity is enough
    tasks               their attributes, their classes, and what they pickle to
    anything else       may change without a trace: the task is *volatile*, and pickled each time

What was noted is written as one expression and compiled: each call of a task asks whether it still
holds, and to compare one thing after the other would take four times as long.
"""

from __future__ import annotations

import abc
import datetime
import decimal
import dis
import fractions
import functools
import gc
import logging
import pathlib
import re
import sys
import types
import typing
import uuid
import zoneinfo
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import Enum
from functools import partial
from operator import attrgetter, call, is_
from typing import Any, Final

from nbtasks.wire import modules, pickling
from nbtasks.wire.shared import Shared

#: Members of a container that are compared; with more, pickling is not dearer.
MOST_MEMBERS: Final = 500
#: Things that are noted of one task.
MOST_THINGS: Final = 20_000

#: Instances of exactly these classes never change.
_IMMUTABLE: Final[frozenset[type]] = frozenset(
    {
        *(int, float, complex, str, bytes, bool, type(None), type(Ellipsis), type(NotImplemented)),
        *(range, decimal.Decimal, fractions.Fraction, uuid.UUID, re.Pattern, Shared),
        *(datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone),
        *(zoneinfo.ZoneInfo, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePosixPath),
        *(pathlib.PureWindowsPath, logging.Logger, logging.RootLogger, types.CodeType),
        *(types.GetSetDescriptorType, types.MemberDescriptorType, types.WrapperDescriptorType),
        *(types.MethodDescriptorType, types.ClassMethodDescriptorType),
        *(type(vars(abc.ABC)["_abc_impl"]), type(getattr(typing, "NoDefault", None))),
        type(vars(namedtuple("_", "field"))["field"]),
    }
)
#: Modules of classes whose instances, found in classes and annotations, never change themselves.
_FIXED_HOMES: Final = frozenset({"typing", "inspect", "dataclasses", "_typing", "annotationlib"})
#: What numpy has that never changes; of its scalars, those with fields do.
_NUMPY: Final = frozenset({"ufunc", "dtype", "generic"})

_FUNCTION_PARTS: Final = ("__code__", "__defaults__", "__kwdefaults__", "__closure__")
_MADE_PARTS: Final = ("_prepared", "__class__.__bases__")


class Reach:
    """What a task reaches.

    Parameters
    ----------
    task
        Walked here and now; what is pickled afterwards is at least as new.
    """

    def __init__(self, task: Any) -> None:
        #: Whether something was met that may change without a trace.
        self.volatile = False
        #: Functions that travel by value, with the globals that they name.
        self.functions: list[tuple[types.FunctionType, tuple[str, ...]]] = []
        #: What was noted, as terms of an expression, and what the names in them mean.
        self._terms: list[str] = []
        self._names: dict[str, Any] = {}
        #: Containers, and what is in each: one term for all of them, as there may be thousands.
        self._containers: list[Collection[Any]] = []
        self._contents: list[tuple[Any, ...]] = []
        self._seen: dict[int, Any] = {}
        self._waiting: list[Any] = []
        self._visit_task(task)
        while self._waiting and not self._is_too_much():
            self._visit(self._waiting.pop())
        if self.volatile:  # nobody asks what was noted, which may be large
            self._terms.clear()
            self._names.clear()
        elif self._containers:
            same, containers, contents = map(self._name, (_same, self._containers, self._contents))
            self._terms.append(f"all(map({same}, {containers}, {contents}))")
        code = _compiled(" and ".join(self._terms) or "True")
        self._holds = types.FunctionType(code, self._names)
        self._terms.clear()
        self._seen.clear()
        self._waiting.clear()

    def _is_too_much(self) -> bool:
        if len(self._seen) > MOST_THINGS:
            self.volatile = True
        return len(self._seen) > MOST_THINGS

    # -------------------------------------------------------------------------------- later

    def unchanged(self) -> bool:
        """Return whether all that was noted is as it was; of a volatile task nothing is noted."""
        try:
            return bool(self._holds())
        except Exception:  # a name is gone, a cell is empty, another thread is at it
            return False

    # ----------------------------------------------------------------------------- the walk

    def _go_on_with(self, values: Iterable[Any]) -> None:
        self._waiting.extend(values)

    def _visit(self, value: Any) -> None:
        kind = type(value)
        if kind in _IMMUTABLE or id(value) in self._seen:
            return
        self._seen[id(value)] = value  # kept, so that no other thing gets its id
        visit = _VISITS.get(kind)
        if visit is not None:
            visit(self, value)
        elif isinstance(value, type):
            self._visit_class(value)
        elif isinstance(value, Enum):
            self._go_on_with((kind,))
            self._visit_mapping(vars(value))
        elif hasattr(kind, "apply_async"):
            self._visit_task(value)
        elif not _is_of_numpy(kind) and not _is_of_package(value):
            if kind.__module__ in _FIXED_HOMES:
                self._visit_held(value)
            else:
                self.volatile = True

    def _name(self, thing: Any) -> str:
        name = f"x{len(self._names)}"
        self._names[name] = thing
        return name

    def _note_attributes(self, owner: Any, *attributes: str) -> list[Any]:
        """Note what some attributes (of those that are named here, in this file) are."""
        name, found = self._name(owner), [attrgetter(each)(owner) for each in attributes]
        self._terms += [
            f"{name}.{attribute} is {self._name(value)}"
            for attribute, value in zip(attributes, found, strict=True)
        ]
        return found

    def _note_items(self, mapping: Mapping[Any, Any], *keys: Any) -> list[Any]:
        """Note what stands under some keys."""
        name, found = self._name(mapping), [mapping[key] for key in keys]
        self._terms += [
            f"{name}[{self._name(key)}] is {self._name(value)}"
            for key, value in zip(keys, found, strict=True)
        ]
        return found

    def _note_members(self, container: Collection[Any]) -> tuple[Any, ...]:
        """Note what is in a container, or in a view of one that goes along with it."""
        found = tuple(container)
        self._containers.append(container)
        self._contents.append(found)
        return found

    def _note_value(self, probe: Callable[[Any], Any], subject: Any, expected: Any) -> None:
        """Note a number or a truth."""
        self._terms.append(f"{self._name(probe)}({self._name(subject)}) == {self._name(expected)}")

    def _visit_mapping(self, mapping: Mapping[Any, Any]) -> None:
        self._visit_members(mapping.keys())
        if mapping:
            self._visit_members(mapping.values())

    def _note_contents(self, mapping: Mapping[Any, Any]) -> None:
        self._note_members(mapping.keys())
        self._note_members(mapping.values())

    def _visit_members(self, container: Collection[Any]) -> None:
        if len(container) > MOST_MEMBERS:
            self.volatile = True
        else:
            self._go_on_with(self._note_members(container))

    def _visit_fixed(self, value: Any) -> None:
        if len(value) > MOST_MEMBERS:
            self.volatile = True
        else:
            self._go_on_with(value)

    def _visit_held(self, value: Any) -> None:
        """Visit all that something holds that never changes itself."""
        self._visit_fixed(gc.get_referents(value))

    def _visit_cell(self, cell: types.CellType) -> None:
        try:
            self._go_on_with(self._note_attributes(cell, "cell_contents"))
        except ValueError:  # nothing is bound yet
            self.volatile = True

    def _visit_function(self, function: types.FunctionType) -> None:
        if self._is_by_reference(function) or pickling.steps_behind(function):
            return
        if pickling.is_dispatcher(function):
            self._visit_mapping(function.registry)  # type: ignore[attr-defined]
            self._visit_made(function)
            return
        _, *parts = self._note_attributes(function, *_FUNCTION_PARTS)
        self._go_on_with(parts)
        self._visit_annotations(function)
        if function.__dict__:
            self._visit_mapping(function.__dict__)
        else:
            self._terms.append(f"not {self._name(function.__dict__)}")
        self._visit_globals(function)

    def _visit_annotations(self, function: types.FunctionType) -> None:
        # Not compared: pydantic has looked at them, and for the body they do nothing.
        try:
            self._go_on_with(function.__annotations__.values())
        except Exception:  # evaluated here, from Python 3.14 on
            self.volatile = True

    def _visit_globals(self, function: types.FunctionType) -> None:
        namespace = function.__globals__
        names = pickling.global_names(function.__code__)
        present = tuple(name for name in names if name in namespace)
        absent = frozenset(names) - set(present)
        self.functions.append((function, present))
        if absent:
            self._note_value(namespace.keys().isdisjoint, absent, True)
        if len(present) > MOST_MEMBERS:
            self.volatile = True
        elif present:
            self._go_on_with(self._note_items(namespace, *present))
            if any(hasattr(namespace[name], "__path__") for name in present):
                # A submodule that is imported later travels too.
                self._note_value(len, sys.modules, len(sys.modules))

    def _visit_class(self, cls: type) -> None:
        if self._is_by_reference(cls):
            return
        self._go_on_with(self._note_attributes(cls, "__bases__"))
        self._visit_mapping(vars(cls))
        self._go_on_with((type(cls),))
        if isinstance(cls, abc.ABCMeta):
            # Which classes were registered travels too.
            self._note_value(call, abc.get_cache_token, abc.get_cache_token())
            registered, *_ = abc._get_dump(cls)  # type: ignore[attr-defined]
            self._go_on_with([made for reference in registered if (made := reference())])

    def _visit_module(self, module: types.ModuleType) -> None:
        if sys.modules.get(module.__name__) is not module:
            self.volatile = True

    def _visit_method(self, method: types.MethodType) -> None:
        if not pickling.home_of(method):
            self._go_on_with((method.__func__, method.__self__))

    def _visit_builtin(self, function: types.BuiltinFunctionType) -> None:
        if not isinstance(function.__self__, types.ModuleType) and not pickling.home_of(function):
            self._go_on_with((function.__self__,))

    def _visit_wrapper(self, wrapper: Any) -> None:
        self._go_on_with((wrapper.__func__,))

    def _visit_property(self, found: property) -> None:
        self._go_on_with((found.fget, found.fset, found.fdel))

    def _visit_cached_property(self, found: functools.cached_property[Any]) -> None:
        self._go_on_with(self._note_attributes(found, "func"))

    def _visit_partial(self, found: partial[Any]) -> None:
        self._go_on_with(self._note_attributes(found, "func", "args", "keywords"))
        self._visit_mapping(found.__dict__)

    def _visit_cached_by_lru(self, found: Any) -> None:
        if not self._is_by_reference(found):
            self._visit_made(found)

    def _visit_made(self, found: Any) -> None:
        """Visit what functools made of a function, but for what it set on that itself."""
        self._note_contents(vars(found))
        self._go_on_with((found.__wrapped__, *pickling.set_on(found).values()))

    def _visit_task(self, task: Any) -> None:
        self._seen[id(task)] = task
        made = type(task)
        if "_made" in vars(made) and getattr(task, "_prepared", None) is not None:
            # A class made by the decorator says nothing of its own, and what was prepared for calls
            # goes whenever an attribute of the task is set: one look instead of thirty.
            _, bases = self._note_attributes(task, *_MADE_PARTS)
            self._go_on_with((bases,))
        else:
            self._note_contents(task.__dict__)
            self._visit_class(made)
        try:
            reduced = task._by_value_for_nbtasks()
        except Exception:  # whoever pickles it will say why
            self.volatile = True
            return
        # What it pickles to may lie in containers that were made just now; their members count.
        for part in reduced[1:3]:
            if isinstance(part, dict):
                self._go_on_with(part.values())
            elif isinstance(part, tuple):
                for inner in part:
                    self._go_on_with(inner.values() if type(inner) is dict else (inner,))
        self._go_on_with(reduced[3:])

    def _is_by_reference(self, value: Any) -> bool:
        """Return whether a function or class is what its module has under its name."""
        place = (getattr(value, "__module__", None), getattr(value, "__qualname__", ""))
        if place[0] in (None, "__main__") or "<locals>" in place[1]:
            return False
        if _look_up(place) != (value,):
            return False
        if modules.is_local_module(place[0]):
            # After a reload it is not any more.
            module = sys.modules.get(place[0])
            self._note_items(sys.modules, place[0])
            look = self._name(attrgetter(place[1]))
            self._terms.append(f"{look}({self._name(module)}) is {self._name(value)}")
        return True


_VISITS: Final[dict[type, Callable[[Reach, Any], None]]] = {
    tuple: Reach._visit_fixed,
    frozenset: Reach._visit_fixed,
    list: Reach._visit_members,
    set: Reach._visit_members,
    dict: Reach._visit_mapping,
    OrderedDict: Reach._visit_mapping,
    types.MappingProxyType: Reach._visit_mapping,
    types.CellType: Reach._visit_cell,
    types.FunctionType: Reach._visit_function,
    types.ModuleType: Reach._visit_module,
    types.MethodType: Reach._visit_method,
    types.BuiltinFunctionType: Reach._visit_builtin,
    staticmethod: Reach._visit_wrapper,
    classmethod: Reach._visit_wrapper,
    property: Reach._visit_property,
    functools.cached_property: Reach._visit_cached_property,
    partial: Reach._visit_partial,
    slice: Reach._visit_held,
    types.GenericAlias: Reach._visit_held,
    types.UnionType: Reach._visit_held,
    types.MethodWrapperType: Reach._visit_held,
    functools._lru_cache_wrapper: Reach._visit_cached_by_lru,
    type(Callable[[], None]): Reach._visit_held,
}


@functools.lru_cache(maxsize=64)
def _compiled(expression: str) -> types.CodeType:
    """Return the code of a function without parameters that returns an expression.

    A task whose globals change makes the same expression each time, of other things.
    """
    (code,) = (
        each
        for each in compile(f"lambda: {expression}", "<reach>", "eval").co_consts
        if isinstance(each, types.CodeType)
    )
    return code


def _same(container: Collection[Any], expected: tuple[Any, ...]) -> bool:
    """Return whether a container holds exactly these things, in this order."""
    return len(container) == len(expected) and all(map(is_, container, expected))


def _look_up(place: tuple[Any, str]) -> tuple[Any, ...]:
    """Return what a module has under a name, in a tuple; nothing when there is none."""
    found: Any = sys.modules.get(place[0])
    try:
        for name in place[1].split("."):
            found = getattr(found, name)
    except AttributeError:
        return ()
    return (found,)


def _is_of_numpy(kind: type) -> bool:
    """Return whether instances of a class of numpy never change."""
    if kind.__module__.partition(".")[0] != "numpy":
        return False
    names = {base.__name__ for base in kind.__mro__}
    return "void" not in names and not names.isdisjoint(_NUMPY)


def _is_of_package(value: Any) -> bool:
    """Return whether an installed module has exactly this under the name it bears."""
    module = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return False
    found = _look_up((module, name))
    return bool(found) and found[0] is value and not modules.is_local_module(module)


@functools.lru_cache(maxsize=4096)
def imports_of(code: types.CodeType) -> tuple[str, ...]:
    """Return the modules that the code itself imports when it runs, as far as it says."""
    names: dict[str, None] = {}
    module = ""
    for instruction in dis.get_instructions(code):
        if instruction.opname == "IMPORT_NAME":
            module = instruction.argval
            names[module] = None
        elif instruction.opname == "IMPORT_FROM" and module:
            names[f"{module}.{instruction.argval}"] = None
    return tuple(names)
