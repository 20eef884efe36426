"""Did you mean: the known name nearest to one that is not known."""

from __future__ import annotations

from collections.abc import Iterable

LONGEST = 64


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate a person most likely meant, or None when none is near.

    Near is at most one edit per three characters of the shorter: further than that a suggestion misleads more often
    than it helps.
    Ties go to the name that starts alike, then to the alphabet, so that a message never depends on the order of a set.
    """
    if not name or len(name) > LONGEST:
        return None
    best: tuple[int, bool, str] | None = None
    for candidate in sorted(set(candidates)):
        limit = max(1, (min(len(name), len(candidate)) + 1) // 3)
        if candidate == name or abs(len(candidate) - len(name)) > limit or len(candidate) > LONGEST:
            continue
        edits = _edits(name.lower(), candidate.lower(), limit)
        if edits > limit or edits >= max(len(name), len(candidate)):
            continue
        rank = (edits, candidate[0] != name[0], candidate)
        if best is None or rank < best:
            best = rank
    return best[2] if best else None


def is_slip(name: str, known: str) -> bool:
    """Whether the two differ by one slip of the fingers."""
    return _edits(name.lower(), known.lower(), 1) <= 1


def _edits(a: str, b: str, limit: int) -> int:
    """Insertions, deletions, replacements, swaps of neighbours that turn `a` into `b`; inexact above `limit`."""
    before: list[int] = []
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        current = [i]
        for j, right in enumerate(b, 1):
            cost = min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                cost = min(cost, before[j - 2] + 1)
            current.append(cost)
        if min(current) > limit:
            return limit + 1
        before, previous = previous, current
    return previous[-1]
