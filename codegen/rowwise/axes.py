"""From positions to names: which dimensions of the tensors of a region are the same axis.

    q [N, 128]    unflatten -> [N, 4, 32]    unflatten -> [N, 4, 2, 16]    cos [N, 1, 16]

gives q the leaves (4, 2, 16) and cos the last of them. A leaf is a stretch of a dimension that nothing in the region
takes apart further. Tensors that meet have their leaves made one, and split where one side is finer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from math import prod


class CannotFuse(Exception):
    """A group of nodes that is no row program; the text says why, for whoever asks."""


class Leaf:
    """Until the solver is done a leaf may become another one, or a row of smaller ones."""

    __slots__ = ("parts", "same", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.same: Leaf | None = None
        self.parts: tuple[Leaf, ...] = ()

    def __repr__(self) -> str:
        return f"Leaf({self.size})"


Dim = tuple[Leaf, ...]  # no leaves: size 1


def resolved(leaves: Iterable[Leaf]) -> Dim:
    """The leaves that stand today for leaves as they once were."""
    found: list[Leaf] = []
    stack = list(leaves)[::-1]
    while stack:
        leaf = stack.pop()
        if leaf.same is not None:
            stack.append(leaf.same)
        elif leaf.parts:
            stack += leaf.parts[::-1]
        else:
            found.append(leaf)
    return tuple(found)


def fresh(sizes: Sequence[int]) -> tuple[Dim, ...]:
    return tuple((Leaf(size),) if size != 1 else () for size in sizes)


def extent(leaves: Iterable[Leaf]) -> int:
    return prod(leaf.size for leaf in leaves)


def unify(left: Iterable[Leaf], right: Iterable[Leaf]) -> None:
    """Two rows of leaves of one extent, slowest first, become the same leaves."""
    a, b = deque(resolved(left)), deque(resolved(right))
    while a and b:
        first, second = resolved((a.popleft(),)), resolved((b.popleft(),))
        a.extendleft(reversed(first[1:]))
        b.extendleft(reversed(second[1:]))
        one, other = first[0], second[0]
        if one is other:
            continue
        if one.size < other.size:
            a, b, one, other = b, a, other, one
        if one.size == other.size:
            one.same = other
            continue
        a.appendleft(_split(one, other.size))
        one.parts[0].same = other
    if a or b:
        raise CannotFuse("two tensors of different sizes meet")


def _split(leaf: Leaf, size: int) -> Leaf:
    """Takes the first `size` entries of the slower side off a leaf; the faster rest is returned."""
    if leaf.size % size:
        raise CannotFuse(f"an axis of {leaf.size} is taken apart at {size}")
    leaf.parts = (Leaf(size), Leaf(leaf.size // size))
    return leaf.parts[1]


def regrouped(leaves: Iterable[Leaf], sizes: Sequence[int]) -> tuple[Dim, ...]:
    """The same entries as dimensions of other sizes."""
    rest = deque(resolved(leaves))
    dims: list[Dim] = []
    for size in sizes:
        dim: list[Leaf] = []
        left = size
        while left > 1:
            if not rest:
                raise CannotFuse("a reshape does not fit")
            leaf = rest.popleft()
            if leaf.size > left:
                rest.appendleft(_split(leaf, left))
                leaf = leaf.parts[0]
            elif left % leaf.size:
                raise CannotFuse(f"an axis of {leaf.size} is regrouped into {left}")
            dim.append(leaf)
            left //= leaf.size
        dims.append(tuple(dim))
    if rest:
        raise CannotFuse("a reshape does not fit")
    return tuple(dims)
