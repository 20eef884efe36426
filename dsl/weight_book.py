"""Weights of one program: unique paths, sharing between calls of one model, and the patterns that set init and
freeze."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace

from . import syntax
from .diagnostics import Mistake, Problems
from .errors.weights import BadDistribution, DuplicatePath, PatternMatchesNothing, SharedShape
from .patterns import matches
from .program import ArmOf, Distribution, Weight
from .record import record
from .source import Span
from .value_type import ValueType


@record
class Rule:
    """An `init` or `freeze` line. `prefix` is the path of the file instance it stands in, `where` a tag and its value
    that a `freeze` asks for."""

    pattern: syntax.Pattern
    prefix: tuple[str, ...]
    declaration: syntax.Init | syntax.Freeze
    where: tuple[str, str] | None = None


@record(eq=False)
class Made:
    """What `WeightBook.make` was asked for, and gave. `depth`: of calls of models around it."""

    path: str
    type: ValueType
    init: Distribution
    outputs: int
    span: Span
    at_site: bool
    name: str
    site: Span
    kernel: int
    depth: int
    weight: Weight


class WeightBook:
    """Makes weights. `evaluate` turns an init expression into a Distribution for a weight of given fan-in and fan-out,
    made in a given turn of the innermost loop around it."""

    def __init__(
        self, problems: Problems, rules: tuple[Rule, ...], model_names: Mapping[tuple[str, ...], tuple[str, ...]],
        evaluate: Callable[[Rule, int, int, int], Distribution],
    ) -> None:  # fmt: skip
        self.weights: dict[str, Weight] = {}
        self.matched: set[tuple[str, int]] = set()
        self._problems = problems
        self._rules = rules
        self._model_names = model_names
        self._evaluate = evaluate
        self._sites: list[dict[str, Span]] = [{}]
        self.arms: list[ArmOf] = []  # around the call that makes weights
        self.made: list[Made] = []

    @property
    def depth(self) -> int:
        """How many calls of models are around."""
        return len(self._sites)

    def is_free(self, path: str) -> bool:
        """Whether nothing around has a weight of this path."""
        return path not in self._sites[-1] and path not in self.weights

    def again(self, one: Made, path: str, site: Span) -> Weight:
        """A weight like another, at another path."""
        return self.make(path, one.type, one.init, one.outputs, one.span, one.at_site, one.name, site, one.kernel)

    @contextmanager
    def instance(self):
        """One call of a model or shared block: its weights may have been made by an earlier call."""
        self._sites.append({})
        try:
            yield
        finally:
            self._sites.pop()

    def make(
        self, path: str, type: ValueType, init: Distribution, outputs: int, span: Span, at_site: bool, name: str,
        site: Span | None = None, kernel: int = 0,
    ) -> Weight:  # fmt: skip
        """The weight at `path`. `at_site`: the init was written at the call and beats the patterns. `site` is the call
        that makes it, as the user would point at it."""
        site = site or span
        sites = self._sites[-1]
        if path in sites:
            raise Mistake(DuplicatePath(site, path, sites[path]))
        sites[path] = site
        weight = self._weight(path, type, init, outputs, span, at_site, name, kernel)
        self.made.append(Made(path, type, init, outputs, span, at_site, name, site, kernel, self.depth, weight))
        return weight

    def _weight(
        self, path: str, type: ValueType, init: Distribution, outputs: int, span: Span, at_site: bool, name: str,
        kernel: int,
    ) -> Weight:  # fmt: skip
        weight = Weight(name, type, span, path, init, outputs, arms=tuple(self.arms), kernel=kernel)
        known = self.weights.get(path)
        if known is not None:
            if known.shape != weight.shape:
                raise Mistake(SharedShape(span, path, str(known.shape), str(weight.shape), known.span))
            # The same numbers, seen through the axes of this call.
            same = type.axes == known.type.axes
            return known if same else replace(weight, init=known.init, frozen=known.frozen, arms=known.arms)
        weight = self._ruled(weight, at_site)
        self.weights[path] = weight
        return weight

    def _ruled(self, weight: Weight, at_site: bool) -> Weight:
        init, frozen, last, made = weight.init, False, None, None
        for rule in self._rules:
            if not self.holds(rule, weight):
                continue
            key = (rule.pattern.span.source.name, rule.pattern.span.start)
            is_new = key not in self.matched
            self.matched.add(key)
            if isinstance(rule.declaration, syntax.Freeze):
                frozen = True
            elif not at_site:
                # One that is met first is evaluated for its mistakes, should it win nowhere.
                last, made = rule, self._by_rule(rule, weight) if is_new else None
        if last is not None:
            init = made or self._by_rule(last, weight)
        if init == weight.init and not frozen:
            return weight
        return replace(weight, init=init, frozen=frozen)

    def _by_rule(self, rule: Rule, weight: Weight) -> Distribution:
        fan_out = weight.stored_shape[0] if weight.outputs else 1
        init = self._evaluate(rule, weight.fan_in, fan_out, _turn(weight.path))
        if init.source is None:
            return init
        return replace(init, source=self._copied(rule, init.source, weight.path))

    def _copied(self, rule: Rule, source: str, path: str) -> str:
        """The path that `copy(source)` means for the weight at `path`."""
        start = "".join(part + "." for part in rule.prefix)
        local = path[len(start) :]
        for model in ("", *(f"{name}." for name in self._model_names.get(rule.prefix, ()))):
            found = counterpart(rule.pattern.text, source, model + local)
            if found is not None:
                return start + found.removeprefix(model)
        raise Mistake(BadDistribution(rule.declaration.span, "`copy` has a `*` that the pattern on the left lacks"))

    def holds(self, rule: Rule, weight: Weight) -> bool:
        """Whether a line is about a weight: by its path, and with `where kind == text` by the arms that it is in."""
        if not self.applies(rule.pattern.text, rule.prefix, weight.path):
            return False
        if rule.where is None:
            return True
        tag, member = rule.where
        return any(tag in arm.names and member in arm.members for arm in weight.arms)

    def applies(self, pattern: str, prefix: tuple[str, ...], path: str) -> bool:
        """Patterns speak of paths from their file's own root; the model's name in front may be written or not."""
        start = "".join(part + "." for part in prefix)
        if not path.startswith(start):
            return False
        local = path[len(start) :]
        # Names of models of other files are parts of paths here: `entropy_lm.**` is one of two models of a spec.
        names = self._model_names.get(prefix, ())
        return matches(pattern, local) or any(matches(pattern, f"{model}.{local}") for model in names)

    def check_rules(self, matched: set[tuple[str, int]]) -> None:
        """A pattern that matches nothing is an error. `matched` joins the matches of all programs of the spec."""
        for rule in self._rules:
            # A used file speaks of all it has; a spec that uses part of it is not at fault.
            if rule.prefix:
                continue
            key = (rule.pattern.span.source.name, rule.pattern.span.start)
            if key not in matched:
                self._problems.add(PatternMatchesNothing(rule.pattern.span, rule.pattern.text, tuple(self.weights)))


def _turn(path: str) -> int:
    """The turn of the innermost loop that a weight is made in; 0 outside of loops."""
    return next((int(part) for part in reversed(path.split(".")) if part.isdigit()), 0)


def counterpart(pattern: str, source: str, path: str) -> str | None:
    """What `source` means when `pattern` matches `path`: its `*` and `**` stand for what the pattern's stood for.

    counterpart("layer.*.**.image", "layer.*.**.text", "layer.3.mix.image.weight") == "layer.3.mix.text.weight"
    """
    wild = {"*": r"([^.]+\.)", "**": r"((?:[^.]+\.)*?)"}
    parts = pattern.split(".")
    regex = "".join(wild.get(part) or re.escape(part) + r"\." for part in parts)
    found = re.fullmatch(regex + "(.*)", path + ".")
    if found is None:
        return None
    *texts, rest = found.groups()
    caught: dict[str, list[str]] = {"*": [], "**": []}
    for part, text in zip((part for part in parts if part in wild), texts, strict=True):
        caught[part].append(text)
    made = ""
    for part in source.split("."):
        if part in wild and not caught[part]:
            return None
        made += caught[part].pop(0) if part in wild else part + "."
    return (made + rest).rstrip(".")
