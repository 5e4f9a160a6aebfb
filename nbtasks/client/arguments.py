"""The arguments of a call: do they fit, how do they look, what becomes of them at a retry."""

from __future__ import annotations

import functools
import inspect
import keyword
import types
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any, Final, NoReturn

from nbtasks.wire import declared

#: Letters that a call's arguments may take in lists and panels.
SUMMARY: Final = 80

#: Letters that one argument may take.
_SHOWN: Final = 40
#: Classes whose `repr` is short when they take few bytes.
_ATOMS: Final = frozenset({int, float, bool, type(None), str, bytes})
#: Items of a container that are shown.
_ITEMS: Final = 4
#: Numbers of more bits take long to write out.
_BITS: Final = 128

# ---------------------------------------------------------------------------------- do they fit?


def make_check(function: Callable[..., Any], name: str, bound: bool) -> Callable[..., Any] | None:
    """Return a function that takes what `function` takes, does nothing, and is fast.

    Calling it raises the very TypeError that calling the function would raise.

    Parameters
    ----------
    function
        Whose parameters count.
    name
        The name to show in the error.
    bound
        Whether the first parameter is the task itself, which callers do not give.

    Returns
    -------
    callable or None
        None when nobody can say what the function takes (some written in C).
    """
    # What a decorator written in Python takes may differ from what it wraps: it may give arguments
    # of its own. Caches written in C take what they wrap.
    own = isinstance(function, (types.FunctionType, types.MethodType))
    signature = signature_of(function, bound=False, follow_wrapped=not own)
    if signature is None:
        return None
    if bound:
        if _PLACED.isdisjoint(parameter.kind for parameter in signature.parameters.values()):
            return functools.partial(_refuse, name)
        signature = _without_task(signature)
    parameters = list(signature.parameters.values())
    if not all(_is_plain(parameter.name) for parameter in parameters):
        return signature.bind
    scope: dict[str, Any] = {}
    exec(f"def check({_parameter_list(parameters)}): pass", scope)
    check: Any = scope["check"]
    check.__name__ = check.__qualname__ = name
    checked: Callable[..., Any] = check
    return checked


def signature_of(
    function: Callable[..., Any], bound: bool, *, follow_wrapped: bool = True
) -> inspect.Signature | None:
    """Return what callers give to `function`, or None when nobody can say."""
    try:
        signature = declared.signature(function, follow_wrapped=follow_wrapped)
    except (TypeError, ValueError):
        return None
    return _without_task(signature) if bound else signature


def _without_task(signature: inspect.Signature) -> inspect.Signature:
    """Return what is left for callers when the task itself is the first argument."""
    parameters = list(signature.parameters.values())
    if parameters and parameters[0].kind is not Parameter.VAR_POSITIONAL:
        parameters = parameters[1:]
    return signature.replace(parameters=parameters)


#: Kinds of parameters that the task itself can be given to.
_PLACED: Final = frozenset(
    {Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL}
)


def _refuse(name: str, /, *args: Any, **kwargs: Any) -> NoReturn:
    raise TypeError(
        f"{name}() has no parameter for the task itself, which bind=True gives it as its first "
        f"argument. Write def {name}(self, ...), or leave bind=True out."
    )


def _is_plain(name: str) -> bool:
    return name.isidentifier() and not keyword.iskeyword(name)


_STARS: Final[dict[Any, str]] = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}


def _parameter_list(parameters: list[Parameter]) -> str:
    """Return the text between the brackets of a definition with these parameters."""
    parts: list[str] = []
    before: Any = None
    for parameter in parameters:
        kind = parameter.kind
        if before is Parameter.POSITIONAL_ONLY and kind is not before:
            parts.append("/")
        if kind is Parameter.KEYWORD_ONLY and before not in (kind, Parameter.VAR_POSITIONAL):
            parts.append("*")
        stars = _STARS.get(kind, "")
        default = "" if parameter.default is Parameter.empty else "=None"
        parts.append(f"{stars}{parameter.name}{default}")
        before = kind
    if before is Parameter.POSITIONAL_ONLY:
        parts.append("/")
    return ", ".join(parts)


# ---------------------------------------------------------------------------- how do they look?


def summarize(args: tuple[Any, ...], kwargs: Mapping[str, Any], small: bool = False) -> str:
    """Return arguments as short text: `(3, lr=0.1)`.

    Never long, never slow, never an error, whatever the arguments are: only the `repr` of small
    builtin values is used; of others the class is shown, of arrays the shape.

    Parameters
    ----------
    args, kwargs
        The arguments.
    small
        Whether they are known to take few bytes; then simple ones are not looked at one by one.
    """
    if small and not kwargs and _ATOMS.issuperset(map(type, args)):
        text = repr(args)
        return cut(text if len(args) != 1 else f"{text[:-2]})")
    shown = [_SHORT.get(type(value), _other)(value) for value in args[:_SHOWN]]
    if kwargs:
        shown += [
            f"{name}={_SHORT.get(type(value), _other)(value)}"
            for name, value in list(kwargs.items())[:_SHOWN]
        ]
    return cut(f"({', '.join(shown)})")


def shown(value: object) -> str:
    """Return one value as short text."""
    return cut(_SHORT.get(type(value), _other)(value))


def cut(text: str) -> str:
    """Return a summary of at most `SUMMARY` letters that UTF-8 can carry."""
    if not text.isascii():
        # Names of arguments and classes may hold halves of characters, which repr spells out.
        text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= SUMMARY else f"{text[: SUMMARY - 2]}…)"


def _integer(value: int) -> str:
    bits = value.bit_length()
    return repr(value) if bits <= _BITS else f"<int of {bits} bits>"


def _text(value: str | bytes | bytearray) -> str:
    return repr(value) if len(value) <= _SHOWN else f"{value[: _SHOWN - 1]!r}…"


def _sequence(value: Any, nested: bool = False) -> str:
    opening, closing = _BRACKETS[type(value)]
    if nested:
        return f"{opening}…{closing}" if value else f"{opening}{closing}"
    items = [_item(item) for item, _ in zip(value, range(_ITEMS), strict=False)]
    if len(value) > _ITEMS:
        items.append("…")
    comma = "," if len(value) == 1 and type(value) is tuple else ""
    return f"{opening}{', '.join(items)}{comma}{closing}"


def _mapping(value: dict[Any, Any], nested: bool = False) -> str:
    if nested:
        return "{…}" if value else "{}"
    items = [
        f"{_item(key)}: {_item(item)}"
        for (key, item), _ in zip(value.items(), range(_ITEMS), strict=False)
    ]
    if len(value) > _ITEMS:
        items.append("…")
    return f"{{{', '.join(items)}}}"


def _item(value: Any) -> str:
    kind = type(value)
    if kind in _BRACKETS:
        return _sequence(value, nested=True)
    if kind is dict:
        return _mapping(value, nested=True)
    return _SHORT.get(kind, _other)(value)


_BRACKETS: Final[dict[type, tuple[str, str]]] = {
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("{", "}"),
}

_SHORT: Final[dict[type, Callable[[Any], str]]] = {
    int: _integer,
    float: repr,
    complex: repr,
    bool: repr,
    type(None): repr,
    range: repr,
    str: _text,
    bytes: _text,
    bytearray: _text,
    dict: _mapping,
    **dict.fromkeys(_BRACKETS, _sequence),
}

#: Top modules of values whose `repr` is short, quick and says more than their class.
_TELLING: Final = frozenset({"datetime", "decimal", "fractions", "pathlib", "uuid", "zoneinfo"})
#: Top modules of arrays and tables: `shape` costs nothing, `repr` may cost much.
_SHAPED: Final = frozenset({"cupy", "dask", "jax", "numpy", "pandas", "polars", "torch", "xarray"})


def _other(value: Any) -> str:
    kind = type(value)
    try:
        home = kind.__module__.partition(".")[0]
        if home in _TELLING:
            return _clip(str(value) if home == "decimal" else repr(value))
        if home in _SHAPED:
            return _array(value)
        if isinstance(value, type) or (callable(value) and hasattr(value, "__name__")):
            return _clip(str(value.__name__))
        return _clip(f"<{kind.__name__}>")
    except Exception:  # a strange object must not stop its own submission
        return "<?>"


def _array(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape == ():
        return _clip(repr(value.item()) if hasattr(value, "item") else f"<{type(value).__name__}>")
    if isinstance(shape, tuple):
        return _clip(f"<{type(value).__name__} {'×'.join(map(str, shape))}>")
    return f"<{type(value).__name__}>"


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


# --------------------------------------------------------------------------- what a retry changes


def merge_for_retry(
    signature: inspect.Signature | None,
    old: tuple[tuple[Any, ...], dict[str, Any]],
    args: tuple[Any, ...] | None,
    kwargs: dict[str, Any] | None,
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of the next run: new ones replace the old, what does not clash stays.

    Parameters
    ----------
    signature
        What the task takes, or None when nobody can say.
    old
        Arguments of this run.
    args, kwargs
        New ones; None: those of this run.

    Examples
    --------
    >>> def f(a, b, c=0): ...
    >>> merge_for_retry(inspect.signature(f), ((1, 2), {"c": 3}), None, {"b": 5})
    ((1,), {'c': 3, 'b': 5})
    """
    old_args, old_kwargs = old
    if args is not None and kwargs is not None:
        return args, kwargs
    names = _positional(signature)
    if args is not None:
        taken = names[: len(args)]
        return args, {name: value for name, value in old_kwargs.items() if name not in taken}
    if kwargs is None:
        return old
    clash = [place for place, name in enumerate(names[: len(old_args)]) if name in kwargs]
    if clash and len(old_args) <= len(names):
        # From the first one on they go by name. (What stands in *args has no name.)
        first = clash[0]
        named = dict(zip(names[first:], old_args[first:], strict=False))
        return old_args[:first], {**old_kwargs, **named, **kwargs}
    return old_args, {**old_kwargs, **kwargs}


def _positional(signature: inspect.Signature | None) -> list[str]:
    """Return the names of the parameters that have a place; empty for those that only have one."""
    names = []
    for name, parameter in signature.parameters.items() if signature is not None else ():
        if parameter.kind is Parameter.POSITIONAL_OR_KEYWORD:
            names.append(name)
        elif parameter.kind is Parameter.POSITIONAL_ONLY:
            names.append("")
    return names
