"""Names that code reads before it binds them, against what Python itself does with them."""

from __future__ import annotations

import ast
import textwrap

import pytest

from nbtasks.jupyter.names import read_first


@pytest.mark.parametrize(
    ("code", "names"),
    [
        ("x = 1\nx", set()),
        ("x = x + 1", {"x"}),
        ("x += y", {"x", "y"}),
        ("x.a = y", {"x", "y"}),
        ("(y := x) + y", {"x"}),
        ("del x\nx = 1", {"x"}),
        ("x: int = y", {"y", "int"}),
        ("import a.b, c as d\nfrom e import f\na, d, f", set()),
        ("with a as b:\n    b\nb", {"a"}),
        ("if a:\n    x = 1\nelse:\n    x = 2\nx", {"a"}),
        ("if a:\n    x = 1\nx", {"a", "x"}),
        ("if a:\n    x = 1\nelse:\n    x", {"a", "x"}),
        ("while a:\n    x = 1\nx", {"a", "x"}),
        ("for x in y:\n    x", {"y"}),
        ("for x in y:\n    z = x\nz", {"y", "z"}),
        ("try:\n    x = a\nexcept b as c:\n    x = c\nx", {"a", "b"}),
        ("try:\n    x = a\nexcept b:\n    pass\nx", {"a", "b", "x"}),
        ("try:\n    x = a\nexcept* b:\n    pass\nx", {"a", "b", "x"}),
        ("match a:\n    case [b, *c]:\n        b, c\n    case {'k': d, **e}:\n        d, e", {"a"}),
        ("def f(x, y=y):\n    z = x\n    return z, y, w, f", {"y", "w"}),
        ("def f():\n    return x\nx = 1", {"x"}),
        ("lambda x=x: x", {"x"}),
        ("@d\nclass A(b):\n    c = 1\n    c\nA", {"d", "b"}),
        ("[x for x in y if x]\nx", {"y", "x"}),
        ("{k: v for k, v in z}", {"z"}),
        ("async def f():\n    async for a in b:\n        a", {"b"}),
    ],
)
def test_name_counts_when_it_may_be_read_before_it_is_bound(code: str, names: set[str]) -> None:
    assert read_first(ast.parse(textwrap.dedent(code)).body) == names
