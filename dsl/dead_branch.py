"""The branch of a static `if` that the sizes and options in use do not take: its types are checked all the same.

    if fancy:                       fancy = false
        x = x + linear(x, wrong -> dim)         an error, now and not on the day that somebody sets `fancy`

The branch is run for its mistakes alone, with everything that hangs on the condition unknown: under the condition the
names it reads would be others, and so would be names that got their type by such a choice. What remains is wrong
whatever the sizes are. Mistakes about numbers (a length that does not divide, an index past the end) may be due to the
very sizes that the condition rules out, and are left to the sizes that take the branch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from . import syntax
from .axes import Axis
from .body import OPERATION_LIMIT, Build
from .diagnostics import Mistake, Noted, Problems
from .errors.axes import (
    AxisMissing,
    AxisTwice,
    KindMismatch,
    LowerLevel,
    MissingRows,
    NotAlong,
    NotContained,
    OverNeeded,
    SidewaysLevels,
    WrongAxisKind,
)
from .errors.names import BadArguments, MisplacedStatement, NoResult, NoSuchField, NotCallable, NotStatic
from .errors.operators import AxisUnshared, InexactDivision
from .errors.signatures import ArgumentAxes, LiteralAxis, NotAnAxis
from .expansions import Expansions
from .names_read import names_read
from .program import Value
from .repeats import Turns
from .scope import Scope
from .shared_calls import DEFAULT_INIT
from .statics import NONE, UNKNOWN, Family, Member
from .weight_book import WeightBook
from .work import Abandoned

if TYPE_CHECKING:
    from .statements import Elaboration

# Kinds, axes, levels, missing rows, calls: these hold or do not hold whatever the numbers are.
OF_TYPES = (
    KindMismatch, NotContained, SidewaysLevels, AxisMissing, AxisTwice, OverNeeded, MissingRows, WrongAxisKind,
    InexactDivision, AxisUnshared, LowerLevel, NotAlong, LiteralAxis, NotAnAxis, ArgumentAxes, NotCallable,
    BadArguments, NoSuchField, NotStatic, NoResult, MisplacedStatement,
)  # fmt: skip
CODES = frozenset(error.code for error in OF_TYPES)
STEPS = 20_000  # that one branch may take


def names_of_branch(
    body: Elaboration, statement: syntax.If, branch: tuple[syntax.Statement, ...], scope: dict[str, object]
) -> dict[str, object] | None:
    """The names after the branch; None where they are not known. Its mistakes are noted, the first time that it is
    met: other turns of a loop and other calls of a block have other types. `scope`: the names before the `if`."""
    build = body.build
    if not branch:
        return scope
    if id(branch) in build.tried or build.library.is_standard(statement.span.source):
        return None
    build.tried.add(id(branch))
    return _run(body, statement, branch, scope)


def _run(
    body: Elaboration, statement: syntax.If, branch: tuple[syntax.Statement, ...], before: dict[str, object]
) -> dict[str, object] | None:
    build = body.build
    problems = Problems()
    scratch = replace_build(build, problems)
    bound = {name: _copied(value) for name, value in before.items()}
    for name in (*_decided(body, statement.condition), *body.scope.uncertain):
        bound[name] = UNKNOWN
    inner = type(body)(scratch, body.home, body.form, body.path, body.frames, Scope(bound))
    inner.loops, inner.choices, inner.local_axes = body.loops, body.choices + 1, set(body.local_axes)
    inner.text = body.text
    try:
        inner.run(branch)
    except Abandoned:
        return None
    for error in problems.errors:
        where = error.at
        inside = where.source == statement.span.source and _holds(branch, where.start)
        if error.code in CODES and inside:
            build.problems.add(error)
    return inner.scope.bound


def replace_build(build: Build, problems: Problems) -> Build:
    """A build whose weights, nodes and mistakes are dropped."""
    book = WeightBook(problems, (), {}, lambda rule, fan_in, fan_out, turn: DEFAULT_INIT)
    return replace(
        build, problems=problems, book=book, make_nodes=False, turns=Turns(), nodes=[], calls=list(build.calls),
        cuts=dict(build.cuts), optional={}, failed=set(), expansions=Expansions(), is_dead=True,
        steps=2 * OPERATION_LIMIT - STEPS,
    )  # fmt: skip


def _holds(branch: tuple[syntax.Statement, ...], place: int) -> bool:
    return branch[0].span.start <= place <= branch[-1].span.end


def _copied(value: object) -> object:
    """Members that the branch adds to a family stay in it."""
    return Family(value.name, value.span, dict(value.members)) if isinstance(value, Family) else value


def _decided(body: Elaboration, condition: syntax.Expression) -> Iterator[str]:
    """Names whose values decide the condition."""
    for name in names_read(condition):
        try:
            found = body.find(name.text, name.span)
        except (Mistake, Noted):
            continue
        if found is NONE or isinstance(found, bool | int | float | tuple | Axis | Member):
            yield name.text
        elif isinstance(found, Value):
            yield name.text  # a parameter that may be left out: `if gate != none`


def differ(left: object, right: object) -> bool:
    """Whether two branches are known to give a name two types."""
    if not isinstance(left, Value) or not isinstance(right, Value):
        return False
    return left.type.kind != right.type.kind or set(left.type.axes) != set(right.type.axes)


def alike_types(left: object, right: object) -> bool:
    """Whether two branches are known to leave a name with one type."""
    if isinstance(left, Value) and isinstance(right, Value):
        return not differ(left, right)
    return left is right
