"""What a grouped linear computes, as its launcher, its kernels and a module of generated kernels name it."""

from __future__ import annotations

from dataclasses import dataclass

# Groups of one launch: each has pointers of its own among the arguments of a kernel, and steps that choose among them.
MOST_GROUPS = 8


@dataclass(frozen=True)
class GroupedForm:
    """Linears of one shape over the rows of each group: `inputs` entries of a row to `outputs`, the latter of each
    piece (q, k and v; gate and up). Every group has a weight for each piece.

    gathers    x is one tensor of all rows, of which a group has some; else each group has a tensor
    scatters   so is each piece of the result, and every row is in a group
    has_bias   every weight has a bias
    detached   groups whose rows have no gradient, though x has one: where x is gathered, as a tensor says so itself
    """

    groups: int
    inputs: int
    outputs: tuple[int, ...]
    gathers: bool = False
    scatters: bool = False
    has_bias: bool = False
    detached: tuple[int, ...] = ()

    @property
    def pieces(self) -> int:
        return len(self.outputs)

    @property
    def tensors_of_x(self) -> int:
        return 1 if self.gathers else self.groups

    @property
    def tensors_of_y(self) -> int:
        """Of each piece of the result."""
        return 1 if self.scatters else self.groups

    @property
    def moves(self) -> bool:
        """Whether rows are in another order on one side than on the other."""
        return self.gathers or self.scatters

    @property
    def weights(self) -> int:
        return self.groups * self.pieces

    @property
    def results(self) -> int:
        """All rows of each piece; or, of each group, each piece."""
        return self.pieces * self.tensors_of_y
