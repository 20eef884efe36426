"""Patterns over dotted paths, one language for `init`, `freeze`, `optimise`, weight maps and hook sites (SEMANTICS 7).

    `*`     one part               layer.*.attention.q.linear.weight
    `**`    any number, also none  **.linear.weight
    other   that part, exactly     embed

A pattern matches a path when it matches the whole of it or an ancestor at a part boundary: `embed` matches
`embed.weight`, never `embedding.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache


@lru_cache(maxsize=1 << 14)  # a weight is met again in every objective and under every preset
def matches(pattern: str, path: str) -> bool:
    """Whether `pattern` matches `path` or one of its ancestors."""
    wanted = _parts(pattern)
    end = len(wanted)
    # Positions in the pattern that the parts read so far can have reached: linear time, whatever the number of `**`.
    reached = _skip_any({0}, wanted)
    for part in path.split("."):
        if end in reached:
            return True
        after = set()
        for position in reached:
            if wanted[position] == "**":
                after.add(position)
            elif wanted[position] in ("*", part):
                after.add(position + 1)
        if not after:
            return False
        reached = _skip_any(after, wanted)
    return end in reached


def select(pattern: str, paths: Iterable[str]) -> tuple[str, ...]:
    """The paths that `pattern` matches, in their order. Empty is a mistake for the caller to report."""
    return tuple(path for path in paths if matches(pattern, path))


@lru_cache(maxsize=4096)
def _parts(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.split("."))


def _skip_any(positions: set[int], wanted: tuple[str, ...]) -> set[int]:
    """Adds the positions behind `**`, which may stand for no part at all."""
    closed = set(positions)
    for position in positions:
        while position < len(wanted) and wanted[position] == "**":
            position += 1
            closed.add(position)
    return closed


def captures(pattern: str, path: str) -> tuple[str, ...] | None:
    """What each `*` of a pattern stands for when it matches the whole of `path`; None when it does not. What `**`
    stands for is not told."""
    wanted, parts = _parts(pattern), path.split(".")
    if "**" not in wanted:  # the usual: part by part
        is_match = len(wanted) == len(parts) and all(
            one in ("*", part) for one, part in zip(wanted, parts, strict=True)
        )
        return tuple(part for one, part in zip(wanted, parts, strict=True) if one == "*") if is_match else None
    reached: dict[int, tuple[str, ...]] = _skip_any_caught({0: ()}, wanted)
    for part in parts:
        after: dict[int, tuple[str, ...]] = {}
        for position, caught in reached.items():
            if position == len(wanted):
                continue
            if wanted[position] == "**":
                after[position] = caught
            elif wanted[position] in ("*", part):
                after.setdefault(position + 1, caught + (part,) * (wanted[position] == "*"))
        reached = _skip_any_caught(after, wanted)
    return reached.get(len(wanted))


def _skip_any_caught(reached: dict[int, tuple[str, ...]], wanted: tuple[str, ...]) -> dict[int, tuple[str, ...]]:
    """As `_skip_any`, with what has been caught on the way to each position."""
    for position, caught in sorted(reached.items()):
        while position < len(wanted) and wanted[position] == "**":
            position += 1
            reached.setdefault(position, caught)
    return reached
