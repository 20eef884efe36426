"""Names inside a body: what each binding stands for at the point reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from .diagnostics import Mistake
from .errors.names import BoundInOneBranch
from .source import Span
from .statics import Family


@dataclass(eq=False)
class Scope:
    """Bindings of one body. `branches` remembers names that only one branch of an `if` bound, for the error."""

    bound: dict[str, object] = field(default_factory=dict)
    branches: dict[str, Span] = field(default_factory=dict)
    ended: dict[str, Span] = field(default_factory=dict)  # names that ended with the loop that bound them

    def read(self, name: str, at: Span) -> object | None:
        if name in self.bound:
            return self.bound[name]
        if name in self.branches:
            raise Mistake(BoundInOneBranch(at, name, self.branches[name]))
        return None

    def bind(self, name: str, value: object) -> None:
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
        """Names first bound in a loop body or an arm end with it; families stay."""
        for name in list(self.bound):
            if name not in before and not isinstance(self.bound[name], Family):
                del self.bound[name]
                self.ended[name] = loop
