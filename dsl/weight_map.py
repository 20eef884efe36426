"""`weights huggingface:`: how a foreign checkpoint's config and tensors correspond to this spec's sizes and weights.

The lines are resolved here, against the weights of the model: every weight is mapped exactly once, every pattern
matches. Reading and writing files is the runtime's business.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import syntax
from .axes import Axis
from .diagnostics import Mistake
from .elaborate import Spec
from .errors.names import did_you_mean
from .errors.weights import BadWeightMap
from .names_read import all_words
from .patterns import captures, select
from .program import Program, Weight
from .record import record
from .source import Span

Constant = int | float | bool | str | None | tuple


@record
class ConfigLine:
    """`config "key" = name`: read into the size or option `name` on import; or `= constant`: checked on import.
    Written on export.

    A key may be a dotted path into nested objects: `rope_parameters.rope_theta`. With `times`, the constant is a list
    that is repeated as often as that size says.
    """

    key: str
    name: str | None
    constant: Constant = None
    times: str | None = None


@record
class TensorLine:
    """One foreign tensor. `paths` are the weights it holds, joined along its first axis when several.

    `layout` is the order of the foreign tensor's axes: one group of axis names per dimension; None: as stored here,
    or its sides flattened to a matrix or vector.
    """

    foreign: str
    paths: tuple[str, ...]
    layout: tuple[tuple[str, ...], ...] | None


@record
class WeightMap:
    """`new`: weights that the foreign checkpoint lacks, which start as their `init` says when it is read."""

    format: str
    config: tuple[ConfigLine, ...]
    tensors: tuple[TensorLine, ...]
    new: tuple[str, ...] = ()


def weight_maps(spec: Spec, models: Mapping[str, Program]) -> dict[str, WeightMap]:
    """The spec's weight maps by format."""
    weights = {weight.path: weight for program in models.values() for weight in program.weights}
    maps: dict[str, WeightMap] = {}
    for declaration in spec.root.module.of(syntax.Weights):
        config = tuple(line for entry in declaration.config for line in _config(spec, entry))
        new = _new(spec, declaration, weights)
        read = {path: weight for path, weight in weights.items() if path not in new}
        entries = [(entry, line) for entry in declaration.tensors for line in _tensors(spec, entry, read, new)]
        _check_coverage(spec, declaration, entries, weights, new)
        tensors = tuple(line for _, line in entries)
        maps[declaration.format.text] = WeightMap(declaration.format.text, config, tensors, tuple(new))
    return maps


def _config(spec: Spec, entry: syntax.ConfigEntry) -> list[ConfigLine]:
    value = entry.value
    try:
        if isinstance(value, syntax.Name) and value.text not in ("true", "false", "none"):
            return [ConfigLine(entry.key.value, _setting(spec, value))]
        if isinstance(value, syntax.Binary) and value.operator == "*" and isinstance(value.right, syntax.Name):
            repeated = _constant(value.left)
            if not isinstance(repeated, tuple):
                raise Mistake(BadWeightMap(value.left.span, "what is repeated is a list of constants"))
            times = _setting(spec, value.right)
            if not isinstance(spec.root.values[times], Axis):
                raise Mistake(BadWeightMap(value.right.span, f"`{times}` is no size: it does not say how often"))
            return [ConfigLine(entry.key.value, None, repeated, times)]
        return [ConfigLine(entry.key.value, None, _constant(value))]
    except Mistake as mistake:
        spec.library.problems.add(mistake.error)
        return []


def _setting(spec: Spec, name: syntax.Name) -> str:
    if name.text not in spec.root.values:
        known = tuple(spec.root.values)
        what = f"`{name.text}` is not a size or option of this spec"
        raise Mistake(BadWeightMap(name.span, what, did_you_mean(name.text, known)))
    return name.text


def _constant(e: syntax.Expression) -> Constant:
    match e:
        case syntax.Number() | syntax.String():
            return e.value
        case syntax.Name("true"):
            return True
        case syntax.Name("false"):
            return False
        case syntax.Name("none"):
            return None
        case syntax.Unary("-", syntax.Number(value)):
            return -value
        case syntax.ListOf(items) | syntax.Tuple(items):
            return tuple(_constant(item) for item in items)
        case _:
            raise Mistake(BadWeightMap(e.span, "a config entry is a size, an option, or a constant"))


def _tensors(
    spec: Spec, entry: syntax.TensorEntry, weights: Mapping[str, Weight], new: Mapping[str, Span]
) -> list[TensorLine]:
    """The entry's lines, one for each choice of what `*` stands for; `weights` are those that are not new.

    `#` in the foreign name is the number of the weight among those of the path, in the order the model makes them.
    """
    problems = spec.library.problems
    first = entry.patterns[0]
    stars = entry.foreign.value.count("*")
    found = [(path, caught) for path in weights if (caught := captures(first.text, path)) is not None]
    fresh = next((path for path in new if not found and captures(first.text, path) is not None), None)
    if fresh is not None:
        problems.add(BadWeightMap(first.span, f"`{fresh}` is new, so no tensor holds it", None, new[fresh]))
        return []
    if not found and _is_of_another_choice(spec, first.text, weights):
        return []
    if not found:
        problems.add(
            BadWeightMap(
                first.span, f"`{first.text}` is not the path of a weight", did_you_mean(first.text, tuple(weights))
            )
        )
        return []
    if "#" in entry.foreign.value:
        if stars or len(entry.patterns) > 1:
            problems.add(BadWeightMap(entry.foreign.span, "`#` counts the weights of one path, without `*`"))
            return []
        layout = _layout(spec, entry, weights[found[0][0]])
        return [
            TensorLine(entry.foreign.value.replace("#", str(number)), (path,), layout)
            for number, (path, _) in enumerate(found)
        ]
    lines: list[TensorLine] = []
    most = len(found[0][1])
    if stars > most or (stars < most and len(entry.patterns) > 1):
        problems.add(BadWeightMap(entry.foreign.span, f"{stars} `*` in the foreign name, {most} in the path"))
        return []
    if stars < most:
        # What the foreign name does not tell apart is one tensor, in the order of the weights.
        joined: dict[tuple[str, ...], list[str]] = {}
        for path, caught in found:
            joined.setdefault(caught[:stars], []).append(path)
        layout = _layout(spec, entry, weights[found[0][0]])
        return [TensorLine(_filled(entry.foreign.value, key), tuple(paths), layout) for key, paths in joined.items()]
    for path, caught in found:
        paths = [path]
        for other in entry.patterns[1:]:
            filled = _filled(other.text, caught)
            if filled not in weights:
                problems.add(
                    BadWeightMap(
                        other.span, f"`{filled}` is not the path of a weight", did_you_mean(filled, tuple(weights))
                    )
                )
                return []
            paths.append(filled)
        layout = _layout(spec, entry, weights[path])
        lines.append(TensorLine(_filled(entry.foreign.value, caught), tuple(paths), layout))
    return lines


def _is_of_another_choice(spec: Spec, pattern: str, weights: Mapping[str, Weight]) -> bool:
    """Whether a path names something that the spec makes under other sizes or options: the first part of it that no
    weight has now is a name in the text."""
    parts = pattern.split(".")
    ends = range(1, len(parts) + 1)
    unmet = next((end for end in ends if not select(".".join(parts[:end]), weights)), None)
    if unmet is None:
        return False
    blocks = (d for d in spec.root.module.file.declarations if isinstance(d, syntax.Block))
    return any(word == parts[unmet - 1] for block in blocks for word in all_words(block))


def _new(spec: Spec, declaration: syntax.Weights, weights: Mapping[str, Weight]) -> dict[str, Span]:
    """The weights of the `new` lines, and where they are named."""
    found: dict[str, Span] = {}
    for pattern in declaration.new:
        paths = select(pattern.text, weights)
        found |= dict.fromkeys(paths, pattern.span)
        if not paths and not _is_of_another_choice(spec, pattern.text, weights):
            hint = did_you_mean(pattern.text, tuple(weights))
            spec.library.problems.add(BadWeightMap(pattern.span, f"`{pattern.text}` is the path of no weight", hint))
    return found


def _filled(pattern: str, caught: tuple[str, ...]) -> str:
    for part in caught:
        pattern = pattern.replace("*", part, 1)
    return pattern


def _layout(spec: Spec, entry: syntax.TensorEntry, weight: Weight) -> tuple[tuple[str, ...], ...] | None:
    if entry.axes is None:
        return None
    groups: list[tuple[str, ...]] = []
    for item in entry.axes:
        names = item.items if isinstance(item, syntax.Tuple) else (item,)
        groups.append(tuple(name.span.text for name in names))
    written = sorted(name for group in groups for name in group)
    own = sorted(axis.name for axis in weight.type.axes)
    if written != own:
        spec.library.problems.add(
            BadWeightMap(_axes_at(entry), f"the axes of `{weight.path}` are {', '.join(own)}, not {', '.join(written)}")
        )
        return None
    return tuple(groups)


def _axes_at(entry: syntax.TensorEntry) -> Span:
    assert entry.axes
    return entry.axes[0].span.to(entry.axes[-1].span)


def _check_coverage(
    spec: Spec,
    declaration: syntax.Weights,
    entries: list[tuple[syntax.TensorEntry, TensorLine]],
    weights: Mapping[str, Weight],
    new: Mapping[str, Span],
) -> None:
    """Every weight stands in exactly one line."""
    problems = spec.library.problems
    seen: dict[str, tuple[str, Span]] = {path: ("no tensor, as it is new", span) for path, span in new.items()}
    for entry, line in entries:
        for path in line.paths:
            if path in seen:
                foreign, first = seen[path]
                what = f"`{path}` is mapped twice, to {foreign} and `{line.foreign}`"
                problems.add(BadWeightMap(entry.patterns[0].span, what, None, first))
            seen[path] = f"`{line.foreign}`", entry.patterns[0].span
    missing = [path for path in weights if path not in seen]
    # A line that was refused would have covered some of them.
    if missing and not any(isinstance(error, BadWeightMap) for error in problems.errors):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problems.add(BadWeightMap(declaration.format.span, f"no line for the weight `{missing[0]}`{more}"))
