"""Formulas over one score: what `score=` and a mask compute for one query row and one key row.

    Apply("*", (Number(50.0), Apply("tanh", (Apply("/", (Score(), Number(50.0))),))))          a soft cap

A formula is evaluated by torch, printed as Triton, and differentiated; for each function all three stand in one row of
FUNCTIONS. As nested tuples, formulas look like the predicates of functions/masks.py, with ("score",) for the score and
numbers for captured tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..functions.pointwise import whole
from ..functions.scores import each_head


@dataclass(frozen=True)
class Number:
    value: float | int | bool


@dataclass(frozen=True)
class Score:
    """scale * q . k"""


@dataclass(frozen=True)
class Row:
    """A captured value, read at the query's or the key's row."""

    side: str
    index: int


@dataclass(frozen=True)
class Entry:
    """Of a captured table, or of each head's, the entry that the whole number `at` counts."""

    index: int
    at: Formula


@dataclass(frozen=True)
class Apply:
    name: str
    arguments: tuple[Formula, ...]


Formula = Number | Score | Row | Entry | Apply
ZERO, ONE = Number(0.0), Number(1.0)


@dataclass(frozen=True)
class Function:
    """`text` has one slot per argument; `partials` gives the derivative by each argument, () if it has none."""

    evaluate: Callable[..., Any]
    text: str
    partials: Callable[..., tuple[Formula, ...]] = lambda *_: ()


def _call(name: str, *arguments: Formula) -> Formula:
    return Apply(name, arguments)


def _extreme(keep: str) -> Callable[[Formula, Formula], tuple[Formula, ...]]:
    """Of equal arguments each gets half, as in torch."""

    def partials(a: Formula, b: Formula) -> tuple[Formula, ...]:
        tie = _call("where", _call("==", a, b), Number(0.5), ZERO)
        return (
            _call("where", _call(keep, a, b), ONE, tie),
            _call("where", _call(keep, b, a), ONE, tie),
        )

    return partials


def _torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a torch function take numbers."""

    def evaluate(*arguments: Any) -> Any:
        like = next((x for x in arguments if isinstance(x, Tensor)), None)
        device = None if like is None else like.device
        real = like.dtype if like is not None and like.is_floating_point() else None

        def tensor(x: Any) -> Tensor:
            if isinstance(x, Tensor):
                return x
            return torch.tensor(x, device=device, dtype=real if isinstance(x, float) else None)

        return function(*(tensor(x) for x in arguments))

    return evaluate


FUNCTIONS: Mapping[str, Function] = {
    "+": Function(lambda a, b: a + b, "({} + {})", lambda a, b: (ONE, ONE)),
    "-": Function(lambda a, b: a - b, "({} - {})", lambda a, b: (ONE, Number(-1.0))),
    "*": Function(lambda a, b: a * b, "({} * {})", lambda a, b: (b, a)),
    "/": Function(
        lambda a, b: a / b,
        "({} / {})",
        lambda a, b: (_call("/", ONE, b), _call("neg", _call("/", a, _call("*", b, b)))),
    ),
    "neg": Function(lambda a: -a, "(-{})", lambda a: (Number(-1.0),)),
    "abs": Function(
        _torch(torch.abs),
        "tl.abs({})",
        lambda a: (_call("where", _call(">", a, ZERO), ONE, _call("where", _call("<", a, ZERO), Number(-1.0), ZERO)),),
    ),
    "real": Function(lambda a: a, "{}", lambda a: (ONE,)),
    "exp": Function(_torch(torch.exp), "tl.exp({})", lambda a: (_call("exp", a),)),
    "log": Function(_torch(torch.log), "tl.log({})", lambda a: (_call("/", ONE, a),)),
    "sqrt": Function(_torch(torch.sqrt), "tl.sqrt({})", lambda a: (_call("/", Number(0.5), _call("sqrt", a)),)),
    "tanh": Function(
        _torch(torch.tanh), "tanh({})", lambda a: (_call("-", ONE, _call("*", _call("tanh", a), _call("tanh", a))),)
    ),
    "sigmoid": Function(
        _torch(torch.sigmoid),
        "(1.0 / (1.0 + tl.exp(-({}))))",
        lambda a: (_call("*", _call("sigmoid", a), _call("-", ONE, _call("sigmoid", a))),),
    ),
    "rsqrt": Function(
        _torch(torch.rsqrt),
        "tl.rsqrt({})",
        lambda a: (_call("/", _call("*", Number(-0.5), _call("rsqrt", a)), a),),
    ),
    "sin": Function(_torch(torch.sin), "tl.sin({})", lambda a: (_call("cos", a),)),
    "cos": Function(_torch(torch.cos), "tl.cos({})", lambda a: (_call("neg", _call("sin", a)),)),
    "erf": Function(
        _torch(torch.erf),
        "tl.erf({})",
        lambda a: (_call("*", Number(2 / math.sqrt(math.pi)), _call("exp", _call("neg", _call("*", a, a)))),),
    ),
    "softplus": Function(_torch(torch.nn.functional.softplus), "softplus({})", lambda a: (_call("sigmoid", a),)),
    "relu": Function(
        _torch(torch.relu), "tl.maximum({}, 0.0)", lambda a: (_call("where", _call(">", a, ZERO), ONE, ZERO),)
    ),
    "sign": Function(_torch(torch.sign), "sign({})"),
    "floor": Function(_torch(torch.floor), "tl.floor({})"),
    "ceil": Function(_torch(torch.ceil), "tl.ceil({})"),
    "stop_gradient": Function(_torch(torch.detach), "{}"),
    "int": Function(_torch(whole), "{}.to(tl.int64)"),
    "mod": Function(
        operator.mod, "remainder({}, {})", lambda a, b: (ONE, _call("neg", _call("floor", _call("/", a, b))))
    ),
    "floordiv": Function(operator.floordiv, "quotient({}, {})"),
    "min": Function(_torch(torch.minimum), "tl.minimum({}, {})", _extreme("<")),
    "max": Function(_torch(torch.maximum), "tl.maximum({}, {})", _extreme(">")),
    "where": Function(
        _torch(torch.where),
        "tl.where({}, {}, {})",
        lambda c, a, b: (ZERO, _call("where", c, ONE, ZERO), _call("where", c, ZERO, ONE)),
    ),
    "==": Function(lambda a, b: a == b, "({} == {})"),
    "!=": Function(lambda a, b: a != b, "({} != {})"),
    "<": Function(lambda a, b: a < b, "({} < {})"),
    "<=": Function(lambda a, b: a <= b, "({} <= {})"),
    ">": Function(lambda a, b: a > b, "({} > {})"),
    ">=": Function(lambda a, b: a >= b, "({} >= {})"),
    "and": Function(_torch(torch.logical_and), "({} & {})"),
    "or": Function(_torch(torch.logical_or), "({} | {})"),
    "not": Function(_torch(torch.logical_not), "({} == 0)"),
}


# Functions whose result is a real whatever they are given, and those whose result is none.
_OF_REALS = {
    "/", "exp", "log", "sqrt", "rsqrt", "tanh", "sigmoid", "sin", "cos", "erf", "softplus", "relu", "sign",
    "floor", "ceil", "real",
}  # fmt: skip
_NO_REALS = {"==", "!=", "<", "<=", ">", ">=", "and", "or", "not", "int"}


# -- as tuples -------------------------------------------------------------------------------------


# Names of functions/scores.py for functions that a mask writes as operators.
_OTHER_NAMES = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">",
    "ge": ">=", "and_": "and", "or_": "or", "not_": "not", "minimum": "min", "maximum": "max",
}  # fmt: skip


def applied(name: str, arguments: tuple[Formula, ...]) -> Formula:
    """A function by either of its names. Powers are small whole numbers. ValueError: no such function."""
    name = _OTHER_NAMES.get(name, name)
    match name, arguments:
        case "pow", (base, Number(exponent)) if exponent in (1, 2, 3, 4):
            power = base
            for _ in range(int(exponent) - 1):
                power = _call("*", power, base)
            return power
        case _ if name in FUNCTIONS:
            return Apply(name, arguments)
        case _:
            raise ValueError(f"attention kernels cannot compute {name} of a score")


def is_known(nested: Any) -> bool:
    """Whether kernels can compute all functions of a formula written as nested tuples, whatever it reads."""
    match nested:
        case ("number" | "score" | "query" | "key", *_):
            return True
        case ("entry", _, at):
            return is_known(at)
        case (str() as name, *arguments):
            stand_ins = tuple(Number(a[1]) if a[0] == "number" else Score() for a in arguments)
            try:
                applied(name, stand_ins)
            except ValueError:
                return False
            return all(is_known(argument) for argument in arguments)
        case _:
            return False


def from_tuple(nested: Any) -> Formula:
    match nested:
        case ("number", value):
            return Number(value)
        case ("score",):
            return Score()
        case ("query" | "key" as side, int() as index):
            return Row(side, index)
        case ("entry", int() as index, at):
            return Entry(index, from_tuple(at))
        case (str() as name, *arguments):
            return applied(name, tuple(from_tuple(argument) for argument in arguments))
        case _:
            raise ValueError(f"not a formula of a score: {nested!r}")


def to_tuple(formula: Formula) -> tuple[Any, ...]:
    match formula:
        case Number(value):
            return ("number", value)
        case Score():
            return ("score",)
        case Row(side, index):
            return (side, index)
        case Entry(index, at):
            return ("entry", index, to_tuple(at))
        case Apply(name, arguments):
            return (name, *(to_tuple(argument) for argument in arguments))


# -- what is done with one -------------------------------------------------------------------------


def folded(formula: Formula) -> Formula:
    """Functions of numbers alone are computed: in Triton such a number would have no type."""
    if isinstance(formula, Entry):
        return Entry(formula.index, folded(formula.at))
    if not isinstance(formula, Apply):
        return formula
    arguments = tuple(folded(argument) for argument in formula.arguments)
    if all(isinstance(argument, Number) for argument in arguments):
        values = [argument.value for argument in arguments if isinstance(argument, Number)]
        wide = [float(x) if formula.name in _OF_REALS else x for x in values]
        result = FUNCTIONS[formula.name].evaluate(*(torch.tensor(x, dtype=_wide(x)) for x in wide))
        return Number(result.item())
    return Apply(formula.name, arguments)


def _wide(value: float | int | bool) -> torch.dtype | None:
    return torch.float64 if isinstance(value, float) else None


def functions(formula: Formula) -> int:
    """How many a formula applies."""
    if isinstance(formula, Entry):
        return 1 + functions(formula.at)
    return 1 + sum(map(functions, formula.arguments)) if isinstance(formula, Apply) else 0


def leaves(formula: Formula) -> Iterator[Formula]:
    """Entries of tables come after the leaves of what counts them."""
    if isinstance(formula, Apply):
        for argument in formula.arguments:
            yield from leaves(argument)
        return
    if isinstance(formula, Entry):
        yield from leaves(formula.at)
    yield formula


def replaced(formula: Formula, known: Mapping[Entry, Row]) -> Formula:
    """With the entries of tables named as other values are: what stands in them is forgotten."""
    if isinstance(formula, Entry):
        return known[formula]
    if isinstance(formula, Apply):
        return Apply(formula.name, tuple(replaced(argument, known) for argument in formula.arguments))
    return formula


def evaluate(formula: Formula, score: Tensor | None, rows: Callable[[Row], Tensor], real: torch.dtype) -> Any:
    """With torch; `rows` gives captured values, shaped to broadcast with the score `[.., heads, queries, keys]`, or
    tables, `[entries]` or `[heads, entries]`, as of the side "table". Integers meet reals as `real`."""
    match formula:
        case Number(value):
            return value
        case Score():
            return score
        case Row():
            return rows(formula)
        case Entry(index, inner):
            table, at = rows(Row("table", index)), torch.as_tensor(evaluate(inner, score, rows, real))
            at = at.to(table.device, torch.int64)
            return table[at] if table.dim() == 1 else table[each_head(table), at]
        case Apply(name, arguments):
            values = [evaluate(argument, score, rows, real) for argument in arguments]
            first = 1 if name == "where" else 0
            if name in _OF_REALS or any(_is_real(value) for value in values[first:]):
                values[first:] = [value.to(real) if isinstance(value, Tensor) else value for value in values[first:]]
            return FUNCTIONS[name].evaluate(*values)


def _is_real(value: Any) -> bool:
    return value.is_floating_point() if isinstance(value, Tensor) else isinstance(value, float)


def triton_text(formula: Formula, is_real: Callable[[Row], bool], real: str) -> str:
    """An expression over `score`, `query_0`, `key_1`, ...; integers meet reals as `real`, a type of Triton."""
    return _typed_text(formula, is_real, real)[0]


def _typed_text(formula: Formula, is_real: Callable[[Row], bool], real: str) -> tuple[str, bool, bool]:
    """Text, whether it is a real, and whether it is a tensor."""
    match formula:
        case Number(value):
            text = f'float("{value}")' if value in (float("inf"), float("-inf")) else repr(value)
            return text, isinstance(value, float), False
        case Score():
            return "score", True, True
        case Row(side, index):
            return f"{side}_{index}", is_real(formula), True
        case Entry():
            raise ValueError("entries are loaded before a formula is printed: `replaced`")
        case Apply(name, arguments):
            given = [_typed_text(argument, is_real, real) for argument in arguments]
            first = 1 if name == "where" else 0
            becomes_real = name in _OF_REALS or any(is_real for _, is_real, _ in given[first:])
            texts = [
                f"{text}.to({real})" if place >= first and becomes_real and is_tensor and not is_real else text
                for place, (text, is_real, is_tensor) in enumerate(given)
            ]
            if name == "*" and not becomes_real:
                # Positions are held in 32 bits, and the language multiplies in 64.
                texts = [f"{text}.to(tl.int64)" if given[place][2] else text for place, text in enumerate(texts)]
            text = FUNCTIONS[name].text.format(*texts)
            return text, becomes_real and name not in _NO_REALS, any(is_tensor for *_, is_tensor in given)


def derivative(formula: Formula, by: Score | Row | Entry) -> Formula:
    """d formula / d by, simplified where a factor is 0 or 1. Comparisons and integers have none."""
    if formula == by:
        return ONE
    if not isinstance(formula, Apply):
        return ZERO
    total: Formula = ZERO
    partials = FUNCTIONS[formula.name].partials(*formula.arguments)
    for argument, partial in zip(formula.arguments, partials, strict=False):
        inner = derivative(argument, by)
        total = _sum(total, _pulled(formula, partial, inner))
    return total


def _pulled(formula: Apply, partial: Formula, inner: Formula) -> Formula:
    if formula.name == "where" and inner != ZERO and isinstance(partial, Apply):
        # What is not chosen may be infinite: choose, do not multiply by 0.
        condition, chosen, _ = partial.arguments
        return _call("where", condition, inner, ZERO) if chosen == ONE else _call("where", condition, ZERO, inner)
    return _product(partial, inner)


def _product(a: Formula, b: Formula) -> Formula:
    if ZERO in (a, b):
        return ZERO
    if a == ONE:
        return b
    return a if b == ONE else _call("*", a, b)


def _sum(a: Formula, b: Formula) -> Formula:
    if a == ZERO:
        return b
    return a if b == ZERO else _call("+", a, b)
