"""Names inside a body: what each binding stands for at the point reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from .diagnostics import Mistake
from .errors.names import BoundInOneBranch
from .record import record
from .source import Span
from .statics import Family


@record
class Branched:
    """An `if` or a `match` that binds a name in one branch only, or to values of two types."""

    at: Span
    types: tuple[str, str] | None = None
    word: str = "an `if`"


@dataclass(eq=False)
class Scope:
    """Bindings of one body. `branches` remembers names that only one branch of an `if` bound, for the error."""

    bound: dict[str, object] = field(default_factory=dict)
    branches: dict[str, Branched] = field(default_factory=dict)
    uncertain: set[str] = field(default_factory=set)  # names whose type another choice of options may change
    ended: dict[str, Span] = field(default_factory=dict)  # names that ended with the loop that bound them

    lost: set[str] = field(default_factory=set)  # families whose members could not be made
    rebound: set[str] = field(default_factory=set)  # names that more than one statement bound

    def read(self, name: str, at: Span) -> object | None:
        if name in self.bound:
            return self.bound[name]
        if name in self.branches:
            branched = self.branches[name]
            raise Mistake(BoundInOneBranch(at, name, branched.at, branched.types, branched.word))
        return None

    def bind(self, name: str, value: object) -> None:
        if name in self.bound:
            self.rebound.add(name)
        self.bound[name] = value
        self.branches.pop(name, None)

    def bind_member(self, name: str, index: int, value: object, span: Span) -> None:
        family = self.bound.get(name)
        if not isinstance(family, Family):
            family = Family(name, span)
            self.bound[name] = family
        family.members[index] = value

    def snapshot(self) -> dict[str, object]:
        return dict(self.bound)

    def leave_loop(self, before: dict[str, object], loop: Span) -> None:
        """Names first bound in a loop body or an arm end with it; families stay, also those that could not be made."""
        for name in list(self.bound):
            if name not in before and not isinstance(self.bound[name], Family) and name not in self.lost:
                del self.bound[name]
                self.ended[name] = loop
