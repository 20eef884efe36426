"""The LALR tables of grammar.lark, as plain data.

Lark builds them, in strict mode: a grammar with a conflict is refused. They ship as grammar.json, because importing
Lark and building them takes longer than everything else `weft check` does. `python -m weft.dsl.tables` writes the
file anew after a change to the grammar; a test compares the two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

END = "$END"


@dataclass(frozen=True, slots=True)
class Rule:
    """One production. `keep` says what its builder is given, in order: the index of a symbol, `[index]` for a symbol
    whose list is spliced in, None for an optional part that is not there. `splice` rules only make such a list."""

    origin: str
    length: int
    build: str
    keep: tuple[int | tuple[int] | None, ...]
    splice: bool


@dataclass(frozen=True, slots=True)
class Tables:
    """`states[s][symbol]` is the next state, or `-1 - r` to reduce by rule `r`. `words` and `marks` are the terminals
    with a fixed text, by text."""

    words: dict[str, str]
    marks: dict[str, str]
    rules: tuple[Rule, ...]
    states: tuple[dict[str, int], ...]

    @property
    def texts(self) -> dict[str, str]:
        return {name: text for group in (self.words, self.marks) for text, name in group.items()}


@cache
def load_tables() -> Tables:
    data = json.loads((files("weft.dsl") / "grammar.json").read_text("utf-8"))
    rules = tuple(
        Rule(origin, length, build, tuple(tuple(k) if isinstance(k, list) else k for k in keep), splice)
        for origin, length, build, keep, splice in data["rules"]
    )
    return Tables(data["words"], data["marks"], rules, tuple(data["states"]))


def build_tables() -> dict[str, Any]:
    """Tables from the grammar, numbered in an order that depends on nothing but the grammar."""
    from lark import Lark  # slow to import, and only the maintainers of the grammar need it
    from lark.lexer import PatternStr
    from lark.parsers.lalr_analysis import Shift

    grammar = (files("weft.dsl") / "grammar.lark").read_text("utf-8")
    lark = Lark(grammar, parser="lalr", lexer="contextual", strict=True)
    table: Any = lark.parser.parser._parse_table  # pyright: ignore[reportAttributeAccessIssue]
    rules = sorted(lark.rules, key=lambda rule: (rule.origin.name, rule.order, [s.name for s in rule.expansion]))
    rule_number = {id(rule): number for number, rule in enumerate(rules)}
    rule_number |= {(rule.origin.name, tuple(s.name for s in rule.expansion)): n for n, rule in enumerate(rules)}

    order = [table.start_states["start"]]
    number = {order[0]: 0}
    for state in order:
        for symbol in sorted(table.states[state]):
            action, target = table.states[state][symbol]
            if action is Shift and target not in number:
                number[target] = len(order)
                order.append(target)

    states = []
    for state in order:
        row = {}
        for symbol in sorted(table.states[state]):
            action, target = table.states[state][symbol]
            if action is Shift:
                row[symbol] = number[target]
            else:
                row[symbol] = -1 - rule_number[target.origin.name, tuple(s.name for s in target.expansion)]
        if state == table.end_states["start"]:
            row[END] = number[state]
        states.append(row)

    fixed = {t.pattern.value: t.name for t in lark.terminals if isinstance(t.pattern, PatternStr)}
    return {
        "words": {text: name for text, name in sorted(fixed.items()) if text.isidentifier()},
        "marks": {text: name for text, name in sorted(fixed.items()) if not text.isidentifier()},
        "rules": [_plain_rule(rule) for rule in rules],
        "states": states,
    }


def _plain_rule(rule: Any) -> list[Any]:
    """A Lark rule as [origin, length, builder, keep, splice]."""
    origin = rule.origin.name
    absent = "".join("1" if empty else "0" for empty in rule.options.empty_indices).split("0")
    absent += [""] * (len(rule.expansion) + 1 - len(absent))
    keep: list[Any] = []
    for index, symbol in enumerate(rule.expansion):
        keep += [None] * len(absent[index])
        if symbol.is_term:
            if not symbol.filter_out:
                keep.append(index)
        elif symbol.name.startswith("_"):
            keep.append([index])
        else:
            keep.append(index)
    keep += [None] * len(absent[len(rule.expansion)])
    build = rule.alias or ("" if rule.options.expand1 else origin)
    return [origin, len(rule.expansion), build, keep, origin.startswith("_")]


def tables_as_text(data: dict[str, Any]) -> str:
    """JSON with one rule or state a line, so that a change to the grammar shows as a small difference."""

    def lines(items: list[Any]) -> str:
        return ",\n".join(json.dumps(item, separators=(",", ":")) for item in items)

    return (
        f'{{"words":{json.dumps(data["words"])},\n"marks":{json.dumps(data["marks"])},\n'
        f'"rules":[\n{lines(data["rules"])}\n],\n"states":[\n{lines(data["states"])}\n]}}\n'
    )


if __name__ == "__main__":
    Path(__file__).with_name("grammar.json").write_text(tables_as_text(build_tables()), encoding="utf-8")
