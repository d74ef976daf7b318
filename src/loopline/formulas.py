"""Formulas such as `Sales ~ TV + C(region)`: taken apart, checked, and computed over columns.

The text is read with Python's own parser and only the arithmetic known here is let through, so
nothing in a formula is ever executed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from loopline.errors import InvalidInput

Array = np.ndarray[Any, np.dtype[Any]]
Term = tuple[str, ...]
"""The labels of the factors that are multiplied; the empty term is the intercept."""

_FUNCTIONS = "abs cos exp expm1 log log10 log1p log2 sin sqrt tan tanh".split()
_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.Pow: np.power,
    ast.USub: np.negative,
    ast.UAdd: np.positive,
}
_QUOTED = re.compile(r"(\"[^\"]*\"|'[^']*')")
MOST_TERMS = 200


class Parsed(NamedTuple):
    """A formula taken apart: its target, its factors by label, and its terms in their order."""

    target: str | None
    factors: dict[str, ast.expr]
    terms: tuple[Term, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns that the factors read."""
        return tuple(dict.fromkeys(name for node in self.factors.values() for name in _reads(node)))


def parse(formula: str) -> Parsed:
    """Take a formula such as `Sales ~ TV + Radio + I(TV**2) + C(region)` apart.

    `+` adds terms, `-` removes them (`- 1` the intercept), `a:b` multiplies, `a*b` means
    `a + b + a:b`. `I(...)` holds arithmetic, `C(...)` makes a column a category, `Q("...")` names
    a column that is not an identifier, and functions such as `log` and `sqrt` are known. The
    target may be left out.

    Raises:
        InvalidInput: it is not of that form; nothing in it is ever executed.
    """
    parts = _QUOTED.split(formula)
    # Python has no binary colon; the power operator binds as tightly, and arithmetic powers stand
    # only inside calls or before a whole number.
    source = "".join(part if i % 2 else part.replace(":", "**") for i, part in enumerate(parts))
    left, tilde, right = source.partition("~")
    try:
        target = _column(_expression(left)) if tilde and left.strip() else None
        factors: dict[str, ast.expr] = {}
        intercept: list[Term] = [()]
        terms: dict[Term, None] = dict.fromkeys(intercept)
        for sign, node in _signed(_expression(right if tilde else left)):
            if isinstance(node, ast.Constant) and node.value in (0, 1):
                sign, found = (sign if node.value else -sign), intercept
            else:
                found = _expand(node, factors)
            for term in found:
                if sign > 0:
                    terms[term] = None
                else:
                    terms.pop(term, None)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError) as error:
        raise unfit(f"the formula {formula!r} can't be read: {error}") from error
    kept = {label: node for label, node in factors.items() if any(label in t for t in terms)}
    return Parsed(target, kept, tuple(terms))


def unfit(detail: str) -> InvalidInput:
    """The error that a formula which does not fit the data, or no grammar, is refused with."""
    return InvalidInput.at(detail, "/formula")


def _expression(source: str) -> ast.expr:
    return ast.parse(source.strip(), mode="eval").body


def _signed(node: ast.expr, sign: int = 1) -> Iterator[tuple[int, ast.expr]]:
    """The operands of a sum, each with its sign."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        yield from _signed(node.left, sign)
        yield from _signed(node.right, sign if isinstance(node.op, ast.Add) else -sign)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        yield from _signed(node.operand, sign if isinstance(node.op, ast.UAdd) else -sign)
    else:
        yield sign, node


def _expand(node: ast.expr, factors: dict[str, ast.expr]) -> list[Term]:
    """The terms that an operand stands for; its factors are noted by label."""
    if not isinstance(node, ast.BinOp):
        label = ast.unparse(node)
        if not list(_reads(node)):
            raise ValueError(f"{label} names no column")
        factors[label] = node
        return [(label,)]
    left, op = _expand(node.left, factors), node.op
    if isinstance(op, ast.Pow) and isinstance(node.right, ast.Constant):
        found, times = left, node.right.value
        if not isinstance(times, int) or not 1 <= times <= 8:
            raise ValueError("write a power of a column as I(x**2)")
        for _ in range(times - 1):
            found = list(dict.fromkeys([*found, *_crossed(found, left)]))
        return found
    right = _expand(node.right, factors)
    crossed = _crossed(left, right)
    made = {
        ast.Add: [*left, *right],
        ast.Mult: [*left, *right, *crossed],
        ast.Div: [*left, *crossed],
        ast.Pow: crossed,
    }.get(type(op))
    if made is None:
        raise ValueError(f"{ast.unparse(node)} is not a sum of terms")
    return made


def _crossed(left: Sequence[Term], right: Sequence[Term]) -> list[Term]:
    made = [tuple(dict.fromkeys(a + b)) for a in left for b in right]
    unique = list({frozenset(term): term for term in reversed(made)}.values())[::-1]
    if len(unique) > MOST_TERMS:
        raise ValueError(f"it has more than {MOST_TERMS} terms")
    return unique


def _column(node: ast.expr) -> str:
    """The column that a lone name, or `Q("...")`, stands for."""
    names = list(_reads(node))
    if isinstance(node, ast.Name) or (called(node) == "Q" and names):
        return names[0]
    raise ValueError(f"the target {ast.unparse(node)} is not a column")


def _sides(node: ast.BinOp | ast.UnaryOp) -> list[ast.expr]:
    return [node.operand] if isinstance(node, ast.UnaryOp) else [node.left, node.right]


def called(node: ast.expr) -> str | None:
    """The function that a call names, with or without `np.` before it."""
    if not isinstance(node, ast.Call) or len(node.args) != 1 or node.keywords:
        return None
    name = ast.unparse(node.func)
    return name.removeprefix("numpy.").removeprefix("np.")


def _reads(node: ast.expr) -> Iterator[str]:
    """The columns in an expression.

    Raises:
        ValueError: the expression holds anything but the arithmetic that is known.
    """
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.BinOp | ast.UnaryOp) and type(node.op) in _OPERATORS:
        for side in _sides(node):
            yield from _reads(side)
    elif isinstance(node, ast.Call) and (name := called(node)) is not None:
        inner = node.args[0]
        if name == "Q" and isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield inner.value
        elif name in ("C", "I", *_FUNCTIONS):
            yield from _reads(inner)
        else:
            raise ValueError(f"{name} is not known; there are C, I, Q, {', '.join(_FUNCTIONS)}")
    elif not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
        raise ValueError(f"{ast.unparse(node)} has no meaning here")
    else:
        float(node.value)  # type: ignore[arg-type]


def computed(node: ast.expr, columns: Mapping[str, Array]) -> Any:
    """Compute an expression over columns."""
    if isinstance(node, ast.Name):
        return columns[node.id]
    if isinstance(node, ast.Constant):
        return np.float64(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        return _OPERATORS[type(node.op)](*(computed(side, columns) for side in _sides(node)))
    assert isinstance(node, ast.Call)
    name, inner = called(node), node.args[0]
    if name == "Q":
        return columns[inner.value]  # type: ignore[attr-defined]
    found = computed(inner, columns)
    return found if name in ("C", "I") else getattr(np, name or "")(found)
