"""The state of an elaboration: one `Build` per program, one body context per block call.

Elaboration runs a spec's text once with types for values. It is layered: expressions.py, calls.py and statements.py
each add to `Body`, which holds what they share and declares what the layers below need of those above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import program, syntax
from .arms import OpenArm, Routes, misplaced
from .axes import Axis, Cut, Selected, Static
from .diagnostics import Mistake, Noted, Problems, SpecError
from .errors.cuts import NotSegmented
from .errors.routing import NotSelected
from .errors.weights import TooLarge
from .expansions import Expansions
from .length import Length
from .located import located, users_place
from .modules import Instance, Library
from .opdef import OpDef, OpTable
from .program import LossTerm, Node, Segmented, Value
from .repeats import LoopText, Turns
from .scope import Scope
from .source import Span
from .static_math import Fact
from .statics import BlockRef
from .value_type import EnumType, Tag, ValueType
from .weight_book import WeightBook
from .work import COPIED, Abandoned, went_through

NESTING_LIMIT = 64
AXES_LIMIT = 16
OPERATION_LIMIT = 200_000


@dataclass(eq=False)
class Build:
    """What all bodies of one program share."""

    ops: OpTable
    library: Library
    problems: Problems
    book: WeightBook
    training: bool
    make_nodes: bool = True
    turns: Turns | None = None  # set: loops whose turns are alike are cut short
    nodes: list[Node] = field(default_factory=list)
    enum_axes: dict[EnumType, Axis] = field(default_factory=dict)
    prelude: dict[str, Instance] = field(default_factory=dict)
    calls: list[tuple[object, str]] = field(default_factory=list)  # blocks being expanded, for circles and depth
    failed: set[int] = field(default_factory=set)  # declarations of blocks with a mistake in them, by id
    expanded: set[int] = field(default_factory=set)  # declarations of blocks that some call expanded, by id
    cuts: dict[Axis, Segmented | None] = field(default_factory=dict)  # what made each cut; None: a mistake did
    # How many rows of a nested axis each row of its owner has, as far as the text says, and where it does.
    owned: dict[tuple[Axis, Axis], tuple[Length, Span]] = field(default_factory=dict)
    selected: dict[Axis, tuple[Value, Span]] = field(default_factory=dict)  # the tag of each selected axis, first use
    inputs: dict[str, Value] = field(default_factory=dict)  # of the program
    arms: list[OpenArm] = field(default_factory=list)  # of `match`, around the statement that is run
    routes: Routes = field(default_factory=Routes)
    taken: dict[tuple[object, ...], Value] = field(default_factory=dict)  # read by arms from outside
    optional: dict[str, Value | None] = field(default_factory=dict)  # inputs with a default; None: two of one name
    is_uncalled: bool = False  # a block by itself: which segments there are is for its caller to say
    expansions: Expansions = field(default_factory=Expansions)  # of block calls, to be copied for others like them
    loop_texts: dict[int, LoopText] = field(default_factory=dict)  # by id
    routings: int = 0  # statements that send rows to arms, so far
    steps: int = 0
    tried: set[int] = field(default_factory=set)  # branches not taken that were checked, by id
    is_dead: bool = False  # runs a branch that is not taken, for its mistakes
    # In a block that an operator applies to pairs of rows: what stands for `query(e)` and `key(e)`, side and e.
    sides: dict[Value, tuple[str, Value | None]] | None = None
    facts: tuple[Fact, ...] = ()  # lengths that are equal where the elaboration is now

    def step(self, at: Span) -> None:
        """Counts one statement or operation."""
        self._count(at, 1, 1)

    def copied(self, at: Span, steps: int) -> None:
        """Counts a call that was copied from one of so many statements and operations."""
        self._count(at, steps, 1 + steps // COPIED)

    def _count(self, at: Span, steps: int, work: int) -> None:
        problems = self.problems
        self.steps += steps
        if self.steps > 2 * OPERATION_LIMIT:
            problems.add(TooLarge(at, f"over {OPERATION_LIMIT:,} operations and statements, which is the limit"))
            raise Abandoned
        problems.built += steps
        went_through(problems, work, at)

    def enum_axis(self, enum: EnumType) -> Axis:
        """The axis an enum's members count along: `embed(worth, ratio -> dim)`."""
        if enum not in self.enum_axes:
            size = len(enum.members)
            self.enum_axes[enum] = Axis(enum.name, Static(), Length.number(size), size, enum.span)
        return self.enum_axes[enum]


class Body(ABC):
    """One body under elaboration: a model, an objective, or one call of a block."""

    def __init__(
        self,
        build: Build,
        home: Instance,
        kind: str,
        path: tuple[str, ...],
        frames: program.Scope,
        scope: Scope | None = None,
    ) -> None:
        self.build = build
        self.home = home
        self.form = kind
        self.path = path
        self.frames = frames
        self.scope = scope or Scope()
        self.binding: str | None = None
        self.naming: tuple[str, Span] | None = None  # the statement's target, and the expression it names
        self.precise = False
        self.result: tuple[object, Span] | None = None
        self.losses: list[LossTerm] = []
        self.arms = 0  # of `match`, around the statement in this body
        self.given_inputs: dict[str, tuple[Value, Span]] = {}  # optional inputs that the call gives

    @property
    def problems(self) -> Problems:
        return self.build.problems

    def note(self, error: SpecError) -> None:
        """Adds a mistake, with the calls and turns it was met in."""
        self.problems.add(located(error, self.frames, self.build.library.is_standard))

    def users_place(self, at: Span) -> Span:
        return users_place(at, self.frames, self.build.library.is_standard)

    @contextmanager
    def noted(self):
        """Records a mistake and goes on after the block."""
        try:
            yield
        except Mistake as mistake:
            self.note(mistake.error)
        except Noted:
            pass

    @abstractmethod
    def evaluate(self, expression: syntax.Expression) -> object:
        """The value of an expression; UNKNOWN when it has a mistake, which is then noted. Never raises Mistake."""

    @abstractmethod
    def find(self, name: str, at: Span) -> object | None:
        """What a name stands for; None when nothing declares it."""

    @abstractmethod
    def axis(self, expression: syntax.Expression) -> Axis:
        """The axis an expression names."""

    @abstractmethod
    def axes(self, expression: syntax.Expression) -> tuple[Axis, ...]:
        """The axes an expression names: one, or a list."""

    @abstractmethod
    def call_block(
        self,
        block: BlockRef,
        arguments: list[object],
        at: Span,
        label: str | None = None,
        visible: Mapping[str, object] | None = None,
    ) -> object:
        """The result of a block on values, for an operator that is given one. `label`: what the operator's call is
        named; `visible`: names that the block may read besides those of its file, which come first."""

    @abstractmethod
    def call(self, call: syntax.Call, piped: syntax.Expression | None) -> object:
        """The result of a call; `piped` is the left side of `|>`."""

    @abstractmethod
    def apply(
        self,
        op: OpDef,
        arguments: dict[str, object],
        at: Span,
        spans: dict[str, Span] | None = None,
        label: str | None = None,
    ) -> object:
        """The result of a primitive on evaluated arguments."""

    def site(self, callee: str, label: str | None) -> tuple[str, ...]:
        """What a call adds to the path of its weights (SEMANTICS 7)."""
        if label is not None:
            return (label,)
        return (self.binding, callee) if self.binding is not None else (callee,)

    def segmented(self, axis: Axis, at: Span) -> Segmented | None:
        """What made a cut; None for other axes."""
        if not isinstance(axis.kind, Cut):
            return None
        if axis not in self.build.cuts and self.build.is_uncalled:
            raise Noted
        if axis not in self.build.cuts:
            raise Mistake(NotSegmented(at, axis.name, axis.kind.parent.name, axis.span))
        made = self.build.cuts[axis]
        if made is None:
            raise Noted  # the mistake is in its `segment`
        return made

    def shown(self, along: Axis, owner: Axis, each: int, at: Span) -> Axis:
        """The cut of a selection whose segments are the rows of each row of `owner`, made where it is first asked
        for."""
        kind = Cut(along, owner, each)
        known = next((cut for cut in self.build.cuts if cut.kind == kind), None)
        if known is not None:
            return known
        cut = Axis(owner.name, kind, owner.length, None, owner.span)
        naming, self.naming = self.naming, None
        try:
            flags = self.apply(self.build.ops["segment_each"], {"cut": cut}, at)
        finally:
            self.naming = naming
        assert isinstance(flags, Value)
        self.build.cuts[cut] = Segmented(along, flags, None, at)
        return cut

    def shown_among(self, rows: Axis, owner: Axis) -> Axis | None:
        """The cut whose segments are the rows of each row of `owner` where they are rows of an axis, or stand among
        them. None: nothing flattened them there."""
        for cut in self.build.cuts:
            if isinstance(cut.kind, Cut) and cut.kind.owner is owner:
                along = cut.kind.parent
                if rows is along or (isinstance(along.kind, Selected) and rows is along.kind.parent):
                    return cut
        if self.build.is_uncalled and owner is not rows and owner not in rows.ancestors:
            raise Noted  # that is for the caller to do
        return None

    def selected(self, axis: Axis, at: Span) -> Value:
        """The tag that selects the rows of an axis: what has its name here, or had where the axis was used before."""
        kind = axis.kind
        assert isinstance(kind, Selected)
        known = self.build.selected.get(axis)
        here = self.scope.bound.get(kind.tag)
        candidates = [here, *((known[0],) if known else ()), self.build.inputs.get(kind.tag)]
        found = next((value for value in candidates if isinstance(value, Value) and _selects(value, kind)), None)
        if found is None:
            if self.build.is_uncalled:
                raise Noted
            wanted = f"`{kind.tag}` is to be a tag per row of {kind.parent.name}, with the value `{kind.members[0]}`"
            what = "not known" if not isinstance(here, Value) else f"`{here.type}`"
            raise Mistake(NotSelected(at, axis.name, kind.tag, what, axis.span, None, wanted))
        if known is not None and found is not known[0]:
            repair = "one program selects the rows of an axis by one tag: declare another axis for the other"
            raise Mistake(NotSelected(at, axis.name, kind.tag, "another tag", axis.span, known[1], repair))
        self.build.selected.setdefault(axis, (found, at))
        return found

    def emit(
        self, op: OpDef, attrs: object, inputs: tuple[Value, ...], types: tuple[ValueType, ...], span: Span
    ) -> tuple[Value, ...]:
        """A node with one output per type."""
        for type in types:
            if len(type.axes) > AXES_LIMIT:
                raise Mistake(TooLarge(span, f"a value with {len(type.axes)} axes; the limit is {AXES_LIMIT}"))
        self.build.step(span)
        # The value that a statement binds has its name, the values on the way that of their operator.
        name = self.naming[0] if self.naming is not None and self.naming[1] == span else op.name
        outputs = tuple(Value(name, type, span) for type in types)
        node = Node(op, attrs, inputs, outputs, span, self.frames, self.precise)
        for arm in self.build.arms:
            if (error := misplaced(arm, node)) is not None:
                raise Mistake(error)
        if self.build.make_nodes:
            self.build.nodes.append(node)
        return outputs


def _selects(value: Value, kind: Selected) -> bool:
    """Whether a value may be the tag of a selection."""
    type = value.type
    if not isinstance(type.kind, Tag) or type.static_axes or type.missing or type.is_weight_level:
        return False
    own = type.rows is None or type.rows is kind.parent or type.rows in kind.parent.ancestors
    return own and set(kind.members) <= set(type.kind.enum.members)
