"""Which names some code reads before it has bound them for certain.

In a notebook's cell such a name is the notebook's, in a function it would be an error, so whoever
makes a function of a cell must know it. It is better to name one too many: that costs its value's
journey, where one too few would make the code fail.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence


def read_first(statements: Iterable[ast.stmt]) -> set[str]:
    r"""Return the names that statements may read before they have bound them.

    Examples
    --------
    >>> sorted(read_first(ast.parse("y = x\nx = f(y)\nx += 1").body))
    ['f', 'x']
    """
    reading = _Reading()
    reading.go(statements)
    return reading.found


class _Reading(ast.NodeVisitor):
    """Go through code in the order in which it runs."""

    def __init__(self) -> None:
        self.found: set[str] = set()
        self._bound: set[str] = set()

    def go(self, *parts: ast.AST | Iterable[ast.AST | None] | None) -> None:
        for part in parts:
            for node in (part,) if isinstance(part, ast.AST) else part or ():
                if node is not None:
                    self.visit(node)

    def _either(self, *ways: Sequence[ast.AST]) -> None:
        """Take each of several ways; bound afterwards is what all of them bind."""
        before, after = self._bound, []
        for way in ways:
            self._bound = set(before)
            self.go(way)
            after.append(self._bound)
        self._bound = set.intersection(*after)

    # ------------------------------------------------------------------------------- names

    def _read(self, name: str) -> None:
        if name not in self._bound:
            self.found.add(name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):
            self._bound.add(node.id)
            return
        self._read(node.id)
        if isinstance(node.ctx, ast.Del):
            self._bound.discard(node.id)

    def visit_arg(self, node: ast.arg) -> None:
        self._bound.add(node.arg)

    def visit_alias(self, node: ast.alias) -> None:
        self._bound.add(node.asname or node.name.partition(".")[0])

    def _bind_name_of(self, node: ast.MatchAs | ast.MatchStar) -> None:
        self.generic_visit(node)
        if node.name:
            self._bound.add(node.name)

    visit_MatchAs = visit_MatchStar = _bind_name_of

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        self.generic_visit(node)
        if node.rest:
            self._bound.add(node.rest)

    # -------------------------------------------------------------- values before their names

    def _value_first(self, node: ast.Assign | ast.AnnAssign | ast.NamedExpr) -> None:
        self.go(node.value)
        self.generic_visit(node)

    visit_Assign = visit_AnnAssign = visit_NamedExpr = _value_first

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(node.target.id)
        self.go(node.value, node.target)

    # ---------------------------------------------------------------------------- branches

    def visit_If(self, node: ast.If) -> None:
        self.go(node.test)
        self._either(node.body, node.orelse)

    def visit_While(self, node: ast.While) -> None:
        self.go(node.test)
        self._either(node.body, node.orelse)

    def _loop(self, node: ast.For | ast.AsyncFor) -> None:
        self.go(node.iter)
        self._either([node.target, *node.body], node.orelse)

    visit_For = visit_AsyncFor = _loop

    def visit_Try(self, node: ast.Try) -> None:
        self._either([*node.body, *node.orelse], *([handler] for handler in node.handlers))
        self.go(node.finalbody)

    def visit_TryStar(self, node: ast.TryStar) -> None:
        self._either([*node.body, *node.orelse], node.handlers, [])
        self.go(node.finalbody)

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        self.go(node.type)
        self._bound.update({node.name} if node.name else ())
        self.go(node.body)

    def visit_Match(self, node: ast.Match) -> None:
        self.go(node.subject)
        self._either(*([case] for case in node.cases), [])

    # ------------------------------------------------------------------------------ scopes

    def _inside(self, *parts: ast.AST) -> None:
        """Go through a scope of its own: what it binds is bound nowhere else."""
        self._either(parts, [])

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.go(node.decorator_list, node.args.defaults, node.args.kw_defaults)
        self._bound.add(node.name)
        self._inside(node.args, *node.body)

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.go(node.args.defaults, node.args.kw_defaults)
        self._inside(node.args, node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.go(node.decorator_list, node.bases, node.keywords)
        self._inside(*node.body)
        self._bound.add(node.name)

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> None:
        self._inside(*node.generators, node.elt)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = _comprehension

    def visit_DictComp(self, node: ast.DictComp) -> None:
        self._inside(*node.generators, node.key, node.value)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.go(node.iter, node.target, node.ifs)
