"""Text to syntax tree: runs the LALR tables over the tokens, one top-level item at a time.

A mistake costs the item it stands in, and is reported once; the next item starts at the next line at the left edge.
Words of the language are soft: where the state accepts a name and not the word, the word is a name.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from . import syntax
from .diagnostics import Mistake, Problems, SpecError
from .errors.syntax import TooDeep
from .lexer import DEDENT, ERROR, INDENT, NEWLINE, RESERVED, Tokens, tokenize
from .parse_errors import explain, late_docstring
from .source import Source, Span
from .tables import END, Rule, load_tables
from .tree_builder import BUILDERS, NESTING, Token

MAX_DEPTH = 100

# A statement that starts with one of these words is that statement if the next token is one of those listed; otherwise
# the word is a name.
_NAMED = frozenset({"NAME", "NUMBER", "PRESET_NAME", "STRING"})
_STARTERS = dict.fromkeys(("AXIS", "INPUT", "PARAM", "SEGMENT", "ON", "ROUTED"), _NAMED) | {
    "COPY": frozenset({"OPEN_ROUND"}),
    "LOSS": _NAMED | {"ASSIGN"},
}  # fmt: skip
_SOFTEST = frozenset(_STARTERS) | {"MATCH", "WHERE"}


def parse(source: Source, problems: Problems) -> syntax.File:
    """The syntax tree of a spec. Mistakes go to `problems`; an item with one is missing from the tree. Never raises."""
    return parse_tokens(tokenize(source, problems), problems)


def parse_tokens(tokens: Tokens, problems: Problems) -> syntax.File:
    """The same from tokens. Words of the language that are names here become `NAME` tokens."""
    docstring: syntax.Docstring | None = None
    declarations: list[Any] = []
    broken = tokens.broken
    for number, start in enumerate(tokens.items):
        end = tokens.items[number + 1] if number + 1 < len(tokens.items) else len(tokens.kinds) - 1
        try:
            item = _Run(tokens, start, end).item()
        except Mistake as mistake:
            problems.add(mistake.error)
            broken = True
            continue
        if isinstance(item, syntax.Docstring) and number == 0:
            docstring = item
        elif isinstance(item, syntax.Docstring):
            problems.add(late_docstring(item.span))
            broken = True
        else:
            declarations.append(item)
    return syntax.File(tokens.source, docstring, tuple(declarations), tuple(tokens.comments), broken)


@dataclass(frozen=True, slots=True)
class _Action:
    """What a reduction does, made from a Rule once."""

    origin: str
    length: int
    build: Any
    keep: tuple[int | tuple[int] | None, ...]
    same: bool
    deepens: int


def _action(rule: Rule) -> _Action:
    build = None if rule.splice else BUILDERS.get(rule.build)
    same = build is None and not rule.splice
    assert not same or len(rule.keep) == 1, f"no builder for {rule.build}"
    return _Action(rule.origin, rule.length, build, rule.keep, same, int(rule.build in NESTING))


@cache
def _actions() -> tuple[_Action, ...]:
    return tuple(_action(rule) for rule in load_tables().rules)


class _Run:
    """One item's run of the parser: the stack, as parallel lists."""

    def __init__(self, tokens: Tokens, start: int, end: int) -> None:
        self.tokens = tokens
        self.start = start
        self.end = end
        self.states = [0]
        self.values: list[Any] = []
        self.spans: list[tuple[int, int] | None] = []
        self.depths: list[int] = []
        # The states before the next token was looked at: what may come is asked of these, since a wrong token may
        # cause reductions before it is refused.
        self.settled = [0]

    def item(self) -> Any:
        table = load_tables().states
        actions = _actions()
        words = load_tables().words
        word_kinds = frozenset(words.values())
        tokens = self.tokens
        kinds, starts, ends = tokens.kinds, tokens.starts, tokens.ends
        text, source = tokens.source.text, tokens.source
        states, values, spans, depths = self.states, self.values, self.spans, self.depths
        reserved = {words[word] for word in RESERVED}
        index = self.start
        while True:
            kind = kinds[index] if index < self.end else END
            self.settled = states[:]
            if kind in _SOFTEST and "NAME" in table[states[-1]] and not self._starts(kind, index):
                kind = "NAME"
            while True:
                action = table[states[-1]].get(kind)
                if action is None:
                    if kind in word_kinds and kind not in reserved and "NAME" in table[states[-1]]:
                        kind = "NAME"
                        continue
                    raise Mistake(self._mistake(index, kind))
                if action >= 0:
                    break
                self._reduce(actions[-1 - action], table, index)
            if kind == END:
                return values[-1]
            kinds[index] = kind
            states.append(action)
            if kind in _LINES:
                values.append(None)
                spans.append(None)
            else:
                start, end = starts[index], ends[index]
                values.append(Token(kind, text[start:end], Span(source, start, end)))
                spans.append((start, end))
            depths.append(0)
            index += 1

    def _starts(self, kind: str, index: int) -> bool:
        """Whether a word that may start a statement does, rather than being a name."""
        kinds = self.tokens.kinds
        if kind == "MATCH":
            return self._has_colon(index + 1)
        if kind == "WHERE":
            return kinds[index - 1] != "COMMA"  # behind a comma stands one more pattern, whatever it is called
        following = kinds[index + 1]
        if following not in load_tables().words.values():
            return following in _STARTERS[kind]
        word = self.tokens.text(index + 1)
        return word not in RESERVED and not (kind == "ROUTED" and word != "by")

    def _has_colon(self, index: int) -> bool:
        """Whether a colon that no bracket encloses follows on the line: `match x:` has one, `match = x` has none."""
        depth = 0
        for kind in self.tokens.kinds[index : self.end]:
            if kind == NEWLINE or (kind == "COLON" and depth == 0):
                return kind == "COLON"
            depth += (kind in ("OPEN_ROUND", "OPEN_SQUARE")) - (kind in ("CLOSE_ROUND", "CLOSE_SQUARE"))
        return False

    def _reduce(self, action: _Action, table: tuple[dict[str, int], ...], index: int) -> None:
        states, values, spans, depths = self.states, self.values, self.spans, self.depths
        length = action.length
        if length == 1 and action.same:
            states.pop()
            states.append(table[states[-1]][action.origin])
            return
        children = values[-length:]
        depth = max(depths[-length:]) + action.deepens
        parts = spans[-length:]
        start = end = None
        for part in parts:
            if part:
                start = part[0] if start is None else start
                end = part[1]
        span = None if start is None or end is None else (start, end)
        if depth > MAX_DEPTH and span:
            raise Mistake(TooDeep(Span(self.tokens.source, span[0], span[0] + 1), MAX_DEPTH))
        kept: list[Any] = []
        for place in action.keep:
            if place is None:
                kept.append(None)
            elif isinstance(place, tuple):
                kept += children[place[0]]
            else:
                kept.append(children[place])
        if action.build:
            here = span or (self.tokens.starts[index],) * 2
            value = action.build(Span(self.tokens.source, *here), *kept)
        else:
            value = kept[0] if action.same else kept
        del states[-length:], values[-length:], spans[-length:], depths[-length:]
        states.append(table[states[-1]][action.origin])
        values.append(value)
        spans.append(span)
        depths.append(depth)

    def _mistake(self, index: int, kind: str) -> SpecError:
        return explain(self.tokens, self.start, self.end, index, self._accepted())

    def _accepted(self) -> frozenset[str]:
        """The terminals that may come next. A row may list some that a later state refuses, so each is tried."""
        table = load_tables().states
        return frozenset(kind for kind in table[self.settled[-1]] if not kind.islower() and self._would_shift(kind))

    def _would_shift(self, kind: str) -> bool:
        table, rules = load_tables().states, load_tables().rules
        states = list(self.settled)
        while True:
            action = table[states[-1]].get(kind)
            if action is None:
                return False
            if action >= 0:
                return True
            rule = rules[-1 - action]
            del states[len(states) - rule.length :]
            states.append(table[states[-1]][rule.origin])


_LINES = frozenset({NEWLINE, INDENT, DEDENT})
assert ERROR not in load_tables().texts


def structure(node: object) -> object:
    """The content of a tree without spans and comments: equal for two texts that mean the same tree."""
    if isinstance(node, tuple):
        return tuple(structure(item) for item in node)
    if isinstance(node, syntax.File):
        return ("File", structure(node.docstring), structure(node.declarations))
    if is_dataclass(node):
        inner = (structure(getattr(node, field.name)) for field in fields(node) if field.name != "span")
        return (type(node).__name__, *inner)
    # 1 and 1.0 are equal in Python and different in a spec.
    return (type(node).__name__, node) if isinstance(node, int | float) else node
