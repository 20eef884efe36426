"""Random expressions over segments of the main axis: pools, what is made of them, numbers and masks.

As in random_axes.py: a function takes the writer and gives a value whose text is one operand, or None.
"""

from __future__ import annotations

from .random_pictures import pictured
from .random_values import REAL, Typed, Writer, joined


def segmented(writer: Writer) -> Typed | None:
    """A pool, now and then something made of it, and back to the rows. Without a cut, what grids and the like do."""
    if writer.cut is None:
        return pictured(writer)
    x = writer.real(lambda v: v.level == writer.row)
    if x is None:
        return None
    # Ties share the gradient of a maximum, and rounding would decide what ties.
    by = writer.pick(("mean", "sum", "first", "last", *(("max",) if x.is_plain else ())))
    which = writer.pick(("own", "before", "closed", "closed"))
    ahead = x.ahead or (which == "own" and by != "first")
    pooled = writer.name("p")
    writer.line(f"{pooled} = pool({x.text}, {writer.row} -> {writer.cut}, by={by})")
    size = x.size * (3 if by == "sum" else 1)
    for _ in range(writer.pick((0, 1, 1, 2, 3))):
        made = writer.name("p")
        forms = [
            f"tanh({pooled})",
            f"({pooled} + previous({pooled}))",
            f"({pooled} * real(position({writer.cut}) + 1))",
        ]
        if x.axes:
            over = writer.pick(x.axes)
            forms.append(f"linear({pooled}, {over} -> {over})")
            if len(x.axes) == 1:
                mask = writer.pick(("causal", "causal and window(2)"))
                forms.append(f"attend({pooled}, {pooled}, {pooled}, over={over}, along={writer.cut}, mask={mask})")
                keys = f"{x.text}, {x.text}, over={over}, along={writer.row}, mask=same({writer.cut})"
                forms += [f"attend({pooled}, {keys})", forms[-1]]
        form = writer.pick(forms)
        if form.startswith("attend(") and f"along={writer.row}" in form and which == "own":
            ahead = True  # a segment's rows are all seen
        writer.line(f"{made} = {form}")
        pooled, size = made, size * 4
    if size > 100:
        return None
    text = f"spread({pooled}, {writer.cut} -> {writer.row}, {which})"
    return joined(REAL, text, [x], ahead=ahead, size=size)


def counted(writer: Writer) -> Typed | None:
    """Which segment a row is in, and masks that say so."""
    if writer.cut is None:
        return None
    q = writer.real(lambda v: v.level == writer.row and len(v.axes) == 1)
    if q is None or writer.maybe(0.4):
        which = writer.pick(("", ", closed"))
        return Typed(f"(real(index({writer.cut}{which})) * 0.1)", REAL, writer.row, ())
    mask = writer.pick((f"causal and same({writer.cut})", f"same({writer.cut})", f"causal or same({writer.cut})"))
    ahead = q.ahead or not mask.startswith("causal and")
    text = f"attend({q.text}, {q.text}, {q.text}, over={q.axes[0]}, along={writer.row}, mask={mask})"
    return joined(REAL, text, [q], axes=q.axes, ahead=ahead, size=q.size)
